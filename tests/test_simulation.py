"""The simulated run against the same scheduler with a fake executor, and what ``plan`` says of it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learning import PastRun, attempt, f, graph_of, knowledge, run, seen

from procflow.api import Graph, Map, Parallel, Pipeline, Sequence, Step
from procflow.cli import cli
from procflow.compiling.ranks import critical_path
from procflow.learning.known import Knowledge, gather
from procflow.learning.lessons import Seen, learn
from procflow.learning.simulation import DISPATCH_S, Forecast, simulate
from procflow.learning.teaching import expected
from procflow.showing.forecast import Refused, expected_facts, learned_text, table_lines
from procflow.storing.state_folder import StateFolder
from procflow.testing import Act, run_fake

GB = 10**9


def of(*attempts: Seen) -> Knowledge:
    """Knowledge of a run whose workers took no time to start."""
    return gather([PastRun(replace(learn(attempts), start_s=1e-9))])


def at_once(label: str, wall_s: float, **more: Any) -> Seen:
    return seen(label, wall_s, outside_s=0.0, **more)


def play(graph: Any, known: Knowledge, workers: int, **more: Any) -> Forecast:
    return simulate(graph, known, workers=workers, **({"memory_bytes": None} | more))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_simulated_run_takes_as_long_as_the_scheduler_takes_with_a_fake_executor(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 9))
    seconds = [float(data.draw(st.integers(1, 9))) for _ in range(count)]
    steps = [
        Step(f"s{i}", f, depends_on=[f"s{j}" for j in data.draw(st.sets(st.integers(0, i - 1)))] if i else [])
        for i in range(count)
    ]
    pipeline = Pipeline("p", steps=[Graph("g", *steps)])
    workers = data.draw(st.integers(1, 4))
    graph = graph_of(Graph("g", *steps))
    forecast = play(graph, of(*(at_once(f"g/s{i}", s) for i, s in enumerate(seconds))), workers)
    real = run_fake(pipeline, script={f"s{i}": Act(s, value=1) for i, s in enumerate(seconds)}, slots=workers)
    longest, _ = critical_path(
        graph.root, expected(graph, of(*(at_once(f"g/s{i}", s) for i, s in enumerate(seconds))), 0)
    )
    # The fake run does not know the seconds before, so its order is another one: both are list schedules.
    for wall_s in (forecast.wall_s, real.metrics.wall_s):
        assert max(longest, sum(seconds) / workers) - 1e-6 <= wall_s
        assert wall_s <= sum(seconds) / workers + longest + 1e-3
    assert forecast.work_s == pytest.approx(sum(seconds))
    if workers == 1:
        assert forecast.wall_s == pytest.approx(real.metrics.wall_s + count * DISPATCH_S, abs=1e-6)


def test_maps_are_played_in_batches_by_the_learned_course_of_their_items() -> None:
    # The first half of the items is ten times as long as the second.
    past = [at_once("m", 10.0, role="batch", item="0-99"), at_once("m", 1.0, role="batch", item="100-199")]
    graph = graph_of(Map("m", f, items={"range": [200]}))
    one, four = play(graph, of(*past), 1), play(graph, of(*past), 4)
    assert one.wall_s == pytest.approx(11.0, rel=0.05)
    assert four.wall_s == pytest.approx(11.0 / 4, rel=0.1)
    assert one.attempts > 20  # of about 0.2 s each
    twice = play(graph_of(Map("m", f, items={"range": [400]})), of(*past), 1)
    assert twice.wall_s == pytest.approx(22.0, rel=0.05)


def test_the_size_of_a_map_over_a_value_is_that_of_the_last_run() -> None:
    past = [at_once("m", 0.001, role="expand", size=30), at_once("m", 30.0, role="batch", item="0-29")]
    forecast = play(graph_of(Step("rows", f), Map("m", f, items="rows", batch=1)), of(at_once("rows", 1.0), *past), 3)
    assert forecast.wall_s == pytest.approx(11.0, rel=0.02)
    assert (forecast.attempts, forecast.unknown) == (32, ())


def test_steps_inside_a_map_go_through_what_was_recorded_one_after_the_other() -> None:
    past = [at_once("m/a", float(i % 3), item=str(i)) for i in range(6)]
    graph = graph_of(Map("m", steps=[Step("a", f)], items={"range": [6]}))
    assert play(graph, of(*past), 1).work_s == pytest.approx(6.0)


def test_a_step_that_was_skipped_is_skipped() -> None:
    graph = graph_of(Step("a", f), Step("b", f, inputs=["a"]))
    forecast = play(graph, of(at_once("a", 5.0, status="skipped"), at_once("b", 9.0)), 1)
    assert (forecast.status, forecast.work_s) == ("succeeded", 0.0)


def test_a_block_that_needs_one_success_ends_with_the_first() -> None:
    graph = graph_of(Parallel("p", Step("quick", f), Step("slow", f), join="any"))
    assert play(graph, of(at_once("p/quick", 1.0), at_once("p/slow", 50.0)), 2).wall_s == pytest.approx(1.0, abs=0.01)


def test_mergers_gates_open_outputs_and_timeouts_do_not_stop_a_simulation() -> None:
    graph = graph_of(
        Step("open", f, outputs="*"),
        Parallel("p", Step("a", f), Step("b", f), merge="combine_outputs", when="1 > 0", timeout="1s"),
        Sequence("s", Step("c", f, inputs=["p"], timeout="10ms")),
        limits={"timeout": "2s"},
    )
    forecast = play(
        graph, of(at_once("p/a", 30.0), at_once("p/b", 30.0), at_once("s/c", 30.0), at_once("open", 1.0)), 2
    )
    assert (forecast.status, round(forecast.wall_s)) == ("succeeded", 61)
    assert "expected to take longer than its timeout of 2.0 s" in str(
        expected_facts(graph, of(at_once("p/a", 30.0)), forecast, GB)
    )


def test_memory_limits_what_runs_at_once_in_a_simulation_too() -> None:
    steps = [Step(f"s{i}", f) for i in range(8)]
    past = of(*(at_once(f"p/s{i}", 1.0, peak_bytes=GB) for i in range(8)))
    graph = graph_of(Parallel("p", *steps))
    free, tight = play(graph, past, 8, memory_bytes=64 * GB), play(graph, past, 8, memory_bytes=3 * GB)
    assert (free.most_at_once, free.peak_bytes) == (8, 8 * GB)
    assert tight.most_at_once == 2
    assert tight.wall_s == pytest.approx(4.0, abs=0.01)
    alone = play(graph, past, 8, memory_bytes=GB // 2)
    assert (alone.status, alone.most_at_once) == ("succeeded", 1)


def test_ten_thousand_steps_are_played_through() -> None:
    steps = [Step(f"s{i}", f) for i in range(10_000)]
    graph = graph_of(Parallel("p", *steps))
    forecast = play(graph, of(*(at_once(f"p/s{i}", 0.1 + i % 7) for i in range(10_000))), 64)
    assert (forecast.attempts, forecast.most_at_once) == (10_000, 64)
    assert forecast.efficiency > 0.98


def test_workers_that_share_cores_are_played_slower() -> None:
    graph = graph_of(Parallel("p", *(Step(f"s{i}", f) for i in range(8))))
    past = of(*(at_once(f"p/s{i}", 1.0) for i in range(8)))
    assert play(graph, past, 8).wall_s == pytest.approx(1.0, abs=0.01)
    assert play(graph, past, 8, cores=2).wall_s == pytest.approx(4.0, abs=0.01)


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_facts_tell_what_is_expected_and_what_is_not_known() -> None:
    graph = graph_of(Step("a", f), Parallel("p", Step("b", f), Step("new", f)))
    known = of(at_once("a", 10.0, peak_bytes=GB), at_once("p/b", 20.0, peak_bytes=2 * GB))
    facts = dict(expected_facts(graph, known, play(graph, known, 2, memory_bytes=16 * GB), 16 * GB))
    assert facts["expected"] == "30.0 s for 31.0 s of work, 2 workers 52% busy; learned from 1 run"
    assert facts["critical"] == "30.0 s: a > p/b"
    assert facts["peak"] == "1.9 GiB of 15 GiB; 2 at once; memory holds 6 of the largest, p/b"
    assert facts["unknown"] == "p/new: no run has told of it, counted 1.0 s each"
    assert (
        learned_text(graph.root.members[0], known) == "learned 10.0 s (p95 10.0 s), peak 954 MiB, 1 run, changed since"
    )


def test_a_table_shows_what_workers_bring_and_what_can_not_run() -> None:
    graph = graph_of(Parallel("p", *(Step(f"s{i}", f) for i in range(8))))
    past = of(*(at_once(f"p/s{i}", 1.0) for i in range(8)))
    rows = [Refused(1, "step x asks for 4 cpus"), play(graph, past, 2), play(graph, past, 8)]
    lines = table_lines(rows, past)
    assert [line.split() for line in lines[1:3]] == [
        ["2", "4.0", "s", "1.00x", "100%", "2", "191", "MiB"],
        ["8", "1.0", "s", "4.00x", "100%", "8", "763", "MiB"],
    ]
    assert lines[3] == "1 workers: step x asks for 4 cpus"


PLAN = """
name: p
steps:
  - {name: a, function: "plan_steps:f"}
  - {name: b, function: "plan_steps:f", cpus: 2, timeout: 300%}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan_steps.py").write_text("def f():\n    return 1\n")
    (tmp_path / "p.yaml").write_text(PLAN)
    return tmp_path


