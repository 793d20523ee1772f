"""Refs and item indices as the journal holds them: bytes and text that are read back without running any code."""

from __future__ import annotations

import pickle
import zlib
from functools import lru_cache
from io import BytesIO
from typing import Any, NoReturn

from procflow.errors import StoreError
from procflow.ref import Inline, Ref, from_plain

__all__ = ["decode_ref", "encode_ref", "indices_from", "indices_text"]

_MARK = b"R1"
SMALL_BYTES = 32


def encode_ref(ref: Ref) -> bytes:
    """The ref as bytes: ``R1``, a CRC-32, and a protocol 4 pickle of its nested tuples of bytes, numbers and text.

    That format is fixed for good by the pickle documentation; ``decode_ref`` reads it without running any code.
    """
    if type(ref) is Inline and not ref.buffers and len(ref.data) <= SMALL_BYTES:
        return _small(ref.data)
    return _encoded(ref)


@lru_cache(maxsize=1024)
def _small(data: bytes) -> bytes:
    """None, True and small numbers are what most steps return."""
    return _encoded(Inline(data))


def _encoded(ref: Ref) -> bytes:
    body = pickle.dumps(ref.plain(), 4)
    return _MARK + zlib.crc32(body).to_bytes(4, "little") + body


def decode_ref(data: bytes) -> Ref:
    """The ref that ``encode_ref`` wrote; StoreError for anything else, such as flipped bits or a foreign pickle."""
    body = data[6:]
    if data[:2] != _MARK or zlib.crc32(body).to_bytes(4, "little") != data[2:6]:
        raise StoreError("a recorded result is damaged: its checksum is wrong")
    try:
        return from_plain(_PlainUnpickler(BytesIO(body)).load())
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError) as error:
        raise StoreError(f"a recorded result can't be read: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Knows no class and no function, so a pickle can only hold plain data."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a ref")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("a ref has no persistent ids")


def indices_text(indices: range | tuple[int, ...]) -> str:
    """``0:100`` for a range, ``3,8,9`` for single items."""
    if isinstance(indices, range) and indices.step == 1:
        return f"{indices.start}:{indices.stop}"
    return ",".join(map(str, indices))


def indices_from(text: str) -> range | tuple[int, ...]:
    """The indices that ``indices_text`` wrote; StoreError for anything else."""
    try:
        start, colon, stop = text.partition(":")
        return range(int(start), int(stop)) if colon else tuple(map(int, text.split(",")))
    except ValueError:
        raise StoreError(f"recorded items can't be read: {text[:80]!r}") from None
