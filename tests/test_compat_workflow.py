"""The Python shape of workflows: it builds pipelines of ours, which give the same on every executor."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from procflow import PipelineError
from procflow.api import Pipeline
from procflow.compat.workflow import (
    Condition,
    Loop,
    Parallel,
    Router,
    SessionState,
    Step,
    StepInput,
    StepOutput,
    Steps,
    Workflow,
    WorkflowOutput,
)
from procflow.events import RunFinished


def double(given: StepInput) -> StepOutput:
    return StepOutput(content=given.input * 2)


def note(given: StepInput, session_state: SessionState) -> str:
    session_state[f"from {given.input}"] = True
    given.workflow_session_state["who"] = {"last": "note"}
    given.workflow_session_state.append("found", "note")
    return "noted"


def tell(given: StepInput, session_state: SessionState) -> str:
    session_state["who"] = {"also": "tell"}
    session_state.append("found", "tell")
    return "told"


def broken(given: StepInput) -> None:
    raise ValueError("no way")


def gather(given: StepInput) -> dict[str, Any]:
    return {
        "double": given.get_step_content("double"),
        "found": list(given.workflow_session_state["found"]),
        "before": list(given.previous_step_outputs),
    }


def sources() -> Workflow:
    branches = Parallel(
        Step("double", executor=double),
        Step("note it", executor=note),
        Step("broken", executor=broken, max_retries=0),
        Step("tell", executor=tell),
        name="sources",
    )
    return Workflow("w", steps=[branches, gather], session_state={"who": {}}, reducers={"found": "append"})


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_it_gives_the_same_on_every_executor(executor: str, tmp_path: Path) -> None:
    output = sources().run("ab", executor=executor, workers=1 if executor == "inline" else 3, state_dir=tmp_path)
    assert output.status == "partial"
    assert not output.success
    assert output.content == {"double": "abab", "found": ["note", "tell"], "before": ["sources"]}
    assert list(output.step_outputs) == ["sources", "gather"]
    assert [one.success for one in output.step_outputs["sources"].steps] == [True, True, False, True]
    assert output.session_state == {
        "who": {"last": "note", "also": "tell"}, "from ab": True, "found": ["note", "tell"],
    }  # fmt: skip


def test_a_stream_gives_events_as_they_happen_and_the_output_last(tmp_path: Path) -> None:
    *events, output = sources().run("x", stream=True, executor="inline", state_dir=tmp_path)
    assert isinstance(output, WorkflowOutput)
    assert isinstance(events[-1], RunFinished)
    assert output.content["double"] == "xx"


def test_branches_run_at_once(tmp_path: Path) -> None:
    meet = threading.Barrier(2)

    def wait(given: StepInput) -> str:
        meet.wait(timeout=60)
        return "met"

    flow = Workflow("meet", [Parallel("both", Step("a", wait, max_retries=0), Step("b", wait, max_retries=0))])
    output = flow.run(executor="threads", workers=2, state_dir=tmp_path)
    assert output.success, output.content


def is_ten(outputs: list[StepOutput]) -> bool:
    return outputs[-1].content >= 10


def test_lambdas_and_every_kind_of_block(tmp_path: Path) -> None:
    grow = Step("grow", executor=lambda given: (given.previous_step_content or 0) + given.input)
    flow = Workflow(
        "all",
        steps=[
            Steps("twice", grow, Step("grow again", executor=grow.executor)),
            Loop(grow, name="until", max_iterations=9, end_condition=is_ten, forward_iteration_output=True),
            Condition(
                Step("even", lambda given: "even"),
                name="if",
                evaluator=lambda given: given.previous_step_content % 2 == 0,
                else_steps=[Step("odd", lambda given: "odd")],
            ),
            Router(Step("one", lambda given: 1), Step("two", lambda given: 2), name="way", selector=lambda given: ["two"]),
        ],
    )  # fmt: skip
    output = flow.run(2, executor="inline", state_dir=tmp_path)
    contents = {name: one.content for name, one in output.step_outputs.items()}
    assert contents == {"twice": 4, "until": 10, "if": "even", "way": 2}


def test_a_stop_ends_the_workflow_with_what_there_is(tmp_path: Path) -> None:
    flow = Workflow("w", [Step("a", lambda given: StepOutput("done", stop=True)), Step("b", double)])
    output = flow.run("x", executor="inline", state_dir=tmp_path)
    assert (output.content, list(output.step_outputs), output.status) == ("done", ["a"], "succeeded")


def test_a_failure_outside_of_a_parallel_ends_the_workflow(tmp_path: Path) -> None:
    flow = Workflow("w", [Step("a", double), Step("b", broken, max_retries=1), Step("c", double)])
    output = flow.run("x", executor="inline", state_dir=tmp_path)
    assert output.status == "failed"
    assert not output.success
    assert list(output.step_outputs) == ["a"]
    assert output.result.steps["b"].attempts == 2


def test_it_is_a_pipeline_of_ours_and_can_be_written_out() -> None:
    flow = sources()
    assert isinstance(flow.pipeline, Pipeline)
    assert [step.name for step in flow.pipeline.steps] == ["sources-input", "sources", "gather-input", "gather"]
    assert flow.to_dict()["workflow"]["steps"][0]["type"] == "Parallel"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Workflow("w", [Step("a", double), Step("a", double)]), "the name 'a' is taken by"),
        (lambda: Workflow("w", [Step("a")]), "None is not a function"),
        (lambda: Workflow("w", [3]), "3 is not a step"),
        (lambda: Workflow("w", []), "has 0 of at least 1 members"),
        (lambda: Parallel("p", Step("a", double), name="q"), "two names, 'p' and 'q'"),
        (lambda: Workflow("w", [double], session_state={"x": object()}), "the session state is plain data"),
        (lambda: Workflow("w", [double], reducers={"x": "appendd"}), "unknown reducer 'appendd'"),
    ],
)
def test_what_can_not_be_run_is_told_where_it_is_built(make: Any, told: str) -> None:
    with pytest.raises(PipelineError, match=told.replace("(", r"\(")):
        make()


def test_a_key_with_a_reducer_is_not_overwritten(tmp_path: Path) -> None:
    def write(given: StepInput) -> None:
        given.workflow_session_state["found"] = 1

    flow = Workflow("w", [Step("a", write, max_retries=0)], reducers={"found": "append"})
    output = flow.run(executor="inline", state_dir=tmp_path)
    assert "'found' has a reducer" in str(output.result.failures)


def test_a_module_of_steps_loads_nothing_heavy_in_a_worker() -> None:
    code = "import sys, procflow.compat.workflow; print([m for m in ('pydantic', 'procflow.model', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"
