"""The journal's table of lessons: one small row a run, so that ten runs are read in milliseconds however long the history.

The store writes a run's row in the transaction that ends it; readers check its seal. The table is made when the first
run ends that has something to say, so a journal without it is an older one, and versions that don't know it leave it
alone. Steps that ran once go from table to table as columns of text, which SQLite makes: a run may have a hundred thousand.
What lessons mean is ``learning/``'s. Damage here costs what was learned, never a run.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from procflow.errors import StoreError
from procflow.learning.lessons import (
    READABLE,
    START_S,
    VERSION,
    Lessons,
    Place,
    Seen,
    columns_text,
    decoded,
    encoded,
    learn,
)
from procflow.passive import passive
from procflow.storing.store_prints import read_digests
from procflow.storing.store_refs import decode_ref
from procflow.storing.store_schema import UNREADABLE
from procflow.storing.store_seal import expression, seal

__all__ = ["Past", "RunLessons", "create_table", "read", "write"]

_TABLE = """
CREATE TABLE IF NOT EXISTS learned (
    seq INTEGER PRIMARY KEY, run_id TEXT NOT NULL, version INTEGER NOT NULL, data BLOB NOT NULL, seal INTEGER
)
"""
RUNS = 10
"""Runs of a pipeline that are learned from."""
LOOKED_AT = 30
"""Runs that are looked at for them, newest first."""
MOST_LESSONS = 10_000
"""No further run is read once there are so many: a pipeline of many thousand steps learns from its last run alone."""
MOST_ATTEMPTS = 5_000
"""A run without a row of its own (it was killed, or is of an older procflow) is read attempt by attempt up to here."""
SHORT = 24
"""Characters of a fingerprint that are looked at, with the name of its algorithm."""
OPENED_PAGES = 10_000
NEVER = 1 << 62
"""No id is so high."""

_OUTSIDE_S = "max(0, coalesce(ended - started - wall_s, 0))"
_FIRST = f"""(
    attempt = 1 AND item = '' AND role = 'member' AND status = 'succeeded' AND wall_s < 1e9 AND cpu_s < 1e9
    AND peak_rss_bytes >= 0 AND ended - started - wall_s <= {START_S}
)"""
"""The first attempt of a plain step, which succeeded, and no worker started meanwhile."""
_WHOLE = "CASE WHEN id >= ? THEN 1 ELSE seal IS {seal} END"
"""Of an attempt since an id, or with a seal that holds: CASE looks at one only where it has to."""
_ATTEMPTS = f"""
SELECT label, coalesce(role, ''), coalesce(executor, ''), item, status, coalesce(wall_s, 0), coalesce(cpu_s, 0), {_OUTSIDE_S},
    coalesce(peak_rss_bytes, 0), CASE role WHEN 'expand' THEN id ELSE 0 END, 0
FROM step_executions
WHERE id BETWEEN ? AND ? AND kind = 'task' AND (status IN ('succeeded', 'skipped') OR cause = 'oom')
    AND (? OR coalesce({_FIRST}, 0) = 0) AND {_WHOLE}
ORDER BY id
"""
"""What ``Seen`` is made of; for its size stands the attempt that found the items."""
_COLUMNS = f"""
SELECT executor, group_concat(label, char(10)), group_concat(CAST(wall_s * 1e6 + 0.5 AS INTEGER)),
    group_concat(CAST(cpu_s * 1e6 + 0.5 AS INTEGER)), group_concat(CAST({_OUTSIDE_S} * 1e6 + 0.5 AS INTEGER)),
    group_concat(CAST(peak_rss_bytes AS INTEGER))
