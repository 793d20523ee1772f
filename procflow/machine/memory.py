"""Memory: when the run's memory is looked at, and what is said of it.

Samples go to the scheduler, which decides who is stopped. They are taken by the engine's loop, without a thread:
often where a step could pass its limit before the next look, seldom where all have room, and never for more than a
small share of the loop's time. Where memory is short, workers that do nothing are let go before any step is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from procflow.executors.base import MemoryUse, Metered
from procflow.machine import rss
from procflow.machine.pressure import Pressure
from procflow.scheduling.actions import Measured, Stall

__all__ = ["MemoryWatch"]

SHORTEST_S = 0.05
LONGEST_S = 0.2
RATE = 4_000_000_000
"""Bytes a second that a step may take, more than one core can touch: room divided by this is safe to look away for."""
COST_SHARE = 0.02
"""Samples take at most this share of the loop's time, however many processes there are."""
SHED_SHARE = 0.85
"""From this share of the budget on idle workers are let go."""


class MemoryWatch:
    """Samples the executors that can be, and this process, whose growth since the run began counts as the run's.

    ``budget_bytes`` is for all together (None: no limit). ``due`` is when the next sample should be taken,
    ``last`` the newest one. ``pressure`` tells what waits for the machine, where that is looked at.
    """

    def __init__(
        self,
        executors: Iterable[Any],
        budget_bytes: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        own_bytes: Callable[[], int] = rss.own_bytes,
        pressure: Pressure | None = None,
    ) -> None:
        self.due = float("inf") if budget_bytes is None else clock() + SHORTEST_S
        self._metered: list[Metered] = [e for e in executors if "memory" in e.capabilities]
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._own_bytes = own_bytes
        self._base_bytes = own_bytes()
        self._pressure = pressure
        self.last: Measured | None = None

    def expect(self, memory_bytes: int | None) -> None:
        """An attempt with this limit starts: it may be in need of a look sooner than all the others."""
        if memory_bytes is not None:
            self.due = min(self.due, self._clock() + _pause(memory_bytes))

    def measure(self) -> Measured:
        """Look now, and say when to look again."""
        began = self._cpu_clock()
        uses = [executor.memory(self._budget_bytes) for executor in self._metered]
        rss_bytes = {key: used for use in uses for key, used in use.rss_bytes.items()}
        total = sum(use.total_bytes for use in uses) + max(0, self._own_bytes() - self._base_bytes)
        if self._budget_bytes is not None and total > SHED_SHARE * self._budget_bytes:
            for executor in self._metered:
                executor.shed()
        cost_s = self._cpu_clock() - began
        self.due = self._clock() + max(self._until_next(uses, total), cost_s / COST_SHARE)
        self.last = Measured(rss_bytes, total, self._stall())
        return self.last

    def _stall(self) -> Stall | None:
        """What waited for the machine since it was last looked at, where it is looked at."""
        if self._pressure is None:
            return None
        pids = [pid for e in self._metered for pid in getattr(e, "pids", dict)().values()]
        return self._pressure.read(pids, self._clock())

    def _until_next(self, uses: list[MemoryUse], total: int) -> float:
        room = min((use.room_bytes for use in uses), default=float("inf"))
        if self._budget_bytes is not None:
            # Each of those that run may take at that rate.
            running = max(1, sum(len(use.rss_bytes) for use in uses))
            room = min(room, (self._budget_bytes - total) / running)
        elif room == float("inf"):
            return room
        return _pause(room)


def _pause(room_bytes: float) -> float:
    return min(LONGEST_S, max(SHORTEST_S, room_bytes / RATE))
