"""Ending: the last seconds of workers that are no longer needed.

Idle workers end by themselves when their channel closes, busy ones are asked by SIGTERM, and whoever is still there
after that is killed with its family. Bounded in time; output is read on, so that nobody waits for a full pipe.
"""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Iterable

from procflow.executors.slot import Slot

__all__ = ["end_workers"]

ASK_S = 2.0
DEATH_S = 2.0


def end_workers(slots: Iterable[Slot]) -> None:
    """End every worker and close its slot and the logs of its attempts; what can't die is left behind after 4 s."""
    left = set(slots)
    for slot in left:
        if slot.attempt is not None or not slot.ready:
            slot.signal_group(signal.SIGCONT)
            slot.signal_group(signal.SIGTERM if slot.ready else signal.SIGKILL)
        slot.hang_up()
    _reap(left, ASK_S)
    for slot in left:
        slot.kill()
    _reap(left, DEATH_S)
    for slot in left:
        _close_logs(slot)
        slot.close()


def _reap(slots: set[Slot], seconds: float) -> None:
    """Reap those that end within the time and take them out of ``slots``."""
    until = time.monotonic() + seconds
    poll = select.poll()
    by_fd: dict[int, Slot] = {}
    for slot in slots:
        for fd in (slot.output_fd, slot.pidfd):
            poll.register(fd, select.POLLIN)
            by_fd[fd] = slot
    while slots and (wait_s := until - time.monotonic()) > 0:
        for fd, _ in poll.poll(wait_s * 1000):
            slot = by_fd[fd]
            if slot not in slots:
                continue
            if slot.dead:
                slot.drain_output()
                _close_logs(slot)
                poll.unregister(slot.pidfd)
                if by_fd.pop(slot.output_fd, None) is not None:
                    poll.unregister(slot.output_fd)
                slots.discard(slot)
                slot.reap()
            elif fd == slot.output_fd and slot.read_output() is False:
                poll.unregister(fd)
                del by_fd[fd]


def _close_logs(slot: Slot) -> None:
    if slot.attempt is not None:
        slot.attempt.close_log()
    for attempt, _ in slot.line.waiting:
        attempt.close_log()
