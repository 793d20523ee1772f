"""How many empty, independent tasks a second, with the journal on?"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.empty import empty
from benchmarks.table import DEADLINE_S, Contender, Round, measure, table
from procflow import Map, Parallel, Pipeline, Step

TASKS = 10_000
FEW = TASKS // 10
"""A run of so many is taken off where its start and end are not to count."""
WORKERS = 2
TARGET = "procflow 50 us a task (loky 90, stdlib 137, joblib 215 where that was set)"


@contextmanager
def _procflow(pipeline: Pipeline) -> Iterator[Round]:
    with tempfile.TemporaryDirectory() as folder:

        def run() -> None:
            result = pipeline.run(workers=WORKERS, state_dir=folder)
            assert result.status == "succeeded", result.failures

        yield run


def procflow_steps(tasks: int = TASKS) -> Any:
    """Every task a step of one parallel block."""
    return _procflow(Pipeline("steps", steps=[Parallel(*(Step(f"s{i}", empty) for i in range(tasks)))]))


def procflow_items() -> Any:
    """Every task an item of a map, sent one by one."""
    return _procflow(Pipeline("items", steps=[Map("m", empty, items=range(TASKS), batch=1)]))


def procflow_batches() -> Any:
    """Every task an item of a map, in batches whose size is measured."""
    return _procflow(Pipeline("batches", steps=[Map("m", empty, items=range(TASKS))]))


@contextmanager
def stdlib() -> Iterator[Round]:
    with concurrent.futures.ProcessPoolExecutor(WORKERS) as pool:
        yield lambda: list(pool.map(empty, range(TASKS), timeout=DEADLINE_S))


@contextmanager
def loky_pool() -> Iterator[Round]:
    from loky import get_reusable_executor

    pool = get_reusable_executor(max_workers=WORKERS, timeout=DEADLINE_S)
    yield lambda: list(pool.map(empty, range(TASKS), timeout=DEADLINE_S))
    pool.shutdown(wait=True)


def _joblib(**options: Any) -> Callable[[], Any]:
    @contextmanager
    def contender() -> Iterator[Round]:
        from joblib import Parallel as Jobs
        from joblib import delayed
        from joblib.externals.loky import get_reusable_executor

        with Jobs(n_jobs=WORKERS, timeout=DEADLINE_S, **options) as jobs:
            yield lambda: jobs(delayed(empty)(i) for i in range(TASKS))
        get_reusable_executor().shutdown(wait=True)

    return contender


CONTENDERS: dict[str, Contender] = {
    "procflow, parallel steps": procflow_steps,
    "procflow, map, batch 1": procflow_items,
    "procflow, map": procflow_batches,
    "stdlib pool": stdlib,
    "loky": loky_pool,
}
if importlib.util.find_spec("joblib"):
    CONTENDERS |= {"joblib, batch 1": _joblib(batch_size=1), "joblib": _joblib()}


def one_more(times: dict[str, list[float]], tasks: int = TASKS, few: int = FEW) -> list[float]:
    """What one step more costs, by rounds of whole runs: ``ours`` of ``tasks`` steps and ``few`` of so many."""
    return [(many - less) / (tasks - few) for many, less in zip(times["ours"], times["few"], strict=True)]


@pytest.mark.parametrize("name", CONTENDERS)
def test_throughput_of_empty_tasks(benchmark: Any, name: str) -> None:
    benchmark.group = f"{TASKS} empty tasks"
    with CONTENDERS[name]() as call:
        benchmark.pedantic(call, rounds=3, warmup_rounds=1)


if __name__ == "__main__":
    times = measure({"few": lambda: procflow_steps(FEW), **CONTENDERS}, rounds=5)
    # The peers' pools are warm: beside them stands what a step more takes of us, with no start and end of a run in it.
    runs = {"ours": times["procflow, parallel steps"], "few": times.pop("few")}
    more = {"procflow, one parallel step more": [TASKS * seconds for seconds in one_more(runs)]}
    print(table(f"{TASKS:,} empty tasks on {WORKERS} workers, a task", more | times, per=TASKS, target=TARGET))
