"""Engine: the one loop that joins scheduler, executors, store and observers.

    scheduler ── actions ──> submit, kill, record
        ^                          │
        └── outcomes <── wait <── executors

Clock, executors, store and observers are passed in; the engine decides nothing. Records are stored in groups: at
the latest ``COMMIT_MOST_S`` after the first (``COMMIT_S`` on a quick disk), and always before an attempt starts
that builds on them. Observers hear of a record only once it is durable, so what was announced stays true after any
crash. Observers may fail without harm; the store may not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, cast

from procflow.attempt import Attempt, AttemptLog, Outcome
from procflow.errors import InternalError
from procflow.events import Event
from procflow.executors.base import Executor, Queueing
from procflow.failpoints import fp
from procflow.ref import Stored
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Action, Kill, Measured, Release, StopAsked, Submit, Tick

__all__ = ["COMMIT_S", "Engine", "Journal", "Meter", "Observer", "Waiter"]

COMMIT_S = 0.02
"""How long a record waits to be made durable, at least; more where the disk is slow ..."""
COMMIT_SHARE = 0.05
"""... so that commits take no more than this share of the loop's time, ..."""
COMMIT_MOST_S = 0.5
"""... and at most this long."""


_ORDERS = frozenset({Submit, Release, Kill})


class Journal(Protocol):
    """What the engine needs of a store."""

    def record(self, *events: Event) -> None:
        """Buffer events, in order."""

    def note(self) -> None:
        """Make the results recorded so far safe from the death of this process."""

    def commit(self) -> None:
        """Make all that is buffered durable."""


class Observer(Protocol):
    """Anything that wants to hear of events. One that has ``handle_all(events)`` is given them by the group instead."""

    def handle(self, event: Event) -> None:
        """Take one event, in order, after it is durable."""


class Waiter(Protocol):
    """What the loop sleeps on: an executor, or several behind one face."""

    def wait(self, until: float | None) -> list[Outcome]:
        """Outcomes in order of arrival, none when ``until`` came first."""


class Meter(Protocol):
    """What the engine needs of something that samples memory; ``due`` is when it wants to."""

    due: float

    def expect(self, memory_bytes: int) -> None:
        """An attempt with this limit starts."""

    def measure(self) -> Measured:
        """Take a sample."""


