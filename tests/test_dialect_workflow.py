"""Workflows of steps and substeps: what they become, that they run to the right outputs, and what is refused where."""

from __future__ import annotations

from typing import Any

import pytest
from foreign import Foreign, own, plain_steps, timed

from procflow.dialects.workflow_functions import StepInput, StepOutput
from procflow.testing import run_fake


def say(given: StepInput) -> StepOutput:
    """What it was given, to look at."""
    names = list(given.previous_step_outputs)
    return StepOutput({"input": given.input, "last": given.previous_step_content, "names": names})


def count(given: StepInput) -> int:
    return 1 + (given.previous_step_content if isinstance(given.previous_step_content, int) else 0)


def boom(given: StepInput) -> None:
    raise ValueError("boom")


def halt(given: StepInput) -> StepOutput:
    return StepOutput("enough", stop=True)


def is_three(outputs: list[StepOutput]) -> bool:
    return outputs[-1].content >= 3


def long(given: StepInput) -> bool:
    return len(given.input) > 3


def pick(given: StepInput) -> Any:
    return given.input


BIND = {"say": say, "count": count, "boom": boom, "halt": halt, "is_three": is_three, "long": long, "pick": pick}


def step(name: str, executor: str = "say", **keys: Any) -> dict[str, Any]:
    return {"type": "Step", "name": name, "executor_ref": executor, **keys}


def workflow(*steps: dict[str, Any], **keys: Any) -> Foreign:
    return Foreign({"name": "w", "steps": list(steps), **keys}, BIND)


def content(found: Foreign, name: str, **params: Any) -> Any:
    value = found.outputs(**params)[name]
    return value.content if isinstance(value, StepOutput) else value


def test_each_step_gets_the_input_and_what_was_before_it() -> None:
    found = workflow(step("a"), step("b"), step("c"))
    assert content(found, "c", input="x") == {
        "input": "x",
        "last": {"input": "x", "last": {"input": "x", "last": None, "names": []}, "names": ["a"]},
        "names": ["a", "b"],
    }


def test_workflow_documents_with_substeps_are_the_same() -> None:
    document = {
        "workflow": {
            "name": "w",
            "steps": [
                {"name": "a", "agent": "say"},
                {"name": "both", "type": "parallel", "substeps": [{"name": "b", "agent": "say"}, {"name": "c", "agent": "say"}]},
                {"name": "rows", "substeps": [{"name": "d", "agent": "count"}, {"name": "e", "agent": "count"}]},
            ],
        }
    }  # fmt: skip
    found = Foreign(document, BIND)
    assert [one["type"] for one in found.plain["steps"] if not one["name"].endswith("-input")] == [
        "transform", "parallel", "sequence",
    ]  # fmt: skip
    assert content(found, "rows", input="x") == 2
    assert "its steps run one after the other" in found.notes


def test_every_branch_gets_the_same_input_and_a_failed_one_is_an_output_without_success() -> None:
    parallel = {"type": "Parallel", "name": "p", "steps": [step("a"), step("bad", "boom"), step("z")]}
    found = workflow(step("first"), parallel, step("end"))
    result = found.run(timed({"a": 5.0, "z": 1.0}), input="x")
    assert result.status == "partial"
    output = result.outputs["p"]
    assert [(one.step_name, one.success) for one in output.steps] == [("a", True), ("bad", False), ("z", True)]
    assert output.steps[0].content == output.steps[2].content
    assert output.success is False
    assert output.steps[1].error == "ValueError: boom"
    assert output.content.startswith("## Parallel Execution Results")
    assert result.outputs["end"].content["names"] == ["first", "p"]


def test_where_every_branch_fails_the_workflow_goes_on_with_what_is_told_of_them() -> None:
    parallel = {"type": "Parallel", "name": "p", "steps": [step("a", "boom"), step("b", "boom")]}
    result = workflow(parallel, step("end")).run()
    assert result.status == "partial"
    assert [one.success for one in result.outputs["p"].steps] == [False, False]
    assert result.outputs["end"].content["names"] == ["p"]


def test_a_block_that_fails_in_a_branch_is_an_output_without_success() -> None:
    inner = {"type": "Steps", "name": "s", "steps": [step("b", "count"), step("c", "boom")]}
    result = workflow({"type": "Parallel", "name": "p", "steps": [step("a"), inner]}, step("end")).run()
    assert [(one.step_name, one.success) for one in result.outputs["p"].steps] == [("a", True), ("s", False)]
    assert result.outputs["end"].content["names"] == ["p"]


