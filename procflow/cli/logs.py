"""``procflow logs``: what the attempts of a run printed, as far as it goes or as it comes.

Only reads; the logs themselves are ``storing/attempt_log.py``'s. A log may be one line of many megabytes, so none is read whole.
"""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from procflow.cli.output import failed_outlets, out
from procflow.cli.reading import found_label, found_run, opened, state_option
from procflow.errors import StoreError
from procflow.plaintext import clean, clean_lines
from procflow.storing.history import History, RunRow, StepRow

__all__ = ["logs"]

READ_BYTES = 1 << 20
FOLLOW_S = 0.25
"""How often somebody who follows is shown what has come."""


@click.command()
@click.argument("run", required=False)
@click.argument("step", required=False)
@click.option("--item", metavar="I", help="Only this item of a map (items share the log of their batch).")
@click.option("--attempt", metavar="N", type=click.IntRange(1), help="Only this attempt.")
@click.option("--tail", metavar="N", type=click.IntRange(1), help="Only the last N lines of each log.")
@click.option("-f", "--follow", is_flag=True, help="Go on as more comes, until the run is over.")
@state_option
def logs(
    run: str | None,
    step: str | None,
    item: str | None,
    attempt: int | None,
    tail: int | None,
    follow: bool,
    state_dir: str | None,
) -> None:
    """Print the logs of a run, or of one of its steps.

    RUN is an id or its beginning, or the word last. STEP is a label as show prints it (fetch/sales) or the last part of one.
    """
    with opened(state_dir) as past:
        found = found_run(past, None if run == "last" else run)
        label = found_label(past, found, step) if step is not None and not (follow and found.live) else step
        chosen = _Chosen(past, found, label, item, attempt)
        if follow and found.live:
            _follow(chosen, tail)
            return
        if not chosen.rows() and (item is not None or attempt is not None):
            raise click.UsageError(_nothing(past, found, label, item))
        paths = chosen.paths()
        if not paths:
            what = f"step {label}" if label is not None else f"run {found.run_id}"
            click.echo(f"{clean(what)} wrote no log", err=True)
        for path in paths:
            if len(paths) > 1:
                out(f"==> {clean(chosen.name(path))} <==")
            _print_log(path, tail)


class _Chosen:
    """The attempts of a run whose logs are asked for."""

    def __init__(self, past: History, run: RunRow, label: str | None, item: str | None, attempt: int | None) -> None:
        self.past = past
        self.run = run
        self._label = label
        self._item = item
        self._attempt = attempt

    def rows(self) -> list[StepRow]:
        """Their rows as the journal has them now; a label may be the last part of one, as long as the run goes on."""
        return [
            row
            for row in self.past.steps(self.run.run_id)
            if (self._label is None or self._label in (row.label, row.label.rpartition("/")[2]))
            and (self._item is None or row.covers(self._item))
            and (self._attempt is None or row.attempt == self._attempt)
        ]

    def paths(self) -> list[Path]:
        """Their logs that are there. Tasks that gate or merge a block share its label, and so its log."""
        return list(dict.fromkeys(path for path in map(self.past.log, self.rows()) if path is not None))

    def name(self, path: Path) -> str:
        """The log as it is named to people."""
        return str(path.relative_to(self.past.folder.run(self.run.run_id)))


def _follow(chosen: _Chosen, tail: int | None) -> None:
    """Print what is there, then what comes, under a line that names the log whenever that is another one."""
    seen: dict[Path, int] = {}
    shown: Path | None = None
    while "stdout" not in failed_outlets:
        # Asked first, so that the last look is after the end.
        live = chosen.past.run(chosen.run.run_id).live
        for path in chosen.paths():
            at = seen.get(path)
            if at is None:
                at = _start_of_tail(path, tail)
            data = _read_from(path, at)
            seen[path] = at + len(data)
            if data:
                if path != shown:
                    out(f"==> {clean(chosen.name(path))} <==")
                    shown = path
                _print(data)
        if not live:
            return
        time.sleep(FOLLOW_S)


def _start_of_tail(path: Path, tail: int | None) -> int:
    if tail is None:
        return 0
    try:
        return path.stat().st_size - sum(map(len, _last_lines(path, tail)))
    except OSError:
        return 0


def _read_from(path: Path, at: int) -> bytes:
    """Whole lines from here on, and what has no end yet once there is much of it."""
    try:
        with open(path, "rb") as file:
            file.seek(at)
            data = file.read(READ_BYTES)
    except OSError:
        return b""
    return data if len(data) == READ_BYTES else data[: data.rfind(b"\n") + 1]


def _print(data: bytes) -> None:
    text = data.decode("utf-8", "backslashreplace")
    out("\n".join(clean_lines(text)) if _on_terminal() else text.removesuffix("\n"))


def _nothing(past: History, run: RunRow, label: str | None, item: str | None) -> str:
    rows = list(past.steps(run.run_id, label=label))
    if item is not None and not any(row.covers(item) for row in rows):
        items = list(dict.fromkeys(row.item for row in rows if row.item))
        near = difflib.get_close_matches(item, items, 3) or items[:10]
        return f"there is no item {item!r}; " + (f"items are {', '.join(near)}" if near else "this step has no items")
    tries = sorted({str(row.attempt) for row in rows if row.attempt and (item is None or row.covers(item))})
    return f"there is no such attempt; there are {', '.join(tries[:20]) or 'none'}"


def _print_log(path: Path, tail: int | None) -> None:
    """As it is to a file or a pipe (bytes that are not UTF-8 spelled out); to a terminal with control characters spelled out."""
    try:
        lines: Iterable[bytes] = _last_lines(path, tail) if tail is not None else _chunks(path)
        for line in lines:
            _print(line)
    except OSError as error:
        raise StoreError(f"{path}: can't be read: {error.strerror or error}") from error


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _chunks(path: Path) -> Iterator[bytes]:
    """Lines, none longer than ``READ_BYTES``: a log may be one line of many megabytes."""
    with open(path, "rb") as file:
        while line := file.readline(READ_BYTES):
            yield line


def _last_lines(path: Path, count: int) -> list[bytes]:
    """The last lines of a file, read from its end."""
    with open(path, "rb") as file:
        at = file.seek(0, 2)
        data = b""
        while at > 0 and data.rstrip(b"\n").count(b"\n") < count:
            size = min(at, 65536)
            at = file.seek(at - size)
            data = file.read(size) + data
    return data.splitlines(keepends=True)[-count:]
