"""Functions for test_reduce.py; importable by workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from procflow import step


def same(item: int) -> int:
    return item


def text(item: int) -> str:
    return f"{item},"


def joined(value: str, result: str) -> str:
    return value + result


def counted(value: list[int], result: int) -> list[int]:
    """Order, number, and how many results one fold got at most."""
    if value[0] != result - 1:
        raise AssertionError(f"{result} came after {value[0]}")
    return [result, value[1] + 1]


def odd_fails(item: int) -> int:
    if item % 2:
        raise ValueError(item)
    return item


def big(item: int) -> bytes:
    return bytes([item % 256]) * 200_000


def length(value: int, result: bytes) -> int:
    return value + len(result)


def not_joined(value: Any, result: Any) -> Any:
    raise ValueError("no")


def not_2500(value: int, result: int) -> int:
    if result == 2500:
        raise ValueError("no")
    return result


def stops_at(item: int, at: int, marker: str) -> int:
    if item == at and not os.path.exists(marker):
        Path(marker).touch()
        raise RuntimeError("stopped once")
    with open(f"{marker}.ran", "a", encoding="utf-8") as file:
        file.write(f"{item}\n")
    return item


def plus(value: int, result: int) -> int:
    step.metric("folded", value)
    return value + result
