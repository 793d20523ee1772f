"""The inline executor: one attempt at a time, in the thread that calls ``wait``.

For debugging, for tests and for steps that must live in the parent. Nothing can be stopped, and nothing else happens
while a step runs: ``wait`` overruns its deadline until the step is done. A step that raises SystemExit or
KeyboardInterrupt has failed like any other; a real Ctrl-C that arrives as KeyboardInterrupt inside a step can't be told
from that, so whoever drives this should turn SIGINT into something else.
"""

from __future__ import annotations

import os
import selectors
import time

from procflow.attempt import Attempt, Cause, Outcome
from procflow.call import StepCall
from procflow.errors import ExecutorError
from procflow.executors import capture
from procflow.executors.threads import run_here

__all__ = ["InlineExecutor"]


class InlineExecutor:
    """Runs attempts in the calling thread; see ``executors.base.Executor`` for the face.

    ``objects`` is the folder for large values, ``token`` marks the commands of the run.
    """

    name = "inline"
    slots = 1
    capabilities: frozenset[str] = frozenset()

    def __init__(self, *, objects: str | None = None, token: str | None = None, log_level: int = 20) -> None:
        self._objects = objects
        self._token = token
        self._attempt: Attempt | None = None
        self._outcomes: list[Outcome] = []
        self._selector = selectors.DefaultSelector()
        self._read_fd, self._write_fd = os.pipe()
        self._selector.register(self._read_fd, selectors.EVENT_READ)
        self._closed = False
        capture.install(log_level)

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def running(self) -> int:
        """How many attempts are out."""
        return int(self._attempt is not None)

    def fileno(self) -> int:
        """The selector's descriptor; readable while an attempt waits to be run."""
        return int(self._selector.fileno())

    def deadline(self) -> float | None:
        """No clock runs here."""
        return None

    def watch(self, fd: int) -> None:
        """From now on ``wait`` also returns, perhaps with nothing, when ``fd`` is readable; the caller empties it."""
        self._selector.register(fd, selectors.EVENT_READ)

    def unwatch(self, fd: int) -> None:
        """Undo ``watch``."""
        self._selector.unregister(fd)

    def check(self, call: StepCall) -> None:
        """Nothing has to be pickled."""

    def submit(self, attempt: Attempt) -> None:
        """Keep the attempt; the next ``wait`` runs it."""
        if self._closed:
            raise ExecutorError("the executor is closed")
        if self._attempt is not None:
            raise ExecutorError("executor inline runs one attempt at a time")
        self._attempt = attempt
        os.write(self._write_fd, b"\0")

    def kill(self, key: int, cause: Cause, grace_s: float) -> None:
        """The attempt either waits to be run or is done; it runs to its end."""

    def wait(self, until: float | None) -> list[Outcome]:
        """Run the attempt that was submitted and give its outcomes; see ``Executor.wait``."""
        attempt = self._attempt
        if attempt is None:
            if until is not None:
                self._selector.select(max(0.0, until - time.monotonic()))
            return []
        outcomes = self._outcomes
        outcome = run_here(attempt, outcomes.append, self._objects, self._token)
        outcomes.append(outcome)
        self._outcomes, self._attempt = [], None
        os.read(self._read_fd, 1)
        return outcomes

    def close(self) -> None:
        """Forget an attempt that was not run."""
        if self._closed:
            return
        self._closed = True
        self._attempt = None
        capture.uninstall()
        self._selector.close()
        os.close(self._read_fd)
        os.close(self._write_fd)
