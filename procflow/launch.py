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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from procflow import model, secrets
from procflow.compiler import compile_pipeline
from procflow.compiling.build import Load, LoadedFile
from procflow.engine import Engine, Observer
from procflow.errors import ExecutorError, InternalError, PipelineError, Problem, ProcflowError, StoreError
from procflow.events import Event
from procflow.executors import open_waiter
from procflow.executors.base import Executor
from procflow.graph import TaskGraph
from procflow.guarding.guard import Guard
from procflow.guarding.signals import Signals, say
from procflow.guarding.watch import Watch
from procflow.machine.memory import MemoryWatch
from procflow.machine.pressure import Pressure
from procflow.machine.resources import Machine, budget, probe, warnings
from procflow.machine.resources import workers as workers_of
from procflow.preflight import check
from procflow.report.spans import sending
from procflow.result import Recorder, RunResult
from procflow.resuming.continuing import asked, open_session
from procflow.scheduler import Scheduler
from procflow.secrets import MaskedWaiter
from procflow.skills.installed import Installed
from procflow.sources.kept import close_run
from procflow.storing.failures_file import FailuresFile
from procflow.storing.journal_objects import files_of_run
from procflow.storing.samples import sampled
from procflow.storing.state_folder import StateFolder, fresh_run_id, locate, lock_name
from procflow.units import Share
from procflow.values import transient
from procflow.values.lazy_state import LazyState
from procflow.values.object_files import ObjectFolder, make_folder
from procflow.working.garbage import RECORDS_ONLY, THRESHOLD, few_collections

log = logging.getLogger("procflow")

if TYPE_CHECKING:
    from procflow.loading.source import Source
    from procflow.resuming.continuing import Earlier, Session
    from procflow.storing.store import Store
    from procflow.storing.store_begin import RunRecord

__all__ = ["Prepared", "Run", "iterate", "launch", "prepare", "workers_for"]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Run:
    """What an observer may know of a run before its first event: ``observer.begin(run)`` is called where it exists."""

    prepared: Prepared
    folder: StateFolder
    meter: MemoryWatch
    """Its ``last`` is the newest sample of the memory that the run uses."""

    @property
    def run_id(self) -> str:
        return self.prepared.run_id


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
    events = iterate(pipeline, **options)
    while True:
        try:
            next(events)
        except StopIteration as end:
            result: RunResult = end.value
            return result


def iterate(
    pipeline: model.Pipeline,
    *,
    state_dir: str | os.PathLike[str] | None = None,
    observers: Sequence[Observer] = (),
    lock_wait_s: float = 0.0,
    earlier: Earlier | None = None,
    cache: bool = True,
    **options: Any,
) -> Generator[Event, None, RunResult]:
    """Run a pipeline, yielding events as they become durable; the generator's value is the ``RunResult``.

    ``earlier`` is a run that this one builds on, or goes on; without ``cache`` nothing else is kept. Closing the generator
    stops the run.
    """
    with ExitStack() as stack:
        stack.enter_context(few_collections())
        prepared = prepare(pipeline, **options)
        from procflow.storing.attempt_log import LogFolder
        from procflow.storing.learned import taught_by
        from procflow.storing.store import Store

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
        # First, since opening it may find results that the last session had no time to commit.
        store = Store.open(folder)
        stack.callback(store.close)
        store.recover(name)
        session = stack.enter_context(open_session(prepared, folder, name, earlier, cache))
        session.prepared = taught_by(folder, session.prepared, name, session.prints)
        prepared, graph = session.prepared, session.prepared.graph
        if not session.same_run:
            folder.new_run(prepared.run_id)
        shown = mask.tree(graph.params) if mask is not None else dict(graph.params)
        store.begin(_record(session, name, shown, asked(options, graph.params, shown, earlier)))
        objects = make_folder(str(folder.run(prepared.run_id) / "objects"))
        _clean(objects, folder, prepared.run_id)
        swept = transient.leaves_something(graph)
        executors = guard.open(sorted(graph.executors), prepared.workers, prepared.run_id, objects.path, swept)
        watch = stack.enter_context(Watch(open_waiter(executors), signals, guard.reaper))
        meter = MemoryWatch(executors.values(), prepared.memory_bytes, pressure=Pressure.of(prepared))
        run = Run(prepared, folder, meter)
        for observer in observers:
            if hasattr(observer, "begin"):
                observer.begin(run)
        run_folder = folder.open_run(prepared.run_id)
        recorder, failures = Recorder(prepared.workers, graph), FailuresFile(run_folder)
        stack.callback(failures.close)
        samples = stack.enter_context(sampled(prepared, run_folder, meter, executors.values(), watch.clock))
        logs = LogFolder(run_folder, on_line=_lines_to(observers), mask=mask)
        scheduler = _scheduler(session, executors, guard.token)
        engine = Engine(
            *(scheduler, executors, watch if mask is None else MaskedWaiter(watch.wait, mask), store),
            observers=(recorder, failures, samples, *observers),
            open_log=logs.open,
            memory=samples,
            free=transient.freeing(objects, guard.token),
            clock=watch.clock,
        )
        signals.attach(engine.stop, engine.hurry)
        elsewhere = graph.executors <= {"processes"}
        with _crash_only(store, prepared.run_id), few_collections(RECORDS_ONLY if elsewhere else THRESHOLD):
            samples.begin()
            for events in engine.turns():
                yield from events
        _tell_of_troubles(engine, prepared)
        _clean(objects, folder, prepared.run_id)
        return recorder.result(scheduler.outputs, dropped=scheduler.dropped, state=_state(prepared, scheduler))


