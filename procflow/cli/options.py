"""Options that several commands share, and how their texts become values.

``-p key=value`` takes YAML 1.2 scalars (``3``, ``true``, ``text``) and flow collections (``[1, 2]``); everything else
is text as it stands, so that ``*.csv`` or ``a: b`` need no second quoting. Wrong text is a usage error (exit code 2)
that names the option.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from procflow import units
from procflow.dialects import DIALECTS, Reading
from procflow.errors import PipelineError
from procflow.units import Share

__all__ = [
    "dialect_options",
    "limit_options",
    "many_workers_option",
    "param_options",
    "params_of",
    "reading_of",
    "workers_option",
]

_FILE: Any = click.Path(dir_okay=False, path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])

# Text with a meaning of its own in YAML; all other text is taken as it stands.
_SCALAR = re.compile(r"[-+.~\w]+")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_FLOW = ("[", "{", '"', "'")


def _workers(text: str) -> int | str | Share:
    """``auto``, a number, or a share of the usable cores."""
    text = text.strip()
    if text == "auto":
        return text
    if text.endswith("%"):
        return _read(units.share, text)
    if not text.isdecimal() or not text.isascii() or not 1 <= int(text[:6]) <= 4096:
        raise click.BadParameter(f"{text!r} is not a number of workers; write auto, 1 to 4096, or a share such as 50%")
    return int(text)


def _memory(text: str) -> int | Share:
    """A size or a share of the machine's memory."""
    return _read(units.share, text) if text.strip().endswith("%") else _read(units.size, text)


def _timeout(text: str) -> float:
    """Seconds."""
    return _read(units.duration, float(text) if _NUMBER.fullmatch(text.strip()) else text)


_Value = TypeVar("_Value")


def _read(read: Callable[[Any], _Value], value: Any) -> _Value:
    try:
        return read(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def workers_option(command: _Command) -> _Command:
    """``-j`` alone."""
    option = click.option(
        "-j", "--workers", metavar="N", type=_workers, help="Workers: a number, auto, or 50% of the cores."
    )
    return option(command)


def _workers_each(text: str) -> tuple[int | str | Share, ...]:
    """Several numbers of workers, ``1,2,4,64``, or what ``_workers`` takes."""
    return tuple(_workers(part) for part in text.split(","))


def many_workers_option(command: _Command) -> _Command:
    """``-j`` for commands that look at several numbers of workers; it takes the place of that of ``limit_options``."""
    option = click.option(
        "-j", "--workers", metavar="N[,N...]", type=_workers_each,
        help="Workers: a number, auto, or 50% of the cores; several, such as 1,2,4,64, to see what each would bring.",
    )  # fmt: skip
    given = getattr(command, "__click_params__", [])
    given[:] = [parameter for parameter in given if parameter.name != "workers"]
    return option(command)


def param_options(command: _Command) -> _Command:
    """``-p`` and ``--params-file``; read them with ``params_of``."""
    for option in (
        click.option("--params-file", metavar="F", type=_FILE, help="Parameters as a YAML or JSON mapping."),
        click.option("-p", "--param", metavar="KEY=VALUE", multiple=True, help="One parameter; repeat for more. Beats the file."),
    ):  # fmt: skip
        command = option(command)
    return command


def limit_options(command: _Command) -> _Command:
    """What bounds a run: workers, memory, executor, timeout, and where its state is."""
    for option in (
        click.option("--state-dir", metavar="DIR", type=click.Path(), help="Folder of the journal and the runs."),
        click.option("--timeout", metavar="T", type=_timeout, help="Clock of the whole run, such as 90s or 2h."),
        click.option(
            "--executor", type=click.Choice(["processes", "threads", "inline"]), help="Where steps run that do not say so."
        ),
        click.option("--memory", metavar="SIZE", type=_memory, help="Budget of all running steps, such as 8GB or 80%."),
        workers_option,
    ):  # fmt: skip
        command = option(command)
    return command


def dialect_options(command: _Command) -> _Command:
    """``--dialect``, ``--bind`` and ``--bindings``; read them with ``reading_of``."""
    for option in (
        click.option("--bindings", metavar="F", type=click.Path(dir_okay=False), help="Bindings as a YAML or JSON mapping."),
        click.option(
            "--bind", metavar="NAME=MODULE:FUNCTION", multiple=True,
            help="Your function for a name that another system's file leaves open; repeat for more. Beats the file.",
        ),
        click.option(
            "--dialect", metavar="D", type=click.Choice([*DIALECTS]),
            help=f"Format of FILE, if its shape does not tell: {', '.join(DIALECTS)}.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def reading_of(dialect: str | None, bind: tuple[str, ...], bindings: str | None) -> Reading | None:
    """How the file is to be read; None where nothing is said of it."""
    bound: dict[str, str] = {}
    for text in bind:
        name, equals, function = (part.strip() for part in text.partition("="))
        if not equals or not name or function.count(":") != 1:
            raise click.UsageError(f"--bind {text}: write --bind name=module:function")
        if bound.setdefault(name, function) != function:
            raise click.UsageError(f"--bind {name}: given twice, as {bound[name]} and {function}")
    reading = Reading(dialect, bound, os.path.abspath(bindings) if bindings is not None else None, exact=True)
    return reading if reading else None


def params_of(given: tuple[str, ...], file: Path | None) -> dict[str, Any]:
    """Parameters of the file with those of ``-p`` over them; ``click.UsageError`` for what can't be read."""
    params = dict(_file_params(file)) if file is not None else {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.UsageError(f"-p {text}: write -p key=value")
        params[key.strip()] = scalar(value, f"-p {key.strip()}")
    return params


def scalar(text: str, name: str) -> Any:
    """The value of a text on the command line; nothing after ``=`` is empty text."""
    plain = text.strip()
    if not plain.startswith(_FLOW) and (not _SCALAR.fullmatch(plain) or not plain.strip("-.")):
        return text
    return _tree_value(plain, name)


def _file_params(file: Path) -> Mapping[str, Any]:
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise click.UsageError(f"--params-file {file}: {reason}") from None

    value = _tree_value(text, str(file))
    if not isinstance(value, dict):
        raise click.UsageError(f"--params-file {file}: it must hold a mapping of names to values")
    return value


def _tree_value(text: str, name: str) -> Any:
    from procflow.loader import read_tree

    tree, _ = read_tree(text, name, Path())
    if tree.problems:
        raise PipelineError(tree.problems)
    return tree.value
