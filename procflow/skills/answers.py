"""Answers: whether values fit what a skill declares, in words for types or in JSON Schemas.

Workers use it: no pydantic here. ``jsonschema`` is loaded only where a skill declares a schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from procflow.errors import ProcflowError
from procflow.failure import item_text

__all__ = ["AnswerError", "InputError", "check_inputs", "fitting", "schema_of"]


class InputError(ProcflowError):
    """A value given to a skill is not of the type that it requires."""


class AnswerError(ProcflowError):
    """What a skill has answered is not what it declares to produce."""


def _is_number(value: Any) -> bool:
    return not isinstance(value, (bool, str)) and hasattr(value, "__float__") and getattr(value, "shape", ()) == ()


def _is_integer(value: Any) -> bool:
    return not isinstance(value, bool) and (
        hasattr(value, "__index__") or (isinstance(value, float) and value.is_integer())
    )


def _is_array(value: Any) -> bool:
    return not isinstance(value, (str, bytes, Mapping)) and hasattr(value, "__len__") and hasattr(value, "__iter__")


_IS: dict[str, Callable[[Any], bool]] = {
    "any": lambda value: True,
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": _is_integer,
    "boolean": lambda value: isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"),
    "array": _is_array,
    "object": lambda value: isinstance(value, Mapping),
}


def _fault(kind: Any, value: Any) -> str:
    """What is wrong with a value of a declared type; empty where nothing is."""
    if isinstance(kind, str):
        return "" if _IS[kind](value) else f"expected {kind}, got {_shown(value)}"
    try:
        import jsonschema
    except ImportError:
        raise AnswerError("a JSON Schema needs the library jsonschema: pip install 'procflow[http]'") from None
    try:
        found = next(jsonschema.Draft202012Validator(kind).iter_errors(value), None)
    except jsonschema.exceptions.SchemaError as error:
        return f"its schema is wrong: {error.message}"
    if found is None:
        return ""
    at = ".".join(map(str, found.absolute_path))
    return f"{at + ': ' if at else ''}{found.message[:300]}"


def _shown(value: Any) -> str:
    text = item_text(value)
    return f"{'null' if value is None else type(value).__name__} ({text})" if value is not None else "null"


def check_inputs(what: str, requires: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """``InputError`` where a required value is of another type."""
    faults = [f"{name}: {fault}" for name, kind in requires.items() if (fault := _fault(kind, given.get(name)))]
    if faults:
        raise InputError(f"{what} requires {'; '.join(faults)}")


def fitting(what: str, produces: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    """What the skill declares to produce, out of its answer; all of it where it declares nothing. ``AnswerError``."""
    if not isinstance(answer, Mapping):
        kind = "nothing" if answer is None else f"a value of type {type(answer).__name__} ({item_text(answer)})"
        names = f" with {', '.join(produces)}" if produces else ""
        raise AnswerError(f"{what} answered {kind}, not a mapping{names}")
    if not produces:
        return dict(answer)
    faults = []
    for name, kind in produces.items():
        if name not in answer:
            near = get_close_matches(name, [str(key) for key in answer], 1)
            has = ", ".join(str(key) for key in list(answer)[:12]) or "nothing"
            faults.append(f"{name} is missing{f'; did it mean {near[0]!r}?' if near else f'; there is {has}'}")
        elif fault := _fault(kind, answer[name]):
            faults.append(f"{name}: {fault}")
    if faults:
        raise AnswerError(f"{what} answered something else than it produces: {'; '.join(faults)}")
    return {name: answer[name] for name in produces}


def schema_of(produces: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of what a skill produces."""
    properties = {
        name: {"type": kind} if isinstance(kind, str) and kind != "any" else {} if isinstance(kind, str) else dict(kind)
        for name, kind in produces.items()
    }
    return {"type": "object", "properties": properties, "required": list(produces), "additionalProperties": False}
