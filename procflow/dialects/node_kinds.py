"""Node kinds: the types of nodes of a ``nodes``/``edges`` graph, how a missing type is told from the data, and what each computes.

``KINDS`` says for each type which data it needs and may have, and which part of its result the next node gets. ``call_of``
makes the keys of the step. Edges, branches and control are not known here (``nodes.py``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from procflow.dialects.expressions import ExpressionError, read
from procflow.dialects.foreign import Made, Part, escaped, near

__all__ = ["ALIASES", "CONTROL", "KINDS", "Kind", "call_of", "inferred", "seconds_of", "type_of"]

FUNCTIONS = "procflow.dialects.node_functions"


@dataclass(frozen=True, slots=True)
class Kind:
    """``payload`` is the part of the result that the next node gets; ``least`` and ``most`` inputs, None for any number."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    payload: str = ""
    function: str = ""
    least: int = 1
    most: int | None = None


KINDS: dict[str, Kind] = {
    "number": Kind(("value",), least=0),
    "text_input": Kind(("text",), least=0),
    "boolean_input": Kind(("boolean_value",), least=0),
    "date_input": Kind(("date_value",), least=0),
    "datetime_input": Kind(("datetime_value",), least=0),
    "operation": Kind(("op",), function="operation", least=2, most=2),
    "text_operation": Kind(("text_op",), ("separator", "repeat_n"), function="text_operation"),
    "http": Kind(("url",), ("http_client_uid", "method", "headers", "body"), least=0),
    "expression": Kind(("expression",), function="expression", least=0),
    "condition": Kind(("condition",), ("true_path", "false_path"), "value", "condition", least=0),
    "switch": Kind(("cases",), (), "value", "choose", least=0),
    "filter": Kind(("condition",), (), "filtered", "filtered", most=1),
    "map": Kind((), ("expression", "field"), "results", "mapped", most=1),
    "reduce": Kind(("expression",), ("initial_value",), "", "reduced", most=1),
    "slice": Kind((), ("start", "end", "length"), "", "slice_of", most=1),
    "sort": Kind((), ("field", "order"), "", "sort", most=1),
    "find": Kind(("condition",), ("return_index",), "", "find", most=1),
    "flat_map": Kind((), ("expression", "field"), "", "flat_map", most=1),
    "group_by": Kind(("field",), ("aggregate", "value_field"), "", "group_by", most=1),
    "unique": Kind((), ("field",), "", "unique", most=1),
    "chunk": Kind(("size",), (), "", "chunk", most=1),
    "reverse": Kind((), (), "", "reverse", most=1),
    "partition": Kind(("condition",), (), "", "partition", most=1),
    "zip": Kind((), ("arrays", "fill_missing", "remove_empty"), "", "zipped"),
    "sample": Kind(("count",), ("method",), "", "sample", most=1),
    "range": Kind(("start", "end"), ("step",), "range", "number_range", least=0),
    "compact": Kind((), (), "", "compact", most=1),
    "transpose": Kind((), (), "", "transpose", most=1),
    "variable": Kind(("var_name", "var_op"), ("scope",), least=0),
    "extract": Kind((), ("field", "fields"), "value", "extract", most=1),
    "join": Kind((), ("join_strategy", "timeout"), "values", "join"),
    "parallel": Kind((), ("max_concurrency", "timeout"), "results", "gathered"),
    "delay": Kind(("duration",), (), "", "delay", least=0),
    "cache": Kind(("cache_op", "cache_key"), ("ttl", "max_size", "eviction", "storage"), least=0),
    "retry": Kind(
        (), ("max_attempts", "backoff_strategy", "initial_delay", "max_delay", "multiplier", "retry_on_errors"), most=1
    ),
    "try_catch": Kind((), ("fallback_value", "continue_on_error", "error_output_path"), "value", most=1),
    "timeout": Kind(("timeout",), ("timeout_action",), most=1),
    "visualization": Kind((), ("mode",), "", "first", most=1),
    "renderer": Kind((), ("mode",), "", "first", most=1),
}  # fmt: skip
CONTROL = ("retry", "timeout", "try_catch")
"""They say how the node before them runs, and hand on what it made."""
UNABLE = (
    "for_each", "while_loop", "transform", "accumulator", "counter", "parse", "format", "split", "rate_limiter", "throttle",
    "schema_validator", "paginator", "context_variable", "context_constant",
)  # fmt: skip
ALIASES = {
    "textInput": "text_input", "booleanInput": "boolean_input", "dateInput": "date_input", "datetimeInput": "datetime_input",
    "textOp": "text_operation", "mathOp": "operation", "vizualization": "visualization", "barChart": "visualization",
    "flatMap": "flat_map", "groupBy": "group_by", "tryCatch": "try_catch",
}  # fmt: skip
_UI_KEYS = ("label", "description", "color", "icon", "width", "height", "style", "collapsed")


