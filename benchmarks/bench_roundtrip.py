"""How long from handing one empty task to a warm worker until its answer is back?"""

from __future__ import annotations

import concurrent.futures
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.empty import empty
from benchmarks.table import DEADLINE_S, UNITS, Contender, Round, measure, table
from procflow import Pipeline, Step

WORKERS = 2
TRIPS = 200
"""Round trips in one round; each waits for the one before."""
TARGET = "procflow's executor 60 us (loky 324, stdlib pool 195 to 300 where that was set)"


@contextmanager
def procflow_executor() -> Iterator[Round]:
    """The executor alone: submit an attempt, wait for its outcome."""
    from procflow.attempt import Attempt, Started, Succeeded
    from procflow.call import StepCall
    from procflow.executors.processes import ProcessExecutor

    call = StepCall("transform", "0", "empty", function=empty, outputs=("value",))
    keys = itertools.count(1)
    with ProcessExecutor(WORKERS) as pool:

        def trip(key: int) -> None:
            pool.submit(Attempt(key, call))
            until = time.monotonic() + DEADLINE_S
            while time.monotonic() < until:
                for outcome in pool.wait(until):
                    if isinstance(outcome, Succeeded) and outcome.key == key:
                        return
                    assert isinstance(outcome, Started), outcome
            raise AssertionError("no answer")

        yield lambda: [trip(next(keys)) for _ in range(TRIPS)]


@contextmanager
def procflow_pool() -> Iterator[Round]:
    """The same workers as a standard executor, with a future for each task."""
    from procflow.pool import ProcessPool

    with ProcessPool(WORKERS) as pool:
        yield lambda: [pool.submit(empty).result(DEADLINE_S) for _ in range(TRIPS)]


@contextmanager
def stdlib_pool() -> Iterator[Round]:
    with concurrent.futures.ProcessPoolExecutor(WORKERS) as pool:
        yield lambda: [pool.submit(empty).result(DEADLINE_S) for _ in range(TRIPS)]


@contextmanager
def loky_pool() -> Iterator[Round]:
    from loky import get_reusable_executor

    pool = get_reusable_executor(max_workers=WORKERS, timeout=DEADLINE_S)
    yield lambda: [pool.submit(empty).result(DEADLINE_S) for _ in range(TRIPS)]
    pool.shutdown(wait=True)


CONTENDERS: dict[str, Contender] = {
    "procflow, executor": procflow_executor,
    "procflow, ProcessPool": procflow_pool,
    "stdlib pool": stdlib_pool,
    "loky": loky_pool,
}


def through_the_engine(few: int = 10, many: int = 1010, rounds: int = 5) -> float:
    """Seconds a step costs in a sequence of empty steps, journal on: the slope between a short and a long sequence."""

    def seconds(count: int) -> float:
        pipeline = Pipeline("line", steps=[Step(f"s{i}", empty) for i in range(count)])
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            result = pipeline.run(workers=1, state_dir=folder)
            assert result.status == "succeeded", result.failures
            return time.perf_counter() - began

    return statistics.median((seconds(many) - seconds(few)) / (many - few) for _ in range(rounds))


@pytest.mark.parametrize("name", CONTENDERS)
def test_round_trip_of_an_empty_task(benchmark: Any, name: str) -> None:
    benchmark.group = f"{TRIPS} round trips"
    with CONTENDERS[name]() as call:
        benchmark.pedantic(call, rounds=10, warmup_rounds=1)


def test_a_step_of_a_sequence_goes_through_the_engine(benchmark: Any) -> None:
    benchmark.group = "1000 steps in a sequence, journal on"
    benchmark.pedantic(through_the_engine, kwargs={"rounds": 1}, rounds=3)


if __name__ == "__main__":
    times = measure(CONTENDERS, rounds=20)
    print(table(f"round trip of an empty task, {WORKERS} idle workers", times, per=TRIPS, target=TARGET))
    print(f"  a step of a sequence through the whole engine, journal on: {through_the_engine() * UNITS['us']:.1f} us")
