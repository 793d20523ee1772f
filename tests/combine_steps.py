"""Types and combiners for test_combiners.py; importable by workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from procflow import StepOutput, step


@dataclass
class Bag:
    members: list[int]


class Sack(Bag):
    """A bag by another name."""


@dataclass
class Crate:
    weight: int


def bag(n: int) -> Bag:
    return Bag([n])


def sack(n: int) -> Sack:
    return Sack([n])


def crate(n: int) -> dict[str, Any]:
    return {"inside": Crate(n), "n": n}


def all_in_one(bags: list[Bag]) -> Bag:
    return Bag([m for each in bags for m in each.members])


def heavy(crates: list[Crate]) -> Crate:
    return Crate(sum(c.weight for c in crates))


def has_weight(value: Any) -> bool:
    return hasattr(value, "weight")


def longest(texts: list[str]) -> str:
    return max(texts, key=len)


def told(value: Any) -> Any:
    return repr(value)


def costly(n: int) -> StepOutput:
    step.cost(0.5)
    step.metric("seen", n)
    return StepOutput(n, cost=n, metrics={"rows": 10 * n})


def loud(n: int) -> str:
    return "x" * n


def ten() -> list[int]:
    return list(range(10))


def in_two(value: list[int], into: int | None, at: int) -> list[list[int]]:
    return [value[:at], value[at:]]


def graded(n: int) -> dict[str, int]:
    return {"n": n, "score": -abs(n - 2)}


def score_of(value: dict[str, int]) -> int:
    return value["n"]
