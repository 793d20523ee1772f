"""Durations, sizes, shares and rates as people write them, and back.

Pure text to numbers: ``90s`` is 90.0, ``1h30m`` 5400.0, ``4GiB`` 4294967296, ``80%`` a ``Share``. Bare numbers are refused
for sizes, because nobody agrees what they count. ValueError messages say what to write instead.
"""

from __future__ import annotations

import math
import re

from procflow.passive import passive

__all__ = [
    "Rate",
    "Share",
    "Times",
    "duration",
    "duration_text",
    "pause",
    "rate",
    "share",
    "size",
    "size_text",
    "timeout",
]

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_UNITS = {"b": 1} | {
    f"{letter}{suffix}": base ** (power + 1)
    for power, letter in enumerate("kmgt")
    for suffix, base in (("b", 1000), ("ib", 1024), ("", 1024))
}
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_DURATION = re.compile("".join(rf"(?:{_NUMBER}\s*{unit}\s*)?" for unit in ("d", "h", "m", "s", "ms")))
_SIZE = re.compile(rf"{_NUMBER}\s*([A-Za-z]+)")
_PERCENT = re.compile(rf"{_NUMBER}\s*%")
_RATE = re.compile(rf"{_NUMBER}\s*/\s*(?:{_NUMBER}?\s*(ms|s|m|h|d))")
_LONGEST = 64

MAX_DURATION_S = 366 * 86400.0
MAX_SIZE_BYTES = 1 << 50
MAX_RATE_COUNT = 1e9
MAX_TIMES = 1000


@passive(frozen=True, slots=True)
class Share:
    """A fraction of something known later, such as the machine's memory; ``fraction`` is in (0, 1]."""

    fraction: float

    def __str__(self) -> str:
        return f"{self.fraction * 100:g}%"


@passive(frozen=True, slots=True)
class Times:
    """A multiple of what was learned: ``300%`` is three times the median; ``factor`` is at least 1."""

    factor: float

    def __str__(self) -> str:
        return f"{self.factor * 100:g}%"


@passive(frozen=True, slots=True)
class Rate:
    """At most ``count`` starts in any ``per_s`` seconds."""

    count: float
    per_s: float

    @property
    def interval_s(self) -> float:
        """Seconds between two starts when spread evenly."""
        return self.per_s / self.count


def _text(value: object) -> str:
    """What was written, stripped; text too long to be a number comes back empty, so that it matches nothing."""
    text = value.strip() if isinstance(value, str) else ""
    return text if len(text) <= _LONGEST else ""


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) > 10**_LONGEST:
        return f"a number of more than {_LONGEST} digits"
    if isinstance(value, (str, int, float)):
        if isinstance(value, str):
            return repr(value if len(value) <= _LONGEST else f"{value[: _LONGEST - 3]}...")
        return str(value)
    return f"a {type(value).__name__}"


def duration(value: object) -> float:
    """Seconds for ``90s``, ``15m``, ``1h30m``, ``250ms`` or a plain number of seconds; ValueError unless more than 0."""
    seconds = pause(value)
    if seconds <= 0:
        raise ValueError(f"{_shown(value)} is not a duration: it must be more than 0")
    return seconds


def pause(value: object) -> float:
    """A duration that may also be 0, such as the pause before a retry; ValueError otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = _finite(value)
    else:
        text = _text(value)
        found = _DURATION.fullmatch(text)
        if not text or found is None:
            bare = f"{_shown(value)} has no unit; write {text}s" if text.isdecimal() and text.isascii() else ""
            raise ValueError(bare or f"{_shown(value)} is not a duration; write 90s, 15m or 2h")
        units = (86400.0, 3600.0, 60.0, 1.0, 0.001)
        seconds = sum(float(number) * unit for number, unit in zip(found.groups(), units, strict=True) if number)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{_shown(value)} is not a duration: it must be a finite time, not negative")
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{_shown(value)} is more than a year")
    return seconds


def timeout(value: object) -> float | Times:
    """Seconds, as ``duration`` takes them, or the multiple of the learned median that ``300%`` is; ValueError otherwise."""
    if isinstance(value, Times):
        return value
    found = _PERCENT.fullmatch(_text(value))
    if found is None:
        return duration(value)
    factor = float(found[1]) / 100
    if not 1 <= factor <= MAX_TIMES:
        raise ValueError(
            f"{_shown(value)} must be from 100% to {MAX_TIMES * 100}% of the median of earlier runs; write 300%, or 90s"
        )
    return Times(factor)


def _finite(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def size(value: object) -> int:
    """Bytes for ``500MB`` or ``4GiB``; a bare number is refused. ValueError otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value > 0 and value <= MAX_SIZE_BYTES:
            raise ValueError(f"a size needs a unit: write {value}MB or {value}GiB, not {value}")
        raise ValueError(f"{_shown(value)} is not a size; write 500MB or 4GiB")
    text = _text(value)
    found = _SIZE.fullmatch(text)
    if found is None:
        bare = f": write {text}MB or {text}GiB" if text.isdecimal() and text.isascii() else "; write 500MB or 4GiB"
        raise ValueError(f"{_shown(value)} is not a size{bare}")
    number, unit = found.groups()
    factor = _SIZE_UNITS.get(unit.lower())
    if factor is None:
        raise ValueError(f"unknown unit {unit!r} in {text!r}; write 500MB or 4GiB")
    count = float(number) * factor
    if not 1 <= count <= MAX_SIZE_BYTES:
        raise ValueError(f"{text!r} is out of range: at least 1B and at most 1024TiB")
    return int(count)


def share(value: object) -> Share:
    """The share that ``80%`` names; ValueError outside (0, 100]."""
    found = _PERCENT.fullmatch(_text(value))
    if found is None:
        raise ValueError(f"{_shown(value)} is not a percentage; write 80%")
    fraction = float(found[1]) / 100
    if not 0 < fraction <= 1:
        raise ValueError(f"{_shown(value)} must be more than 0% and at most 100%")
    return Share(fraction)


def rate(value: object) -> Rate:
    """``10/s``, ``100/5m``, ``3/h``; ValueError otherwise."""
    found = _RATE.fullmatch(_text(value))
    if found is None:
        raise ValueError(f"{_shown(value)} is not a rate; write 10/s or 100/5m")
    count, number, unit = float(found[1]), float(found[2] or 1), found[3]
    if not (0 < count <= MAX_RATE_COUNT and 0 < number * _DURATION_UNITS[unit] <= MAX_DURATION_S):
        raise ValueError(f"{_shown(value)} is out of range: more than 0, and within a year")
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
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"
