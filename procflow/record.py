"""Records: the base of everything declared, and the small ones: retry, items, limits, defaults, params.

The base is frozen and strict, and names all faults at once: those of single keys, and keys that contradict each other. Steps
and pipelines are in ``model.py``, which also passes these names on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from procflow import units
from procflow.grammar import (
    Amount,
    Budget,
    Duration,
    Name,
    Pause,
    RetryBudget,
    RetryOn,
    Size,
    Text,
    Workers,
    is_name,
)
from procflow.units import Share, Times

__all__ = [
    "ITEMS_SCHEMA", "NAMED", "Conflicts", "Defaults", "ExecutorName", "Given", "Items", "Later", "Limits", "Param", "Record",
    "Retry", "Timeout",
    "is_relative", "items_of", "param", "retry_conflicts",
]  # fmt: skip

Given = Mapping[str, Any]
Conflicts = Iterator["tuple[str, str]"]
"""Keys that can't stand as given, each with the reason."""

NAMED = "record"
"""In JSON Schema, the key of what stands for the record of that name."""

ExecutorName = Literal["processes", "threads", "inline"]

Timeout = Annotated[
    Union[float, Times],
    PlainValidator(units.timeout),
    WithJsonSchema({"type": ["string", "number"], "examples": ["90s", "15m", "2h", "300%"]}),
]
"""A duration, or a multiple of the median of earlier runs: ``300%`` is three times as long."""


class _Contradictory(dict[str, Any]):
    """What is known to hold keys that contradict each other, while its single keys are looked at."""


class Record(BaseModel):
    """Base of all declared records: frozen, no unknown keys, no silent conversion."""

    # Validators are built on first use: a run that loads a file needs only that of the pipeline.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False, defer_build=True
    )

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Keys that contradict each other or that this record can't honour; ``given`` is as written, unchecked."""
        return iter(())

    @model_validator(mode="before")
    @classmethod
    def _everything_at_once(cls, value: Any) -> Any:
        # A validator that runs after the fields would be silent while any field is wrong; people want the whole list.
        faults = list(cls.conflicts(value)) if isinstance(value, dict) and type(value) is not _Contradictory else []
        if not faults:
            return value
        details: list[InitErrorDetails] = []
        try:
            # Into an instance that nobody sees: a record with an ``__init__`` of its own would come here anew.
            cls.__pydantic_validator__.validate_python(_Contradictory(value), self_instance=cls.__new__(cls))
        except ValidationError as error:
            details = [
                _again(e["type"], e["msg"], e.get("ctx", {}), e["loc"], e["input"])
                for e in error.errors(include_url=False)
            ]
        details += [_again("conflict", reason, {}, (key,), value.get(key)) for key, reason in faults]
        raise ValidationError.from_exception_data(cls.__name__, details)

    @classmethod
    def given_keys(cls, given: Given) -> list[str]:
        """Keys that say something: neither null nor empty nor the default."""
        keys = []
        for key, value in given.items():
            field = cls.model_fields.get(key)
            if field is None or value is None or (isinstance(value, (list, tuple, dict)) and not value):
                continue
            if not (isinstance(value, (str, int)) and type(value) is type(field.default) and value == field.default):
                keys.append(key)
        return keys


class Later:
    """In a union of records: the validator of this one is built when the first of its kind is checked.

    Else all are, a tenth of the time that a small run takes, though a file has steps of two or three types. JSON Schema gets
    ``{NAMED: name}``, to be replaced by whoever makes it.
    """

    def __init__(self, record: type[Record]) -> None:
        self.record = record

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: object, handler: object) -> dict[str, Any]:
        return {NAMED: self.record.__name__}

    def _checked(self, value: Any) -> Record:
        return value if type(value) is self.record else self.record.model_validate(value)


def _again(
    kind: str, message: str, about: Mapping[str, Any], loc: tuple[int | str, ...], value: Any
) -> InitErrorDetails:
    # ``{reason}`` keeps braces of the message from being read as fields of a template.
    error = PydanticCustomError(kind, "{reason}", {**about, "reason": message})
    return InitErrorDetails(type=error, loc=loc, input=value)


def is_relative(timeout: object) -> bool:
    """Whether a timeout as written is a multiple of what was learned."""
    return isinstance(timeout, Times) or (isinstance(timeout, str) and timeout.strip().endswith("%"))


def retry_conflicts(given: Given) -> Conflicts:
    """``retries`` and ``retry`` together."""
    if given.get("retries") is not None and given.get("retry") is not None:
        yield "retry", "retries and retry exclude each other: keep one"


class Retry(Record):
    """When and how often a failed task runs again; ``retries`` are extra attempts."""

    retries: int = Field(0, ge=0, le=1000, description="extra attempts after the first")
    delay: Pause = Field(1.0, description="pause before the first extra attempt")
    backoff: float = Field(2.0, ge=1, le=100, description="factor by which the pause grows")
    max_delay: Pause = Field(300.0, description="longest pause")
    jitter: bool = Field(True, description="spread pauses by up to half of themselves, from the run's seed")
    on: RetryOn = Field(
        ("error", "timeout", "crash", "oom"),
        description="causes (error, timeout, idle, crash, oom, spawn) and names of exception classes",
    )

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """The other keys without ``retries``, and a first pause that the longest one cuts."""
        keys = cls.given_keys(given)
        if "retries" not in given and keys:
            yield keys[0], "works only with retries: the number of extra attempts"
        try:
            delay, longest = units.pause(given.get("delay", 1.0)), units.pause(given.get("max_delay", 300.0))
        except ValueError:
            return
        if delay > longest and ("delay" in keys or "max_delay" in keys):
            yield (
                "delay" if "delay" in keys else "max_delay",
                (f"the first pause ({delay:g} s) is longer than max_delay ({longest:g} s)"),
            )


