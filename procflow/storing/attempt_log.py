"""Attempt logs: what each attempt printed and logged, one file each, capped, opened at its first byte.

    runs/<run_id>/logs/<label, "/" as "__">/<item>.<attempt>.log

An attempt that prints nothing leaves no file and costs no system call. Above the cap a file keeps its head and its tail, and a
line between them says how many bytes were dropped; the tail lives in the file too, as a ring, so memory stays flat. Bytes
are stored as they came. Nothing here ever raises: where the disk is full, output is dropped and remembered as ``trouble``.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from procflow.errors import StoreError
from procflow.failpoints import fp
from procflow.passive import passive
from procflow.plaintext import clean
from procflow.secrets import Masker
from procflow.storing.own_files import check_own_folder, open_own

__all__ = ["FileLog", "LogFolder", "LogLine", "log_path", "plain_text"]

CAP_BYTES = 10 << 20
LINE_BYTES = 8192
_LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_NAME_LENGTH = 100
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]")


def plain_text(data: bytes | str) -> str:
    """One line of output made safe to show: colours and cursor moves are taken out, what is left of control is escaped."""
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    return clean(_ESCAPES.sub("", text).rstrip("\r"))


def _component(text: str) -> str:
    """A file name for a label or an item: itself where that is safe, else what is safe of it and a hash of it all."""
    name = text.replace("/", "__")
    return name if name.isascii() and name.isidentifier() and len(name) <= _NAME_LENGTH else _made_safe(text, name)


@lru_cache(maxsize=4096)
def _made_safe(text: str, name: str) -> str:
    if len(name) <= _NAME_LENGTH and not _UNSAFE.search(name) and not name.startswith("."):
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{_UNSAFE.sub('_', name)[: _NAME_LENGTH - 20].lstrip('.') or 'x'}-{digest}"


def log_path(label: str, item: str, number: int) -> str:
    """Where an attempt's log lies, from the run's folder: ``logs/fetch__sales/3__0-99.1.log``."""
    if item:
        return f"logs/{_component(label)}/{_component(item)}.{number}.log"
    return f"logs/{_component(label)}/{number}.log"


@passive(frozen=True, slots=True)
class LogLine:
    """One line of an attempt's output, made safe to show. ``level`` is None for plain output."""

    label: str
    item: str
    number: int
    level: int | None
    text: str


class LogFolder:
    """Makes the logs of one run's attempts. ``folder`` is the run's folder, ``on_line`` is told every line.

    ``trouble`` is the first error that made output be dropped, None while all is well; ``dropped_bytes`` counts what a
    failing disk cost (not what the cap left out). ``mask`` takes secrets out before anything is written or told.
    """

    def __init__(
        self,
        folder: Path,
        cap_bytes: int = CAP_BYTES,
        on_line: Callable[[LogLine], None] | None = None,
        mask: Masker | None = None,
    ) -> None:
        self.folder = folder
        self.mask = mask
        self.cap_bytes = cap_bytes
        self.on_line = on_line
        self.trouble: str | None = None
        self.dropped_bytes = 0
        self._second = (-1, "")
        self._furnished: set[Path] = set()

    def open(self, label: str, item: str, number: int) -> FileLog:
        """The log of one attempt; no file is made before its first byte."""
        return FileLog(self, label, item, number)

    def furnish(self, own: Path) -> None:
        """Make the folder of a step's logs, once; StoreError or OSError where it can't be had as our own."""
        if own in self._furnished:
            return
        # Only below a run's folder that is there: a state folder that was removed is not made anew.
        for folder in (own.parent, own):
            check_own_folder(folder)
            folder.mkdir(mode=0o700, exist_ok=True)
        self._furnished.add(own)

    def clock(self) -> str:
        """``HH:MM:SS`` in local time."""
        now = int(time.time())
        if self._second[0] != now:
            self._second = (now, time.strftime("%H:%M:%S", time.localtime(now)))
        return self._second[1]

    def tell(self, line: LogLine) -> None:
        """Pass a line on; a callback that raises is not asked again."""
        if self.on_line is None:
            return
        try:
            self.on_line(line)
        except Exception as error:
            self.on_line = None
            self.trouble = self.trouble or f"log lines are no longer shown: {type(error).__name__}: {error}"


