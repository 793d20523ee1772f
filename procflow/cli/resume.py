"""``procflow resume`` and ``procflow retry``: a run that did not end well goes on, or a new one takes over its results.

This file finds the run and says what will be kept and why not the rest; ``procflow.resuming.continuing`` decides it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from procflow.cli.options import params_of, workers_option
from procflow.cli.output import err, out, refused
from procflow.cli.run import run_file
from procflow.cli.watching import Watching, watch_options
from procflow.errors import PipelineError
from procflow.plaintext import clean, counted

if TYPE_CHECKING:
    from procflow.resuming.continuing import Earlier
    from procflow.storing.history import RunRow
    from procflow.storing.journal_kept import JournalKept
    from procflow.storing.state_folder import StateFolder

__all__ = ["file_of", "resume", "retry"]


def _options(command: Any) -> Any:
    for option in (
        click.argument("run", required=False),
        click.option("--plan", is_flag=True, help="Say what would be kept and what runs again and why; run nothing."),
        click.option("--force", is_flag=True, help="Keep results of another version of Python, too."),
        workers_option,
        click.option("-p", "--param", metavar="KEY=VALUE", multiple=True, help="A parameter that is to be another."),
        watch_options,
        click.option(
            "--state-dir", metavar="DIR", type=click.Path(), help="State folder; default .procflow here."
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command()
@_options
def resume(run: str | None, **given: Any) -> int:
    """Go on with a run that was killed, stopped, or failed: nothing that is done runs again, also inside maps.

    RUN is an id or its beginning; without it the last run that did not succeed, if it is clear which is meant. It keeps
    its id, file and parameters.
    Steps whose code or parameters have changed since run again, with all that builds on them.
    """
    return _continue(run, given, same_run=True)


@click.command()
@_options
def retry(run: str | None, **given: Any) -> int:
    """Start a new run that keeps what succeeded in an old one, and runs what failed or never ran.

    RUN is an id or its beginning; without it the last run that did not succeed, if it is clear which is meant.
    """
    return _continue(run, given, same_run=False)


def _continue(run: str | None, given: dict[str, Any], same_run: bool) -> int:
    from procflow.resuming.continuing import Earlier, NothingToDo, find_run, selection_of
    from procflow.storing.state_folder import StateFolder, locate

    folder = StateFolder.open(locate(given["state_dir"]), create=False)
    try:
        row = find_run(folder, run, ended_well=not same_run)
        earlier = Earlier(row.run_id, same_run, selection_of(row) if same_run else None, given["force"])
        return _go_on(folder, row, earlier, given)
    except NothingToDo as done:
        err(clean(done))
        # A script that asks whether all is well must not hear so of a run with failures.
        return done.run.exit_code or 0


def _go_on(folder: StateFolder, row: RunRow, earlier: Earlier, given: dict[str, Any]) -> int:
    from procflow.dialects import Reading
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.resuming.continuing import again

    file = file_of(row)
    try:
        reading = Reading.of(row.options.get("reading"))
        declared = load_pipeline(file, Pipeline, reading).pipeline.params
        wanted = {"workers": given["workers"], "params": params_of(given["param"], None)}
        options = again(row, declared, wanted)
        options |= {
            "state_dir": str(folder.path),
            "earlier": earlier,
            "reading": reading,
            "run_id": row.run_id if earlier.same_run else None,
        }
        if given["plan"]:
            return _print_plan(file, options, row)
        watching = Watching(given)
        if not watching.quiet:
            verb = "resuming" if earlier.same_run else "retrying"
            err(f"{verb} run {clean(row.run_id)} of {clean(file)} ({row.status}){_passed_over(folder, row)}")
        with watching.telling() as tell:
            return tell(run_file(file, options, watching))
    except PipelineError as error:
        return refused(error, file)


def _passed_over(folder: StateFolder, row: RunRow) -> str:
    """That there is a newer run, of another pipeline or of this one."""
    from procflow.storing.history import History

    with History.open(folder) as past:
        newest = past.runs(limit=1)[0]
    if newest.run_id == row.run_id:
        return ""
    return clean(f"; the newest run is {newest.run_id} of {newest.pipeline} ({newest.status})")


def file_of(row: RunRow) -> str:
    """The run's pipeline file as seen from here."""
    from procflow.resuming.continuing import CannotContinue

    if row.file is None:
        raise CannotContinue(
            f"run {row.run_id} was started from Python and has no file; call Pipeline.resume(run_id={row.run_id!r}) there"
        )
    if not Path(row.file).is_file():
        raise CannotContinue(f"run {row.run_id}: its pipeline file {row.file} is gone; bring it back to go on")
    beside = os.path.relpath(row.file)
    return row.file if beside.startswith("..") else beside


# -- what would be kept ------------------------------------------------------------------------------------------------


def _print_plan(file: str, options: dict[str, Any], row: RunRow) -> int:
    from procflow.launch import prepare
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.resuming.continuing import open_session
    from procflow.storing.state_folder import StateFolder, lock_name

    loaded = load_pipeline(file, Pipeline, options["reading"])
    limits = {name: options[name] for name in ("params", "executor", "workers", "memory", "timeout", "run_id")}
    prepared = prepare(loaded.pipeline, source=loaded.source, **limits)
    folder = StateFolder.open(options["state_dir"], create=False)
    with open_session(prepared, folder, lock_name(row.file, row.pipeline), options["earlier"]) as session:
        assert session.judged is not None
        lines = list(_plan_lines(session.judged))
    kept = sum(1 for line in lines if line[0] == "kept")
    out(f"run {clean(row.run_id)} of {clean(file)} ({row.status}): {counted(kept, 'step')} kept, "
        f"{len(lines) - kept} to run")  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    for line in lines:
        out("  ".join(cell.ljust(width) for cell, width in zip(line, (*widths, 0), strict=True)).rstrip())
    return 0


def _plan_lines(judged: JournalKept) -> Iterator[tuple[str, str, str, str]]:
    """Kept or not, path, label, and why; a line for each declared leaf, and for hidden tasks only where they run again."""
    verdicts = judged.verdicts()
    in_order = sorted(verdicts.values(), key=lambda v: ([int(p) for p in v.path.split(".") if p], v.key[1] != "gate"))
    for verdict in in_order:
        label, role = verdict.key
        if role == "block":
            continue
        why = verdict.why
        if role == "batch":
            if verdict.done is not None:
                of = f" of {verdict.total:,}" if verdict.total is not None else ""
                items = f"{verdict.done:,}{of} items kept" if verdict.done or verdict.kept else ""
                why = "; ".join(part for part in (items, why) if part)
        elif role == "member" and verdict.done is not None:
            why = why or f"{counted(verdict.done, 'item')} kept"
        elif role != "member":
            if verdict.kept:
                continue
            label = f"{label} ({ {'gate': 'its condition', 'expand': 'its items', 'merger': 'its merge'}[role] })"
        yield ("kept" if verdict.kept else "runs", clean(verdict.path), clean(label), clean(why))
