"""Workflows of steps by id: what they become, that they run to the same, and what is refused where."""

from __future__ import annotations

from typing import Any

import pytest
from foreign import Foreign, own, plain_steps, timed

from procflow.testing import run_fake


def say(**given: Any) -> dict[str, Any]:
    return dict(given)


def double(x: int) -> dict[str, int]:
    return {"y": 2 * x}


def boom(**given: Any) -> None:
    raise ValueError("boom")


BIND = {"say": say, "double": double, "boom": boom}


def agent(name: str = "say", next_step: str | None = None, **mapping: Any) -> dict[str, Any]:
    return {"type": "agent", "agent_name": name, "input_mapping": mapping, "next_step": next_step}


def workflow(start: str, /, **steps: Any) -> Foreign:
    named = {key.replace("__", "-"): {"id": key.replace("__", "-"), **step} for key, step in steps.items()}
    document = {"workflow_id": "w", "name": "w", "version": "1", "start_step": start, "steps": named}
    return Foreign(document, BIND)


def test_a_chain_is_a_sequence_and_references_keep_their_types() -> None:
    found = workflow(
        "b", a=agent(n="${b.output.n}", text="n is ${b.output.n}"), b=agent(next_step="a", n="${workflow.input.n}")
    )
    assert [step["name"] for step in found.plain["steps"]] == ["b", "a"]
    assert found.outputs(n=[1, 2])["a"] == {"n": [1, 2], "text": "n is [1, 2]"}


def test_two_part_references_indexes_in_brackets_and_missing_types_are_understood() -> None:
    steps = {
        "a": {"agent_name": "say", "input_mapping": {"rows": "${workflow.input.rows}"}, "next_step": "b"},
        "b": {"agent_name": "say", "input_mapping": {"all": "${a.output}", "first": "${a.output.rows[0].x}"}},
    }
    found = Foreign({"start_step": "a", "steps": steps}, BIND)
    assert found.outputs(rows=[{"x": 7}])["b"] == {"all": {"rows": [{"x": 7}]}, "first": 7}


def test_constants_that_look_like_references_of_ours_stay_text() -> None:
    found = Foreign({"start_step": "a", "steps": {"a": agent(x="from ${ on", y=["${"], z={"k": 1, "l": []})}}, BIND)
    assert found.outputs()["a"] == {"x": "from ${ on", "y": ["${"], "z": {"k": 1, "l": []}}


def test_a_parallel_step_publishes_its_members_and_as_a_whole_where_it_is_read() -> None:
    steps = {
        "p": {"type": "parallel", "parallel_steps": ["a", "b"], "max_parallelism": 1, "next_step": "c"},
        "a": agent(v=1),
        "b": agent(v=2),
        "c": agent(one="${a.output.v}"),
    }
    found = workflow("p", **steps)
    assert found.plain["steps"][0] | {"steps": []} == {
        "type": "parallel",
        "name": "p",
        "max_parallelism": 1,
        "on_error": "finish",
        "steps": [],
    }
    assert found.outputs()["c"] == {"one": 1}
    steps["c"] = agent(whole="${p.output}", one="${a.output.v}")
    assert workflow("p", **steps).outputs()["c"] == {"whole": {"a": {"v": 1}, "b": {"v": 2}}, "one": 1}


def test_a_failed_member_lets_its_siblings_finish_and_fails_the_step() -> None:
    found = workflow(
        "p",
        p={"type": "parallel", "parallel_steps": ["a", "b"], "next_step": "c"},
        a=agent("boom"),
        b=agent(),
        c=agent(),
    )
    result = found.run(timed({"a": 1, "b": 5}))
    assert result.status == "failed"
    assert result.steps["p/b"].status == "succeeded"
    assert "c" not in result.steps or result.steps["c"].status != "succeeded"


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("${a.output.n} > 3", True),
        ("${a.output.n} > 3 and not ${a.output.n} == 5", False),
        ("${a.output.text} == 'gold' or ${a.output.n} < 0", True),
        ("'x' in ${a.output.list}", True),
        ("${a.output.list[1]} == 'y'", True),
        ("${a.output.nothing.there} == 1", False),
        ("${a.output.text} > 3", False),
        ("workflow.input.n >= 5", True),
    ],
)
def test_a_condition_chooses_a_branch_and_is_false_where_it_cannot_be_told(expression: str, holds: bool) -> None:
    found = workflow(
        "a",
        a=agent(next_step="c", n="${workflow.input.n}", text="gold", list=["x", "y"]),
        c={
            "type": "conditional",
            "condition": {"expression": expression},
            "if_true_step": "yes",
            "if_false_step": "no",
        },
        yes=agent(v="yes"),
        no=agent(v="no"),
    )
    found_outputs = found.outputs(n=5)
    assert ("yes" in found_outputs, "no" in found_outputs) == (holds, not holds)


