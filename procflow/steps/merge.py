"""Merge: several named values into one, by content.

``args[0]`` is a mapping of names to values, or a list of them (the results of a map). Options: ``strategy``:
``update`` (mappings joined, the later wins), ``collect_all`` (the list of values), ``first_success`` (the first
value), ``best_quality`` (the value with the highest score, the first among equals; ``score`` is a dotted key of the
values, ``module:name`` or a callable), ``combine_outputs`` (by type, see ``combine.py``). With ``StepCall.function``
set, it is called with the mapping (or list) and ``kwargs``, and its result is the value. Order is that of the
mapping, never that of finishing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from procflow.call import Lookup, StepCall
from procflow.compiling.template import ReferenceFailed, fill, follow, parse_reference
from procflow.errors import ProcflowError
from procflow.steps.transform import call_function
from procflow.working import functions

__all__ = ["MergeError", "best_quality", "run", "update"]


class MergeError(ProcflowError):
    """Values can't be merged as asked; the message names the members."""


def run(call: StepCall, values: Callable[[str], Any]) -> Any:
    """The merged value."""
    given = fill(call.args[0], values)
    if call.function is not None:
        kwargs = {name: fill(tree, values) for name, tree in call.kwargs.items()}
        return call_function(functions.resolve(call.function, call.folder), given, **kwargs)
    members = _members(given)
    strategy = call.options.get("strategy") or "update"
    if strategy == "update":
        return update(members)
    if strategy == "collect_all":
        return [value for _, value in members]
    if strategy == "first_success":
        if not members:
            raise MergeError("first_success: there is no successful member")
        return members[0][1]
    if strategy == "best_quality":
        return best_quality(members, call.options.get("score"), call.folder)
    if strategy == "combine_outputs":
        from procflow.steps.combine import combine

        own = call.options.get("combiners")
        return combine([value for _, value in members], [name for name, _ in members], own, call.folder)
    raise MergeError(f"unknown strategy {strategy!r}")


def _members(given: Any) -> list[tuple[str, Any]]:
    if isinstance(given, Mapping):
        return [(str(name), value) for name, value in given.items()]
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        return [(f"item {i}", value) for i, value in enumerate(given)]
    raise MergeError(f"a merge needs a mapping or a list of values, not {type(given).__name__}")


def update(members: list[tuple[str, Any]]) -> dict[Any, Any]:
    """One dict of all keys; of equal keys the later member's value stays."""
    merged: dict[Any, Any] = {}
    for name, value in members:
        if not isinstance(value, Mapping):
            raise MergeError(
                f"update joins mappings, and {name} is {_kind(value)}: use collect_all or combine_outputs, or return a dict"
            )
        merged.update(value)
    return merged


def best_quality(members: list[tuple[str, Any]], score: Any, folder: str | None = None) -> Any:
    """The value with the highest score; the first of equals."""
    if score is None:
        raise MergeError("best_quality needs score: a key of the values, or module:name")
    if not members:
        raise MergeError("best_quality: there is no successful member")
    judge = _judge(score, folder)
    best: tuple[str, Any, Any] | None = None
    for name, value in members:
        points = judge(name, value)
        if isinstance(points, float) and math.isnan(points):
            raise MergeError(f"best_quality: the score of {name} is not a number (NaN)")
        try:
            better = best is None or bool(points > best[1])
        except Exception as exc:
            assert best is not None
            raise MergeError(
                f"best_quality: the scores of {best[0]} ({_kind(best[1])}) and {name} ({_kind(points)}) can't be compared: {exc}"
            ) from exc
        if better:
            best = (name, points, value)
    assert best is not None
    return best[2]


def _judge(score: Any, folder: str | None) -> Callable[[str, Any], Any]:
    if callable(score) or ":" in score:
        function = functions.resolve(score, folder)
        return lambda name, value: _scored(name, call_function(function, value))
    path = parse_reference(f"value.{score}").path

    def by_key(name: str, value: Any) -> Any:
        try:
            return _scored(name, follow(value, path, Lookup(name, path)))
        except ReferenceFailed as exc:
            raise MergeError(f"best_quality: {name} has no score: {exc}") from None

    return by_key


def _scored(name: str, points: Any) -> Any:
    if points is None or isinstance(points, (str, bytes)):
        raise MergeError(f"best_quality: the score of {name} is {_kind(points)}, not a number")
    return points


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
