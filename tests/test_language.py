"""The pipeline language end to end: each rule of it in a pipeline that runs, in fake time and for real in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from procflow import Graph, Map, Merge, Parallel, Pipeline, Sequence, Shell, Split, Step, StepOutput, api
from procflow.result import RunResult
from procflow.testing import Act, Script, run_fake


def run(*steps: Any, script: Script | None = None, given: Mapping[str, Any] | None = None, **keys: Any) -> RunResult:
    """Run in fake time; ``given`` are parameters of the run, ``keys`` those of the pipeline."""
    return run_fake(Pipeline("p", steps=steps, **keys), script=script, params=given)


def outputs(*steps: Any, **keys: Any) -> dict[str, Any]:
    result = run(*steps, **keys)
    assert result.status == "succeeded", (result.reason, result.failures)
    return dict(result.outputs)


def statuses(result: RunResult) -> dict[str, str]:
    return {label: record.status for label, record in result.steps.items()}


def value(x: Any) -> Any:
    """A function that returns ``x``."""
    return lambda *args, **named: x


def double(x: Any) -> Any:
    return x * 2


def add(*numbers: int) -> int:
    return sum(numbers)


def boom(*args: Any) -> None:
    raise ValueError("boom")


def even_only(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


# -- steps and values ------------------------------------------------------------------------------------------


def test_values_go_by_position_by_keyword_and_by_parameter() -> None:
    found = outputs(
        Step("a", value(2)), Step("b", value({"k": [5, 7]})),
        Step("c", add, inputs=["a", "${b.k.1}"]),
        Step("d", lambda x, y, z: f"{x}{y}{z}", inputs={"x": "a"}, params={"y": "${params.day}", "z": "<${b.k.0}>"}),
        params={"day": "mon"},
    )  # fmt: skip
    assert (found["c"], found["d"]) == (9, "2mon<5>")


def test_a_parameter_of_the_run_replaces_the_default_and_keeps_its_type() -> None:
    step = Step("a", double, params={"x": "${params.n}"})
    assert outputs(step, params={"n": 3})["a"] == 6
    assert outputs(step, params={"n": 3}, given={"n": [1]})["a"] == [1, 1]


@pytest.mark.parametrize("returned", [{"x": 1, "y": 2, "z": 3}, (1, 2)])
def test_several_outputs_come_from_a_mapping_or_a_tuple(returned: Any) -> None:
    if isinstance(returned, dict):
        returned.pop("z")
    found = outputs(Step("a", value(returned), outputs=["x", "y"]), Step("b", add, inputs=["y", "${a.output.x}"]))
    assert found["b"] == 3


def test_all_keys_of_a_mapping_are_published_and_read_by_later_steps() -> None:
    found = outputs(Step("a", value({"x": 1, "y": 2}), outputs="*"), Step("b", add, inputs=["x", "${a.output.y}"]))
    assert (found["x"], found["y"], found["b"]) == (1, 2, 3)


def test_a_steps_output_is_read_by_the_name_of_the_step() -> None:
    found = outputs(Step("a", value({"k": 3}), output="v"), Step("b", double, inputs=["${a.output.k}"]))
    assert found == {"v": {"k": 3}, "b": 6}


def test_functions_may_be_async_and_results_may_carry_costs_and_metrics() -> None:
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    result = run(Step("a", later, params={"x": 1}), Step("b", lambda a: StepOutput(a, cost=0.5), inputs=["a"]))
    assert dict(result.outputs) == {"a": 2, "b": 2}
    assert result.steps["b"].cost == 0.5


def test_disabled_steps_and_steps_that_never_run_leave_nothing() -> None:
    found = outputs(
        Step("a", value(1)),
        Step("b", boom, enabled=False),
        Step("c", boom, when=False),
        Parallel("p", Step("d", boom, enabled=False)),
    )
    assert found == {"a": 1}


def test_the_environment_is_read_where_the_pipeline_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCFLOW_TEST_WORD", "hello")
    p = Pipeline("p", steps=[Step("a", double, params={"x": "${env.PROCFLOW_TEST_WORD}"})])
    assert p.run(executor="inline", state_dir=tmp_path).outputs["a"] == "hellohello"


# -- blocks ----------------------------------------------------------------------------------------------------


def test_a_sequence_runs_in_order_and_publishes_what_its_steps_do() -> None:
    block = Sequence("s", Step("a", value(1)), Step("b", double, inputs=["a"]))
    assert outputs(block, Step("c", add, inputs=["a", "b"])) == {
        "a": 1, "b": 2, "c": 3,
    }  # fmt: skip


def test_a_parallel_block_takes_as_long_as_its_longest_member() -> None:
    block = Parallel("p", Step("a", value(1)), Step("b", value(2)))
    result = run(block, script={"a": Act(after_s=60), "b": Act(after_s=45)})
    assert result.metrics.wall_s == 60
    record = result.steps["p"].block
    assert record is not None
    assert (record.members, record.successful_count, record.failed_count) == (2, 2, 0)
    assert (record.wall_s, record.work_s, record.saved_s) == (60, 105, 45)


def test_max_parallelism_holds_members_back() -> None:
    steps = [Step(f"s{i}", value(i)) for i in range(4)]
    assert run(Parallel("p", *steps, max_parallelism=1)).metrics.wall_s == 4


def test_a_graph_runs_by_values_whatever_the_order_of_its_steps() -> None:
    found = outputs(
        Graph(
            "g",
            Step("d", add, inputs=["b", "c"]),
            Step("b", double, inputs=["a"]),
            Step("c", double, inputs=["b"]),
            Step("a", value(1)),
        )
    )
    assert found == {"a": 1, "b": 2, "c": 4, "d": 6}


def test_the_top_may_be_a_graph() -> None:
    assert outputs(Step("b", double, inputs=["a"]), Step("a", value(4)), type="graph") == {"a": 4, "b": 8}


def test_an_outer_value_stays_as_it_is_while_a_parallel_block_writes_it_anew() -> None:
    found = outputs(
        Step("x", value(1)),
        Parallel("p", Step("w", value(2), output="x"), Sequence("s", Step("r", double, inputs=["x"]))),
        Step("z", double, inputs=["x"]),
    )
    assert found == {"x": 2, "r": 2, "z": 4}


# -- merges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"a": 1, "b": 2}),
        ({"output": "o"}, {"o": {"a": 1, "b": 2}}),
        ({"merge": "collect_all"}, {"p": [1, 2], "p_errors": []}),
        ({"merge": "first_success", "output": "o"}, {"o": 1}),
        ({"merge": "combine_outputs"}, {"p": 3}),
        ({"merge": "best_quality", "score": lambda v: -v}, {"p": 1}),
        ({"merge": lambda members: sorted(members), "output": "names"}, {"names": ["a", "b"]}),
    ],
)
@pytest.mark.parametrize("kind", [Sequence, Parallel, Graph])
def test_merges_of_blocks(kind: Any, keys: dict[str, Any], expected: dict[str, Any]) -> None:
    assert outputs(kind("p", Step("a", value(1)), Step("b", value(2)), **keys)) == expected


def test_merges_are_in_declared_order_whoever_ends_first() -> None:
    steps = [Step(n, value(n)) for n in "abc"]
    script = {"a": Act(after_s=9), "b": Act(after_s=5), "c": Act(after_s=1)}
    result = run_fake(Pipeline("p", steps=[Parallel("p", *steps, merge="collect_all")]), script=script, slots=3)
    assert result.outputs["p"] == ["a", "b", "c"]


def test_members_that_publish_the_same_name_may_be_collected() -> None:
    assert outputs(
        Parallel("p", Step("a", value(1), output="v"), Step("b", value(2), output="v"), merge="collect_all")
    )["p"] == [1, 2]


def test_collect_all_with_failures_publishes_them_beside_the_successes() -> None:
    result = run(
        Parallel("p", Step("a", value(1)), Step("b", boom), merge="collect_all", on_error="continue"),
        Step("n", len, inputs=["p_errors"]),
    )
    assert result.status == "partial"
    assert result.outputs["p"] == [1]
    assert [(e["step"], e["type"]) for e in result.outputs["p_errors"]] == [("b", "ValueError")]
    assert result.outputs["n"] == 1


def test_merge_as_a_step_of_its_own() -> None:
    rows = [Step("a", value([1])), Step("b", value([2, 3]))]
    assert outputs(*rows, Merge("m", ["a", "b"], merge="combine_outputs"))["m"] == [1, 2, 3]
    assert outputs(*rows, Merge("m", {"x": "a", "y": "b"}, merge="collect_all"))["m"] == [[1], [2, 3]]
    assert outputs(*rows, Merge("m", ["a", "b"], merge="best_quality", score=len))["m"] == [2, 3]
    assert outputs(*rows, Merge("m", {"x": "a", "y": "b"}, merge=lambda v: sorted(v)))["m"] == ["x", "y"]
    pair = [Step("a", value({"k": 1})), Step("b", value({"k": 2, "l": 3}))]
    assert outputs(*pair, Merge("m", ["a", "b"]))["m"] == {"k": 2, "l": 3}


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [("chunks", [[0, 1, 2], [3, 4]]), ("round_robin", [[0, 2, 4], [1, 3]]), ("duplicate", [[0, 1, 2, 3, 4]] * 2)],
)
def test_splits(strategy: str, parts: list[list[int]]) -> None:
    rows = Step("rows", value([0, 1, 2, 3, 4]))
    assert outputs(rows, Split("s", "rows", strategy=strategy, into=2))["s"] == parts
    found = outputs(rows, Split("s", "rows", strategy=strategy, outputs=["x", "y"]), Step("n", len, inputs=["x"]))
    assert ([found["x"], found["y"]], found["n"]) == (parts, len(parts[0]))


def test_a_split_by_a_function_of_ones_own() -> None:
    def halves(rows: list[int], into: int | None, at: int) -> list[list[int]]:
        return [rows[:at], rows[at:]]

    rows = Step("rows", value([1, 2, 3]))
    own = Split("s", "rows", strategy=halves, params={"at": 1})
    assert outputs(rows, own)["s"] == [[1], [2, 3]]
    assert outputs(rows, Split("s", {"rows": "rows"}, strategy=halves, params={"at": 2}, outputs=["x", "y"]))["y"] == [
        3
    ]


# -- failures --------------------------------------------------------------------------------------------------


def test_on_error_stop_ends_the_siblings_and_what_follows() -> None:
    block = Parallel("p", Step("a", boom), Step("b", value(1)))
    result = run(block, Step("z", value(1)), script={"a": Act(after_s=1), "b": Act(after_s=100)})
    assert result.status == "failed"
    assert result.metrics.wall_s < 10
    assert statuses(result) == {"p/a": "failed", "p/b": "cancelled", "p": "failed", "z": "cancelled"}


def test_on_error_finish_lets_the_siblings_finish_and_then_fails() -> None:
    block = Parallel("p", Step("a", boom), Step("b", value(1)), on_error="finish")
    result = run(block, script={"a": Act(after_s=1), "b": Act(after_s=100)})
    assert (result.status, result.metrics.wall_s) == ("failed", 100)
    assert statuses(result) == {"p/a": "failed", "p/b": "succeeded", "p": "failed"}


def test_on_error_continue_goes_on_with_what_there_is() -> None:
    block = Parallel("p", Step("a", boom), Step("b", value(1)), on_error="continue")
    result = run(block, Step("z", double, inputs=["b"]))
    assert (result.status, dict(result.outputs)) == ("partial", {"b": 1, "z": 2})
    assert [f.label for f in result.failures] == ["p/a"]


def test_a_step_that_reads_what_failed_is_skipped_and_others_are_not() -> None:
    block = Parallel("p", Step("a", boom), Step("b", value(1)), on_error="continue")
    result = run(block, Step("y", double, inputs=["a"]), Step("z", double, inputs=["b"]))
    assert (statuses(result)["y"], statuses(result)["z"]) == ("skipped", "succeeded")


def test_a_step_may_say_itself_that_its_failure_is_tolerated() -> None:
    result = run(Step("a", boom, on_error="continue"), Step("b", value(1)))
    assert (result.status, dict(result.outputs)) == ("partial", {"b": 1})


@pytest.mark.parametrize(("tolerate", "status"), [(1, "failed"), (2, "partial"), ("49%", "failed"), ("50%", "partial")])
def test_a_tolerance_bounds_the_failures_of_a_block(tolerate: Any, status: str) -> None:
    steps = [Step("a", boom), Step("b", boom), Step("c", value(1)), Step("d", value(1))]
    assert run(Parallel("p", *steps, tolerate=tolerate)).status == status


@pytest.mark.parametrize(("join", "status", "wall_s"), [("any", "succeeded", 1), (2, "partial", 3), (3, "failed", 9)])
def test_enough_successes_end_a_block(join: Any, status: str, wall_s: float) -> None:
    steps = [Step("a", value(1)), Step("b", boom), Step("c", value(3)), Step("d", boom)]
    script = {"a": Act(after_s=1), "b": Act(after_s=2), "c": Act(after_s=3), "d": Act(after_s=9)}
    pipeline = Pipeline("p", steps=[Parallel("p", *steps, join=join, on_error="finish")])
    result = run_fake(pipeline, script=script, slots=4)
    assert result.status == status
    assert wall_s <= result.metrics.wall_s < wall_s + 3


def test_retries_come_after_growing_pauses() -> None:
    acts = [Act(after_s=1, raises=ValueError("x"))] * 3 + [Act(after_s=1)]
    step = Step("a", value(1), retry={"retries": 3, "delay": 10, "backoff": 2, "jitter": False})
    result = run(step, script={"a": acts})
    assert (result.status, result.steps["a"].attempts) == ("succeeded", 4)
    assert result.metrics.wall_s == 4 + 10 + 20 + 40


def test_retries_only_for_the_causes_that_are_listed() -> None:
    step = Step("a", value(1), retry={"retries": 3, "on": ["OSError"]})
    assert run(step, script={"a": Act(raises=ValueError("x"))}).steps["a"].attempts == 1
    assert run(step, script={"a": Act(raises=FileNotFoundError("x"))}).steps["a"].attempts == 4


def test_a_block_that_runs_again_keeps_what_succeeded() -> None:
    acts = [Act(raises=ValueError("x")), Act()]
    block = Sequence("s", Step("a", value(1)), Step("b", value(2)), retry={"retries": 1, "delay": 5, "jitter": False})
    result = run(block, script={"b": acts})
    assert (result.status, result.steps["s/a"].attempts, result.steps["s/b"].attempts) == ("succeeded", 1, 2)
    assert dict(result.outputs) == {"a": 1, "b": 2}


def test_timeouts_of_steps_blocks_and_the_run() -> None:
    hangs = {"a": Act(hangs=True)}
    result = run(Step("a", value(1), timeout="10s", kill_grace="1s"), script=hangs)
    assert (result.status, result.failures[0].failure.cause, result.metrics.wall_s) == ("failed", "timeout", 11)
    result = run(Parallel("p", Step("a", value(1)), Step("b", value(2)), timeout="1m"), script=hangs)
    assert (result.status, 60 <= result.metrics.wall_s < 70) == ("failed", True)
    assert run(Step("a", value(1)), limits={"timeout": "1m"}, script=hangs).status == "timed_out"


# -- conditions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "runs"),
    [
        ("a.n > 2", True), ("a.n > 3", False),
        ("${a.output.n} == 3 and params.mode == 'fast'", True), ("'x' in a.tags", True),
        ("not a.tags", False), ("len(a.tags) == 1", True), ("a.none is None", True), ("run.id == ''", False), (True, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["step", "block", "map"])
def test_conditions_of_steps_and_blocks(what: str, when: Any, runs: bool) -> None:
    a = Step("a", value({"n": 3, "tags": ["x"], "none": None}))
    if what == "step":
        conditional: Any = Step("b", value(1), when=when)
    elif what == "block":
        conditional = Parallel("blk", Step("b", value(1)), when=when)
    else:
        conditional = Map("b", double, items=[1], when=when)
    result = run(a, conditional, Step("c", value(1)), params={"mode": "fast"})
    assert result.status == "succeeded"
    assert ("b" in result.outputs, "c" in result.outputs) == (runs, True)
    assert statuses(result)["blk" if what == "block" else "b"] == ("succeeded" if runs else "skipped")


def test_a_condition_that_can_not_be_judged_fails_the_step() -> None:
    result = run(Step("a", value("x")), Step("b", value(1), when="a > 3"))
    assert result.status == "failed"
    assert "can't compare" in str(result.failures[0].failure)


def test_what_depends_on_a_skipped_step_is_skipped() -> None:
    result = run(
        Graph("g", Step("a", value(1), when="params.go"), Step("b", value(2), depends_on=["a"]), Step("c", value(3))),
        params={"go": False},
    )
    assert result.status == "succeeded"
    assert statuses(result) == {"g/a": "skipped", "g/b": "skipped", "g/c": "succeeded", "g": "succeeded"}


# -- maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([1, 2, 3], [2, 4, 6]),
        (range(4), [0, 2, 4, 6]),
        ({"range": [1, 8, 3]}, [2, 8, 14]),
        ("rows", [10, 12]),
        ("data.k", [2, 4]),
        ([], []),
        ("none", []),
        (("a", "b"), ["aa", "bb"]),
    ],
)
def test_a_map_calls_its_function_once_an_item_in_order(items: Any, expected: list[Any]) -> None:
    before = [Step("rows", value([5, 6])), Step("data", value({"k": [1, 2]})), Step("none", value([]))]
    assert outputs(*before, Map("m", double, items=items))["m"] == expected


def test_items_of_a_mapping_are_its_pairs() -> None:
    assert outputs(Step("d", value({"a": 1, "b": 2})), Map("m", lambda pair: pair[0] * pair[1], items="d"))["m"] == [
        "a",
        "bb",
    ]


def test_items_may_be_files(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / name).write_text(name)
    found = outputs(Map("m", os.path.basename, items={"glob": f"{tmp_path}/*.csv"}))
    assert found["m"] == ["a.csv", "b.csv"]


def test_a_maps_function_gets_inputs_and_params_and_may_name_item_and_index() -> None:
    found = outputs(
        Step("k", value(100)),
        Map("m", lambda row, k, i, x: (row["x"], k, i, x), items=[{"x": 1}, {"x": 2}], inputs=["k"], **{"as": "row"},
            params={"i": "${index}", "x": "${row.x}"}),
    )  # fmt: skip
    assert found["m"] == [(1, 100, 0, 1), (2, 100, 1, 2)]


def test_a_map_of_steps_gives_the_value_of_the_last() -> None:
    m = Map("m", Step("a", double, inputs=["item"]), Step("b", add, inputs=["a", "item", "index", "k"]), items=[1, 2])
    assert outputs(Step("k", value(100)), m)["m"] == [103, 107]


def test_a_map_of_steps_whose_last_publishes_several_values() -> None:
    m = Map("m", Step("a", lambda x: {"x": x, "y": -x}, inputs=["item"], outputs=["x", "y"]), items=[1, 2])
    assert outputs(m)["m"] == [{"x": 1, "y": -1}, {"x": 2, "y": -2}]


def test_maps_nest() -> None:
    inner = Map("inner", add, items="row", inputs=["k", "outer_i"], **{"as": "cell"})
    m = Map("m", Step("outer_i", double, inputs=["index"]), inner, items=[[1, 2], [3]], **{"as": "row"})
    assert outputs(Step("k", value(10)), m)["m"] == [[11, 12], [15]]


def test_blocks_inside_maps_and_maps_inside_blocks() -> None:
    body = [
        Parallel("p", Step("a", double, inputs=["item"]), Step("b", add, inputs=["item", "item"])),
        Step("c", add, inputs=["a", "b"]),
    ]
    assert outputs(Parallel("top", Map("m", *body, items=[1, 2]), Map("n", double, items=[5]))) == {
        "m": [4, 8],
        "n": [10],
    }


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"merge": "collect_all"}, {"m": [[1], [2]], "m_errors": []}),
        ({"merge": "first_success", "output": "o"}, {"o": [1]}),
        ({"merge": "combine_outputs"}, {"m": [1, 2]}),
        ({"merge": "best_quality", "score": sum}, {"m": [2]}),
        ({"merge": lambda rows: len(rows)}, {"m": 2}),
    ],
)
@pytest.mark.parametrize("form", ["function", "steps"])
def test_merges_of_maps(form: str, keys: dict[str, Any], expected: dict[str, Any]) -> None:
    body: list[Any] = [lambda x: [x]] if form == "function" else [Step("s", lambda x: [x], inputs=["item"])]
    assert outputs(Map("m", *body, items=[1, 2], **keys)) == expected


@pytest.mark.parametrize("form", ["function", "steps"])
def test_a_failed_item_fails_alone_within_the_tolerance(form: str) -> None:
    body: list[Any] = [even_only] if form == "function" else [Step("s", even_only, inputs=["item"])]
    result = run(Map("m", *body, items=range(6), tolerate="50%"), Step("n", len, inputs=["m"]))
    assert (result.status, result.outputs["m"], result.outputs["n"]) == ("partial", [0, 2, 4], 3)
    assert run(Map("m", *body, items=range(6), tolerate=2)).status == "failed"
    assert run(Map("m", *body, items=range(6))).status == "failed"


@pytest.mark.parametrize("form", ["function", "steps"])
def test_collect_all_of_a_map_tells_the_items_that_failed(form: str) -> None:
    body: list[Any] = [even_only] if form == "function" else [Step("s", even_only, inputs=["item"])]
    result = run(Map("m", *body, items=range(4), merge="collect_all", on_error="continue"))
    assert result.outputs["m"] == [0, 2]
    assert [e["item"] for e in result.outputs["m_errors"]] == [1, 3]


def test_items_that_fail_run_again() -> None:
    tries: list[int] = []

    def flaky(n: int) -> int:
        tries.append(n)
        if n == 2 and tries.count(2) < 3:
            raise ValueError("not yet")
        return n

    result = run(Map("m", flaky, items=range(4), retries=2))
    assert (result.status, result.outputs["m"], tries.count(2)) == ("succeeded", [0, 1, 2, 3], 3)


def test_items_that_are_no_list_fail_the_map_with_a_clear_word() -> None:
    result = run(Step("n", value("text")), Map("m", double, items="n"))
    assert result.status == "failed"
    assert statuses(result)["m"] == "failed"


# -- shell and other files -------------------------------------------------------------------------------------


def test_commands_take_references_as_single_words() -> None:
    nasty = "a b; echo pwned '$(id)'"
    found = outputs(
        Step("v", value(nasty)),
        Shell("line", "printf %s ${v}", parse="text"), Shell("words", ["printf", "%s", "${v}"], parse="text"),
        Shell("const", "printf %s ${params.c}", parse="text"),
        Shell("variable", 'printf %s "$X"', env={"X": "${v}"}, parse="text"),
        Shell("stdin", "cat", stdin="${v}", parse="text"), Shell("lines", "printf 'x\\ny\\n'", parse="lines"),
        Shell("json", "echo '{\"a\": [1]}'", parse="json"),
        Shell("parts", "echo '{\"p\": 1, \"q\": 2}'", parse="json", outputs=["p", "q"]),
        Shell("code", "exit 3", ok_codes=[0, 3]), params={"c": nasty},
    )  # fmt: skip
    for name in ("line", "words", "const", "variable", "stdin"):
        assert found[name] == nasty
    assert (found["lines"], found["json"], found["p"], found["q"], found["code"]) == (["x", "y"], {"a": [1]}, 1, 2, 3)


def test_a_command_that_fails_fails_its_step() -> None:
    result = run(Shell("a", "echo why >&2; exit 4"))
    assert result.status == "failed"
    assert "4" in str(result.failures[0].failure)


FILES = {
    "top.yaml": """\
