"""History: read-only views of the journal, for commands, reports, resume and the planner.

A ``History`` never writes, never checkpoints and never makes the writer wait; it works while a run is going on and
after one was killed. A run that the journal calls running but whose lock nobody holds shows as ``killed``. Refs are
read without running any code; this file never opens a value.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from procflow.attempt import Failure
from procflow.errors import ProcflowError, StoreError
from procflow.passive import passive
from procflow.ref import Ref
from procflow.storing import cleaning
from procflow.storing.state_folder import StateFolder, is_safe_id
from procflow.storing.store_learned import Past, read
from procflow.storing.store_plain import log_of
from procflow.storing.store_refs import decode_refs
from procflow.storing.store_schema import UNREADABLE, connect_reader, told
from procflow.storing.store_seal import damaged, expression

__all__ = ["STATUSES", "History", "OutputRow", "RunRow", "SessionRow", "StepRow", "UnknownRun"]

STATUSES = ("running", "succeeded", "partial", "failed", "timed_out", "cancelled", "killed")
"""How a run can show."""


class UnknownRun(ProcflowError):
    """No run, or more than one, has this id; ``near`` holds ids that are close."""

    exit_code = 2

    def __init__(self, message: str, near: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.near = near


@passive(frozen=True, slots=True)
class RunRow:
    """A run as the journal knows it. ``started`` and ``ended`` are UTC ISO text, ``live`` is whether its process runs now.

    ``succeeded`` to ``cancelled`` count attempts, ``failures`` and ``tolerated`` steps and items (None until the run ends).
    """

    run_id: str
    pipeline: str
    file: str | None
    lock: str | None
    params: dict[str, Any]
    options: dict[str, Any]
    earlier: str | None
    executor: str
    workers: int
    status: str
    reason: str | None
    started: str
    ended: str | None
    exit_code: int | None
    pid: int
    host: str
    procflow_version: str
    python_version: str
    sessions: int
    steps: int | None
    succeeded: int
    failed: int
    lost: int
    skipped: int
    cancelled: int
    failures: int | None
    tolerated: int | None
    wall_s: float | None
    work_s: float | None
    live: bool = False


@passive(frozen=True, slots=True)
class StepRow:
    """One attempt, one block, or one item that failed: a row of ``step_executions``.

    Times are seconds since the run (or the session of it) began.
    """

    id: int
    run_id: str
    key: int | None
    path: str
    label: str
    name: str
    item: str
    attempt: int
    kind: str
    role: str | None
    status: str
    cause: str | None
    reason: str | None
    message: str | None
    parent_step_id: str | None
    branch_name: str | None
    join_policy: str | None
    executor: str | None
    started: float | None
    ended: float | None
    wall_s: float | None
    cpu_s: float | None
    peak_rss_bytes: int | None
    cost: float | None
    count: int | None
    output_ref: str | None
    log: str | None
    failure: dict[str, Any] | None
    tolerated: bool | None
    retry_in_s: float | None
    members: int | None
    failed_count: int | None
    work_s: float | None
    saved_s: float | None

    def covers(self, item: str) -> bool:
        """Whether the item is this row's own or one of its batch: ``0-99`` covers ``7``, ``3/0-99`` covers ``3/7``."""
        if self.item == item:
            return True
        outer, _, inner = item.rpartition("/")
        mine, _, batch = self.item.rpartition("/")
        if outer != mine or not (inner.isascii() and inner.isdecimal()):
            return False
        first, dash, last = batch.partition("-")
        if dash:
            return first.isdecimal() and last.isdecimal() and int(first) <= int(inner) <= int(last)
        return inner in batch.split(",")

    @property
    def failure_record(self) -> Failure | None:
        """The failure as the record that the rest of procflow knows, without its exception object."""
        if self.failure is None:
            return None
        return Failure(**{**self.failure, "kinds": tuple(self.failure["kinds"])})


@passive(frozen=True, slots=True)
class SessionRow:
    """One session of a run.

    Its rows begin with ``first_id``; ``ended`` is how it ended, None where it was cut off or goes on.
    """

    number: int
    first_id: int
    started: str
    ended: str | None


@passive(frozen=True, slots=True)
class OutputRow:
    """A recorded result of a step or of some items; ``name`` is empty for a chunk of a map."""

    path: str
    item: str
    name: str
    ref: Ref


_RUN_SQL = """
SELECT run_id, pipeline, file, lock, params, options, earlier, executor, workers, status, reason, started, ended,
    exit_code, pid, host, procflow_version, python_version, sessions, steps, succeeded, failed, lost, skipped,
    cancelled, failures, tolerated, wall_s, work_s
"""
_STEP_SQL = f"SELECT {', '.join(field.name for field in fields(StepRow))}"


