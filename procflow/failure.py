"""Failure: what went wrong, as data that crosses processes.

A live exception is user code (its ``__init__``, ``__str__`` and pickle may do anything), so it is turned into text
where it was raised; the object itself goes along only if it was rebuilt here once. This file never raises because of
what an exception does, and never decides whether to try again.
"""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Callable, Iterator
from reprlib import Repr
from types import FrameType, TracebackType
from typing import Any

from procflow import secrets
from procflow.attempt import Cause, Failure
from procflow.errors import ProcflowError

__all__ = ["CommandFailed", "failure_from", "item_text", "lost_failure", "mark_place", "on_exception", "user_frame"]

MAX_MESSAGE = 10_000
MAX_TRACEBACK = 64_000
MAX_EXCEPTION_BYTES = 64 * 1024
MAX_CHAIN = 20
MAX_FRAMES = 60
MAX_ITEM = 200

_PLACE = "_procflow_place"

_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


class CommandFailed(ProcflowError):
    """A command of a shell step ended with a code that does not count as success."""

    def __init__(self, message: str, code: int | None = None, signal: int | None = None) -> None:
        super().__init__(message, code, signal)
        self.message = message
        self.code = code
        self.signal = signal

    def __str__(self) -> str:
        return self.message


on_exception: Callable[[BaseException], None] | None = None
"""Where a debugger waits: called with each exception of a step before it becomes data."""


def failure_from(exc: BaseException, cause: Cause = "error", *, peak_rss_bytes: int | None = None) -> Failure:
    """The failure that tells of an exception; never raises because of it."""
    if on_exception is not None:
        on_exception(exc)
    command = exc if isinstance(exc, CommandFailed) else None
    message = _message(exc)
    place = _marked(exc).get(_PLACE, "")
    return Failure(
        cause=cause,
        type=_type_name(type(exc)),
        message=f"{place}: {message}" if place else message,
        traceback=_survive(lambda: _traceback_text(exc), ""),
        user_place=_survive(lambda: _user_place(exc), ""),
        kinds=tuple(k.__name__ for k in type(exc).__mro__ if k not in (BaseException, object)),
        signal=command.signal if command else None,
        exit_code=command.code if command else None,
        peak_rss_bytes=peak_rss_bytes,
        exception=_rebuildable(exc, len(message)),
        retry_after_s=_asked_pause(exc),
    )


def mark_place(exc: BaseException, place: str) -> None:
    """Let the failure that will tell of the exception begin with where in a step it was raised; its type stays."""
    _marked(exc)[_PLACE] = place


def _marked(exc: BaseException) -> dict[str, Any]:
    # Past whatever its class has made of attributes.
    try:
        found = object.__getattribute__(exc, "__dict__")
    except Exception:
        return {}
    return found if type(found) is dict else {}


def _asked_pause(exc: BaseException) -> float | None:
    seconds = getattr(exc, "retry_after_s", None) if isinstance(exc, ProcflowError) else None
    return float(seconds) if isinstance(seconds, (int, float)) else None


def _survive(make: Any, otherwise: str) -> str:
    try:
        return str(make())
    except Exception as problem:
        return otherwise or f"<no traceback: {type(problem).__name__}>"


def _type_name(kind: type) -> str:
    module = kind.__module__ if isinstance(kind.__module__, str) else ""
    # procflow's own errors are words of its documentation; where they are defined tells the user nothing.
    if module == "builtins" or module.startswith("procflow."):
        return kind.__qualname__
    return f"{module}.{kind.__qualname__}"


def _message(exc: BaseException) -> str:
    try:
        text = str(exc)
    except BaseException as problem:
        return f"<no message: its __str__ raised {type(problem).__name__}>"
    return _bounded(text, MAX_MESSAGE)


class _Short(Repr):
    """Cuts texts after their secrets are masked, or half a secret could be left."""

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(secrets.masked(x), level)


_short = _Short()
_short.maxstring = _short.maxother = _short.maxlong = 100


