"""Who watches a run from the command line: a table or lines, a metrics file, a monitor on the web.

Owns the options that choose them, shared by ``run``, ``resume`` and ``retry``, and their opening and closing around a run. It
decides nothing about a run and prints nothing itself but what those observers could not do.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from procflow.cli.output import err
from procflow.errors import PipelineError, ProcflowError

__all__ = ["Watching", "command_name", "watch_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def watch_options(command: _Command) -> _Command:
    """``--progress``, ``--log-format``, ``-q``, ``--metrics-file``, ``--report``, ``--ping``; read them with ``Watching``."""
    for option in (
        click.option(
            "--ping", metavar="URL", envvar="PROCFLOW_PING_URL", type=_address,
            help="Tell a monitor such as healthchecks: URL/start, then URL or URL/fail.",
        ),
        click.option("--report", metavar="F", type=_report_file, help="Write the run as one HTML file when it is over."),
        click.option("--metrics-file", metavar="F", type=click.Path(dir_okay=False), help="Write Prometheus metrics of the run."),
        click.option("-q", "--quiet", is_flag=True, help="No progress; only what failed, if anything did."),
        click.option(
            "--log-format", type=click.Choice(["text", "json"]), default="text", help="Lines for people or JSON objects."
        ),
        click.option(
            "--progress",
            type=click.Choice(["auto", "live", "plain", "none"]),
            default="auto",
            help="live: a table on a terminal; plain: a line a change; none: only the end; auto: live or plain.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _report_file(text: str) -> str:
    from procflow.cli.report import check_target

    check_target(text)
    return text


def _address(text: str) -> str:
    from procflow.showing.ping import Ping

    try:
        Ping(text, err)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


class Watching:
    """The observers that the options ask for; ``observers()`` has them around one run."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.quiet: bool = given["quiet"]
        logging.getLogger("procflow.notes").disabled = self.quiet
        self._progress: str = given["progress"]
        self._log_format: str = given["log_format"]
        self._metrics_file: str | None = given["metrics_file"]
        self._report: str | None = given["report"]
        self._ping = None
        if given["ping"]:
            from procflow.showing.ping import Ping

            self._ping = Ping(given["ping"], err)

    @contextmanager
    def telling(self) -> Iterator[Callable[[int], int]]:
        """Around all that can go wrong: the monitor hears of the exit code passed to the yielded function, or of an error."""
        if self._ping is None:
            yield lambda code: code
            return
        ended: list[int] = []

        def tell(code: int) -> int:
            ended.append(code)
            return code

        try:
            yield tell
        except BaseException as error:
            code = error.exit_code if isinstance(error, ProcflowError) else 70
            problems = "\n".join(map(str, error.problems)) if isinstance(error, PipelineError) else str(error)
            self._ping.finish(code, problems)
            raise
        if ended:
            self._ping.finish(ended[-1])

    @contextmanager
    def observers(self) -> Iterator[list[Any]]:
        """Open while the run goes on; the terminal is given back in any case."""
        metrics = self._metrics()
        table = self._table()
        line_or_table = table if table is not None else self._lines()
        after = self._after()
        found = [line_or_table, metrics, self._ping, after]
        try:
            yield [observer for observer in found if observer is not None]
        finally:
            if table is not None:
                table.close()
            if metrics is not None and metrics.problem:
                err(f"warning: {metrics.problem}")
            if after is not None:
                after.write()

    def _after(self) -> Any:
        if self._report is None:
            return None
        from procflow.cli.report import ReportAfter

        return ReportAfter(self._report)

    def _metrics(self) -> Any:
        if self._metrics_file is None:
            return None
        from procflow.result import exit_code
        from procflow.showing.metrics_file import MetricsFile

        return MetricsFile(self._metrics_file, exit_code)

    def _table(self) -> Any:
        """A live table, where one is wanted and there is a terminal for it."""
        if self.quiet or self._log_format != "text" or self._progress not in ("auto", "live"):
            return None
        if not sys.stderr.isatty():
            if self._progress == "live":
                err("warning: --progress live needs a terminal on stderr; here is a line a change")
            return None
        # rich comes only where there is a terminal.
        from procflow.showing.live import LiveProgress, suits

        return LiveProgress(command=command_name()) if suits() else None

    def _lines(self) -> Any:
        detail: Any = "failures" if self.quiet else "summary" if self._progress == "none" else "steps"
        if self._log_format == "json":
            from procflow.showing.progress_json import JsonProgress

            return JsonProgress(err, detail=detail)
        from procflow.showing.progress import LineProgress

        return LineProgress(err, detail=detail, command=command_name())


def command_name() -> str:
    """How this process was called, for the commands that messages suggest."""
    context = click.get_current_context(silent=True)
    path = context.find_root().info_name if context is not None else None
    return path or "procflow"
