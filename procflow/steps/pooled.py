"""Pooled: one task of a ``ProcessPool``, in its worker. The value ``task`` opens to function, arguments and keywords.

Options: ``initializer``, a pickle of function and arguments, called once in each worker before its first task. What is
returned goes back as refs, so that its place in the result is not named. This file never tries anything twice.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from procflow import step
from procflow.attempt import Progressed
from procflow.call import StepCall
from procflow.errors import ProcflowError
from procflow.ref import Ref
from procflow.values import objects
from procflow.values.private import unpack_private

__all__ = ["RESULT", "TASK", "InitializerFailed", "Pickled", "run", "run_chunk"]

TASK = "task"
RESULT = "result"

_initialized = False


class InitializerFailed(ProcflowError):
    """The pool's initializer raised in a new worker."""


class Pickled:
    """A callable that was pickled beforehand: it arrives as what it was, and is pickled once for many tasks."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (self._data,)


def run(call: StepCall, values: Any) -> dict[str, Ref]:
    """What the task's function returns, packed; ``values`` is the attempt's ``Values``."""
    if not _initialized:
        _initialize(call.options.get("initializer"))
    function, args, keywords = unpack_private(values.refs[TASK])
    result = function(*args, **keywords)
    del function, args, keywords
    try:
        return {RESULT: objects.pack(result)}
    except objects.PackError as error:
        # What every executor raises for it.
        raise pickle.PicklingError(str(error)) from error


def run_chunk(function: Callable[..., Any], chunk: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The function's results for several tuples of arguments: one task of ``map`` with ``chunksize``."""
    return [function(*args) for args in chunk]


def chunked(function: Callable[..., Any]) -> Callable[[Sequence[tuple[Any, ...]]], list[Any]]:
    """``run_chunk`` of a function."""
    return partial(run_chunk, function)


def _initialize(data: bytes | None) -> None:
    global _initialized
    if data is not None:
        try:
            function, args = pickle.loads(data)
            function(*args)
        except BaseException as error:
            raise InitializerFailed(f"{type(error).__name__}: {error}") from error
        # So that whatever happens from here on is the task's doing, and its clock begins now.
        running = step._now()
        running.report(Progressed(running.key))
    _initialized = True