class FileLog:
    """One attempt's log (an ``attempt.AttemptLog``). Never raises and holds at most one open file.

    Bytes fill the head, then a ring behind it. Positions count from ``_base``: what an earlier session left in the file.
    """

    __slots__ = ("_base", "_fd", "_folder", "_mask", "_partial", "_size", "item", "label", "number")

    def __init__(self, folder: LogFolder, label: str, item: str, number: int) -> None:
        self._folder = folder
        self.label = label
        self.item = item
        self.number = number
        self._fd = -1
        self._size = 0
        self._partial = b""
        self._mask = folder.mask.stream() if folder.mask is not None else None

    @property
    def path(self) -> Path:
        """Where the log is, once it has a byte."""
        return self._folder.folder / log_path(self.label, self.item, self.number)

    @property
    def size_bytes(self) -> int:
        """Bytes written so far, with those that the cap left out."""
        return self._size

    def write(self, data: bytes) -> None:
        """Append raw output."""
        if self._mask is not None:
            data = self._mask.feed(data)
        self._write(data)

    def _write(self, data: bytes) -> None:
        if not data:
            return
        self._store(data)
        if self._folder.on_line is not None:
            self._split(data)

    def record(self, level: int, logger: str, message: str) -> None:
        """Append ``HH:MM:SS LEVEL logger: message``."""
        name = _LEVELS.get(level) or f"LEVEL{level}"
        if self._folder.mask is not None:
            logger, message = self._folder.mask.text(logger), self._folder.mask.text(message)
        self._store(f"{self._folder.clock()} {name} {logger}: {message}\n".encode("utf-8", "backslashreplace"))
        if self._folder.on_line is not None:
            for line in message.splitlines() or [""]:
                self._tell(line[:LINE_BYTES], level)

    def close(self) -> None:
        """No more output will come: the ring is put in order and the file closed. Idempotent."""
        if self._mask is not None and self._fd != -2:
            self._write(self._mask.end())
        fd, self._fd = self._fd, -2
        if fd < 0:
            return
        if self._partial:
            self._tell(self._partial, None)
            self._partial = b""
        try:
            if self._size > self._folder.cap_bytes:
                self._unroll(fd)
        except OSError as error:
            self._lose(error, 0)
        try:
            os.close(fd)
        except OSError as error:
            self._lose(error, 0)

    def _store(self, data: bytes) -> None:
        if self._fd == -1:
            self._open()
        if self._fd < 0:
            self._folder.dropped_bytes += len(data)
            return
        try:
            fp("log.write")
            self._place(data)
        except OSError as error:
            self._lose(error, len(data))
            self.close()

    def _open(self) -> None:
        path = self.path
        try:
            fp("log.open")
            self._folder.furnish(path.parent)
            self._fd = open_own(path, os.O_RDWR | os.O_CREAT)
            self._base = os.lseek(self._fd, 0, os.SEEK_END)
        except (OSError, StoreError) as error:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -2
            self._lose(error, 0)

    def _place(self, data: bytes) -> None:
        """Write where the bytes belong: the head once, then round and round in the ring."""
        head = self._folder.cap_bytes // 2
        ring = self._folder.cap_bytes - head
        view = memoryview(data)
        if self._size < head:
            first = view[: head - self._size]
            self._write_at(first, self._size)
            view = view[len(first) :]
        if len(view) > ring:
            self._size += len(view) - ring
            view = view[-ring:]
        while view:
            offset = (self._size - head) % ring
            part = view[: ring - offset]
            self._write_at(part, head + offset)
            view = view[len(part) :]

    def _write_at(self, view: memoryview, offset: int) -> None:
        self._size += len(view)
        while view:
            done = os.pwrite(self._fd, view, self._base + offset)
            offset += done
            view = view[done:]

    def _unroll(self, fd: int) -> None:
        """Turn the ring into its order in time, behind a line that says what is missing."""
        head = self._folder.cap_bytes // 2
        ring = self._folder.cap_bytes - head
        start = (self._size - head) % ring
        kept = os.pread(fd, ring, self._base + head)
        tail = kept[start:] + kept[:start]
        note = f"\n[procflow: {self._size - head - ring} bytes dropped here, above the cap of {head + ring}]\n".encode()
        view, offset = memoryview(note + tail), self._base + head
        while view:
            done = os.pwrite(fd, view, offset)
            offset += done
            view = view[done:]

    def _split(self, data: bytes) -> None:
        """Tell whole lines; beyond the head of a capped log they are no longer told, so a flood can't stall the run."""
        if self._fd < 0 or self._size > self._folder.cap_bytes // 2:
            return
        lines = (self._partial + data).split(b"\n")
        self._partial = lines.pop()
        for line in lines:
            self._tell(line[:LINE_BYTES], None)
        while len(self._partial) > LINE_BYTES:
            self._tell(self._partial[:LINE_BYTES], None)
            self._partial = self._partial[LINE_BYTES:]

    def _tell(self, text: bytes | str, level: int | None) -> None:
        self._folder.tell(LogLine(self.label, self.item, self.number, level, plain_text(text)))

    def _lose(self, error: OSError | StoreError, count: int) -> None:
        self._folder.dropped_bytes += count
        if self._folder.trouble is None:
            why = error.strerror if isinstance(error, OSError) else None
            self._folder.trouble = f"{self.path}: output was dropped: {why or error}"
