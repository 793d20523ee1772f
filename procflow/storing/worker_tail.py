"""Worker tail: results that a worker keeps by itself, because the parent may not have noted them yet.

A worker that has more attempts in line goes on while its last outcome is still on the way. If the parent is killed in that
moment, the outcome is lost with it; then this attempt would run again as well as the next. So before a worker begins an attempt
that was queued, it appends the result before to a file of its own, ``tails/<run id>+<worker>.a`` or ``.b``, by one write: its
outcome as it was sent, which ``finished`` turns into a record of the parent's tail (``store_tail``) if it is ever needed. The
next session takes up what the parent had not.

At most as many results as can be in line are of use, so the two files take turns when one is large.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
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

TURN_BYTES = 1 << 20
TURN_RECORDS = 64
"""More than can ever be in line."""


class WorkerTail:
    """The files of one worker; none is made before there is something to keep."""

    def __init__(self, path: str) -> None:
        self._paths = [f"{path}.a", f"{path}.b"]
        self._fd = -1
        self._bytes = self._records = 0

    def keep(self, about: tuple[Any, ...], message: wire.Message, body: bytes) -> None:
        """Keep the outcome that ``message`` told, whose bytes are ``body``, if it is one worth keeping.

        A full disk is the parent's to tell of.
        """
        if not about or message[0] not in (wire.SUCCEEDED, wire.SKIPPED):
            return
        if len(message) > 4:
            body = packed(_masked(message))
        data = record((TOLD, time.monotonic(), about, body))
        with contextlib.suppress(OSError, StoreError):
            if self._fd < 0 or (self._bytes > TURN_BYTES and self._records >= TURN_RECORDS):
                self._turn()
            os.write(self._fd, data)
            self._bytes += len(data)
            self._records += 1

    def _turn(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        path = self._paths[0]
        self._paths.reverse()
        self._fd = open_own(Path(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.ftruncate(self._fd, 0)
        self._bytes = self._records = 0


def _masked(message: wire.Message) -> wire.Message:
    *head, (indices, chunk, failures, pages, metrics, cost) = message
    return (*head, (indices, chunk, failures, pages, {secrets.masked(n): v for n, v in metrics.items()}, cost))


def finished(told: Sequence[Any]) -> tuple[Any, ...]:
    """What the parent's tail would say of a result that a worker kept."""
    _, ended, (path, label, item, number, executor, role, run_began), body = told
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
