"""Blocks: a block's members into units, in order, each in the scope of what has a value there. Pure.

``members`` is the heart of the compile: it calls ``_unit`` for each member, which comes back here for blocks inside.
Recursive over the depth of blocks only. Leaves are made in ``tasks.py``, those that
refer to nothing all at once in ``plain.py``, files in ``subpipelines.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Union

from procflow.call import INDEX, Lookup, StepCall
from procflow.compiling import subpipelines
from procflow.compiling.build import Binder, Build, Seat, Setting
from procflow.compiling.hooks import hooks_of
from procflow.compiling.leaves import Common, call_of, merge_options
from procflow.compiling.names import Scope
from procflow.compiling.ordering import order
from procflow.compiling.plain import plain_tasks
from procflow.compiling.surface import (
    LEAVES,
    ROOTS,
    Face,
    Shown,
    inner_steps,
    publishes_members,
    why_off,
    written_at,
)
from procflow.compiling.tasks import gate_of, hidden, leaf, limited, paced, policy, retry_of, seconds, with_files
from procflow.compiling.transient import check_kind
from procflow.errors import Loc
from procflow.graph import MapUnit, MergeSpec, ScopeUnit, TaskUnit, Unit
from procflow.model import AnyStep, Block, Graph, Items, Map, Parallel, Sequence, Subpipeline
from procflow.state import SO_FAR

__all__ = ["members"]

PAGE = 1000
"""Items of a map in one page at most."""

_NONE: frozenset[int] = frozenset()
_BESIDE = frozenset({"transient", "on_success", "on_failure", "on_finish"})
"""Keys of a step that say something beside its unit."""
_RESERVED = frozenset({*ROOTS, INDEX})

AnyBlock = Union[Sequence, Parallel, Graph, Map]


def members(
    build: Build, setting: Setting, block: subpipelines.Members, scope: Scope
) -> tuple[Unit, ...]:  # fmt: skip
    """The units of a block's members. ``scope`` is the block's own; at the end it holds what the members published."""
    steps, kind, loc = block.steps, block.kind, block.loc
    shown = build.surfaces.members(steps)
    names, faces = shown.names, shown.faces
    _check_names(build, block, shown)
    after, strict = order(steps, names, faces, kind, scope, build.surfaces, loc, build.problems)
    scope.withhold(partial(_withheld, build, block, shown))
    if kind == "graph":
        for i, face in faces.items():
            scope.publish(names[i], face)
    place = {declared: position for position, declared in enumerate(faces)}
    path, label = f"{block.path}." if block.path else "", f"{block.label}/" if block.label else ""
    units = plain_tasks(build, setting, block, shown, place, after)
    for i in faces if kind == "sequence" else [i for i in faces if i not in units]:
        if i not in units:
            step, name, before, needed = steps[i], names[i], after[i], strict[i]
            given = step.model_fields_set
            seat: Seat = {
                "index": place[i], "name": name, "path": f"{path}{i}", "label": label + name, "loc": (*loc, i),
                "after": tuple(sorted([place[j] for j in before])) if before else (),
                "strict": frozenset([place[j] for j in needed]) if needed else _NONE,
                "priority": step.priority if "priority" in given else setting.priority,
            }  # fmt: skip
            unit = _unit(build, setting, step, seat, scope, faces[i])
            if not given.isdisjoint(_BESIDE):
                unit = _with_hooks(build, setting, step, seat, scope, unit)
            units[i] = unit
        if kind == "sequence":
            scope.publish(names[i], faces[i])
    return tuple([units[i] for i in faces])


def _with_hooks(build: Build, setting: Setting, step: AnyStep, seat: Seat, scope: Scope, unit: Unit) -> Unit:
    if step.transient:
        check_kind(build, step, seat["loc"])
    own = hooks_of(build, setting, step, Scope(scope.facts), seat["path"], seat["label"], seat["loc"], members)
    return replace(unit, hooks=(*unit.hooks, *own)) if own else unit


_WHY = {
    "sequence": "step {name!r} makes it, and runs later",
    "parallel": "step {name!r} makes it in the same parallel block; use type: graph, or a step after the block",
}


def _withheld(build: Build, block: subpipelines.Members, shown: Shown) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Why members of the block don't see what others make, and nobody what is left out."""
    names, faces = shown.names, shown.faces
    for i, face in faces.items() if block.kind != "graph" else ():
        yield names[i], (names[i], *face.writes), _WHY[block.kind]
    for i, (step, name) in enumerate(zip(block.steps, names, strict=True)):
        if i in faces and isinstance(step, LEAVES):
            continue
        for value, writer, off in build.surfaces.dormant(step, name):
            yield writer, (value,), f"step {{name!r}} makes it, and {off}"
        if i not in faces:
            yield name, (name,), f"it is a step, and {why_off(step)}"


