"""Tasks: the units that workers run: declared leaves, the functions of maps, and the hidden tasks of blocks. Pure.

Here the defaults of the file come under the keys of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Literal, TypeVar

from procflow.call import INDEX, NOTHING, StepCall
from procflow.compiling import asking, condition, template
from procflow.compiling.build import Binder, Build, Limits, Seat, Setting
from procflow.compiling.leaves import Common, call_of
from procflow.compiling.names import Scope
from procflow.compiling.surface import LIMITS, ROOTS, Face
from procflow.graph import RetrySpec, TaskUnit
from procflow.model import AnyStep, Defaults, Merge, Pipeline, Query, Rest, Retry, Shell, Split, Transform, UseSkill
from procflow.passive import alike
from procflow.state import MARK
from procflow.units import Times

__all__ = [
    "FOLD",
    "KILL_GRACE_S",
    "executor_of",
    "fold_of",
    "gate_of",
    "hidden",
    "leaf",
    "limited",
    "maker",
    "paced",
    "policy",
    "retry_of",
    "seconds",
    "with_files",
]

_CALLS = (Transform, Shell, Merge, Split)
"""Leaves that ask nothing outside, the most frequent first."""
KILL_GRACE_S = 2.0
FOLD = "(state)"
"""The label of the task that folds the state at the end of a run; no step can be called so."""
_NO_RETRIES = RetrySpec()
T = TypeVar("T")


def leaf(build: Build, setting: Setting, step: AnyStep, seat: Seat, scope: Scope, face: Face) -> TaskUnit:
    """The task of a declared leaf step; ``scope`` is that of its block."""
    bind = Binder(build, scope.view(seat["name"]), seat["loc"])
    when, constants = bind.condition(step.when) if step.when is not None else (None, NOTHING)
    common: Common = {
        "path": seat["path"], "name": seat["name"], "outputs": "*" if face.is_open else face.writes, "when": when,
        "constants": constants, "folder": setting.folder,
    }  # fmt: skip
    writes = None if face.is_open else face.writes
    if not isinstance(step, _CALLS) and isinstance(step, (Query, UseSkill, Rest)):
        call = with_files(asking.call_of(step, common, bind, setting.declared), step, bind)
        return asking.equipped(setting, step, limited(build, setting, step, seat, call, writes))
    return limited(build, setting, step, seat, with_files(call_of(step, common, bind), step, bind), writes)


def with_files(call: StepCall, step: AnyStep, bind: Binder) -> StepCall:
    """The call with the files that the step declares, for its fingerprint; workers have no use for them."""
    if step.files is None:
        return call
    paths = bind.constant(list(step.files.paths), "the files of a step", "files") or []
    return replace(call, options={**call.options, "files": {"paths": paths, "hash": step.files.hash}})


def limited(
    build: Build, setting: Setting, step: AnyStep, seat: Seat, call: StepCall, writes: tuple[str, ...] | None
) -> TaskUnit:
    """A task with the step's limits, the defaults under them."""
    if setting.combiners:
        call = _combining(setting, call)
    if setting.state and call.function is not None:
        call = replace(call, state=setting.state)
    if call.kind == "shell":
        build.has.add("command")
    if step.transient:
        build.has.add("transient")
        call = replace(call, transient=True)
    elif step.cache or (step.cache is None and setting.defaults.cache):
        named = step.outputs if isinstance(step.outputs, tuple) else ()
        build.cached[seat["label"]] = (*named, *(name for name in (step.output, step.name) if name is not None))
    return _task(build, setting, step, seat, call, _reads(call), writes, executor_of(build, setting, step))


def _task(
    build: Build, setting: Setting, step: AnyStep, seat: Seat, call: StepCall, reads: tuple[str, ...],
    writes: tuple[str, ...] | None, executor: str,
) -> TaskUnit:  # fmt: skip
    if step.resources:
        return TaskUnit(
            **seat, **_limits_of(build, setting, step), reads=reads, writes=writes, call=call, executor=executor
        )  # fmt: skip
    return maker(build, setting, step)(
        seat["index"], seat["name"], seat["path"], seat["label"], seat["loc"], seat["after"], seat["strict"],
        seat["priority"], reads, writes, call, executor,
    )  # fmt: skip


