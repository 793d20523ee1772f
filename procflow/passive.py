"""Passive: the decorator of records that nobody changes and that a run makes by the ten thousand.

To the type checker it is ``dataclass``, so ``frozen=True`` holds there. At run time the guard is left out: a frozen dataclass
sets each field through ``object.__setattr__``, which makes a record of thirty fields four times as dear. Owns no record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, lru_cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

__all__ = ["alike", "changed", "passive"]

_Record = TypeVar("_Record")

if TYPE_CHECKING:
    from dataclasses import dataclass as passive
else:

    def passive(*, frozen=True, **options):
        """``dataclass(frozen=True, ...)`` for the type checker, with the same equality and hash but no guard at run time."""

        def made(cls):
            # ``dataclass`` compiles each of these from text, and a run would wait for some hundred of them at its start.
            for name, method in _METHODS.items():
                if name not in cls.__dict__:
                    setattr(cls, name, method)
            return dataclass(repr=False, eq=False, **options)(cls)

        return made


def _repr(self: Any) -> str:
    told = ", ".join([f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr])
    return f"{type(self).__qualname__}({told})"


def _eq(self: Any, other: Any) -> Any:
    kind: Any = self.__class__
    return _compared(kind)(self) == _compared(kind)(other) if other.__class__ is kind else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self.__class__)(self))


_METHODS: dict[str, Any] = {"__repr__": _repr, "__eq__": _eq, "__hash__": _hash}


@cache
def _compared(kind: Any) -> Callable[[Any], Any]:
    """Reads the fields that equality and hash look at."""
    names = [field.name for field in fields(kind) if field.compare]
    return attrgetter(*names) if names else lambda _: ()


def changed(record: _Record, **values: Any) -> _Record:
    """The same passive record with other values: ``dataclasses.replace`` in a tenth of the time, for each of many."""
    made: _Record = _maker(cast("Any", type(record)), tuple(values))(record, *values.values())
    return made


def alike(record: _Record, *names: str) -> Callable[..., _Record]:
    """What makes records like this passive one, which differ in the fields ``names`` alone; it takes their values in order.

    For many records that share most of their fields: a third of the time of a call with a value for each.
    """
    return partial(_maker(cast("Any", type(record)), names), record)


@lru_cache(maxsize=256)
def _maker(kind: Any, names: tuple[str, ...]) -> Callable[..., Any]:
    """A function of a record and the values of ``names``."""
    known = [field.name for field in fields(kind)]
    for name in names:
        if name not in known:
            raise TypeError(f"{kind.__name__} has no field {name!r}")
    # One line a field, as ``dataclass`` itself writes its ``__init__``: names of fields are all that goes in.
    lines = [f"def _make({', '.join(['_record', *(f'_{name}' for name in names)])}):", "    _made = _new(_kind)"]
    lines += [f"    _made.{name} = {f'_{name}' if name in names else f'_record.{name}'}" for name in known]
    space: dict[str, Any] = {"_new": object.__new__, "_kind": kind}
    exec("\n".join([*lines, "    return _made"]), space)
    make: Callable[..., Any] = space["_make"]
    return make
