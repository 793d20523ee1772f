"""What the user declared: pipeline, steps and blocks, as validated records.

The loader builds these from YAML or JSON, the Python API from arguments; nothing else makes them. A record that
exists has the right types and ranges; names, references and the graph are the compiler's to check. ``procflow schema``
prints the JSON Schema of ``Pipeline``. Workers never import this file (pydantic is heavy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from procflow import units
from procflow.units import Rate, Share

__all__ = [
    "AnyStep",
    "Block",
    "Defaults",
    "Function",
    "Graph",
    "Limits",
    "Map",
    "Merge",
    "Parallel",
    "Param",
    "Pipeline",
    "Retry",
    "Sequence",
    "Shell",
    "Split",
    "StepBase",
    "Subpipeline",
    "Transform",
]

NAME = r"^[A-Za-z_][A-Za-z0-9_-]{0,127}$"

Name = Annotated[str, Field(pattern=NAME)]
Duration = Annotated[
    float,
    BeforeValidator(units.duration),
    WithJsonSchema({"type": ["string", "number"], "examples": ["90s", "15m", "2h"]}),
]
Size = Annotated[int, BeforeValidator(units.size), WithJsonSchema({"type": "string", "examples": ["500MB", "4GiB"]})]
RateLimit = Annotated[
    Rate, BeforeValidator(units.rate), WithJsonSchema({"type": "string", "examples": ["10/s", "100/5m"]})
]


def _budget(value: object) -> int | Share:
    return units.share(value) if isinstance(value, str) and value.strip().endswith("%") else units.size(value)


def _tolerance(value: object) -> int | Share:
    if isinstance(value, str):
        return units.share(value) if value.strip() != "0%" else 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a tolerance; write a count such as 5, or a share such as 2%")
    return value


Budget = Annotated[
    Union[int, Share],
    BeforeValidator(_budget),
    WithJsonSchema({"type": "string", "examples": ["80%", "8GB"]}),
]
Tolerance = Annotated[
    Union[int, Share],
    BeforeValidator(_tolerance),
    WithJsonSchema({"type": ["integer", "string"], "examples": [5, "2%"]}),
]


def _function(value: object) -> object:
    if callable(value):
        return value
    if isinstance(value, str):
        module, _, name = value.partition(":")
        if not module or not name or not all(p.isidentifier() for p in (module + "." + name).split(".")):
            raise ValueError(f"{value!r} does not name a function; write module:name")
        return value
    raise ValueError("a function is written module:name")


Function = Annotated[Any, BeforeValidator(_function), WithJsonSchema({"type": "string", "examples": ["module:name"]})]
"""``module:name`` in files; in Python any callable."""

ExecutorName = Literal["processes", "threads", "inline"]
OnError = Literal["stop", "finish", "continue"]
RetryCause = str


class Record(BaseModel):
    """Base of all declared records: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True)


