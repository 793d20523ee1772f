"""Steps that read and write the pipeline's state, for test_state.py; importable by workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from procflow import step


def write(key: int = 0) -> int:
    step.state.append("results", key)
    step.state.add("totals", key)
    step.state.union("seen", [key % 7])
    step.state.merge("tree", {"by": {str(key): key}, "last": key})
    return key


def add_fraction(item: int) -> float:
    step.state.add("totals", 0.1 * item)
    return 0.1 * item


def read() -> dict[str, Any]:
    return {key: step.state[key] for key in step.state}


def replace(value: Any = 1) -> None:
    step.state["config"] = value


def once_bad(marker: str, key: int = 5) -> int:
    """Writes, and fails at its first attempt."""
    step.state.append("results", key)
    if not os.path.exists(marker):
        Path(marker).touch()
        raise RuntimeError("not yet")
    return key


def odd_fails(item: int) -> int:
    step.state.append("results", item)
    if item % 2:
        raise ValueError(item)
    return item


def longest(value: str, change: str) -> str:
    return max(value, change, key=len)


def say(word: str) -> None:
    step.state.reduce("word", word)


def text_and_number(what: Any) -> None:
    step.state.add("totals", what)


def unpicklable(item: int) -> int:
    step.state.append("results", (i for i in ()) if item == 3 else item)
    return item


def merged(results: Mapping[str, Any]) -> int:
    step.state.append("results", ["merge saw", len(step.state["results"])])
    return len(results)


def big(item: int) -> int:
    step.state.append("results", bytes([item]) * 100_000)
    return item
