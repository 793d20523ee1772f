"""Shape: a pipeline as it is drawn: steps and blocks with their names and their order, and nothing that could run.

Made from a compiled pipeline at the start of a run and kept in the run's folder, so that a report draws what ran and not
what the file says by now. As plain data it is a flat list, outer steps first, bounded in size: what is cut off is known by its
number. This file draws nothing and touches no disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from procflow.graph import TaskGraph, TaskUnit, Unit
from procflow.plaintext import shortened
from procflow.showing.plan import inner_steps, kind_of, what_runs

__all__ = ["MOST", "ORDER", "Outcome", "Part", "part_of", "plain_of", "shape_from", "status_of"]

MOST = 5000
"""So many steps and blocks are kept of a pipeline."""
TEXT = 200


@dataclass(slots=True)
class Part:
    """A step or a block. ``after`` are indices among its block's members; ``size`` counts members, also those left out."""

    path: str
    label: str
    name: str
    kind: str
    runs: str
    after: tuple[int, ...] = ()
    size: int = 0
    members: list[Part] = field(default_factory=list)

    def walk(self) -> Iterator[Part]:
        """This part and all below it, outer first, in declared order; without recursion."""
        stack = [self]
        while stack:
            part = stack.pop()
            yield part
            stack += reversed(part.members)


def part_of(graph: TaskGraph, most: int = MOST) -> Part:
    """The shape of a compiled pipeline: its top block, outer parts first, with at most so many parts."""
    root = Part("", "", graph.name, graph.root.kind, "", (), len(graph.root.members))
    waiting: deque[tuple[Part, Sequence[Unit]]] = deque([(root, graph.root.members)])
    count = 0
    # Many steps may run one function, which needs one text.
    texts: dict[tuple[str, int], str] = {}
    while waiting:
        block, units = waiting.popleft()
        for unit in units[: max(0, most - count)]:
            count += 1
            if isinstance(unit, TaskUnit) and unit.call.function is not None:
                runs = texts.get(what := (unit.call.kind, id(unit.call.function)))
                if runs is None:
                    runs = texts[what] = what_runs(unit)
                block.members.append(Part(unit.path, unit.label, unit.name, unit.call.kind, runs, unit.after))
                continue
            inner = inner_steps(unit)
            part = Part(unit.path, unit.label, unit.name, kind_of(unit), what_runs(unit), unit.after, len(inner))
            block.members.append(part)
            if inner:
                waiting.append((part, inner))
    return root


def plain_of(root: Part) -> list[list[Any]]:
    """The shape as data that JSON can hold; each entry begins with the place of its block in the list."""
    rows: list[list[Any]] = [[-1, root.path, root.label, shortened(root.name, TEXT), root.kind, "", [], root.size]]
    waiting: deque[tuple[int, Part]] = deque([(0, root)])
    short = lru_cache(maxsize=8)(partial(shortened, most=TEXT))
    while waiting:
        place, block = waiting.popleft()
        for part in block.members:
            if part.members:
                waiting.append((len(rows), part))
            texts = (part.path, part.label, shortened(part.name, TEXT), part.kind, short(part.runs))
            rows.append([place, *texts, list(part.after), part.size])
    return rows


def shape_from(rows: Sequence[Sequence[Any]]) -> Part:
    """The shape that ``plain_of`` gave; ValueError where that is not what it is."""
    parts: list[Part] = []
    for row in rows:
        try:
            place, path, label, name, kind, runs, after, size = row
            part = Part(str(path), str(label), str(name), str(kind), str(runs), tuple(map(int, after)), int(size))
            if parts:
                if not 0 <= place < len(parts):
                    raise ValueError("a step is in no block")
                parts[place].members.append(part)
        except TypeError as error:
            raise ValueError(str(error)) from None
        parts.append(part)
    if not parts:
        raise ValueError("there are no steps")
    return parts[0]


@dataclass(slots=True)
class Outcome:
    """How a part of a pipeline went in a run, all its items and attempts together.

    ``status`` is that of an attempt, a block or a kept step, empty where it never began; ``cause`` is why it failed.
    ``seconds`` is the time from its beginning to its end, ``count`` the items that ended well, ``failed`` those that did not.
    """

    status: str = ""
    cause: str = ""
    attempts: int = 0
    seconds: float | None = None
    count: int = 0
    failed: int = 0


def status_of(outcomes: Mapping[str, Outcome], part: Part) -> str:
    """How a part ended: by its own record, else by what is in it and is to be told first; empty where nothing began."""
    own = outcomes.get(part.path)
    if own is not None and own.status:
        return own.status
    found = {outcomes[inner.path].status for inner in part.walk() if inner.path in outcomes}
    return next((status for status in ORDER if status in found), "")


ORDER = ("failed", "lost", "running", "cancelled", "succeeded", "kept", "skipped")
"""Statuses, the one that is told first first."""
