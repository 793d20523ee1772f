"""Progress as plain lines: one line a change, for cron, pipes and log files.

An observer of events (``handle(event)``), driven by the engine. It owns the wording of a run's lines, the limits on how many
there are, and the last block. It never raises for a reader that went away (the ``write`` it gets sees to that), never
reads a clock but the one passed in, and never lets user text start a line of its own.

    2026-11-21T02:00:12Z Pipeline step 0.2 (fetch_data): succeeded in 12.1 s, peak 310 MiB
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from procflow.events import (
    AttemptFinished,
    AttemptStarted,
    BlockFinished,
    BlockStarted,
    Event,
    RunFinished,
    RunStarted,
    StepFinished,
    StepProgress,
)
from procflow.graph import MapUnit, ScopeUnit, TaskGraph
from procflow.passive import passive
from procflow.plaintext import clean, counted, shortened
from procflow.showing.aftermath import Aftermath, FindLog, of_hook, why, with_place
from procflow.showing.plan import leaf_count, outline
from procflow.storing.log_tail import finder, short_path
from procflow.storing.state_folder import locate
from procflow.units import duration_text, size_text

__all__ = ["Detail", "LineProgress", "Notes", "notes_of"]

Detail = Literal["steps", "summary", "failures"]
"""How much is said: a line a change; only the last block and the summary; nothing unless something failed."""

ITEM_LINES = 10
"""So many failed (and retried) items of one map get a line each."""
SHARE_STEP = 0.1
"""A line of progress each time this share of the work is done ..."""
SHARE_GAP_S = 1.0
"""... but not sooner than this after the last one ..."""
QUIET_S = 10.0
"""... and at the latest after this long, where anything was done."""


@passive(frozen=True, slots=True)
class Notes:
    """What events do not say: by path, the most attempts of a task and the most members of a block at once.

    ``blocks`` are the paths of blocks: a task under such a path is one that nobody declared (a gate, a merge, the items).
    ``steps`` counts the declared leaf steps.
    """

    attempts: Mapping[str, int] = field(default_factory=dict)
    at_once: Mapping[str, int] = field(default_factory=dict)
    blocks: Collection[str] = ()
    steps: int | None = None
    workers: int | None = None


def notes_of(graph: TaskGraph, workers: int | None = None) -> Notes:
    """The notes that a compiled pipeline allows."""
    attempts, at_once, blocks = {}, {}, set()
    for _, unit, _ in outline(graph.root):
        leaf = unit.body if isinstance(unit, MapUnit) else unit
        if leaf.retry.retries:
            attempts[unit.path] = leaf.retry.retries + 1
        if isinstance(unit, ScopeUnit):
            blocks.add(unit.path)
            if unit.max_parallelism is not None:
                at_once[unit.path] = unit.max_parallelism
    return Notes(attempts, at_once, blocks, leaf_count(graph), workers)


@dataclass(slots=True)
class _Pace:
    """When progress of a step was last told."""

    share: float = 0.0
    at: float = 0.0


class LineProgress:
    """Writes one line a change; ``write`` takes a line without its end.

    ``clock`` gives seconds since the epoch and is read once, when the run starts: all later times come from the events.
    ``find_log`` gives path and last lines of an attempt's log for the last block.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        detail: Detail = "steps",
        clock: Callable[[], float] = time.time,
        notes: Notes | None = None,
        command: str = "python -m procflow",
        state_dir: str | None = None,
        find_log: FindLog | None = None,
    ) -> None:
        self._write = write
        self._detail = detail
        self._clock = clock
        self._command = command
        self._began = 0.0
        self._steps = 0
        self._ended: dict[str, int] = {}
        self._items = 0
        self._usage: dict[str, AttemptFinished] = {}
        self._paces: dict[str, _Pace] = {}
        self._item_lines: dict[str, int] = {}
        self._maps: set[str] = set()
        self._blocks: set[str] = set()
        self._aftermath = Aftermath()
        self.notes = notes or Notes()
        self.state_dir = state_dir
        self.find_log = find_log

    def begin(self, run: Any) -> None:
        """Learn what events do not say, from the ``Run`` that ``launch`` hands to observers before the first event."""
        self.notes = notes_of(run.prepared.graph, run.prepared.workers)
        self.find_log = self.find_log or finder(run.folder.run(run.run_id))
        if self.state_dir is None and run.folder.path != locate():
            self.state_dir = short_path(run.folder.path)
        for warning in run.prepared.warnings if self._detail != "failures" else ():
            self._write(f"warning: {clean(warning)}")

    def handle(self, event: Event) -> None:
        """Take one event, in order."""
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)

    def _line(self, at: float, text: str) -> None:
        if self._detail == "steps":
            self._write(f"{stamp(self._began + at)} {text}")

    def _step(self, at: float, path: str, label: str, item: str, text: str) -> None:
        name = clean(label.rsplit("/", 1)[-1])
        of = f", item {clean(item)}" if item else ""
        self._line(at, f"Pipeline step {path} ({name}{of}): {text}")

    # -- the run -------------------------------------------------------------------------------------------------------

    def _run_started(self, event: RunStarted) -> None:
        self._began = self._clock() - event.at
        self._steps = self.notes.steps if self.notes.steps is not None else event.steps
        workers = self.notes.workers
        on = f" on {counted(workers, 'worker')}" if workers else ""
        steps = counted(self._steps, "step")
        self._line(event.at, f"Pipeline {clean(event.pipeline)}: run {clean(event.run_id)} started, {steps}{on}")

    def _run_finished(self, event: RunFinished) -> None:
        well = event.status == "succeeded"
        if event.status == "partial":
            self._aftermath.tolerate_all()
        if self._detail != "failures" or not well or self._aftermath.cut_short:
            for line in self._aftermath.lines(
                event.run_id, command=self._command, state_dir=self.state_dir, find_log=self.find_log
            ):
                self._write(line)
            self._write(f"{stamp(self._began + event.at)} {self._summary(event)}")

    def _summary(self, event: RunFinished) -> str:
        steps = counted(self._steps, "step")
        if event.status != "succeeded":
            kinds = (("succeeded", "succeeded"), ("failed", "failed"), ("skipped", "not run"), ("cancelled", "stopped"))
            counts = [f"{self._ended[k]:,} {word}" for k, word in kinds if self._ended.get(k)]
            steps = f"{steps} ({', '.join(counts)})" if counts else steps
        items = f", {counted(self._items, 'item')}" if self._items else ""
        speed = f", {event.work_s / event.wall_s:.1f}x" if event.work_s > event.wall_s > 0 else ""
        workers = f", {counted(self.notes.workers, 'worker')}" if self.notes.workers else ""
        return (
            f"run {clean(event.run_id)} {_ending(event)}: {steps}{items} in {duration_text(event.wall_s)}; "
            f"{duration_text(event.work_s)} of work{speed}{workers}"
        )

    # -- attempts and steps --------------------------------------------------------------------------------------------

    def _attempt_started(self, event: AttemptStarted) -> None:
        if not event.item and not self._undeclared(event.path):
            text = "started" if event.number == 1 else f"attempt {event.number} started"
            self._step(event.at, event.path, event.label, "", text)

    def _undeclared(self, path: str) -> bool:
        return not path or path in self._blocks or path in self.notes.blocks

    def _attempt_finished(self, event: AttemptFinished) -> None:
        if not event.item and not self._undeclared(event.path):
            self._usage[event.path] = event
        if event.retry_in_s is None or event.status not in ("failed", "lost"):
            return
        if event.item and not self._item_line(event.path):
            return
        most = self.notes.attempts.get(event.path)
        of = f" of {most}" if most is not None and event.number <= most else ""
        text = f"attempt {event.number}{of} {event.status}: {with_place(event.failure)}"
        self._step(event.at, event.path, event.label, event.item, f"{text}; {_next(event.retry_in_s)}")

    def _item_line(self, path: str) -> bool:
        """May one more line be spent on single items of this step?"""
        used = self._item_lines.get(path, 0)
        self._item_lines[path] = used + 1
        return used < ITEM_LINES

    def _step_finished(self, event: StepFinished) -> None:
        self._aftermath.note_step(event)
        if event.item:
            if event.status == "failed" and self._item_line(event.path):
                self._step(event.at, event.path, event.label, event.item, _failed(event))
            return
        if self._undeclared(event.path):
            return
        self._paces.pop(event.path, None)
        never = event.status == "cancelled" and not event.attempts
        if not of_hook(event.path):
            self._count("skipped" if never else event.status)
        attempt = self._usage.pop(event.path, None)
        if event.kept:
            text = "kept, done before" if event.status == "succeeded" else "kept as skipped"
        elif event.status == "succeeded":
            text = _succeeded(event, attempt)
        elif event.status == "failed":
            text = _failed(event)
        else:
            text = _left_out("not run" if never else event.status, event.reason)
        self._step(event.at, event.path, event.label, "", text)

    def _count(self, status: str) -> None:
        self._ended[status] = self._ended.get(status, 0) + 1

    def _step_progress(self, event: StepProgress) -> None:
        if event.item or not event.done:
            return
        pace = self._paces.setdefault(event.path, _Pace(at=event.at))
        share = event.done / event.total if event.total else 0.0
        since = event.at - pace.at
        crossed = math.floor(share / SHARE_STEP + 1e-9) > math.floor(pace.share / SHARE_STEP + 1e-9)
        if share < 1 and (since >= QUIET_S or (crossed and since >= SHARE_GAP_S)):
            pace.share, pace.at = share, event.at
            self._step(event.at, event.path, event.label, "", self._done(event, share))

    def _done(self, event: StepProgress, share: float) -> str:
        items = " items" if event.path in self._maps else ""
        if not event.total:
            return f"{event.done:,g}{items} done"
        return f"{_number(event.done)} of {_number(event.total)}{items} done ({share:.0%})"

    # -- blocks --------------------------------------------------------------------------------------------------------

    def _block_started(self, event: BlockStarted) -> None:
        self._blocks.add(event.path)
        if event.kind == "map":
            self._maps.add(event.path)
            if not event.item:
                self._paces[event.path] = _Pace(at=event.at)
        if event.path and not event.item:
            text = _starting(event, self.notes.at_once.get(event.path))
            self._step(event.at, event.path, event.label, "", text)

    def _block_finished(self, event: BlockFinished) -> None:
        self._aftermath.note_block(event)
        if event.kind == "map" and event.retry_in_s is None:
            self._items += event.members
        if event.item or not event.path:
            return
        hidden = sum(self._hidden(path) for path in [p for p in self._item_lines if _within(p, event.path)])
        if hidden:
            self._step(event.at, event.path, event.label, "", f"{counted(hidden, 'more such line')} not shown")
        self._paces.pop(event.path, None)
        if event.kind == "map" and event.retry_in_s is None:
            self._count(event.status)
        self._step(event.at, event.path, event.label, "", _block_text(event))

    def _hidden(self, path: str) -> int:
        return max(0, self._item_lines.pop(path) - ITEM_LINES)


