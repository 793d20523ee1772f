"""Records of what a pipeline talks to: sources and skills, and the keys of the steps that use them.

The keys of a step are here and its type is in ``model.py``, which joins them with what every step has. Whether a key suits the
kind of a source is the compiler's to check: the kind may stand in an environment variable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from procflow.grammar import Duration, Function, Name, RateLimit, Text, is_name, near, refuse
from procflow.record import Conflicts, Given, Record

__all__ = [
    "KINDS",
    "TYPES",
    "AnySource",
    "Prices",
    "QueryKeys",
    "RestKeys",
    "Skill",
    "SkillKeys",
    "Source",
    "source_of",
]

KINDS = ("sql", "duckdb", "mongodb", "redis", "rest")
"""Kinds of sources."""
TYPES = ("any", "string", "number", "integer", "boolean", "array", "object")
"""Words for the type of a value, as in JSON Schema."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _method(value: object) -> object:
    if isinstance(value, str) and value.upper() in METHODS:
        return value.upper()
    hint = near(value.upper(), METHODS) if isinstance(value, str) else ""
    raise ValueError(f"expected {', '.join(METHODS[:-1])} or {METHODS[-1]}{f'; {hint}' if hint else ''}")


Method = Annotated[str, PlainValidator(_method), WithJsonSchema({"type": "string", "examples": [*METHODS]})]
Headers = dict[Text, str]
Form = Literal["rows", "arrow", "pandas", "polars"]
Answer = Literal["json", "text", "bytes", "response"]
Codes = Annotated[
    tuple[Annotated[int, Field(ge=100, le=599)], ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 100, "maximum": 599}, "minItems": 1}),
]


# -- sources ---------------------------------------------------------------------------------------------------


