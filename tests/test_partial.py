"""Partial outcomes: tolerated failures, failures.jsonl, markers in merges, and a retry budget for the whole run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow import FailedMember, Map, Parallel, Pipeline, PipelineError, Sequence, Step, load
from procflow.attempt import Failure
from procflow.compiler import compile_pipeline
from procflow.events import AttemptFinished, AttemptStarted, BlockFinished, RunFinished, RunStarted, StepFinished
from procflow.loader import load_text
from procflow.ref import Ordered
from procflow.scheduling.merge import collected, marked
from procflow.showing.aftermath import Aftermath
from procflow.storing.failures_file import FailuresFile
from procflow.values.objects import pack, unpack

DEADLINE_S = 60
KEYS = {
    *("label", "path", "item", "kind", "attempts", "cause", "type", "message", "user_place", "signal", "exit_code"),
    *("peak_rss_bytes", "value", "log", "tolerated", "quarantined"),
}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def failures(folder: Path) -> list[dict[str, Any]]:
    """The lines of the only run's failures.jsonl; each has all keys."""
    found = list(folder.glob(".procflow/runs/*/failures.jsonl"))
    assert len(found) <= 1
    records = [json.loads(line) for path in found for line in path.read_text().splitlines()]
    assert all(record.keys() == KEYS for record in records)
    return records


# -- a map with an item that kills its worker --------------------------------------------------------------------------

POISON = """
import os

def work(number, ledger, poison):
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{number} {os.getpid()} start\\n".encode())
    os.close(fd)
    if number == poison:
        print("about to die")
        os.kill(os.getpid(), 9)
    return number * number
"""
PIPELINE = """
name: poison
limits: {workers: 2}
show: [count]
steps:
  - {type: map, name: squares, items: {range: [200]}, function: "work:work", tolerate: 1%, BATCH
     params: {ledger: "${params.ledger}", poison: 117}}
  - {name: count, function: "builtins:len", inputs: [squares]}
params: {ledger: {required: true}}
"""


@pytest.mark.parametrize("batch", ["batch: 1,", ""])
def test_a_map_of_200_items_with_one_that_kills_its_worker_has_199_results(tmp_path: Path, batch: str) -> None:
    (tmp_path / "work.py").write_text(POISON)
    (tmp_path / "poison.yaml").write_text(PIPELINE.replace("BATCH", batch))
    command = [sys.executable, "-m", "procflow", "run", "poison.yaml", "-p", f"ledger={tmp_path / 'ledger'}"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "199\n"), done.stderr
    starts = Counter(line.split()[0] for line in (tmp_path / "ledger").read_text().splitlines())
    assert len(starts) == 200
    assert starts["117"] == 2, "set aside after the second loss"
    if batch:
        assert starts.total() == 199 + 2, "STARTS = N + retries"
    else:
        # Results of a batch that was not over died with their worker, so those items run again, once.
        assert {count for number, count in starts.items() if number != "117"} <= {1, 2}
    (record,) = failures(tmp_path)
    assert (record["label"], record["path"], record["item"], record["kind"]) == ("squares", "0", "117", "item")
    assert (record["cause"], record["signal"], record["exit_code"], record["attempts"]) == ("crash", 9, None, 2)
    assert record["peak_rss_bytes"] > 1 << 20
    assert record["quarantined"] is True
    assert record["tolerated"] is True
    assert record["value"] == "", "who died can't tell"
    (run,) = tmp_path.glob(".procflow/runs/*")
    assert "about to die" in (run / record["log"]).read_text()
    assert "item 117" in done.stderr
    assert "SIGKILL (9)" in done.stderr


# -- tolerance ---------------------------------------------------------------------------------------------------------


