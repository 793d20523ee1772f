"""Perform: one attempt of one task, in the current thread. The heart that every executor shares.

In this order: the pipeline's folder is importable, ``when`` is judged, values are opened as they are asked for, the
kind of the call does its work (``procflow/steps/``), and what it returned is published as refs. Whatever the step
does by raising, the answer is an outcome; this file never retries, never kills and never knows which executor it is
in.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from time import monotonic, perf_counter, process_time, thread_time
from types import ModuleType
from typing import Any, Literal

from procflow import secrets, step
from procflow.attempt import Failed, Failure, Items, Progressed, Skipped, Succeeded, Usage
from procflow.call import INDEX, SECRETS, Lookup, StepCall
from procflow.compiling.template import ReferenceFailed, fill
from procflow.errors import ProcflowError
from procflow.failure import failure_from, item_text
from procflow.machine.peak import BRIEF_S
from procflow.ref import Ref
from procflow.values import objects
from procflow.working import changes, functions, pages

__all__ = ["OutputError", "Values", "loaded_kinds", "perform", "publish"]

REPORT_INTERVAL_S = 0.5
"""A map reports what it has after this time, so that a worker's death costs little."""

_MAIN = threading.main_thread().ident
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,127}"

Send = Callable[[Progressed], None]
_kinds: dict[str, ModuleType] = {}


class OutputError(ProcflowError):
    """What a step returned does not fit the outputs it declares."""


class Values:
    """The values of one attempt by name, each opened on first use and then kept; calling it gives the value of a name."""

    __slots__ = ("constants", "opened", "refs")

    def __init__(self, refs: Mapping[str, Ref], constants: Mapping[str, Any]) -> None:
        self.refs = refs
        self.constants = constants
        self.opened: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        opened = self.opened
        if name in opened:
            return opened[name]
        ref = self.refs.get(name)
        if ref is not None:
            opened[name] = value = _opened(ref, name)
            return value
        if name in self.constants:
            return fill(self.constants[name], self)
        if name == SECRETS:
            return secrets.values()
        guess = functions.did_you_mean(name, [*self.refs, *self.constants])
        raise ReferenceFailed(f"{Lookup(name)}: there is no value {name!r}{guess}")


def _opened(ref: Ref, name: str) -> Any:
    try:
        return objects.unpack(ref)
    except MemoryError:
        raise
    except BaseException as exc:
        text = f"{type(exc).__name__}: {exc}".rstrip(": ")
        raise objects.UnpackError(f"the value {name!r} can't be opened: {secrets.masked(text)[:2000]}") from exc


def perform(
    call: StepCall,
    values: Mapping[str, Ref],
    *,
    items: Items | None = None,
    number: int = 1,
    run_id: str = "",
    key: int = 0,
    report_each: bool = False,
    send: Send | None = None,
    labels: tuple[str, ...] = (),
    peak: Callable[[float], int] | None = None,
) -> Succeeded | Skipped | Failed:
    """Run one attempt of a call and say how it ended; never raises.

    ``send`` gets every ``Progressed``; it may be called from any thread of the step, one at a time. For a map's
    items the outcome holds what was not yet sent: indices, chunk and failures since the last ``Progressed``. ``peak``
    gives the attempt's peak memory for its seconds; without it, the peak of the process so far is told.
    """
    clock = process_time if threading.get_ident() == _MAIN else thread_time
    if call.kind == "shell":
        clock = _with_children
    wall, cpu = perf_counter(), clock()
    scope = Values(values, call.constants)
    # Most steps have no transient values, and what those need is loaded with them.
    transient = import_module("procflow.values.transient") if call.transient else None
    stored = transient.enter(values) if transient is not None else None
    state = changes.state_of(call, scope)
    running = step.Running(key, run_id, number, send, lambda: dict(fill(call.params, scope)), labels, state)
    token = step._enter(running)
    try:
        functions.add_folder(call.folder)
        kind = _kinds.get(call.kind) or _load(call.kind)
        per_item = items is not None and call.when is not None and _reads_item(call)
        if call.when is not None and not per_item and not _holds(call.when, scope):
            return Skipped(key, _usage(call, clock, wall, cpu, peak))
        if items is None:
            outputs, pages_found = _single(call, kind, scope, running)
            usage = _usage(call, clock, wall, cpu, peak)
            return Succeeded(key, outputs, usage, (), None, (), pages_found, running.metrics, running.cost)
        chunk = _Chunk(running, report_each)
        _each(call, kind, scope, running, items, chunk, per_item)
        indices, ref, failures = chunk.rest()
        usage = _usage(call, clock, wall, cpu, peak)
        return Succeeded(key, {}, usage, indices, ref, failures, (), running.metrics, running.cost)
    except BaseException as exc:
        usage = _usage(call, clock, wall, cpu, peak)
        return Failed(key, failure_from(exc), usage)
    finally:
        step._leave(running, token)
        if transient is not None:
            transient.leave(stored)


