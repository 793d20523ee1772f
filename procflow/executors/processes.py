"""The processes executor: one loky worker per slot, each with a private channel, all watched by one epoll.

No thread, no lock, no shared pipe: a worker's death, hang or bad message costs exactly the attempt that it ran. pidfds tell of
deaths, because a child that a step forked may hold every pipe open. Everything with a clock (the kill ladder, a worker that
does not start) is driven from ``wait``. The executor decides nothing: it never retries a step.

    kill:  SIGCONT, SIGUSR1 (Python stacks to the log, 0.1 s)  ->  SIGTERM, grace  ->  SIGKILL to the whole family  ->  Lost
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from procflow.attempt import Attempt, Cause, Lost, Outcome, Progressed, Started, Usage
from procflow.call import StepCall
from procflow.errors import ExecutorError
from procflow.executors import wire
from procflow.executors.base import Capability
from procflow.executors.family import TOKEN_NAME, kill_family
from procflow.executors.payload import Payload, Payloads
from procflow.executors.slot import Death, Slot, Stage
from procflow.failure import lost_failure

__all__ = ["ProcessExecutor"]

DUMP_S = 0.1
"""How long a worker has to write its Python stacks."""
DEATH_S = 2.0
"""After SIGKILL: how long until a worker that can't die (uninterruptible in the kernel) is given up."""
SILENT_S = 0.5
"""How long a worker that closed its channel may take to end."""
CLOSE_S = 2.0
SPAWN_FAILURES = 3
SPAWN_PAUSE_S = 0.05

IN, OUT = select.EPOLLIN, select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
ENDS = (wire.SUCCEEDED, wire.FAILED, wire.SKIPPED)

