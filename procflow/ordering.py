"""Order inside a block: which members must settle before which. Pure.

A sequence waits for the member before; a parallel block waits for nothing; in a graph a member waits for its ``depends_on``
and for the writers of the values it reads. Cycles are named. Iterative throughout: chains may be very long.
"""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Mapping, Sequence

from procflow.errors import Loc, Problem
from procflow.model import AnyStep
from procflow.names import Surface

__all__ = ["order"]

Edges = dict[int, set[int]]


def order(
    steps: Sequence[AnyStep],
    names: list[str],
    faces: Mapping[int, Surface],
    kind: str,
    loc: Loc,
    problems: list[Problem],
) -> tuple[Edges, Edges]:
    """For every kept member: members that must settle first, and those among them that must succeed (``depends_on``).

    ``faces`` has an entry for each member that is not disabled.
    """
    place = {name: i for i, name in enumerate(names)}
    strict: Edges = {i: set() for i in faces}
    for i in faces:
        for position, name in enumerate(steps[i].depends_on):
            at = (*loc, i, "depends_on", position)
            if name not in place:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else "depends_on names steps of the same block"
                problems.append(Problem(f"there is no step {name!r} in this block", at, hint))
            elif kind == "parallel":
                problems.append(
                    Problem("members of a parallel block run at once", at, "use type: graph for depends_on")
                )
            elif kind == "sequence" and place[name] >= i:
                problems.append(Problem(f"{name!r} does not come before this step in its sequence", at))
            elif place[name] == i:
                problems.append(Problem(f"step {name!r} depends on itself", at))
            elif place[name] in faces:
                strict[i].add(place[name])
    after: Edges = {i: set(before) for i, before in strict.items()}
    if kind == "sequence":
        kept = list(faces)
        for previous, i in zip(kept, kept[1:], strict=False):
            after[i].add(previous)
    elif kind == "graph":
        _by_values(names, faces, after)
        _no_cycle(names, after, loc, problems)
    return after, strict


def _by_values(names: list[str], faces: Mapping[int, Surface], after: Edges) -> None:
    """Adds an edge from each writer to the readers of its values."""
    writers: dict[str, int] = {}
    unknown: list[int] = []
    for i, face in faces.items():
        if face.writes is None:
            unknown.append(i)
        for name in face.writes or ():
            writers[name] = i
        writers.setdefault(names[i], i)
    for i, face in faces.items():
        for read in face.reads:
            writer = writers.get(read.lookup.name)
            if writer is not None and writer != i:
                after[i].add(writer)
            elif writer is None:
                # Any member that publishes unknown names may be the one.
                after[i].update(j for j in unknown if j != i)


def _no_cycle(names: list[str], after: Edges, loc: Loc, problems: list[Problem]) -> None:
    try:
        graphlib.TopologicalSorter(after).prepare()
    except graphlib.CycleError as error:
        cycle = list(reversed(error.args[1]))
        first = min(cycle)
        turn = cycle.index(first)
        ring = cycle[turn:-1] + cycle[:turn] + [first] if cycle[0] == cycle[-1] else cycle
        text = " -> ".join(names[i] for i in ring)
        problems.append(Problem(f"steps wait for each other in a circle: {text}", (*loc, first)))
