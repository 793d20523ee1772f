"""Reduce: fold results of a map into one value, from left to right, in item order.

``StepCall.function`` is called with the value so far and a result, and gives the next value so far. Options: ``initial``, the
value before the first result, where ``has_initial`` says that there is one; without it the first result is where the fold
begins. The results come in chunks, of which one is open at a time; the value so far comes from the fold before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from procflow.call import StepCall
from procflow.compiling.template import fill
from procflow.errors import ProcflowError
from procflow.failure import item_text, mark_place
from procflow.ref import Ordered, Ref
from procflow.state import SO_FAR, WAITING
from procflow.steps.transform import call_function
from procflow.values import objects
from procflow.working import functions

__all__ = ["ReduceError", "run"]

_NONE = object()


class ReduceError(ProcflowError):
    """There is nothing to begin with."""


def run(call: StepCall, values: Any) -> Any:
    """The value that the results make; ``values`` is the attempt's ``Values``."""
    assert call.function is not None
    function = functions.resolve(call.function, call.folder)
    value: Any = _NONE
    if SO_FAR in values.refs:
        value = values(SO_FAR)
    elif call.options.get("has_initial"):
        value = fill(call.options["initial"], values)
    for index, result in _results(values.refs[WAITING]):
        try:
            value = result if value is _NONE else call_function(function, value, result)
        except Exception as exc:
            mark_place(exc, f"reduce, at item {index} with the result {item_text(result)}")
            raise
    if value is _NONE:
        raise ReduceError("there is no result to begin with, since no item succeeded: give the map an initial value")
    return value


def _results(waiting: Ref) -> Iterator[tuple[int, Any]]:
    """The items and their results in order; chunks whose items lie among one another are opened together."""
    assert isinstance(waiting, Ordered)
    together: list[Any] = []
    last = -1
    for indices, chunk in waiting.chunks:
        if together and indices[0] > last:
            yield from _opened(together)
            together = []
        together.append((indices, chunk))
        last = max(last, indices[-1])
    if together:
        yield from _opened(together)


def _opened(chunks: list[Any]) -> Iterator[tuple[int, Any]]:
    indices = sorted(index for own, _ in chunks for index in own) if len(chunks) > 1 else chunks[0][0]
    return zip(indices, objects.unpack(Ordered(tuple(chunks))), strict=True)
