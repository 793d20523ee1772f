"""What a step's author sees: the running attempt's facts inside a run, harmless defaults outside."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from procflow import StepOutput, step
from procflow.attempt import Items, Progressed, Succeeded
from procflow.call import Lookup, StepCall
from procflow.values import objects
from procflow.working.perform import perform


def run(function: Any, **given: Any) -> Succeeded:
    call = StepCall("transform", "0", "f", function=function, outputs=("f",), params=given.pop("params", {}))
    outcome = perform(call, {}, **given)
    assert isinstance(outcome, Succeeded), outcome
    return outcome


def value(outcome: Succeeded) -> Any:
    return objects.unpack(outcome.outputs["f"])


def test_outside_a_run_everything_is_harmless() -> None:
    step.progress(1, 2)
    step.heartbeat()
    step.metric("m", 1)
    step.cost(1)
    assert (step.params, step.run_id, step.attempt, step.item) == ({}, "", 1, "")
    assert step.log.name == "procflow.step"
    with pytest.raises(AttributeError, match="nothing_such"):
        step.nothing_such  # noqa: B018


def test_inside_a_run_the_facts_are_those_of_the_attempt() -> None:
    def look() -> tuple[Any, ...]:
        return step.params, step.run_id, step.attempt, step.item

    outcome = run(look, params={"a": [1]}, run_id="r1", number=3, labels=("7",))
    assert value(outcome) == ({"a": [1]}, "r1", 3, "7")
    assert step.run_id == ""


def test_params_may_be_changed_without_harm() -> None:
    def change() -> list[int]:
        step.params["a"].append(2)
        return step.params["a"]

    params = {"a": [1]}
    assert value(run(change, params=params)) == [1]
    assert params == {"a": [1]}


def test_params_may_refer_to_values_and_to_the_item() -> None:
    call = StepCall(
        "transform", "0", "f", function=lambda item: step.params, args=(Lookup("item"),), item_name="item",
        params={"v": Lookup("v"), "i": Lookup("item")},
    )  # fmt: skip
    outcome = perform(call, {"v": objects.pack(1)}, items=Items(objects.pack(["a", "b"]), 0, range(2)))
    assert isinstance(outcome, Succeeded)
    assert outcome.chunk is not None
    assert objects.unpack(outcome.chunk) == [{"v": 1, "i": "a"}, {"v": 1, "i": "b"}]


def test_metrics_and_costs_come_with_the_outcome() -> None:
    def work() -> StepOutput:
        step.metric("rows", 1)
        step.metric("rows", 17)
        step.cost(0.5)
        step.cost(0.25)
        return StepOutput("v", cost=1, metrics={"more": 2})

    outcome = run(work)
    assert value(outcome) == "v"
    assert outcome.metrics == {"rows": 17.0, "more": 2.0}
    assert outcome.cost == 1.75


@pytest.mark.parametrize("bad", ["x", None, math.nan, math.inf, [1]])
def test_what_is_no_finite_number_is_refused(bad: Any) -> None:
    for call in (lambda: step.metric("m", bad), lambda: step.cost(bad), lambda: step.progress(bad)):
        with pytest.raises((TypeError, ValueError)):
            call()


def test_a_negative_cost_and_a_nameless_metric_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        step.cost(-1)
    with pytest.raises(TypeError):
        step.metric("", 1)


def test_progress_and_heartbeats_are_sent_but_not_more_often_than_useful() -> None:
    sent: list[Progressed] = []

    def work() -> None:
        for i in range(10_000):
            step.progress(i, 10_000)
            step.heartbeat()
        step.progress(10_000, 10_000)

    run(work, send=sent.append, key=5)
    assert sent[0] == Progressed(5, done=0, total=10_000)
    assert sent[-1] == Progressed(5, done=10_000, total=10_000)
    assert len(sent) < 100


def test_a_heartbeat_alone_is_a_bare_record() -> None:
    sent: list[Progressed] = []
    run(step.heartbeat, send=sent.append, key=2)
    assert sent == [Progressed(2)]


def test_a_thread_that_the_step_starts_sees_its_attempt() -> None:
    seen: list[str] = []

    def work() -> None:
        thread = threading.Thread(target=lambda: (seen.append(step.run_id), step.metric("t", 1)))
        thread.start()
        thread.join(10)

    assert run(work, run_id="r9").metrics == {"t": 1.0}
    assert seen == ["r9"]


def test_attempts_in_several_threads_do_not_mix() -> None:
    barrier = threading.Barrier(3, timeout=10)
    outcomes: dict[int, Succeeded] = {}

    def work() -> str:
        barrier.wait()
        step.metric("n", step.attempt)
        barrier.wait()
        return f"{step.run_id}-{step.attempt}"

    def attempt(n: int) -> None:
        outcomes[n] = run(work, run_id=f"r{n}", number=n)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert {n: (value(o), o.metrics) for n, o in outcomes.items()} == {n: (f"r{n}-{n}", {"n": n}) for n in (1, 2, 3)}


def test_async_steps_and_their_tasks_see_their_attempt() -> None:
    async def work() -> tuple[str, str]:
        import asyncio

        async def inner() -> str:
            return step.run_id

        return step.run_id, await asyncio.create_task(inner())

    assert value(run(work, run_id="ra")) == ("ra", "ra")


def test_the_item_is_the_index_below_those_of_outer_maps() -> None:
    call = StepCall("transform", "0", "f", function=lambda item: step.item, args=(Lookup("item"),), item_name="item")
    outcome = perform(call, {}, items=Items(objects.pack(["a", "b"]), 10, (10, 11)), labels=("3",))
    assert isinstance(outcome, Succeeded)
    assert outcome.chunk is not None
    assert objects.unpack(outcome.chunk) == ["3/10", "3/11"]
