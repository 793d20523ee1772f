"""Writing for people and programs: never raises because a reader went away, never lets user text drive a terminal.

Owns the two outlets of the command line. ``out`` is for what was asked for (stdout), ``err`` for everything else (stderr).
A closed pipe (``| head``) or a full disk behind a redirection silences that outlet and nothing else: a run goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from procflow.errors import PipelineError, Problem
from procflow.plaintext import clean, clean_lines, counted

__all__ = ["clean_text", "describe_problems", "err", "failed_outlets", "finish", "out", "problem_lines", "refused"]

failed_outlets: set[str] = set()
"""``stdout`` or ``stderr`` where writing failed once; nothing more is written there."""


def out(text: str) -> None:
    """Write a line to stdout, now."""
    _write("stdout", text + "\n")


def err(text: str) -> None:
    """Write a line to stderr, now."""
    _write("stderr", text + "\n")


def _write(outlet: str, text: str) -> None:
    stream: TextIO | None = getattr(sys, outlet)
    if stream is None or outlet in failed_outlets:
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        # ValueError: the stream was closed. Nobody is left to tell, so the outlet falls silent and the work goes on.
        failed_outlets.add(outlet)
        _mute(stream)


def _mute(stream: TextIO) -> None:
    """Point the stream's descriptor at nothing, so that the flush at interpreter exit can't fail again."""
    with suppress(OSError, ValueError, AttributeError):
        broken = stream.fileno()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, broken)
        os.close(silent)


def finish() -> None:
    """Flush both outlets; call once before the process ends."""
    _write("stdout", "")
    _write("stderr", "")


def clean_text(text: object) -> str:
    """A text of several lines, each safe to print."""
    return "\n".join(clean_lines(str(text)))


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """One line a problem, in order, safe to print."""
    return [clean(problem) for problem in problems]


def describe_problems(error: PipelineError, file: str, ending: str = "nothing was run") -> list[str]:
    """All problems of a file, then a line that counts them: ``2 problems in nightly.yaml; nothing was run``."""
    count = counted(len(error.problems), "problem")
    where = f" in {clean_lines(file)[0]}" if file else ""
    return [*problem_lines(error.problems), f"{count}{where}" + (f"; {ending}" if ending else "")]


def refused(error: PipelineError, file: str, ending: str = "nothing was run") -> int:
    """Tell all problems of a file on stderr; the exit code that goes with them."""
    for line in describe_problems(error, file, ending):
        err(line)
    return error.exit_code
