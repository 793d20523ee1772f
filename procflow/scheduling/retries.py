"""Retries: whether a bad end is followed by another attempt, and after which pause. Pure.

Errors, timeouts, losses and memory are counted apart: each cause may be retried ``retries`` times. The jitter comes
from a checksum of run, step, item and attempt, so that the same run makes the same pauses. A service that asks for a longer
pause (``Retry-After``) gets it.
"""

from __future__ import annotations

import zlib

from procflow.attempt import Failure
from procflow.graph import RetrySpec

__all__ = ["counted_as", "pause"]

MOST_ASKED_S = 3600.0
"""A service that asks for a longer pause is tried again after this."""


def counted_as(failure: Failure) -> str:
    """The cause under which an end is charged: ``error``, ``timeout``, ``crash`` or ``oom``."""
    return {"idle": "timeout", "spawn": "crash"}.get(failure.cause, failure.cause)


def pause(spec: RetrySpec, failure: Failure, charges: dict[str, int], seed: str) -> float | None:
    """Seconds before the next attempt, None when this was the last; charges the failure."""
    cause = counted_as(failure)
    charges[cause] = charged = charges.get(cause, 0) + 1
    if charged > spec.retries or not _wanted(spec, cause, failure.kinds):
        return None
    asked_s = min(failure.retry_after_s or 0.0, MOST_ASKED_S)
    longest = min(spec.max_delay_s, spec.delay_s * spec.backoff ** min(charged - 1, 60))
    if not spec.jitter:
        return max(longest, asked_s)
    share = zlib.crc32(f"{seed}:{cause}:{charged}".encode()) / 0xFFFFFFFF
    return max(longest * (1 - share / 2), asked_s)


def _wanted(spec: RetrySpec, cause: str, kinds: tuple[str, ...]) -> bool:
    if cause in spec.on:
        return True
    return any(kind in spec.on or kind.rpartition(".")[2] in spec.on for kind in kinds)