def odd(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


@pytest.mark.parametrize(
    ("tolerate", "status"),
    [
        (0, "failed"), ("0%", "failed"), (1, "failed"), (4, "failed"), (5, "partial"), ("40%", "failed"),
        ("49.9%", "failed"), ("50%", "partial"), ("100%", "partial"), (10**12, "partial"),
    ],
)  # fmt: skip
def test_a_map_may_lose_as_many_items_as_it_tolerates(tolerate: int | str, status: str, tmp_path: Path) -> None:
    # Workers are started for one on each side of the border.
    executor = "processes" if tolerate in (4, "50%") else "inline"
    steps = [Map("m", odd, items=range(10), tolerate=tolerate), Step("n", len, inputs=["m"])]
    done = Pipeline("p", steps=steps).run(executor=executor, workers=2)
    assert done.status == status
    assert done.exit_code == {"failed": 1, "partial": 3}[status]
    records = failures(tmp_path)
    assert {record["tolerated"] for record in records} == {status == "partial"}
    if status == "partial":
        assert done.outputs["m"] == [0, 2, 4, 6, 8]
        assert done.outputs["n"] == 5
        assert sorted(record["item"] for record in records) == ["1", "3", "5", "7", "9"]
        assert (done.failure_count, done.tolerated_count) == (5, 5)


def test_no_failure_leaves_no_file_and_exit_code_0_whatever_is_tolerated(tmp_path: Path) -> None:
    done = Pipeline("p", steps=[Map("m", odd, items=[2, 4], tolerate=0)]).run(executor="inline")
    assert (done.exit_code, failures(tmp_path)) == (0, [])
    assert not list(tmp_path.glob(".procflow/runs/*/failures.jsonl"))


def test_every_item_may_fail_where_all_are_tolerated(tmp_path: Path) -> None:
    done = Pipeline("p", steps=[Map("m", odd, items=[1, 3], tolerate="100%")]).run(executor="inline")
    assert (done.status, done.outputs["m"]) == ("partial", [])
    assert len(failures(tmp_path)) == 2


@pytest.mark.parametrize("tolerate", [-1, True, "101%", "-1%", 1.5, "1", "none"])
def test_a_tolerance_that_is_none_is_refused(tolerate: Any) -> None:
    with pytest.raises(PipelineError, match="tolerate"):
        Map("m", odd, items=[1], tolerate=tolerate)


def size(given: str) -> int:
    return len(given)


# -- failures.jsonl ----------------------------------------------------------------------------------------------------


def bad(*given: object) -> None:
    raise KeyError("nothing here")


def test_a_failed_step_stands_there_with_its_place_and_what_stopped_the_run(tmp_path: Path) -> None:
    done = Pipeline("p", steps=[Parallel("both", Step("a", bad), Step("b", size, params={"given": ""}))]).run()
    assert done.status == "failed"
    (record,) = failures(tmp_path)
    assert (record["label"], record["path"], record["kind"], record["type"]) == ("both/a", "0.0", "step", "KeyError")
    assert record["user_place"].startswith(f"{__file__}:")
    assert (record["tolerated"], record["quarantined"], record["attempts"]) == (False, False, 1)


def test_an_item_is_shown_by_a_short_repr_in_the_file_and_in_the_last_block(tmp_path: Path) -> None:
    class Quiet:
        def __repr__(self) -> str:
            raise SystemExit(3)

    items: list[Any] = [{"id": 7, "name": "x" * 1000}, list(range(10_000)), Quiet(), "\x1b[31mred\u202e"]
    done = Pipeline("p", steps=[Map("m", bad, items=items, tolerate="100%")]).run(executor="inline")
    values = {record["item"]: record["value"] for record in failures(tmp_path)}
    assert values["0"].startswith("{'id': 7, 'name': 'xxx")
    assert values["1"] == "[0, 1, 2, 3, 4, 5, ...]"
    assert values["2"].startswith("<Quiet instance at") or values["2"] == ""
    assert all(len(value) <= 200 for value in values.values())
    aftermath = Aftermath()
    for found in done.failures:
        event = StepFinished(1.0, found.path, found.label, found.item, "failed", 1, (), found.failure)
        aftermath.note_step(event)
    lines = aftermath.lines("r", command="procflow", state_dir=None, find_log=None)
    assert any(line.startswith("    the item is {'id': 7") for line in lines)
    assert not any("\x1b" in line or "\u202e" in line for line in lines)


def test_an_item_of_a_batch_names_the_log_of_its_batch(tmp_path: Path) -> None:
    def noisy(number: int) -> int:
        print("item", number)
        return odd(number)

    Pipeline("p", steps=[Map("m", noisy, items=range(8), batch=4, tolerate="100%")]).run(executor="inline")
    (run,) = tmp_path.glob(".procflow/runs/*")
    for record in failures(tmp_path):
        first = int(record["item"]) // 4 * 4
        assert record["log"] == f"logs/m/{first}-{first + 3}.1.log"
        assert f"item {record['item']}\n" in (run / record["log"]).read_text()


def test_an_item_inside_an_item_is_named_by_both(tmp_path: Path) -> None:
    inner = Map("inner", odd, items="rows", tolerate="100%")

    def rows(item: int) -> list[int]:
        return [item, item + 1]

    outer = Map("outer", Step("rows", rows, inputs=["item"]), inner, items=[10, 21])
    assert Pipeline("p", steps=[outer]).run(executor="inline").status == "partial"
    assert sorted((r["label"], r["item"], r["value"]) for r in failures(tmp_path)) == [
        ("outer/inner", "0/1", "11"), ("outer/inner", "1/0", "21"),
    ]  # fmt: skip
    assert {r["tolerated"] for r in failures(tmp_path)} == {True}


def test_what_failed_in_a_block_that_runs_again_stands_there_only_if_it_fails_for_good(tmp_path: Path) -> None:
    flag = tmp_path / "flag"

    def second_time(name: str) -> str:
        with (tmp_path / name).open("a") as file:
            file.write("x")
        if len((tmp_path / name).read_text()) < 2:
            raise OSError(name)
        return name

    again = Sequence("again", Step("a", second_time, params={"name": "flag"}), retry={"retries": 1, "delay": 0})
    never = Sequence("never", Step("b", bad), retry={"retries": 2, "delay": 0})
    done = Pipeline("p", steps=[again, never], on_error="continue").run(executor="inline")
    assert done.status == "partial"
    assert flag.read_text() == "xx"
    assert [(r["label"], r["tolerated"]) for r in failures(tmp_path)] == [("never/b", True)]


def test_a_block_whose_merge_fails_has_one_line_and_one_whose_time_is_up_has_one(tmp_path: Path) -> None:
    def judge(results: dict[str, Any]) -> None:
        raise RuntimeError("not good enough")

    block = Parallel("both", Step("a", size, params={"given": ""}), merge=judge, output="x")
    Pipeline("p", steps=[block]).run(executor="inline")
    (record,) = failures(tmp_path)
    assert (record["label"], record["kind"], record["message"]) == ("both", "step", "not good enough")
    file = FailuresFile(tmp_path)
    late = Failure("timeout", "Timeout", "the block took longer than its timeout of 1 s")
    first, *_ = events(tolerated="failed")
    for event in (
        first,
        StepFinished(0.3, "0.0", "b/a", "", "cancelled", 1),
        BlockFinished(0.4, "0", "b", "", "parallel", "failed", 1, 0, 0, 1.0, 1.0, 0.0, 0.0, (), late),
    ):
        file.handle(event)
    (record,) = lines_of(file.path)
    assert (record["label"], record["kind"], record["cause"]) == ("b", "block", "timeout")


def events(*, tolerated: str) -> list[Any]:
    failure = Failure("error", "ValueError", "m\n\u2028\x1b" * 2000)
    return [
        RunStarted(0.0, "r", "p", 2),
        AttemptStarted(0.0, 1, "0", "m", "0-9", 1, "inline"),
        StepFinished(0.1, "0", "m", "3", "failed", 1, (), failure),
        AttemptFinished(0.2, 1, "0", "m", "0-9", 1, "inline", "succeeded", 0.0),
        StepFinished(0.3, "0", "m", "4", "failed", 1, (), failure),
        BlockFinished(0.4, "0", "m", "", "map", "succeeded", 10, 8, 2, 1.0, 1.0, 0.0, 0.0),
        StepFinished(0.5, "1", "other", "", "failed", 2, (), failure),
        RunFinished(0.6, "r", tolerated, 3, 3, 1.0, 1.0),  # type: ignore[arg-type]
    ]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_a_line_is_there_as_soon_as_it_is_told_and_undecided_until_its_block_is_over(tmp_path: Path) -> None:
    file = FailuresFile(tmp_path)
    seen = []
    for event in events(tolerated="failed"):
        file.handle(event)
        seen.append([r["tolerated"] for r in lines_of(file.path)] if file.path.exists() else [])
    assert seen == [
        [], [], [None], [None], [None, None], [True, True], [True, True, None], [True, True, False],
    ]  # fmt: skip
    data = file.path.read_bytes()
    assert data.isascii()
    assert b"\x1b" not in data
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_second_session_begins_anew_so_nothing_stands_there_twice(tmp_path: Path) -> None:
    for _ in range(3):
        file = FailuresFile(tmp_path)
        for event in events(tolerated="partial"):
            file.handle(event)
        file.close()
        assert [(r["label"], r["item"]) for r in lines_of(file.path)] == [("m", "3"), ("m", "4"), ("other", "")]
    assert [path.name for path in tmp_path.iterdir()] == ["failures.jsonl"]


def test_a_large_file_is_written_anew_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("procflow.storing.failures_file.REWRITTEN_BYTES", 0)
    file = FailuresFile(tmp_path)
    *most, last = events(tolerated="failed")
    for event in most:
        file.handle(event)
    assert [r["tolerated"] for r in lines_of(file.path)] == [None, None, None]
    file.handle(last)
    assert [r["tolerated"] for r in lines_of(file.path)] == [True, True, False]


def test_a_planted_link_is_neither_followed_nor_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "failures.jsonl").symlink_to(other)
    (run / "failures.jsonl.new").symlink_to(other)
    file = FailuresFile(run)
    for event in events(tolerated="partial"):
        file.handle(event)
    assert other.read_text() == "precious\n"
    assert not (run / "failures.jsonl").is_symlink()


