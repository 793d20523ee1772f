"""Run-time records of units: what the scheduler knows of each task, block and map while the run goes on.

Only the scheduler changes these. They hold state and small questions about it; every decision stands in
``scheduler.py`` (blocks and tasks) and ``mapping.py`` (items). Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from procflow.attempt import Cause, Failure, Items
from procflow.call import NOTHING
from procflow.graph import MapUnit, ScopeUnit, TaskUnit, Unit
from procflow.ref import Ref
from procflow.scheduling.states import FINAL, State
from procflow.units import Share

if TYPE_CHECKING:
    from procflow.scheduling.folding import Fold
    from procflow.scheduling.ready import Shape

__all__ = ["Indices", "MapRun", "Role", "ScopeRun", "TaskRun", "UnitRun", "instantiate"]

Indices = range | tuple[int, ...]
Role = Literal["member", "gate", "expand", "merger", "batch"]


class UnitRun:
    """A unit of one scope instance.

    ``kept`` says that its result comes from an earlier session. ``unmet`` counts members before it that have not
    settled. ``after`` is the number of records that had been made when nothing held it back any more: those must be
    durable before it starts. ``declined`` says that its condition was false, ``clean`` that a resume would run nothing
    of it. ``changes`` are those of the pipeline's state that it made, by key, in order.
    """

    __slots__ = (
        "after", "changes", "clean", "declined", "failure", "kept", "published", "reason", "scope", "seq", "state", "unit",
        "unmet",
    )  # fmt: skip

    unit: Unit

    def __init__(self, unit: Unit, scope: ScopeRun | None, seq: int) -> None:
        self.unit = unit
        self.scope = scope
        self.state: State = "waiting"
        self.unmet = len(unit.after)
        self.seq = seq
        self.published: Mapping[str, Ref] = NOTHING
        self.failure: Failure | None = None
        self.reason = ""
        self.after = 0
        self.kept = False
        self.declined = False
        self.clean = False
        self.changes: tuple[tuple[str, Ref], ...] = ()

    @property
    def urgency(self) -> tuple[float, float, int]:
        """What starts first: higher priority, then the longer remaining path, then the declared order."""
        return (-self.unit.priority, -self.unit.rank, self.seq)

    @property
    def settled(self) -> bool:
        return self.state in FINAL


class TaskRun(UnitRun):
    """A task.

    ``number`` is the current attempt; ``charges`` counts failures by cause; ``doomed`` is why it is being stopped.
    ``memory_bytes`` is its limit (more than declared after it ran out of memory), ``reserved_bytes`` what it takes of the
    memory budget: its limit, else what was learned of it. ``alone`` says that nothing may run beside it, ``shape`` with
    which it waited for its start.
    """

    __slots__ = (
        "alone", "charges", "clock", "doomed", "idle_clock", "items", "key", "memory_bytes", "number", "peak_bytes",
        "reported", "reserved_bytes", "role", "shape", "started_at",
    )  # fmt: skip

    unit: TaskUnit

    scope: ScopeRun

    def __init__(self, unit: TaskUnit, scope: ScopeRun, seq: int, role: Role = "member") -> None:
        UnitRun.__init__(self, unit, scope, seq)
        self.role: Role = role
        self.number = 0
        self.key = 0
        self.started_at = 0.0
        self.clock: float | None = None
        self.idle_clock: float | None = None
        self.charges: dict[str, int] | None = None
        self.doomed: Cause | None = None
        self.items: Items | None = None
        self.reported: set[int] | None = None
        self.memory_bytes = unit.memory_bytes
        self.reserved_bytes = unit.learned_bytes if unit.memory_bytes is None else unit.memory_bytes
        self.peak_bytes = 0
        self.alone = False
        self.shape: Shape | None = None

    def reserve(self, memory_bytes: int | None) -> None:
        """Change its limit; only while it holds nothing."""
        self.memory_bytes = memory_bytes
        self.reserved_bytes = self.unit.learned_bytes if memory_bytes is None else memory_bytes

    @property
    def labels(self) -> tuple[str, ...]:
        """Items of the enclosing maps, outermost first."""
        return self.scope.labels

    @property
    def item(self) -> str:
        """The same as text, ``3/17``."""
        return self.scope.item

    @property
    def item_label(self) -> str:
        """``3/0-99``: items of enclosing maps, then its own."""
        outer = self.scope.item
        if self.items is None:
            return outer
        return f"{outer}/{self.items.label}" if outer else self.items.label


class ScopeRun(UnitRun):
    """A block.

    ``active`` members hold one of its ``max_parallelism`` places, ``parked`` ones wait; ``holds`` says that it
    takes a place in its own block. ``hidden`` is the gate, expand or merger at work. ``forgiven`` counts failed
    members that said ``on_error: continue``, ``own_failures`` failures that are no member's (a hidden task's, an
    item's). ``ending`` is why it ends before its members do: ``enough`` (join), ``failed`` (on_error: stop),
    ``timeout`` or ``cancelled``. ``tainted`` says that a step it depends on runs again, so nothing in it is kept.
    ``base`` are the changes of the state that it found as it opened, ``replaced`` the members that gave a key of the state
    another value, ``conflict`` that two at once did. ``followers`` are, for each member, those that wait for it.
    """

    __slots__ = (
        "active", "attempt", "base", "clock", "conflict", "cost", "ending", "failed", "followers", "forgiven", "gated",
        "hidden", "holds", "item", "labels", "members", "opened_at", "own_failures", "parked", "replaced", "successes",
        "tainted", "unsettled", "values", "work_s",
    )  # fmt: skip

    unit: ScopeUnit

    def __init__(self, unit: ScopeUnit, scope: ScopeRun | None, seq: int, labels: tuple[str, ...]) -> None:
        super().__init__(unit, scope, seq)
        self.labels = labels
        self.item = "/".join(labels)
        self.members: list[TaskRun | ScopeRun] = []
        self.followers: Mapping[int, list[int]] = {}
        self.values: dict[str, Ref] = {}
        self.active = 0
        self.parked: list[tuple[tuple[float, float, int], TaskRun | ScopeRun]] = []
        self.unsettled = 0
        self.successes = 0
        self.failed = 0
        self.attempt = 0
        self.opened_at = 0.0
        self.clock: float | None = None
        self.ending: Literal["enough", "failed", "timeout", "cancelled"] | None = None
        self.forgiven = 0
        self.own_failures = 0
        self.tainted = False
        self.hidden: TaskRun | None = None
        self.holds = False
        self.gated = False
        self.work_s = 0.0
        self.cost = 0.0
        self.base: tuple[tuple[str, Ref], ...] = ()
        self.replaced: dict[str, list[int]] | None = None
        self.conflict: Failure | None = None

    @property
    def total(self) -> int:
        """Number of members."""
        return len(self.members)

    @property
    def done(self) -> bool:
        """Nothing below is left to settle."""
        return self.unsettled == 0

    @property
    def full(self) -> bool:
        """No further member may start now."""
        limit = self.unit.max_parallelism
        return limit is not None and self.active >= limit

    def park(self, run: TaskRun | ScopeRun) -> None:
        heapq.heappush(self.parked, (run.urgency, run))

    def unpark(self) -> TaskRun | ScopeRun | None:
        """The most urgent waiting member that may still start."""
        while self.parked:
            run = heapq.heappop(self.parked)[1]
            if run.state == "ready":
                return run
        return None

    def tolerance(self) -> float:
        """How many members may fail in the end."""
        if self.unit.on_error != "continue":
            return 0
        allowed = self.unit.tolerate
        if allowed is None:
            return float("inf")
        return int(allowed.fraction * self.total + 1e-9) if isinstance(allowed, Share) else allowed

    def lookup(self, name: str) -> Ref | None:
        """The value of a name as seen from inside this block."""
        scope: ScopeRun | None = self
        while scope is not None:
            ref = scope.values.get(name)
            if ref is not None:
                return ref
            if scope.unit.isolated:
                return None
            scope = scope.scope
        return None


class MapRun(ScopeRun):
    """A map. Its items are counted, not kept: a run of items is one batch task, or one open scope an item.

    ``pages`` are ``(first, count, ref)``; ``cursor`` is the next item never started; ``again`` are items to run
    again; ``alone`` are those that must run in a batch of their own, because one of them took its worker down.
    ``failures`` are final. ``head`` is the batch that waits for its start (it takes its items only then), ``live``
    are the open iterations by item. ``losses`` counts how often an item was among those that may have taken a
    worker down. ``memory_bytes`` is what a batch reserves after one ran out of memory; ``pressed`` makes the next
    batch run alone. ``unclean`` says that an iteration settled and was not clean. ``changed`` are the changes of the state
    by key, with the items that made them. ``fold`` says how far they are reduced, None where they are not.
    """

    __slots__ = (
        "again", "alone", "changed", "charges", "chunks", "cursor", "expanded", "failures", "fold", "head", "item_s", "live",
        "losses", "measured", "memory_bytes", "page", "pages", "pressed", "size", "unclean",
    )  # fmt: skip

    unit: MapUnit

    def __init__(self, unit: MapUnit, scope: ScopeRun | None, seq: int, labels: tuple[str, ...]) -> None:
        super().__init__(unit, scope, seq, labels)
        self.pages: list[tuple[int, int, Ref]] = []
        self.expanded = False
        self.size = 0
        self.cursor = 0
        self.page = 0
        self.again: list[int] = []
        self.alone: set[int] = set()
        self.live: dict[int, ScopeRun] = {}
        self.charges: dict[int, dict[str, int]] = {}
        self.failures: dict[int, Failure] = {}
        self.chunks: list[tuple[range | tuple[int, ...], Ref]] = []
        self.head: TaskRun | None = None
        self.losses: dict[int, int] = {}
        self.memory_bytes: int | None = None
        self.pressed = False
        self.item_s = 0.0
        self.measured = 0
        self.unclean = False
        self.changed: dict[str, list[tuple[Indices, Ref]]] | None = None
        self.fold: Fold | None = None

    @property
    def total(self) -> int:
        return self.size

    @property
    def done(self) -> bool:
        if self.ending is not None or not self.expanded:
            return self.active == 0
        return self.successes + len(self.failures) >= self.size


def instantiate(unit: ScopeUnit, scope: ScopeRun | None, seq: int, labels: tuple[str, ...]) -> ScopeRun:
    """A fresh run of a block."""
    return MapRun(unit, scope, seq, labels) if isinstance(unit, MapUnit) else ScopeRun(unit, scope, seq, labels)
