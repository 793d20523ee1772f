"""Canonical bytes of values, so that two sessions can tell whether a constant is the same. Never a pickle.

Mappings and sets count without their order, lists and tuples with it; 1, 1.0 and True stay apart. Arrays count by type,
shape and content, plain objects by their class and state, functions by what ``code`` says of them. What can't be looked
into (a socket, an iterator, a foreign object) is noted in ``opaque`` and never equals anything, itself included.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from pathlib import PurePath
from types import ModuleType
from typing import Any
from uuid import UUID

__all__ = ["ALGORITHM", "Canonical", "digest"]

ALGORITHM = "xxh3_128"
MOST_DEEP = 200

_PLAIN: frozenset[type] = frozenset({int, float, bool, str, bytes, type(None)})
_TOLD: tuple[type, ...] = (
    Decimal, Fraction, UUID, complex, range, slice, datetime.date, datetime.time, datetime.timedelta, datetime.timezone,
)  # fmt: skip


def digest(data: bytes) -> str:
    """128 bits of the bytes as hexadecimal text."""
    return _hash()(data)


@lru_cache(maxsize=1)
def _hash() -> Callable[[bytes], str]:
    from xxhash import xxh3_128_hexdigest

    found: Callable[[bytes], str] = xxh3_128_hexdigest
    return found


def _framed(tag: str, *parts: bytes) -> bytes:
    """The parts with their lengths in front, so that no two lists of parts give the same bytes."""
    return b"%b(%b)" % (tag.encode(), b"".join([b"%d:%b" % (len(part), part) for part in parts]))


class Canonical:
    """Makes the bytes; ``code`` gives those of a function or a class.

    ``opaque`` collects the types that could not be looked into. ``seen`` says whether the text ``watch`` was part of any
    text so far.
    """

    def __init__(self, code: Callable[[Any, Canonical], bytes] | None = None, watch: str = "") -> None:
        self.opaque: list[str] = []
        self.seen = False
        self._code = code
        self._watch = watch
        self._open: list[int] = []

    def digest(self, value: Any) -> str:
        """The digest of a value."""
        return digest(self.of(value))

    def of_tuple(self, parts: Iterable[bytes]) -> bytes:
        """The canonical bytes of a tuple by those of its members."""
        return _framed("tuple", *parts)

    def of(self, value: Any) -> bytes:
        """The canonical bytes of a value."""
        kind = type(value)
        if kind is str:
            if self._watch and self._watch in value:
                self.seen = True
            text = value.encode("utf-8", "surrogatepass")
            return b"str(%d:%b)" % (len(text), text)
        if kind in _PLAIN:
            return _framed(kind.__name__, value if kind is bytes else repr(value).encode())
        if id(value) in self._open:
            # A value that holds itself is told by how far out it stands.
            return _framed("again", b"%d" % (len(self._open) - self._open.index(id(value))))
        if len(self._open) > MOST_DEEP:
            return self._unknown(value)
        self._open.append(id(value))
        try:
            return self._container(value) or self._told(value) or self._object(value)
        finally:
            self._open.pop()

    def _container(self, value: Any) -> bytes | None:
        kind = type(value)
        if kind in (list, tuple):
            if len(value) > 50 and set(map(type, value)) <= {int, float, bool}:
                return _framed(f"{kind.__name__} of numbers", repr(value).encode())
            return _framed(kind.__name__, *[self.of(member) for member in value])
        if isinstance(value, Mapping) and (kind is dict or kind.__module__ in ("builtins", "collections", "types")):
            pairs = sorted(_framed("", self.of(key), self.of(member)) for key, member in value.items())
            return _framed("dict", *pairs)
        if kind in (set, frozenset):
            return _framed("set", *sorted(map(self.of, value)))
        return None

    def _told(self, value: Any) -> bytes | None:
        """Values whose text says all."""
        name = _name(type(value))
        if isinstance(value, Enum):
            return _framed("enum", name, value.name.encode())
        if isinstance(value, _TOLD):
            return _framed("told", name, repr(value).encode())
        if isinstance(value, PurePath):
            return _framed("path", self.of(str(value)))
        if isinstance(value, re.Pattern):
            return _framed("pattern", self.of(value.pattern), b"%d" % value.flags)
        if isinstance(value, bytearray):
            return _framed("bytearray", bytes(value))
        if isinstance(value, ModuleType):
            return _framed("module", value.__name__.encode())
        return None

    def _object(self, value: Any) -> bytes:
        if callable(value) and self._code is not None:
            return _framed("code", self._code(value, self))
        kind = type(value)
        if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "tobytes"):
            return self._array(value)
        if is_dataclass(value):
            state: Any = {f.name: getattr(value, f.name, None) for f in fields(value)}
        elif hasattr(value, "__dict__") and not _reduces(kind):
            state = {**_slots(value), **vars(value)}
        else:
            return self._unknown(value)
        source = self._code(kind, self) if self._code is not None else b""
        return _framed("object", _name(kind), source, self.of(state))

    def _array(self, value: Any) -> bytes:
        dtype = value.dtype
        if dtype.hasobject:
            return _framed("array", self.of(value.tolist()))
        return _framed("array", repr(dtype.descr).encode(), repr(value.shape).encode(), value.tobytes())

    def _unknown(self, value: Any) -> bytes:
        self.opaque.append(type(value).__qualname__)
        return os.urandom(16)


def _slots(value: Any) -> dict[str, Any]:
    names = (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if isinstance(name, str))
    return {name: getattr(value, name) for name in names if name != "__dict__" and hasattr(value, name)}


def _name(kind: type) -> bytes:
    return f"{kind.__module__}.{kind.__qualname__}".encode()


def _reduces(kind: type) -> bool:
    """The class has its own way of being copied, so its attributes may not be all of it."""
    return any("__reduce_ex__" in vars(base) or "__reduce__" in vars(base) for base in kind.__mro__[:-1])
