"""Order inside a block: which members must settle before which. Pure.

A sequence waits for the member before; a parallel block waits for nothing; in a graph a member waits for its
``depends_on`` and for the writers of the values it reads. Cycles are named, the shortest of each knot. Iterative
throughout: chains may be very long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import pairwise

from procflow.call import Lookup
from procflow.compiling.names import Scope, did_you_mean
from procflow.compiling.surface import Face, Surfaces, is_off, is_output, references, why_off
from procflow.errors import Loc, Problem
from procflow.model import AnyStep

__all__ = ["Edges", "order", "shortest_cycles"]

Edges = Mapping[int, Set[int]]
"""For each member, the members before it."""
_NONE: Set[int] = frozenset()

MOST_SHOWN = 20
"""Steps of a cycle that a message names."""
MOST_STEPS = 2_000_000
"""Edges looked at in search of the shortest cycle of one knot; after that the shortest so far is named."""


def order(
    steps: Sequence[AnyStep],
    names: list[str],
    faces: Mapping[int, Face],
    kind: str,
    scope: Scope,
    surfaces: Surfaces,
    loc: Loc,
    problems: list[Problem],
) -> tuple[Edges, Edges]:
    """For every kept member: members that must settle first, and those among them that must succeed (``depends_on``).

    ``faces`` has an entry for each member that is not disabled; ``scope`` is what can be seen outside the block.
    """
    strict: dict[int, Set[int]] = dict.fromkeys(faces, _NONE)
    dependent = [i for i in faces if steps[i].depends_on]
    place = {name: i for i, name in enumerate(names)} if dependent else {}
    for i in dependent:
        named = strict[i] = set[int]()
        for position, name in enumerate(steps[i].depends_on):
            problem = _refused(steps, names, place, kind, i, name)
            if problem is not None:
                message, hint = problem
                problems.append(Problem(message, (*loc, i, "depends_on", position), hint))
            else:
                named.add(place[name])
    if kind == "parallel":
        return strict, strict
    after = {i: set(before) for i, before in strict.items()}
    if kind == "sequence":
        for previous, i in pairwise(faces):
            after[i].add(previous)
    else:
        _by_values({i: surfaces.reads(steps[i]) for i in faces}, names, faces, scope, after)
        for ring in shortest_cycles(after):
            shown = [names[i] for i in (*ring, ring[0])]
            if len(shown) > MOST_SHOWN:
                shown[MOST_SHOWN // 2 : -MOST_SHOWN // 2] = [f"({len(shown) - MOST_SHOWN:,} more)"]
            text = " -> ".join(shown)
            at = _edge_at(steps[ring[0]], names[ring[1]], faces[ring[1]], surfaces)
            problems.append(
                Problem(
                    f"steps wait for each other in a circle: {text}",
                    (*loc, ring[0], *at),
                    "each waits for the next: take out one of these dependencies",
                )
            )
    return after, strict


def _refused(
    steps: Sequence[AnyStep], names: list[str], place: Mapping[str, int], kind: str, i: int, name: str
) -> tuple[str, str] | None:
    """What is wrong with one entry of ``depends_on``, with what to do."""
    if name not in place:
        return f"there is no step {name!r} in this block", (
            did_you_mean(name, names) or "depends_on names steps of the same block"
        )
    if place[name] == i:
        return f"step {name!r} depends on itself", ""
    if kind == "parallel":
        return "members of a parallel block run at once", "use type: graph for depends_on"
    if kind == "sequence" and place[name] > i:
        return f"{name!r} comes after this step in its sequence", "use type: graph, or change their order"
    if is_off(steps[place[name]]):
        off = why_off(steps[place[name]])
        return f"this step depends on {name!r}, and {off}", "take it out of depends_on, or enable that step"
    return None


def _by_values(
    reads: Mapping[int, Iterable[Lookup]],
    names: list[str],
    faces: Mapping[int, Face],
    scope: Scope,
    after: Mapping[int, set[int]],
) -> None:
    """Adds an edge from each writer to the readers of its values."""
    writers = {written: i for i, face in faces.items() for written in face.writes}
    members = {names[i]: i for i in faces}
    openers = [i for i, face in faces.items() if face.is_open]
    for i in faces:
        for lookup in reads[i]:
            writer = members.get(lookup.name) if is_output(lookup) else None
            if writer is None:
                writer = writers.get(lookup.name)
            if writer is not None:
                if writer != i:
                    after[i].add(writer)
            elif openers and not scope.has(lookup.name):
                # Any member that publishes unknown names may be the one, but not one that waits for this.
                after[i].update(j for j in openers if j != i and i not in after[j])


def _edge_at(step: AnyStep, name: str, face: Face, surfaces: Surfaces) -> Loc:
    """The key that makes a step wait for the member ``name``."""
    if name in step.depends_on:
        return ("depends_on", step.depends_on.index(name))
    for lookup, at in references(step):
        if lookup.name in face.writes or (is_output(lookup) and lookup.name == name):
            return at
    return ()


# -- cycles ----------------------------------------------------------------------------------------------------


def shortest_cycles(after: Edges) -> list[list[int]]:
    """A shortest cycle of each knot (strongly connected component), each beginning with its smallest member."""
    rings = []
    for knot in _knots(after):
        ring = _shortest(knot, after)
        turn = ring.index(min(ring))
        rings.append(ring[turn:] + ring[:turn])
    return sorted(rings)


def _knots(after: Edges) -> list[set[int]]:
    """Strongly connected components of two or more, by Tarjan's algorithm with a stack of its own."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    path: list[int] = []
    on_path: set[int] = set()
    knots = []
    for root in after:
        if root in index:
            continue
        work = [(root, iter(after[root]))]
        index[root] = low[root] = len(index)
        path.append(root)
        on_path.add(root)
        while work:
            at, rest = work[-1]
            for before in rest:
                if before not in index:
                    index[before] = low[before] = len(index)
                    path.append(before)
                    on_path.add(before)
                    work.append((before, iter(after[before])))
                    break
                if before in on_path:
                    low[at] = min(low[at], index[before])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[at])
                if low[at] == index[at]:
                    knot = set()
                    while at not in knot:
                        knot.add(path.pop())
                    on_path -= knot
                    if len(knot) > 1:
                        knots.append(knot)
    return knots


def _shortest(knot: set[int], after: Edges) -> list[int]:
    """A shortest cycle inside a knot, by a breadth-first search from each member while the budget lasts."""
    best: list[int] = []
    budget = MOST_STEPS
    for start in sorted(knot):
        came: dict[int, int] = {start: start}
        depth = {start: 1}
        queue = deque([start])
        found = None
        while queue and found is None:
            at = queue.popleft()
            if best and depth[at] >= len(best):
                break
            budget -= len(after[at])
            for before in after[at]:
                if before == start:
                    found = at
                    break
                if before in knot and before not in came:
                    came[before], depth[before] = at, depth[at] + 1
                    queue.append(before)
        if found is not None and (not best or depth[found] < len(best)):
            best = [found]
            while best[-1] != start:
                best.append(came[best[-1]])
            best.reverse()
        if best and (budget < 0 or len(best) == 2):
            break
    return best