class Items(Record):
    """Items of a map that are not a value: a range of numbers or files by pattern."""

    range: tuple[Annotated[int, Field(ge=-(10**15), le=10**15)], ...] | None = Field(
        None, min_length=1, max_length=3, description="[stop], [start, stop] or [start, stop, step]"
    )
    glob: Text | None = Field(None, description="files, sorted; ** descends; from the pipeline's folder")

    @field_validator("range", mode="before")
    @classmethod
    def _bounds(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Not exactly one of the two, or a range with step 0."""
        bounds = given.get("range")
        misspelt = given.keys() - cls.model_fields.keys()
        if (bounds is None) == (given.get("glob") is None) and not misspelt:
            yield "glob" if bounds is not None else "range", ITEMS_FORMS
        if isinstance(bounds, (list, tuple)) and len(bounds) == 3 and bounds[2] == 0:
            yield "range", "a step of 0 never ends"


class Files(Record):
    """Files that a step reads and no step of the pipeline makes: where they change, the step runs again in a resume."""

    paths: tuple[Text, ...] = Field(min_length=1, description="patterns; ** descends; from the pipeline's folder")
    hash: Literal["stat", "content"] = Field("stat", description="stat: time, size and inode; content: what is in them")

    @field_validator("paths", mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def files_of(value: object) -> object:
    """Declared files, checked: a pattern, several, or ``Files``."""
    if isinstance(value, (str, list, tuple)):
        return Files(paths=value)  # type: ignore[arg-type]
    return Files.model_validate(value) if isinstance(value, dict) else value


_PATHS: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
    ]
}
FILES_SCHEMA: dict[str, Any] = {
    "anyOf": [
        *_PATHS["anyOf"],
        {
            "type": "object",
            "properties": {"paths": _PATHS, "hash": {"enum": ["stat", "content"]}},
            "required": ["paths"],
            "additionalProperties": False,
        },
    ]
}

ITEMS_FORMS = "items are a list, ${name}, {range: [start, stop]} or {glob: pattern}"


def items_of(value: object) -> object:
    """What a map goes over, checked: a list, text with a reference, any iterable, or ``Items``."""
    if isinstance(value, dict):
        return Items.model_validate(value)
    if isinstance(value, str):
        if "${" in value or is_name(value):
            return value
        raise ValueError(f"{ITEMS_FORMS}; {value[:60]!r} is none of them")
    if isinstance(value, (Items, Iterable)):
        return value
    number = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**15
    raise ValueError(ITEMS_FORMS + (f"; write {{range: [{value}]}}" if number else ""))


ITEMS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "array"},
        {"type": "string"},
        {
            "type": "object",
            "properties": {
                "range": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
                "glob": {"type": "string"},
            },
            "additionalProperties": False,
        },
    ]
}


class Limits(Record):
    """What a run may use of the machine."""

    workers: Workers = Field("auto", description="slots; auto is the usable cores")
    memory: Budget = Field(Share(0.8), description="budget for all running steps, as a size or a share")
    pressure: Literal["auto", "off"] = Field(
        "auto", description="auto starts fewer steps while the machine is short of memory or cores; off does not look"
    )
    timeout: Duration | None = Field(None, description="clock of the whole run")
    resources: dict[Name, Amount] = Field(default_factory=dict, description="named resources that steps may ask for")
    retry_budget: RetryBudget = Field(
        Share(0.5),
        description="most retries of the whole run, as a share of its attempts; at least 10 are always allowed",
    )


class Defaults(Record):
    """Keys that every leaf step inherits unless it sets them itself."""

    executor: ExecutorName | None = None
    cpus: int | None = Field(None, ge=1, le=4096)
    memory: Size | None = None
    timeout: Timeout | None = None
    idle_timeout: Duration | None = None
    kill_grace: Pause | None = None
    retries: int | None = Field(None, ge=0, le=1000)
    retry: Retry | None = None
    cache: bool | None = None

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """``retries`` beside ``retry``."""
        return retry_conflicts(given)


class Param(Record):
    """A parameter with a default and a text for people; without a default it must be given."""

    default: Any = None
    required: bool = False
    help: str = ""

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """A default that could never be used."""
        if given.get("required") is True and given.get("default") is not None:
            yield "required", "a parameter with a default is not required: keep one"


def param(spec: object) -> object:
    """A parameter as declared: its default alone, or a mapping with ``default``, ``help``, ``required``."""
    if isinstance(spec, Param):
        return spec
    if isinstance(spec, dict) and {"default", "help", "required"} & spec.keys():
        return {"required": True, **spec} if "default" not in spec else spec
    return Param(default=spec)
