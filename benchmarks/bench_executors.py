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
ITEMS = 12 * WORKERS
TARGET = "on work for the CPU, processes within 3 % of the ideal (the first line)"


def python_code(item: int) -> int:
    """About 0.1 s that hold the interpreter's lock."""
    total = item
    for number in range(1_500_000):
        total ^= number
    return total


def big_buffers(item: int) -> str:
    """About 0.1 s that give the lock back."""
    return hashlib.sha256(bytes([item % 256]) * 100_000_000).hexdigest()


def waiting(item: int) -> None:
    """0.1 s without any work."""
    time.sleep(0.1)


WORK: dict[str, Callable[[int], Any]] = {
    "Python code": python_code,
    "C code without the lock": big_buffers,
    "waiting": waiting,
}


def _share(work: Callable[[int], Any], first: int) -> None:
    for item in range(first, ITEMS, WORKERS):
        work(item)


def _ideal(work: Callable[[int], Any]) -> Contender:
    @contextmanager
    def contender() -> Iterator[Round]:
        def call() -> None:
            shares = [multiprocessing.Process(target=_share, args=(work, first)) for first in range(WORKERS)]
            for share in shares:
                share.start()
            for share in shares:
                share.join(DEADLINE_S)
                assert share.exitcode == 0

        yield call

    return contender


def _on(executor: str, work: Callable[[int], Any]) -> Contender:
    @contextmanager
    def contender() -> Iterator[Round]:
        pipeline = Pipeline("work", steps=[Map("m", work, items=range(ITEMS), batch=1)])
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


@pytest.mark.parametrize("name", list(contenders(waiting)))
@pytest.mark.parametrize("kind", WORK)
def test_work_on_executors(benchmark: Any, kind: str, name: str) -> None:
    benchmark.group = kind
    with contenders(WORK[kind])[name]() as call:
        benchmark.pedantic(call, rounds=3, warmup_rounds=1)


if __name__ == "__main__":
    for kind, work in WORK.items():
        print(table(f"{kind}: {ITEMS} items of 0.1 s on {WORKERS} workers", measure(contenders(work), 3), unit="s"))
    print(f"target: {TARGET}")
