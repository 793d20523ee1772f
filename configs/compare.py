"""The steps of compare.yaml: three kinds of work, each done the same way whatever the executor."""

from __future__ import annotations

import ast
import hashlib
import inspect
import time
from typing import Any

ROUNDS_PYTHON = 7
ROUNDS_BUFFERS = 20


def count(items: int) -> list[int]:
    """The items: 0, 1, 2, ..."""
    return list(range(items))


def timed(work: Any, item: int) -> dict[str, Any]:
    """What ``work(item)`` answers, with the instants it began and ended on the clock that all processes share."""
    began = time.monotonic()
    answer = work(item)
    return {"answer": answer, "began": began, "ended": time.monotonic()}


def python_code(item: int) -> dict[str, Any]:
    """Pure Python, about 0.1 s: parse a module and walk its tree. It holds the interpreter's lock throughout."""
    return timed(walk_trees, item)


def walk_trees(item: int) -> str:
    source = inspect.getsource(ast) + f"\nitem = {item}\n"
    parts = [sum(1 for _ in ast.walk(ast.parse(source))) for _ in range(ROUNDS_PYTHON)]
    return f"{parts[0]} parts, item {item}"


def big_buffers(item: int) -> dict[str, Any]:
    """C code that gives the lock back, about 0.1 s: digests of a large buffer, as in compression or NumPy."""
    return timed(digest_buffer, item)


def digest_buffer(item: int) -> str:
    data = bytes([item % 256]) * 8_000_000
    for _ in range(ROUNDS_BUFFERS):
        digest = hashlib.sha256(data).hexdigest()
    return digest


def waiting(item: int) -> dict[str, Any]:
    """No work at all, 0.1 s: as for an answer from a server."""
    return timed(sleep, item)


def sleep(item: int) -> int:
    time.sleep(0.1)
    return item


WORK = {"python": "Python code", "buffers": "C code without the lock", "waiting": "waiting"}
EXECUTORS = ("inline", "threads", "processes")


def compare(**results: list[dict[str, Any]]) -> str:
    """The table of times; ``results`` are named ``<executor>_<work>``. ValueError if two executors disagree.

    A time is from the start of the first item to the end of the last: workers that had to be started first are not
    counted, handing out items and taking answers is.
    """
    lines = [f"{'seconds (speed-up)':26}" + "".join(f"{name:>18}" for name in EXECUTORS)]
    for work, title in WORK.items():
        answers = [[row["answer"] for row in results[f"{name}_{work}"]] for name in EXECUTORS]
        if any(answer != answers[0] for answer in answers):
            raise ValueError(f"{title}: the executors do not agree on the answers")
        spans = [span(results[f"{name}_{work}"]) for name in EXECUTORS]
        cells = [f"{f'{seconds:.2f} ({spans[0] / seconds:.1f}x)':>18}" for seconds in spans]
        lines.append(f"{title:26}" + "".join(cells))
    return "\n".join(lines)


def span(rows: list[dict[str, Any]]) -> float:
    """Seconds from the first start to the last end."""
    return max(row["ended"] for row in rows) - min(row["began"] for row in rows)
