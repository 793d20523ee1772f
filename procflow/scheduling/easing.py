"""Easing: how many attempts may run at once while the machine is short of memory or cores. Pure.

Under pressure one fewer than run now may run, and after a while one fewer again; once it is gone, one more, and again.
Nothing is ever stopped for it, one may always run, and for want of cores never fewer than there are cores. What was
measured comes in as ``Stall``; a run whose limits say ``pressure: off`` sends none.
"""

from __future__ import annotations

from procflow.scheduling.actions import Stall

__all__ = ["Easing"]

MEMORY_HIGH, MEMORY_LOW = 0.25, 0.05
"""The share of the time in which something waited for memory: from here on fewer start, up to there more again."""
CPU_HIGH, CPU_LOW = 0.6, 0.3
"""The same for the share of their time that running attempts waited for a core."""
DOWN_S, UP_S = 2.0, 4.0
"""Least time between two changes: an attempt that has ended takes a while to be felt."""


class Easing:
    """The rule; ``take`` every sample. ``least`` is the fewest that were allowed at once, None where nothing was eased."""

    __slots__ = ("_changed_at", "_most", "least")

    def __init__(self) -> None:
        self.least: int | None = None
        self._most: int | None = None
        self._changed_at = float("-inf")

    def take(self, stall: Stall, running: int, slots: int, now: float) -> int | None:
        """How many may run at once from now on, of ``slots``; None for as many as there are."""
        short = stall.memory >= MEMORY_HIGH or (stall.cpu >= CPU_HIGH and running > stall.cores)
        if short:
            floor = 1 if stall.memory >= MEMORY_HIGH else stall.cores
            self._lower(max(floor, min(running, self._most or running) - 1), now)
        elif self._most is not None and stall.memory <= MEMORY_LOW and stall.cpu <= CPU_LOW:
            self._raise(slots, now)
        return self._most

    def _lower(self, most: int, now: float) -> None:
        if now - self._changed_at >= DOWN_S and (self._most is None or most < self._most):
            self._most, self._changed_at = max(1, most), now
            self.least = min(self._most, self.least or self._most)

    def _raise(self, slots: int, now: float) -> None:
        assert self._most is not None
        if now - self._changed_at >= UP_S:
            self._changed_at = now
            self._most = self._most + 1 if self._most + 1 < slots else None