def type_of(node: Part) -> str:
    """The type of a node by the engine's name, as written, as the UI says it (``retryNode``), or told from its data.

    A problem, and empty text, where there is none; the type as written where it is none of the format's.
    """
    data = node["data"]
    if node["type"].value is None:
        kind = inferred(data.value if isinstance(data.value, dict) else {})
        if not kind:
            node["type"].fail("is missing, and the data does not tell it", f"write one of {', '.join(KINDS)}")
        return kind
    written = node["type"].text()
    short = written[:-4] if written.endswith("Node") else written
    for name in (written, short, ALIASES.get(short, ""), re.sub(r"(?<=[a-z])([A-Z])", r"_\1", short).lower()):
        if name in KINDS:
            return name
    return written


_TELLING = (
    ("value", "number"), ("text", "text_input"), ("boolean_value", "boolean_input"), ("date_value", "date_input"),
    ("datetime_value", "datetime_input"), ("mode", "visualization"), ("op", "operation"), ("text_op", "text_operation"),
    ("url", "http"), ("condition", "filter"), ("expression", "expression"), ("var_name", "variable"), ("field", "extract"),
    ("fields", "extract"), ("transform_type", "transform"), ("accum_op", "accumulator"), ("counter_op", "counter"),
    ("cases", "switch"), ("join_strategy", "join"), ("paths", "split"), ("duration", "delay"), ("cache_op", "cache"),
    ("context_name", "context_variable"), ("context_values", "context_variable"), ("max_attempts", "retry"),
    ("backoff_strategy", "retry"), ("fallback_value", "try_catch"), ("continue_on_error", "try_catch"), ("timeout", "timeout"),
)  # fmt: skip
_ALSO = {"var_name": "var_op", "cache_op": "cache_key", "timeout": "timeout_action"}


def inferred(data: dict[str, Any]) -> str:
    """The type that the data tells, by the format's own order; empty where it tells none."""
    for key, kind in _TELLING:
        if data.get(key) is None or (key in _ALSO and data.get(_ALSO[key]) is None):
            continue
        if key == "condition" and data.get("true_path") is not None:
            return "condition"
        return "reduce" if key == "expression" and "initial_value" in data else kind
    return ""


def check_data(node: Part, kind: str) -> bool:
    """Whether the data has what the type needs; a problem for each field that is missing or unknown."""
    known, data = KINDS[kind], node["data"]
    if not data.mapping(required=bool(known.required)):
        return not known.required
    for key in known.required:
        if data[key].value is None:
            data[key].fail(f"is missing: a node of type {kind} needs it")
    data.only((*known.required, *known.optional, *_UI_KEYS))
    return all(data[key].value is not None for key in known.required)


_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)\s*")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(part: Part, least: float = 0.001) -> float | None:
    """A duration (``5s``, ``100ms``, or a whole number of milliseconds) in seconds; None where there is none or it is wrong."""
    value = part.value
    if value is None:
        return None
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        seconds = float(found[1]) * _UNITS[found[2]]
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = value / 1000
    else:
        part.fail("expected a duration: 5s, 100ms, or a number of milliseconds")
        return None
    if not least <= seconds <= 10**9:
        part.fail("expected a duration above 0")
        return None
    return seconds


def expression_of(part: Part) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The nodes and the variables that an expression names; a problem where it can't be read."""
    try:
        found = read(part.text(required=True) or "null")
    except ExpressionError as error:
        part.fail(str(error), "comparisons, arithmetic, and, or, not, and a few functions are understood")
        return (), ()
    return found.nodes, found.variables


_CHOICES = {
    "op": ("add", "subtract", "multiply", "divide"),
    "text_op": ("uppercase", "lowercase", "titlecase", "camelcase", "inversecase", "concat", "repeat"),
    "order": ("asc", "desc"),
    "aggregate": ("count", "sum", "avg", "min", "max", "values"),
    "method": ("random", "first", "last"),
}
_WHOLE = {"size": 1, "count": 0, "repeat_n": 0, "start": -(10**12), "end": -(10**12), "length": 0}
_CONSTANTS: dict[str, tuple[str, Any]] = {
    "number": ("value", (int, float)), "text_input": ("text", str), "boolean_input": ("boolean_value", bool),
    "date_input": ("date_value", str), "datetime_input": ("datetime_value", str),
}  # fmt: skip