def maker(build: Build, setting: Setting, step: AnyStep) -> Callable[..., TaskUnit]:
    """What makes the tasks of steps with the limits of this one, which asks for no resources, of their ``_OWN``."""
    given = step.model_fields_set
    said = None if given.isdisjoint(LIMITS) else ("cpus" in given, *_limiting(step))
    known = build.tasks.get((id(setting), said))
    if known is None:
        limits = _limits_of(build, setting, step)
        first = TaskUnit(index=0, name="", path="", label="", call=_NO_CALL, executor="", **limits)
        # The setting is kept with its answer, so that its id can't go to another.
        known = build.tasks[id(setting), said] = (setting, alike(first, *_OWN))
    return known[1]


_NO_CALL = StepCall("transform", "", "")
_OWN = (
    "index", "name", "path", "label", "loc", "after", "strict", "priority", "reads", "writes", "call", "executor",
)  # fmt: skip
"""Fields of a task that follow from more than its limits, in the order in which ``maker`` takes them."""


_DEFAULTED = ("cpus", "memory", "timeout", "idle_timeout", "kill_grace")
_limiting = attrgetter(*LIMITS)
"""What ``_limits_of`` looks at in a step, besides ``resources``: all that say the same there have the same limits."""


def _limits_of(build: Build, setting: Setting, step: AnyStep) -> Limits:
    defaults, given = setting.defaults, step.model_fields_set
    clock = step.timeout if step.timeout is not None else defaults.timeout
    inherited = frozenset(
        key
        for key in _DEFAULTED
        if getattr(defaults, key) is not None and (key not in given or getattr(step, key) is None)
    )
    return Limits(
        retry=retry_of(step, defaults),
        timeout_s=seconds(clock),
        timeout_share=_share(build, clock),
        tolerated=step.on_error == "continue",
        rate=step.rate_limit,
        rates=setting.rates,
        cpus=defaults.cpus if "cpus" in inherited and defaults.cpus is not None else step.cpus,
        memory_bytes=_or(step.memory, defaults.memory),
        resources=dict(step.resources) if step.resources else NOTHING,
        idle_timeout_s=_or(step.idle_timeout, defaults.idle_timeout),
        kill_grace_s=_grace(step, defaults),
        grace_declared=_or(step.kill_grace, defaults.kill_grace) is not None,
        inherited=inherited,
    )


def _combining(setting: Setting, call: StepCall) -> StepCall:
    """A merge by type knows the types of the file's."""
    if not setting.combiners or call.options.get("strategy") != "combine_outputs":
        return call
    return replace(call, options={**call.options, "combiners": dict(setting.combiners)})


def paced(build: Build, inner: Setting, step: AnyStep, path: str) -> Setting:
    """What the members of a block inherit, its rate among it: all starts inside count together."""
    if step.rate_limit is None:
        return inner
    build.rates[f"block:{path}"] = step.rate_limit
    return replace(inner, rates=(*inner.rates, f"block:{path}"))


def hidden(build: Build, setting: Setting, step: AnyStep, seat: Seat, call: StepCall) -> TaskUnit:
    """A task that the user did not write: gate, expand or merger of a block. It runs where the block's steps do.

    Expand and merger may run the user's code, so the clock and the retries of ``defaults`` hold for them.
    """
    alone: Seat = {**seat, "after": (), "strict": frozenset()}
    defaults = setting.defaults if call.kind != "gate" else Defaults()
    call = _combining(setting, call)
    if setting.state and call.kind == "merge" and call.function is not None:
        call = replace(call, state=setting.state)
    return TaskUnit(
        **alone,
        retry=retry_of(None, defaults),
        timeout_s=seconds(defaults.timeout),
        timeout_share=_share(build, defaults.timeout),
        inherited=frozenset({"timeout"} if defaults.timeout is not None else ()),
        reads=tuple(name for name in _reads(call) if call.kind != "merge" or name != "results"),
        writes=call.outputs if isinstance(call.outputs, tuple) else None,
        call=call,
        executor=executor_of(build, setting, step),
        kill_grace_s=_grace(step, setting.defaults),
    )


