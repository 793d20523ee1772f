"""Syntax: Python source to a tree, safely from several threads.

CPython 3.11 counts the depth of trees that are being built in one place for all threads, and raises SystemError when two threads
build trees at once. So they are built one at a time here; and once more where somebody else's thread interfered.
"""

from __future__ import annotations

import ast
import threading

__all__ = ["parse_module"]

TRIES = 5

_lock = threading.Lock()


def parse_module(source: str | bytes, name: str = "<source>") -> ast.Module:
    """The tree of a module's source; raises what ``ast.parse`` raises for a source that is none."""
    for attempt in range(TRIES):
        try:
            with _lock:
                return ast.parse(source, name)
        except SystemError:
            if attempt == TRIES - 1:
                raise
    raise AssertionError("unreachable")