def _check_names(build: Build, block: subpipelines.Members, shown: Shown) -> None:
    """Two steps of one name, two branches that write one value, values that could not be read."""
    names, faces, written = shown.names, shown.faces, set(shown.written)
    exclusive = block.kind == "graph" or (block.kind == "parallel" and block.joins)
    unique = len(written) == len(shown.written) or not exclusive
    if unique and _RESERVED.isdisjoint(written) and len(set(map(str.casefold, names))) == len(names):
        return
    seen: dict[str, int] = {}
    writers: dict[str, int] = {}
    for i, name in enumerate(names):
        first = seen.setdefault(name.casefold(), i)
        if first != i:
            key: Loc = ("name",) if block.steps[i].name is not None else ()
            build.note(
                f"two steps of one block are named {name!r}", (*block.loc, i, *key), f"the other is step {first}"
            )
    for i, face in faces.items():
        step = block.steps[i]
        for value in face.writes:
            first = writers.setdefault(value, i)
            twice = exclusive and first != i and names[first].casefold() != names[i].casefold()
            reserved = value in _RESERVED and not (isinstance(step, Block) and publishes_members(step))
            if not (twice or reserved):
                continue
            at = (*block.loc, i, *written_at(step, value, build.surfaces))
            if reserved:
                build.note(
                    f"{value!r} can't be the name of a value: ${{{value}}} means something else", at, "rename it"
                )
            if twice:
                hint = ", or give the block merge: collect_all, first_success, best_quality or combine_outputs"
                build.note(
                    f"{names[first]!r} and {names[i]!r} both write {value!r} and may run at once", at,
                    "rename one" + (hint if block.kind == "parallel" else ""),
                )  # fmt: skip


def _unit(build: Build, setting: Setting, step: AnyStep, seat: Seat, scope: Scope, face: Face) -> Unit:
    """The unit of one declared step; ``scope`` is that of the block in which it stands."""
    if isinstance(step, LEAVES):
        return leaf(build, setting, step, seat, scope, face)
    scope = scope.view(seat["name"])
    if isinstance(step, Subpipeline):
        return subpipelines.subpipeline(build, setting, step, seat, scope, face, members)
    if isinstance(step, Map):
        return _map(build, setting, step, seat, scope)
    return _block(build, setting, step, seat, scope, face)


def _block(
    build: Build, setting: Setting, step: Sequence | Parallel | Graph, seat: Seat, scope: Scope, face: Face
) -> ScopeUnit:
    inner = setting.inside(step.executor, seat["priority"], seconds(step.timeout))
    inner = paced(build, inner, step, seat["path"])
    block = subpipelines.Members(
        step.steps, step.type, seat["path"], seat["label"], (*seat["loc"], "steps"), step.merge in (None, "update")
    )
    units = members(build, inner, block, scope.block())
    need = _need(step)
    if need is not None and need > len(units):
        build.note(f"{need} of {len(units)} steps that are not disabled can never succeed", (*seat["loc"], "join"))
    merge, merger = _merge(build, setting, step, seat)
    return ScopeUnit(
        **seat,
        kind=step.type,
        members=units,
        writes=face.names,
        timeout_s=seconds(step.timeout),
        retry=retry_of(step, None),
        max_parallelism=step.max_parallelism,
        on_error=policy(step.on_error, step.tolerate),
        tolerate=step.tolerate,
        need=need,
        merge=merge,
        merger=merger,
        gate=gate_of(build, setting, step, seat, scope),
        state=setting.state,
    )


def _need(step: Block) -> int | None:
    """How many successes end the block, None for all."""
    if isinstance(step.join, int):
        return step.join
    return 1 if step.join == "any" else None


def _merge(build: Build, setting: Setting, step: AnyBlock, seat: Seat) -> tuple[MergeSpec, TaskUnit | None]:
    """How the block's results become values, and the task that does it where content matters."""
    is_map, output = isinstance(step, Map), step.output or seat["name"]
    if step.merge is None or (step.merge == "update" and not is_map):
        return (MergeSpec("rows", output) if is_map else MergeSpec("update", step.output)), None
    if step.merge in ("collect_all", "first_success"):
        return MergeSpec(step.merge, output), None
    function, options = merge_options(step.merge, step.score)
    call = StepCall(
        "merge", seat["path"], seat["name"], function=function, args=(Lookup("results"),), outputs=(output,),
        options=options, folder=setting.folder,
    )  # fmt: skip
    return MergeSpec("task", output), hidden(build, setting, step, seat, call)


# -- maps ------------------------------------------------------------------------------------------------------


