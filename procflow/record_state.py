"""Records of what a pipeline's steps share: the keys of ``state`` with their reducers, and ``combiners`` by type.

Short form ``results: append``, long form ``results: {reducer: append, initial: [1]}``. What the reducers do is ``state.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from procflow.call import Reducer
from procflow.grammar import Function, Name, function, near, refuse
from procflow.record import Conflicts, Given, Record

__all__ = ["Combiners", "ReduceKeys", "SharedKeys", "SharedState", "StateKey"]

REDUCERS = ("append", "add", "union", "merge", "replace")
_SHAPES: dict[str, tuple[tuple[type, ...], str]] = {
    "append": ((list, tuple), "a list"),
    "union": ((list, tuple, set, frozenset), "a list of members"),
    "merge": ((dict,), "a mapping"),
}


def _reducer(value: object) -> object:
    if isinstance(value, str) and value in REDUCERS:
        return value
    words = f"write one of {', '.join(REDUCERS)}, or module:name"
    if isinstance(value, str):
        module, colon, name = value.partition(":")
        if not colon:
            raise ValueError(f"unknown reducer {value[:60]!r}; {near(value, REDUCERS) or words}")
        if all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
            return value
    elif callable(value):
        return value
    raise ValueError(f"a reducer is a word or a function: {words}")


_REDUCER_SCHEMA: dict[str, Any] = {
    "anyOf": [{"enum": [*REDUCERS]}, {"type": "string", "pattern": r"^[^:\s]+:[^:\s]+$"}], "examples": [*REDUCERS]
}  # fmt: skip


class StateKey(Record):
    """One key of the state: how changes are joined, and what it is before the first."""

    reducer: Annotated[Any, PlainValidator(_reducer), WithJsonSchema(_REDUCER_SCHEMA)] = Field(
        description="append, add, union, merge, replace, or module:name of the value so far and a change"
    )
    initial: Any = Field(None, description="the value before the first change")

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """An initial value of another shape than the reducer makes."""
        shape = _SHAPES.get(given["reducer"]) if isinstance(given.get("reducer"), str) else None
        if shape is not None and "initial" in given and not isinstance(given["initial"], shape[0]):
            yield (
                "initial",
                f"the reducer {given['reducer']} begins with {shape[1]}, not {type(given['initial']).__name__}",
            )

    def as_reducer(self) -> Reducer:
        """The same for workers."""
        named = self.reducer in REDUCERS if isinstance(self.reducer, str) else False
        has_initial = "initial" in self.model_fields_set
        initial = list(self.initial) if isinstance(self.initial, tuple) else self.initial
        return Reducer(self.reducer if named else "", None if named else self.reducer, initial, has_initial)


def _state_key(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, StateKey):
        return value
    try:
        return StateKey(reducer=_reducer(value))
    except ValueError as error:
        return refuse([((), str(error), value)])


SharedState = Annotated[
    StateKey, BeforeValidator(_state_key), WithJsonSchema({"anyOf": [
        *_REDUCER_SCHEMA["anyOf"],
        {
            "type": "object", "properties": {"reducer": {"anyOf": _REDUCER_SCHEMA["anyOf"]}, "initial": {}},
            "required": ["reducer"], "additionalProperties": False,
        },
    ]}),
]  # fmt: skip
"""A key of ``state`` in its short or its long form."""


def _combiners(value: object) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("expected a mapping of types to functions: {Table: module:name}")
    faults: list[tuple[tuple[int | str, ...], str, object]] = []
    for kind, named in value.items():
        words = kind.replace(":", ".", 1).split(".") if isinstance(kind, str) else ()
        if not callable(kind) and not (words and all(word.isidentifier() for word in words)):
            hint = "write Table, package.module.Table, or module:name of a class or a predicate"
            faults.append(((str(kind),), f"{str(kind)[:60]!r} names no type; {hint}", kind))
        try:
            function(named)
        except ValueError:
            faults.append(((str(kind),), "a combiner is a function, module:name, of the list of values", named))
    return refuse(faults) if faults else dict(value)


Combiners = Annotated[
    dict[Any, Any], PlainValidator(_combiners),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[^:\s]+:[^:\s]+$"}}),
]  # fmt: skip
"""How values of types that ``combine_outputs`` does not know become one."""


class SharedKeys(Record):
    """The keys of a pipeline for what its steps share."""

    combiners: Combiners = Field(default_factory=dict, description="for combine_outputs: type to module:name")
    state: dict[Name, SharedState] = Field(
        default_factory=dict, description="accumulators that steps share, with reducers"
    )


class ReduceKeys(Record):
    """The keys of a map that folds its results."""

    reduce: Function | None = Field(
        None, description="module:name of the value so far and a result: folds in item order"
    )
    initial: Any = Field(None, description="with reduce, the value before the first result")

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """``merge`` beside ``reduce``, and ``initial`` without it."""
        yield from super().conflicts(given)
        if given.get("reduce") is not None and given.get("merge") is not None:
            yield "merge", "reduce makes one value of the results, so there is nothing to merge: keep one of them"
        if "initial" in given and given.get("reduce") is None:
            yield "initial", "works only with reduce"
