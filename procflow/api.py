"""Pipelines built in Python: ``Pipeline``, ``load``, and a builder per kind of step.

The builders make the same records that the loader makes from a file, so everything behind them is shared. What is wrong
raises ``PipelineError`` where the builder is called. Functions may be anything cloudpickle takes: lambdas, closures,
functions of ``__main__``. This file only builds and hands on; ``procflow.launch`` runs.

    pipeline = Pipeline("squares", steps=[Map("squares", square, items=range(1000)), Step("total", sum, inputs=["squares"])])
    print(pipeline.run(workers=4).outputs["total"])
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import PrivateAttr, ValidationError

from procflow import model, units
from procflow.errors import PipelineError, Problem, ProcflowError
from procflow.events import Event
from procflow.units import Share

if TYPE_CHECKING:
    from procflow.loader import Source
    from procflow.result import RunResult

__all__ = [
    "EventStream",
    "Graph",
    "Map",
    "Merge",
    "Parallel",
    "Pipeline",
    "Sequence",
    "Shell",
    "Split",
    "Step",
    "Subpipeline",
    "load",
]

AnyMember = "model.AnyStep | Callable[..., Any]"
"""A step, or a bare function, which becomes a step under its own name."""

_Record = TypeVar("_Record", bound=model.Record)

_EVENTS = ("on_success", "on_failure", "on_finish")
MOST_READ = 10_000_000
"""So many items are read of an iterable at most."""
_NAME = re.compile(model.NAME)
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class Pipeline(model.Pipeline):
    """A pipeline that can be run.

    ``Pipeline("nightly", steps=[...], params={...}, limits={"workers": 4}, ...)``: the keys are those of a pipeline file; steps
    come from the builders, and a bare function is a step under its own name. Raises ``PipelineError``.
    """

    _source: Source | None = PrivateAttr(default=None)

    def __init__(self, name: str, *, steps: Iterable[Any] = (), **keys: Any) -> None:
        data = {"name": name, "steps": _members(steps), **_with_hooks(keys)}
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise PipelineError(_problems(error, type(self), f"pipeline {name!r}")) from None

    def run(
        self,
        *,
        executor: str | None = None,
        workers: int | str | Share | None = None,
        memory: int | str | Share | None = None,
        timeout: float | str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        observers: SequenceOf[Any] = (),
        **params: Any,
    ) -> RunResult:
        """Run it to its end; the result tells how it went, and a failed step raises nothing.

        ``params`` override declared ones. ``executor`` is processes (default), threads or inline; ``workers`` a number,
        ``auto`` or ``"50%"``; ``memory`` bytes, ``"8GB"`` or ``"80%"``; ``timeout`` seconds or ``"1h"``. Each of ``observers`` has
        ``handle(event)``. State is kept in ``state_dir``, else ``PROCFLOW_STATE_DIR``, else ``.procflow`` beside the file it was
        loaded from, else ``.procflow`` in the current folder. Raises ``PipelineError`` before anything runs, ``LockHeld``
        where this pipeline is running there already, ``StoreError`` where state can't be kept.
        """
        from procflow.launch import launch

        wanted = self._wanted(executor, workers, memory, timeout, state_dir, observers, params)
        return launch(self, **wanted)

    def resume(
        self,
        run_id: str | None = None,
        *,
        executor: str | None = None,
        workers: int | str | Share | None = None,
        memory: int | str | Share | None = None,
        timeout: float | str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        observers: SequenceOf[Any] = (),
        force: bool = False,
        **params: Any,
    ) -> RunResult:
        """Go on with a run of this pipeline that was killed, stopped, or failed; what is done does not run again.

        ``run_id`` is an id or its beginning, None the last run that did not succeed. Options and parameters are those of
        that run unless given here. ``force`` keeps results of another version of Python. Raises ``ProcflowError`` where
        there is nothing to resume, ``LockHeld`` where the run goes on, and otherwise as ``run``.
        """
        from procflow.launch import launch
        from procflow.resuming.continuing import Earlier, again, find_run, selection_of
        from procflow.storing.state_folder import StateFolder, locate, lock_name

        wanted = self._wanted(executor, workers, memory, timeout, state_dir, observers, params)
        file = self._source.path if self._source is not None else None
        folder = StateFolder.open(locate(state_dir, file), create=False)
        row = find_run(folder, run_id, lock_name(file, self.name))
        limits = ("executor", "workers", "memory", "timeout", "params")
        options = {**wanted, **again(row, self.params, {name: wanted[name] for name in limits})}
        earlier = Earlier(row.run_id, same_run=True, selection=selection_of(row), force=force)
        return launch(self, **options, run_id=row.run_id, earlier=earlier)

    def stream(
        self,
        *,
        executor: str | None = None,
        workers: int | str | Share | None = None,
        memory: int | str | Share | None = None,
        timeout: float | str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        observers: SequenceOf[Any] = (),
        **params: Any,
    ) -> EventStream:
        """Run it step by step: an iterator of events as they happen, with the ``RunResult`` as ``.result`` at its end.

        The run goes on only while events are taken, in the thread that takes them. Closing the iterator (or leaving a
        ``with`` block) stops the run.
        """
        wanted = self._wanted(executor, workers, memory, timeout, state_dir, observers, params)
        return EventStream(self, wanted)

    def _wanted(
        self,
        executor: str | None,
        workers: int | str | Share | None,
        memory: int | str | Share | None,
        timeout: float | str | None,
        state_dir: str | os.PathLike[str] | None,
        observers: SequenceOf[Any],
        params: Mapping[str, Any],
    ) -> dict[str, Any]:
        return {
            "params": dict(params),
            "source": self._source,
            "executor": _checked("executor", _executor, executor),
            "workers": _checked("workers", _workers, workers),
            "memory": _checked("memory", _memory, memory),
            "timeout": _checked("timeout", units.duration, timeout),
            "state_dir": os.fspath(state_dir) if state_dir is not None else None,
            "observers": tuple(observers),
        }

    @classmethod
    def _loaded(cls, record: model.Pipeline, source: Source) -> Pipeline:
        """A pipeline from a record that was validated already."""
        made = cls.model_construct(
            record.model_fields_set, **{n: getattr(record, n) for n in type(record).model_fields}
        )
        made._source = source
        return made


class EventStream(Iterator[Event]):
    """The events of a run as they happen; ``result`` is there once they are over. Use it once, in one thread."""

    def __init__(self, pipeline: Pipeline, wanted: Mapping[str, Any]) -> None:
        self._result: RunResult | None = None
        self._events = self._drive(pipeline, wanted)

    def _drive(self, pipeline: Pipeline, wanted: Mapping[str, Any]) -> Iterator[Event]:
        from procflow.launch import iterate

        self._result = yield from iterate(pipeline, **wanted)

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Stop the run if it is not over; harmless otherwise."""
        self._events.close()  # type: ignore[attr-defined]

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def result(self) -> RunResult:
        """How the run went; ``ProcflowError`` while it has not ended."""
        if self._result is None:
            raise ProcflowError("the run is not over: take all events of the stream first")
        return self._result


