"""Ranks: the longest remaining path from each unit to the end of the run, in expected seconds. Pure.

A unit's rank is its own weight, plus the largest rank behind it in its block, plus what follows the block. The
scheduler starts ready tasks with the largest rank first (the b-level rule of list scheduling). Every unit is weighed
once. The longest path of all is the critical path: no number of workers makes a run shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace

from procflow.graph import MapUnit, ScopeUnit, TaskUnit, Unit, blocks, in_order
from procflow.passive import changer, passive

__all__ = ["Expected", "critical_path", "ranked"]

HIDDEN_S = 1.0
"""Expected seconds of a task that nobody declared (gate, expand, merger) and of a step that is not known."""

DIGITS = 3
"""Ranks are whole milliseconds: a smaller difference between two runs is chance, and steps that are alike keep their order."""

Told = Callable[[TaskUnit, str], "tuple[int | None, float | None] | None"]
"""The ``learned_bytes`` and the ``timeout_s`` that a task in this role is to have, None where it has them."""
Paths = dict[int, tuple[list[float], list[float]]]
"""By identity of a block: the weight of each member, and the longest path from its start to the end of the block."""


@passive(frozen=True, slots=True)
class Expected:
    """Expected seconds, as they were learned.

    ``steps`` by label, for a map the seconds of its longest item; ``unknown_s`` of a step that is not among them.
    ``hidden`` by label and role (gate, expand, merger), None where they are not known at all. ``rounds`` is how many times
    all workers together go over a map's items, by label; less than one round counts as one.
    """

    steps: Mapping[str, float] = field(default_factory=dict)
    hidden: Mapping[tuple[str, str], float] | None = None
    rounds: Mapping[str, float] = field(default_factory=dict)
    unknown_s: float = HIDDEN_S

    def step_s(self, task: Unit) -> float:
        """Seconds of a declared task."""
        return self.steps.get(task.label, self.unknown_s)

    def own_s(self, label: str, role: str) -> float:
        """Seconds of a hidden task that count in the weight of its block."""
        return self.hidden.get((label, role), 0.0) if self.hidden is not None else 0.0

    def hidden_s(self, label: str, role: str) -> float:
        """The same for the rank of the task itself."""
        return HIDDEN_S if self.hidden is None else self.own_s(label, role)


def ranked(root: ScopeUnit, durations: Mapping[str, float] | Expected, told: Told | None = None) -> ScopeUnit:
    """The same tree with ranks; ``durations`` are expected seconds by label, one second where there is none.

    ``told`` gives what else a task is to have.
    """
    expected = durations if isinstance(durations, Expected) else Expected(durations)
    return _Ranker(expected, *_weighed(root, expected), told).scope(root, 0.0)


def critical_path(root: ScopeUnit, expected: Expected) -> tuple[float, tuple[str, ...]]:
    """The longest chain of dependent work: its seconds, and the labels of its leaf steps and maps in their order."""
    weights, paths = _weighed(root, expected)
    found: list[str] = []
    waiting: list[Unit] = [root]
    while waiting:
        unit = waiting.pop()
        if not isinstance(unit, ScopeUnit) or (isinstance(unit, MapUnit) and isinstance(unit.body, TaskUnit)):
            found.append(unit.label)
        elif isinstance(unit, MapUnit):
            waiting.append(unit.body)
        else:
            waiting += reversed(_chain(unit, paths[id(unit)][1]))
    return weights[id(root)], tuple(found)


def _chain(scope: ScopeUnit, own: SequenceOf[float]) -> list[Unit]:
    """The members on the longest path of a block."""
    behind: dict[int, list[Unit]] = {}
    for member in scope.members:
        for before in member.after:
            behind.setdefault(before, []).append(member)
    chain: list[Unit] = []
    left = list(scope.members)
    while left:
        # Of what follows a member, only those that nothing on the chain comes between are next on it.
        chain.append(max(left, key=lambda m: own[m.index]))
        left = behind.get(chain[-1].index, [])
    return chain


def _weighed(root: ScopeUnit, expected: Expected) -> tuple[dict[int, float], Paths]:
    """The weight of every block, and for each the weights and the longest paths of its members."""
    weights: dict[int, float] = {}
    paths: Paths = {}
    steps, unknown_s = expected.steps, expected.unknown_s
    # Backwards every member is weighed before its block.
    for unit in reversed(blocks(root)):
        if isinstance(unit, MapUnit):
            body = expected.step_s(unit.body) if isinstance(unit.body, TaskUnit) else weights[id(unit.body)]
            found = body * max(1.0, expected.rounds.get(unit.label, 1.0))
            weights[id(unit)] = found + sum(expected.own_s(unit.label, r) for r in ("gate", "expand", "merger"))
        else:
            own = [
                steps.get(member.label, unknown_s) if isinstance(member, TaskUnit) else weights[id(member)]
                for member in unit.members
            ]
            longest = _longest(unit, own)
            paths[id(unit)] = own, longest
            around = expected.own_s(unit.label, "gate") + expected.own_s(unit.label, "merger")
            weights[id(unit)] = steps.get(unit.label, max(longest, default=0.0) + around)
    return weights, paths


def _longest(scope: ScopeUnit, weights: SequenceOf[float]) -> list[float]:
    found = list(weights)
    if not any(member.after for member in scope.members):
        return found
    # What is longest behind a member is known once all that wait for it are done.
    behind = [0.0] * len(found)
    for index in reversed(in_order(scope)):
        member = scope.members[index]
        longest = found[index] = weights[index] + behind[index]
        for before in member.after:
            if behind[before] < longest:
                behind[before] = longest
    return found


@dataclass(slots=True)
class _Ranker:
    """Makes the tree with ranks. Recursive over the depth of blocks only."""

    expected: Expected
    weights: dict[int, float]
    paths: Paths
    told: Told | None

    def scope(self, scope: ScopeUnit, tail: float) -> ScopeUnit:
        """The block with ranks; ``tail`` is what follows it."""
        expected, total = self.expected, self.weights[id(scope)] + tail
        gate, merger = scope.gate, scope.merger
        gate = self.task(gate, total, "gate") if gate is not None else None
        if merger is not None:
            merger = self.task(merger, tail + expected.hidden_s(scope.label, "merger"), "merger")
        if isinstance(scope, MapUnit):
            body = self.unit(scope.body, tail, "batch")
            first = total if expected.hidden is not None else total + HIDDEN_S
            expand = self.task(scope.expand, first, "expand")
            reduce = self.task(scope.reduce, first, "reduce") if scope.reduce is not None else None
            return replace(scope, body=body, expand=expand, rank=first, gate=gate, merger=merger, reduce=reduce)
        untold = self.told is None
        members = [
            self.unit(member, behind)
            if not isinstance(member, TaskUnit)
            else member
            if (rank := weight + behind) == member.rank and untold
            else self.task(member, rank, "member")
            for member, weight, longest in zip(scope.members, *self.paths[id(scope)], strict=True)
            for behind in (longest - weight + tail,)
        ]
        return replace(scope, members=tuple(members), rank=total, gate=gate, merger=merger)

    def unit(self, unit: Unit, tail: float, role: str = "member") -> Unit:
        if isinstance(unit, TaskUnit):
            return self.task(unit, self.expected.step_s(unit) + tail, role)
        assert isinstance(unit, ScopeUnit)
        return self.scope(unit, tail)

    def task(self, task: TaskUnit, rank: float, role: str) -> TaskUnit:
        """The task with this rank: itself where nothing differs, which is so for plain steps without history."""
        made, rank = task, round(rank, DIGITS)
        if self.told is not None and (told := self.told(task, role)):
            made = changer(TaskUnit, "rank", "learned_bytes", "timeout_s")(task, rank, *told)
        elif task.rank != rank:
            made = changer(TaskUnit, "rank")(task, rank)
        return made