name: top
params: {n: 3}
show: total
steps:
  - {type: transform, name: rows, function: "language_work:numbers", params: {n: "${params.n}"}}
  - type: pipeline
    name: inner
    file: inner/sub.yaml
    inputs: {values: rows}
    params: {factor: "${params.n}"}
  - {type: transform, name: total, function: "builtins:sum", inputs: ["${inner.output.scaled}"]}
  - {type: pipeline, name: again, file: inner/sub.yaml, inputs: {values: rows}, params: {factor: 1}, outputs: [scaled]}
""",
    "language_work.py": "def numbers(n):\n    return list(range(n))\n",
    "inner/sub.yaml": """\
name: sub
params: {factor: {required: true}}
steps:
  - {type: map, name: scaled, items: "${values}", function: "language_scaling:scale", params: {by: "${params.factor}"}}
  - {type: shell, name: where, command: pwd, parse: text}
""",
    "inner/language_scaling.py": "def scale(x, by):\n    return x * by\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_a_file_runs_another_with_its_own_folder_params_and_values(folder: Path, executor: str) -> None:
    result = api.load(folder / "top.yaml").run(executor=executor, workers=1, state_dir=folder / "state", n=4)
    assert (result.status, result.reason) == ("succeeded", "")
    assert result.outputs["total"] == 0 + 4 + 8 + 12
    assert result.outputs["inner"] == {"scaled": [0, 4, 8, 12], "where": str(folder / "inner")}
    assert result.outputs["scaled"] == [0, 1, 2, 3]
    assert "where" not in result.outputs


def test_a_file_may_be_run_from_a_pipeline_built_in_python(folder: Path) -> None:
    p = Pipeline(
        "p",
        steps=[
            Step("v", value([1])),
            api.Subpipeline("s", folder / "inner/sub.yaml", inputs={"values": "v"}, params={"factor": 5}),
        ],
    )
    assert p.run(executor="inline", state_dir=folder / "state").outputs["s"]["scaled"] == [5]


NIGHTLY = """\
name: nightly-features
params: {day: "2026-11-20", corpus: {default: data, help: folder of text files}}
limits: {workers: auto, memory: 80%, timeout: 2h, resources: {db: 4}}
defaults: {timeout: 30m, retries: 1}
steps:
  - type: parallel
    name: fetch
    max_parallelism: 2
    timeout: 10m
    steps:
      - {type: transform, name: fetch_sales, function: "language_nightly:sales", params: {day: "${params.day}"},
         output: sales}
      - {type: transform, name: list_files, function: "language_nightly:list_files",
         params: {folder: "${params.corpus}"}, output: files}
  - type: map
    name: features
    items: ${files}
    function: language_nightly:extract
    memory: 200MB
    tolerate: 34%
    output: rows
  - {type: transform, name: report, function: "language_nightly:report", inputs: [sales, rows], output: summary}
