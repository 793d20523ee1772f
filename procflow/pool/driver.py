"""Driver: the one thread of a pool. It starts workers, hands tasks to them, watches clocks and memory, ends futures.

    submit (any thread)      pending ─► an idle worker takes it at once, without this thread
    driver                   outcome arrives ─► next task to the worker ─► result opened, future set
    end                      shutdown, the pool garbage-collected, or the interpreter ends: once nothing is pending, all is closed

Executor and queues are touched under ``lock`` only; user code (opening results, callbacks of futures, handlers of ``logging``)
never runs under it. A thread that finds the lock taken, were it by itself (a finalizer), leaves its task in ``pending`` and
wakes the driver. The driver knows its pool not at all, so that a pool that nobody holds any more can end.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from procflow.attempt import Attempt, Failed, Lost, Outcome, Progressed, Started, Succeeded
from procflow.call import StepCall
from procflow.errors import ExecutorError
from procflow.guarding.reaper import Reaper, new_token
from procflow.machine.memory import MemoryWatch
from procflow.pool import alive
from procflow.pool.endings import PoolBroken, lost_error, raised_error
from procflow.pool.records import Records
from procflow.pool.task import Limits, Task
from procflow.pool.workers import Bell, PoolWorkers, folder_for_objects
from procflow.ref import Ref, Stored
from procflow.steps.pooled import RESULT, TASK
from procflow.units import duration_text
from procflow.values import objects
from procflow.values.object_files import ObjectFolder, make_folder
from procflow.values.private import unpack_private

__all__ = ["Driver"]

log = logging.getLogger("procflow.pool")

Ended = tuple[Task, Outcome]
ABORT_GRACE_S = 0.5
IDLE_S = 3600.0
JOIN_S = 60.0


class Driver:
    """What keeps a pool's tasks going; made and started at the pool's first task."""

    def __init__(self, slots: int, cpus: int, initializer: bytes | None) -> None:
        self.slots = slots
        self.cpus = cpus
        self.closing = False
        self.ended = False
        self.broken: str | None = None
        self.forsaken = False
        self._lock = threading.Lock()
        self._bell = Bell()
        self._keys = itertools.count(1)
        self._pending: deque[Task] = deque()
        self._unneeded: deque[Ref] = deque()
        self._doomed: set[int] = set()
        self._running: dict[int, Task] = {}
        self._has_initializer = initializer is not None
        options = {} if initializer is None else {"initializer": initializer}
        self._call = StepCall("pooled", "pool", "task", outputs=(RESULT,), options=options)
        self._records = Records()
        token = new_token()
        path = folder_for_objects(token)
        try:
            self._folder: ObjectFolder = make_folder(path)
            level = logging.getLogger().getEffectiveLevel()
            self._workers = PoolWorkers(slots, lock=self._lock, token=token, objects=path, log_level=level)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        self._memory = MemoryWatch([self._workers], None)
        self._reaper = Reaper(token, self._workers.workers, log.warning, adopt=False)
        self._thread = threading.Thread(target=self._drive, name=f"procflow-pool-{token[:6]}", daemon=True)
        alive.add(self)
        self._thread.start()

    # What other threads call

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any], limits: Limits
    ) -> Future[Any]:
        """A future for the call; RuntimeError after the end, ``PoolBroken`` after a break."""
        self._refuse()
        future: Future[Any] = Future()
        name = getattr(function, "__qualname__", None) or type(function).__qualname__
        try:
            ref = self._pack((function, args, keywords))
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        task = Task(next(self._keys), future, ref, name, limits)
        self._pending.append(task)
        if self._lock.acquire(blocking=False):
            try:
                self._dispatch()
            finally:
                self._lock.release()
        else:
            self._bell.ring()
        if self.ended:
            self._take_back(task)
        return future

    def _refuse(self) -> None:
        if self.forsaken:
            raise RuntimeError("this pool belongs to the process that this one was forked from; make a new one here")
        if self.broken is not None:
            raise PoolBroken(self.broken)
        if self.closing:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _pack(self, value: tuple[Any, ...]) -> Ref:
        import pickle

        before = objects.FOLDER.set(self._folder.path)
        try:
            return objects.pack(value, "task")
        except objects.PackError as error:
            raise pickle.PicklingError(f"{error} (function is task[0], arguments are task[1] and task[2])") from None
        finally:
            objects.FOLDER.reset(before)

    def _take_back(self, task: Task) -> None:
        """The driver ended while the task was handed in: it is refused here, or was refused there."""
        with contextlib.suppress(ValueError):
            self._pending.remove(task)
            self._refuse()

    def leave(self) -> None:
        """End once nothing is pending. Takes no lock and never waits: the garbage collector calls it, too."""
        if not self.forsaken:
            self.closing = True
            self._bell.ring()

    def cancel_pending(self) -> None:
        """Cancel every task that no worker has yet."""
        with contextlib.suppress(IndexError):
            while True:
                task = self._pending.popleft()
                task.future.cancel()
                task.future.set_running_or_notify_cancel()
                self._unneeded.append(task.ref)

    def abort(self) -> None:
        """Cancel what is pending and stop what runs at this moment; the pool goes on, and what comes next is not meant."""
        if not self.forsaken:
            with self._lock:
                self._doomed.update(self._running)
            self.cancel_pending()
            self._bell.ring()

    def wait_end(self) -> None:
        """Wait until the driver has ended; not in itself, where a callback may have asked for it."""
        if not self.forsaken and threading.current_thread() is not self._thread:
            # As long as tasks take: those that have a timeout are stopped by it, others are waited for.
            while self._thread.is_alive():
                self._thread.join(JOIN_S)

    def forsake(self) -> None:
        """In a forked child, which has no such thread."""
        self.forsaken = True
        self._workers.forsake()

    # What the driver's thread does

    def _drive(self) -> None:
        workers, lock = self._workers, self._lock
        workers.starter = threading.get_ident()
        self._reaper.start()
        lock.acquire()
        try:
            workers.watch(self._bell.fileno())
            self._watch_reaper()
            while not self._over():
                arrived = workers.wait(self._deadline())
                ended = self._note(arrived) if arrived else self._woken()
                if self._running or self._doomed:
                    self._watch_clocks()
                if self._pending:
                    self._dispatch()
                if ended or self._unneeded or self._records.waiting:
                    arrived.clear()
                    lock.release()
                    try:
                        self._tell(ended)
                    finally:
                        lock.acquire()
        except ExecutorError as error:
            self._break(str(error))
        except BaseException as error:
            self._break(f"the pool itself failed: {type(error).__name__}: {error}")
            log.exception("the pool itself failed: please report it")
        finally:
            lock.release()
            self._end()

    def _over(self) -> bool:
        return self.broken is not None or (self.closing and not self._pending and not self._running)

    def _watch_reaper(self) -> None:
        if self._reaper.fileno() >= 0:
            self._workers.watch(self._reaper.fileno())

    def _woken(self) -> list[Ended]:
        """Nothing came from the workers: the bell was rung, or the reaper has died and gets a successor."""
        self._bell.silence()
        if self._reaper.dead():
            self._workers.unwatch(self._reaper.fileno())
            self._reaper.revive()
            self._watch_reaper()
        return []

    def _tell(self, ended: list[Ended]) -> None:
        """What runs user code, without the lock."""
        self._records.emit()
        while ended:
            self._settle(*ended.pop(0))
        while self._unneeded:
            self._free(self._unneeded.popleft())

    def _deadline(self) -> float:
        """When there is something to do even if nothing arrives."""
        clocks = [task.deadline for task in self._running.values() if task.deadline is not None]
        if self._running and self._memory.due < float("inf"):
            clocks.append(self._memory.due)
        return min(clocks, default=time.monotonic() + IDLE_S)

    def _dispatch(self) -> None:
        """Give pending tasks to workers, in order."""
        pending, workers = self._pending, self._workers
        while workers.running < self.slots and self.broken is None and not self.ended:
            try:
                task = pending.popleft()
            except IndexError:
                break
            if not task.future.set_running_or_notify_cancel():
                self._unneeded.append(task.ref)
                continue
            self._running[task.key] = task
            limits = task.limits
            workers.submit(
                Attempt(
                    task.key,
                    self._call,
                    values={TASK: task.ref},
                    cpus=limits.cpus or self.cpus,
                    memory_bytes=limits.memory_bytes,
                    log=self._records,
                )
            )
            if limits.timeout_s is not None and workers.began(task.key):
                task.deadline = time.monotonic() + limits.timeout_s
            self._memory.expect(limits.memory_bytes)
            if limits.timeout_s is not None or limits.memory_bytes is not None:
                # This thread sleeps by the clocks it knew.
                self._bell.ring()

    def _note(self, outcomes: list[Outcome]) -> list[Ended]:
        """What happened; the tasks that have ended, with how."""
        ended: list[Ended] = []
        for outcome in outcomes:
            task = self._running.get(outcome.key)
            if task is None:
                continue
            if isinstance(outcome, (Started, Progressed)):
                if isinstance(outcome, Started):
                    task.fresh = self._has_initializer
                    self._memory.expect(task.limits.memory_bytes)
                elif not task.fresh:
                    continue
                else:
                    task.fresh = False
                if task.limits.timeout_s is not None:
                    task.deadline = time.monotonic() + task.limits.timeout_s
                continue
            del self._running[outcome.key]
            ended.append((task, outcome))
            self._check_initializer(task, outcome)
        return ended

    def _check_initializer(self, task: Task, outcome: Outcome) -> None:
        if not task.fresh:
            return
        if isinstance(outcome, Failed) and outcome.failure.type == "InitializerFailed":
            failure = outcome.failure
            self.broken = f"the initializer failed in a new worker: {failure.message}\n{failure.traceback}".rstrip()
        elif isinstance(outcome, Lost) and outcome.failure.cause == "crash":
            self.broken = f"a new worker died in the initializer: {outcome.failure.message}"

    def _watch_clocks(self) -> None:
        now = time.monotonic()
        while self._doomed:
            self._workers.kill(self._doomed.pop(), "cancelled", ABORT_GRACE_S)
        for task in self._running.values():
            if task.deadline is not None and task.deadline <= now:
                task.deadline = None
                self._workers.kill(task.key, "timeout", task.limits.grace_s)
        if not self._running or self._memory.due > now:
            return
        for key, used in self._memory.measure().rss_bytes.items():
            over = self._running.get(key)
            if over is not None and over.limits.memory_bytes is not None and used > over.limits.memory_bytes:
                self._workers.kill(key, "oom", 0.0)

    def _settle(self, task: Task, outcome: Outcome) -> None:
        """Give the future what became of it, and free the files of the task."""
        future, result = task.future, None
        error: BaseException | None = None
        if isinstance(outcome, Succeeded):
            ref = outcome.outputs[RESULT]
            try:
                result = unpack_private(ref)
            except BaseException as problem:
                error = problem
            self._free(ref)
        elif self.broken is not None:
            error = PoolBroken(self.broken)
        elif isinstance(outcome, Failed):
            error = raised_error(outcome.failure)
        else:
            assert isinstance(outcome, Lost)
            timeout_s = task.limits.timeout_s
            error = lost_error(task.name, outcome.failure, duration_text(timeout_s) if timeout_s else "")
        self._free(task.ref)
        _finish(future, result, error)

    def _free(self, ref: Ref) -> None:
        if isinstance(ref, Stored):
            self._folder.free(ref)

    def _break(self, why: str) -> None:
        if self.broken is None:
            self.broken = why

    def _end(self) -> None:
        """Close all; whatever is still out fails."""
        with self._lock:
            self.closing = self.ended = True
            left = [*self._running.values()]
            self._running.clear()
        with contextlib.suppress(IndexError):
            while True:
                left.append(self._pending.popleft())
        for task in left:
            if task.future.running() or task.future.set_running_or_notify_cancel():
                broken = self.broken is not None
                _finish(
                    task.future, None, PoolBroken(self.broken) if broken else RuntimeError("the pool was shut down")
                )
        with self._lock, contextlib.suppress(Exception):
            self._workers.close()
        self._records.emit()
        with contextlib.suppress(Exception):
            self._reaper.finish()
        shutil.rmtree(self._folder.path, ignore_errors=True)
        alive.discard(self)


def _finish(future: Future[Any], result: Any, error: BaseException | None) -> None:
    try:
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
    except BaseException:
        # A callback that ends the interpreter, or a future that somebody else has set: no other task's business.
        log.exception("a future could not be given its result")
