"""Joblib backend: ``joblib.Parallel`` (and scikit-learn with it) on a ``ProcessPool``.

    from procflow.pool.joblib_backend import register

    register()
    with joblib.parallel_config(backend="procflow", n_jobs=4, timeout="10m"):
        search.fit(X, y)

Workers live as long as the backend, so that one ``Parallel`` after the other finds them warm. Where a call fails, what runs is
stopped. This file adapts one face to another and nothing else.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

from procflow.pool.process_pool import ProcessPool

try:
    import joblib
    from joblib._parallel_backends import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
    )
except ImportError as error:
    raise ImportError(f"procflow.pool.joblib_backend needs joblib: pip install joblib ({error})") from error

__all__ = ["ProcflowBackend", "register"]


class ProcflowBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """What joblib asks of a backend. ``pool`` is used instead of a pool of its own, and then not shut down.

    ``timeout`` and ``memory`` hold for each batch of calls, as in ``ProcessPool.options``.
    """

    supports_retrieve_callback = True

    def __init__(
        self,
        nesting_level: int | None = None,
        *,
        pool: ProcessPool | None = None,
        timeout: float | str | None = None,
        memory: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, **kwargs)
        self._given = pool
        self._own: ProcessPool | None = None
        self._limits: dict[str, Any] = {"timeout": timeout, "memory": memory}
        self._target: Executor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls run at a time; -1 is every core, or every worker of the pool that was given."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        most: int = self._given._max_workers if self._given is not None else joblib.cpu_count()
        return max(1, most + 1 + n_jobs) if n_jobs < 0 else n_jobs

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Get ready for one ``Parallel``; joblib runs it in this process where one job is asked for."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        pool = self._given
        if pool is None:
            if self._own is None or self._own._max_workers != n_jobs:
                self._own = ProcessPool(n_jobs)
            pool = self._own
        self._target = pool.options(**self._limits) if any(self._limits.values()) else pool
        return n_jobs

    def submit(self, func: Any, callback: Any = None) -> Future[Any]:
        """Run one batch of calls."""
        assert self._target is not None, "configure comes first"
        future = self._target.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """What the batch returned, or raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed: nobody waits for the others any more. A pool that was given may have other work."""
        if self._own is not None:
            self._own.abort()

    def terminate(self) -> None:
        """One ``Parallel`` is done; workers stay for the next one."""
        self._target = None
        self.reset_batch_stats()


def register() -> None:
    """Make ``backend="procflow"`` known to joblib; harmless when done before."""
    joblib.register_parallel_backend("procflow", ProcflowBackend)
