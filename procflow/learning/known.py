"""Known: what the last runs of a pipeline teach together about each of its tasks. Pure.

Runs with the same parameters, and tasks made of the same (their fingerprints), are preferred to others; medians and upper
quantiles are taken over what is preferred, so that one odd run does not decide. Nothing here decides about a schedule:
``teaching.py`` puts it into a graph, ``simulation.py`` plays it through.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from itertools import accumulate
from operator import itemgetter
from typing import Any, Protocol

from procflow.learning.lessons import Lesson, Lessons, Place, Spans, median, once_lesson, quantile
from procflow.learning.ran_once import Part, middles, parts_of, rising, together
from procflow.passive import alike as alike_of
from procflow.passive import passive

__all__ = ["HIGH", "Course", "Knowledge", "Known", "Run", "gather"]

HIGH = 0.95
"""The share of past peaks and durations that the high values are not below."""


class Run(Protocol):
    """A run that taught something."""

    @property
    def workers(self) -> int: ...

    @property
    def params(self) -> Mapping[str, Any]: ...

    @property
    def lessons(self) -> Lessons: ...


class Course:
    """The seconds of a map's items (or of attempts in their order) from first to last, as cumulated sums."""

    __slots__ = ("_counts", "_cpu", "_wall")

    def __init__(self, spans: Spans, scale: float = 1.0) -> None:
        self._counts = [0, *accumulate(count for count, _, _ in spans)]
        self._wall = [0.0, *accumulate(wall * scale for _, wall, _ in spans)]
        self._cpu = [0.0, *accumulate(cpu * scale for _, _, cpu in spans)]

    def between(self, first: int, stop: int, size: int) -> tuple[float, float]:
        """Wall and CPU seconds of items ``first`` to ``stop`` of ``size``: those at the same part of the way count."""
        step = self._counts[-1] / size
        begin, end = self._at(first * step), self._at(stop * step)
        return (end[0] - begin[0]) / step, (end[1] - begin[1]) / step

    def _at(self, place: float) -> tuple[float, float]:
        counts = self._counts
        i = min(bisect_right(counts, place), len(counts) - 1)
        part = (place - counts[i - 1]) / (counts[i] - counts[i - 1])
        wall, cpu = self._wall, self._cpu
        return wall[i - 1] + part * (wall[i] - wall[i - 1]), cpu[i - 1] + part * (cpu[i] - cpu[i - 1])

    @property
    def longest_s(self) -> float:
        """Seconds of an item where they take longest."""
        counts, wall = self._counts, self._wall
        return max((wall[i] - wall[i - 1]) / (counts[i] - counts[i - 1]) for i in range(1, len(counts)))


@passive(frozen=True, slots=True)
class Known:
    """What is known of one task from ``runs`` runs with ``attempts`` attempts, made with up to ``workers`` workers
    on ``cores`` cores (0: not known).

    ``same`` says that they had the same parameters and that the task is made of the same. ``mean_s``, ``median_s`` and
    ``high_s`` are of one item (of one attempt outside batches), ``cpu_s`` is the CPU time in ``mean_s``. ``peak_bytes``
    is what 95 % of past attempts did not pass, ``most_bytes`` the highest. ``size`` is how many items were found.
    ``skipped`` says that the last of the runs did not run it.
    """

    runs: int
    attempts: int
    same: bool
    executor: str
    workers: int
    cores: int
    items: int
    mean_s: float
    median_s: float
    high_s: float
    cpu_s: float
    overhead_s: float
    peak_bytes: int
    most_bytes: int
    size: int = 0
    size_bytes: int = 0
    skipped: bool = False
    course: Course | None = None

    @property
    def longest_s(self) -> float:
        """Seconds of an item where they take longest."""
        return self.course.longest_s if self.course is not None else self.mean_s

    def seconds(self, wall_s: float, cpu_s: float, workers: int, crowd: float = 1.0) -> float:
        """Seconds that work which took ``wall_s`` then would take on so many workers, each with a core of its own.

        A task that is busy with a core waited for one beyond its CPU time: that wait shrinks with fewer workers, and is gone
        where there were more of them than cores. With ``crowd`` workers for each core it takes so many times as long. A
        task that mostly waits for something else waits as long as ever.
        """
        fair = min(1.0, self.cores / self.workers) if self.cores else 1.0
        if cpu_s < 0.5 * wall_s * fair:
            return wall_s
        own_s = max(cpu_s, wall_s * fair)
        if fair == 1.0 and workers < self.workers:
            own_s -= max(0.0, wall_s - cpu_s) * (1 - (workers - 1) / (self.workers - 1))
        return own_s * crowd


