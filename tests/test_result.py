"""Run results: what the Recorder makes of events, and the critical path."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow import events as ev
from procflow.attempt import Failure, Usage
from procflow.call import StepCall
from procflow.errors import RunFailed
from procflow.graph import MapUnit, MergeSpec, ScopeUnit, TaskGraph, TaskUnit, Unit
from procflow.ref import Inline
from procflow.result import MAX_FAILURES, Recorder, RunResult, exit_code
from procflow.showing.critical_path import critical_path_s

BAD = Failure("error", "ValueError", "bad row", exception=pickle.dumps(ValueError("bad row")))


def recorded(*events: ev.Event, **options: Any) -> RunResult:
    recorder = Recorder(**options)
    for event in events:
        recorder.handle(event)
    return recorder.result()


def tried(label: str, wall_s: float = 1.0, item: str = "", **more: Any) -> list[ev.Event]:
    path, status = more.pop("path", label), more.pop("status", "succeeded")
    usage = Usage(wall_s, wall_s / 2, more.pop("peak", 100))
    return [
        ev.AttemptStarted(0.25, 1, path, label, item, 1, "processes"),
        ev.AttemptFinished(1.0, 1, path, label, item, 1, "processes", status, 0.0, usage, **more),
    ]


def ended(label: str, status: Any, item: str = "", **more: Any) -> ev.Event:
    failure = more.pop("failure", BAD if status == "failed" else None)
    return ev.StepFinished(1.0, label, label, item, status, more.pop("attempts", 1), failure=failure, **more)


def over(
    status: Any = "succeeded", failures: int = 0, tolerated: int = 0, wall_s: float = 2.0, **more: Any
) -> ev.Event:
    return ev.RunFinished(wall_s, "r1", status, failures, tolerated, wall_s, 0.0, **more)


BEGUN = ev.RunStarted(0.0, "r1", "nightly", 2)


def test_a_run_that_went_well() -> None:
    result = recorded(BEGUN, *tried("a", 3.0), *tried("b", 1.0, peak=500), ended("a", "succeeded"), over(), workers=4)
    assert (result.status, result.run_id, result.pipeline, result.exit_code, result.ok) == (
        "succeeded",
        "r1",
        "nightly",
        0,
        True,
    )
    assert (result.metrics.work_s, result.metrics.wall_s, result.metrics.saved_s) == (4.0, 2.0, 2.0)
    assert (result.metrics.speedup, result.metrics.efficiency, result.metrics.startup_s) == (2.0, 0.5, 0.25)
    assert (result.metrics.attempts, result.metrics.peak_rss_bytes, result.metrics.cpu_s) == (2, 500, 2.0)
    assert result.metrics.critical_path_s is None
    assert (result.steps["a"].status, result.steps["a"].attempts, result.steps["a"].count) == ("succeeded", 1, 1)
    result.raise_for_status()


def test_a_retry_and_a_lost_attempt_are_counted_apart() -> None:
    result = recorded(
        BEGUN, *tried("a", 5.0, status="lost", failure=BAD, retry_in_s=1.0),
        *tried("a", 2.0, cost=0.5, metrics={"rows": 7.0}), over(),
    )  # fmt: skip
    step = result.steps["a"]
    assert (step.attempts, step.lost, step.wall_s, step.final_s, step.cost) == (2, 1, 7.0, 2.0, 0.5)
    assert step.metrics == {"rows": 7.0}
    assert (result.metrics.retries, result.metrics.lost) == (1, 1)
    assert result.failures == ()


def test_a_failed_run_names_its_steps_and_raises_with_the_steps_own_exception() -> None:
    result = recorded(
        BEGUN, *tried("fetch/a", status="failed", failure=BAD),
        ended("fetch/a", "failed", attempts=3), ended("m", "failed", item="7", tolerated=True), over("failed", 2, 1),
    )  # fmt: skip
    assert (result.failure_count, result.tolerated_count, result.exit_code) == (2, 1, 1)
    first, second = result.failures
    assert (first.label, first.attempts, first.log, first.tolerated) == ("fetch/a", 3, "logs/fetch__a/3.log", False)
    assert (second.item, second.tolerated, second.log) == ("7", True, "logs/m/7.1.log")
    with pytest.raises(RunFailed, match=r"run r1 failed\n  fetch/a: error after 3 attempts: ValueError: bad row$") as e:
        result.raise_for_status()
    assert isinstance(e.value.__cause__, ValueError)


@pytest.mark.parametrize("data", [None, b"garbage", pickle.dumps(3)])
def test_an_exception_that_cant_be_rebuilt_is_left_out(data: bytes | None) -> None:
    failure = Failure("error", "E", "m", exception=data)
    result = recorded(BEGUN, ended("a", "failed", failure=failure), over("failed", 1))
    with pytest.raises(RunFailed) as e:
        result.raise_for_status()
    assert e.value.__cause__ is None


@pytest.mark.parametrize(
    ("status", "reason", "code", "raises"),
    [
        ("succeeded", "", 0, False),
        ("partial", "", 3, False),
        ("failed", "", 1, True),
        ("timed_out", "", 4, True),
        ("cancelled", "SIGINT", 130, True),
        ("cancelled", "SIGTERM", 143, True),
    ],
)
def test_statuses_have_their_exit_codes(status: Any, reason: str, code: int, raises: bool) -> None:
    result = recorded(BEGUN, over(status, reason=reason))
    assert result.exit_code == exit_code(status, reason) == code
    if raises:
        with pytest.raises(RunFailed, match=status):
            result.raise_for_status()
    else:
        result.raise_for_status()


def test_a_run_without_an_end_did_not_succeed() -> None:
    result = recorded(BEGUN, *tried("a"))
    assert (result.status, result.ok) == ("failed", False)
    assert "did not reach its end" in result.reason


def test_a_block_has_its_result_record() -> None:
    end = ev.BlockFinished(3.0, "0", "p", "", "parallel", "failed", 3, 2, 1, 2.5, 6.0, 3.5, 0.5, ("x",), BAD)
    result = recorded(BEGUN, ev.BlockStarted(0.5, "0", "p", "", "parallel", 3, "all"), end, over())
    step = result.steps["p"]
    assert (step.kind, step.status) == ("parallel", "failed")
    assert step.block is not None
    assert (step.block.members, step.block.successful_count, step.block.failed_count) == (3, 2, 1)
    assert (step.block.wall_s, step.block.work_s, step.block.saved_s, step.block.cost) == (2.5, 6.0, 3.5, 0.5)
    assert step.block.produced == ("x",)


def test_a_map_keeps_counts_and_no_record_of_each_item() -> None:
    recorder = Recorder(workers=2)
    recorder.handle(ev.BlockStarted(0.0, "0", "m", "", "map", 100_000, "all"))
    for i in range(0, 100_000, 100):
        for event in tried("m", 0.25, f"{i}-{i + 99}", count=100):
            recorder.handle(event)
    for i in range(MAX_FAILURES + 50):
        recorder.handle(ended("m", "failed", item=str(i)))
    result = recorder.result()
    assert (result.steps["m"].count, result.steps["m"].failures) == (100_000, MAX_FAILURES + 50)
    assert (len(result.steps), len(result.failures), result.failure_count) == (1, MAX_FAILURES, MAX_FAILURES + 50)
    assert result.metrics.work_s == 250.0


def test_outputs_are_opened_once_when_asked_for() -> None:
    opened: list[Inline] = []

    def open_ref(ref: Any) -> Any:
        opened.append(ref)
        return pickle.loads(ref.data)

    refs = {"a": Inline(pickle.dumps([1, 2])), "b": Inline(b"broken")}
    outputs = Recorder().result(refs, open_ref).outputs
    assert list(outputs) == ["a", "b"]
    assert len(outputs) == 2
    assert "b" in outputs
    assert repr(outputs) == "<values a, b>"
    assert opened == []
    assert outputs["a"] == [1, 2]
    assert outputs["a"] is outputs["a"]
    assert len(opened) == 1
    with pytest.raises(KeyError):
        outputs["c"]


def test_outputs_are_opened_by_the_object_store_unless_told_otherwise() -> None:
    assert Recorder().result({"a": Inline(pickle.dumps(7))}).outputs["a"] == 7


def task(index: int, label: str, after: Iterable[int] = ()) -> TaskUnit:
    return TaskUnit(
        index=index, name=label, path=label, label=label, after=tuple(after), call=StepCall("transform", label, label), executor="x"
    )  # fmt: skip


def scope(index: int, label: str, kind: Any, *members: Unit, **more: Any) -> ScopeUnit:
    return ScopeUnit(index=index, name=label, path=label, label=label, kind=kind, members=members, **more)


def path_of(root: ScopeUnit, **durations: float) -> float:
    return critical_path_s(TaskGraph("p", root), durations)


def test_a_sequence_adds_up() -> None:
    assert path_of(scope(0, "s", "sequence", task(0, "a"), task(1, "b"), task(2, "c")), a=1, b=2, c=4) == 7


def test_a_parallel_block_takes_its_longest_member() -> None:
    inner = scope(1, "i", "sequence", task(0, "c"), task(1, "d"))
    assert path_of(scope(0, "p", "parallel", task(0, "a"), inner), a=5, c=2, d=4) == 6


def test_a_parallel_block_honours_the_order_between_its_members() -> None:
    assert path_of(scope(0, "p", "parallel", task(0, "a"), task(1, "b", [0]), task(2, "c")), a=2, b=3, c=4) == 5


def test_tasks_that_gate_and_merge_count_beside_their_block() -> None:
    hidden: dict[str, Any] = {"gate": task(0, "p"), "merger": task(0, "p"), "merge": MergeSpec("task")}
    assert path_of(scope(0, "p", "parallel", task(0, "a"), **hidden), a=5, p=1) == 6


def test_a_map_counts_with_its_own_wall_time() -> None:
    unit = MapUnit(
        index=1, name="m", path="m", label="m", kind="map", expand=task(0, "m"), body=task(0, "m"), item_name="item"
    )  # fmt: skip
    assert path_of(scope(0, "s", "sequence", task(0, "a"), unit), a=1, m=10) == 11
    end = ev.BlockFinished(4.0, "m", "m", "", "map", "succeeded", 9, 9, 0, 3.0, 6.0, 3.0, 0.0)
    graph = TaskGraph("p", scope(0, "s", "sequence", task(0, "a"), unit))
    result = recorded(BEGUN, *tried("a", 1.0), *tried("m", 2.0, "0-8", count=9), end, over(), graph=graph)
    assert result.metrics.critical_path_s == 4.0


def test_what_did_not_run_takes_no_time() -> None:
    assert path_of(scope(0, "s", "sequence", task(0, "a"), task(1, "b")), a=1) == 1
    assert path_of(scope(0, "s", "graph")) == 0


def test_a_long_chain_needs_no_recursion() -> None:
    n = 20_000
    chain = scope(0, "g", "graph", *(task(i, str(i), [i - 1] if i else []) for i in range(n)))
    assert critical_path_s(TaskGraph("p", chain), {str(i): 1.0 for i in range(n)}) == n


@given(st.data())
def test_the_longest_chain_is_that_of_the_plain_recursion(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 8))
    after = [data.draw(st.lists(st.integers(0, i - 1), unique=True)) if i else [] for i in range(n)]
    times = [float(data.draw(st.integers(0, 9))) for _ in range(n)]

    def ends(i: int) -> float:
        return times[i] + max((ends(j) for j in after[i]), default=0.0)

    order = data.draw(st.permutations(range(n)))
    graph = scope(0, "g", "graph", *(task(i, str(i), after[i]) for i in order))
    assert path_of(graph, **{str(i): times[i] for i in range(n)}) == max(map(ends, range(n)))


some_labels = st.sampled_from("abc")
whole = st.integers(0, 9).map(float)
streams = st.lists(
    st.one_of(
        st.builds(
            lambda label, item, at: ev.AttemptStarted(at, 1, label, label, item, 1, "x"),
            some_labels, st.sampled_from(["", "3"]), whole,
        ),
        st.builds(
            lambda label, status, at, wall_s, cpu_s, peak, **more: ev.AttemptFinished(
                at, 1, label, label, "", 1, "x", status, 0.0, Usage(wall_s, cpu_s, peak), **more
            ),
            some_labels, st.sampled_from(["succeeded", "succeeded", "skipped", "lost", "cancelled"]), whole, whole, whole,
            st.integers(0, 9), cost=whole, count=st.integers(0, 3), retry_in_s=st.sampled_from([None, None, 0.0, 2.0]),
            metrics=st.sampled_from([{}, {"rows": 1.0}, {"loss": 2.0}]),
        ),
        st.builds(
            lambda label, status, item, reason: ended(label, status, item, reason=reason),
            some_labels, st.sampled_from(["succeeded", "failed", "skipped"]), st.sampled_from(["", "3"]),
            st.sampled_from(["", "why"]),
        ),
        st.builds(lambda label: ev.BlockStarted(0.0, label, label, "", "map", 2, "all"), some_labels),
        st.builds(
            lambda label, wall_s: ev.BlockFinished(1.0, label, label, "", "map", "succeeded", 2, 2, 0, wall_s, 1.0, 0.0, 0.0),
            some_labels, whole,
        ),
    ),
    max_size=12,
)  # fmt: skip


@given(streams, st.booleans())
def test_steps_without_a_record_are_told_as_those_that_have_one(events: list[ev.Event], ends: bool) -> None:
    events = [*events, over()] if ends else events
    graph = TaskGraph("p", scope(0, "s", "sequence", *(task(i, label) for i, label in enumerate("abc"))))
    plain, looked_at = Recorder(2, graph), Recorder(2, graph)
    plain.handle_all(events)
    for event in events:
        looked_at.handle(event)
        for label in looked_at._steps:
            looked_at._step(label, label)
    found, expected = plain.result(), looked_at.result()
    assert found.steps == expected.steps
    assert [*found.steps] == [*expected.steps]
    assert found.metrics == expected.metrics


def test_the_record_of_a_step_stays_the_same_object_and_reads_as_a_mapping() -> None:
    steps = recorded(BEGUN, *tried("a", 3.0), ended("a", "succeeded"), *tried("b")[:1], over()).steps
    assert steps["a"] is steps["a"]
    assert ("a" in steps, "x" in steps, len(steps), steps.get("x")) == (True, False, 2, None)
    assert repr(steps) == repr(dict(steps))
    assert (steps["b"].status, steps["b"].attempts, steps["b"].count) == ("running", 1, 0)
    assert pickle.loads(pickle.dumps(steps)) == steps
