"""Task: one call that a pool was given, from ``submit`` to the end of its future; and the limits that hold for it.

Plain records; nothing here waits or decides.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from procflow import units
from procflow.ref import Ref

__all__ = ["GRACE_S", "Limits", "Task", "limits"]

GRACE_S = 5.0
"""How long a task that ran into its timeout has between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for a task: seconds, bytes of memory of its worker and all that it starts, cores for BLAS and OpenMP.

    ``cpus`` None is the pool's own number.
    """

    timeout_s: float | None = None
    memory_bytes: int | None = None
    cpus: int | None = None
    grace_s: float = GRACE_S


def limits(timeout: Any, memory: Any, cpus: Any, grace: Any) -> Limits:
    """The limits that a caller wrote: seconds or ``"90s"``, bytes or ``"500MB"``. ValueError or TypeError names the wrong one."""
    return Limits(
        None if timeout is None else _named("timeout", units.duration, timeout),
        None if memory is None else _named("memory", _bytes, memory),
        None if cpus is None else _named("cpus", count, cpus),
        _named("grace", units.pause, grace),
    )


def _named(name: str, read: Any, value: Any) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _bytes(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    return units.size(value)


def count(value: Any) -> int:
    """A whole number of at least 1; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"must be a whole number, not {value!r}")
    number: int = value.__index__()
    if number < 1:
        raise ValueError(f"must be greater than 0, not {number}")
    return number


class Task:
    """One call: its future, the ref of its pickled function and arguments, and its clock once it runs."""

    __slots__ = ("deadline", "fresh", "future", "key", "limits", "name", "ref")

    def __init__(self, key: int, future: Future[Any], ref: Ref, name: str, limits: Limits) -> None:
        self.key = key
        self.future = future
        self.ref = ref
        self.name = name
        self.limits = limits
        self.deadline: float | None = None
        self.fresh = False
        """Its worker was started for it and has not run the initializer yet."""