def test_a_branch_that_asks_to_stop_ends_the_workflow_after_its_block_and_a_turn_its_loop() -> None:
    parallel = {"type": "Parallel", "name": "p", "steps": [step("a"), step("b", "halt")]}
    result = workflow(parallel, step("end")).run()
    assert result.outputs["p"].stop
    assert result.steps["end"].status == "skipped"
    loop = {"type": "Loop", "name": "l", "steps": [step("a", "halt"), step("b")], "max_iterations": 5}
    result = workflow(loop, step("end")).run()
    assert result.status == "succeeded"
    assert len(result.outputs["l"].steps) == 1
    assert result.steps["end"].status == "skipped"


def test_what_people_are_asked_is_let_be_where_it_is_switched_off() -> None:
    asked = {"requires_confirmation": False, "on_reject": "skip", "timeout": None}
    assert workflow(step("a", human_review=asked, num_history_runs=3, strict_input_validation=False)).problems() == []


def test_a_workflow_as_the_other_system_writes_it_out_is_understood() -> None:
    written = {
        "name": "Research", "id": "r", "description": None, "session_state": None, "stream": True, "store_events": False,
        "num_history_runs": 3, "add_workflow_history_to_steps": False, "dependencies": None, "input_schema": None,
        "steps": [
            {
                "type": "Step", "name": "Ask", "step_id": "1", "description": None, "agent_id": "say", "max_retries": 3,
                "skip_on_failure": False, "strict_input_validation": False, "add_workflow_history": None, "num_history_runs": 3,
                "human_review": {"requires_confirmation": False, "on_reject": "skip", "on_error": "skip"},
            },
            {
                "type": "Router", "name": "Route", "selector": "pick", "selector_type": "function",
                "allow_multiple_selections": False, "requires_user_input": False, "user_input_message": None,
                "choices": [{"type": "Step", "name": "Write", "executor_ref": "count"}],
            },
        ],
    }  # fmt: skip
    found = Foreign(written, BIND)
    assert found.problems() == []
    assert "stream: of no meaning here; left out" in found.notes
    assert content(found, "Route", input="Write") == 1


def test_a_shared_state_is_declared_with_its_reducers() -> None:
    keys = {"session_state": {"n": 1, "rows": [0], "text": "${x}"}, "reducers": {"rows": "append", "total": "add"}}
    assert workflow(step("a"), **keys).plain["state"] == {
        "rows": {"reducer": "append", "initial": [0]},
        "total": {"reducer": "add"},
        "session_state": {"reducer": "merge", "initial": {"n": 1, "text": "${x}"}},
    }
    assert workflow(step("a"), **keys).run().state["session_state"] == {"n": 1, "text": "${x}"}


def test_contents_are_found_inside_blocks() -> None:
    inner = StepOutput("x", step_name="Deep Step")
    given = StepInput(
        previous_step_outputs={"p": StepOutput(steps=(StepOutput(steps=(inner,), step_name="q"),), step_name="p")}
    )
    assert given.get_step_content("Deep Step") == given.get_step_content("Deep_Step") == "x"
    assert given.get_step_content("q") == {"Deep Step": "x"}
    assert given.get_step_content("nobody") is None


def test_nothing_runs_after_an_output_that_asks_to_stop() -> None:
    result = workflow(step("a"), step("b", "halt"), step("c"), step("d")).run()
    assert result.status == "succeeded"
    assert result.steps["c"].status == result.steps["d"].status == "skipped"


def test_a_failed_step_ends_the_workflow_unless_it_may_be_skipped() -> None:
    assert workflow(step("a", "boom"), step("b")).run().status == "failed"
    result = workflow(step("a", "boom", skip_on_failure=True), step("b")).run()
    assert result.status == "partial"
    assert result.outputs["a"].success is False
    assert result.outputs["b"].content["names"] == ["a"]


@pytest.mark.parametrize(("forward", "most", "turns"), [(True, 9, 3), (True, 2, 2), (False, 4, 4)])
def test_a_loop_ends_by_its_condition_or_its_last_turn(forward: bool, most: int, turns: int) -> None:
    loop = {
        "type": "Loop", "name": "l", "steps": [step("n", "count")], "max_iterations": most, "end_condition": "is_three",
        "forward_iteration_output": forward,
    }  # fmt: skip
    output = workflow(loop, step("end")).outputs(input="x")["l"]
    assert len(output.steps) == turns
    assert output.content == (turns if forward else 1)


def test_steps_of_a_block_follow_each_other_and_what_comes_next_sees_inside() -> None:
    inner = {"type": "Steps", "name": "s", "steps": [step("one", "count"), step("two", "count")]}
    found = workflow(inner, step("three", "count"))
    assert content(found, "s") == 2
    assert content(found, "three") == 3


