"""Subpipelines: the file of a ``type: pipeline`` step as a scope of its own. Pure: the ``load`` passed in reads the
file.

The file sees its params and the values that ``inputs`` names, nothing else. Its own defaults, ``on_error``,
``limits.timeout``, ``limits.resources`` and ``secrets`` hold inside; the other limits are those of the run, and ``show``
is for runs of the file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from procflow.call import Lookup
from procflow.compiling.build import Binder, Build, LoadedFile, Seat, Setting
from procflow.compiling.declared import declare
from procflow.compiling.names import Facts, NoValue, Scope, did_you_mean, with_params
from procflow.compiling.surface import Face, as_reference, deepest
from procflow.compiling.tasks import gate_of, paced, policy, retry_of, seconds
from procflow.errors import Loc, PipelineError
from procflow.grammar import variable_of
from procflow.graph import MergeSpec, ScopeUnit, Unit
from procflow.model import AnyStep, Param, Pipeline, Subpipeline
from procflow.passive import passive

__all__ = ["MAX_DEPTH", "Members", "MembersOf", "parameters", "subpipeline", "with_secrets"]

MAX_DEPTH = 64
"""Blocks inside one another, files included."""
LEAST_SECRET = 4
"""Shorter secrets are refused: masking them would mask half of every text, too."""


@passive(frozen=True, slots=True)
class Members:
    """The members of a block as declared, with where it stands.

    ``joins`` says that their values keep their names after the block.
    """

    steps: tuple[AnyStep, ...]
    kind: str
    path: str
    label: str
    loc: Loc
    joins: bool = True


MembersOf = Callable[[Build, Setting, Members, Scope], "tuple[Unit, ...]"]
"""``blocks.members``, passed in because it calls this file."""


def subpipeline(
    build: Build, setting: Setting, step: Subpipeline, seat: Seat, scope: Scope, face: Face, members_of: MembersOf
) -> ScopeUnit:
    """The unit of a ``type: pipeline`` step."""
    bind = Binder(build, scope, seat["loc"])
    imports = _imports(step, bind)
    given = bind.constant(step.params, "a parameter of a file", "params", hint="pass values through inputs") or {}
    loaded = _loaded(build, setting, step, bind)
    unit = ScopeUnit(
        **seat,
        kind="pipeline",
        writes=face.names,
        timeout_s=seconds(step.timeout),
        retry=retry_of(step, None),
        merge=MergeSpec("update", None if step.outputs else step.output or seat["name"]),
        gate=gate_of(build, setting, step, seat, scope),
        isolated=True,
        imports=imports,
        kept=step.outputs,
    )
    if loaded is None:
        return unit
    pipeline = loaded.pipeline
    known, unset = parameters(build, pipeline, given, scope.facts, bind, step)
    facts = with_params(scope.facts, known, unset, name=pipeline.name)
    facts = with_secrets(build, pipeline, facts, (*seat["loc"], "file"))
    declared, facts = declare(build, pipeline, facts, (*seat["loc"], "file"))
    inside = Scope(facts, names=dict.fromkeys(imports, "")).block()
    own = replace(_setting_of(build, setting, step, seat, loaded), declared=declared)
    units = members_of(
        build, own,
        Members(pipeline.steps, pipeline.type, seat["path"], seat["label"], (*seat["loc"], "file", "steps")), inside,
    )  # fmt: skip
    for i, name in enumerate(step.outputs if isinstance(step.outputs, tuple) else ()):
        if name not in inside.names and not inside.openers:
            bind.note(f"{step.file} publishes no {name!r}", "outputs", i, hint=did_you_mean(name, inside.names))
    from procflow.compiling.hooks import hooks_of  # it needs this file

    clocks = [clock for clock in (seconds(step.timeout), pipeline.limits.timeout) if clock is not None]
    return replace(
        unit,
        members=units,
        timeout_s=min(clocks, default=None),
        on_error=policy(pipeline.on_error, pipeline.tolerate),
        tolerate=pipeline.tolerate,
        state={name: key.as_reducer() for name, key in pipeline.state.items()},
        hooks=hooks_of(build, own, pipeline, inside, seat["path"], seat["label"], (*seat["loc"], "file"), members_of),
    )


def _setting_of(build: Build, setting: Setting, step: Subpipeline, seat: Seat, loaded: LoadedFile) -> Setting:
    """What the file's steps inherit: its own defaults, and from outside only executor and priority."""
    defaults = loaded.pipeline.defaults
    own = seconds(step.timeout)
    clock = own if own is not None else loaded.pipeline.limits.timeout
    inside = setting.inside(step.executor or build.override or defaults.executor, seat["priority"], clock)
    return replace(
        paced(build, inside, step, seat["path"]), defaults=defaults, folder=str(loaded.source.folder), root=(*seat["loc"], "file"),
        files=(*setting.files, str(loaded.source.path)),
        state={name: key.as_reducer() for name, key in loaded.pipeline.state.items()},
        # What the outer file names lies in another folder; what was given in Python can be had anywhere.
        combiners={k: f for k, f in setting.combiners.items() if callable(f)} | loaded.pipeline.combiners,
    )  # fmt: skip


