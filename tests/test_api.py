"""Pipelines built and run from Python."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import procflow
from procflow import Graph, Map, Merge, Parallel, Pipeline, Sequence, Shell, Split, Step, Subpipeline, api, load, model
from procflow.errors import PipelineError, ProcflowError, RunFailed
from procflow.events import Event, RunFinished, RunStarted, StepFinished

DEADLINE_S = 60


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCFLOW_STATE_DIR", str(tmp_path / "state"))


def one() -> int:
    return 1


def add(*values: int) -> int:
    return sum(values)


def square(n: int) -> int:
    return n * n


def fail() -> None:
    raise ValueError("bad row")


# -- building ----------------------------------------------------------------------------------------------------------


def test_builders_make_the_records_that_a_file_makes() -> None:
    built = Pipeline(
        "demo",
        steps=[
            Step("one", "steps:one", outputs=["a", "b"]),
            Parallel("both", Step("c", "steps:c"), Step("d", "steps:d"), max_parallelism=2),
            Map("each", "steps:each", items="a"),
            Map("many", Step("x", "steps:x", inputs=["item"]), items=[1, 2]),
            Merge("m", inputs=["c", "d"], merge="collect_all"),
            Split("parts", inputs="m", into=2),
            Shell("list", ["ls", "-l"]),
            Subpipeline("other", "other.yaml"),
            Sequence("s", Step("e", "steps:e")),
            Graph(Step("f", "steps:f", depends_on="g"), Step("g", "steps:g"), name="dag"),
        ],
        params={"day": "today"},
        limits={"workers": 2, "timeout": "2h"},
    )
    loaded = model.Pipeline.model_validate(
        {
            "name": "demo",
            "params": {"day": "today"},
            "limits": {"workers": 2, "timeout": "2h"},
            "steps": [
                {"name": "one", "type": "transform", "function": "steps:one", "outputs": ["a", "b"]},
                {
                    "name": "both",
                    "type": "parallel",
                    "max_parallelism": 2,
                    "steps": [
                        {"name": "c", "type": "transform", "function": "steps:c"},
                        {"name": "d", "type": "transform", "function": "steps:d"},
                    ],
                },
                {"name": "each", "type": "map", "items": "${a}", "function": "steps:each"},
                {
                    "name": "many",
                    "type": "map",
                    "items": [1, 2],
                    "steps": [{"name": "x", "type": "transform", "function": "steps:x", "inputs": ["item"]}],
                },
                {"name": "m", "type": "merge", "inputs": ["c", "d"], "merge": "collect_all"},
                {"name": "parts", "type": "split", "inputs": ["m"], "into": 2},
                {"name": "list", "type": "shell", "command": ["ls", "-l"]},
                {"name": "other", "type": "pipeline", "file": "other.yaml"},
                {"name": "s", "type": "sequence", "steps": [{"name": "e", "type": "transform", "function": "steps:e"}]},
                {
                    "name": "dag",
                    "type": "graph",
                    "steps": [
                        {"name": "f", "type": "transform", "function": "steps:f", "depends_on": "g"},
                        {"name": "g", "type": "transform", "function": "steps:g"},
                    ],
                },
            ],
        }
    )
    assert repr(built) == repr(loaded)


def test_a_block_is_named_by_its_first_argument_or_by_keyword() -> None:
    assert Parallel("fetch", one).name == Parallel(one, name="fetch").name == "fetch"
    assert Sequence(one).name is None
    assert Parallel("fetch", steps=[one, add]).steps[1].name == "add"


def test_a_bare_function_is_a_step_under_its_own_name() -> None:
    pipeline = Pipeline("demo", steps=[one, Parallel("p", add, lambda: 1)])
    assert pipeline.steps[0].name == "one"
    block = pipeline.steps[1]
    assert isinstance(block, model.Parallel)
    assert [step.name for step in block.steps] == ["add", None]


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        ("rows", "${rows}"),
        ("rows.first.0", "${rows.first.0}"),
        ("${rows}", "${rows}"),
        ([1, 2], [1, 2]),
        (range(3), range(3)),
        ((n for n in (3, 1)), [3, 1]),
        ({"b", "a"}, ["a", "b"]),
        ({1: "x"}.values(), ["x"]),
    ],
)
def test_items_are_the_name_of_a_value_or_constants(items: Any, kept: Any) -> None:
    assert Map("m", square, items=items).items == kept


def test_items_may_be_files_or_a_range_as_in_a_file() -> None:
    assert Map("m", square, items={"glob": "*.csv"}).items.glob == "*.csv"
    assert Map("m", square, items={"range": [3]}).items.range == (3,)


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (lambda: Step("a", one, retires=3), ["retires: ", "Step 'a': ", "unknown key", "did you mean 'retries'?"]),
        (lambda: Step("a b", one), ["name: ", "is not a name"]),
        (lambda: Step("a", "no_colon"), ["function: ", "module:name"]),
        (lambda: Step("a", one, timeout="5 parsecs"), ["timeout: ", "write 90s, 15m or 2h"]),
        (lambda: Parallel("a", one, name="b"), ["two names, 'a' and 'b'"]),
        (lambda: Parallel("empty"), ["steps: "]),
        (lambda: Map("m", items=[1]), ["Map 'm'", "function or steps"]),
        (lambda: Pipeline("x", steps=[3]), ["3 is not a step", "Step(name, function)"]),
        (lambda: Pipeline("x", steps=[model.Transform]), ["is not a step"]),
        (lambda: Pipeline("x", steps=[one], limits={"workers": 0}), ["limits.workers: "]),
        (lambda: Pipeline("x", steps=[one], nmae="y"), ["nmae: ", "unknown key"]),
        (lambda: Pipeline("x", steps=[one]).run(memory="lots"), ["memory: ", "not a size"]),
        (lambda: Pipeline("x", steps=[one]).run(timeout="soon"), ["timeout: ", "not a duration"]),
        (lambda: Pipeline("x", steps=[one]).run(workers=0), ["workers: ", "not a number of workers"]),
        (lambda: Pipeline("x", steps=[one]).run(executor="proceses"), ["executor: ", "processes, threads, inline"]),
        (lambda: Pipeline("x", steps=[one], params={"day": 1}).run(dai=2), ["params: ", "did you mean 'day'?"]),
        (lambda: Pipeline("x", steps=[Step("a", add, inputs=["b"])]).run(), ["steps[0].inputs", "'b'"]),
    ],
)
def test_what_is_wrong_is_told_with_its_dotted_place(build: Callable[[], Any], parts: list[str]) -> None:
    with pytest.raises(PipelineError) as caught:
        build()
    for part in parts:
        assert part in str(caught.value)


def test_all_that_is_wrong_with_a_pipeline_is_told_at_once() -> None:
    with pytest.raises(PipelineError) as caught:
        Pipeline("a b", steps=[one], limits={"workers": 0}, show=3)
    assert len(caught.value.problems) == 3


# -- running -----------------------------------------------------------------------------------------------------------


def test_a_pipeline_runs_and_gives_its_values() -> None:
    pipeline = Pipeline(
        "demo",
        steps=[
            one,
            Parallel(Step("a", lambda: 10), Step("b", one)),
            Map("squares", square, items=range(5)),
            Step("total", add, inputs=["one", "a", "b"]),
            Step("sum", sum, inputs=["squares"]),
        ],
    )
    result = pipeline.run(workers=2)
    assert result.status == "succeeded"
    assert result.exit_code == 0
    assert result.outputs["total"] == 12
    assert result.outputs["sum"] == 30
    assert result.outputs["squares"] == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_closures_run_on_every_executor_with_params_over_the_declared_ones(executor: str) -> None:
    base = 100
    pipeline = Pipeline(
        "demo",
        steps=[Step("a", lambda n: base + n, params={"n": "${params.n}"})],
        params={"n": 1},
    )
    assert pipeline.run(executor=executor, workers=1).outputs["a"] == 101
    assert pipeline.run(executor=executor, workers=1, n=5).outputs["a"] == 105


def test_a_failed_step_raises_only_when_asked() -> None:
    result = Pipeline("demo", steps=[fail]).run(executor="inline")
    assert result.status == "failed"
    assert result.exit_code == 1
    assert str(result.failures[0].failure) == "ValueError: bad row"
    with pytest.raises(RunFailed, match="bad row"):
        result.raise_for_status()


def test_a_step_without_inputs_is_called_with_nothing() -> None:
    assert Pipeline("demo", steps=[one, Step("merge", add)]).run(executor="inline").outputs["merge"] == 0


def test_keys_of_a_pipeline_that_contradict_each_other_are_told_once_beside_its_other_mistakes() -> None:
    step = {"function": "m:f", "output": "x", "outputs": ["y"]}
    with pytest.raises(PipelineError) as caught:
        Pipeline("p", steps=[step], tolerate=1, on_error="stop", show=[3])
    assert sorted(".".join(map(str, problem.loc)) for problem in caught.value.problems) == [
        "show.0", "steps.0.outputs", "tolerate",
    ]  # fmt: skip


def test_observers_and_streams_are_told_the_same_events_in_order() -> None:
    class Watch:
        def __init__(self) -> None:
            self.events: list[Event] = []

        def handle(self, event: Event) -> None:
            self.events.append(event)

    watch = Watch()
    with Pipeline("demo", steps=[one, fail]).stream(executor="inline", observers=[watch]) as stream:
        with pytest.raises(ProcflowError, match="not over"):
            _ = stream.result
        events = list(stream)
    assert events == watch.events
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)
    assert [e.label for e in events if isinstance(e, StepFinished)] == ["one", "fail"]
    assert stream.result.status == "failed"
    assert list(stream) == []


def test_leaving_a_stream_stops_the_run(tmp_path: Path) -> None:
    mark = tmp_path / "late"
    steps = [one, Step("wait", _touch_later, params={"path": str(mark)})]
    with Pipeline("demo", steps=steps).stream(workers=1) as stream:
        next(stream)
    with pytest.raises(ProcflowError):
        _ = stream.result
    assert not mark.exists()
    # The lock is free again, so the same pipeline can run.
    assert Pipeline("demo", steps=[one]).run(executor="inline").status == "succeeded"


def _touch_later(path: str) -> None:
    import time

    time.sleep(30)
    Path(path).touch()


# -- state and files ---------------------------------------------------------------------------------------------------

YAML = """
name: from-file
params: {n: 2}
steps:
  - {type: transform, name: doubled, function: "numbers_of_mine:double", params: {n: "${params.n}"}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "numbers_of_mine.py").write_text("def double(n):\n    return 2 * n\n")
    path = folder / "p.yaml"
    path.write_text(YAML)
    return path


