"""Which executor suits which work, and how far from the ideal are the processes?

The ideal is as many plain processes as cores, each with its share of the items and nothing to report.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from loky import cpu_count

from benchmarks.table import DEADLINE_S, Contender, Round, measure, table
from procflow import Map, Pipeline

WORKERS = max(2, cpu_count())
ITEMS = 6 * WORKERS
TARGET = "on work for the CPU, processes take at most 1.03 times the ideal once they run"


def python_code(item: int) -> int:
    """About 0.1 s that hold the interpreter's lock."""
    total = item
    for number in range(2_500_000):
        total ^= number
    return total


def big_buffers(item: int) -> str:
    """About 0.1 s that give the lock back."""
    return hashlib.sha256(bytes([item % 256]) * 120_000_000).hexdigest()


def waiting(item: int) -> None:
    """0.1 s without any work."""
    time.sleep(0.1)


WORK: dict[str, Callable[[int], Any]] = {
    "Python code": python_code,
    "C code without the lock": big_buffers,
    "waiting": waiting,
}


def _share(work: Callable[[int], Any], items: range) -> None:
    for item in items:
        work(item)


def _ideal(work: Callable[[int], Any], count: int = ITEMS) -> Contender:
    @contextmanager
    def contender() -> Iterator[Round]:
        def call() -> None:
            parts = [range(first, count, WORKERS) for first in range(WORKERS)]
            shares = [multiprocessing.Process(target=_share, args=(work, part)) for part in parts]
            for share in shares:
                share.start()
            for share in shares:
                share.join(DEADLINE_S)
                assert share.exitcode == 0

        yield call

    return contender


def _on(executor: str, work: Callable[[int], Any], count: int = ITEMS) -> Contender:
    @contextmanager
    def contender() -> Iterator[Round]:
        pipeline = Pipeline("work", steps=[Map("m", work, items=range(count), batch=1)])
        with tempfile.TemporaryDirectory() as folder:

            def call() -> None:
                result = pipeline.run(executor=executor, workers=WORKERS, state_dir=folder)
                assert result.status == "succeeded", result.failures

            yield call

    return contender


def contenders(work: Callable[[int], Any]) -> dict[str, Contender]:
    """The ideal, then procflow on each of its executors."""
    return {"ideal": _ideal(work)} | {
        f"procflow, {name}": _on(name, work) for name in ("processes", "threads", "inline")
    }


def without_the_start(work: Callable[[int], Any], rounds: int = 3, times: int = 5) -> str:
    """What processes add to the ideal on long work: slopes from few items to many, so that starting cancels out."""
    seconds = measure(
        {
            "ideal, few": _ideal(work),
            "ideal, many": _ideal(work, times * ITEMS),
            "few": _on("processes", work),
            "many": _on("processes", work, times * ITEMS),
        },
        rounds,
    )
    best = {name: min(values) for name, values in seconds.items()}
    ideal, ours = best["ideal, many"] - best["ideal, few"], best["many"] - best["few"]
    start = best["few"] - ours / (times - 1)
    return (
        f"  processes take {ours / ideal:.3f} times the ideal once they run, and {start * 1000:.0f} ms to start and end"
    )


@pytest.mark.parametrize("name", list(contenders(waiting)))
@pytest.mark.parametrize("kind", WORK)
def test_work_on_executors(benchmark: Any, kind: str, name: str) -> None:
    benchmark.group = kind
    with contenders(WORK[kind])[name]() as call:
        benchmark.pedantic(call, rounds=3, warmup_rounds=1)


if __name__ == "__main__":
    for kind, work in WORK.items():
        print(table(f"{kind}: {ITEMS} items of 0.1 s on {WORKERS} workers", measure(contenders(work), 3), unit="s"))
    print(f"Python code, {without_the_start(python_code).strip()}")
    print(f"target: {TARGET}")
