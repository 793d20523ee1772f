"""Split: divide one value into several.

``args[0]`` is the value. Options: ``strategy``: ``duplicate`` (each part is the value), ``round_robin`` (part i takes
members i, i + n, ...) or ``chunks`` (consecutive members; sizes differ by at most 1, larger parts first); ``into``:
how many parts, default one for each name in ``outputs``. With ``StepCall.function`` set, it is called with the value,
the number of parts (None where it is open) and ``kwargs``, and must return that many. Works on lists, tuples, str,
bytes, ranges, mappings (by items), NumPy, pandas, Polars and Arrow. This file never imports those libraries: it takes
a value as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from procflow.call import StepCall
from procflow.compiling.template import fill
from procflow.errors import ProcflowError
from procflow.steps.transform import call_function
from procflow.working import functions

__all__ = ["SplitError", "run", "split"]

_Slices = Callable[[slice], Any]


class SplitError(ProcflowError):
    """A value can't be divided as asked."""


def run(call: StepCall, values: Callable[[str], Any]) -> list[Any]:
    """The parts, in order."""
    value = fill(call.args[0], values)
    into = fill(call.options.get("into"), values)
    if into is None and call.outputs != "*" and len(call.outputs) > 1:
        into = len(call.outputs)
    if call.function is not None:
        kwargs = {name: fill(tree, values) for name, tree in call.kwargs.items()}
        return _own(functions.resolve(call.function, call.folder), value, into, kwargs)
    if into is None:
        raise SplitError("into how many parts? set into, or name several outputs")
    return split(value, str(call.options.get("strategy") or "chunks"), into)


def _own(function: Callable[..., Any], value: Any, into: int | None, kwargs: dict[str, Any]) -> list[Any]:
    parts = call_function(function, value, into, **kwargs)
    if isinstance(parts, (str, bytes, Mapping)) or not hasattr(parts, "__iter__"):
        raise SplitError(f"a split function returns a list or tuple of parts, not {type(parts).__name__}")
    listed = list(parts)
    if into is not None and len(listed) != into:
        raise SplitError(f"the split function returned {len(listed)} parts instead of {into}")
    return listed


def split(value: Any, strategy: str, into: int) -> list[Any]:
    """``into`` parts of a value; parts may be empty. Raises ``SplitError``."""
    if isinstance(into, bool) or not isinstance(into, int) or into < 1:
        raise SplitError(f"into is a whole number of at least 1, not {into!r}")
    if strategy == "duplicate":
        return [value] * into
    length, part = _sliced(value)
    if strategy == "round_robin":
        return [part(slice(i, None, into)) for i in range(into)]
    if strategy == "chunks":
        return [part(bounds) for bounds in _balanced(length, into)]
    raise SplitError(f"unknown strategy {strategy!r}; write duplicate, round_robin, chunks or module:name")


def _balanced(length: int, into: int) -> Iterator[slice]:
    size, larger = divmod(length, into)
    start = 0
    for i in range(into):
        stop = start + size + (i < larger)
        yield slice(start, stop)
        start = stop


def _sliced(value: Any) -> tuple[int, _Slices]:
    """The length of a value and a function that gives a slice of it in its own type."""
    if isinstance(value, Mapping):
        pairs = list(value.items())
        make: Callable[[Any], Any] = dict if type(value).__name__ != "OrderedDict" else type(value)
        return len(pairs), lambda bounds: make(pairs[bounds])
    if isinstance(value, tuple):
        # A slice of a named tuple is a plain one: its fields are gone.
        return len(value), lambda bounds: tuple(value[bounds])
    if isinstance(value, (set, frozenset)):
        raise SplitError("a set has no order to split by: pass sorted(...) of it")
    if hasattr(value, "iloc"):
        return len(value), lambda bounds: value.iloc[bounds]
    root = type(value).__module__.partition(".")[0]
    if root == "pyarrow":
        return len(value), lambda bounds: _arrow(value, bounds)
    if getattr(value, "shape", None) == ():
        raise SplitError("an array without dimensions can't be split")
    if not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        hint = ": pass list(...) of it" if hasattr(value, "__iter__") else ""
        raise SplitError(f"a value of type {type(value).__name__} can't be split{hint}")
    return len(value), lambda bounds: value[bounds]


def _arrow(value: Any, bounds: slice) -> Any:
    start, stop, stride = bounds.indices(len(value))
    return value.slice(start, stop - start) if stride == 1 else value.take(list(range(start, stop, stride)))
