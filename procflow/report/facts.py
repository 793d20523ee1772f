"""Facts: everything that is known of one run, read once from the journal and the run's folder, on one axis of time.

A run that was resumed has sessions, each with a clock of its own. Here they follow each other without the pause between
them: a time is seconds on that axis. What can't be read is left out and told in ``missing``; nothing here raises for a run
that is live, was killed, or has lost a part of its folder.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone

from procflow.errors import StoreError
from procflow.plaintext import counted
from procflow.showing.shape import ORDER, Outcome, Part
from procflow.storing.history import History, RunRow, SessionRow, StepRow
from procflow.storing.samples import Sampled, read_graph, read_samples

__all__ = ["Block", "Facts", "Session", "Try", "read_facts"]

MOST_BAD = 500
"""So many rows that failed are kept whole."""


@dataclass(slots=True)
class Try:
    """One attempt that began. ``start`` and ``end`` are on the axis; ``sent`` and ``began`` are seconds after ``start`` (-1
    where unknown), ``worker`` counts from 1 in its session (0 where unknown)."""

    id: int
    key: int
    label: str
    path: str
    item: str
    number: int
    role: str
    status: str
    cause: str | None
    executor: str
    session: int
    start: float
    end: float
    wall_s: float
    cpu_s: float
    peak_bytes: int
    count: int
    retried: bool
    worker: int = 0
    sent: float = -1.0
    began: float = -1.0
    lane: int = 0
    critical: bool = False

    @property
    def name(self) -> str:
        """Its step; tasks that nobody declared say what they are for."""
        return self.label if self.role in ("member", "batch", "") else f"{self.label} ({self.role})"

    @property
    def begin(self) -> float:
        """When its code began, as far as that is known."""
        return min(self.end, self.start + max(0.0, self.began))

    @property
    def wasted(self) -> bool:
        """Whether its work came to nothing."""
        return self.status in ("failed", "lost", "cancelled")


@dataclass(slots=True)
class Block:
    """A block that began, on the axis."""

    path: str
    label: str
    item: str
    kind: str
    status: str
    session: int
    start: float
    end: float


@dataclass(slots=True)
class Session:
    """One session: where it begins on the axis, how long it was, and what was sampled in it."""

    number: int
    started: str
    ended: str | None
    first_id: int
    offset: float = 0.0
    length: float = 0.0
    sampled: Sampled | None = None
    workers: int = 1


@dataclass(slots=True)
class Facts:
    """All of it. ``bad`` are the rows that failed for good in the last session, as far as they were kept (``bad_count``)."""

    run: RunRow
    at: str
    sessions: list[Session]
    tries: list[Try] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    bad: list[StepRow] = field(default_factory=list)
    bad_count: int = 0
    kept: int = 0
    not_run: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    graph: Part | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def length(self) -> float:
        """Seconds of the whole axis."""
        return sum(session.length for session in self.sessions)

    @property
    def last(self) -> Session:
        """The newest session."""
        return self.sessions[-1]


def read_facts(past: History, run: RunRow, now: datetime | None = None) -> Facts:
    """Read it all. StoreError only where not even the sessions of the run can be read."""
    now = now or datetime.now(timezone.utc)
    rows = past.sessions(run.run_id) or [SessionRow(1, 0, run.started, None)]
    facts = Facts(
        run, now.isoformat(timespec="seconds"), [Session(r.number, r.started, r.ended, r.first_id) for r in rows]
    )
    folder = past.folder.run(run.run_id)
    facts.graph = read_graph(folder)
    if facts.graph is None:
        facts.missing.append("what the pipeline looked like: the order of steps and the critical path are unknown")
    _assign(facts, read_samples(folder))
    _Reader(facts, now).read(past)
    return facts


def _assign(facts: Facts, sampled: list[Sampled]) -> None:
    """Give each session what was sampled in it: its head was written just after the session began."""
    starts = [session.started for session in facts.sessions]
    for number, each in enumerate(sampled):
        # By their order, and by their times only where a session has left none.
        told = str(each.about.get("session", ""))
        place = number if len(sampled) == len(starts) else bisect.bisect_right(starts, told) - 1
        if place >= 0:
            facts.sessions[place].sampled = each
    for session in facts.sessions:
        about = session.sampled.about if session.sampled is not None else {}
        found = about.get("workers")
        session.workers = max(1, found) if isinstance(found, int) else max(1, facts.run.workers)
    without = [str(session.number) for session in facts.sessions if session.sampled is None]
    if without:
        of = f" of session {', '.join(without[:10])}" if len(facts.sessions) > 1 else ""
        facts.missing.append(f"samples{of}: memory and CPU over time, and which worker ran what")


class _Reader:
    """Goes through the rows once."""

    def __init__(self, facts: Facts, now: datetime) -> None:
        self.facts = facts
        self.now = now
        self.firsts = [session.first_id for session in facts.sessions]
        # Rows that had no end when they were read, to be given one when the lengths of sessions are known.
        self.open: list[Try | Block] = []
        self.spans: dict[str, list[float]] = {}
        self.newest: dict[str, int] = {}
        self.found: dict[str, Counter[str]] = {}
        # Of maps, as their blocks tell: items that ended well, and that did not.
        self.items: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()

    def read(self, past: History) -> None:
        facts, damage = self.facts, list[str]()
        try:
            for row in past.steps(facts.run.run_id, damage=damage):
                self._take(row)
        except StoreError as error:
            facts.missing.append(f"a part of the journal: {error}")
        if damage:
            facts.missing.append(f"{counted(len(damage), 'row')} of the journal, damaged and left out")
        self._close()
        for path, counts in self.found.items():
            outcome = facts.outcomes[path]
            outcome.count = self.items[path] or outcome.count
            outcome.failed = max(outcome.failed, self.lost[path])
            outcome.status = outcome.status or next((s for s in ORDER if counts.get(s)), "")
        facts.tries.sort(key=lambda t: (t.start, t.id))

    def _take(self, row: StepRow) -> None:
        facts = self.facts
        place = max(0, bisect.bisect_right(self.firsts, row.id) - 1)
        last = place == len(self.firsts) - 1
        facts.labels.setdefault(row.path, row.label)
        if row.kind in ("kept", "copied"):
            facts.kept += row.kind == "kept" and last
            self._judge(row, place, "kept" if row.status == "succeeded" else row.status)
            return
        if row.members is not None:
            self._block(row, place)
        elif row.kind == "task" and row.started is not None:
            self._try(row, place)
        else:
            # An item that failed, or a step that never started.
            self._judge(row, place, row.status)
            if last and not row.item and row.status in ("skipped", "cancelled"):
                facts.reasons[row.label] = row.reason or ""
                facts.not_run.append(row.label)
        if last and row.status in ("failed", "lost") and row.retry_in_s is None:
            facts.bad_count += row.members is None
            if len(facts.bad) < MOST_BAD:
                facts.bad.append(row)

    def _try(self, row: StepRow, place: int) -> None:
        session = self.facts.sessions[place]
        start = row.started or 0.0
        end = row.ended if row.ended is not None else start
        session.length = max(session.length, end)
        status = row.status
        if status == "running" and not self.facts.run.live:
            status = "lost"
        found = Try(
            row.id, row.key or 0, row.label, row.path, row.item, row.attempt, row.role or "", status, row.cause,
            row.executor or "", place, start, end, row.wall_s or 0.0, row.cpu_s or 0.0, row.peak_rss_bytes or 0,
            row.count or 0, row.retry_in_s is not None,
        )  # fmt: skip
        told = session.sampled.attempts.get(found.key) if session.sampled is not None and row.key else None
        if told is not None:
            found.worker, found.sent, found.began = told
        self.facts.tries.append(found)
        if row.ended is None:
            self.open.append(found)
        # Where a worker died the attempt is lost, and the step has failed; unless the whole run was killed.
        ended = "failed" if status == "lost" and row.failure is not None else status
        outcome = self._judge(row, place, "" if found.retried else ended)
        outcome.cause = row.cause or "" if ended == "failed" else ""
        if row.role in ("member", "batch"):
            outcome.attempts += 1
            outcome.count += found.count if status == "succeeded" else 0

    def _block(self, row: StepRow, place: int) -> None:
        session = self.facts.sessions[place]
        start = row.started or 0.0
        end = row.ended if row.ended is not None else start
        session.length = max(session.length, end)
        status = "lost" if row.status == "running" and not self.facts.run.live else row.status
        found = Block(row.path, row.label, row.item, row.kind, status, place, start, end)
        self.facts.blocks.append(found)
        if row.ended is None:
            self.open.append(found)
        outcome = self._judge(row, place, status)
        if not row.item:
            outcome.status = status
        self.lost[row.path] += row.failed_count or 0
        if row.kind == "map" and row.status != "running":
            # Its batches count only what they had not told before they ended.
            self.items[row.path] += row.count or 0

    def _judge(self, row: StepRow, place: int, status: str) -> Outcome:
        """Note how a row ended for its step; what earlier sessions said of it is forgotten."""
        outcome = self.facts.outcomes.get(row.path)
        if outcome is None or self.newest[row.path] < place:
            self.newest[row.path] = place
            self.found[row.path], self.items[row.path], self.lost[row.path] = Counter(), 0, 0
            outcome = self.facts.outcomes[row.path] = Outcome()
            self.spans.pop(row.path, None)
        if status and row.role not in ("gate", "expand", "merger"):
            counts = self.found[row.path]
            if row.kind == "task" and not row.item and row.members is None:
                counts.clear()  # the newest attempt says how the step went
            counts[status] += 1
            outcome.failed += row.kind == "item" and status == "failed"
        if row.started is not None:
            span = self.spans.setdefault(row.path, [row.started, row.started])
            span[0] = min(span[0], row.started)
            span[1] = max(span[1], row.ended or row.started)
            outcome.seconds = span[1] - span[0]
        return outcome

    def _close(self) -> None:
        """The lengths of sessions are known now: put everything on one axis, and end what has no end."""
        facts, last = self.facts, self.facts.last
        for session in facts.sessions:
            samples = session.sampled.samples if session.sampled is not None else []
            session.length = max(session.length, samples[-1][0] if samples else 0.0)
        if facts.run.live:
            last.length = max(last.length, (self.now - _utc(last.started, self.now)).total_seconds())
        elif facts.run.wall_s is not None:
            last.length = max(last.length, facts.run.wall_s)
        offset = 0.0
        for session in facts.sessions:
            session.offset = offset
            offset += session.length
        for each in self.open:
            each.end = facts.sessions[each.session].length
        spans: list[Try | Block] = [*facts.tries, *facts.blocks]
        for other in spans:
            shift = facts.sessions[other.session].offset
            other.start += shift
            other.end = max(other.start, other.end + shift)
        for each in self.open:
            outcome = facts.outcomes[each.path]
            # Killed before anything else was recorded: how long it ran is not known.
            outcome.seconds = max(outcome.seconds or 0.0, each.end - each.start) or None


def _utc(text: str, otherwise: datetime) -> datetime:
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return otherwise
