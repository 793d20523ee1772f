"""What the user declared: pipeline, steps and blocks, as validated records.

The loader builds these from YAML or JSON, the Python API from arguments; nothing else makes them. A record that
exists has the right types and ranges, and holds no key that its type can't honour; names, references and the graph are
the compiler's to check. The grammars of single keys are in ``grammar.py``. Workers never import this file (pydantic is heavy).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, field_validator
from typing_extensions import TypeAliasType

from procflow.grammar import (  # isort: skip
    MERGES, NAME, Amount, Command, Duration, Environment, Function, Inputs, Join, Name, Names, Outputs, Pause,
    RateLimit, Score, Secrets, Size, SplitStrategy, Stdin, Strategy, Text, Tolerance, When,
)  # fmt: skip
from procflow.record import (  # isort: skip
    FILES_SCHEMA, ITEMS_SCHEMA, Conflicts, Defaults, ExecutorName, Files, Given, Items, Later, Limits, Param, Record, Retry,
    Timeout, files_of, is_relative, items_of, param, retry_conflicts,
)  # fmt: skip
from procflow.record_sources import AnySource, QueryKeys, RestKeys, Skill, SkillKeys  # isort: skip
from procflow.record_state import ReduceKeys, SharedKeys  # isort: skip

__all__ = [
    "MERGES", "NAME", "STEP_TYPES", "AnyStep", "Block", "Defaults", "Function", "Graph", "Items", "Limits", "Map", "Merge",
    "Parallel", "Param", "Pipeline", "Query", "Record", "Rest", "Retry", "Sequence", "Shell", "Split", "StepBase", "Subpipeline",
    "Transform", "UseSkill", "step_tag",
]  # fmt: skip

OnError = Literal["stop", "finish", "continue"]


def _tolerate_conflicts(given: Given) -> Conflicts:
    if given.get("tolerate") is not None and given.get("on_error") in ("stop", "finish"):
        yield "tolerate", f"works only with on_error: continue, not with {given['on_error']}"


def _score_conflicts(given: Given) -> Conflicts:
    best = given.get("merge") == "best_quality"
    if given.get("score") is not None and not best:
        yield "score", "works only with merge: best_quality"
    elif best and given.get("score") is None:
        yield "merge", "best_quality needs score: a key of the values, or module:name"


_CONTESTED = frozenset({"outputs", "retry", "timeout", "cache", "on_error"})  # without these, no keys contradict others


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
    timeout: Timeout | None = Field(
        None, description="clock of one attempt, or of a whole block; 300% of a step is three times its learned median"
    )
    idle_timeout: Duration | None = Field(None, description="longest time without step.heartbeat or step.progress")
    kill_grace: Pause | None = Field(None, description="time between asking a step to stop and killing it")
    retries: int | None = Field(None, ge=0, le=1000, description="extra attempts")
    retry: Retry | None = Field(None, description="long form of retries")
    on_error: OnError | None = Field(None, description="a step: stop or continue; a block: what a failed member does")
    files: Annotated[Files | None, BeforeValidator(files_of), WithJsonSchema(FILES_SCHEMA)] = Field(
        None, description="files that the step reads and no step makes; one that changed runs it again in a resume"
    )
    priority: int = Field(0, ge=-1_000_000, le=1_000_000, description="higher starts first")
    rate_limit: RateLimit | None = Field(None, description="most starts in a time")
    cache: bool | None = Field(
        None, description="true keeps the result of the last run while code, inputs and all it builds on are the same"
    )
    transient: bool = Field(False, description="large values in shared memory, without a checkpoint for resume")
    on_success: tuple[AnyStep, ...] = Field((), strict=False, description="steps that run once it has succeeded")
    on_failure: tuple[AnyStep, ...] = Field((), strict=False, description="steps that run once it has failed for good")
    on_finish: tuple[AnyStep, ...] = Field((), strict=False, description="steps that run once it has ended anyhow")

    refused: ClassVar[Mapping[str, str]] = {}
    """Keys of every step that steps of this type can't honour, with what to do instead."""

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """Keys that exclude each other, and keys that this type of step can't honour."""
        if _CONTESTED.isdisjoint(given) and cls.refused.keys().isdisjoint(given):
            return
        if given.get("output") is not None and given.get("outputs") is not None:
            yield "outputs", "output and outputs exclude each other: keep one"
        yield from retry_conflicts(given)
        yield from cls.not_honoured(given, cls.refused)
        blocks = issubclass(cls, (Block, Subpipeline)) and given.get("function") is None
        if blocks and is_relative(given.get("timeout")):
            yield (
                "timeout",
                "a share of what was learned is for single steps: write a duration, or it on the steps inside",
            )
        if given.get("cache") and given.get("transient"):
            yield "transient", "it leaves nothing that the next run could keep: leave out cache or transient"
        if given.get("on_error") == "finish" and not issubclass(cls, Block) and "on_error" not in cls.refused:
            yield "on_error", "finish is for blocks; a step says stop or continue"

    @classmethod
    def not_honoured(cls, given: Given, refused: Mapping[str, str]) -> Conflicts:
        """The given keys among ``refused``."""
        if refused.keys().isdisjoint(given):
            return
        kind = {"Subpipeline": "pipeline", "UseSkill": "skill"}.get(cls.__name__, cls.__name__.lower())
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
    "files": "write it on the steps inside",
    "cache": _ON_MEMBERS,
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


