"""Lessons: what one run taught about each of its tasks, small enough to be kept for every run. Pure.

A lesson is of one label, role and executor: how long attempts took, how much of that a core was at work, what was
spent around them, their peaks, and the course of a map's items from first to last, in few spans. Steps that ran once are
columns and never lessons of their own: most are such. This file makes lessons of attempts, and text of lessons and back;
where they are kept is ``storing/store_learned.py``'s, what several runs teach together is ``known.py``'s.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple

from procflow.passive import passive

__all__ = [
    "READABLE",
    "START_S",
    "VERSION",
    "Lesson",
    "Lessons",
    "Once",
    "Seen",
    "Spans",
    "columns_text",
    "decoded",
    "encoded",
    "learn",
    "median",
    "once_lesson",
    "quantile",
]

VERSION = 3
"""Of the text."""
READABLE = (1, 2, VERSION)
"""Versions of the text that can be read."""
POINTS = 21
"""Values at most that stand for a distribution."""
SPANS = 64
"""Spans at most, about, that stand for the course of a map's items."""
SHORT_ROW = 8
"""Parts of the text of a lesson of a single attempt in version 1, which had no columns."""
AT_ONCE = 1000
"""Lessons that are made text at once."""
START_S = 0.02
"""What is spent around an attempt from here on is the start of its worker."""

Spans = tuple[tuple[int, float, float], ...]
"""Items in their order: how many, their seconds together, and the CPU seconds in them."""
Key = tuple[str, str, str]
"""Label, role and executor."""
Place = tuple[str, str]
"""Label and role."""


class Seen(NamedTuple):
    """One attempt as the journal knows it: ``item`` as in events, ``outside_s`` is what passed around its work."""

    label: str
    role: str
    executor: str
    item: str
    status: str
    wall_s: float
    cpu_s: float
    outside_s: float
    peak_bytes: int
    size: int = 0
    size_bytes: int = 0


class Lesson(NamedTuple):
    """Of one label, role and executor in one run.

    ``attempts`` that succeeded worked on ``items`` (one each, but for batches), ``wall_s`` and ``cpu_s`` together.
    ``walls`` and ``peaks`` are values in rising order that stand for all: seconds of an item, bytes of an attempt.
    ``overhead_s`` is spent around an attempt. ``size`` is the number of items that an *expand* found, of
    ``size_bytes``. ``skipped`` are attempts whose condition was false.
    """

    attempts: int
    items: int
    wall_s: float
    cpu_s: float
    overhead_s: float
    walls: tuple[float, ...] = ()
    peaks: tuple[int, ...] = ()
    spans: Spans = ()
    size: int = 0
    size_bytes: int = 0
    skipped: int = 0


class Once(NamedTuple):
    """Steps of one executor of which each had a single attempt, which succeeded: columns, since most steps are such.

    Times are microseconds, ``overheads_us`` what was spent around the attempt, peaks bytes (0: not known). ``once_lesson`` makes
    a lesson of a row.
    """

    labels: Sequence[str] = ()
    walls_us: Sequence[int] = ()
    cpus_us: Sequence[int] = ()
    overheads_us: Sequence[int] = ()
    peaks_bytes: Sequence[int] = ()


@passive(frozen=True, slots=True)
class Lessons:
    """What a run taught: by label, role and executor, and ``once`` by executor of what has one attempt.

    ``start_s`` is how long a worker took to start, 0 where none did; ``cores`` are those of the machine, 0 where that is
    not known. ``made_of`` is one digest of what all tasks were made of, empty where that is not known; texts of earlier
    versions have the beginning of each fingerprint instead, in ``prints``.
    """

    by_key: Mapping[Key, Lesson]
    start_s: float = 0.0
    cores: int = 0
    once: Mapping[str, Once] = field(default_factory=dict)
    made_of: str = ""
    prints: Mapping[Place, str] = field(default_factory=dict)

    def each(self) -> Iterator[tuple[Key, Lesson]]:
        """All lessons, also those of steps that ran once."""
        yield from self.by_key.items()
        for executor, columns in self.once.items():
            for label, wall_us, cpu_us, around_us, peak in zip(*columns, strict=True):
                yield (label, "member", executor), once_lesson(wall_us, cpu_us, around_us, peak)

    def __len__(self) -> int:
        return len(self.by_key) + sum(len(columns.labels) for columns in self.once.values())


