"""Line: attempts that wait behind the one that a worker runs, and the packets by which it gets them.

Packets lie in memory that the worker can only read, each in a place of its own, and beside it is a pipe with one byte for each
that the worker may run: reading a byte is claiming the next packet, and the kernel gives each byte to one reader alone. All bytes
are alike, so the parent takes back the last packets by reading bytes away, at any time: from a worker that is busy, stopped or
dead. What was taken back has not begun, and its place is written anew. ``waiting`` are the attempts in order, the first ``sent``
of them as packets. Before an attempt that waited here begins, its worker writes a mark with its key to the output pipe, so that
what is printed goes to the right log however late it is read. This file never decides what is queued or taken back.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections import deque
from collections.abc import Iterator, Sequence

from procflow.attempt import Attempt
from procflow.executors.channel import LINE_BYTES, PACKET_BYTES, PLACES
from procflow.executors.payload import Payload

__all__ = ["MARK_BYTES", "Line"]

MARK_BYTES = 16
"""How many bytes say that another attempt begins; its key follows."""
KEY_BYTES = 8
MARKED_BYTES = MARK_BYTES + KEY_BYTES
FIRST = b"\x1e"


class Line:
    """One worker's packets. ``claim_fd`` and ``packets_fd`` are the worker's ends; of the first the parent keeps a copy."""

    __slots__ = ("_memory", "_next", "_rest", "_writer", "claim_fd", "mark", "packets_fd", "sent", "told_fd", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Attempt, Payload]] = deque()
        self.sent = 0
        self.mark = FIRST + secrets.token_bytes(MARK_BYTES - 1)
        self.claim_fd = self.told_fd = self.packets_fd = -1
        fd = os.memfd_create("procflow-line")
        try:
            os.ftruncate(fd, LINE_BYTES)
            self._memory = mmap.mmap(fd, LINE_BYTES)
            # A step that writes to descriptors that it did not open can't write here.
            self.packets_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            self.claim_fd, self.told_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(fd)
        self._next = 0
        self._writer = 0
        self._rest = b""

    @property
    def unsent(self) -> bool:
        """Something waits that is not on its way."""
        return self.sent < len(self.waiting)

    @property
    def room(self) -> int:
        """How many packets may follow that of the attempt that runs, beside those that are sent."""
        return PLACES - 1 - self.sent

    def send(self, packets: Sequence[bytes]) -> None:
        """Send packets, no more than there is room for. OSError where the line is hung up."""
        memory, at = self._memory, self._next
        for packet in packets:
            place = at % PLACES * PACKET_BYTES
            memory[place : place + len(packet)] = packet
            at += 1
        os.write(self.told_fd, bytes(len(packets)))
        self._next = at

    def shift(self) -> tuple[Attempt, Payload]:
        """Take out the first that waits: it is the one that runs now."""
        if self.sent:
            self.sent -= 1
        return self.waiting.popleft()

    def take_back(self) -> list[Attempt]:
        """Take out of the line what was not sent or not claimed; those attempts, in order. Never what runs before them."""
        taken = self._unclaimed(self.sent)
        self.sent -= taken
        self._next -= taken
        waiting, dropped = self.waiting, deque[Attempt]()
        while len(waiting) > self.sent:
            dropped.appendleft(waiting.pop()[0])
        return list(dropped)

    def first_unclaimed(self) -> bool:
        """Whether a dead worker, whose line is taken back, never claimed the attempt that was to run first; asked once."""
        return not self.waiting and self._unclaimed(1) > 0

    def _unclaimed(self, most: int) -> int:
        if not most or self.claim_fd < 0:
            return 0
        try:
            return len(os.read(self.claim_fd, most))
        except BlockingIOError:
            return 0

    def find(self, key: int) -> Attempt | None:
        """The attempt with this key, if it waits."""
        return next((attempt for attempt, _ in self.waiting if attempt.key == key), None)

    def parted(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Output by the key of the attempt that printed it; 0 stands for the one that was sent without a mark."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        mark, at = self.mark, 0
        last = len(data) - MARKED_BYTES
        if data[last:].startswith(mark) and data.count(mark) * MARKED_BYTES == len(data):
            # Attempts that print nothing leave only their marks.
            self._writer = int.from_bytes(data[-KEY_BYTES:], "little")
            return
        while (at := data.find(FIRST, at)) >= 0:
            if not mark.startswith(data[at : at + MARK_BYTES]):
                at += 1
            elif len(data) - at < MARKED_BYTES:
                self._rest, data = data[at:], data[:at]
                break
            else:
                if at:
                    yield self._writer, data[:at]
                self._writer = int.from_bytes(data[at + MARK_BYTES : at + MARKED_BYTES], "little")
                data, at = data[at + MARKED_BYTES :], 0
        if data:
            yield self._writer, data

    def remainder(self) -> bytes:
        """What looked like the beginning of a mark, and nothing came after it."""
        rest, self._rest = self._rest, b""
        return rest

    def head_sent(self) -> None:
        """An attempt was sent that needs no mark: what is printed from now on is its own."""
        self._writer = 0

    def hang_up(self) -> None:
        """The worker gets no more packets: it ends when it asks for one. Harmless when done before."""
        self._close("told_fd")

    def started(self) -> None:
        """The worker has its ends."""
        self._close("packets_fd")

    def close(self) -> None:
        """Let go of all of it. Harmless when done before."""
        for name in ("told_fd", "claim_fd", "packets_fd"):
            self._close(name)
        if hasattr(self, "_memory"):
            self._memory.close()

    def _close(self, name: str) -> None:
        fd = getattr(self, name)
        if fd >= 0:
            os.close(fd)
            setattr(self, name, -1)