@passive(frozen=True, slots=True)
class Knowledge:
    """All that is known: by label and role; from ``runs`` runs; a worker took ``start_s`` to start.

    ``unusable`` are parts of the history that could not be used, a line each.
    """

    by_place: Mapping[Place, Known] = field(default_factory=dict)
    runs: int = 0
    start_s: float = 0.0
    unusable: tuple[str, ...] = ()

    def __call__(self, label: str, role: str) -> Known | None:
        """What is known of one task; None where nothing is."""
        return self.by_place.get((label, role))


def gather(
    runs: Sequence[Run],
    *,
    params: Mapping[str, Any] | None = None,
    same: Sequence[Collection[Place]] = (),
    executors: Mapping[Place, str] | None = None,
    unusable: Iterable[str] = (),
) -> Knowledge:
    """What ``runs``, newest first, teach a run with these parameters and executors (by label and role).

    ``same`` are for each run the tasks that were made of the same as now.
    """
    places = executors or {}
    likes = [2 * (params is not None and dict(run.params) == dict(params)) for run in runs]
    alike = [same[at] if at < len(same) else () for at in range(len(runs))]
    every = _by_place(runs)
    by_place = {}
    for place, seen in every.items():
        wanted = places.get(place)
        fits = [4 * (wanted in (None, of)) + likes[at] + (place in alike[at]) for at, of, _ in seen]
        best = max(fits)
        chosen = [(runs[at], of, lesson) for (at, of, lesson), fit in zip(seen, fits, strict=True) if fit == best]
        by_place[place] = _known(chosen, same=best & 3 == 3)
    several = {label for label, role in every if role == "member"}
    for labels, parts in together(_parts(runs, places, likes, alike, several)):
        best = max([part.fits for part in parts])
        columns = [part for part in parts if part.fits == best]
        known = _ran_once([runs[part.at] for part in columns], columns, labels, same=best & 3 == 3)
        by_place.update(zip([(label, "member") for label in labels], known, strict=True))
    starts = [run.lessons.start_s for run in runs if run.lessons.start_s]
    return Knowledge(by_place, len(runs), median(starts) if starts else 0.0, tuple(unusable))


Seen = tuple[int, str, Lesson]
"""The place of its run, the executor, and the lesson."""


def _by_place(runs: Sequence[Run]) -> dict[Place, list[Seen]]:
    """The lessons, newest first, but of steps that ran once in each run that had them."""
    every: dict[Place, list[Seen]] = {}
    for at, run in enumerate(runs):
        for (label, role, executor), lesson in run.lessons.by_key.items():
            every.setdefault((label, role), []).append((at, executor, lesson))
    several = {label for label, role in every if role == "member"}
    for at, run in enumerate(runs) if several else ():
        for executor, once in run.lessons.once.items():
            for row in [row for row, label in enumerate(once.labels) if label in several]:
                lesson = once_lesson(*[column[row] for column in once[1:]])
                every[once.labels[row], "member"].append((at, executor, lesson))
    for label in several:
        every[label, "member"].sort(key=itemgetter(0))
    return every


