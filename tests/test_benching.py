"""``procflow bench``: verdicts from samples, edits of files, comparisons, and a whole measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from procflow.benching import compare
from procflow.benching.cores import Cores, probe
from procflow.benching.edit import NotEdited, with_executor
from procflow.benching.report import Report, Row, data, lines
from procflow.benching.samples import Measured, Round, equal, spread
from procflow.benching.verdict import Verdict, judge
from procflow.cli import cli
from procflow.cli.bench import _allowed, _apply
from procflow.errors import ProcflowError
from procflow.launch import prepare
from procflow.loader import load_text
from procflow.pool import ProcessPool

ROOT = Path(__file__).parents[1]


def measured(
    sequential: float,
    threads: float,
    processes: float,
    *,
    busy: float = 1.0,
    threads_cpu: float | None = None,
    pieces: int = 10,
    moved: int = 0,
) -> Measured:
    """Three rounds without noise: seconds on each executor, share of a core that the work uses."""
    rounds = {
        "sequential": [Round(sequential, busy * sequential, moved, busy * sequential)] * 3,
        "threads": [Round(threads, busy * sequential if threads_cpu is None else threads_cpu, moved)] * 3,
        "processes": [Round(processes, busy * sequential, moved, 0.0, 50_000_000)] * 3,
    }
    return Measured(pieces, 0, rounds, True)


def verdict(found: Measured, declared: str = "processes", usable: float = 2.0, pieces: int = 100) -> Verdict:
    return judge(found, pieces=pieces, declared=declared, slots=2, usable=usable, start_s=0.1, is_map=True)


# verdicts


def test_python_code_that_threads_can_not_speed_up_belongs_in_processes() -> None:
    found = verdict(measured(1.0, 1.05, 0.52), declared="threads")
    assert (found.best, found.kind, found.change) == ("processes", "gil", "processes")
    assert "GIL-bound" in found.why
    assert verdict(measured(1.0, 1.05, 0.52), declared="processes").change is None


def test_python_code_is_told_from_waiting_on_a_busy_machine_too() -> None:
    # A neighbour takes half of everything, so the processor is used half of the time, though it is wanted all the time.
    found = measured(2.0, 2.1, 1.0)
    found.rounds["sequential"] = [Round(2.0, 1.0, 0, 2.0)] * 3
    found.rounds["threads"] = [Round(2.1, 1.05, 0)] * 3
    assert verdict(found).kind == "gil"


def test_with_less_than_two_cores_to_be_had_nothing_is_said_of_the_lock() -> None:
    found = verdict(measured(1.0, 1.05, 0.9), usable=1.1)
    assert (found.best, found.kind) == ("processes", "mixed")
    assert "can't be told on 1.1 cores" in found.why


def test_work_that_releases_the_lock_may_run_in_either() -> None:
    found = verdict(measured(1.0, 0.53, 0.51))
    assert (found.best, found.kind, found.change) == ("either", "free", None)
    assert "threads save 48 MiB" in found.why


def test_waiting_belongs_in_threads_and_is_not_moved_for_nothing() -> None:
    found = verdict(measured(1.0, 0.5, 0.52, busy=0.02))
    assert (found.best, found.kind, found.change) == ("threads", "waits", None)
    assert "waits 98% of the time" in found.why
    assert verdict(measured(1.0, 0.5, 0.52, busy=0.02), declared="inline").change == "threads"


def test_moving_data_is_seen_where_processes_are_slower_for_it() -> None:
    found = verdict(measured(0.3, 0.31, 1.5, moved=400_000_000))
    assert (found.best, found.kind, found.change) == ("sequential", "moving", "inline")
    assert "moving 381 MiB" in found.why


def test_a_step_shorter_than_the_start_of_a_worker_is_left_where_it_is() -> None:
    found = verdict(measured(0.0001, 0.001, 0.01), declared="threads")
    assert (found.best, found.kind, found.change) == ("any", "small", None)


def test_a_library_with_threads_of_its_own_is_seen() -> None:
    found = verdict(measured(1.0, 1.0, 1.0, busy=1.9, threads_cpu=1.9))
    assert "uses 1.9 cores by itself" in found.why
    assert "cpus: 2" in found.why


def test_a_spread_of_more_than_a_tenth_makes_a_verdict_unsure() -> None:
    found = measured(1.0, 1.05, 0.5)
    found.rounds["processes"] = [Round(wall, 1.0, 0) for wall in (0.4, 0.5, 0.9)]
    assert not verdict(found).sure
    assert spread([1.0]) == 0.0
    assert spread([1.0, 1.0, 1.0, 1.0]) == 0.0


def test_a_verdict_is_for_all_pieces_of_a_run() -> None:
    assert verdict(measured(1.0, 1.0, 0.5), pieces=1000).whole_s["processes"] == pytest.approx(50.0)


# results


def test_results_are_compared_by_value() -> None:
    numpy = pytest.importorskip("numpy")
    values = numpy.array([1.0, float("nan")])
    assert equal({"a": [values, float("nan")]}, {"a": [values.copy(), float("nan")]})
    assert not equal({"a": [values]}, {"a": [values + 1]})
    assert not equal([1, 2], [1, 2, 3])
    assert not equal(1, 1.0)


# edits

BLOCK = """\
name: p
steps:
  # the first
  - type: transform
    name: load     # named
    function: "m:f"   # kept

  - {type: map, name: 'each', items: [1, 2], function: "m:g"}  # flow
  - type: map
    executor: processes # why
    items: [1]
    function: "m:h"
    name: last"""


@pytest.mark.parametrize(
    ("loc", "old", "new"),
    [
        (("steps", 0), "    name: load     # named\n", "    name: load     # named\n    executor: threads\n"),
        (("steps", 1), "name: 'each', ", "name: 'each', executor: threads, "),
        (("steps", 2), "executor: processes # why", "executor: threads # why"),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_one_key_changes_and_nothing_else(loc: Any, old: str, new: str, ending: str) -> None:
    text = BLOCK.replace("\n", ending)
    source = load_text(text, "p.yaml", ".").source
    edited = with_executor(text, source, loc, "threads")
    assert edited == text.replace(old.replace("\n", ending), new.replace("\n", ending))
    again = load_text(edited, "p.yaml", ".").pipeline.steps[loc[1]]
    assert again.executor == "threads"


def test_json_is_edited_as_json() -> None:
    text = '{"name": "p", "steps": [{"type": "transform", "name": "a", "function": "m:f"}]}'
    edited = with_executor(text, load_text(text, "p.json", ".").source, ("steps", 0), "inline")
    assert json.loads(edited)["steps"][0]["executor"] == "inline"


@pytest.mark.parametrize(
    "step",
    [
        "  - &a {type: transform, function: 'm:f'}\n  - *a\n",
        "  - type: transform\n    name: >-\n      a\n    function: m:f\n",
    ],
)
def test_a_place_that_can_not_be_edited_safely_is_left_alone(step: str) -> None:
    text = f"name: p\nsteps:\n{step}"
    source = load_text(text, "p.yaml", ".").source
    with pytest.raises(NotEdited, match="write executor: threads by hand"):
        with_executor(text, source, ("steps", 0), "threads")


# comparisons


def tree(walls: list[float], step: str = "s") -> dict[str, Any]:
    samples = {"processes": [{"wall_s": wall} for wall in walls]}
    return {"format": 1, "steps": [{"step": step, "pieces": 10, "samples": samples}, {"step": "left", "left_out": "x"}]}


def test_a_clear_difference_is_told_from_noise() -> None:
    calm, slow = [1.0, 1.01, 0.99, 1.0, 1.0], [1.5, 1.51, 1.49, 1.5, 1.52]
    (worse,) = compare.changes(tree(calm), tree(slow))
    assert (worse.clear, str(worse)) == (True, "1.50x slower")
    (same,) = compare.changes(tree([0.5, 1.0, 1.5]), tree([0.6, 1.1, 1.6]))
    assert (same.clear, str(same)) == (False, "1.10x slower (not significant)")
    assert compare.slower([worse, same], 0.2) == [worse]
    assert compare.slower([worse, same], 0.6) == []
    (better,) = compare.changes(tree(slow), tree(calm))
    assert str(better) == "1.50x faster"
    assert compare.changes(tree(calm, "a"), tree(calm, "b")) == []


def test_a_file_that_is_no_measurement_is_refused() -> None:
    for wrong in ([], {"format": 0, "steps": []}, {"format": 1}):
        with pytest.raises(ProcflowError, match="no file that procflow bench --json"):
            compare.changes(wrong, tree([1.0]))  # type: ignore[arg-type]


# reports


def report(busy: bool) -> Report:
    found = measured(1.0, 1.05, 0.52)
    row = Row("load", "0", ("steps", 0), "threads", 100, found, verdict(found, declared="threads"))
    cores = Cores(2, 1.1 if busy else 1.95, 0.02, 0.3)
    return Report(
        "p", "p.yaml", 2, cores, 0.1, 1.0, [row, Row("cmd", "1", ("steps", 1), "processes", 1, left_out="a command")]
    )


def test_a_quiet_machine_gives_a_verdict_and_what_to_paste() -> None:
    text = "\n".join(lines(report(busy=False)))
    assert "2 CPUs seen, 1.9 usable now" in text or "2 CPUs seen, 2.0 usable now" in text
    assert "520 ms 1.9x ◀" in text
    assert "load:  executor: processes    # threads now" in text
    assert "--apply writes it" in text
    assert "~" not in text


def test_a_busy_machine_is_said_and_marked() -> None:
    text = "\n".join(lines(report(busy=True)))
    assert "machine busy, verdict unsure: 1.1 of 2 CPUs" in text
    assert "~1.9x" in text
    assert "~processes" in text


def test_json_holds_the_raw_samples() -> None:
    found = json.loads(json.dumps(data(report(busy=False))))
    assert found["sure"] is True
    assert len(found["steps"][0]["samples"]["threads"]) == 3
    assert found["steps"][0]["change"] == "processes"
    assert found["steps"][1]["left_out"] == "a command"


def test_the_probe_counts_cores() -> None:
    with ProcessPool(2) as pool:
        cores = probe(pool, 2)
    assert 0 < cores.usable <= 2
    assert 0 <= cores.noise < 1


# the command

PIPELINE = """\
name: small
steps:
  - {type: transform, name: numbers, function: "tests.steps_for_bench:numbers", output: rows}
  - type: map
    name: wait   # sleeps
    executor: inline
    items: ${rows}
    function: tests.steps_for_bench:wait
  - {type: map, name: odd, items: "${rows}", function: "tests.steps_for_bench:other_each_time"}
  - {type: map, name: where, items: "${rows}", function: "tests.steps_for_bench:where"}
  - {type: shell, name: note, command: "echo x >> note.txt"}
  - {type: transform, name: total, function: "tests.steps_for_bench:total", inputs: [rows]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "p.yaml").write_text(PIPELINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["bench", *arguments])


