"""Measuring contenders side by side, and the table of their times.

A contender is a context manager that yields a function; calling it does one round of the work. Rounds of all contenders
alternate, so that what else happens on the machine hits all of them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

Round = Callable[[], object]
Contender = Callable[[], AbstractContextManager[Round]]

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}
DEADLINE_S = 120.0
"""Longest wait for one answer; a contender that hangs fails."""


def measure(
    contenders: Mapping[str, Contender], rounds: int, warm_up: int = 1, dropped: dict[str, str] | None = None
) -> dict[str, list[float]]:
    """Seconds of each round by contender, after ``warm_up`` rounds that are not counted.

    With ``dropped`` a contender that fails is left out, and why is noted there; not the first, which is ours.
    """
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        calls: dict[str, Round] = {}
        for name, contender in contenders.items():
            with _noting(name, dropped if times else None):
                entered = contender()
                calls[name] = entered.__enter__()
                stack.push(_leaving(name, entered, dropped))
                times[name] = []
        for number in range(-warm_up, rounds):
            for name in [*times]:
                with _noting(name, dropped if name != next(iter(contenders)) else None):
                    gc.collect()
                    began = time.perf_counter()
                    calls[name]()
                    seconds = time.perf_counter() - began
                    if number >= 0:
                        times[name].append(seconds)
                if dropped is not None and name in dropped:
                    del times[name]
    return times


@contextmanager
def _noting(name: str, dropped: dict[str, str] | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if dropped is None:
            raise
        dropped[name] = f"{type(error).__name__}: {error}"[:200]


def _leaving(name: str, entered: AbstractContextManager[Round], dropped: dict[str, str] | None) -> Callable[..., None]:
    def leave(*told: Any) -> None:
        # A peer that can't be closed well has been measured well all the same.
        with _noting(name, None if dropped is None else {}):
            entered.__exit__(*told)

    return leave


def spread(values: Sequence[float]) -> float:
    """Half of what lies between the quartiles, as a share of the median: the noise of the figure."""
    median = statistics.median(values)
    if len(values) < 2 or not median:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / abs(median)


def table(title: str, times: Mapping[str, list[float]], per: int = 1, unit: str = "us", target: str = "") -> str:
    """Median, best, noise and ratio to the first contender, a line each; ``per`` divides a round into its units of work."""
    base = statistics.median(next(iter(times.values())))
    width = max(map(len, times))
    digits = 3 if unit == "s" else 1
    lines = [title, f"  {'':{width}}  {'median':>10}  {'best':>10}  {'noise':>6}  {'ratio':>6}"]
    for name, seconds in times.items():
        median, best = (value / per * UNITS[unit] for value in (statistics.median(seconds), min(seconds)))
        ratio = statistics.median(seconds) / base
        lines.append(
            f"  {name:{width}}  {median:7.{digits}f} {unit:>2}  {best:7.{digits}f} {unit:>2}  {spread(seconds):>6.0%}  {ratio:6.2f}"
        )
    return "\n".join([*lines, f"  target: {target}"] if target else lines)
