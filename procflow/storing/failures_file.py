"""failures.jsonl: what failed for good in a run, one JSON object a line, for programs and for people with ``jq``.

    runs/<run_id>/failures.jsonl

An observer of events, so only what is durable gets in; a line is written as the failure is told. A run without
failures leaves no file. ``tolerated`` is null until a block or the run has decided; then the lines are written anew.
So they are where a block runs again: what failed in it has not failed for good. Each session of a run begins a new
file, because a resume runs again all that failed. Keys:

    label path item    the step, and the items of the maps around it and its own (``3/17``)
    kind               step (also the condition, list of items or merge of a block), item, or block (one that failed
                       though nothing in it did: its time was up)
    attempts cause type message user_place signal exit_code peak_rss_bytes      as in ``Failure``
    value              a short repr of the item, empty where it is not known (its worker died)
    log                the last attempt's log, from the run's folder; null where it printed nothing
    tolerated quarantined

It never reads the journal and never decides what counts as a failure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from procflow.attempt import Failure
from procflow.events import (
    AttemptFinished,
    AttemptStarted,
    BlockFinished,
    Event,
    RunFinished,
    RunStarted,
    StepFinished,
)
from procflow.storing.attempt_log import log_path

__all__ = ["NAME", "FailuresFile"]

NAME = "failures.jsonl"
MAX_MESSAGE = 2000
REWRITTEN_BYTES = 1 << 20
"""Above this size the file is written anew only at the end of the run, or a bad night would spend its time here."""

Record = dict[str, Any]
Verdict = tuple[str, str, Literal["gone", "tolerated"]]


class FailuresFile:
    """Keeps ``failures.jsonl`` of one session of a run, in the run's folder. OSError where it can't be written."""

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / NAME
        self._folder = run_folder
        self._fd = -1
        self._size = 0
        self._verdicts: list[Verdict] = []
        self._told: tuple[str, str] | None = None
        # Attempts of items: those that run, and the one that ended last for each step.
        self._running: dict[int, AttemptStarted] = {}
        self._last: dict[str, AttemptStarted] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            RunStarted: self._run_started,
            BlockFinished: self._block_finished,
            RunFinished: self._run_finished,
        }

    def handle(self, event: Event) -> None:
        """Take one event."""
        self.handle_all((event,))

    def handle_all(self, events: Iterable[Event]) -> None:
        """Take events, in order."""
        for event in events:
            if type(event) is AttemptStarted:
                # Only what items run in is ever looked for.
                if event.item:
                    self._running[event.key] = event
            elif type(event) is AttemptFinished:
                if event.item:
                    self._attempt_finished(event)
            elif type(event) is StepFinished:
                if event.status == "failed":
                    self._step_finished(event)
            elif type(event) in self._handlers:
                self._handlers[type(event)](event)

    def close(self) -> None:
        """Close the file; harmless when that is done."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # -- events ------------------------------------------------------------------------------------------------

    def _run_started(self, event: RunStarted) -> None:
        self.path.unlink(missing_ok=True)

    def _attempt_finished(self, event: AttemptFinished) -> None:
        started = self._running.pop(event.key, None)
        if started is not None:
            self._last[event.path] = started

    def _step_finished(self, event: StepFinished) -> None:
        if event.failure is not None:
            log = self._log(event.path, event.label, event.item, event.attempts)
            kind = "item" if event.item else "step"
            tolerated = True if event.tolerated else None
            self._told = (event.path, event.item)
            self._append(_record(event, kind, event.attempts, event.failure, log, tolerated))

    def _block_finished(self, event: BlockFinished) -> None:
        if event.retry_in_s is not None:
            self._decide((event.path, event.item, "gone"))
        elif event.status == "succeeded" and event.failed_count:
            self._decide((event.path, event.item, "tolerated"))
        elif event.status == "failed" and event.failure is not None:
            # Otherwise its failure is that of a member, which has a line.
            own = not event.failed_count and self._told != (event.path, event.item)
            if own or event.failure.cause in ("timeout", "idle"):
                self._append(_record(event, "block", event.attempt, event.failure, None, None))

    def _run_finished(self, event: RunFinished) -> None:
        if self._size:
            well = event.status in ("succeeded", "partial")
            self._rewrite(lambda record: {**record, "tolerated": well if record["tolerated"] is None else True})
        self.close()

    def _log(self, path: str, label: str, item: str, attempts: int) -> str | None:
        """The log of the last attempt: that of its batch for an item."""
        found = [a for a in (*self._running.values(), self._last.get(path)) if a is not None and _covers(a, path, item)]
        if found:
            last = max(found, key=lambda attempt: attempt.key)
            name = log_path(last.label, last.item, last.number)
        else:
            name = log_path(label, item, max(1, attempts))
        return name if (self._folder / name).is_file() else None

    # -- the file ----------------------------------------------------------------------------------------------

    def _append(self, record: Record) -> None:
        if self._fd < 0:
            # Nothing of that name is there: a link that somebody planted is not followed.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o600)
        self._size += _write(self._fd, record)

    def _decide(self, verdict: Verdict) -> None:
        if not self._size:
            return
        self._verdicts.append(verdict)
        if self._size <= REWRITTEN_BYTES:
            self._rewrite(lambda record: record)

    def _rewrite(self, change: Callable[[Record], Record]) -> None:
        """Write the file anew with what has been decided since it was written; whole at every instant."""
        verdicts, self._verdicts = self._verdicts, []
        beside = self.path.with_name(f"{NAME}.new")
        beside.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd, size = os.open(beside, flags, 0o600), 0
        try:
            for record in self._records():
                told = [verdict for verdict in verdicts if _inside(record, verdict)]
                if any(what == "gone" for *_, what in told):
                    continue
                if told:
                    record["tolerated"] = True
                size += _write(fd, change(record))
            os.replace(beside, self.path)
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd, self._size = fd, size

    def _records(self) -> Iterator[Record]:
        with open(self.path, encoding="ascii") as file:
            for line in file:
                yield json.loads(line)


