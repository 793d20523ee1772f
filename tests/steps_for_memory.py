"""Steps that the memory tests run: they take memory, and sometimes give it back. Workers import this module by name."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import time

import numpy as np

MIB = 1 << 20
kept: list[bytearray] = []

HOLD_IN_CHILD = "import sys, time; held = bytearray(int(sys.argv[1])); print(flush=True); time.sleep(60)"


def hold(size_mib: int, seconds: float = 0.0) -> int:
    """Take memory, hold it for a while, give it back."""
    held = bytearray(size_mib * MIB)
    time.sleep(seconds)
    return len(held)


def grow(size_mib: int, seconds: float = 30.0) -> None:
    """Take memory piece by piece, as fast as it goes, then wait."""
    held = []
    for _ in range(size_mib // 16):
        held.append(bytearray(16 * MIB))
    time.sleep(seconds)


def grow_in_child(size_mib: int) -> None:
    """A child takes the memory."""
    subprocess.run([sys.executable, "-c", HOLD_IN_CHILD, str(size_mib * MIB)], check=False)


def leak(size_mib: int, seconds: float = 0.0) -> int:
    """Keep memory for good; gives the worker's pid."""
    kept.append(bytearray(size_mib * MIB))
    time.sleep(seconds)
    return os.getpid()


def pid() -> int:
    return os.getpid()


def linger() -> int:
    """Make this worker hang when it ends."""
    atexit.register(time.sleep, 60)
    return os.getpid()


def blas_threads(seconds: float = 0.0) -> tuple[int, str]:
    """The threads that numpy's BLAS uses, after it was used, and what a library loaded later would be told."""
    import threadpoolctl

    square = np.ones((64, 64))
    np.dot(square, square)
    time.sleep(seconds)
    return max(pool["num_threads"] for pool in threadpoolctl.threadpool_info()), os.environ["OMP_NUM_THREADS"]