def gate_of(build: Build, setting: Setting, step: AnyStep, seat: Seat, scope: Scope) -> TaskUnit | None:
    """The task that decides a block's ``when``, None where nothing is to be judged."""
    when, constants = Binder(build, scope, seat["loc"]).condition(step.when)
    if when is None:
        return None
    call = StepCall("gate", seat["path"], seat["name"], when=when, constants=constants)
    return hidden(build, setting, step, seat, call)


def fold_of(build: Build, setting: Setting, pipeline: Pipeline) -> TaskUnit:
    """The task that folds the state once all steps are done."""
    outputs = tuple(MARK + key for key in setting.state)
    call = StepCall("fold", "", FOLD, outputs=outputs, folder=setting.folder, state=setting.state)
    build.executors.add(setting.executor)
    retry = retry_of(None, setting.defaults)
    return TaskUnit(
        index=0, name=FOLD, path="", label=FOLD, call=call, executor=setting.executor, retry=retry, writes=(),
    )  # fmt: skip


def executor_of(build: Build, setting: Setting, step: AnyStep) -> str:
    """Where the step's tasks run; noted as needed."""
    waits = not isinstance(step, _CALLS) and asking.waits(step, setting)
    executor = step.executor or ("threads" if waits else setting.executor)
    build.executors.add(executor)
    return executor


def retry_of(step: AnyStep | None, defaults: Defaults | None) -> RetrySpec:
    """The step's own retries, else those of ``defaults`` where there are any."""
    for keys in (step, defaults):
        if keys is not None and keys.retry is not None:
            return _retry(keys.retry)
        if keys is not None and keys.retries is not None:
            return RetrySpec(retries=keys.retries)
    return _NO_RETRIES


def policy(on_error: str | None, tolerate: object) -> Literal["stop", "finish", "continue"]:
    """What a failed member does to its block; a tolerance says that the block goes on."""
    if tolerate is not None or on_error == "continue":
        return "continue"
    return "finish" if on_error == "finish" else "stop"


def _retry(retry: Retry) -> RetrySpec:
    return RetrySpec(retry.retries, retry.delay, retry.backoff, retry.max_delay, retry.jitter, frozenset(retry.on))


def _reads(call: StepCall) -> tuple[str, ...]:
    """Names that the call looks up, without those that the item of a map provides."""
    if not (call.args or call.kwargs or call.options or call.params or call.when):
        return ()
    found = template.lookups_in((call.args, call.kwargs, call.options, call.params))
    names = dict.fromkeys([lookup.name for lookup in found])
    if not names and call.when is None:
        return ()
    if call.when is not None:
        names.update((lookup.name, None) for lookup in condition.parse(call.when).lookups)
    own: tuple[str | None, ...] = (*ROOTS, call.item_name, INDEX) if call.item_name is not None else ROOTS
    return tuple(name for name in names if name not in own)


def seconds(timeout: float | Times | None) -> float | None:
    """The seconds of a timeout that is known now; None for a share of what was learned."""
    return None if isinstance(timeout, Times) else timeout


def _share(build: Build, timeout: float | Times | None) -> float | None:
    if not isinstance(timeout, Times):
        return None
    build.has.add("timeout share")
    return timeout.factor


def _grace(step: AnyStep, defaults: Defaults) -> float:
    chosen = _or(step.kill_grace, defaults.kill_grace)
    return KILL_GRACE_S if chosen is None else chosen


def _or(own: T | None, default: T | None) -> T | None:
    return own if own is not None else default
