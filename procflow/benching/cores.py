"""Cores: how many processors this machine really gives now, told by processes that count for a moment.

Neighbours on a shared machine take what ``nproc`` promises; a comparison of threads with processes means nothing then. This
file measures; it judges nothing.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import Executor
from dataclasses import dataclass

__all__ = ["Cores", "count", "probe"]

SPIN_S = 0.05
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Cores:
    """``seen`` as the system has it, ``usable`` as just measured, ``noise`` the spread of one process alone (0.04 is 4 %)."""

    seen: int
    usable: float
    noise: float
    seconds: float

    @property
    def busy(self) -> bool:
        """Whether somebody else takes so much that times here mean little."""
        return self.usable < 0.8 * self.seen or self.noise > 0.1


def count(seconds: float) -> float:
    """Steps a second that a Python loop gets done in this process."""
    began = time.perf_counter()
    until, steps = began + seconds, 0
    while (now := time.perf_counter()) < until:
        for _ in range(200):
            steps += 1
    return steps / (now - began)


def probe(pool: Executor, seen: int) -> Cores:
    """Count alone and all at once, in turns; ``pool`` has ``seen`` workers."""
    list(pool.map(count, [SPIN_S / 5] * seen))
    began = time.perf_counter()
    alone, together = [], []
    for _ in range(ROUNDS):
        alone.append(pool.submit(count, SPIN_S).result())
        together.append(sum(pool.map(count, [SPIN_S] * seen)))
    best = max(alone)
    noise = (best - min(alone)) / best
    usable = min(float(seen), statistics.median(together) / best)
    return Cores(seen, usable, noise, time.perf_counter() - began)
