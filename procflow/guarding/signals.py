"""Signals: what SIGTERM, SIGINT and SIGHUP do to a run.

    first    no step starts any more, running ones get their kill_grace, what happened is recorded; exit 143, 130 or 129
    second   running steps are killed now
    third    this process ends at once; the journal is whole, the reaper ends the workers

Handlers only take notes and wake the loop. They are set only in the main thread, where Python allows it, and whoever
had them before gets them back. A signal that was ignored at the start stays ignored (nohup, background commands), but
for SIGTERM. A SIGHUP that comes because the terminal went away (a closed window, a lost connection) stops nothing: the
run goes on without one; sent by somebody, it stops the run. Workers lead sessions of their own, so Ctrl-C reaches this
process alone. This file decides nothing about steps.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["HANDLED", "Signals", "exit_code_of", "say"]

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def exit_code_of(reason: str) -> int:
    """The exit code of a run that was stopped for this reason: 128 + n for a signal's name, else 130."""
    for number in HANDLED:
        if number.name in reason:
            return 128 + number
    return 130


def say(text: str) -> None:
    """One line to stderr, safe in a signal handler."""
    with contextlib.suppress(OSError):
        os.write(2, f"procflow: {text}\n".encode("utf-8", "backslashreplace"))


class Signals:
    """Set the handlers for the length of a ``with``; ``attach`` what is to be told of them.

    A signal that comes before ``attach`` is told there. ``fileno`` is readable after a signal, until ``drain``.
    """

    def __init__(self, say: Callable[[str], None] = say) -> None:
        self.received: list[str] = []
        self._numbers = itertools.count(1)
        self._say = say
        self._stop: Callable[[str], None] | None = None
        self._hurry: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._reader = self._writer = self._wakeup = -1
        self._terminals: tuple[int, ...] = ()

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._terminals = tuple(fd for fd in (0, 1, 2) if os.isatty(fd))
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in HANDLED:
            before = signal.getsignal(number)
            # None: set by something that is not Python, and could not be given back.
            if before is None or (before is signal.SIG_IGN and number is not signal.SIGTERM):
                continue
            self._before[number] = before
            signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._reader >= 0:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._reader)
            os.close(self._writer)
            self._reader = self._writer = -1

    def fileno(self) -> int:
        """-1 where no handlers are set."""
        return self._reader

    def drain(self) -> None:
        """Empty the descriptor."""
        if self._reader >= 0:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._reader, 512):
                    continue

    def attach(self, stop: Callable[[str], None], hurry: Callable[[], None]) -> None:
        """``stop`` is called with the first signal's name, ``hurry`` at the second."""
        self._stop, self._hurry = stop, hurry
        if self.received:
            stop(self.received[0])
        if len(self.received) > 1:
            hurry()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._terminals and not any(map(os.isatty, self._terminals)):
            return
        # One handler may interrupt another at any point; taking a number can't be interrupted.
        count = next(self._numbers)
        name = signal.Signals(number).name
        self.received.append(name)
        if count == 1:
            self._say(
                f"{name}: stopping; no step starts any more, running steps get their kill_grace. "
                "A second signal kills them at once."
            )
            if self._stop is not None:
                self._stop(name)
        elif count == 2:
            self._say(f"{name}: killing the running steps. A third signal ends procflow at once.")
            if self._hurry is not None:
                self._hurry()
        else:
            os._exit(128 + number)
