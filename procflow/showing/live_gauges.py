"""Live gauges: memory and cores that a run uses now, and how long it will still take, for its table.

Read by the display thread, at most once a second. The memory is the one that the engine's own watch measured; cores are what
this process and all below it took since the last look; the time left comes from earlier runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from procflow.showing.live_table import Gauges

__all__ = ["LiveGauges"]

GAP_S = 1.0


class LiveGauges:
    """Gauges of the run that ``launch`` hands to observers; ``read`` never raises and never blocks for long."""

    def __init__(self, run: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = run.prepared.workers
        self._limit_bytes = run.prepared.memory_bytes
        self._meter = run.meter
        self._clock = clock
        self._usual_s = usual_wall_s(run)
        self._at = float("-inf")
        self._cpu_s: dict[int, float] = {}
        self._cores: float | None = None

    def read(self, now: float, state: str) -> Gauges:
        """The gauges at ``now``, in seconds of the run."""
        at = self._clock()
        if at - self._at >= GAP_S:
            self._cores = self._measure_cores(at - self._at)
            self._at = at
        last = self._meter.last if self._meter is not None else None
        left = self._usual_s - now if self._usual_s is not None and now < self._usual_s else None
        return Gauges(
            self._workers,
            last.total_bytes if last is not None else None,
            self._limit_bytes,
            self._cores,
            left,
            state,
            last.rss_bytes if last is not None else {},
        )

    def _measure_cores(self, gap_s: float) -> float | None:
        import psutil

        used: dict[int, float] = {}
        try:
            own = psutil.Process()
            for process in (own, *own.children(recursive=True)):
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                used[process.pid] = times.user + times.system
        except (psutil.Error, OSError):
            return None
        grown = sum(max(0.0, now - self._cpu_s.get(pid, 0.0)) for pid, now in used.items())
        first = not self._cpu_s
        self._cpu_s = used
        return None if first else grown / gap_s


def usual_wall_s(run: Any, most: int = 5) -> float | None:
    """The median of how long the last runs with the same parameters took that succeeded in one go; None without any."""
    from itertools import islice
    from statistics import median

    from procflow.storing.history import History

    params = dict(run.prepared.graph.params)
    try:
        with History.open(run.folder) as history:
            runs = history.runs(pipeline=run.prepared.pipeline.name, status="succeeded", limit=20 * most)
        same = (r.wall_s for r in runs if r.wall_s and r.sessions == 1 and r.params == params)
        walls = list(islice(same, most))
    except Exception:
        # An estimate is a comfort; a history that can't be read is told of where it matters.
        return None
    return median(walls) if walls else None
