"""Failures of a run as a report tells them: alike ones together, the first of each with its traceback and the end of its log.

Everything is text made safe to show: control characters spelled out, colours taken out, long lines and long texts cut, so
that a failure with a megabyte in it costs a page no more than another. What to do is said by the cause. Reads logs, through
``history``, and nothing else.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from procflow.plaintext import clean, shortened
from procflow.report.facts import Facts
from procflow.storing.attempt_log import plain_text
from procflow.storing.history import History, StepRow
from procflow.storing.log_tail import finder, last_lines, short_path
from procflow.units import size_text

__all__ = ["Group", "advice", "groups"]

MOST_GROUPS = 15
MOST_ITEMS = 12
TRACEBACK_LINES = 40
LOG_LINES = 15
LINE_CHARS = 300
LABEL_CHARS = 200


@dataclass(slots=True)
class Group:
    """Failures of one step with one cause at one place."""

    label: str
    path: str
    cause: str
    status: str
    title: str
    place: str
    attempt: int
    tolerated: bool
    count: int = 0
    items: list[str] = field(default_factory=list)
    traceback: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    log_path: str = ""
    facts: list[str] = field(default_factory=list)

    @property
    def more_items(self) -> int:
        """Items that are not named."""
        return self.count - len(self.items) if self.items else 0


def groups(past: History, facts: Facts) -> list[Group]:
    """The failures of the last session, those that were not tolerated first; at most ``MOST_GROUPS``."""
    found: dict[tuple[str, str, str, bool], Group] = {}
    forgiven = _forgiving(facts)
    inside = {row.path for row in facts.bad if row.members is None}
    for row in facts.bad:
        if row.members is not None and _by_member(row, inside):
            continue
        failure = row.failure or {}
        place = str(failure.get("user_place") or "")
        key = (row.path, str(failure.get("type") or row.cause), place, bool(row.tolerated) or forgiven(row))
        group = found.get(key)
        if group is None:
            if len(found) >= MOST_GROUPS * 4:
                continue
            group = found[key] = _group(row, place, key[3])
            _tell(past, facts, row, group)
        group.count += 1
        if row.item and len(group.items) < MOST_ITEMS:
            group.items.append(shortened(row.item, 40))
    return sorted(found.values(), key=lambda g: g.tolerated)[:MOST_GROUPS]


def _forgiving(facts: Facts) -> Callable[[StepRow], bool]:
    """A function that tells whether a block around a row, or the run, ended well in spite of it."""
    last = len(facts.sessions) - 1
    well = {
        block.path for block in facts.blocks if block.status == "succeeded" and not block.item and block.session == last
    }
    whole = facts.run.status in ("succeeded", "partial")

    def forgiven(row: StepRow) -> bool:
        parts = row.path.split(".")
        return whole or any(".".join(parts[:depth]) in well for depth in range(1, len(parts) + 1))

    return forgiven


def _by_member(row: StepRow, inside: set[str]) -> bool:
    """Did the block fail only because a member did, which is told already?"""
    if row.cause in ("timeout", "idle"):
        return False
    return any(path == row.path or not row.path or path.startswith(f"{row.path}.") for path in inside)


def _group(row: StepRow, place: str, tolerated: bool) -> Group:
    message = row.message or row.reason or "no reason was given"
    return Group(
        shortened(row.label, LABEL_CHARS), row.path, clean(row.cause or ""), row.status, shortened(message.strip(), 500),
        shortened(place, LABEL_CHARS),
        row.attempt, tolerated,
    )  # fmt: skip


def _tell(past: History, facts: Facts, row: StepRow, group: Group) -> None:
    failure = row.failure or {}
    text = str(failure.get("traceback") or "")
    group.traceback = lines_of(text, TRACEBACK_LINES)
    if failure.get("signal"):
        group.facts.append(f"signal {failure['signal']}")
    elif failure.get("exit_code"):
        group.facts.append(f"exit code {failure['exit_code']}")
    peak = failure.get("peak_rss_bytes") or row.peak_rss_bytes
    if isinstance(peak, int) and peak and group.cause in ("oom", "pressure", "crash"):
        group.facts.append(f"peak memory {size_text(peak)}")
    path = _log(past, facts, row)
    if path is None:
        return
    try:
        group.log = [_line(line) for line in last_lines(path, LOG_LINES)]
        group.log_path = shortened(short_path(path), LABEL_CHARS)
    except OSError:
        group.facts.append("its log can't be read")


def _log(past: History, facts: Facts, row: StepRow) -> Path | None:
    own = past.log(row)
    if own is not None or not row.item:
        return own
    # An item travels in a batch, which has one log.
    found = finder(past.folder.run(facts.run.run_id))(row.label, row.item, row.attempt)
    return Path(found[0]) if found is not None else None


def lines_of(text: str, most: int) -> list[str]:
    """The lines of a text, safe and short, its head and its end where there are too many."""
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n") if text.strip() else []
    if len(lines) > most:
        head = most // 4
        left_out = len(lines) - most
        lines = [*lines[:head], f"… {left_out:,} lines left out …", *lines[len(lines) - (most - head) :]]
    return [_line(plain_text(line.replace("\t", "    "))) for line in lines]


def _line(text: str) -> str:
    return text if len(text) <= LINE_CHARS else f"{text[:LINE_CHARS]}… ({len(text) - LINE_CHARS:,} more characters)"


def advice(facts: Facts, found: list[Group], where: str) -> list[tuple[str, str]]:
    """What to do first: sentences, each with a command or ``""``. ``where`` are options that name the state folder."""
    run = facts.run
    go_on = f"procflow resume {run.run_id}{where}"
    if run.live:
        again = f"procflow report {run.run_id}{where}"
        return [("The run is going on. This page shows it as it was; make it again for more.", again)]
    bad = [group for group in found if not group.tolerated]
    told: list[tuple[str, str]] = []
    if bad:
        first = bad[0]
        told.append((_by_cause(first, facts), ""))
        if first.log and "..." not in first.label:
            item = f" --item {shlex.quote(first.items[0])}" if first.items else ""
            look = f"procflow logs {run.run_id} {shlex.quote(first.label)}{item}{where}"
            told.append(("All that it printed:", look))
    if run.status == "killed":
        told.insert(0, ("procflow itself was killed or the machine went down: nothing that had ended is lost.", ""))
    if run.status in ("failed", "killed", "timed_out", "cancelled"):
        told.append(("Then go on where it stopped; what succeeded is kept:", go_on))
    elif run.status == "partial":
        told.append(
            (
                "The run was allowed to finish without these. To try only them again:",
                f"procflow retry {run.run_id}{where}",
            )
        )
    return told


def _by_cause(group: Group, facts: Facts) -> str:
    label, place = group.label, f" at {group.place}" if group.place else ""
    many = f" ({group.count:,} items alike)" if group.count > 1 else ""
    texts = {
        "error": f"{label} raised{place}{many}: put right what the traceback below shows.",
        "timeout": f"{label} was stopped because its time was up{many}: its stack is in the log. Give it a longer timeout:, "
        "or make it faster.",
        "idle": f"{label} was stopped because it gave no sign of life{many}: its stack is in the log. Let it call "
        "step.heartbeat(), or raise idle_timeout:.",
        "oom": f"{label} needed more memory than it may have{many}: raise memory: of the step, or give it less at a time.",
        "pressure": f"The run as a whole was short of memory when {label} ran{many}: use fewer workers (-j), or declare memory:.",
        "crash": f"The worker of {label} died{many}: its last words are in the log. C extensions, os._exit and kill do that.",
        "spawn": f"No worker could be started for {label}: see the log, and the limits on processes and memory.",
    }
    return texts.get(group.cause, f"{label} ended as {group.status}{place}{many}: {group.title}")
