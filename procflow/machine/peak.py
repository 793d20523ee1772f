"""Peak: the most memory that each attempt of a worker held, one attempt at a time.

The kernel keeps a process's peak for good, unless it is told to begin anew: ``5`` to ``/proc/self/clear_refs``, which
needs no privilege. That and the exact reading cost 0.05 ms, so attempts too short to take much are only looked at
more closely where the peak has risen. Used in workers; threads share one process, where nobody can tell whose memory
it is.
"""

from __future__ import annotations

import os
import resource

from procflow.machine import rss

__all__ = ["BRIEF_S", "Peak"]

BRIEF_S = 0.00005
"""Attempts below are not measured: so soon no process is given ``SLACK_BYTES``, since its pages have to be cleared."""
LONG_S = 0.01
"""Attempts from here on are looked at in any case."""
SLACK_BYTES = 4 << 20
"""A rise by this much is not worth a look."""


class Peak:
    """Call it at the end of an attempt with its seconds for its peak in bytes, then ``reset`` before the next."""

    def __init__(self) -> None:
        self._looked = True
        self._able = True
        self._children_bytes = self._highest_bytes = 0
        self._size_bytes = rss.size_in(_status())
        self.reset()

    def __call__(self, wall_s: float) -> int:
        if wall_s < BRIEF_S:
            return self._size_bytes
        highest = _highest(resource.RUSAGE_SELF)
        if wall_s < LONG_S and highest <= self._highest_bytes + SLACK_BYTES:
            return self._size_bytes
        status = _status()
        self._looked = True
        self._size_bytes = rss.size_in(status)
        known = self._able or highest > self._highest_bytes
        peak = rss.peak_in(status) if known else self._size_bytes
        children = _highest(resource.RUSAGE_CHILDREN)
        if children > self._children_bytes:
            # The largest child ever; it begins with this process's own, so only more than that says something.
            self._children_bytes = children
            if children > highest:
                peak = max(peak, children)
        return peak

    def reset(self) -> None:
        """The next attempt's peak begins with what is held now."""
        if not self._looked:
            return
        self._looked = False
        if self._able:
            self._able = _begin_anew()
        self._highest_bytes = _highest(resource.RUSAGE_SELF)


def _highest(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * 1024


def _status() -> bytes:
    try:
        with open("/proc/self/status", "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _begin_anew() -> bool:
    try:
        fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, b"5")
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