_HANDLERS: dict[type, Callable[[LineProgress, Any], None]] = {
    RunStarted: LineProgress._run_started,
    AttemptStarted: LineProgress._attempt_started,
    AttemptFinished: LineProgress._attempt_finished,
    StepProgress: LineProgress._step_progress,
    StepFinished: LineProgress._step_finished,
    BlockStarted: LineProgress._block_started,
    BlockFinished: LineProgress._block_finished,
    RunFinished: LineProgress._run_finished,
}


def stamp(seconds: float) -> str:
    """``2026-11-21T02:00:12Z`` for seconds since the epoch: UTC, so that a log reads the same all over the year."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _within(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,g}"


def _next(seconds: float) -> str:
    return f"next in {duration_text(seconds)}" if seconds > 0 else "next at once"


def _succeeded(event: StepFinished, attempt: AttemptFinished | None) -> str:
    text = "succeeded"
    if attempt is not None:
        text += f" in {duration_text(attempt.usage.wall_s or max(0.0, attempt.at - attempt.started_at))}"
    if event.attempts > 1:
        text += f" on attempt {event.attempts}"
    if attempt is not None and attempt.usage.peak_rss_bytes:
        text += f", peak {size_text(attempt.usage.peak_rss_bytes)}"
    return text + (f", cost {attempt.cost:g}" if attempt is not None and attempt.cost else "")


def _failed(event: StepFinished) -> str:
    word = "failed (tolerated)" if event.tolerated else "FAILED"
    after = f" after {counted(event.attempts, 'attempt')}" if event.attempts > 1 else ""
    return f"{word}{after}: {with_place(event.failure)}"


_STARTING = {
    "parallel": ("parallel step", ""),
    "sequence": ("step", " one after the other"),
    "graph": ("step", " as their inputs come"),
    "pipeline": ("step", " of another pipeline"),
    "map": ("item", ""),
}


def _starting(event: BlockStarted, at_once: int | None) -> str:
    noun, how = _STARTING.get(event.kind, ("step", ""))
    text = f"starting {counted(event.members, noun)}{how}" if event.members else "starting"
    if at_once is not None:
        text += f", at most {at_once:,} at once"
    if event.join in ("any", "1"):
        text += ", the first success is enough"
    elif event.join not in ("all", ""):
        text += f", {clean(event.join)} successes are enough"
    return text


def _block_text(event: BlockFinished) -> str:
    noun = "item" if event.kind == "map" else "step"
    if event.retry_in_s is not None:
        return f"attempt {event.attempt} failed: {_reason(event)}; {_next(event.retry_in_s)}"
    if event.status in ("skipped", "cancelled"):
        return _left_out("not run" if event.status == "cancelled" and not event.attempt else event.status, event.reason)
    saved = f", {duration_text(event.saved_s)} saved" if event.saved_s > 0 else ""
    cost = f", cost {event.cost:g}" if event.cost else ""
    done = f"{event.successful_count:,} of {counted(event.members, noun)}"
    names = ", ".join(clean(name) for name in event.produced[:20])
    more = f" and {len(event.produced) - 20:,} more" if len(event.produced) > 20 else ""
    produced = f"; produced {names}{more}" if names else ""
    if event.kept:
        return f"kept, done before: {done}{produced}"
    work = f"{duration_text(event.work_s)} of work{saved}{cost}"
    if event.status == "failed":
        return f"FAILED in {duration_text(event.wall_s)}: {_reason(event)}; {done} succeeded; {work}"
    failed = f"; {event.failed_count:,} failed" if event.failed_count else ""
    return f"succeeded in {duration_text(event.wall_s)}: {done}; {work}{failed}{produced}"


def _left_out(word: str, reason: str) -> str:
    return f"{word}: {shortened(reason)}" if reason else word


def _reason(event: BlockFinished) -> str:
    return shortened(event.reason) if event.reason else why(event.failure)


def _ending(event: RunFinished) -> str:
    because = f" ({shortened(event.reason)})" if event.reason else ""
    if event.status == "partial":
        return f"finished with {counted(event.tolerated or event.failures, 'tolerated failure')}{because}"
    words = {"succeeded": "succeeded", "failed": "FAILED", "timed_out": "TIMED OUT", "cancelled": "was STOPPED"}
    return words[event.status] + because
