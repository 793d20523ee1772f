"""Kept: connections that stay open between the attempts of one process and one run.

A connection belongs to the process that opened it: after a fork the child makes its own and never touches the parent's. Whatever is
kept is closed at the end of its run, or with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from procflow import step

__all__ = ["close_run", "drop", "kept"]

T = TypeVar("T")

_Key = tuple[int, str, Hashable]
_lock = threading.Lock()
_open: dict[_Key, tuple[Any, Callable[[Any], object]]] = {}


def kept(key: Hashable, make: Callable[[], T], close: Callable[[T], object]) -> T:
    """What is open under this key in this process and run, made where nothing is."""
    whole = (os.getpid(), step.run_id, key)
    with _lock:
        found = _open.get(whole)
        if found is None:
            found = _open[whole] = (make(), close)
        opened: T = found[0]
        return opened


def drop(key: Hashable) -> None:
    """Close what is open under this key, so that the next attempt opens it anew."""
    with _lock:
        found = _open.pop((os.getpid(), step.run_id, key), None)
    if found is not None:
        _close([found])


def close_run(run_id: str) -> None:
    """Close what this process keeps for a run."""
    stopping = sys.modules.get("procflow.sources.stopping")
    if stopping is not None:
        stopping.forget_run(run_id)
    with _lock:
        ended = [key for key in _open if key[:2] == (os.getpid(), run_id)]
        found = [_open.pop(key) for key in ended]
    _close(found)


def _close(found: list[tuple[Any, Callable[[Any], object]]]) -> None:
    for opened, close in found:
        # What can't be closed is gone already, or goes with the process.
        with contextlib.suppress(Exception):
            close(opened)


def _close_all() -> None:
    _close([pair for key, pair in list(_open.items()) if key[0] == os.getpid()])


def _after_fork() -> None:
    # The parent may have held the lock; its connections stay referenced here, so that nothing closes them.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_close_all)
