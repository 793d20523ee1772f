"""One large array through five steps: what does the parent hold, and is it copied on the way?

    python -m benchmarks.bench_large_value            1 GB
    python -m benchmarks.bench_large_value 200        200 MB

The first step makes it, the others read all of it and hand it on; they tell what memory of their own that took. The same
array goes on, so no step makes a file but the first: a copy would show as memory or as bytes in the object folder.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np
import pytest

from procflow import Pipeline, Sequence, Step

TARGET = "parent memory flat, no copy in any step"


def make(megabytes: int) -> Any:
    """The array."""
    return np.ones(megabytes * 125_000)


def look(values: Any) -> dict[str, float]:
    """Read all of it; what this process holds of its own before and after, and how long it took."""
    before = private_bytes(os.getpid())
    began = time.perf_counter()
    total = float(values.sum())
    seconds = time.perf_counter() - began
    return {"total": total, "own_bytes": private_bytes(os.getpid()) - before, "seconds": seconds}


def private_bytes(pid: int) -> int:
    """Resident memory that is not shared or mapped from files."""
    with open(f"/proc/{pid}/statm") as file:
        fields = file.read().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


def through_five_steps(megabytes: int) -> dict[str, Any]:
    """Figures of one run: seconds, growth of the parent, growth of each reading step, most bytes on disk."""
    steps = [Step("make", make, params={"megabytes": megabytes}, output="values")]
    steps += [Step(f"look_{i}", look, inputs=["values"]) for i in range(1, 5)]
    pipeline = Pipeline("large", steps=[Sequence(*steps, name="five")])
    with tempfile.TemporaryDirectory(dir=os.getcwd(), prefix=".large-") as folder:
        watched = _Watched(folder)
        base = private_bytes(os.getpid())
        began = time.perf_counter()
        with watched:
            result = pipeline.run(workers=2, state_dir=folder)
        seconds = time.perf_counter() - began
        assert result.status == "succeeded", result.failures
        looks = [result.outputs[f"look_{i}"] for i in range(1, 5)]
    assert {each["total"] for each in looks} == {megabytes * 125_000.0}
    return {
        "seconds": seconds,
        "parent_bytes": watched.most_bytes - base,
        "step_bytes": [each["own_bytes"] for each in looks],
        "read_s": [each["seconds"] for each in looks],
        "disk_bytes": watched.most_disk_bytes,
    }


class _Watched:
    """Samples this process's memory and a folder's files while something runs."""

    def __init__(self, folder: str) -> None:
        self.most_bytes = self.most_disk_bytes = 0
        self._folder = folder
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.most_bytes = max(self.most_bytes, private_bytes(os.getpid()))
            held = 0
            for folder, _, names in os.walk(self._folder):
                for name in names:
                    try:
                        held += os.stat(os.path.join(folder, name)).st_blocks * 512
                    except FileNotFoundError:
                        continue
            self.most_disk_bytes = max(self.most_disk_bytes, held)


@pytest.mark.parametrize("megabytes", [100])
def test_an_array_through_five_steps(benchmark: Any, megabytes: int) -> None:
    benchmark.pedantic(through_five_steps, args=(megabytes,), rounds=1)


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    found = through_five_steps(size)
    print(f"{size} MB through five steps in {found['seconds']:.2f} s")
    print(f"  the parent grew by {found['parent_bytes'] / 1e6:.1f} MB")
    for number, (own, read) in enumerate(zip(found["step_bytes"], found["read_s"], strict=True), 2):
        print(f"  step {number} read all of it in {read:.3f} s and grew by {own / 1e6:.1f} MB")
    print(f"  at most {found['disk_bytes'] / 1e6:.0f} MB lay on the disk")
    print(f"  target: {TARGET}")