def call_of(made: Made, node: Part, kind: str) -> tuple[list[str], list[str]]:
    """Set what the step calls, and its constants; the nodes and variables that its expressions name."""
    data, nodes, variables = node["data"], list[str](), list[str]()
    params = Made(data)
    made["function"] = f"{FUNCTIONS}:{KINDS[kind].function or 'first'}"
    if kind in _CONSTANTS:
        made["function"] = f"{FUNCTIONS}:value_of"
        key, types = _CONSTANTS[kind]
        value = data[key].value
        if not isinstance(value, types) or (kind == "number" and isinstance(value, bool)):
            data[key].fail(f"a node of type {kind} can't have this value")
        params.set("value", escaped(value), data[key])
    elif kind == "delay":
        params.set("seconds", seconds_of(data["duration"]), data["duration"])
    elif kind == "switch":
        params.set("cases", _cases(data["cases"], nodes, variables), data["cases"])
    elif kind in ("join", "parallel"):
        pass
    else:
        for key in (*KINDS[kind].required, *KINDS[kind].optional):
            part = data[key]
            if part.value is None or key == "mode":
                continue
            if key in ("condition", "expression"):
                named, read_from = expression_of(part)
                nodes += named
                variables += read_from
            params.set(key, _checked(key, part, kind), part)
    if kind in ("map", "flat_map", "extract"):
        _exactly_one(data, ("field", "fields") if kind == "extract" else ("expression", "field"))
    if kind == "sample":
        params["seed"] = str(node["id"].value)
    if kind == "zip" and data["fill_missing"].is_there:
        params["fill"] = True
    if kind == "range" and data["step"].value == 0:
        data["step"].fail("a range goes on by more or less than 0")
    made["params"] = params
    return nodes, variables


def _exactly_one(data: Part, keys: tuple[str, str]) -> None:
    given = [key for key in keys if data[key].value is not None]
    if len(given) != 1:
        data.fail(f"needs exactly one of {keys[0]} and {keys[1]}")


def _checked(key: str, part: Part, kind: str) -> Any:
    if kind == "range":
        if isinstance(part.value, bool) or not isinstance(part.value, (int, float)):
            part.fail("expected a number")
        return part.value
    if key in _CHOICES:
        return part.choice(_CHOICES[key], _CHOICES[key][0])
    if key in _WHOLE:
        return part.whole(least=_WHOLE[key])
    if key in ("remove_empty", "return_index"):
        return part.flag()
    if key in ("arrays", "fields"):
        part.members(1)
    elif key not in ("initial_value", "fill_missing"):
        part.text()
    return escaped(part.value)


_COMPUTES = re.compile(r"\s*[<>!=]|.*\b(?:(?:input|item)\b|(?:node|variables)\.)", re.DOTALL)


def _cases(part: Part, nodes: list[str], variables: list[str]) -> list[Made]:
    """The cases of a switch; a ``when`` that names nothing and compares nothing is a value."""
    cases = []
    members = part.members(1, "a list of cases")
    defaults = [case for case in members if case["is_default"].value is True]
    for case in members:
        if not case.mapping(required=True):
            continue
        case.only(("when", "output_path", "is_default", "value"))
        made, when = Made(case), case["when"]
        if not case["is_default"].flag():
            if when.value is None:
                when.fail("is missing", "or write is_default: true in the last case")
            elif isinstance(when.value, str) and _COMPUTES.match(when.value):
                named, read_from = expression_of(when)
                nodes += named
                variables += read_from
                made.set("when", escaped(when.value), when)
            else:
                made.set("equals", escaped(when.value), when)
        made.set("output_path", case["output_path"].text(required=True), case["output_path"])
        cases.append(made)
    if len(defaults) != 1 or members[-1]["is_default"].value is not True:
        part.fail("a switch has exactly one default, as its last case", "write is_default: true there")
    return cases


def unknown(node: Part, kind: str) -> None:
    """The problem of a type that this format has not, or procflow can't do."""
    at = node["type"] if node["type"].is_there else node
    if kind in UNABLE:
        at.fail(
            f"procflow can't do nodes of type {kind}", f"write a function and bind it: --bind {kind}=module:function"
        )
    else:
        names: list[str] = [*KINDS, *ALIASES, *(f"{name}Node" for name in KINDS)]
        at.fail(
            f"unknown node type {kind!r}",
            near(kind, names) or f"or bind a function of yours: --bind {kind}=module:function",
        )
