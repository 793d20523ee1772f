"""The command line: names, help texts and exit codes; each command lives in its own module and is loaded on use.

``procflow --help`` imports click and nothing else of weight, so the texts below are kept here. This file owns the
way from an exception to an exit code: 2 bad file or usage, 70 our bug, 74 state, 75 lock, 130 interrupted, and what
the command itself says otherwise. It never knows what a command does.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from procflow import __version__
from procflow.cli import output
from procflow.errors import PipelineError, ProcflowError

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("procflow.cli.run:run", "Run a pipeline."),
    "validate": ("procflow.cli.validate:validate", "Check a pipeline file without running it."),
    "plan": ("procflow.cli.plan:plan", "Show what a run would do, and with which limits."),
    "graph": ("procflow.cli.graph:graph", "Draw a pipeline, or how a run of it went."),
    "convert": ("procflow.cli.convert:convert", "Print another system's file in procflow's language."),
    "resume": ("procflow.cli.resume:resume", "Go on with a run that did not end well."),
    "retry": ("procflow.cli.resume:retry", "Run again what failed or never ran, as a new run."),
    "recover": ("procflow.cli.recover:recover", "Save what can be read of a damaged journal."),
    "history": ("procflow.cli.history:history", "List the runs of a state folder."),
    "show": ("procflow.cli.history:show", "Show one run and its steps."),
    "logs": ("procflow.cli.logs:logs", "Print the logs of a run or of one step."),
    "status": ("procflow.cli.status:status", "Say where a run stands."),
    "failures": ("procflow.cli.status:failures", "List what failed in a run."),
    "why": ("procflow.cli.why:why", "Say why a step would run again, and what has changed."),
    "diff": ("procflow.cli.diff:diff", "Compare two runs."),
    "clean": ("procflow.cli.clean:clean", "Remove old runs."),
    "replay": ("procflow.cli.replay:replay", "Run one attempt again in this process, with a debugger."),
    "report": ("procflow.cli.report:report", "Write a run as one HTML file."),
    "trace": ("procflow.cli.trace:trace", "Write a run as a trace for Perfetto."),
    "bench": ("procflow.cli.bench:bench", "Find the executor that suits each step: threads or processes."),
    "init": ("procflow.cli.init:init", "Write a commented pipeline that runs, to begin from."),
    "doctor": ("procflow.cli.doctor:doctor", "Look at this machine as a run would."),
    "completion": ("procflow.cli.completion:completion", "Print what makes a shell complete procflow."),
    "schema": ("procflow.cli.schema:schema", "Print the JSON Schema of pipeline files."),
}
"""Command: where it is, and its short help."""

USAGE, BUG, INTERRUPTED = 2, 70, 130


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{name} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands are {', '.join(COMMANDS)}"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        """Run a command and leave the process with its exit code; every error ends here."""
        extra["standalone_mode"] = False
        try:
            code = _code(super().main(args, prog_name, **extra))
        except BaseException as error:
            code = _report(error)
        output.finish()
        sys.exit(code)


def _code(result: object) -> int:
    return result if isinstance(result, int) else 0


def _report(error: BaseException) -> int:
    """Say what went wrong on stderr; the exit code that goes with it."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        output.err("interrupted")
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        _say_usage(error)
        return USAGE
    if isinstance(error, PipelineError):
        for line in output.describe_problems(error, ""):
            output.err(line)
        return error.exit_code
    if isinstance(error, ProcflowError) and error.exit_code != BUG:
        output.err(f"error: {output.clean_text(error)}")
        return error.exit_code
    return _report_bug(error)


def _say_usage(error: click.ClickException) -> None:
    context = getattr(error, "ctx", None)
    if context is not None:
        output.err(context.get_usage())
        output.err(f"Try '{context.command_path} --help' for help.\n")
    output.err(f"Error: {output.clean_text(error.format_message())}")


def _report_bug(error: BaseException) -> int:
    import traceback

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    output.err(output.clean_text(text.rstrip("\n")))
    output.err(
        f"internal error in procflow {__version__} (Python {sys.version.split()[0]}): {type(error).__name__}; "
        "please report it with the text above"
    )
    return BUG


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="procflow")
def cli() -> None:
    """Run batch pipelines whose steps are CPU-heavy, on every core.

    \b
    Exit codes: 0 succeeded; 1 failed; 2 bad file or usage; 3 finished with
    tolerated failures; 4 run timed out; 70 internal error; 74 state can't be
    read or written; 75 another run holds the lock; 130, 143 stopped by a signal.
    """


def main(prog_name: str = "procflow") -> NoReturn:
    """The ``procflow`` command."""
    from procflow.working.garbage import quick_command

    try:
        with quick_command():
            cli.main(prog_name=prog_name)
    except SystemExit as end:
        _leave(end.code)


def _leave(code: Any) -> NoReturn:
    """End the process. Taking hundreds of modules apart, one by one, takes longer than most commands' work.

    So that is left out where nothing can depend on it: no step and no thread has run here, and nobody watches.
    """
    from procflow.working.garbage import a_step_ran_here

    watched = sys.gettrace() or sys.getprofile() or sys.flags.inspect
    if watched or a_step_ran_here() or threading.active_count() > 1 or not isinstance(code, int):
        sys.exit(code)
    atexit._run_exitfuncs()
    output.finish()
    os._exit(code)
