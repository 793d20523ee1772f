"""The beginning of a run or of a session of it, as rows: all that is written in the journal's first transaction.

Besides the run itself these are: the burial of what a killed session left running, what each task is made from
(fingerprints, so that the next session knows what changed), and the results that a new run takes over from an earlier
one. It writes through a connection whose transaction is the caller's (``store.py``).
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from procflow import __version__
from procflow.passive import passive
from procflow.storing.store_prints import Prints, write_prints
from procflow.storing.store_refs import storable
from procflow.storing.store_schema import COLUMNS
from procflow.storing.store_seal import OF_EXECUTIONS, check_run, reseal

__all__ = ["ID_BITS", "RunRecord", "Taken", "begin", "ids_of", "utc_now"]

ID_BITS = 32
"""Row ids are ``runs.seq << 32`` and up, so the rows of two runs that go on together never meet."""
_JSON = json.JSONEncoder(default=repr, skipkeys=True)
COUNTS = ("succeeded", "failed", "lost", "skipped", "cancelled")


def utc_now() -> str:
    """The wall clock as UTC ISO text, for display only: ``2026-11-20T08:00:00.123Z``."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ids_of(seq: int) -> tuple[int, int]:
    """The first and last row id that a run may use."""
    return seq << ID_BITS, ((seq + 1) << ID_BITS) - 1


@passive(frozen=True, slots=True)
class Taken:
    """A result that a new run takes over: the execution that made it, and where its task stands now."""

    execution_id: int
    path: str


@passive(frozen=True, slots=True)
class RunRecord:
    """What is known of a run when it begins.

    ``params`` are shown by ``procflow show``: mask secrets before. ``lock`` is the name of the run's lock
    (``lock_name``), by which readers see whether it lives; None where it has none. ``options`` are the limits that were
    asked for, as JSON can hold them, for the next session. ``earlier`` is another run whose results are ``taken`` over.
    ``made_of`` is one digest of all ``prints``.
    """

    run_id: str
    pipeline: str
    file: str | None = None
    lock: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    executor: str = "processes"
    workers: int = 1
    started: str = field(default_factory=utc_now)
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    made_of: str = ""
    procflow_version: str = __version__
    python_version: str = field(default_factory=platform.python_version)
    options: Mapping[str, Any] = field(default_factory=dict)
    earlier: str | None = None
    prints: Prints = Prints()
    taken: Sequence[Taken] = ()


def begin(db: sqlite3.Connection, run: RunRecord, path: Path) -> tuple[int, int, dict[str, int]]:
    """Write it all; returns the run's ``seq``, its first free row id, and its counts of attempts so far.

    StoreError where rows that it has to change (in the database at ``path``) are damaged.
    """
    _bury(db, run, path)
    values = (
        *(storable(run.pipeline), run.file and storable(run.file), run.lock, _json(run.params), _json(run.options)),
        *(run.executor, run.workers, run.started, run.pid, storable(run.host)),
        *(run.procflow_version, run.python_version),
    )
    row = db.execute("SELECT seq FROM runs WHERE run_id = ?", (run.run_id,)).fetchone()
    counts = dict.fromkeys(COUNTS, 0)
    if row is None:
        seq = db.execute(_INSERT_RUN, (run.run_id, run.earlier, *values)).lastrowid or 0
        first = ids_of(seq)[0] + 1
    else:
        seq = row[0]
        db.execute(_RESUME_RUN, (*values, run.run_id))
        last = db.execute("SELECT max(id) FROM step_executions WHERE id BETWEEN ? AND ?", ids_of(seq)).fetchone()[0]
        first = (last or ids_of(seq)[0]) + 1
        found = db.execute(f"SELECT {', '.join(COUNTS)} FROM runs WHERE seq = ?", (seq,)).fetchone()
        counts = dict(zip(COUNTS, found, strict=True))
    number = db.execute("SELECT sessions FROM runs WHERE seq = ?", (seq,)).fetchone()[0]
    session = (run.run_id, number, first, run.started, run.pid, run.procflow_version, run.python_version)
    db.execute("INSERT INTO sessions VALUES (?,?,?,?,?,?,?,NULL,NULL)", session)
    write_prints(db, run.run_id, run.prints, first)
    following = _take_over(db, run, first)
    reseal(db, "runs", "seq = ?", (seq,))
    reseal(db, "sessions", "run_id = ? AND number = ?", (run.run_id, number))
    return seq, following, counts


@passive(frozen=True, slots=True)
class Unfinished:
    """A run that never ended, as far as it was committed. ``attempts`` are those of its last session, by key."""

    seq: int
    lock: str | None
    commits: int
    next_id: int
    counts: Mapping[str, int]
    attempts: Mapping[int, tuple[int, str, str | None, str | None, str | None]]