# -- markers in merges -------------------------------------------------------------------------------------------------


def told(results: Any) -> list[Any]:
    """The members as a merge by ``module:name`` sees them."""
    members = results.items() if isinstance(results, dict) else enumerate(results)
    return [(key, str(value) if isinstance(value, FailedMember) else value) for key, value in members]


def test_a_merge_of_ones_own_is_told_which_members_failed_in_declared_order() -> None:
    block = Parallel(
        *("all", Step("b", bad), Step("a", size, params={"given": "xy"}), Step("c", bad)),
        on_error="continue", merge=told, output="x",
    )  # fmt: skip
    done = Pipeline("p", steps=[block]).run(executor="threads", workers=3)
    failed = "KeyError: 'nothing here'"
    assert done.outputs["x"] == [("b", f"b failed: {failed}"), ("a", 2), ("c", f"c failed: {failed}")]


def test_a_merge_of_ones_own_gets_markers_in_the_place_of_failed_items() -> None:
    for workers in (1, 3):
        done = Pipeline("p", steps=[Map("m", odd, items=range(5), tolerate="100%", merge=told)]).run(workers=workers)
        assert done.outputs["m"] == [
            (0, 0), (1, "1 failed: ValueError: 1 is odd"), (2, 2), (3, "3 failed: ValueError: 3 is odd"), (4, 4),
        ]  # fmt: skip


