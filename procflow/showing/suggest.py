"""Suggest: which steps of a sequence are independent, and the same pipeline with a graph in its place. Pure in effect.

A step waits for the steps that write what it reads, and for its ``depends_on``; that is all a file tells. What works through
files or services can't be seen, so a command, and a step that neither reads a value nor has one that another reads, keeps
its place: it waits for all before it, and all behind it wait for it. A sequence whose steps write a name twice, or read one
that a later step writes, is left alone, and so is a pipeline with ``state``. Nothing is run, timed or written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from collections.abc import Set as SetOf
from dataclasses import dataclass, field
from typing import Any

from procflow.compiling.names import Facts, Scope
from procflow.compiling.ordering import order
from procflow.compiling.surface import Surfaces, inner_steps, is_off, unique_names
from procflow.errors import Loc, Problem
from procflow.model import AnyStep, Graph, Pipeline, Sequence, Shell
from procflow.plaintext import clean
from procflow.units import duration_text

__all__ = ["Suggestion", "suggestion_data", "suggestion_lines", "suggestions", "with_graphs"]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A sequence that could be a graph; ``loc`` is its place in the file's tree, ``()`` for the pipeline's own steps.

    ``groups`` are steps that may run at once. ``added`` are the ``depends_on`` to write, by position, where no value says that
    a step waits; ``placed`` are the steps that keep their place. ``refused`` says why there is nothing to be won.
    """

    loc: Loc
    label: str
    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...] = ()
    added: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    placed: tuple[str, ...] = ()
    refused: str = ""


def suggestions(pipeline: Pipeline) -> list[Suggestion]:
    """Every sequence of two steps and more, outer first."""
    found = []
    for loc, label, steps in _sequences(pipeline):
        if sum(not is_off(step) for step in steps) > 1:
            found.append(_suggestion(pipeline, loc, label, steps))
    return found


def _sequences(pipeline: Pipeline) -> Iterator[tuple[Loc, str, SequenceOf[AnyStep]]]:
    if pipeline.type == "sequence":
        yield (), "", pipeline.steps
    waiting: list[tuple[Loc, str, SequenceOf[AnyStep]]] = [((), "", pipeline.steps)]
    while waiting:
        loc, label, steps = waiting.pop(0)
        for i, (step, name) in enumerate(zip(steps, unique_names(steps), strict=True)):
            below = inner_steps(step)
            own = f"{label}/{name}" if label else name
            if below and not is_off(step):
                if isinstance(step, Sequence):
                    yield (*loc, "steps", i), own, below
                waiting.append(((*loc, "steps", i), own, below))


def _suggestion(pipeline: Pipeline, loc: Loc, label: str, steps: SequenceOf[AnyStep]) -> Suggestion:
    names = unique_names(steps)
    surfaces = Surfaces()
    faces = {i: surfaces.face(step, names[i]) for i, step in enumerate(steps) if not is_off(step)}
    told = tuple(names[i] for i in faces)
    refused = "its steps share a state, which each of them sees as those before it left it" if pipeline.state else ""
    writers: dict[str, int] = {}
    for i, face in faces.items():
        if face.is_open:
            refused = refused or f"only the run can tell what {names[i]!r} publishes (outputs: '*')"
        for value in face.writes:
            if value in writers:
                refused = (
                    refused or f"{names[writers[value]]!r} and {names[i]!r} both write {value!r}, so their order counts"
                )
            writers[value] = i
    problems: list[Problem] = []
    by_value, _ = order(steps, names, faces, "graph", Scope(Facts({}, {}, {})), surfaces, loc, problems)
    for i in faces:
        for later in (j for j in by_value[i] if j > i):
            refused = refused or f"{names[i]!r} reads a value that {names[later]!r} writes anew, later"
    if refused:
        return Suggestion(loc, label, told, refused=refused)
    placed = [i for i in faces if isinstance(steps[i], Shell) or _is_detached(i, by_value, surfaces.reads(steps[i]))]
    after = {i: set(before) for i, before in by_value.items()}
    last: int | None = None
    for i in faces:
        if last is not None:
            after[i].add(last)
        if i in placed:
            after[i].update(j for j in faces if j < i)
            last = i
    needed = _without_shortcuts(after)
    groups = _groups(needed)
    named = tuple(tuple(names[i] for i in group) for group in groups)
    known = _all_before(by_value)
    added = {i: tuple(names[j] for j in sorted(needed[i] - known[i])) for i in faces if needed[i] - known[i]}
    if not groups:
        return Suggestion(loc, label, told, refused="each of its steps waits for the one before it")
    return Suggestion(loc, label, told, named, added, tuple(names[i] for i in placed))


