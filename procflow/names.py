"""Names: which values a declared step reads and writes, and what a reference means where it stands.

Pure. ``surface`` looks at one declared step and below; ``Scope`` is the compiler's picture of what has a value at one
point of the pipeline. References are resolved here: ``${params.x}``, ``${env.X}`` and ``${run.id}`` become constants, ``${step.output.key}`` the
value that the step publishes, anything else must be a value that exists by then.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from procflow import condition, template
from procflow.call import INDEX, Lookup
from procflow.errors import Loc, Problem
from procflow.model import AnyStep, Block, Graph, Map, Merge, Parallel, Sequence, Shell, StepBase, Subpipeline

__all__ = ["ROOTS", "Read", "Scope", "Surface", "surface", "unique_names"]

ROOTS = ("params", "env", "run")
"""First parts of references that are not values."""


@dataclass(frozen=True, slots=True)
class Read:
    """One reference as declared, with its place in the tree."""

    lookup: Lookup
    loc: Loc


@dataclass(frozen=True, slots=True)
class Surface:
    """What a step shows to its block: names it needs from outside and names it publishes (None: only the run can tell)."""

    reads: tuple[Read, ...]
    writes: tuple[str, ...] | None


@dataclass(slots=True)
class Scope:
    """What has a value at one point: names, whether a ``*`` may have published more, and steps by name.

    ``parameters``, ``environ`` and ``run`` serve the roots; ``problems`` collects what is wrong.
    """

    names: set[str]
    is_open: bool
    steps: dict[str, tuple[str, ...] | None]
    parameters: Mapping[str, Any]
    environ: Mapping[str, str]
    run: Mapping[str, Any]
    problems: list[Problem]
    hidden: dict[str, str] = field(default_factory=dict)

    def inner(self) -> Scope:
        """A copy for a block inside this one."""
        return Scope(
            set(self.names), self.is_open, dict(self.steps), self.parameters, self.environ, self.run, self.problems,
            dict(self.hidden),
        )  # fmt: skip

    def publish(self, step: str, writes: tuple[str, ...] | None) -> None:
        """The step's outputs have values from here on."""
        self.steps[step] = writes
        if writes is None:
            self.is_open = True
        else:
            self.names.update(writes)
            for name in writes:
                self.hidden.pop(name, None)

    def bind(self, lookup: Lookup, loc: Loc) -> Any:
        """A constant for a root, a ``Lookup`` of an existing value otherwise; notes a problem where there is neither."""
        if lookup.name in ROOTS:
            return self._root(lookup, loc)
        lookup = self.alias(lookup)
        if lookup.name not in self.names and not self.is_open:
            self.problems.append(Problem(self._missing(lookup), loc, self._near(lookup.name)))
        return lookup

    def alias(self, lookup: Lookup) -> Lookup:
        """``${step.output.key}`` as a lookup of the value that the step publishes."""
        if lookup.name not in self.steps or lookup.path[:1] != ("output",):
            return lookup
        writes, path = self.steps[lookup.name], lookup.path[1:]
        if writes is not None and len(writes) == 1:
            return Lookup(writes[0], path)
        return Lookup(str(path[0]), path[1:]) if path else lookup

    def _missing(self, lookup: Lookup) -> str:
        if lookup.name in self.hidden:
            return f"{lookup.name!r} has no value here yet: {self.hidden[lookup.name]}"
        if lookup.name in self.steps:
            return f"{lookup.name!r} is a step, not a value; its value is ${{{lookup.name}.output}}"
        return f"no step before this one publishes {lookup.name!r}"

    def _near(self, name: str) -> str:
        near = difflib.get_close_matches(name, [*self.names, *self.hidden], 1)
        return f"did you mean {near[0]!r}?" if near and near[0] != name else ""

    def _root(self, lookup: Lookup, loc: Loc) -> Any:
        known: Mapping[str, Any] = {"params": self.parameters, "env": self.environ, "run": self.run}[lookup.name]
        if not lookup.path:
            if lookup.name == "params":
                return dict(self.parameters)
            self.problems.append(Problem(f"${{{lookup.name}}} needs a name: ${{{lookup.name}.NAME}}", loc))
            return None
        key = str(lookup.path[0])
        if key not in known:
            what = {"params": "parameter", "env": "environment variable", "run": "fact of the run"}[lookup.name]
            near = [] if lookup.name == "env" else difflib.get_close_matches(key, list(known), 1)
            hint = f"did you mean {near[0]!r}?" if near else ""
            self.problems.append(Problem(f"there is no {what} {key!r}", loc, hint))
            return None
        try:
            return template.follow(known[key], lookup.path[1:], lookup)
        except template.ReferenceFailed as failed:
            self.problems.append(Problem(str(failed), loc))
            return None


