"""Node control: what ``retry``, ``timeout``, ``try_catch`` and ``parallel`` nodes say of the nodes around them, and which node
sets what another reads as a variable or a key of the cache.

The settings come on to the steps that they are about; the steps themselves are made in ``node_wiring.py``.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

from procflow.dialects.foreign import Made, Part, Translation, near
from procflow.dialects.node_kinds import CONTROL, seconds_of
from procflow.dialects.nodes import Node

__all__ = ["Control", "Stores", "text_of"]


def text_of(seconds: float) -> str:
    """Seconds as a duration of procflow's."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def watched(node: Node) -> list[Node]:
    """The nodes that a control node is about: those before it, and through control nodes those before them."""
    found: list[Node] = []
    for edge in node.ins:
        at = edge.source
        if at.kind == "try_catch":
            continue  # it never fails
        found += watched(at) if at.kind in CONTROL else [at]
    return list(dict.fromkeys(found))


class Control:
    """Keys of steps that other nodes ask for. ``nodes`` are in order, sources first."""

    def __init__(self, work: Translation, nodes: list[Node]) -> None:
        self.work = work
        self.resources: dict[str, int] = {}
        self.caught: dict[Node, Node] = {}
        """Nodes whose failure a try_catch node answers."""
        for node in nodes:
            if node.kind in CONTROL:
                self._guard(node)
            elif node.kind == "parallel":
                self._limit(node)
            elif node.kind == "join" and node.data["timeout"].value is not None and not node.is_race:
                for before in watched(node):
                    before.guards.append(node)

    def _guard(self, node: Node) -> None:
        if node.kind == "try_catch":
            node.data["error_output_path"].text()
            if not node.data["continue_on_error"].flag(True):
                node.data["continue_on_error"].note("a failure is not caught: it ends the run as without this node")
                return
        found = watched(node)
        if not found:
            node.part.fail(f"there is no node before this {node.kind} that could fail")
        for before in found:
            if node.kind == "try_catch":
                self.caught[before] = node
            before.guards.append(node)

    def _limit(self, node: Node) -> None:
        """At most so many at once of the nodes before this one, or behind it where it fans out."""
        behind = [edge.target for edge in node.outs]
        about = watched(node) if len(node.ins) > 1 or len(behind) < 2 else behind
        most = node.data["max_concurrency"].whole(10, 1) or 10
        side = "before" if about is not behind else "behind"
        node.data["max_concurrency"].note(f"at most {most} of the {len(about)} nodes {side} it run at once")
        if len(about) > most:
            name = f"{node.name}_places"
            self.resources[name] = most
            for one in about:
                one.resources[name] = 1
        if node.data["timeout"].value is not None:
            for one in about:
                one.guards.append(node)

    def apply(self, step: Made, node: Node) -> Made:
        """The step with all that is asked for it, in a block of its own where a clock is around its retries."""
        if node.resources:
            step["resources"] = dict(node.resources)
        around: Made | None = None
        retried = step.get("retries") or step.get("retry")
        for guard in node.guards:
            if guard.kind == "retry":
                if retried:
                    guard.part.fail(f"node {node.id!r} is retried already", "keep one retry")
                retried = True
                step.put("retry", _retry(guard.data), guard.part)
                continue
            if guard.kind == "try_catch":
                step.set("on_error", "continue", guard.part)
                if around is not None:
                    guard.part.fail(
                        "a clock around a retry can't be caught", "put the timeout node before the retry node"
                    )
                continue
            seconds = self._clock(guard)
            if seconds is None:
                continue
            if retried and around is None and guard.kind == "timeout":
                around = Made(guard.part, type="sequence", name=f"{node.name}_within", timeout=text_of(seconds))
                continue
            held = around if around is not None and guard.kind == "timeout" else step
            earlier = held.get("timeout")
            if earlier is None or seconds < float(str(earlier).rstrip("s")):
                held.set("timeout", text_of(seconds), guard.data["timeout"])
        if around is None:
            return step
        around["steps"] = [step]
        return around

    def _clock(self, guard: Node) -> float | None:
        if guard.kind == "timeout":
            action = guard.data["timeout_action"]
            if action.choice(("error", "continue_with_partial"), "error") == "continue_with_partial":
                action.fail(
                    "a node that was stopped has made no part of its value",
                    "put a try_catch node with a fallback_value behind",
                )
        return seconds_of(guard.data["timeout"])


