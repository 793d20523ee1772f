"""``procflow run``: one run of a pipeline file, its progress on stderr, its shown values on stdout.

This file joins the options with ``procflow.launch``; it decides what is printed and what the exit code is, nothing
about steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from procflow import units
from procflow.cli.options import dialect_options, limit_options, param_options, params_of, reading_of
from procflow.cli.output import err, out, refused
from procflow.cli.watching import Watching, watch_options
from procflow.errors import LockHeld, PipelineError
from procflow.plaintext import clean, shortened
from procflow.units import Share

if TYPE_CHECKING:
    from procflow.result import RunResult

__all__ = ["run", "run_file"]

LONGEST_WAIT_S = 24 * 3600.0
"""So long does ``--if-running wait`` wait without a time of its own."""


def _if_running(text: str) -> tuple[str, float]:
    """``fail``, ``skip``, ``wait`` or ``wait=10m`` to what to do and how many seconds to wait."""
    word, equals, duration = text.partition("=")
    if word not in ("fail", "skip", "wait") or (equals and word != "wait"):
        raise click.BadParameter(f"{text!r} is not known; write fail, skip, wait or wait=10m")
    try:
        wait_s = units.duration(duration) if equals else LONGEST_WAIT_S
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return word, wait_s if word == "wait" else 0.0


def _run_id(text: str) -> str:
    from procflow.storing.state_folder import is_safe_id

    if not is_safe_id(text):
        raise click.BadParameter(
            f"{text!r} can't be a run id: 1 to 128 of letters, digits, '_', '-' and '.', no dot first"
        )
    return text


@click.command()
@click.argument("file", type=click.Path())
@param_options
@limit_options
@dialect_options
@click.option(
    "--if-running",
    metavar="fail|skip|wait[=T]",
    type=_if_running,
    default="fail",
    help="When a run of this file is going on: fail (exit 75), skip (exit 0), or wait for it, a day at most.",
)
@click.option("--from", "start", metavar="STEP", help="This step and all after it; the rest is kept from the last run.")
@click.option(
    "--only", metavar="STEP", multiple=True, help="Only this step, on values of the last run; repeat for more."
)
@click.option("--skip", metavar="STEP", multiple=True, help="Not this step; its value of the last run is kept, if any.")
@click.option(
    "--force",
    is_flag=True,
    help="With --from, --only, --skip: keep results of another version of Python or procflow, too.",
)
@click.option("--no-cache", is_flag=True, help="Run steps with cache: true whatever was done before.")
@click.option("-n", "--dry-run", is_flag=True, help="Show the plan and run nothing.")
@watch_options
@click.option("--run-id", metavar="ID", type=_run_id, help="Name of the run; default date, time and three letters.")
def run(
    file: str,
    param: tuple[str, ...],
    params_file: Path | None,
    workers: int | str | Share | None,
    memory: int | Share | None,
    executor: str | None,
    timeout: float | None,
    state_dir: str | None,
    dialect: str | None,
    bind: tuple[str, ...],
    bindings: str | None,
    if_running: tuple[str, float],
    start: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    force: bool,
    no_cache: bool,
    dry_run: bool,
    run_id: str | None,
    **watch: Any,
) -> int:
    """Run the pipeline in FILE.

    Progress goes to stderr. stdout holds only the values that the file names under show.
    """
    limits = {"workers": workers, "memory": memory, "executor": executor, "timeout": timeout}
    reading = reading_of(dialect, bind, bindings)
    if dry_run:
        from procflow.cli.plan import print_plan

        as_json = watch["log_format"] == "json"
        return print_plan(file, params_of(param, params_file), limits, state_dir, as_json=as_json, reading=reading)
    watching = Watching(watch)
    action, wait_s = if_running
    try:
        with watching.telling() as tell:
            options: dict[str, Any] = {
                **limits,
                "params": params_of(param, params_file),
                "state_dir": state_dir,
                "run_id": run_id,
            }
            earlier = _earlier(start, only, skip, force)
            options = {**options, "lock_wait_s": wait_s, "earlier": earlier, "reading": reading, "cache": not no_cache}
            try:
                return tell(run_file(file, options, watching))
            except LockHeld as error:
                if action != "skip":
                    raise
                err(f"skipped: {clean(error)}")
                return 0
    except PipelineError as error:
        return refused(error, file)


def _earlier(start: str | None, only: tuple[str, ...], skip: tuple[str, ...], force: bool) -> Any:
    """What the run builds on: the last one of the pipeline where steps were chosen, else nothing."""
    if start is None and not only and not skip:
        if force:
            raise click.UsageError(
                "a run keeps nothing that was done before, so there is nothing to force; "
                "--force goes with --from, --only and --skip"
            )
        return None
    from procflow.resuming.continuing import Earlier
    from procflow.resuming.selection import Selection

    return Earlier(selection=Selection(start, only, skip), force=force)


def run_file(file: str, options: dict[str, Any], watching: Watching) -> int:
    """Run a file with the options of ``launch``; the exit code."""
    from procflow.guarding import here
    from procflow.launch import launch
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline

    loaded = load_pipeline(file, Pipeline, options.pop("reading", None))
    with watching.observers() as observers, here.alone():
        result = launch(loaded.pipeline, source=loaded.source, observers=observers, **options)
    shown = True
    if result.ok and loaded.pipeline.show:
        from procflow.working.functions import add_folder

        # Values may be of classes that the pipeline's own modules define.
        add_folder(str(loaded.source.folder))
        shown = show_values(result, loaded.pipeline.show)
    return result.exit_code or int(not shown)


def show_values(result: RunResult, names: tuple[str, ...]) -> bool:
    """Print values to stdout, text as it is and others as Python writes them; False where one could not be opened."""
    well = True
    for name in names:
        if name not in result.outputs:
            err(f"show: {clean(name)} has no value: the step that writes it was skipped")
            continue
        try:
            value = result.outputs[name]
            text = value if isinstance(value, str) else _pretty(value)
        except Exception as error:
            err(f"show: {clean(name)} can't be opened here: {type(error).__name__}: {shortened(error)}")
            well = False
        else:
            out(text.removesuffix("\n"))
    return well


def _pretty(value: object) -> str:
    from pprint import pformat

    return pformat(value, width=100, compact=True, sort_dicts=False)
