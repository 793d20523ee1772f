"""Garbage: fewer collections from the compile to the end of a run.

A pipeline and its run keep some records for every task, and none of them are in cycles. Python's collector walks them all
again and again, which costs a fifth of the parent's time with ten thousand steps. So what is there before is left out of
collections, and they come less often; afterwards everything is as it was. Owns nothing else of the interpreter.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["few_collections"]

THRESHOLD = (50_000, 20, 50)


@contextmanager
def few_collections() -> Iterator[None]:
    """Collect seldom inside the block; a process that does without the collector is left alone."""
    if not gc.isenabled():
        yield
        return
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    if not frozen:
        gc.freeze()
    gc.set_threshold(*THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not frozen:
            gc.unfreeze()
