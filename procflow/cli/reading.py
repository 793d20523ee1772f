"""What the commands that read a journal share: how they open it, find a run and a step, and print tables and times.

Reads only. Tables are plain text, so that they can be piped and mailed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click

from procflow import units
from procflow.plaintext import clean
from procflow.storing.history import History, RunRow, UnknownRun
from procflow.storing.state_folder import StateFolder, locate

__all__ = [
    "duration",
    "format_option",
    "found_label",
    "found_run",
    "json_text",
    "local_time",
    "opened",
    "state_option",
    "table",
    "time_text",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def state_option(command: _Command) -> _Command:
    return click.option(
        "--state-dir",
        metavar="DIR",
        type=click.Path(),
        help="State folder; default PROCFLOW_STATE_DIR, else .procflow here.",
    )(command)


def format_option(command: _Command) -> _Command:
    return click.option(
        "--format", "form", type=click.Choice(["table", "json"]), default="table", help="How to print it."
    )(command)


def duration(text: str) -> float:
    try:
        return units.duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def opened(state_dir: str | None) -> History:
    return History.open(StateFolder.open(locate(state_dir), create=False))


def found_run(past: History, run: str | None) -> RunRow:
    try:
        return past.run(run)
    except UnknownRun as error:
        raise click.UsageError(str(error)) from None


def found_label(past: History, run: RunRow, step: str) -> str:
    """The one label that is meant: a whole one, or one whose last part it is."""
    labels = past.labels(run.run_id)
    if step in labels:
        return step
    ends = [label for label in labels if label.rpartition("/")[2] == step]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise click.UsageError(f"step {step!r} may be {', '.join(ends[:8])}; write the whole label")
    names = {label.rpartition("/")[2]: label for label in labels} | {label: label for label in labels}
    near = list(dict.fromkeys(names[n] for n in difflib.get_close_matches(step, list(names), 3)))
    hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(labels[:20]) or 'none'}"
    raise click.UsageError(f"run {run.run_id} has no step {step!r}; {hint}")


def time_text(seconds: float | None) -> str:
    return units.duration_text(seconds) if seconds is not None else ""


def local_time(utc: str) -> str:
    try:
        return datetime.fromisoformat(utc.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return clean(utc)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int]) -> Iterator[str]:
    """Columns as wide as their widest cell (the last one hangs over), those in ``right`` flush right."""
    cells = [tuple(head), *(tuple(clean(cell) for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        yield "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, default=str)