class Engine:
    """Drives one run to its end.

    ``executors`` are by name, ``waiter`` waits for all of them. ``open_log`` makes the log of an attempt from
    label, item and number. ``memory`` is asked for a sample whenever one is due, ``free`` lets
    the file of a value go. ``failed_observers`` are those that raised and were dropped, with the error.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executors: Mapping[str, Executor],
        waiter: Waiter,
        journal: Journal,
        *,
        observers: Sequence[Observer] = (),
        open_log: Callable[[str, str, int], AttemptLog] | None = None,
        memory: Meter | None = None,
        free: Callable[[Stored], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self.failed_observers: list[tuple[Observer, Exception]] = []
        self._executors = executors
        self._queues = cast(Mapping[str, Queueing], executors)
        """The same, for attempts that are to wait there."""
        self._waiter = waiter
        self._journal = journal
        self._observers = list(observers)
        self._open_log = open_log
        self._log = self._log_of if open_log is not None else None
        self._memory = memory
        self._clock = clock
        self._free = free
        self._unneeded: list[Stored] = []
        self._recorded = 0
        self._noted = 0
        self._durable = 0
        self._commit_at: float | None = None
        self._commit_gap_s = COMMIT_S
        self._waiting: list[Event] = []
        self._asked: list[str] = []
        self._hurried = False

    def stop(self, reason: str) -> None:
        """Ask the run to end; may be called from a signal handler. The loop takes it up when it wakes."""
        self._asked.append(reason)

    def hurry(self) -> None:
        """Kill what still runs after ``stop``, without grace; may be called from a signal handler."""
        self._hurried = True

    def run(self) -> None:
        """Run to the end."""
        for _ in self.turns():
            pass

    def turns(self) -> Iterator[list[Event]]:
        """Run to the end, handing out events as they become durable, in groups."""
        scheduler, clock = self.scheduler, self._clock
        self._perform(scheduler.start(clock()))
        while not scheduler.finished:
            if self._commit_at is not None and clock() >= self._commit_at:
                yield self._commit()
            outcomes = self._waiter.wait(self._until())
            now = clock()
            if outcomes:
                fp("engine.received")
                self._perform(scheduler.handle_all(outcomes, now))
            while self._asked and not scheduler.finished:
                self._perform(scheduler.handle(StopAsked(self._asked.pop(0)), now))
            if self._hurried and not self._asked:
                # Never before the stop itself, which makes the deaths to come expected ones.
                self._hurried = False
                self._perform(scheduler.handle(StopAsked("", hurry=True), now))
                for key, task in scheduler.running.items():
                    self._executors[task.unit.executor].kill(key, "cancelled", 0.0)
            if self._memory is not None and now >= self._memory.due and scheduler.running:
                self._perform(scheduler.handle(self._memory.measure(), now))
            elif not outcomes and not scheduler.finished:
                self._perform(scheduler.handle(Tick(), now))
        yield self._commit()
        fp("run.finish")

    def _until(self) -> float | None:
        """When the loop must wake without an outcome."""
        deadline = self.scheduler.next_deadline()
        if self._memory is not None and self.scheduler.running:
            deadline = self._memory.due if deadline is None else min(deadline, self._memory.due)
        if self._commit_at is not None:
            return self._commit_at if deadline is None else min(deadline, self._commit_at)
        if deadline is None and not self.scheduler.running and not self.scheduler.queued:
            raise InternalError("nothing runs, nothing is due and the run is not over", self.scheduler.story())
        return deadline

    def _perform(self, actions: list[Action]) -> None:
        done = 0
        for place in [place for place, kind in enumerate(map(type, actions)) if kind in _ORDERS]:
            if done < place:
                self._record(actions[done:place])
            done, action = place + 1, actions[place]
            if isinstance(action, Submit):
                if action.after > self._durable:
                    self._settle_debt()
                elif self._noted != self._recorded:
                    # A kill from here on costs what runs, not what was received.
                    self._journal.note()
                    self._noted = self._recorded
                self._submit(action)
            elif isinstance(action, Release):
                self._unneeded.extend(action.files)
            elif isinstance(action, Kill):
                self._executors[action.executor].kill(action.key, action.cause, action.grace_s)
        if done < len(actions):
            self._record(actions[done:])

    def _record(self, actions: list[Action]) -> None:
        events = cast("list[Event]", actions)
        self._journal.record(*events)
        self._waiting += events
        self._recorded += len(events)
        if self._commit_at is None:
            self._commit_at = self._clock() + self._commit_gap_s

    def _submit(self, submit: Submit) -> None:
        submit.open_log = self._log
        executor = submit.unit.executor
        if submit.memory_bytes is not None and self._memory is not None:
            self._memory.expect(submit.memory_bytes)
        fp("engine.submit")
        if submit.behind:
            self._queues[executor].queue(submit)
        else:
            self._executors[executor].submit(submit)

    def _log_of(self, attempt: Attempt) -> AttemptLog:
        assert self._open_log is not None
        _, label, item, number, _, _, _ = attempt.about
        return self._open_log(label, item, number)

    def _settle_debt(self) -> None:
        """Make everything recorded so far durable; observers hear of it in the next turn."""
        begun = self._clock()
        self._journal.commit()
        self._durable = self._recorded
        if self._unneeded:
            # Only now is it sure that a resume won't ask for them.
            unneeded, self._unneeded = self._unneeded, []
            if self._free is not None:
                for stored in unneeded:
                    self._free(stored)
        cost_s = self._clock() - begun
        self._commit_gap_s = min(COMMIT_MOST_S, max(COMMIT_S, cost_s / COMMIT_SHARE))

    def _commit(self) -> list[Event]:
        """Make everything recorded so far durable, then tell the observers."""
        self._settle_debt()
        self._commit_at = None
        events, self._waiting = self._waiting, []
        fp("engine.announce")
        for observer in list(self._observers):
            try:
                if hasattr(observer, "handle_all"):
                    observer.handle_all(events)
                else:
                    for event in events:
                        observer.handle(event)
            except Exception as error:
                # A broken display must not end a night's work.
                self._observers.remove(observer)
                self.failed_observers.append((observer, error))
        return events
