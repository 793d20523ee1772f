"""Hooks: what a run or a step does once it has ended, and what that never changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from procflow import Graph, Map, Parallel, Pipeline, PipelineError, Shell, Step
from procflow.compiler import compile_pipeline
from procflow.result import RunResult
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Kill, StopAsked, Submit
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder
from procflow.testing import Act, run_fake

THREE = ["inline", "threads", "processes"]
ABOUT = {"status": "${run.status}", "told": "${run.failures}", "step": "${run.step}", "count": "${run.failure_count}"}


def ok(*args: Any) -> int:
    return 1


def bad(*args: Any) -> None:
    raise ValueError("boom")


def tell(into: str, **about: Any) -> None:
    with open(into, "a", encoding="utf-8") as file:
        file.write(repr(about) + "\n")


def telling(into: Path, name: str, **keys: Any) -> Any:
    return Step(name, tell, params={"into": str(into), "hook": name, **ABOUT}, **keys)


def told(into: Path) -> list[dict[str, Any]]:
    return [eval(line) for line in into.read_text().splitlines()] if into.exists() else []


def hooked(into: Path) -> dict[str, Any]:
    return {event: [telling(into, event)] for event in ("on_success", "on_failure", "on_finish")}


def fake(*steps: Any, script: Any = None, **keys: Any) -> RunResult:
    return run_fake(Pipeline("t", steps=steps, **keys), script=script or {}, slots=2)


@pytest.mark.parametrize("executor", THREE)
def test_a_run_tells_its_hooks_how_it_ended(tmp_path: Path, executor: str) -> None:
    into = tmp_path / "told"
    for step, events in ((ok, ["on_success", "on_finish"]), (bad, ["on_failure", "on_finish"])):
        into.unlink(missing_ok=True)
        pipeline = Pipeline("t", steps=[Step("only", step)], **hooked(into))
        result = pipeline.run(executor=executor, workers=2, state_dir=tmp_path / "state")
        status = "succeeded" if step is ok else "failed"
        failures = "" if step is ok else "only: ValueError: boom"
        assert result.status == status
        assert told(into) == [
            {"hook": event, "status": status, "told": failures, "step": "", "count": int(step is bad)}
            for event in events
        ]
        assert set(result.outputs) == ({"only"} if step is ok else set())
        with History.open(StateFolder.open(tmp_path / "state", create=False)) as past:
            labels = [row.label for row in past.steps(result.run_id)]
        assert labels == ["only", *(f"{event}/{event}" for event in events)]


def test_a_step_has_hooks_of_its_own_and_a_retry_is_no_end(tmp_path: Path) -> None:
    into = tmp_path / "told"
    script = {"flaky": [Act(raises=ValueError("once")), Act(value=1)]}
    steps = [
        Step("flaky", ok, retry={"retries": 1, "delay": 0}, **hooked(into)),
        Parallel("block", Step("a", bad, **hooked(into)), on_error="continue", on_finish=[telling(into, "closed")]),
        Map("m", ok, items=[1, 2], on_success=[telling(into, "mapped")]),
    ]
    assert fake(*steps, script=script).status == "partial"
    found = [(row["hook"], row["step"], row["status"]) for row in told(into)]
    assert sorted(found) == [
        ("closed", "block", "succeeded"), ("mapped", "m", "succeeded"), ("on_failure", "block/a", "failed"),
        ("on_finish", "block/a", "failed"), ("on_finish", "flaky", "succeeded"), ("on_success", "flaky", "succeeded"),
    ]  # fmt: skip


def test_hooks_of_a_step_do_not_hold_up_those_behind_it() -> None:
    script = {"long": Act(after_s=100, value=1), "b": Act(after_s=1, value=1)}
    result = fake(Step("a", ok, on_success=[Step("long", ok)]), Step("b", ok), script=script)
    assert result.metrics.wall_s == pytest.approx(2)


@pytest.mark.parametrize("executor", THREE)
def test_a_hook_that_fails_never_makes_a_failure_good_nor_a_success_clean(tmp_path: Path, executor: str) -> None:
    broken = [Step("one", bad), telling(tmp_path / "told", "two")]
    for step, status, code in ((ok, "partial", 3), (bad, "failed", 1)):
        pipeline = Pipeline("t", steps=[Step("only", step)], on_finish=broken)
        result = pipeline.run(executor=executor, workers=2, state_dir=tmp_path / "state")
        assert (result.status, result.exit_code) == (status, code)
        assert result.failures[-1].label == "on_finish/one"
    # The hooks behind it run all the same, and hear how the run itself went.
    assert [row["status"] for row in told(tmp_path / "told")] == ["succeeded", "failed"]


def test_a_hook_reads_values_of_the_run_and_one_without_value_is_skipped(tmp_path: Path) -> None:
    ends = {
        event: [Shell("say", ["sh", "-c", 'echo "$0 $1" >> ' + str(tmp_path / "out"), "${run.status}", "${a}"])]
        for event in ("on_success", "on_failure")
    }
    assert fake(Step("a", ok), **ends).status == "succeeded"
    assert fake(Step("a", bad), **ends).status == "failed"
    assert (tmp_path / "out").read_text() == "succeeded 1\n"


def test_conditions_of_hooks_see_the_status(tmp_path: Path) -> None:
    into = tmp_path / "told"
    ends = [telling(into, s, when=f"${{run.status}} == '{s}'") for s in ("succeeded", "partial", "failed")]
    fake(Step("a", bad, on_error="continue"), on_finish=ends)
    assert [row["hook"] for row in told(into)] == ["partial"]


def test_a_hook_on_processes_gets_a_clock_and_so_do_all_hooks_after_a_stop() -> None:
    pipeline = Pipeline("t", steps=[Step("a", ok)], on_finish=[Step("h", ok), Step("own", ok, timeout=5)])
    graph = compile_pipeline(pipeline)
    assert [unit.timeout_s for unit in graph.root.hooks[0][1].members] == [60, 5]
    scheduler = Scheduler(graph, slots={"processes": 2}, run_id="t")
    [submit] = [a for a in scheduler.start(0) if isinstance(a, Submit)]
    assert [type(a) for a in scheduler.handle(StopAsked("SIGTERM"), 1)] == [Kill]
    from procflow.attempt import Failure, Lost

    actions = scheduler.handle(Lost(submit.key, Failure("cancelled", "Killed", "")), 2)
    [hook] = [a for a in actions if isinstance(a, Submit)]
    assert hook.unit.name == "h"
    assert scheduler.next_deadline() == 12
    assert any(isinstance(a, Kill) for a in scheduler.handle(StopAsked("", hurry=True), 3))
    scheduler.handle(Lost(hook.key, Failure("cancelled", "Killed", "")), 4)
    assert scheduler.finished
    assert scheduler.status == "cancelled"


def test_a_resumed_run_hooks_what_it_ran_and_its_own_end(tmp_path: Path) -> None:
    into, marker = tmp_path / "told", tmp_path / "marker"

    def once(path: str) -> int:
        if not os.path.exists(path):
            Path(path).touch()
            raise ValueError("once")
        return 1

    steps = [Step("a", ok, on_success=[telling(into, "a")]), Step("b", once, params={"path": str(marker)})]
    pipeline = Pipeline("t", steps=steps, **hooked(into))
    assert pipeline.run(executor="inline", state_dir=tmp_path / "state").status == "failed"
    assert pipeline.resume(state_dir=tmp_path / "state").status == "succeeded"
    assert [row["hook"] for row in told(into)] == ["a", "on_failure", "on_finish", "on_success", "on_finish"]


def test_hooks_that_cannot_be_are_refused_together() -> None:
    inner = Step("x", ok, on_finish=[Step("y", ok)])
    pipeline = Pipeline(
        "t", steps=[Step("a", ok)], on_success=[Graph("g", Step("z", ok))], on_failure=[inner],
        on_finish=[Step("u", ok, params={"x": "${run.statu}"}), Step("v", ok, inputs=["nothing"])],
    )  # fmt: skip
    with pytest.raises(PipelineError) as caught:
        compile_pipeline(pipeline)
    text = "\n".join(map(str, caught.value.problems))
    assert "on_success" in text
    assert "a hook is a single step, not a graph" in text
    assert "a hook has no hooks of its own" in text
    assert "there is no fact of the run 'statu'" in text
    assert "'nothing'" in text
    with pytest.raises(PipelineError, match="no fact of the run 'status'"):
        compile_pipeline(Pipeline("t", steps=[Step("a", ok, params={"s": "${run.status}"})]))


FILE = """
name: stopped
steps: [{name: long, type: shell, command: "echo $$ > started; exec sleep 60"}]
on_success: [{name: s, type: shell, command: "echo success >> out"}]
on_failure: [{name: f, type: shell, command: "echo ${run.status} ${run.reason} >> out"}]
on_finish: [{name: e, type: shell, command: "echo finish >> out"}]
"""


def test_sigterm_runs_the_hooks_and_exits_143(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(FILE)
    command = [sys.executable, "-m", "procflow", "run", "p.yaml", "-j", "2", "--quiet"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (tmp_path / "out").read_text() == "cancelled SIGTERM\nfinish\n"


def test_a_hook_cut_short_is_told_also_where_the_run_went_well_and_quiet_was_asked(tmp_path: Path) -> None:
    hook = {"name": "mail", "type": "shell", "command": "touch started; exec sleep 60"}
    file = {"name": "p", "steps": [{"name": "a", "type": "shell", "command": "exit 0"}], "on_finish": [hook]}
    (tmp_path / "p.json").write_text(json.dumps(file))
    command = [sys.executable, "-m", "procflow", "run", "p.json", "-j", "2", "--quiet"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, "never 0 when something was left undone"
    assert "hook on_finish/mail was cut short: SIGTERM" in errors
    assert "not run because of it" not in errors
