"""Recovery: a damaged journal is put aside, and one takes its place that holds all that can still be believed.

    lock  ─  salvage (rows whose checksums hold)  ─  settle (whole runs and results)  ─  write  ─  change places

A result is kept only if everything that belongs to it is there, so a resume uses it or makes it again, and never goes on
from half of one. The damaged files are kept under a dated name. A kill in the middle leaves the damaged journal or
both; then ``recover`` once more does the rest. Nothing is ever removed but what this file itself has begun.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from procflow.errors import LockHeld, StoreError
from procflow.storing import store_learned, store_mark
from procflow.storing.own_files import open_own
from procflow.storing.salvage import LESSONS, Row, Salvaged, salvage
from procflow.storing.state_folder import StateFolder, is_network_mount, try_flock
from procflow.storing.store_refs import decode_refs
from procflow.storing.store_schema import create_database, told
from procflow.storing.store_seal import OF_EXECUTIONS, TABLES, install, reseal

__all__ = ["Recovered", "SavedRun", "recover"]

SIDES = ("-wal", "-shm", "-journal")
GOOD = ("succeeded", "skipped")


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run that was saved; ``attempts`` that ended well are kept, ``lost`` results are missing and will be made again."""

    run_id: str
    pipeline: str
    status: str
    attempts: int
    lost: int


@dataclass(slots=True)
class Recovered:
    """What ``recover`` found and did. ``aside`` is where the damaged journal is now; None where nothing was changed.

    ``damage`` is empty where the journal is whole. ``homeless`` counts rows of runs that are lost as a whole.
    """

    damage: list[str] = field(default_factory=list)
    runs: list[SavedRun] = field(default_factory=list)
    homeless: int = 0
    aside: Path | None = None


def recover(folder: StateFolder, *, look_only: bool = False, now: datetime | None = None) -> Recovered:
    """Save what can be read of the folder's journal; with ``look_only`` say what would be saved.

    LockHeld while a run goes on in the folder. StoreError where there is no journal, or one of another program.
    """
    with _alone(folder):
        ready = _ready(folder)
        if not folder.db.exists() and not ready.exists():
            raise StoreError(f"{folder.db}: there is no journal, so there is nothing to recover")
        if not folder.db.exists():
            # The last recovery was killed between its two last moves.
            return _finish(folder, ready, Recovered(["a recovery was interrupted"]), now)
        work = Path(tempfile.mkdtemp(prefix="recover-", dir=folder.path))
        try:
            found = salvage(folder.db, work)
            told_of = Recovered(found.damage + _bad_rows(found) + _behind_mark(folder, found))
            lost = _settle(found, told_of)
            if told_of.damage and not look_only:
                _write(found, lost, work / folder.db.name, folder)
                os.replace(work / folder.db.name, ready)
        except (sqlite3.Error, OSError) as error:
            raise told(folder.db, error, "can't be recovered") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return _finish(folder, ready, told_of, now) if told_of.damage and not look_only else told_of


@contextlib.contextmanager
def _alone(folder: StateFolder) -> Iterator[None]:
    """Hold the writer lock while no run of the folder goes on."""
    locks = folder.path / "locks"
    for name in sorted(os.listdir(locks)) if locks.is_dir() else ():
        holder = folder.lock(name).holder() if not name.startswith(".") else None
        if holder is not None:
            raise LockHeld(f"run {holder.run_id} is going on (pid {holder.pid}); recover when it has ended")
    fd = open_own(folder.writer_lock, os.O_RDWR | os.O_CREAT)
    try:
        if not try_flock(fd, fcntl.LOCK_EX):
            raise LockHeld(f"{folder.writer_lock}: a run of this folder is writing; recover when it has ended")
        yield
    finally:
        os.close(fd)


def _bad_rows(found: Salvaged) -> list[str]:
    return [
        f"{number} of the rows of {table} can't be read or have a wrong checksum"
        for table, number in found.bad.items()
        if number
    ]


def _behind_mark(folder: StateFolder, found: Salvaged) -> list[str]:
    """Whether commits are missing that were made."""
    mark = store_mark.read(folder.db)
    if mark is None:
        return []
    seq, commits = mark
    here = next((row["commits"] for row in found.rows["runs"] if row["seq"] == seq), 0)
    if here >= commits:
        return []
    return [f"commits are missing: run number {seq} made {commits}, here are {here}; what they held runs again"]


# -- what belongs together ---------------------------------------------------------------------------------------------