"""
NIGHTLY_WORK = """\
import pathlib
def sales(day): return [{"day": day, "amount": 3}]
def list_files(folder): return sorted(str(p) for p in pathlib.Path(folder).iterdir())
def extract(path): return len(pathlib.Path(path).read_text(encoding="ascii"))
def report(sales, rows): return {"sales": sum(s["amount"] for s in sales), "rows": rows}
"""


@pytest.mark.parametrize("broken", [False, True])
def test_the_pipeline_of_the_design_runs(tmp_path: Path, broken: bool) -> None:
    (tmp_path / "nightly.yaml").write_text(NIGHTLY)
    (tmp_path / "language_nightly.py").write_text(NIGHTLY_WORK)
    data = tmp_path / "data"
    data.mkdir()
    for name, text in (("a", "x"), ("b", "yy"), ("c", "zzz")):
        (data / name).write_text(text)
    if broken:
        (data / "b").write_bytes(b"\xff")
    pipeline = api.load(tmp_path / "nightly.yaml")
    result = pipeline.run(workers=2, state_dir=tmp_path / "state", corpus=str(data))
    assert result.status == ("partial" if broken else "succeeded"), (result.reason, result.failures)
    assert result.outputs["summary"] == {"sales": 3, "rows": [1, 3] if broken else [1, 2, 3]}


def test_executors_agree(tmp_path: Path) -> None:
    steps = [
        Step("rows", value([3, 1, 2])), Map("m", double, items="rows"),
        Parallel(
            "p", Step("a", add, inputs=["${m.0}"]), Sequence("s", Step("b", double, inputs=["m"])), merge="collect_all"
        ),
        Graph("g", Step("y", len, inputs=["x"]), Step("x", value([1]))),
    ]  # fmt: skip
    pipeline = Pipeline("p", steps=steps)
    found = [dict(run_fake(pipeline).outputs)]
    for executor in ("inline", "threads"):
        found.append(
            dict(pipeline.run(executor=executor, workers=2 if executor == "threads" else 1, state_dir=tmp_path).outputs)
        )
    assert found[0] == found[1] == found[2]
    assert found[0]["p"] == [6, [6, 2, 4, 6, 2, 4]]