def surface(step: AnyStep, name: str) -> Surface:
    """What the step reads from outside and publishes; syntax errors in references are the compiler's to report."""
    reads = list(_own_reads(step))
    if isinstance(step, (Sequence, Parallel, Graph)) or (isinstance(step, Map) and step.steps):
        reads += _reads_below(step, step.steps or ())
    return Surface(tuple(r for r in reads if r.lookup.name not in ROOTS), writes(step, name))


def _reads_below(step: AnyStep, members: tuple[AnyStep, ...]) -> list[Read]:
    """What the members of a block need from outside it."""
    names = unique_names(members)
    below = [surface(member, names[i]) for i, member in enumerate(members)]
    inside: set[str] = set()
    if isinstance(step, Map):
        inside |= {step.item_name, INDEX}
    elif isinstance(step, Graph):
        inside |= {w for s in below for w in s.writes or ()} | set(names)
    reads = []
    for i, s in enumerate(below):
        reads += [Read(r.lookup, ("steps", i, *r.loc)) for r in s.reads if r.lookup.name not in inside]
        if not isinstance(step, (Graph, Parallel)):
            inside |= {names[i], *(s.writes or ())}
    return reads


def writes(step: AnyStep, name: str) -> tuple[str, ...] | None:
    """The names that the step publishes, None where only the run can tell."""
    if step.outputs == "*":
        return None
    if step.outputs is not None:
        return step.outputs
    if not isinstance(step, Block):
        return (step.output or name,)
    if isinstance(step, Map) or (step.merge not in (None, "update")):
        merged = step.output or name
        return (merged, f"{merged}_errors") if step.merge == "collect_all" else (merged,)
    if step.output is not None:
        return (step.output,)
    assert isinstance(step, (Sequence, Parallel, Graph))
    collected: list[str] = []
    names = unique_names(step.steps)
    for i, member in enumerate(step.steps):
        if not member.enabled:
            continue
        below = writes(member, names[i])
        if below is None:
            return None
        collected += [w for w in below if w not in collected]
    return tuple(collected)


def unique_names(steps: Iterable[StepBase]) -> list[str]:
    """A name for every member: its own, or ``step_<position>``."""
    return [step.name or f"step_{i}" for i, step in enumerate(steps)]


def _own_reads(step: AnyStep) -> Iterator[Read]:
    """References in the step's own keys."""
    for loc, tree in trees(step):
        try:
            parsed = template.parse(tree)
        except template.TemplateError:
            continue
        yield from (Read(lookup, (*loc, *at)) for at, lookup in template.lookups(parsed))
    if isinstance(step.when, str):
        try:
            yield from (Read(lookup, ("when",)) for lookup in condition.parse(step.when).lookups)
        except condition.ConditionError:
            return


def trees(step: AnyStep) -> Iterator[tuple[Loc, Any]]:
    """The keys of a step that may hold references, inputs by name written as references."""
    if step.inputs:
        yield ("inputs",), input_tree(step.inputs)
    if step.params:
        yield ("params",), step.params
    if isinstance(step, Shell):
        for key in ("command", "env", "cwd", "stdin"):
            value = getattr(step, key)
            if value is not None:
                yield (key,), value
    if isinstance(step, Map) and isinstance(step.items, (str, tuple, list)):
        yield ("items",), step.items
    if isinstance(step, Map) and getattr(step.items, "glob", None):
        yield ("items", "glob"), step.items.glob
    if isinstance(step, Subpipeline):
        yield ("file",), step.file
    if isinstance(step, Merge) and not step.inputs:
        return


def input_tree(inputs: tuple[Any, ...] | dict[str, Any]) -> Any:
    """Inputs as an argument tree: a bare string is the name of a value."""
    if isinstance(inputs, dict):
        return {key: as_reference(value) for key, value in inputs.items()}
    return tuple(as_reference(value) for value in inputs)


def as_reference(value: Any) -> Any:
    """``rows`` as ``${rows}``; text that already holds a reference and other constants as they are."""
    if isinstance(value, str) and "${" not in value:
        return "${" + value + "}"
    return value
