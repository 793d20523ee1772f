"""Resources: the cores and the memory that this process may use, and where each number comes from.

A container or a batch system often gives less than the machine has; the smallest of all answers counts. Nothing is cached:
limits can change while a long run goes on. What is admitted against these numbers is the scheduler's business.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

from procflow.errors import PipelineError, Problem
from procflow.machine import cgroup
from procflow.machine.cgroup import Group, Limit
from procflow.passive import passive
from procflow.units import Share, size_text

__all__ = ["Machine", "available_bytes", "budget", "probe", "warnings", "workers"]


@passive(frozen=True, slots=True)
class Machine:
    """What this process may use. ``available_bytes`` is what was free of ``memory_bytes`` when it was probed.

    ``cpus_source`` and ``memory_source`` say which limit was the smallest: ``affinity``, ``physical memory``, the path of a
    cgroup file.
    """

    cpus: int
    memory_bytes: int
    available_bytes: int
    cpus_source: str
    memory_source: str

    def __str__(self) -> str:
        return f"{self.cpus} cores ({self.cpus_source}), {size_text(self.memory_bytes)} memory ({self.memory_source})"


def probe(root: Path = Path("/")) -> Machine:
    """Look at the machine now; ``root`` is where ``/proc`` and the cgroup mounts are looked for. Never raises for odd files."""
    import psutil

    found = cgroup.groups(root)
    cpus = _cpus(found)
    memory = psutil.virtual_memory()
    most = Limit(memory.total, "physical memory")
    limit = cgroup.memory_limit(found)
    least = limit if limit is not None and limit.amount < most.amount else most
    return Machine(int(cpus.amount), int(least.amount), _available(memory.available, found), cpus.source, least.source)


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that are free for this process now: of the machine, and within every cgroup above it."""
    import psutil

    return _available(psutil.virtual_memory().available, cgroup.groups(root))


def budget(machine: Machine, limit: int | Share) -> int:
    """Bytes for all running steps: a share of the machine's memory, or the size asked for.

    Raises ``PipelineError`` for more than the machine has.
    """
    if isinstance(limit, Share):
        return max(1, int(machine.memory_bytes * limit.fraction))
    if limit > machine.memory_bytes:
        has = f"{size_text(machine.memory_bytes)} ({machine.memory_source})"
        message = f"limits.memory: {size_text(limit)} is more than this machine gives: {has}"
        raise PipelineError([Problem(message, ("limits", "memory"), "write a share such as 80%")])
    return limit


def warnings(root: Path = Path("/")) -> tuple[str, ...]:
    """What about this machine endangers a run as a whole, one line each."""
    source = cgroup.kills_together(cgroup.groups(root))
    if not source:
        return ()
    return (
        f"when memory runs out, the kernel kills all processes of this container or unit at once, procflow too "
        f"({source} is 1): keep limits.memory well below its limit, or set that to 0; a killed run can be resumed",
    )


def workers(machine: Machine, declared: int | Literal["auto"]) -> int:
    """The number of slots: what was declared, or a slot for each usable core."""
    return machine.cpus if declared == "auto" else declared


def _available(free: int, found: list[Group]) -> int:
    room = cgroup.memory_headroom(found)
    return int(free) if room is None else min(int(free), room)


def _cpus(found: list[Group]) -> Limit:
    """Usable cores, at least one; a quota of one and a half cores keeps two workers busy."""
    limits = [Limit(os.cpu_count() or 1, "cores of the machine")]
    if hasattr(os, "sched_getaffinity"):
        limits.append(Limit(len(os.sched_getaffinity(0)), "affinity"))
    quota = cgroup.cpu_limit(found)
    if quota is not None:
        limits.append(Limit(max(1, math.ceil(quota.amount)), quota.source))
    if min(limit.amount for limit in limits) > 1:
        # Also knows LOKY_MAX_CPU_COUNT and other systems' limits; its import is slow, and can't lower a single core.
        from loky import cpu_count  # type: ignore[import-untyped]

        limits.append(Limit(cpu_count(only_physical_cores=False), "loky.cpu_count"))
    return min(limits, key=lambda limit: limit.amount)