def test_join_any_tells_of_members_that_failed_before_the_first_success() -> None:
    block = Parallel(
        "one",
        Step("a", bad),
        Step("b", size, params={"given": "xy"}),
        join="any",
        max_parallelism=1,
        merge=told,
        output="x",
    )
    done = Pipeline("p", steps=[block]).run(executor="inline")
    assert done.outputs["x"] == [("a", "a failed: KeyError: 'nothing here'"), ("b", 2)]


@pytest.mark.parametrize(
    ("merge", "value"),
    [("update", {"k": 1}), ("collect_all", [{"k": 1}]), ("first_success", {"k": 1}), ("combine_outputs", {"k": 1})],
)
def test_strategies_by_name_leave_failed_members_out(merge: str, value: Any) -> None:
    good = Step("good", dict, params={"k": 1})
    block = Parallel("all", Step("a", bad), good, Step("z", bad), on_error="continue", merge=merge, output="x")
    done = Pipeline("p", steps=[block]).run(executor="inline")
    assert done.outputs["x"] == ({"good": value} if merge == "update" else value)


def test_a_marker_is_plain_data_that_counts_as_false() -> None:
    marker = FailedMember("a", "ValueError", "no", "error")
    assert pickle.loads(pickle.dumps(marker)) == marker
    assert not marker
    assert str(marker) == "a failed: ValueError: no"


