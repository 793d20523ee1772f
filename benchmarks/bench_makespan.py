"""How long do recorded workflows take under procflow's order, beside list schedulers and what no order can beat?

procflow's own scheduler runs in fake time, with durations learned. ``b-level``: longest remaining path first. ``fifo``: in the
order in which tasks become ready. The lower bound is the longest path, or all work shared out evenly.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.workflows import KINDS, Workflow
from procflow import Graph, Pipeline, Step
from procflow.attempt import Attempt
from procflow.compiler import compile_pipeline
from procflow.engine import Engine
from procflow.scheduler import Scheduler
from procflow.storing.store import MemoryStore, RunRecord
from procflow.testing import Act, FakeExecutor

WIDTHS = (20, 100)
WORKERS = (2, 8, 32)
TARGET = "within 3 % of the best list scheduler"


def empty() -> None:
    """Never called: time is fake."""


def procflow(workflow: Workflow, workers: int) -> float:
    """Seconds under procflow's scheduler and engine."""
    steps = [Step(name, empty, depends_on=list(workflow.after[name])) for name in workflow.seconds]
    pipeline = Pipeline("workflow", steps=[Graph(*steps, name="all")])
    graph = compile_pipeline(pipeline, durations={f"all/{name}": s for name, s in workflow.seconds.items()})

    def script(attempt: Attempt) -> Act:
        return Act(after_s=workflow.seconds[attempt.call.name], value=None)

    executor = FakeExecutor(workers, script)
    began = executor.clock.now
    scheduler = Scheduler(graph, slots={"processes": workers})
    store = MemoryStore(executor.clock)
    store.begin(RunRecord("fake", workflow.name))
    Engine(scheduler, {"processes": executor}, executor, store, clock=executor.clock).run()
    assert len(executor.started) == len(workflow.seconds)
    return executor.clock.now - began


def b_levels(workflow: Workflow) -> dict[str, float]:
    """The longest remaining path of each task, itself included."""
    behind: dict[str, list[str]] = {name: [] for name in workflow.seconds}
    for name, befores in workflow.after.items():
        for before in befores:
            behind[before].append(name)
    levels: dict[str, float] = {}
    for name in reversed(workflow.seconds):
        levels[name] = workflow.seconds[name] + max((levels[other] for other in behind[name]), default=0.0)
    return levels


def listed(workflow: Workflow, workers: int, urgency: Callable[[str, int], Any]) -> float:
    """Seconds of a list schedule: whenever a worker is free, the ready task of the least ``urgency(name, turn)``."""
    unmet = {name: len(set(befores)) for name, befores in workflow.after.items()}
    behind: dict[str, list[str]] = {name: [] for name in workflow.seconds}
    for name, befores in workflow.after.items():
        for before in set(befores):
            behind[before].append(name)
    turn = iter(range(10**9))
    ready = [(urgency(name, next(turn)), name) for name, count in unmet.items() if not count]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            name = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + workflow.seconds[name], name))
        now, done = heapq.heappop(running)
        for name in behind[done]:
            unmet[name] -= 1
            if not unmet[name]:
                heapq.heappush(ready, (urgency(name, next(turn)), name))
    return now


def compared(workflow: Workflow, workers: int) -> dict[str, float]:
    """Seconds by scheduler, and the lower bound."""
    levels = b_levels(workflow)
    return {
        "procflow": procflow(workflow, workers),
        "b-level": listed(workflow, workers, lambda name, turn: (-levels[name], turn)),
        "fifo": listed(workflow, workers, lambda name, turn: turn),
        "bound": max(max(levels.values()), sum(workflow.seconds.values()) / workers),
    }


def everything() -> dict[tuple[str, int, int], dict[str, float]]:
    """All workflows, sizes and numbers of workers."""
    return {
        (kind, width, workers): compared(make(width), workers)
        for kind, make in KINDS.items()
        for width in WIDTHS
        for workers in WORKERS
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [2, 8])
def test_no_workflow_takes_longer_than_under_b_level(kind: str, workers: int) -> None:
    found = compared(KINDS[kind](20), workers)
    assert found["bound"] <= found["procflow"] * 1.000001
    assert found["procflow"] <= 1.03 * found["b-level"]


if __name__ == "__main__":
    print(
        f"{'workflow':24} {'tasks':>6} {'workers':>7} {'procflow':>10} {'b-level':>10} {'fifo':>10} {'bound':>10}  to b-level"
    )
    for (kind, width, workers), found in everything().items():
        tasks = len(KINDS[kind](width).seconds)
        figures = " ".join(f"{found[name]:10.1f}" for name in ("procflow", "b-level", "fifo", "bound"))
        print(f"{kind:24} {tasks:6} {workers:7} {figures}  {found['procflow'] / found['b-level']:.4f}")
    print(f"target: {TARGET}")
