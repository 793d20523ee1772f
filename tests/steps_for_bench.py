"""Steps that the tests of ``procflow bench`` measure."""

from __future__ import annotations

import os
import time


def numbers(count: int = 6) -> list[int]:
    return list(range(count))


def wait(item: int) -> int:
    time.sleep(0.02)
    return item


def spin(item: int) -> int:
    total = item
    for number in range(60_000):
        total ^= number
    return total


def other_each_time(item: int) -> float:
    return time.perf_counter()


def where(item: int) -> int:
    return os.getpid()


def total(rows: list[int]) -> int:
    return sum(rows)
