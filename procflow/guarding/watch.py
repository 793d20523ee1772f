"""Watch: what the engine's loop sleeps on, and the clock it reads.

The executors are behind it; besides them it wakes for signals and for the death of the reaper. And it sees when this process
was stopped (SIGTSTP, a frozen container): the loop then wakes much later than it meant to, with every timeout overdue though
steps may long be done. Then the clock stands still for a moment while outcomes come in, so that each running step is asked
once more before its time is up. It decides nothing about steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from procflow.attempt import Outcome
from procflow.guarding.reaper import Reaper
from procflow.guarding.signals import Signals

__all__ = ["GAP_S", "HOLD_S", "Watch"]

GAP_S = 5.0
"""Waking so much later than wanted means that this process stood still."""
HOLD_S = 1.0
"""How long the clock stands still then."""


class Waiter(Protocol):
    """An executor, or several behind one face."""

    def wait(self, until: float | None) -> list[Outcome]:
        """Outcomes in order of arrival, none when ``until`` came first."""

    def watch(self, fd: int) -> None:
        """Also return when ``fd`` is readable."""

    def unwatch(self, fd: int) -> None:
        """Undo ``watch``."""


class Watch:
    """A waiter for the engine; ``clock`` is the clock that goes with it. Use it in a ``with``."""

    def __init__(
        self,
        waiter: Waiter,
        signals: Signals,
        reaper: Reaper | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiter = waiter
        self._signals = signals
        self._reaper = reaper
        self._clock = clock
        self._watched: list[int] = []
        self._last = clock()
        self._held: float | None = None
        self._hold_until = 0.0

    def __enter__(self) -> Watch:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _begin(self) -> None:
        fds = [self._signals.fileno(), self._reaper.fileno() if self._reaper is not None else -1]
        self._watched = [fd for fd in fds if fd >= 0]
        for fd in self._watched:
            self._waiter.watch(fd)

    def _end(self) -> None:
        for fd in self._watched:
            self._waiter.unwatch(fd)
        self._watched.clear()

    def clock(self) -> float:
        """Monotonic seconds; they stand still for a moment after this process did."""
        return self._read(self._last)

    def wait(self, until: float | None) -> list[Outcome]:
        """As the executors' ``wait``."""
        self.clock()
        while True:
            held = self._held is not None
            limit = max(until or 0.0, self._hold_until) if held else until
            outcomes = self._waiter.wait(limit)
            # Without a limit any sleep is one that was meant.
            self._read(math.inf if limit is None else max(self._last, limit))
            if outcomes or held or self._held is None:
                break
        if not outcomes:
            self._woken()
        if self._reaper is not None:
            self._reaper.collect(self._last)
        return outcomes

    def _read(self, awaited: float) -> float:
        """Read the clock when it should be about ``awaited``; the time to go by."""
        now = self._clock()
        if self._held is not None:
            if now < self._hold_until:
                return self._held
            self._held = None
        elif now - awaited > GAP_S:
            self._held, self._hold_until = self._last, now + HOLD_S
            return self._held
        self._last = now
        return now

    def _woken(self) -> None:
        """Nothing came from the executors: perhaps something else did."""
        self._signals.drain()
        reaper = self._reaper
        if reaper is not None and reaper.dead():
            self._end()
            reaper.revive()
            self._begin()
