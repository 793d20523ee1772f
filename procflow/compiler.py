"""Compiler: a declared pipeline into a TaskGraph, with every name, reference and bound checked.

Pure: it reads no file and no clock; what it needs from outside (parameters, environment, the loader for ``type: pipeline``) is
passed in. It finds as many problems as it can and raises them together. What it hands on is valid: later layers
assert rather than check. Order inside a block is worked out here (``after``), and so is ``rank``, the longest remaining path.

    Pipeline ──> surface (reads, writes) ──> order of members ──> units ──> ranks ──> TaskGraph
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from procflow import condition, ranks, template
from procflow.call import INDEX, Lookup, StepCall
from procflow.errors import Loc, PipelineError, Problem
from procflow.graph import MapUnit, MergeSpec, RetrySpec, ScopeUnit, TaskGraph, TaskUnit, Unit
from procflow.leaves import call_of
from procflow.model import AnyStep, Block, Defaults, Map, Param, Pipeline, Retry, Subpipeline
from procflow.names import ROOTS, Scope, surface, unique_names, writes
from procflow.ordering import order

__all__ = ["Load", "compile_pipeline"]

Load = Callable[[str, Loc], "tuple[Pipeline, str]"]
"""Loads the file of a ``type: pipeline`` step: path as written and its place in the tree, to pipeline and folder."""

MAX_DEPTH = 64


def compile_pipeline(
    pipeline: Pipeline,
    *,
    params: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    run_id: str = "",
    folder: str | None = None,
    executor: str | None = None,
    load: Load | None = None,
    durations: Mapping[str, float] | None = None,
) -> TaskGraph:
    """The graph that runs ``pipeline``; raises ``PipelineError`` with every problem found.

    ``params`` override declared defaults. ``executor`` replaces ``processes`` as the default of steps. ``durations`` are expected
    seconds by label, for ranks; a step that is not in it counts one second.
    """
    problems: list[Problem] = []
    known = parameters(pipeline, params or {}, problems)
    scope = Scope(
        set(), False, {}, known, environ or {}, {"id": run_id, "name": pipeline.name}, problems
    )  # fmt: skip
    compiler = _Compiler(
        pipeline.defaults, folder, executor or pipeline.defaults.executor or "processes", load, problems
    )
    root = compiler.top(pipeline, scope)
    for i, name in enumerate(pipeline.show):
        if name not in scope.names and not scope.is_open:
            near = difflib.get_close_matches(name, list(scope.names), 1)
            hint = f"did you mean {near[0]!r}?" if near else ""
            problems.append(Problem(f"show: no step publishes {name!r}", ("show", i), hint))
    if problems:
        raise PipelineError(problems)
    root = ranks.ranked(root, durations or {})
    return TaskGraph(pipeline.name, root, known, dict(pipeline.limits.resources), frozenset(compiler.executors))


def parameters(pipeline: Pipeline, given: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """Declared defaults with the given values over them."""
    for name in given:
        if name not in pipeline.params:
            near = difflib.get_close_matches(name, list(pipeline.params), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"declared: {', '.join(pipeline.params) or 'none'}"
            problems.append(Problem(f"there is no parameter {name!r}", ("params",), hint))
    known = {}
    for name, param in pipeline.params.items():
        assert isinstance(param, Param)
        if name in given:
            known[name] = given[name]
        elif param.required:
            problems.append(Problem(f"parameter {name!r} needs a value", ("params", name), f"give -p {name}=VALUE"))
            known[name] = None
        else:
            known[name] = param.default
    return known


@dataclass(slots=True)
class _Compiler:
    """Walks the declared tree once; ``scope`` says what has a value at each point."""

    defaults: Defaults
    folder: str | None
    executor: str
    load: Load | None
    problems: list[Problem]
    executors: set[str] = field(default_factory=set)
    depth: int = 0

    def top(self, pipeline: Pipeline, scope: Scope) -> ScopeUnit:
        members = self.members(pipeline.steps, pipeline.type, scope, "", "", ("steps",))
        return ScopeUnit(
            index=0, name=pipeline.name, path="", label="", kind=pipeline.type, members=members,
            on_error="continue" if pipeline.tolerate is not None else pipeline.on_error,
            tolerate=pipeline.tolerate, timeout_s=pipeline.limits.timeout, writes=None,
        )  # fmt: skip

    def note(self, message: str, loc: Loc, hint: str = "") -> None:
        self.problems.append(Problem(message, loc, hint))

    # -- members and their order -------------------------------------------------------------------------------

    def members(
        self, steps: tuple[AnyStep, ...], kind: str, scope: Scope, path: str, label: str, loc: Loc
    ) -> tuple[Unit, ...]:
        """The units of a block's members; publishes what they write into ``scope`` (not for parallel: its merge does)."""
        names = unique_names(steps)
        self._twins(names, loc)
        kept = [i for i, step in enumerate(steps) if step.enabled and step.when is not False]
        faces = {i: surface(steps[i], names[i]) for i in kept}
        self._twice_written(steps, kind, faces, names, loc)
        after, strict = order(steps, names, faces, kind, loc, self.problems)
        place = {declared: position for position, declared in enumerate(kept)}
        units: list[Unit] = []
        everything = scope.inner() if kind == "graph" else None
        if everything is not None:
            for i in kept:
                everything.publish(names[i], faces[i].writes)
        for i in kept:
            view = scope if kind == "sequence" else (everything or scope).inner()
            if kind == "parallel":
                _hide_siblings(view, i, faces, names)
            elif everything is not None:
                _hide_own(view, names[i], faces[i].writes, scope)
            unit = self.unit(
                steps[i], names[i], view, f"{path}.{i}" if path else str(i),
                f"{label}/{names[i]}" if label else names[i], (*loc, i), place[i],
                tuple(sorted(place[j] for j in after[i])), frozenset(place[j] for j in strict[i]),
            )  # fmt: skip
            units.append(unit)
            if kind == "sequence":
                scope.publish(names[i], faces[i].writes)
        if kind != "sequence":
            for i in kept:
                scope.publish(names[i], faces[i].writes)
        return tuple(units)

    def _twins(self, names: list[str], loc: Loc) -> None:
        seen: dict[str, int] = {}
        for i, name in enumerate(names):
            first = seen.setdefault(name.casefold(), i)
            if first != i:
                self.note(f"two steps of one block are named {name!r}", (*loc, i, "name"), f"the other is step {first}")

    def _twice_written(
        self, steps: tuple[AnyStep, ...], kind: str, faces: Mapping[int, Any], names: list[str], loc: Loc
    ) -> None:
        writers: dict[str, int] = {}
        for i, face in faces.items():
            for name in face.writes or ():
                if name in ROOTS or name == INDEX:
                    self.note(f"{name!r} can't be the name of a value: ${{{name}...}} means something else", (*loc, i))
                if kind == "sequence" or kind == "free":
                    continue
                first = writers.setdefault(name, i)
                if first != i:
                    self.note(
                        f"{names[first]!r} and {names[i]!r} both write {name!r} and may run at once",
                        (*loc, i, "output" if steps[i].output else "name"),
                        "rename one, or merge them with collect_all, first_success, best_quality or combine_outputs",
                    )

    # -- one unit ----------------------------------------------------------------------------------------------

    def unit(
        self, step: AnyStep, name: str, scope: Scope, path: str, label: str, loc: Loc, index: int,
        after: tuple[int, ...], strict: frozenset[int],
    ) -> Unit:  # fmt: skip
        """The unit of one declared step."""
        shared: dict[str, Any] = {
            "index": index, "name": name, "path": path, "label": label, "loc": loc, "after": after, "strict": strict,
            "writes": writes(step, name), "priority": step.priority, "timeout_s": step.timeout, "rate": step.rate_limit,
        }  # fmt: skip
        if isinstance(step, (Block, Subpipeline)):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                self.note(f"blocks are nested more than {MAX_DEPTH} deep", loc)
                raise PipelineError(self.problems)
            try:
                return (
                    self.subpipeline(step, scope, shared)
                    if isinstance(step, Subpipeline)
                    else self.block(step, scope, shared)
                )
            finally:
                self.depth -= 1
        when, constants = self.condition(step.when, scope, loc)
        call = call_of(step, name, path, self.bound(scope), loc, self.folder, shared["writes"], when, constants)
        return self.task(step, call, shared)

    def task(self, step: AnyStep, call: StepCall, shared: Mapping[str, Any]) -> TaskUnit:
        """A leaf with the step's limits, the defaults under them."""
        defaults, given = self.defaults, step.model_fields_set
        executor = step.executor or self.executor
        self.executors.add(executor)
        retry = self.retry(step)
        keys = dict(shared)
        if keys["timeout_s"] is None:
            keys["timeout_s"] = defaults.timeout
        return TaskUnit(
            **{**keys, "retry": retry, "reads": _reads(call), "tolerated": step.on_error == "continue"},
            call=call,
            executor=executor,
            cpus=step.cpus if "cpus" in given or defaults.cpus is None else defaults.cpus,
            memory_bytes=step.memory if step.memory is not None else defaults.memory,
            resources=dict(step.resources),
            idle_timeout_s=step.idle_timeout if step.idle_timeout is not None else defaults.idle_timeout,
            kill_grace_s=_first(step.kill_grace, defaults.kill_grace, 2.0),
        )

    def retry(self, step: AnyStep, inherit: bool = True) -> RetrySpec:
        defaults = self.defaults if inherit else Defaults()
        if step.retry is not None:
            return _retry(step.retry)
        if step.retries is not None:
            return RetrySpec(retries=step.retries)
        if defaults.retry is not None:
            return _retry(defaults.retry)
        return RetrySpec(retries=defaults.retries or 0)

    # -- blocks ------------------------------------------------------------------------------------------------

    def block(self, step: Any, scope: Scope, shared: dict[str, Any]) -> ScopeUnit:
        """The scope of a block with its gate, members and merger."""
        loc, outer = shared["loc"], self.executor
        self.executor = step.executor or outer
        try:
            when, constants = self.condition(step.when, scope, loc)
            keys: dict[str, Any] = {
                **shared,
                "retry": self.retry(step, inherit=False),
                "tolerated": False,
                "max_parallelism": step.max_parallelism,
                "on_error": "continue" if step.tolerate is not None else step.on_error or "stop",
                "tolerate": step.tolerate,
                "need": {"all": None, "any": 1}.get(step.join, step.join) if isinstance(step.join, str) else step.join,
                "gate": self.hidden(step, "gate", StepCall("gate", shared["path"], shared["name"], when=when, constants=constants), shared)
                if when is not None else None,
            }  # fmt: skip
            keys["merge"], keys["merger"] = self.merge(step, scope, shared)
            if isinstance(step, Map):
                return self.map(step, scope, keys)
            inner = scope.inner()
            members = self.members(step.steps, step.type, inner, shared["path"], shared["label"], (*loc, "steps"))
            if keys["need"] is not None and keys["need"] > len(members):
                self.note(f"join: {keys['need']} of {len(members)} members can never succeed", (*loc, "join"))
            return ScopeUnit(kind=step.type, members=members, **keys)
        finally:
            self.executor = outer

    def merge(self, step: Any, scope: Scope, shared: dict[str, Any]) -> tuple[MergeSpec, TaskUnit | None]:
        """How the block's results become values, and the task that does it where content matters."""
        strategy, output = step.merge, step.output or shared["name"]
        is_map = isinstance(step, Map)
        if strategy is None or (strategy == "update" and not is_map):
            return (MergeSpec("rows", output) if is_map else MergeSpec("update", step.output)), None
        if strategy in ("collect_all", "first_success"):
            return MergeSpec(strategy, output), None
        named = strategy if isinstance(strategy, str) and ":" not in strategy else None
        options = {"strategy": named, "score": step.score} if named else {"strategy": "custom"}
        call = StepCall(
            "merge", shared["path"], shared["name"], function=None if named else strategy, args=(Lookup("results"),),
            outputs=(output,), options=options, folder=self.folder,
        )  # fmt: skip
        return MergeSpec("task", output), self.hidden(step, "merger", call, shared)

    def hidden(self, step: AnyStep, role: str, call: StepCall, shared: Mapping[str, Any]) -> TaskUnit:
        """A task that the user did not write: gate, merger or expand of a block."""
        executor = step.executor or self.executor
        self.executors.add(executor)
        keys = {**shared, "timeout_s": None, "rate": None, "after": (), "strict": frozenset(), "writes": call.outputs}
        return TaskUnit(
            **keys, reads=tuple(n for n in _reads(call) if n != "results"), call=call, executor=executor,
            kill_grace_s=_first(step.kill_grace, self.defaults.kill_grace, 2.0),
        )  # fmt: skip

    def map(self, step: Map, scope: Scope, keys: dict[str, Any]) -> MapUnit:
        """The scope of a map: a task that expands the items and a body for each."""
        loc, path, label = keys["loc"], keys["path"], keys["label"]
        bind = self.bound(scope)
        tree: Any = ()
        options: dict[str, Any] = {"page": 1000}
        if hasattr(step.items, "range"):
            if step.items.range is not None:
                options["range"] = step.items.range
            else:
                options["glob"] = bind(step.items.glob, (*loc, "items", "glob"))
                options["folder"] = self.folder
        else:
            tree = (self.item_source(step.items, bind, (*loc, "items")),)
        expand = StepCall("expand", path, step.name or keys["name"], args=tree, options=options, folder=self.folder)
        inner = scope.inner()
        inner.publish(keys["name"], ())
        inner.names |= {step.item_name, INDEX}
        body_keys = {"index": 0, "path": f"{path}.0", "label": label, "loc": loc}
        if step.function is not None:
            call = call_of(step, keys["name"], path, self.bound(inner), loc, self.folder, (), None, {})
            body: Unit = self.task(
                step, call,
                {**keys_of(keys), **body_keys, "path": path, "after": (), "strict": frozenset(), "writes": (), "rate": step.rate_limit},
            )  # fmt: skip
            keys["timeout_s"] = None
            keys["retry"] = RetrySpec()
        else:
            assert step.steps is not None
            members = self.members(step.steps, "sequence", inner, path, label, (*loc, "steps"))
            body = ScopeUnit(
                **body_keys, name=keys["name"], kind="sequence", members=members, on_error="stop", merge=MergeSpec("update"),
                writes=members[-1].writes if members else (),
            )  # fmt: skip
        if step.function is None:
            keys["rate"] = step.rate_limit
        else:
            keys["rate"] = None
        return MapUnit(
            kind="map", **keys, expand=self.hidden(step, "expand", expand, keys_of(keys)), body=body,
            item_name=step.item_name, batch=step.batch,
        )  # fmt: skip

    def item_source(self, items: Any, bind: Callable[[Any, Loc], Any], loc: Loc) -> Any:
        """The argument tree of a map's items; a string in Python's API names a value like an input."""
        if isinstance(items, str):
            tree = bind(items, loc)
            if isinstance(tree, str):
                self.note(
                    f"{items!r} is text, not items",
                    loc,
                    f"write ${{{items}}} for a value of that name, or {{glob: ...}} for files",
                )
            return tree
        return bind(list(items), loc) if isinstance(items, (list, tuple)) else items

    def subpipeline(self, step: Subpipeline, scope: Scope, shared: dict[str, Any]) -> ScopeUnit:
        """Another file as a scope of its own: it sees its params and the values that ``inputs`` names, nothing else."""
        loc, bind = shared["loc"], self.bound(scope)
        if self.load is None:
            self.note("this pipeline was not loaded from a file, so it can't run another file", (*loc, "file"))
            return ScopeUnit(kind="pipeline", **shared)
        imports: dict[str, str] = {}
        for key, value in _named_inputs(step.inputs).items():
            target = bind(value, (*loc, "inputs"))
            if isinstance(target, Lookup) and not target.path:
                imports[key] = target.name
            else:
                self.note(
                    f"input {key!r} of a pipeline step must be a whole value",
                    (*loc, "inputs"),
                    "pass constants as params",
                )
        given = bind(step.params, (*loc, "params"))
        if any(True for _ in template.lookups(given)):
            self.note("params of a pipeline step must be constants", (*loc, "params"), "pass values through inputs")
        file = bind(step.file, (*loc, "file"))
        pipeline, folder = self.load(str(file), (*loc, "file"))
        first = len(self.problems)
        known = parameters(pipeline, given, self.problems)
        inner = Scope(
            set(imports), False, {}, known, scope.environ, {**scope.run, "name": pipeline.name}, self.problems
        )
        below = _Compiler(
            pipeline.defaults, folder, step.executor or pipeline.defaults.executor or self.executor, self.load, self.problems,
            self.executors, self.depth,
        )  # fmt: skip
        members = below.members(pipeline.steps, pipeline.type, inner, shared["path"], shared["label"], ("steps",))
        for i in range(first, len(self.problems)):
            found = self.problems[i]
            if found.place is None and found.loc[:1] in (("steps",), ("params",)):
                self.problems[i] = Problem(
                    f"in {file}: {'.'.join(map(str, found.loc))}: {found.message}", (*loc, "file"), found.hint
                )
        kept: tuple[str, ...] | Any = step.outputs
        for i, name in enumerate(kept if isinstance(kept, tuple) else ()):
            if name not in inner.names and not inner.is_open:
                self.note(f"{file} publishes no {name!r}", (*loc, "outputs", i))
        when, constants = self.condition(step.when, scope, loc)
        gate = (
            StepCall("gate", shared["path"], shared["name"], when=when, constants=constants)
            if when is not None
            else None
        )
        return ScopeUnit(
            kind="pipeline", members=members, isolated=True, imports=imports, kept=kept, **shared,
            retry=self.retry(step, inherit=False), merge=MergeSpec("update", None if kept else step.output or shared["name"]),
            on_error="continue" if pipeline.tolerate is not None else pipeline.on_error, tolerate=pipeline.tolerate,
            gate=self.hidden(step, "gate", gate, shared) if gate is not None else None,
        )  # fmt: skip

    # -- references --------------------------------------------------------------------------------------------

    def bound(self, scope: Scope) -> Callable[[Any, Loc], Any]:
        """A function that parses a tree and binds its references in ``scope``."""

        def bind(tree: Any, loc: Loc) -> Any:
            try:
                parsed = template.parse(tree)
            except template.TemplateError as error:
                self.note(str(error), (*loc, *error.loc))
                return None
            places = {id(lookup): (*loc, *at) for at, lookup in template.lookups(parsed)}
            return template.replace(parsed, lambda lookup: scope.bind(lookup, places.get(id(lookup), loc)))

        return bind

    def condition(self, when: str | bool | None, scope: Scope, loc: Loc) -> tuple[str | None, dict[str, Any]]:
        """The condition's text and the constants it reads; its names are checked."""
        if when is None or isinstance(when, bool):
            return None, {}
        try:
            parsed = condition.parse(when)
        except condition.ConditionError as error:
            self.note(f"when: {error}", (*loc, "when"))
            return None, {}
        constants: dict[str, Any] = {}
        sources = {"params": scope.parameters, "env": scope.environ, "run": scope.run}
        for lookup in parsed.lookups:
            if lookup.name in ROOTS and lookup.path:
                scope.bind(lookup, (*loc, "when"))
                known = sources[lookup.name]
                key = str(lookup.path[0])
                if key in known:
                    constants.setdefault(lookup.name, {})[key] = known[key]
            else:
                scope.bind(lookup, (*loc, "when"))
        return when, constants


