"""What the user declared: pipeline, steps and blocks, as validated records.

The loader builds these from YAML or JSON, the Python API from arguments; nothing else makes them. A record that
exists has the right types and ranges, and holds no key that its type can't honour; names, references and the graph are
the compiler's to check. The grammars of single keys are in ``grammar.py``. Workers never import this file (pydantic is heavy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, field_validator

from procflow import units

from procflow.grammar import (  # isort: skip
    MERGES, NAME, Amount, Budget, Command, Duration, Environment, Function, Inputs, Join, Name, Names, Outputs, Pause,
    RateLimit, RetryOn, Score, Size, SplitStrategy, Stdin, Strategy, Text, Tolerance, When, Workers, is_name,
)  # fmt: skip
from procflow.record import Conflicts, Given, Record
from procflow.units import Share

__all__ = [
    "MERGES", "NAME", "STEP_TYPES", "AnyStep", "Block", "Defaults", "Function", "Graph", "Items", "Limits", "Map", "Merge",
    "Parallel", "Param", "Pipeline", "Record", "Retry", "Sequence", "Shell", "Split", "StepBase", "Subpipeline", "Transform",
    "step_tag",
]  # fmt: skip

ExecutorName = Literal["processes", "threads", "inline"]
OnError = Literal["stop", "finish", "continue"]


def _retry_conflicts(given: Given) -> Conflicts:
    if given.get("retries") is not None and given.get("retry") is not None:
        yield "retry", "retries and retry exclude each other: keep one"


def _tolerate_conflicts(given: Given) -> Conflicts:
    if given.get("tolerate") is not None and given.get("on_error") in ("stop", "finish"):
        yield "tolerate", f"works only with on_error: continue, not with {given['on_error']}"


def _score_conflicts(given: Given) -> Conflicts:
    best = given.get("merge") == "best_quality"
    if given.get("score") is not None and not best:
        yield "score", "works only with merge: best_quality"
    elif best and given.get("score") is None:
        yield "merge", "best_quality needs score: a key of the values, or module:name"


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


class StepBase(Record):
    """The keys of every step."""

    name: Name | None = Field(None, description="unique in its block; default step_<position>")
    description: str = ""
    enabled: bool = Field(True, description="false leaves the step out, with all it would publish")
    inputs: Inputs = Field((), description="names of values: a list passes them in order, a mapping by keyword")
    params: dict[str, Any] = Field(default_factory=dict, description="constants for the step; may hold ${...}")
    output: Name | None = Field(None, description="name of the published value; default the step's name")
    outputs: Outputs = Field(None, description='several names, from a mapping or a tuple; "*" publishes every key')
    depends_on: Names = Field((), description="members of the same block that must succeed first")
    when: When = Field(None, description="condition over values; false skips the step")
    executor: ExecutorName | None = Field(None, description="where the step runs")
    cpus: int = Field(1, ge=1, le=4096, description="cores, and BLAS threads")
    memory: Size | None = Field(None, description="peak memory of one task")
    resources: dict[Name, Amount] = Field(default_factory=dict, description="named resources of limits.resources")
    timeout: Duration | None = Field(None, description="clock of one attempt, or of a whole block")
    idle_timeout: Duration | None = Field(None, description="longest time without step.heartbeat or step.progress")
    kill_grace: Pause | None = Field(None, description="time between asking a step to stop and killing it")
    retries: int | None = Field(None, ge=0, le=1000, description="extra attempts")
    retry: Retry | None = Field(None, description="long form of retries")
    on_error: OnError | None = Field(None, description="a step: stop or continue; a block: what a failed member does")
    priority: int = Field(0, ge=-1_000_000, le=1_000_000, description="higher starts first")
    rate_limit: RateLimit | None = Field(None, description="most starts in a time")

    refused: ClassVar[Mapping[str, str]] = {}
    """Keys of every step that steps of this type can't honour, with what to do instead."""

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Keys that exclude each other, and keys that this type of step can't honour."""
        if given.get("output") is not None and given.get("outputs") is not None:
            yield "outputs", "output and outputs exclude each other: keep one"
        yield from _retry_conflicts(given)
        yield from cls.not_honoured(given, cls.refused)
        if given.get("on_error") == "finish" and not issubclass(cls, Block) and "on_error" not in cls.refused:
            yield "on_error", "finish is for blocks; a step says stop or continue"

    @classmethod
    def not_honoured(cls, given: Given, refused: Mapping[str, str]) -> Conflicts:
        """The given keys among ``refused``."""
        kind = {"Subpipeline": "pipeline"}.get(cls.__name__, cls.__name__.lower())
        for key in cls.given_keys(given):
            if key in refused:
                yield key, f"has no meaning for a {kind} step: {refused[key]}"


