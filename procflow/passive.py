"""Passive: the decorator of records that nobody changes and that a run makes by the ten thousand.

To the type checker it is ``dataclass``, so ``frozen=True`` holds there. At run time the guard is left out: a frozen dataclass
sets each field through ``object.__setattr__``, which makes a record of thirty fields four times as dear. And records share
what is the same for all, since ``dataclass`` compiles each method of each class anew, 0.07 ms a method, in every process and
every worker. Owns no record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast

__all__ = ["alike", "changer", "passive"]

_Record = TypeVar("_Record")

if TYPE_CHECKING:
    from dataclasses import dataclass as passive
else:
    from dataclasses import dataclass

    def passive(*, frozen=True, eq=True, **options):
        """``dataclass(frozen=True, ...)`` for the type checker, with the same equality, hash and text but no guard at run time."""

        def made(record):
            shared = {"__repr__": _text}
            if eq:
                shared |= {"__eq__": _equal, "__hash__": _hash if frozen else None}
            for name, method in shared.items():
                if name not in vars(record):
                    setattr(record, name, method)
            record = dataclass(eq=False, repr=False, **options)(record)
            compared = [field.name for field in fields(record) if field.compare]
            record._compared = attrgetter(*compared) if len(compared) > 1 else staticmethod(partial(_few, compared))
            return record

        return made


def _equal(self: Any, other: Any) -> Any:
    if other.__class__ is self.__class__:
        read = self._compared
        return read(self) == read(other)
    return NotImplemented


def _hash(self: Any) -> int:
    return hash(self._compared(self))


def _text(self: Any) -> str:
    told = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if field.repr)
    return f"{self.__class__.__qualname__}({told})"


def _few(names: list[str], record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in names)


def alike(record: _Record, *names: str) -> Callable[..., _Record]:
    """What makes records like this passive one, which differ in the fields ``names`` alone; it takes their values in order.

    For many records that share most of their fields: a third of the time of a call with a value for each.
    """
    return partial(changer(cast("Any", type(record)), *names), record)


@lru_cache(maxsize=256)
def changer(kind: Any, *names: str) -> Callable[..., Any]:
    """What makes of a passive record of this class and the values of ``names`` one that differs in those fields.

    ``dataclasses.replace`` in a tenth of the time, for each of many.
    """
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
