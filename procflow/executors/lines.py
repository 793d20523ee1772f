"""Lines: how attempts come to workers: the one that runs and those in line behind it, until they are sent or given back.

What is queued goes to the worker with the shortest line, all at once when the loop waits. What waits behind an attempt that
runs long is taken back. What can be taken back at any time, and how, is ``line.py``'s. See ``crew.py`` for the layers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from heapq import heapify, heapreplace

from procflow.attempt import Attempt, Returned
from procflow.errors import ExecutorError
from procflow.executors.crew import Crew
from procflow.executors.payload import Payload
from procflow.executors.poller import OUT
from procflow.executors.slot import Slot

__all__ = ["Lines"]

SERVED = 20_000
"""So many attempts are remembered for whoever wants to know which worker they went to."""
YOUNG_S = 0.005
"""When an attempt has run for so long, what waits behind it is given back."""


class Lines(Crew):
    """What is handed to workers, and what is taken back from them."""

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

    def _spawn(self, attempt: Attempt, payload: Payload) -> None:
        try:
            slot = self._start(attempt.cpus)
        except (OSError, AssertionError) as error:
            return self._spawn_failed(attempt, payload, f"the system refused: {error}")
        slot.attempt, slot.payload = attempt, payload
        self._running[attempt.key] = slot

    def _spawn_failed(self, attempt: Attempt, payload: Payload, why: str) -> None:
        from procflow.executors.launch import upgraded

        changed = upgraded()
        self._waiting.add(attempt, payload, f"{changed}; {why}" if changed else why)
        if self._waiting.broken is not None:
            self._poller.wake()

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


def _shortest(slots: list[Slot]) -> Iterator[Slot]:
    """The slot with the shortest line, again and again, while each that is given gets one attempt more."""
    lengths = [(len(slot.line.waiting), at, slot) for at, slot in enumerate(slots)]
    heapify(lengths)
    while lengths:
        length, at, slot = lengths[0]
        yield slot
        heapreplace(lengths, (length + 1, at, slot))
