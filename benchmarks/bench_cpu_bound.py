"""How near to the ideal do CPU-bound branches run? The ideal: as many plain processes as branches, alone at once.

Both are measured with short and with long branches, in turns; what counts is the slope, so that starting does not.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from loky import cpu_count

from benchmarks.table import DEADLINE_S, Contender, Round, measure, table
from procflow import Parallel, Pipeline, Step

WORKERS = max(2, cpu_count())
SHORT, LONG = 2_000_000, 22_000_000
"""Turns of the loop; a million take about 0.04 s."""
TARGET = "at least 97 % of the ideal"


def work(turns: int) -> int:
    """Python code that holds the interpreter's lock."""
    total = 0
    for number in range(turns):
        total ^= number
    return total


def ideal(turns: int) -> Contender:
    @contextmanager
    def contender() -> Iterator[Round]:
        def call() -> None:
            copies = [multiprocessing.Process(target=work, args=(turns,)) for _ in range(WORKERS)]
            for copy in copies:
                copy.start()
            for copy in copies:
                copy.join(DEADLINE_S)
                assert copy.exitcode == 0

        yield call

    return contender


def branches(turns: int) -> Contender:
    @contextmanager
    def contender() -> Iterator[Round]:
        steps = [Step(f"branch_{i}", work, params={"turns": turns}) for i in range(WORKERS)]
        pipeline = Pipeline("branches", steps=[Parallel(*steps)])
        with tempfile.TemporaryDirectory() as folder:

            def call() -> None:
                result = pipeline.run(workers=WORKERS, state_dir=folder)
                assert result.status == "succeeded", result.failures

            yield call

    return contender


CONTENDERS = {
    "ideal, short": ideal(SHORT),
    "procflow, short": branches(SHORT),
    "ideal, long": ideal(LONG),
    "procflow, long": branches(LONG),
}


def efficiency(rounds: int = 5) -> list[float]:
    """The ideal's seconds by procflow's, 1 for as good, of each round: what it compares has met the same machine."""
    times = measure(CONTENDERS, rounds)
    pairs = zip(*(times[name] for name in CONTENDERS), strict=True)
    return [(long - short) / (ours_long - ours_short) for short, ours_short, long, ours_long in pairs]


@pytest.mark.parametrize("name", CONTENDERS)
def test_branches_of_python_code(benchmark: Any, name: str) -> None:
    with CONTENDERS[name]() as call:
        benchmark.pedantic(call, rounds=3, warmup_rounds=1)


if __name__ == "__main__":
    print(table(f"{WORKERS} branches of Python code on {WORKERS} cores", measure(CONTENDERS, 3), unit="s"))
    print(f"  {statistics.median(efficiency()):.1%} of the ideal; target: {TARGET}")
