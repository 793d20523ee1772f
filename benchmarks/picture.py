"""The proof as a picture: for each row, how many times as long each peer takes, on a logarithmic scale. Plain SVG."""

from __future__ import annotations

import math
from html import escape

from benchmarks.proof import Row

__all__ = ["svg"]

WIDTH, LABEL, BAR, GAP, MOST = 860, 330, 14, 20, 1000.0
OURS, AHEAD, BEHIND = "#2b6cb0", "#c05621", "#a0aec0"


def svg(rows: list[Row], title: str) -> str:
    """An SVG file; rows without peers are left out."""
    parts: list[str] = []
    y = 50
    for row in (row for row in rows if row.peers):
        parts.append(_text(8, y + 11, row.what, bold=True))
        y += BAR + 5
        for name, value in [("procflow", row.ours), *sorted(row.peers.items(), key=lambda peer: peer[1])]:
            ratio = row.ours / value if row.at_least else value / max(row.ours, 1e-12)
            colour = OURS if name == "procflow" else BEHIND if ratio >= 1 else AHEAD
            parts.append(_text(24, y + 11, name))
            width = max(2.0, _place(ratio) - LABEL)
            parts.append(f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(_text(LABEL + width + 6, y + 11, f"{row.text(value)}  ({ratio:.2g}x)"))
            y += BAR + 3
        y += GAP
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{y}" fill="white"/>',
        _text(8, 22, title, bold=True),
    ]
    return "\n".join([*head, *parts, "</svg>\n"])


def _place(ratio: float) -> float:
    """From a tenth of ours at the left to a thousand times ours at the right."""
    share = math.log10(min(max(ratio, 0.1), MOST) * 10) / math.log10(MOST * 10)
    return LABEL + share * (WIDTH - LABEL - 150)


def _text(x: float, y: float, text: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y}"{weight}>{escape(text)}</text>'
