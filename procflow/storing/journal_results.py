"""The results of one run as the journal holds them: who ended well, in which execution, and what that published.

Reads rows in the order of their ids, which is the order in which attempts began over all sessions of the run; refs are
read only when asked for. It judges nothing: whether a result still holds is ``journal_kept.py``'s to say.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from procflow.errors import StoreError
from procflow.ref import Ref
from procflow.resuming.needs import Key
from procflow.storing.journal_objects import StoredResult, files_by_execution
from procflow.storing.state_folder import StateFolder
from procflow.storing.store_begin import ids_of
from procflow.storing.store_prints import read_prints
from procflow.storing.store_refs import decode_ref, decode_refs, indices_from
from procflow.storing.store_schema import UNREADABLE, connect_reader, told
from procflow.storing.store_seal import check_run

__all__ = ["Good", "KnownPrint", "Results", "above", "instance"]

Indices = range | tuple[int, ...]


def above(item: str, depth: int) -> str:
    """The items of the outermost ``depth`` maps: ``3`` of ``3/17`` for 1, nothing for 0."""
    return "/".join(item.split("/")[:depth]) if depth and item else ""


def instance(item: str, role: str) -> str:
    """Where a task stands: of a batch ``3/0-99`` that is the map inside item 3."""
    return item.rpartition("/")[0] if role == "batch" else item


@dataclass(frozen=True, slots=True)
class KnownPrint:
    """A recorded fingerprint; results of executions before ``since`` were made from something else."""

    digest: str
    since: int
    parts: Mapping[str, str]
    pieces: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Good:
    """An execution that ended well."""

    id: int
    skipped: bool


@dataclass(slots=True)
class _Clock:
    """A block's time: used in sessions that are over, and since when it is open in this one."""

    used_s: float = 0.0
    open_at: float | None = None