class History:
    """Reads the journal of one state folder; make one with ``History.open``."""

    def __init__(self, folder: StateFolder, db: sqlite3.Connection | None) -> None:
        self.folder = folder
        self._db = db

    @classmethod
    def open(cls, folder: StateFolder) -> History:
        """Open for reading; a folder in which nothing ran yet has no runs. StoreError for a damaged or newer journal."""
        return cls(folder, connect_reader(folder.db) if folder.db.exists() else None)

    def close(self) -> None:
        """Let go; idempotent."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def __enter__(self) -> History:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def runs(
        self,
        *,
        last_s: float | None = None,
        status: str | None = None,
        pipeline: str | None = None,
        limit: int | None = None,
        now: datetime | None = None,
    ) -> list[RunRow]:
        """Runs, newest first: those that started in the last ``last_s`` seconds, have the status, are of the pipeline."""
        since = ""
        if last_s is not None:
            since = ((now or datetime.now(timezone.utc)) - timedelta(seconds=last_s)).strftime("%Y-%m-%dT%H:%M:%S")
        found: list[RunRow] = []
        for row in self._sealed(
            _RUN_SQL,
            "runs",
            "WHERE started >= ? AND (? IS NULL OR pipeline = ?) ORDER BY seq DESC",
            (since, pipeline, pipeline),
        ):
            run = self._run(row)
            if status is None or run.status == status:
                found.append(run)
                if limit is not None and len(found) >= limit:
                    break
        return found

    def run(self, prefix: str | None = None) -> RunRow:
        """The run with this id or with this unique beginning of an id; the last run for None. Raises ``UnknownRun``."""
        if prefix is None:
            newest = self.runs(limit=1)
            if not newest:
                raise UnknownRun(f"nothing was run yet in {self.folder.path}")
            return newest[0]
        ids = [str(row[0]) for row in self._rows("SELECT run_id FROM runs ORDER BY seq DESC", ())]
        if prefix not in ids:
            starts = [i for i in ids if i.startswith(prefix)] if prefix else []
            if len(starts) != 1:
                raise _unknown(prefix, ids, starts)
            prefix = starts[0]
        return self._run(next(self._sealed(_RUN_SQL, "runs", "WHERE run_id = ?", (prefix,))))

    def steps(
        self, run_id: str, *, bad: bool = False, label: str | None = None, damage: list[str] | None = None
    ) -> Iterator[StepRow]:
        """Rows of a run in the order in which they began; with ``bad`` those that failed or were lost. See ``_sealed``."""
        sql = "WHERE id BETWEEN ? AND ? " + ("AND status IN ('failed', 'lost') " if bad else "")
        sql += "AND label = ? ORDER BY id" if label is not None else "ORDER BY id"
        values = (*self._range(run_id), *(() if label is None else (label,)))
        for row in self._sealed(_STEP_SQL, "step_executions", sql, values, damage):
            yield _step(row)

    def labels(self, run_id: str) -> list[str]:
        """Labels of the steps that have rows, in the order of their paths."""
        sql = "SELECT DISTINCT label FROM step_executions WHERE id BETWEEN ? AND ? ORDER BY path"
        return [str(row[0]) for row in self._rows(sql, self._range(run_id))]

    def sessions(self, run_id: str) -> list[SessionRow]:
        """The sessions of a run, the first first; a run that was never resumed has one."""
        sql = "SELECT number, first_id, started, ended FROM sessions WHERE run_id = ? ORDER BY number"
        return [SessionRow(*row) for row in self._rows(sql, (run_id,))]

    def failures(self, run_id: str) -> Iterator[StepRow]:
        """Rows of the attempts, blocks and items that failed in the last session and that no other attempt followed."""
        first_id = max((session.first_id for session in self.sessions(run_id)), default=0)
        return (row for row in self.steps(run_id, bad=True) if row.retry_in_s is None and row.id >= first_id)

    def outputs(self, run_id: str, path: str | None = None) -> Iterator[OutputRow]:
        """Every recorded result, in the order of attempts: a later one of the same place replaces an earlier one.

        ``path`` leaves only those of one place. StoreError for one whose checksum is wrong.
        """
        sql = "WHERE id BETWEEN ? AND ? AND refs IS NOT NULL AND path = coalesce(?, path) ORDER BY id"
        what, wanted = "SELECT path, item, output_ref, refs", (*self._range(run_id), path)
        for where, item, names, data in self._sealed(what, "step_executions", sql, wanted):
            try:
                refs = decode_refs(names, data)
            except StoreError as error:
                raise StoreError(f"{self.folder.db}: run {run_id}, step {where}, {names or item!r}: {error}") from None
            yield from (OutputRow(where, item, name, ref) for name, ref in refs.items())

    def metrics(self, run_id: str) -> Iterator[tuple[str, str, int, str, float]]:
        """What steps reported: label, item, attempt, name, value."""
        of_run = "WHERE execution_id BETWEEN ? AND ?"
        attempts = {
            row_id: place
            for row_id, *place in self._sealed(
                "SELECT id, label, item, attempt",
                "step_executions",
                f"WHERE id IN (SELECT execution_id FROM metrics {of_run})",
                self._range(run_id),
            )
        }
        for row_id, name, value in self._sealed(
            "SELECT execution_id, name, value", "metrics", f"{of_run} ORDER BY rowid", self._range(run_id)
        ):
            label, item, attempt = attempts[row_id]
            yield (str(label), str(item), int(attempt), str(name), math.nan if value is None else float(value))

    def log(self, row: StepRow) -> Path | None:
        """The log file of a row, None where it wrote nothing or the file is gone."""
        if row.log is None or not is_safe_id(row.run_id):
            return None
        path = self.folder.run(row.run_id) / row.log
        # Rows are ours, yet a path from a file is checked before it is opened.
        inside = path.resolve().is_relative_to(self.folder.run(row.run_id).resolve())
        return path if inside and path.is_file() else None

    def marked_run(self) -> str | None:
        """The run that made the last commit."""
        return cleaning.marked_run(self.folder, self._db) if self._db is not None else None

    def learned(self, pipeline: str, lock: str | None = None, made_of: str = "") -> Past:
        """What the last runs of a pipeline (of the file with this lock) taught about time and memory; never raises."""
        return Past() if self._db is None else read(self._db, self.folder.db, pipeline, lock, made_of)

    def _range(self, run_id: str) -> tuple[int, int]:
        for (seq,) in self._rows("SELECT seq FROM runs WHERE run_id = ?", (run_id,)):
            return _range_of(seq)
        return (0, -1)

    def _rows(self, sql: str, values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if self._db is None:
            return
        try:
            with contextlib.closing(self._db.execute(sql, values)) as cursor:
                yield from cursor
        except UNREADABLE as error:
            raise told(self.folder.db, error, "can't be read") from error

    def _sealed(
        self, select: str, table: str, where: str, values: tuple[Any, ...], damage: list[str] | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Rows of a table; StoreError for one that is not as it was written, unless ``damage`` takes its name."""
        if self._db is None:
            return
        try:
            good = expression(self._db, table)
        except UNREADABLE as error:
            raise told(self.folder.db, error, "can't be read") from error
        for *row, whole in self._rows(f"{select}, seal IS {good} FROM {table} {where}", values):
            if whole:
                yield tuple(row)
                continue
            if damage is None:
                raise damaged(self.folder.db, f"a row of {table}")
            damage.append(table)

    def _run(self, row: tuple[Any, ...]) -> RunRow:
        values = list(row)
        values[4], values[5] = _mapping(row[4]), _mapping(row[5])
        run = RunRow(*values)
        if run.status != "running":
            return run
        live = self._is_live(run)
        return replace(run, live=live, status="running" if live else "killed")

    def _is_live(self, run: RunRow) -> bool:
        if run.lock is None or not is_safe_id(run.lock):
            return False
        holder = self.folder.lock(run.lock).holder()
        # A holder that has not written its name yet is one that starts: some other run.
        return holder is not None and holder.run_id == run.run_id