def test_bare_references_of_conditions_begin_with_step() -> None:
    found = workflow(
        "step-a",
        step__a=agent(next_step="c", n=4),
        c={"type": "conditional", "condition": {"expression": "$.step-a.output.n == 4"}, "if_true_step": "yes"},
        yes=agent(v=1),
    )
    assert found.outputs()["yes"] == {"v": 1}


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_loop_is_a_map_whose_items_know_their_place(mode: str) -> None:
    config = {"collection": "${workflow.input.xs}", "loop_body": ["d", "body"], "execution_mode": mode}
    found = workflow(
        "loop",
        loop={"type": "loop", "loop_config": config, "next_step": "end"},
        d=agent("double", x="${loop.item}"),
        body=agent(
            y="${d.output.y}", i="${loop.index}", n="${loop.total}", first="${loop.is_first}", last="${loop.is_last}"
        ),
        end=agent(rows="${loop.output.iterations}", count="${loop.output.total_count}"),
    )
    rows = [
        {"y": 2, "i": 0, "n": 2, "first": True, "last": False},
        {"y": 4, "i": 1, "n": 2, "first": False, "last": True},
    ]
    assert found.outputs(xs=[1, 2])["end"] == {"rows": rows, "count": 2}
    assert plain_steps(found.plain)["loop_"].get("max_parallelism") == (1 if mode == "sequential" else None)


def test_a_loop_over_items_alone_needs_no_other_step() -> None:
    config = {
        "collection": "${workflow.input.xs}",
        "loop_body": ["d"],
        "execution_mode": "parallel",
        "max_parallelism": 2,
    }
    found = workflow("all", all={"type": "loop", "loop_config": config}, d=agent("double", x="${loop.item}"))
    assert [step["type"] for step in found.plain["steps"]] == ["map"]
    assert found.plain["steps"][0]["items"] == "${params.xs}"
    assert found.outputs(xs=[1, 2])["all"] == {"iterations": [{"y": 2}, {"y": 4}], "total_count": 2}


def test_of_more_items_than_max_iterations_the_rest_is_left_out() -> None:
    config = {"collection": [1, 2, 3], "loop_body": ["d"], "max_iterations": 2}
    found = workflow("all", all={"type": "loop", "loop_config": config}, d=agent("double", x="${loop.item}"))
    assert found.outputs()["all"]["total_count"] == 2
    assert "the rest is left out" in found.notes


@pytest.mark.parametrize(("on_error", "started"), [("stop", 1), ("continue", 3), ("collect", 3)])
def test_a_failed_item_stops_the_loop_or_lets_the_others_finish_and_fails_it(on_error: str, started: int) -> None:
    config = {"collection": [1, 2, 3], "loop_body": ["b"], "execution_mode": "sequential", "on_error": on_error}
    result = workflow("all", all={"type": "loop", "loop_config": config}, b=agent("boom")).run()
    assert result.status == "failed"
    assert result.steps["all/b"].attempts == started


def fork(policy: str, bad: int, **keys: Any) -> Foreign:
    """Three branches of two steps, of which the first ``bad`` fail."""
    branches = {f"b{i}": {"steps": [f"s{i}", f"t{i}"]} for i in range(3)}
    config = {"branches": branches, "join_policy": policy, **keys}
    steps: dict[str, Any] = {
        "f": {"type": "fork_join", "fork_join_config": config, "next_step": "end"},
        "end": agent(f="${f.output}"),
    }
    for i in range(3):
        steps[f"s{i}"] = agent(v=i)
        steps[f"t{i}"] = agent("boom" if i < bad else "say", of=f"${{s{i}.output.v}}")
    return workflow("f", **steps)


