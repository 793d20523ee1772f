"""``procflow why``: why a step would run again or be kept, and what has changed since the run it is compared with.

Asks the same judges as ``resume --plan`` (``storing/journal_kept.py``), for one step and all that it builds on. Nothing
of the user's is imported, nothing runs, nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from procflow.cli.output import out, refused
from procflow.cli.reading import found_run, local_time, opened, state_option, time_text
from procflow.cli.resume import file_of
from procflow.errors import PipelineError
from procflow.plaintext import clean, counted, shortened
from procflow.storing.history import History, RunRow, StepRow

if TYPE_CHECKING:
    from procflow.resuming.needs import Key
    from procflow.storing.journal_kept import JournalKept

__all__ = ["why"]

_ROLES = {"gate": "its condition", "expand": "its items", "merger": "its merge", "batch": "its function", "block": ""}


@click.command()
@click.argument("step")
@click.argument("run", required=False)
@state_option
def why(step: str, run: str | None, state_dir: str | None) -> int:
    """Say why STEP ended as it did in RUN, whether its result still holds, and what has changed if it does not.

    RUN is an id or its beginning; without it the last run. The pipeline is compared as it is now: its file, its code, the
    files it declares.
    """
    from procflow.dialects import Reading
    from procflow.launch import prepare
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.resuming.continuing import Earlier, again, open_session
    from procflow.resuming.selection import find_step
    from procflow.storing.state_folder import lock_name

    with opened(state_dir) as past:
        row = found_run(past, None if run == "last" else run)
        file = file_of(row)
        try:
            loaded = load_pipeline(file, Pipeline, Reading.of(row.options.get("reading")))
            options = again(row, loaded.pipeline.params, {})
            prepared = prepare(
                loaded.pipeline,
                source=loaded.source,
                params=options["params"],
                executor=options["executor"],
                run_id=row.run_id,
            )
        except PipelineError as error:
            return refused(error, file, "so nothing can be compared")
        label = find_step(prepared.graph, step)
        earlier = Earlier(row.run_id, force=True)
        with open_session(prepared, past.folder, lock_name(row.file, row.pipeline), earlier) as session:
            assert session.judged is not None
            for line in (*_story(past, row, label), *_judgement(session.judged, label, row)):
                out(line)
    return 0


def _story(past: History, run: RunRow, label: str) -> Iterator[str]:
    """What happened to the step then."""
    rows = [row for row in past.steps(run.run_id, label=label) if row.kind != "copied"]
    yield f"{clean(label)} in run {clean(run.run_id)} of {local_time(run.started)} ({run.status}):"
    if not rows:
        yield f"  it was never reached{f': {shortened(run.reason, 300)}' if run.reason else ''}"
        return
    ended = [row for row in rows if row.status != "running"]
    last = next((row for row in reversed(ended) if not row.item), ended[-1] if ended else rows[-1])
    attempts = sum(1 for row in rows if row.kind == "task" and row.role in ("member", "batch"))
    yield f"  {_ending(last)}" + (f", {counted(attempts, 'attempt')}" if attempts > 1 else "")
    failed = [row for row in ended if row.status in ("failed", "lost")]
    for row in failed[:5]:
        item = f"[{clean(row.item)}]" if row.item else ""
        yield f"  {row.status}{item} ({row.cause}): {shortened(row.message or row.reason or '', 300)}{_place(row)}"
    if len(failed) > 5:
        yield f"  and {counted(len(failed) - 5, 'more failure')}: procflow failures {clean(run.run_id)}"


def _place(row: StepRow) -> str:
    place = (row.failure or {}).get("user_place")
    return f" at {clean(place)}" if place else ""


def _ending(row: StepRow) -> str:
    if row.kind == "kept":
        return "its result was kept from an earlier session"
    took = f" in {time_text(row.wall_s)}" if row.wall_s else ""
    reason = f": {shortened(row.reason, 300)}" if row.reason and row.status != "succeeded" else ""
    return f"{row.status}{took}{reason}"


def _judgement(judged: JournalKept, label: str, run: RunRow) -> Iterator[str]:
    """What a resume would do with it now, and the changes behind that."""
    verdicts = judged.verdicts()
    own = [verdict for key, verdict in verdicts.items() if key[0] == label]
    again = [verdict for verdict in own if not verdict.kept and verdict.key[1] != "block"]
    if not again:
        yield "now: its result still holds; nothing that it is made from has changed"
        return
    yield "now: it would run again"
    for verdict in again:
        what = _ROLES.get(verdict.key[1])
        yield f"  {f'{what}: ' if what else ''}{clean(verdict.why)}"
    causes = _causes(judged, {verdict.key for verdict in again})
    if causes:
        yield f"changed since run {clean(run.run_id)}:"
        for key in causes:
            role = _ROLES.get(key[1])
            yield f"  {clean(key[0])}{f' ({role})' if role else ''}: {clean(judged.changed[key])}"


def _causes(judged: JournalKept, keys: set[Key]) -> list[Key]:
    """The tasks before these that were changed themselves, nearest first."""
    found: list[Key] = []
    seen: set[Any] = set()
    waiting = sorted(keys)
    while waiting:
        key = waiting.pop(0)
        if key in seen or key not in judged.needs:
            continue
        seen.add(key)
        if key in judged.changed and key not in keys:
            found.append(key)
        waiting += judged.needs[key].keys
    return found