def _parts(
    runs: Sequence[Run],
    places: Mapping[Place, str],
    likes: Sequence[int],
    alike: Sequence[Collection[Place]],
    without: Collection[str],
) -> Iterator[Part]:
    """The columns of all runs, in parts that fit alike."""
    members: dict[int, set[str]] = {}
    for among in alike:
        if id(among) not in members:
            members[id(among)] = {label for label, role in among if role == "member"}
    others: dict[str, set[str]] = {}
    for at, run in enumerate(runs):
        for executor, once in run.lessons.once.items():
            if executor not in others:
                others[executor] = {
                    of for (of, role), wanted in places.items() if wanted != executor and role == "member"
                }
            more = (others[executor], -4), (members[id(alike[at])], 1)
            yield from parts_of(at, executor, once, 4 + likes[at], more, without)


def _ran_once(runs: Sequence[Run], parts: Sequence[Part], labels: list[str], same: bool) -> Iterator[Known]:
    """The same as ``_known`` of each of some steps that ran once in each of these runs."""
    count = len(parts)
    cores, workers = min([run.lessons.cores for run in runs]), max([run.workers for run in runs])
    first = Known(count, count, same, parts[0].executor, workers, cores, 1, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)
    made = alike_of(first, "mean_s", "median_s", "high_s", "cpu_s", "overhead_s", "peak_bytes", "most_bytes")
    if count == 1:
        *times, highest = parts[0].columns(labels)
        wall_s, cpu_s, outside_s = ([us / 1e6 for us in column] for column in times)
        return map(made, wall_s, wall_s, wall_s, cpu_s, outside_s, highest, highest)
    walls, cpus, outsides, peaks = (
        rising(columns) for columns in zip(*[part.columns(labels) for part in parts], strict=True)
    )
    means = middles(walls)
    place = int(quantile(range(count), HIGH))
    peaks = [[peak for peak in row if peak] or [0] for row in peaks]
    return map(
        made, means, means, [row[place] / 1e6 for row in walls], middles(cpus), middles(outsides),
        [quantile(row, HIGH) for row in peaks], [row[-1] for row in peaks],
    )  # fmt: skip


def _known(chosen: Sequence[tuple[Run, str, Lesson]], same: bool) -> Known:
    lessons = [lesson for _, _, lesson in chosen]
    good = [lesson for lesson in lessons if lesson.attempts]
    means = [lesson.wall_s / lesson.items for lesson in good]
    mean_s = median(means) if means else 0.0
    course = None
    if good and len(good[0].spans) > 1:
        course = Course(good[0].spans, mean_s / means[0] if means[0] else 1.0)
    walls, peaks = _pooled([lesson.walls for lesson in good]), _pooled([lesson.peaks for lesson in lessons])
    sizes = [lesson for lesson in good if lesson.size]
    return Known(
        runs=len(lessons),
        attempts=sum(lesson.attempts for lesson in good),
        same=same,
        executor=chosen[0][1],
        workers=max(run.workers for run, _, _ in chosen),
        cores=min(run.lessons.cores for run, _, _ in chosen),
        items=good[0].items if good else 0,
        mean_s=mean_s,
        median_s=median([quantile(lesson.walls, 0.5) for lesson in good]) if good else 0.0,
        high_s=quantile(walls, HIGH) if walls else 0.0,
        cpu_s=median([lesson.cpu_s / lesson.items for lesson in good]) if good else 0.0,
        overhead_s=median([lesson.overhead_s for lesson in good]) if good else 0.0,
        peak_bytes=int(quantile(peaks, HIGH)) if peaks else 0,
        most_bytes=int(peaks[-1]) if peaks else 0,
        size=sizes[0].size if sizes else 0,
        size_bytes=sizes[0].size_bytes if sizes else 0,
        skipped=lessons[0].skipped > 0 and not lessons[0].attempts,
        course=course,
    )


def _pooled(parts: Sequence[Sequence[float]]) -> list[float]:
    """The values of all runs together, in rising order."""
    return sorted(value for part in parts for value in part)