@given(failed=st.sets(st.integers(0, 30)), order=st.randoms(use_true_random=False), size=st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_markers_stand_in_item_order_whatever_finished_first(failed: set[int], order: Any, size: int) -> None:
    good = [i for i in range(31) if i not in failed]
    chunks = [good[at : at + size] for at in range(0, len(good), size)]
    order.shuffle(chunks)
    rows = Ordered(tuple((tuple(chunk), pack([i * 10 for i in chunk])) for chunk in chunks))
    in_some_order = sorted(failed, key=lambda _: order.random())
    value = unpack(marked(rows, {i: Failure("error", "E", str(i)) for i in in_some_order}))
    assert [m.message if isinstance(m, FailedMember) else m for m in value] == [
        str(i) if i in failed else i * 10 for i in range(31)
    ]


@given(ends=st.lists(st.booleans(), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_members_and_markers_keep_the_declared_order(ends: list[bool]) -> None:
    members = [(f"m{i}", {"x": pack(i)} if ok else Failure("error", "E", "y" * 5000)) for i, ok in enumerate(ends)]
    value = unpack(collected(members))
    assert list(value) == [name for name, _ in members]
    for i, ok in enumerate(ends):
        found = value[f"m{i}"]
        assert found == i if ok else isinstance(found, FailedMember)
    assert all(len(v.message) <= 1000 for v in value.values() if isinstance(v, FailedMember))


# -- the retry budget --------------------------------------------------------------------------------------------------


def budget_of(text: str) -> float:
    loaded = load_text(f"name: p\nlimits: {{{text}}}\nsteps: [{{name: a, function: 'os:getpid'}}]", "p.yaml", ".")
    return compile_pipeline(loaded.pipeline).retry_share


def test_the_retry_budget_is_a_share_of_half_unless_it_is_given() -> None:
    assert budget_of("") == 0.5
    assert budget_of("retry_budget: 5%") == 0.05
    assert budget_of("retry_budget: 100%") == 1.0
    for wrong in ("0.5", "10", "0%", "101%", "half"):
        with pytest.raises(PipelineError, match="retry_budget"):
            budget_of(f"retry_budget: {wrong}")


@pytest.mark.parametrize(("share", "attempts"), [("10%", 30 + 10), ("100%", 30 * 4)])
def test_a_run_makes_no_more_retries_than_its_budget_but_always_ten(share: str, attempts: int, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"

    def work(number: int) -> None:
        with ledger.open("a") as file:
            file.write("x")
        raise OSError("systemic")

    step = Map("m", work, items=range(30), batch=1, tolerate="100%", retry={"retries": 3, "delay": 0})
    done = Pipeline("p", steps=[step], limits={"retry_budget": share}).run(executor="inline")
    assert done.status == "partial"
    assert len(ledger.read_text()) == attempts
    assert len(failures(tmp_path)) == 30


def test_a_file_says_it_all_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from procflow import FailedMember\n"
        "def odd(n):\n    if n % 2:\n        raise ValueError(n)\n    return n\n"
        "def gather(rows):\n    return [r.name if isinstance(r, FailedMember) else r for r in rows]\n"
    )
    (tmp_path / "p.yaml").write_text(
        "name: p\nlimits: {retry_budget: 20%}\nsteps:\n"
        "  - {type: map, name: m, items: [2, 3, 4], function: 'mine:odd', tolerate: 1, merge: 'mine:gather'}\n"
    )
    done = load(tmp_path / "p.yaml").run(workers=2)
    assert (done.status, done.outputs["m"]) == ("partial", [2, "1", 4])
    assert [(r["item"], r["value"], r["tolerated"]) for r in failures(tmp_path)] == [("1", "3", True)]
