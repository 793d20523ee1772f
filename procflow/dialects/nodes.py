"""Nodes: graphs of ``nodes`` and ``edges`` (JSON or YAML), as drawn in a browser.

Each node becomes a step of the same name in a pipeline of ``type: graph``; nodes that don't wait for each other run at once.
Meanings, where the other system only simulates or lets the order decide:

- a ``retry`` node retries the nodes before it, ``timeout`` is the clock of those (each attempt where it stands before the retry,
  all of them where it stands behind), ``try_catch`` puts its fallback in place of the node before it when that has failed;
- a ``parallel`` node limits how many of the nodes before it (or behind it, where one fans out) run at once;
- ``join`` with ``any`` or ``first`` is a race: what leads only there is stopped once one branch has arrived;
- a node runs if an edge of those that lead to it is taken, and gets what arrived on these, in the order of the edges;
- a variable or a key of the cache is read from the node that sets it, and two that may set it in any order are refused.

What the node types compute is in ``node_kinds.py`` and ``node_functions.py``, the steps are made in ``node_wiring.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from procflow.call import INDEX
from procflow.compiling.ordering import shortest_cycles
from procflow.compiling.surface import ROOTS
from procflow.dialects.foreign import Made, Part, Translation, name_of, near
from procflow.dialects.node_kinds import CONTROL, KINDS, check_data, type_of, unknown

__all__ = ["Edge", "Node", "matches", "translate"]

MOST_NODES = 1000
_ROOT_KEYS = ("workflow_id", "name", "description", "nodes", "edges", "version", "id")
_NODE_KEYS = ("id", "type", "data", "position")
_UI_KEYS = ("selected", "dragging", "width", "height", "measured", "positionAbsolute", "style", "className", "zIndex")
_EDGE_KEYS = ("id", "source", "target", "sourceHandle", "targetHandle", "condition")
_EDGE_UI_KEYS = ("type", "animated", "label", "style", "markerEnd", "selected", "data")


@dataclass(slots=True, eq=False)
class Node:
    """A node: ``name`` is that of its step, ``bound`` the keys of a step of the user's for types that are none of the format's."""

    part: Part
    id: str
    name: str
    kind: str
    bound: dict[str, Any] | None = None
    ins: list[Edge] = field(default_factory=list)
    outs: list[Edge] = field(default_factory=list)
    guards: list[Node] = field(default_factory=list)
    resources: dict[str, int] = field(default_factory=dict)

    @property
    def data(self) -> Part:
        return self.part["data"]

    @property
    def payload(self) -> str:
        """The part of its result that the next node gets."""
        if self.bound is not None:
            return ""
        if self.kind == "join" and self.data["join_strategy"].value in ("any", "first"):
            return "value"
        if self.kind == "cache":
            return "value" if self.data["cache_op"].value == "set" else ""
        return KINDS[self.kind].payload

    @property
    def is_race(self) -> bool:
        """Whether it waits for the first of several branches only."""
        return self.kind == "join" and self.data["join_strategy"].value in ("any", "first") and len(self.ins) > 1


@dataclass(frozen=True, slots=True, eq=False)
class Edge:
    """An edge; ``handle`` is the way out of its source that it hangs on, empty for any."""

    part: Part
    source: Node
    target: Node
    handle: str


def matches(document: Mapping[str, Any]) -> bool:
    """A list of nodes that have ids and data, and edges."""
    nodes, edges = document.get("nodes"), document.get("edges", [])
    return (
        isinstance(nodes, list)
        and isinstance(edges, list)
        and (bool(edges) or any(isinstance(node, dict) and "data" in node for node in nodes))
        and "steps" not in document
    )


def translate(work: Translation) -> Made | None:
    """The pipeline."""
    graph = _Reader(work)
    nodes = graph.read()
    if work.problems:
        return None
    from procflow.dialects.node_wiring import Wiring

    return Wiring(work, nodes).pipeline()


class _Reader:
    """Nodes and edges with all that can be wrong with them as a graph."""

    def __init__(self, work: Translation) -> None:
        self.work = work
        self.root = work.root
        self.nodes: dict[str, Node] = {}

    def read(self) -> list[Node]:
        """All nodes, sources first, otherwise in the order of the file."""
        self.root.only(_ROOT_KEYS, tolerant=True)
        listed = self.root["nodes"].members(1, "a list of nodes")
        if len(listed) > MOST_NODES:
            self.root["nodes"].fail(f"{len(listed):,} nodes; at most {MOST_NODES:,} are read")
            return []
        for part in listed:
            self._node(part)
        seen: dict[tuple[str, str, str], Part] = {}
        ids: dict[str, Part] = {}
        for part in self.root["edges"].members(0, "a list of edges"):
            self._edge(part, seen, ids)
        if self.work.problems:
            return []
        found = self._sorted()
        for node in found:
            self._check(node)
        return found

    def _node(self, part: Part) -> None:
        if not part.mapping(required=True):
            return
        part.only((*_NODE_KEYS, *_UI_KEYS))
        value = part["id"].value
        key = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
        if not key:
            part["id"].fail("is missing: a node needs an id")
            return
        if key in self.nodes:
            first = self.nodes[key].part
            part["id"].fail(f"the id {key!r} is taken by {first.path} in line {first.spot.line}", "give it another id")
            return
        kind = type_of(part)
        bound = self.work.bindings.find(kind) if kind and kind not in KINDS else None
        if kind and kind not in KINDS and bound is None:
            unknown(part, kind)
        if kind in KINDS:
            check_data(part, kind)
        self.nodes[key] = Node(part, key, self._name(key), kind, bound)

    def _name(self, key: str) -> str:
        name, taken = name_of(key, "node"), {node.name for node in self.nodes.values()}
        while name in taken or name in (*ROOTS, INDEX, "item"):
            name += "_"
        return name

    def _edge(self, part: Part, seen: dict[tuple[str, str, str], Part], ids: dict[str, Part]) -> None:
        if not part.mapping(required=True):
            return
        part.only((*_EDGE_KEYS, *_EDGE_UI_KEYS))
        own = part["id"].value
        if isinstance(own, str) and own in ids:
            part["id"].fail(
                f"the id {own!r} is taken by {ids[own].path} in line {ids[own].spot.line}", "give it another id"
            )
        elif isinstance(own, str):
            ids[own] = part
        source, target = self._end(part["source"]), self._end(part["target"])
        if source is None or target is None:
            return
        hung = part["sourceHandle"] if part["sourceHandle"].value not in (None, "") else part["condition"]
        handle = hung.text()
        if source is target:
            part.fail(f"node {source.id!r} leads to itself")
            return
        key = (source.id, target.id, handle)
        if key in seen and part["targetHandle"].value == seen[key]["targetHandle"].value:
            part.fail(f"the same edge as {seen[key].path} in line {seen[key].spot.line}", "keep one of them")
            return
        seen[key] = part
        edge = Edge(part, source, target, self._handle(source, hung, handle) if handle else "")
        source.outs.append(edge)
        target.ins.append(edge)

    def _end(self, part: Part) -> Node | None:
        value = part.value
        key = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else part.text(required=True)
        if key and key not in self.nodes:
            part.fail(
                f"there is no node {key!r}", near(key, self.nodes) or "an edge leads from one id of nodes to another"
            )
        return self.nodes.get(key)

    def _handle(self, source: Node, part: Part, handle: str) -> str:
        """The way out that a handle means; a problem where the node has none of this name."""
        data, ways = source.data, dict[str, str]()
        if source.kind == "condition":
            ways = {
                str(data["true_path"].value): "true",
                str(data["false_path"].value): "false",
                "true": "true",
                "false": "false",
            }
        elif source.kind == "switch":
            ways = {str(case["output_path"].value): str(case["output_path"].value) for case in data["cases"]}
        elif source.kind == "try_catch":
            ways = {str(data["error_output_path"].value or "error"): "error", "success": "success"}
        ways.pop("None", None)
        if handle not in ways:
            known = (
                f"it has {', '.join(ways)}" if ways else f"a node of type {source.kind} has one way out: take it out"
            )
            part.fail(f"node {source.id!r} has no way out {handle!r}", near(handle, ways) or known)
        return ways.get(handle, "")

    # -- the graph as a whole --------------------------------------------------------------------------------------------

    def _sorted(self) -> list[Node]:
        nodes = list(self.nodes.values())
        place = {node.id: i for i, node in enumerate(nodes)}
        before = {place[node.id]: {place[edge.source.id] for edge in node.ins} for node in nodes}
        for ring in shortest_cycles(before):
            on_ring = [nodes[i] for i in reversed(ring)]
            shown = " -> ".join(node.id for node in (*on_ring, on_ring[0]))
            edge = next(edge for edge in on_ring[0].ins if edge.source is on_ring[-1])
            edge.part.fail(f"nodes wait for each other in a circle: {shown}", "take one of these edges out")
        if self.work.problems:
            return []
        return list(_in_order(nodes))

    def _check(self, node: Node) -> None:
        if node.bound is not None:
            return
        kind, count = KINDS[node.kind], len(node.ins)
        sure = all(not edge.handle for edge in node.ins)
        most = kind.most
        if count < kind.least:
            node.part.fail(
                f"a node of type {node.kind} needs {kind.least} input{'s' if kind.least > 1 else ''}, not {count}"
            )
        elif most is not None and count > most and sure and node.kind not in CONTROL and not _branched(node):
            node.part.fail(
                f"a node of type {node.kind} takes {most} input{'s' if most > 1 else ''}, not {count}",
                "join them first",
            )
        if node.kind == "try_catch" and count > 1:
            node.part.fail(f"a try_catch node watches the one node before it, not {count}", "write one for each")


def _branched(node: Node) -> bool:
    """Whether what leads here may have been skipped, so that fewer values arrive than edges."""
    waiting, seen = [node], set[int]()
    while waiting:
        at = waiting.pop()
        for edge in at.ins:
            if edge.handle:
                return True
            if id(edge.source) not in seen:
                seen.add(id(edge.source))
                waiting.append(edge.source)
    return False


def _in_order(nodes: list[Node]) -> Iterator[Node]:
    """Sources before targets, otherwise as in the file."""
    import heapq

    place = {id(node): i for i, node in enumerate(nodes)}
    left = {id(node): len(node.ins) for node in nodes}
    ready = [i for i, node in enumerate(nodes) if not node.ins]
    while ready:
        node = nodes[heapq.heappop(ready)]
        yield node
        for edge in node.outs:
            left[id(edge.target)] -= 1
            if not left[id(edge.target)]:
                heapq.heappush(ready, place[id(edge.target)])
