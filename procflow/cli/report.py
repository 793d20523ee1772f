"""``procflow report`` and ``procflow trace``: a run as one HTML file, and as a trace for Perfetto.

This file owns the options and where the files go; what is in them is made in ``procflow/report``. It never writes to a state
folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from procflow.cli.output import err, out
from procflow.errors import ProcflowError
from procflow.events import Event
from procflow.plaintext import clean
from procflow.storing.history import History, RunRow, UnknownRun
from procflow.storing.state_folder import StateFolder, locate

__all__ = ["ReportAfter", "check_target", "opened", "report", "run_found"]


@click.command()
@click.argument("run", required=False)
@click.option(
    "-o", "--output", metavar="F", type=click.Path(dir_okay=False), help="File to write; default report-RUN.html here."
)
@click.option("--state-dir", metavar="DIR", type=click.Path(), help="State folder; default .procflow here.")
def report(run: str | None, output: str | None, state_dir: str | None) -> int:
    """Write a run as one HTML file: what failed, what ran when, memory, and where the time went.

    RUN is an id or its beginning; without it, or with the word last, the last run. The file needs no network and no script. It
    works for runs that are going on, were killed or resumed; what is not known is said.
    """
    with opened(state_dir) as past:
        found = run_found(past, run)
        target = Path(output) if output is not None else Path(f"report-{found.run_id}.html")
        return _write(past, found, target)


def opened(state_dir: str | None) -> History:
    """The history of a state folder; StoreError where there is none."""
    return History.open(StateFolder.open(locate(state_dir), create=False))


def run_found(past: History, run: str | None) -> RunRow:
    """The run that is meant; ``click.UsageError`` with close ids where there is none."""
    try:
        return past.run(None if run == "last" else run)
    except UnknownRun as error:
        raise click.UsageError(str(error)) from None


def _write(past: History, run: RunRow, target: Path) -> int:
    from procflow.report.page import write_page

    try:
        write_page(past, run, target)
    except OSError as error:
        err(f"error: {clean(target)} can't be written: {error.strerror or error}")
        return 1
    out(str(clean(target)))
    return 0


def check_target(text: str) -> None:
    """``click.BadParameter`` where a report can't be written to this file: known before the run, not after it."""
    target = Path(text)
    try:
        folder = target.parent
        if target.is_dir():
            raise click.BadParameter(f"{text!r} is a folder; name a file in it")
        if not folder.is_dir():
            raise click.BadParameter(f"there is no folder {str(folder)!r} to write {target.name!r} to")
        if not os.access(target if target.exists() else folder, os.W_OK):
            raise click.BadParameter(f"{text!r} can't be written: permission denied")
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{text!r} can't be written: {error}") from None


class ReportAfter:
    """Remembers which run it watches; ``write`` makes its report when it is over.

    A page that can't be made changes nothing else.
    """

    def __init__(self, target: str) -> None:
        self._target = Path(target)
        self._run: Any = None

    def begin(self, run: Any) -> None:
        """Learn which run it is."""
        self._run = run

    def handle(self, event: Event) -> None:
        """Everything is in the journal when the run is over."""

    def write(self) -> None:
        """Write the report of the run that was watched, if one began; what goes wrong is told on stderr."""
        if self._run is None:
            return
        from procflow.report.page import write_page

        try:
            with History.open(self._run.folder) as past:
                write_page(past, past.run(self._run.run_id), self._target)
        except (OSError, ProcflowError, ImportError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            err(f"warning: the report {clean(self._target)} was not written: {clean(reason)}")
