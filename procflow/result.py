"""RunResult: what a run came to, as the Python API returns it; and the Recorder that makes it from events.

The Recorder is an observer: ``handle`` every event, then ``result``. Its memory is bounded by the declared
steps and by the failures it keeps (``MAX_FAILURES``), never by the items of a map.
This file never reads the journal and never decides anything about a run.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from procflow import events as ev
from procflow.attempt import Failure
from procflow.errors import RunFailed
from procflow.graph import TaskGraph
from procflow.guarding.signals import exit_code_of
from procflow.passive import passive
from procflow.ref import Ref
from procflow.showing.critical_path import critical_path_s
from procflow.showing.step_records import BlockRecord, Entry, StepRecord, StepRecords, record_of
from procflow.storing.attempt_log import log_path
from procflow.values.lazy_state import LazyState
from procflow.values.lazy_values import LazyValues, ValueDropped

__all__ = [
    "BlockRecord",
    "FailureRecord",
    "LazyValues",
    "Recorder",
    "RunMetrics",
    "RunResult",
    "StepRecord",
    "ValueDropped",
    "exit_code",
]

MAX_FAILURES = 1000
"""Failures kept with their tracebacks; further ones are counted (all of them are in the journal)."""

_STARTED, _FINISHED, _SETTLED = ev.AttemptStarted, ev.AttemptFinished, ev.StepFinished
_EXIT_CODES = {"succeeded": 0, "failed": 1, "partial": 3, "timed_out": 4}


def exit_code(status: str, reason: str = "") -> int:
    """The process exit code for how a run ended; a cancelled run has 128 + n for its signal, else 130."""
    if status == "cancelled":
        return exit_code_of(reason)
    return _EXIT_CODES[status]


@passive(frozen=True, slots=True)
class FailureRecord:
    """A step or an item that did not succeed. ``log`` is its last attempt's log, from the run's folder."""

    label: str
    path: str
    item: str
    attempts: int
    failure: Failure
    log: str | None
    tolerated: bool

    @property
    def exception(self) -> BaseException | None:
        """The step's exception where it could be pickled, else None; unpickling it runs its class's code."""
        if self.failure.exception is None:
            return None
        try:
            found = pickle.loads(self.failure.exception)
        except Exception:
            return None
        return found if isinstance(found, BaseException) else None

    def __str__(self) -> str:
        item = f" item {self.item}" if self.item else ""
        tries = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        return f"{self.label}{item}: {self.failure.cause}{tries}: {self.failure}"


@passive(frozen=True, slots=True)
class RunMetrics:
    """Figures of a run; times in seconds.

    ``work_s`` is the sum of all attempts' times, ``saved_s`` what running them together saved, ``speedup`` work over wall,
    ``efficiency`` speedup over workers, ``critical_path_s`` the longest chain of final attempts (None without the graph): no
    number of workers makes the run shorter. ``startup_s`` is the time until the first attempt was handed out.
    """

    wall_s: float
    work_s: float
    saved_s: float
    speedup: float
    efficiency: float
    workers: int
    critical_path_s: float | None
    startup_s: float
    attempts: int
    retries: int
    lost: int
    cpu_s: float
    peak_rss_bytes: int
    cost: float


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    ``status`` is succeeded, partial (tolerated failures), failed, timed_out or cancelled. ``outputs`` opens values on access.
    ``state`` are the pipeline's shared accumulators in the end. ``steps`` has a record per label, ``failures`` the steps and
    items that failed (the first 1000; ``failure_count`` counts all).
    """

    status: str
    run_id: str
    pipeline: str
    reason: str
    outputs: Mapping[str, Any]
    steps: Mapping[str, StepRecord]
    metrics: RunMetrics
    failures: tuple[FailureRecord, ...]
    failure_count: int
    tolerated_count: int
    state: Mapping[str, Any] = field(default_factory=LazyState)

    @property
    def exit_code(self) -> int:
        """What the command line exits with: 0, 1, 3 (tolerated failures), 4 (timed out), 130 or 143."""
        return exit_code(self.status, self.reason)

    @property
    def ok(self) -> bool:
        """Whether the run succeeded, tolerated failures allowed."""
        return self.status in ("succeeded", "partial")

    def raise_for_status(self) -> None:
        """Raise ``RunFailed`` unless the run succeeded or only had tolerated failures; its cause is the step's own exception."""
        if self.ok:
            return
        bad = [f for f in self.failures if not f.tolerated]
        lines = [f"run {self.run_id} {self.status}" + (f": {self.reason}" if self.reason else "")]
        lines += [f"  {f}" for f in bad[:10]]
        more = self.failure_count - self.tolerated_count - min(len(bad), 10)
        if more > 0:
            lines.append(f"  and {more} more")
        raise RunFailed("\n".join(lines)) from (bad[0].exception if bad else None)


