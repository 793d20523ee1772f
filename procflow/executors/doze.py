"""Doze: waiting for what probably comes within microseconds: look again and again for a moment, and only then sleep.

To be woken takes a process 15 to 50 microseconds, more than an empty step takes, so parent and worker that hand short steps
to each other spend most of their time on it. But looking takes a core, and where others want that core it makes all slower.
So the caller says when a core is free, only waits after a short one begin with looking, and where it found nothing it is
left out for a while, longer each time. This file knows nothing of what is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["Doze"]

LOOK_S = 100e-6
"""How long is looked before sleeping."""
SHORT_S = 300e-6
"""A wait that took no longer than this was short: the next may be, too."""
MOST_MISSES = 5
"""After so many misses in a row one wait in 2 ** 5 begins with looking."""

Poll = Callable[[float | None], list[Any]]


class Doze:
    """Waits by ``poll``, which takes a timeout (0 looks, None waits for ever) and gives what is there."""

    __slots__ = ("_clock", "_leave_out", "_misses", "_poll", "_short")

    def __init__(self, poll: Poll, clock: Callable[[], float] = time.monotonic) -> None:
        self._poll = poll
        self._clock = clock
        self._short = False
        self._misses = 0
        self._leave_out = 0

    def wait(self, timeout: float | None, free: bool) -> list[Any]:
        """What ``poll`` gives within the timeout (in its own unit). ``free``: a core is, and something is on its way."""
        if not free or timeout == 0:
            return self._poll(timeout)
        clock, poll = self._clock, self._poll
        began = clock()
        if self._short and not self._left_out():
            until = began + LOOK_S
            while clock() < until:
                if found := poll(0):
                    # A hit makes up for one miss, no more: half of them are not worth the other half.
                    self._misses = max(0, self._misses - 1)
                    return found
            self._misses = min(MOST_MISSES, self._misses + 1)
            self._leave_out = (1 << self._misses) - 1
        found = poll(timeout)
        self._short = clock() - began < SHORT_S
        return found

    def _left_out(self) -> bool:
        self._leave_out -= self._leave_out > 0
        return self._leave_out > 0