FROM step_executions
WHERE id BETWEEN ? AND ? AND kind = 'task' AND {_FIRST} AND {_WHOLE}
GROUP BY executor
"""
"""The columns of ``Once``."""


_Head = tuple[str, str, int, dict[str, Any], float]
"""What a ``RunLessons`` begins with."""


@passive(frozen=True, slots=True)
class RunLessons:
    """A run and what it taught. ``params`` are as the journal holds them.

    ``prints`` are the beginnings of the fingerprints of its tasks; None where all are those that were asked about.
    """

    run_id: str
    status: str
    workers: int
    params: dict[str, Any]
    wall_s: float
    lessons: Lessons
    prints: Mapping[Place, str] | None = None


@dataclass(slots=True)
class Past:
    """What the last runs of a pipeline taught, newest first; ``unusable`` says what could not be read, a line each."""

    runs: list[RunLessons] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)


def create_table(db: sqlite3.Connection) -> None:
    """Make the table where there is none, within the caller's transaction."""
    db.execute(_TABLE)


def write(db: sqlite3.Connection, seq: int, made_of: str = "") -> None:
    """Write the row of a run that ends, within the caller's transaction; ``made_of`` is the digest of all fingerprints.

    Attempts of earlier sessions are checked: those that are damaged are left out.
    """
    (run_id,) = db.execute("SELECT run_id FROM runs WHERE seq = ?", (seq,)).fetchone()
    (since,) = db.execute("SELECT coalesce(max(first_id), 0) FROM sessions WHERE run_id = ?", (run_id,)).fetchone()
    once = _once(db, seq, since)
    lessons = _learned(db, seq, since)
    if any(_again(executor, labels, lessons) for executor, (labels, _) in once.items()):
        # A block ran again, say: all attempts are looked at one by one.
        once, lessons = {}, _learned(db, seq, since, every=True)
    texts = (columns_text(executor, labels, *numbers) for executor, (labels, numbers) in once.items())
    data = encoded(replace(lessons, made_of=made_of), texts)
    create_table(db)
    row = (seq, run_id, VERSION, data)
    db.execute("INSERT OR REPLACE INTO learned VALUES (?,?,?,?,?)", (*row, seal(*row)))


def _once(db: sqlite3.Connection, seq: int, since: int) -> dict[str, tuple[list[str], list[str]]]:
    """By executor: the labels of steps that may have run once, and the other columns as text."""
    found = _select_attempts(db, _COLUMNS, (*_ids(seq), since))
    return {executor: (labels.split("\n"), numbers) for executor, labels, *numbers in found}


def _again(executor: str, labels: list[str], others: Lessons) -> bool:
    """Did one of these steps run more than once?"""
    known = set(labels)
    return len(known) < len(labels) or any(key[0] in known and key[1:] == ("member", executor) for key in others.by_key)


def _learned(db: sqlite3.Connection, seq: int, since: int, every: bool = False) -> Lessons:
    """The lessons of a run's attempts: of those that are in no column, or of ``every`` one. Seals from before ``since`` count."""
    ids = _ids(seq)
    pages = _pages(db, ids)
    attempts = map(Seen._make, _select_attempts(db, _ATTEMPTS, (*ids, every, since)))
    return learn((_sized(seen, pages) if seen.size else seen for seen in attempts), _cores())


def _sized(expand: Seen, pages: Mapping[int, tuple[int, int]]) -> Seen:
    size, size_bytes = pages.get(expand.size, (0, 0))
    return expand._replace(size=size, size_bytes=size_bytes)


def _select_attempts(db: sqlite3.Connection, sql: str, values: tuple[int, ...]) -> sqlite3.Cursor:
    return db.execute(sql.format(seal=expression(db, "step_executions")), values)


def _ids(seq: int) -> tuple[int, int]:
    """The ids of a run's attempts."""
    return seq << 32, ((seq + 1) << 32) - 1


