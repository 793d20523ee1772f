"""Ladder: how a worker is made to end, rung by rung, each with its clock.

    SIGCONT, SIGUSR1 (Python stacks to the log, 0.1 s)  ->  SIGTERM, grace  ->  SIGKILL to the family, 2 s  ->  given up

An attempt that is no longer needed gets no stacks, one that eats memory gets its stacks in 0.02 s and no grace; a
worker that is not ready, not trusted or silent gets SIGKILL at once. It also holds the clock of a worker that starts.
Nothing here waits: ``run`` is called when ``deadline`` has come.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from procflow.attempt import Cause
from procflow.executors.slot import Slot, Stage

__all__ = ["DUMP_S", "Ladder"]

DUMP_S = 0.1
"""How long a worker has to write its Python stacks."""
OOM_DUMP_S = 0.02
"""The same for a step over its memory limit, which may take another gigabyte every second."""
PRESSURE_GRACE_S = 0.5
"""The most grace where all are short of memory."""
DEATH_S = 2.0
"""After SIGKILL: how long until a worker that can't die (it hangs in the kernel) is given up."""


class Ladder:
    """The slots that have a clock running. ``give_up`` is told of workers that can't be killed."""

    def __init__(self, give_up: Callable[[Slot], None]) -> None:
        self._slots: set[Slot] = set()
        self._give_up = give_up

    def __bool__(self) -> bool:
        return bool(self._slots)

    def deadline(self) -> float | None:
        """When ``run`` has something to do (``time.monotonic``)."""
        return min((slot.due for slot in self._slots), default=None)

    def set(self, slot: Slot, stage: Stage, seconds: float) -> None:
        """Start a slot's clock; it has one at a time."""
        slot.stage = stage
        slot.due = time.monotonic() + seconds
        self._slots.add(slot)

    def clear(self, slot: Slot) -> None:
        """Stop a slot's clock."""
        slot.stage = ""
        self._slots.discard(slot)

    def begin(self, slot: Slot, cause: Cause, grace_s: float) -> None:
        """Stop the slot's attempt. Asked a second time, it can only shorten the grace."""
        if slot.stage in ("dump", "term", "kill"):
            slot.grace_s = min(slot.grace_s, grace_s)
            if slot.stage == "term":
                slot.due = min(slot.due, time.monotonic() + grace_s)
            return
        slot.cause, slot.grace_s = cause, max(0.0, grace_s)
        if not slot.ready:
            self.kill(slot)
            return
        if cause in ("oom", "pressure"):
            slot.grace_s = min(slot.grace_s, PRESSURE_GRACE_S)
        slot.signal_group(signal.SIGCONT)
        if cause in ("cancelled", "pressure"):
            self._terminate(slot)
        else:
            slot.signal(signal.SIGUSR1)
            self.set(slot, "dump", OOM_DUMP_S if cause == "oom" else DUMP_S)

    def kill(self, slot: Slot) -> None:
        """SIGKILL, whatever came before."""
        slot.kill()
        self.set(slot, "kill", DEATH_S)

    def run(self) -> None:
        """Take the next rung wherever the time of the last one is over."""
        now = time.monotonic()
        for slot in [slot for slot in self._slots if slot.due <= now]:
            if slot.stage == "dump":
                if slot.cause == "oom":
                    self.kill(slot)
                else:
                    self._terminate(slot)
            elif slot.stage == "kill":
                self.clear(slot)
                self._give_up(slot)
            else:
                if slot.stage == "spawn":
                    slot.tail += b"\nnot ready in time"
                self.kill(slot)

    def _terminate(self, slot: Slot) -> None:
        slot.terminate()
        self.set(slot, "term", slot.grace_s)
