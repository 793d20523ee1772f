"""Live table: a run's rows as a table for a terminal of any width, and finished steps as lines.

    nightly · 20261121-0200-k3f · 0:42 · 2 workers · 1.9 cores · 3.1 of 16 GiB · 4 of 9 steps · about 1:10 left
    ▶ features   ━━━━━━━─────    54/96   1:03   0:49 left   2.1 GiB   3 failed
    ▶ dedupe     ━━──────────     2/12   0:20   1:40 left   640 MiB   attempt 2 of 3
    · train      waits for features

It knows rich and nothing of threads or of where its rows come from. User text is cleaned before it gets here or here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Group, OverflowMethod, RenderableType
from rich.table import Table
from rich.text import Text

from procflow.plaintext import clean, counted, shortened
from procflow.showing.live_rows import Done, LiveRows, Row
from procflow.units import duration_text, size_text

__all__ = ["Gauges", "clock_text", "done_line", "picture"]

BAR = 16
NARROW, MIDDLE, WIDE = 60, 80, 90
"""Below the first a table has no bars and no memory; up to the second its bars are short, from the third on they are long."""
REMARKS = 14
"""Columns that labels leave to memory, failures and retries."""
WAITING = 3
"""So many steps that wait get a line, where there is room."""

_MARKS = {
    "succeeded": ("✔", "green"),
    "failed": ("✘", "bold red"),
    "tolerated": ("✘", "yellow"),
    "kept": ("↺", "cyan"),
    "skipped": ("○", "dim"),
    "cancelled": ("○", "yellow"),
}
_PLAIN = str.maketrans({"✔": "+", "✘": "x", "↺": "=", "○": "-", "▶": ">", "·": "-", "━": "#", "─": "-", "…": "."})


@dataclass(frozen=True, slots=True)
class Gauges:
    """What no event says: memory and cores in use, limits, what is known of the end, and a word about the run's state."""

    workers: int | None = None
    used_bytes: int | None = None
    limit_bytes: int | None = None
    cores: float | None = None
    left_s: float | None = None
    state: str = ""
    by_attempt: Mapping[int, int] = field(default_factory=dict)


