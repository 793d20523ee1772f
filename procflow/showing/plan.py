"""The text of a plan: the tree of steps in order, what each waits for, where it runs and within which limits.

Reads a compiled pipeline and facts about the run (workers, memory, where they come from) that the caller found out. It
decides nothing and runs nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from procflow.call import Lookup, StepCall, Text
from procflow.graph import MapUnit, ScopeUnit, TaskGraph, TaskUnit, Unit
from procflow.plaintext import clean, counted, shortened
from procflow.units import Rate, duration_text, size_text

__all__ = ["call_text", "leaf_count", "outline", "plan_data", "plan_lines", "what_runs"]


def outline(root: ScopeUnit) -> Iterator[tuple[int, Unit, tuple[Unit, ...]]]:
    """The declared steps in order, each with its depth and with its block's members; tasks that nobody declared stay out.

    Without recursion, and a map's steps come as its members.
    """
    stack: list[tuple[int, Unit, tuple[Unit, ...]]] = [(0, m, root.members) for m in reversed(root.members)]
    while stack:
        depth, unit, siblings = stack.pop()
        yield depth, unit, siblings
        inner = inner_steps(unit)
        stack += [(depth + 1, member, inner) for member in reversed(inner)]


def inner_steps(unit: Unit) -> tuple[Unit, ...]:
    """The declared steps inside a unit; none for a leaf and for a map that calls one function."""
    if isinstance(unit, MapUnit):
        return unit.body.members if isinstance(unit.body, ScopeUnit) else ()
    return unit.members if isinstance(unit, ScopeUnit) else ()


def leaf_count(graph: TaskGraph) -> int:
    """Declared leaf steps; a map that calls one function is one."""
    return sum(not inner_steps(unit) for _, unit, _ in outline(graph.root))


def call_text(call: StepCall) -> str:
    """What a leaf runs, in a few words: ``nightly:extract``, a command, a strategy."""
    if call.kind == "shell":
        command = call.options.get("command", "")
        words = [tree_text(w) for w in command] if isinstance(command, (list, tuple)) else None
        return shortened(shlex.join(words) if words is not None else tree_text(command), 80)
    if call.function is not None:
        prefix = "" if call.kind == "transform" else f"{call.kind} by "
        return prefix + function_text(call.function)
    strategy = call.options.get("strategy")
    return f"{call.kind} by {clean(strategy)}" if strategy else call.kind


def function_text(function: Any) -> str:
    """``module:name`` of a function."""
    if isinstance(function, str):
        return clean(function)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return clean(f"{getattr(function, '__module__', None) or '?'}:{name}")


def tree_text(tree: Any) -> str:
    """An argument as it was written, references and all."""
    if isinstance(tree, Text):
        return "".join(str(part) for part in tree.parts)
    return str(tree)


def scope_text(unit: ScopeUnit) -> str:
    """What a block is: ``parallel of 3 steps, at most 2 at once``."""
    members = inner_steps(unit)
    if isinstance(unit, MapUnit):
        what = f"map over {_items_text(unit.expand.call)}"
        if isinstance(unit.body, TaskUnit):
            what += f": {call_text(unit.body.call)}"
        if unit.batch is not None:
            what += f", {counted(unit.batch, 'item')} a task"
    else:
        what = f"{unit.kind} of {counted(len(members), 'step')}"
    return what + (f", at most {unit.max_parallelism:,} at once" if unit.max_parallelism is not None else "")


def what_runs(unit: Unit) -> str:
    """A step in a few words, whatever it is."""
    if isinstance(unit, ScopeUnit):
        return scope_text(unit)
    assert isinstance(unit, TaskUnit)
    return call_text(unit.call)


def kind_of(unit: Unit) -> str:
    """``transform``, ``shell``, ``parallel``, ``map``, ..."""
    if isinstance(unit, ScopeUnit):
        return unit.kind
    assert isinstance(unit, TaskUnit)
    return unit.call.kind


def _items_text(call: StepCall) -> str:
    if "range" in call.options:
        return f"range({', '.join(map(str, call.options['range']))})"
    if "glob" in call.options:
        return f"files {shortened(tree_text(call.options['glob']), 60)}"
    source = call.args[0] if call.args else ()
    if isinstance(source, (Lookup, Text)):
        return clean(tree_text(source))
    return counted(len(source), "item") if hasattr(source, "__len__") else f"a {clean(type(source).__name__)}"


def limits_of(unit: Unit) -> dict[str, str]:
    """The limits and rules of one step in words, by key; only those that were set."""
    found: dict[str, str] = {}
    leaf = unit.body if isinstance(unit, MapUnit) and isinstance(unit.body, TaskUnit) else unit
    for each in (unit,) if leaf is unit else (unit, leaf):
        found |= _shared_limits(each)
    if isinstance(leaf, TaskUnit):
        found |= _task_limits(leaf)
    if isinstance(unit, ScopeUnit):
        found |= _scope_limits(unit)
    return found


def _shared_limits(unit: Unit) -> dict[str, str]:
    found: dict[str, str] = {}
    if unit.timeout_s is not None:
        found["timeout"] = duration_text(unit.timeout_s)
    if unit.retry.retries:
        found["retries"] = str(unit.retry.retries)
    if unit.priority:
        found["priority"] = str(unit.priority)
    if unit.rate is not None:
        found["rate_limit"] = _rate_text(unit.rate)
    return found


def _task_limits(unit: TaskUnit) -> dict[str, str]:
    found: dict[str, str] = {}
    if unit.cpus != 1:
        found["cpus"] = str(unit.cpus)
    if unit.memory_bytes is not None:
        found["memory"] = size_text(unit.memory_bytes)
    if unit.idle_timeout_s is not None:
        found["idle_timeout"] = duration_text(unit.idle_timeout_s)
    if unit.resources:
        found["resources"] = ", ".join(f"{clean(k)}={v:g}" for k, v in unit.resources.items())
    if unit.call.when is not None:
        found["when"] = shortened(unit.call.when, 80)
    if unit.tolerated:
        found["on_error"] = "continue"
    return found


def _scope_limits(unit: ScopeUnit) -> dict[str, str]:
    found: dict[str, str] = {}
    if unit.on_error != "stop":
        found["on_error"] = unit.on_error
    if unit.tolerate is not None:
        found["tolerate"] = str(unit.tolerate)
    if unit.need is not None:
        found["join"] = "any" if unit.need == 1 else str(unit.need)
    if unit.merge.strategy not in ("update", "rows"):
        merger = unit.merger.call if unit.merger is not None else None
        found["merge"] = call_text(merger).removeprefix("merge by ") if merger is not None else unit.merge.strategy
    if unit.gate is not None and unit.gate.call.when is not None:
        found["when"] = shortened(unit.gate.call.when, 80)
    return found


def _rate_text(rate: Rate) -> str:
    return f"{rate.count:g} in {duration_text(rate.per_s)}"


def executor_of(unit: Unit) -> str | None:
    """Where a leaf step (or a map's function) runs; None for other blocks."""
    leaf = unit.body if isinstance(unit, MapUnit) else unit
    return leaf.executor if isinstance(leaf, TaskUnit) else None


def reads_of(unit: Unit) -> tuple[str, ...]:
    """Names of the values that a step reads itself."""
    reads = unit.reads
    if isinstance(unit, MapUnit):
        body = [n for n in unit.body.reads if n not in (unit.item_name, "index")] if not inner_steps(unit) else []
        reads = tuple(dict.fromkeys((*unit.expand.reads, *body)))
    elif isinstance(unit, ScopeUnit) and unit.isolated:
        reads = tuple(dict.fromkeys(unit.imports.values()))
    return reads


def _writes_text(unit: Unit) -> str:
    return "what it returns" if unit.writes is None else ", ".join(clean(name) for name in unit.writes)


def _details(unit: Unit, siblings: Sequence[Unit], more: Callable[[Unit], str] | None) -> str:
    parts = [what_runs(unit)]
    if unit.after:
        parts.append("after " + ", ".join(clean(siblings[i].name) for i in unit.after))
    reads = reads_of(unit)
    if reads:
        parts.append("reads " + ", ".join(clean(name) for name in reads))
    if unit.writes is None or unit.writes:
        parts.append("writes " + _writes_text(unit))
    executor = executor_of(unit)
    if executor is not None:
        parts.append(f"on {clean(executor)}")
    parts += [f"{key.replace('_', ' ')} {value}" for key, value in limits_of(unit).items()]
    if more is not None and (text := more(unit)):
        parts.append(text)
    return "; ".join(parts)


def plan_lines(
    graph: TaskGraph, facts: Sequence[tuple[str, str]] = (), more: Callable[[Unit], str] | None = None
) -> list[str]:
    """The plan as lines: head, facts (a name and its text each), then a line a step in order.

    A step's line holds its path, its name (indented by depth), what it runs, what it waits for, reads and writes,
    where it runs and its limits, and what ``more`` has to say of it.
    """
    rows = list(outline(graph.root))
    lines = [f"{clean(graph.name)}: {counted(leaf_count(graph), 'step')}"]
    width = max((len(name) for name, _ in facts), default=0)
    lines += [f"  {name:<{width}}  {clean(text)}" for name, text in facts]
    lines.append("")
    paths = max((len(unit.path) for _, unit, _ in rows), default=1)
    names = min(40, max((2 * depth + len(unit.name) for depth, unit, _ in rows), default=1))
    for depth, unit, siblings in rows:
        name = "  " * depth + clean(unit.name)
        lines.append(f"{unit.path:<{paths}}  {name:<{names}}  {_details(unit, siblings, more)}".rstrip())
    return lines


def plan_data(
    graph: TaskGraph,
    facts: Mapping[str, Any] | None = None,
    learned: Callable[[Unit], Mapping[str, Any] | None] | None = None,
) -> dict[str, Any]:
    """The same as data that JSON can hold: ``pipeline``, ``params`` and ``resources``, the facts, and ``steps`` in order."""
    steps = []
    for _, unit, siblings in outline(graph.root):
        steps.append(
            {
                "path": unit.path,
                "label": unit.label,
                "kind": kind_of(unit),
                "runs": what_runs(unit),
                "after": [siblings[i].label for i in unit.after],
                "reads": list(reads_of(unit)),
                "writes": None if unit.writes is None else list(unit.writes),
                "executor": executor_of(unit),
                "limits": limits_of(unit),
                **({"learned": learned(unit)} if learned is not None else {}),
            }
        )
    return {"pipeline": graph.name, **(facts or {}), "resources": dict(graph.resources), "steps": steps}
