"""Combine: values of one type into one value of that type.

Lists, tuples, str and bytes join in order; sets unite; numbers and Counters add; mappings merge deeply, by the same
rules at every depth; NumPy arrays concatenate along axis 0, pandas, Polars and Arrow concatenate their rows, images
(Pillow) of equal shape stack into one array. bool is refused (what is true plus false?), except where mappings agree
on it. Mixed types are an error that names both members. ``register(type, function)`` adds a type of your own: the
function gets the list of values. Libraries are imported only when a value of theirs is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from importlib import import_module
from itertools import chain
from numbers import Number
from typing import Any

from procflow.errors import ProcflowError

__all__ = ["CombineError", "combine", "register"]

MAX_DEPTH = 100

Combiner = Callable[[list[Any]], Any]


class CombineError(ProcflowError):
    """Values can't be combined; the message names the members."""


_registered: dict[type, Combiner] = {}


def register(kind: type, function: Combiner) -> Combiner:
    """Combine values of ``kind`` and its subclasses by ``function(list of values)``; it wins over the built-in rules."""
    _registered[kind] = function
    return function


def combine(values: Sequence[Any], names: Sequence[str] | None = None) -> Any:
    """All values as one, in order. ``names`` are the members' for messages. Raises ``CombineError``."""
    shown = list(names) if names is not None else [f"value {i}" for i in range(len(values))]
    if not values:
        raise CombineError("combine_outputs: there is nothing to combine")
    return _combined(list(values), shown, 0)


def _combined(values: list[Any], names: list[str], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CombineError(f"{names[0][:200]}: nested deeper than {MAX_DEPTH} levels")
    family, function = _family(values[0], names[0])
    for value, name in zip(values[1:], names[1:], strict=True):
        other, _ = _family(value, name)
        if other != family:
            raise CombineError(
                f"{names[0]} ({_kind(values[0])}) and {name} ({_kind(value)}) are of different types and can't be combined"
            )
    if family == "mapping":
        return _merged(values, names, depth)
    try:
        return function(values)
    except CombineError:
        raise
    except Exception as exc:
        what = f"{names[0]} ({_kind(values[0])})" + (
            f" to {names[-1]} ({_kind(values[-1])})" if len(values) > 1 else ""
        )
        raise CombineError(f"{what} can't be combined: {type(exc).__name__}: {exc}") from exc


def _family(value: Any, name: str) -> tuple[Any, Combiner]:
    """What a value counts as, and the function that combines such values."""
    for kind in type(value).__mro__:
        if kind in _registered:
            return kind, _registered[kind]
    if value is None or isinstance(value, bool):
        raise CombineError(f"{name} is {_kind(value)}, and it has no meaning to combine such values")
    for kinds, family, function in _BUILT_IN:
        if isinstance(value, kinds):
            return family, function
    for base in type(value).__mro__:
        key = (base.__module__.partition(".")[0], base.__name__)
        if key in _LIBRARIES:
            return key, _LIBRARIES[key]
    raise CombineError(
        f"{name} is {_kind(value)}, which combine_outputs does not know: use merge: module:name, "
        "or procflow.steps.combine.register"
    )


def _merged(values: list[Any], names: list[str], depth: int) -> dict[Any, Any]:
    held: dict[Any, tuple[list[Any], list[str]]] = {}
    for value, name in zip(values, names, strict=True):
        for key, member in value.items():
            at = held.setdefault(key, ([], []))
            at[0].append(member)
            at[1].append(f"{name}[{key!r}]")
    return {key: _agreed(members, places, depth) for key, (members, places) in held.items()}


def _agreed(members: list[Any], places: list[str], depth: int) -> Any:
    first = members[0]
    if len(members) == 1:
        return first
    if (first is None or isinstance(first, bool)) and all(member is first for member in members):
        return first
    return _combined(members, places, depth + 1)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _add(values: list[Any]) -> Any:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _counters(values: list[Any]) -> Any:
    # Counter's own + drops counts that are not positive.
    total: Counter[Any] = Counter()
    for value in values:
        total.update(value)
    return total


def _concat(module: str, name: str, **options: Any) -> Combiner:
    return lambda values: getattr(import_module(module), name)(values, **options)


def _arrays(values: list[Any]) -> Any:
    if any(value.ndim == 0 for value in values):
        raise CombineError("arrays without dimensions can't be concatenated; return a number or a list")
    return import_module("numpy").concatenate(values, axis=0)


def _images(values: list[Any]) -> Any:
    shapes = {(image.size, image.mode) for image in values}
    if len(shapes) > 1:
        raise CombineError(f"images of different shapes can't be stacked: {sorted(map(str, shapes))[:5]}")
    numpy = import_module("numpy")
    return numpy.stack([numpy.asarray(image) for image in values])


def _series(values: list[Any]) -> Any:
    return import_module("pandas").concat(values, ignore_index=False)


_BUILT_IN: tuple[tuple[type | tuple[type, ...], str, Combiner], ...] = (
    (Counter, "counter", _counters),
    (Mapping, "mapping", list),
    (list, "list", lambda values: list(chain.from_iterable(values))),
    (tuple, "tuple", lambda values: tuple(chain.from_iterable(values))),
    (str, "str", "".join),
    ((bytes, bytearray), "bytes", b"".join),
    ((set, frozenset), "set", lambda values: type(values[0])().union(*values)),
    ((int, float, complex, Decimal, Fraction, Number), "number", _add),
)

_LIBRARIES: dict[tuple[str, str], Combiner] = {
    ("numpy", "ndarray"): _arrays,
    ("pandas", "DataFrame"): _concat("pandas", "concat"),
    ("pandas", "Series"): _series,
    ("polars", "DataFrame"): _concat("polars", "concat"),
    ("polars", "LazyFrame"): _concat("polars", "concat"),
    ("polars", "Series"): _concat("polars", "concat"),
    ("pyarrow", "Table"): _concat("pyarrow", "concat_tables"),
    ("pyarrow", "ChunkedArray"): lambda values: import_module("pyarrow").chunked_array(
        [part for value in values for part in value.chunks], type=values[0].type
    ),
    ("pyarrow", "Array"): _concat("pyarrow", "concat_arrays"),
    ("PIL", "Image"): _images,
}
