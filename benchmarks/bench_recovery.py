"""How long after a worker was killed does the next task run there again, and what else was lost?

A round kills the worker in the middle of a task and counts from the kill to the answer of the next task. A pool that breaks
has to be made anew; that is part of its time.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.table import DEADLINE_S, table

WORKERS = 2
TARGET = "0.2 s, and no other task lost"


def die() -> None:
    """The task: killed in the middle of its work."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(DEADLINE_S)


def alive() -> int:
    """The next task."""
    return os.getpid()


def procflow_pool(rounds: int) -> list[float]:
    from procflow.pool import ProcessPool

    with ProcessPool(1) as pool:
        return _rounds(rounds, lambda: pool, lambda pool, task: pool.submit(task))


def stdlib_pool(rounds: int) -> list[float]:
    from concurrent.futures import ProcessPoolExecutor

    return _rounds(rounds, lambda: ProcessPoolExecutor(1), lambda pool, task: pool.submit(task), anew=True)


def loky(rounds: int) -> list[float]:
    from loky import ProcessPoolExecutor

    return _rounds(
        rounds, lambda: ProcessPoolExecutor(1, timeout=DEADLINE_S), lambda pool, task: pool.submit(task), anew=True
    )


def pebble(rounds: int) -> list[float]:
    from pebble import ProcessPool

    with ProcessPool(max_workers=1) as pool:
        return _rounds(rounds, lambda: pool, lambda pool, task: pool.schedule(task))


def _rounds(count: int, make: Callable[[], Any], submit: Callable[[Any, Any], Any], anew: bool = False) -> list[float]:
    """Seconds from the kill to the answer of the next task; ``anew`` for pools that don't survive a kill."""
    times = []
    pool = make()
    for _ in range(count):
        submit(pool, alive).result(DEADLINE_S)
        lost = submit(pool, die)
        began = time.perf_counter()
        assert lost.exception(DEADLINE_S) is not None
        if anew:
            pool.shutdown(wait=False)
            pool = make()
        submit(pool, alive).result(DEADLINE_S)
        times.append(time.perf_counter() - began)
    if anew:
        pool.shutdown()
    return times


CONTENDERS: dict[str, Callable[[int], list[float]]] = {
    name: call
    for name, call in {"procflow": procflow_pool, "stdlib pool": stdlib_pool, "loky": loky, "pebble": pebble}.items()
    if name in ("procflow", "stdlib pool") or importlib.util.find_spec(name)
}


def times(rounds: int = 7) -> dict[str, list[float]]:
    """Seconds of each round, in turns."""
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, call in CONTENDERS.items():
            found[name] += call(1)
    return found


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_task_runs_again_after_a_kill(benchmark: Any, name: str) -> None:
    benchmark.pedantic(CONTENDERS[name], args=(1,), rounds=3)


if __name__ == "__main__":
    print(table("from a kill to the answer of the next task", times(), unit="ms", target=TARGET))
