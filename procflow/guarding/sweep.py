"""Sweep: ends every process of a run, wherever it has got to, and removes what bears the run's token.

Workers and all that they start carry ``PROCFLOW_RUN_TOKEN`` in the environment they were started with; a daemon that
forked twice and leads a session of its own still has it. Run as a script, this file is the reaper: a tiny process that
sleeps until its parent is gone, then sweeps. It imports nothing of procflow and as little as possible, because it starts
beside every run. It knows no workers, locks or records, and never touches a process without the token. A fork of it
stands in for it where it and the parent are killed at the same instant.

    stdin of the script:  "token <t>", "folder <f>" ..., and at the end of the run "done" (nothing is left) or "go" (sweep)
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HERE", "SHM", "TOKEN_NAME", "bearers", "environment", "main", "prefix", "read", "remove_left", "sweep"]

TOKEN_NAME = "PROCFLOW_RUN_TOKEN"
HERE = "-here"
"""What follows the token of a command that the parent itself has started, not one of its workers."""
SHM = "/dev/shm"
SIGKILL = 9
"""The number, since ``signal`` is slow to import."""
PAUSE_S = 0.005
CALM_MOST = 20
"""So many looks without a bearer are enough, where processes of others come and go all the time."""
TRACKER_S = 0.5
"""How long multiprocessing's resource trackers get to remove what the dead left behind; they end by themselves."""
PATIENCE_S = 30.0
"""How long the reaper goes on killing what keeps coming back."""
STAND_INS = 10
"""So many stand-ins has a reaper in all; that more are killed means that somebody does not want them."""
ENDING_S = 2.0
"""How long a parent that has hung up may take to be seen to have ended."""


def environment(token: str) -> dict[str, str]:
    """What the processes of a run have in their environment."""
    return {TOKEN_NAME: token}


def prefix(token: str) -> str:
    """What the names of a run's shared memory segments and temporary folders begin with."""
    return f"procflow-{token}"


def bearers(token: str, dark: set[int] | None = None) -> Iterator[tuple[int, bool]]:
    """Living processes with the token, without this one; with each, whether it is a resource tracker.

    One by one as they are found, because some start others while one looks. ``dark`` gets those that can't be looked into:
    they are dead or gone by now, or other users'.
    """
    mark = f"{TOKEN_NAME}={token}".encode()
    marks = {mark, mark + HERE.encode()}
    me = os.getpid()
    for name in os.listdir("/proc"):
        # A zombie has no environment any more, and those of other users can't be read.
        if not name.isdigit():
            continue
        environ = read(f"/proc/{name}/environ")
        if not environ:
            if dark is not None:
                dark.add(int(name))
        elif not marks.isdisjoint(environ.split(b"\0")) and int(name) != me:
            yield int(name), b"resource_tracker import main" in read(f"/proc/{name}/cmdline")


def sweep(token: str, limit_s: float = 2.0) -> list[int]:
    """SIGKILL every bearer of the token, again and again until none is seen twice in a row.

    Where one more process has gone dark meanwhile, it may have been a bearer that had just started another, which came too
    late to be listed: then it takes a third look, and so on. Returns who is left after ``limit_s``.
    """
    began = time.monotonic()
    calm = 0
    dark: set[int] = set()
    killed: set[int] = set()
    while True:
        waited = time.monotonic() - began
        found = set()
        before, dark = dark, set()
        for pid, tracker in bearers(token, dark):
            found.add(pid)
            if not tracker or waited > TRACKER_S:
                _kill(pid)
                killed.add(pid)
        # Some may have become children of this process.
        killed = {pid for pid in killed if not _reaped(pid)}
        calm = 0 if found else calm + 1
        if (calm >= 2 and dark <= before) or calm == CALM_MOST or waited > limit_s:
            return sorted(found)
        time.sleep(PAUSE_S if found else PAUSE_S / 5)


def remove_left(token: str, folders: tuple[str, ...] = (SHM,)) -> int:
    """Remove the run's segments and temporary folders from the folders given; how many there were."""
    count = 0
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name.startswith(prefix(token)):
                _remove(os.path.join(folder, name))
                count += 1
    return count


