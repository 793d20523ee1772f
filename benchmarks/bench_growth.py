"""How do time and memory of the parent grow with the number of tasks and of map items?

Each size runs in a process of its own; what a task or an item costs is the slope between two sizes. Peak memory is what the
kernel counted for the parent, without its workers.
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
import json, resource, sys, time
from procflow import Map, Parallel, Pipeline, Step
from benchmarks.bench_growth import empty
kind, count, workers, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if kind == "tasks":
    steps = [Parallel(*(Step(f"s{i}", empty, output=None) for i in range(count)))]
else:
    steps = [Map("m", empty, items=range(count))]
pipeline = Pipeline("growth", steps=steps)
began = time.perf_counter()
result = pipeline.run(workers=workers, state_dir=folder)
assert result.status == "succeeded", result.failures
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
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
    """Bytes and microseconds for each more, in the first and in the second half; ``bend`` is the ratio of the two times."""
    found = [run(kind, size) for size in sizes]
    halves = []
    for (low, small), (high, large) in zip(
        list(zip(sizes, found, strict=True)), list(zip(sizes, found, strict=True))[1:], strict=False
    ):
        more = high - low
        halves.append(
            {
                "bytes": (large["peak_bytes"] - small["peak_bytes"]) / more,
                "us": (large["seconds"] - small["seconds"]) / more * 1e6,
            }
        )
    first, last = halves[0], halves[-1]
    whole = (found[-1]["peak_bytes"] - found[0]["peak_bytes"]) / (sizes[-1] - sizes[0])
    return {"bytes": whole, "first": first, "last": last, "bend": last["us"] / max(first["us"], 1e-9), "runs": found}


@pytest.mark.parametrize(("kind", "sizes"), [("tasks", (1_000, 2_000, 3_000)), ("items", (10_000, 50_000, 100_000))])
def test_the_parent_grows_with_the_number_of(benchmark: Any, kind: str, sizes: tuple[int, ...]) -> None:
    benchmark.pedantic(growth, args=(kind, sizes), rounds=1)


if __name__ == "__main__":
    for kind, sizes in (("tasks", TASKS), ("items", ITEMS)):
        found = growth(kind, sizes)
        for size, one in zip(sizes, found["runs"], strict=True):
            print(f"  {size:9,} {kind}: {one['seconds']:7.2f} s, peak {one['peak_bytes'] / 1e6:7.1f} MB in the parent")
        print(
            f"{kind}: {found['bytes']:.0f} bytes each; {found['first']['us']:.1f} us each in the first part, "
            f"{found['last']['us']:.1f} us in the last (ratio {found['bend']:.2f})"
        )
    print(f"target: {TARGET}")
