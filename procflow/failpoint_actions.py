"""Failpoint actions: makes the faults that ``PROCFLOW_FAILPOINTS`` asks for. Only tests ever load this.

``Failpoints`` counts passes per name (and of all together, as ``*``) and acts at the ones it was told. This file owns the
signals, errors and pauses of faults; it knows nothing of where failpoints are.
"""

from __future__ import annotations

import builtins
import errno
import os
import signal
import time
from collections import Counter

from procflow import failpoints, units
from procflow.failpoints import Failpoint

__all__ = ["Failpoints", "arm_from_environment"]


class Failpoints:
    """Counts passes and acts on them; give it to ``failpoints.arm``. ``passed`` holds the counts."""

    def __init__(self, text: str = "") -> None:
        self.armed = failpoints.parse(text)
        self.passed: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        """Take a pass of a failpoint. LookupError for a name that is not in the list."""
        if name not in failpoints.NAMES:
            raise LookupError(f"failpoint {name!r} is not in procflow.failpoints.NAMES")
        passed = self.passed
        passed[name] += 1
        passed["*"] += 1
        for one in self.armed:
            if one.name in (name, "*") and one.hits(passed[one.name]):
                act(one)


def act(failpoint: Failpoint) -> None:
    """Make the fault happen."""
    if failpoint.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif failpoint.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif failpoint.action == "exit":
        os._exit(1)
    elif failpoint.action == "delay":
        time.sleep(units.duration(failpoint.argument))
    else:
        raise error_of(failpoint.argument)


def error_of(text: str) -> BaseException:
    """The exception of ``OSError:ENOSPC`` or ``ValueError:some text``; ValueError where there is no such exception."""
    name, _, rest = text.partition(":")
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise ValueError(f"{name!r} is not a built-in exception")
    number = getattr(errno, rest, None) if issubclass(kind, OSError) else None
    return kind(number, os.strerror(number)) if isinstance(number, int) else kind(rest or "failpoint")


def arm_from_environment() -> None:
    """Arm what ``PROCFLOW_FAILPOINTS`` says; with an empty text passes are only counted."""
    failpoints.arm(Failpoints(os.environ.get(failpoints.VARIABLE, "")))
