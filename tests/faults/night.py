"""The pipeline that fault tests run: 60 tasks of every shape, each of which writes to the ledger.

A chain, a parallel block, a graph, a map over a function, a map over steps, a step that is skipped, and an end that reads
them all. Its outputs depend on every step, so an outcome that equals the fault-free one says much.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import ledger

from procflow import Graph, Map, Parallel, Pipeline, Step
from procflow import events as ev
from procflow.result import RunResult

CHAIN, BRANCHES, ITEMS, OUTER = 16, 8, 20, 3


def work(key: str, *values: Any) -> str:
    """A digest of the key and of everything read."""
    ledger.write(key, "start")
    print(f"{key} is at work")
    found = hashlib.sha256(repr((key, values)).encode()).hexdigest()
    ledger.write(key, "end")
    return found


def chain(key: str, value: str = "") -> str:
    return work(key, value)


def rows(last: str) -> list[str]:
    work("rows", last)
    return [f"{last[:8]}-{i}" for i in range(ITEMS)]


def each(item: str) -> str:
    return work("each/" + item.rpartition("-")[2], item)


def inner(item: int, key: str) -> str:
    return work(f"{key}/{item}", item)


def end(**values: Any) -> str:
    return work("end", sorted(values.items()))


def night(shape: float = 1.0) -> Pipeline:
    """The pipeline; ``shape`` shortens its chain and its blocks."""
    chain_length, branches = max(2, int(CHAIN * shape)), max(2, int(BRANCHES * shape))
    steps: list[Any] = [Step("c0", chain, params={"key": "c0"})]
    for i in range(1, chain_length):
        steps.append(Step(f"c{i}", chain, inputs={"value": f"c{i - 1}"}, params={"key": f"c{i}"}))
    last = f"c{chain_length - 1}"
    steps += [
        Parallel(
            "branches",
            *(Step(f"b{i}", chain, inputs={"value": last}, params={"key": f"b{i}"}) for i in range(branches)),
        ),
        Graph(
            "diamond",
            Step("d0", chain, inputs={"value": last}, params={"key": "d0"}),
            Step("d1", chain, inputs={"value": "d0"}, params={"key": "d1"}),
            Step("d2", chain, inputs={"value": "d0"}, params={"key": "d2"}),
        ),
        Step("rows", rows, inputs={"last": last}),
        Map("each", each, items="rows"),
        Map("outer", Step("first", inner, inputs={"item": "item"}, params={"key": "first"}), items=range(OUTER)),
        Step("never", chain, params={"key": "never"}, when="${d1} == ''"),
        Step("end", end, inputs={name: name for name in ("each", "outer", "d1", "d2", *(f"b{i}" for i in range(branches)))}),
    ]  # fmt: skip
    return Pipeline("night", steps=steps)


def keys(shape: float = 1.0) -> list[str]:
    """The keys that an undisturbed run writes to the ledger, once each."""
    chain_length, branches = max(2, int(CHAIN * shape)), max(2, int(BRANCHES * shape))
    return [
        *(f"c{i}" for i in range(chain_length)),
        *(f"b{i}" for i in range(branches)),
        *("d0", "d1", "d2", "rows", "end"),
        *(f"each/{i}" for i in range(ITEMS)),
        *(f"first/{i}" for i in range(OUTER)),
    ]


class Said:
    """An observer that writes down what was announced, at once, so that it survives a kill."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def handle(self, event: ev.Event) -> None:
        if isinstance(event, ev.AttemptFinished) and event.status in ("succeeded", "skipped"):
            os.write(self._fd, f"done {event.path} {event.item or '-'} {event.role} {event.number}\n".encode())
        elif isinstance(event, ev.RunFinished):
            os.write(self._fd, f"over {event.status}\n".encode())


def session(
    state: str, run_id: str, resume: bool, observer: Any, shape: float = 1.0, executor: str = "inline"
) -> RunResult:
    """Run the night, or go on with it."""
    from procflow.launch import launch
    from procflow.resuming.continuing import Earlier

    earlier = Earlier(run_id, same_run=True) if resume else None
    return launch(
        night(shape),
        run_id=run_id,
        state_dir=state,
        executor=executor,
        workers=1,
        observers=(observer,),
        earlier=earlier,
    )