def _loaded(build: Build, setting: Setting, step: Subpipeline, bind: Binder) -> LoadedFile | None:
    """The file, None where it can't be used; its problems are noted with their own places."""
    file = bind.constant(step.file, "the file of a pipeline step", "file")
    if not isinstance(file, str):
        return None
    if build.load is None:
        bind.note("files can't be loaded here", "file", hint="run this pipeline with procflow run, .run() or .stream()")
        return None
    try:
        loaded = build.load(file, setting.folder)
    except PipelineError as error:
        for problem in error.problems:
            at = problem.loc if problem.place is not None else (*bind.loc, "file")
            build.problems.append(replace(problem, loc=at))
        return None
    if str(loaded.source.path) in setting.files:
        ring = " -> ".join((*setting.files[setting.files.index(str(loaded.source.path)) :], file))
        bind.note(f"{file} runs itself without end: {ring}", "file")
        return None
    too_deep = deepest(loaded.pipeline, MAX_DEPTH - setting.depth - 1)
    root: Loc = (*bind.loc, "file")
    build.files[root] = loaded.source
    if too_deep is not None or setting.depth >= MAX_DEPTH:
        build.note(f"blocks are nested more than {MAX_DEPTH} deep", root + (too_deep or ()))
        return None
    for name, amount in loaded.pipeline.limits.resources.items():
        build.resources[name] = min(amount, build.resources.get(name, amount))
    return loaded


def _imports(step: Subpipeline, bind: Binder) -> dict[str, str]:
    """Names inside the file with the outer values they stand for."""
    imports: dict[str, str] = {}
    keyed = isinstance(step.inputs, dict)
    pairs = step.inputs.items() if isinstance(step.inputs, dict) else enumerate(step.inputs)
    for key, declared in pairs:
        known = len(bind.build.problems)
        target = bind(as_reference(declared), "inputs", key)
        if len(bind.build.problems) > known:
            continue
        if isinstance(target, Lookup) and not target.path:
            imports[str(key) if keyed else target.name] = target.name
        else:
            bind.note("an input of a pipeline step is a whole value", "inputs", key, hint="pass constants as params")
    return imports


# -- parameters ------------------------------------------------------------------------------------------------


def parameters(
    build: Build,
    pipeline: Pipeline,
    given: Mapping[str, Any],
    facts: Facts,
    bind: Binder,
    step: Subpipeline | None = None,
) -> tuple[dict[str, Any], set[str]]:
    """The parameters of a file: given values over declared defaults; and the names of those that have none.

    ``step`` is the step that gives them, None where they come from outside.
    """
    for name in given:
        if name not in pipeline.params:
            near = did_you_mean(name, pipeline.params)
            hint = near or f"declared: {', '.join(pipeline.params) or 'none'}"
            of = f" of {step.file}" if step is not None else ""
            bind.note(
                f"there is no parameter {name!r}{of}", "params", *((name,) if step is not None else ()), hint=hint
            )
    known: dict[str, Any] = {}
    unset: set[str] = set()
    for name, param in pipeline.params.items():
        assert isinstance(param, Param)
        if name in given:
            known[name] = given[name]
        elif not param.required:
            at = bind.loc if step is None else (*bind.loc, "file")
            known[name] = _default(Binder(build, Scope(facts), at), name, param.default)
        else:
            unset.add(name)
            if step is None:
                bind.note(f"parameter {name!r} needs a value", "params", name, hint=f"give -p {name}=VALUE")
            else:
                key = "params" if step.params else "file"
                bind.note(f"parameter {name!r} of {step.file} needs a value", key, hint=f"params: {{{name}: ...}}")
    return known, unset


def with_secrets(build: Build, pipeline: Pipeline, facts: Facts, loc: Loc) -> Facts:
    """The same facts with the secrets of a file, whose top in the tree is ``loc``."""
    secrets = {name: variable_of(written) for name, written in pipeline.secrets.items()}
    for name, variable in secrets.items():
        value = facts.environ.get(variable)
        if value is None:
            build.note(
                f"secret {name!r}: the environment variable {variable} is not set", (*loc, "secrets", name),
                f"set it where procflow is started: export {variable}=...",
            )  # fmt: skip
        elif len(value.strip()) < LEAST_SECRET:
            few = f"has fewer than {LEAST_SECRET} characters" if value else "is empty"
            build.note(
                f"secret {name!r}: the environment variable {variable} {few}, so it could not be masked in logs",
                (*loc, "secrets", name),
            )
    build.secrets.update(secrets.values())
    return replace(facts, secrets=secrets, hidden=facts.hidden | frozenset(secrets.values()))


class _Surroundings(Scope):
    """What the default of a parameter may refer to: the environment and the run."""

    def resolve(self, lookup: Lookup) -> Any:
        if lookup.name in ("env", "run"):
            return self.facts.value(lookup)
        raise NoValue(
            f"the default of a parameter can't refer to {lookup}",
            "only ${env.NAME} and ${run.id} are known by then; a literal ${ is written $${",
        )


def _default(bind: Binder, name: str, default: Any) -> Any:
    return replace(bind, scope=_Surroundings(bind.scope.facts))(default, "params", name, "default")
