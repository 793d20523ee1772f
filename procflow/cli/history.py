"""``procflow history`` and ``show``: what ran and how it went.

This file owns how the journal looks as text and as JSON. It only reads: it never writes to a state folder, and it works while a run
is going on. Tables are plain text, so that they can be piped and mailed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import click

from procflow import units
from procflow.cli.output import out
from procflow.cli.reading import (
    duration,
    format_option,
    found_run,
    json_text,
    local_time,
    opened,
    state_option,
    table,
    time_text,
)
from procflow.plaintext import clean, clean_lines, counted, shortened
from procflow.showing.state_lines import figure_lines, preview, state_lines, state_values
from procflow.storing.history import STATUSES, History, RunRow, SessionRow, StepRow

__all__ = ["history", "show"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.command()
@click.option("--last", metavar="T", type=duration, help="Only runs that started in the last 7d, 12h, 30m.")
@click.option("--status", type=click.Choice(STATUSES), help="Only runs that ended so.")
@click.option("--pipeline", metavar="NAME", help="Only runs of this pipeline.")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="At most N runs.")
@format_option
@state_option
def history(
    last: float | None, status: str | None, pipeline: str | None, limit: int, form: str, state_dir: str | None
) -> None:
    """List the runs of a state folder, newest first."""
    with opened(state_dir) as past:
        runs = past.runs(last_s=last, status=status, pipeline=pipeline, limit=limit)
        if form == "json":
            out(json_text([asdict(run) for run in runs]))
        elif runs:
            rows = [
                (r.run_id, r.pipeline, r.status, local_time(r.started), time_text(r.wall_s), str(_tasks(r)), _bad(r))
                for r in runs
            ]
            for line in table(
                ("RUN", "PIPELINE", "STATUS", "STARTED", "TIME", "ATTEMPTS", "FAILURES"), rows, right=(4, 5, 6)
            ):
                out(line)
        else:
            out(f"no runs in {clean(past.folder.path)}" + (" that match" if last or status or pipeline else " yet"))


@click.command()
@click.argument("run", required=False)
@format_option
@state_option
def show(run: str | None, form: str, state_dir: str | None) -> None:
    """Show one run and its steps: RUN is an id or its beginning; without it, or with the word last, the last run."""
    with opened(state_dir) as past:
        found = found_run(past, None if run == "last" else run)
        if form == "json":
            out(json_text(_whole(past, found)))
            return
        sessions = past.sessions(found.run_id)
        rows = list(past.steps(found.run_id))
        for line in (*_header(found), *_kept_line(found, sessions, rows), *state_lines(past, found.run_id)):
            out(line)
        for line in figure_lines(past, found.run_id, rows):
            out(line)
        out("")
        for line in table(_STEP_HEAD, _session_tables(sessions, rows), right=(2, 5, 6)):
            out(line)
        for row in past.failures(found.run_id):
            for line in _failure_lines(past, row):
                out(line)


def _whole(past: History, run: RunRow) -> dict[str, Any]:
    steps = []
    for row in past.steps(run.run_id):
        log = past.log(row)
        steps.append(asdict(row) | {"log": str(log) if log is not None else None})
    metrics = [
        {"label": label, "item": item, "attempt": attempt, "name": name, "value": value}
        for label, item, attempt, name, value in past.metrics(run.run_id)
    ]
    state = {key: preview(ref, 10_000) for key, ref in state_values(past, run.run_id).items()}
    return asdict(run) | {"step_executions": steps, "metrics": metrics, "state": state}


def _header(run: RunRow) -> Iterator[str]:
    ended = f", exit code {run.exit_code}" if run.exit_code is not None else ""
    yield f"run       {clean(run.run_id)}  {run.status}{ended}"
    yield f"pipeline  {clean(run.pipeline)}" + (f"  ({clean(run.file)})" if run.file else "")
    yield f"started   {local_time(run.started)}  on {clean(run.host)}, pid {run.pid}" + (
        f", session {run.sessions}" if run.sessions > 1 else ""
    )
    work = f", work {time_text(run.work_s)}" if run.work_s else ""
    speedup = run.work_s / run.wall_s if run.work_s and run.wall_s else 0.0
    faster = f", {speedup:.1f} times as fast as one by one" if speedup >= 1.05 else ""
    yield f"time      {time_text(run.wall_s)}{work}{faster}  ({clean(run.executor)}, {counted(run.workers, 'worker')})"
    kinds = ("succeeded", "failed", "lost", "skipped", "cancelled")
    yield "attempts  " + (", ".join(f"{getattr(run, k)} {k}" for k in kinds if getattr(run, k)) or "none")
    if run.params:
        yield "params    " + ", ".join(f"{clean(k)}={shortened(json.dumps(v), 60)}" for k, v in run.params.items())
    if run.reason:
        yield f"reason    {clean(run.reason)}"


_STEP_HEAD = ("STEP", "ITEM", "TRY", "KIND", "STATUS", "TIME", "MEMORY", "WHY")


def _kept_line(run: RunRow, sessions: Sequence[SessionRow], rows: Sequence[StepRow]) -> Iterator[str]:
    """How much was done before the (last session of the) run began."""
    first_id = sessions[-1].first_id if sessions else 0
    own = [row for row in rows if row.id >= first_id]
    steps = sum(row.kind == "kept" or (row.kind == "map" and row.reason == "done before") for row in own)
    items = sum(row.count or 0 for row in rows if row.kind == "copied" and row.role == "batch")
    if steps or items:
        what = " and ".join(counted(n, name) for n, name in ((steps, "step"), (items, "item")) if n)
        yield f"kept      {what} of " + (f"run {clean(run.earlier)}" if len(sessions) < 2 else "earlier sessions")


def _session_tables(sessions: Sequence[SessionRow], rows: Sequence[StepRow]) -> list[tuple[str, ...]]:
    """The rows of each session, under a line that names it where there are several."""
    if len(sessions) < 2:
        return _step_table(rows)
    lines: list[tuple[str, ...]] = []
    ends = [*(session.first_id for session in sessions[1:]), None]
    for session, end in zip(sessions, ends, strict=True):
        ended = session.ended or ("cut off" if end is not None else "")
        lines.append((f"-- session {session.number}, {local_time(session.started)}", *("" for _ in range(6)), ended))
        lines += _step_table(r for r in rows if r.id >= session.first_id and (end is None or r.id < end))
    return lines


def _step_table(rows: Iterable[StepRow]) -> list[tuple[str, ...]]:
    """A line a row; the items of a map that went well share one line, since there may be a million of them."""
    lines: list[tuple[str, ...]] = []
    well: dict[str, list[float]] = {}
    place: dict[str, int] = {}
    for row in rows:
        if row.kind == "copied" and row.role != "batch":
            continue  # what it stands for is told by a row of its own
        if not row.item or row.status != "succeeded" or row.members is not None:
            lines.append(_step_cells(row))
            continue
        if row.label not in well:
            well[row.label], place[row.label] = [0, 0, 0.0, 0], len(lines)
            lines.append(())
        sums = well[row.label]
        sums[0] += row.count or 0
        sums[1] += 1
        sums[2] += row.wall_s or 0.0
        sums[3] = max(sums[3], row.peak_rss_bytes or 0)
    for label, (items, attempts, work_s, peak) in well.items():
        memory = units.size_text(peak) if peak else ""
        why = f"{counted(int(items), 'item')} in {counted(int(attempts), 'attempt')}"
        lines[place[label]] = (label, "*", "", "task", "succeeded", time_text(work_s), memory, why)
    return lines


def _step_cells(row: StepRow) -> tuple[str, ...]:
    memory = units.size_text(row.peak_rss_bytes) if row.peak_rss_bytes else ""
    why = row.message or row.reason or ""
    if row.members is not None and not why:
        why = f"{row.count or 0} of {row.members} succeeded"
    if row.tolerated:
        why = f"tolerated: {why}"
    attempt = str(row.attempt) if row.attempt else ""
    return (row.label, row.item, attempt, row.kind, row.status, time_text(row.wall_s), memory, shortened(why, 100))


def _failure_lines(past: History, row: StepRow) -> Iterator[str]:
    if row.members is not None or row.failure is None:
        return
    item = f" item {clean(row.item)}" if row.item else ""
    yield ""
    yield f"{clean(row.label)}{item} {row.status} ({row.cause}), attempt {row.attempt}"
    text = str(row.failure.get("traceback") or row.message or "")
    yield from ("    " + line for line in clean_lines(text))
    log = past.log(row)
    if log is not None:
        yield f"    log: {clean(log)}"


def _tasks(run: RunRow) -> int:
    return run.succeeded + run.failed + run.lost + run.skipped + run.cancelled


def _bad(run: RunRow) -> str:
    return str(run.failures) if run.failures is not None else ""
