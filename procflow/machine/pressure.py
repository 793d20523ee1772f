"""Pressure: how much of the last seconds was spent waiting for memory or for a core, by the kernel's own account.

Memory from the pressure files (PSI) of this process's control group, else of the machine. Cores from the scheduler
statistics of the run's own workers, and only while the pressure file of the machine agrees: others may crowd the
machine while our steps wait for a disk, and then fewer steps would help nobody. Where a file is missing there is no
pressure. What follows from it is the scheduler's to decide.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from procflow.machine import cgroup
from procflow.scheduling.actions import Stall

if TYPE_CHECKING:
    from procflow.launch import Prepared

__all__ = ["Pressure"]

INTERVAL_S = 1.0
"""At most so often; shorter spans say little."""
CROWDED = 0.5
"""The share of the time in which something on the machine must have waited for a core, for our waits to count."""

_TOTAL = re.compile(r"^some .*\btotal=([0-9]{1,18})", re.MULTILINE)


class Pressure:
    """Call ``read`` as often as you like. ``cores`` are those that this run may use."""

    def __init__(self, cores: int, root: Path = Path("/")) -> None:
        self._cores = cores
        self._proc = root / "proc"
        self._memory_file = _own(root) or self._proc / "pressure/memory"
        self._before: tuple[float, float | None, float | None, dict[int, int]] | None = None

    @classmethod
    def of(cls, prepared: Prepared) -> Pressure | None:
        """What looks at this machine during a run; None for ``limits: {pressure: off}``."""
        return None if prepared.pipeline.limits.pressure == "off" else cls(prepared.machine.cpus)

    def read(self, pids: Collection[int], now: float) -> Stall | None:
        """The stall since the last reading, by the clock ``now``; None where it was read just before, or for the first time.

        ``pids`` are the workers that run something.
        """
        if self._before is not None and now - self._before[0] < INTERVAL_S:
            return None
        before, self._before = self._before, (
            now, _waited_s(self._memory_file), _waited_s(self._proc / "pressure/cpu"), self._delays(pids),
        )  # fmt: skip
        if before is None:
            return None
        span_s = now - before[0]
        memory = _share(before[1], self._before[1], span_s)
        crowded = _share(before[2], self._before[2], span_s)
        cpu = self._own_wait(before[3], self._before[3], span_s) if before[2] is None or crowded >= CROWDED else 0.0
        return Stall(memory, cpu, self._cores)

    def _own_wait(self, before: dict[int, int], after: dict[int, int], span_s: float) -> float:
        """The share of their time that workers which ran all the while waited for a core."""
        both = before.keys() & after.keys()
        waited_s = sum(after[pid] - before[pid] for pid in both) / 1e9
        return min(1.0, max(0.0, waited_s / (span_s * len(both)))) if both else 0.0

    def _delays(self, pids: Collection[int]) -> dict[int, int]:
        """Nanoseconds that each worker's main thread has waited for a core so far."""
        found: dict[int, int] = {}
        if len(pids) <= self._cores:
            return found
        for pid in pids:
            try:
                with open(self._proc / str(pid) / "schedstat", "rb", buffering=0) as file:
                    found[pid] = int(file.read(200).split()[1])
            except (OSError, ValueError, IndexError):
                continue
        return found


def _own(root: Path) -> Path | None:
    """The file of the closest control group that has one."""
    for group in cgroup.groups(root):
        path = group.folder / "memory.pressure"
        if group.version == 2 and os.access(path, os.R_OK) and _waited_s(path) is not None:
            return path
    return None


def _waited_s(path: Path) -> float | None:
    """Seconds in which something waited, since the machine began; None where the file says nothing."""
    try:
        found = _TOTAL.search(path.read_text("ascii", "replace"))
    except OSError:
        return None
    return int(found[1]) / 1e6 if found is not None else None


def _share(before: float | None, after: float | None, span_s: float) -> float:
    return min(1.0, max(0.0, (after - before) / span_s)) if before is not None and after is not None else 0.0