_ON_MEMBERS = "write it on the steps inside, or under defaults"
_BLOCK_REFUSED = {
    "inputs": "the steps inside read values by themselves",
    "params": "write them on the steps inside",
    "outputs": "a block publishes what its steps publish; output names a merged value",
    "cpus": _ON_MEMBERS,
    "memory": _ON_MEMBERS,
    "resources": "write it on the steps inside",
    "idle_timeout": _ON_MEMBERS,
    "kill_grace": _ON_MEMBERS,
}


class Transform(StepBase):
    """A Python function, sync or async."""

    type: Literal["transform", "function"] = "transform"
    function: Function = Field(description="module:name; modules beside the pipeline file can be imported")


class Shell(StepBase):
    """A command. A list is run as it is; a string is run by ``sh -c`` with references quoted."""

    type: Literal["shell"] = "shell"
    command: Command = Field(description="a list of arguments, or a line for the shell")
    parse: Literal["text", "lines", "json"] | None = Field(
        None,
        description="publish stdout in this form; without it stdout goes to the log and the exit code is the value",
    )
    env: Environment = Field(default_factory=dict, description="environment variables on top of the worker's")
    cwd: Text | None = Field(None, description="working folder; default the pipeline's")
    stdin: Stdin = Field(None, description="text for standard input; may be ${...}")
    ok_codes: tuple[Annotated[int, Field(ge=0, le=255)], ...] = Field(
        (0,), min_length=1, description="exit codes that count as success"
    )

    refused: ClassVar[Mapping[str, str]] = {
        "inputs": "write ${name} in command, env or stdin",
        "params": "write ${...} in command, env or stdin",
    }

    @field_validator("ok_codes", mode="before")
    @classmethod
    def _lists(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Also several outputs from something that has no parts."""
        yield from super().conflicts(given)
        if given.get("outputs") is not None and given.get("parse") not in ("lines", "json"):
            yield "outputs", "several outputs need parse: json or parse: lines"


class Merge(StepBase):
    """Several named values into one."""

    type: Literal["merge"] = "merge"
    merge: Strategy = Field(
        "update", description="update, collect_all, first_success, best_quality, combine_outputs or module:name"
    )
    score: Score = Field(None, description="for best_quality: a key of the values, or module:name")

    refused: ClassVar[Mapping[str, str]] = {"params": "a merge works on its inputs alone"}

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Also a merge of nothing, and ``score`` without ``best_quality``."""
        yield from super().conflicts(given)
        yield from _score_conflicts(given)
        if given.get("inputs") is None or given["inputs"] in ((), [], {}):
            yield "inputs", "a merge step needs inputs: the names of the values to merge"


class Split(StepBase):
    """One value into several."""

    type: Literal["split"] = "split"
    strategy: SplitStrategy = Field("chunks", description="duplicate, round_robin, chunks or module:name")
    into: int | None = Field(None, ge=1, le=100_000, description="how many parts; default one per name in outputs")

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Also an unknown number of parts, and not exactly one value to split."""
        yield from super().conflicts(given)
        strategy, inputs, into = given.get("strategy", "chunks"), given.get("inputs"), given.get("into")
        outputs = given.get("outputs")
        count = len(outputs) if isinstance(outputs, (list, tuple)) else None
        if into is not None and count is not None and into != count:
            yield "into", f"differs from the number of names in outputs, {count}: keep one of them"
        if callable(strategy) or (isinstance(strategy, str) and ":" in strategy):
            if into is not None:
                yield "into", "has no meaning for a function of your own: pass it under params"
            return
        if into is None and count is None:
            yield "into", "a split needs into: the number of parts, or outputs: their names"
        if not isinstance(inputs, (list, tuple, dict)) or len(inputs) != 1:
            yield "inputs", "a split needs inputs with one name: the value to split"
        yield from cls.not_honoured(given, {"params": "only a function of your own takes them"})


class Subpipeline(StepBase):
    """Another pipeline file as a step. It sees only its ``params`` and the values that ``inputs`` names."""

    type: Literal["pipeline"] = "pipeline"
    file: Text = Field(description="path of the file, from this one")

    refused: ClassVar[Mapping[str, str]] = {
        "cpus": "write it in the file",
        "memory": "write it in the file",
        "resources": "write it in the file",
        "idle_timeout": "write it in the file",
        "kill_grace": "write it in the file",
        "on_error": "write it in the file, or put the step in a block with on_error: continue",
    }


class Block(StepBase):
    """A step that holds steps."""

    max_parallelism: int | None = Field(None, ge=1, le=1_000_000, description="members (or items) at once")
    tolerate: Tolerance | None = Field(None, description="with on_error: continue, failures that are allowed")
    join: Join = Field("all", description="enough successes: all, any or a number; the rest is cancelled")
    merge: Strategy = Field(
        None, description="update, collect_all, first_success, best_quality, combine_outputs or module:name"
    )
    score: Score = Field(None, description="for best_quality: a key of the values, or module:name")

    refused: ClassVar[Mapping[str, str]] = _BLOCK_REFUSED

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Also ``tolerate`` and ``score`` where nothing reads them, and more successes asked for than members."""
        yield from super().conflicts(given)
        yield from _tolerate_conflicts(given)
        yield from _score_conflicts(given)
        need, steps = given.get("join"), given.get("steps")
        if cls is not Map and isinstance(need, int) and isinstance(steps, (list, tuple)) and need > len(steps):
            yield "join", f"{str(need)[:20]} of {len(steps)} members can never succeed"


class Sequence(Block):
    """Members one after the other."""

    type: Literal["sequence"] = "sequence"
    steps: tuple[AnyStep, ...] = Field(min_length=1, strict=False)

    refused: ClassVar[Mapping[str, str]] = _BLOCK_REFUSED | {
        "max_parallelism": "its members run one after the other",
        "join": "its members run one after the other; use type: parallel",
    }


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
        if (bounds is None) == (given.get("glob") is None):
            yield "glob" if bounds is not None else "range", ITEMS_FORMS
        if isinstance(bounds, (list, tuple)) and len(bounds) == 3 and bounds[2] == 0:
            yield "range", "a step of 0 never ends"


ITEMS_FORMS = "items are a list, ${name}, {range: [start, stop]} or {glob: pattern}"


def _items(value: object) -> object:
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


_ITEMS_SCHEMA: dict[str, Any] = {
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


class Map(Block):
    """One call, or a list of steps, per item."""

    type: Literal["map"] = "map"
    items: Annotated[Any, BeforeValidator(_items), WithJsonSchema(_ITEMS_SCHEMA)] = Field(
        description="a list, ${name}, {range: [0, 10]} or {glob: 'data/*.csv'}"
    )
    item_name: Name = Field("item", alias="as", description="name under which the steps read the item")
    function: Function | None = Field(None, description="called with each item, then inputs and params")
    steps: tuple[AnyStep, ...] | None = Field(None, min_length=1, strict=False, description="steps for each item")
    batch: int | None = Field(None, ge=1, le=1_000_000, description="items in one task; default measured")

    model_config = ConfigDict(populate_by_name=True)
    refused: ClassVar[Mapping[str, str]] = {"outputs": _BLOCK_REFUSED["outputs"]}

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Also not exactly one of ``function`` and ``steps``; with ``steps`` the map is a block like others."""
        yield from super().conflicts(given)
        function, steps = given.get("function"), given.get("steps")
        if (function is None) == (steps is None):
            yield "steps" if steps is not None else "function", "a map has either function or steps"
        elif steps is not None:
            refused = {k: v for k, v in _BLOCK_REFUSED.items() if k not in cls.refused}
            yield from cls.not_honoured(given, refused | {"batch": "only a function is called in batches"})
        if "as" in given and "item_name" in given:
            yield "item_name", "as and item_name are the same: keep as"


STEP_TYPES: dict[str, type[StepBase]] = {
    "transform": Transform, "function": Transform, "shell": Shell, "merge": Merge, "split": Split,
    "pipeline": Subpipeline, "sequence": Sequence, "parallel": Parallel, "graph": Graph, "map": Map,
}  # fmt: skip
"""Every value of ``type`` with its record."""


def step_tag(value: object) -> str:
    """The union tag of a declared step, ``<map>``: never a key that a user could write, so that error paths stay clear."""
    if not isinstance(value, (dict, StepBase)):
        return "<transform>"
    written = value if isinstance(value, dict) else {"type": getattr(value, "type", "")}
    kind = written.get("type", "transform" if "function" in written else "")
    return f"<{'transform' if kind == 'function' else kind}>" if isinstance(kind, str) and len(kind) < 100 else "<>"


AnyStep = Annotated[
    Union[
        Annotated[Transform, Tag("<transform>")],
        Annotated[Shell, Tag("<shell>")],
        Annotated[Merge, Tag("<merge>")],
        Annotated[Split, Tag("<split>")],
        Annotated[Subpipeline, Tag("<pipeline>")],
        Annotated[Sequence, Tag("<sequence>")],
        Annotated[Parallel, Tag("<parallel>")],
        Annotated[Graph, Tag("<graph>")],
        Annotated[Map, Tag("<map>")],
    ],
    Discriminator(step_tag),
]


class Limits(Record):
    """What a run may use of the machine."""

    workers: Workers = Field("auto", description="slots; auto is the usable cores")
    memory: Budget = Field(Share(0.8), description="budget for all running steps, as a size or a share")
    timeout: Duration | None = Field(None, description="clock of the whole run")
    resources: dict[Name, Amount] = Field(default_factory=dict, description="named resources that steps may ask for")


class Defaults(Record):
    """Keys that every leaf step inherits unless it sets them itself."""

    executor: ExecutorName | None = None
    cpus: int | None = Field(None, ge=1, le=4096)
    memory: Size | None = None
    timeout: Duration | None = None
    idle_timeout: Duration | None = None
    kill_grace: Pause | None = None
    retries: int | None = Field(None, ge=0, le=1000)
    retry: Retry | None = None

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """``retries`` beside ``retry``."""
        return _retry_conflicts(given)


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


def _param(spec: object) -> object:
    if isinstance(spec, Param):
        return spec
    if isinstance(spec, dict) and {"default", "help", "required"} & spec.keys():
        return {"required": True, **spec} if "default" not in spec else spec
    return Param(default=spec)


class Pipeline(Record):
    """A declared pipeline. Its top steps are a sequence unless ``type: graph``."""

    name: Name
    description: str = ""
    type: Literal["sequence", "graph"] = "sequence"
    params: dict[Name, Annotated[Param, BeforeValidator(_param)]] = Field(default_factory=dict)
    limits: Limits = Field(default_factory=Limits)
    defaults: Defaults = Field(default_factory=Defaults)
    on_error: OnError = "stop"
    tolerate: Tolerance | None = None
    show: Names = Field((), description="values that the run command prints when the run succeeded")
    steps: tuple[AnyStep, ...] = Field(min_length=1, strict=False)

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """``tolerate`` where a failure stops the run anyway."""
        return _tolerate_conflicts(given)


Callback = Callable[..., Any]
