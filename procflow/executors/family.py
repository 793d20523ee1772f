"""Family: the processes that a worker has started, however they tried to get away, and how to end them.

A process belongs to a worker if it descends from it, lives in its session, or carries its token in the environment it
was started with (a daemon that forked twice keeps that). Linux: read from /proc. This file signals; it never waits
or reaps.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from procflow.guarding.sweep import TOKEN_NAME, read

__all__ = ["TOKEN_NAME", "WORKER_TOKEN_NAME", "family", "group_of", "kill_family", "killed", "signal_all"]

WORKER_TOKEN_NAME = "PROCFLOW_WORKER_TOKEN"
ROUNDS = 20
BORN = 19
"""Where ``stat`` says when a process was forked, behind its name: in ticks since the machine was started."""

killed: set[int] = set()
"""Who was killed here and may become, or have become, a child that nobody waits for: the reaper's to empty."""


def family(pid: int, token: str) -> list[int]:
    """Living processes of the worker ``pid`` without itself; ``token`` is ``NAME=value`` in their environment.

    ``pid`` may be 0 to look for the token only. multiprocessing's resource trackers are left out, and so left alive:
    they clean up what the dead leave behind (shared memory, semaphores), then end by themselves.
    """
    parents: dict[int, int] = {}
    found: set[int] = set()
    mark = token.encode()
    me = os.getpid()
    try:
        names = os.listdir("/proc")
    except OSError:
        # No descriptor is left: the sweep at the end of the run, by another process, finds them.
        return []
    own = _fields("self")
    born = int(own[BORN]) if len(own) > BORN else 0
    for name in names:
        if not name.isdigit():
            continue
        other = int(name)
        fields = _fields(name)
        # Who is older than this process can't have been started by its workers; on most machines that is nearly everybody.
        if len(fields) <= BORN or fields[0] in (b"Z", b"X") or int(fields[BORN]) < born:
            continue
        parents[other] = int(fields[1])
        if other in (pid, me):
            continue
        if (pid and int(fields[3]) == pid) or mark in read(f"/proc/{name}/environ").split(b"\0"):
            found.add(other)
    found |= _descendants(pid, parents)
    return sorted(member for member in found - {pid, me} if not _is_tracker(member))


def _fields(name: str) -> list[bytes]:
    stat = read(f"/proc/{name}/stat")
    # The name may hold blanks and brackets; what follows the last bracket is regular.
    return stat[stat.rfind(b")") + 2 :].split()


def _descendants(pid: int, parents: dict[int, int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    waiting = [pid] if pid else []
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def kill_family(pid: int, token: str) -> int:
    """SIGKILL the worker's family, again and again until nothing of it is left; how many were killed."""
    found: set[int] = set()
    for _ in range(ROUNDS):
        members = family(pid, token)
        if not members:
            break
        signal_all(members, signal.SIGKILL)
        found.update(members)
    return len(found)


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to each; those that are gone don't matter."""
    pids = list(pids)
    if number == signal.SIGKILL:
        killed.update(pids)
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _is_tracker(pid: int) -> bool:
    return b"resource_tracker import main" in read(f"/proc/{pid}/cmdline")


def group_of(pid: int) -> int:
    """The process group of a process; -1 where there is none any more."""
    try:
        return os.getpgid(pid)
    except OSError:
        return -1