class Source(Record):
    """Where queries go: a database, files, or a service. Text alone is its URL."""

    url: Text = Field(
        description="postgresql://..., sqlite:///file.db, duckdb:, mongodb://..., redis://..., https://..."
    )
    kind: Literal["sql", "duckdb", "mongodb", "redis", "rest"] | None = Field(None, description="default by the URL")
    user: Text | None = Field(None, description="name to log in with, where it is not in the URL")
    password: Text | None = Field(None, description="${env.NAME}: taken from the environment, never shown")
    database: Text | None = Field(None, description="of mongodb, where it is not in the URL")
    headers: Headers = Field(default_factory=dict, description="of rest, sent with every request")
    max_connections: int | None = Field(
        None, ge=1, le=100_000, description="most queries at once, of all workers together"
    )
    rate_limit: RateLimit | None = Field(None, description="most queries in a time, of all workers together")
    timeout: Duration | None = Field(None, description="longest time to connect, and to wait for an answer")
    options: dict[str, Any] = Field(default_factory=dict, description="passed on to the driver when it connects")

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Keys of another kind, where the kind is plain."""
        yield from super().conflicts(given)
        kind = given.get("kind")
        if kind in KINDS and kind != "rest" and given.get("headers"):
            yield "headers", "works only with kind: rest"
        if kind in KINDS and kind != "mongodb" and given.get("database"):
            yield "database", "works only with kind: mongodb; elsewhere the URL names it"


def source_of(value: object) -> object:
    """A source as declared: its URL alone, or a mapping."""
    return {"url": value} if isinstance(value, str) else value


def _mapping(value: object) -> object:
    if value is None or isinstance(value, Mapping):
        return value
    raise ValueError("expected a mapping")


def _one_or_mapping(value: object) -> object:
    if value is None or isinstance(value, (str, Mapping)):
        return value
    raise ValueError("expected a mapping, or text")


def _insert(value: object) -> object:
    if value is None or isinstance(value, (Mapping, list, tuple)) or (isinstance(value, str) and value.startswith("{")):
        return value
    raise ValueError('expected a mapping, a list of mappings, or "{name}" of a value')


def _sort(value: object) -> object:
    """``day`` or ``{day: -1}``: a mapping of keys to 1 or -1."""
    if isinstance(value, str):
        return {value: 1}
    if value is None or (isinstance(value, Mapping) and all(d in (1, -1) and d is not True for d in value.values())):
        return value
    raise ValueError("expected a key, or a mapping of keys to 1 (rising) or -1 (falling)")


def _projection(value: object) -> object:
    if isinstance(value, (list, tuple)) and all(isinstance(key, str) for key in value):
        return dict.fromkeys(value, 1)
    if value is None or isinstance(value, Mapping):
        return value
    raise ValueError("expected a list of keys, or a mapping")


def _stages(value: object) -> object:
    if value is None or (isinstance(value, (list, tuple)) and value and all(isinstance(s, Mapping) for s in value)):
        return value
    raise ValueError("expected a list of stages, each a mapping")


def _redis_command(value: object) -> object:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(w, (str, int, float)) for w in value):
        return tuple(value)
    raise ValueError("expected a list such as [GET, 'user:{id}'], or a line")


_OBJECT: dict[str, Any] = {"type": ["object", "null"]}
Document = Annotated[Any, PlainValidator(_mapping), WithJsonSchema(_OBJECT)]


class QueryKeys(Record):
    """What is asked of a source. ``{name}`` is a bound value everywhere, never pasted text."""

    source: Name = Field(description="a name under sources")
    query: Text | None = Field(None, description="SQL, or the path of a request; {name} is a bound value")
    form: Form = Field("rows", alias="as", description="rows (a list of mappings), arrow, pandas or polars")
    # mongodb
    collection: Text | None = Field(None, description="of mongodb")
    filter: Document = Field(None, description='of mongodb: {day: "{day}"} with bound values as whole texts')
    projection: Annotated[Any, PlainValidator(_projection), WithJsonSchema({"type": ["array", "object", "null"]})] = (
        None
    )
    sort: Annotated[Any, PlainValidator(_sort), WithJsonSchema({"type": ["string", "object", "null"]})] = None
    skip: int | None = Field(None, ge=0, le=2**31 - 1, description="of mongodb: leave out so many")
    limit: int | None = Field(None, ge=1, le=2**31 - 1, description="of mongodb: at most so many")
    aggregate: Annotated[Any, PlainValidator(_stages), WithJsonSchema({"type": ["array", "null"]})] = None
    insert: Annotated[Any, PlainValidator(_insert), WithJsonSchema({"type": ["object", "array", "string", "null"]})] = (
        Field(None, description='of mongodb: a document, a list of them, or "{name}"')
    )
    update: Document = Field(None, description="of mongodb: {$set: {...}} for what filter finds")
    delete: bool = Field(False, description="of mongodb: remove what filter finds")
    # redis
    command: Annotated[Any, PlainValidator(_redis_command), WithJsonSchema({"type": ["array", "string", "null"]})] = (
        Field(None, description="of redis: [GET, 'user:{id}']")
    )
    # rest
    method: Method | None = Field(None, description="of rest; default GET, or POST with json")
    headers: Headers = Field(default_factory=dict, description="of rest")
    body: Any = Field(None, alias="json", description="of rest: what is sent as JSON")
    rows: Text | None = Field(None, description="of rest: where the rows are in the answer, such as data.items")

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Also two things asked at once, and everything removed by an oversight."""
        yield from super().conflicts(given)
        asked = [key for key in ("aggregate", "insert", "update", "delete") if given.get(key)]
        for key in asked[1:]:
            yield key, f"{asked[0]} and {key} exclude each other: keep one"
        for key in ("filter", "projection", "sort", "skip", "limit"):
            if given.get(key) is not None and asked and (key != "filter" or asked[0] in ("insert", "aggregate")):
                yield key, f"has no meaning with {asked[0]}"
        for key in ("update", "delete"):
            if given.get(key) and given.get("filter") is None:
                yield key, f"{key} needs filter; {{}} means every document"
        if given.get("insert") == {} or given.get("insert") == []:
            yield "insert", "there is nothing to insert"


# -- skills ----------------------------------------------------------------------------------------------------


def _shape(value: object) -> object:
    """Names with their types: a list of names, a mapping to words for types, or to JSON Schemas."""
    if isinstance(value, (list, tuple)):
        faults: list[Any] = [
            ((i,), f"{name!r:.60} is not a name", name) for i, name in enumerate(value) if not is_name(name)
        ]
        return refuse(faults) if faults else dict.fromkeys(value, "any")
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a list of names, or a mapping of names to types ({', '.join(TYPES)})")
    faults = []
    for name, kind in value.items():
        if not is_name(name):
            faults.append(((name,), f"{name!r:.60} is not a name", name))
        elif isinstance(kind, str) and kind not in TYPES:
            faults.append(
                ((name,), f"unknown type {kind!r:.60}; {near(kind, TYPES) or 'one of ' + ', '.join(TYPES)}", kind)
            )
        elif not isinstance(kind, (str, Mapping)):
            faults.append(((name,), f"expected a type ({', '.join(TYPES)}) or a JSON Schema", kind))
    return refuse(faults) if faults else dict(value)


