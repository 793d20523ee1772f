"""Cleaning: runs that nobody needs any more leave the journal, and their files the disk.

    which runs go ─ one transaction takes their rows ─ their folders are removed

Rows go first: a folder without a row is rubbish that the next cleaning finds, a row without its files would be a run that
can't be shown or resumed. Never removed: a run that goes on, the newest run of each pipeline, one in whose files values
of a run lie that stays, and the run that made the last commit (the mark names it). Nothing is removed while another process writes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from procflow.passive import passive
from procflow.storing import store_mark
from procflow.storing.journal_objects import files_of_run
from procflow.storing.state_folder import StateFolder, is_safe_id
from procflow.storing.store_seal import OF_EXECUTIONS, OF_RUNS

if TYPE_CHECKING:
    import sqlite3

    from procflow.storing.history import RunRow

__all__ = ["Kept", "Rubbish", "forget", "marked_run", "owners_of", "remove_folders", "rubbish", "size_of", "to_go"]

YOUNG_S = 3600.0
"""A folder without a row that is younger may be of a run that is just beginning."""


@passive(frozen=True, slots=True)
class Kept:
    """A run that was to go and stays, and why."""

    run: RunRow
    why: str


@passive(frozen=True, slots=True)
class Rubbish:
    """A folder of no run."""

    path: Path
    size_bytes: int


def to_go(
    runs: list[RunRow],
    marked: str | None,
    *,
    older_s: float | None,
    newest: int | None,
    owners: Callable[[str], set[str]] = lambda run_id: set(),
    now: datetime | None = None,
) -> tuple[list[RunRow], list[Kept]]:
    """Which runs go (newest first in ``runs``), and which stay though they are old.

    A run is to go when it is older than ``older_s`` seconds, or beyond the ``newest`` runs of its pipeline. ``owners`` gives
    the runs in whose folders the values of a run lie.
    """
    limit = (now or datetime.now(timezone.utc)) - timedelta(seconds=older_s) if older_s is not None else None
    seen: dict[str, int] = {}
    wanted, stays = [], []
    for run in runs:
        seen[run.pipeline] = seen.get(run.pipeline, 0) + 1
        old = limit is not None and _time(run.ended or run.started) < limit
        if (old or (newest is not None and seen[run.pipeline] > newest)) and not run.live:
            wanted.append(run)
        else:
            stays.append(run.run_id)
    newest_of = {run.pipeline: run.run_id for run in reversed(runs)}
    needed = set().union(*map(owners, stays))
    going, kept = [], []
    # Newest first, so that what a run that stays builds on is known before it is asked.
    for run in wanted:
        why = ""
        if newest_of[run.pipeline] == run.run_id:
            why = "the newest run of its pipeline"
        elif run.run_id in needed:
            why = "values of a run that stays are in its files"
        elif run.run_id == marked:
            why = "it made the last commit of the journal"
        if why:
            kept.append(Kept(run, why))
            needed |= owners(run.run_id)
        else:
            going.append(run)
    return going, kept


def owners_of(folder: StateFolder, run_id: str) -> set[str]:
    """The runs in whose folders the values of a run lie: its own, and those whose results it took over."""
    runs = folder.path / "runs"
    found = set()
    for path in files_of_run(folder, run_id):
        with contextlib.suppress(ValueError):
            found.add(Path(path).relative_to(runs).parts[0])
    return found


def _time(utc: str) -> datetime:
    return datetime.fromisoformat(utc.replace("Z", "+00:00"))


def forget(db: sqlite3.Connection, run_ids: Iterable[str]) -> None:
    """Take the rows of runs out, inside the caller's transaction."""
    tables = {str(name) for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for run_id in run_ids:
        (seq,) = db.execute("SELECT seq FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        ids = (seq << 32, (seq << 32) + (1 << 32) - 1)
        db.execute("DELETE FROM step_executions WHERE id BETWEEN ? AND ?", ids)
        for table in OF_EXECUTIONS:
            db.execute(f"DELETE FROM {table} WHERE execution_id BETWEEN ? AND ?", ids)
        for table in OF_RUNS:
            db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
        # Made only when the first run had something to teach.
        if "learned" in tables:
            db.execute("DELETE FROM learned WHERE seq = ?", (seq,))


def marked_run(folder: StateFolder, db: sqlite3.Connection) -> str | None:
    """The run that made the last commit, as the mark says."""
    mark = store_mark.read(folder.db)
    row = db.execute("SELECT run_id FROM runs WHERE seq = ?", (mark[0],)).fetchone() if mark is not None else None
    return str(row[0]) if row is not None else None


def rubbish(folder: StateFolder, known: Iterable[str], now: float | None = None) -> Iterator[Rubbish]:
    """Folders of runs that the journal does not know, old enough not to be of one that begins."""
    ids = set(known)
    limit = (time.time() if now is None else now) - YOUNG_S
    with contextlib.suppress(FileNotFoundError), os.scandir(folder.path / "runs") as entries:
        for entry in entries:
            if entry.name in ids or not is_safe_id(entry.name) or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_mtime < limit:
                yield Rubbish(Path(entry.path), size_of(Path(entry.path)))


def size_of(folder: Path) -> int:
    """What a folder takes on disk, links not followed."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


def remove_folders(paths: Iterable[Path]) -> list[str]:
    """Remove folders of runs; what could not be removed, as text."""
    problems: list[str] = []

    def note(_: object, path: str, error: object) -> None:
        reason = error[1] if isinstance(error, tuple) else error
        if not isinstance(reason, FileNotFoundError):
            problems.append(f"{path}: {reason}")

    for path in paths:
        shutil.rmtree(path, onerror=note)
    return problems