def test_a_file_is_measured_step_by_step(folder: Path) -> None:
    result = call("p.yaml", "--items", "4", "--repeat", "3", "--budget", "10s", "--json", "-j", "2")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    steps = {row["step"]: row for row in found["steps"]}
    assert list(steps) == ["numbers", "wait", "odd", "where", "note", "total"]
    assert steps["wait"]["kind"] == "waits"
    assert steps["wait"]["pieces"] == 4
    assert steps["wait"]["pieces_in_run"] == 6
    assert steps["wait"]["same_results"] is True
    assert len(steps["wait"]["samples"]["processes"]) == 3
    assert steps["odd"]["same_results"] is None
    assert steps["where"]["same_results"] is False
    assert steps["note"]["left_out"] == "not repeated: a command (--include note)"
    assert not (folder / ".procflow").exists()
    assert (folder / "note.txt").read_text() == "x\n"

    (folder / "old.json").write_text(result.stdout)
    for row in found["steps"]:
        for sample in row.get("samples", {}).get("processes", []):
            sample["wall_s"] /= 100
    (folder / "quick.json").write_text(json.dumps({**found, "sure": True}))
    again = call(
        "p.yaml",
        "--items",
        "2",
        "--repeat",
        "3",
        "--budget",
        "5s",
        "-j",
        "2",
        "--compare",
        "quick.json",
        "--fail-slower",
        "20%",
    )
    assert "against quick.json" in again.output
    assert again.exit_code == (0 if "is not judged" in again.output else 1), again.output


