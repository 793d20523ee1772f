"""Simulation: a run played through by the real scheduler, with a clock that jumps and seconds that were learned. Pure.

The same ``Scheduler`` decides as in a run: order, places, memory, rates, batches of maps. Attempts end after the time
that they are expected to take; values are empty. Each worker is taken to have a core of its own, so a run on 64 of them
can be seen on a machine with two, unless it is told how many there are. Failures, retries and timeouts are not played.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from procflow.attempt import Cause, Failure, Items, Lost, Outcome, Skipped, Succeeded, Usage
from procflow.errors import InternalError
from procflow.events import RunStatus
from procflow.graph import MapUnit, ScopeUnit, TaskGraph, TaskUnit, Unit, walk
from procflow.learning.known import Knowledge, Known
from procflow.learning.teaching import changed_tasks, items_of, places, taught
from procflow.ref import Inline, Ref
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Action, Kill, Submit, Tick

__all__ = ["DISPATCH_S", "Forecast", "simulate"]

DISPATCH_S = 0.00005
"""Seconds that the parent works for one attempt; one after the other, however many workers there are."""
START_S = 0.15
"""Seconds until a worker is ready, where no run has told."""
MOST_STARTS = 2_000_000
"""Attempts at most: a simulation of more would take minutes."""

NOTHING: Ref = Inline(b"")


@dataclass(frozen=True, slots=True)
class Forecast:
    """How a run is expected to go with so many workers.

    ``work_s`` is the time of all attempts together, ``cpu_s`` the part in which a core was at work, ``peak_bytes`` the
    most that those at work at once are expected to hold, ``most_at_once`` the most attempts at once. ``unknown`` are
    labels of steps that no run has told of, which count ``unknown_s`` each. ``status`` is that of the simulated run.
    """

    workers: int
    memory_bytes: int | None
    wall_s: float
    work_s: float
    peak_bytes: int
    most_at_once: int
    attempts: int
    status: RunStatus
    unknown_s: float = 1.0
    unknown: tuple[str, ...] = ()
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    cpu_s: float = 0.0

    @property
    def efficiency(self) -> float:
        """The share of the workers' time in which they worked."""
        return self.work_s / (self.wall_s * self.workers) if self.wall_s else 1.0


def simulate(
    graph: TaskGraph,
    knowledge: Knowledge,
    *,
    workers: int,
    memory_bytes: int | None,
    cores: int | None = None,
    unknown_s: float = 1.0,
) -> Forecast:
    """Play a run through; ``graph`` as compiled, ``unknown_s`` for steps that nothing is known of.

    ``cores`` are those that the workers share; None gives each one of its own.
    """
    graph = taught(graph, knowledge, slots=workers, memory_bytes=memory_bytes).graph
    root = _unhooked(graph.root)
    assert isinstance(root, ScopeUnit)
    play = _Play(replace(graph, root=_unclocked(root)), knowledge, workers, memory_bytes, unknown_s)
    play.crowd = max(1.0, workers / cores) if cores else 1.0
    return play.run()


def _unclocked(root: ScopeUnit) -> ScopeUnit:
    """The same tree without timeouts: how long something is expected to take is no reason to stop it."""
    if all(u.timeout_s is None and getattr(u, "idle_timeout_s", None) is None for u in walk(root)):
        return root
    plain = changed_tasks(root, lambda task: replace(task, timeout_s=None, idle_timeout_s=None))
    assert isinstance(plain, ScopeUnit)
    return _unclocked_scope(plain)


def _unclocked_scope(scope: ScopeUnit) -> ScopeUnit:
    def inner(unit: Unit) -> Unit:
        return _unclocked_scope(unit) if isinstance(unit, ScopeUnit) else unit

    if isinstance(scope, MapUnit):
        return replace(scope, timeout_s=None, body=inner(scope.body))
    return replace(scope, timeout_s=None, members=tuple(map(inner, scope.members)))


def _unhooked(unit: Unit) -> Unit:
    """Without hooks: a run's time ends before they begin, and nothing is learned of them."""
    if isinstance(unit, MapUnit):
        return replace(unit, hooks=(), body=_unhooked(unit.body))
    if isinstance(unit, ScopeUnit):
        return replace(unit, hooks=(), members=tuple(map(_unhooked, unit.members)))
    return replace(unit, hooks=())


