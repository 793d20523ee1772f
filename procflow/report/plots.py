"""Plots of a report: the timeline by worker, and memory, CPU and running tasks over time, as SVG without text.

They are stretched to whatever width a page has, so text would be, too: names and figures stand beside them as HTML. What is
drawn is bounded: where there are more attempts than can be told apart, each lane is cut into bins, and a bin shows the step
that used most of it. All of a plot lies on the run's axis; an x is in thousandths of its length.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from procflow.plaintext import shortened
from procflow.report.facts import Facts, Try
from procflow.units import duration_text

__all__ = ["Curve", "Timeline", "curves", "ticks", "timeline"]

WIDTH = 1000.0
MOST_BARS = 400
MOST_LANES = 48
MOST_CELLS = 6000
MOST_BINS = 500
COLOURS = 8
POINTS = 300


@dataclass(slots=True)
class Timeline:
    """``svg`` is as high as ``height`` pixels; ``lanes`` are names and the share of time that each was busy.

    ``legend`` are steps with their colours (0: all others). ``labels`` are texts on wide bars: left and width in percent, top in
    pixels. ``per_lane`` is how many workers share a row.
    """

    svg: str
    height: float
    lane_px: float
    lanes: list[tuple[str, float]]
    legend: list[tuple[int, str]]
    labels: list[tuple[float, float, float, str]] = field(default_factory=list)
    binned: bool = False
    per_lane: int = 1


def ticks(length: float, most: int = 6) -> list[tuple[float, str]]:
    """Round times with their places in percent."""
    if length <= 0:
        return []
    steps = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800)
    hours = (3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800)
    step = next((s for s in (*steps, *hours) if length / s <= most), length)
    count = int(length / step + 1e-9)
    return [(100 * i * step / length, _tick(i * step)) for i in range(count + 1) if i * step <= length * 0.97]


def _tick(seconds: float) -> str:
    if seconds <= 0:
        return "0"
    if seconds < 1:
        return f"{seconds * 1000:g} ms"
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" if not rest else f"{minutes}:{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" if not minutes else f"{hours}:{minutes:02d} h"


def timeline(facts: Facts, names: Sequence[str]) -> Timeline | None:
    """Who ran what when; ``names`` are the lanes. None where nothing ran."""
    length = facts.length
    if not facts.tries or length <= 0:
        return None
    per_lane = -(-len(names) // MOST_LANES)
    rows = -(-len(names) // per_lane)
    pixels = 22.0 if rows <= 12 else 14.0 if rows <= 24 else 9.0
    colours, legend = _colours(facts)
    busy = [0.0] * rows
    for each in facts.tries:
        busy[each.lane // per_lane] += each.end - each.start
    titles = [_lane_name(names, i, per_lane) for i in range(rows)]
    lanes = [(title, min(1.0, used / length / per_lane)) for title, used in zip(titles, busy, strict=True)]
    found = Timeline("", rows * pixels, pixels, lanes, legend, per_lane=per_lane)
    if len(facts.tries) <= MOST_BARS and per_lane == 1:
        inner = _bars(facts, colours, found)
    else:
        found.binned = True
        inner = _bins(facts, colours, rows, per_lane, pixels)
    marks = "".join(
        f'<path class="cut" d="M{WIDTH * session.offset / length:.1f} 0V{found.height:.0f}"/>'
        for session in facts.sessions[1:]
    )
    found.svg = _svg(found.height, inner + marks)
    return found


def _svg(height: float, inner: str) -> str:
    return f'<svg viewBox="0 0 1000 {height:.0f}" preserveAspectRatio="none" aria-hidden="true">{inner}</svg>'


def _lane_name(names: Sequence[str], row: int, per_lane: int) -> str:
    first, last = row * per_lane, min(len(names), (row + 1) * per_lane) - 1
    return names[first] if first == last else f"{names[first]}–{names[last].rpartition(' ')[2]}"


def _colours(facts: Facts) -> tuple[dict[str, int], list[tuple[int, str]]]:
    """A colour (1 to 8) for each of the steps with most work, 0 for all others; and the legend."""
    work: dict[str, float] = defaultdict(float)
    for each in facts.tries:
        work[each.label] += each.end - each.start
    chosen = sorted(work, key=lambda label: -work[label])[:COLOURS]
    first = {each.label: each.start for each in reversed(facts.tries)}
    chosen.sort(key=lambda label: first[label])
    colours = {label: i + 1 for i, label in enumerate(chosen)}
    short = {label: label.rpartition("/")[2] for label in chosen}
    unique = len(set(short.values())) == len(short)
    legend = [(colour, shortened(short[label] if unique else label, 60)) for label, colour in colours.items()]
    if len(work) > len(chosen):
        legend.append((0, f"{len(work) - len(chosen):,} other steps"))
    return colours, legend


def _bars(facts: Facts, colours: dict[str, int], found: Timeline) -> str:
    length, pixels = facts.length, found.lane_px
    parts = []
    for each in facts.tries:
        x = WIDTH * each.begin / length
        w = max(0.8, WIDTH * (each.end - each.begin) / length)
        y = each.lane * pixels
        wait = WIDTH * (each.begin - each.start) / length
        if wait > 1:
            parts.append(
                f'<rect class="wait" x="{x - wait:.1f}" y="{y + pixels / 2 - 1:.0f}" width="{wait:.1f}" height="2"/>'
            )
        kind = f"c{colours.get(each.label, 0)}" + (" bad" if each.wasted else "")
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{y + 2:.0f}" width="{w:.1f}" height="{pixels - 4:.0f}">'
            f"<title>{escape(_said(each))}</title></rect>"
        )
        if each.critical:
            parts.append(f'<path class="crit" d="M{x:.1f} {y + pixels - 1:.0f}h{w:.1f}"/>')
        if w >= 60 and len(found.labels) < 60:
            name = each.label.rpartition("/")[2] + (f" {each.item}" if each.item else "")
            found.labels.append((x / 10, w / 10, y, shortened(name, 40)))
    return "".join(parts)


def _said(each: Try) -> str:
    item = f" item {shortened(each.item, 60)}" if each.item else ""
    number = f", attempt {each.number}" if each.number > 1 else ""
    cause = f" ({each.cause})" if each.cause else ""
    worker = f", worker {each.worker}" if each.worker else ""
    when = f"{duration_text(each.end - each.start)} from {duration_text(each.start)}{worker}"
    critical = "; on the critical path" if each.critical else ""
    return f"{shortened(each.name, 120)}{item}{number}: {each.status}{cause}, {when}{critical}"


def _bins(facts: Facts, colours: dict[str, int], rows: int, per_lane: int, pixels: float) -> str:
    """Cells of a row and a bin, in the colour of the step that used most of it, as strong as it was busy."""
    bins = max(60, min(MOST_BINS, MOST_CELLS // rows))
    size = facts.length / bins
    used: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    bad: set[int] = set()
    critical: set[int] = set()
    for each in facts.tries:
        colour, base = colours.get(each.label, 0), each.lane // per_lane * bins
        first, last = min(bins - 1, int(each.begin / size)), min(bins - 1, int(each.end / size))
        for place in range(first, last + 1):
            inside = min(each.end, (place + 1) * size) - max(each.begin, place * size)
            used[base + place][colour] += inside
            if each.critical:
                critical.add(base + place)
        if each.wasted:
            bad.add(base + last)
    paths: dict[str, list[str]] = defaultdict(list)
    width = WIDTH / bins
    for row in range(rows):
        _row(paths, used, row, bins, width, pixels, size * per_lane)
    drawn = "".join(f'<path class="{kind}" d="{"".join(cells)}"/>' for kind, cells in sorted(paths.items()))
    marks = "".join(_cell(c, bins, width, pixels, pixels - 2, 2) for c in sorted(critical))
    fails = "".join(_cell(c, bins, width, pixels, 1, pixels - 3) for c in sorted(bad))
    return f'{drawn}<path class="critf" d="{marks}"/><path class="badf" d="{fails}"/>'


def _row(
    paths: dict[str, list[str]],
    used: dict[int, dict[int, float]],
    row: int,
    bins: int,
    width: float,
    pixels: float,
    whole: float,
) -> None:
    """The cells of one row, neighbours of one look joined."""
    at, kind = 0, ""
    for place in range(bins + 1):
        cell = used.get(row * bins + place) if place < bins else None
        look = ""
        if cell:
            colour = max(cell, key=lambda c: cell[c])
            look = f"c{colour} q{min(4, 1 + int(4 * sum(cell.values()) / whole))}"
        if look != kind:
            if kind:
                paths[kind].append(
                    f"M{at * width:.1f} {row * pixels + 1:.0f}h{(place - at) * width:.1f}v{pixels - 3:.0f}H{at * width:.1f}z"
                )
            at, kind = place, look


def _cell(cell: int, bins: int, width: float, pixels: float, top: float, high: float) -> str:
    row, place = divmod(cell, bins)
    x = place * width
    return f"M{x:.1f} {row * pixels + top:.0f}h{max(1.0, width):.1f}v{high:.0f}H{x:.1f}z"


@dataclass(slots=True)
class Curve:
    """One figure over time. ``most`` is the top of the plot, ``limit`` what it is held to where that lies in the plot."""

    key: str
    name: str
    svg: str
    most: float
    peak: float
    limit: float | None


def curves(facts: Facts) -> list[Curve]:
    """Memory and cores in use, as far as they were sampled, and attempts that ran."""
    found = []
    memory = [(at, float(rss)) for at, rss, _ in _sampled(facts)]
    about = next((s.sampled.about for s in reversed(facts.sessions) if s.sampled is not None), {})
    if memory:
        found.append(_curve(facts, "memory", "Memory", memory, _number(about.get("budget_bytes"))))
    cores = _cores(facts)
    if cores:
        found.append(_curve(facts, "cpu", "Cores in use", cores, _number(about.get("cpus"))))
    if facts.tries and facts.length > 0:
        workers = float(max(session.workers for session in facts.sessions))
        found.append(_curve(facts, "running", "Tasks running", _running(facts.tries, facts.length), workers))
    return found


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def _sampled(facts: Facts) -> list[tuple[float, int, float | None]]:
    found = []
    for session in facts.sessions:
        for at, rss, cpu_s in session.sampled.samples if session.sampled is not None else ():
            found.append((session.offset + min(at, session.length), rss, cpu_s))
    return found


def _cores(facts: Facts) -> list[tuple[float, float]]:
    """CPU seconds a second, between samples at least half a second apart."""
    found: list[tuple[float, float]] = []
    for session in facts.sessions:
        samples = [
            (at, cpu_s) for at, _, cpu_s in (session.sampled.samples if session.sampled else ()) if cpu_s is not None
        ]
        if not samples:
            continue
        was_at, was_s = samples[0]
        for i, (at, cpu_s) in enumerate(samples):
            if at - was_at >= 0.5 or (i == len(samples) - 1 and at - was_at >= 0.15):
                rate = max(0.0, cpu_s - was_s) / (at - was_at)
                found += [(session.offset + was_at, rate), (session.offset + at, rate)]
                was_at, was_s = at, cpu_s
    return found


def _running(tries: Sequence[Try], length: float) -> list[tuple[float, float]]:
    """How many ran on average in each of the points."""
    size = length / POINTS
    used = [0.0] * POINTS
    for each in tries:
        first, last = min(POINTS - 1, int(each.start / size)), min(POINTS - 1, int(each.end / size))
        for place in range(first, last + 1):
            used[place] += max(0.0, min(each.end, (place + 1) * size) - max(each.start, place * size))
    points: list[tuple[float, float]] = []
    for place, seconds in enumerate(used):
        points += [(place * size, seconds / size), ((place + 1) * size, seconds / size)]
    return points


def _curve(facts: Facts, key: str, name: str, points: list[tuple[float, float]], limit: float | None) -> Curve:
    peak = max(value for _, value in points)
    near = limit is not None and limit <= max(peak, 1e-9) * 3
    most = max(peak, limit if near and limit is not None else 0.0) * 1.08 or 1.0
    thin = _thinned(points, facts.length) if key == "memory" else points
    places = [(WIDTH * at / max(facts.length, 1e-9), 100 - 100 * value / most) for at, value in thin]
    line = "L".join(f"{min(WIDTH, x):.1f} {y:.1f}" for x, y in places)
    left, right = places[0][0], min(WIDTH, places[-1][0])
    inner = f'<path class="area" d="M{left:.1f} 100L{line}L{right:.1f} 100z"/><path class="line" d="M{line}"/>'
    if near and limit is not None:
        inner += f'<path class="limit" d="M0 {100 - 100 * limit / most:.1f}H1000"/>'
    inner += "".join(
        f'<path class="cut" d="M{WIDTH * s.offset / facts.length:.1f} 0V100"/>' for s in facts.sessions[1:]
    )
    return Curve(key, name, _svg(100, inner), most, peak, limit)


def _thinned(points: list[tuple[float, float]], length: float) -> list[tuple[float, float]]:
    """No more points than can be seen: of each bin the highest."""
    if len(points) <= POINTS * 2:
        return points
    best: dict[int, tuple[float, float]] = {}
    for at, value in points:
        place = int(at / length * POINTS)
        if place not in best or best[place][1] < value:
            best[place] = (at, value)
    return list(best.values())
