"""A pipeline drawn as text: Mermaid for READMEs and merge requests, DOT for Graphviz.

Blocks are nested boxes, a map that calls one function is a node of its own shape, and edges are the order that the compiler
found (``after``), between members of one block. Labels are escaped for their format: names and functions are user text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from procflow.graph import MapUnit, ScopeUnit, TaskGraph, Unit
from procflow.plaintext import clean
from procflow.showing.plan import inner_steps, what_runs

__all__ = ["dot", "mermaid"]


@dataclass(frozen=True, slots=True)
class _Mark:
    """One stop on the walk: a node, or the opening or closing of a box."""

    what: Literal["node", "open", "close"]
    depth: int
    id: str
    unit: Unit


def _walk(graph: TaskGraph, ids: dict[int, str]) -> Iterator[_Mark]:
    """The declared steps in order with their boxes; fills ``ids`` (by ``id`` of the unit). Without recursion."""
    stack: list[tuple[str, int, Unit]] = [("visit", 1, unit) for unit in reversed(graph.root.members)]
    while stack:
        what, depth, unit = stack.pop()
        if what == "close":
            yield _Mark("close", depth, ids[id(unit)], unit)
            continue
        inner = inner_steps(unit)
        ids[id(unit)] = f"{'b' if inner else 's'}{len(ids)}"
        if not inner:
            yield _Mark("node", depth, ids[id(unit)], unit)
            continue
        yield _Mark("open", depth, ids[id(unit)], unit)
        stack.append(("close", depth, unit))
        stack += [("visit", depth + 1, member) for member in reversed(inner)]


def _edges(graph: TaskGraph) -> Iterator[tuple[Unit, Unit]]:
    stack: list[tuple[Unit, ...]] = [graph.root.members]
    while stack:
        members = stack.pop()
        yield from ((members[i], unit) for unit in members for i in unit.after)
        stack += [inner for inner in map(inner_steps, reversed(members)) if inner]


_MERMAID = str.maketrans(
    {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;", "\\": "#92;"}
)  # fmt: skip


def _mermaid_text(text: str) -> str:
    return clean(text).translate(_MERMAID)


def mermaid(graph: TaskGraph) -> str:
    """The pipeline as a Mermaid flowchart."""
    ids: dict[int, str] = {}
    lines = ["flowchart TD"]
    for mark in _walk(graph, ids):
        pad = "  " * mark.depth
        label = f"{_mermaid_text(mark.unit.name)}<br/>{_mermaid_text(what_runs(mark.unit))}"
        if mark.what == "node":
            left, right = ("[[", "]]") if isinstance(mark.unit, MapUnit) else ("[", "]")
            lines.append(f'{pad}{mark.id}{left}"{label}"{right}')
        elif mark.what == "open":
            lines.append(f'{pad}subgraph {mark.id}["{label.replace("<br/>", ": ")}"]')
        else:
            lines.append(f"{pad}end")
    lines += [f"  {ids[id(one)]} --> {ids[id(other)]}" for one, other in _edges(graph)]
    return "\n".join(lines) + "\n"


def _dot_text(text: str) -> str:
    return clean(text).replace("\\", "\\\\").replace('"', '\\"')


def dot(graph: TaskGraph) -> str:
    """The pipeline as a Graphviz digraph; blocks are clusters, and edges between them end at their borders."""
    ids: dict[int, str] = {}
    lines = [f'digraph "{_dot_text(graph.name)}" {{', "  compound=true;", '  node [shape=box, fontname="sans-serif"];']
    for mark in _walk(graph, ids):
        pad = "  " * mark.depth
        name, runs = _dot_text(mark.unit.name), _dot_text(what_runs(mark.unit))
        if mark.what == "node":
            shape = ", shape=box3d" if isinstance(mark.unit, MapUnit) else ""
            lines.append(f'{pad}{mark.id} [label="{name}\\n{runs}"{shape}];')
        elif mark.what == "open":
            lines.append(f"{pad}subgraph cluster_{mark.id} {{")
            lines.append(f'{pad}  label="{name}: {runs}";')
        else:
            lines.append(f"{pad}}}")
    lines += [_dot_edge(one, other, ids) for one, other in _edges(graph)]
    return "\n".join([*lines, "}"]) + "\n"


def _dot_edge(one: Unit, other: Unit, ids: dict[int, str]) -> str:
    """Graphviz joins nodes only: an edge of a cluster is one of a leaf inside, cut off at the border."""
    ends = []
    if inner_steps(one):
        ends.append(f"ltail=cluster_{ids[id(one)]}")
    if inner_steps(other):
        ends.append(f"lhead=cluster_{ids[id(other)]}")
    tail, head = ids[id(_leaf(one, -1))], ids[id(_leaf(other, 0))]
    return f"  {tail} -> {head}" + (f" [{', '.join(ends)}];" if ends else ";")


def _leaf(unit: Unit, which: Literal[0, -1]) -> Unit:
    while isinstance(unit, ScopeUnit) and inner_steps(unit):
        unit = inner_steps(unit)[which]
    return unit
