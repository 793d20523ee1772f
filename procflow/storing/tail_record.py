"""Tail record: one record of a tail (``store_tail``, ``worker_tail``): length, checksum, and ``marshal`` of plain data."""

from __future__ import annotations

import marshal
import struct
import zlib
from collections.abc import Iterator
from typing import Any

__all__ = ["bodies", "record"]

_HEAD = struct.Struct("<II")


def record(body: tuple[Any, ...]) -> bytes:
    """The record of a body of plain constants."""
    data = marshal.dumps(body)
    return _HEAD.pack(len(data), zlib.crc32(data)) + data


def bodies(data: bytes) -> Iterator[tuple[Any, ...]]:
    """The bodies of records in order, up to a torn one."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, crc = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        # Where power failed a file may end in zeros, and those are a right checksum of nothing.
        if not length or len(body) < length or zlib.crc32(body) != crc:
            return
        yield marshal.loads(body)
        at += _HEAD.size + length
