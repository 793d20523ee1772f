"""Surface: what a declared step shows to its block, worked out without looking at the steps around it. Pure.

Which values it publishes (``Face``), which it reads from outside (``Surfaces.reads``), which of its keys hold
references. It binds nothing and reports nothing: a reference that can't be read is left out here and told by the
compiler.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from procflow.call import INDEX, SECRETS, Lookup
from procflow.compiling import bindings, condition, template
from procflow.errors import Loc
from procflow.passive import passive

from procflow.model import (  # isort: skip
    AnyStep, Block, Graph, Map, Merge, Pipeline, Query, Rest, Sequence, Shell, Split, StepBase, Subpipeline, Transform,
    UseSkill,
)  # fmt: skip

__all__ = [
    "BARE",
    "LEAVES",
    "LIMITS",
    "ROOTS",
    "Face",
    "Shown",
    "Surfaces",
    "as_reference",
    "blocks_among",
    "deepest",
    "inner_steps",
    "input_tree",
    "is_off",
    "is_output",
    "publishes_members",
    "references",
    "unique_names",
    "why_off",
    "written_at",
]  # fmt: skip

ROOTS = ("params", "env", "run", SECRETS)
"""First parts of references that are not values."""


LEAVES = (Transform, Shell, Merge, Split, Query, UseSkill, Rest)
"""The kinds of steps that hold none and read no file, the most frequent first: a question for these is answered at once."""


_LEAVES = frozenset(LEAVES)
BARE = frozenset({"name", "type", "function", "description", "enabled"})
"""What a step says that refers to nothing and limits nothing."""
LIMITS = ("cpus", "memory", "timeout", "idle_timeout", "kill_grace", "retry", "retries", "on_error", "rate_limit")
"""What a step says of its attempts alone."""
_PLAIN = BARE | {*LIMITS, "priority", "output", "outputs", "params"}


@passive(frozen=True, slots=True)
class Face:
    """What a step publishes.

    ``writes`` are the names known before the run, ``is_open`` says that the run may add more (``outputs: "*"``).
    ``main`` is the value that ``${step.output}`` means; ``keyed`` says that ``${step.output.NAME}`` picks one of
    ``writes``.
    """

    writes: tuple[str, ...]
    is_open: bool = False
    main: str | None = None
    keyed: bool = False

    @property
    def names(self) -> tuple[str, ...] | None:
        """``writes``, None where only the run can tell."""
        return None if self.is_open else self.writes


@passive(frozen=True, slots=True)
class Shown:
    """The members of a block: a name for each, and the faces of those that are not left out, by position.

    ``plain`` are those of them with a function that refer to nothing: all that they say is known here and now; ``saying`` are
    those of these that say more than ``BARE``. ``written`` is what all members write, in order.
    """

    names: list[str]
    faces: dict[int, Face]
    plain: dict[int, Transform]
    saying: set[int]
    written: list[str]


class Surfaces:
    """Faces and reads of steps, each worked out once."""

    def __init__(self) -> None:
        # The step is kept with its answer, so that its id can't go to another.
        self._faces: dict[tuple[int, str], tuple[StepBase, Face]] = {}
        self._members: dict[int, tuple[tuple[StepBase, ...], Shown]] = {}
        self._reads: dict[int, tuple[StepBase, tuple[Lookup, ...]]] = {}
        self.skills: dict[int, tuple[StepBase, tuple[str, ...], tuple[str, ...]]] = {}
        """What skill steps produce (no names where only the call can tell), and the names that they ask for."""

    def face(self, step: AnyStep, name: str) -> Face:
        """What the step publishes under its name in its block."""
        if isinstance(step, LEAVES):
            return self._face(step, name)
        known = self._faces.get((id(step), name))
        if known is None:
            known = self._faces[(id(step), name)] = (step, self._face(step, name))
        return known[1]

    def members(self, steps: tuple[AnyStep, ...]) -> Shown:
        """The members of a block as they show themselves; ``steps`` as the block holds them."""
        known = self._members.get(id(steps))
        if known is None:
            shown = Shown(unique_names(steps), {}, {}, set(), [])
            for i, (step, name) in enumerate(zip(steps, shown.names, strict=True)):
                if isinstance(step, Transform) and step.model_fields_set <= BARE:
                    if step.enabled:
                        shown.plain[i] = step
                        shown.faces[i] = Face((name,), False, name)
                        shown.written.append(name)
                elif not is_off(step):
                    face = shown.faces[i] = self.face(step, name)
                    shown.written.extend(face.writes)
                    if isinstance(step, Transform) and not face.is_open and _is_plain(step):
                        shown.plain[i] = step
                        shown.saying.add(i)
            known = self._members[id(steps)] = (steps, shown)
        return known[1]

    def _face(self, step: AnyStep, name: str) -> Face:
        outputs = step.outputs
        if step.type == "skill" and step.output is None and outputs in (None, "*"):
            names = self.skills[id(step)][1] if id(step) in self.skills else ()
            return Face(names, is_open=not names, main=names[0] if len(names) == 1 else None, keyed=True)
        if outputs is not None:
            if outputs == "*":
                return Face((), is_open=True, keyed=True)
            return Face(outputs, main=outputs[0] if len(outputs) == 1 else None, keyed=True)
        main = step.output or name
        if not isinstance(step, LEAVES) and isinstance(step, Block):
            if step.merge == "collect_all":
                return Face((main, f"{main}_errors"), main=main)
            if not publishes_members(step):
                return Face((main,), main=main)
            return self._united(inner_steps(step))
        return Face((main,), main=main)

    def _united(self, steps: tuple[AnyStep, ...]) -> Face:
        shown = self.members(steps)
        is_open = any(face.is_open for i, face in shown.faces.items() if i not in shown.plain)
        return Face(tuple(dict.fromkeys(shown.written)), is_open, keyed=True)

    def dormant(self, step: AnyStep, name: str, off: str = "") -> Iterator[tuple[str, str, str]]:
        """Values that the step or steps inside would write if they were not left out: value, step, and why it is."""
        off = why_off(step) if is_off(step) else off
        if isinstance(step, Block) and publishes_members(step):
            members = inner_steps(step)
            for member, inner in zip(members, unique_names(members), strict=True):
                if off or not isinstance(member, LEAVES) or is_off(member):
                    yield from self.dormant(member, inner, off)
        elif off:
            yield from ((value, name, off) for value in self.face(step, name).writes)

    def reads(self, step: AnyStep) -> tuple[Lookup, ...]:
        """The values that the step and all inside it need from outside, one lookup each."""
        if step.model_fields_set <= BARE and isinstance(step, Transform):
            return ()
        known = self._reads.get(id(step))
        if known is None:
            found = self._own_reads(step)
            if not isinstance(step, LEAVES):
                found += self._reads_below(step)
            unique = {(lookup.name, is_output(lookup)): lookup for lookup in found if lookup.name not in ROOTS}
            known = self._reads[id(step)] = (step, tuple(unique.values()))
        return known[1]

    def _own_reads(self, step: AnyStep) -> list[Lookup]:
        found: list[Lookup] = []
        if id(step) in self.skills:
            own = {*step.params, *(step.inputs if isinstance(step.inputs, dict) else ())}
            found += [Lookup(name) for name in self.skills[id(step)][2] if name not in own]
        item = (step.item_name, INDEX) if isinstance(step, Map) else ()
        for loc, tree in _parsed(step):
            inside = item if loc[0] in ("inputs", "params") else ()
            found += [lookup for lookup in template.lookups_in((tree,)) if lookup.name not in inside]
        return found + _in_condition(step)

    def _reads_below(self, step: AnyStep) -> Iterator[Lookup]:
        members = inner_steps(step)
        if not members:
            return
        shown = self.members(members)
        values: set[str] = {step.item_name, INDEX} if isinstance(step, Map) else set()
        steps: set[str] = set()
        if isinstance(step, Graph):
            steps.update(shown.names[i] for i in shown.faces)
            values.update(written for face in shown.faces.values() for written in face.writes)
        for i, face in shown.faces.items():
            for lookup in self.reads(members[i]):
                if lookup.name not in values and not (is_output(lookup) and lookup.name in steps):
                    yield lookup
            if isinstance(step, (Sequence, Map)):
                steps.add(shown.names[i])
                values.update(face.writes)


def is_output(lookup: Lookup) -> bool:
    """Whether the reference may mean a step's output: ``${step.output...}``."""
    return lookup.path[:1] == ("output",)