def _record(
    event: StepFinished | BlockFinished,
    kind: str,
    attempts: int,
    failure: Failure,
    log: str | None,
    tolerated: bool | None,
) -> Record:
    message = failure.message
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]}... ({len(message) - MAX_MESSAGE:,} more characters)"
    return {
        "label": event.label,
        "path": event.path,
        "item": event.item,
        "kind": kind,
        "attempts": attempts,
        "cause": failure.cause,
        "type": failure.type,
        "message": message,
        "user_place": failure.user_place,
        "signal": failure.signal,
        "exit_code": failure.exit_code,
        "peak_rss_bytes": failure.peak_rss_bytes,
        "value": failure.item,
        "log": log,
        "tolerated": tolerated,
        "quarantined": failure.type == "Quarantined",
    }


def _write(fd: int, record: Record) -> int:
    data = json.dumps(record, ensure_ascii=True, allow_nan=False).encode() + b"\n"
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return len(data)


def _inside(record: Record, verdict: Verdict) -> bool:
    """Did it fail in this block, and in the same item where the block is one of an item?"""
    path, item, _ = verdict
    own = record["path"]
    if path and own != path and not own.startswith(f"{path}."):
        return False
    return not item or record["item"] == item or record["item"].startswith(f"{item}/")


def _covers(attempt: AttemptStarted, path: str, item: str) -> bool:
    """Was the attempt one of this item, alone or among others (``0-99``, ``3,8,9``)?"""
    if attempt.path != path or not item:
        return False
    outer, _, own = attempt.item.rpartition("/")
    wanted_outer, _, wanted = item.rpartition("/")
    if attempt.item == item or outer != wanted_outer or not wanted.isdecimal():
        return attempt.item == item
    first, dash, last = own.partition("-")
    if dash:
        return int(first) <= int(wanted) <= int(last)
    members = own.split(",")
    return wanted in members or (members[-1] == "..." and int(wanted) > int(members[-2]))
