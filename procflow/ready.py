"""Ready: which task starts next, within slots, memory, named resources and rates. Pure.

Tasks that ask for the same are one *shape* and share a heap, so the choice costs one look at each shape, however many tasks
wait. The most urgent task that fits is taken; a task too large for what is free may be passed over, but only
so often, so that it can't starve.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping

from procflow.graph import TaskUnit
from procflow.runs import TaskRun

__all__ = ["Budget", "Ready"]

BYPASS_MAX = 32
"""How often smaller tasks may pass a more urgent one that waits for cores or memory."""

_Entry = tuple[tuple[float, float, int], int, TaskRun]


class Budget:
    """What may run at once: cores of each executor, bytes of memory, named resources. Never goes below zero."""

    __slots__ = ("cpus", "memory_bytes", "resources")

    def __init__(self, cpus: Mapping[str, int], memory_bytes: int | None, resources: Mapping[str, float]) -> None:
        self.cpus = dict(cpus)
        self.memory_bytes = memory_bytes
        self.resources = dict(resources)

    def lacks(self, unit: TaskUnit) -> str:
        """What is missing to start the unit now: ``cpus``, ``memory``, the name of a resource, or nothing."""
        if self.cpus[unit.executor] < unit.cpus:
            return "cpus"
        if unit.memory_bytes is not None and self.memory_bytes is not None and self.memory_bytes < unit.memory_bytes:
            return "memory"
        for name, amount in unit.resources.items():
            if self.resources.get(name, 0.0) < amount - 1e-9:
                return name
        return ""

    def change(self, unit: TaskUnit, sign: int) -> None:
        """Take what the unit asks for (-1) or give it back (+1)."""
        self.cpus[unit.executor] += sign * unit.cpus
        if unit.memory_bytes is not None and self.memory_bytes is not None:
            self.memory_bytes += sign * unit.memory_bytes
        for name, amount in unit.resources.items():
            self.resources[name] += sign * amount


class _Shape:
    """Waiting tasks that ask for the same."""

    __slots__ = ("bypassed", "heap", "starts", "unit")

    def __init__(self, unit: TaskUnit) -> None:
        self.unit = unit
        self.heap: list[_Entry] = []
        self.bypassed = 0
        self.starts: deque[float] = deque(maxlen=max(1, int(unit.rate.count)) if unit.rate is not None else 1)

    def free_at(self) -> float:
        """When the rate allows the next start."""
        rate = self.unit.rate
        if rate is None or len(self.starts) < (self.starts.maxlen or 1):
            return 0.0
        return self.starts[0] + (rate.per_s if rate.count >= 1 else rate.interval_s)


class Ready:
    """The ready tasks and what they may use."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._shapes: dict[object, _Shape] = {}
        self._keys: dict[int, _Shape] = {}
        self._serial = 0
        self.wake_at: float | None = None
        """When a rate lets the next task start, as of the last ``pop``."""

    def push(self, task: TaskRun) -> None:
        """The task waits for its start."""
        shape = self._keys.get(id(task.unit))
        if shape is None:
            shape = self._keys[id(task.unit)] = self._shape(task.unit)
        self._serial += 1
        heapq.heappush(shape.heap, (task.urgency, self._serial, task))

    def _shape(self, unit: TaskUnit) -> _Shape:
        key: object = (unit.executor, unit.cpus, unit.memory_bytes, tuple(sorted(unit.resources.items())))
        if unit.rate is not None:
            key = (key, unit.path)
        return self._shapes.setdefault(key, _Shape(unit))

    def pop(self, now: float) -> TaskRun | None:
        """The next task to start, with its share of the budget taken; None when nothing fits now."""
        best: _Shape | None = None
        stuck: _Shape | None = None
        self.wake_at = None
        for shape in self._shapes.values():
            heap = shape.heap
            while heap and not _current(heap[0]):
                heapq.heappop(heap)
            if not heap:
                continue
            if shape.unit.rate is not None and shape.free_at() > now:
                self.wake_at = min(shape.free_at(), self.wake_at or shape.free_at())
                continue
            lack = self.budget.lacks(shape.unit)
            if lack:
                if lack in ("cpus", "memory") and (stuck is None or heap[0] < stuck.heap[0]):
                    stuck = shape
            elif best is None or heap[0] < best.heap[0]:
                best = shape
        if best is None:
            return None
        if stuck is not None and stuck.heap[0] < best.heap[0]:
            if stuck.bypassed >= BYPASS_MAX:
                return None
            stuck.bypassed += 1
        best.bypassed = 0
        task = heapq.heappop(best.heap)[2]
        self.budget.change(best.unit, -1)
        if best.unit.rate is not None:
            best.starts.append(now)
        return task

    def untake(self, task: TaskRun, started: bool = True) -> None:
        """Give back what the task holds; ``started`` is False where it never ran, so that its rate is not charged."""
        self.budget.change(task.unit, +1)
        if not started and task.unit.rate is not None:
            starts = self._keys[id(task.unit)].starts
            if starts:
                starts.pop()


def _current(entry: _Entry) -> bool:
    """The task still waits (it may have been cancelled, or parked by its block, since it was pushed)."""
    return entry[2].state == "ready"
