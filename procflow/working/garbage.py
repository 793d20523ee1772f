"""Garbage: fewer collections from the compile to the end of a run.

A pipeline and its run keep some records for every task, and none of them are in cycles. Python's collector walks them all
again and again, which costs a fifth of the parent's time with ten thousand steps. So what is there before is left out of
collections, and they come less often; afterwards everything is as it was. In a process that lives for one command only
or is a worker it stays so: else its last act would be to walk all of procflow and its libraries, for a tenth of a second.
What the user's code makes is always collected. Owns nothing else of the interpreter.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["RECORDS_ONLY", "a_step_ran_here", "few_collections", "quick_command", "spared"]

THRESHOLD = (50_000, 20, 50)
RECORDS_ONLY = (500_000, 20, 50)
"""Where no step runs in this process: nearly all that the loop makes is gone again before it would be looked at."""


@contextmanager
def few_collections(threshold: tuple[int, int, int] = THRESHOLD) -> Iterator[None]:
    """Collect seldom inside the block, and never what is here now; a process without the collector is left alone."""
    if not gc.isenabled():
        yield
        return
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.freeze()
    gc.set_threshold(*threshold)
    try:
        yield
    finally:
        if not frozen:
            # What is left goes to the oldest generation unseen: most of it is gone a moment later without the collector.
            gc.freeze()
        gc.set_threshold(*before)
        if not frozen:
            gc.unfreeze()


def spared() -> None:
    """Leave what is here now out of all collections, for good: for a process of our own, before the user's code runs."""
    gc.freeze()


@contextmanager
def quick_command() -> Iterator[None]:
    """Around all that a process does whose whole life is one command."""
    gc.set_threshold(*THRESHOLD)
    # Whatever runs steps finds that something is spared already, and leaves it so.
    spared()
    try:
        yield
    finally:
        if not a_step_ran_here():
            spared()


def a_step_ran_here() -> bool:
    """Whether this process itself has run a step: then objects of the user's may be here."""
    perform: Any = sys.modules.get("procflow.working.perform")
    return perform is not None and bool(perform.loaded_kinds())