def _range_of(seq: int) -> tuple[int, int]:
    return seq << 32, ((seq + 1) << 32) - 1


def _unknown(prefix: str, ids: list[str], starts: list[str]) -> UnknownRun:
    if starts:
        shown = ", ".join(starts[:5]) + (", ..." if len(starts) > 5 else "")
        return UnknownRun(f"{prefix!r} begins {len(starts)} run ids: {shown}", tuple(starts))
    near = tuple(difflib.get_close_matches(prefix, ids, 3, 0.5))
    hint = f"; did you mean {', '.join(near)}?" if near else f"; the last run is {ids[0]}" if ids else ""
    return UnknownRun(f"there is no run {prefix!r}{hint}", near)


def _mapping(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise StoreError(f"a recorded mapping can't be read, so the journal is damaged: {error}") from error
    return found if isinstance(found, dict) else {}


_FAILURE_AT, _TOLERATED_AT, _LOG_AT = map(StepRow.__slots__.index, ("failure", "tolerated", "log"))


def _step(row: tuple[Any, ...]) -> StepRow:
    values = list(row)
    values[_FAILURE_AT] = _mapping(row[_FAILURE_AT]) if row[_FAILURE_AT] is not None else None
    values[_TOLERATED_AT] = bool(row[_TOLERATED_AT]) if row[_TOLERATED_AT] is not None else None
    values[_LOG_AT] = row[_LOG_AT] or log_of(*row[4:11])
    return StepRow(*values)