def _map(build: Build, setting: Setting, step: Map, seat: Seat, scope: Scope) -> MapUnit:
    """The scope of a map: a task that expands the items, and a body for each."""
    outer = Binder(build, scope, seat["loc"])
    expand = hidden(build, setting, step, seat, _expand(step, seat, setting, outer))
    inside = scope.block()
    if step.item_name in (*ROOTS, INDEX):
        outer.note(f"an item can't be called {step.item_name!r}: that means something else", "as", hint="rename it")
    inside.names.update({step.item_name: "", INDEX: ""})
    if step.function is not None:
        body: Unit = _function_body(build, setting, step, seat, Binder(build, inside, seat["loc"]))
        if (step.rate_limit is not None or setting.rates) and step.batch is not None and step.batch > 1:
            outer.note("a rate_limit counts items, so they can't go in batches", "batch", hint="leave it out")
    else:
        body = _steps_body(build, setting, step, seat, inside)
    merge, merger, fold = (*_merge(build, setting, step, seat), None)
    if step.reduce is not None:
        merge, merger, fold = _reduced(build, setting, step, seat, outer)
    is_block = step.function is None
    return MapUnit(
        **seat,
        kind="map",
        writes=build.surfaces.face(step, seat["name"]).names,
        # With a function the clock and the retries are those of an item: its task has them.
        timeout_s=seconds(step.timeout) if is_block else None,
        retry=retry_of(step, None) if is_block else retry_of(None, None),
        max_parallelism=step.max_parallelism,
        on_error=policy(step.on_error, step.tolerate),
        tolerate=step.tolerate,
        need=_need(step),
        merge=merge,
        merger=merger,
        reduce=fold,
        gate=gate_of(build, setting, step, seat, scope),
        expand=expand,
        body=body,
        item_name=step.item_name,
        # A rate counts items, and a batch is one start.
        batch=1 if step.rate_limit is not None or setting.rates else step.batch,
        state=setting.state,
    )


def _reduced(
    build: Build, setting: Setting, step: Map, seat: Seat, bind: Binder
) -> tuple[MergeSpec, TaskUnit, TaskUnit]:
    """How results become one value: the fold that ends the map, and the one that runs meanwhile."""
    output = step.output or seat["name"]
    options = {"initial": bind(step.initial, "initial"), "has_initial": "initial" in step.model_fields_set}
    call = StepCall(
        "reduce", seat["path"], seat["name"], function=step.reduce, outputs=(output,), options=options,
        folder=setting.folder,
    )  # fmt: skip
    last = hidden(build, setting, step, seat, call)
    return MergeSpec("task", output), last, replace(last, call=replace(call, outputs=(SO_FAR,)))


def _function_body(build: Build, setting: Setting, step: Map, seat: Seat, bind: Binder) -> TaskUnit:
    common = Common(
        path=seat["path"], name=seat["name"], outputs=(), when=None, constants={}, folder=setting.folder
    )  # fmt: skip
    alone: Seat = {**seat, "index": 0, "after": (), "strict": frozenset()}
    return limited(build, setting, step, alone, with_files(call_of(step, common, bind), step, bind), ())


def _steps_body(build: Build, setting: Setting, step: Map, seat: Seat, inside: Scope) -> ScopeUnit:
    """One iteration: the steps as a sequence, whose last value is the item's result."""
    inner = setting.inside(step.executor, seat["priority"], seconds(step.timeout))
    inner = paced(build, inner, step, seat["path"])
    block = subpipelines.Members(
        inner_steps(step), "sequence", seat["path"], seat["label"], (*seat["loc"], "steps"), True
    )
    units = members(build, inner, block, inside.block())
    alone: Seat = {**seat, "index": 0, "path": f"{seat['path']}.0", "after": (), "strict": frozenset()}
    return ScopeUnit(
        **alone, kind="sequence", members=units, writes=units[-1].writes if units else (), state=setting.state
    )


def _expand(step: Map, seat: Seat, setting: Setting, bind: Binder) -> StepCall:
    """The call that turns the items into pages."""
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = {"page": PAGE}
    if isinstance(step.items, Items):
        if step.items.range is not None:
            options["range"] = step.items.range
        else:
            options |= {"glob": bind(step.items.glob, "items", "glob"), "folder": setting.folder}
    elif isinstance(step.items, str):
        args = (_items_text(step.items, bind),)
    else:
        # A list may hold references; anything else that can be gone through is taken as it is.
        args = (bind(step.items, "items") if isinstance(step.items, (list, tuple)) else step.items,)
    return StepCall("expand", seat["path"], seat["name"], args=args, options=options, folder=setting.folder)


def _items_text(items: str, bind: Binder) -> Any:
    known = len(bind.build.problems)
    tree = bind(items, "items")
    if not isinstance(tree, Lookup) and len(bind.build.problems) == known and not isinstance(tree, (list, tuple, dict)):
        hint = f"write ${{{items}}} for a value of that name, or {{glob: ...}} for files" if "${" not in items else ""
        bind.note(f"the items are {tree!r:.60}, and no list", "items", hint=hint)
    return tree
