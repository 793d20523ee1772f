"""Ranks: the longest remaining path from each unit to the end of the run, in expected seconds. Pure.

A unit's rank is its own weight, plus the largest rank behind it in its block, plus what follows the block. The
scheduler starts ready tasks with the largest rank first (the b-level rule of list scheduling). Every unit is weighed
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from graphlib import TopologicalSorter

from procflow.graph import MapUnit, ScopeUnit, TaskUnit, Unit, walk

__all__ = ["ranked"]

HIDDEN_S = 1.0
"""Expected seconds of a task that nobody declared (gate, expand, merger) and of a step that is not known."""

Paths = dict[int, dict[int, float]]
"""By identity of a block: for each member, the longest path from its start to the end of the block."""


def ranked(root: ScopeUnit, durations: Mapping[str, float]) -> ScopeUnit:
    """The same tree with ranks; ``durations`` are expected seconds by label, one second where there is none."""
    weights: dict[int, float] = {}
    paths: Paths = {}
    # Inner units come after outer ones in walk, so backwards every member is weighed before its block.
    for unit in reversed(list(walk(root))):
        inner = HIDDEN_S
        if isinstance(unit, MapUnit):
            inner = weights[id(unit.body)]
        elif isinstance(unit, ScopeUnit):
            own = paths[id(unit)] = _longest(unit, weights)
            inner = max(own.values(), default=0.0)
        weights[id(unit)] = durations.get(unit.label, inner)
    return _scope(root, weights, paths, 0.0)


def _longest(scope: ScopeUnit, weights: Mapping[int, float]) -> dict[int, float]:
    behind: dict[int, list[int]] = {m.index: [] for m in scope.members}
    for member in scope.members:
        for before in member.after:
            behind[before].append(member.index)
    by_index = {m.index: m for m in scope.members}
    found: dict[int, float] = {}
    for index in TopologicalSorter(behind).static_order():
        found[index] = weights[id(by_index[index])] + max((found[i] for i in behind[index]), default=0.0)
    return found


def _scope(scope: ScopeUnit, weights: Mapping[int, float], paths: Paths, tail: float) -> ScopeUnit:
    """The block with ranks; ``tail`` is what follows it. Recursive over the depth of blocks only."""
    total = weights[id(scope)] + tail
    gate, merger = _task(scope.gate, total), _task(scope.merger, tail + HIDDEN_S)
    if isinstance(scope, MapUnit):
        body = _unit(scope.body, weights, paths, tail)
        expand = replace(scope.expand, rank=total + HIDDEN_S)
        return replace(scope, body=body, expand=expand, rank=total + HIDDEN_S, gate=gate, merger=merger)
    own = paths[id(scope)]
    members = tuple(
        _unit(member, weights, paths, own[member.index] - weights[id(member)] + tail) for member in scope.members
    )
    return replace(scope, members=members, rank=total, gate=gate, merger=merger)


def _unit(unit: Unit, weights: Mapping[int, float], paths: Paths, tail: float) -> Unit:
    if isinstance(unit, ScopeUnit):
        return _scope(unit, weights, paths, tail)
    return replace(unit, rank=weights[id(unit)] + tail)


def _task(task: TaskUnit | None, rank: float) -> TaskUnit | None:
    return None if task is None else replace(task, rank=rank)
