"""Crew: the workers of the processes executor, from their start to their end, and what each of them is busy with.

The executor is one class in layers, each in a file of its own, so that its rules can be read by subject:

    crew <- lines <- hearing <- processes

A layer calls those to its left; what it needs of those to its right is declared at the end of ``Crew``. This file starts
workers, keeps those that rest and lets them go. It makes no outcome.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence

from procflow.attempt import Attempt, Cause, Outcome
from procflow.errors import ExecutorError
from procflow.executors.base import MemoryUse
from procflow.executors.footprint import Footprint
from procflow.executors.ladder import Ladder
from procflow.executors.payload import Payloads
from procflow.executors.poller import Poller
from procflow.executors.slot import Slot
from procflow.executors.waiting import Waiting
from procflow.failpoints import fp

__all__ = ["Crew"]

logger = logging.getLogger(__name__)

DISMISS_S = 2.0
"""How long a worker that is no longer needed may take to end."""


class Crew:
    """The workers and the collections that say what they do; see ``ProcessExecutor`` for the parameters."""

    def __init__(
        self,
        slots: int,
        *,
        run_id: str = "",
        env: Mapping[str, str] | None = None,
        token: str | None = None,
        inherit: Sequence[int] = (),
        objects: str | None = None,
        spawn_timeout_s: float = 30.0,
        log_level: int = 20,
        own_output: bool = True,
        results: str | None = None,
    ) -> None:
        if sys.platform != "linux":
            raise ExecutorError("executor processes needs Linux (pidfd, /proc); use executor: threads")
        if slots < 1:
            raise ExecutorError(f"executor processes needs at least 1 slot, not {slots}")
        self.slots = slots
        self.token = token or f"{run_id}.{secrets.token_hex(8)}"
        self._env = dict(env or {})
        self._inherit = tuple(inherit)
        self._objects = objects
        self._spawn_timeout_s = spawn_timeout_s
        self._log_level = log_level
        self._own_output = own_output
        self._results = results
        self._queued: dict[int, Slot] = {}
        self._unwanted: dict[int, tuple[Cause, float]] = {}
        self._fresh: set[Slot] = set()
        self._lines: Iterator[Slot] | None = None
        self._look_at: float | None = None
        self._payloads = Payloads()
        self._poller = Poller()
        self._all: set[Slot] = set()
        self._idle: list[Slot] = []
        self._running: dict[int, Slot] = {}
        self._waiting = Waiting()
        self._ladder = Ladder(self._give_up)
        self._footprint = Footprint()
        self._resent: set[int] = set()
        self.served: dict[int, tuple[int, float]] = {}
        """Where and when attempts were sent: worker's pid and ``time.monotonic`` by key. Whoever reads it empties it."""
        self._outcomes: list[Outcome] = []
        self._cores = len(os.sched_getaffinity(0))
        self._spawned = 0
        self._closed = False

    @property
    def running(self) -> int:
        """How many attempts are out."""
        return len(self._running) + len(self._waiting) + len(self._queued)

    def fileno(self) -> int:
        """The epoll's descriptor."""
        return self._poller.fileno()

    def watch(self, fd: int) -> None:
        """From now on ``wait`` also returns, perhaps with nothing, when ``fd`` is readable; the caller empties it."""
        self._poller.watch(fd)

    def unwatch(self, fd: int) -> None:
        """Undo ``watch``."""
        self._poller.unregister(fd)

    def pids(self) -> dict[int, int]:
        """The worker's pid for every attempt that runs, by key. The worker leads a session of that number."""
        return {key: slot.pid for key, slot in self._running.items()}

    def workers(self) -> set[int]:
        """The pids of all workers, busy or not: children that this executor waits for itself."""
        return {slot.pid for slot in self._all}

    def memory(self, budget_bytes: int | None) -> MemoryUse:
        """What the workers' process trees hold now; see ``Metered``."""
        return self._footprint.sample(self._all, budget_bytes)

    def shed(self) -> None:
        """End all idle workers; those needed later are started again."""
        for slot in self._idle[:]:
            self._dismiss(slot)

    def warm(self) -> None:
        """Start a first worker before there is an attempt for it. Should that fail, the first attempt tries again and says so."""
        if not self._all and not self._closed:
            with contextlib.suppress(OSError, AssertionError):
                self._idle.append(self._start(1))

    def _rested(self, attempt: Attempt) -> Slot | None:
        """The idle worker that was used last; one that has grown too much since it was young is replaced."""
        while self._idle:
            slot = self._idle[-1]
            if not slot.ready:
                return self._idle.pop()
            grown = slot.size.grown(self._footprint.leak_bytes, attempt)
            if not grown:
                return self._idle.pop()
            logger.debug("worker %d has kept %d bytes between steps and is replaced", slot.pid, grown)
            self._dismiss(slot)
        return None

    def _dismiss(self, slot: Slot) -> None:
        """Let an idle worker end by itself, in a bounded time."""
        self._retire(slot)
        slot.hang_up()
        self._ladder.set(slot, "silent", DISMISS_S)

    def _start(self, cpus: int) -> Slot:
        """A new worker, which is not ready yet; OSError or AssertionError where the system refuses."""
        self._spawned += 1
        fp("pool.spawn.before")
        slot = Slot(
            *(f"procflow-{self._spawned}", f"{self.token}.{self._spawned}", self.token, self._env, cpus),
            *(self._log_level, self._inherit, self._footprint.size),
            objects=self._objects,
            own_output=self._own_output,
            results=f"{self._results}+{self._spawned}" if self._results is not None else None,
        )
        self._all.add(slot)
        fp("pool.spawn.after")
        self._poller.register(slot.channel_fd, lambda mask: self._read(slot))
        self._poller.register(slot.output_fd, lambda mask: self._on_output(slot), output=True)
        self._poller.register(slot.pidfd, lambda mask: self._on_death(slot))
        self._ladder.set(slot, "spawn", self._spawn_timeout_s)
        return slot

    def _retire(self, slot: Slot) -> None:
        """Nothing more is sent to this worker or believed of it."""
        self._poller.unregister(slot.channel_fd)
        self._poller.unregister(slot.stream_fd)
        self._idle = [other for other in self._idle if other is not slot]

    def _forget(self, slot: Slot) -> None:
        self._retire(slot)
        self._poller.unregister(slot.output_fd)
        self._poller.unregister(slot.pidfd)
        self._all.discard(slot)
        self._ladder.clear(slot)

    # What the layers above give to those below; the executor has them all.

    def kill(self, key: int, cause: Cause, grace_s: float) -> None:
        """Begin to stop one attempt."""
        raise NotImplementedError

    def _read(self, slot: Slot, drain: bool = False) -> bool:
        """Read once and act on what came; False where no more can come now."""
        raise NotImplementedError

    def _read_all(self, slot: Slot) -> None:
        """Read what has come by now."""
        raise NotImplementedError

    def _on_output(self, slot: Slot) -> None:
        """The worker has printed."""
        raise NotImplementedError

    def _on_death(self, slot: Slot) -> None:
        """The worker has ended, or its pidfd says so."""
        raise NotImplementedError

    def _give_up(self, slot: Slot) -> None:
        """The worker was killed and does not die."""
        raise NotImplementedError
