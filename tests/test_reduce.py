"""reduce: results of a map are folded in item order, in workers, and never are all there at once."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import reduce_steps as r

from procflow import Map, Pipeline, PipelineError, Sequence, Step
from procflow.attempt import Succeeded
from procflow.compiler import compile_pipeline
from procflow.events import AttemptFinished, AttemptStarted, Event, ItemsDone, RunFinished
from procflow.ref import Inline, Stored
from procflow.result import RunResult
from procflow.scheduler import Scheduler
from procflow.scheduling import folding
from procflow.scheduling.actions import Release, Submit
from procflow.storing.store_refs import indices_from
from procflow.testing import Act, run_fake

EVERYWHERE = [("inline", 1), ("threads", 2), ("processes", 1), ("processes", 2), ("processes", 4)]


def run(tmp_path: Path, *steps: Any, executor: str = "processes", workers: int = 2, **keys: Any) -> RunResult:
    return Pipeline("t", steps=steps, **keys).run(executor=executor, workers=workers, state_dir=tmp_path / "state")


class Folds:
    """Counts folds."""

    def __init__(self) -> None:
        self.count = 0

    def handle(self, event: Any) -> None:
        self.count += isinstance(event, AttemptStarted) and event.role == "merger"


def fake(*steps: Any, script: Any = None, slots: int = 4, **keys: Any) -> tuple[RunResult, int]:
    folds = Folds()
    pipeline = Pipeline("t", steps=steps, **keys)
    return run_fake(pipeline, script=script or {}, slots=slots, observers=[folds]), folds.count


@pytest.mark.parametrize(("executor", "workers"), EVERYWHERE)
def test_the_fold_is_the_same_everywhere_and_in_item_order(tmp_path: Path, executor: str, workers: int) -> None:
    result = run(tmp_path, Map("m", r.text, items=range(3000), reduce=r.joined), executor=executor, workers=workers)
    assert result.status == "succeeded", result.failures
    assert result.outputs["m"] == "".join(f"{i}," for i in range(3000))


def test_many_results_are_folded_while_others_still_come() -> None:
    fold = Map("m", r.same, items=range(20_000), batch=100, reduce=r.counted, initial=[-1, 0])
    result, folds = fake(fold)
    assert result.outputs["m"] == [19_999, 20_000]
    assert folds > 10


def test_batches_that_end_out_of_order_wait_for_the_one_that_is_missing() -> None:
    late = {"m": lambda attempt: Act(after_s=5 if 300 in attempt.items.indices else 1)}
    fold = Map("m", r.same, items=range(5000), batch=100, reduce=r.counted, initial=[-1, 0])
    script = lambda attempt: late["m"](attempt) if attempt.items is not None else Act()  # noqa: E731
    result, folds = fake(fold, script=script)
    assert result.outputs["m"] == [4999, 5000]
    assert folds >= 2


def test_steps_for_each_item_are_folded_too(tmp_path: Path) -> None:
    body = Map(
        "m", Step("a", r.same, inputs=["item"]), Step("b", r.text, inputs=["a"]), items=range(40), reduce=r.joined
    )
    assert run(tmp_path, body, executor="inline").outputs["m"] == "".join(f"{i}," for i in range(40))


def test_items_that_failed_and_are_tolerated_leave_no_gap(tmp_path: Path) -> None:
    result = run(
        tmp_path, Map("m", r.odd_fails, items=range(4000), on_error="continue", reduce=r.plus), executor="threads"
    )
    assert result.status == "partial"
    assert result.outputs["m"] == sum(range(0, 4000, 2))


def test_large_results_lie_in_files_that_go_with_the_map(tmp_path: Path) -> None:
    result = run(
        tmp_path, Map("m", r.big, items=range(30), reduce=r.length, initial=0), Step("after", r.same, inputs=["m"])
    )
    assert result.outputs["after"] == 30 * 200_000
    objects = tmp_path / "state" / "runs" / result.run_id / "objects"
    assert [p for p in objects.rglob("*") if p.is_file()] == []


def test_an_initial_value_may_be_a_reference_and_no_items_need_one(tmp_path: Path) -> None:
    first = Step("start", r.same, params={"item": 100})
    result = run(
        tmp_path, first, Map("m", r.same, items=[1, 2], reduce=r.plus, initial="${start}"),
        Map("none", r.same, items=[], reduce=r.plus, initial=5), executor="inline",
    )  # fmt: skip
    assert (result.outputs["m"], result.outputs["none"]) == (103, 5)
    bad = run(tmp_path, Map("none", r.same, items=[], reduce=r.plus), executor="inline")
    assert bad.status == "failed"
    assert "give the map an initial value" in str(bad.failures[0])


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_a_fold_that_raises_fails_the_map(tmp_path: Path, executor: str) -> None:
    result = run(tmp_path, Map("m", r.same, items=range(3000), reduce=r.not_joined), executor=executor)
    assert result.status == "failed"
    [failure] = [f.failure for f in result.failures if f.failure is not None][:1]
    assert failure.type == "ValueError"
    assert failure.message == "reduce, at item 1 with the result 1: no"


def test_a_fold_names_the_item_that_it_raised_at_in_any_chunk(tmp_path: Path) -> None:
    fold = Map("m", r.same, items=range(3000), batch=7, reduce=r.not_2500, initial=0, on_error="continue")
    result = run(tmp_path, fold, executor="threads")
    [failure] = [f.failure for f in result.failures if f.failure is not None][:1]
    assert failure.message == "reduce, at item 2500 with the result 2500: no"
    assert "ValueError: no" in failure.traceback


def done_items(event: Event) -> Iterable[int]:
    """The items that an event says are done."""
    return event.indices if isinstance(event, (AttemptFinished, ItemsDone)) else ()


def items_in_journal(folder: Path) -> set[int]:
    with closing(sqlite3.connect(folder / "procflow.db")) as db:
        rows = db.execute("SELECT indices FROM chunks JOIN step_executions ON id = execution_id WHERE role = 'batch'")
        return {item for (text,) in rows for item in indices_from(text)}


@pytest.mark.parametrize("queued", [False, True], ids=["alone", "queued"])
@pytest.mark.parametrize("at", [1, 2500, 3999])
def test_a_resume_in_the_middle_gives_the_same_and_repeats_nothing_recorded(
    tmp_path: Path, at: int, queued: bool
) -> None:
    batch = 20 if queued else 200
    marker = tmp_path / "marker"
    steps = [
        Map(
            *("m", r.stops_at), items=range(4000), params={"at": at, "marker": str(marker)}, reduce=r.plus, batch=batch,
            # With a limit of its own no batch is queued behind another.
            memory=None if queued else "300MB",
        )
    ]  # fmt: skip
    pipeline = Pipeline("t", steps=steps)
    events = list(pipeline.stream(executor="processes", workers=2, state_dir=tmp_path / "state"))
    assert isinstance(events[-1], RunFinished)
    assert events[-1].status == "failed"
    announced = {i for event in events for i in done_items(event)}
    recorded = items_in_journal(tmp_path / "state")
    assert announced <= recorded
    again = pipeline.resume(state_dir=tmp_path / "state")
    assert again.status == "succeeded", again.failures
    assert again.outputs["m"] == sum(range(4000))
    ran = [int(line) for line in Path(f"{marker}.ran").read_text().split()]
    assert set(ran) == set(range(4000))
    twice = {item for item, times in Counter(ran).items() if times > 1}
    assert not twice & recorded, "what was recorded runs once"
    if not queued:
        # What ran when the item failed was stopped. What was queued behind may have begun, and ended, before the stop
        # came: how much of that there is depends on how busy the machine is.
        assert len(twice) <= 2 * batch
    assert max(Counter(ran).values()) <= 2


def test_a_map_that_is_done_is_not_folded_again_by_a_resume(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    steps = [
        Map("m", r.same, items=range(3000), reduce=r.plus),
        Step("bad", r.stops_at, params={"item": 0, "at": 0, "marker": str(marker)}),
    ]
    pipeline = Pipeline("t", steps=steps)
    assert pipeline.run(executor="inline", state_dir=tmp_path / "state").status == "failed"
    again = pipeline.resume(state_dir=tmp_path / "state")
    assert again.status == "succeeded"
    assert again.steps["m"].attempts == 0
    assert again.outputs["m"] == sum(range(3000))


def test_a_block_that_runs_again_folds_from_the_start() -> None:
    failed: list[int] = []

    def act(attempt: Any) -> Act:
        if attempt.items is None or 3500 not in attempt.items.indices or failed:
            return Act()
        failed.append(attempt.key)
        return Act(raises=ValueError("x"))

    fold = Map("m", r.same, items=range(4000), batch=100, reduce=r.counted, initial=[-1, 0])
    result, _ = fake(Sequence("s", fold, retry={"retries": 3, "delay": 0}), script=act)
    assert result.status == "succeeded", result.failures
    assert result.outputs["m"] == [3999, 4000]


# -- memory, in the scheduler itself -----------------------------------------------------------------------------------


def world(items: int, batch: int) -> tuple[Scheduler, list[Any]]:
    graph = compile_pipeline(Pipeline("t", steps=[Map("m", r.same, items=range(items), batch=batch, reduce=r.plus)]))
    scheduler = Scheduler(graph, slots={"processes": 2}, run_id="t")
    [expand] = [a for a in scheduler.start(0) if isinstance(a, Submit)]
    pages = tuple((Inline(b""), 1000) for _ in range(items // 1000))
    return scheduler, scheduler.handle(Succeeded(expand.key, pages=pages), 1)


def test_results_do_not_pile_up_in_the_parent_while_a_fold_is_slow() -> None:
    scheduler, actions = world(100_000, 1000)
    batches = [a for a in actions if isinstance(a, Submit)]
    chunk = Inline(b"x" * (4 << 20))
    folds: list[Submit] = []
    done = 0
    while batches:
        submit = batches.pop(0)
        done += 1
        assert submit.items is not None
        more = [
            a
            for a in scheduler.handle(Succeeded(submit.key, indices=submit.items.indices, chunk=chunk), 2)
            if isinstance(a, Submit)
        ]
        folds += [a for a in more if a.items is None]
        batches += [a for a in more if a.items is not None]
    # The fold is out and does not come back: no more than its bound, and what ran already, is held.
    assert len(folds) == 1
    assert done * len(chunk.data) <= folding.MOST_BYTES + 4 * len(chunk.data)
    more = scheduler.handle(Succeeded(folds[0].key, {"@so_far": Inline(b"1")}), 3)
    assert [a.items is None for a in more if isinstance(a, Submit)].count(False) >= 1


def test_a_value_so_far_in_a_file_goes_once_the_next_is_there() -> None:
    scheduler, actions = world(100_000, 1000)
    released: list[str] = []
    waiting = [a for a in actions if isinstance(a, Submit)]
    folds = 0
    while waiting and not scheduler.finished:
        submit = waiting.pop(0)
        if submit.items is not None:
            outcome = Succeeded(submit.key, indices=submit.items.indices, chunk=Inline(b"x"))
        else:
            folds += 1
            name = submit.unit.call.outputs[0]
            outcome = Succeeded(submit.key, {name: Stored(f"/o/{folds}", (100_000,), b"")})
        actions = scheduler.handle(outcome, 2)
        waiting += [a for a in actions if isinstance(a, Submit)]
        released += [stored.path for a in actions if isinstance(a, Release) for stored in a.files]
    assert scheduler.finished
    assert folds > 10
    assert sorted(released, key=lambda path: int(path[3:])) == [f"/o/{i}" for i in range(1, folds)]


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_reduce_beside_merge_and_initial_without_reduce_are_refused() -> None:
    with pytest.raises(PipelineError, match="keep one of them"):
        Map("m", r.same, items=[1], reduce=r.plus, merge="collect_all")
    with pytest.raises(PipelineError, match="works only with reduce"):
        Map("m", r.same, items=[1], initial=3)
    with pytest.raises(PipelineError, match="unknown key"):
        Sequence("s", Step("a", r.same), reduce=r.plus)
