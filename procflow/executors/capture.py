"""Capture: what a thread prints and logs goes to the log of the attempt that it runs.

For executors that run steps in this very process. While at least one is open, ``sys.stdout``, ``sys.stderr`` and the
root logger are wrapped; threads without an attempt pass through. What C code or a child process writes to descriptor 1
is not seen here. This file never opens or closes a log.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from procflow.attempt import AttemptLog

__all__ = ["capture", "install", "uninstall"]

_logs: dict[int, AttemptLog] = {}
_lock = threading.Lock()
_installed: list[_Wrapping] = []
_users = 0
get_ident = threading.get_ident


@contextmanager
def capture(log: AttemptLog | None) -> Iterator[None]:
    """Output of this thread goes to ``log`` until the end of the block; None lets it pass."""
    if log is None:
        yield
        return
    if _installed:
        _installed[0].refresh()
    ident = get_ident()
    before = _logs.get(ident)
    _logs[ident] = log
    try:
        yield
    finally:
        if before is None:
            _logs.pop(ident, None)
        else:
            _logs[ident] = before


def install(level: int) -> None:
    """Wrap the standard streams and the root logger, if that is not done yet; ``level`` is the lowest to record."""
    global _users
    with _lock:
        _users += 1
        if not _installed:
            _installed.append(_Wrapping(level))


def uninstall() -> None:
    """Undo one ``install``; the last one unwraps."""
    global _users
    with _lock:
        _users -= 1
        if _users == 0:
            _installed.pop().undo()


class _Wrapping:
    def __init__(self, level: int) -> None:
        self._stdout = sys.stdout = _Stream(sys.stdout)
        self._stderr = sys.stderr = _Stream(sys.stderr)
        root = logging.getLogger()
        self._level = root.level
        self._others = list(root.handlers)
        self._filter = _OthersOnly(self._level)
        for handler in self._others:
            handler.addFilter(self._filter)
        self._records = _Records(level, self._level, alone=not self._others)
        root.addHandler(self._records)
        if self._level > level:
            root.setLevel(level)

    def refresh(self) -> None:
        """Wrap again where somebody has put other streams in place since (a live display, a test's capture)."""
        if sys.stdout is not self._stdout or sys.stderr is not self._stderr:
            with _lock:
                if sys.stdout is not self._stdout:
                    self._stdout = sys.stdout = _Stream(sys.stdout)
                if sys.stderr is not self._stderr:
                    self._stderr = sys.stderr = _Stream(sys.stderr)

    def undo(self) -> None:
        # Where somebody wrapped our wrapper, it stays and passes everything through.
        if sys.stdout is self._stdout:
            sys.stdout = self._stdout.behind
        if sys.stderr is self._stderr:
            sys.stderr = self._stderr.behind
        root = logging.getLogger()
        root.removeHandler(self._records)
        for handler in self._others:
            handler.removeFilter(self._filter)
        root.setLevel(self._level)


class _OthersOnly(logging.Filter):
    """Keeps a handler of the user's as it was: no records of attempts, none that the root logger would have dropped."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level and get_ident() not in _logs


class _Records(logging.Handler):
    def __init__(self, level: int, root_level: int, alone: bool) -> None:
        super().__init__()
        self._lowest = level
        self._root_level = root_level
        self._alone = alone

    def emit(self, record: logging.LogRecord) -> None:
        log = _logs.get(get_ident())
        try:
            if log is not None:
                if record.levelno >= self._lowest:
                    log.record(record.levelno, record.name, self.format(record))
                return
            last = logging.lastResort
            # Without us logging would have used its handler of last resort.
            if self._alone and last is not None and record.levelno >= max(self._root_level, last.level):
                last.handle(record)
        except Exception:
            self.handleError(record)


class _Bytes(io.RawIOBase):
    """``sys.stdout.buffer`` of a thread that runs an attempt."""

    def __init__(self, behind: TextIO) -> None:
        self._behind = behind

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        log = _logs.get(get_ident())
        if log is None:
            return self._behind.buffer.write(data)
        data = bytes(data)
        log.write(data)
        return len(data)

    def flush(self) -> None:
        if get_ident() not in _logs:
            self._behind.buffer.flush()

    def close(self) -> None:
        # Neither a step nor the end of this object closes or flushes the parent's stdout, which may be closed already.
        return


class _Stream(io.TextIOBase):
    """A standard stream that sends what is written by a thread to its attempt's log."""

    def __init__(self, behind: TextIO) -> None:
        self.behind = behind
        self.buffer = _Bytes(behind)

    def write(self, text: str) -> int:
        log = _logs.get(get_ident())
        if log is None:
            return self.behind.write(text)
        log.write(text.encode("utf-8", "backslashreplace"))
        return len(text)

    @property
    def own_log(self) -> AttemptLog | None:
        """The log of the attempt that this thread runs, for the output of commands, which comes by pipes."""
        return _logs.get(get_ident())

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if get_ident() not in _logs:
            self.behind.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return get_ident() not in _logs and self.behind.isatty()

    def fileno(self) -> int:
        return self.behind.fileno()

    def close(self) -> None:
        # A step must not close the parent's stdout.
        return

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.behind.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.behind.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)
