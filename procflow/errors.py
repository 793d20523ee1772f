"""The error tree, and a problem with its place in the user's file.

    ProcflowError
    ├── PipelineError      the file or the declared pipeline is wrong; lists every problem   exit 2
    ├── RunFailed          a step failed; raised only by ``RunResult.raise_for_status``      exit 1
    ├── StoreError         the state folder can't be read or written                         exit 74
    ├── LockHeld           another run of the same pipeline is going on                      exit 75
    ├── ExecutorError      workers can't be started or talked to                             exit 1
    └── InternalError      procflow broke one of its own rules: a bug, please report         exit 70

This file owns the exceptions that cross procflow's public surface. It never formats for a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from procflow.passive import passive

__all__ = [
    "ExecutorError",
    "InternalError",
    "Loc",
    "LockHeld",
    "PipelineError",
    "Place",
    "Problem",
    "ProcflowError",
    "RunFailed",
    "StoreError",
]

Loc = tuple["str | int", ...]
"""Where in the declared tree: ``("steps", 0, "inputs", 1)``."""


class ProcflowError(Exception):
    """Base of every error that procflow raises on purpose."""

    exit_code = 1


@passive(frozen=True, slots=True)
class Place:
    """A position in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@passive(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a pipeline, with what to do about it.

    ``loc`` is the path in the declared tree, ``place`` the position in the file where there is one.
    """

    message: str
    loc: Loc = ()
    hint: str = ""
    place: Place | None = None

    def at(self, place: Place | None) -> Problem:
        """The same problem with its position in the file."""
        return replace(self, place=place) if place is not None else self

    def __str__(self) -> str:
        where = str(self.place) if self.place is not None else dotted(self.loc)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text} ({self.hint})" if self.hint else text


def dotted(loc: Loc) -> str:
    """``steps[0].inputs[1]`` for ``("steps", 0, "inputs", 1)``."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


class PipelineError(ProcflowError):
    """The pipeline can't run as declared; ``problems`` lists all that was found, in file order."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(problems, key=_file_order))
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[PipelineError], tuple[tuple[Problem, ...]]]:
        return (type(self), (self.problems,))


def _file_order(problem: Problem) -> tuple[str, int, int]:
    place = problem.place
    return (place.file, place.line, place.column) if place is not None else ("", 0, 0)


class RunFailed(ProcflowError):
    """A run did not succeed; the message names the failed steps."""

    exit_code = 1


class StoreError(ProcflowError):
    """The state folder or its database can't be used; the message names the path."""

    exit_code = 74


class LockHeld(ProcflowError):
    """Another run of this pipeline holds the lock; the message names its pid and run."""

    exit_code = 75


class ExecutorError(ProcflowError):
    """Workers can't be started, or an executor can't do what was asked."""

    exit_code = 1


class InternalError(ProcflowError):
    """procflow broke one of its own rules; ``story`` tells what led to it."""

    exit_code = 70

    def __init__(self, message: str, story: Iterable[str] = ()) -> None:
        self.story = tuple(story)
        lines = [message, *(f"  {line}" for line in self.story), "this is a bug in procflow: please report it"]
        super().__init__("\n".join(lines))