def _state(prepared: Prepared, scheduler: Scheduler) -> LazyState:
    """The pipeline's state in the end; reducers of the user's lie beside its file."""
    folder = str(prepared.source.folder) if prepared.source is not None else None
    return LazyState(*scheduler.state, folder=folder)


def _tell_of_troubles(engine: Engine, prepared: Prepared) -> None:
    """What the run has got over, and people should know."""
    least = engine.scheduler.easing.least
    if least is not None:
        short = (
            "the machine was short of memory or cores, so at times no more than %d of %d ran at once (limits.pressure)"
        )
        log.warning(short, least, prepared.workers)
    for observer, error in engine.failed_observers:
        log.warning("%s failed and was left out: %s: %s", type(observer).__name__, type(error).__name__, error)


def _record(session: Session, lock: str, params: Mapping[str, Any], options: Mapping[str, Any]) -> RunRecord:
    """What the journal is told at the start; ``params`` as they may be shown.

    The fingerprints, half a kilobyte a step, leave the session: nothing else needs them.
    """
    from procflow.storing.store_begin import RunRecord

    prepared = session.prepared
    file = prepared.source.path if prepared.source is not None else None
    executors = prepared.graph.executors
    prints, session.prints = session.prints, ()
    return RunRecord(
        prepared.run_id,
        prepared.pipeline.name,
        file=os.path.abspath(file) if file is not None else None,
        lock=lock,
        params=params,
        executor=next(iter(executors)) if len(executors) == 1 else "mixed",
        workers=prepared.workers,
        options=options,
        earlier=session.earlier,
        prints=prints,
        taken=session.taken,
    )


def _scheduler(session: Session, executors: Mapping[str, Executor], token: str) -> Scheduler:
    prepared = session.prepared
    return Scheduler(
        prepared.graph,
        slots={name: each.slots for name, each in executors.items()},
        memory_bytes=prepared.memory_bytes,
        run_id=prepared.run_id,
        kept=session.kept,
        depth={name: getattr(each, "depth", 0) for name, each in executors.items()},
        transient=transient.made_for(prepared.graph, token),
    )


def _clean(objects: ObjectFolder, folder: StateFolder, run_id: str) -> None:
    """Remove what killed attempts have left, and what the last session had no time to remove."""
    if objects.used:
        objects.clean(files_of_run(folder, run_id))


def _sayer(observers: Sequence[Observer]) -> Callable[[str], None]:
    """What a signal handler tells goes to the observer that holds the terminal (``observer.say(text)``), else to stderr."""
    return next((observer.say for observer in observers if hasattr(observer, "say")), say)


def _lines_to(observers: Sequence[Observer]) -> Callable[[Any], None] | None:
    """A function that shows log lines to every observer that takes them (``observer.line(line)``)."""
    takers = [observer.line for observer in observers if hasattr(observer, "line")]
    if not takers:
        return None

    def tell(line: Any) -> None:
        for take in takers:
            take(line)

    return tell


@contextmanager
def _crash_only(store: Store, run_id: str) -> Iterator[None]:
    """When procflow itself breaks, what is not yet durable is forgotten: half of a decision must not be resumed from.

    The same where the journal can't be written: nothing more is tried, and the message says how to go on.
    """
    try:
        yield
    except GeneratorExit:
        raise
    except BaseException as error:
        if not isinstance(error, ProcflowError) or isinstance(error, InternalError):
            store.abandon()
        if isinstance(error, StoreError):
            store.abandon(keep_received=True)
            raise StoreError(
                f"{error}\nonce that is put right, procflow resume {run_id} goes on with this run"
            ) from error
        if isinstance(error, ExecutorError) and secrets.masked(str(error)) != str(error):
            # It tells what a worker printed that never was ready.
            raise ExecutorError(secrets.masked(str(error))) from None
        raise
