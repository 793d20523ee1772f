"""Lease: a start waits until nothing of the pipeline's last run is alive.

The run lock dies with the parent, but a worker may outlive it by some moments, or for long where its death signal was
lost. So every worker inherits a descriptor of the pipeline's lease file with a shared lock on it, which lasts as long as
the last process that has it. A start takes the lease for itself first, ending what is left of the last run by its token,
which the file names. The file holds a token only while a run is on, so a start after a clean end looks for nothing.

Whoever calls holds the run lock already. Nothing here waits without a deadline.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import tempfile
import time
from pathlib import Path

from procflow.errors import LockHeld, StoreError
from procflow.guarding import sweep
from procflow.storing.own_files import open_own
from procflow.storing.state_folder import StateFolder, safe_id, try_flock
from procflow.units import duration_text

__all__ = ["WAIT_S", "Lease"]

WAIT_S = 5.0
"""How long a start waits for the remains of the last run to end."""
PAUSE_S = 0.01
_TOKEN = re.compile(rb"[0-9a-f]{8,64}")


class Lease:
    """The lease of one pipeline; ``name`` is that of its run lock."""

    def __init__(self, folder: StateFolder, name: str) -> None:
        # No lock name begins with a dot.
        self.path: Path = folder.path / "locks" / f".{safe_id(name, 'lock name')}.lease"
        self._fd: int | None = None

    def fileno(self) -> int:
        """The descriptor for workers to inherit."""
        assert self._fd is not None
        return self._fd

    def take(self, token: str, wait_s: float = WAIT_S) -> int:
        """End what is left of the last run, then hold the lease for the run with this token; how many had to be killed.

        LockHeld names the processes that could not be ended.
        """
        fd = -1
        try:
            fd = open_own(self.path, os.O_RDWR | os.O_CREAT)
            killed = self._clear(fd, wait_s)
            os.ftruncate(fd, 0)
            os.pwrite(fd, token.encode(), 0)
            # Workers get one that can't be written, since a step may write to any descriptor.
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            fcntl.flock(fd, fcntl.LOCK_UN)
            fcntl.flock(self._fd, fcntl.LOCK_SH)
        except OSError as error:
            self.release(clean=False)
            raise StoreError(f"{self.path}: can't be used: {error.strerror or error}") from error
        finally:
            if fd >= 0:
                os.close(fd)
        return killed

    def _clear(self, fd: int, wait_s: float) -> int:
        """Take the lock for this process alone."""
        last = os.pread(fd, 64, 0)
        token = last.decode() if _TOKEN.fullmatch(last) else None
        killed = 0
        if token is not None:
            killed = sum(1 for _ in sweep.bearers(token))
            sweep.sweep(token, wait_s)
            sweep.remove_left(token, (sweep.SHM, tempfile.gettempdir()))
        until = time.monotonic() + wait_s
        while not try_flock(fd, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise LockHeld(self._held_text(wait_s))
            time.sleep(PAUSE_S)
        return killed

    def _held_text(self, wait_s: float) -> str:
        pids = self.holders()
        who = f"processes {', '.join(map(str, pids))}" if pids else "processes that can't be seen from here"
        return (
            f"workers of the last run are still alive after {duration_text(wait_s)} and SIGKILL: {who}; "
            "end them, then start again"
        )

    def holders(self) -> list[int]:
        """Processes that have the file open, as far as they may be looked at."""
        try:
            wanted = self.path.stat()
        except OSError:
            return []
        found = []
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                for fd in os.listdir(f"/proc/{name}/fd"):
                    try:
                        there = os.stat(f"/proc/{name}/fd/{fd}")
                    except OSError as error:
                        if error.errno == errno.EACCES:
                            raise
                        continue
                    if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
                        found.append(int(name))
                        break
        return sorted(found)

    def release(self, clean: bool) -> None:
        """Let go; ``clean`` says that no process of the run is left. Idempotent."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        if clean:
            with contextlib.suppress(OSError):
                os.truncate(self.path, 0)
                # By name, since a child that this process forked without exec may have a copy.
                fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)
