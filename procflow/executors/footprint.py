"""Footprint: what the workers of the processes executor hold in memory, each and together.

It samples their process trees, remembers the peak of each attempt, sees which worker has grown by a leak and whether
the kernel has killed one for want of memory. Where a control group may be given to each worker (``cgroup_slots``),
the kernel holds attempts to their limits as well. It decides about no attempt: limits and budget are judged in the
parent's scheduler.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from procflow.attempt import Attempt, Failed, Skipped, Succeeded, Usage
from procflow.executors.base import MemoryUse
from procflow.machine import cgroup, rss
from procflow.machine.cgroup_slots import WorkerGroup, WorkerGroups

if TYPE_CHECKING:
    from procflow.executors.slot import Death, Slot

__all__ = ["Footprint", "Size"]

LEAK_BYTES = 300_000_000
"""A worker may keep so much more than its functions' first runs left it with, or a quarter of its share of the budget."""
ALARM_SHARE = 0.8
"""From this share of a limit on it is worth knowing exactly what forked children share."""
COUNT_S = 1.0
"""How often the kernel's count of kills is read while nothing dies."""

Final = Succeeded | Skipped | Failed


class Size:
    """One worker's memory: now, at most in this attempt, and after the first run of each of its functions."""

    __slots__ = (
        "_before_bytes",
        "_fresh",
        "_last",
        "_seen",
        "base_bytes",
        "due",
        "group",
        "kills",
        "peak_bytes",
        "rss_bytes",
        "tree",
    )

    def __init__(self, pid: int, group: WorkerGroup | None = None) -> None:
        self.tree = rss.Tree(pid)
        self.group = group
        self.rss_bytes = self.peak_bytes = self.base_bytes = self.kills = 0
        self.due = False
        """Whether ``end`` has something to do."""
        self._seen: set[object] = set()
        self._last: object = None
        self._fresh = False
        self._before_bytes = 0

    def begin(self, attempt: Attempt) -> None:
        """An attempt is sent to the worker."""
        self.peak_bytes = 0
        if attempt.call.function is not self._last or self._last is None:
            self._last = attempt.call.function
            function = _function(attempt)
            if function not in self._seen:
                # What it loads at its first run is no leak.
                self._before_bytes = self.tree.own() if self._seen else 0
                self._seen.add(function)
                self._fresh = self.due = True
        if self.group is not None:
            self.group.limit(attempt.memory_bytes)

    def end(self, outcome: Final) -> Final:
        """The attempt has ended: its outcome, with the highest sample where that was the peak."""
        self.due = False
        if self._fresh:
            self._fresh = False
            self.base_bytes += max(0, self.tree.own() - self._before_bytes)
        usage, sampled = outcome.usage, self.peak_bytes
        self.peak_bytes = 0
        if sampled <= usage.peak_rss_bytes:
            return outcome
        return replace(outcome, usage=Usage(usage.wall_s, usage.cpu_s, sampled, None, usage.began))

    def grown(self, allowed_bytes: int, next_attempt: Attempt) -> int:
        """Bytes by which an idle worker has outgrown itself, 0 where that is no more than allowed.

        What earlier steps left behind may take up a quarter of the next attempt's limit.
        """
        if next_attempt.memory_bytes is not None:
            allowed_bytes = min(allowed_bytes, next_attempt.memory_bytes // 4)
        elif self.rss_bytes - self.base_bytes <= allowed_bytes:
            return 0
        self.rss_bytes = self.tree.own()
        grown = self.rss_bytes - self.base_bytes
        return grown if grown > allowed_bytes else 0

    def close(self) -> None:
        """The worker is gone."""
        self.tree.close()
        if self.group is not None:
            self.kills = max(self.kills, self.group.oom_kills())
            self.group.remove()


class Footprint:
    """The memory of all workers. ``leak_bytes`` is how much an idle one may have grown."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.leak_bytes = LEAK_BYTES
        self._root = root
        self._binding: list[cgroup.Group] | None = None
        self._groups: WorkerGroups | None = None
        self._kills = 0
        self._counted_at = 0.0

    def size(self, pid: int) -> Size:
        """To be kept with a worker that was just started."""
        if self._binding is None:
            self._binding = cgroup.groups(self._root)
            self._groups = WorkerGroups.open(self._root)
            self._kills = cgroup.oom_kills(self._binding, self._root)
        return Size(pid, self._groups.new(pid) if self._groups is not None else None)

    def sample(self, slots: Collection[Slot], budget_bytes: int | None) -> MemoryUse:
        """Look at all workers now."""
        if budget_bytes is not None:
            self.leak_bytes = max(LEAK_BYTES, budget_bytes // max(4, 4 * len(slots)))
        strays = _strays(slots)
        share = float("inf") if budget_bytes is None else budget_bytes / max(1, len(slots))
        rss_bytes: dict[int, int] = {}
        total, room = 0, float("inf")
        for slot in slots:
            size, attempt = slot.size, slot.attempt
            limit = attempt.memory_bytes if attempt is not None else None
            alarm = ALARM_SHARE * (share if limit is None else min(share, limit))
            used = size.rss_bytes = size.tree.read(alarm, strays.pop(slot.pid, ()))
            total += used
            if attempt is not None and slot.ready:
                rss_bytes[attempt.key] = used
                size.peak_bytes = max(size.peak_bytes, used)
                size.due = True
                if limit is not None:
                    room = min(room, limit - used)
        now = time.monotonic()
        if now - self._counted_at > COUNT_S:
            self._count(now)
        return MemoryUse(rss_bytes, total, room)

    def judge(self, slot: Slot, death: Death) -> None:
        """Where the kernel has killed this worker for want of memory, let its cause be ``oom``."""
        if death.exit_code != -signal.SIGKILL or slot.cause is not None or slot.trouble or not slot.ready:
            return
        source = ""
        group, before = slot.size.group, self._kills
        if group is not None and slot.size.kills:
            source = f"{group.shown}/memory.events"
        else:
            self._count(time.monotonic())
            if self._kills > before:
                source = cgroup.oom_source(self._binding or [])
        if source:
            slot.cause, slot.trouble = "oom", f"killed by the kernel, which was out of memory ({source})"

    def close(self) -> None:
        """All workers are gone."""
        if self._groups is not None:
            self._groups.close()
            self._groups = None

    def _count(self, now: float) -> None:
        self._counted_at = now
        self._kills = cgroup.oom_kills(self._binding or [], self._root)


def _function(attempt: Attempt) -> object:
    """The same for all attempts that run the same code."""
    call: Any = attempt.call
    if call.function is None or isinstance(call.function, str):
        return call.function or call.kind
    return id(getattr(call.function, "__code__", type(call.function)))


def _strays(slots: Collection[Slot]) -> dict[int, list[int]]:
    """Orphans of workers, which this process adopts, by the session (the worker's pid) that they came from."""
    workers = {slot.pid for slot in slots}
    found: dict[int, list[int]] = {}
    for pid in rss.children_of(os.getpid()):
        if pid not in workers:
            try:
                session = os.getsid(pid)
            except OSError:
                continue
            if session in workers:
                found.setdefault(session, []).append(pid)
    return found