def load(
    path: str | os.PathLike[str], *, dialect: str | None = None, bindings: Mapping[str, Any] | None = None
) -> Pipeline:
    """The pipeline of a YAML or JSON file; raises ``PipelineError`` with every problem as ``file:line:column``.

    A file of another system is read by its shape, or by ``dialect``; ``bindings`` are functions (or ``module:name``) for the names
    that it leaves open.
    """
    from procflow.dialects import Reading
    from procflow.loader import load_pipeline

    loaded = load_pipeline(Path(path), model.Pipeline, Reading(dialect, bindings or {}))
    return Pipeline._loaded(loaded.pipeline, loaded.source)


# -- builders ----------------------------------------------------------------------------------------------------------


def Step(name: str, function: Callable[..., Any] | str, **keys: Any) -> model.Transform:
    """A step that calls a Python function (or ``"module:name"``) with the values that ``inputs`` names, and ``params``.

    Without ``inputs`` and ``params`` it is called with nothing. ``keys`` are those of a step in a file: ``timeout="5m"``,
    ``retries=2`` and so on.
    """
    return _make(model.Transform, name, {"function": function}, keys)


def Shell(name: str, command: str | SequenceOf[Any], **keys: Any) -> model.Shell:
    """A command: a sequence of arguments, or a line for ``sh -c``."""
    return _make(model.Shell, name, {"command": command if isinstance(command, str) else tuple(command)}, keys)


def Merge(name: str, inputs: SequenceOf[str] | Mapping[str, str] = (), **keys: Any) -> model.Merge:
    """Several named values into one: ``Merge("all", inputs=["a", "b"], merge="combine_outputs")``."""
    return _make(model.Merge, name, {"inputs": _plain(inputs)}, keys)


def Split(name: str, inputs: SequenceOf[str] | Mapping[str, str] | str = (), **keys: Any) -> model.Split:
    """One value into several: ``Split("parts", inputs="rows", strategy="chunks", into=4)``."""
    return _make(model.Split, name, {"inputs": (inputs,) if isinstance(inputs, str) else _plain(inputs)}, keys)


def Subpipeline(name: str, file: str | os.PathLike[str], **keys: Any) -> model.Subpipeline:
    """Another pipeline file as a step."""
    return _make(model.Subpipeline, name, {"file": os.fspath(file)}, keys)


def Sequence(*steps: Any, name: str | None = None, **keys: Any) -> model.Sequence:
    """Steps one after the other: ``Sequence("load", a, b)`` or ``Sequence(a, b, name="load")``."""
    return _block(model.Sequence, steps, name, keys)


def Parallel(*steps: Any, name: str | None = None, **keys: Any) -> model.Parallel:
    """Steps at once: ``Parallel("fetch", a, b, max_parallelism=2)`` or ``Parallel(a, b, name="fetch")``."""
    return _block(model.Parallel, steps, name, keys)


