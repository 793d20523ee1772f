"""The small grammars of a pipeline's keys: names, functions, inputs, merges, amounts; each as a pydantic type.

A type here turns what was written into one value or refuses it with one sentence that says what to write. It never looks at
other keys of the same step (``model.py`` does) and never resolves a name (the compiler does).
"""

from __future__ import annotations

import difflib
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NoReturn, Union, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError

from procflow import units
from procflow.attempt import Cause
from procflow.errors import Loc
from procflow.units import Rate, Share

__all__ = [
    "MERGES", "NAME", "Amount", "Budget", "Command", "Duration", "Environment", "Function", "Inputs", "Join", "Name",
    "Names", "Outputs", "Pause", "RateLimit", "RetryBudget", "RetryOn", "Score", "Secrets", "Size", "SplitStrategy", "Stdin",
    "Strategy", "Text", "Tolerance", "When", "Workers", "function", "is_name", "near", "refuse", "variable_of",
]  # fmt: skip

NAME = r"^[A-Za-z_][A-Za-z0-9_-]{0,127}$"
MERGES = ("update", "collect_all", "first_success", "best_quality", "combine_outputs")
SPLITS = ("duplicate", "round_robin", "chunks")
CAUSES = tuple(cause for cause in get_args(Cause) if cause != "cancelled")
_NAME = re.compile(NAME[:-1])
_ENV_NAME = re.compile(r"[^=\0]{1,1000}")


def refuse(faults: Iterable[tuple[Loc, str, object]]) -> NoReturn:
    """Raise one ``ValidationError`` for several faults below the value at hand: loc, sentence, what was written."""
    raise ValidationError.from_exception_data(
        "procflow",
        [
            InitErrorDetails(type=PydanticCustomError("refused", "{reason}", {"reason": reason}), loc=loc, input=value)
            for loc, reason, value in faults
        ],
    )


def near(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the known word most like this one, empty where none is."""
    found = difflib.get_close_matches(word, list(known), 1, 0.6) if len(word) <= 64 else []
    return f"did you mean {found[0]!r}?" if found else ""


def _clip(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def is_name(text: object) -> bool:
    """Whether this is text that the grammar of names allows."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def _tupled(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else _tupled(value)


# -- names -----------------------------------------------------------------------------------------------------

Name = Annotated[str, Field(pattern=NAME)]
_NAMES_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "string", "pattern": NAME}, {"type": "array", "items": {"type": "string", "pattern": NAME}}]
}
Names = Annotated[tuple[Name, ...], BeforeValidator(_one_or_many), WithJsonSchema(_NAMES_SCHEMA)]


def _some_text(value: str) -> str:
    if not value.strip():
        raise ValueError("expected text, got an empty string")
    if "\0" in value:
        raise ValueError("text with a NUL character can't be passed to the system")
    return value


Text = Annotated[str, AfterValidator(_some_text)]


def _inputs(value: object) -> tuple[Any, ...] | dict[str, Any]:
    if isinstance(value, Mapping):
        faults = [((key,), reason, key) for key in value if (reason := _keyword_fault(key))]
        faults += [((key,), reason, item) for key, item in value.items() if (reason := _input_fault(item, True))]
        return refuse(faults) if faults else dict(value)
    if isinstance(value, (list, tuple)):
        faults = [((i,), reason, item) for i, item in enumerate(value) if (reason := _input_fault(item, False))]
        return refuse(faults) if faults else tuple(value)
    hint = f"; write [{value}]" if is_name(value) or (isinstance(value, str) and value.startswith("${")) else ""
    raise ValueError(f"expected a list of names, or a mapping of keywords to names{hint}")


def _keyword_fault(key: object) -> str:
    return "" if is_name(key) else f"{_clip(str(key))} can't be the keyword of an input; write letters, digits and _"


def _input_fault(item: object, by_keyword: bool) -> str:
    if isinstance(item, str):
        if "${" in item or is_name(item):
            return ""
        path = item.split(".")
        if len(path) > 1 and is_name(path[0]) and all(path):
            return f"{_clip(item)} is not a name of a value; write ${{{item[:60]}}}"
        return f"{_clip(item)} is not a name of a value; constants go under params"
    return "" if by_keyword else "an input is the name of a value, or ${...}; constants go under params"


Inputs = Annotated[
    Union[tuple[Any, ...], dict[str, Any]],
    PlainValidator(_inputs),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "object"}]}),
]


def _outputs(value: object) -> tuple[str, ...] | Literal["*"] | None:
    if value is None or value == "*":
        return value
    if not isinstance(value, (list, tuple)):
        raise ValueError('expected a list of names, or "*" for every key; a single name is written output: name')
    faults: list[tuple[Loc, str, object]] = []
    for i, name in enumerate(value):
        if not is_name(name):
            faults.append(((i,), f"{_clip(str(name))} is not a name; write letters, digits, _ and -", name))
        elif name in value[:i]:
            faults.append(((i,), f"{name!r} is listed twice", name))
    if not value:
        raise ValueError("expected at least one name")
    return refuse(faults) if faults else tuple(value)


