"""Ready: which task starts next, within slots, memory, named resources and rates. Pure.

Tasks that ask for the same are one *shape* and share a heap, so the choice costs one look at each shape, however
many tasks wait. The most urgent task that fits is taken; a task too large for what is free may be passed over, but
only so often, so that it can't starve.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from operator import itemgetter

from procflow.graph import TaskUnit
from procflow.scheduling.runs import TaskRun
from procflow.units import Rate

__all__ = ["Budget", "Ready", "Shape"]

QUEUED_S = 0.002
"""So much measured work may wait behind a task that runs."""

BYPASS_MAX = 32
"""How often smaller tasks may pass a more urgent one that waits for cores or memory."""

_UNKNOWN_S = float("inf")

_Entry = tuple[float, float, int, int, TaskRun]
_entry = itemgetter(0)


class Budget:
    """What may run at once: cores of each executor, bytes of memory, named resources. Never goes below zero."""

    __slots__ = ("cpus", "memory_bytes", "resources")

    def __init__(self, cpus: Mapping[str, int], memory_bytes: int | None, resources: Mapping[str, float]) -> None:
        self.cpus = dict(cpus)
        self.memory_bytes = memory_bytes
        self.resources = dict(resources)

    def lacks(self, task: TaskRun) -> str:
        """What is missing to start the task now: ``cpus``, ``memory``, the name of a resource, or nothing."""
        unit = task.unit
        if self.cpus[unit.executor] < unit.cpus:
            return "cpus"
        wanted = task.reserved_bytes
        if wanted is not None and self.memory_bytes is not None and self.memory_bytes < wanted:
            return "memory"
        for name, amount in unit.resources.items():
            if self.resources.get(name, 0.0) < amount - 1e-9:
                return name
        return ""

    def change(self, task: TaskRun, sign: int) -> None:
        """Take what the task asks for (-1) or give it back (+1)."""
        unit = task.unit
        self.cpus[unit.executor] += sign * unit.cpus
        if self.memory_bytes is not None and task.reserved_bytes is not None:
            self.memory_bytes += sign * task.reserved_bytes
        if unit.resources:
            for name, amount in unit.resources.items():
                self.resources[name] += sign * amount


class _Rate:
    """The last starts that a rate counts."""

    __slots__ = ("rate", "starts")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.starts: deque[float] = deque(maxlen=max(1, int(rate.count)))

    def free_at(self) -> float:
        """When it allows the next start."""
        rate, starts = self.rate, self.starts
        if len(starts) < (starts.maxlen or 1):
            return 0.0
        return starts[0] + (rate.per_s if rate.count >= 1 else rate.interval_s)


class _Queue:
    """Waiting tasks, the most urgent first. Those that come in that order, as members of a block do, stand in a row:
    a heap of ten thousand costs 2 us for each that is taken out.
    """

    __slots__ = ("_heap", "_row")

    def __init__(self) -> None:
        self._row: deque[_Entry] = deque()
        self._heap: list[_Entry] = []

    def push(self, entries: list[_Entry]) -> None:
        """Add some, in any order; the list is left in order."""
        row = self._row
        entries.sort()
        if not row or row[-1] < entries[0]:
            row.extend(entries)
            return
        for entry in entries:
            if row[-1] < entry:
                row.append(entry)
            else:
                heapq.heappush(self._heap, entry)

    def first(self) -> _Entry | None:
        """The most urgent that is still ready; those that are not are dropped."""
        row, heap = self._row, self._heap
        while row and row[0][4].state != "ready":
            row.popleft()
        while heap and heap[0][4].state != "ready":
            heapq.heappop(heap)
        if row and not (heap and heap[0] < row[0]):
            return row[0]
        return heap[0] if heap else None

    def pop(self, first: _Entry) -> None:
        """Take out the most urgent one."""
        if self._row and self._row[0] is first:
            self._row.popleft()
        else:
            heapq.heappop(self._heap)

    def take(self, rival: _Entry | None) -> TaskRun | None:
        """Take out the most urgent one that is still ready, if it is more urgent than ``rival``."""
        row = self._row
        if rival is None and not self._heap:
            while row:
                task = row.popleft()[4]
                if task.state == "ready":
                    return task
            return None
        first = self.first()
        if first is None or (rival is not None and rival < first):
            return None
        self.pop(first)
        return first[4]


class Shape:
    """Waiting tasks that ask for the same; their starts count against ``rates``."""

    __slots__ = ("bypassed", "plain", "queue", "rates", "reserved_bytes", "unit", "wall_s")

    def __init__(self, unit: TaskUnit, rates: tuple[_Rate, ...], reserved_bytes: int | None, plain: bool) -> None:
        self.reserved_bytes = reserved_bytes
        self.plain = plain
        """Declares nothing but one core."""
        self.wall_s = _UNKNOWN_S
        """How long such a task takes: what the longest of late took, forgotten by and by."""
        self.unit = unit
        self.queue = _Queue()
        self.bypassed = 0
        self.rates = rates

    def took(self, wall_s: float) -> None:
        """Such a task took so long."""
        known = self.wall_s
        self.wall_s = wall_s if wall_s > known or known == _UNKNOWN_S else known + (wall_s - known) * 0.25

    def free_at(self) -> float:
        """When all rates allow the next start."""
        return max((rate.free_at() for rate in self.rates), default=0.0)


class Ready:
    """The ready tasks and what they may use.

    ``held`` stops further starts while anything runs: memory is short. A task that must run ``alone`` waits until
    nothing else runs, keeps others from starting meanwhile, and has the machine to itself.
    """

    def __init__(self, budget: Budget, rates: Mapping[str, Rate] | None = None) -> None:
        self.budget = budget
        self._rates = {name: _Rate(rate) for name, rate in (rates or {}).items()}
        self.held = False
        self.most: int | None = None
        """How many may run at once under pressure; None for no such limit. One always may."""
        self.wake_at: float | None = None
        """When a rate lets the next task start, as of the last ``pop``."""
        self._taken = 0
        self._whole_bytes = budget.memory_bytes
        self._alone: deque[TaskRun] = deque()
        self._exclusive: TaskRun | None = None
        self._shapes: dict[object, Shape] = {}
        self._serial = 0

    def push(self, *tasks: TaskRun) -> None:
        """The tasks wait for their start."""
        asked: object = None
        shape: Shape | None = None
        entries: list[_Entry] = []
        for serial, task in enumerate(tasks, self._serial + 1):
            unit = task.unit
            if task.alone or (unit.learned_bytes is not None and self._fills(task, unit.learned_bytes)):
                self._alone.append(task)
                continue
            asks = (
                unit.executor, unit.cpus, task.reserved_bytes, task.memory_bytes, unit.resources, unit.rates,
                unit.path if unit.rate is not None else "",
            )  # fmt: skip
            if asks != asked or shape is None:
                # Members of a block ask for the same more often than not.
                if shape is not None:
                    shape.queue.push(entries)
                asked, shape, entries = asks, self.shape_of(task), []
            task.shape = shape
            entries.append((-unit.priority, -unit.rank, task.seq, serial, task))
        if shape is not None:
            shape.queue.push(entries)
        self._serial += len(tasks)

    def _fills(self, task: TaskRun, learned_bytes: int) -> bool:
        """Whether the task is expected to take the whole budget or more, though nobody declared how much."""
        whole = self._whole_bytes
        return task.memory_bytes is None and whole is not None and learned_bytes >= whole

    def shape_of(self, task: TaskRun) -> Shape:
        """Those that ask for the same."""
        unit = task.unit
        key: object = (unit.executor, unit.cpus, task.reserved_bytes, task.memory_bytes is None)
        rates: tuple[_Rate, ...] = ()
        if unit.resources or unit.rates or unit.rate is not None:
            rates = self._rates_of(unit)
            key = (key, tuple(sorted(unit.resources.items())), *map(id, rates))
        shape = self._shapes.get(key)
        if shape is None:
            plain = unit.cpus == 1 and task.memory_bytes is None and not unit.resources and not rates
            shape = self._shapes[key] = Shape(unit, rates, task.reserved_bytes, plain)
        return shape

    def _rates_of(self, unit: TaskUnit) -> tuple[_Rate, ...]:
        """Its own rate, whichever instance of it starts, and those that it shares."""
        own: tuple[_Rate, ...] = ()
        if unit.rate is not None:
            own = (self._rates.setdefault(f"step:{unit.path}", _Rate(unit.rate)),)
        return own + tuple(self._rates[name] for name in unit.rates)

    def pop(self, now: float) -> TaskRun | None:
        """The next task to start, with its share of the budget taken; None when nothing fits now."""
        self.wake_at = None
        if self._exclusive is not None or (self.held and self._taken):
            return None
        if self.most is not None and self._taken >= max(1, self.most):
            return None
        while self._alone and self._alone[0].state != "ready":
            self._alone.popleft()
        if self._alone:
            return None if self._taken else self._pop_alone()
        best = self._choose(now)
        if best is None:
            return None
        shape, first = best
        shape.queue.pop(first)
        for rate in shape.rates:
            rate.starts.append(now)
        return self._take(first[4])

    def _pop_alone(self) -> TaskRun:
        self._exclusive = self._alone.popleft()
        return self._take(self._exclusive)

    def _take(self, task: TaskRun) -> TaskRun:
        self._taken += 1
        self.budget.change(task, -1)
        return task

    def _choose(self, now: float) -> tuple[Shape, _Entry] | None:
        """The most urgent task of all that fit, and its shape."""
        best: tuple[Shape, _Entry] | None = None
        stuck: dict[str, tuple[Shape, _Entry]] = {}
        for shape in self._shapes.values():
            first = shape.queue.first()
            if first is None:
                continue
            if shape.rates and (free_at := shape.free_at()) > now:
                self.wake_at = min(free_at, self.wake_at or free_at)
                continue
            lack = self.budget.lacks(first[4])
            if not lack:
                if best is None or first < best[1]:
                    best = shape, first
            elif lack in ("cpus", "memory"):
                # Too few cores hold up only those that want cores of the same executor.
                queue = lack if lack == "memory" else shape.unit.executor
                if queue not in stuck or first < stuck[queue][1]:
                    stuck[queue] = shape, first
        if best is None:
            return None
        for queue in ("memory", best[0].unit.executor):
            waiting = stuck.get(queue)
            if waiting is not None and waiting[1] < best[1]:
                if waiting[0].bypassed >= BYPASS_MAX:
                    return None
                waiting[0].bypassed += 1
        best[0].bypassed = 0
        return best

    def behind(self, executor: str, depth: int, lanes: int, queued: int) -> Iterator[TaskRun]:
        """The tasks to be queued behind those that run, where all cores are taken; each takes its memory, but no core.

        Always the most urgent task of the executor, while it declares nothing but one core and such tasks are short.
        ``lanes`` is how many attempts there are to be queued behind, ``queued`` how many tasks are.
        """
        if self.held or self.most is not None or self._exclusive is not None or self.budget.cpus[executor] >= 1:
            return
        while not self._alone:
            chosen, rival = self._most_urgent(executor)
            if chosen is None or not chosen.plain:
                return
            most, pushed = lanes * min(depth, int(QUEUED_S / (chosen.wall_s + 1e-6))), self._serial
            # Those that ask for the same, until another is more urgent or one more came to wait.
            while self._serial == pushed:
                if queued >= most:
                    return
                free, wanted = self.budget.memory_bytes, chosen.reserved_bytes
                if wanted is not None and free is not None and free < wanted:
                    return
                task = chosen.queue.take(rival)
                if task is None:
                    break
                if wanted is not None and free is not None:
                    self.budget.memory_bytes = free - wanted
                queued += 1
                yield task

    def _most_urgent(self, executor: str) -> tuple[Shape | None, _Entry | None]:
        """What the most urgent task of an executor asks for, and the most urgent one of those that ask for anything else."""
        firsts: list[tuple[_Entry, Shape]] = []
        for shape in self._shapes.values():
            if shape.unit.executor == executor and (first := shape.queue.first()) is not None:
                firsts.append((first, shape))
        firsts.sort(key=_entry)
        return firsts[0][1] if firsts else None, firsts[1][0] if len(firsts) > 1 else None

    def leave(self, task: TaskRun) -> None:
        """The task is queued no more: it holds nothing."""
        budget, held = self.budget, task.reserved_bytes
        if held is not None and budget.memory_bytes is not None:
            budget.memory_bytes += held

    def hand_over(self, task: TaskRun) -> None:
        """The queued task takes the core that the one before it has just given back; its memory it holds already."""
        self._taken += 1
        self.budget.cpus[task.unit.executor] -= task.unit.cpus

    def untake(self, task: TaskRun, started: bool = True) -> None:
        """Give back what the task holds; ``started`` is False where it never ran, so that its rate is not charged."""
        self._taken -= 1
        self.budget.change(task, +1)
        if task is self._exclusive:
            self._exclusive = None
        if not started and (task.unit.rate is not None or task.unit.rates):
            for rate in self.shape_of(task).rates:
                if rate.starts:
                    rate.starts.pop()