@pytest.mark.parametrize(
    ("policy", "bad", "ok"),
    [
        ("all", 0, True),
        ("all", 1, False),
        ("any", 2, True),
        ("any", 3, False),
        ("MAJORITY", 1, True),
        ("majority", 2, False),
    ],
)
def test_a_fork_succeeds_with_as_many_branches_as_its_policy_asks_for(policy: str, bad: int, ok: bool) -> None:
    result = fork(policy, bad).run()
    assert result.status == ("failed" if not ok else "partial" if bad else "succeeded")
    if ok:
        assert result.outputs["end"] == {"f": {f"b{i}": {"of": i} for i in range(bad, 3)}}


def test_n_of_m_counts_branches() -> None:
    assert fork("n_of_m", 1, n_required=2).run().status == "partial"
    assert fork("n_of_m", 2, n_required=2).run().status == "failed"
    assert "4 of 3 branches can never succeed" in fork("n_of_m", 0, n_required=4).problems()[0]


def test_a_fork_waits_for_all_so_that_its_result_is_the_same_whoever_was_first() -> None:
    for slow in range(3):
        result = fork("any", 0).run(timed({f"s{slow}": 9}))
        assert list(result.outputs["end"]["f"]) == ["b0", "b1", "b2"]


def test_a_branch_may_have_a_clock() -> None:
    branches = {"x": {"steps": ["a"], "timeout_seconds": 5}, "y": {"steps": ["b"]}}
    found = workflow(
        "f",
        f={"type": "fork_join", "fork_join_config": {"branches": branches, "branch_timeout_seconds": 9}},
        a=agent(),
        b=agent(),
    )
    assert [branch["timeout"] for branch in found.plain["steps"][0]["steps"]] == ["5s", "9s"]


def test_blocks_nest() -> None:
    found = workflow(
        "f",
        f={
            "type": "fork_join",
            "next_step": "end",
            "fork_join_config": {"branches": {"x": {"steps": ["p"]}, "y": {"steps": ["l"]}}},
        },
        p={"type": "parallel", "parallel_steps": ["a", "b"]},
        a=agent(v=1),
        b=agent(v=2),
        l={"type": "loop", "loop_config": {"collection": [1, 2], "loop_body": ["c"], "execution_mode": "parallel"}},
        c={
            "type": "conditional",
            "condition": {"expression": "${loop.item} > 1"},
            "if_true_step": "big",
            "if_false_step": "small",
        },
        big=agent(v="big"),
        small=agent(v="small"),
        end=agent(f="${f.output}"),
    )
    both = {"a": {"v": 1}, "b": {"v": 2}}
    rows = [{"v": "small"}, {"v": "big"}]
    assert found.outputs()["end"] == {"f": {"x": both, "y": {"iterations": rows, "total_count": 2}}}


def test_it_takes_as_long_as_the_same_pipeline_in_our_own_language() -> None:
    seconds = {"load": 1.0, "a": 3.0, "b1": 1.0, "b2": 4.0, "end": 1.0}
    found = workflow(
        "load",
        load=agent(next_step="f"),
        a=agent(v=1),
        b1=agent(v=2),
        b2=agent(v=3),
        end=agent(),
        f={
            "type": "fork_join",
            "next_step": "end",
            "fork_join_config": {"branches": {"a": {"steps": ["a"]}, "b": {"steps": ["b1", "b2"]}}},
        },
    )
    ours = own(
        """
        name: ours
        steps:
          - {name: load, function: builtins:dict}
          - type: parallel
            steps:
              - {name: a, function: builtins:dict}
              - {type: sequence, steps: [{name: b1, function: builtins:dict}, {name: b2, function: builtins:dict}]}
          - {name: end, function: builtins:dict}
        """
    )
    assert (
        found.run(timed(seconds)).metrics.wall_s == run_fake(ours, script=timed(seconds), slots=8).metrics.wall_s == 7.0
    )


