"""Alive: the drivers of all pools of this process, to be told when the interpreter ends and when it was forked.

At the end, what is pending is finished first, as the pools of the standard library do; not after Ctrl-C. A forked child has
no driver's thread, so its copies are given up.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol

__all__ = ["Ends", "add", "discard"]


class Ends(Protocol):
    """What a driver is here."""

    forsaken: bool

    def leave(self) -> None:
        """End once nothing is pending."""

    def abort(self) -> None:
        """Let nothing be pending."""

    def wait_end(self) -> None:
        """Wait for the end."""

    def forsake(self) -> None:
        """This is a forked child."""


_drivers: weakref.WeakSet[Ends] = weakref.WeakSet()


def add(driver: Ends) -> None:
    """Tell it from now on."""
    _drivers.add(driver)


def discard(driver: Ends) -> None:
    """It has ended."""
    _drivers.discard(driver)


def _at_exit() -> None:
    drivers = [driver for driver in list(_drivers) if not driver.forsaken]
    interrupted = getattr(sys, "last_type", None) is KeyboardInterrupt
    for driver in drivers:
        driver.leave()
        if interrupted:
            driver.abort()
    try:
        for driver in drivers:
            driver.wait_end()
    except KeyboardInterrupt:
        for driver in drivers:
            driver.abort()
        raise


def _after_fork() -> None:
    for driver in list(_drivers):
        driver.forsake()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