@pytest.mark.parametrize(("given", "ran"), [("long one", "yes"), ("no", "no")])
def test_a_condition_runs_one_of_its_branches(given: str, ran: str) -> None:
    condition = {
        "type": "Condition",
        "name": "c",
        "evaluator": "long",
        "steps": [step("yes")],
        "else_steps": [step("no")],
    }
    output = workflow(step("a"), condition).outputs(input=given)["c"]
    assert [one.step_name for one in output.steps] == [ran]


def test_a_condition_without_a_branch_leaves_the_content_as_it_was() -> None:
    condition = {"type": "Condition", "name": "c", "evaluator": False, "evaluator_type": "bool", "steps": [step("yes")]}
    assert content(workflow(step("a", "count"), condition, step("b", "count")), "b") == 2


@pytest.mark.parametrize(("given", "ran"), [("b", ["b"]), (["c", "a"], ["a", "c"]), ([], [])])
def test_a_router_runs_the_choices_that_are_selected_in_declared_order(given: Any, ran: list[str]) -> None:
    router = {
        "type": "Router", "name": "r", "selector": "pick", "choices": [step("a"), step("b"), step("c")],
        "allow_multiple_selections": True,
    }  # fmt: skip
    output = workflow(router, step("end")).outputs(input=given)["r"]
    assert [one.step_name for one in output.steps] == ran


def test_a_router_refuses_what_is_no_choice() -> None:
    router = {"type": "Router", "name": "r", "selector": "pick", "choices": [step("a"), step("b")]}
    result = workflow(router).run(input="x")
    assert result.status == "failed"
    assert "there is no choice 'x'" in str(result.failures)


def test_blocks_nest() -> None:
    inner = {"type": "Steps", "name": "s", "steps": [step("b", "count"), step("c", "count")]}
    loop = {
        "type": "Loop",
        "name": "l",
        "steps": [step("d", "count")],
        "max_iterations": 2,
        "forward_iteration_output": True,
    }
    parallel = {"type": "Parallel", "name": "p", "steps": [step("a", "count"), inner, loop]}
    output = workflow(step("n", "count"), parallel).outputs()["p"]
    assert [one.content for one in output.steps] == [2, 3, 3]


def test_it_takes_as_long_as_the_same_pipeline_in_our_own_language() -> None:
    seconds = {"a": 1.0, "b": 3.0, "c": 4.0, "d": 1.0}
    found = workflow(step("a"), {"type": "Parallel", "name": "p", "steps": [step("b"), step("c")]}, step("d"))
    ours = own(
        """
        name: ours
        steps:
          - {name: a, function: builtins:dict}
          - {type: parallel, steps: [{name: b, function: builtins:dict}, {name: c, function: builtins:dict}]}
          - {name: d, function: builtins:dict}
        """
    )
    assert (
        found.run(timed(seconds)).metrics.wall_s == run_fake(ours, script=timed(seconds), slots=8).metrics.wall_s == 6.0
    )


def test_retries_and_names_with_spaces() -> None:
    found = workflow(step("A long name", max_retries=3))
    made = plain_steps(found.plain)["A_long_name"]
    assert made["retry"] == {"retries": 3, "delay": "0s"}
    assert made["description"] == "A long name"


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([step("a"), step("a")], "steps[1].name: the name 'a' is taken by steps[0] in line"),
        ([{"type": "Stepp", "name": "a"}, step("b")], "steps[0].type: unknown type 'Stepp' (did you mean 'Step'?)"),
        ([{"type": "Step", "name": "a"}], "steps[0]: needs an executor"),
        ([step("a", agent_id="x")], "steps[0]: executor_ref and agent_id exclude each other"),
        ([step("a", max_retry=1)], "steps[0].max_retry: unknown key (did you mean 'max_retries'?)"),
        ([step("a", steps=[])], "steps[0].steps: procflow can't do this here (a key of type: Router)"),
        ([step("a", human_review={"requires_confirmation": True})], "procflow runs without people in the loop"),
        ([{"type": "Parallel", "name": "p", "steps": []}], "steps[0].steps: has 0 of at least 1 members"),
        (
            [
                {
                    "type": "Loop",
                    "name": "l",
                    "steps": [step("a")],
                    "end_condition": "x > 1",
                    "end_condition_type": "cel",
                }
            ],
            "steps[0].end_condition: procflow can't read CEL",
        ),
        ([{"type": "Loop", "name": "l", "steps": [step("a")], "max_iterations": 1000}], "at most 100 are written out"),
        ([step("a", "nobody")], "1 name is bound to no function of yours: executor 'nobody'"),
    ],
)
def test_what_is_wrong_is_told_once_with_dialect_path_and_place(steps: list[Any], problem: str) -> None:
    found = workflow(*steps).problems()
    matching = [line for line in found if problem in line]
    assert len(matching) == 1, found
    assert matching[0].startswith("foreign.json:")
    assert ": workflow: " in matching[0]