def inner_steps(step: StepBase) -> tuple[AnyStep, ...]:
    """The steps that a block holds, as declared; none for a leaf and for a map that calls a function."""
    # Only blocks have the key, and to ask for each kind of block takes a microsecond.
    return step.__dict__.get("steps") or ()


def blocks_among(steps: Iterable[StepBase]) -> list[tuple[int, tuple[AnyStep, ...]]]:
    """The members that hold steps, by position, with what they hold."""
    return [
        (i, below)
        for i, step in enumerate(steps)
        if type(step) not in _LEAVES and (below := step.__dict__.get("steps"))
    ]


def publishes_members(step: Block) -> bool:
    """Whether the block publishes its members' own names rather than one merged value."""
    return not isinstance(step, Map) and step.output is None and step.merge in (None, "update")


def is_off(step: StepBase) -> bool:
    """Whether the step is left out, with all it would publish: by a key of its own, or because all inside it is."""
    if not step.enabled or step.when is False:
        return True
    if isinstance(step, LEAVES):
        return False
    members = inner_steps(step)
    return bool(members) and all(map(is_off, members))


def why_off(step: StepBase) -> str:
    """The key that leaves the step out, in words."""
    if not step.enabled:
        return "it is disabled (enabled: false)"
    return "it never runs (when: false)" if step.when is False else "all its steps are disabled"


