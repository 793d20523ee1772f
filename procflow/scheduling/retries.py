"""Retries: whether a bad end is followed by another attempt, and after which pause. Pure.

Errors, timeouts, losses and memory are counted apart: each cause may be retried ``retries`` times. The jitter comes
from a checksum of run, step, item and attempt, so that the same run makes the same pauses.
"""

from __future__ import annotations

import zlib

from procflow.attempt import Failure
from procflow.graph import RetrySpec

__all__ = ["counted_as", "pause"]


def counted_as(failure: Failure) -> str:
    """The cause under which an end is charged: ``error``, ``timeout``, ``crash`` or ``oom``."""
    return {"idle": "timeout", "spawn": "crash"}.get(failure.cause, failure.cause)


def pause(spec: RetrySpec, failure: Failure, charges: dict[str, int], seed: str) -> float | None:
    """Seconds before the next attempt, None when this was the last; charges the failure."""
    cause = counted_as(failure)
    charges[cause] = charged = charges.get(cause, 0) + 1
    if charged > spec.retries or not _wanted(spec, cause, failure.kinds):
        return None
    longest = min(spec.max_delay_s, spec.delay_s * spec.backoff ** min(charged - 1, 60))
    if not spec.jitter:
        return longest
    share = zlib.crc32(f"{seed}:{cause}:{charged}".encode()) / 0xFFFFFFFF
    return longest * (1 - share / 2)


def _wanted(spec: RetrySpec, cause: str, kinds: tuple[str, ...]) -> bool:
    if cause in spec.on:
        return True
    return any(kind in spec.on or kind.rpartition(".")[2] in spec.on for kind in kinds)