def _is_detached(i: int, after: Mapping[int, SetOf[int]], reads: SequenceOf[Any]) -> bool:
    """It reads no value, and no step reads one of its."""
    return not reads and not after[i] and not any(i in before for before in after.values())


def _all_before(after: Mapping[int, SetOf[int]]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for i in sorted(after):
        found[i] = set(after[i]).union(*(found[j] for j in after[i]))
    return found


def _without_shortcuts(after: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """The same order with no step that is waited for by way of another."""
    whole = _all_before(after)
    return {i: {j for j in after[i] if not any(j in whole[k] for k in after[i])} for i in after}


def _groups(after: Mapping[int, set[int]]) -> list[list[int]]:
    """Steps that wait for as long a chain, and so for none of each other; groups of one are left out."""
    depth: dict[int, int] = {}
    for i in sorted(after):
        depth[i] = 1 + max((depth[j] for j in after[i]), default=0)
    by_depth: dict[int, list[int]] = {}
    for i, deep in depth.items():
        by_depth.setdefault(deep, []).append(i)
    return [by_depth[deep] for deep in sorted(by_depth) if len(by_depth[deep]) > 1]


# -- the pipeline with graphs --------------------------------------------------------------------------------------


def with_graphs(pipeline: Pipeline, chosen: SequenceOf[Suggestion]) -> Pipeline:
    """The same pipeline with a graph in the place of each sequence that was chosen."""
    by_loc = {each.loc: each for each in chosen if not each.refused}

    def changed(loc: Loc, steps: SequenceOf[AnyStep], own: Suggestion | None) -> tuple[AnyStep, ...]:
        made: list[AnyStep] = []
        for i, step in enumerate(steps):
            at = (*loc, "steps", i)
            below = inner_steps(step)
            update: dict[str, Any] = {"steps": changed(at, below, by_loc.get(at))} if below else {}
            if own is not None and i in own.added:
                update["depends_on"] = tuple(dict.fromkeys((*step.depends_on, *own.added[i])))
            new: Any = step.model_copy(update=update) if update else step
            if at in by_loc:
                fields = {name: getattr(new, name) for name in type(new).model_fields if name != "type"}
                new = Graph.model_construct(new.model_fields_set - {"type"}, **fields)
            made.append(new)
        return tuple(made)

    top = by_loc.get(())
    update: dict[str, Any] = {"steps": changed((), pipeline.steps, top)}
    if top is not None:
        update["type"] = "graph"
    return pipeline.model_copy(update=update)


# -- for people and programs ---------------------------------------------------------------------------------------


def suggestion_lines(
    found: SequenceOf[Suggestion], seconds: Mapping[Loc, float], before_s: float, all_s: float, about: str
) -> Iterator[str]:
    """What a person reads. ``seconds`` are those of a run with each suggestion alone, ``about`` says where they come from."""
    useful = [each for each in found if not each.refused]
    for each in found:
        what = f"sequence {clean(each.label)}" if each.loc else "the pipeline's steps"
        if each.refused:
            yield f"{what}: nothing to gain: {clean(each.refused)}"
            continue
        yield f"{what} ({len(each.names)} steps) could be a graph:"
        for group in each.groups:
            yield f"  independent   {', '.join(map(clean, group))}"
        if each.placed:
            yield f"  keep place    {', '.join(map(clean, each.placed))} (they may work through files, which can't be seen)"
        yield f"  expected      {_gain(before_s, seconds[each.loc])}"
    if len(useful) > 1:
        yield f"all together: {_gain(before_s, all_s)}"
    if useful:
        yield f"times: {about}"
        yield "--apply writes it into the file: type: graph, and depends_on where no value says that a step waits"


def _gain(before_s: float, after_s: float) -> str:
    saved = before_s - after_s
    share = f", {saved / before_s:.0%}" if before_s else ""
    return (
        f"{duration_text(after_s)} instead of {duration_text(before_s)}: saves {duration_text(max(0.0, saved))}{share}"
    )


def suggestion_data(
    found: SequenceOf[Suggestion], seconds: Mapping[Loc, float], before_s: float, all_s: float, about: str
) -> dict[str, Any]:
    """The same for a program."""
    rows = [
        {
            "label": each.label, "steps": list(each.names), "independent": [list(group) for group in each.groups],
            "keep_place": list(each.placed), "refused": each.refused or None,
            "depends_on": {str(i): list(names) for i, names in each.added.items()},
            "expected_s": seconds.get(each.loc), "saved_s": before_s - seconds[each.loc] if each.loc in seconds else None,
        }
        for each in found
    ]  # fmt: skip
    return {"sequence_s": before_s, "graph_s": all_s, "saved_s": before_s - all_s, "times": about, "suggestions": rows}
