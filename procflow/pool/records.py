"""Records: what tasks log arrives in the logging of the program that uses the pool.

It is taken while the pool is locked and emitted when it is not, because handlers are user code. What tasks print does not
pass here: their workers print where this process does.
"""

from __future__ import annotations

import logging
from collections import deque

__all__ = ["Records"]


class Records:
    """An ``AttemptLog`` for all tasks of a pool."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[int, str, str]] = deque()

    def write(self, data: bytes) -> None:
        """Never called: the output of workers does not come here."""

    def record(self, level: int, logger: str, message: str) -> None:
        """Take one record."""
        self.waiting.append((level, logger, message))

    def close(self) -> None:
        """One task has ended; others go on."""

    def emit(self) -> None:
        """Give what was taken to the loggers of the same names."""
        while self.waiting:
            level, name, message = self.waiting.popleft()
            target = logging.getLogger(name)
            if target.isEnabledFor(level):
                target.handle(target.makeRecord(target.name, level, "(worker)", 0, message, (), None))
