"""Runs in processes of their own, forked from the test's so that they start at once; and what they must not leave behind."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK = "FORKED_TEST_MARK"
LONG_S = 20.0
"""More than anything here takes; a test that waits so long has found a hang."""
GONE_S = 2.0
"""What is left of a run must be gone by then."""


def soon(condition: Callable[[], Any], seconds: float = LONG_S) -> bool:
    """Whether it becomes true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.003)
    return True


def marked(mark: str) -> list[int]:
    """Living processes that were started with this mark in their environment."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                environ = Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            if wanted in environ.split(b"\0"):
                found.append(int(name))
    return found


def is_alive(pid: int) -> bool:
    """Whether it exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Forked:
    """A forked process. Everything that it starts bears its ``mark``; ``errors`` is what it wrote to stderr."""

    def __init__(self, pid: int, mark: str, folder: Path) -> None:
        self.pid = pid
        self.mark = mark
        self.folder = folder
        self.code: int | None = None

    @property
    def errors(self) -> str:
        file = self.folder / f"{self.mark}.err"
        return file.read_text() if file.exists() else ""

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = LONG_S) -> int:
        """Its exit code, negative for a signal."""
        if self.code is None:
            ended: list[int] = []

            def over() -> bool:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    ended.append(os.waitstatus_to_exitcode(status))
                return bool(pid)

            assert soon(over, seconds), f"still running after {seconds} s; it said: {self.errors}"
            self.code = ended[0]
        return self.code

    def left(self) -> list[int]:
        """What of it is alive after two seconds."""
        soon(lambda: not marked(self.mark), GONE_S)
        return marked(self.mark)


@contextmanager
def forked(function: Callable[[], int], folder: Path) -> Iterator[Forked]:
    """Run ``function`` in a fork; its value is the exit code. Whatever is left at the end is killed."""
    mark = secrets.token_hex(8)
    pid = os.fork()
    if pid == 0:
        _be_forked(function, mark, folder)
    child = Forked(pid, mark, folder)
    try:
        yield child
    finally:
        if child.code is None:
            child.send(signal.SIGKILL)
            child.wait()
        for left in marked(mark):
            os.kill(left, signal.SIGKILL)


def _be_forked(function: Callable[[], int], mark: str, folder: Path) -> None:
    code = 70
    try:
        os.environ[MARK] = mark
        out = os.open(folder / f"{mark}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDWR)
        for target, fd in ((0, null), (1, out), (2, out)):
            os.dup2(fd, target)
        sys.stdin = os.fdopen(0)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = function()
        print(f"the fork ends with {code}")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        # Whatever comes now, this process must not go on as a second test run.
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)
