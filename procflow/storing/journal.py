"""Journal: what the engine needs of a store, and the stores that touch no disk.

``Buffer`` is the part that all keeping stores share. Owns no file; ``store.py`` is the journal on disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from procflow.errors import InternalError
from procflow.events import Event
from procflow.failpoints import fp
from procflow.storing.store_begin import RunRecord
from procflow.storing.store_plain import PLAIN_COLUMNS
from procflow.storing.store_rows import Rows
from procflow.storing.store_schema import COLUMNS

__all__ = ["Buffer", "Journal", "MemoryStore", "NullStore"]


class Journal(Protocol):
    """What the engine needs of a store; ``Store``, ``MemoryStore`` and ``NullStore`` have it."""

    @property
    def pending(self) -> int:
        """Events recorded since the last commit."""

    @property
    def oldest_pending_s(self) -> float:
        """Seconds since the oldest uncommitted event was recorded; 0 with nothing pending."""

    def begin(self, run: RunRecord) -> None:
        """Record a run's beginning, or a new session of a run that is resumed; durable when it returns."""

    def record(self, *events: Event) -> None:
        """Buffer events, in order."""

    def note(self) -> None:
        """Make results recorded so far safe from the death of this process."""

    def commit(self) -> None:
        """Make all that is buffered durable. StoreError leaves the buffer whole."""

    def close(self) -> None:
        """Commit what is left and let go."""


class NullStore:
    """Keeps nothing: for ``Pipeline.run()`` without a state folder."""

    pending = 0
    oldest_pending_s = 0.0

    def note(self) -> None:
        """Nothing."""

    def begin(self, run: RunRecord) -> None:
        """Nothing."""

    def record(self, *events: Event) -> None:
        """Nothing."""

    def commit(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Buffer:
    """The part that all keeping stores share: rows of the current run, and when the oldest came."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rows: Rows | None = None
        self._pending = 0
        self._oldest: float | None = None

    @property
    def pending(self) -> int:
        """Events recorded since the last commit."""
        return self._pending

    @property
    def oldest_pending_s(self) -> float:
        """Seconds since the oldest uncommitted event was recorded; 0 with nothing pending."""
        return 0.0 if self._oldest is None else self._clock() - self._oldest

    def record(self, *events: Event) -> None:
        """Buffer events; a few microseconds each, no system call."""
        rows = self._rows
        if rows is None:
            raise InternalError("an event came before the run began")
        takes = rows.takes
        for event in events:
            fp("journal.record")
            take = takes.get(event.__class__)
            if take is not None:
                take(event)
                self._pending += 1
        if self._pending and self._oldest is None:
            self._oldest = self._clock()

    def note(self) -> None:
        """Make what was recorded safe from the death of this process; memory never is."""

    def abandon(self) -> None:
        """Forget what is buffered: procflow broke in the middle of something, and half of it must not be kept."""
        if self._rows is not None:
            self._committed()

    def _committed(self) -> None:
        assert self._rows is not None
        self._rows.clear()
        self._pending = 0
        self._oldest = None


class MemoryStore(Buffer):
    """A store for tests: what was committed is in ``runs``, ``steps``, ``pages``, ``chunks``, ``metrics``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self.runs: dict[str, dict[str, Any]] = {}
        self.steps: dict[int, dict[str, Any]] = {}
        self.pages: list[tuple[int, int, str, int, bytes]] = []
        self.chunks: list[tuple[int, int, str, str, bytes]] = []
        self.metrics: list[tuple[int, str, str, float]] = []
        self.commits = 0

    def begin(self, run: RunRecord) -> None:
        """Record a run's beginning."""
        sessions = self.runs.get(run.run_id, {"sessions": 0})["sessions"]
        self.runs[run.run_id] = {"run_id": run.run_id, "status": "running", "sessions": sessions + 1}
        self._rows = Rows(run.run_id, max(self.steps, default=0) + 1)

    def commit(self) -> None:
        """Move what is buffered to what is committed."""
        if not self._pending or self._rows is None:
            return
        rows = self._rows
        self.steps.update({row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows.full()})
        for *row, _ in rows.plain:
            self.steps[row[0]] = dict.fromkeys(COLUMNS) | dict(zip(PLAIN_COLUMNS, row, strict=True))
        self.pages += rows.pages
        self.chunks += rows.chunks
        self.metrics += rows.metrics
        self.runs[rows.run_id].update(rows.run | rows.counts)
        self.commits += 1
        self._committed()

    def close(self) -> None:
        """Commit what is left."""
        self.commit()