def item_text(item: Any) -> str:
    """A short repr of a map's item, for people; empty where it has none."""
    try:
        text = secrets.masked(_short.repr(item))
    except BaseException:
        # Its class has a __repr__ of its own, which may do anything.
        return ""
    text = text if len(text) <= MAX_ITEM else f"{text[: MAX_ITEM - 3]}..."
    return text.encode("utf-8", "backslashreplace").decode()


def _bounded(text: str, limit: int) -> str:
    # First, because a secret that is cut in two is not known any more.
    text = secrets.masked(text)
    if len(text) > limit:
        keep = limit // 2
        text = f"{text[:keep]}\n... {len(text) - 2 * keep} characters left out ...\n{text[-keep:]}"
    # Lone surrogates can be held by a str and by no file or database.
    return text.encode("utf-8", "backslashreplace").decode()


def _traceback_text(exc: BaseException) -> str:
    parts = []
    for link, one in reversed(list(_chain(exc))):
        parts.append(_one_traceback(one))
        if link:
            parts.append(link)
    return _bounded("\n".join(parts), MAX_TRACEBACK)


def _chain(exc: BaseException) -> Iterator[tuple[str, BaseException]]:
    """The exception, then what led to it; each with the words that join it to the one before. Cycles end."""
    seen: set[int] = set()
    current: BaseException | None = exc
    link = ""
    while current is not None and id(current) not in seen and len(seen) < MAX_CHAIN:
        seen.add(id(current))
        yield link, current
        if current.__cause__ is not None:
            current, link = current.__cause__, "\nThe above was the direct cause of:\n"
        elif current.__suppress_context__:
            current = None
        else:
            current, link = current.__context__, "\nWhile that was handled, this was raised:\n"


def _one_traceback(exc: BaseException) -> str:
    import traceback

    frames = list(_user_frames(exc.__traceback__))
    lines: list[str] = []
    if frames:
        lines.append("Traceback (most recent call last):")
        half = MAX_FRAMES // 2
        shown = frames if len(frames) <= MAX_FRAMES else frames[:half]
        lines += _frame_lines(shown)
        if len(frames) > MAX_FRAMES:
            lines.append(f"  ... {len(frames) - 2 * half} frames left out ...")
            lines += _frame_lines(frames[-half:])
    if isinstance(exc, SyntaxError):
        lines += [line.rstrip("\n") for line in traceback.format_exception_only(type(exc), exc)]
    else:
        message = _message(exc)
        lines.append(f"{_type_name(type(exc))}: {message}" if message else _type_name(type(exc)))
    notes = getattr(exc, "__notes__", None)
    for note in notes[:20] if isinstance(notes, (list, tuple)) else ():
        lines.append(_bounded(note if isinstance(note, str) else repr(note), 2_000))
    members = getattr(exc, "exceptions", None)
    if isinstance(members, tuple) and len(members) < 10_000:
        lines += [f"  | {_type_name(type(m))}: {_message(m)}" for m in members[:10] if isinstance(m, BaseException)]
        if len(members) > 10:
            lines.append(f"  | ... and {len(members) - 10} more")
    return "\n".join(lines)


def _frame_lines(frames: list[tuple[FrameType, int]]) -> list[str]:
    import traceback

    return [line.rstrip("\n") for line in traceback.StackSummary.extract(iter(frames)).format()]


