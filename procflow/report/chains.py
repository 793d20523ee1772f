"""Chains: who waited for whom in a run that is over, or as far as it came: lanes, the critical path, and waiting for a place.

Lanes are the rows of a timeline: a worker, or whichever worker took its place; where workers are not known, attempts are set
into as few rows as there can have been. The critical path is the chain of tasks that decided when the run ended: from what
ended last, back to what it waited for that ended last. Nothing here reads a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from procflow.report.facts import Block, Facts, Try
from procflow.showing.shape import Part

__all__ = ["Span", "give_lanes", "mark_critical", "queued"]

SLACK_S = 1e-3
"""Clocks of a lane may overlap by so much and it is still one place."""


def give_lanes(facts: Facts) -> list[str]:
    """Set every attempt's ``lane``; the names of all lanes, in order: ``processes 1``, ..., or ``1``, ... of one executor."""
    by_executor: dict[str, list[Try]] = defaultdict(list)
    for each in facts.tries:
        by_executor[each.executor].append(each)
    names: list[str] = []
    for executor in sorted(by_executor):
        count = _lanes(by_executor[executor], len(names))
        names += [f"{executor} {i + 1}" if len(by_executor) > 1 else str(i + 1) for i in range(count)]
    return names


def _lanes(tries: list[Try], first: int) -> int:
    """Lanes of one executor's attempts, which are in the order in which they began; how many there are."""
    last_end: dict[tuple[int, int], float] = {}
    for each in tries:
        worker = (each.session, each.worker)
        last_end[worker] = max(last_end.get(worker, 0.0), each.end)
    lane_of: dict[tuple[int, int], int] = {}
    free_at: list[float] = []
    for each in tries:
        worker = (each.session, each.worker)
        place = lane_of.get(worker) if each.worker else None
        if place is None:
            place = next((i for i, at in enumerate(free_at) if at <= each.start + SLACK_S), len(free_at))
            if place == len(free_at):
                free_at.append(0.0)
            if each.worker:
                lane_of[worker] = place
        # A worker keeps its lane until it has ended its last attempt.
        free_at[place] = max(free_at[place], last_end[worker] if each.worker else each.end)
        each.lane = first + place
    return len(free_at)


class Span:
    """When a part of the pipeline began and ended in the last session."""

    __slots__ = ("end", "start")

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end


def _spans(facts: Facts) -> dict[str, Span]:
    spans: dict[str, Span] = {}
    last = len(facts.sessions) - 1
    both: list[Try | Block] = [*facts.tries, *facts.blocks]
    for each in both:
        if each.session != last:
            continue
        span = spans.get(each.path)
        if span is None:
            spans[each.path] = Span(each.start, each.end)
        else:
            span.start, span.end = min(span.start, each.start), max(span.end, each.end)
    return spans


def mark_critical(facts: Facts) -> list[str]:
    """Mark the attempts of the last session on the critical path; labels of its steps in order, none without a graph."""
    if facts.graph is None:
        return []
    spans = _spans(facts)
    paths: list[str] = []
    waiting = [facts.graph]
    while waiting:
        block = waiting.pop()
        for member in _chain(block, spans):
            if member.members and any(inner.path in spans for inner in member.members):
                waiting.append(member)
            else:
                paths.append(member.path)
    paths.sort(key=lambda path: spans[path].start)
    chosen = set(paths)
    last = len(facts.sessions) - 1
    by_path: dict[str, list[Try]] = defaultdict(list)
    for each in facts.tries:
        if each.path in chosen and each.session == last:
            by_path[each.path].append(each)
    for tries in by_path.values():
        _mark(tries)
    return [facts.labels.get(path, path) for path in paths if path in by_path]


def _chain(block: Part, spans: dict[str, Span]) -> Iterable[Part]:
    """From the member that ended last back to the first, each time to what it waited for longest."""
    known = [member for member in block.members if member.path in spans]
    if not known:
        return
    current = max(known, key=lambda member: spans[member.path].end)
    while True:
        yield current
        before = [block.members[i] for i in current.after if i < len(block.members)]
        before = [member for member in before if member.path in spans]
        if not before:
            return
        current = max(before, key=lambda member: spans[member.path].end)


def _mark(tries: list[Try]) -> None:
    """All attempts of a step; of a map, those on the lane on which it ended."""
    final = max(tries, key=lambda t: t.end)
    for each in tries:
        each.critical = not each.item or each.lane == final.lane


def queued(facts: Facts) -> tuple[float, list[tuple[str, float]]] | None:
    """Seconds that steps of the last session were ready and waited for a place, and the steps that waited longest.

    Items of maps are not counted: they are made when a place is free. None without a graph.
    """
    if facts.graph is None:
        return None
    spans, waits = _spans(facts), list[tuple[str, float]]()
    first: dict[str, Try] = {}
    for each in facts.tries:
        if each.session == len(facts.sessions) - 1 and not each.item and each.role == "member":
            first.setdefault(each.path, each)
    for block in facts.graph.walk():
        opened = spans[block.path].start if block.path in spans else facts.last.offset
        for member in block.members:
            task = first.get(member.path)
            if task is None:
                continue
            needs = [block.members[i].path for i in member.after if i < len(block.members)]
            ready = max([opened, *(spans[path].end for path in needs if path in spans)])
            if task.start > ready:
                waits.append((task.label, task.start - ready))
    waits.sort(key=lambda pair: -pair[1])
    return sum(seconds for _, seconds in waits), waits[:5]