@dataclass(slots=True)
class Results:
    """What one run has done; make it with ``read``, close it at the end.

    ``good`` is the last good execution of each task by item, ``chunks`` the executions that finished items of a map (by
    label and the item the map stands in), ``latest`` the last good execution of a task below an item. ``blocks`` has
    whether a block's last row says that all in it succeeded, ``gaps`` how many of its members failed where it succeeded all
    the same, ``ended`` how the last attempt of a task ended.
    """

    folder: StateFolder
    run_id: str
    db: sqlite3.Connection | None
    prints: dict[Key, KnownPrint] = field(default_factory=dict)
    good: dict[Key, dict[str, Good]] = field(default_factory=dict)
    chunks: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    latest: dict[Key, dict[str, int]] = field(default_factory=dict)
    blocks: dict[tuple[str, str], bool] = field(default_factory=dict)
    gaps: dict[tuple[str, str], int] = field(default_factory=dict)
    ended: dict[Key, str] = field(default_factory=dict)
    attempts: dict[tuple[str, str], int] = field(default_factory=dict)
    _clocks: dict[tuple[str, str], _Clock] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: StateFolder, run_id: str) -> Results:
        """The results of a run; StoreError where the journal can't be read or has no such run."""
        found = cls(folder, run_id, connect_reader(folder.db))
        try:
            found._read()
        except BaseException:
            found.close()
            raise
        return found

    @classmethod
    def nothing(cls, folder: StateFolder) -> Results:
        """Those of no run."""
        return cls(folder, "", None)

    def close(self) -> None:
        """Let the journal go."""
        if self.db is not None:
            self.db.close()

    # -- refs, when asked for ----------------------------------------------------------------------------------

    def outputs(self, execution_id: int) -> dict[str, Ref]:
        """What an execution published."""
        sql = "SELECT output_ref, refs FROM step_executions WHERE id = ?"
        for names, refs in self._rows(sql, execution_id):
            with self._told(execution_id):
                return decode_refs(names, refs)
        return {}

    def pages(self, execution_id: int) -> tuple[tuple[Ref, int], ...]:
        """The pages that an expand found."""
        sql = "SELECT ref, count FROM pages WHERE execution_id = ? ORDER BY position"
        return tuple((self._ref(ref, execution_id), count) for ref, count in self._rows(sql, execution_id))

    def chunks_of(self, execution_id: int) -> Iterator[tuple[Indices, Ref]]:
        """Items that a batch finished, with their values."""
        sql = "SELECT indices, ref FROM chunks WHERE execution_id = ? ORDER BY first"
        for indices, ref in self._rows(sql, execution_id):
            yield indices_from(indices), self._ref(ref, execution_id)

    def count_items(self, execution_id: int) -> int:
        """How many items a batch finished."""
        return sum(len(indices) for indices in self.indices_of(execution_id))

    def indices_of(self, execution_id: int) -> Iterator[Indices]:
        """The items that a batch finished, a chunk each."""
        sql = "SELECT indices FROM chunks WHERE execution_id = ? ORDER BY first"
        return (indices_from(text) for (text,) in self._rows(sql, execution_id))

    @property
    def files(self) -> dict[int, list[StoredResult]]:
        """The files that results are in, by execution."""
        if self.db is None:
            return {}
        try:
            return files_by_execution(self.db, self.run_id)
        except UNREADABLE as error:
            raise told(self.folder.db, error, "can't be read") from error

    def count_pages(self, execution_id: int) -> int:
        """How many items an expand found."""
        sql = "SELECT coalesce(sum(count), 0) FROM pages WHERE execution_id = ?"
        return int(next(self._rows(sql, execution_id))[0])

    def consumed_s(self, label: str, item: str) -> float:
        """Seconds that a block used up and has not finished with; of the run itself for no label."""
        clock = self._clocks.get((label, item))
        return clock.used_s if clock is not None else 0.0

    def _ref(self, data: bytes, execution_id: int) -> Ref:
        with self._told(execution_id):
            return decode_ref(data)

    @contextlib.contextmanager
    def _told(self, execution_id: int) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            raise StoreError(f"{self.folder.db}: run {self.run_id}, execution {execution_id}: {error}") from None

    def _rows(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        if self.db is None:
            return
        try:
            with contextlib.closing(self.db.execute(sql, values)) as cursor:
                yield from cursor
        except UNREADABLE as error:
            raise told(self.folder.db, error, "can't be read") from error

    # -- reading -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        found = list(self._rows("SELECT seq FROM runs WHERE run_id = ?", self.run_id))
        if not found:
            raise StoreError(f"{self.folder.db}: there is no run {self.run_id}")
        own = ids_of(found[0][0])
        assert self.db is not None
        try:
            check_run(self.db, self.folder.db, self.run_id, own)
            for label, role, *known in read_prints(self.db, self.run_id):
                self.prints[label, role] = KnownPrint(*known)
        except UNREADABLE as error:
            raise told(self.folder.db, error, "can't be read") from error
        sessions = list(
            self._rows("SELECT first_id, ended FROM sessions WHERE run_id = ? ORDER BY number", self.run_id)
        )
        with_items = {
            i
            for (i,) in self._rows("SELECT DISTINCT execution_id FROM chunks WHERE execution_id BETWEEN ? AND ?", *own)
        }
        last_s, session = 0.0, 0
        sql = (
            "SELECT id, label, role, item, status, attempt, kind, started, ended, retry_in_s, failed_count "
            "FROM step_executions WHERE id BETWEEN ? AND ? ORDER BY id"
        )
        for row_id, label, role, item, status, attempt, kind, started, ended, retry_in_s, failed in self._rows(
            sql, *own
        ):
            while session < len(sessions) and row_id >= sessions[session][0]:
                self._session_over(last_s, sessions[session - 1][1] if session else None)
                last_s, session = 0.0, session + 1
            last_s = max(last_s, started or 0.0, ended or 0.0)
            if kind in ("task", "copied"):
                self._task(row_id, label, role, item, status, attempt if kind == "task" else 0, row_id in with_items)
            elif role is None:
                self.blocks[label, item] = status == "succeeded" and not failed
                self.gaps[label, item] = (failed or 0) if status == "succeeded" else 0
                self._block(label, item, status, started, retry_in_s)
        self._session_over(last_s, sessions[-1][1] if sessions else None)

    def _task(self, row_id: int, label: str, role: str, item: str, status: str, attempt: int, has_items: bool) -> None:
        place = (label, item)
        if attempt > self.attempts.get(place, 0):
            self.attempts[place] = attempt
        if has_items:
            where = instance(item, "batch")
            self.chunks.setdefault(label, {}).setdefault(where, []).append(row_id)
            self._note_latest((label, "batch"), where, row_id)
            return
        key = (label, role)
        self.ended[key] = status
        if status in ("succeeded", "skipped") and role != "batch":
            self.good.setdefault(key, {})[item] = Good(row_id, status == "skipped")
            self._note_latest(key, item, row_id)

    def _note_latest(self, key: Key, item: str, row_id: int) -> None:
        latest = self.latest.setdefault(key, {})
        while True:
            latest[item] = row_id
            if not item:
                return
            item = item.rpartition("/")[0]

    def _block(self, label: str, item: str, status: str, started: float | None, retry_in_s: float | None) -> None:
        """A block that ended has no time used up; one that was cut off has, and so has one between two tries."""
        clock = self._clocks.setdefault((label, item), _Clock())
        if status in ("succeeded", "failed", "skipped") and retry_in_s is None:
            clock.used_s, clock.open_at = 0.0, None
        elif clock.open_at is None:
            clock.open_at = started or 0.0

    def _session_over(self, last_s: float, ended: str | None) -> None:
        """A session that was cut off or stopped has used up time; what failed or ran out of time begins anew."""
        for clock in self._clocks.values():
            if clock.open_at is not None:
                clock.used_s += max(0.0, last_s - clock.open_at)
                clock.open_at = None
        whole = self._clocks.setdefault(("", ""), _Clock())
        whole.used_s = whole.used_s + last_s if ended in (None, "cancelled") else 0.0
