"""Live rows: what a live table knows of a run, a row for each step that runs, from events alone.

A step inside a map, whatever its item, belongs to the row of the outermost map: a run of a million items has as many rows
as steps. It owns counting and nothing else: no terminal, no thread, no clock but the times that it is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from procflow.events import (
    AttemptFinished,
    AttemptStarted,
    BlockFinished,
    BlockStarted,
    Event,
    RunFinished,
    RunStarted,
    StepFinished,
    StepProgress,
)
from procflow.graph import MapUnit, ScopeUnit, TaskGraph
from procflow.showing.aftermath import with_place
from procflow.showing.plan import outline

__all__ = ["Done", "LiveRows", "Row"]

RATE_WINDOW = 20
"""So many notes of progress tell how fast a row goes now, rather than on average."""


@dataclass(slots=True)
class Row:
    """A step, or a map with all that is in it, while it runs. Times are seconds since the run began."""

    path: str
    label: str
    order: int
    began: float
    is_map: bool = False
    done: float = 0.0
    total: float | None = None
    failed: int = 0
    attempt: int = 1
    attempts: int = 1
    waiting_until: float | None = None
    doing: str = ""
    running: dict[int, str] = field(default_factory=dict)
    """Keys of its running attempts, each with its executor."""
    marks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW))

    @property
    def share(self) -> float | None:
        """How much of it is done, where that is known."""
        return min(1.0, self.done / self.total) if self.total else None

    def left_s(self, now: float) -> float | None:
        """Seconds it still needs if it goes on as it did lately, where that can be told."""
        if not self.total or not self.done:
            return None
        first_at, first = self.marks[0] if len(self.marks) > 1 else (self.began, 0.0)
        at, done = self.marks[-1] if self.marks else (now, self.done)
        if done <= first or at <= first_at:
            return None
        rate = (done - first) / (at - first_at)
        return max(0.0, (self.total - done) / rate - (now - at))


@dataclass(frozen=True, slots=True)
class Done:
    """A step that is over: what its last line says."""

    label: str
    status: str
    wall_s: float | None
    cpu_s: float = 0.0
    peak_bytes: int = 0
    items: tuple[int, int] | None = None
    """Successes and members, of a map."""
    note: str = ""


class LiveRows:
    """Takes events in order; ``rows`` are what runs, in declared order, ``take`` gives what has just ended.

    ``ended`` of ``steps`` are over; a map with all that is in it is one. ``failed`` counts steps and items.
    """

    def __init__(self, graph: TaskGraph) -> None:
        self.name = graph.name
        self.run_id = ""
        self.now = 0.0
        self.steps = 0
        self.ended = 0
        self.failed = 0
        self.rows: dict[str, Row] = {}
        self._order: dict[str, int] = {}
        self._maps: set[str] = set()
        self._attempts: dict[str, int] = {}
        self._blocks: set[str] = set()
        self._labels: dict[str, str] = {}
        self._over: set[str] = set()
        self._waiting: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._keys: dict[int, Row] = {}
        self._usage: dict[str, AttemptFinished] = {}
        self._peaks: dict[str, int] = {}
        self._cpu_s: dict[str, float] = {}
        self._read(graph)

    def _read(self, graph: TaskGraph) -> None:
        for order, (_, unit, siblings) in enumerate(outline(graph.root)):
            self._order[unit.path] = order
            leaf = unit.body if isinstance(unit, MapUnit) else unit
            self._attempts[unit.path] = leaf.retry.retries + 1
            if isinstance(unit, MapUnit):
                self._maps.add(unit.path)
            elif isinstance(unit, ScopeUnit):
                self._blocks.add(unit.path)
            self._labels[unit.path] = unit.label
            if self._key(unit.path) == unit.path and unit.path not in self._blocks:
                self._waiting[unit.path] = (unit.label, tuple(siblings[i].path for i in unit.after))
        self.steps = len(self._waiting)

    def _key(self, path: str) -> str:
        """The row of a path: that of the outermost map around it, or its own."""
        end = path.find(".")
        while end >= 0:
            if path[:end] in self._maps:
                return path[:end]
            end = path.find(".", end + 1)
        return path

    def waiting(self, most: int) -> list[tuple[str, str]]:
        """The next steps that have not begun: label, and the label of one that it waits for (or nothing)."""
        found: list[tuple[str, str]] = []
        for label, after in self._waiting.values():
            if len(found) == most:
                break
            found.append((label, next((self._labels[p] for p in after if p not in self._over), "")))
        return found

    @property
    def waiting_count(self) -> int:
        """Steps that have not begun."""
        return len(self._waiting)

    def memory_bytes(self, row: Row, used: Mapping[int, int]) -> int:
        """What the running attempts of a row hold, by a sample of attempts."""
        return sum(used.get(key, 0) for key in row.running)

    def take(self, event: Event) -> list[Done]:
        """Take one event; what is over because of it."""
        self.now = max(self.now, event.at)
        handler = _HANDLERS.get(type(event))
        return handler(self, event) or [] if handler is not None else []

    def _row(self, path: str, label: str, at: float) -> Row:
        key = self._key(path)
        row = self.rows.get(key)
        if row is None:
            shown = self._waiting.pop(key, (label, ()))[0]
            row = Row(key, shown, self._order.get(key, len(self._order)), at, key in self._maps)
            row.attempts = self._attempts.get(key, 1)
            self.rows[key] = row
            self.rows = dict(sorted(self.rows.items(), key=lambda each: each[1].order))
        return row

    def _run_started(self, event: RunStarted) -> None:
        self.run_id = event.run_id

    def _attempt_started(self, event: AttemptStarted) -> None:
        row = self._row(event.path, event.label, event.at)
        row.running[event.key] = event.executor
        row.waiting_until = None
        self._keys[event.key] = row
        if row.path == event.path and not event.item:
            row.attempt = event.number
        row.doing = _DOING.get(event.role, "")

    def _attempt_finished(self, event: AttemptFinished) -> None:
        row = self._keys.pop(event.key, None)
        if row is None:
            return
        row.running.pop(event.key, None)
        if event.role in _DOING:
            row.doing = ""
            if row.path in self._blocks:
                self.rows.pop(row.path, None)
        path = row.path
        self._peaks[path] = max(self._peaks.get(path, 0), event.usage.peak_rss_bytes or 0)
        self._cpu_s[path] = self._cpu_s.get(path, 0.0) + (event.usage.cpu_s or 0.0)
        if event.item or path != event.path:
            return
        self._usage[path] = event
        if event.retry_in_s is not None:
            row.waiting_until = event.at + event.retry_in_s

    def _progress(self, event: StepProgress) -> None:
        row = self.rows.get(event.path)
        if row is not None and not event.item:
            row.done, row.total = event.done, event.total
            row.marks.append((event.at, event.done))

    def _block_started(self, event: BlockStarted) -> None:
        if event.path in self._maps and not event.item and self._key(event.path) == event.path:
            row = self._row(event.path, event.label, event.at)
            row.total = float(event.members) if event.members else row.total

    def _step_finished(self, event: StepFinished) -> list[Done]:
        row = self.rows.get(self._key(event.path))
        if event.status == "failed" and not event.tolerated:
            self.failed += 1
        if event.item or self._key(event.path) != event.path:
            if row is not None and event.status == "failed":
                row.failed += 1
            return []
        if event.path not in self._order or event.path in self._blocks:
            return []
        return [self._end(event.path, event.label, self._how(event), event.at, note=_note(event))]

    def _how(self, event: StepFinished) -> str:
        if event.kept:
            return "kept"
        if event.status == "cancelled" and not event.attempts:
            return "skipped"
        return "tolerated" if event.tolerated else event.status

    def _block_finished(self, event: BlockFinished) -> list[Done]:
        if not event.item and event.retry_in_s is None:
            self._over.add(event.path)
        if event.item or event.path not in self._maps or self._key(event.path) != event.path:
            return []
        row = self.rows.get(event.path)
        if event.retry_in_s is not None:
            if row is not None:
                row.attempt, row.waiting_until = event.attempt + 1, event.at + event.retry_in_s
                row.done, row.failed = 0.0, 0
                row.marks.clear()
            return []
        note = event.reason or (with_place(event.failure) if event.status == "failed" else "")
        if event.status == "succeeded" and event.failed_count:
            note = f"{event.failed_count:,} failed, tolerated"
        items = (event.successful_count, event.members)
        status = "kept" if event.kept else event.status
        return [self._end(event.path, event.label, status, event.at, items, note, event.wall_s)]

    def _end(
        self,
        path: str,
        label: str,
        status: str,
        at: float,
        items: tuple[int, int] | None = None,
        note: str = "",
        wall_s: float | None = None,
    ) -> Done:
        row = self.rows.pop(path, None)
        self._waiting.pop(path, None)
        self._over.add(path)
        self.ended += 1
        usage = self._usage.pop(path, None)
        if wall_s is None and usage is not None:
            wall_s = usage.usage.wall_s or max(0.0, usage.at - usage.started_at)
        if row is not None and row.attempt > 1 and status == "succeeded":
            note = note or f"attempt {row.attempt}"
        return Done(
            label, status, wall_s, self._cpu_s.pop(path, 0.0), self._peaks.pop(path, 0), items, note
        )  # fmt: skip

    def _run_finished(self, event: RunFinished) -> None:
        self.rows.clear()
        self._waiting.clear()


_DOING = {"expand": "reading its items", "merger": "merging", "gate": "judging its condition"}

_HANDLERS: dict[type, Callable[[LiveRows, Any], list[Done] | None]] = {
    RunStarted: LiveRows._run_started,
    AttemptStarted: LiveRows._attempt_started,
    AttemptFinished: LiveRows._attempt_finished,
    StepProgress: LiveRows._progress,
    StepFinished: LiveRows._step_finished,
    BlockStarted: LiveRows._block_started,
    BlockFinished: LiveRows._block_finished,
    RunFinished: LiveRows._run_finished,
}


def _note(event: StepFinished) -> str:
    if event.status == "failed":
        return with_place(event.failure)
    if event.kept:
        return "done before"
    return event.reason
