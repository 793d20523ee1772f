"""Rss: how much memory processes hold, read from /proc: one process, or a worker with all it has started.

What counts is ``resident - shared`` of ``/proc/<pid>/statm``: memory that goes away with the process. Mapped files
and shared memory are left out, because each of them exists once however many workers map it. Reading costs
microseconds; where forked children share pages with their parent, the exact figure (``Pss_Anon``, milliseconds) is
read only where it would matter. Nothing here decides what is too much. Linux only: elsewhere everything is 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

__all__ = ["Tree", "children_of", "own_bytes", "peak_in", "private_bytes", "size_in"]

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
HAS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
"""Whether this kernel lists children (CONFIG_PROC_CHILDREN)."""
PIECE = 3000
"""Where more has come than this, there may be more to come."""
EVERY_THREAD = 4
"""So many samples apart all threads are asked for children; between, only those that had some, and the main thread."""
SCAN_S = 1.0
"""Where the kernel keeps no lists of children, how long the result of a look at all processes serves."""
EXACT_S = 1.0
"""How long an exact figure serves while the same processes live."""


def private_bytes(pid: int) -> int:
    """Memory of one process that is its own; 0 where it is gone or hidden."""
    return _private(_read(f"/proc/{pid}/statm"))


def own_bytes() -> int:
    """Memory of this process that is its own."""
    return _private(_read("/proc/self/statm"))


def peak_in(status: bytes) -> int:
    """The most that a process held of its own since its peak was last set back, by the text of ``/proc/<pid>/status``.

    What it has mapped by now is taken off, so it is a little low where more was mapped later.
    """
    shared = _field(status, b"RssFile:") + _field(status, b"RssShmem:")
    return max(0, _field(status, b"VmHWM:") - shared, _field(status, b"RssAnon:"))


def size_in(status: bytes) -> int:
    """What a process holds of its own, by the same text."""
    return _field(status, b"RssAnon:")


def children_of(pid: int) -> list[int]:
    """Processes that any thread of ``pid`` started and that still live."""
    found: list[int] = []
    for thread in _threads(pid):
        found += _children(pid, thread)
    return found


class Tree:
    """A worker and all its descendants. ``read`` is to be called again and again; ``close`` frees its descriptors."""

    __slots__ = (
        "_base_bytes",
        "_exact_at",
        "_exact_bytes",
        "_exact_pids",
        "_fds",
        "_samples",
        "_scan_at",
        "_scanned",
        "_starters",
        "pid",
        "shared_bytes",
    )

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.shared_bytes = 0
        """What the worker alone had mapped of files and shared memory, when it was last looked at."""
        self._samples = 0
        self._scan_at = float("-inf")
        self._scanned: set[int] = set()
        self._starters: tuple[str, ...] = ()
        self._exact_at = float("-inf")
        self._exact_bytes = self._base_bytes = 0
        self._exact_pids: frozenset[int] = frozenset()
        # Open descriptors stay with this process, whoever gets its number later, and are read three times as fast.
        self._fds = tuple(map(_open, (f"/proc/{pid}/statm", f"/proc/{pid}/task/{pid}/children")))

    def close(self) -> None:
        """Close the descriptors; harmless when done before."""
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)
        self._fds = (-1, -1)

    def own(self) -> int:
        """Bytes of the worker alone; 0 where it is gone."""
        fields = _pread(self._fds[0]).split(None, 3)
        if len(fields) < 4:
            return 0
        self.shared_bytes = int(fields[2]) * PAGE
        return int(fields[1]) * PAGE - self.shared_bytes

    def read(self, alarm_bytes: float = float("inf"), more: Iterable[int] = ()) -> int:
        """Bytes of all its processes together, and of ``more``, which came from here but lost their parents.

        From ``alarm_bytes`` on, pages that forked children share are counted once.
        """
        total = self.own()
        below = self._below(more)
        if not below:
            return total
        for pid in below:
            total += private_bytes(pid)
        return total if total < alarm_bytes else self._exactly(total, below)

    def _below(self, more: Iterable[int]) -> set[int]:
        """The descendants, without the worker."""
        if not HAS_CHILDREN:
            return self._by_scan() | {*more}
        main = str(self.pid)
        first = _pread(self._fds[1])
        waiting = [*(map(int, first.split()) if len(first) < PIECE else _children(self.pid, main)), *more]
        if self._samples % EVERY_THREAD == 0:
            self._starters = tuple(t for t in _threads(self.pid) if t != main and _children(self.pid, t))
        self._samples += 1
        for thread in self._starters:
            waiting += _children(self.pid, thread)
        found: set[int] = set()
        while waiting:
            pid = waiting.pop()
            if pid not in found:
                found.add(pid)
                waiting += children_of(pid)
        return found

    def _by_scan(self) -> set[int]:
        now = time.monotonic()
        if now - self._scan_at > SCAN_S:
            self._scan_at, self._scanned = now, _scan(self.pid)
        return self._scanned

    def _exactly(self, rss_bytes: int, below: set[int]) -> int:
        pids = frozenset(below)
        now = time.monotonic()
        if pids != self._exact_pids or now - self._exact_at > EXACT_S:
            self._exact_bytes = sum(map(_pss_anon, (self.pid, *pids)))
            self._exact_at, self._exact_pids, self._base_bytes = now, pids, rss_bytes
        return min(rss_bytes, self._exact_bytes + max(0, rss_bytes - self._base_bytes))


def _scan(root: int) -> set[int]:
    """Processes that descend from ``root`` or are in its session, found among all there are."""
    below: dict[int, list[int]] = {}
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            # The name of a program may hold blanks and brackets; what follows the last bracket is regular.
            fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split(None, 4)
            if len(fields) > 4 and fields[0] not in b"ZX":
                below.setdefault(int(fields[1]), []).append(int(name))
                if int(fields[3]) == root:
                    found.add(int(name))
    waiting = [root, *found]
    while waiting:
        for pid in below.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found - {root}


def _private(statm: bytes) -> int:
    fields = statm.split(None, 3)
    return (int(fields[1]) - int(fields[2])) * PAGE if len(fields) > 3 else 0


def _field(status: bytes, name: bytes) -> int:
    found = status.partition(name)[2].split(None, 1)
    return int(found[0]) * 1024 if found else 0


def _pss_anon(pid: int) -> int:
    return _field(_read(f"/proc/{pid}/smaps_rollup"), b"Pss_Anon:") or private_bytes(pid)


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _children(pid: int, thread: str) -> list[int]:
    return list(map(int, _read(f"/proc/{pid}/task/{thread}/children").split()))


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _pread(fd: int) -> bytes:
    try:
        return os.pread(fd, 1 << 16, 0) if fd >= 0 else b""
    except OSError:
        return b""


def _read(path: str) -> bytes:
    fd = _open(path)
    if fd < 0:
        return b""
    try:
        data = os.read(fd, 1 << 16)
        # The kernel gives long lists in pieces.
        while len(data) > PIECE and (more := os.read(fd, 1 << 16)):
            data += more
        return data
    except OSError:
        return b""
    finally:
        os.close(fd)