def unique_names(steps: Iterable[StepBase]) -> list[str]:
    """A name for every member: its own, or ``step_<position>``."""
    return [step.name or f"step_{i}" for i, step in enumerate(steps)]


def written_at(step: AnyStep, value: str, surfaces: Surfaces) -> Loc:
    """The key, from the step down, that makes the step publish ``value``."""
    if step.output is not None:
        return ("output",)
    if isinstance(step.outputs, tuple) and value in step.outputs:
        return ("outputs", step.outputs.index(value))
    if isinstance(step, Block) and publishes_members(step):
        members = inner_steps(step)
        for i, face in surfaces.members(members).faces.items():
            if value in face.writes:
                return ("steps", i, *written_at(members[i], value, surfaces))
    return ("name",) if step.name is not None else ()


def _is_plain(step: Transform) -> bool:
    """Whether a step says nothing that refers to something else, and nothing that takes more than a look."""
    if not step.model_fields_set <= _PLAIN:
        return False
    return not any(map(template.may_refer, step.params)) and not any(map(template.may_refer, step.params.values()))


# -- references ------------------------------------------------------------------------------------------------


def references(step: AnyStep) -> Iterator[tuple[Lookup, Loc]]:
    """Every reference in the step's own keys with its place from the step down."""
    for loc, tree in _parsed(step):
        yield from ((lookup, (*loc, *at)) for at, lookup in template.lookups(tree))
    yield from ((lookup, ("when",)) for lookup in _in_condition(step))


def _parsed(step: AnyStep) -> Iterator[tuple[Loc, Any]]:
    """The keys that may hold references, without those that can't be read."""
    for loc, tree in _trees(step):
        try:
            parsed = template.parse(tree)
        except template.TemplateError:
            continue
        yield loc, parsed


def _in_condition(step: AnyStep) -> list[Lookup]:
    if not isinstance(step.when, str):
        return []
    try:
        return list(condition.parse(step.when).lookups)
    except condition.ConditionError:
        return []


def _trees(step: AnyStep) -> Iterator[tuple[Loc, Any]]:
    """The keys of a step that may hold references, inputs by name written as references."""
    if step.inputs:
        yield ("inputs",), input_tree(step.inputs)
    if step.params:
        yield ("params",), step.params
    if isinstance(step, Shell):
        for key in ("command", "env", "cwd", "stdin"):
            yield (key,), getattr(step, key)
    if isinstance(step, (Query, Rest)):
        yield from _asked(step)
    if isinstance(step, Map):
        if isinstance(step.items, (str, tuple, list)):
            yield ("items",), step.items
        elif getattr(step.items, "glob", None):
            yield ("items", "glob"), step.items.glob
        if step.initial is not None:
            yield ("initial",), step.initial
    if isinstance(step, Subpipeline):
        yield ("file",), step.file


_ASKED = ("query", "collection", "filter", "aggregate", "insert", "update", "command", "url", "headers", "body", "text")


def _asked(step: Query | Rest) -> Iterator[tuple[Loc, Any]]:
    """The keys of a step that asks something outside; each ``{name}`` that is not a param or input as a reference."""
    own = {*step.params, *(step.inputs if isinstance(step.inputs, dict) else ())}
    for key in _ASKED:
        given = getattr(step, key, None)
        loc = "json" if key == "body" else key
        if given is not None:
            yield (loc,), given
            for at, place in bindings.places(given):
                if place.name.partition(".")[0] not in own:
                    yield (loc, *at), f"${{{place.name}}}"


def input_tree(inputs: tuple[Any, ...] | dict[str, Any]) -> Any:
    """Inputs as an argument tree: a bare string is the name of a value."""
    if not inputs:
        return inputs
    if isinstance(inputs, dict):
        return {key: as_reference(value) for key, value in inputs.items()}
    return tuple([as_reference(value) for value in inputs])


def as_reference(value: Any) -> Any:
    """``rows`` as ``${rows}``, parsed; text that already holds a reference and other constants as they are."""
    return Lookup(value) if isinstance(value, str) and "${" not in value else value


def deepest(pipeline: Pipeline, most: int) -> Loc | None:
    """The place of a block that lies deeper than ``most`` blocks, None where there is none; without recursion."""
    stack: list[tuple[tuple[AnyStep, ...], Loc, int]] = [(pipeline.steps, ("steps",), 1)]
    while stack:
        steps, loc, depth = stack.pop()
        for i, below in blocks_among(steps):
            if depth > most:
                return (*loc, i)
            stack.append((below, (*loc, i, "steps"), depth + 1))
    return None
