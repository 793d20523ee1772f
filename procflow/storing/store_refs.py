"""Refs and item indices as the journal holds them: bytes and text that are read back without running any code."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, NoReturn, TypeVar

from procflow.errors import StoreError
from procflow.ref import Inline, Ref, from_plain

__all__ = ["decode_ref", "decode_refs", "encode_ref", "encode_refs", "indices_from", "indices_text", "storable"]

_MARK, _SEVERAL = b"R1", b"R2"
SMALL_BYTES = 32
_T = TypeVar("_T")


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
    return _checked(_MARK, ref.plain())


def _checked(mark: bytes, plain: tuple[Any, ...]) -> bytes:
    body = pickle.dumps(plain, 4)
    return mark + zlib.crc32(body).to_bytes(4, "little") + body


def decode_ref(data: bytes) -> Ref:
    """The ref that ``encode_ref`` wrote; StoreError for anything else, such as flipped bits or a foreign pickle."""
    return _read(_MARK, data, from_plain)


def encode_refs(outputs: Mapping[str, Ref]) -> tuple[str, bytes | None]:
    """What an attempt published, as ``output_ref`` and ``refs`` have it: names with commas between, and their refs.

    Refs are None for nothing, one as ``encode_ref``, several with their names before them.
    """
    if len(outputs) == 1:
        ((name, ref),) = outputs.items()
        return storable(name), encode_ref(ref)
    if not outputs:
        return "", None
    # Names may hold commas, so those of several can't be read from where they are joined.
    named = tuple([(storable(name), ref.plain()) for name, ref in outputs.items()])
    return ",".join([name for name, _ in named]), _checked(_SEVERAL, named)


def decode_refs(names: str | None, data: bytes | None) -> dict[str, Ref]:
    """The refs that ``encode_refs`` wrote, by their names. StoreError as of ``decode_ref``."""
    if data is None:
        return {}
    if data[:2] == _SEVERAL:
        return _read(_SEVERAL, data, lambda plain: {name: from_plain(ref) for name, ref in plain})
    return {names or "": decode_ref(data)}


def _read(mark: bytes, data: bytes, made: Callable[[tuple[Any, ...]], _T]) -> _T:
    body = data[6:]
    if data[:2] != mark or zlib.crc32(body).to_bytes(4, "little") != data[2:6]:
        raise StoreError("a recorded result is damaged: its checksum is wrong")
    try:
        return made(_PlainUnpickler(BytesIO(body)).load())
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError) as error:
        raise StoreError(f"a recorded result can't be read: {error}") from error


def storable(text: str) -> str:
    """The text as SQLite and UTF-8 can hold it, of the class ``str`` itself: lone surrogates become ``\\udc80``."""
    if type(text) is not str:
        text = str(text)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


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
