"""Waiting: attempts whose worker did not start, until it is tried again, and when to stop trying.

A worker that ends before it is ready is charged to no attempt. Several in a row mean that this machine can't start
workers, whatever the attempt. Nothing here starts anything.
"""

from __future__ import annotations

import time

from procflow.attempt import Attempt
from procflow.errors import ExecutorError
from procflow.executors.payload import Payload

__all__ = ["Waiting"]

FAILURES = 3
PAUSE_S = 0.05


class Waiting:
    """Attempts by key, with payload and time of the next try. ``broken`` is set after three failures in a row."""

    def __init__(self) -> None:
        self.broken: ExecutorError | None = None
        self._failures = 0
        self._waiting: dict[int, tuple[float, Attempt, Payload]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def deadline(self) -> float | None:
        """When ``due`` has something (``time.monotonic``)."""
        return min((due for due, _, _ in self._waiting.values()), default=None)

    def add(self, attempt: Attempt, payload: Payload, why: str) -> None:
        """A worker for the attempt did not start."""
        self._failures += 1
        if self._failures >= FAILURES:
            self.broken = ExecutorError(
                f"workers can't be started: {self._failures} in a row ended before they were ready; {why}"
            )
        due = time.monotonic() + PAUSE_S * self._failures
        self._waiting[attempt.key] = (due, attempt, payload)

    def put(self, attempt: Attempt, payload: Payload) -> None:
        """A worker for the attempt is to be started as soon as somebody asks what is due."""
        self._waiting[attempt.key] = (0.0, attempt, payload)

    def started(self) -> None:
        """A worker is ready: the row is broken."""
        self._failures = 0

    def take(self, key: int) -> Attempt | None:
        """Remove an attempt."""
        found = self._waiting.pop(key, None)
        return found[1] if found is not None else None

    def due(self) -> list[tuple[Attempt, Payload]]:
        """Remove and give what is to be tried again now."""
        now = time.monotonic()
        keys = [key for key, (due, _, _) in self._waiting.items() if due <= now]
        return [self._waiting.pop(key)[1:] for key in keys]
