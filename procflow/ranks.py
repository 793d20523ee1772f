"""Ranks: the longest remaining path from each unit to the end of the run, in expected seconds. Pure.

A unit's rank is its own weight, plus the largest rank behind it in its block, plus what follows the block. The scheduler
starts ready tasks with the largest rank first (the b-level rule of list scheduling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from graphlib import TopologicalSorter

from procflow.graph import MapUnit, ScopeUnit, TaskUnit, Unit

__all__ = ["longest", "ranked", "weight"]


def weight(unit: Unit, durations: Mapping[str, float]) -> float:
    """Expected seconds of the unit when nothing holds it up."""
    known = durations.get(unit.label)
    if known is not None:
        return known
    if isinstance(unit, MapUnit):
        return weight(unit.body, durations)
    if isinstance(unit, ScopeUnit):
        return max(longest(unit, durations).values(), default=0.0)
    return 1.0


def longest(scope: ScopeUnit, durations: Mapping[str, float]) -> dict[int, float]:
    """For each member, the longest path from its start to the end of the block."""
    behind: dict[int, list[int]] = {m.index: [] for m in scope.members}
    for member in scope.members:
        for before in member.after:
            behind[before].append(member.index)
    by_index = {m.index: m for m in scope.members}
    paths: dict[int, float] = {}
    for index in TopologicalSorter(behind).static_order():
        paths[index] = weight(by_index[index], durations) + max((paths[i] for i in behind[index]), default=0.0)
    return paths


def ranked(scope: ScopeUnit, durations: Mapping[str, float], tail: float = 0.0) -> ScopeUnit:
    """The same scope with ranks; ``tail`` is what follows it."""
    paths = longest(scope, durations)
    members = tuple(
        _ranked(member, durations, paths[member.index] - weight(member, durations) + tail) for member in scope.members
    )
    total = max(paths.values(), default=0.0) + tail
    gate, merger = _task(scope.gate, total), _task(scope.merger, tail + 1.0)
    if isinstance(scope, MapUnit):
        body = _ranked(scope.body, durations, tail)
        expand = replace(scope.expand, rank=body.rank + 1.0)
        return replace(scope, members=members, body=body, expand=expand, rank=body.rank + 1.0, gate=gate, merger=merger)
    return replace(scope, members=members, rank=total, gate=gate, merger=merger)


def _ranked(unit: Unit, durations: Mapping[str, float], tail: float) -> Unit:
    if isinstance(unit, ScopeUnit):
        return ranked(unit, durations, tail)
    return replace(unit, rank=weight(unit, durations) + tail)


def _task(task: TaskUnit | None, rank: float) -> TaskUnit | None:
    return None if task is None else replace(task, rank=rank)
