"""The processes executor: one loky worker per slot, each with a private channel, all watched by one epoll.

No thread, no lock, no shared pipe: a worker's death, hang or bad message costs exactly the attempt that it ran. pidfds
tell of deaths, because a child that a step forked may hold every pipe open. Everything with a clock (the kill ladder, a
worker that does not start) is driven from ``wait``. The executor decides nothing: it never retries a step.

The file is longer than 400 lines because every way in which a worker's life may end changes the same few collections.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heapreplace

from procflow.attempt import Attempt, Cause, Lost, Outcome, Progressed, Returned, Started
from procflow.call import StepCall
from procflow.errors import ExecutorError
from procflow.executors import wire
from procflow.executors.base import MemoryUse
from procflow.executors.channel import arrived_reads
from procflow.executors.ending import end_workers
from procflow.executors.family import TOKEN_NAME, kill_family
from procflow.executors.footprint import Footprint
from procflow.executors.ladder import Ladder
from procflow.executors.payload import Payload, Payloads
from procflow.executors.poller import OUT, Poller
from procflow.executors.slot import Death, Slot
from procflow.executors.waiting import Waiting
from procflow.failpoints import fp
from procflow.failure import lost_failure

__all__ = ["ProcessExecutor"]

logger = logging.getLogger(__name__)

SILENT_S = 0.5
"""How long a worker that closed its channel may take to end."""
SERVED = 20_000
"""So many attempts are remembered for whoever wants to know which worker they went to."""
YOUNG_S = 0.005
"""When an attempt has run for so long, what waits behind it is given back."""
RETRY_S = 0.001
"""When it is tried again to take back an attempt that is not wanted any more."""
CLAIM_S = 0.5
"""How long a worker may take to claim the attempt that it is to run now, before that is told to stop all the same."""
DEPTH = 31
"""How many attempts may wait behind one."""
NOISE = "its worker sent {} and was replaced; a step must not write to descriptors it did not open"
BELIEVED = -1
"""Stands for no attempt: a doubted worker's messages are believed again, though it gets no more work."""
DISMISS_S = 2.0
"""How long a worker that is no longer needed may take to end."""


