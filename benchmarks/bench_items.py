"""What does one item of a map cost, when the items do next to nothing and batches are left to procflow?"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks.table import Contender, Round, measure, table
from procflow import Map, Pipeline

ITEMS = 200_000
WORKERS = 2
TARGET = "1 us an item (joblib auto 3.1 where that was set)"


def empty(item: int) -> None:
    """The item: nothing."""


def ours(items: int = ITEMS) -> Contender:
    @contextmanager
    def contender() -> Iterator[Round]:
        pipeline = Pipeline("items", steps=[Map("m", empty, items=range(items))])
        with tempfile.TemporaryDirectory() as folder:

            def run() -> None:
                result = pipeline.run(workers=WORKERS, state_dir=folder)
                assert result.status == "succeeded", result.failures

            yield run

    return contender


@contextmanager
def joblib_auto() -> Iterator[Round]:
    from joblib import Parallel, delayed

    with Parallel(n_jobs=WORKERS) as jobs:
        yield lambda: jobs(delayed(empty)(i) for i in range(ITEMS))


CONTENDERS: dict[str, Contender] = {"procflow, map": ours(), "procflow, one item": ours(1)}
if importlib.util.find_spec("joblib"):
    CONTENDERS["joblib, auto"] = joblib_auto


def costs(rounds: int = 5) -> dict[str, list[float]]:
    """Seconds an item by contender; of ours without what a run of one item takes (a run starts its own workers)."""
    times = measure(CONTENDERS, rounds)
    start = min(times.pop("procflow, one item"))
    found = {"procflow, map": [(seconds - start) / ITEMS for seconds in times.pop("procflow, map")]}
    return found | {name: [seconds / ITEMS for seconds in values] for name, values in times.items()}


@pytest.mark.parametrize("name", CONTENDERS)
def test_many_items_that_do_nothing(benchmark: Any, name: str) -> None:
    benchmark.group = f"{ITEMS} items"
    with CONTENDERS[name]() as call:
        benchmark.pedantic(call, rounds=3, warmup_rounds=1)


if __name__ == "__main__":
    print(table(f"{ITEMS:,} empty items on {WORKERS} workers, an item", costs(), target=TARGET))
