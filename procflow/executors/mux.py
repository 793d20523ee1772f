"""Mux: several executors behind one face, for pipelines whose steps name their own.

It routes attempts and waits for all. A run with a single executor uses that one directly, so this costs it nothing.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Mapping

from procflow.attempt import Attempt, Cause, Outcome
from procflow.call import StepCall
from procflow.errors import ExecutorError
from procflow.executors.base import CAPABILITIES, Executor

__all__ = ["Mux"]


class Mux:
    """Executors by name; ``route`` names the one for an attempt, unless ``submit`` does.

    ``slots`` is the sum of theirs (each holds its own limit), ``capabilities`` what all of them can do.
    """

    name = "mux"

    def __init__(self, executors: Mapping[str, Executor], route: Callable[[Attempt], str] | None = None) -> None:
        if not executors:
            raise ExecutorError("no executor")
        self.executors = dict(executors)
        self._route = route
        self.slots = sum(executor.slots for executor in executors.values())
        able: frozenset[str] = frozenset(CAPABILITIES)
        for executor in executors.values():
            able &= executor.capabilities
        self.capabilities = able
        self._outcomes: list[Outcome] = []
        self._selector = selectors.DefaultSelector()
        for executor in self.executors.values():
            self._selector.register(executor.fileno(), selectors.EVENT_READ, executor)
        self._woken = False
        self._closed = False

    def __enter__(self) -> Mux:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The selector's descriptor."""
        return int(self._selector.fileno())

    def deadline(self) -> float | None:
        """The first of the executors' deadlines."""
        deadlines = [d for d in (executor.deadline() for executor in self.executors.values()) if d is not None]
        return min(deadlines, default=None)

    def watch(self, fd: int) -> None:
        """From now on ``wait`` also returns, perhaps with nothing, when ``fd`` is readable; the caller empties it."""
        self._selector.register(fd, selectors.EVENT_READ, None)

    def unwatch(self, fd: int) -> None:
        """Undo ``watch``."""
        self._selector.unregister(fd)

    def check(self, call: StepCall) -> None:
        """ExecutorError where one of the executors can't take the call."""
        for executor in self.executors.values():
            executor.check(call)

    def submit(self, attempt: Attempt, executor: str | None = None) -> None:
        """Start the attempt on the executor named, else on the one that ``route`` names."""
        if executor is None:
            if self._route is None:
                raise ExecutorError(f"no executor is named for attempt {attempt.key}")
            executor = self._route(attempt)
        chosen = self.executors.get(executor)
        if chosen is None:
            raise ExecutorError(f"there is no executor {executor!r} in this run; it has {', '.join(self.executors)}")
        chosen.submit(attempt)

    @property
    def running(self) -> int:
        """How many attempts are out, on all executors together."""
        return sum(executor.running for executor in self.executors.values())

    def kill(self, key: int, cause: Cause, grace_s: float) -> None:
        """Pass on; it means nothing to the executors that don't run the attempt."""
        for executor in self.executors.values():
            executor.kill(key, cause, grace_s)

    def wait(self, until: float | None) -> list[Outcome]:
        """Outcomes of all executors; in order of arrival for each of them. See ``Executor.wait``.

        Attempts may also be submitted to the executors themselves.
        """
        while not self._outcomes and not self._woken:
            if until is None and not self.running:
                break
            self._collect(until)
            if until is not None and time.monotonic() >= until:
                break
        self._woken = False
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Close all executors, each even where another's close fails."""
        if self._closed:
            return
        self._closed = True
        self._selector.close()
        problems = []
        for executor in self.executors.values():
            try:
                executor.close()
            except Exception as error:
                problems.append(error)
        if problems:
            raise problems[0]

    def _collect(self, until: float | None) -> None:
        deadline = self.deadline()
        if deadline is None or (until is not None and until < deadline):
            deadline = until
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready: list[Executor] = []
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._woken = True
            else:
                ready.append(key.data)
        now = time.monotonic()
        for executor in self.executors.values():
            due = executor.deadline()
            if executor in ready or (due is not None and due <= now):
                self._outcomes += executor.wait(now)