def test_a_loaded_pipeline_runs_with_the_modules_beside_it(file: Path) -> None:
    pipeline = load(file)
    assert isinstance(pipeline, Pipeline)
    assert pipeline.run(workers=1).outputs["doubled"] == 4
    assert pipeline.run(workers=1, n=5).outputs["doubled"] == 10


def test_problems_of_a_loaded_pipeline_have_their_lines(file: Path) -> None:
    file.write_text(YAML.replace("params.n", "params.m"))
    with pytest.raises(PipelineError) as caught:
        load(file).run()
    place = caught.value.problems[0].place
    assert place is not None
    assert (Path(place.file).name, place.line) == ("p.yaml", 5)


def test_a_file_that_is_wrong_is_refused_by_load(file: Path) -> None:
    file.write_text(YAML.replace("function", "funktion"))
    with pytest.raises(PipelineError, match=r"p\.yaml:5:"):
        load(file)


@pytest.mark.parametrize(
    ("given", "expected"), [("option", "option"), (None, "state"), ("beside", "project/.procflow")]
)
def test_state_is_kept_where_it_was_asked_for(
    given: str | None, expected: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given == "beside":
        monkeypatch.delenv("PROCFLOW_STATE_DIR")
    load(file).run(executor="inline", state_dir=tmp_path / "option" if given == "option" else None)
    assert (tmp_path / expected / "procflow.db").is_file()


def test_a_pipeline_without_a_file_keeps_its_state_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROCFLOW_STATE_DIR")
    monkeypatch.chdir(tmp_path)
    Pipeline("demo", steps=[one]).run(executor="inline")
    assert (tmp_path / ".procflow" / "procflow.db").is_file()


def test_lambdas_closures_and_functions_of_main_reach_worker_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from procflow import Map, Parallel, Pipeline, Step

            factor = 3

            def times(n):
                return factor * n

            def run():
                offset = 1000
                steps = [
                    Map("m", times, items=range(4)),
                    Parallel("p", Step("a", lambda: offset), Step("b", lambda m: max(m), inputs=["m"])),
                    Step("all", lambda *v: v, inputs=["m", "a", "b"]),
                ]
                result = Pipeline("main", steps=steps).run(workers=2)
                result.raise_for_status()
                print(result.outputs["all"])

            if __name__ == "__main__":
                run()
            """
        )
    )
    env = {**os.environ, "PYTHONPATH": str(Path(procflow.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "([0, 3, 6, 9], 1000, 9)"
    assert done.returncode == 0


def test_an_iterator_without_end_is_refused_and_one_that_breaks_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MOST_READ", 100)
    with pytest.raises(PipelineError, match="more than 100, so it may have no end"):
        Map("m", square, items=itertools.count())
    assert len(Map("m", square, items=iter(range(100))).items) == 100
    with pytest.raises(ZeroDivisionError):
        Map("m", square, items=(1 // n for n in (1, 0)))
