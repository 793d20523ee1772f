"""Canonical bytes of values, so that two sessions can tell whether a constant is the same. Never a pickle.

Mappings and sets count without their order, lists and tuples with it; 1, 1.0 and True stay apart. Arrays count by type,
shape and content, plain objects by their class and state, functions by what ``code`` says of them. What can't be looked
into (a socket, an iterator, a foreign object) is noted in ``opaque`` and never equals anything, itself included.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from pathlib import PurePath
from types import ModuleType
from typing import Any
from uuid import UUID

from procflow.call import Lookup

__all__ = ["ALGORITHM", "Canonical", "digest", "framed", "hasher"]

ALGORITHM = "xxh3_128"
MOST_DEEP = 200

_NUMBERS: frozenset[type] = frozenset({int, float, bool, type(None)})
_TEXTS = {str}
_OF_LOOKUPS = {str, int}
_TOLD: tuple[type, ...] = (
    Decimal, Fraction, UUID, complex, range, slice, datetime.date, datetime.time, datetime.timedelta, datetime.timezone,
)  # fmt: skip


def digest(data: bytes) -> str:
    """128 bits of the bytes as hexadecimal text."""
    return hasher()(data)


@lru_cache(maxsize=1)
def hasher() -> Callable[[bytes], str]:
    """``digest`` itself, for those who call it for each of many."""
    from xxhash import xxh3_128_hexdigest

    found: Callable[[bytes], str] = xxh3_128_hexdigest
    return found


def framed(tag: bytes, *parts: bytes) -> bytes:
    """The parts with their lengths in front, so that no two lists of parts give the same bytes."""
    return b"%b(%b)" % (tag, b"".join([b"%d:%b" % (len(part), part) for part in parts]))


def _pair(key: bytes, member: bytes) -> bytes:
    """``framed(b"", key, member)`` in half the time."""
    return b"(%d:%b%d:%b)" % (len(key), key, len(member), member)


@lru_cache(maxsize=1000)
def _before(size: int) -> str:
    """What stands before a text of so many bytes that is part of something."""
    head = f"str({size}:"
    return f"{len(head) + size + 1}:{head}"


@lru_cache(maxsize=1000)
def _before_one(size: int) -> str:
    """What stands before a text of so many bytes that is alone in a tuple that is part of something."""
    head = f"tuple({_before(size)}"
    return f"{len(head) + size + 2}:{head}"


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
        self._lookups: dict[tuple[str | int, ...], bytes] = {}

    def digest(self, value: Any) -> str:
        """The digest of a value."""
        return digest(self.of(value))

    def of(self, value: Any) -> bytes:
        """The canonical bytes of a value."""
        kind = type(value)
        if kind is str:
            if self._watch and self._watch in value:
                self.seen = True
            if value.isascii():
                return f"str({len(value)}:{value})".encode()
            return framed(b"str", value.encode("utf-8", "surrogatepass"))
        if (kind is tuple or kind is list) and {*map(type, value)} == _TEXTS and len(self._open) <= MOST_DEEP:
            return self.of_texts("tuple" if kind is tuple else "list", value)
        if kind in _NUMBERS:
            text = repr(value)
            return f"{kind.__name__}({len(text)}:{text})".encode()
        if kind is bytes:
            return framed(b"bytes", value)
        if id(value) in self._open:
            # A value that holds itself is told by how far out it stands.
            return framed(b"again", b"%d" % (len(self._open) - self._open.index(id(value))))
        if len(self._open) > MOST_DEEP:
            return self._unknown(value)
        if kind is Lookup:
            return self._lookup(value)
        return self._opened(value)

    def _lookup(self, value: Lookup) -> bytes:
        """What very many steps read is looked into once."""
        key = (value.name, *value.path)
        if not {*map(type, key)} <= _OF_LOOKUPS:
            return self._opened(value)
        known = self._lookups.get(key)
        if known is None:
            # As ``_object`` tells it.
            state = self.of({"name": value.name, "path": value.path})
            known = self._lookups[key] = framed(b"object", _name(Lookup), self._source(Lookup), state)
        return known

    def _opened(self, value: Any) -> bytes:
        self._open.append(id(value))
        try:
            return self._container(value) or self._told(value) or self._object(value)
        finally:
            self._open.pop()

    def part(self, value: Any) -> bytes:
        """The canonical bytes with their length in front, as ``framed`` puts them together; one name at once."""
        if type(value) is tuple and len(value) == 1:
            (name,) = value
            if type(name) is str and name.isascii():
                if self._watch and self._watch in name:
                    self.seen = True
                return f"{_before_one(len(name))}{name}))".encode()
        data = self.of(value)
        return b"%d:%b" % (len(data), data)

    def of_texts(self, tag: str, texts: Sequence[str]) -> bytes:
        """Texts of the class ``str`` in a list or a tuple: all at once, where characters are bytes."""
        inside = "".join([f"{_before(len(text))}{text})" for text in texts])
        if not inside.isascii():
            return framed(tag.encode(), *[self.of(text) for text in texts])
        if self._watch and self._watch in inside:
            self.seen = True
        return f"{tag}({inside})".encode()

    def of_pairs(self, pairs: Sequence[tuple[str, str]]) -> bytes:
        """``of`` a tuple of pairs of texts of the class ``str``, as keys of tasks are; few of the second are different."""
        ends = {text: f"{_before(len(text))}{text})" for text in {text for _, text in pairs}}
        told = [f"tuple({_before(len(text))}{text}){ends[end]})" for text, end in pairs]
        inside = "".join([f"{len(text)}:{text}" for text in told])
        if not inside.isascii():
            return framed(b"tuple", *map(self.of, pairs))
        if self._watch and self._watch in inside:
            self.seen = True
        return f"tuple({inside})".encode()

    def _container(self, value: Any) -> bytes | None:
        kind = type(value)
        if kind is tuple or kind is list:
            if len(value) > 50 and set(map(type, value)) <= {int, float, bool}:
                return framed(b"%b of numbers" % kind.__name__.encode(), repr(value).encode())
            return framed(b"tuple" if kind is tuple else b"list", *[self.of(member) for member in value])
        if kind is dict or (isinstance(value, Mapping) and kind.__module__ in ("builtins", "collections", "types")):
            return framed(b"dict", *sorted([_pair(self.of(key), self.of(member)) for key, member in value.items()]))
        if kind in (set, frozenset):
            return framed(b"set", *sorted(map(self.of, value)))
        return None

    def _told(self, value: Any) -> bytes | None:
        """Values whose text says all."""
        name = _name(type(value))
        if isinstance(value, Enum):
            return framed(b"enum", name, value.name.encode())
        if isinstance(value, _TOLD):
            return framed(b"told", name, repr(value).encode())
        if isinstance(value, PurePath):
            return framed(b"path", self.of(str(value)))
        if isinstance(value, re.Pattern):
            return framed(b"pattern", self.of(value.pattern), b"%d" % value.flags)
        if isinstance(value, bytearray):
            return framed(b"bytearray", bytes(value))
        if isinstance(value, ModuleType):
            return framed(b"module", value.__name__.encode())
        return None

    def _object(self, value: Any) -> bytes:
        if callable(value) and self._code is not None:
            return framed(b"code", self._code(value, self))
        kind = type(value)
        if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "tobytes"):
            return self._array(value)
        if is_dataclass(value):
            state: Any = {f.name: getattr(value, f.name, None) for f in fields(value)}
        elif hasattr(value, "__dict__") and not _reduces(kind):
            state = {**_slots(value), **vars(value)}
        else:
            return self._unknown(value)
        return framed(b"object", _name(kind), self._source(kind), self.of(state))

    def _source(self, kind: type) -> bytes:
        return self._code(kind, self) if self._code is not None else b""

    def _array(self, value: Any) -> bytes:
        dtype = value.dtype
        if dtype.hasobject:
            return framed(b"array", self.of(value.tolist()))
        return framed(b"array", repr(dtype.descr).encode(), repr(value.shape).encode(), value.tobytes())

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
