"""Compiler: a declared pipeline into a TaskGraph, with every name, reference and bound checked.

Pure: it reads no file and no clock; what it needs from outside (parameters, environment, the loader for ``type:
pipeline``) is passed in. It finds as many problems as it can and raises them together. What it hands on is valid: later
layers assert rather than check. Order inside a block is worked out here (``after``), and so is ``rank``, the longest
remaining path.

    surface.py (what a step shows)  names.py (what has a value where)  ordering.py (who waits for whom)
        └─> blocks.py, subpipelines.py ─> plain.py, tasks.py, leaves.py ─> ranks.py    build.py: what all of them share

A file is checked in two stages. The loader reports all that is wrong with single steps: syntax, keys, types, ranges.
Only a file without such mistakes can be compiled: names, references, order, parameters are then told together, and
preflight adds functions, executors and the machine once these are right too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from procflow.compiling import blocks, ranks, template
from procflow.compiling.build import Binder, Build, Load, Setting, placed
from procflow.compiling.declared import Installed, declare
from procflow.compiling.hooks import hooks_of
from procflow.compiling.names import Facts, Scope, did_you_mean, with_params
from procflow.compiling.subpipelines import MAX_DEPTH, Members, parameters, with_secrets
from procflow.compiling.surface import deepest
from procflow.compiling.tasks import fold_of, policy
from procflow.compiling.transient import check_values
from procflow.errors import PipelineError, Problem
from procflow.graph import MergeSpec, ScopeUnit, TaskGraph
from procflow.model import Pipeline

__all__ = ["Load", "compile_pipeline"]


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
    installed: Installed | None = None,
) -> TaskGraph:
    """The graph that runs ``pipeline``; raises ``PipelineError`` with every problem found.

    ``params`` override declared defaults. ``executor`` is that of steps that name none, before ``defaults``. ``load``
    reads the files of ``type: pipeline`` steps. ``durations`` are expected seconds by label, for ranks; a step that is
    not in it counts one second. ``installed`` gives the skills of installed packages.
    """
    build = Build(load, executor, resources=dict(pipeline.limits.resources), installed=installed)
    too_deep = deepest(pipeline, MAX_DEPTH)
    if too_deep is not None:
        raise PipelineError([Problem(f"blocks are nested more than {MAX_DEPTH} deep", too_deep)])
    facts = Facts({}, environ or {}, {"id": run_id, "name": pipeline.name})
    facts = with_secrets(build, pipeline, facts, ())
    known, unset = parameters(build, pipeline, params or {}, facts, Binder(build, Scope(facts), ()))
    declared, facts = declare(build, pipeline, with_params(facts, known, unset), ())
    scope = Scope(facts).block()
    state = {name: key.as_reducer() for name, key in pipeline.state.items()}
    setting = Setting(pipeline.defaults, folder, executor or pipeline.defaults.executor or "processes", state=state)
    setting = replace(setting, combiners=pipeline.combiners)
    asked = executor is not None or pipeline.defaults.executor is not None
    setting = replace(setting, declared=declared, asked=asked, clocked=pipeline.limits.timeout is not None)
    members = blocks.members(build, setting, Members(pipeline.steps, pipeline.type, "", "", ("steps",)), scope)
    hooks = hooks_of(build, setting, pipeline, scope, "", "", (), blocks.members)
    _check_names(build, pipeline.show, "show", scope)
    _check_names(build, pipeline.keep, "keep", scope)
    if build.problems:
        raise PipelineError(placed(dict.fromkeys(build.problems), build.files))
    results = {*pipeline.show, *pipeline.keep, *(n for _, h in hooks for u in h.members for n in u.reads)}
    root = ScopeUnit(
        index=0, name=pipeline.name, path="", label="", kind=pipeline.type, members=members, writes=None,
        on_error=policy(pipeline.on_error, pipeline.tolerate), tolerate=pipeline.tolerate,
        timeout_s=pipeline.limits.timeout, state=state, merger=fold_of(build, setting, pipeline) if state else None,
        merge=MergeSpec("task") if state else MergeSpec(), hooks=hooks,
    )  # fmt: skip
    check_values(build, root, results)
    if build.problems:
        raise PipelineError(placed(dict.fromkeys(build.problems), build.files))
    return TaskGraph(
        pipeline.name,
        ranks.ranked(root, durations or {}),
        {name: value for name, value in known.items() if not any(template.lookups(value))},
        build.resources,
        frozenset(build.executors),
        build.files,
        pipeline.limits.retry_budget.fraction,
        frozenset(build.secrets),
        frozenset(results.union(*build.cached.values())),
        build.rates,
        frozenset(build.cached),
        frozenset(build.has),
    )


def _check_names(build: Build, names: Iterable[str], key: str, scope: Scope) -> None:
    """Names of values that stand beside the steps."""
    for i, name in enumerate(names):
        if name in scope.names or scope.openers:
            continue
        absent = scope.absent.get(name)
        why = f"{key}: no step publishes {name!r}" if absent is None else f"{key}: {name!r} has no value: {absent.why}"
        face = scope.steps.get(name)
        hint = f"write {face.main}" if face is not None and face.main is not None else did_you_mean(name, scope.names)
        build.note(why if face is None else f"{key}: {name!r} is a step, not a value", (key, i), hint)
