"""Compare: two measurements of one pipeline, step by step, and whether a difference is more than noise. Arithmetic only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from procflow.errors import ProcflowError

__all__ = ["Change", "changes", "lines", "slower"]

CLEAR_T = 2.5
"""Difference of the means in standard errors from which on it counts."""


@dataclass(frozen=True, slots=True)
class Change:
    """One step on one executor: ``ratio`` of new to old seconds a piece; ``clear`` where it is more than noise."""

    step: str
    executor: str
    ratio: float
    clear: bool

    def __str__(self) -> str:
        text = f"{self.ratio:.2f}x slower" if self.ratio >= 1 else f"{1 / max(self.ratio, 1e-9):.2f}x faster"
        return text if self.clear else f"{text} (not significant)"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Each step that both have, on each executor. ``ProcflowError`` where ``old`` is no measurement of this format."""
    if not isinstance(old, Mapping) or old.get("format") != new["format"] or not isinstance(old.get("steps"), list):
        raise ProcflowError("it is no file that procflow bench --json of this version has written")
    before = {row["step"]: row for row in old["steps"] if "samples" in row}
    return [
        change
        for row in new["steps"]
        if "samples" in row and row["step"] in before
        for change in _step(before[row["step"]], row)
    ]


def _step(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for executor, samples in new["samples"].items():
        if executor not in old["samples"]:
            continue
        a = [each["wall_s"] / old["pieces"] for each in old["samples"][executor]]
        b = [each["wall_s"] / new["pieces"] for each in samples]
        yield Change(new["step"], executor, statistics.median(b) / max(statistics.median(a), 1e-12), _clear(a, b))


def _clear(a: list[float], b: list[float]) -> bool:
    if len(a) < 3 or len(b) < 3:
        return False
    error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    return abs(statistics.fmean(b) - statistics.fmean(a)) > CLEAR_T * error


def lines(found: list[Change], file: str) -> list[str]:
    """A line a step, executors beside each other."""
    if not found:
        return [f"{file} has no step of this pipeline"]
    steps = list(dict.fromkeys(change.step for change in found))
    width = max(map(len, steps))
    told = [f"against {file}, a piece"]
    for step in steps:
        parts = [f"{change.executor} {change}" for change in found if change.step == step]
        told.append(f"  {step:{width}}  " + ", ".join(parts))
    return told


def slower(found: list[Change], share: float) -> list[Change]:
    """Those that are clearly slower by more than the share (0.2: 20 %)."""
    return [change for change in found if change.clear and change.ratio > 1 + share]
