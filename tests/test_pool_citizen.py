"""ProcessPool in the places where other libraries take an executor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from procflow.pool import ProcessPool, TaskLost, TaskTimedOut
from tests import steps_for_pool as steps

GUARD_S = 60.0


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool(2) as made:
        yield made


def test_an_event_loop_runs_functions_in_it(pool: ProcessPool) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, steps.double, i) for i in range(5)))

    assert asyncio.run(main()) == [0, 2, 4, 6, 8]


def test_dask_computes_with_it_as_scheduler_and_as_pool(pool: ProcessPool) -> None:
    dask = pytest.importorskip("dask")
    total = dask.delayed(sum)([dask.delayed(lambda i: i * i)(i) for i in range(10)])
    pids = dask.delayed(list)([dask.delayed(steps.pid)(i) for i in range(4)])
    assert total.compute(scheduler=pool) == 285
    with dask.config.set(pool=pool, scheduler="processes"):
        assert total.compute() == 285
        assert os.getpid() not in pids.compute()


def test_dask_arrays_may_write_into_their_parts(pool: ProcessPool) -> None:
    pytest.importorskip("dask")
    pytest.importorskip("numpy")
    import dask.array

    values = dask.array.ones((400, 400), chunks=(100, 400))
    values[values > 0] = 3.0
    assert float((values + 1).sum().compute(scheduler=pool)) == 4.0 * 160_000


def test_scipy_takes_its_map_as_workers(pool: ProcessPool) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    found = optimize.differential_evolution(
        optimize.rosen, [(0, 2), (0, 2)], workers=pool.map, updating="deferred", maxiter=15, popsize=5, rng=1
    )
    assert found.fun < 0.1


@pytest.fixture
def joblib() -> Any:
    joblib = pytest.importorskip("joblib")
    from procflow.pool.joblib_backend import register

    register()
    return joblib


def test_joblib_runs_on_it(joblib: Any) -> None:
    with joblib.parallel_config(backend="procflow", n_jobs=2):
        first = joblib.Parallel()(joblib.delayed(steps.pid)(i) for i in range(6))
        second = joblib.Parallel()(joblib.delayed(steps.pid)(i) for i in range(6))
        squares = joblib.Parallel()(joblib.delayed(lambda i: i**2)(i) for i in range(200))
        lazy = joblib.Parallel(return_as="generator")(joblib.delayed(steps.double)(i) for i in range(5))
        assert list(lazy) == [0, 2, 4, 6, 8]
    assert squares == [i**2 for i in range(200)]
    assert os.getpid() not in first
    assert set(second) & set(first), "workers are kept from one call to the next"


def test_joblib_gets_the_error_of_a_call_and_the_backend_goes_on(joblib: Any) -> None:
    with joblib.parallel_config(backend="procflow", n_jobs=2):
        with pytest.raises(ValueError, match="bad row"):
            joblib.Parallel()(joblib.delayed(steps.fail)("bad row") for _ in range(3))
        with pytest.raises(TaskLost, match="exit code 5"):
            joblib.Parallel()(joblib.delayed(steps.leave)(5) for _ in range(3))
        assert joblib.Parallel()(joblib.delayed(steps.double)(i) for i in range(3)) == [0, 2, 4]


def test_joblib_may_set_limits_and_bring_its_own_pool(joblib: Any, pool: ProcessPool) -> None:
    with joblib.parallel_config(backend="procflow", n_jobs=2, timeout=0.2), pytest.raises(TaskTimedOut):
        joblib.Parallel()(joblib.delayed(steps.nap)(60) for _ in range(2))
    with joblib.parallel_config(backend="procflow", n_jobs=-1, pool=pool):
        assert joblib.effective_n_jobs() == 2
        assert joblib.Parallel()(joblib.delayed(steps.double)(i) for i in range(3)) == [0, 2, 4]
    assert pool.submit(steps.double, 3).result(GUARD_S) == 6


def test_scikit_learn_searches_on_it(joblib: Any) -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    x, y = make_classification(n_samples=5_000, n_features=20, random_state=0)
    alone = cross_val_score(LogisticRegression(), x, y, cv=4)
    with joblib.parallel_config(backend="procflow", n_jobs=2):
        assert (cross_val_score(LogisticRegression(), x, y, cv=4) == alone).all()
