"""Drawing: a pipeline as SVG, with or without how a run of it went.

Text is escaped, cut and cleaned: names and functions are user text. Colours are classes, so that a page can give them its own;
a drawing that stands alone brings its own, light and dark. This file decides no place: see ``layout.py``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from html import escape

from procflow.plaintext import clean, counted
from procflow.showing.layout import HEAD, PAD, ROW_W, TILE, Arrow, Box, lay_out
from procflow.showing.shape import ORDER, Outcome, Part, status_of
from procflow.units import duration_text

__all__ = ["STATUS_MARKS", "svg", "told"]

STATUS_MARKS = {
    "succeeded": "✓", "failed": "✗", "lost": "✗", "running": "▶", "skipped": "–", "cancelled": "◼", "kept": "↺", "": "·",
}  # fmt: skip
"""A sign for each status, so that colour is never the only difference."""
CAUSES = {
    "timeout": "timed out", "idle": "gave no sign", "oom": "out of memory", "pressure": "out of memory",
    "crash": "worker died", "spawn": "no worker",
}  # fmt: skip
"""Why a step failed, where it did not raise."""
NAME_CHARS, TEXT_CHARS, TITLE_CHARS = 22, 27, 300

STYLE = """
svg{--bg:#fff;--ink:#1f2430;--dim:#667085;--line:#98a2b3;--box:#f8f9fb;--edge:#d0d5dd;
--ok:#1a7f4b;--bad:#c9252d;--lost:#b54708;--run:#1d5fd1;--kept:#0e7490;--off:#98a2b3}
@media(prefers-color-scheme:dark){svg{--bg:#12151c;--ink:#e6e9ef;--dim:#9aa4b2;--line:#667085;--box:#1a1f29;--edge:#384151;
--ok:#3fb97a;--bad:#ff6b70;--lost:#f5a04a;--run:#6ea3ff;--kept:#4cc3db;--off:#667085}}
.bg{fill:var(--bg)}
"""
SHARED = """
.g text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--ink)}.g .n{font-weight:600}.g .d{fill:var(--dim);
font-size:11px}.g rect.b{fill:var(--box);stroke:var(--edge)}.g rect.o{fill:none;stroke:var(--edge);stroke-dasharray:4 3}
.g path.a{fill:none;stroke:var(--line);stroke-width:1.4;marker-end:var(--head)}.g .h{fill:var(--line)}
.g .k{fill:var(--off)}.g .k-succeeded{fill:var(--ok)}
.g .k-failed{fill:var(--bad)}.g .k-lost{fill:var(--lost)}.g .k-running{fill:var(--run)}.g .k-kept{fill:var(--kept)}
.g .k-cancelled,.g .k-skipped{fill:var(--off)}.g rect.b-failed{stroke:var(--bad);stroke-width:2}.g rect.b-lost{stroke:var(--lost);
stroke-width:2}.g rect.b-running{stroke:var(--run);stroke-width:2}
"""
"""Rules that a page needs, too; they use the colours of ``STYLE`` by name."""


def svg(
    root: Part,
    outcomes: Mapping[str, Outcome] | None = None,
    *,
    alone: bool = True,
    row_w: float = ROW_W,
    arrow: str = "arrow",
) -> str:
    """The pipeline as SVG: a file of its own, or (``alone=False``) for a page that has the rules and colours.

    ``row_w`` is about how wide it may be, ``arrow`` the id of its arrow head, which no other drawing of the page may have.
    """
    box = lay_out(root, row_w)
    width, height = box.w, box.h
    lines = [
        f'<svg class="g" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">',
        f"<title>{_text(root.name, TITLE_CHARS)}</title>",
    ]
    if alone:
        lines += [f"<style>{STYLE}{SHARED}</style>", f'<rect class="bg" width="{width:.0f}" height="{height:.0f}"/>']
    lines.append(
        f'<defs><marker id="{arrow}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="h" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    # All arrows are in one group, which has their head.
    lines.append(f'<g style="--head:url(#{arrow})">')
    _inside(box, 0.0, 0.0, outcomes, lines)
    lines.append("</g>")
    return "\n".join([*lines, "</svg>"]) + "\n"


def told(part: Part, outcome: Outcome | None, status: str) -> str:
    """How a part went, in a few words: ``12.3 s · 1,700 items``."""
    if outcome is None or not (outcome.status or status):
        return {"": "did not start", "kept": "kept from before"}.get(status, status)
    if outcome.seconds is None and status in ("skipped", "cancelled"):
        return "not run"
    words = [duration_text(outcome.seconds)] if outcome.seconds is not None else []
    if part.kind == "map":
        if outcome.count or outcome.failed:
            words.append(counted(outcome.count, "item"))
        if outcome.failed:
            words.append(f"{outcome.failed:,} failed")
    elif outcome.attempts > 1:
        words.append(counted(outcome.attempts, "attempt"))
    if status != "succeeded" or not words:
        causes = CAUSES.get(outcome.cause, "failed") if status == "failed" else ""
        words.insert(0, causes or {"lost": "cut off", "cancelled": "stopped"}.get(status, status))
    return " · ".join(words)


def _inside(box: Box, x: float, y: float, outcomes: Mapping[str, Outcome] | None, lines: list[str]) -> None:
    """What is in a box whose corner lies at ``x``, ``y``."""
    lines += [_arrow(arrow, x, y) for arrow in box.arrows]
    _tiles(box, x, y, outcomes, lines)
    for inner in box.boxes:
        at_x, at_y = x + inner.x, y + inner.y
        (_block if inner.is_block else _node)(inner, at_x, at_y, outcomes, lines)
        if inner.is_block:
            _inside(inner, at_x, at_y, outcomes, lines)


def _arrow(arrow: Arrow, x: float, y: float) -> str:
    points = [(x + a, y + b) for a, b in arrow.points]
    path = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (y0 + y1) / 2
        straight = abs(x0 - x1) < 1
        path += f"L{x1:.0f} {y1:.0f}" if straight else f"C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"
    return f'<path class="a" d="{path}" />'


def _title(part: Part, outcome: Outcome | None, status: str, with_run: bool) -> str:
    said = f": {told(part, outcome, status)}" if with_run else ""
    return (
        f"<title>{_text(part.label or part.name, TITLE_CHARS)}{escape(said)} ({_text(part.runs, TITLE_CHARS)})</title>"
    )


def _node(box: Box, x: float, y: float, outcomes: Mapping[str, Outcome] | None, lines: list[str]) -> None:
    part = box.part
    status = status_of(outcomes, part) if outcomes is not None else ""
    outcome = outcomes.get(part.path) if outcomes is not None else None
    mark = f"{STATUS_MARKS[status]} " if outcomes is not None else ""
    second = told(part, outcome, status) if outcomes is not None else part.runs
    lines.append(f"<g>{_title(part, outcome, status, outcomes is not None)}")
    if part.kind == "map" or box.folded:
        lines.append(_rect("b", x + 4, y + 4, box.w, box.h, 6))
    kind = f" b-{status}" if status else ""
    lines.append(_rect(f"b{kind}", x, y, box.w, box.h, 6))
    if outcomes is not None:
        lines.append(_rect(f"k k-{status}" if status else "k", x + 5, y + 6, 4, box.h - 12, 2))
    left = x + (16 if outcomes is not None else 11)
    lines.append(
        f'<text class="n" x="{left:.0f}" y="{y + 19:.0f}">{mark}{_text(part.name, NAME_CHARS)}</text>'
        f'<text class="d" x="{left:.0f}" y="{y + 35:.0f}">{_text(second, TEXT_CHARS)}</text></g>'
    )


def _block(box: Box, x: float, y: float, outcomes: Mapping[str, Outcome] | None, lines: list[str]) -> None:
    part = box.part
    status = status_of(outcomes, part) if outcomes is not None else ""
    outcome = outcomes.get(part.path) if outcomes is not None else None
    lines.append(f"<g>{_title(part, outcome, status, outcomes is not None)}{_rect('o', x, y, box.w, box.h, 8)}")
    room = int((box.w - 24) / 6.3)
    mark = f"{STATUS_MARKS[status]} " if outcomes is not None else ""
    name = _cut(part.name, min(40, room - 2))
    said = told(part, outcome, status) if outcomes is not None else part.runs
    rest = room - len(name) - 4
    detail = f'<tspan class="d" dx="6">{_text(said, rest)}</tspan>' if rest > 6 else ""
    kind = f' class="k-{status}"' if status else ""
    title = f'<tspan{kind}>{mark}</tspan><tspan class="n">{escape(name)}</tspan>{detail}'
    lines.append(f'<text x="{x + 12:.0f}" y="{y + 19:.0f}">{title}</text></g>')


def _tiles(box: Box, x: float, y: float, outcomes: Mapping[str, Outcome] | None, lines: list[str]) -> None:
    """Members as small squares: one path a status, and how many there are of each."""
    if not box.tiles:
        return
    across = int((box.w - 2 * PAD) / TILE + 0.5)
    paths: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for place, group in enumerate(box.tiles):
        statuses = {status_of(outcomes, part) for part in group} if outcomes is not None else {""}
        counts.update(statuses if len(group) == 1 else (status_of(outcomes or {}, part) for part in group))
        status = next((s for s in ORDER if s in statuses), "")
        row, column = divmod(place, across)
        paths.setdefault(status, []).append(f"M{x + PAD + column * TILE:.0f} {y + HEAD + row * TILE:.0f}h7v7h-7z")
    for status, squares in paths.items():
        said = (
            f"{counts[status]:,} {status or 'did not start'}"
            if outcomes is not None
            else counted(box.part.size, "step")
        )
        kind = f"k k-{status}" if status else "k"
        lines.append(f'<path class="{kind}" d="{"".join(squares)}"><title>{escape(said)}</title></path>')


def _rect(kind: str, x: float, y: float, w: float, h: float, r: float) -> str:
    return f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}" rx="{r:.0f}"/>'


def _cut(text: str, most: int) -> str:
    # XML knows no such characters, not even escaped.
    text = clean(text).replace("\ufffe", "?").replace("\uffff", "?")
    return text if len(text) <= most else text[: max(1, most - 1)] + "…"


def _text(text: str, most: int) -> str:
    return escape(_cut(text, most))