Handler = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An attempt whose worker could not be started; tried again at ``due``."""

    due: float
    attempt: Attempt
    payload: Payload


class ProcessExecutor:
    """Runs attempts in worker processes; see ``executors.base.Executor`` for the face.

    ``env`` is added to the workers' environment. ``token`` marks every process of the run in its environment
    (``PROCFLOW_RUN_TOKEN``). ``spawn_timeout_s`` is how long a worker may take to say hello. ``log_level`` is the lowest
    level of ``logging`` records that workers send. Linux only: it needs pidfds and /proc.
    """

    name = "processes"
    capabilities: frozenset[Capability] = frozenset({"kill", "memory", "threads"})

    def __init__(
        self,
        slots: int,
        *,
        run_id: str = "",
        env: Mapping[str, str] | None = None,
        token: str | None = None,
        spawn_timeout_s: float = 30.0,
        log_level: int = 20,
    ) -> None:
        if sys.platform != "linux":
            raise ExecutorError("executor processes needs Linux (pidfd, /proc); use executor: threads")
        if slots < 1:
            raise ExecutorError(f"executor processes needs at least 1 slot, not {slots}")
        self.slots = slots
        self.run_id = run_id
        self.token = token or secrets.token_hex(8)
        self._env = dict(env or {})
        self._spawn_timeout_s = spawn_timeout_s
        self._log_level = log_level
        self._payloads = Payloads()
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._handlers: dict[int, Handler] = {}
        self._outputs: set[int] = set()
        self._register(self._wake_fd, IN, self._on_wake)
        self._all: set[Slot] = set()
        self._idle: list[Slot] = []
        self._running: dict[int, Slot] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._timed: set[Slot] = set()
        self._resent: set[int] = set()
        self._outcomes: list[Outcome] = []
        self._woken = False
        self._spawned = 0
        self._spawn_failures = 0
        self._broken: ExecutorError | None = None
        self._closed = False

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # What the engine calls

    def fileno(self) -> int:
        """The epoll's descriptor."""
        return self._epoll.fileno()

    def deadline(self) -> float | None:
        """When ``wait`` must be called even if nothing is readable (``time.monotonic``); None where no clock runs."""
        if not self._timed and not self._waiting:
            return None
        return min([*(slot.due for slot in self._timed), *(w.due for w in self._waiting.values())])

    def watch(self, fd: int) -> None:
        """From now on ``wait`` also returns, perhaps with nothing, when ``fd`` is readable; the caller empties it."""
        self._register(fd, IN, self._on_watched)

    def unwatch(self, fd: int) -> None:
        """Undo ``watch``."""
        self._unregister(fd)

    def pids(self) -> dict[int, int]:
        """The worker's pid for every attempt that runs, by the attempt's key. The worker leads a session of that number."""
        return {key: slot.pid for key, slot in self._running.items()}

    def check(self, call: StepCall) -> None:
        """ExecutorError naming step, argument and type where the call can't be sent to a worker."""
        self._payloads.of(call)

    def submit(self, attempt: Attempt) -> None:
        """Start the attempt, in the worker used last if one is idle, else in a new one."""
        if self._closed:
            raise ExecutorError("the executor is closed")
        payload = self._payloads.of(attempt.call)
        if self._idle:
            slot = self._idle.pop()
            slot.attempt, slot.payload = attempt, payload
            self._running[attempt.key] = slot
            self._send(slot)
        else:
            if len(self._running) + len(self._waiting) >= self.slots:
                raise ExecutorError(f"more than {self.slots} attempts at a time")
            self._spawn(attempt, payload)

    def wait(self, until: float | None) -> list[Outcome]:
        """Outcomes in order of arrival; see ``Executor.wait``. ExecutorError where three workers in a row did not start."""
        while True:
            if self._outcomes or self._woken:
                break
            if self._broken is not None:
                raise self._broken
            if until is None and not self._running and not self._waiting:
                break
            self._handle(self._timeout(until))
            if until is not None and not self._outcomes and time.monotonic() >= until:
                break
        outcomes, self._outcomes = self._outcomes, []
        self._woken = False
        return outcomes

    def kill(self, key: int, cause: Cause, grace_s: float) -> None:
        """Begin the kill ladder for one attempt; see the head of this file."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            self._lose(waiting.attempt, cause, None, Usage(), None)
            self._wake()
            return
        slot = self._running.get(key)
        if slot is None:
            return
        if slot.stage in ("dump", "term", "kill"):
            self._hurry(slot, grace_s)
            return
        if slot.ready:
            # What came before the kill counts.
            self._read_all(slot)
            if self._running.get(key) is not slot:
                self._wake()
                return
        slot.cause, slot.grace_s = cause, grace_s
        if not slot.ready:
            self._kill(slot)
            return
        slot.signal_group(signal.SIGCONT)
        if cause == "cancelled":
            self._terminate(slot)
        else:
            slot.signal(signal.SIGUSR1)
            self._set_timer(slot, "dump", DUMP_S)

    def close(self) -> None:
        """End every worker: idle ones by themselves, busy ones by SIGTERM, and after 2 s all by SIGKILL."""
        if self._closed:
            return
        self._closed = True
        for slot in self._all:
            self._unregister(slot.channel_fd)
            if slot.attempt is not None:
                slot.signal_group(signal.SIGCONT)
                slot.signal_group(signal.SIGTERM if slot.ready else signal.SIGKILL)
            # An idle worker ends at the end of its stream.
            os.close(slot.channel_fd)
            slot.channel_fd = -1
        self._await_deaths(CLOSE_S)
        for slot in self._all:
            slot.kill()
        self._await_deaths(DEATH_S)
        for slot in self._all:
            slot.close()
        kill_family(0, f"{TOKEN_NAME}={self.token}")
        self._all.clear()
        self._running.clear()
        self._waiting.clear()
        self._idle.clear()
        self._outcomes.clear()
        self._epoll.close()
        os.close(self._wake_fd)

    # Events

    def _handle(self, timeout: float | None) -> None:
        events = self._epoll.poll(timeout)
        handlers = self._handlers
        if len(events) > 1:
            # Output first: what a step printed was there before its outcome.
            outputs = self._outputs
            events.sort(key=lambda event: event[0] not in outputs)
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                handler(mask)
        if self._timed or self._waiting:
            self._run_timers()

    def _timeout(self, until: float | None) -> float | None:
        deadline = self.deadline() if self._timed or self._waiting else None
        if deadline is None or (until is not None and until < deadline):
            deadline = until
        if deadline is None:
            return None
        return max(0.0, deadline - time.monotonic())

    def _register(self, fd: int, mask: int, handler: Handler) -> None:
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def _unregister(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._outputs.discard(fd)
            self._epoll.unregister(fd)

    def _wake(self) -> None:
        """Make ``fileno`` readable: there are outcomes that no descriptor tells of."""
        os.eventfd_write(self._wake_fd, 1)

    def _on_wake(self, mask: int) -> None:
        os.eventfd_read(self._wake_fd)

    def _on_watched(self, mask: int) -> None:
        self._woken = True

    # Sending and receiving

    def _send(self, slot: Slot) -> None:
        try:
            if not slot.send_attempt():
                self._epoll.modify(slot.channel_fd, IN | OUT)
        except OSError:
            self._cut(slot)

    def _cut(self, slot: Slot) -> None:
        """The worker does not listen any more, so it must be dead or dying: make sure, its pidfd tells the rest."""
        slot.unread = True
        self._retire(slot)
        slot.signal(signal.SIGKILL)

    def _on_channel(self, slot: Slot, mask: int) -> None:
        if mask & OUT:
            try:
                if slot.outbox.flush(slot.channel_fd):
                    self._epoll.modify(slot.channel_fd, IN)
            except OSError:
                # Its last words may still be here to be read.
                mask |= IN
                slot.unread = True
        if mask & (IN | GONE):
            self._read(slot)

    def _read(self, slot: Slot, drain: bool = False) -> bool:
        """Read once and act on what came; False where no more can come now.

        ``drain``: the output pipe was not looked at just before, so an outcome has to.
        """
        inbox = slot.inbox
        try:
            messages = inbox.read(slot.channel_fd)
        except BlockingIOError:
            return False
        except OSError:
            # It ended without reading all that was sent to it.
            slot.unread = True
            inbox.closed = True
            messages = []
        for message in messages:
            self._take(slot, message, drain)
            drain = True
        if inbox.broken:
            self._distrust(slot, inbox.broken)
            return False
        if inbox.closed:
            self._retire(slot)
            if slot.stage not in ("term", "kill"):
                self._set_timer(slot, "silent", SILENT_S)
            return False
        return True

    def _read_all(self, slot: Slot) -> None:
        while slot.channel_fd in self._handlers and self._read(slot, drain=True):
            continue

    def _take(self, slot: Slot, message: wire.Message, drain: bool) -> None:
        attempt = slot.attempt
        try:
            kind = message[0]
            if kind == wire.RECORD:
                if attempt is not None and attempt.log is not None:
                    attempt.log.record(message[1], message[2], message[3])
                return
            if kind == wire.HELLO:
                self._on_hello(slot, message)
                return
            outcome = wire.outcome_from(message)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            slot.inbox.broken = f"a message that makes no sense ({type(error).__name__})"
            return
        if type(outcome) is Progressed:
            if attempt is not None and outcome.key == attempt.key:
                if attempt.report_each:
                    slot.reported.update(outcome.indices, (index for index, _ in outcome.failures))
                self._outcomes.append(outcome)
            return
        if attempt is None or outcome.key != attempt.key:
            slot.inbox.broken = f"an outcome for attempt {outcome.key}, which it does not run"
            return
        if slot.stage in ("term", "kill"):
            # It was told to stop and this is what it made of that.
            self._kill(slot)
            return
        if drain:
            slot.drain_output()
        if slot.stage:
            self._clear_timer(slot)
            slot.cause = None
        slot.done_cpu_s += outcome.usage.cpu_s  # type: ignore[union-attr]
        self._release(slot)
        self._idle.append(slot)
        self._outcomes.append(outcome)

    def _release(self, slot: Slot) -> None:
        """The slot's attempt is over."""
        attempt = slot.attempt
        if attempt is None:
            return
        if attempt.log is not None:
            attempt.log.close()
        del self._running[attempt.key]
        if self._resent:
            self._resent.discard(attempt.key)
        if slot.reported:
            slot.reported = set()
        slot.attempt = slot.payload = None

    def _on_hello(self, slot: Slot, message: wire.Message) -> None:
        _, _, slot.base_cpu_s, slot.base_rss_bytes = message
        slot.ready = True
        self._spawn_failures = 0
        self._clear_timer(slot)
        if slot.attempt is None:
            self._idle.append(slot)
            return
        self._outcomes.append(Started(slot.attempt.key))
        self._send(slot)

    def _on_output(self, slot: Slot, mask: int) -> None:
        try:
            if not slot.read_output():
                self._unregister(slot.output_fd)
        except BlockingIOError:
            return

    def _distrust(self, slot: Slot, what: str) -> None:
        slot.trouble = f"its worker sent {what} and was replaced; a step must not write to descriptors it did not open"
        self._retire(slot)
        self._kill(slot)

    # Workers' lives

    def _spawn(self, attempt: Attempt, payload: Payload) -> None:
        self._spawned += 1
        name = f"procflow-{self._spawned}"
        token = f"{self.token}.{self._spawned}"
        try:
            slot = Slot(name, token, self.token, self._env, attempt.cpus, self._log_level)
        except (OSError, AssertionError) as error:
            self._spawn_failed(attempt, payload, f"the system refused: {error}")
            return
        slot.attempt, slot.payload = attempt, payload
        self._running[attempt.key] = slot
        self._all.add(slot)
        self._register(slot.channel_fd, IN, lambda mask: self._on_channel(slot, mask))
        self._register(slot.output_fd, IN, lambda mask: self._on_output(slot, mask))
        self._register(slot.pidfd, IN, lambda mask: self._on_death(slot))
        self._outputs.add(slot.output_fd)
        self._set_timer(slot, "spawn", self._spawn_timeout_s)

    def _spawn_failed(self, attempt: Attempt, payload: Payload, why: str) -> None:
        self._spawn_failures += 1
        if self._spawn_failures >= SPAWN_FAILURES:
            self._broken = ExecutorError(
                f"workers can't be started: {self._spawn_failures} in a row ended before they were ready; {why}"
            )
            self._wake()
        due = time.monotonic() + SPAWN_PAUSE_S * self._spawn_failures
        self._waiting[attempt.key] = _Waiting(due, attempt, payload)

    def _on_death(self, slot: Slot) -> None:
        if not slot.dead:
            return
        self._read_all(slot)
        slot.drain_output()
        self._forget(slot)
        death = slot.reap()
        attempt, payload = slot.attempt, slot.payload
        if attempt is None or payload is None:
            return
        if slot.cause is None and not slot.trouble:
            if not slot.ready:
                del self._running[attempt.key]
                self._spawn_failed(attempt, payload, _last_words(slot, death))
                return
            if slot.unread and attempt.key not in self._resent:
                # It died before it began: the attempt is not to blame, once.
                del self._running[attempt.key]
                self._resent.add(attempt.key)
                self._spawn(attempt, payload)
                return
        self._report_lost(slot, death)

    def _report_lost(self, slot: Slot, death: Death | None) -> None:
        attempt = slot.attempt
        assert attempt is not None
        usage = Usage(time.monotonic() - slot.began)
        if death is not None:
            usage = Usage(usage.wall_s, death.cpu_s, death.peak_rss_bytes or 0)
        culprit = slot.culprit()
        detail = slot.trouble
        self._release(slot)
        self._lose(attempt, slot.cause or "crash", death, usage, culprit, detail, closed=True)

    def _lose(
        self,
        attempt: Attempt,
        cause: Cause,
        death: Death | None,
        usage: Usage,
        culprit: int | None,
        detail: str = "",
        closed: bool = False,
    ) -> None:
        if attempt.log is not None and not closed:
            attempt.log.close()
        failure = lost_failure(
            cause,
            exit_code=death.exit_code if death is not None else None,
            peak_rss_bytes=death.peak_rss_bytes if death is not None else None,
            memory_bytes=attempt.memory_bytes,
            detail=detail,
        )
        self._outcomes.append(Lost(attempt.key, failure, usage, culprit))

    def _retire(self, slot: Slot) -> None:
        """Nothing more is sent to this worker or believed of it."""
        self._unregister(slot.channel_fd)
        if slot in self._idle:
            self._idle.remove(slot)

    def _forget(self, slot: Slot) -> None:
        self._retire(slot)
        self._unregister(slot.output_fd)
        self._unregister(slot.pidfd)
        self._all.discard(slot)
        self._timed.discard(slot)

    def _give_up(self, slot: Slot) -> None:
        """The worker was killed and does not die: its attempt is lost now, it is reaped whenever it ends."""
        self._retire(slot)
        self._clear_timer(slot)
        slot.trouble = f"its worker (pid {slot.pid}) does not die: it hangs in the kernel"
        attempt, payload = slot.attempt, slot.payload
        if attempt is None or payload is None:
            return
        if slot.ready or slot.cause is not None:
            self._report_lost(slot, None)
        else:
            self._release(slot)
            self._spawn_failed(attempt, payload, slot.trouble)

    def _await_deaths(self, seconds: float) -> None:
        """Reap what ends within the time; output is read on, so that nobody waits for a full pipe."""
        until = time.monotonic() + seconds
        while self._all:
            left = until - time.monotonic()
            if left <= 0:
                return
            for fd, _ in self._epoll.poll(left):
                for slot in [s for s in self._all if fd in (s.output_fd, s.pidfd)]:
                    if fd == slot.output_fd:
                        self._on_output(slot, IN)
                    elif slot.dead:
                        slot.drain_output()
                        if slot.attempt is not None and slot.attempt.log is not None:
                            slot.attempt.log.close()
                        self._forget(slot)
                        slot.reap()

    # Clocks

    def _set_timer(self, slot: Slot, stage: Stage, seconds: float) -> None:
        slot.stage = stage
        slot.due = time.monotonic() + seconds
        self._timed.add(slot)

    def _clear_timer(self, slot: Slot) -> None:
        slot.stage = ""
        self._timed.discard(slot)

    def _run_timers(self) -> None:
        now = time.monotonic()
        for slot in [slot for slot in self._timed if slot.due <= now]:
            if slot.stage == "dump":
                self._terminate(slot)
            elif slot.stage == "kill":
                self._give_up(slot)
            else:
                if slot.stage == "spawn":
                    slot.tail += f"\nnot ready after {self._spawn_timeout_s:g} s".encode()
                self._kill(slot)
        for key in [key for key, waiting in self._waiting.items() if waiting.due <= now]:
            if self._broken is None:
                waiting = self._waiting.pop(key)
                self._spawn(waiting.attempt, waiting.payload)

    def _terminate(self, slot: Slot) -> None:
        slot.terminate()
        self._set_timer(slot, "term", max(0.0, slot.grace_s))

    def _kill(self, slot: Slot) -> None:
        slot.kill()
        self._set_timer(slot, "kill", DEATH_S)

    def _hurry(self, slot: Slot, grace_s: float) -> None:
        """A second kill of one attempt can only shorten the grace."""
        slot.grace_s = min(slot.grace_s, grace_s)
        if slot.stage == "term":
            slot.due = min(slot.due, time.monotonic() + grace_s)


def _last_words(slot: Slot, death: Death) -> str:
    """How a worker ended that never was ready, and what it printed."""
    code = death.exit_code
    ending = (
        "" if code is None else f"the last one by signal {-code}" if code < 0 else f"the last one with exit code {code}"
    )
    words = slot.tail.decode("utf-8", "backslashreplace").strip()
    return f"{ending} and printed:\n{words}" if words else f"{ending} and printed nothing"