def once_lesson(wall_us: int, cpu_us: int, overhead_us: int, peak_bytes: int) -> Lesson:
    """The lesson of a step that ran once."""
    wall_s = wall_us / 1e6
    return Lesson(1, 1, wall_s, cpu_us / 1e6, overhead_us / 1e6, (wall_s,), (peak_bytes,) if peak_bytes else ())


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values, which rise, do not pass."""
    return values[max(0, min(len(values) - 1, -int(-share * len(values) // 1) - 1))]


def median(values: Iterable[float]) -> float:
    """The middle of some values, of two the mean. (That of ``statistics`` takes ten times as long to import as a run's end.)"""
    found = sorted(values)
    half = len(found) // 2
    return found[half] if len(found) % 2 else (found[half - 1] + found[half]) / 2


def learn(attempts: Iterable[Seen], cores: int = 0) -> Lessons:
    """The lessons of a run's attempts: those that succeeded, were skipped, or ran out of memory (for their peaks)."""
    groups: dict[Key, list[Seen]] = {}
    starts = []
    for seen in attempts:
        groups.setdefault(seen[:3], []).append(seen)
        if seen.outside_s > START_S:
            starts.append(seen.outside_s)
    # Attempts go as their lesson is made: a run may have had a hundred thousand.
    found = {key: _lesson(groups.pop(key)) for key in list(groups)}
    return Lessons(found, quantile(sorted(starts), 0.5) if starts else 0.0, cores)


def _lesson(group: list[Seen]) -> Lesson:
    good = [s for s in group if s.status == "succeeded"]
    peaks = sorted(s.peak_bytes for s in group if s.peak_bytes and s.status != "skipped")
    skipped = sum(s.status == "skipped" for s in group)
    around = [s.outside_s for s in good if s.outside_s <= START_S]
    parts = [(_place(s), _count(s), _finite(s.wall_s), _finite(s.cpu_s)) for s in good]
    if len(parts) > 1 and good[0].role == "batch":
        parts.sort(key=lambda part: part[0])
    walls = sorted(wall / count for _, count, wall, _ in parts)
    return Lesson(
        len(good),
        sum(part[1] for part in parts),
        sum(part[2] for part in parts),
        sum(part[3] for part in parts),
        sum(around) / len(around) if around else 0.0,
        _few(walls),
        tuple(int(p) for p in _few(peaks)),
        _spans([part[1:] for part in parts]) if len(parts) > 1 else (),
        round(sum(s.size for s in good) / len(good)) if good else 0,
        round(sum(s.size_bytes for s in good) / len(good)) if good else 0,
        skipped,
    )


def _finite(seconds: float) -> float:
    return seconds if isfinite(seconds) else 0.0


def _place(seen: Seen) -> tuple[tuple[int, ...], int]:
    """Where the attempt's first item stands: items of enclosing maps, then its own."""
    *outer, own = seen.item.split("/")
    first = own.partition("-")[0].partition(",")[0]
    return tuple(int(o) for o in outer if o.isdecimal()), int(first) if first.isdecimal() else 0


def _count(seen: Seen) -> int:
    """Items of a batch, by its label: ``7``, ``0-99`` or ``3,8,9``."""
    if seen.role != "batch":
        return 1
    own = seen.item.rpartition("/")[2]
    first, dash, last = own.partition("-")
    if dash and first.isdecimal() and last.isdecimal():
        return max(1, int(last) - int(first) + 1)
    return own.count(",") + 1


def _few(values: Sequence[float]) -> tuple[float, ...]:
    """At most ``POINTS`` of the values, which rise, evenly spread, the largest among them."""
    if len(values) <= POINTS:
        return tuple(values)
    return tuple(values[round(i * (len(values) - 1) / (POINTS - 1))] for i in range(POINTS))


def _spans(parts: Sequence[tuple[int, float, float]]) -> Spans:
    """The same course in few spans: what took long stays by itself, what was short is joined with its neighbours."""
    if len(parts) <= SPANS:
        return tuple(parts)
    share = sum(wall for _, wall, _ in parts) / SPANS or 1.0
    found: list[tuple[int, float, float]] = []
    count, wall, cpu = 0, 0.0, 0.0
    for part in parts:
        if count and wall + part[1] > share:
            found.append((count, wall, cpu))
            count, wall, cpu = 0, 0.0, 0.0
        count, wall, cpu = count + part[0], wall + part[1], cpu + part[2]
    found.append((count, wall, cpu))
    return tuple(found)


def encoded(lessons: Lessons, columns: Iterable[str] = ()) -> bytes:
    """The lessons as compressed text; ``columns`` are what ``columns_text`` says of steps that ran once."""
    packer = zlib.compressobj(1)
    packed = [packer.compress(f"[{json.dumps(round(lessons.start_s, 4))},{lessons.cores},[".encode())]
    # Some at a time: of a hundred thousand, the text alone would be ten megabytes.
    left = iter(lessons.by_key.items())
    comma = ""
    for rows in iter(lambda: [_row(key, lesson) for key, lesson in islice(left, AT_ONCE)], []):
        packed.append(packer.compress((comma + _text(rows)[1:-1]).encode()))
        comma = ","
    packed.append(packer.compress(b"],["))
    for at, text in enumerate(columns):
        packed.append(packer.compress(f"{',' if at else ''}{text}".encode()))
    packed.append(packer.compress(f"],{json.dumps(lessons.made_of)}]".encode()))
    return b"".join((*packed, packer.flush()))


def columns_text(executor: str, labels: Sequence[str], *numbers: str) -> str:
    """The columns of ``Once`` as text; ``numbers`` are those after the labels, each as numbers with commas between."""
    return f"[{_text(executor)},{_text(labels)},{','.join(f'[{column}]' for column in numbers)}]"


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _row(key: Key, one: Lesson) -> list[Any]:
    return [
        *key, one.attempts, one.items, round(one.wall_s, 6), round(one.cpu_s, 6), round(one.overhead_s, 6),
        [round(w, 7) for w in one.walls], one.peaks,
        [(count, round(wall, 6), round(cpu, 6)) for count, wall, cpu in one.spans],
        one.size, one.size_bytes, one.skipped,
    ]  # fmt: skip


def decoded(data: bytes, most_bytes: int = 1 << 28) -> Lessons:
    """The lessons that ``encoded`` made this text of, or an earlier version did; ValueError for anything else."""
    try:
        opener = zlib.decompressobj()
        text = opener.decompress(data, most_bytes)
        if not opener.eof:
            raise ValueError("the text of the lessons is cut off, or too long")
        start_s, cores, rows, *more = json.loads(text)
        prints: dict[Place, str] = {}
        by_key = dict(_read(rows, prints))
        once = _joined(more[0] if more else (), prints)
        return Lessons(by_key, float(start_s), int(cores), once, str(more[1]) if len(more) > 1 else "", prints)
    except (zlib.error, TypeError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"the text of the lessons can't be read: {error}") from None


def _joined(parts: Iterable[Any], prints: dict[Place, str]) -> dict[str, Once]:
    found: dict[str, Once] = {}
    for executor, *columns in parts:
        if len({*map(len, columns)}) != 1:
            raise ValueError("the columns of the lessons are of different lengths")
        if len(columns) > len(Once._fields):
            # In version 2 the last are the beginnings of fingerprints.
            prints.update(((label, "member"), print_) for label, print_ in zip(columns[0], columns.pop(), strict=True))
        once = Once._make(columns)
        for column, more in zip(found.setdefault(executor, Once([], [], [], [], [])), once, strict=True):
            column += more  # type: ignore[operator]
    return found


def _read(rows: Iterable[Any], prints: dict[Place, str]) -> Iterator[tuple[Key, Lesson]]:
    for row in rows:
        if len(row) == SHORT_ROW:
            label, role, executor, wall, cpu, overhead, peak, print_ = row
            prints[label, role] = print_
            peaks = (peak,) if peak else ()
            yield (label, role, executor), Lesson(1, 1, wall, cpu, overhead, (wall,), peaks)
            continue
        label, role, executor, attempts, items, wall, cpu, overhead, walls, peaks, spans, *rest = row
        course = tuple((int(count), float(w), float(c)) for count, w, c in spans)
        size, size_bytes, skipped, *older = rest
        prints.update(((label, role), print_) for print_ in older)
        yield (
            (label, role, executor),
            Lesson(attempts, items, wall, cpu, overhead, tuple(walls), tuple(peaks), course, size, size_bytes, skipped),
        )
