"""Actions: what the scheduler tells the engine to do; and the inputs that come from no executor. Passive records.

An event among the actions is to be stored, then told to the observers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from procflow.attempt import Attempt, Cause
from procflow.events import Event, Role
from procflow.graph import TaskUnit
from procflow.passive import passive
from procflow.ref import Ref, Stored
from procflow.scheduling.runs import TaskRun

__all__ = ["Action", "Kill", "Measured", "Release", "Stall", "StopAsked", "Submit", "Tick"]


@dataclass(slots=True, eq=False, init=False, kw_only=True)
class Submit(Attempt):
    """Hand this attempt to the executor of its unit; the engine says how its log is opened.

    ``after`` is how many records must be durable first: a task starts only once what it builds on can't be lost.
    ``memory_bytes`` is what is reserved for it, which is its limit too; after an attempt that ran out it is more.
    ``behind`` says that no core is free for it: it is to be queued behind an attempt that runs.
    """

    unit: TaskUnit
    after: int
    role: Role
    behind: bool

    def __init__(self, task: TaskRun, values: Mapping[str, Ref], behind: bool, run_id: str, began: float) -> None:
        unit, scope, items = task.unit, task.scope, task.items
        self.key, self.number, self.after = task.key, task.number, task.after
        self.unit, self.call, self.cpus = unit, unit.call, unit.cpus
        self.values, self.items, self.labels = values, items, scope.labels
        self.report_each = items is not None and (unit.timeout_s is not None or unit.idle_timeout_s is not None)
        self.role, self.memory_bytes, self.behind = task.role, task.memory_bytes, behind
        self.run_id, self.log, self.open_log = run_id, None, None
        item = scope.item if items is None else task.item_label
        self.about = (unit.path, unit.label, item, task.number, unit.executor, task.role, began)


@dataclass(slots=True)
class Kill:
    """Stop one attempt."""

    key: int
    executor: str
    cause: Cause
    grace_s: float


@dataclass(slots=True)
class Release:
    """Nobody needs these files any more, once all records made so far are durable."""

    files: tuple[Stored, ...]


Action = Event | Submit | Kill | Release


@passive(frozen=True, slots=True)
class Tick:
    """A deadline of the scheduler's has come, and nothing else happened."""


@passive(frozen=True, slots=True)
class StopAsked:
    """The run is to end: running attempts are stopped, nothing new starts but hooks. ``reason`` is for people.

    ``hurry`` says that nobody waits any more, so that no hook starts either.
    """

    reason: str
    hurry: bool = False


@passive(frozen=True, slots=True)
class Stall:
    """How much of the last seconds was spent waiting, as shares: something for memory, running attempts for one of ``cores``."""

    memory: float = 0.0
    cpu: float = 0.0
    cores: int = 1


@passive(frozen=True, slots=True)
class Measured:
    """A sample of memory: bytes by attempt key, and bytes of the whole run; now and then what waited for the machine."""

    rss_bytes: Mapping[int, int]
    total_bytes: int
    stall: Stall | None = None