def Graph(*steps: Any, name: str | None = None, **keys: Any) -> model.Graph:
    """Steps that start as soon as their ``depends_on`` and the values they read are there."""
    return _block(model.Graph, steps, name, keys)


def Map(name: str, *body: Any, items: Any, **keys: Any) -> model.Map:
    """One call per item, ``Map("m", function, items=...)``, or a list of steps per item, ``Map("m", a, b, items=...)``.

    A single function or ``"module:name"`` is called with each item; steps read it as ``item``. ``items`` is the name of a
    value (``"rows"``, the same as ``"${rows}"``), a list, a range, ``{"glob": "data/*.csv"}``, or any other iterable of at
    most ``MOST_READ`` items, which is read now.
    """
    keys = dict(keys)
    members = [*body, *keys.pop("steps", ())]
    given: dict[str, Any] = {"items": _items(items)}
    if len(body) == 1 and len(members) == 1 and not isinstance(body[0], model.StepBase):
        given["function"] = body[0]
    elif members:
        given["steps"] = _members(members)
    return _make(model.Map, name, given, keys)


def _items(items: Any) -> Any:
    if isinstance(items, str):
        return f"${{{items}}}" if _DOTTED.fullmatch(items) else items
    if isinstance(items, (list, tuple, range, model.Items)):
        return items
    if isinstance(items, Mapping):
        return dict(items)
    # A one-shot iterator would be empty in a second run; sets and views have no order that holds.
    if isinstance(items, (set, frozenset)):
        return sorted(items, key=repr)
    found = list(islice(items, MOST_READ + 1))
    if len(found) > MOST_READ:
        why = f"the iterator of items gives more than {MOST_READ:,}, so it may have no end"
        raise PipelineError(
            [Problem(why, ("items",), "pass a range, a list, or the name of a value that a step makes")]
        )
    return found


def _block(kind: type[_Record], steps: SequenceOf[Any], name: str | None, keys: Mapping[str, Any]) -> _Record:
    keys, members = dict(keys), list(steps)
    if members and isinstance(members[0], str):
        if name is not None:
            raise PipelineError(
                [Problem(f"{kind.__name__}: two names, {members[0]!r} and {name!r}", ("name",), "keep one")]
            )
        name = members.pop(0)
    return _make(kind, name, {"steps": _members([*members, *keys.pop("steps", ())])}, keys)


def _members(steps: Iterable[Any]) -> tuple[Any, ...]:
    """The steps, with bare functions made steps under their own names; mappings are taken as a file's steps would be."""
    return tuple(step if isinstance(step, (model.StepBase, dict)) else _bare(step) for step in steps)


def _with_hooks(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a pipeline or a step; bare functions among its hooks are made steps."""
    return {key: _members(value) if key in _EVENTS and value else value for key, value in keys.items()}


def _bare(step: Any) -> Any:
    if not callable(step) or (isinstance(step, type) and issubclass(step, model.StepBase)):
        raise PipelineError(
            [Problem(f"{step!r:.80} is not a step", (), "write Step(name, function), another builder, or a function")]
        )
    name = getattr(step, "__name__", "")
    return _make(model.Transform, name if _NAME.fullmatch(name) else None, {"function": step}, {})


def _make(kind: type[_Record], name: str | None, given: Mapping[str, Any], keys: Mapping[str, Any]) -> _Record:
    """The record of a step; what is wrong is told with the step's name."""
    data = {**given, **_with_hooks(keys)} if keys else dict(given)
    if name is not None:
        data["name"] = name
    try:
        return kind(**data)
    except ValidationError as error:
        title = f"{kind.__name__.replace('Transform', 'Step')} {name!r}" if name is not None else kind.__name__
        raise PipelineError(_problems(error, kind, title)) from None


def _plain(inputs: SequenceOf[str] | Mapping[str, str]) -> Any:
    return dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs)


def _checked(name: str, read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return None if value is None else read(value)
    except ValueError as error:
        raise PipelineError([Problem(str(error), (name,))]) from None


def _executor(value: str) -> str:
    from procflow.executors import NAMES

    if value not in NAMES:
        raise ValueError(f"there is no executor {value!r}; write {', '.join(NAMES)}")
    return value


def _workers(value: int | str | Share) -> int | str | Share:
    """A number of slots, ``auto``, or a share of the usable cores."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return units.share(value)
    is_number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096
    if not is_number and not isinstance(value, Share) and value != "auto":
        raise ValueError(f"{value!r} is not a number of workers; write auto, 1 to 4096, or a share such as 50%")
    return value


def _memory(value: int | str | Share) -> int | Share:
    """Bytes or a share; here a bare number counts bytes."""
    if isinstance(value, Share) or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    return units.share(value) if isinstance(value, str) and value.strip().endswith("%") else units.size(value)


def _problems(error: ValidationError, kind: type[model.Record], title: str) -> list[Problem]:
    """What is wrong in the words that a file would get, with the step's name in front."""
    from procflow.loading.validation import problems

    return [replace(found, message=f"{title}: {found.message}") for found in problems(error, kind)]
