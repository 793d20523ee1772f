"""Stopping: how a query that runs on a thread is ended from outside.

A thread can't be killed, but most drivers can be told to give up what they wait for. Who runs a query leaves the way to do
that here, and the executor takes it when the attempt is to be stopped. Nothing here waits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from procflow import step
from procflow.sources.opened import SourceError

__all__ = ["forget_run", "stop", "stoppable", "was_stopped"]

_Key = tuple[str, int]
_lock = threading.Lock()
_ways: dict[_Key, tuple[Callable[[], object], threading.Event]] = {}
_asked: set[_Key] = set()
AGAIN_S = 0.05


@contextmanager
def stoppable(way: Callable[[], object]) -> Iterator[None]:
    """Until the end of the block, ``way`` ends what the attempt of this thread waits for; it may be called from another.

    Raises ``SourceError`` where the attempt was to be stopped already.
    """
    running = step._now()
    key, over = (running.run_id, running.key), threading.Event()
    with _lock:
        if key in _asked:
            raise SourceError("the step was stopped before it asked anything")
        _ways[key] = way, over
    try:
        yield
    finally:
        with _lock:
            _ways.pop(key, None)
        over.set()


def was_stopped() -> bool:
    """Whether the attempt of this thread is to be stopped: what it used may be asked to give up once more."""
    running = step._now()
    return (running.run_id, running.key) in _asked


def stop(run_id: str, key: int) -> None:
    """End what an attempt waits for, now or before it begins to wait."""
    with _lock:
        first = (run_id, key) not in _asked
        _asked.add((run_id, key))
        found = _ways.get((run_id, key))
    if found is not None and first:
        # It may talk to a server, and whoever asks has other things to do.
        threading.Thread(target=_end, args=found, name="procflow-stop", daemon=True).start()


def _end(way: Callable[[], object], over: threading.Event) -> None:
    """Until it is over: a driver forgets a request that comes before its statement has begun."""
    pause_s = AGAIN_S
    while not over.is_set():
        # What can't be told any more has ended by itself.
        with contextlib.suppress(Exception):
            way()
        over.wait(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def forget_run(run_id: str) -> None:
    """The run is over."""
    with _lock:
        _asked.difference_update([key for key in _asked if key[0] == run_id])
