"""Figures of a run: the table of its steps, where the time of its workers went, and what it came to as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from procflow.report.facts import Facts, Try

__all__ = ["Share", "StepFigures", "cores_used", "shares", "step_figures"]

HIDDEN_SHARE = 0.02
"""Tasks that nobody declared are told of from this share of all work on."""
SPAWN_S = 0.005
"""A first attempt that was sent so much after it was handed out had to wait for its worker."""


@dataclass(slots=True)
class StepFigures:
    """One step, all its attempts together; times are of attempts, in seconds."""

    name: str
    path: str
    status: str = ""
    attempts: int = 0
    bad: int = 0
    retries: int = 0
    items: int = 0
    work_s: float = 0.0
    median_s: float = 0.0
    p95_s: float = 0.0
    most_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    critical: bool = False
    steps: int = 1
    times: list[float] = field(default_factory=list)


def step_figures(facts: Facts, most: int) -> tuple[list[StepFigures], StepFigures | None]:
    """At most ``most`` steps in declared order, those with most work where there are more, and all others as one."""
    found: dict[tuple[str, str], StepFigures] = {}
    hidden: set[str] = set()
    for each in facts.tries:
        figures = found.get((each.path, each.name))
        if figures is None:
            figures = found[each.path, each.name] = StepFigures(each.name, each.path)
            if each.role in ("member", "batch", "") and each.path in facts.outcomes:
                outcome = facts.outcomes[each.path]
                figures.status, figures.items = outcome.status, outcome.count if each.item else 0
            else:
                figures.status = each.status
                hidden.add(each.name)
        _add(figures, each)
    for figures in found.values():
        _close(figures)
    # A condition, a list of items or a merge that took no time to speak of would only be in the way.
    least_s = HIDDEN_SHARE * sum(figures.work_s for figures in found.values())
    told = [f for f in found.values() if f.name not in hidden or f.work_s > least_s or f.bad]
    steps = sorted(told, key=lambda f: -f.work_s)
    shown = sorted(steps[:most], key=lambda f: natural(f.path))
    return shown, _together(steps[most:])


def natural(path: str) -> list[tuple[int, str]]:
    """A key that sorts ``0.10`` after ``0.2``."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in path.split(".")]


def _add(figures: StepFigures, each: Try) -> None:
    figures.attempts += 1
    figures.bad += each.wasted
    figures.retries += each.retried
    figures.work_s += each.wall_s
    figures.cpu_s += each.cpu_s
    figures.peak_bytes = max(figures.peak_bytes, each.peak_bytes)
    figures.critical |= each.critical
    if each.status != "running":
        figures.times.append(each.wall_s or each.end - each.start)


def _close(figures: StepFigures) -> None:
    times = sorted(figures.times)
    figures.times = []
    if times:
        figures.median_s, figures.p95_s, figures.most_s = quantile(times, 0.5), quantile(times, 0.95), times[-1]


def _together(rest: Sequence[StepFigures]) -> StepFigures | None:
    if not rest:
        return None
    whole = StepFigures(f"{len(rest):,} more", "", steps=len(rest))
    for each in rest:
        for name in ("attempts", "bad", "retries", "items", "work_s", "cpu_s"):
            setattr(whole, name, getattr(whole, name) + getattr(each, name))
        whole.peak_bytes = max(whole.peak_bytes, each.peak_bytes)
        whole.most_s = max(whole.most_s, each.most_s)
    return whole


def quantile(times: Sequence[float], share: float) -> float:
    """The value below which this share of the sorted times lies, between two where it falls between them."""
    at = share * (len(times) - 1)
    low = int(at)
    high = min(low + 1, len(times) - 1)
    return times[low] + (times[high] - times[low]) * (at - low)


@dataclass(slots=True)
class Share:
    """A part of the time that all workers together had: ``key`` is its colour, ``meaning`` a sentence."""

    key: str
    name: str
    meaning: str
    seconds: float = 0.0
    share: float = 0.0


def shares(facts: Facts) -> list[Share]:
    """Where the time of all workers went, in seconds of a worker; together the whole."""
    parts = {
        each.key: each
        for each in (
            Share("work", "work", "steps that came to something"),
            Share("waste", "lost work", "attempts that failed, were stopped or lost their worker"),
            Share("start", "start-up", "workers being started"),
            Share("send", "send", "from handing an attempt out until its code began"),
            Share("receive", "receive", "from the end of an attempt's code until procflow had its result"),
            Share("idle", "idle", "places with nothing to run: steps waited for others, or nothing was left"),
        )
    }
    known: set[tuple[int, str, int]] = set()
    for each in facts.tries:
        _split(each, parts, known)
    whole = sum(session.workers * session.length for session in facts.sessions)
    used = sum(part.seconds for part in parts.values())
    parts["idle"].seconds = max(0.0, whole - used)
    whole = max(whole, used)
    for part in parts.values():
        part.share = part.seconds / whole if whole > 0 else 0.0
    return list(parts.values())


def _split(each: Try, parts: dict[str, Share], known: set[tuple[int, str, int]]) -> None:
    span = each.end - each.start
    work = min(span, each.wall_s) if each.wall_s or each.status != "running" else span
    if each.status in ("running", "lost") and each.began >= 0:
        work = span - min(span, each.began)
    parts["waste" if each.wasted else "work"].seconds += work
    rest = span - work
    worker = (each.session, each.executor, each.worker)
    fresh = bool(each.worker) and worker not in known
    known.add(worker)
    if each.began < 0:
        # Only both ways together are known.
        parts["send"].seconds += rest
        return
    sent, began = min(rest, max(0.0, each.sent)), min(rest, each.began)
    if fresh and sent > SPAWN_S:
        parts["start"].seconds += sent
        parts["send"].seconds += max(0.0, began - sent)
    else:
        parts["send"].seconds += began
    parts["receive"].seconds += max(0.0, rest - began)


def cores_used(facts: Facts) -> float | None:
    """Cores in use on average, as the workers' clocks tell: CPU seconds of all attempts over the length of the run."""
    cpu_s = sum(each.cpu_s for each in facts.tries)
    return cpu_s / facts.length if facts.length > 0 and cpu_s else None
