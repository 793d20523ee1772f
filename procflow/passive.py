"""Passive: the decorator of records that nobody changes and that a run makes by the ten thousand.

To the type checker it is ``dataclass``, so ``frozen=True`` holds there. At run time the guard is left out: a frozen dataclass
sets each field through ``object.__setattr__``, which makes a record of thirty fields four times as dear. Owns no record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

__all__ = ["alike", "changed", "passive"]

_Record = TypeVar("_Record")

if TYPE_CHECKING:
    from dataclasses import dataclass as passive
else:
    from dataclasses import dataclass

    def passive(*, frozen=True, **options):
        """``dataclass(frozen=True, ...)`` for the type checker, with the same equality and hash but no guard at run time."""
        return dataclass(unsafe_hash=frozen, **options)


def changed(record: _Record, **values: Any) -> _Record:
    """The same record with other values: ``dataclasses.replace`` in half the time, for what is done to each of many."""
    names, read = _reader(cast("Any", type(record)))
    found = dict(zip(names, read(record), strict=True))
    found.update(values)
    return type(record)(**found)


def alike(record: _Record, *names: str) -> Callable[..., _Record]:
    """What makes records like this one, which differ in the fields ``names`` alone; it takes their values, by position.

    For many records that share most of their fields: a quarter of the time of a call with a value for each.
    """
    maker: Callable[[_Record], Callable[..., _Record]] = _maker(cast("Any", type(record)), names)
    return maker(record)


@lru_cache(maxsize=64)
def _maker(kind: Any, names: tuple[str, ...]) -> Callable[[Any], Callable[..., Any]]:
    known = [field.name for field in fields(kind)]
    for name in names:
        if name not in known:
            raise TypeError(f"{kind.__name__} has no field {name!r}")
    # One line a field, as ``dataclass`` itself writes its ``__init__``; names of fields are all that goes in.
    lines = ["def _like(_record):"]
    lines += [f"    _{name} = _record.{name}" for name in known if name not in names]
    lines += [f"    def _make({', '.join(f'_{name}' for name in names)}):", "        _made = _new(_kind)"]
    lines += [f"        _made.{name} = _{name}" for name in known]
    lines += ["        return _made", "    return _make"]
    space: dict[str, Any] = {"_new": object.__new__, "_kind": kind}
    exec("\n".join(lines), space)
    like: Callable[[Any], Callable[..., Any]] = space["_like"]
    return like


@lru_cache(maxsize=64)
def _reader(kind: Any) -> tuple[tuple[str, ...], attrgetter[Any]]:
    names = tuple(field.name for field in fields(kind))
    return names, attrgetter(*names)
