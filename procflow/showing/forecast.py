"""What a run is expected to become, as text and as data: time, critical path, memory, and a table over numbers of workers.

It words what ``learning/`` found out; it reads no history and simulates nothing. Nothing is claimed that nobody measured:
what is unknown is told as unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from procflow.compiling.ranks import critical_path
from procflow.graph import MapUnit, TaskGraph, TaskUnit, Unit, walk
from procflow.learning.known import Knowledge, Known
from procflow.learning.simulation import Forecast
from procflow.learning.teaching import expected, reserve, timeout_of
from procflow.plaintext import clean, counted, shortened
from procflow.showing.plan import outline
from procflow.units import duration_text, size_text

__all__ = [
    "Refused",
    "expected_data",
    "expected_facts",
    "learned_data",
    "learned_text",
    "refused",
    "table_data",
    "table_lines",
    "timeouts",
]

SHOWN_STEPS = 12
"""Steps of the critical path that are named, from its ends."""
SHOWN_UNKNOWN = 5
BUSY_SHARE = 0.8
"""Work that was less busy than this was waiting for something, and may go quicker, or slower, at another time."""


class Refused(NamedTuple):
    """A number of workers with which the pipeline could not run, and why."""

    workers: int
    why: str


def _leaf(unit: Unit) -> tuple[TaskUnit, str] | None:
    """The task that does the work of a declared step, and its role; None for a block."""
    if isinstance(unit, MapUnit):
        return (unit.body, "batch") if isinstance(unit.body, TaskUnit) else None
    return (unit, "member") if isinstance(unit, TaskUnit) else None


def learned_text(unit: Unit, knowledge: Knowledge) -> str:
    """What is known of a declared step: ``learned 12 ms an item (p95 30 ms), peak 58 MiB, 2 runs``; empty where nothing is."""
    leaf = _leaf(unit)
    known = knowledge(unit.label, leaf[1]) if leaf is not None else None
    if leaf is None or known is None:
        return ""
    if known.skipped:
        return f"skipped in {counted(known.runs, 'run')}"
    if not known.attempts:
        return ""
    item = " an item" if leaf[1] == "batch" else ""
    text = f"learned {duration_text(known.median_s)}{item} (p95 {duration_text(known.high_s)})"
    if leaf[1] == "batch":
        size = knowledge(unit.label, "expand")
        text += f", {size.size if size is not None and size.size else known.items:,} items"
    if known.peak_bytes:
        text += f", peak {size_text(known.peak_bytes)}"
    return f"{text}, {counted(known.runs, 'run')}" + ("" if known.same else ", changed since")


def learned_data(unit: Unit, knowledge: Knowledge) -> dict[str, Any] | None:
    """The same as data; None where nothing is known."""
    leaf = _leaf(unit)
    known = knowledge(unit.label, leaf[1]) if leaf is not None else None
    if known is None or not known.attempts:
        return None
    return {
        "runs": known.runs,
        "attempts": known.attempts,
        "same": known.same,
        "median_s": known.median_s,
        "p95_s": known.high_s,
        "mean_s": known.mean_s,
        "cpu_s": known.cpu_s,
        "items": known.items,
        "peak_bytes": known.peak_bytes,
        "most_bytes": known.most_bytes,
        "executor": known.executor,
    }


def expected_facts(
    graph: TaskGraph, knowledge: Knowledge, forecast: Forecast | None, memory_bytes: int
) -> list[tuple[str, str]]:
    """What a run is expected to become, as facts of a plan."""
    unusable = [("not used", text) for text in knowledge.unusable]
    if forecast is None or not knowledge.runs:
        return [("learned", "nothing yet: once it has run, this plan tells times and memory"), *unusable]
    busy = f"{min(1.0, forecast.efficiency):.0%}"
    workers = counted(forecast.workers, "worker")
    wall = f"{duration_text(forecast.wall_s)} for {duration_text(forecast.work_s)} of work, {workers} {busy} busy"
    if forecast.cpu_s < BUSY_SHARE * forecast.work_s:
        part = f"{forecast.cpu_s / forecast.work_s:.0%}"
        wall += f", in which a core was at work for {part}: the rest is waiting, of steps or for a busy machine"
    seconds, labels = critical_path(graph.root, expected(graph, knowledge, 0))
    facts = [
        ("expected", f"{wall}; learned from {counted(knowledge.runs, 'run')}"),
        ("critical", f"{duration_text(seconds)}: {_path_text(labels)}"),
        (
            "peak",
            f"{size_text(forecast.peak_bytes)} of {size_text(memory_bytes)}; {_fit_text(graph, knowledge, forecast)}",
        ),
    ]
    limit = graph.root.timeout_s
    if limit is not None and forecast.wall_s > limit:
        facts.append(("too long", f"it is expected to take longer than its timeout of {duration_text(limit)}"))
    facts += [("alone", text) for text in _alone(graph, knowledge, memory_bytes)]
    if forecast.unknown:
        facts.append(("unknown", _unknown_text(forecast)))
    return facts + unusable


def _path_text(labels: Sequence[str]) -> str:
    names = [clean(label) for label in labels]
    if len(names) > SHOWN_STEPS:
        half = SHOWN_STEPS // 2
        names = [*names[:half], f"... {len(names) - 2 * half:,} more ...", *names[-half:]]
    return " > ".join(names)


def _unknown_text(forecast: Forecast) -> str:
    names = ", ".join(clean(label) for label in forecast.unknown[:SHOWN_UNKNOWN])
    more = len(forecast.unknown) - SHOWN_UNKNOWN
    text = names + (f" and {more:,} more" if more > 0 else "")
    return f"{text}: no run has told of it, counted {duration_text(forecast.unknown_s)} each"


def _known_tasks(graph: TaskGraph, knowledge: Knowledge) -> list[tuple[TaskUnit, Known]]:
    found = []
    for _, unit, _ in outline(graph.root):
        leaf = _leaf(unit)
        known = knowledge(unit.label, leaf[1]) if leaf is not None else None
        if leaf is not None and known is not None and known.peak_bytes and leaf[0].executor == "processes":
            found.append((leaf[0], known))
    return found


def _fit_text(graph: TaskGraph, knowledge: Knowledge, forecast: Forecast) -> str:
    """How many fit at once, by the largest step."""
    tasks = _known_tasks(graph, knowledge)
    if not tasks or forecast.memory_bytes is None:
        return f"{forecast.most_at_once:,} at once"
    unit, known = max(tasks, key=lambda task: (_reserved(task[0], task[1], forecast), task[1].peak_bytes))
    count = max(1, forecast.memory_bytes // _reserved(unit, known, forecast))
    return f"{forecast.most_at_once:,} at once; memory holds {count:,} of the largest, {clean(unit.label)}"


def _reserved(unit: TaskUnit, known: Known, forecast: Forecast) -> int:
    if unit.memory_bytes is not None:
        return unit.memory_bytes
    return reserve(known.peak_bytes, forecast.memory_bytes or known.peak_bytes, forecast.workers)


def _alone(graph: TaskGraph, knowledge: Knowledge, memory_bytes: int) -> list[str]:
    return [
        f"{clean(unit.label)} held {size_text(known.peak_bytes)} in earlier runs: "
        "it runs alone, and is stopped where it needs more than the budget"
        for unit, known in _known_tasks(graph, knowledge)
        if unit.memory_bytes is None and reserve(known.peak_bytes, memory_bytes, 1) >= memory_bytes
    ]


def timeouts(graph: TaskGraph, knowledge: Knowledge) -> dict[str, str]:
    """For each label with a relative timeout, what it comes to: ``300%, now 36.3 s``."""
    found: dict[str, str] = {}
    for unit in walk(graph.root):
        if not isinstance(unit, TaskUnit) or unit.timeout_share is None:
            continue
        role = "batch" if knowledge(unit.label, "batch") is not None else "member"
        seconds = timeout_of(unit.timeout_share, knowledge(unit.label, role))
        now = f"now {duration_text(seconds)}" if seconds is not None else "none yet, without history"
        found[unit.label] = f"{unit.timeout_share * 100:g}% of the median, {now}"
    return found


def expected_data(graph: TaskGraph, knowledge: Knowledge, forecast: Forecast | None) -> dict[str, Any]:
    """The expectation as data: None for all that nobody knows."""
    data: dict[str, Any] = {"runs": knowledge.runs, "unusable": list(knowledge.unusable), "expected": None}
    if forecast is not None and knowledge.runs:
        seconds, labels = critical_path(graph.root, expected(graph, knowledge, 0))
        data["expected"] = {**_row(forecast), "critical_path_s": seconds, "critical_path": list(labels)}
    return data


def table_lines(forecasts: Sequence[Forecast | Refused], knowledge: Knowledge) -> list[str]:
    """A table of what so many workers would bring, speedup against the fewest."""
    good = [f for f in forecasts if isinstance(f, Forecast)]
    rows = [("workers", "expected", "speedup", "efficiency", "at once", "peak memory")]
    refused = []
    for each in forecasts:
        if isinstance(each, Refused):
            refused.append(f"{each.workers:,} workers: {each.why}")
            continue
        rows.append(
            (
                f"{each.workers:,}",
                duration_text(each.wall_s),
                f"{_speedup(each, good):.2f}x",
                f"{min(1.0, each.efficiency):.0%}",
                f"{each.most_at_once:,}",
                size_text(each.peak_bytes) if each.peak_bytes else "unknown",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    notes = [f"not used: {text}" for text in knowledge.unusable]
    if not knowledge.runs:
        notes.append("nothing is known of the steps yet, so each counts 1 s: only the shape of the schedule is shown")
    elif good and good[0].unknown:
        notes.append(_unknown_text(good[0]))
    return [*lines, *refused, *(shortened(note, 300) for note in notes)]


def _speedup(one: Forecast, all_of_them: Sequence[Forecast]) -> float:
    fewest = min(all_of_them, key=lambda f: f.workers)
    return fewest.wall_s / one.wall_s if one.wall_s else 1.0


def table_data(forecasts: Sequence[Forecast | Refused]) -> list[dict[str, Any]]:
    """The same as data."""
    good = [f for f in forecasts if isinstance(f, Forecast)]
    return [
        {**_row(each), "speedup": _speedup(each, good)}
        if isinstance(each, Forecast)
        else {"workers": each.workers, "refused": each.why}
        for each in forecasts
    ]


def _row(forecast: Forecast) -> dict[str, Any]:
    return {
        "workers": forecast.workers,
        "memory_bytes": forecast.memory_bytes,
        "wall_s": forecast.wall_s,
        "work_s": forecast.work_s,
        "cpu_s": forecast.cpu_s,
        "efficiency": forecast.efficiency,
        "peak_bytes": forecast.peak_bytes,
        "most_at_once": forecast.most_at_once,
        "attempts": forecast.attempts,
        "unknown": list(forecast.unknown),
    }


def refused(graph: TaskGraph, workers: int, memory_bytes: int) -> Refused | None:
    """Why the pipeline could not run with so many workers and so much memory; None where it could."""
    for unit in walk(graph.root):
        if isinstance(unit, TaskUnit):
            if unit.cpus > workers and unit.executor != "inline":
                return Refused(workers, f"step {clean(unit.label)} asks for {unit.cpus} cpus")
            if unit.memory_bytes is not None and unit.memory_bytes > memory_bytes:
                return Refused(workers, f"step {clean(unit.label)} asks for {size_text(unit.memory_bytes)}")
    return None
