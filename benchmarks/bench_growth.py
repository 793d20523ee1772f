"""How do time and memory of the parent grow with the number of tasks and of map items?

Each size runs in a process of its own; what a task or an item costs is the slope between two sizes. Peak memory is what the
kernel counted for the parent, without its workers; what the declared pipeline itself takes, before the run, is told apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
WORKERS = 2
TASKS = (10_000, 50_000, 100_000)
ITEMS = (10_000, 500_000, 1_000_000)
HANG_S = 900.0
TARGET = "at most 1 KB a task and 100 B an item, and no more time for the last ones than for the first"

MEASURE = """
import json, os, resource, sys, time
from procflow import Map, Parallel, Pipeline, Step
from benchmarks.bench_growth import empty
kind, count, workers, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if kind == "tasks":
    steps = [Parallel(*(Step(f"s{i}", empty, output=None) for i in range(count)))]
else:
    steps = [Map("m", empty, items=range(count))]
pipeline = Pipeline("growth", steps=steps)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
declared = resident()
began = time.perf_counter()
result = pipeline.run(workers=workers, state_dir=folder)
assert result.status == "succeeded", result.failures
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "run_bytes": max(0, peak - declared)}))
"""


def empty(item: int = 0) -> None:
    """The task: nothing."""


def run(kind: str, count: int) -> dict[str, float]:
    """Seconds of one run and peak memory of its parent; ``kind`` is tasks or items."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, kind, str(count), str(WORKERS), folder],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout)
    return found


def growth(kind: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Bytes and microseconds for each more, on average and in the last part; ``bend`` is the ratio of the two times."""
    found = [run(kind, size) for size in sizes]

    def slope(what: str, low: int, high: int) -> float:
        return (found[high][what] - found[low][what]) / (sizes[high] - sizes[low])

    last = len(sizes) - 1
    mean_us, last_us = slope("seconds", 0, last) * 1e6, slope("seconds", last - 1, last) * 1e6
    return {
        "bytes": slope("run_bytes", 0, last),
        "declared_bytes": slope("peak_bytes", 0, last) - slope("run_bytes", 0, last),
        "mean_us": mean_us,
        "last_us": last_us,
        "bend": last_us / mean_us if mean_us > 0 else float("nan"),
        "runs": found,
    }


@pytest.mark.parametrize(("kind", "sizes"), [("tasks", (1_000, 2_000, 3_000)), ("items", (10_000, 50_000, 100_000))])
def test_the_parent_grows_with_the_number_of(benchmark: Any, kind: str, sizes: tuple[int, ...]) -> None:
    benchmark.pedantic(growth, args=(kind, sizes), rounds=1)


if __name__ == "__main__":
    for kind, sizes in (("tasks", TASKS), ("items", ITEMS)):
        found = growth(kind, sizes)
        for size, one in zip(sizes, found["runs"], strict=True):
            print(f"  {size:9,} {kind}: {one['seconds']:7.2f} s, peak {one['peak_bytes'] / 1e6:7.1f} MB in the parent")
        print(
            f"{kind}: {found['bytes']:.0f} bytes each for the run, {found['declared_bytes']:.0f} as declared; "
            f"{found['mean_us']:.1f} us each on average, {found['last_us']:.1f} us in the last part "
            f"(ratio {found['bend']:.2f})"
        )
    print(f"target: {TARGET}")