def _cores() -> int:
    """Cores that this process may use now, 0 where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


def _pages(db: sqlite3.Connection, ids: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """For each attempt that found the items of a map: how many, and their bytes."""
    found: dict[int, tuple[int, int]] = {}
    sql = f"SELECT execution_id, count, ref FROM pages WHERE execution_id BETWEEN ? AND ? LIMIT {OPENED_PAGES}"
    for execution_id, count, ref in db.execute(sql, ids):
        try:
            size_bytes = decode_ref(ref).size_bytes
        except StoreError:
            continue
        before = found.get(execution_id, (0, 0))
        found[execution_id] = (before[0] + count, before[1] + size_bytes)
    return found


def read(db: sqlite3.Connection, path: Path, pipeline: str, lock: str | None, made_of: str = "") -> Past:
    """What the last runs of a pipeline taught; never raises for what is damaged or of another version.

    ``lock`` tells runs of one file from those of another with a pipeline of that name; None takes them all. ``made_of`` is the
    digest of what all tasks are made of now; fingerprints are read only where a run has another.
    """
    past = Past()
    try:
        _read(db, past, pipeline, lock)
        past.runs = [run if run.lessons.made_of == made_of else _with_prints(db, run, made_of) for run in past.runs]
    except (*UNREADABLE, StoreError) as error:
        past.unusable.append(f"the history can't be read any further: {error}")
    past.unusable = [f"{path}: {text}" for text in past.unusable]
    return past


def _read(db: sqlite3.Connection, past: Past, pipeline: str, lock: str | None) -> None:
    whole = expression(db, "runs")
    sql = f"""
    SELECT seq, run_id, status, workers, params, coalesce(wall_s, 0), succeeded, seal IS {whole} FROM runs
    WHERE pipeline = ? AND (? IS NULL OR lock IS ?) AND wall_s IS NOT NULL ORDER BY seq DESC LIMIT {LOOKED_AT}
    """
    total = 0
    without: list[tuple[int, int, _Head]] = []
    for seq, run_id, status, workers, params, wall_s, succeeded, good in db.execute(sql, (pipeline, lock, lock)):
        if not good:
            past.unusable.append(f"run {run_id} is not used: its row is damaged (the checksum is wrong)")
            continue
        lessons = _row_of(db, seq, run_id, past)
        run = (run_id, status, workers, _mapping(params), wall_s)
        if lessons is None:
            without.append((seq, succeeded, run))
            continue
        past.runs.append(RunLessons(*run, lessons))
        total += len(lessons)
        if len(past.runs) >= RUNS or total >= MOST_LESSONS:
            return
    if not past.runs:
        _from_attempts(db, past, without)


def _row_of(db: sqlite3.Connection, seq: int, run_id: str, past: Past) -> Lessons | None:
    """The lessons of a run's row; None where it has none that can be used."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'learned'").fetchone():
        return None
    # The columns by name: a version to come may have more of them.
    row = db.execute("SELECT version, data, seal, run_id FROM learned WHERE seq = ?", (seq,)).fetchone()
    if row is None:
        return None
    if row[0] not in READABLE:
        past.unusable.append(f"what run {run_id} taught is not used: it was written by another version of procflow")
        return None
    try:
        if row[2] != seal(seq, row[3], row[0], row[1]) or row[3] != run_id:
            raise ValueError("the checksum is wrong")
        return decoded(row[1])
    except ValueError as error:
        past.unusable.append(f"what run {run_id} taught is not used: it is damaged ({error})")
        return None


def _from_attempts(
    db: sqlite3.Connection, past: Past, runs: list[tuple[int, int, tuple[str, str, int, dict[str, Any], float]]]
) -> None:
    """Runs without a usable row of their own, the newest few, from their attempts."""
    for seq, succeeded, run in runs[:3]:
        if 0 < succeeded <= MOST_ATTEMPTS:
            past.runs.append(RunLessons(*run, _learned(db, seq, NEVER, every=True)))


def _with_prints(db: sqlite3.Connection, run: RunLessons, made_of: str) -> RunLessons:
    """The run with what its tasks were made of, if anybody asked; earlier versions say it in their text."""
    if not made_of or run.lessons.prints:
        return replace(run, prints=run.lessons.prints)
    return replace(run, prints={key: digest[:SHORT] for key, digest in read_digests(db, run.run_id).items()})


def _mapping(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
