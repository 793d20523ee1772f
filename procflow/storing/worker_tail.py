"""Worker tail: results that a worker keeps by itself, because the parent may not have noted them yet.

A worker that has more attempts in line goes on while its last outcome is still on the way. If the parent is killed in that
moment, the outcome is lost with it; then this attempt would run again as well as the next. So before a worker begins an attempt
that was queued, it adds the result before to a file of its own, ``tails/<run id>+<worker>.a`` or ``.b``: its outcome as it was
sent, which ``finished`` turns into a record of the parent's tail (``store_tail``) if it is ever needed. The next session takes up
what the parent had not.

The files are mapped, so that this costs no system call: what was stored in a mapping of a file survives the death of the
process, and a record that was torn by it fails its checksum. Their blocks are reserved first, because storing has no way to say
that the disk is full. At most as many results as can be in line are of use, so the two files take turns.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from typing import Any

from procflow import secrets
from procflow.errors import StoreError
from procflow.executors import wire
from procflow.executors.channel import packed, unpacked
from procflow.storing.own_files import open_own
from procflow.storing.tail_record import record

__all__ = ["TOLD", "WorkerTail", "finished"]

TOLD = "told"
"""What a record of an outcome as it was sent begins with."""

TURN_RECORDS = 64
"""More than can ever be in line."""
FILE_BYTES = 1 << 16
"""So much is reserved at once, and half as much again as is needed where that is more."""
END = bytes(8)
"""Behind the last record, where an older one may lie: no record is empty."""


class WorkerTail:
    """The files of one worker; none is made before there is something to keep."""

    def __init__(self, path: str) -> None:
        self._paths = [f"{path}.a", f"{path}.b"]
        self._maps: list[mmap.mmap | bytearray] = [bytearray(), bytearray()]
        self._bytes = self._records = 0

    def keep(self, about: tuple[Any, ...], message: wire.Message, body: bytes) -> None:
        """Keep the outcome that ``message`` told, whose bytes are ``body``, if it is one worth keeping.

        ``about`` is the attempt's. A full disk is the parent's to tell of.
        """
        if not about or message[0] not in (wire.SUCCEEDED, wire.SKIPPED):
            return
        if len(message) > 4:
            body = packed(_masked(message))
        data = record((TOLD, time.monotonic(), about, body)) + END
        if self._records >= TURN_RECORDS:
            self._paths.reverse()
            self._maps.reverse()
            self._bytes = self._records = 0
        at = self._bytes
        end = at + len(data)
        if end > len(self._maps[0]):
            try:
                self._maps[0] = _mapped(self._paths[0], max(FILE_BYTES, end + end // 2), anew=not at)
            except (OSError, StoreError, ValueError):
                return
        self._maps[0][at:end] = data
        self._bytes = end - len(END)
        self._records += 1


def _mapped(path: str, size_bytes: int, anew: bool) -> mmap.mmap:
    # A step that writes to descriptors that it did not open can only add to the file.
    fd = open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        if anew:
            os.ftruncate(fd, 0)
        os.posix_fallocate(fd, 0, size_bytes)
        return mmap.mmap(fd, size_bytes)
    finally:
        os.close(fd)


def _masked(message: wire.Message) -> wire.Message:
    *head, (indices, chunk, failures, pages, metrics, cost) = message
    return (*head, (indices, chunk, failures, pages, {secrets.masked(n): v for n, v in metrics.items()}, cost))


def finished(told: Sequence[Any]) -> tuple[Any, ...]:
    """What the parent's tail would say of a result that a worker kept."""
    _, ended, about, body = told
    if type(about) is bytes:
        # As versions before kept it.
        about = unpacked(about)
    path, label, item, number, executor, role, run_began = about
    message = unpacked(body)
    key, skipped = message[1], message[0] == wire.SKIPPED
    used = message[2] if skipped else message[3]
    outputs: dict[str, Any] = {} if skipped else message[2]
    indices, chunk, _, pages, metrics, cost = message[4] if len(message) > 4 else ((), None, (), (), {}, 0.0)
    if chunk is not None:
        outputs = {"": chunk}
    at = ended - run_began
    status = "skipped" if skipped else "succeeded"
    return (
        "finished",
        (at, key, path, label, item, number, executor, status, at - used[0]),
        used[:3],
        tuple(outputs.items()),
        tuple(metrics.items()),
        (cost, _count(indices) if role == "batch" else 1, role),
        indices,
        pages,
    )


def _count(plain: tuple[int, ...]) -> int:
    return plain[2] - plain[1] if plain and plain[0] == -1 else len(plain)
