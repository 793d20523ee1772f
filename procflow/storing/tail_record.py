"""Tail record: one record of a tail (``store_tail``, ``worker_tail``): length, checksum, and ``marshal`` of plain data."""

from __future__ import annotations

import marshal
import struct
import zlib
from collections.abc import Iterator
from typing import Any

__all__ = ["Body", "bodies", "record"]

Body = tuple[Any, ...] | list[Any]
"""One result, as plain constants."""

_HEAD = struct.Struct("<II")


def record(body: Body | list[Body]) -> bytes:
    """The record of one body, or of several."""
    data = marshal.dumps(body)
    return _HEAD.pack(len(data), zlib.crc32(data)) + data


def bodies(data: bytes) -> Iterator[Any]:
    """What records hold, in order, up to a torn one: a body, or several."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        # Where power failed a file may end in zeros, and those are a right checksum of nothing.
        if not length or len(body) < length or zlib.crc32(body) != crc:
            return
        yield marshal.loads(body)
        at += _HEAD.size + length
