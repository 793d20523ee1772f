"""Bugs sown into what the scheduler decides, each found by a small check."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import fault_steps
import ledger
import pytest
from sabotage import run, starts

from procflow import Map, Parallel, Step
from procflow.events import AttemptStarted, Event
from procflow.guarding.watch import Watch
from procflow.scheduling import attempts, items, mapping, merge

# -- decisions


def check_a_jump_of_the_clock_stops_nothing(folder: Path) -> None:
    wall = time.time
    begun: list[float] = []

    class Seen:
        def handle(self, event: Event) -> None:
            if isinstance(event, AttemptStarted):
                begun.append(time.monotonic())

    def jumping() -> float:
        return wall() + (3600 if begun and time.monotonic() > begun[0] + 0.3 else 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", jumping)
        step = Step("s", fault_steps.patient, params={"seconds": 1.0}, timeout=60)
        result = run(folder, step, executor="processes", workers=1, observers=[Seen()])
    assert result.status == "succeeded"


def test_timeouts_by_the_wall_clock_are_found(proven: Any) -> None:
    shift = time.time() - time.monotonic()
    proven(
        check_a_jump_of_the_clock_stops_nothing,
        lambda patch: patch.setattr(Watch, "clock", lambda self: time.time() - shift),
        "'failed' == 'succeeded'",
    )


def check_results_come_in_declared_order(folder: Path) -> None:
    block = Parallel(
        "block",
        Step("slow", fault_steps.after, params={"seconds": 0.2}),
        Step("quick", fault_steps.after, params={"seconds": 0.0}),
        merge="collect_all",
        output="all",
    )
    result = run(folder, block, executor="threads", workers=2)
    assert list(result.outputs["all"]) == [0.2, 0.0]


def test_a_merge_in_the_order_of_completion_is_found(proven: Any) -> None:
    merged = merge.merged
    # The slow one, declared first, ends last.
    proven(
        check_results_come_in_declared_order,
        lambda patch: patch.setattr(merge, "merged", lambda spec, made, failures: merged(spec, made[::-1], failures)),
        "0.0, 0.2",
    )


def check_a_deadly_item_is_set_aside(folder: Path) -> None:
    body = Map(
        "m", fault_steps.item, items=["a0", "x1", "a2"], params={"kind": "os._exit(3)"}, batch=1,
        on_error="continue", tolerate=1,
    )  # fmt: skip
    run(folder, body, executor="processes", workers=2)
    ledger.check_law(
        ledger.read(folder / "ledger"), ["inner/a0", "inner/x1", "inner/a2"], faults={"inner/x1": 1}, slots=2
    )


def test_an_item_that_kills_workers_for_ever_is_found(proven: Any) -> None:
    def forgiving(self: Any, task: Any, found: Any, failure: Any, rest: list[int], culprit: int | None) -> None:
        found.alone.update(rest)
        mapping.again(found, rest)

    proven(
        check_a_deadly_item_is_set_aside,
        lambda patch: patch.setattr(items.ItemRules, "_batch_lost", forgiving),
        "began again without a fault",
    )


def check_retries_are_bounded(folder: Path) -> None:
    run(folder, Step("s", fault_steps.begin_and_fail, retry={"retries": 100, "delay": 0}), executor="inline")
    assert starts(folder) == {"failing": 1 + 10}


def test_a_run_without_a_retry_budget_is_found(proven: Any) -> None:
    proven(check_retries_are_bounded, lambda patch: patch.setattr(attempts, "RETRIES_MIN", 1000), "101")


def check_dying_workers_end_the_run(folder: Path) -> None:
    members = [Step(f"s{i}", fault_steps.begin_and_exit, params={"place": f"s{i}"}) for i in range(12)]
    result = run(folder, Parallel("block", *members, on_error="finish"), executor="processes", workers=2)
    assert "stops early" in result.reason
    assert len(starts(folder)) <= 8


def test_a_run_that_goes_on_while_all_workers_die_is_found(proven: Any) -> None:
    proven(
        check_dying_workers_end_the_run,
        lambda patch: patch.setattr(attempts.Attempts, "_crashed", lambda self, failure: None),
        "stops early",
    )