def invoke(*args: str) -> Result:
    result = CliRunner().invoke(cli, ["plan", "p.yaml", *args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def past(folder: Path) -> StateFolder:
    from procflow.storing.state_folder import lock_name

    state = StateFolder.open(folder / ".procflow")
    run(state, "r1", attempt(1, "a", 4.0), attempt(2, "b", 8.0), lock=lock_name("p.yaml", "p"))
    return state


def test_a_plan_without_history_says_so_and_makes_no_state_folder(folder: Path) -> None:
    text = invoke("-j", "2").output
    assert "nothing yet: once it has run, this plan tells times and memory" in text
    assert "timeout 300% of the median, none yet, without history" in text
    assert not (folder / ".procflow").exists()
    text = invoke("-j", "2,4").output
    assert "nothing is known of the steps yet, so each counts 1 s" in text


def test_a_plan_after_a_run_tells_times_and_memory(folder: Path) -> None:
    past(folder)
    text = invoke("-j", "2").output
    assert "12.0 s for 12.0 s of work" in text or "12.2 s for 12.0 s of work" in text
    assert "critical  12.0 s: a > b" in text
    assert "timeout 300% of the median, now 24.0 s; learned 8.0 s (p95 8.0 s), peak 1000 B, 1 run" in text


def test_a_plan_of_several_numbers_of_workers_is_a_table(folder: Path) -> None:
    past(folder)
    result = invoke("--workers", "1,2,4", "--memory", "900GB")
    assert result.exit_code == 0
    assert result.output.startswith("p: simulated, learned from 1 run; a core for each worker, 838 GiB for all")
    assert "1 workers: step b asks for 2 cpus" in result.output
    data = json.loads(invoke("--workers", "1,2,4", "--json").stdout)
    assert [row["workers"] for row in data["simulated"]] == [1, 2, 4]
    assert data["simulated"][1]["wall_s"] == pytest.approx(12.0, abs=0.5)
    assert data["simulated"][0]["refused"] == "step b asks for 2 cpus"


def test_a_plan_as_data_has_what_was_learned(folder: Path) -> None:
    past(folder)
    data = json.loads(invoke("-j", "2", "--json").stdout)
    assert data["expected"]["critical_path"] == ["a", "b"]
    assert [step["learned"]["median_s"] for step in data["steps"]] == [4.0, 8.0]
    assert (data["runs"], data["unusable"]) == (1, [])


@pytest.mark.parametrize("damage", ["rows", "lessons", "file", "newer"])
def test_a_plan_goes_on_without_a_history_that_can_not_be_used_and_says_so(folder: Path, damage: str) -> None:
    state = past(folder)
    if damage == "file":
        for path in state.path.glob("procflow.db*"):
            path.write_bytes(b"no database " * 999)
    else:
        change = {
            "rows": "UPDATE runs SET workers = 9",
            "lessons": "UPDATE learned SET data = zeroblob(30)",
            "newer": "PRAGMA user_version = 99",
        }[damage]
        with closing(sqlite3.connect(state.db)) as db:
            db.execute(change)
            db.commit()
    result = invoke("-j", "2")
    assert result.exit_code == 0
    assert "not used" in result.output
    assert "plan_steps:f" in result.output


def test_wrong_numbers_of_workers_are_refused() -> None:
    result = CliRunner().invoke(cli, ["plan", "p.yaml", "--workers", "1,x"])
    assert result.exit_code == 2
    assert "'x' is not a number of workers" in result.output


def test_what_is_known_is_said_to_be_of_the_same_only_where_it_is() -> None:
    assert knowledge(seen("a"), params={}).by_place["a", "member"].same is False
