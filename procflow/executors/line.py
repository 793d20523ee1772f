"""Line: attempts that wait behind the one that a worker runs, and the packets by which it gets them.

Packets lie in a socket until the worker claims them one by one (``channel.py``), so what waits there has not begun, and the
parent can take it back at any time by reading it away: from a worker that is busy, stopped or dead. ``waiting`` are the
attempts in order, the first ``sent`` of them as packets. Before an attempt that waited here begins, its worker writes a mark
with its key to the output pipe, so that what is printed goes to the right log however late it is read. This file never
decides what is queued or taken back.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections import deque
from collections.abc import Iterator

from procflow.attempt import Attempt
from procflow.executors.channel import CHUNK_BYTES, unpacked
from procflow.executors.payload import Payload

__all__ = ["MARK_BYTES", "Line"]

MARK_BYTES = 16
"""How many bytes say that another attempt begins; its key follows."""
KEY_BYTES = 8
MARKED_BYTES = MARK_BYTES + KEY_BYTES
FIRST = b"\x1e"
SOCKET_BYTES = 1 << 19
"""Room for a full line of the largest packets, where the system allows so much."""


class Line:
    """One worker's packets. ``far_fd`` is the worker's end, of which the parent keeps a copy."""

    __slots__ = ("_far", "_near", "_rest", "_writer", "mark", "sent", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Attempt, Payload]] = deque()
        self.sent = 0
        self.mark = FIRST + secrets.token_bytes(MARK_BYTES - 1)
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._writer = 0
        self._rest = b""

    @property
    def far_fd(self) -> int:
        """The descriptor that the worker reads packets from."""
        return self._far.fileno()

    @property
    def unsent(self) -> bool:
        """Something waits that is not on its way."""
        return self.sent < len(self.waiting)

    def send(self, packet: bytes) -> bool:
        """Send a packet; False where the socket is full. OSError where it is closed."""
        try:
            os.write(self._near.fileno(), packet)
        except BlockingIOError:
            return False
        return True

    def claimed(self, key: int) -> bool:
        """Whether the worker has claimed the packet of the attempt that is to run before all that waits."""
        try:
            packet = self._far.recv(CHUNK_BYTES, socket.MSG_PEEK)
        except OSError:
            return True
        return not packet or unpacked(packet)[1] != key

    def take_back(self) -> set[int]:
        """Read away what the worker has not claimed; the keys, of the attempt that runs as well if it has not begun.

        A worker that lives may claim the next packet while one is read away, so the packet that must come first is not to
        be taken from it: ask ``claimed`` before.
        """
        keys: set[int] = set()
        while self._near.fileno() >= 0:
            try:
                packet = self._far.recv(CHUNK_BYTES)
            except BlockingIOError:
                break
            keys.add(unpacked(packet)[1])
        return keys

    def forget(self, unclaimed: set[int]) -> list[Attempt]:
        """Drop what was not sent or is among these keys from the line; those attempts, in order."""
        dropped: list[Attempt] = []
        kept: deque[tuple[Attempt, Payload]] = deque()
        for place, one in enumerate(self.waiting):
            if place < self.sent and one[0].key not in unclaimed:
                kept.append(one)
            else:
                dropped.append(one[0])
        self.waiting, self.sent = kept, len(kept)
        return dropped

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
        self._near.close()

    def close(self) -> None:
        """Let go of both ends."""
        self._near.close()
        self._far.close()