def unfinished(db: sqlite3.Connection, run_id: str) -> Unfinished | None:
    """The run's state if it is marked as running; None for others, and for runs that are not there."""
    columns = ", ".join(("seq", "lock", "commits", "sessions", *COUNTS))
    row = db.execute(f"SELECT {columns} FROM runs WHERE run_id = ? AND status = 'running'", (run_id,)).fetchone()
    if row is None:
        return None
    seq, lock, commits, sessions, *counts = row
    low, high = ids_of(seq)
    # A journal that was salvaged may have lost the session.
    found = db.execute("SELECT first_id FROM sessions WHERE run_id = ? AND number = ?", (run_id, sessions)).fetchone()
    first = found[0] if found is not None else low
    found = db.execute(
        "SELECT id, key, status, parent_step_id, branch_name, join_policy FROM step_executions"
        " WHERE id BETWEEN ? AND ? AND key IS NOT NULL",
        (max(low, first), high),
    ).fetchall()
    last = db.execute("SELECT max(id) FROM step_executions WHERE id BETWEEN ? AND ?", (low, high)).fetchone()[0]
    attempts = {key: (row_id, status, parent, branch, join) for row_id, key, status, parent, branch, join in found}
    return Unfinished(seq, lock, commits, (last or low) + 1, dict(zip(COUNTS, counts, strict=True)), attempts)


def _bury(db: sqlite3.Connection, run: RunRecord, path: Path) -> None:
    """Mark what earlier sessions left running; only runs of this run's lock can be known to be dead."""
    dead = db.execute(
        "SELECT seq, run_id FROM runs WHERE status = 'running' AND (run_id = ? OR lock = ?)", (run.run_id, run.lock)
    ).fetchall()
    for seq, run_id in dead:
        # A row that is changed gets a new seal, which must not hide that it was damaged before.
        check_run(db, path, run_id, ids_of(seq))
        sql = "SELECT id, kind FROM step_executions WHERE id BETWEEN ? AND ? AND status = 'running'"
        left = db.execute(sql, ids_of(seq)).fetchall()
        for row_id, _ in left:
            db.execute(_BURY_STEP, (row_id,))
            reseal(db, "step_executions", "id = ?", (row_id,))
        lost = sum(kind == "task" for _, kind in left)
        db.execute("UPDATE runs SET status = 'killed', lost = lost + ? WHERE seq = ?", (lost, seq))
        reseal(db, "runs", "seq = ?", (seq,))


def _take_over(db: sqlite3.Connection, run: RunRecord, first: int) -> int:
    """Copy results of another run, so that this one is whole by itself; the next free row id."""
    for new, taken in enumerate(run.taken, first):
        db.execute(_COPY_STEP, (new, run.run_id, taken.path, taken.execution_id))
        db.execute(_COPY_PAGES, (new, run.run_id, taken.execution_id))
        db.execute(_COPY_CHUNKS, (new, run.run_id, taken.execution_id))
    following = first + len(run.taken)
    if run.taken:
        reseal(db, "step_executions", "id BETWEEN ? AND ?", (first, following - 1))
        for table in OF_EXECUTIONS:
            reseal(db, table, "execution_id BETWEEN ? AND ?", (first, following - 1))
    return following


_INSERT_RUN = """
INSERT INTO runs (run_id, earlier, pipeline, file, lock, params, options, executor, workers, started, pid, host,
    procflow_version, python_version, status, commits)
VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,'running',1)
"""
_RESUME_RUN = """
UPDATE runs SET pipeline = ?, file = ?, lock = ?, params = ?, options = ?, executor = ?, workers = ?, started = ?,
    pid = ?, host = ?, procflow_version = ?, python_version = ?, status = 'running', reason = NULL, ended = NULL,
    exit_code = NULL, failures = NULL, tolerated = NULL, wall_s = NULL, work_s = NULL, sessions = sessions + 1,
    commits = commits + 1
WHERE run_id = ?
"""
_BURY_STEP = """
UPDATE step_executions SET status = 'lost', cause = 'crash', reason = 'procflow itself was killed' WHERE id = ?
"""
_COPIED = tuple(c for c in COLUMNS if c not in ("id", "run_id", "path", "kind", "key", "log", "status", "failure"))
_COPY_STEP = f"""
INSERT INTO step_executions (id, run_id, path, kind, status, {", ".join(_COPIED)})
SELECT ?, ?, ?, 'copied', CASE status WHEN 'skipped' THEN status ELSE 'succeeded' END, {", ".join(_COPIED)}
FROM step_executions WHERE id = ?
"""
_COPY_PAGES = "INSERT INTO pages SELECT ?, position, ?, count, ref, NULL FROM pages WHERE execution_id = ?"
_COPY_CHUNKS = "INSERT INTO chunks SELECT ?, first, ?, indices, ref, NULL FROM chunks WHERE execution_id = ?"


def _json(value: Mapping[str, Any]) -> str:
    return _JSON.encode({str(k): v for k, v in value.items()})
