"""Hearing: what is heard of workers, by their messages, their output and their deaths, and the outcomes that follow from it.

Whatever the worker does, its attempt gets one outcome. A message that makes no sense costs the attempt that ran when it was
sent, and a death the one that the worker had begun. See ``crew.py`` for the layers. The kill ladder decides when a worker
must go.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from procflow.attempt import Attempt, Progressed, Started
from procflow.executors import wire
from procflow.executors.channel import arrived_reads
from procflow.executors.lines import SERVED, Lines
from procflow.executors.slot import Death, Slot
from procflow.failpoints import fp

__all__ = ["Hearing"]

SILENT_S = 0.5
"""How long a worker that closed its channel may take to end."""
NOISE = "its worker sent {} and was replaced; a step must not write to descriptors it did not open"
BELIEVED = -1
"""Stands for no attempt: a doubted worker's messages are believed again, though it gets no more work."""


class Hearing(Lines):
    """What workers say and do, and what becomes of their attempts."""

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

    def _on_death(self, slot: Slot) -> None:
        if not slot.dead:
            return
        self._read_all(slot)
        slot.drain_output()
        self._forget(slot)
        self._take_back(slot)
        attempt, payload = slot.attempt, slot.payload
        if attempt is None or payload is None:
            slot.reap()
            return
        never = slot.line.first_unclaimed() or (slot.streamed and slot.unread)
        death = slot.reap()
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
