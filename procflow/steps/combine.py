"""Combine: values of one type into one value of that type.

Lists, tuples, str and bytes join in order; sets unite; numbers and Counters add; mappings merge deeply, by the same
rules at every depth; NumPy arrays concatenate along axis 0, pandas, Polars and Arrow concatenate their rows, images
(Pillow) of equal shape stack into one array. bool is refused (what is true plus false?), except where mappings agree
on it. Mixed types are an error that names both members. Libraries are imported only when a value of theirs is there.

A type of your own is combined by a function that gets the list of values. It is told by ``combiners:`` in the file, by
``register_combiner``, or by an installed package (entry points of the group ``procflow.combiners``, named after the type);
these win over the rules above, in that order. They are known wherever the merge runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from importlib import import_module
from itertools import chain
from numbers import Number
from typing import Any

from procflow.errors import ProcflowError
from procflow.working import functions

__all__ = ["CombineError", "combine", "register", "register_combiner", "registered"]

MAX_DEPTH = 100

Combiner = Callable[[list[Any]], Any]
Kind = Any
"""A class, its name (``Table``, ``astropy.table.Table``), ``module:name`` of a class or a predicate, or a predicate."""
GROUP = "procflow.combiners"


class CombineError(ProcflowError):
    """Values can't be combined; the message names the members."""


_registered: dict[Kind, Combiner | str] = {}


def register_combiner(kind: Kind, function: Combiner | str) -> Combiner | str:
    """Combine values of a kind by ``function(list of values)``, wherever ``combine_outputs`` meets them.

    ``kind`` is a class (its subclasses too), the name of one, or a function that says whether a value is one. To be called
    before the run; merges in workers know it too.
    """
    _registered[kind] = function
    return function


register = register_combiner


def registered() -> dict[Kind, Combiner | str]:
    """All that was registered in this process."""
    return dict(_registered)


def combine(
    values: Sequence[Any],
    names: Sequence[str] | None = None,
    own: Mapping[Kind, Combiner | str] | None = None,
    folder: str | None = None,
) -> Any:
    """All values as one, in order. ``names`` are the members' for messages. Raises ``CombineError``.

    ``own`` are combiners by kind that win over all others; what they name is found in ``folder`` too.
    """
    shown = list(names) if names is not None else [f"value {i}" for i in range(len(values))]
    if not values:
        raise CombineError("combine_outputs: there is nothing to combine")
    known = dict(own or {})
    known.update((kind, function) for kind, function in _registered.items() if kind not in known)
    return _combined(list(values), shown, 0, _Rules(known, folder))


class _Rules:
    """The combiners of the user's and of installed packages."""

    def __init__(self, own: Mapping[Kind, Combiner | str], folder: str | None) -> None:
        self._own = own
        self._folder = folder
        self._known: dict[type, tuple[Any, Combiner] | None] = {}

    def of(self, value: Any) -> tuple[Any, Combiner] | None:
        """What a value counts as and the function that combines such values; None where no rule of these is for it."""
        kind = type(value)
        for key, function in self._own.items():
            if self._is(key, value, kind):
                return ("own", _told(key)), self._function(function)
        if kind.__module__ in ("builtins", "collections"):
            return None
        if kind not in self._known:
            self._known[kind] = next(
                (
                    (("installed", name), self._function(target))
                    for name, target in _installed().items()
                    if _named(name, kind)
                ),
                None,
            )
        return self._known[kind]

    def _is(self, key: Any, value: Any, kind: type) -> bool:
        if isinstance(key, str):
            if ":" not in key:
                return _named(key, kind)
            key = functions.resolve(key, self._folder)
        return isinstance(value, key) if isinstance(key, type) else bool(key(value))

    def _function(self, function: Any) -> Combiner:
        return functions.resolve(function, self._folder)


def _named(name: str, kind: type) -> bool:
    """Whether this is the name of the class or of one of its bases, with or without its module."""
    return any(name in (base.__qualname__, f"{base.__module__}.{base.__qualname__}") for base in kind.__mro__)


def _told(key: Any) -> str:
    return key if isinstance(key, str) else getattr(key, "__qualname__", repr(key))


@lru_cache(maxsize=1)
def _installed() -> dict[str, str]:
    """Combiners of installed packages by the name of the type; looked for once, when an unknown type is met."""
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=GROUP)}


def _combined(values: list[Any], names: list[str], depth: int, rules: _Rules) -> Any:
    if depth > MAX_DEPTH:
        raise CombineError(f"{names[0][:200]}: nested deeper than {MAX_DEPTH} levels")
    family, function = _family(values[0], names[0], rules)
    for value, name in zip(values[1:], names[1:], strict=True):
        other, _ = _family(value, name, rules)
        if other != family:
            raise CombineError(
                f"{names[0]} ({_kind(values[0])}) and {name} ({_kind(value)}) are of different types and can't be combined"
            )
    if family == "mapping":
        return _merged(values, names, depth, rules)
    try:
        return function(values)
    except CombineError:
        raise
    except Exception as exc:
        what = f"{names[0]} ({_kind(values[0])})" + (
            f" to {names[-1]} ({_kind(values[-1])})" if len(values) > 1 else ""
        )
        raise CombineError(f"{what} can't be combined: {type(exc).__name__}: {exc}") from exc


def _family(value: Any, name: str, rules: _Rules) -> tuple[Any, Combiner]:
    """What a value counts as, and the function that combines such values."""
    own = rules.of(value)
    if own is not None:
        return own
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
        f"or say how: combiners: {{{_kind(value)}: module:name}}"
    )


def _merged(values: list[Any], names: list[str], depth: int, rules: _Rules) -> dict[Any, Any]:
    held: dict[Any, tuple[list[Any], list[str]]] = {}
    for value, name in zip(values, names, strict=True):
        for key, member in value.items():
            at = held.setdefault(key, ([], []))
            at[0].append(member)
            at[1].append(f"{name}[{key!r}]")
    return {key: _agreed(members, places, depth, rules) for key, (members, places) in held.items()}


def _agreed(members: list[Any], places: list[str], depth: int, rules: _Rules) -> Any:
    first = members[0]
    if len(members) == 1:
        return first
    if (first is None or isinstance(first, bool)) and all(member is first for member in members):
        return first
    return _combined(members, places, depth + 1, rules)


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