_SHAPE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "additionalProperties": {"anyOf": [{"enum": [*TYPES]}, {"type": "object"}]}},
    ]
}
Shape = Annotated[Any, PlainValidator(_shape), WithJsonSchema(_SHAPE_SCHEMA)]


class Prices(Record):
    """What a million tokens cost, in the currency of your choice."""

    input: float = Field(0.0, ge=0, le=1e6)
    output: float = Field(0.0, ge=0, le=1e6)


_OF_KIND = {
    "python": {"function"},
    "rest": {"url", "method", "headers", "json", "body", "timeout", "ok_codes"},
    "llm": {
        "base_url", "model", "api_key", "system", "prompt", "response_format", "options", "prices", "headers", "timeout",
    },
}  # fmt: skip
_NEEDED = {"python": ("function",), "rest": ("url",), "llm": ("base_url", "model", "prompt")}


class Skill(Record):
    """A named capability: a Python function, an HTTP call, or a chat with a language model."""

    kind: Literal["python", "rest", "llm"] = Field(description="python, rest or llm")
    description: str = ""
    requires: Shape = Field(default_factory=dict, description="names it needs, with or without their types")
    produces: Shape = Field(default_factory=dict, description="names it returns, with or without their types")
    function: Function | None = Field(None, description="of python: module:name, called with keywords")
    url: Text | None = Field(None, description="of rest; {name} is a bound value")
    method: Method | None = Field(None, description="of rest; default GET, or POST with json")
    headers: Headers = Field(default_factory=dict, description="of rest and llm")
    body: Any = Field(None, alias="json", description='of rest: what is sent as JSON; "{name}" is a bound value')
    ok_codes: Codes | None = Field(None, min_length=1, description="of rest: codes that count as success; default 2xx")
    timeout: Duration | None = Field(None, description="of rest and llm: longest time for one request")
    base_url: Text | None = Field(None, description="of llm: of any OpenAI-compatible service, https://host/v1")
    model: Text | None = Field(None, description="of llm")
    api_key: Text | None = Field(None, description="of llm: ${env.NAME}")
    system: Text | None = Field(None, description="of llm: what it is told first; {name} stands for a value")
    prompt: Text | None = Field(None, description="of llm: {name} stands for a value")
    response_format: Literal["json_schema", "json_object", "text"] = Field(
        "json_schema", description="of llm: how it is asked for JSON; what the service does not know is left out"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of llm: temperature, max_tokens, ...")
    prices: Prices | None = Field(None, description="of llm: per million tokens")

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Keys of another kind, and keys that this kind needs."""
        yield from super().conflicts(given)
        kind = given.get("kind")
        if not isinstance(kind, str) or kind not in _OF_KIND:
            return
        for key in given:
            homes = [name for name, keys in _OF_KIND.items() if key in keys]
            if homes and kind not in homes:
                yield key, f"works only with kind: {' or '.join(homes)}"
        for key in _NEEDED[kind]:
            if given.get(key) is None:
                yield key, f"a skill of kind {kind} needs {key}"
        if "json" in given and "body" in given:
            yield "body", "json and body are the same: keep json"


class SkillKeys(Record):
    """Which skill a step uses."""

    skill: Name = Field(description="a name under skills, or of an installed package")


# -- rest ------------------------------------------------------------------------------------------------------


class RestKeys(Record):
    """One HTTP request. ``{name}`` is a bound value: encoded in the URL, a value of its own in json."""

    url: Text = Field(description="with {name} for encoded values, ${name} for text as it is")
    method: Method | None = Field(None, description="default GET, or POST with json or text")
    headers: Headers = Field(default_factory=dict)
    body: Any = Field(None, alias="json", description='what is sent as JSON; "{name}" is a bound value')
    text: str | None = Field(None, description="what is sent as it is, instead of json")
    ok_codes: Codes | None = Field(None, min_length=1, description="codes that count as success; default 2xx")
    form: Answer = Field("json", alias="as", description="json, text, bytes or response (status, headers, body)")

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Also two bodies."""
        yield from super().conflicts(given)
        if given.get("json") is not None and given.get("text") is not None:
            yield "text", "json and text exclude each other: keep one"


AnySource = Annotated[Source, BeforeValidator(source_of)]
