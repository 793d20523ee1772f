"""Launch: puts the parts of a run together, and takes them apart again.

    prepare:  Pipeline ─ compile ─ check against machine and executors ─> Prepared
    launch:   Prepared ─ state folder, lock, store, executors ─ engine ─> RunResult

The Python API and the command line both run through here. It owns the order in which things are opened and closed, the
checks that need to know machine and executors; it decides nothing about steps.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from procflow import model, secrets
from procflow.compiler import compile_pipeline
from procflow.compiling.build import Load, LoadedFile
from procflow.errors import PipelineError, Problem
from procflow.executors.base import Executor
from procflow.graph import TaskGraph
from procflow.guarding.guard import Guard
from procflow.guarding.signals import Signals, say
from procflow.machine.resources import Machine, budget, probe, warnings
from procflow.machine.resources import workers as workers_of
from procflow.passive import passive
from procflow.preflight import check
from procflow.report.spans import sending
from procflow.skills.installed import Installed
from procflow.sources.kept import close_run
from procflow.storing.state_folder import StateFolder, fresh_run_id, locate, lock_name
from procflow.units import Share
from procflow.values import transient
from procflow.working.garbage import RECORDS_ONLY, few_collections

log = logging.getLogger("procflow")

if TYPE_CHECKING:
    from procflow.engine import Observer
    from procflow.events import Event
    from procflow.loading.source import Source
    from procflow.result import RunResult
    from procflow.resuming.continuing import Earlier

__all__ = ["Parts", "Prepared", "iterate", "launch", "prepare", "workers_for"]


@passive(frozen=True, slots=True)
class Prepared:
    """A pipeline that may run: compiled, and checked against the machine and the executors."""

    pipeline: model.Pipeline
    graph: TaskGraph
    machine: Machine
    workers: int
    memory_bytes: int
    run_id: str
    source: Source | None = None
    compile_as: Callable[[str], TaskGraph] | None = None
    """Compiles it once more for another run id, to tell what the id changes."""
    warnings: tuple[str, ...] = ()
    """What endangers the run as a whole, a line each; whoever shows the run says it at its start."""

    def with_graph(self, graph: TaskGraph) -> Prepared:
        """The same with another graph."""
        return replace(self, graph=graph)

    def with_warnings(self, lines: Iterable[str]) -> Prepared:
        """The same with more warnings."""
        return replace(self, warnings=(*self.warnings, *lines))


@passive(frozen=True, slots=True)
class Parts:
    """What is open when a session begins; ``lock`` is the name of the run lock, ``objects`` the path for large values."""

    prepared: Prepared
    folder: StateFolder
    lock: str
    signals: Signals
    guard: Guard
    executors: Mapping[str, Executor]
    objects: str
    mask: secrets.Masker | None
    observers: tuple[Observer, ...]


def prepare(
    pipeline: model.Pipeline,
    *,
    params: Mapping[str, Any] | None = None,
    source: Source | None = None,
    executor: str | None = None,
    workers: int | str | Share | None = None,
    memory: int | Share | None = None,
    timeout: float | None = None,
    run_id: str | None = None,
) -> Prepared:
    """Everything up to and excluding the run; raises ``PipelineError`` with all problems, each with its place."""
    run_id = run_id or fresh_run_id()
    machine = probe()
    if timeout is not None:
        pipeline = pipeline.model_copy(update={"limits": pipeline.limits.model_copy(update={"timeout": timeout})})
    if own := _combiners():
        pipeline = pipeline.model_copy(update={"combiners": {**own, **pipeline.combiners}})
    folder = str(source.folder) if source is not None else os.getcwd()
    slots = workers_for(machine, workers if workers is not None else pipeline.limits.workers)
    memory_bytes = budget(machine, memory if memory is not None else pipeline.limits.memory)
    compile_as = partial(_compiled, pipeline, params, folder, executor, _loader())
    try:
        graph = compile_as(run_id)
        rules = pipeline.combiners
        problems = check(graph, slots=slots, memory_bytes=memory_bytes, combiners=rules, folder=folder)
        if problems:
            raise PipelineError(problems)
    except PipelineError as error:
        if source is None:
            raise
        raise PipelineError(source.locate(list(error.problems))) from None
    told = warnings()
    return Prepared(pipeline, graph, machine, slots, memory_bytes, run_id, source, compile_as, told)


def _combiners() -> Mapping[Any, Any]:
    """What was registered in this process, if anything was: most runs never load the rules of merges here."""
    module: Any = sys.modules.get("procflow.steps.combine")
    return module.registered() if module is not None else {}


def _compiled(
    pipeline: model.Pipeline,
    params: Mapping[str, Any] | None,
    folder: str,
    executor: str | None,
    load: Load,
    run_id: str,
) -> TaskGraph:
    return compile_pipeline(
        pipeline,
        params=params,
        environ=os.environ,
        run_id=run_id,
        folder=folder,
        executor=executor,
        load=load,
        installed=Installed(),
    )


def workers_for(machine: Machine, declared: int | str | Share) -> int:
    """The number of slots for what was asked: a number, a share of the usable cores, or auto."""
    if isinstance(declared, Share):
        return max(1, int(machine.cpus * declared.fraction))
    return workers_of(machine, declared if isinstance(declared, int) else "auto")


def _loader() -> Load:
    """Loads the files of ``type: pipeline`` steps, each once, relative to the folder of the file that names them."""
    known: dict[str, LoadedFile] = {}

    def load(file: str, folder: str | None) -> LoadedFile:
        from procflow.loader import load_pipeline

        path = os.path.realpath(os.path.join(folder or os.getcwd(), os.path.expanduser(file)))
        if path not in known:
            beside = os.path.relpath(path)
            try:
                known[path] = load_pipeline(path if beside.startswith("..") else beside, model.Pipeline)
            except PipelineError as error:
                if os.path.isfile(path):
                    raise
                # What is wrong is the name, and that stands in the file that names it.
                raise PipelineError(Problem(f"{file}: {p.message}", (), p.hint) for p in error.problems) from None
        return known[path]

    return load


def launch(pipeline: model.Pipeline, **options: Any) -> RunResult:
    """Run a pipeline to its end; options as for ``prepare``, and as for ``iterate``.

    Raises ``PipelineError`` before anything runs, ``LockHeld`` where the pipeline is running already,
    ``StoreError`` where state can't be kept. A failed step raises nothing: see ``RunResult.status``.
    """
    groups = _groups(pipeline, **options)
    while True:
        try:
            next(groups)
        except StopIteration as end:
            result: RunResult = end.value
            return result


def iterate(pipeline: model.Pipeline, **options: Any) -> Generator[Event, None, RunResult]:
    """Run a pipeline, yielding events as they become durable; the generator's value is the ``RunResult``.

    Closing the generator stops the run. Options as for ``prepare``, and: ``earlier`` is a run that this one builds on, or goes
    on; without ``cache`` nothing else is kept.
    """
    with closing(_groups(pipeline, **options)) as groups:
        while True:
            try:
                events = next(groups)
            except StopIteration as end:
                result: RunResult = end.value
                return result
            yield from events


def _groups(
    pipeline: model.Pipeline,
    *,
    state_dir: str | os.PathLike[str] | None = None,
    observers: Sequence[Observer] = (),
    lock_wait_s: float = 0.0,
    earlier: Earlier | None = None,
    cache: bool = True,
    **options: Any,
) -> Generator[list[Event], None, RunResult]:
    """The same in groups, as they became durable together."""
    with ExitStack() as stack:
        stack.enter_context(few_collections(RECORDS_ONLY))
        prepared = prepare(pipeline, **options)
        graph = prepared.graph
        file = prepared.source.path if prepared.source is not None else None
        observers = (*observers, *stack.enter_context(sending(os.environ, log.warning)))
        mask = stack.enter_context(secrets.known({name: os.environ[name] for name in graph.secrets}))
        folder = StateFolder.open(locate(state_dir, file))
        name = lock_name(file, pipeline.name)
        lock = folder.lock(name)
        lock.acquire(prepared.run_id, lock_wait_s)
        stack.callback(lock.release)
        stack.callback(close_run, prepared.run_id)
        signals = stack.enter_context(Signals(_sayer(observers)))
        guard = stack.enter_context(Guard(folder, name))
        objects = str(folder.run(prepared.run_id) / "objects")
        swept = transient.leaves_something(graph)
        executors = guard.open(sorted(graph.executors), prepared.workers, prepared.run_id, objects, swept)
        if earlier is None:
            # What builds on an earlier run may have nothing left to do.
            guard.warm()
        # Not before: the first worker starts while this is loaded.
        from procflow.session import turns

        parts = Parts(prepared, folder, name, signals, guard, executors, objects, mask, tuple(observers))
        return (yield from turns(parts, earlier, cache, options))


def _sayer(observers: Sequence[Observer]) -> Callable[[str], None]:
    """What a signal handler tells goes to the observer that holds the terminal (``observer.say(text)``), else to stderr."""
    return next((observer.say for observer in observers if hasattr(observer, "say")), say)
