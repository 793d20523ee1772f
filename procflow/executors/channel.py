"""Channel: framed messages over two private pipes between the parent and one worker, and packets beside them.

A frame is a fixed header (magic, crc32 of the body, length, check of both) and a body. The body is ``marshal`` of plain
tuples: both ends are the same interpreter, it is fast, and reading it cannot run code. This file owns framing and
buffering. It never opens what a message carries, never starts or judges a process, and its parent end never blocks.

Attempts come to the worker as packets in memory that it shares with the parent, and are claimed by a byte of a pipe each
(``line.py``). What is too large for a packet follows as a message. Pipes, because a socket keeps a buffer for every message
however small: reading thirty costs as much as thirty reads.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import mmap
import operator
import os
import select
import struct
import sys
import termios
import threading
from collections import deque
from typing import Any
from zlib import crc32

from procflow.executors.doze import Doze

__all__ = [
    "MAGIC",
    "PACKET_BYTES",
    "Inbox",
    "Outbox",
    "WorkerEnd",
    "arrived_bytes",
    "arrived_reads",
    "exact",
    "frame",
    "packed",
    "unpacked",
]

MAGIC = b"pfC\x01"
HEADER = struct.Struct("<4sIQI")
HEADER_BYTES = HEADER.size
CHUNK_BYTES = 1 << 16
PACKET_BYTES = 1 << 14
"""The largest packet."""
PLACES = 32
"""How many packets a line has room for: more than can be in it, so that none is written where one may still be read."""
LINE_BYTES = PLACES * PACKET_BYTES
PLAIN = 2
"""The version of ``marshal`` that does not look for objects that occur twice: half the time."""

UNREADABLE = (ValueError, EOFError, TypeError)

Message = tuple[Any, ...]

_pack = HEADER.pack
_unpack_from = HEADER.unpack_from
_dumps = marshal.dumps
_loads = marshal.loads


def frame(message: Message) -> bytes:
    """The bytes of one message, a tuple of plain constants; what only looks plain (a str subclass) is made plain."""
    return _framed(packed(message))


def _framed(body: bytes) -> bytes:
    crc, length = crc32(body), len(body)
    # A wrong length must be found before so much memory is asked for, or so much is waited for: hence the check of both.
    return _pack(MAGIC, crc, length, (crc ^ length ^ length >> 32) & 0xFFFFFFFF) + body


def packed(message: Message) -> bytes:
    """The message without a frame: a packet."""
    try:
        return _dumps(message, PLAIN)
    except ValueError:
        return _dumps(exact(message), PLAIN)


def unpacked(packet: bytes | memoryview) -> Message:
    """The message of a packet that the other end made; more may follow it."""
    message: Message = _loads(packet)
    return message


def arrived_reads(fd: int) -> int:
    """How often ``Inbox.read`` must be called, at most, to have read all that has arrived by now, and the end."""
    # One read takes all there is or a chunk, but it stops at the end of a large body.
    return 3 + 2 * (arrived_bytes(fd) // CHUNK_BYTES)


def arrived_bytes(fd: int) -> int:
    """How much lies in a pipe and was not read; either end will do."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def exact(value: Any) -> Any:
    """The same value of plain types only: subclasses of str, int, float... become the types themselves."""
    if isinstance(value, dict):
        return {exact(k): exact(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(exact(v) for v in value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    # Numbers of NumPy and its like are neither int nor float, but can be made so.
    if hasattr(value, "__index__"):
        return operator.index(value)
    return float(value) if hasattr(value, "__float__") else str(value)


class Inbox:
    """Turns what arrives on a descriptor into messages; ``broken`` says why nothing more can be understood.

    Then ``resume`` looks for the next message that can be: each has its own checksum.
    """

    __slots__ = ("_body", "_crc", "_filled", "_rest", "_seeking", "broken", "closed")

    def __init__(self) -> None:
        self.broken = ""
        self.closed = False
        self._rest = b""
        self._seeking = False
        self._body: memoryview | None = None
        self._filled = 0
        self._crc = 0

    def read(self, fd: int) -> list[Message]:
        """Messages completed by one read; sets ``closed`` at the end of the stream. BlockingIOError where nothing is there."""
        if self._body is not None:
            return self._read_body(fd, self._body)
        data = os.read(fd, CHUNK_BYTES)
        if not data:
            self.closed = True
            return []
        return self._parse(self._rest + data if self._rest else data)

    def resume(self) -> list[Message]:
        """Go on behind what was ``broken``; messages that were whole already."""
        data, self._rest = self._rest, b""
        self.broken = ""
        self._seeking = True
        return self._parse(data)

    def _parse(self, data: bytes) -> list[Message]:
        if self._seeking:
            found = data.find(MAGIC)
            if found < 0:
                self._rest = data[1 - len(MAGIC) :]
                return []
            data, self._seeking = data[found:], False
        messages: list[Message] = []
        take, start, size = messages.append, 0, len(data)
        self._rest = b""
        while size - start >= HEADER_BYTES:
            magic, crc, length, check = _unpack_from(data, start)
            if magic != MAGIC or check != (crc ^ length ^ length >> 32) & 0xFFFFFFFF:
                self.broken = "bytes that are no message"
                self._rest = data[start + 1 :]
                return messages
            start += HEADER_BYTES
            end = start + length
            if end > size:
                if length <= CHUNK_BYTES:
                    start -= HEADER_BYTES
                    break
                body = memoryview(bytearray(length))
                self._filled = size - start
                body[: self._filled] = data[start:]
                self._body, self._crc = body, crc
                return messages
            try:
                take(_opened(data[start:end], crc))
            except UNREADABLE as error:
                self.broken = f"a message that can't be read ({error})"
                self._rest = data[start:]
                return messages
            start = end
        if start < size:
            self._rest = data[start:]
            if self._rest[:4] != MAGIC[: len(self._rest)]:
                self.broken = "bytes that are no message"
                self._rest = self._rest[1:]
        return messages

    def _read_body(self, fd: int, body: memoryview) -> list[Message]:
        count = os.readv(fd, [body[self._filled :]])
        if not count:
            self.closed = True
            return []
        self._filled += count
        messages: list[Message] = []
        if self._filled == len(body):
            self._body = None
            try:
                messages.append(_opened(body, self._crc))
            except UNREADABLE as error:
                self.broken = f"a message that can't be read ({error})"
                self._rest = bytes(body)
        return messages


def _opened(body: bytes | memoryview, crc: int) -> Message:
    if crc32(body) != crc:
        raise ValueError("its checksum is wrong")
    message: Message = _loads(body)
    return message


class Outbox:
    """The parent's sending side: what the pipe does not take at once is kept and sent when it can be written."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[memoryview] = deque()

    def send(self, fd: int, data: bytes) -> bool:
        """Send, or keep the rest; see ``flush``."""
        self._waiting.append(memoryview(data))
        return self.flush(fd)

    def flush(self, fd: int) -> bool:
        """Send what waits as far as the pipe takes it; True where there is no use in waiting until it takes more."""
        waiting = self._waiting
        while waiting:
            try:
                count = os.write(fd, waiting[0])
            except BlockingIOError:
                return False
            except BrokenPipeError:
                # Nobody will read it: the rest stays here, to be seen once the worker is known to be dead.
                return True
            if count == len(waiting[0]):
                waiting.popleft()
            else:
                waiting[0] = waiting[0][count:]
        return True

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting


class WorkerEnd:
    """The worker's end: blocking, used by several threads of the step, dead in a forked child.

    Reading has no deadline: an idle worker waits for work, and the parent's death closes the pipes.
    """

    def __init__(self, fd: int, claim_fd: int = -1, packets_fd: int = -1, stream_fd: int = -1) -> None:
        """It sends on ``fd`` and hears on ``stream_fd``. The others are those of a ``Line``; ``packets_fd`` may be closed then."""
        self.fd = fd
        self.claim_fd = claim_fd
        self.stream_fd = stream_fd
        poll = select.poll()
        if claim_fd >= 0:
            poll.register(claim_fd, select.POLLIN)
            memory = memoryview(mmap.mmap(packets_fd, LINE_BYTES, prot=mmap.PROT_READ))
            self._places = [memory[at : at + PACKET_BYTES] for at in range(0, LINE_BYTES, PACKET_BYTES)]
        self._claimed = 0
        self._doze = Doze(poll.poll)
        self.inbox = Inbox()
        self._lock = threading.Lock()
        self._arrived: deque[Message] = deque()
        # A child of the step must never speak or listen for the worker it was forked from.
        os.register_at_fork(after_in_child=self._forsake)

    @property
    def alive(self) -> bool:
        """False in a forked child."""
        return self.fd >= 0

    def claim(self, free: bool = False) -> Message | None:
        """The next packet; None at the end. OSError where the step closed the descriptor. ``free``: see ``Doze.wait``."""
        while True:
            try:
                if not os.read(self.claim_fd, 1):
                    return None
            except BlockingIOError:
                # Never by a read that waits: one that is killed as it wakes up would take the packet with it.
                self._doze.wait(None, free)
            else:
                place = self._places[self._claimed % PLACES]
                self._claimed += 1
                return unpacked(place)

    def receive(self) -> Message | None:
        """The next message; None at the end of the stream. OSError where the step closed the descriptor."""
        arrived = self._arrived
        while not arrived:
            arrived.extend(self.inbox.read(self.stream_fd))
            if self.inbox.closed or (self.inbox.broken and not arrived):
                return None
        return arrived.popleft()

    def send(self, message: Message) -> bytes:
        """Send one message whole, and give its body; OSError where the parent or the descriptor is gone."""
        body = packed(message)
        data = _framed(body)
        with self._lock:
            count = self._write(data)
            if count < len(data):
                view = memoryview(data)
                while count < len(data):
                    count += self._write(view[count:])
        return body

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return os.write(self.fd, data)
        except BlockingIOError:
            # The step made all its descriptors non-blocking.
            select.select([], [self.fd], [], 1.0) if self.fd < 1024 else None
            return 0

    def _forsake(self) -> None:
        fds = self.fd, self.claim_fd, self.stream_fd
        self.fd = self.claim_fd = self.stream_fd = -1
        self._lock = threading.Lock()
        for fd in fds:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
