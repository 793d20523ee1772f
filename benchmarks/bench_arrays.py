"""How long does an array take from one step to the next, in another worker?"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks.table import DEADLINE_S, Contender, Round, measure, table
from procflow import Pipeline, Step

WORKERS = 2
SIZES_MB = (1, 10, 100, 200)
TARGET = "200 MB: at most 60 ms over the work alone (loky 1.1 s, stdlib pool 1.4 s, joblib 1.0 s where that was set)"


def make(megabytes: int) -> Any:
    """The array."""
    return np.ones(megabytes * 125_000)


def total(values: Any) -> float:
    """Reads all of it."""
    return float(values.sum())


def pass_on(values: Any) -> Any:
    """Reads all of it and makes another."""
    return np.full(len(values), values.sum() / len(values))


def empty() -> None:
    """Keeps one worker busy for a moment."""


@contextmanager
def work_alone(megabytes: int) -> Iterator[Round]:
    """No transport at all: both in this process."""
    yield lambda: total(make(megabytes))


@contextmanager
def procflow_executor(megabytes: int) -> Iterator[Round]:
    """The executor: what one worker made is read by the other; then its file is let go, as the engine does."""
    from procflow.attempt import Attempt, Started, Succeeded
    from procflow.call import Lookup, StepCall
    from procflow.executors.processes import ProcessExecutor
    from procflow.ref import stored_in
    from procflow.values.object_files import make_folder

    making = StepCall("transform", "0", "make", function=make, args=(megabytes,), outputs=("values",))
    reading = StepCall("transform", "1", "total", function=total, args=(Lookup("values"),), outputs=("total",))
    nothing = StepCall("transform", "2", "empty", function=empty)
    keys = itertools.count(1)
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as path:
        folder = make_folder(os.path.join(path, "objects"))
        with ProcessExecutor(WORKERS, objects=folder.path) as pool:

            def wait_for(*wanted: int) -> dict[int, Succeeded]:
                found: dict[int, Succeeded] = {}
                until = time.monotonic() + DEADLINE_S
                while not found.keys() >= set(wanted):
                    assert time.monotonic() < until, "no answer"
                    for outcome in pool.wait(until):
                        if not isinstance(outcome, Started):
                            assert isinstance(outcome, Succeeded), outcome
                            found[outcome.key] = outcome
                return found

            def trip() -> None:
                first, between, second = (next(keys) for _ in range(3))
                pool.submit(Attempt(first, making))
                made = wait_for(first)[first].outputs
                # The worker used last is taken first, so the array is read by the other one.
                pool.submit(Attempt(between, nothing))
                pool.submit(Attempt(second, reading, values=made))
                wait_for(between, second)
                for stored in stored_in(made["values"]):
                    folder.free(stored)

            yield trip


@contextmanager
def stdlib_pool(megabytes: int) -> Iterator[Round]:
    with concurrent.futures.ProcessPoolExecutor(WORKERS) as pool:
        yield lambda: pool.submit(total, pool.submit(make, megabytes).result(DEADLINE_S)).result(DEADLINE_S)


@contextmanager
def loky_pool(megabytes: int) -> Iterator[Round]:
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS, timeout=DEADLINE_S) as pool:
        yield lambda: pool.submit(total, pool.submit(make, megabytes).result(DEADLINE_S)).result(DEADLINE_S)


@contextmanager
def quiet() -> Iterator[None]:
    """Processes that start meanwhile print nothing: joblib's tracker tells of every file that it finds gone already."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def joblib_pool(megabytes: int) -> Iterator[Round]:
    """Arrays that go to a worker are mapped from a file, those that come back are copied."""
    from joblib import Parallel, delayed

    with Parallel(n_jobs=WORKERS) as parallel:
        with quiet():
            parallel([delayed(total)(make(2)) for _ in range(WORKERS)])
        yield lambda: parallel([delayed(total)(parallel([delayed(make)(megabytes)])[0])])


@contextmanager
def dask_workers(megabytes: int) -> Iterator[Round]:
    """One worker makes it, the other fetches it."""
    from benchmarks.peers import opened_dask

    with opened_dask() as client:
        first, second = client.scheduler_info()["workers"]

        def trip() -> None:
            made = client.submit(make, megabytes, workers=[first], pure=False)
            client.submit(total, made, workers=[second], pure=False).result(DEADLINE_S)

        yield trip


@contextmanager
def ray_store(megabytes: int) -> Iterator[Round]:
    """Through its object store, which all workers map."""
    from benchmarks.peers import opened_ray

    with opened_ray() as module:
        making, reading = module.remote(make), module.remote(total)
        yield lambda: module.get(reading.remote(making.remote(megabytes)), timeout=DEADLINE_S)


CONTENDERS = {
    "procflow, executor": procflow_executor,
    "work alone": work_alone,
    "loky": loky_pool,
    "stdlib pool": stdlib_pool,
    "joblib": joblib_pool,
    "dask": dask_workers,
    "ray": ray_store,
}
LIBRARIES = {"joblib": "joblib", "dask": "distributed", "ray": "ray"}


def contenders(megabytes: int) -> dict[str, Contender]:
    """Those whose library is installed."""
    return {
        name: partial(make_one, megabytes)
        for name, make_one in CONTENDERS.items()
        if name not in LIBRARIES or importlib.util.find_spec(LIBRARIES[name]) is not None
    }


def through_the_engine(megabytes: int, few: int = 2, many: int = 12, rounds: int = 5) -> tuple[float, float]:
    """Seconds a step costs that reads an array and makes another, journal on: the slope between a short and a long
    sequence; and the same work in this process."""

    def seconds(count: int) -> float:
        steps = [Step("s0", make, params={"megabytes": megabytes})]
        steps += [Step(f"s{i}", pass_on, inputs=[f"s{i - 1}"]) for i in range(1, count)]
        with tempfile.TemporaryDirectory(dir=os.getcwd()) as folder:
            began = time.perf_counter()
            result = Pipeline("line", steps=steps).run(workers=WORKERS, state_dir=folder)
            assert result.status == "succeeded", result.failures
            return time.perf_counter() - began

    def alone() -> float:
        values = make(megabytes)
        began = time.perf_counter()
        for _ in range(many - few):
            values = pass_on(values)
        return (time.perf_counter() - began) / (many - few)

    found = [((seconds(many) - seconds(few)) / (many - few), alone()) for _ in range(rounds)]
    return statistics.median(step for step, _ in found), statistics.median(work for _, work in found)


@pytest.mark.parametrize("megabytes", [1, 100])
@pytest.mark.parametrize("name", CONTENDERS)
def test_an_array_goes_from_one_worker_to_the_next(benchmark: Any, name: str, megabytes: int) -> None:
    benchmark.group = f"{megabytes} MB"
    known = contenders(megabytes)
    if name not in known:
        pytest.skip("not installed")
    with known[name]() as call:
        benchmark.pedantic(call, rounds=5, warmup_rounds=2)


if __name__ == "__main__":
    print(f"load of the machine at the start: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    for size in SIZES_MB:
        rounds = 30 if size <= 10 else 10
        times = measure(contenders(size), rounds=rounds, warm_up=3)
        print(table(f"{size} MB from one worker to another", times, unit="ms", target=TARGET if size == 200 else ""))
    for size in (10, 200):
        step_s, alone_s = through_the_engine(size)
        print(
            f"  {size} MB, a step that reads one and makes one, through the engine with journal: {step_s * 1e3:.1f} ms,"
        )
        print(f"    the same work in one process: {alone_s * 1e3:.1f} ms")
    print(f"load of the machine at the end: {os.getloadavg()[0]:.2f}")