def keys_of(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plain unit among those of a scope."""
    return {
        k: keys[k]
        for k in ("index", "name", "path", "label", "loc", "priority", "timeout_s", "after", "strict", "writes", "rate")
    }


def _reads(call: StepCall) -> tuple[str, ...]:
    """Names that the call looks up, without those that the item of a map provides."""
    names: dict[str, None] = {}
    for tree in (call.args, dict(call.kwargs), dict(call.options), dict(call.params)):
        for _, lookup in template.lookups(tree):
            names[lookup.name] = None
    if call.when is not None:
        for lookup in condition.parse(call.when).lookups:
            if lookup.name not in call.constants and lookup.name not in ROOTS:
                names[lookup.name] = None
    own = {call.item_name, INDEX} if call.item_name is not None else set()
    return tuple(n for n in names if n not in own)


def _retry(retry: Retry) -> RetrySpec:
    return RetrySpec(retry.retries, retry.delay, retry.backoff, retry.max_delay, retry.jitter, frozenset(retry.on))


def _first(*values: float | None) -> float:
    return next(v for v in values if v is not None)


def _named_inputs(inputs: Any) -> dict[str, Any]:
    from procflow.names import as_reference

    if isinstance(inputs, dict):
        return {k: as_reference(v) for k, v in inputs.items()}
    return {str(v): as_reference(v) for v in inputs}


def _hide_siblings(view: Scope, i: int, faces: Mapping[int, Any], names: list[str]) -> None:
    for j, face in faces.items():
        for name in face.writes or ():
            if j != i and name not in view.names:
                view.hidden[name] = (
                    f"{names[j]!r} writes it in the same parallel block; use type: graph, or a step after the block"
                )


def _hide_own(view: Scope, name: str, own: tuple[str, ...] | None, outer: Scope) -> None:
    for written in own or ():
        if written not in outer.names:
            view.names.discard(written)
            view.hidden[written] = "this step itself writes it"