def _retry(data: Part) -> dict[str, Any]:
    attempts = data["max_attempts"].whole(3, 1) or 3
    strategy = data["backoff_strategy"].choice(("exponential", "linear", "constant"), "exponential")
    factor = data["multiplier"]
    if strategy == "linear":
        data["backoff_strategy"].fail(
            "procflow can't do linear pauses", "write exponential with a multiplier, or constant"
        )
    if factor.value is not None and (isinstance(factor.value, bool) or not isinstance(factor.value, (int, float))):
        factor.fail("expected a number of at least 1")
        factor = data["-"]
    delay, longest = seconds_of(data["initial_delay"], 0), seconds_of(data["max_delay"], 0)
    if attempts == 1:
        return {}
    longest = 30.0 if longest is None else longest
    keys: dict[str, Any] = {
        "retries": attempts - 1,
        "delay": text_of(min(1.0, longest) if delay is None else delay),
        "backoff": 1 if strategy == "constant" else factor.value or 2,
        "max_delay": text_of(longest),
        "jitter": False,
    }
    names = []
    for part in data["retry_on_errors"].members(0, "a list of names of errors"):
        if not re.fullmatch(r"[A-Za-z_][\w.]*", part.text()):
            part.fail("expected timeout, crash, or the name of an exception class")
        names.append(part.value)
    return {**keys, "on": names} if names else keys


class Stores:
    """Who sets what a variable or a key of the cache is read from."""

    def __init__(self, nodes: list[Node]) -> None:
        self._setters: dict[tuple[str, str], list[Node]] = {}
        self._before: dict[Node, set[Node]] = {}
        for node in nodes:
            before = self._before[node] = set()
            for edge in node.ins:
                before |= {edge.source, *self._before[edge.source]}
            key = self.key_of(node)
            if key and node.data[f"{key[0]}_op"].value == "set":
                self._setters.setdefault(key, []).append(node)
        for (kind, name), setters in self._setters.items():
            for a, b in combinations(setters, 2):
                if a not in self._before[b] and b not in self._before[a]:
                    b.part.fail(
                        f"{kind} {name!r} is set by node {a.id!r}, too, and neither comes first",
                        "lead an edge from one to the other",
                    )

    def key_of(self, node: Node) -> tuple[str, str] | None:
        """``("var", name)`` or ``("cache", key)`` of a node that reads or writes one."""
        if node.kind == "variable":
            return "var", str(node.data["var_name"].value)
        return ("cache", str(node.data["cache_key"].value)) if node.kind == "cache" else None

    def setter(self, key: tuple[str, str], reader: Node, part: Part) -> Node | None:
        """The node that set it last before the reader, or the one that sets it at all; a problem where a variable has none."""
        setters = self._setters.get(key, [])
        before = [node for node in setters if node in self._before[reader]]
        last = before[-1:] or [node for node in setters if reader not in self._before[node] and node is not reader]
        if len(last) > 1:
            both = " and ".join(repr(node.id) for node in last[:2])
            part.fail(
                f"{key[1]!r} is set by the nodes {both}, and none of them leads here",
                "lead an edge from the one that is meant",
            )
            return None
        if not last and key[0] == "var":
            names = [name for kind, name in self._setters if kind == "var"]
            part.fail(f"no node sets the variable {key[1]!r} before this one", near(key[1], names))
        return last[0] if last else None

    def count(self, kind: str) -> int:
        """How many names there are."""
        return sum(1 for key in self._setters if key[0] == kind)
