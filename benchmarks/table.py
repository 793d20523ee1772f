"""Measuring contenders side by side, and the table of their times.

A contender is a context manager that yields a function; calling it does one round of the work. Rounds of all contenders
alternate, so that what else happens on the machine hits all of them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack

Round = Callable[[], object]
Contender = Callable[[], AbstractContextManager[Round]]

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}
DEADLINE_S = 120.0
"""Longest wait for one answer; a contender that hangs fails."""


def measure(contenders: Mapping[str, Contender], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each round by contender, after ``warm_up`` rounds that are not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        calls = {name: stack.enter_context(contender()) for name, contender in contenders.items()}
        for number in range(-warm_up, rounds):
            for name, call in calls.items():
                gc.collect()
                began = time.perf_counter()
                call()
                seconds = time.perf_counter() - began
                if number >= 0:
                    times[name].append(seconds)
    return times


def table(title: str, times: Mapping[str, list[float]], per: int = 1, unit: str = "us", target: str = "") -> str:
    """Median, best and ratio to the first contender, a line each; ``per`` divides a round into its units of work."""
    base = statistics.median(next(iter(times.values())))
    width = max(map(len, times))
    digits = 3 if unit == "s" else 1
    lines = [title, f"  {'':{width}}  {'median':>10}  {'best':>10}  {'ratio':>6}"]
    for name, seconds in times.items():
        median, best = (value / per * UNITS[unit] for value in (statistics.median(seconds), min(seconds)))
        ratio = statistics.median(seconds) / base
        lines.append(f"  {name:{width}}  {median:7.{digits}f} {unit:>2}  {best:7.{digits}f} {unit:>2}  {ratio:6.2f}")
    return "\n".join([*lines, f"  target: {target}"] if target else lines)