def loaded_kinds() -> frozenset[str]:
    """Kinds of steps that were performed in this process."""
    return frozenset(_kinds)


def _load(kind: str) -> ModuleType:
    module = _kinds[kind] = import_module(f"procflow.steps.{kind}")
    return module


def _with_children() -> float:
    """CPU seconds of this thread and of processes that were waited for."""
    times = os.times()
    return thread_time() + times.children_user + times.children_system


def _usage(
    call: StepCall, clock: Callable[[], float], wall: float, cpu: float, peak: Callable[[float], int] | None
) -> Usage:
    wall_s = perf_counter() - wall
    if peak is not None:
        # What is brief is taken to have worked all the time: asking the kernel takes some of it.
        cpu_s = clock() - cpu if wall_s >= BRIEF_S else wall_s
        return Usage(wall_s, cpu_s, peak(wall_s), None, wall)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if call.kind == "shell":
        used = max(used, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return Usage(wall_s, clock() - cpu, used * _RSS_UNIT, None, wall)


def _holds(when: str, scope: Callable[[str], Any]) -> bool:
    from procflow.compiling import condition

    return condition.parse(when).evaluate(scope)


def _reads_item(call: StepCall) -> bool:
    from procflow.compiling import condition

    return not {call.item_name, INDEX}.isdisjoint(condition.parse(call.when or "").names)


def _single(
    call: StepCall, kind: ModuleType, scope: Values, running: step.Running
) -> tuple[dict[str, Ref], tuple[tuple[Ref, int], ...]]:
    value = kind.run(call, scope)
    if call.kind == "expand":
        return {}, value
    if call.kind == "pooled":
        # Refs already: a call of a ProcessPool is no step with outputs to check.
        return value, ()
    outputs = publish(call.outputs, _unwrapped(value, running))
    made = running.state.take() if call.state else None
    return changes.pack_beside(outputs, made) if made else outputs, ()


def _unwrapped(value: Any, running: step.Running) -> Any:
    if type(value) is not step.StepOutput:
        return value
    if value.cost:
        step.cost(value.cost)
    for name, amount in value.metrics.items():
        step.metric(name, amount)
    return value.value


def publish(outputs: tuple[str, ...] | Literal["*"], value: Any) -> dict[str, Ref]:
    """The refs by name that a returned value gives. Raises ``OutputError`` where it does not fit, ``PackError``."""
    if outputs == "*":
        if not isinstance(value, Mapping):
            raise OutputError(f'outputs "*" needs a mapping of names to values; the step returned {_kind(value)}')
        for name in value:
            if not isinstance(name, str) or re.fullmatch(_NAME, name) is None:
                raise OutputError(f"{name!r} can't be the name of a value: use letters, digits, _ and -")
        return _packed((name, member, f"result[{name!r}]") for name, member in value.items())
    if not outputs:
        return {}
    if len(outputs) == 1:
        return {outputs[0]: objects.pack(value)}
    if isinstance(value, Mapping):
        missing = [name for name in outputs if name not in value]
        if missing:
            has = [str(k) for k in value]
            guess = functions.did_you_mean(missing[0], has)
            raise OutputError(f"the returned mapping has no {', '.join(missing)}; it has {', '.join(has[:20])}{guess}")
        return _packed((name, value[name], f"result[{name!r}]") for name in outputs)
    if isinstance(value, (tuple, list)):
        if len(value) != len(outputs):
            raise OutputError(
                f"the step returned {len(value)} values for {len(outputs)} outputs ({', '.join(outputs)[:500]})"
            )
        return _packed((name, value[i], f"result[{i}]") for i, name in enumerate(outputs))
    raise OutputError(
        f"outputs {', '.join(outputs)[:500]} need a mapping with these keys or a tuple of {len(outputs)}; "
        f"the step returned {_kind(value)}"
    )


def _packed(members: Iterable[tuple[str, Any, str]]) -> dict[str, Ref]:
    """Refs by name of values with their places; all or none, so that no file is left of those before a failure."""
    refs: dict[str, Ref] = {}
    try:
        for name, value, place in members:
            refs[name] = objects.pack(value, place)
    except BaseException:
        objects.forget(refs.values())
        raise
    return refs


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


class _Chunk:
    """Results and failures of a map's items since the last report."""

    def __init__(self, running: step.Running, each: bool) -> None:
        self.running = running
        self.interval = -1.0 if each else REPORT_INTERVAL_S
        self.at = perf_counter()
        self.done: list[int] = []
        self.results: list[Any] = []
        self.failures: list[tuple[int, Failure]] = []
        self.changes: dict[int, changes.Made] = {}

    def flush(self) -> None:
        """Send what there is, and begin anew."""
        indices, ref, failures = self.rest()
        self.running.report(Progressed(self.running.key, indices, ref, failures))
        self.done, self.results, self.failures, self.changes = [], [], [], {}
        self.running.reported_at = monotonic()
        self.at = perf_counter()

    def rest(self) -> tuple[range | tuple[int, ...], Ref | None, tuple[tuple[int, Failure], ...]]:
        """Indices, their packed results, and failures. A result that can't be pickled fails its item alone."""
        if not self.done and not self.failures:
            return (), None, ()
        ref = None
        if self.done:
            try:
                ref = self._packed()
            except Exception:
                ref = self._sorted_out()
        return _compact(self.done), ref, tuple(sorted(self.failures, key=lambda pair: pair[0]))

    def _packed(self) -> Ref:
        return changes.pack_chunk(self.results, self.done, self.changes) if self.changes else objects.pack(self.results)

    def _sorted_out(self) -> Ref | None:
        good: list[tuple[int, Any]] = []
        for index, result in zip(self.done, self.results, strict=True):
            try:
                changes.check(result, self.changes.get(index, {}))
            except Exception as exc:
                self.failures.append((index, failure_from(exc)))
            else:
                good.append((index, result))
        self.done, self.results = [index for index, _ in good], [result for _, result in good]
        return self._packed() if good else None


def _compact(indices: list[int]) -> range | tuple[int, ...]:
    if not indices:
        return ()
    first, last = indices[0], indices[-1]
    return range(first, last + 1) if last - first == len(indices) - 1 else tuple(indices)


def _each(
    call: StepCall, kind: ModuleType, scope: Values, running: step.Running, items: Items, chunk: _Chunk, judged: bool
) -> None:
    """Run the call for every item; results and failures go to ``chunk``, which reports now and then."""
    indices, first = items.indices, items.first
    if not len(indices):
        return
    places = (
        range(indices.start - first, indices.stop - first)
        if isinstance(indices, range)
        else [i - first for i in indices]
    )
    try:
        taken = pages.take(items.page, places)
    except MemoryError:
        raise
    except BaseException as exc:
        text = f"{type(exc).__name__}: {exc}".rstrip(": ")
        raise objects.UnpackError(f"the items from {first} on can't be opened: {secrets.masked(text)[:2000]}") from exc
    body = _body(call, kind, scope, judged)
    send, interval = running.send, chunk.interval
    last = len(indices) - 1
    for at, index in enumerate(indices):
        item = taken[at]
        taken[at] = None
        running.index = index
        try:
            value = body(item, index)
            if type(value) is step.StepOutput:
                value = _unwrapped(value, running)
        except BaseException as exc:
            chunk.failures.append((index, replace(failure_from(exc), item=item_text(item))))
            if call.state:
                running.state.take()
        else:
            chunk.done.append(index)
            chunk.results.append(value)
            if call.state and (made := running.state.take()):
                chunk.changes[index] = made
        if send is not None and at < last and perf_counter() - chunk.at > interval:
            chunk.flush()
    running.index = None


def _body(call: StepCall, kind: ModuleType, scope: Values, judged: bool) -> Callable[[Any, int], Any]:
    """A function of item and index. An item whose ``when`` is false has the result None."""
    item_name = call.item_name
    opened = scope.opened
    if call.kind == "transform":
        body: Callable[[Any, int], Any] = kind.body(call, scope)
    else:

        def body(item: Any, index: int) -> Any:
            return kind.run(call, scope)

    def bound(item: Any, index: int) -> Any:
        opened[INDEX] = index
        if item_name is not None:
            opened[item_name] = item
        if judged and not _holds(call.when or "", scope):
            return None
        return body(item, index)

    return body if call.kind == "transform" and not judged and not _asks_params(call) else bound


def _asks_params(call: StepCall) -> bool:
    # step.params may look at the item, so the item has to be among the values.
    return bool(call.params)
