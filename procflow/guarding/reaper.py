"""Reaper: sees to it that nothing of a run outlives it, not even when this process is killed by SIGKILL.

    this process dies  ->  the reaper process (``sweep.py`` in a session of its own) sees it and sweeps
    the reaper dies    ->  its pidfd tells, it is started anew; workers have their own death signal meanwhile
    both at once       ->  the reaper's stand-in sweeps
    a worker's daemon  ->  becomes a child of this process, is reaped here, and swept at the end

``Reaper`` is this process's side. It starts the reaper process, adopts orphans for as long as the run lasts, and sweeps
at its end. Other children of this process, which a program that uses procflow may have, are left alone: only what bears
the run's token is killed, and only what can't be anybody else's child is waited for. It knows nothing of steps.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator

from procflow.executors.family import killed
from procflow.guarding import sweep

__all__ = ["LIMIT_S", "Reaper", "new_token"]

LIMIT_S = 2.0
"""How long the sweep at the end of a run may take."""
REVIVALS = 10
"""So often is a killed reaper started anew; more often means that somebody does not want it."""
COLLECT_S = 0.2
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37


def new_token() -> str:
    """A token for a run that begins now."""
    return secrets.token_hex(8)


class Reaper:
    """Guards the processes of one run, from ``start`` to ``finish``; use it in one thread.

    ``workers`` gives the pids that somebody else waits for. ``say`` is told what the user should know. Without ``adopt``
    orphans go where they always do, and no child is waited for: a library must not change whose children they are.
    """

    def __init__(
        self,
        token: str,
        workers: Callable[[], Collection[int]] = tuple,
        say: Callable[[str], None] = lambda text: None,
        adopt: bool = True,
    ) -> None:
        self.token = token
        self._adopts = adopt
        self._workers = workers
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._writer = -1
        self._starts = 0
        self._adopted: set[int] = set()
        self._collect_at = 0.0
        self._adopting = False

    @property
    def pid(self) -> int | None:
        """The reaper process, None where there is none."""
        return self._process.pid if self._process is not None else None

    def fileno(self) -> int:
        """Readable once the reaper process has died: call ``revive``. -1 where there is none."""
        return self._pidfd

    def start(self) -> None:
        """Start the reaper process and adopt orphans from now on.

        A third of a millisecond: nothing waits for its start-up.
        """
        if not self._adopting:
            self._adopting = True
            if self._adopts:
                _adopt(+1)
        self._spawn()

    def _spawn(self) -> None:
        self._starts += 1
        reader, writer = os.pipe()
        try:
            orders = f"token {self.token}\nfolder {sweep.SHM}\nfolder {tempfile.gettempdir()}\n"
            os.write(writer, orders.encode("utf-8", "surrogateescape"))
            with _signals_blocked():
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", sweep.__file__, str(os.getpid())],
                    stdin=reader,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={name: value for name, value in os.environ.items() if not name.startswith("PROCFLOW_")},
                    start_new_session=True,
                )
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            os.close(writer)
            if self._process is not None:
                self._process.kill()
                self._process.wait(timeout=5.0)
                self._process = None
            self._say(
                f"the reaper can't be started ({error}); should this process be killed, steps' daemons may live on"
            )
            return
        finally:
            os.close(reader)
        self._writer = writer

    def dead(self) -> bool:
        """Whether the reaper process has ended though it should not have."""
        return self._process is not None and self._process.poll() is not None

    def revive(self) -> bool:
        """Start the reaper anew if it has died; True where there is another one. Its ``fileno`` has changed then."""
        if not self.dead():
            return False
        self._drop()
        if self._starts > REVIVALS:
            self._say(f"the reaper was killed {self._starts} times; the run goes on without one")
            return False
        self._spawn()
        return self._process is not None

    def collect(self, now: float | None = None) -> int:
        """Wait for orphans that have ended; how many there were.

        At most every 0.2 s, but at once where ``now`` is infinite.
        """
        now = time.monotonic() if now is None else now
        if now < self._collect_at or not self._adopts:
            return 0
        self._collect_at = now + COLLECT_S if now < math.inf else 0.0
        spared = {self.pid, *self._workers()}
        count = 0
        children = _children()
        self._adopted.intersection_update(children)
        for pid in tuple(killed):
            if pid in children:
                self._adopted.add(pid)
            if pid in children or not os.path.exists(f"/proc/{pid}"):
                killed.discard(pid)
        for pid in children:
            if pid in spared:
                continue
            if pid not in self._adopted and not _is_orphan(pid, self.token):
                continue
            self._adopted.add(pid)
            try:
                if os.waitpid(pid, os.WNOHANG)[0] != pid:
                    continue
            except ChildProcessError:
                pass
            self._adopted.discard(pid)
            count += 1
        return count

    def finish(self, limit_s: float = LIMIT_S) -> list[int]:
        """Sweep, and send the reaper home; who could not be killed. Call it when all workers have ended; idempotent."""
        if not self._adopting:
            return []
        left = sweep.sweep(self.token, limit_s)
        sweep.remove_left(self.token, (sweep.SHM, tempfile.gettempdir()))
        until = time.monotonic() + COLLECT_S
        while True:
            self.collect(math.inf)
            if not self._adopted or time.monotonic() > until:
                break
            time.sleep(0.001)
        if left:
            self._say(f"processes {', '.join(map(str, left))} can't be killed: they hang in the kernel")
        self._adopting = False
        if self._adopts:
            _adopt(-1)
        self._dismiss(done=not left)
        return left

    def _dismiss(self, done: bool) -> None:
        """With something left, the reaper goes on trying by itself."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):
            os.write(self._writer, b"done\n" if done else b"go\n")
        if done:
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(1.0)
        else:
            process.returncode = 0
        self._drop()

    def _drop(self) -> None:
        for fd in (self._pidfd, self._writer):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._writer = -1
        self._process = None


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A child started here has every signal blocked that can be, from its first instant on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_lock = threading.Lock()
_adopters = 0
_adopted_before = 0


def _adopt(change: int) -> None:
    """Orphans below this process become its children while any run wants it; then it is as it was before."""
    global _adopters, _adopted_before
    libc = ctypes.CDLL(None)
    with _lock:
        if _adopters == 0 and change > 0:
            was = ctypes.c_int(0)
            libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0)
            _adopted_before = was.value
        _adopters += change
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1 if _adopters else _adopted_before, 0, 0, 0)


def _children() -> list[int]:
    """Children of this process's main thread, who is the one that orphans are given to."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children", "rb", buffering=0) as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        # A kernel without that file.
        return [int(n) for n in os.listdir("/proc") if n.isdigit() and _stat(int(n))[1:2] == [str(me).encode()]]


def _is_orphan(pid: int, token: str) -> bool:
    """Whether a child was not started by this process but left to it.

    What lives shows the token. What is dead shows its session: a child that we started is in ours or leads its own,
    while one in any other session was born below a worker.
    """
    mark = f"{sweep.TOKEN_NAME}={token}".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            if mark in file.read().split(b"\0"):
                return True
    except OSError:
        pass
    stat = _stat(pid)
    return len(stat) > 3 and stat[0] == b"Z" and int(stat[3]) not in (pid, os.getsid(0))


def _stat(pid: int) -> list[bytes]:
    """State, parent, group and session of a process, and what follows; empty where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read()
    except OSError:
        return []
    # The name may hold blanks and brackets; what follows the last bracket is regular.
    return text[text.rfind(b")") + 2 :].split()