def test_what_a_registry_says_of_an_agent_may_stand_in_the_bindings() -> None:
    bind = {"say": {"function": "builtins:dict", "retries": 2, "timeout": "5m"}}
    step = Foreign({"start_step": "a", "steps": {"a": {"agent_name": "say"}}}, bind).plain["steps"][0]
    assert step == {"type": "transform", "name": "a", "function": "builtins:dict", "retries": 2, "timeout": "5m"}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (
            {"a": agent(next_step="b"), "b": agent(next_step="a")},
            "steps.b.next_step: steps follow each other in a circle: a -> b -> a",
        ),
        ({"a": agent(next_step="bb"), "b": agent()}, "steps.a.next_step: there is no step 'bb'"),
        (
            {"a": {"type": "parallel", "parallel_steps": ["b", "x"]}, "b": agent()},
            "steps.a.parallel_steps[1]: there is no step 'x'",
        ),
        (
            {"a": {"type": "parallel", "parallel_steps": ["b"]}, "b": agent()},
            "steps.a.parallel_steps: has 1 of at least 2 members",
        ),
        (
            {"a": {"type": "parallel", "parallel_steps": ["b", "b"]}, "b": agent()},
            "steps.a.parallel_steps[1]: 'b' is listed twice",
        ),
        (
            {"a": {"type": "parallel", "parallel_steps": ["a", "b"]}, "b": agent()},
            "steps hold each other in a circle: a -> a",
        ),
        ({"a": {"type": "wait_for_event"}}, "steps.a.type: procflow can't do wait_for_event"),
        ({"a": {"type": "agnt"}}, "steps.a.type: unknown step type 'agnt' (did you mean 'agent'?)"),
        ({"a": agent() | {"id": "b"}}, "steps.a.id: the id differs from its key, 'a'"),
        (
            {"a": agent() | {"loop_config": {"collection": 1}}},
            "steps.a.loop_config: has no meaning for this type of step (a key of type: loop)",
        ),
        ({"a": agent() | {"agent_nam": "x"}}, "steps.a.agent_nam: unknown key (did you mean 'agent_name'?)"),
        ({"a": agent(x="${b.output.y}")}, "steps.a.input_mapping.x: ${b.output.y}: there is no step 'b'"),
        ({"a": agent(x="${loop.item}")}, "steps.a.input_mapping.x: ${loop.item} stands outside of a loop"),
        ({"a": agent(x="${workflow.env.y}")}, "steps.a.input_mapping.x: ${workflow.env.y} is not known"),
        (
            {
                "a": {
                    "type": "conditional",
                    "condition": {"expression": "${b.output.x} contains 'y'"},
                    "if_true_step": "b",
                },
                "b": agent(),
            },
            "contains is taken the wrong way round",
        ),
        (
            {"a": {"type": "conditional", "condition": {"expression": "f(1)"}, "if_true_step": "b"}, "b": agent()},
            "only len(x) can be called",
        ),
        ({"a": {"type": "conditional", "condition": {"expression": "1 > 0"}}}, "needs if_true_step or if_false_step"),
        (
            {
                "a": {"type": "loop", "loop_config": {"collection": "x ${workflow.input.y}", "loop_body": ["b"]}},
                "b": agent(),
            },
            "steps.a.loop_config.collection: a loop goes over one reference, or a list",
        ),
        ({"a b": agent()}, "this id can't be the name of a step"),
    ],
)
def test_what_is_wrong_is_told_once_with_dialect_path_and_place(steps: dict[str, Any], problem: str) -> None:
    found = Foreign({"name": "w", "start_step": next(iter(steps)), "steps": steps}, BIND).problems()
    matching = [line for line in found if problem in line]
    assert len(matching) == 1, found
    assert matching[0].startswith("foreign.json:")
    assert ": step-ids: " in matching[0]


def test_a_duplicate_id_is_told_with_both_places_whatever_the_line_ends() -> None:
    text = '{"start_step": "a",\r\n "steps": {\r\n  "a": {"agent_name": "say"},\r\n  "a": {"agent_name": "say"}}}'
    found = Foreign(text, BIND)
    found.name = "crlf.json"
    assert found.problems() == [
        'crlf.json:4:3: duplicate key "a": first in line 3, column 3, again in line 4, column 3 (keep one)'
    ]


def test_steps_that_nothing_leads_to_are_noted() -> None:
    assert (
        "steps.b: no step leads here" in Foreign({"start_step": "a", "steps": {"a": agent(), "b": agent()}}, BIND).notes
    )


def test_the_next_step_of_a_member_is_not_followed_and_noted() -> None:
    steps = {
        "p": {"type": "parallel", "parallel_steps": ["a", "b"], "next_step": "c"},
        "a": agent(next_step="b"),
        "b": agent(next_step="c"),
        "c": agent(),
    }
    assert workflow("p", **steps).notes.count("not followed") == 1
