"""Session: one session of a run, from the open executors to the result: journal, kept results, scheduler, engine.

``launch.py`` opens what must be there before anything may start (lock, guard, executors) and loads this file only then, while
the first worker is starting. It owns the order in which the rest is opened and closed; it decides nothing about steps.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from procflow import secrets
from procflow.engine import Engine, Observer
from procflow.errors import ExecutorError, InternalError, ProcflowError, StoreError
from procflow.events import Event
from procflow.executors import open_waiter
from procflow.executors.base import Executor
from procflow.guarding.watch import Watch
from procflow.launch import Parts, Prepared
from procflow.machine.memory import MemoryWatch
from procflow.machine.pressure import Pressure
from procflow.passive import passive
from procflow.result import Recorder, RunResult
from procflow.resuming.continuing import asked, open_session
from procflow.scheduler import Scheduler
from procflow.secrets import MaskedWaiter
from procflow.storing.attempt_log import LogFolder
from procflow.storing.failures_file import FailuresFile
from procflow.storing.journal_objects import files_of_run
from procflow.storing.learned import made_of, taught_by
from procflow.storing.samples import sampled
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import Store
from procflow.storing.store_begin import RunRecord
from procflow.storing.store_prints import Prints
from procflow.values import transient
from procflow.values.lazy_state import LazyState
from procflow.values.object_files import ObjectFolder, make_folder
from procflow.working.garbage import RECORDS_ONLY, THRESHOLD, few_collections

if TYPE_CHECKING:
    from procflow.resuming.continuing import Earlier, Session

__all__ = ["Run", "turns"]

log = logging.getLogger("procflow")
notes = logging.getLogger("procflow.notes")
"""What is worth a line beside others, and no mail: the quiet leave it out."""


@passive(frozen=True, slots=True)
class Run:
    """What an observer may know of a run before its first event: ``observer.begin(run)`` is called where it exists."""

    prepared: Prepared
    folder: StateFolder
    meter: MemoryWatch
    """Its ``last`` is the newest sample of the memory that the run uses."""

    @property
    def run_id(self) -> str:
        return self.prepared.run_id


def turns(
    parts: Parts, earlier: Earlier | None, cache: bool, options: Mapping[str, Any]
) -> Generator[list[Event], None, RunResult]:
    """Run to the end, yielding events in groups as they become durable; the generator's value is the ``RunResult``."""
    prepared, folder, observers, mask = parts.prepared, parts.folder, parts.observers, parts.mask
    executors, guard = parts.executors, parts.guard
    with ExitStack() as stack:
        # First, since opening it may find results that the last session had no time to commit.
        store = Store.open(folder)
        stack.callback(store.close)
        store.recover(parts.lock)
        session = stack.enter_context(open_session(prepared, folder, parts.lock, earlier, cache))
        whole = made_of(session.prints)
        session.prepared = taught_by(folder, session.prepared, parts.lock, session.prints, whole)
        prepared, graph = session.prepared, session.prepared.graph
        if not session.same_run:
            folder.new_run(prepared.run_id)
        shown = mask.tree(graph.params) if mask is not None else dict(graph.params)
        store.begin(_record(session, parts.lock, shown, asked(options, graph.params, shown, earlier), whole))
        objects = make_folder(parts.objects)
        _clean(objects, folder, prepared.run_id)
        watch = stack.enter_context(Watch(open_waiter(executors), parts.signals, guard.reaper))
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
        parts.signals.attach(engine.stop, engine.hurry)
        elsewhere = graph.executors <= {"processes"}
        with _crash_only(store, prepared.run_id), few_collections(RECORDS_ONLY if elsewhere else THRESHOLD):
            samples.begin()
            yield from engine.turns()
        guard.cool()
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
        notes.warning(short, least, prepared.workers)
    for observer, error in engine.failed_observers:
        log.warning("%s failed and was left out: %s: %s", type(observer).__name__, type(error).__name__, error)


def _record(
    session: Session, lock: str, params: Mapping[str, Any], options: Mapping[str, Any], whole: str
) -> RunRecord:
    """What the journal is told at the start; ``params`` as they may be shown, ``whole`` what all tasks are made of.

    The fingerprints, half a kilobyte a step, leave the session: nothing else needs them.
    """
    prepared = session.prepared
    file = prepared.source.path if prepared.source is not None else None
    executors = prepared.graph.executors
    told, session.told, session.prints = session.told, Prints(), {}
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
        prints=told,
        made_of=whole,
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