class Query(QueryKeys, StepBase):
    """Rows from a source, or a change there. Without ``executor`` and clocks it runs on threads."""

    type: Literal["query"] = "query"


class UseSkill(SkillKeys, StepBase):
    """A named capability; it publishes what the skill produces."""

    type: Literal["skill"] = "skill"


class Rest(RestKeys, StepBase):
    """One HTTP request. Without ``executor`` and clocks it runs on threads."""

    type: Literal["rest"] = "rest"


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
        "files": "write it in the file",
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


class Map(ReduceKeys, Block):
    """One call, or a list of steps, per item."""

    type: Literal["map"] = "map"
    items: Annotated[Any, BeforeValidator(items_of), WithJsonSchema(ITEMS_SCHEMA)] = Field(
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
    "transform": Transform, "function": Transform, "query": Query, "skill": UseSkill, "shell": Shell, "rest": Rest,
    "merge": Merge, "split": Split,
    "pipeline": Subpipeline, "sequence": Sequence, "parallel": Parallel, "graph": Graph, "map": Map,
}  # fmt: skip
"""Every value of ``type`` with its record."""
_TAGS: dict[type, str] = {kind: f"<{name}>" for name, kind in STEP_TYPES.items() if name != "function"}


def step_tag(value: object) -> str:
    """The union tag of a declared step, ``<map>``: never a key that a user could write, so that error paths stay clear."""
    if (known := _TAGS.get(type(value))) is not None:
        return known
    if not isinstance(value, (dict, StepBase)):
        return "<transform>"
    written = value if isinstance(value, dict) else {"type": getattr(value, "type", "")}
    kind = written.get("type", "transform" if "function" in written else "")
    return f"<{'transform' if kind == 'function' else kind}>" if isinstance(kind, str) and len(kind) < 100 else "<>"


if TYPE_CHECKING:
    AnyStep = Union[
        Transform, Query, UseSkill, Shell, Rest, Merge, Split, Subpipeline, Sequence, Parallel, Graph, Map
    ]  # fmt: skip
else:
    _STEPS = tuple(Annotated[record, Later(record), Tag(tag)] for record, tag in _TAGS.items())
    AnyStep = TypeAliasType("AnyStep", Annotated[Union[_STEPS], Discriminator(step_tag)])
"""Any step; an alias with a name, whose validator is built once and not anew for every key that holds steps."""


class Pipeline(SharedKeys):
    """A declared pipeline. Its top steps are a sequence unless ``type: graph``."""

    name: Name
    description: str = ""
    type: Literal["sequence", "graph"] = "sequence"
    params: dict[Name, Annotated[Param, BeforeValidator(param)]] = Field(default_factory=dict)
    secrets: Secrets = Field(
        default_factory=dict,
        description="environment variables, ${env.NAME}, whose values ${secrets.x} reads; never shown, never kept",
    )
    sources: dict[Name, AnySource] = Field(default_factory=dict, description="what queries are asked of, by name")
    skills: dict[Name, Skill] = Field(default_factory=dict, description="named capabilities of skill steps")
    limits: Limits = Field(default_factory=Limits)
    defaults: Defaults = Field(default_factory=Defaults)
    on_error: OnError = "stop"
    tolerate: Tolerance | None = None
    on_success: tuple[AnyStep, ...] = Field((), strict=False, description="steps that run once the run has succeeded")
    on_failure: tuple[AnyStep, ...] = Field((), strict=False, description="steps that run if it failed or was stopped")
    on_finish: tuple[AnyStep, ...] = Field((), strict=False, description="steps that run at the very end, after those")
    show: Names = Field((), description="values that the run command prints when the run succeeded")
    keep: Names = Field((), description="large values that stay on the disk though no step needs them any more")
    steps: tuple[AnyStep, ...] = Field(min_length=1, strict=False)

    @classmethod
    def conflicts(cls, given: Given) -> Conflicts:
        """``tolerate`` where a failure stops the run anyway."""
        return _tolerate_conflicts(given)
