"""Pool: the worker processes of a run as a standard ``concurrent.futures.Executor``, for programs without a pipeline."""

from __future__ import annotations

from procflow.pool.endings import PoolBroken, TaskFailed, TaskLost, TaskOutOfMemory, TaskTimedOut
from procflow.pool.process_pool import ProcessPool

__all__ = ["PoolBroken", "ProcessPool", "TaskFailed", "TaskLost", "TaskOutOfMemory", "TaskTimedOut"]