class _Play:
    """One simulated run."""

    def __init__(
        self, graph: TaskGraph, knowledge: Knowledge, workers: int, memory_bytes: int | None, unknown_s: float
    ) -> None:
        self.graph, self.knowledge = graph, knowledge
        self.workers, self.memory_bytes, self.unknown_s = workers, memory_bytes, unknown_s
        slots = {name: 1 if name == "inline" else workers for name in graph.executors}
        self.scheduler = Scheduler(graph, slots=slots, memory_bytes=memory_bytes, run_id="simulated")
        self.crowd = 1.0
        self.cpu_s = 0.0
        self.now = self.work_s = self.parent_free_at = 0.0
        self.places = places(graph.root)
        self.maps = {u.label: u for u in walk(graph.root) if isinstance(u, MapUnit)}
        self.sizes = {label: items_of(unit, knowledge) for label, unit in self.maps.items()}
        self.unknown: dict[str, None] = {}
        self.spans: dict[str, tuple[float, float]] = {}
        self.peak_bytes = self.held_bytes = self.most_at_once = 0
        self._ends: list[tuple[float, int, Outcome]] = []
        self._out: dict[int, tuple[str, int, bool]] = {}
        self._seen: dict[tuple[str, str], int] = {}
        self._started = dict.fromkeys(slots, 0)
        self._busy = dict.fromkeys(slots, 0)
        self._open_names = _undeclared(graph)

    def run(self) -> Forecast:
        """To its end."""
        scheduler = self.scheduler
        self._perform(scheduler.start(0.0))
        while not scheduler.finished:
            if scheduler.attempts_over > MOST_STARTS:
                raise InternalError(f"the simulation takes more than {MOST_STARTS:,} attempts")
            deadline = scheduler.next_deadline()
            if self._ends and (deadline is None or self._ends[0][0] <= deadline):
                self.now, _, outcome = heapq.heappop(self._ends)
                if self._leave(outcome.key):
                    self._perform(scheduler.handle(outcome, self.now))
            elif deadline is not None:
                self.now = max(self.now, deadline)
                self._perform(scheduler.handle(Tick(), self.now))
            else:
                raise InternalError("the simulation has nothing to wait for", scheduler.story())
        return Forecast(
            self.workers, self.memory_bytes, self.now, self.work_s, self.peak_bytes, self.most_at_once,
            scheduler.attempts_over, scheduler.status, self.unknown_s, tuple(self.unknown), self.spans, self.cpu_s,
        )  # fmt: skip

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Submit):
                self._submit(action)
            elif isinstance(action, Kill):
                self._kill(action)

    def _submit(self, submit: Submit) -> None:
        """The attempt runs from the moment the parent has time for it until it has taken as long as expected."""
        unit, key = submit.unit, submit.key
        label, role = self.places[id(unit)]
        known = self.knowledge(label, role)
        outcome, wall_s = self._outcome(submit, label, role, known)
        self.parent_free_at = max(self.parent_free_at, self.now) + DISPATCH_S
        begins = self.parent_free_at + self._worker(unit)
        around_s = max(0.0, known.overhead_s - DISPATCH_S) if known is not None else 0.0
        end = begins + wall_s + around_s
        self.work_s += wall_s
        heapq.heappush(self._ends, (end, key, outcome))
        held = known.peak_bytes if known is not None and unit.executor == "processes" else 0
        self._out[key] = (unit.executor, held, True)
        self.held_bytes += held
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        self.most_at_once = max(self.most_at_once, len(self._out))
        first, last = self.spans.get(label, (begins, end))
        self.spans[label] = (min(first, begins), max(last, end))

    def _worker(self, unit: TaskUnit) -> float:
        """Seconds until the attempt has a worker: none where one is idle."""
        executor = unit.executor
        self._busy[executor] += 1
        if self._busy[executor] <= self._started[executor]:
            return 0.0
        self._started[executor] += 1
        return (self.knowledge.start_s or START_S) if executor == "processes" else 0.0

    def _leave(self, key: int) -> bool:
        """The attempt is over; False where it was over before."""
        found = self._out.pop(key, None)
        if found is None:
            return False
        self._busy[found[0]] -= 1
        self.held_bytes -= found[1]
        return True

    def _kill(self, kill: Kill) -> None:
        """It ends at once: a block that has enough successes cancels the others."""
        cause: Cause = kill.cause
        heapq.heappush(self._ends, (self.now, kill.key, Lost(kill.key, Failure(cause, "Lost", "stopped"))))

    def _outcome(self, submit: Submit, label: str, role: str, known: Known | None) -> tuple[Outcome, float]:
        """How an attempt ends, and after how many seconds."""
        key, unit = submit.key, submit.unit
        if known is not None and known.skipped:
            return Skipped(key), 0.0
        wall_s = self._seconds(submit.items, label, role, known)
        usage = Usage(wall_s)
        if role == "batch":
            assert submit.items is not None
            return Succeeded(key, usage=usage, indices=submit.items.indices, chunk=NOTHING), wall_s
        if role == "expand":
            size = self.sizes[label]
            pages = ((NOTHING, 1 if size is None else size),)
            return Succeeded(key, usage=usage, pages=pages), wall_s
        names = () if role == "gate" else unit.call.outputs
        outputs = self._open_names if names == "*" else dict.fromkeys(names, NOTHING)
        return Succeeded(key, outputs, usage), wall_s

    def _seconds(self, items: Items | None, label: str, role: str, known: Known | None) -> float:
        if known is None or not known.attempts:
            if role not in ("member", "batch"):
                return 0.0
            self.unknown[label] = None
            return self.unknown_s * (len(items.indices) if items is not None else 1)
        if known.course is None:
            count = len(items.indices) if items is not None else 1
            self.cpu_s += known.cpu_s * count
            return known.seconds(known.mean_s * count, known.cpu_s * count, self.workers, self.crowd)
        if items is not None:
            size = max(1, self.sizes[label] or known.items)
            places: Iterable[tuple[int, int]] = [(i, i + 1) for i in items.indices]
            if isinstance(items.indices, range):
                places = [(items.indices.start, items.indices.stop)]
        else:
            # Attempts of a step inside a map, in the order of their start.
            at = self._seen.get((label, role), 0)
            self._seen[label, role] = at + 1
            size = known.items
            places = [(at % size, at % size + 1)]
        found = [known.course.between(first, min(stop, size), size) for first, stop in places if first < size]
        self.cpu_s += sum(c for _, c in found)
        return known.seconds(sum(w for w, _ in found), sum(c for _, c in found), self.workers, self.crowd)


def _undeclared(graph: TaskGraph) -> dict[str, Ref]:
    """Names that are read and that no step declares: what steps with ``outputs: "*"`` are taken to publish."""
    read: dict[str, Ref] = {}
    written: set[str] = set()
    for unit in walk(graph.root):
        read.update(dict.fromkeys(unit.reads, NOTHING))
        written.update(unit.writes or ())
    return {name: ref for name, ref in read.items() if name not in written}
