"""The end of an attempt's log, found by what a failure knows: label, item and number of the attempt.

Items of a map travel in batches, and a batch has one log: the log of item 17 may be that of items 10-19. Only reads, never
much of a file, and never raises: evidence that can't be read is no evidence.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from procflow.showing.aftermath import LOG_LINES, FindLog
from procflow.storing.attempt_log import log_path, plain_text

__all__ = ["finder", "short_path"]

TAIL_BYTES = 64 << 10
_OURS = b'  File "' + os.fsencode(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + b"/"
_BATCH = re.compile(r"(?P<outer>.*__)?(?P<first>\d+)-(?P<last>\d+)\.(?P<number>\d+)\.log")


def finder(run_folder: Path) -> FindLog:
    """A function that gives path and last lines of the log of an attempt of this run."""

    def find(label: str, item: str, number: int) -> tuple[str, list[str]] | None:
        try:
            path = _own(run_folder, label, item, number) or _of_batch(run_folder, label, item)
            return (short_path(path), last_lines(path)) if path is not None else None
        except OSError:
            return None

    return find


def _own(run_folder: Path, label: str, item: str, number: int) -> Path | None:
    path = run_folder / log_path(label, item, max(1, number))
    return path if path.is_file() else None


def _of_batch(run_folder: Path, label: str, item: str) -> Path | None:
    """The latest log of a batch that the item was in."""
    outer, _, last = item.rpartition("/")
    if not last.isdecimal():
        return None
    index, best = int(last), None
    prefix = outer.replace("/", "__") + "__" if outer else ""
    with os.scandir((run_folder / log_path(label, item, 1)).parent) as entries:
        for entry in entries:
            found = _BATCH.fullmatch(entry.name)
            if found is None or (found["outer"] or "") != prefix:
                continue
            if int(found["first"]) <= index <= int(found["last"]):
                rank = (entry.stat().st_mtime_ns, entry.path)
                best = max(best, rank) if best is not None else rank
    return Path(best[1]) if best is not None else None


def last_lines(path: Path, count: int = LOG_LINES) -> list[str]:
    """The last lines of a file as safe text; of a very long last line, its end."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        data = file.read(TAIL_BYTES)
    lines = data.rstrip(b"\r\n").split(b"\n") if data.strip() else []
    return [plain_text(line) for line in _without_our_frames(lines)[-count:]]


def _without_our_frames(lines: list[bytes]) -> list[bytes]:
    """The lines with stack dumps cut where procflow's own frames begin: those of the step come first."""
    kept, ours = [], False
    for line in lines:
        ours = line.startswith(b'  File "') and (ours or line.startswith(_OURS))
        if not ours:
            kept.append(line)
    return kept


def short_path(path: Path) -> str:
    """The path from the current folder where it lies below, else as it is."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