def _remove(path: str) -> None:
    """A file or a whole folder; never what a link points to."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            for folder, folders, files in os.walk(path, topdown=False):
                for name in files:
                    os.unlink(os.path.join(folder, name))
                for name in folders:
                    below = os.path.join(folder, name)
                    (os.unlink if os.path.islink(below) else os.rmdir)(below)
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError:
        return


def _kill(pid: int) -> None:
    try:
        os.kill(pid, SIGKILL)
    except OSError:
        return


def _reaped(pid: int) -> bool:
    """Whether nobody has to wait for the process any more (here)."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def read(path: str) -> bytes:
    """All of a file, nothing where it can't be read; by system calls alone, since sweeps read several for each process."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    data = b""
    try:
        while chunk := os.read(fd, 1 << 17):
            data += chunk
    except OSError:
        return b""
    finally:
        os.close(fd)
    return data


def main(parent_pid: int) -> None:
    """The reaper. Its signals are blocked already: whoever starts it blocks them, so that there is no moment without."""
    watch = _Watch(parent_pid)
    orders = watch.orders()
    if "done" not in orders:
        _carry_out(orders)
    watch.dismiss()


def _carry_out(orders: list[str]) -> None:
    tokens = [order[6:] for order in orders if order.startswith("token ")]
    folders = tuple(order[7:] for order in orders if order.startswith("folder "))
    for token in tokens:
        sweep(token, PATIENCE_S)
        remove_left(token, folders)


class _Watch:
    """Watches the parent, with a stand-in at its side: a fork of this process that sweeps should both be killed at once."""

    def __init__(self, parent_pid: int) -> None:
        import select

        self._poll = select.poll
        self._in, self._hup = select.POLLIN, select.POLLHUP
        self._parent_pid = parent_pid
        self._parent = os.pidfd_open(parent_pid) if _is_alive(parent_pid) else -1
        # Asked after the pidfd was opened: it may be another's by now.
        self._orphaned = os.getppid() != parent_pid
        self._data = b""
        self._stand_in = 0
        self._stand_in_fd = -1
        self._forks = 0

    def orders(self) -> list[str]:
        """What came on stdin until it said "done" or "go", or until the parent was gone, whichever comes first.

        The end of the stream alone says nothing while the parent lives: something in it may have closed all descriptors. And
        a child that it forked may hold the stream open for ever. So the pidfd decides.
        """
        os.set_blocking(0, False)
        watched = [0, self._parent]
        while not self._data.endswith((b"done\n", b"go\n")):
            ready = watched if self._orphaned else self._wait([*watched, self._stand_in_fd])
            if self._stand_in_fd in ready:
                os.close(self._stand_in_fd)
                os.waitpid(self._stand_in, 0)
                self._stand_in, self._stand_in_fd = 0, -1
            chunk = _available() if 0 in ready or self._parent in ready else b""
            self._data += chunk
            if not chunk and (self._orphaned or self._parent in ready or self._parent < 0):
                break
            if not chunk and 0 in ready:
                watched.remove(0)
            if self._data.endswith(b"\n") and not self._stand_in and self._forks < STAND_INS:
                self._fork()
        return self._lines()

    def dismiss(self) -> None:
        """End the stand-in."""
        if self._stand_in:
            _kill(self._stand_in)
            os.waitpid(self._stand_in, 0)

    def _lines(self) -> list[str]:
        return self._data.decode("utf-8", "surrogateescape").split("\n")

    def _wait(self, fds: list[int], limit_s: float | None = None, hang_up: bool = False) -> list[int]:
        """Those of the descriptors that can be read; with ``hang_up``, of stdin only its end."""
        poll = self._poll()
        for fd in fds:
            if fd >= 0:
                poll.register(fd, self._hup if hang_up and fd == 0 else self._in)
        return [fd for fd, _ in poll.poll(None if limit_s is None else limit_s * 1000)]

    def _fork(self) -> None:
        self._forks += 1
        me = os.pidfd_open(os.getpid())
        try:
            self._stand_in = os.fork()
            if not self._stand_in:
                try:
                    self._stand(me)
                finally:
                    os._exit(0)
            self._stand_in_fd = os.pidfd_open(self._stand_in)
        except OSError:
            # No more processes: the reaper does it alone.
            self._forks = STAND_INS
        finally:
            os.close(me)

    def _stand(self, reaper: int) -> None:
        """The stand-in. The reaper ends it; where that was killed, a parent that lives starts another, and hangs up here."""
        os.setpgid(0, 0)
        self._wait([reaper])
        if self._parent not in self._wait([self._parent, 0], hang_up=True):
            # A process that ends closes its files before it is seen to have ended.
            self._wait([self._parent], ENDING_S)
        if not _is_alive(self._parent_pid) or self._wait([self._parent], 0):
            _carry_out(self._lines())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _available() -> bytes:
    try:
        return os.read(0, 1 << 16)
    except BlockingIOError:
        return b""


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)
