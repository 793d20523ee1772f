"""Node wiring: the steps of a ``nodes``/``edges`` graph, with what each reads and when it runs.

Where one edge leads to a node, or all of them are sure to be taken, the step reads the values before it, and is skipped with them.
Where some of several may not be taken, a small block in front gathers what arrived (``NAME_in``). A race (``join`` any) is a
block with all that leads only there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from procflow.dialects.foreign import Made, Translation, escaped, name_of
from procflow.dialects.node_control import Control, Stores, text_of
from procflow.dialects.node_kinds import CONTROL, FUNCTIONS, call_of, seconds_of
from procflow.dialects.nodes import Edge, Node

__all__ = ["Wiring"]

_HTTP_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


class Wiring:
    """The pipeline of nodes that were read and checked, sources first."""

    def __init__(self, work: Translation, nodes: list[Node]) -> None:
        self.work = work
        self.nodes = nodes
        self.by_id = {node.id: node for node in nodes}
        self.stores = Stores(nodes)
        self.control = Control(work, nodes)
        self.maybe: set[Node] = set()
        for node in nodes:
            if node.ins and not any(map(self._is_sure, node.ins)):
                self.maybe.add(node)
        self.taken = {node.name for node in nodes}
        self.races: dict[Node, str] = {}
        self.inside: dict[Node, tuple[Node, int]] = {}
        """Nodes of a race: the join, and which branch."""
        for node in nodes:
            if node.is_race:
                self._race_of(node)
        self.reads: dict[Node, dict[str, Any]] = {}
        """The keys by which a step gets what leads to it, for the fallback that stands in for it."""

    def pipeline(self) -> Made:
        """All of it; problems are noted on the way."""
        root = self.work.root
        made = Made(root)
        title = root["name"].text() or root["workflow_id"].text()
        made.put("name", name_of(title, "graph"), root["name"])
        about = [title if title != made["name"] else "", root["description"].text()]
        made.put("description", "; ".join(text for text in about if text))
        made["type"] = "graph"
        if self.control.resources:
            made["limits"] = {"resources": dict(self.control.resources)}
        steps: list[Made] = []
        branches: dict[tuple[Node, int], list[Made]] = {}
        for node in self.nodes:
            place = self.inside.get(node)
            into = steps if place is None else branches.setdefault(place, [])
            if node.is_race:
                into.append(self._race(node, branches))
            into += self._steps(node)
        ends = [node for node in self.nodes if not node.outs and node.kind not in ("variable", "cache")]
        made.put("show", [node.name for node in ends if node not in self.maybe] or [node.name for node in ends])
        made.set("steps", steps, root["nodes"])
        return made

    def _free(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    # -- edges -----------------------------------------------------------------------------------------------------------

    def _is_sure(self, edge: Edge) -> bool:
        return not edge.handle and edge.source not in self.maybe

    def _reference(self, node: Node) -> str:
        return f"${{{node.name}{'.' + node.payload if node.payload else ''}}}"

    def _when(self, edge: Edge) -> str:
        """The condition under which an edge is taken; empty for always."""
        name = edge.source.name
        if not edge.handle:
            return ""
        if edge.source.kind == "switch":
            return f"${{{name}.output_path}} == {edge.handle!r}"
        flag, yes = ("condition_met", "true") if edge.source.kind == "condition" else ("caught", "error")
        return f"{'' if edge.handle == yes else 'not '}${{{name}.{flag}}}"

    def _arrivals(self, node: Node) -> tuple[Any, str, list[Made]]:
        """What the step gets as its inputs, the condition it runs under, and the block in front, if one is needed."""
        if node.is_race:
            return [f"${{{self._race_name(node)}}}"], "", []
        edges = node.ins
        if len(edges) == 1 or all(map(self._is_sure, edges)):
            return [self._reference(edge.source) for edge in edges], self._when(edges[0]) if edges else "", []
        name = self._free(f"{node.name}_in")
        block = Made(node.part, type="parallel", name=name, merge="collect_all", steps=[])
        for i, edge in enumerate(edges, 1):
            member = Made(edge.part, type="transform", name=f"{name}_{i}", function=f"{FUNCTIONS}:first")
            member["params"] = {"inputs": [self._reference(edge.source)]}
            block["steps"].append(member.put("when", self._when(edge), edge.part))
        return f"${{{name}}}", "", [block]

    # -- steps -----------------------------------------------------------------------------------------------------------

    def _steps(self, node: Node) -> list[Made]:
        inputs, when, found = self._arrivals(node)
        if node.kind == "try_catch" and node in self.control.caught.values():
            return [*found, self._try(node, inputs, when)]
        step = Made(node.part, type="transform", name=node.name)
        label = node.data["label"].value
        step.put("description", label if isinstance(label, str) and label != node.id else "")
        step.put("when", when, node.ins[0].part if node.ins else None)
        if node.bound is not None:
            self._bound(step, node, inputs)
        elif node.kind == "http":
            self._http(step, node, inputs, found)
        else:
            self._call(step, node, inputs)
        self.reads[node] = {"inputs": inputs, "when": when}
        return [*found, self.control.apply(step, node)]

    def _bound(self, step: Made, node: Node, inputs: Any) -> None:
        assert node.bound is not None
        step.update(node.bound)
        if inputs:
            listed = inputs if isinstance(inputs, list) else [inputs]
            step["inputs"] = [text if "." in text else text[2:-1] for text in listed]
        data = {key: value for key, value in (node.data.value or {}).items() if key not in ("label", "description")}
        step.put("params", escaped(data), node.data)

    def _call(self, step: Made, node: Node, inputs: Any) -> None:
        if node.kind in CONTROL:
            step["function"], step["params"] = (
                f"{FUNCTIONS}:{'tried' if node.kind == 'try_catch' else 'first'}",
                Made(node.data),
            )
        elif node.kind in ("variable", "cache"):
            self._stored(step, node)
        else:
            named, variables = call_of(step, node.part, node.kind)
            self._see(step, node, named, variables)
        params: Made = step["params"]
        if node.kind == "join":
            params["strategy"] = node.data["join_strategy"].choice(("all", "any", "first"), "all")
        elif node.kind == "parallel":
            params["concurrency"] = node.data["max_concurrency"].whole(10, 1)
        if inputs:
            params["inputs"] = inputs
        if not params:
            del step["params"]

    def _see(self, step: Made, node: Node, named: list[str], variables: list[str]) -> None:
        """The values of the nodes and variables that the expressions of a node name."""
        seen: dict[str, dict[str, str]] = {}
        origin = node.data[next((key for key in ("condition", "expression", "cases") if key in node.data), "")]
        for key in dict.fromkeys(named):
            if key not in self.by_id:
                origin.fail(f"there is no node {key!r}")
                continue
            seen.setdefault("node", {})[key] = f"${{{self.by_id[key].name}}}"
        for name in dict.fromkeys(variables):
            setter = self.stores.setter(("var", name), node, origin)
            if setter is not None:
                seen.setdefault("variables", {})[name] = f"${{{setter.name}}}"
        if seen:
            step["params"]["seen"] = seen

    def _stored(self, step: Made, node: Node) -> None:
        data, key = node.data, self.stores.key_of(node)
        assert key is not None
        op = data[f"{key[0]}_op"]
        is_set = op.choice(("get", "set"), "get") == "set"
        params = step["params"] = Made(data)
        if is_set and not node.ins:
            node.part.fail(f"this node sets {key[1]!r} and nothing leads to it")
        setter = None if is_set else self.stores.setter(key, node, data["var_name" if key[0] == "var" else "cache_key"])
        if node.kind == "variable":
            data["scope"].choice(("workflow", "global", "local"), "workflow")
            step["function"] = f"{FUNCTIONS}:{'first' if is_set else 'value_of'}"
            if not is_set:
                params["value"] = f"${{{setter.name}}}" if setter is not None else None
            return
        step["function"] = f"{FUNCTIONS}:{'cache_set' if is_set else 'cache_get'}"
        data["storage"].choice(("memory",), "memory")
        data["eviction"].text()
        most = data["max_size"].whole(least=1)
        if most is not None and most < self.stores.count("cache"):
            data["max_size"].fail(
                f"the graph keeps {self.stores.count('cache')} keys, and nothing is thrown out of this cache"
            )
        ttl = data["ttl"] if data["ttl"].value is not None or setter is None else setter.data["ttl"]
        seconds = seconds_of(ttl)
        if not is_set:
            params["kept"] = f"${{{setter.name}}}" if setter is not None else None
            params.put("ttl_s", seconds, ttl)

    def _http(self, step: Made, node: Node, inputs: Any, found: list[Made]) -> None:
        data = node.data
        step["type"] = "rest"
        if data["http_client_uid"].value is not None:
            data["http_client_uid"].fail("procflow knows no clients by id", "write url, method and headers")
        url = data["url"].text(required=True)
        if "{" in url or "}" in url:
            data["url"].fail("braces in an address", "write them as %7B and %7D")
        step.set("url", url, data["url"])
        method = data["method"].text().upper()
        if method and method not in _HTTP_METHODS:
            data["method"].fail(f"unknown method {method!r}", f"expected {', '.join(_HTTP_METHODS)}")
        step.put("method", method, data["method"])
        step.put("headers", escaped(data["headers"].value), data["headers"])
        if data["body"].value is not None:
            key = "text" if isinstance(data["body"].value, str) else "json"
            if key == "json" and any(re.fullmatch(r"\{[^{}\s]+\}", text) for text in _texts(data["body"].value)):
                data["body"].fail(
                    "a text that is one name in braces would be a value of procflow's", "write the body as text"
                )
            step.set(key, escaped(data["body"].value), data["body"])
        if not inputs:
            return
        sources = [edge.source for edge in node.ins]
        here = self.inside.get(node)
        if found:
            step["depends_on"] = [found[0]["name"]]
        elif all(self.inside.get(source) == here and not self._is_wrapped(source) for source in sources):
            step["depends_on"] = [source.name for source in sources]
        elif "when" not in step:
            # Not members of the same block: it waits for the values, whatever they are.
            step["when"] = " and ".join(f"(${{{s.name}}} is None or ${{{s.name}}} is not None)" for s in sources)

    def _is_wrapped(self, node: Node) -> bool:
        kinds = [guard.kind for guard in node.guards]
        return "timeout" in kinds and "retry" in kinds[: kinds.index("timeout")]

    def _try(self, node: Node, inputs: Any, when: str) -> Made:
        """Its value, or the fallback where the node before has failed: which runs under what that one runs under."""
        about = next(before for before, caught in self.control.caught.items() if caught is node)
        reads = self.reads[about]
        block = Made(node.part, type="parallel", name=node.name, merge="first_success")
        tried = Made(node.part, type="transform", name=self._free(f"{node.name}_tried"), function=f"{FUNCTIONS}:tried")
        tried["params"] = {"inputs": inputs}
        tried.put("when", when)
        fallback = Made(
            node.part, type="transform", name=self._free(f"{node.name}_fallback"), function=f"{FUNCTIONS}:caught"
        )
        value, path = node.data["fallback_value"], node.data["error_output_path"].text() or "error"
        fallback["params"] = {"value": escaped(value.value), "path": path}
        if reads["inputs"]:
            fallback["params"]["after"] = reads["inputs"]
        fallback.put("when", reads["when"])
        block["steps"] = [tried, fallback]
        return block

    # -- races -----------------------------------------------------------------------------------------------------------

    def _race_name(self, node: Node) -> str:
        if node not in self.races:
            self.races[node] = self._free(f"{node.name}_race")
        return self.races[node]

    def _race_of(self, join: Node) -> None:
        """Which nodes lead to this join only, by the branch that they are in."""
        for number, edge in enumerate(join.ins):
            feeder = edge.source
            if any(out.target is not join for out in feeder.outs) or feeder in self.inside:
                edge.part.fail(
                    f"node {feeder.id!r} leads elsewhere, too, so it can't be in a race to {join.id!r}",
                    "copy it, or join all",
                )
                continue
            self.inside[feeder] = (join, number)
        for node in reversed(self.nodes):
            places = {self.inside.get(edge.target) for edge in node.outs}
            if (
                node not in self.inside
                and len(places) == 1
                and (place := places.pop()) is not None
                and place[0] is join
            ):
                self.inside[node] = place

    def _race(self, join: Node, branches: dict[tuple[Node, int], list[Made]]) -> Made:
        block = Made(join.part, type="parallel", name=self._race_name(join), join="any", merge="first_success")
        seconds = seconds_of(join.data["timeout"])
        if seconds is not None:
            block.set("timeout", text_of(seconds), join.data["timeout"])
        block["steps"] = []
        for number, edge in enumerate(join.ins):
            steps, feeder = branches.get((join, number), []), edge.source
            if len(steps) == 1 and steps[0]["name"] == feeder.name and not edge.handle and not feeder.payload:
                block["steps"].append(steps[0])
                continue
            name = self._free(f"{join.name}_branch_{number + 1}")
            end = Made(edge.part, type="transform", name=f"{name}_end", function=f"{FUNCTIONS}:first")
            end["params"] = {"inputs": [self._reference(feeder)]}
            end.put("when", self._when(edge))
            branch = Made(edge.part, type="graph", name=name, merge=f"{FUNCTIONS}:won", steps=[*steps, end])
            block["steps"].append(branch)
        return block


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(below)
