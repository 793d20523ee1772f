"""Preflight: checks of a compiled pipeline against the machine, the executors and the functions it names.

Without side effects: nothing of the user's is imported, no worker is started. What an executor cannot do is refused
here, so that no setting is ever parsed and then ignored. What comes from ``defaults`` is told once, there.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from functools import cache
from typing import Any

from procflow.compiling.build import placed
from procflow.errors import ExecutorError, Loc, Problem
from procflow.executors import capabilities_of
from procflow.executors.base import CAPABILITIES, Capability
from procflow.graph import ScopeUnit, TaskGraph, TaskUnit, Unit, walk
from procflow.units import duration_text, size_text
from procflow.values.transient import unusable
from procflow.working.functions import find

__all__ = ["check"]

Find = Callable[[str, "str | None"], "str | None"]


def check(
    graph: TaskGraph,
    *,
    slots: int,
    memory_bytes: int,
    combiners: Mapping[Any, Any] | None = None,
    folder: str | None = None,
) -> list[Problem]:
    """Every reason why the pipeline can't run here, in declared order; those in other files with their places.

    ``combiners`` are those of the pipeline in ``folder``: they are checked though no merge may ask for them.
    """
    problems: list[Problem] = []
    known: dict[tuple[str, str | None], str | None] = {}

    def find_once(name: str, folder: str | None) -> str | None:
        key = (name, folder)
        if key not in known:
            known[key] = find(name, folder)
        return known[key]

    payloads = _Payloads()
    unstoppable = {executor for executor in graph.executors if not _can(executor, "kill")}
    for unit in walk(graph.root, hooks=True):
        if isinstance(unit, TaskUnit):
            call = unit.call
            if unit.cpus > 1 or unit.memory_bytes is not None:
                problems += _too_large(unit, graph, slots, memory_bytes)
            if unit.resources:
                problems += _resources(unit, graph)
            if call.options or isinstance(call.function, str):
                problems += _functions(unit, find_once)
            if call.state:
                problems += _reducers(unit, graph, find_once)
            if call.kind != "transform" and call.kind in ("query", "skill", "rest"):
                problems += _outside(unit)
            given = call.args or call.kwargs or call.options or call.params
            if unit.executor == "processes" and (given or id(call.function) not in payloads.sent):
                problems += payloads.problems(unit)
            if call.transient:
                problems += _transient(unit)
            if unit.executor in unstoppable:
                problems += _clocks(unit, graph)
            if unit.memory_bytes is not None:
                problems += _memory(unit, graph)
        elif isinstance(unit, ScopeUnit) and unit.timeout_s is not None:
            loc = (*unit.loc, "timeout") if unit.path else ("limits", "timeout")
            what = f"{unit.kind} {unit.name!r} has" if unit.path else "the run has"
            for executor in sorted({inner.executor for inner in walk(unit) if isinstance(inner, TaskUnit)}):
                problems += _cannot(f"{what} a timeout of {duration_text(unit.timeout_s)}", loc, executor, "kill")
    problems += _unused(combiners or {}, folder, find_once, {problem.message for problem in problems})
    return placed(dict.fromkeys(problems), graph.files)


def _unused(
    combiners: Mapping[Any, Any], folder: str | None, find_once: Find, told: Container[str]
) -> Iterator[Problem]:
    for pair in combiners.items():
        for name in pair:
            message = find_once(name, folder) if isinstance(name, str) and ":" in name else None
            if message is not None and message not in told:
                yield Problem(message, ("combiners", str(pair[0])))


def _place(unit: TaskUnit, key: str, graph: TaskGraph) -> tuple[str, Loc]:
    """Who asks for what ``key`` says, in words, and where: the step, or the defaults of its file."""
    if key not in unit.inherited:
        return f"step {unit.name!r}", (*unit.loc, key)
    return "each step (defaults)", (*file_root(unit, graph), "defaults", key)


def file_root(unit: Unit, graph: TaskGraph) -> Loc:
    """Where the file that declares the unit begins: its ``type: pipeline`` step, or nothing for the first file."""
    return next((unit.loc[:end] for end in range(len(unit.loc), 0, -1) if unit.loc[:end] in graph.files), ())


def _too_large(unit: TaskUnit, graph: TaskGraph, slots: int, memory_bytes: int) -> Iterator[Problem]:
    have = 1 if unit.executor == "inline" else slots
    if unit.cpus > have:
        who, loc = _place(unit, "cpus", graph)
        if unit.executor == "inline":
            yield Problem(
                f"{who} asks for {unit.cpus} cpus, and executor inline has 1", loc, "run it with executor: processes"
            )
        else:
            workers = f"{slots} worker{'s' if slots != 1 else ''}"
            hint = "lower cpus, or raise limits.workers (-j)"
            yield Problem(f"{who} asks for {unit.cpus} cpus, and the run has {workers}", loc, hint)
    if unit.memory_bytes is not None and unit.memory_bytes > memory_bytes:
        who, loc = _place(unit, "memory", graph)
        yield Problem(
            f"{who} asks for {size_text(unit.memory_bytes)}, and the run may use {size_text(memory_bytes)}", loc,
            "lower memory, or raise limits.memory (--memory)",
        )  # fmt: skip


def _resources(unit: TaskUnit, graph: TaskGraph) -> Iterator[Problem]:
    for name, amount in unit.resources.items():
        have = graph.resources.get(name)
        loc = (*unit.loc, "resources", name)
        if have is None:
            hint = f"declare it: limits: {{resources: {{{name}: {amount:g}}}}}"
            yield Problem(f"there is no resource {name!r}", loc, hint)
        elif amount > have:
            yield Problem(f"step {unit.name!r} asks for {amount:g} of {name!r}, and there are {have:g}", loc)


def _functions(unit: TaskUnit, find_once: Find) -> Iterator[Problem]:
    """Functions named in text are looked up without importing them."""
    call = unit.call
    own = {"merge": "merge", "split": "strategy", "reduce": "reduce"}.get(call.kind, "function")
    combiners = [("merge", name) for pair in (call.options.get("combiners") or {}).items() for name in pair]
    for key, name in ((own, call.function), ("score", call.options.get("score")), *combiners):
        if isinstance(name, str) and ":" in name:
            message = find_once(name, call.folder)
            if message is not None:
                yield Problem(message, (*unit.loc, key))


def _reducers(unit: TaskUnit, graph: TaskGraph, find_once: Find) -> Iterator[Problem]:
    """Reducers of the state that are the user's own, told where the unit's file declares them."""
    for key, spec in unit.call.state.items():
        message = find_once(spec.function, unit.call.folder) if isinstance(spec.function, str) else None
        if message is not None:
            yield Problem(message, (*file_root(unit, graph), "state", key))


def _outside(unit: TaskUnit) -> Iterator[Problem]:
    """Libraries and URLs of steps that ask something outside."""
    from procflow.sources.needs import problems

    yield from (Problem(message, (*unit.loc, key), hint) for key, message, hint in problems(unit.call))


class _Payloads:
    """Functions and constants given in Python must reach a worker; what many steps share is tried once.

    ``sent`` are the functions that do, by identity: the graph holds them, so their ids stay theirs.
    """

    def __init__(self) -> None:
        self.sent: set[int] = set()
        self._tried: Any = None

    def problems(self, unit: TaskUnit) -> Iterator[Problem]:
        call = unit.call
        if _is_plain(call.function):
            self.sent.add(id(call.function))
        trees = (call.args, call.kwargs, call.options, call.params)
        if id(call.function) in self.sent and all(_is_plain(tree) for tree in trees if tree):
            return
        if self._tried is None:
            from procflow.executors.payload import Payloads

            self._tried = Payloads()
        try:
            self._tried.of(call)
        except ExecutorError as error:
            yield Problem(str(error), unit.loc)
        else:
            self.sent.add(id(call.function))


def _transient(unit: TaskUnit) -> Iterator[Problem]:
    """Shared memory where there is none."""
    why = unusable()
    if why:
        yield Problem(f"step {unit.name!r} can't be transient: {why}", (*unit.loc, "transient"), "leave out transient")


def _is_plain(tree: Any) -> bool:
    """Whether this is made of what a file can hold, which pickles for sure."""
    if tree is None or isinstance(tree, (str, int, float, range)):
        return True
    if isinstance(tree, dict):
        return all(map(_is_plain, tree.values()))
    if isinstance(tree, (list, tuple)):
        return all(map(_is_plain, tree))
    return type(tree).__module__ == "procflow.call"


@cache
def _can(executor: str, capability: Capability) -> bool:
    return capability in capabilities_of(executor)


def _clocks(unit: TaskUnit, graph: TaskGraph) -> Iterator[Problem]:
    """A task's clocks, where its executor can't stop it."""
    for key, seconds in (("timeout", unit.timeout_s), ("idle_timeout", unit.idle_timeout_s)):
        if seconds is not None:
            who, loc = _place(unit, key, graph)
            article = "an" if key == "idle_timeout" else "a"
            yield from _cannot(f"{who} has {article} {key} of {duration_text(seconds)}", loc, unit.executor, "kill")
    if unit.grace_declared:
        who, loc = _place(unit, "kill_grace", graph)
        yield from _cannot(f"{who} has a kill_grace of {duration_text(unit.kill_grace_s)}", loc, unit.executor, "kill")
    if unit.timeout_share is not None:
        who, loc = _place(unit, "timeout", graph)
        percent = f"{unit.timeout_share * 100:g}%"
        yield from _cannot(f"{who} has a timeout of {percent} of its median", loc, unit.executor, "kill")


def _memory(unit: TaskUnit, graph: TaskGraph) -> Iterator[Problem]:
    """A task's memory limit, where its executor can't hold it to that."""
    assert unit.memory_bytes is not None
    who, loc = _place(unit, "memory", graph)
    yield from _cannot(f"{who} has a memory limit of {size_text(unit.memory_bytes)}", loc, unit.executor, "memory")


def _cannot(what: str, loc: Loc, executor: str, capability: Capability) -> Iterator[Problem]:
    if not _can(executor, capability):
        yield Problem(
            f"{what}, and executor {executor} can't {CAPABILITIES[capability]}", loc,
            f"run it with executor: processes, or leave out {loc[-1]}",
        )  # fmt: skip