Outputs = Annotated[
    Union[tuple[str, ...], Literal["*"], None],
    PlainValidator(_outputs),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "string", "pattern": NAME}, "minItems": 1, "uniqueItems": True},
                {"enum": ["*", None]},
            ]
        }
    ),
]


# -- functions and strategies ----------------------------------------------------------------------------------


def function(value: object) -> object:
    """A callable, or text that may name one; ValueError otherwise."""
    if callable(value):
        return value
    if isinstance(value, str):
        module, _, name = value.partition(":")
        parts = [*module.split("."), *name.split(".")]
        if not all(part.isidentifier() and not keyword.iskeyword(part) for part in parts):
            raise ValueError(f"{_clip(value)} does not name a function; write module:name")
        return value
    raise ValueError("a function is written module:name")


def _choice(what: str, known: tuple[str, ...]) -> Callable[[object], object]:
    """A validator for one of the known words or ``module:name``."""

    def check(value: object) -> object:
        if isinstance(value, str) and value in known:
            return value
        if isinstance(value, str) and ":" not in value:
            hint = near(value, known) or f"write one of {', '.join(known)}, or module:name"
            raise ValueError(f"unknown {what} {_clip(value)}; {hint}")
        if not isinstance(value, str) and not callable(value):
            raise ValueError(f"expected one of {', '.join(known)}, or module:name")
        return function(value)

    return check


def _optional(check: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None else check(value)


def _score(value: object) -> object:
    if isinstance(value, str) and ":" not in value:
        return _some_text(value)
    return function(value)


_FUNCTION_PATTERN = r"^[^:\s]+:[^:\s]+$"


def _choice_schema(known: tuple[str, ...]) -> WithJsonSchema:
    return WithJsonSchema(
        {"anyOf": [{"enum": [*known, None]}, {"type": "string", "pattern": _FUNCTION_PATTERN}], "examples": [*known]}
    )


Function = Annotated[
    Any,
    PlainValidator(function),
    WithJsonSchema({"type": "string", "pattern": _FUNCTION_PATTERN, "examples": ["module:name"]}),
]
"""``module:name`` in files; in Python any callable."""
Strategy = Annotated[Any, PlainValidator(_optional(_choice("merge", MERGES))), _choice_schema(MERGES)]
SplitStrategy = Annotated[Any, PlainValidator(_choice("split", SPLITS)), _choice_schema(SPLITS)]
Score = Annotated[Any, PlainValidator(_optional(_score)), WithJsonSchema({"type": ["string", "null"]})]


# -- amounts ---------------------------------------------------------------------------------------------------

_SPAN_SCHEMA: dict[str, Any] = {"type": ["string", "number"], "examples": ["90s", "15m", "2h"]}
Duration = Annotated[float, BeforeValidator(units.duration), WithJsonSchema(_SPAN_SCHEMA)]
Pause = Annotated[float, BeforeValidator(units.pause), WithJsonSchema(_SPAN_SCHEMA)]
Size = Annotated[int, BeforeValidator(units.size), WithJsonSchema({"type": "string", "examples": ["500MB", "4GiB"]})]
RateLimit = Annotated[
    Rate, BeforeValidator(lambda value: value if isinstance(value, Rate) else units.rate(value)),
    WithJsonSchema({"type": "string", "examples": ["10/s", "100/5m"]}),
]  # fmt: skip
Amount = Annotated[float, Field(gt=0, lt=1e9)]


def _budget(value: object) -> int | Share:
    if isinstance(value, Share):
        return value
    return units.share(value) if isinstance(value, str) and value.strip().endswith("%") else units.size(value)


def _tolerance(value: object) -> int | Share | None:
    if value is None or isinstance(value, Share):
        return value
    if isinstance(value, str) and value.strip().endswith("%"):
        return units.share(value) if value.strip() != "0%" else 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10**12:
        raise ValueError("expected a count such as 5, or a share such as 2%")
    return value


def _join(value: object) -> object:
    if isinstance(value, str) and value in ("all", "any"):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10**12:
        return value
    raise ValueError("expected all, any, or a number of successes from 1")


def _workers(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096):
        return value
    raise ValueError("expected auto, or a number of workers from 1 to 4096")


Budget = Annotated[
    Union[int, Share], PlainValidator(_budget), WithJsonSchema({"type": "string", "examples": ["80%", "8GB"]})
]
RetryBudget = Annotated[
    Share,
    PlainValidator(lambda value: value if isinstance(value, Share) else units.share(value)),
    WithJsonSchema({"type": "string", "examples": ["50%", "100%"]}),
]
Tolerance = Annotated[
    Union[int, Share, None],
    PlainValidator(_tolerance),
    WithJsonSchema({"type": ["integer", "string", "null"], "minimum": 0, "examples": [5, "2%"]}),
]
Join = Annotated[
    Union[Literal["all", "any"], int],
    PlainValidator(_join),
    WithJsonSchema({"anyOf": [{"enum": ["all", "any"]}, {"type": "integer", "minimum": 1}]}),
]
Workers = Annotated[
    Union[int, Literal["auto"]],
    PlainValidator(_workers),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 4096}]}),
]