def clock_text(seconds: float) -> str:
    """``0:42``, ``12:05``, ``1:02:03``."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def done_line(done: Done, *, ascii_only: bool = False) -> Text:
    """The line of a step that is over, which scrolls up above the table."""
    mark, style = _MARKS.get(done.status, ("○", "dim"))
    line = Text(f"{mark} ", style=style, no_wrap=True, overflow="ellipsis")
    line.append(clean(done.label), style="" if done.status != "failed" else "bold red")
    facts = []
    if done.items is not None:
        facts.append(f"{done.items[0]:,} of {counted(done.items[1], 'item')}")
    if done.wall_s is not None:
        facts.append(duration_text(done.wall_s))
        if done.cpu_s > 0.05 and done.wall_s > 0.05:
            facts.append(f"{done.cpu_s / done.wall_s:.0%} cpu")
    if done.peak_bytes:
        facts.append(size_text(done.peak_bytes))
    if done.status in ("skipped", "cancelled"):
        facts.append("not run" if done.status == "skipped" else "stopped")
    line.append("  " + "  ".join(facts), style="dim")
    if done.note:
        line.append(f"  {shortened(done.note, 200)}", style="red" if done.status == "failed" else "dim")
    return _plain(line) if ascii_only else line


def picture(
    rows: LiveRows, now: float, gauges: Gauges, width: int, height: int, *, ascii_only: bool = False
) -> RenderableType:
    """The table as it stands at ``now`` (seconds of the run), at most ``height - 1`` lines and ``width`` columns."""
    room = max(1, height - 3)
    shown = list(rows.rows.values())
    hidden = max(0, len(shown) - room)
    if hidden:
        shown = shown[: room - 1]
        hidden = len(rows.rows) - len(shown)
    # Rich's mark for a cut is no ASCII.
    cut: OverflowMethod = "crop" if ascii_only else "ellipsis"
    gap = 1 if width < NARROW else 2
    lines = [_cells(row, rows, now, gauges, width) for row in shown]
    _cut_labels(lines, width, gap)
    table = Table.grid(padding=(0, gap))
    table.add_column(no_wrap=True, width=1, overflow=cut)
    table.add_column(no_wrap=True, overflow=cut)
    if width >= NARROW:
        table.add_column(no_wrap=True, overflow=cut)
    for _ in range(3):
        table.add_column(no_wrap=True, overflow=cut, justify="right")
    room_left = width - sum(_widest(lines, column) + gap for column in range(len(lines[0]) - 1)) if lines else 1
    table.add_column(no_wrap=True, overflow=cut, max_width=max(1, room_left))
    for cells in lines:
        table.add_row(*(_plain(cell) if ascii_only else cell for cell in cells))
    parts: list[RenderableType] = [_head(rows, now, gauges, ascii_only), table]
    if hidden:
        parts.append(Text(f"  and {hidden:,} more that run", style="dim", no_wrap=True, overflow="crop"))
    free = min(WAITING, room - len(shown) - bool(hidden))
    if free > 0:
        parts += _waiting(rows, free, ascii_only)
    return Group(*parts)


def _head(rows: LiveRows, now: float, gauges: Gauges, ascii_only: bool) -> Text:
    facts = [f"{rows.ended:,} of {counted(rows.steps, 'step')}", clock_text(now)]
    if gauges.left_s is not None:
        facts.append(f"about {clock_text(gauges.left_s)} left")
    if rows.failed:
        facts.append(f"{rows.failed:,} failed")
    if gauges.workers:
        facts.append(counted(gauges.workers, "worker"))
    if gauges.cores is not None:
        facts.append(f"{gauges.cores:.1f} cores")
    if gauges.used_bytes is not None:
        limit = f" of {size_text(gauges.limit_bytes)}" if gauges.limit_bytes else ""
        facts.append(f"{size_text(gauges.used_bytes)}{limit}")
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(clean(rows.name), style="bold")
    if gauges.state:
        head.append(f" · {gauges.state}", style="bold yellow")
    head.append(f" · {' · '.join(facts)}")
    head.append(f" · {clean(rows.run_id)}", style="dim")
    return _plain(head) if ascii_only else head


def _cells(row: Row, rows: LiveRows, now: float, gauges: Gauges, width: int) -> list[Text]:
    running = bool(row.running)
    cells = [Text("▶" if running else "·", style="green" if running else "dim"), Text(clean(row.label))]
    if width >= NARROW:
        cells.append(_bar(row.share, BAR // 2 if width < MIDDLE else BAR if width < WIDE else BAR * 3 // 2))
    done = f"{_number(row.done)}/{_number(row.total)}" if row.total else _number(row.done) if row.done else ""
    left = row.left_s(now)
    cells += [
        Text(done),
        Text(clock_text(now - row.began)),
        Text(f"{clock_text(left)} left" if left is not None else "", style="cyan"),
        _remarks(row, rows, now, gauges, width),
    ]
    return cells


def _widest(lines: list[list[Text]], column: int) -> int:
    return max(line[column].cell_len for line in lines)


def _cut_labels(lines: list[list[Text]], width: int, gap: int) -> None:
    """Shorten labels from the left, where blocks stand, so that a step's own name and all numbers are seen."""
    if not lines:
        return
    *others, remarks = (_widest(lines, column) for column in range(len(lines[0])) if column != 1)
    free = width - sum(others) - gap * (len(others) + 1)
    room = max(10, min(width // 3, free - min(remarks, REMARKS)))
    for line in lines:
        label = line[1]
        if label.cell_len > room:
            tail = label.plain
            while cell_len(tail) >= room:
                tail = tail[1:]
            line[1] = Text(f"…{tail}")


def _remarks(row: Row, rows: LiveRows, now: float, gauges: Gauges, width: int) -> Text:
    text = Text()
    parts: list[tuple[str, str]] = []
    used = rows.memory_bytes(row, gauges.by_attempt)
    if used and width >= NARROW:
        parts.append((size_text(used), "dim"))
    if row.is_map and row.running:
        parts.append((f"x{len(row.running)}", "dim"))
    if row.failed:
        parts.append((f"{row.failed:,} failed", "red"))
    if row.attempt > 1:
        of = f" of {row.attempts}" if row.attempt <= row.attempts else ""
        parts.append((f"attempt {row.attempt}{of}", "yellow"))
    if row.waiting_until is not None and not row.running:
        parts.append((f"again in {clock_text(row.waiting_until - now)}", "yellow"))
    if row.doing:
        parts.append((row.doing, "dim"))
    for index, (words, style) in enumerate(parts):
        text.append("  " if index else "").append(words, style=style)
    return text


def _bar(share: float | None, width: int) -> Text:
    if share is None:
        return Text(" " * width)
    full = int(share * width)
    return Text("━" * full, style="green").append("─" * (width - full), style="dim")


def _waiting(rows: LiveRows, most: int, ascii_only: bool) -> list[RenderableType]:
    waiting = rows.waiting(most)
    rest = rows.waiting_count - len(waiting)
    lines: list[RenderableType] = []
    for index, (label, other) in enumerate(waiting):
        more = f", {rest:,} more" if rest > 0 and index == len(waiting) - 1 else ""
        why = f"  waits for {clean(other)}" if other else ""
        line = Text(f"· {clean(label)}{why}{more}", style="dim", no_wrap=True, overflow="ellipsis")
        lines.append(_plain(line) if ascii_only else line)
    return lines


def _plain(text: Text) -> Text:
    """The same in ASCII, for terminals that can't show more; one character for one, so styles stay in place."""
    if text.overflow == "ellipsis":
        text.overflow = "crop"
    text.plain = text.plain.translate(_PLAIN).encode("ascii", "replace").decode()
    return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
