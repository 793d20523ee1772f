"""A pipeline drawn as text: an indented tree for terminals, Mermaid for READMEs and merge requests, DOT for Graphviz.

Blocks are nested boxes, a map that calls one function is a node of its own shape, and edges are the order that the compiler
found (``after``), between members of one block. With the outcomes of a run, by path, steps are coloured by how they ended.
Labels are escaped for their format: names and functions are user text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from procflow.graph import TaskGraph
from procflow.plaintext import clean, counted
from procflow.showing.drawing import STATUS_MARKS, told
from procflow.showing.shape import Outcome, Part, part_of, status_of

__all__ = ["dot", "mermaid", "text"]

Outcomes = Mapping[str, Outcome]
COLOURS = {
    "succeeded": ("#d9f2e3", "#1a7f4b"), "failed": ("#fde0e1", "#c9252d"), "lost": ("#fdebd3", "#b54708"),
    "running": ("#dbe8fd", "#1d5fd1"), "kept": ("#d5f0f5", "#0e7490"), "skipped": ("#eceef1", "#98a2b3"),
    "cancelled": ("#eceef1", "#667085"), "": ("#ffffff", "#98a2b3"),
}  # fmt: skip
"""Fill and border of a status; the text on them is dark."""
_INK = "#1f2430"


def _shape(graph: TaskGraph | Part) -> Part:
    return graph if isinstance(graph, Part) else part_of(graph, most=1 << 30)


@dataclass(frozen=True, slots=True)
class _Mark:
    """One stop on the walk: a node, or the opening or closing of a box."""

    what: Literal["node", "open", "close"]
    depth: int
    id: str
    part: Part


def _walk(root: Part, ids: dict[int, str]) -> Iterator[_Mark]:
    """The declared steps in order with their boxes; fills ``ids`` (by ``id`` of the part). Without recursion."""
    stack: list[tuple[str, int, Part]] = [("visit", 1, part) for part in reversed(root.members)]
    while stack:
        what, depth, part = stack.pop()
        if what == "close":
            yield _Mark("close", depth, ids[id(part)], part)
            continue
        ids[id(part)] = f"{'b' if part.members else 's'}{len(ids)}"
        if not part.members:
            yield _Mark("node", depth, ids[id(part)], part)
            continue
        yield _Mark("open", depth, ids[id(part)], part)
        stack.append(("close", depth, part))
        stack += [("visit", depth + 1, member) for member in reversed(part.members)]


def _edges(root: Part) -> Iterator[tuple[Part, Part]]:
    stack = [root]
    while stack:
        members = stack.pop().members
        yield from ((members[i], part) for part in members for i in part.after if i < len(members))
        stack += [part for part in reversed(members) if part.members]


def _said(part: Part, outcomes: Outcomes) -> str:
    status = status_of(outcomes, part)
    return f"{STATUS_MARKS[status]} {told(part, outcomes.get(part.path), status)}"


_MERMAID = str.maketrans(
    {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;", "\\": "#92;"}
)  # fmt: skip


def _mermaid_text(text: str) -> str:
    return clean(text).translate(_MERMAID)


def mermaid(graph: TaskGraph | Part, outcomes: Outcomes | None = None) -> str:
    """The pipeline as a Mermaid flowchart."""
    root, ids = _shape(graph), dict[int, str]()
    lines = ["flowchart TD"]
    by_status: dict[str, list[str]] = {}
    for mark in _walk(root, ids):
        pad = "  " * mark.depth
        second = _said(mark.part, outcomes) if outcomes is not None else mark.part.runs
        label = f"{_mermaid_text(mark.part.name)}<br/>{_mermaid_text(second)}"
        if mark.what == "close":
            lines.append(f"{pad}end")
            continue
        if outcomes is not None:
            by_status.setdefault(status_of(outcomes, mark.part) or "waiting", []).append(mark.id)
        if mark.what == "node":
            left, right = ("[[", "]]") if mark.part.kind == "map" else ("[", "]")
            lines.append(f'{pad}{mark.id}{left}"{label}"{right}')
        else:
            lines.append(f'{pad}subgraph {mark.id}["{label.replace("<br/>", ": ")}"]')
    lines += [f"  {ids[id(one)]} --> {ids[id(other)]}" for one, other in _edges(root)]
    for status, members in by_status.items():
        fill, stroke = COLOURS["" if status == "waiting" else status]
        lines.append(f"  classDef {status} fill:{fill},stroke:{stroke},color:{_INK}")
        lines.append(f"  class {','.join(members)} {status}")
    return "\n".join(lines) + "\n"


def _dot_text(text: str) -> str:
    return clean(text).replace("\\", "\\\\").replace('"', '\\"')


def dot(graph: TaskGraph | Part, outcomes: Outcomes | None = None) -> str:
    """The pipeline as a Graphviz digraph; blocks are clusters, and edges between them end at their borders."""
    root, ids = _shape(graph), dict[int, str]()
    lines = [f'digraph "{_dot_text(root.name)}" {{', "  compound=true;", '  node [shape=box, fontname="sans-serif"];']
    for mark in _walk(root, ids):
        pad = "  " * mark.depth
        if mark.what == "close":
            lines.append(f"{pad}}}")
            continue
        second = _said(mark.part, outcomes) if outcomes is not None else mark.part.runs
        name, runs = _dot_text(mark.part.name), _dot_text(second)
        fill, stroke = COLOURS[status_of(outcomes, mark.part)] if outcomes is not None else ("", "")
        if mark.what == "node":
            shape = ", shape=box3d" if mark.part.kind == "map" else ""
            colour = f', style=filled, fillcolor="{fill}", color="{stroke}"' if fill else ""
            lines.append(f'{pad}{mark.id} [label="{name}\\n{runs}"{shape}{colour}];')
        else:
            lines.append(f"{pad}subgraph cluster_{mark.id} {{")
            lines.append(f'{pad}  label="{name}: {runs}";')
            if stroke:
                lines.append(f'{pad}  color="{stroke}";')
    lines += [_dot_edge(one, other, ids) for one, other in _edges(root)]
    return "\n".join([*lines, "}"]) + "\n"


def _dot_edge(one: Part, other: Part, ids: dict[int, str]) -> str:
    """Graphviz joins nodes only: an edge of a cluster is one of a leaf inside, cut off at the border."""
    ends = []
    if one.members:
        ends.append(f"ltail=cluster_{ids[id(one)]}")
    if other.members:
        ends.append(f"lhead=cluster_{ids[id(other)]}")
    tail, head = ids[id(_leaf(one, -1))], ids[id(_leaf(other, 0))]
    return f"  {tail} -> {head}" + (f" [{', '.join(ends)}];" if ends else ";")


def _leaf(part: Part, which: Literal[0, -1]) -> Part:
    while part.members:
        part = part.members[which]
    return part


def text(graph: TaskGraph | Part, outcomes: Outcomes | None = None) -> str:
    """The pipeline as an indented tree, a line a step: its name, what it waits for, and what it runs or how it went."""
    root = _shape(graph)
    rows: list[tuple[str, str, str]] = []
    stack: list[tuple[str, Part, list[Part], bool]] = []

    def push(lead: str, members: list[Part]) -> None:
        stack.extend((lead, m, members, m is members[-1]) for m in reversed(members))

    push("", root.members)
    while stack:
        lead, part, siblings, last = stack.pop()
        mark = f"{STATUS_MARKS[status_of(outcomes, part)]} " if outcomes is not None else ""
        needs = ", ".join(clean(siblings[i].name) for i in part.after if i < len(siblings))
        status = status_of(outcomes, part) if outcomes is not None else ""
        said = told(part, outcomes.get(part.path), status) if outcomes is not None else clean(part.runs)
        rows.append((f"{lead}{'└─ ' if last else '├─ '}{mark}{clean(part.name)}", f"← {needs}" if needs else "", said))
        push(lead + ("   " if last else "│  "), part.members)
    widths = [min(60, max((len(row[i]) for row in rows), default=0)) for i in (0, 1)]
    head = f"{clean(root.name)}: {counted(sum(not part.members for part in root.walk() if part is not root), 'step')}"
    lines = [f"{name:<{widths[0]}}  {needs:<{widths[1]}}  {said}".rstrip() for name, needs, said in rows]
    return "\n".join([head, *lines]) + "\n"