class Recorder:
    """Follows a run's events and makes its result. ``workers`` is the number of slots, ``graph`` gives the critical path."""

    def __init__(self, workers: int = 1, graph: TaskGraph | None = None) -> None:
        self._workers = max(1, workers)
        self._graph = graph
        self._steps: dict[str, Entry] = {}
        self._failures: list[FailureRecord] = []
        self._failure_count = self._tolerated_count = 0
        self._attempts = self._retries = self._lost = 0
        self._started: ev.RunStarted | None = None
        self._finished: ev.RunFinished | None = None
        self._startup_s = 0.0
        self._last = 0.0
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.RunStarted: self._run_started,
            ev.BlockStarted: self._block_started,
            ev.BlockFinished: self._block_finished,
            ev.RunFinished: self._run_finished,
        }

    def handle(self, event: ev.Event) -> None:
        """Take one event."""
        self.handle_all((event,))

    def handle_all(self, events: Iterable[ev.Event]) -> None:
        """Take events, in order."""
        handlers, steps, attempts = self._handlers, self._steps, self._attempts
        event: Any
        for event in events:
            kind = event.__class__
            if kind is _STARTED:
                if not attempts:
                    self._startup_s = event.at
                attempts += 1
                label = event.label
                if label in steps:
                    self._step(event.path, label).attempts += 1
                else:
                    steps[label] = event.path
            elif kind is _FINISHED:
                label = event.label
                before = steps.get(label)
                if (
                    before.__class__ is str
                    and event.status == "succeeded"
                    and event.retry_in_s is None
                    and not event.metrics
                ):
                    spent = event.usage
                    wall_s = spent.wall_s
                    work_s = wall_s if spent.alone_s is None else spent.work_s
                    steps[label] = before, wall_s, work_s, spent.cpu_s, spent.peak_rss_bytes, event.cost, event.count
                else:
                    self._attempt_finished(event)
            elif kind is _SETTLED:
                # A step that ended well at its first attempt is known to have.
                if steps.get(event.label).__class__ is not tuple or event.status != "succeeded" or event.reason:
                    self._step_finished(event)
            else:
                handler = handlers.get(kind)
                if handler is None:
                    continue
                handler(event)
            self._last = event.at
        self._attempts = attempts

    def result(
        self,
        outputs: Mapping[str, Ref] | None = None,
        open_ref: Callable[[Ref], Any] | None = None,
        dropped: Collection[str] = (),
        state: LazyState | None = None,
    ) -> RunResult:
        """The result so far; ``outputs`` are the run's final values, which ``open_ref`` opens (``objects.unpack``).

        ``dropped`` are values that are not there any more.
        """
        end, started = self._finished, self._started
        failures = self._failures
        if end is not None and end.status == "partial":
            # Whether a block forgives a failure is known only when it is over.
            failures = [replace(failure, tolerated=True) for failure in failures]
        return RunResult(
            status=end.status if end is not None else "failed",
            run_id=started.run_id if started is not None else end.run_id if end is not None else "",
            pipeline=started.pipeline if started is not None else "",
            reason=end.reason if end is not None else "the run did not reach its end",
            outputs=LazyValues(outputs or {}, open_ref, dropped),
            steps=StepRecords(dict(self._steps)),
            metrics=self._metrics(),
            failures=tuple(failures),
            failure_count=self._failure_count,
            tolerated_count=self._tolerated_count,
            state=state if state is not None else LazyState(),
        )

    def _metrics(self) -> RunMetrics:
        end, entries = self._finished, self._steps.values()
        once = [entry for entry in entries if isinstance(entry, tuple)]
        records = [entry for entry in entries if isinstance(entry, StepRecord)]
        work_s = sum([*[entry[2] for entry in once], *[record.work_s for record in records]])
        wall_s = end.wall_s if end is not None else self._last
        speedup = work_s / wall_s if wall_s > 0 else 1.0
        return RunMetrics(
            wall_s=wall_s,
            work_s=work_s,
            saved_s=max(0.0, work_s - wall_s),
            speedup=speedup,
            efficiency=speedup / self._workers,
            workers=self._workers,
            critical_path_s=critical_path_s(self._graph, self._durations()) if self._graph is not None else None,
            startup_s=self._startup_s,
            attempts=self._attempts,
            retries=self._retries,
            lost=self._lost,
            cpu_s=sum([*[entry[3] for entry in once], *[record.cpu_s for record in records]]),
            peak_rss_bytes=max(
                [*[entry[4] for entry in once], *[record.peak_rss_bytes for record in records]], default=0
            ),
            cost=sum([*[entry[5] for entry in once], *[record.cost for record in records]]),
        )

    def _durations(self) -> dict[str, float]:
        """The seconds that count in the critical path, by label."""
        found = {label: entry[1] for label, entry in self._steps.items() if isinstance(entry, tuple)}
        for label, entry in self._steps.items():
            if isinstance(entry, StepRecord):
                found[label] = entry.block.wall_s if entry.block and entry.kind == "map" else entry.final_s
        return found

    def _step(self, path: str, label: str) -> StepRecord:
        found = self._steps.get(label)
        if not isinstance(found, StepRecord):
            found = record_of(label, found) if found is not None else StepRecord(label, path)
            self._steps[label] = found
        return found

    def _run_started(self, e: ev.RunStarted) -> None:
        self._started = e

    def _attempt_finished(self, e: ev.AttemptFinished) -> None:
        step, usage = self._step(e.path, e.label), e.usage
        # The first attempt's figures are taken as they are: most steps have one, and a sum is a number of its own.
        step.wall_s = step.wall_s + usage.wall_s if step.wall_s else usage.wall_s
        step.work_s = step.work_s + usage.work_s if step.work_s else usage.work_s
        step.cpu_s = step.cpu_s + usage.cpu_s if step.cpu_s else usage.cpu_s
        if e.cost:
            step.cost += e.cost
        if usage.peak_rss_bytes > step.peak_rss_bytes:
            step.peak_rss_bytes = usage.peak_rss_bytes
        if e.retry_in_s is None:
            step.final_s = step.final_s + usage.wall_s if step.final_s else usage.wall_s
        else:
            self._retries += 1
        if e.status == "succeeded":
            step.count += e.count
            # An item of a map has no event of its own for ending well.
            if step.status == "running":
                step.status = "succeeded"
        elif e.status == "lost":
            step.lost += 1
            self._lost += 1
        if e.metrics:
            step.metrics = {**step.metrics, **e.metrics}

    def _step_finished(self, e: ev.StepFinished) -> None:
        step = self._step(e.path, e.label)
        if e.status == "failed":
            step.status = "failed"
        elif not e.item or step.status == "running":
            step.status = e.status
        if e.reason:
            step.reason = e.reason
        if e.status != "failed" or e.failure is None:
            return
        step.failures += 1
        self._failure_count += 1
        self._tolerated_count += e.tolerated
        if len(self._failures) < MAX_FAILURES:
            log = log_path(e.label, e.item, e.attempts) if e.attempts else None
            self._failures.append(FailureRecord(e.label, e.path, e.item, e.attempts, e.failure, log, e.tolerated))

    def _block_started(self, e: ev.BlockStarted) -> None:
        self._step(e.path, e.label).kind = e.kind

    def _block_finished(self, e: ev.BlockFinished) -> None:
        step = self._step(e.path, e.label)
        before = step.block
        # The body of a map opens once per item: its times add up, the rest is the last one's.
        wall_s = e.wall_s + (before.wall_s if before is not None and e.item else 0.0)
        step.kind, step.reason = e.kind, e.reason or step.reason
        if not (e.item and step.status == "failed"):
            step.status = e.status
        step.block = BlockRecord(
            *(
                e.kind,
                e.status,
                e.members,
                e.successful_count,
                e.failed_count,
                wall_s,
                e.work_s,
                e.saved_s,
                e.cost,
                e.produced,
            )
        )

    def _run_finished(self, e: ev.RunFinished) -> None:
        self._finished = e
        self._failure_count = max(self._failure_count, e.failures)
        self._tolerated_count = max(self._tolerated_count, e.tolerated)
