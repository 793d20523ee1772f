"""ProcessPool: the standard executor whose tasks can be timed out, held to their memory, and die alone.

    with ProcessPool() as pool:
        future = pool.submit(pow, 2, 10)
        strict = pool.options(timeout="90s", memory="2GB")
        results = list(strict.map(work, items))

What ``concurrent.futures`` says of executors holds. Beyond that: functions may be lambdas, closures or those of ``__main__``
(no ``if __name__`` guard is needed), a worker that dies costs the task it ran and no other, and large arrays are mapped from
files instead of copied. This file is the face; ``driver.py`` does the work.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any

from procflow.pool.driver import Driver
from procflow.pool.task import GRACE_S, Limits, count, limits
from procflow.steps.pooled import Pickled, chunked
from procflow.values import objects

__all__ = ["ProcessPool"]

_NO_LIMITS = Limits()


class _Maps(Executor):
    """``map`` on top of ``submit``, for the pool and for the pool with options."""

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = 1,
    ) -> Iterator[Any]:
        """The function's results for each tuple of the iterables, in order, as they are asked for.

        ``timeout`` is in seconds from this call, for all of them; TimeoutError by the iterator then. ``chunksize`` items are
        one task, which pays off where an item takes less than a millisecond; None makes four chunks for each worker.
        """
        size = None if chunksize is None else _whole("chunksize", chunksize)
        function = _pickled_once(fn)
        if size == 1:
            return super().map(function, *iterables, timeout=timeout)
        items = list(zip(*iterables, strict=False))
        if size is None:
            size = max(1, -(-len(items) // (4 * self._max_workers)))
        chunks = [items[at : at + size] for at in range(0, len(items), size)]
        return _joined(super().map(chunked(function), chunks, timeout=timeout))

    _max_workers: int


class ProcessPool(_Maps):
    """A pool of ``max_workers`` worker processes (default: the usable cores), started as they are needed.

    ``initializer(*initargs)`` is called in each worker before its first task; where it fails, the pool is broken
    (``PoolBroken``, a ``BrokenExecutor``). Usable from several threads. A pool that is not shut down ends when nobody holds
    it any more, or at the interpreter's end, once its tasks are done. Linux only.

    A future raises what its task raised, or ``TaskLost`` where its worker died (``TaskTimedOut``, ``TaskOutOfMemory`` where
    it was stopped by a limit of ``options``). Arrays arrive as copies that may be written to, though large ones are
    shared until then. ``fork`` gives a child no use of the pool.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        cores = _cores()
        self._max_workers = cores if max_workers is None else _whole("max_workers", max_workers)
        self._cpus = max(1, cores // self._max_workers)
        self._initializer = None
        if initializer is not None:
            self._initializer = _dumped("initializer", (initializer, tuple(initargs)))
        self._driver: Driver | None = None
        self._shut = False
        self._starting = _lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future for ``fn(*args, **kwargs)``; what can't be pickled is told by the future."""
        return self._submit(fn, args, kwargs, _NO_LIMITS)

    def options(
        self,
        *,
        timeout: float | str | None = None,
        memory: int | str | None = None,
        cpus: int | None = None,
        grace: float | str = GRACE_S,
    ) -> Executor:
        """The same pool with limits for each task that is given to it this way.

        ``timeout``: seconds or ``"90s"`` from the moment the task begins. ``memory``: bytes or ``"500MB"`` that its worker,
        with all it starts, may hold. ``cpus``: threads for BLAS and OpenMP. ``grace``: between SIGTERM and SIGKILL.
        """
        return _WithLimits(self, limits(timeout, memory, cpus, grace))

    def abort(self) -> None:
        """Cancel what is pending and stop what runs (``TaskLost``); the pool takes new tasks."""
        if self._driver is not None:
            self._driver.abort()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks and end when those there are have ended; ``wait`` for that. Idempotent."""
        with self._starting:
            self._shut = True
            driver = self._driver
        if driver is None:
            return
        driver.leave()
        if cancel_futures:
            driver.cancel_pending()
            driver.leave()
        if wait:
            driver.wait_end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """``shutdown``; after Ctrl-C what runs is stopped, since workers do not hear of it by themselves."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.abort()
        self.shutdown(wait=True)
        return None

    def __reduce__(self) -> Any:
        raise TypeError("a ProcessPool can't be pickled: a task that needs one makes its own")

    def _submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], by: Limits) -> Future[Any]:
        driver = self._driver
        if driver is None:
            driver = self._start()
        return driver.submit(fn, args, kwargs, by)

    def _start(self) -> Driver:
        with self._starting:
            if self._shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._driver is None:
                driver = Driver(self._max_workers, self._cpus, self._initializer)
                # At exit the driver sees to its own end.
                weakref.finalize(self, driver.leave).atexit = False
                self._driver = driver
            return self._driver


class _WithLimits(_Maps):
    """A pool with limits for the tasks that pass here; it shares all else with the pool."""

    def __init__(self, pool: ProcessPool, by: Limits) -> None:
        self._pool = pool
        self._limits = by
        self._max_workers = pool._max_workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool._submit(fn, args, kwargs, self._limits)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


def _joined(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    """The members of all chunks; none of them is kept."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _pickled_once(fn: Callable[..., Any]) -> Any:
    """The function itself where it is pickled by its name, else its pickle, made once for all tasks of a ``map``."""
    try:
        data = pickle.dumps(fn, objects.PROTOCOL)
        if b"__main__" not in data and len(data) < 1000:
            return fn
    except Exception:
        pass
    try:
        return Pickled(objects.dumps(fn))
    except Exception:
        # Each future tells why.
        return fn


def _dumped(name: str, value: Any) -> bytes:
    try:
        return objects.dumps(value)
    except Exception:
        raise pickle.PicklingError(f"{objects.explain(value, name)} (function is [0], arguments are [1])") from None


def _whole(name: str, value: Any) -> int:
    try:
        return count(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} {error}") from None


def _cores() -> int:
    from procflow.machine.resources import probe

    return probe().cpus


def _lock() -> Any:
    import threading

    return threading.Lock()
