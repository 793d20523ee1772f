"""Agent Builder data pipelines: the twelve operators, values that may be missing, parallel merges, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from foreign import Foreign, own, plain_steps, timed

from procflow.dialects import runtime
from procflow.model import Pipeline
from procflow.testing import run_fake


def echo(**given: Any) -> dict[str, Any]:
    return given


def one(**given: Any) -> int:
    return 1


def two(**given: Any) -> int:
    return 2


def pair(**given: Any) -> tuple[int, int]:
    return 1, 2


def boom(**given: Any) -> None:
    raise ValueError("boom")


def person(**given: Any) -> dict[str, Any]:
    return {"name": "Ada", "age": 36, "given": sorted(given)}


BIND = {f.__name__: f for f in (echo, one, two, pair, boom, person)}


def call(function: str = "echo", output: Any = "result", inputs: Any = (), **keys: Any) -> dict[str, Any]:
    return {"type": "transform", "function": function, "inputs": list(inputs), "output": output, **keys}


def skill(*steps: Any, requires: Any = (), produces: Any = (), **keys: Any) -> Foreign:
    action = {"type": "data_pipeline", "steps": list(steps)}
    document = {"name": "s", "requires": list(requires), "produces": list(produces), "action": action, **keys}
    return Foreign(document, BIND)


def when(field: str, operator: str, value: Any = None) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


# -- operators ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "found", "value", "holds"),
    [
        ("equals", 1, 1.0, True),
        ("equals", "a", "A", False),
        ("not_equals", "5", 5, True),
        ("contains", "Hello World", "WORLD", True),
        ("contains", ["Red", "Green"], "red", True),
        ("contains", ["Red", "Green"], "re", False),
        ("contains", "abc", ["x", "B"], True),
        ("contains", None, "x", False),
        ("not_contains", "abc", ["x", "y"], True),
        ("not_contains", "abc", ["x", "A"], False),
        ("in", "a", ["a", "b"], True),
        ("in", "a", "abc", False),
        ("not_in", "a", "abc", True),
        ("not_in", "a", ["a"], False),
        ("gt", "10", 9, True),
        ("gt", "ten", 9, False),
        ("gte", 9, "9", True),
        ("lt", None, 1, False),
        ("lte", 1, 1, True),
        ("is_empty", 0, None, True),
        ("is_empty", False, None, True),
        ("is_empty", "", None, True),
        ("is_empty", [0], None, False),
        ("is_not_empty", {"a": 1}, None, True),
        ("is_not_empty", None, None, False),
        ("like", "a", "a", False),
    ],
)
def test_the_operators_mean_what_they_mean_there(operator: str, found: Any, value: Any, holds: bool) -> None:
    assert runtime.holds(found, operator, value) is holds
    assert runtime.fails(found, operator, value) is not holds


@pytest.mark.parametrize(
    ("path", "value"),
    [("b.0.c", 5), ("b.1.c", None), ("b.x", None), ("b.-1.c", None), ("nothing.at.all", None), ("", {"b": [{"c": 5}]})],
)
def test_a_path_goes_through_keys_and_indexes_and_anything_missing_is_none(path: str, value: Any) -> None:
    assert runtime.holds({"b": [{"c": 5}]}, "equals", value, path)


# -- values ------------------------------------------------------------------------------------------------------------


def test_what_is_required_is_a_parameter_and_what_nobody_makes_is_none() -> None:
    found = skill(call(inputs=["day", "nothing"]), requires=["day"])
    assert found.outputs(day=3)["result"] == {"day": 3, "nothing": None}
    assert found.outputs(day=3, nothing=4)["result"] == {"day": 3, "nothing": 4}
    assert "no step before makes 'nothing'" in found.notes


def test_an_overwritten_input_is_read_anew() -> None:
    found = skill(call("one", "day"), call(inputs=["day"]), requires=["day"])
    assert found.outputs(day=7)["result"] == {"day": 1}


@pytest.mark.parametrize(
    ("function", "output", "published"),
    [
        ("person", ["name"], {"name": {"name": "Ada", "age": 36, "given": []}}),
        ("person", ["name", "age"], {"name": "Ada", "age": 36}),
        ("pair", ["a", "b"], {"a": 1, "b": 2}),
    ],
)
def test_an_output_list_takes_the_whole_the_keys_or_the_members(function: str, output: Any, published: Any) -> None:
    found = skill(call(function, output)).outputs()
    assert {key: found[key] for key in published} == published


@pytest.mark.parametrize(
    ("function", "output"), [("person", ["name", "height"]), ("pair", ["a", "b", "c"]), ("one", ["a", "b"])]
)
def test_an_output_list_that_does_not_fit_fails_the_step(function: str, output: Any) -> None:
    assert skill(call(function, output)).run().status == "failed"


def test_default_outputs_are_result_and_merged() -> None:
    steps = [
        {"type": "transform", "function": "one"},
        call("two", "b"),
        {"type": "merge", "inputs": ["result", "b", "absent"]},
    ]
    found = skill(*steps)
    assert found.outputs()["merged"] == {"result": 1, "b": 2}
    assert "left out of the merge" in found.notes


def test_a_skill_publishes_all_it_returns_and_later_steps_read_it() -> None:
    found = skill(
        {"type": "skill", "skill": "person", "inputs": ["day", "absent"]}, call(inputs=["age"]), requires=["day"]
    )
    assert found.outputs(day=1)["result"] == {"age": 36}
    assert found.outputs(day=1)["given"] == ["day"]


# -- parallel ----------------------------------------------------------------------------------------------------------


def test_of_members_that_write_one_key_the_last_in_the_list_wins_whoever_is_late() -> None:
    found = skill(
        {"type": "parallel", "steps": [call("one", "x", name="slow"), call("two", "x", name="quick")]},
        call(inputs=["x"]),
    )
    assert found.run(timed({"slow": 9})).outputs["result"] == {"x": 2}
    assert found.run(timed({"quick": 9})).outputs["result"] == {"x": 2}
    assert "a later member writes 'x'" in found.notes


def test_a_member_sees_what_was_there_before_and_not_its_sibling() -> None:
    found = skill(
        call("one", "x"), {"type": "parallel", "steps": [call("two", "x"), call(inputs=["x"], output="seen")]}
    )
    assert found.outputs()["seen"] == {"x": 1}
    refused = skill({"type": "parallel", "steps": [call("two", "x"), call(inputs=["x"], output="seen")]}).problems()
    assert len(refused) == 1
    assert (
        "action.steps[0].steps[1].inputs[0]: 'x' is made by action.steps[0].steps[0], which runs at the same time"
        in refused[0]
    )


def test_the_first_failure_stops_the_siblings() -> None:
    found = skill({"type": "parallel", "steps": [call("boom", "a", name="bad"), call("one", "b", name="long")]})
    result = found.run(timed({"bad": 1, "long": 50}))
    assert result.status == "failed"
    assert result.metrics.wall_s < 50


def test_it_takes_as_long_as_the_same_pipeline_in_our_own_language() -> None:
    seconds = {"first": 1.0, "a": 2.0, "b": 5.0, "b2": 1.0, "last": 1.0}
    found = skill(
        call("one", "x", name="first"),
        {
            "type": "parallel",
            "steps": [
                call("one", "a", name="a"),
                {"type": "parallel", "steps": [call("one", "b", name="b"), call("one", "c", name="b2")]},
            ],
        },
        call("two", "y", name="last"),
    )
    ours = own(
        """
        name: ours
        steps:
          - {name: first, function: builtins:dict}
          - type: parallel
            steps:
              - {name: a, function: builtins:dict}
              - {type: parallel, steps: [{name: b, function: builtins:dict}, {name: b2, function: builtins:dict}]}
          - {name: last, function: builtins:dict}
        """
    )
    assert (
        found.run(timed(seconds)).metrics.wall_s == run_fake(ours, script=timed(seconds), slots=8).metrics.wall_s == 7.0
    )


# -- conditions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "runs"), [("run_if", True), ("skip_if", False)])
def test_a_step_runs_or_not_and_what_it_would_have_written_is_none_for_others(key: str, runs: bool) -> None:
    found = skill(call("one", "x", **{key: when("day", "gt", 5)}), call(inputs=["x"]), requires=["day"])
    assert found.outputs(day=9)["result"] == {"x": 1 if runs else None}
    assert found.outputs(day=1)["result"] == {"x": None if runs else 1}


def test_a_skipped_step_leaves_what_was_there() -> None:
    found = skill(
        call("one", "x"), call("two", "x", run_if=when("day", "equals", 1)), call(inputs=["x"]), requires=["day"]
    )
    assert found.outputs(day=1)["result"] == {"x": 2}
    assert found.outputs(day=2)["result"] == {"x": 1}


def test_a_skipped_step_leaves_the_parameter_that_it_would_have_overwritten() -> None:
    found = skill(call("two", "day", run_if=when("day", "equals", 1)), call(inputs=["day"]), requires=["day"])
    assert found.outputs(day=1)["result"] == {"day": 2}
    assert found.outputs(day=7)["result"] == {"day": 7}


def test_a_merge_leaves_out_what_was_skipped_and_keeps_what_is_none() -> None:
    found = skill(
        call("one", "a"),
        call("two", "b", run_if=when("day", "equals", 1)),
        {"type": "merge", "inputs": ["a", "b", "day"]},
        requires=["day"],
    )
    assert found.outputs(day=1)["merged"] == {"a": 1, "b": 2, "day": 1}
    assert found.outputs(day=None)["merged"] == {"a": 1, "day": None}


def test_run_if_comes_before_skip_if_and_without_a_field_the_step_runs() -> None:
    found = skill(call("one", "x", run_if={"operator": "equals"}, skip_if=when("day", "equals", 1)), requires=["day"])
    assert found.outputs(day=1)["x"] == 1
    assert "only that counts" in found.notes
    assert "always runs" in found.notes


@pytest.mark.parametrize("day", [1, 2])
def test_a_conditional_takes_one_branch_and_its_values_are_there_or_none(day: int) -> None:
    found = skill(
        {
            "type": "conditional",
            "condition": when("day", "equals", 1),
            "then_step": call("one", ["x"]),
            "else_step": call("two", "y"),
        },
        call(inputs=["x", "y"]),
        {"type": "merge", "inputs": ["x", "y", "day"]},
        requires=["day"],
    )
    expected = {"x": 1, "y": None} if day == 1 else {"x": None, "y": 2}
    outputs = found.outputs(day=day)
    assert outputs["result"] == expected
    assert outputs["merged"] == {k: v for k, v in expected.items() if v is not None} | {"day": day}


@pytest.mark.parametrize(("day", "x"), [(1, 1), (2, 2)])
def test_both_branches_may_write_one_key(day: int, x: int) -> None:
    branches = {"then_step": call("one", "x"), "else_step": call("two", "x")}
    found = skill(
        {"type": "conditional", "condition": when("day", "equals", 1), **branches}, call(inputs=["x"]), requires=["day"]
    )
    assert found.outputs(day=day)["result"] == {"x": x}
    assert len(found.plain["steps"]) == 4


@pytest.mark.parametrize("day", [1, 2, 3])
def test_conditions_nest_and_a_merge_knows_what_ran(day: int) -> None:
    inner = {"type": "conditional", "condition": when("day", "equals", 1), "then_step": call("one", "x")}
    found = skill(
        {"type": "conditional", "condition": when("day", "lt", 3), "then_step": inner, "else_step": call("two", "x")},
        call(inputs=["x"]),
        {"type": "merge", "inputs": ["x", "day"]},
        requires=["day"],
    )
    outputs = found.outputs(day=day)
    assert outputs["result"] == {"x": {1: 1, 2: None, 3: 2}[day]}
    assert outputs["merged"] == ({"day": day} if day == 2 else {"x": outputs["result"]["x"], "day": day})


@pytest.mark.parametrize("day", [1, 2])
def test_a_skipped_block_leaves_out_all_it_holds(day: int) -> None:
    block = {
        "type": "parallel",
        "run_if": when("day", "equals", 1),
        "steps": [call("one", "x"), call("two", "y", skip_if=when("day", "equals", 5))],
    }
    found = skill(block, call(inputs=["x", "y"]), {"type": "merge", "inputs": ["x", "y", "day"]}, requires=["day"])
    outputs = found.outputs(day=day)
    assert outputs["result"] == ({"x": 1, "y": 2} if day == 1 else {"x": None, "y": None})
    assert outputs["merged"] == ({"x": 1, "y": 2, "day": 1} if day == 1 else {"day": 2})


def test_what_is_promised_and_what_may_be_there_is_shown() -> None:
    found = skill(
        call("one", "x"), call("two", "y"), call("one", "z"), produces=["x"], optional_produces=["y", "absent"]
    )
    assert found.plain["show"] == ["x", "y"]


def test_what_the_skill_promises_must_be_made() -> None:
    found = skill(call("one", "x", run_if=when("day", "equals", 1)), requires=["day"], produces=["x"])
    assert found.plain["show"] == ["x"]
    assert found.outputs(day=1)["x"] == 1
    result = found.run(day=2)
    assert result.status == "failed"
    assert "promises x" in str(result.failures[0])


# -- queries -----------------------------------------------------------------------------------------------------------


def query(**keys: Any) -> dict[str, Any]:
    return {"type": "query", "source": "postgres", "credential_ref": "prod/warehouse", **keys}


def test_a_query_binds_its_templates_and_asks_a_source_of_the_environment() -> None:
    found = skill(
        query(query="SELECT * FROM t WHERE day >= '{day}' AND id = {row.0.id}", output="rows"),
        call("one", "row"),
        requires=["day", "row"],
    )
    assert found.plain["sources"] == {"prod_warehouse": {"url": "${env.PROD_WAREHOUSE_URL}"}}
    step = plain_steps(found.plain)["step_0"]
    assert step["query"] == "SELECT * FROM t WHERE day >= {day} AND id = {row.0.id}"
    assert step["source"] == "prod_warehouse"
    assert step["output"] == "rows"
    Pipeline.model_validate(found.plain)


def test_a_document_store_gets_its_filter() -> None:
    found = skill(
        query(source="mongodb", collection="orders", filter={"day": "{day}", "n": {"$gt": 1}}), requires=["day"]
    )
    step = found.plain["steps"][0]
    assert (step["collection"], step["filter"]) == ("orders", {"day": "{day}", "n": {"$gt": 1}})
    Pipeline.model_validate(found.plain)


# -- the shape of files ------------------------------------------------------------------------------------------------


def test_clocks_and_retries_that_nobody_read_hold_here() -> None:
    found = Foreign(
        {"name": "s", "action": {"type": "data_pipeline", "timeout": 90, "retry": 2, "steps": [call()]}}, BIND
    )
    assert found.plain["limits"] == {"timeout": "90s"}
    assert found.plain["defaults"] == {"retries": 2}


def test_names_are_made_fit_and_different() -> None:
    found = skill(
        call(name="Fetch Users!"),
        call(name="Fetch Users?", output="b"),
        call(output="c"),
        call(name="取得", output="d"),
    )
    steps = found.plain["steps"]
    assert [step["name"] for step in steps] == ["Fetch_Users", "Fetch_Users_2", "step_2", "step_3"]
    assert steps[3]["description"] == "取得"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_head_of_a_markdown_file_is_read_with_its_places(newline: str) -> None:
    text = newline.join(
        [
            "---",
            "name: s",
            "action:",
            "  type: data_pipeline",
            "  steps:",
            "    - {type: merg, inputs: [a]}",
            "---",
            "# Not: [YAML",
            "${x}",
        ]
    )
    found = Foreign(text, BIND)
    found.name = "skill.md"
    assert found.problems() == [
        "skill.md:6:14: agent-builder: action.steps[0].type: \"merg\" is not known (did you mean 'merge'?)"
    ]


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({"type": "parallel", "steps": []}, "action.steps[0].steps: has 0 of at least 1 members"),
        ({"type": "merge", "inputs": ["a"]}, "action.steps[0].inputs: has 1 of at least 2 members"),
        ({"type": "conditional", "condition": {"field": "x"}, "then_step": call()}, "condition.operator: is missing"),
        (
            {"type": "conditional", "condition": when("x", "equals", 1), "then_step": [call()]},
            "then_step: is one step, not a list",
        ),
        (call(run_if=when("x", "equal", 1)), "run_if.operator: \"equal\" is not known (did you mean 'equals'?)"),
        (call(max_workers=2), "max_workers: procflow can't do this"),
        (call(outputs="x"), "outputs: unknown key (did you mean 'output'?)"),
        (call(output="a b"), "output: 'a b' can't name a value"),
        (query(source="oracle", query="x"), 'source: "oracle" is not known'),
        (query(query="SELECT {dya}"), "query: nothing makes 'dya' (did you mean 'day'?)"),
        (query(query="x", db_config_file="a"), "db_config_file: procflow reads no such file"),
        ({"type": "parallel", "output": "x", "steps": [call()]}, "output: a parallel step has none"),
        ({"type": "skill", "skill": "person", "output": "x"}, "output: a skill publishes the keys it returns"),
        (
            {"type": "parallel", "steps": [call("one", "x"), call("two", "x", run_if=when("day", "equals", 1))]},
            "an earlier member writes 'x', too, and this one may be skipped",
        ),
    ],
)
def test_what_is_wrong_is_told_with_dialect_path_and_place(step: Any, problem: str) -> None:
    found = skill(step, requires=["day"]).problems()
    matching = [line for line in found if problem in line]
    assert len(matching) == 1, found
    assert matching[0].startswith("foreign.json:")
    assert ": agent-builder: action.steps[0]" in matching[0]


def test_people_in_the_loop_and_other_actions_are_refused() -> None:
    assert "hitl_enabled: procflow runs without people" in skill(call(), hitl_enabled=True).problems()[0]
    assert "prompt: procflow can't do this" in skill(call(), prompt="x").problems()[0]
    other = Foreign({"name": "s", "action": {"type": "script", "script_path": "x"}}, BIND, "agent-builder").problems()
    assert 'action.type: "script" is not known' in " ".join(other)