def _settle(found: Salvaged, told_of: Recovered) -> dict[str, int]:
    """Leave out rows without their run and results that are not whole; how many results each run has lost, by id."""
    rows = found.rows
    seqs = {row["seq"]: row["run_id"] for row in rows["runs"]}
    ids = set(seqs.values())
    for table in TABLES:
        before = len(rows[table])
        if table in ("fingerprints", "sessions"):
            rows[table] = [row for row in rows[table] if row["run_id"] in ids]
        elif table != "runs":
            key = "id" if table == "step_executions" else "execution_id"
            rows[table] = [row for row in rows[table] if row[key] >> 32 in seqs]
        told_of.homeless += before - len(rows[table])
    broken = set(_broken(found))
    rows["step_executions"] = [row for row in rows["step_executions"] if row["id"] not in broken]
    there = {row["id"] for row in rows["step_executions"]}
    for table in OF_EXECUTIONS:
        rows[table] = [row for row in rows[table] if row["execution_id"] in there]
    rows[LESSONS] = [row for row in rows[LESSONS] if row["seq"] in seqs]
    done = Counter(
        row["id"] >> 32 for row in rows["step_executions"] if row["kind"] == "task" and row["status"] == "succeeded"
    )
    lost = {}
    for run in rows["runs"]:
        lost[run["run_id"]] = max(0, run["succeeded"] - done[run["seq"]])
        told_of.runs.append(
            SavedRun(run["run_id"], run["pipeline"], run["status"], done[run["seq"]], lost[run["run_id"]])
        )
    if any(lost.values()) and not told_of.damage:
        told_of.damage.append(f"{sum(lost.values())} results that were recorded are missing")
    return lost


def _broken(found: Salvaged) -> Iterator[int]:
    """Ids of executions that ended well and of whose results something is missing."""
    for row in found.rows["step_executions"]:
        if row["kind"] not in ("task", "copied") or row["status"] not in GOOD:
            continue
        if (row["output_ref"] or "") != ",".join(decode_refs(row["output_ref"], row["refs"])):
            yield row["id"]
        elif row["role"] == "expand" and found.bad.get("pages"):
            # How many pages there were is nowhere else, and a map over some of its items would look whole.
            yield row["id"]


# -- the new journal ---------------------------------------------------------------------------------------------------


def _write(found: Salvaged, lost: dict[str, int], new: Path, folder: StateFolder) -> None:
    """A whole journal with the rows that are left, durable."""
    for suffix in ("", *SIDES):
        new.with_name(new.name + suffix).unlink(missing_ok=True)
    create_database(new, is_network_mount(folder.path))
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=FULL")
        install(db)
        db.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            _insert(db, table, found.rows[table])
        if found.rows[LESSONS]:
            store_learned.create_table(db)
            _insert(db, LESSONS, found.rows[LESSONS])
        for run_id, number in lost.items():
            if number:
                db.execute("UPDATE runs SET succeeded = succeeded - ? WHERE run_id = ?", (number, run_id))
                reseal(db, "runs", "run_id = ?", (run_id,))
        used = [row["seq"] for row in found.rows["runs"]]
        mark = store_mark.read(folder.db)
        # The number of a run that is lost must not be given again: files of it may be there.
        last = max([*used, mark[0] if mark is not None else 0, 0])
        db.execute("DELETE FROM sqlite_sequence WHERE name = 'runs'")
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('runs', ?)", (last,))
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def _insert(db: sqlite3.Connection, table: str, rows: list[Row]) -> None:
    if rows:
        # Those of the new table: what a damaged one calls its columns may be anything.
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[1] in rows[0]]
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        db.executemany(sql, ([row[column] for column in columns] for row in rows))


def _ready(folder: StateFolder) -> Path:
    """A recovered journal that waits to take its place."""
    return folder.db.with_name(folder.db.name + ".recovered")


def _finish(folder: StateFolder, ready: Path, told_of: Recovered, now: datetime | None) -> Recovered:
    """Put the damaged files aside, the new one in their place."""
    stamp = (now or datetime.now(timezone.utc)).strftime("%Y%m%dT%H%M%SZ")
    aside = _free(folder.db.with_name(f"{folder.db.name}.damaged-{stamp}"))
    try:
        for suffix in ("", *SIDES):
            side = folder.db.with_name(folder.db.name + suffix)
            if side.exists():
                os.rename(side, aside.with_name(aside.name + suffix))
        mark = store_mark.path_of(folder.db)
        if mark.exists():
            os.rename(mark, aside.with_name(f"{aside.name}.mark"))
        os.replace(ready, folder.db)
        fd = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise told(folder.db, error, "can't be put aside") from error
    told_of.aside = aside
    return told_of


def _free(path: Path) -> Path:
    """The path itself, or with a number behind it where it is taken."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
