"""Verdict: from what a step took on each executor to the one that suits it, and why. Arithmetic only; nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from procflow.benching.samples import EXECUTORS, Measured
from procflow.units import duration_text, size_text

__all__ = ["DECLARED", "Verdict", "judge"]

Kind = Literal["waits", "small", "moving", "gil", "free", "mixed"]

DECLARED = {"sequential": "inline", "threads": "threads", "processes": "processes"}
"""What the file calls each of them."""
TIE = 1.1
"""Times so close are the same."""
WAITS = 0.3
SMALL_S = 0.1
MOVED_BYTES = 1_000_000
NOISE = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """``best`` is what the table marks (``either``: threads and processes alike), ``change`` the executor to write into the
    file, None where the one that is declared is as good. ``sure`` is False where the samples spread too far.
    """

    best: str
    why: str
    kind: Kind
    change: str | None
    sure: bool
    whole_s: dict[str, float]
    """Seconds for all pieces of a run, on each executor."""


def judge(
    measured: Measured, *, pieces: int, declared: str, slots: int, usable: float, start_s: float, is_map: bool
) -> Verdict:
    """What suits a step of so many ``pieces`` in a run, which is ``declared`` for an executor now."""
    walls = {name: measured.wall_s(name) for name in EXECUTORS}
    whole_s = {name: wall / measured.pieces * pieces for name, wall in walls.items()}
    kind, why = _reason(measured, walls, whole_s["sequential"], min(slots, usable, measured.pieces), start_s)
    quickest = min(walls.values())
    alike = [name for name in EXECUTORS if walls[name] <= TIE * quickest]
    if kind == "small" or ("sequential" in alike and not (is_map or pieces > 1)):
        best = "any"
    elif "sequential" in alike:
        best = "sequential"
    elif {"threads", "processes"} <= set(alike):
        best = "threads" if kind == "waits" else "either"
    else:
        best = alike[0]
    if best == "either":
        rss = max((each.rss_bytes for each in measured.rounds["processes"]), default=0)
        why += f"; threads save {size_text(rss)} of workers" if rss else ""
    now = next(name for name, word in DECLARED.items() if word == declared)
    change = None
    if best in EXECUTORS and best != now and walls[now] > TIE * walls[best]:
        change = DECLARED[best]
    return Verdict(best, why, kind, change, measured.spread() <= NOISE, whole_s)


def _reason(
    measured: Measured, walls: dict[str, float], whole_s: float, slots: float, start_s: float
) -> tuple[Kind, str]:
    alone = measured.busy()
    # Threads against one call after the other, so that neighbours, who take from both, cancel out.
    threaded = min(alone, 1.0) * measured.cores("threads") / max(measured.cores("sequential"), 1e-3)
    if whole_s < min(SMALL_S, max(start_s, 0.02)):
        return "small", f"too small: {duration_text(whole_s)} in all, a worker starts in {duration_text(start_s)}"
    if alone < WAITS:
        return "waits", f"waits {1 - alone:.0%} of the time: more workers than cores help (-j)"
    moved = measured.input_bytes + _result_bytes(measured)
    extra = walls["processes"] - walls["sequential"] / max(1.0, slots)
    if moved / measured.pieces > MOVED_BYTES and extra > 0.2 * walls["processes"]:
        cost = duration_text(extra)
        return "moving", f"moving {size_text(moved)} costs {cost} of {duration_text(walls['processes'])} in processes"
    if alone > 1.3:
        return "mixed", f"uses {alone:.1f} cores by itself (threads of a library): give it cpus: {round(alone)}"
    if slots < 1.5 and measured.pieces > 1:
        return "mixed", f"whether threads share the lock can't be told on {slots:.1f} cores"
    if threaded < 1.0 + 0.25 * (slots - 1):
        return "gil", f"threads held to {threaded:.1f} core{'s' if round(threaded, 1) != 1 else ''}: GIL-bound Python"
    if threaded >= 0.7 * slots:
        return "free", f"releases the GIL: threads use {threaded:.1f} cores"
    return "mixed", f"holds the GIL part of the time: threads use {threaded:.1f} of {slots:.1f} cores"


def _result_bytes(measured: Measured) -> int:
    return max((each.result_bytes for each in measured.rounds["processes"]), default=0)