def test_a_command_is_repeated_where_it_is_asked_for(folder: Path) -> None:
    result = call("p.yaml", "--items", "1", "--repeat", "1", "--budget", "2s", "--include", "note", "-j", "2")
    assert result.exit_code == 0, result.output
    assert len((folder / "note.txt").read_text().split()) > 2


def test_what_is_applied_is_the_file_with_better_executors(folder: Path) -> None:
    source = load_text(PIPELINE, "p.yaml", folder).source
    source = type(source)(source.name, folder / "p.yaml", source.folder, source.root)
    found = report(busy=False)
    rows = [Row("wait", "1", ("steps", 1), "inline", 6, found.rows[0].measured, found.rows[0].verdict)]
    quiet = Report("small", "p.yaml", 2, found.cores, 0.1, 1.0, rows)
    (folder / "p.yaml").chmod(0o640)
    _apply(quiet, source)
    assert (folder / "p.yaml").read_text() == PIPELINE.replace("executor: inline", "executor: processes")
    assert (folder / "p.yaml").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in folder.iterdir()] == ["p.yaml"]
    _apply(Report("small", "p.yaml", 2, report(busy=True).cores, 0.1, 1.0, rows), source)
    assert (folder / "p.yaml").read_text() == PIPELINE.replace("executor: inline", "executor: processes")


