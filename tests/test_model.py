"""The declared records: what a step may say, and that all of what is wrong is told, with its place in the tree."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from procflow import model
from procflow.errors import dotted
from procflow.loading.validation import problems
from procflow.units import Share

HUGE = 10**400
FN = "nightly:step"
LEAVES: dict[str, dict[str, Any]] = {
    "transform": {"type": "transform", "function": FN},
    "query": {"type": "query", "source": "db", "query": "SELECT {a}", "as": "arrow"},
    "skill": {"type": "skill", "skill": "rate"},
    "rest": {"type": "rest", "url": "https://host/{id}", "json": {"a": "{b}"}, "as": "response", "method": "PUT"},
    "shell": {"type": "shell", "command": ["true"]},
    "merge": {"type": "merge", "inputs": ["a", "b"]},
    "split": {"type": "split", "inputs": ["rows"], "into": 4},
    "pipeline": {"type": "pipeline", "file": "other.yaml"},
}
INNER = [{"function": FN}, {"function": FN}]
BLOCKS: dict[str, dict[str, Any]] = {
    "sequence": {"type": "sequence", "steps": INNER},
    "parallel": {"type": "parallel", "steps": INNER},
    "graph": {"type": "graph", "steps": INNER},
    "map with steps": {"type": "map", "items": "${rows}", "steps": INNER},
    "map with a function": {"type": "map", "items": "${rows}", "function": FN},
}
STEPS = LEAVES | BLOCKS


def pipeline(*steps: object, **keys: object) -> model.Pipeline:
    return model.Pipeline.model_validate({"name": "p", "steps": list(steps), **keys})


def complaints(*steps: object, **keys: object) -> dict[str, str]:
    """What is wrong, by dotted place; fails where nothing is."""
    with pytest.raises(ValidationError) as caught:
        pipeline(*steps, **keys)
    found = problems(caught.value)
    assert found
    for problem in found:
        assert problem.message
        assert not any(
            word in str(problem).lower() for word in ("pydantic", "input should", "http", "tuple", "validat", "<")
        )
    return {dotted(problem.loc): str(problem) for problem in found}


def only(*steps: object, **keys: object) -> str:
    """The one thing that is wrong."""
    found = complaints(*steps, **keys)
    assert len(found) == 1, found
    return next(iter(found.values()))


@pytest.mark.parametrize("kind", STEPS)
def test_every_type_of_step_can_be_declared(kind: str) -> None:
    (step,) = pipeline(STEPS[kind]).steps
    assert step.type == STEPS[kind]["type"]


COMMON: dict[str, Any] = {
    "name": "a", "description": "text", "enabled": False, "depends_on": ["b"], "when": "${x} > 1", "timeout": "5m", "retries": 2,
    "priority": 5, "rate_limit": "10/s", "executor": "threads", "output": "value",
}  # fmt: skip
MACHINE: dict[str, Any] = {
    "cpus": 2, "memory": "1GB", "resources": {"db": 1}, "idle_timeout": "1m", "kill_grace": "5s",
    "files": "data/*.csv",
}  # fmt: skip
OF_CALLS: dict[str, Any] = {"inputs": ["rows"], "params": {"a": 1}}


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("key", COMMON)
def test_the_common_keys_are_for_every_type(kind: str, key: str) -> None:
    pipeline({**STEPS[kind], key: COMMON[key]})


@pytest.mark.parametrize("kind", ["transform", "shell", "merge", "split", "map with a function"])
@pytest.mark.parametrize("key", MACHINE)
def test_keys_of_one_task_are_for_steps_that_make_tasks(kind: str, key: str) -> None:
    pipeline({**STEPS[kind], key: MACHINE[key]})


@pytest.mark.parametrize("kind", ["pipeline", "sequence", "parallel", "graph", "map with steps"])
@pytest.mark.parametrize("key", MACHINE)
def test_keys_of_one_task_are_refused_on_what_holds_tasks(kind: str, key: str) -> None:
    text = only({**STEPS[kind], key: MACHINE[key]})
    assert key in text
    assert "write it" in text


@pytest.mark.parametrize("kind", ["sequence", "parallel", "graph", "map with steps", "shell"])
@pytest.mark.parametrize("key", OF_CALLS)
def test_arguments_are_refused_where_nothing_is_called_with_them(kind: str, key: str) -> None:
    assert key in only({**STEPS[kind], key: OF_CALLS[key]})


@pytest.mark.parametrize("kind", BLOCKS)
def test_outputs_in_the_plural_are_refused_on_blocks(kind: str) -> None:
    assert "output names a merged value" in only({**BLOCKS[kind], "outputs": ["a", "b"]})


@pytest.mark.parametrize(
    ("step", "key", "words"),
    [
        ({**BLOCKS["sequence"], "max_parallelism": 2}, "max_parallelism", "one after the other"),
        ({**BLOCKS["sequence"], "join": "any"}, "join", "type: parallel"),
        ({**BLOCKS["parallel"], "join": 3}, "join", "3 of 2 members"),
        ({**BLOCKS["parallel"], "join": 0}, "join", "all, any"),
        ({**BLOCKS["parallel"], "join": True}, "join", "all, any"),
        ({**BLOCKS["parallel"], "join": "most"}, "join", "all, any"),
        ({**BLOCKS["parallel"], "tolerate": 1, "on_error": "stop"}, "tolerate", "on_error: continue"),
        ({**BLOCKS["parallel"], "tolerate": 1, "on_error": "finish"}, "tolerate", "on_error: continue"),
        ({**BLOCKS["parallel"], "score": "quality"}, "score", "best_quality"),
        ({**BLOCKS["parallel"], "merge": "best_quality"}, "merge", "score"),
        ({**BLOCKS["parallel"], "merge": "colect_all"}, "merge", "did you mean 'collect_all'"),
        ({**BLOCKS["parallel"], "merge": 5}, "merge", "module:name"),
        ({**BLOCKS["parallel"], "max_parallelism": 0}, "max_parallelism", "at least 1"),
        ({**BLOCKS["map with steps"], "batch": 5}, "batch", "only a function"),
        ({**BLOCKS["map with steps"], "function": FN}, "steps", "either function or steps"),
        ({"type": "map", "items": "${rows}"}, "function", "either function or steps"),
        ({**BLOCKS["map with a function"], "items": 5}, "items", "{range: [5]}"),
        ({**BLOCKS["map with a function"], "items": "data/*.csv"}, "items", "glob"),
        ({**BLOCKS["map with a function"], "items": {"range": [1, 2, 0]}}, "items.range", "never ends"),
        ({**BLOCKS["map with a function"], "items": {"range": [1, "x"]}}, "items.range[1]", "whole number"),
        ({**BLOCKS["map with a function"], "items": {"range": [HUGE]}}, "items.range[0]", "at most"),
        ({**BLOCKS["map with a function"], "items": {"range": [1], "glob": "x"}}, "items.glob", "items are"),
        ({**BLOCKS["map with a function"], "items": {}}, "items.range", "items are"),
        ({**BLOCKS["map with a function"], "items": {"golb": "x"}}, "items.golb", "did you mean 'glob'"),
        ({**LEAVES["transform"], "on_error": "finish"}, "on_error", "stop or continue"),
        ({**LEAVES["transform"], "on_error": "contine"}, "on_error", "did you mean 'continue'"),
        ({**LEAVES["transform"], "output": "a", "outputs": ["b"]}, "outputs", "keep one"),
        ({**LEAVES["transform"], "retries": 1, "retry": {"retries": 1}}, "retry", "keep one"),
        ({**LEAVES["transform"], "retry": {"delay": "5s"}}, "retry.delay", "retries"),
        ({**LEAVES["transform"], "retry": {"retries": 1, "delay": "10m"}}, "retry.delay", "max_delay"),
        ({**LEAVES["transform"], "retry": {"retries": 1, "on": "timout"}}, "retry.on", "did you mean 'timeout'"),
        ({**LEAVES["transform"], "retry": {"retries": 1, "on": ["error", "a b"]}}, "retry.on[1]", "exception class"),
        ({**LEAVES["transform"], "retry": {"retries": 1, "on": ["cancelled"]}}, "retry.on[0]", "never tried again"),
        ({**LEAVES["transform"], "retry": {"retries": 1, "on": []}}, "retry.on", "causes"),
        ({**LEAVES["transform"], "retry": {"retries": 1, "backoff": math.nan}}, "retry.backoff", "finite"),
        ({**LEAVES["transform"], "retry": {"retries": 1, "backoff": 0.5}}, "retry.backoff", "at least 1"),
        ({**LEAVES["transform"], "max_parallelism": 2}, "max_parallelism", "sequence, parallel, graph or map"),
        ({**LEAVES["transform"], "function": "nightly"}, "function", "module:name"),
        ({**LEAVES["transform"], "function": "a b:c"}, "function", "module:name"),
        ({**LEAVES["transform"], "function": "a:class"}, "function", "module:name"),
        ({**LEAVES["transform"], "outputs": []}, "outputs", "at least one"),
        ({**LEAVES["transform"], "outputs": ["a", "a"]}, "outputs[1]", "twice"),
        ({**LEAVES["transform"], "outputs": ["a", "b c"]}, "outputs[1]", "not a name"),
        ({**LEAVES["transform"], "outputs": "a"}, "outputs", "output: name"),
        ({**LEAVES["transform"], "inputs": "rows"}, "inputs", "write [rows]"),
        ({**LEAVES["transform"], "inputs": ["rows.0"]}, "inputs[0]", "write ${rows.0}"),
        ({**LEAVES["transform"], "inputs": ["rows", 5]}, "inputs[1]", "under params"),
        ({**LEAVES["transform"], "inputs": {"a": "two words"}}, "inputs.a", "under params"),
        ({**LEAVES["transform"], "inputs": {"a b": "rows"}}, "inputs.a b", "keyword"),
        ({**LEAVES["transform"], "when": 5}, "when", "condition"),
        ({**LEAVES["transform"], "when": ""}, "when", "empty"),
        ({**LEAVES["transform"], "enabled": "no"}, "enabled", "true or false"),
        ({**LEAVES["transform"], "enabled": None}, "enabled", "got nothing"),
        ({**LEAVES["transform"], "description": 5}, "description", "quotes"),
        ({**LEAVES["transform"], "depends_on": ["a", "b c"]}, "depends_on[1]", "not a name"),
        ({**LEAVES["transform"], "depends_on": {"a": 1}}, "depends_on", "expected a list"),
        ({**LEAVES["transform"], "resources": {"db": 0}}, "resources.db", "more than 0"),
        ({**LEAVES["transform"], "resources": {"db": math.inf}}, "resources.db", "finite"),
        ({**LEAVES["transform"], "resources": {"d b": 1}}, "resources.d b", "not a name"),
        ({**LEAVES["transform"], "params": [1]}, "params", "expected a mapping, got a list"),
        ({**LEAVES["shell"], "command": []}, "command", "list of arguments"),
        ({**LEAVES["shell"], "command": "  "}, "command", "empty"),
        ({**LEAVES["shell"], "command": ["ls", None]}, "command[1]", "text or a number"),
        ({**LEAVES["shell"], "command": ["ls", "a\0b"]}, "command[1]", "NUL"),
        ({**LEAVES["shell"], "env": {"A=B": "x"}}, "env.A=B", "environment variable"),
        ({**LEAVES["shell"], "env": {"A": True}}, "env.A", "quotes"),
        ({**LEAVES["shell"], "ok_codes": []}, "ok_codes", "at least 1"),
        ({**LEAVES["shell"], "ok_codes": [0, 256]}, "ok_codes[1]", "at most 255"),
        ({**LEAVES["shell"], "parse": "jsno"}, "parse", "did you mean 'json'"),
        ({**LEAVES["shell"], "outputs": ["a", "b"]}, "outputs", "parse: json"),
        ({**LEAVES["shell"], "stdin": 5}, "stdin", "expected text"),
        ({**LEAVES["merge"], "inputs": []}, "inputs", "needs inputs"),
        ({"type": "merge"}, "inputs", "needs inputs"),
        ({**LEAVES["merge"], "params": {"a": 1}}, "params", "inputs alone"),
        ({**LEAVES["merge"], "score": "x"}, "score", "best_quality"),
        ({**LEAVES["split"], "into": None}, "into", "number of parts"),
        ({**LEAVES["split"], "outputs": ["a", "b"]}, "into", "keep one"),
        ({**LEAVES["split"], "inputs": ["a", "b"]}, "inputs", "one name"),
        ({**LEAVES["split"], "params": {"a": 1}}, "params", "function of your own"),
        ({**LEAVES["split"], "strategy": "chunk"}, "strategy", "did you mean 'chunks'"),
        ({**LEAVES["split"], "strategy": "m:f"}, "into", "params"),
        ({**LEAVES["pipeline"], "on_error": "continue"}, "on_error", "in a block"),
        ({**LEAVES["pipeline"], "file": ""}, "file", "empty"),
        ({"type": "mpa", "items": [1]}, "type", "did you mean 'map'"),
        ({"type": 5}, "type", "unknown step type 5"),
        ({"name": "x"}, "", "has no type"),
        ("step", "", "expected a mapping"),
        (None, "", "expected a mapping, got nothing"),
    ],
)  # fmt: skip
def test_what_a_step_can_not_say_is_refused_at_its_place(step: Any, key: str, words: str) -> None:
    found = complaints(step)
    place = f"steps[0].{key}" if key else "steps[0]"
    assert list(found) == [place]
    assert words in found[place]


@pytest.mark.parametrize(
    "step",
    [
        {**BLOCKS["sequence"], "join": "all", "max_parallelism": None},
        {**BLOCKS["parallel"], "join": 2, "merge": "best_quality", "score": "quality"},
        {**BLOCKS["parallel"], "tolerate": "2%", "on_error": "continue"},
        {**BLOCKS["parallel"], "tolerate": 0, "merge": "m:f"},
        {**BLOCKS["parallel"], "inputs": [], "params": {}, "cpus": 1},
        {**BLOCKS["map with a function"], "tolerate": "1%", "batch": 10, "as": "row"},
        {**BLOCKS["map with a function"], "items": "rows"},
        {**BLOCKS["map with a function"], "items": [1, "a", {"b": None}]},
        {**BLOCKS["map with a function"], "items": {"glob": "data/**/*.csv"}},
        {**LEAVES["transform"], "inputs": {"a": "rows", "b": "${x.y}", "c": "${x}-${y}"}},
        {**LEAVES["transform"], "outputs": "*"},
        {
            **LEAVES["transform"],
            "retry": {"retries": 3, "delay": 0, "on": ["error", "ConnectionError", "socket.timeout", "oom"]},
        },
        {**LEAVES["transform"], "resources": {"db": 1, "gpu": 0.5}},
        {**LEAVES["transform"], "kill_grace": 0, "timeout": 5},
        {**LEAVES["transform"], "when": False},
        {**LEAVES["shell"], "command": "ls | wc", "parse": "json", "outputs": ["a", "b"], "env": {"A": 1, "B": "x"}},
        {**LEAVES["shell"], "command": ["head", "-n", 5]},
        {**LEAVES["split"], "into": None, "outputs": ["a", "b"]},
        {"type": "split", "strategy": "m:f", "params": {"a": 1}, "inputs": ["a", "b"]},
        {"type": "function", "function": FN},
    ],
)
def test_what_makes_sense_is_taken(step: dict[str, Any]) -> None:
    pipeline(step)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, HUGE, -HUGE, "0", "5", "10^30", [], {}])
@pytest.mark.parametrize("key", ["workers", "memory", "timeout", "resources"])
def test_limits_outside_their_bounds_are_refused(key: str, value: object) -> None:
    place = f"limits.{key}"
    written = {"db": value} if key == "resources" else value
    assert next(iter(complaints(STEPS["shell"], limits={key: written}))).startswith(place)


@pytest.mark.parametrize("value", [0, -1, 1.5, math.nan, math.inf, True, HUGE, "2", [], 4097])
@pytest.mark.parametrize("key", ["cpus", "retries"])
def test_counts_outside_their_bounds_are_refused(key: str, value: object) -> None:
    if key == "retries" and value == 0 and not isinstance(value, bool):
        assert pipeline({**STEPS["shell"], key: value}).steps[0].retries == 0
    else:
        assert list(complaints({**STEPS["shell"], key: value})) == [f"steps[0].{key}"]


@pytest.mark.parametrize("value", [500, "500"])
def test_a_bare_number_for_memory_says_what_to_write(value: object) -> None:
    assert "write 500MB or 500GiB" in only({**STEPS["shell"], "memory": value})
    assert "write 500MB or 500GiB" in only(STEPS["shell"], limits={"memory": value})


@pytest.mark.parametrize("value", [5, 5.0])
def test_a_whole_number_does_where_a_fraction_may_stand(value: float) -> None:
    (step,) = pipeline({**LEAVES["transform"], "retry": {"retries": 1, "backoff": value}, "timeout": value}).steps
    assert step.retry is not None
    assert step.retry.backoff == step.timeout == 5.0


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a/b",
        "..",
        ".hidden",
        "a\n",
        "\na",
        "a\0",
        "é",
        "x" * 129,
        "5a",
        "-a",
        "${a}",
        "a.b",
        5,
        True,
        ["a"],
        {"a": 1},
    ],
)
@pytest.mark.parametrize("key", ["name", "output"])
def test_names_outside_the_grammar_are_refused(key: str, name: object) -> None:
    assert list(complaints({**LEAVES["transform"], key: name})) == [f"steps[0].{key}"]


@pytest.mark.parametrize("name", ["a", "_", "A-1_b", "x" * 128])
def test_names_within_the_grammar_are_taken(name: str) -> None:
    assert pipeline({**LEAVES["transform"], "name": name, "output": name}, name=name).name == name


def test_parameters_are_constants_or_specifications() -> None:
    params = pipeline(
        LEAVES["transform"],
        params={
            "a": 1,
            "b": {"default": 2, "help": "text"},
            "c": {"help": "must be given"},
            "d": {"required": False},
            "e": {"x": 1},
        },
    ).params
    assert (params["a"].default, params["b"].default, params["b"].help) == (1, 2, "text")
    assert params["c"].required
    assert not params["d"].required
    assert params["e"].default == {"x": 1}


@pytest.mark.parametrize(
    ("params", "place", "words"),
    [
        ({"a": {"default": 1, "hlep": "x"}}, "params.a.hlep", "did you mean 'help'"),
        ({"a": {"default": 1, "other": "x"}}, "params.a.other", "{default: {...}}"),
        ({"a": {"default": 1, "required": True}}, "params.a.required", "keep one"),
        ({"a": {"help": 5}}, "params.a.help", "quotes"),
        ({"a b": 5}, "params.a b", "not a name"),
        ([1], "params", "a mapping"),
    ],
)
def test_wrong_parameters_are_refused_at_their_place(params: object, place: str, words: str) -> None:
    assert words in complaints(LEAVES["transform"], params=params)[place]


def test_everything_wrong_with_one_step_is_told_at_once() -> None:
    found = complaints(
        {
            "type": "parallel", "name": "a b", "join": "most", "cpus": 2, "tolerate": 1, "on_error": "stop", "bogus": 1,
            "steps": [{**LEAVES["shell"], "inputs": ["x"], "memory": 5}, {"type": "map", "items": 5}],
        }
    )  # fmt: skip
    assert sorted(found) == [
        "steps[0].bogus", "steps[0].cpus", "steps[0].join", "steps[0].name", "steps[0].steps[0].inputs", "steps[0].steps[0].memory",
        "steps[0].steps[1].function", "steps[0].steps[1].items", "steps[0].tolerate",
    ]  # fmt: skip


def test_a_misspelt_key_is_told_once_though_the_right_one_is_missing() -> None:
    assert "did you mean 'function'" in only({"type": "transform", "functoin": FN})
    assert "did you mean 'inputs'" in only({"type": "merge", "imputs": ["a"]})


@pytest.mark.parametrize("key", [k for k in model.Transform.model_fields if len(k) > 3])
def test_any_key_with_one_letter_missing_is_recognised(key: str) -> None:
    assert (
        f"did you mean {key!r}"
        in complaints({**LEAVES["transform"], key[:2] + key[3:]: 1})[f"steps[0].{key[:2] + key[3:]}"]
    )


def test_an_empty_list_of_steps_is_refused_once_and_a_bad_step_makes_no_list_empty() -> None:
    assert "expected at least 1, got 0" in only({"type": "parallel", "steps": []})
    assert list(complaints({"type": "parallel", "steps": [{"type": "nope"}]})) == ["steps[0].steps[0].type"]


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError):
        pipeline(LEAVES["transform"]).name = "other"  # type: ignore[misc]


def test_limits_default_to_all_cores_and_most_of_the_memory() -> None:
    limits = pipeline(LEAVES["transform"]).limits
    assert (limits.workers, limits.memory) == ("auto", Share(0.8))


def test_records_built_in_python_keep_callables_and_steps() -> None:
    inner = model.Transform(function=print, name="a")
    block = model.Parallel(steps=(inner,), merge=max)
    assert block.steps[0] is inner or block.steps[0] == inner
    assert block.merge is max
    assert pipeline(block).steps[0].type == "parallel"
