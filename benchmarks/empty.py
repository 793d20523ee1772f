"""The task of those benchmarks that measure what is around a task; in a module, because real steps are.

What lives in ``__main__`` is sent by value, by cloudpickle, each time: that would be measured, not the engines.
"""

from __future__ import annotations

__all__ = ["empty"]


def empty(item: int = 0) -> None:
    """Nothing."""
