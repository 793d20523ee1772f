"""Teaching: what is known of a pipeline's tasks, put into its graph: ranks, reserved memory, relative timeouts. Pure.

The scheduler reads all of that from the graph, so it is the same in a run, in a plan and in a simulation. What is declared
always wins over what was learned; a learned peak is reserved and never a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from procflow.call import Lookup, Text
from procflow.compiling.ranks import Expected, ranked
from procflow.graph import MapUnit, ScopeUnit, TaskGraph, TaskUnit, Unit, blocks, walk
from procflow.learning.known import Knowledge, Known
from procflow.learning.lessons import median
from procflow.plaintext import clean
from procflow.units import size_text

__all__ = ["Taught", "changed_tasks", "expected", "items_of", "places", "reserve", "taught", "timeout_of"]

HEADROOM = 1.05
"""So much more than past peaks is reserved."""
LEAST_TIMEOUT_S = 1.0
"""A timeout that was learned is never shorter: a busy machine can make any short step take several times as long."""

SHOWN = 10
"""Steps that a warning names."""

Place = tuple[str, str]


class Taught(NamedTuple):
    """The graph with what was learned, and what people should be told of it at the start of a run, a line each."""

    graph: TaskGraph
    warnings: tuple[str, ...]


def places(root: Unit) -> dict[int, Place]:
    """Label and role of every task, by identity of its unit."""
    found: dict[int, Place] = {}
    for unit in walk(root):
        if isinstance(unit, TaskUnit):
            found.setdefault(id(unit), (unit.label, "member"))
        elif isinstance(unit, ScopeUnit):
            if unit.gate is not None:
                found[id(unit.gate)] = (unit.label, "gate")
            if unit.merger is not None:
                found[id(unit.merger)] = (unit.merger.label, "merger")
            if isinstance(unit, MapUnit):
                found[id(unit.expand)] = (unit.label, "expand")
                if isinstance(unit.body, TaskUnit):
                    found[id(unit.body)] = (unit.label, "batch")
    return found


def items_of(unit: MapUnit, knowledge: Knowledge) -> int | None:
    """How many items a map will have: as they are written, else as it was last; None where nobody knows."""
    call = unit.expand.call
    bounds = call.options.get("range")
    if bounds is not None:
        return len(range(*bounds))
    source = call.args[0] if call.args else None
    if isinstance(source, (list, tuple)):
        return len(source)
    if source is not None and not isinstance(source, (Lookup, Text)) and hasattr(source, "__len__"):
        return len(source)
    known = knowledge(unit.label, "expand")
    return known.size if known is not None and known.attempts else None


def expected(graph: TaskGraph, knowledge: Knowledge, slots: int) -> Expected:
    """Expected seconds of all that is known, for ranks on so many slots (0: on as many as there are items)."""
    if not knowledge.by_place:
        return Expected()
    steps: dict[str, float] = {}
    hidden: dict[Place, float] = {}
    rounds: dict[str, float] = {}
    for (label, role), known in knowledge.by_place.items():
        if role in ("member", "batch"):
            steps[label] = known.longest_s if role == "batch" else known.mean_s
        else:
            hidden[label, role] = known.mean_s
    for unit in blocks(graph.root) if slots else ():
        if isinstance(unit, MapUnit):
            rounds[unit.label] = _rounds(unit, knowledge, slots)
    return Expected(steps, hidden, rounds, median(steps.values()) if steps else 1.0)


def _rounds(unit: MapUnit, knowledge: Knowledge, slots: int) -> float:
    """How many times the seconds of its longest item the map takes with all slots."""
    count = items_of(unit, knowledge) or 0
    at_once = min(slots, unit.max_parallelism or slots)
    known = knowledge(unit.label, "batch")
    share = known.mean_s / known.longest_s if known is not None and known.longest_s else 1.0
    return count * share / at_once


@lru_cache(maxsize=10_000)
def reserve(peak_bytes: int, budget_bytes: int, slots: int) -> int:
    """What is taken of the budget for a task with this peak: a little more, rounded up to one of a few amounts.

    Few, because the scheduler looks at each amount whenever something starts. At least what 64 times as many slots would
    have each, and at most the budget: a task that is expected to need more runs alone.
    """
    wanted = peak_bytes * HEADROOM
    least = budget_bytes / (64 * slots)
    if wanted > budget_bytes / 2:
        parts = math.ceil(wanted * 64 / budget_bytes)
        return min(budget_bytes, math.ceil(parts * budget_bytes / 64))
    quarters = math.floor(math.log2(budget_bytes / max(wanted, least, 1.0)) * 4)
    return max(1, math.ceil(budget_bytes * 2 ** (-quarters / 4)))


def timeout_of(share: float, known: Known | None) -> float | None:
    """Seconds of ``timeout: 300%``; None without history."""
    if known is None or not known.attempts:
        return None
    return max(LEAST_TIMEOUT_S, share * known.median_s)


def taught(graph: TaskGraph, knowledge: Knowledge, *, slots: int, memory_bytes: int | None) -> Taught:
    """The graph with ranks, memory and timeouts as they were learned, for a run with so many slots and this budget."""
    without: dict[str, None] = {}
    alone: dict[str, None] = {}
    by_place = knowledge.by_place
    # Small steps have no peaks: then there is nothing to be told but ranks.
    sized = {place for place, known in by_place.items() if known.peak_bytes}

    def told(unit: TaskUnit, role: str) -> tuple[int | None, float | None] | None:
        place = unit.label, role
        if place not in sized and unit.timeout_share is None:
            return None
        known = by_place.get(place)
        learned_bytes, timeout_s = _memory(unit, known, slots, memory_bytes, alone), unit.timeout_s
        share = unit.timeout_share
        if share is not None:
            timeout_s = timeout_of(share, known)
            if timeout_s is None and role in ("member", "batch"):
                without[clean(unit.label)] = None
        elif learned_bytes == unit.learned_bytes:
            return None
        return learned_bytes, timeout_s

    root = graph.root
    if by_place or "timeout share" in graph.has:
        root = ranked(root, expected(graph, knowledge, slots), told)
    warnings = [f"not learned from: {text}" for text in knowledge.unusable]
    if without:
        warnings.append(f"no history yet, so no timeout: {_some(without)} (a share of the learned median)")
    return Taught(replace(graph, root=root), (*warnings, *list(alone)[:SHOWN]))


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN:,} more" if len(every) > SHOWN else "")


def _memory(
    unit: TaskUnit, known: Known | None, slots: int, memory_bytes: int | None, alone: dict[str, None]
) -> int | None:
    """What is reserved for a task by what was learned. Only processes have a memory of their own."""
    if unit.memory_bytes is not None or memory_bytes is None or unit.executor != "processes":
        return None
    if known is None or known.executor != "processes" or not known.peak_bytes:
        return None
    amount = reserve(known.peak_bytes, memory_bytes, slots)
    if amount >= memory_bytes:
        text = f"{clean(unit.label)} held {size_text(known.peak_bytes)} in earlier runs, and the run may use "
        alone[f"{text}{size_text(memory_bytes)}: it runs alone, and is stopped where it needs more"] = None
    return amount


def changed_tasks(unit: Unit, change: Callable[[TaskUnit], TaskUnit]) -> Unit:
    """The same tree with other tasks. Recursive over the depth of blocks only."""
    if isinstance(unit, TaskUnit):
        return change(unit)
    assert isinstance(unit, ScopeUnit)
    gate = change(unit.gate) if unit.gate is not None else None
    merger = change(unit.merger) if unit.merger is not None else None
    if isinstance(unit, MapUnit):
        body, expand = changed_tasks(unit.body, change), change(unit.expand)
        return replace(unit, body=body, expand=expand, gate=gate, merger=merger)
    members = tuple(changed_tasks(member, change) for member in unit.members)
    return replace(unit, members=members, gate=gate, merger=merger)
