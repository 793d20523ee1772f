"""Endings: how a task of a pool ended badly, as the exception that its future raises.

    TaskLost            its worker died (signal or exit code), or could not be talked to any more
    ├── TaskTimedOut    stopped at its ``timeout``          also a TimeoutError
    └── TaskOutOfMemory stopped over its ``memory``         also a MemoryError
    TaskFailed          it raised what can't be pickled; otherwise the future raises what the task raised
    PoolBroken          no worker can be made ready: the initializer failed, the system refuses; ends the pool

This file makes exceptions; it never decides whether anything goes on.
"""

from __future__ import annotations

import pickle
from concurrent.futures import BrokenExecutor

from procflow.attempt import Failure
from procflow.errors import ProcflowError

__all__ = ["PoolBroken", "TaskFailed", "TaskLost", "TaskOutOfMemory", "TaskTimedOut", "lost_error", "raised_error"]


class TaskLost(ProcflowError):
    """The worker of a task is gone, and with it the task alone; the pool goes on with a new worker.

    ``cause`` is as in ``procflow.attempt.Cause``; ``signal`` or ``worker_exit_code`` say how the worker ended and
    ``peak_rss_bytes`` what it held at most, where that is known.
    """

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message, failure)
        self.message = message
        self.failure = failure
        self.cause = failure.cause
        self.signal = failure.signal
        self.worker_exit_code = failure.exit_code
        self.peak_rss_bytes = failure.peak_rss_bytes

    def __str__(self) -> str:
        return self.message


class TaskTimedOut(TaskLost, TimeoutError):
    """A task ran into its ``timeout`` and was stopped with its worker."""


class TaskOutOfMemory(TaskLost, MemoryError):
    """A task held more than its ``memory``, or the kernel had none left, and it was stopped with its worker."""


class TaskFailed(ProcflowError):
    """A task raised something that can't be pickled and rebuilt; ``type`` is its name, ``traceback`` its text."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message, failure)
        self.message = message
        self.type = failure.type
        self.traceback = failure.traceback

    def __str__(self) -> str:
        return self.message


class PoolBroken(ProcflowError, BrokenExecutor):
    """The pool can't run tasks any more; the message says why."""


class _InWorker(Exception):
    """The cause of what a task raised: where in the worker it was raised."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}\n"""'


def raised_error(failure: Failure) -> BaseException:
    """The exception that the task raised, with its traceback in the worker as its cause."""
    error: BaseException = TaskFailed(f"{failure.type}: {failure.message}", failure)
    if failure.exception is not None:
        try:
            found = pickle.loads(failure.exception)
        except BaseException as problem:
            error.__context__ = problem
        else:
            error = found if isinstance(found, BaseException) else error
    error.__cause__ = _InWorker(failure.traceback)
    return error


def lost_error(name: str, failure: Failure, timeout_text: str = "") -> TaskLost:
    """The exception for a task whose worker is gone; ``name`` is that of its function."""
    kind = {"timeout": TaskTimedOut, "oom": TaskOutOfMemory}.get(failure.cause, TaskLost)
    after = f" (timeout {timeout_text})" if failure.cause == "timeout" and timeout_text else ""
    return kind(f"{name}: {failure.message}{after}", failure)
