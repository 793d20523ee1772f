"""The last block of a run that did not go well: what failed, why, where its log is, and what to type next.

Collects the failures of a run from its events (the first few in full, the rest as a number, so that a million failed items
cost nothing) and tells them as lines. It reads no file: the end of a step's log comes from a function passed in.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from procflow.attempt import Failure
from procflow.events import BlockFinished, StepFinished
from procflow.passive import passive
from procflow.plaintext import clean, clean_lines, counted, shortened
from procflow.units import size_text

__all__ = ["Aftermath", "FindLog", "Story", "of_hook", "why", "with_place"]

FindLog = Callable[[str, str, int], "tuple[str, Sequence[str]] | None"]
"""Path and last lines of the log of an attempt, by label, item and number; None where it left none."""

FULL = 3
"""So many failures are told in full."""
BRIEF = 10
"""So many more get a line each."""
TRACEBACK_LINES = 12
LOG_LINES = 5
NOT_RUN = 20


def why(failure: Failure | None, most: int = 300) -> str:
    """``ValueError: bad row``, on one line and safe to print."""
    return shortened(failure, most) if failure is not None else "no reason was given"


def with_place(failure: Failure | None) -> str:
    """``ValueError: bad row at jobs/x.py:88``."""
    place = failure.user_place if failure is not None else ""
    return f"{why(failure)} at {clean(place)}" if place else why(failure)


@passive(frozen=True, slots=True)
class Story:
    """One failure with what is needed to tell it."""

    path: str
    label: str
    item: str
    attempts: int
    failure: Failure | None
    is_block: bool = False

    @property
    def title(self) -> str:
        """``step 0.2 (fetch/fetch_data), item 17``."""
        where = f"step {self.path} ({clean(self.label)})" if self.path else "the run"
        return f"{where}, item {clean(self.item)}" if self.item else where


@dataclass(slots=True)
class Aftermath:
    """What went wrong in a run, bounded however much it was: some stories, and counts by path."""

    stories: list[Story] = field(default_factory=list)
    tolerated: list[Story] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    not_run_count: int = 0
    cut_short: list[tuple[str, str]] = field(default_factory=list)
    """Hooks that a stop has ended, with the reason: what they tell others was perhaps never told."""
    _failed: Counter[str] = field(default_factory=Counter)
    _tolerated: Counter[str] = field(default_factory=Counter)

    @property
    def failed_count(self) -> int:
        """Steps and items that failed and were not tolerated."""
        return self._failed.total()

    @property
    def tolerated_count(self) -> int:
        """Steps and items whose failure was allowed."""
        return self._tolerated.total()

    def note_step(self, event: StepFinished) -> None:
        """Take in the end of a leaf step or of an item."""
        if event.status == "failed":
            story = Story(event.path, event.label, event.item, event.attempts, event.failure)
            self._add(story, event.tolerated)
        elif event.status == "cancelled" and of_hook(event.path):
            if len(self.cut_short) < NOT_RUN:
                self.cut_short.append((event.label, event.reason))
        elif not event.item and event.status in ("skipped", "cancelled") and not by_condition(event.reason):
            self._leave_out(event.label)

    def note_block(self, event: BlockFinished) -> None:
        """Take in the end of a block.

        It counts as a failure of its own only where no member of it failed. Where it runs again, what failed in it has not
        failed for good; where it succeeded, what failed in it was tolerated.
        """
        if event.retry_in_s is not None:
            self._take(event)
        elif event.status == "succeeded":
            stories, counts = self._take(event)
            self.tolerated = (self.tolerated + stories)[: FULL + BRIEF]
            self._tolerated.update(counts)
        elif event.status == "failed":
            known = any(_inside(s, event) for s in (*self.stories, *self.tolerated))
            if not known or (event.failure is not None and event.failure.cause in ("timeout", "idle")):
                self._add(Story(event.path, event.label, event.item, event.attempt, event.failure, True), False)
        elif not event.item and not by_condition(event.reason):
            self._leave_out(event.label)

    def _add(self, story: Story, tolerated: bool) -> None:
        kept, counts = (self.tolerated, self._tolerated) if tolerated else (self.stories, self._failed)
        counts[story.path] += 1
        if len(kept) < FULL + BRIEF:
            kept.append(story)

    def _take(self, event: BlockFinished) -> tuple[list[Story], Counter[str]]:
        """Remove the failures inside a block: the stories kept of them, and their counts by path."""
        gone = [s for s in self.stories if _inside(s, event)]
        paths = [path for path in self._failed if _below(path, event.path)]
        if event.item:
            # A block inside an item of a map: counts by path are of all items together, so only what is known goes.
            counts = Counter(s.path for s in gone)
            if not gone and event.failed_count and paths:
                counts[paths[0]] = min(event.failed_count, self._failed[paths[0]])
        else:
            counts = Counter({path: self._failed[path] for path in paths})
        if gone:
            self.stories = [s for s in self.stories if not _inside(s, event)]
        self._failed -= counts
        return gone, counts

    def _leave_out(self, label: str) -> None:
        self.not_run_count += 1
        if len(self.not_run) < NOT_RUN:
            self.not_run.append(label)

    def tolerate_all(self) -> None:
        """The run finished in spite of its failures: the pipeline itself tolerates them."""
        self.tolerated = (self.tolerated + self.stories)[: FULL + BRIEF]
        self._tolerated.update(self._failed)
        self.stories, self._failed = [], Counter()

    def lines(self, run_id: str, *, command: str, state_dir: str | None, find_log: FindLog | None) -> list[str]:
        """The block as lines, first cause first; empty when nothing failed."""
        told = []
        for story in self.stories[:FULL]:
            told += _in_full(story, find_log)
        rest = self.stories[FULL:]
        told += [f"FAILED {s.title}: {with_place(s.failure)}" for s in rest]
        if self.failed_count > len(self.stories):
            told.append(f"... and {counted(self.failed_count - len(self.stories), 'more failure')}")
        if self.tolerated_count:
            told += _tolerated(self.tolerated, self.tolerated_count)
        if self.not_run_count and self.stories:
            more = self.not_run_count - len(self.not_run)
            names = ", ".join(clean(n) for n in self.not_run) + (f" and {more:,} more" if more else "")
            told.append(f"  not run because of it: {names}")
        for label, reason in self.cut_short:
            told.append(f"  hook {clean(label)} was cut short: {clean(reason) or 'the run was stopped'}")
        if told:
            told += self._next_commands(run_id, command, state_dir)
        return told

    def _next_commands(self, run_id: str, command: str, state_dir: str | None) -> list[str]:
        where = f" --state-dir {shlex.quote(clean(state_dir))}" if state_dir else ""
        lines = []
        if self.stories:
            lines += ["  go on where it stopped, once the cause is gone", f"    {command} resume {run_id}{where}"]
        lines.append("  look further")
        with_log = next((s for s in (*self.stories, *self.tolerated) if not s.is_block), None)
        if with_log is not None:
            item = f" --item {shlex.quote(clean(with_log.item))}" if with_log.item else ""
            lines.append(f"    {command} logs {run_id} {shlex.quote(clean(with_log.label))}{item}{where}")
        lines.append(f"    {command} show {run_id}{where}")
        return lines


def _below(path: str, block: str) -> bool:
    return not block or path == block or path.startswith(f"{block}.")


def of_hook(path: str) -> bool:
    """Is it a step of a hook? Only in their paths are there names: ``0.on_failure.0``."""
    return any(part.startswith("on_") for part in path.split("."))


def _inside(story: Story, block: BlockFinished) -> bool:
    """Did it fail in this block, and in the same item where the block is one of an item?"""
    same = not block.item or story.item == block.item or story.item.startswith(f"{block.item}/")
    return same and _below(story.path, block.path)


def by_condition(reason: str) -> bool:
    """Was the step left out by its own ``when``, and not because of a failure?"""
    return "condition is false" in reason


def _in_full(story: Story, find_log: FindLog | None) -> list[str]:
    failure = story.failure
    after = f" after {counted(story.attempts, 'attempt')}" if story.attempts > 1 else ""
    lines = [f"FAILED {story.title}{after}", f"    {why(failure, 2000)}"]
    if failure is not None:
        if failure.user_place:
            lines.append(f"    at {clean(failure.user_place)}")
        if failure.item:
            lines.append(f"    the item is {shortened(failure.item)}")
        if failure.peak_rss_bytes and failure.cause in ("oom", "crash"):
            lines.append(f"    peak memory {size_text(failure.peak_rss_bytes)}")
        if failure.traceback:
            frames = clean_lines(failure.traceback)
            if len(frames) > TRACEBACK_LINES:
                lines.append(f"      ... {counted(len(frames) - TRACEBACK_LINES, 'line')} above")
            lines += [f"      {line}" for line in frames[-TRACEBACK_LINES:]]
    found = find_log(story.label, story.item, story.attempts) if find_log is not None and not story.is_block else None
    if found is not None:
        place, tail = found
        tail = list(tail)[-LOG_LINES:]
        ending = f" (last {counted(len(tail), 'line')} below)" if tail else " (empty)"
        lines.append(f"    log {clean(place)}{ending}")
        lines += [f"      {shortened(line)}" for line in tail]
    return lines


def _tolerated(stories: Sequence[Story], count: int) -> list[str]:
    lines = [f"tolerated {s.title}: {with_place(s.failure)}" for s in stories[:BRIEF]]
    if count > len(lines):
        lines.append(f"... and {counted(count - len(lines), 'more tolerated failure')}")
    return lines
