"""Durations, sizes, shares and rates as people write them, and back.

Pure text to numbers: ``90s`` is 90.0, ``1h30m`` 5400.0, ``4GiB`` 4294967296, ``80%`` a ``Share``. Bare numbers are refused
for sizes, because nobody agrees what they count. ValueError messages say what to write instead.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["Rate", "Share", "duration", "duration_text", "rate", "share", "size", "size_text"]

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"B": 1} | {
    f"{letter}{suffix}": base ** (power + 1)
    for power, letter in enumerate("KMGT")
    for suffix, base in (("B", 1000), ("iB", 1024), ("", 1024))
}
_PIECE = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(?:(\d+(?:\.\d+)?)?\s*(ms|s|m|h|d))")

MAX_DURATION_S = 366 * 86400.0
MAX_SIZE_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class Share:
    """A fraction of something known later, such as the machine's memory; ``fraction`` is in (0, 1]."""

    fraction: float

    def __str__(self) -> str:
        return f"{self.fraction * 100:g}%"


@dataclass(frozen=True, slots=True)
class Rate:
    """At most ``count`` starts in any ``per_s`` seconds."""

    count: float
    per_s: float

    @property
    def interval_s(self) -> float:
        """Seconds between two starts when spread evenly."""
        return self.per_s / self.count


def duration(value: object) -> float:
    """Seconds for ``90s``, ``15m``, ``1h30m``, ``250ms`` or a plain number of seconds; ValueError otherwise."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"{value!r} is not a duration; write 90s, 15m or 2h")
    if isinstance(value, (int, float)):
        seconds = float(value)
    else:
        text = str(value).strip()
        pieces = _PIECE.findall(text)
        if not pieces or _PIECE.sub("", text).strip():
            raise ValueError(f"{text!r} is not a duration; write 90s, 15m or 2h")
        seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in pieces)
    if not math.isfinite(seconds) or seconds <= 0:
        raise ValueError(f"{value!r} is not a duration: it must be more than 0")
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{value!r} is more than a year")
    return seconds


def size(value: object) -> int:
    """Bytes for ``500MB`` or ``4GiB``; a bare number is refused. ValueError otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"a size needs a unit: write {value}MB or {value}GiB, not {value}")
    text = str(value).strip()
    found = _SIZE.fullmatch(text)
    if found is None:
        hint = f": write {text}MB or {text}GiB" if text.isdigit() else "; write 500MB or 4GiB"
        raise ValueError(f"{text!r} is not a size{hint}")
    number, unit = found.groups()
    factor = _SIZE_UNITS.get(unit) or _SIZE_UNITS.get(unit.upper()) or _SIZE_UNITS.get(unit.upper().replace("IB", "iB"))
    if factor is None:
        raise ValueError(f"unknown unit {unit!r} in {text!r}; write 500MB or 4GiB")
    count = int(float(number) * factor)
    if not 0 < count <= MAX_SIZE_BYTES:
        raise ValueError(f"{text!r} is out of range: more than 0 and at most 1024TiB")
    return count


def share(value: object) -> Share:
    """The share that ``80%`` names; ValueError outside (0, 100]."""
    found = _PERCENT.fullmatch(str(value).strip())
    if found is None:
        raise ValueError(f"{value!r} is not a percentage; write 80%")
    fraction = float(found[1]) / 100
    if not 0 < fraction <= 1:
        raise ValueError(f"{value!r} must be more than 0% and at most 100%")
    return Share(fraction)


def rate(value: object) -> Rate:
    """``10/s``, ``100/5m``, ``3/h``; ValueError otherwise."""
    found = _RATE.fullmatch(str(value).strip())
    if found is None:
        raise ValueError(f"{value!r} is not a rate; write 10/s or 100/5m")
    count, number, unit = float(found[1]), float(found[2] or 1), found[3]
    if count <= 0 or number <= 0:
        raise ValueError(f"{value!r} must be more than 0")
    return Rate(count, number * _DURATION_UNITS[unit])


def size_text(count: float) -> str:
    """``1.5 GiB``, ``310 MiB``, ``12 B``: short, for people."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            amount = count / factor
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{count:.0f} B"


def duration_text(seconds: float) -> str:
    """``1h 02m``, ``3m 42s``, ``12.1 s``, ``85 ms``: short, for people."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1000:.2f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"
