"""``procflow status`` and ``procflow failures``: what goes on now, and what went wrong, in a few lines.

Reads the journal of a live run as well as of one that is over; it never writes. ``show`` tells everything, these tell what
somebody needs who was just woken up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import click

from procflow.cli.output import out
from procflow.cli.reading import format_option, found_run, json_text, local_time, opened, state_option, time_text
from procflow.plaintext import clean, clean_lines, counted, shortened
from procflow.storing.failures_file import NAME as FAILURES
from procflow.storing.history import History, RunRow, StepRow
from procflow.units import size_text

__all__ = ["failures", "status"]

FULL = 20
"""So many failures are told with their tracebacks; all of them with --format json."""


@click.command()
@click.argument("run", required=False)
@format_option
@state_option
def status(run: str | None, form: str, state_dir: str | None) -> int:
    """Say where a run stands: what is done, what runs now and for how long. Without RUN the last one.

    The exit code is that of the run, 0 while it goes on.
    """
    with opened(state_dir) as past:
        found = found_run(past, None if run == "last" else run)
        facts = _facts(past, found)
    if form == "json":
        out(json_text(facts))
    else:
        for line in _status_lines(found, facts):
            out(line)
    return 0 if found.live else found.exit_code if found.exit_code is not None else 1


def _facts(past: History, run: RunRow) -> dict[str, Any]:
    running, ended, items = [], Counter[str](), Counter[str]()
    waiting: dict[str, StepRow] = {}
    for row in past.steps(run.run_id):
        if row.status == "running":
            if row.members is None and row.kind == "task":
                running.append(row)
            continue
        if row.kind == "copied" or row.role in ("gate", "expand", "merger"):
            continue
        if row.members is not None:
            if row.kind == "map" and not row.item and row.retry_in_s is None:
                ended[row.status] += 1
            continue
        if row.role == "batch" or (row.item and row.kind == "task"):
            items[row.label] += row.count or 0
        elif row.retry_in_s is not None:
            waiting[row.label] = row
        elif not row.item:
            ended["kept" if row.kind == "kept" else row.status] += 1
            waiting.pop(row.label, None)
    now_s = _age_s(run) if run.live else None
    return {
        "run_id": run.run_id,
        "pipeline": run.pipeline,
        "status": run.status,
        "live": run.live,
        "pid": run.pid if run.live else None,
        "exit_code": run.exit_code,
        "reason": run.reason,
        "wall_s": now_s if run.live else run.wall_s,
        "steps": run.steps,
        "ended": dict(ended),
        "items": dict(items),
        "running": [
            {
                "label": row.label,
                "item": row.item,
                "attempt": row.attempt,
                "executor": row.executor,
                "since_s": now_s - row.started if now_s is not None and row.started is not None else None,
            }
            for row in running
            if run.live
        ],
        "again": [{"label": row.label, "attempt": row.attempt, "message": row.message} for row in waiting.values()],
    }


def _age_s(run: RunRow) -> float:
    started = datetime.fromisoformat(run.started.replace("Z", "+00:00"))
    return max(0.0, (datetime.now(timezone.utc) - started).total_seconds())


def _status_lines(run: RunRow, facts: dict[str, Any]) -> Iterator[str]:
    word = f"running, pid {run.pid}" if run.live else run.status
    code = f", exit code {run.exit_code}" if run.exit_code is not None else ""
    yield f"{clean(run.pipeline)}  run {clean(run.run_id)}  {word}{code}"
    began = f"began {local_time(run.started)}"
    yield (
        f"  {began}, {time_text(facts['wall_s'])} {'so far' if run.live else 'in all'}"
        if facts["wall_s"]
        else f"  {began}"
    )
    done = [f"{count:,} {kind}" for kind, count in facts["ended"].items()]
    if done:
        yield f"  steps over: {', '.join(done)}"
    for label, count in facts["items"].items():
        yield f"  {clean(label)}: {counted(count, 'item')} done"
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in facts["running"]:
        by_label.setdefault(row["label"], []).append(row)
    for label, rows in by_label.items():
        longest = max((row["since_s"] for row in rows if row["since_s"] is not None), default=None)
        since = f" for {time_text(longest)}" if longest is not None else ""
        tries = max(row["attempt"] for row in rows)
        attempt = f", attempt {tries}" if tries > 1 else ""
        at_once = f", {len(rows)} at once" if len(rows) > 1 else ""
        yield f"  running: {clean(label)}{since}{at_once}{attempt}"
    for row in facts["again"] if run.live else ():
        yield f"  will run again: {clean(row['label'])} after {shortened(row['message'] or 'a failure', 120)}"
    if run.reason:
        yield f"  {shortened(run.reason, 300)}"
    if not run.live and run.status not in ("succeeded", "partial"):
        yield f"  procflow failures {clean(run.run_id)}"
        yield f"  procflow resume {clean(run.run_id)}"


@click.command()
@click.argument("run", required=False)
@format_option
@state_option
def failures(run: str | None, form: str, state_dir: str | None) -> int:
    """List what failed for good in a run: cause, place, log. Without RUN the last one.

    With --format json one object a line, all of them. The exit code is 1 where anything failed that was not tolerated.
    """
    with opened(state_dir) as past:
        found = found_run(past, None if run == "last" else run)
        rows, allowed = _for_good(past, found)
        bad = [row for row in rows if row.id not in allowed]
        if form == "json":
            for row in rows:
                out(json.dumps(_record(past, row, row.id in allowed)))
            return int(bool(bad))
        if not rows:
            out(f"nothing failed in run {clean(found.run_id)} ({found.status})")
            return 0
        for row in rows[:FULL]:
            for line in _failure(past, row, row.id in allowed):
                out(line)
        if len(rows) > FULL:
            out(
                f"... and {counted(len(rows) - FULL, 'more failure')}: procflow failures {clean(found.run_id)} --format json"
            )
    return int(bool(bad))


def _for_good(past: History, run: RunRow) -> tuple[list[StepRow], set[int]]:
    """Steps and items whose last word was a failure, and the ids of those that a block or the run put up with."""
    rows = [row for row in past.failures(run.run_id) if row.retry_in_s is None]
    last = {(row.path, row.item): row.id for row in rows}
    ended = _ended_badly(past, run)
    # Of a batch that was lost the innocent items ran again; and an item that failed twice is told once.
    rows = [
        row
        for row in rows
        if row.role != "batch" or (last[row.path, row.item] == row.id and (row.path, row.item) in ended)
    ]
    below = {row.path for row in rows if row.members is None}
    # A block that failed because something in it did is no news.
    rows = [row for row in rows if row.members is None or not any(_inside(path, row.path) for path in below)]
    well = {
        row.path
        for row in past.steps(run.run_id)
        if row.members is not None and not row.item and row.status == "succeeded"
    }
    allowed = {
        row.id
        for row in rows
        if row.tolerated or run.status in ("succeeded", "partial") or any(_inside(row.path, path) for path in well)
    }
    return rows, allowed


def _ended_badly(past: History, run: RunRow) -> set[tuple[str, str]]:
    """Path and item of all that failed for good, as the run itself has written down."""
    found = set()
    try:
        with open(past.folder.run(run.run_id) / FAILURES, encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                found.add((str(record["path"]), str(record["item"])))
    except (OSError, ValueError, KeyError):
        # Cut off, cleaned away or damaged: what there is tells what it can.
        pass
    return found


def _inside(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")


def _record(past: History, row: StepRow, tolerated: bool) -> dict[str, Any]:
    log = past.log(row)
    told = {"label": row.label, "path": row.path, "item": row.item, "attempt": row.attempt, "status": row.status}
    return {
        **told,
        "cause": row.cause,
        "message": row.message,
        "tolerated": tolerated,
        "peak_rss_bytes": row.peak_rss_bytes,
        "log": str(log) if log is not None else None,
        "failure": row.failure,
    }


def _failure(past: History, row: StepRow, tolerated: bool) -> Iterator[str]:
    item = f"[{clean(row.item)}]" if row.item else ""
    word = "tolerated" if tolerated else "FAILED" if row.status == "failed" else row.status.upper()
    tries = f" after {counted(row.attempt, 'attempt')}" if row.attempt > 1 else ""
    yield f"{word} {clean(row.label)}{item}{tries} ({row.cause})"
    yield f"    {shortened(row.message or row.reason or 'no reason was given', 2000)}"
    failure = row.failure or {}
    if failure.get("user_place"):
        yield f"    at {clean(failure['user_place'])}"
    if row.peak_rss_bytes and row.cause in ("oom", "crash", "pressure"):
        yield f"    peak memory {size_text(row.peak_rss_bytes)}"
    for line in clean_lines(str(failure.get("traceback") or ""))[-12:]:
        if line:
            yield f"      {line}"
    log = past.log(row)
    if log is not None:
        yield f"    log {clean(log)}"