def _user_frames(tb: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    """Frames outside procflow and outside the machinery that it calls the user's code through."""
    entered = False
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        machinery = file.startswith((_OWN, "<frozen importlib"))
        if not entered and not machinery:
            machinery = file.startswith(
                (_STDLIB + "asyncio" + os.sep, _STDLIB + "importlib" + os.sep, _STDLIB + "contextlib.py")
            )
        if not machinery:
            entered = True
            yield tb.tb_frame, tb.tb_lineno
        tb = tb.tb_next


def user_frame(exc: BaseException) -> FrameType | None:
    """The deepest frame of an exception that is the user's own code, or the deepest outside procflow."""
    last = users = None
    for frame, _ in _user_frames(exc.__traceback__):
        last = frame
        if _is_own(frame.f_code.co_filename):
            users = frame
    return users or last


def _is_own(file: str) -> bool:
    installed = f"{os.sep}site-packages{os.sep}" in file or f"{os.sep}dist-packages{os.sep}" in file
    return not installed and not file.startswith((_STDLIB, "<frozen"))


def _user_place(exc: BaseException) -> str:
    """``file:line`` of the deepest frame outside installed packages, or of the deepest one there is."""
    last = users = ""
    for frame, line in _user_frames(exc.__traceback__):
        file = frame.f_code.co_filename
        last = f"{file}:{line}"
        if _is_own(file):
            users = last
    if not (users or last) and isinstance(exc, SyntaxError) and exc.filename:
        return f"{exc.filename}:{exc.lineno}"
    return users or last


def _rebuildable(exc: BaseException, message_length: int) -> bytes | None:
    """The pickled exception, if it is small and comes back as what it was."""
    if message_length >= MAX_MESSAGE:
        return None
    import pickle

    from procflow.values import objects

    try:
        data = objects.dumps(exc)
        if len(data) >= MAX_EXCEPTION_BYTES:
            return None
        mask = secrets.masker()
        if mask is not None and mask.data(data) != data:
            return None
        return data if type(pickle.loads(data)) is type(exc) else None
    except BaseException:
        return None


_LOST_TYPES: dict[Cause, str] = {
    "error": "Failed",
    "timeout": "TimedOut",
    "idle": "Idle",
    "crash": "WorkerDied",
    "oom": "OutOfMemory",
    "pressure": "MemoryPressure",
    "cancelled": "Cancelled",
    "spawn": "NoWorker",
}


def lost_failure(
    cause: Cause,
    *,
    exit_code: int | None = None,
    signal: int | None = None,
    peak_rss_bytes: int | None = None,
    memory_bytes: int | None = None,
    timeout_s: float | None = None,
    detail: str = "",
) -> Failure:
    """The failure of an attempt whose worker is gone.

    A negative ``exit_code`` is a signal, as ``multiprocessing`` has it. ``memory_bytes`` and ``timeout_s`` are the
    limits that held; ``detail`` is added as it is.
    """
    if signal is None and exit_code is not None and exit_code < 0:
        signal, exit_code = -exit_code, None
    from procflow import units

    message = _lost_words(cause, exit_code, signal, timeout_s)
    if peak_rss_bytes:
        message += f", peak memory {units.size_text(peak_rss_bytes)}"
    if memory_bytes:
        message += f", limit {units.size_text(memory_bytes)}"
    if cause == "crash" and signal == signals.SIGKILL:
        message += (
            "; SIGKILL often means that the kernel ran out of memory: give the step a memory: or use fewer workers"
        )
    if detail:
        message += f"; {detail}"
    return Failure(
        cause=cause,
        type=_LOST_TYPES[cause],
        message=_bounded(message, MAX_MESSAGE),
        signal=signal,
        exit_code=exit_code,
        peak_rss_bytes=peak_rss_bytes or None,
    )


def _lost_words(cause: Cause, exit_code: int | None, signal: int | None, timeout_s: float | None) -> str:
    from procflow import units

    after = f" after {units.duration_text(timeout_s)}" if timeout_s else ""
    if cause == "timeout":
        return f"stopped: timed out{after}"
    if cause == "idle":
        return f"stopped: no heartbeat or progress{' for ' + units.duration_text(timeout_s) if timeout_s else ''}"
    if cause == "oom":
        return "stopped: used too much memory"
    if cause == "pressure":
        return "stopped: the run as a whole was short of memory"
    if cause == "cancelled":
        return "stopped: its result is no longer needed"
    if cause == "spawn":
        return f"no worker could be started{_ending(exit_code, signal, ': it ended by ')}"
    return f"worker died{_ending(exit_code, signal, ': ')}"


def _ending(exit_code: int | None, signal: int | None, joint: str) -> str:
    if signal is not None:
        try:
            name = signals.Signals(signal).name
        except ValueError:
            name = "signal"
        return f"{joint}{name} ({signal})"
    if exit_code is not None:
        return f"{joint}exit code {exit_code}" + (" without a result" if exit_code == 0 else "")
    return ""
