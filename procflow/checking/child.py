"""Child: imports functions and holds their signatures against what a step gives them; a process of its own.

Reads questions as JSON from stdin, writes an answer a line to the descriptor named on the command line: index and messages.
It runs no function.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from typing import Any

from procflow.working import functions

__all__ = ["answer"]


def answer(question: dict[str, Any]) -> list[str]:
    """What is wrong with one function, for people."""
    target = question["target"]
    functions.add_folder(question["folder"])
    try:
        function = functions.resolve(target, question["folder"])
    except BaseException as error:
        cause = error.__cause__ if error.__cause__ is not None else error
        return [f"{target} can't be imported: {_told(error)}{_place(cause)}"]
    found = []
    if not callable(function):
        return [f"{target} is {type(function).__name__}, which can't be called"]
    shape = question["shape"]
    if shape is not None:
        found += _misfits(target, function, shape)
    return found + _unpicklable(target, function)


def _misfits(target: str, function: Any, shape: dict[str, Any]) -> list[str]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Written in C without saying what it takes.
        return []
    try:
        signature.bind(*[None] * shape["args"], **dict.fromkeys(shape["kwargs"]))
    except TypeError as error:
        given = [f"{shape['args']} by position"] if shape["args"] else []
        given += [f"{', '.join(shape['kwargs'])} by keyword"] if shape["kwargs"] else []
        return [
            f"{target}{signature} does not take what the step gives it ({' and '.join(given) or 'nothing'}): {error}"
        ]
    return []


def _unpicklable(target: str, function: Any) -> list[str]:
    """A callable object is sent as it is, so it must pickle; the attribute that does not is named."""
    if inspect.isroutine(function) or inspect.isclass(function):
        return []
    from procflow.values import objects

    try:
        objects.pack(function, target)
    except Exception as error:
        return [f"{target} can't be sent to a worker: {error}"]
    return []


def _told(error: BaseException) -> str:
    text = str(error)
    return text if text.startswith(type(error).__name__) else f"{type(error).__name__}: {text}"


def _place(error: BaseException) -> str:
    from procflow.failure import user_frame

    frame = user_frame(error)
    return f" at {frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""


def main() -> None:
    """Answer all questions, each as soon as it is known."""
    out = int(sys.argv[1])
    for index, question in enumerate(json.load(sys.stdin)):
        os.write(out, json.dumps([index, answer(question)]).encode() + b"\n")


if __name__ == "__main__":
    main()
