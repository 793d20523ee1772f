"""The processes executor: one loky worker per slot, each with a private channel, all watched by one epoll.

No thread, no lock, no shared pipe: a worker's death, hang or bad message costs exactly the attempt that it ran. pidfds
tell of deaths, because a child that a step forked may hold every pipe open. Everything with a clock (the kill ladder, a
worker that does not start) is driven from ``wait``. The executor decides nothing: it never retries a step.

This file is its face; ``crew.py`` says which layers are below.
"""

from __future__ import annotations

import sys
import time

from procflow.attempt import Cause, Lost, Outcome
from procflow.call import StepCall
from procflow.executors.ending import end_workers
from procflow.executors.family import TOKEN_NAME, kill_family
from procflow.executors.hearing import Hearing
from procflow.failure import lost_failure

__all__ = ["ProcessExecutor"]

RETRY_S = 0.001
"""When it is tried again to take back an attempt that is not wanted any more."""
CLAIM_S = 0.5
"""How long a worker may take to claim the attempt that it is to run now, before that is told to stop all the same."""
DEPTH = 31
"""How many attempts may wait behind one."""


class ProcessExecutor(Hearing):
    """Runs attempts in worker processes; see ``executors.base.Executor`` for the face.

    ``env`` is added to the workers' environment. ``token`` marks every process of the run in its environment
    (``PROCFLOW_RUN_TOKEN``). ``inherit`` are descriptors that workers get under the same numbers. ``objects`` is the folder
    that they store large values in.
    ``spawn_timeout_s`` is how long a worker may take to say hello. ``log_level`` is the lowest level of ``logging``
    records that workers send. Without ``own_output`` what steps print goes where this process prints, not to their logs.
    ``results`` is a path to which workers add their names for the files that they keep results in, see ``worker_tail.py``.
    Linux only: it needs pidfds and /proc.
    """

    depth = DEPTH if sys.platform == "linux" else 0
    name = "processes"
    capabilities: frozenset[str] = frozenset({"kill", "memory", "threads"})

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def deadline(self) -> float | None:
        """When ``wait`` must be called even if nothing is readable (``time.monotonic``); None where no clock runs."""
        if self._fresh:
            return 0.0
        deadlines = (self._ladder.deadline(), self._waiting.deadline(), self._look_at)
        return min((d for d in deadlines if d is not None), default=None)

    def check(self, call: StepCall) -> None:
        """ExecutorError naming step, argument and type where the call can't be sent to a worker."""
        self._payloads.of(call)

    def wait(self, until: float | None) -> list[Outcome]:
        """Outcomes in order of arrival; see ``Executor.wait``. ExecutorError where workers can't be started."""
        poller = self._poller
        self._lines = None
        if self._fresh:
            self._send_queued()
        while not self._outcomes and not poller.noticed:
            if self._waiting.broken is not None:
                raise self._waiting.broken
            if until is None and not self._running and not self._waiting:
                break
            # Each attempt that runs takes a core, and so does whoever looks instead of sleeping.
            poller.handle(self._timeout(until), 0 < len(self._running) < self._cores)
            if self._ladder:
                self._ladder.run()
            if self._look_at is not None and time.monotonic() >= self._look_at:
                self._look()
            if self._waiting and self._waiting.broken is None:
                for attempt, payload in self._waiting.due():
                    self._spawn(attempt, payload)
            if until is not None and not self._outcomes and time.monotonic() >= until:
                break
        outcomes, self._outcomes = self._outcomes, []
        poller.noticed = False
        return outcomes

    def kill(self, key: int, cause: Cause, grace_s: float) -> None:
        """Begin to stop one attempt; see ``ladder.py``."""
        self._lines = None
        waiting = self._waiting.take(key)
        if waiting is not None:
            waiting.close_log()
            self._outcomes.append(Lost(key, lost_failure(cause)))
            return self._poller.wake()
        slot = self._queued.get(key) or self._running.get(key)
        if slot is None:
            self._unwanted.pop(key, None)
            return
        if slot.ready:
            # What came before the kill counts.
            self._read_all(slot)
        if slot.line.waiting:
            self._take_back(slot)
            if slot.ready:
                # What could not be taken back has been claimed, so the outcome of the one before it is here.
                self._read_all(slot)
        late = time.monotonic() - slot.began > CLAIM_S
        if key in self._queued or (slot.ready and slot.line.waiting and not late and self._running.get(key) is slot):
            # The worker has not even begun the one that is to run before all that waits, and what waits behind an
            # attempt that is told to stop would run for nothing: ask again soon.
            self._unwanted[key] = cause, grace_s
            self._look_at = time.monotonic() + RETRY_S
            return self._poller.wake()
        self._unwanted.pop(key, None)
        self._poller.wake()
        if self._running.get(key) is slot:
            self._ladder.begin(slot, cause, grace_s)

    def close(self) -> None:
        """End every worker: idle ones by themselves, busy ones by SIGTERM, and after 2 s all by SIGKILL."""
        if self._closed:
            return
        self._closed = True
        for slot in self._all:
            for attempt in slot.line.take_back():
                attempt.close_log()
        try:
            end_workers(self._all)
            kill_family(0, f"{TOKEN_NAME}={self.token}")
        finally:
            for slot in self._all:
                slot.close()
            self._footprint.close()
            for kept in (self._all, self._running, self._queued, self._fresh, self._idle, self._outcomes):
                kept.clear()
            self._poller.close()

    def _timeout(self, until: float | None) -> float | None:
        deadline = self.deadline() if self._look_at is not None or self._ladder or self._waiting else None
        if deadline is None or (until is not None and until < deadline):
            deadline = until
        if deadline is None:
            return None
        return max(0.0, deadline - time.monotonic())