# -- retries and conditions ------------------------------------------------------------------------------------


def _retry_on(value: object) -> tuple[str, ...]:
    causes = _one_or_many(value)
    if not isinstance(causes, tuple) or not causes:
        raise ValueError(f"expected causes ({', '.join(CAUSES)}) or names of exception classes")
    faults = [
        ((i,) if not isinstance(value, str) else (), reason, c)
        for i, c in enumerate(causes)
        if (reason := _cause_fault(c))
    ]
    return refuse(faults) if faults else causes


def _cause_fault(cause: object) -> str:
    if not isinstance(cause, str) or not all(part.isidentifier() for part in cause.split(".")):
        return f"expected a cause ({', '.join(CAUSES)}) or the name of an exception class"
    if cause in CAUSES:
        return ""
    if cause == "cancelled":
        return "what was cancelled is never tried again"
    hint = near(cause, CAUSES) if cause.islower() and "." not in cause else ""
    return f"unknown cause {_clip(cause)}; {hint}" if hint else ""


def _when(value: object) -> str | bool | None:
    if value is None or isinstance(value, (bool, str)):
        return _some_text(value) if isinstance(value, str) else value
    raise ValueError("expected a condition such as ${rows.count} > 0, or true or false")


RetryOn = Annotated[tuple[str, ...], PlainValidator(_retry_on), WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}], "examples": [[*CAUSES]]}
)]  # fmt: skip
When = Annotated[Union[str, bool, None], PlainValidator(_when), WithJsonSchema({"type": ["string", "boolean", "null"]})]


# -- commands --------------------------------------------------------------------------------------------------


def _command(value: object) -> str | tuple[Any, ...]:
    if isinstance(value, str):
        return _some_text(value)
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("expected a list of arguments, or a line for the shell")
    faults = [((i,), reason, word) for i, word in enumerate(value) if (reason := _word_fault(word))]
    return refuse(faults) if faults else tuple(value)


def _word_fault(word: object) -> str:
    if isinstance(word, bool) or not isinstance(word, (str, int, float)):
        return "expected text or a number; put quotes around it"
    return "text with a NUL character can't be passed to the system" if isinstance(word, str) and "\0" in word else ""


def _environment(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("expected a mapping of names to texts")
    faults: list[tuple[Loc, str, object]] = []
    for name, text in value.items():
        if not isinstance(name, str) or _ENV_NAME.fullmatch(name) is None:
            faults.append(((name,), f"{_clip(str(name))} can't name an environment variable", name))
        elif reason := _word_fault(text):
            faults.append(((name,), reason, text))
    return refuse(faults) if faults else dict(value)


def _stdin(value: object) -> object:
    if value is None or isinstance(value, (str, bytes)):
        return value
    raise ValueError("expected text, or ${name} for a value")


_WORD = {"type": ["string", "number"]}
Command = Annotated[
    Union[str, tuple[Any, ...]],
    PlainValidator(_command),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": _WORD, "minItems": 1}]}),
]
Environment = Annotated[
    dict[str, Any], PlainValidator(_environment), WithJsonSchema({"type": "object", "additionalProperties": _WORD})
]
Stdin = Annotated[Any, PlainValidator(_stdin), WithJsonSchema({"type": ["string", "null"]})]


# -- secrets ---------------------------------------------------------------------------------------------------

_SECRET = re.compile(r"\$\{\s*env\.([A-Za-z_][A-Za-z0-9_]*)\s*\}")


def variable_of(secret: str) -> str:
    """The environment variable that a declared secret names: ``API_TOKEN`` for ``${env.API_TOKEN}``."""
    return _SECRET.sub(r"\1", secret)


def _secrets(value: object) -> dict[str, str]:
    # What was written is never repeated: it may be the secret itself.
    if not isinstance(value, Mapping):
        raise ValueError("expected a mapping of names to ${env.NAME}")
    faults: list[tuple[Loc, str, object]] = []
    for name, written in value.items():
        if not is_name(name):
            faults.append(((name,), f"{_clip(str(name))} is not a name; write letters, digits, _ and -", name))
        elif not isinstance(written, str) or _SECRET.fullmatch(written.strip()) is None:
            hint = "write ${env.NAME}, and keep the value out of the file"
            faults.append(((name,), f"a secret is the name of an environment variable; {hint}", None))
    return refuse(faults) if faults else {name: written.strip() for name, written in value.items()}


Secrets = Annotated[
    dict[str, str],
    PlainValidator(_secrets),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\s*\$\{\s*env\."}}),
]
