"""Random pipelines for the soak: files of any shape whose every step writes to the ledger. Same seed, same pipeline."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

HOWS = ("plain", "plain", "plain", "plain", "large", "large", "fails", "daemon", "forks", "hungry")
RETRY = {"retries": 20, "delay": "0s", "on": ["error", "timeout", "oom", "crash"]}
MEMORY = "220MiB"
"""Less than two hungry steps hold at once, so that one of them is stopped and runs again alone."""


@dataclass
class Made:
    """A pipeline's tree, the keys that an undisturbed run writes, and those of its steps that no map repeats."""

    tree: dict[str, Any]
    keys: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    fails: set[str] = field(default_factory=set)


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.made = Made({})
        self._number = 0

    def name(self, letter: str) -> str:
        self._number += 1
        return f"{letter}{self._number}"

    def step(self, known: list[str]) -> dict[str, Any]:
        """One step that reads up to three of the values that are known."""
        name, how = self.name("s"), self.chance.choice(HOWS)
        self.made.keys.add(name)
        self.made.members.add(name)
        if how == "fails":
            self.made.fails.add(name)
        params = {"key": name, "how": how, "pause_s": self.chance.choice((0, 0, 0.01, 0.05))}
        reads = self.chance.sample(known, min(len(known), self.chance.randint(0, 3)))
        return {"name": name, "function": "soak_steps:work", "params": params, "inputs": reads}

    def items(self, known: list[str]) -> list[dict[str, Any]]:
        """A step that makes items and a map over them, of a function or of steps."""
        source, name, count = self.name("r"), self.name("m"), self.chance.randint(1, 30)
        reads = self.chance.sample(known, min(len(known), 1))
        self.made.keys |= {source} | {f"{name}/{i}" for i in range(count)}
        self.made.members.add(source)
        make = {
            "name": source,
            "function": "soak_steps:rows",
            "params": {"key": source, "count": count},
            "inputs": reads,
        }
        params = {"key": name, "pause_s": self.chance.choice((0, 0.002, 0.02))}
        over: dict[str, Any] = {"type": "map", "name": name, "items": f"${{{source}}}", "output": name}
        if self.chance.random() < 0.5:
            over |= {"function": "soak_steps:each", "params": params}
            if self.chance.random() < 0.5:
                over["batch"] = self.chance.randint(1, 5)
        else:
            over["steps"] = [
                {"name": f"{name}i", "function": "soak_steps:each", "inputs": {"item": "item"}, "params": params}
            ]
        return [make, over]

    def block(self, known: list[str], depth: int) -> dict[str, Any]:
        """A parallel block, a sequence or a graph."""
        kind, name = self.chance.choice(("parallel", "sequence", "graph")), self.name("b")
        steps: list[dict[str, Any]] = []
        mine = list(known)
        for _ in range(self.chance.randint(2, 6)):
            new = self.some(mine, depth + 1) if kind != "parallel" else [self.one(known, depth + 1)]
            steps += new
            if kind != "parallel":
                mine += published(new)
        block: dict[str, Any] = {"type": kind, "name": name, "steps": steps}
        if kind == "parallel" and self.chance.random() < 0.3:
            block["max_parallelism"] = 2
        return block

    def one(self, known: list[str], depth: int) -> dict[str, Any]:
        """One step, or a block."""
        return self.block(known, depth) if depth < 3 and self.chance.random() < 0.2 else self.step(known)

    def feast(self) -> dict[str, Any]:
        """Three hungry steps at once."""
        steps = [self.step([]) for _ in range(3)]
        for step in steps:
            self.made.fails.discard(step["name"])
            step["params"] |= {"how": "hungry", "pause_s": 0}
        return {"type": "parallel", "name": self.name("b"), "steps": steps}

    def some(self, known: list[str], depth: int) -> list[dict[str, Any]]:
        """One step, a block, or a map with its items; sometimes more hungry steps than there is memory for."""
        if self.chance.random() < 0.03:
            return [self.feast()]
        return self.items(known) if self.chance.random() < 0.2 else [self.one(known, depth)]


def published(steps: list[dict[str, Any]]) -> list[str]:
    """Names of the values that steps publish for those behind them."""
    found = []
    for step in steps:
        if step.get("type") in ("parallel", "sequence", "graph"):
            found += published(step["steps"])
        else:
            found.append(step["name"])
    return found


def pipeline(seed: str) -> Made:
    """A pipeline of 5 to some 60 steps, with an end that reads most of it."""
    maker = _Maker(random.Random(seed))
    steps: list[dict[str, Any]] = [maker.step([])]
    for _ in range(maker.chance.randint(3, 10)):
        steps += maker.some(published(steps), 0)
    names = published(steps)
    steps.append(
        {"name": "end", "function": "soak_steps:work", "params": {"key": "end"},
         "inputs": maker.chance.sample(names, min(len(names), 12))}
    )  # fmt: skip
    maker.made.keys.add("end")
    maker.made.members.add("end")
    maker.made.tree = {
        "name": "soak", "show": ["end"], "limits": {"memory": MEMORY}, "defaults": {"retry": RETRY}, "steps": steps,
    }  # fmt: skip
    return maker.made