class Retry(Record):
    """When and how often a failed task runs again; ``retries`` are extra attempts."""

    retries: int = Field(0, ge=0, le=1000, description="extra attempts after the first")
    delay: Duration = Field(1.0, description="pause before the first extra attempt")
    backoff: float = Field(2.0, ge=1, le=100, description="factor by which the pause grows")
    max_delay: Duration = Field(300.0, description="longest pause")
    jitter: bool = Field(True, description="spread pauses by up to half of themselves, from the run's seed")
    on: tuple[RetryCause, ...] = Field(
        ("error", "timeout", "crash", "oom"),
        description="causes (error, timeout, crash, oom) and names of exception classes",
    )

    @field_validator("on", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _names(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Names = Annotated[
    tuple[Name, ...],
    BeforeValidator(_names),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class StepBase(Record):
    """The keys of every step."""

    name: Name | None = Field(None, description="unique in its block; default step_<position>")
    description: str = ""
    enabled: bool = Field(True, description="false leaves the step out, with all it would publish")
    inputs: tuple[Any, ...] | dict[str, Any] = Field(
        (), description="names of values: a list passes them in order, a mapping by keyword"
    )
    params: dict[str, Any] = Field(default_factory=dict, description="constants for the step; may hold ${...}")
    output: Name | None = Field(None, description="name of the published value; default the step's name")
    outputs: tuple[Name, ...] | Literal["*"] | None = Field(
        None, description='several names, from a mapping or a tuple; "*" publishes every key'
    )
    depends_on: Names = Field((), description="members of the same block that must succeed first")
    when: str | bool | None = Field(None, description="condition over values; false skips the step")
    executor: ExecutorName | None = Field(None, description="where the step runs")
    cpus: int = Field(1, ge=1, le=4096, description="cores, and BLAS threads")
    memory: Size | None = Field(None, description="peak memory of one task")
    resources: dict[Name, float] = Field(default_factory=dict, description="named resources of limits.resources")
    timeout: Duration | None = Field(None, description="clock of one attempt, or of a whole block")
    idle_timeout: Duration | None = Field(None, description="longest time without step.heartbeat or step.progress")
    kill_grace: Duration | None = Field(None, description="time between asking a step to stop and killing it")
    retries: int | None = Field(None, ge=0, le=1000, description="extra attempts")
    retry: Retry | None = Field(None, description="long form of retries")
    on_error: OnError | None = Field(None, description="a step: stop or continue; a block: what a failed member does")
    priority: int = Field(0, ge=-1_000_000, le=1_000_000, description="higher starts first")
    rate_limit: RateLimit | None = Field(None, description="most starts in a time")

    @field_validator("inputs", "outputs", mode="before")
    @classmethod
    def _tuples(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("resources")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if not 0 < amount < 1e9:
                raise ValueError(f"{name}: {amount} is not a usable amount; write a number more than 0")
        return value

    @model_validator(mode="after")
    def _not_both(self) -> StepBase:
        if self.output is not None and self.outputs is not None:
            raise ValueError("output and outputs exclude each other: keep one")
        if self.retries is not None and self.retry is not None:
            raise ValueError("retries and retry exclude each other: keep one")
        return self


class Transform(StepBase):
    """A Python function, sync or async."""

    type: Literal["transform", "function"] = "transform"
    function: Function = Field(description="module:name; modules beside the pipeline file can be imported")


class Shell(StepBase):
    """A command. A list is run as it is; a string is run by ``sh -c`` with references quoted."""

    type: Literal["shell"] = "shell"
    command: str | tuple[Any, ...] = Field(description="a list of arguments, or a line for the shell")
    parse: Literal["text", "lines", "json"] | None = Field(
        None,
        description="publish stdout in this form; without it stdout goes to the log and the exit code is the value",
    )
    env: dict[str, Any] = Field(default_factory=dict, description="environment variables on top of the worker's")
    cwd: str | None = Field(None, description="working folder; default the pipeline's")
    stdin: Any = Field(None, description="text for standard input; may be ${...}")
    ok_codes: tuple[int, ...] = Field((0,), description="exit codes that count as success")

    @field_validator("command", "ok_codes", mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class Merge(StepBase):
    """Several named values into one."""

    type: Literal["merge"] = "merge"
    merge: Function = Field(
        "update", description="update, collect_all, first_success, best_quality, combine_outputs or module:name"
    )
    score: Function | None = Field(None, description="for best_quality: a key of the values, or module:name")

    @field_validator("merge", mode="before")
    @classmethod
    def _strategy(cls, value: object) -> object:
        return _merge(value)

    @field_validator("score", mode="before")
    @classmethod
    def _score_key(cls, value: object) -> object:
        return _score(value)


class Split(StepBase):
    """One value into several."""

    type: Literal["split"] = "split"
    strategy: Any = Field("chunks", description="duplicate, round_robin, chunks or module:name")
    into: int | None = Field(None, ge=1, le=100_000, description="how many parts; default one per name in outputs")

    @field_validator("strategy", mode="before")
    @classmethod
    def _strategies(cls, value: object) -> object:
        return value if value in ("duplicate", "round_robin", "chunks") else _function(value)


class Subpipeline(StepBase):
    """Another pipeline file as a step. It sees only its ``params`` and the values that ``inputs`` names."""

    type: Literal["pipeline"] = "pipeline"
    file: str = Field(description="path of the file, from this one")


MERGES = ("update", "collect_all", "first_success", "best_quality", "combine_outputs")


def _merge(value: object) -> object:
    if value is None or value in MERGES:
        return value
    if isinstance(value, str) and ":" not in value:
        raise ValueError(f"unknown merge {value!r}; write one of {', '.join(MERGES)}, or module:name")
    return _function(value)


def _score(value: object) -> object:
    return value if isinstance(value, str) and ":" not in value else _function(value)


class Block(StepBase):
    """A step that holds steps."""

    max_parallelism: int | None = Field(None, ge=1, le=1_000_000, description="members (or items) at once")
    tolerate: Tolerance | None = Field(None, description="with on_error: continue, failures that are allowed")
    join: Literal["all", "any"] | Annotated[int, Field(ge=1)] = Field(
        "all", description="enough successes: all, any or a number; the rest is cancelled"
    )
    merge: Any = Field(
        None, description="update, collect_all, first_success, best_quality, combine_outputs or module:name"
    )
    score: Any = Field(None, description="for best_quality: a key of the values, or module:name")

    @field_validator("merge", mode="before")
    @classmethod
    def _merges(cls, value: object) -> object:
        return _merge(value)

    @field_validator("score", mode="before")
    @classmethod
    def _scores(cls, value: object) -> object:
        return None if value is None else _score(value)


class Sequence(Block):
    """Members one after the other."""

    type: Literal["sequence"] = "sequence"
    steps: tuple[AnyStep, ...] = Field(min_length=1, strict=False)


class Parallel(Block):
    """Members at once, joined and merged at the end."""

    type: Literal["parallel"] = "parallel"
    steps: tuple[AnyStep, ...] = Field(min_length=1, strict=False)


class Graph(Block):
    """Each member starts as soon as its ``depends_on`` and the values it reads are there."""

    type: Literal["graph"] = "graph"
    steps: tuple[AnyStep, ...] = Field(min_length=1, strict=False)


class Items(Record):
    """Items of a map that are not a value: a range of numbers or files by pattern."""

    range: tuple[int, ...] | None = Field(None, description="[stop], [start, stop] or [start, stop, step]")
    glob: str | None = Field(None, description="files, sorted; ** descends; from the pipeline's folder")

    @field_validator("range", mode="before")
    @classmethod
    def _bounds(cls, value: object) -> object:
        if isinstance(value, list):
            if not 1 <= len(value) <= 3 or (len(value) == 3 and value[2] == 0):
                raise ValueError("a range is [stop], [start, stop] or [start, stop, step]")
            return tuple(value)
        return value

    @model_validator(mode="after")
    def _one(self) -> Items:
        if (self.range is None) == (self.glob is None):
            raise ValueError("items is a list, ${name}, {range: [...]} or {glob: pattern}")
        return self


class Map(Block):
    """One call, or a list of steps, per item."""

    type: Literal["map"] = "map"
    items: Any = Field(description="a list, ${name}, {range: [0, 10]} or {glob: 'data/*.csv'}")
    item_name: Name = Field("item", alias="as", description="name under which the steps read the item")
    function: Function | None = Field(None, description="called with each item, then inputs and params")
    steps: tuple[AnyStep, ...] | None = Field(None, min_length=1, strict=False, description="steps for each item")
    batch: int | None = Field(None, ge=1, le=1_000_000, description="items in one task; default measured")

    model_config = ConfigDict(populate_by_name=True)

    @field_validator("items", mode="before")
    @classmethod
    def _source(cls, value: object) -> object:
        if isinstance(value, dict):
            return Items.model_validate(value)
        if isinstance(value, (str, list, tuple, range, Items)):
            return value
        if isinstance(value, Iterable):
            return value
        raise ValueError("items is a list, ${name}, {range: [...]} or {glob: pattern}")

    @model_validator(mode="after")
    def _one_body(self) -> Map:
        if (self.function is None) == (self.steps is None):
            raise ValueError("a map has either function or steps")
        return self


def _step_tag(value: object) -> str:
    kind = value.get("type", "transform") if isinstance(value, dict) else getattr(value, "type", "transform")
    return "transform" if kind == "function" else str(kind)


AnyStep = Annotated[
    Union[
        Annotated[Transform, Tag("transform")],
        Annotated[Shell, Tag("shell")],
        Annotated[Merge, Tag("merge")],
        Annotated[Split, Tag("split")],
        Annotated[Subpipeline, Tag("pipeline")],
        Annotated[Sequence, Tag("sequence")],
        Annotated[Parallel, Tag("parallel")],
        Annotated[Graph, Tag("graph")],
        Annotated[Map, Tag("map")],
    ],
    Discriminator(_step_tag),
]


class Limits(Record):
    """What a run may use of the machine."""

    workers: int | Literal["auto"] = Field("auto", description="slots; auto is the usable cores")
    memory: Budget = Field(Share(0.8), description="budget for all running steps, as a size or a share")
    timeout: Duration | None = Field(None, description="clock of the whole run")
    resources: dict[Name, float] = Field(default_factory=dict, description="named resources that steps may ask for")

    @field_validator("workers")
    @classmethod
    def _some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 4096:
            raise ValueError(f"{value} is not a number of workers; write auto or 1 to 4096")
        return value


class Defaults(Record):
    """Keys that every leaf step inherits unless it sets them itself."""

    executor: ExecutorName | None = None
    cpus: int | None = Field(None, ge=1, le=4096)
    memory: Size | None = None
    timeout: Duration | None = None
    idle_timeout: Duration | None = None
    kill_grace: Duration | None = None
    retries: int | None = Field(None, ge=0, le=1000)
    retry: Retry | None = None


class Param(Record):
    """A parameter with a default and a text for people; without a default it must be given."""

    default: Any = None
    required: bool = False
    help: str = ""


class Pipeline(Record):
    """A declared pipeline. Its top steps are a sequence unless ``type: graph``."""

    name: Name
    description: str = ""
    type: Literal["sequence", "graph"] = "sequence"
    params: dict[Name, Any] = Field(default_factory=dict)
    limits: Limits = Limits()
    defaults: Defaults = Defaults()
    on_error: OnError = "stop"
    tolerate: Tolerance | None = None
    show: Names = Field((), description="values that the run command prints when the run succeeded")
    steps: tuple[AnyStep, ...] = Field(min_length=1, strict=False)

    @field_validator("params")
    @classmethod
    def _specs(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {name: _param(spec) for name, spec in value.items()}


def _param(spec: object) -> Param:
    if isinstance(spec, Param):
        return spec
    if isinstance(spec, dict) and spec and set(spec) <= {"default", "help", "required"}:
        return (
            Param(**spec)
            if "default" in spec
            else Param(required=True, **{k: v for k, v in spec.items() if k == "help"})
        )
    return Param(default=spec)


Callback = Callable[..., Any]

for _model in (Sequence, Parallel, Graph, Map, Pipeline):
    _model.model_rebuild()
