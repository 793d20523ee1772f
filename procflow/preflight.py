"""Preflight: checks of a compiled pipeline against the machine, the executors and the functions it names.

Pure of side effects: nothing of the user's is imported, no worker is started. What an executor cannot do is refused here, so
that no setting is ever parsed and then ignored.
"""

from __future__ import annotations

from collections.abc import Iterator

from procflow.errors import ExecutorError, Problem
from procflow.executors import capabilities_of
from procflow.executors.base import CAPABILITIES
from procflow.functions import find
from procflow.graph import ScopeUnit, TaskGraph, TaskUnit, Unit, walk
from procflow.units import size_text

__all__ = ["check"]


def check(graph: TaskGraph, *, slots: int, memory_bytes: int) -> list[Problem]:
    """Every reason why the pipeline can't run here, in declared order."""
    problems: list[Problem] = []
    for unit in walk(graph.root):
        if isinstance(unit, TaskUnit):
            problems += _too_large(unit, graph, slots, memory_bytes)
            problems += _functions(unit)
            problems += _payload(unit)
        problems += _abilities(unit)
    return list(dict.fromkeys(problems))


def _too_large(unit: TaskUnit, graph: TaskGraph, slots: int, memory_bytes: int) -> Iterator[Problem]:
    if unit.executor != "inline" and unit.cpus > slots:
        yield Problem(
            f"step {unit.name!r} asks for {unit.cpus} cpus, and the run has {slots} workers", (*unit.loc, "cpus"),
            "lower cpus, or raise limits.workers (-j)",
        )  # fmt: skip
    if unit.executor == "inline" and unit.cpus > 1:
        yield Problem(f"step {unit.name!r} asks for {unit.cpus} cpus; executor inline has 1", (*unit.loc, "cpus"))
    if unit.memory_bytes is not None and unit.memory_bytes > memory_bytes:
        yield Problem(
            f"step {unit.name!r} asks for {size_text(unit.memory_bytes)}, and the run may use {size_text(memory_bytes)}",
            (*unit.loc, "memory"),
            "lower memory, or raise limits.memory (--memory)",
        )
    for name, amount in unit.resources.items():
        have = graph.resources.get(name)
        loc = (*unit.loc, "resources", name)
        if have is None:
            yield Problem(
                f"there is no resource {name!r}", loc, f"declare it: limits: {{resources: {{{name}: {amount:g}}}}}"
            )
        elif amount > have:
            yield Problem(f"step {unit.name!r} asks for {amount:g} of {name!r}, and there are {have:g}", loc)


def _functions(unit: TaskUnit) -> Iterator[Problem]:
    """Functions named in text are looked up without importing them."""
    call = unit.call
    named = [("function", call.function), ("score", call.options.get("score"))]
    for key, name in named:
        if isinstance(name, str) and ":" in name:
            message = find(name, call.folder)
            if message is not None:
                key = {"merge": "merge", "split": "strategy"}.get(call.kind, "function") if key == "function" else key
                yield Problem(message, (*unit.loc, key))


def _payload(unit: TaskUnit) -> Iterator[Problem]:
    """Functions and constants given in Python must reach a worker."""
    if unit.executor != "processes" or isinstance(unit.call.function, (str, type(None))):
        return
    from procflow.executors.payload import Payloads

    try:
        Payloads().of(unit.call)
    except ExecutorError as error:
        yield Problem(str(error), unit.loc)


def _abilities(unit: Unit) -> Iterator[Problem]:
    """What the unit asks for and its executor can't do."""
    if isinstance(unit, TaskUnit):
        asked = {"timeout": unit.timeout_s, "idle_timeout": unit.idle_timeout_s}
        for key, value in asked.items():
            if value is not None:
                yield from _cannot(unit, key, unit.executor, "kill")
    elif isinstance(unit, ScopeUnit) and unit.timeout_s is not None:
        seen = set()
        for below in walk(unit):
            if isinstance(below, TaskUnit) and below.executor not in seen:
                seen.add(below.executor)
                yield from _cannot(unit, "timeout", below.executor, "kill")


def _cannot(unit: Unit, key: str, executor: str, capability: str) -> Iterator[Problem]:
    if capability in capabilities_of(executor):
        return
    what = f"step {unit.name!r}" if unit.path else "limits"
    loc = (*unit.loc, key) if unit.path else ("limits", key)
    yield Problem(
        f"{what} has a {key}, and executor {executor} can't {CAPABILITIES[capability]}", loc,
        f"run it with executor: processes, or leave out {key}",
    )  # fmt: skip