def test_a_change_that_the_file_can_not_have_is_told_with_its_reason(folder: Path) -> None:
    (folder / "p.yaml").write_text(PIPELINE.replace("    executor: inline", "    timeout: 5s"))
    result = call("p.yaml", "--items", "4", "--repeat", "1", "--budget", "2s", "-j", "1", "--json")
    assert result.exit_code == 0, result.output
    source = load_text((folder / "p.yaml").read_text(), "p.yaml", folder).source
    source = type(source)(source.name, folder / "p.yaml", source.folder, source.root)
    found = measured(1.0, 0.5, 1.0, busy=0.01)
    row = Row("wait", "1", ("steps", 1), "processes", 6, found, verdict(found))
    ready = prepare(load_text((folder / "p.yaml").read_text(), "p.yaml", folder).pipeline, source=source)
    assert "threads" in _allowed(row, ready, source).refused


def test_wrong_options_are_usage_errors(folder: Path) -> None:
    for arguments, words in (
        (["--fail-slower", "20%"], "--fail-slower needs --compare"),
        (["--include", "nobody"], "there is no such step"),
        (["--budget", "long"], "is not a duration"),
    ):
        result = call("p.yaml", *arguments)
        assert result.exit_code == 2, result.output
        assert words in result.output


def test_a_pipeline_that_fails_can_not_be_measured_and_says_so(folder: Path) -> None:
    (folder / "p.yaml").write_text(
        "name: p\nsteps: [{type: transform, name: bad, function: 'tests.steps_for_bench:wait', params: {item: 1}},"
        " {type: transform, name: worse, function: 'os:abort'}]"
    )
    result = call("p.yaml", "-j", "1")
    assert result.exit_code == 1
    assert "the run that makes the steps' inputs failed" in result.output