class ProcessExecutor:
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

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # What the engine calls

    @property
    def running(self) -> int:
        """How many attempts are out."""
        return len(self._running) + len(self._waiting) + len(self._queued)

    def fileno(self) -> int:
        """The epoll's descriptor."""
        return self._poller.fileno()

    def deadline(self) -> float | None:
        """When ``wait`` must be called even if nothing is readable (``time.monotonic``); None where no clock runs."""
        if self._fresh:
            return 0.0
        deadlines = (self._ladder.deadline(), self._waiting.deadline(), self._look_at)
        return min((d for d in deadlines if d is not None), default=None)

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

    def check(self, call: StepCall) -> None:
        """ExecutorError naming step, argument and type where the call can't be sent to a worker."""
        self._payloads.of(call)

    def submit(self, attempt: Attempt) -> None:
        """Start the attempt, in the worker used last if one is idle, else in a new one."""
        if self._closed:
            raise ExecutorError("the executor is closed")
        payload = self._payloads.of(attempt.call)
        self._lines = None
        slot = self._rested(attempt)
        if slot is not None:
            slot.attempt, slot.payload = attempt, payload
            self._running[attempt.key] = slot
            if slot.ready:
                self._send(slot)
        else:
            if len(self._running) + len(self._waiting) >= self.slots:
                raise ExecutorError(f"more than {self.slots} attempts at a time")
            self._spawn(attempt, payload)

    def queue(self, attempt: Attempt) -> None:
        """Take the attempt to be run behind another, in the worker with the shortest line; see ``Queueing``."""
        if self._closed:
            raise ExecutorError("the executor is closed")
        payload = self._payloads.of(attempt.call)
        if self._lines is None:
            self._lines = _shortest(self._open_lines())
        slot = next(self._lines, None)
        if slot is None:
            self._return(attempt)
            return self._poller.wake()
        slot.line.waiting.append((attempt, payload))
        self._queued[attempt.key] = slot
        self._fresh.add(slot)

    def _open_lines(self) -> list[Slot]:
        """Whose lines may grow until the next wait: where an attempt began a moment ago, else wherever one runs."""
        now = time.monotonic()
        if self._look_at is None:
            self._look_at = now + YOUNG_S
        slots = [slot for slot in self._running.values() if slot.stage in ("", "spawn") and slot.doubted is None]
        return [slot for slot in slots if slot.began > now - YOUNG_S] or slots

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

    # Sending and receiving

    def _send(self, slot: Slot, behind: bool = False) -> None:
        if not slot.send_attempt(behind, len(self._running) < self._cores) and slot.stream_fd not in self._poller:
            self._poller.register(slot.stream_fd, lambda mask: self._on_stream(slot), events=OUT)
        if slot.line.unsent:
            slot.send_ahead()
        self._serve(slot)

    def _send_queued(self) -> None:
        """Send what was queued, all at once: a worker that gets one packet at a time sleeps between two of them."""
        for slot in self._fresh:
            if slot.ready and slot.line.unsent:
                slot.send_ahead()
        self._fresh.clear()

    def _on_stream(self, slot: Slot) -> None:
        if slot.outbox.flush(slot.stream_fd):
            self._poller.unregister(slot.stream_fd)

    def _read(self, slot: Slot, drain: bool = False) -> bool:
        """Read once and act on what came; False where no more can come now.

        ``drain``: the output pipe was not looked at just before, so an outcome has to.
        """
        inbox = slot.inbox
        try:
            messages = inbox.read(slot.channel_fd)
        except BlockingIOError:
            return False
        before = slot.attempt
        if messages and (drain or len(messages) > 1):
            # All that was printed before the last of them was sent.
            slot.drain_output()
        while True:
            noise = inbox.broken
            self._take_all(slot, messages)
            if not noise or inbox.broken != noise or not self._went_on(slot):
                break
            messages = inbox.resume()
        if slot.attempt is not before and slot.attempt is not None and before is not None:
            self._outcomes.append(Started(slot.attempt.key))
        if inbox.broken:
            self._distrust(slot, inbox.broken)
            return False
        if slot.doubted is not None and slot.attempt is None:
            self._replace(slot)
            return False
        if inbox.closed:
            self._retire(slot)
            if slot.stage not in ("term", "kill"):
                self._ladder.set(slot, "silent", SILENT_S)
            return False
        return True

    def _read_all(self, slot: Slot) -> None:
        """Read what has come by now. Not what comes meanwhile: a step may send faster than it can be read."""
        if slot.channel_fd not in self._poller:
            return
        for _ in range(arrived_reads(slot.channel_fd)):
            if not self._read(slot, drain=True) or slot.channel_fd not in self._poller:
                return

    def _take_all(self, slot: Slot, messages: Sequence[wire.Message]) -> None:
        """Act on messages up to one that makes no sense; on what has ended as it should by the group."""
        inbox, at = slot.inbox, 0
        noise = inbox.broken
        while at < len(messages) and inbox.broken == noise:
            ended = 0
            if slot.attempt is not None and not slot.stage and slot.doubted is None:
                ended = self._end(slot, wire.ends_from(messages, at))
            if not ended:
                self._take(slot, messages[at])
            at += ended or 1

    def _take(self, slot: Slot, message: wire.Message) -> None:
        attempt = slot.attempt
        try:
            kind = message[0]
            if kind == wire.RECORD:
                slot.record(message)
                return
            if kind == wire.HELLO:
                self._on_hello(slot, message)
                return
            outcome = wire.outcome_from(message)
        except wire.NONSENSE as error:
            slot.inbox.broken = f"a message that makes no sense ({type(error).__name__})"
            return
        if type(outcome) is Progressed:
            if attempt is not None and outcome.key == attempt.key:
                slot.note(outcome)
                self._outcomes.append(outcome)
            return
        if outcome.key == slot.doubted:
            slot.doubted = BELIEVED
            return
        if attempt is None or outcome.key != attempt.key:
            slot.inbox.broken = f"an outcome for attempt {outcome.key}, which it does not run"
            return
        if slot.stage in ("term", "kill"):
            # It was told to stop and this is what it made of that.
            self._ladder.kill(slot)
            return
        if slot.stage:
            self._ladder.clear(slot)
            slot.cause = None
        if slot.doubted is not None:
            slot.doubted = BELIEVED
        self._end(slot, (outcome,))  # type: ignore[arg-type]

    def _end(self, slot: Slot, ends: Sequence[wire.Ended]) -> int:
        """What runs there has ended, perhaps what was next in line as well, and so on: how many of the ends tell of that."""
        attempt: Attempt | None = slot.attempt
        assert attempt is not None
        key, payload, line, size, count = attempt.key, slot.payload, slot.line, slot.size, 0
        place = slot.pid, time.monotonic()
        served = self.served if len(self.served) < SERVED else {}
        for outcome in ends:
            if attempt is None or outcome.key != attempt.key:
                break
            fp("pool.received")
            count += 1
            attempt.close_log()
            slot.done_cpu_s += outcome.usage.cpu_s
            self._outcomes.append(size.end(outcome) if size.due else outcome)
            if not line.sent:
                attempt = None
                continue
            before = payload
            attempt, payload = line.shift()
            del self._queued[attempt.key]
            served[attempt.key] = place
            if payload is not before or size.group is not None:
                size.begin(attempt)
        if not count:
            return 0
        del self._running[key]
        if self._resent:
            self._resent.difference_update(outcome.key for outcome in ends[:count])
        if slot.reported:
            slot.reported = set()
        slot.attempt, slot.payload = attempt, payload
        if attempt is not None:
            self._running[attempt.key] = slot
            slot.streamed, slot.began = False, place[1]
            if line.unsent:
                slot.send_ahead()
        elif line.waiting:
            self._shift(slot)
            self._send(slot, behind=True)
        else:
            slot.payload = None
            if slot.doubted is None:
                self._idle.append(slot)
        return count

    def _shift(self, slot: Slot) -> None:
        """The first attempt in the slot's line is the one that runs now."""
        attempt, payload = slot.line.shift()
        del self._queued[attempt.key]
        slot.attempt, slot.payload = attempt, payload
        self._running[attempt.key] = slot

    def _serve(self, slot: Slot) -> None:
        if slot.attempt is not None and len(self.served) < SERVED:
            self.served[slot.attempt.key] = slot.pid, slot.began

    def _look(self) -> None:
        """Give back what waits behind attempts that have run for long."""
        since = time.monotonic() - YOUNG_S
        for slot in {slot for slot in self._queued.values() if slot.began <= since}:
            if slot.ready:
                self._read_all(slot)
            if slot.line.waiting and slot.began <= since:
                self._take_back(slot)
        self._look_at = since + 2 * YOUNG_S if self._queued else None
        for key, (cause, grace_s) in list(self._unwanted.items()):
            self.kill(key, cause, grace_s)

    def _take_back(self, slot: Slot) -> None:
        """Give back what waits in the slot's line and has not begun."""
        for attempt in slot.line.take_back():
            del self._queued[attempt.key]
            self._unwanted.pop(attempt.key, None)
            self._return(attempt)

    def _return(self, attempt: Attempt) -> None:
        attempt.close_log()
        self._outcomes.append(Returned(attempt.key))

    def _release(self, slot: Slot) -> None:
        """The slot's attempt is over."""
        attempt = slot.attempt
        if attempt is None:
            return
        attempt.close_log()
        del self._running[attempt.key]
        if self._resent:
            self._resent.discard(attempt.key)
        if slot.reported:
            slot.reported = set()
        slot.attempt = slot.payload = None

    def _on_hello(self, slot: Slot, message: wire.Message) -> None:
        if slot.stage == "kill":
            # Too late: it was not ready in time.
            return
        _, _, slot.base_cpu_s, slot.base_rss_bytes = message
        slot.ready = True
        self._waiting.started()
        self._ladder.clear(slot)
        if slot.attempt is not None:
            self._outcomes.append(Started(slot.attempt.key))
            self._send(slot)

    def _on_output(self, slot: Slot) -> None:
        if slot.read_output() is False:
            self._poller.unregister(slot.output_fd)

    def _went_on(self, slot: Slot) -> bool:
        """After noise: whether the worker has gone on to what was queued, so that the noisy attempt alone is lost by it.

        It gets no more work then: what it has begun ends there, and it is replaced.
        """
        if slot.doubted is not None and slot.doubted != BELIEVED:
            # More of the same: what the noisy attempt sent at its end has not come yet.
            return True
        if slot.attempt is None or slot.stage:
            return False
        self._take_back(slot)
        if not slot.line.waiting:
            return False
        # What it printed is still its own.
        slot.drain_output()
        slot.doubted = slot.attempt.key
        slot.trouble = NOISE.format(slot.inbox.broken)
        self._outcomes.append(slot.lost(None))
        slot.trouble = ""
        self._release(slot)
        self._shift(slot)
        slot.begin()
        self._serve(slot)
        # It ends by itself behind the last that it has claimed: that one's outcome may be hidden by noise as well.
        slot.line.hang_up()
        return True

    def _distrust(self, slot: Slot, what: str) -> None:
        slot.trouble = NOISE.format(what)
        self._take_back(slot)
        self._replace(slot)

    def _replace(self, slot: Slot) -> None:
        self._retire(slot)
        self._ladder.kill(slot)

    # Workers' lives

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

    def _spawn(self, attempt: Attempt, payload: Payload) -> None:
        try:
            slot = self._start(attempt.cpus)
        except (OSError, AssertionError) as error:
            return self._spawn_failed(attempt, payload, f"the system refused: {error}")
        slot.attempt, slot.payload = attempt, payload
        self._running[attempt.key] = slot

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

    def _spawn_failed(self, attempt: Attempt, payload: Payload, why: str) -> None:
        from procflow.executors.launch import upgraded

        changed = upgraded()
        self._waiting.add(attempt, payload, f"{changed}; {why}" if changed else why)
        if self._waiting.broken is not None:
            self._poller.wake()

    def _on_death(self, slot: Slot) -> None:
        if not slot.dead:
            return
        self._read_all(slot)
        slot.drain_output()
        self._forget(slot)
        self._take_back(slot)
        never = slot.line.first_unclaimed() or (slot.streamed and slot.unread)
        death = slot.reap()
        attempt, payload = slot.attempt, slot.payload
        if attempt is None or payload is None:
            return
        if slot.cause is None and not slot.trouble:
            if not slot.ready:
                del self._running[attempt.key]
                self._spawn_failed(attempt, payload, slot.last_words(death))
                return
            if never and attempt.key not in self._resent:
                # It died before it began: the attempt is not to blame, once.
                del self._running[attempt.key]
                self._resent.add(attempt.key)
                self._spawn(attempt, payload)
                return
        self._footprint.judge(slot, death)
        self._lose(slot, death)

    def _lose(self, slot: Slot, death: Death | None) -> None:
        outcome = slot.lost(death)
        self._release(slot)
        self._outcomes.append(outcome)
        if slot.line.waiting:
            # It had claimed the next one as well, and its word about the one before is not believed.
            self._shift(slot)
            self._lose(slot, death)

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

    def _give_up(self, slot: Slot) -> None:
        """The worker was killed and does not die: its attempt is lost now, it is reaped whenever it ends."""
        self._retire(slot)
        slot.trouble = f"its worker (pid {slot.pid}) does not die: it hangs in the kernel"
        self._take_back(slot)
        attempt, payload = slot.attempt, slot.payload
        if attempt is None or payload is None:
            return
        if slot.ready or slot.cause is not None:
            self._lose(slot, None)
        else:
            slot.attempt = slot.payload = None
            del self._running[attempt.key]
            self._spawn_failed(attempt, payload, slot.trouble)


def _shortest(slots: list[Slot]) -> Iterator[Slot]:
    """The slot with the shortest line, again and again, while each that is given gets one attempt more."""
    lengths = [(len(slot.line.waiting), at, slot) for at, slot in enumerate(slots)]
    heapify(lengths)
    while lengths:
        length, at, slot = lengths[0]
        yield slot
        heapreplace(lengths, (length + 1, at, slot))
