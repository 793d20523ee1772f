"""``procflow trace``: a run as a trace that Perfetto and Chrome's ``about:tracing`` open.

This file owns the options and where the file goes; what is in it is made in ``procflow/report/trace.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

import click

from procflow.cli.output import err, out
from procflow.cli.report import opened, run_found
from procflow.plaintext import clean

__all__ = ["trace"]


@click.command()
@click.argument("run", required=False)
@click.option(
    "-o", "--output", metavar="F", default="", help="File to write; - is stdout; default trace-RUN.json here."
)
@click.option("--state-dir", metavar="DIR", type=click.Path(), help="State folder; default .procflow here.")
def trace(run: str | None, output: str, state_dir: str | None) -> int:
    """Write a run as a trace: a track for each worker, and memory, cores and running tasks over time.

    RUN is an id or its beginning; without it, or with the word last, the last run. Open the file at ui.perfetto.dev: it stays on
    your machine.
    """
    from procflow.report.trace import write_trace

    with opened(state_dir) as past:
        found = run_found(past, run)
        if output == "-":
            write_trace(past, found, _Stdout())
            return 0
        target = Path(output or f"trace-{found.run_id}.json")
        try:
            with open(target, "w", encoding="utf-8") as file:
                write_trace(past, found, file)
        except OSError as error:
            err(f"error: {clean(target)} can't be written: {error.strerror or error}")
            return 1
    out(str(clean(target)))
    return 0


class _Stdout:
    """stdout as a file to write to; a reader that goes away ends the writing quietly."""

    def write(self, text: str) -> int:
        stream: TextIO | None = sys.stdout
        if stream is None:
            raise SystemExit(1)
        try:
            return stream.write(text)
        except (BrokenPipeError, ValueError):
            raise SystemExit(0) from None
