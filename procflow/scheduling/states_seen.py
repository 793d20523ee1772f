"""States seen: which changes of the pipeline's state a task sees, and what a block has changed in the end. Pure.

A task sees what its block found as it opened and what the members before it wrote, in an order that the file alone
decides: never what a member beside it has written by chance. Members of a parallel block and items of a map see none of
each other's changes. A block hands on its members' changes in declared order (of a graph: in the first order that puts
each member behind those it waits for). Two members at once that replace the same key are a conflict.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from functools import lru_cache

from procflow.attempt import Failure
from procflow.call import Reducer
from procflow.graph import ScopeUnit
from procflow.ref import ListOf, Ordered, Ref
from procflow.scheduling.runs import MapRun, ScopeRun, TaskRun, UnitRun
from procflow.state import MARK

__all__ = [
    "Changes",
    "all_of",
    "by_key",
    "conflict_of",
    "conflict_of_items",
    "made_in",
    "parted",
    "seen_by",
    "snapshot",
]

Changes = tuple[tuple[str, Ref], ...]
"""Keys of the state with the ref of what changed, in order; a key may come often."""


def parted(outputs: Mapping[str, Ref]) -> tuple[dict[str, Ref], Changes]:
    """What a task published, and the changes of the state that came with it."""
    published = {name: ref for name, ref in outputs.items() if not name.startswith(MARK)}
    return published, tuple((name[1:], ref) for name, ref in outputs.items() if name.startswith(MARK))


def seen_by(run: UnitRun, role: str = "member") -> Changes:
    """The changes that a task sees, or that a block finds as it opens."""
    scope = run.scope
    if scope is None or (isinstance(run, ScopeRun) and run.unit.isolated):
        return ()
    if role == "merger":
        return (*scope.base, *made_in(scope))
    unit = scope.unit
    if isinstance(scope, MapRun) or unit.kind == "parallel" or role != "member":
        return scope.base
    members = scope.members
    if unit.kind == "sequence":
        before: Iterable[int] = range(run.unit.index)
    else:
        before = _in_order(unit, _ancestors(unit, run.unit.index))
    return (*scope.base, *(change for i in before for change in members[i].changes))


def made_in(scope: ScopeRun) -> Changes:
    """The changes that the members of a block made, or the items of a map."""
    if isinstance(scope, MapRun):
        found = scope.changed or {}
        return tuple((key, Ordered(tuple(sorted(found[key], key=lambda part: part[0][0])))) for key in sorted(found))
    members = scope.members
    order = (
        _in_order(scope.unit, range(len(members))) if scope.unit.kind in ("graph", "pipeline") else range(len(members))
    )
    return tuple(change for i in order for change in members[i].changes)


def by_key(changes: Changes) -> dict[str, list[Ref]]:
    """The refs of each key, in order."""
    found: dict[str, list[Ref]] = {}
    for key, ref in changes:
        found.setdefault(key, []).append(ref)
    return found


def all_of(changes: Changes) -> tuple[tuple[str, Ref], ...]:
    """One ref for each key."""
    return tuple((key, refs[0] if len(refs) == 1 else ListOf(tuple(refs))) for key, refs in by_key(changes).items())


def snapshot(task: TaskRun) -> dict[str, Ref]:
    """What a task is given to read the state from, by name."""
    return {MARK + key: ref for key, ref in all_of(seen_by(task, task.role)) if key in task.unit.call.state}


# -- conflicts -----------------------------------------------------------------------------------------------------


def conflict_of(scope: ScopeRun, run: UnitRun) -> Failure | None:
    """Note that a member has settled; what is wrong where another one that ran beside it replaced the same key."""
    state = scope.unit.state
    for key in dict.fromkeys(key for key, _ in run.changes if key in state and state[key].name == "replace"):
        if scope.replaced is None:
            scope.replaced = {}
        writers = scope.replaced.setdefault(key, [])
        for other in writers:
            if _at_once(scope.unit, other, run.unit.index):
                first, second = sorted((other, run.unit.index))
                names = scope.members[first].unit.name, scope.members[second].unit.name
                return _conflict(key, f"{names[0]!r} and {names[1]!r}", scope.unit.name)
        writers.append(run.unit.index)
    return None


def conflict_of_items(run: MapRun, state: Mapping[str, Reducer]) -> Failure | None:
    """What is wrong where two items of a map replaced the same key."""
    for key, parts in (run.changed or {}).items():
        if key in state and state[key].name == "replace":
            writers = sorted(index for indices, _ in parts for index in indices[:2])
            if len(writers) > 1:
                return _conflict(key, f"items {writers[0]} and {writers[1]}", run.unit.name)
    return None


def _conflict(key: str, who: str, block: str) -> Failure:
    return Failure(
        "error", "StateConflict",
        f"{who} of {block!r} both replaced the state {key!r}, and neither comes after the other; let one wait for the other "
        "(depends_on in a graph), or declare another reducer, such as append or merge",
    )  # fmt: skip


def _at_once(unit: ScopeUnit, one: int, other: int) -> bool:
    if unit.kind == "sequence":
        return False
    if unit.kind == "parallel":
        return True
    return one not in _ancestors(unit, other) and other not in _ancestors(unit, one)


# -- order in a graph ----------------------------------------------------------------------------------------------


def _ancestors(unit: ScopeUnit, index: int) -> set[int]:
    """All members that settle before a member starts."""
    found: set[int] = set()
    stack = list(unit.members[index].after)
    while stack:
        before = stack.pop()
        if before not in found:
            found.add(before)
            stack += unit.members[before].after
    return found


def _in_order(unit: ScopeUnit, chosen: Iterable[int]) -> list[int]:
    """Members in the first order that puts each behind those it waits for."""
    place = _places(tuple(member.after for member in unit.members))
    return sorted(chosen, key=place.__getitem__)


@lru_cache(maxsize=64)
def _places(after: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    waiting = [len(before) for before in after]
    behind: list[list[int]] = [[] for _ in after]
    for i, before in enumerate(after):
        for j in before:
            behind[j].append(i)
    free = [i for i, count in enumerate(waiting) if not count]
    places = [0] * len(after)
    for place in range(len(after)):
        i = heapq.heappop(free)
        places[i] = place
        for j in behind[i]:
            waiting[j] -= 1
            if not waiting[j]:
                heapq.heappush(free, j)
    return tuple(places)
