"""Workers: the processes executor as a pool uses it: by many threads, one at a time, under the pool's lock.

A worker's death signal is bound to the *thread* that started it, so all are started by the pool's own thread, which lives as
long as they do; other threads only send to workers that are there. It knows nothing of futures.
"""

from __future__ import annotations

import contextlib
import os
import threading
from multiprocessing import process

from procflow.attempt import Attempt
from procflow.executors.payload import Payload
from procflow.executors.poller import Poller
from procflow.executors.processes import ProcessExecutor

__all__ = ["Bell", "PoolWorkers", "folder_for_objects"]


class PoolWorkers(ProcessExecutor):
    """A ``ProcessExecutor`` whose workers are started by the thread ``starter`` alone.

    ``lock`` is held by whoever calls a method; ``wait`` lets it go while it sleeps.
    """

    def __init__(self, slots: int, *, lock: threading.Lock, token: str, objects: str, log_level: int) -> None:
        super().__init__(slots, token=token, objects=objects, log_level=log_level, own_output=False)
        self.starter: int | None = None
        self._poller.close()
        self._poller = _YieldingPoller(lock)

    def began(self, key: int) -> bool:
        """Whether the attempt's code runs already: its worker was there before."""
        slot = self._running.get(key)
        return slot is not None and slot.ready

    def forsake(self) -> None:
        """In a forked child: close what belongs to the parent, touch no worker."""
        if not self._closed:
            self._closed = True
            for slot in self._all:
                slot.close()
                # Or multiprocessing would want to join it when the child exits.
                children: set[object] = getattr(process, "_children", set())
                children.discard(slot.process)
            self._poller.close()

    def _spawn(self, attempt: Attempt, payload: Payload) -> None:
        if threading.get_ident() == self.starter:
            super()._spawn(attempt, payload)
        else:
            self._waiting.put(attempt, payload)
            self._poller.wake()


class _YieldingPoller(Poller):
    """A poller that lets others at its descriptors while it sleeps, as the interpreter does with its lock."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__()
        self._lock = lock

    def handle(self, timeout: float | None, free: bool = False) -> None:
        """As ``Poller.handle``; the lock is held before and after."""
        self._lock.release()
        try:
            events = self._doze.wait(timeout, free)
        finally:
            self._lock.acquire()
        self._act(events)


class Bell:
    """Wakes the thread that waits for its descriptor.

    ``ring`` may be called by any thread at any moment, by the garbage collector too, even when the pool has long ended: the
    descriptor is closed only when nobody has the bell any more, so its number is never another's.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Readable once it was rung."""
        return self._fd

    def ring(self) -> None:
        """Wake whoever waits."""
        os.eventfd_write(self._fd, 1)

    def silence(self) -> None:
        """Not readable any more."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def __del__(self) -> None:
        os.close(self._fd)


def folder_for_objects(token: str) -> str:
    """A new private folder for large values, in memory where there is plenty of it, else among temporary files.

    Whatever happens, it is removed with the run's processes, since its name begins as ``sweep.prefix`` says.
    """
    import tempfile

    from procflow.guarding.sweep import SHM, prefix

    try:
        found = os.statvfs(SHM)
        roomy = found.f_bavail * found.f_frsize >= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except OSError:
        roomy = False
    where = SHM if roomy and os.access(SHM, os.W_OK | os.X_OK) else None
    return tempfile.mkdtemp(prefix=f"{prefix(token)}-", dir=where)
