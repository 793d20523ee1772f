"""The threads executor: attempts run in daemon threads of this process.

For steps that wait or release the GIL, for values that can't be pickled on their way in, and to compare with processes.
A thread can't be stopped: ``kill`` lets the attempt run on and its real outcome is reported. Outcomes wake the loop
through a pipe. What C code writes to descriptor 1 is not captured here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from procflow.attempt import Attempt, Cause, Failed, Outcome, Progressed, Skipped, Started, Succeeded
from procflow.call import StepCall
from procflow.errors import ExecutorError
from procflow.executors import capture
from procflow.failure import failure_from
from procflow.guarding import here
from procflow.values import objects
from procflow.working.perform import perform

__all__ = ["ThreadExecutor", "run_here"]

CLOSE_S = 1.0


class ThreadExecutor:
    """Runs up to ``slots`` attempts at a time in threads; see ``executors.base.Executor`` for the face.

    ``run_id`` goes into the threads' names, ``objects`` is the folder for large values, ``token`` marks the
    commands of the run. Logs are written to by the thread that runs the attempt.
    """

    name = "threads"
    capabilities: frozenset[str] = frozenset()

    def __init__(
        self,
        slots: int,
        *,
        run_id: str = "",
        objects: str | None = None,
        token: str | None = None,
        log_level: int = 20,
    ) -> None:
        if slots < 1:
            raise ExecutorError(f"executor threads needs at least 1 slot, not {slots}")
        self.slots = slots
        self._name = f"procflow-{run_id}" if run_id else "procflow"
        self._objects = objects
        self._token = token
        self._todo: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        self._done: deque[Outcome] = deque()
        self._running: dict[int, Attempt] = {}
        self._threads: list[threading.Thread] = []
        self._selector = selectors.DefaultSelector()
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._selector.register(self._read_fd, selectors.EVENT_READ)
        self._write_lock = threading.Lock()
        self._woken = False
        self._closed = False
        capture.install(log_level)

    def __enter__(self) -> ThreadExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def running(self) -> int:
        """How many attempts are out."""
        return len(self._running)

    def fileno(self) -> int:
        """The selector's descriptor."""
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
        """Nothing has to be pickled on its way to a thread."""

    def submit(self, attempt: Attempt) -> None:
        """Hand the attempt to a thread; a new one is started while there are fewer than attempts."""
        if self._closed:
            raise ExecutorError("the executor is closed")
        if len(self._running) >= self.slots:
            raise ExecutorError(f"more than {self.slots} attempts at a time")
        self._running[attempt.key] = attempt
        if len(self._threads) < len(self._running):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads) + 1}", daemon=True)
            self._threads.append(thread)
            try:
                thread.start()
            except RuntimeError as error:
                self._threads.remove(thread)
                del self._running[attempt.key]
                raise ExecutorError(f"no thread can be started: {error}; use fewer workers") from error
        self._todo.put(attempt)

    def kill(self, key: int, cause: Cause, grace_s: float) -> None:
        """A thread can't be stopped; the attempt runs on, unless it waits for a source that can be told to give up."""
        stopping = sys.modules.get("procflow.sources.stopping")
        if stopping is not None and key in self._running:
            stopping.stop(self._running[key].run_id, key)

    def wait(self, until: float | None) -> list[Outcome]:
        """Outcomes in order of arrival; see ``Executor.wait``."""
        while not self._done and not self._woken:
            if until is None and not self._running:
                break
            timeout = None if until is None else max(0.0, until - time.monotonic())
            self._select(timeout)
            if until is not None and time.monotonic() >= until:
                break
        self._woken = False
        outcomes: list[Outcome] = []
        while self._done:
            outcome = self._done.popleft()
            if type(outcome) is not Progressed and type(outcome) is not Started:
                del self._running[outcome.key]
            outcomes.append(outcome)
        if outcomes:
            self._empty_pipe()
        return outcomes

    def close(self) -> None:
        """Let idle threads end; one that is stuck is left behind as a daemon, and what it still does is dropped."""
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._todo.put(None)
        until = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        capture.uninstall()
        with self._write_lock:
            self._selector.close()
            os.close(self._read_fd)
            os.close(self._write_fd)
            self._write_fd = -1
        self._done.clear()
        self._running.clear()

    def _select(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            if key.fd == self._read_fd:
                self._empty_pipe()
            else:
                self._woken = True

    def _empty_pipe(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, 4096)
        # A thread may have reported between the last look and the read, so that its wake-up is lost: look again.
        if self._done:
            self._wake()

    def _work(self) -> None:
        while (attempt := self._todo.get()) is not None:
            wall, busy = time.perf_counter(), time.process_time()
            outcome = run_here(attempt, self._report, self._objects, self._token)
            self._report(_alone(outcome, time.perf_counter() - wall, time.process_time() - busy))

    def _report(self, outcome: Outcome) -> None:
        self._done.append(outcome)
        self._wake()

    def _wake(self) -> None:
        with self._write_lock:
            if self._write_fd >= 0:
                # A full pipe is readable, which is all that is wanted.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._write_fd, b"\0")


def _alone(outcome: Succeeded | Skipped | Failed, wall_s: float, process_cpu_s: float) -> Succeeded | Skipped | Failed:
    """The outcome with the time that the attempt would have taken alone.

    While the process as a whole kept a core busy, an attempt that did not compute waited for the interpreter's lock;
    while the process was idle, it waited for something of its own.
    """
    usage = outcome.usage
    if usage.wall_s <= 0 or wall_s <= 0:
        return outcome
    idle = 1 - min(1.0, process_cpu_s / wall_s)
    alone_s = usage.cpu_s + max(0.0, usage.wall_s - usage.cpu_s) * idle
    return replace(outcome, usage=replace(usage, alone_s=alone_s))


def run_here(
    attempt: Attempt, report: Callable[[Progressed], None], folder: str | None = None, token: str | None = None
) -> Succeeded | Skipped | Failed:
    """Run an attempt in this thread with its output in its log, which is closed before the outcome is given.

    ``folder`` is where large values are stored, ``token`` that of the run.
    """
    log = attempt.its_log()
    before, mark = objects.FOLDER.set(folder), here.TOKEN.set(token or "")
    try:
        with capture.capture(log):
            return perform(
                attempt.call,
                attempt.values,
                items=attempt.items,
                number=attempt.number,
                run_id=attempt.run_id,
                key=attempt.key,
                report_each=attempt.report_each,
                send=report,
                labels=attempt.labels,
            )
    except BaseException as error:
        return Failed(attempt.key, failure_from(error))
    finally:
        here.TOKEN.reset(mark)
        objects.FOLDER.reset(before)
        if log is not None:
            log.close()
