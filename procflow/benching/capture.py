"""Capture: one run of a pipeline that keeps what every step was given, by reference, so that steps can be run again alone.

The run is an ordinary one in a state folder of its own, without journal and history. What its attempts were given (refs of
values, pages of items) is kept beside what they took, and no value's file is freed while the run is looked at.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from procflow.attempt import Attempt, Items, Outcome, Succeeded
from procflow.engine import Engine
from procflow.errors import ProcflowError
from procflow.executors import open_waiter
from procflow.graph import MapUnit, TaskUnit, Unit, walk
from procflow.guarding.guard import Guard
from procflow.launch import Prepared
from procflow.machine.memory import MemoryWatch
from procflow.result import Recorder
from procflow.scheduler import Scheduler
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import MemoryStore, RunRecord
from procflow.values.lazy_state import LazyState
from procflow.values.object_files import make_folder

__all__ = ["Captured", "Work", "captured"]

REPEATABLE = frozenset({"transform", "split", "merge"})


@dataclass(slots=True)
class Work:
    """One step: its unit, the attempts that were made, and how many pieces of work (items of a map, calls) they held."""

    unit: TaskUnit
    attempts: list[Attempt] = field(default_factory=list)
    pieces: int = 0
    seconds: float = 0.0
    is_map: bool = False

    @property
    def repeats(self) -> str:
        """Why it must not be run again without being asked; empty where it may."""
        call = self.unit.call
        if call.kind in REPEATABLE:
            return ""
        if call.kind == "query":
            from procflow.sources.sql import reads_only

            texts = [part for part in call.options.get("parts") or () if isinstance(part, str)]
            return "" if texts and reads_only("?".join(texts)) else "a query that may write"
        return {"shell": "a command", "skill": "a skill", "rest": "a request"}.get(call.kind, f"a {call.kind}")

    def sample(self, most: int, copies: int) -> list[Attempt]:
        """Up to ``most`` pieces, evenly spread, one an attempt; a step of a single call is taken ``copies`` times."""
        single = [piece for attempt in self.attempts for piece in _pieces(attempt)]
        if len(single) == 1:
            return single * copies
        count = min(most, len(single))
        if count > copies:
            # As many for each slot.
            count -= count % copies
        return [single[i * len(single) // count] for i in range(count)]


@dataclass(frozen=True, slots=True)
class Captured:
    """What one run gave: the steps in declared order, the folder of their values, and how long it took."""

    works: list[Work]
    objects: str
    seconds: float


class _Tap:
    """An executor that notes what passes; all else is the executor's own."""

    def __init__(self, executor: Any, seen: dict[int, Attempt], ended: list[tuple[Attempt, Outcome]]) -> None:
        self._executor = executor
        self._seen = seen
        self._ended = ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def submit(self, attempt: Attempt) -> None:
        """Note, and pass on."""
        self._executor.submit(attempt)
        self._seen[attempt.key] = attempt

    def wait(self, until: float | None) -> list[Outcome]:
        """Pass on, and note."""
        outcomes: list[Outcome] = self._executor.wait(until)
        for outcome in outcomes:
            if isinstance(outcome, Succeeded) and outcome.key in self._seen:
                self._ended.append((self._seen.pop(outcome.key), outcome))
        return outcomes


@contextmanager
def captured(prepared: Prepared) -> Iterator[Captured]:
    """Run the pipeline once; what it made is there until the end of the ``with``.

    ``ProcflowError`` where the run does not succeed.
    """
    graph, run_id = prepared.graph, prepared.run_id
    with tempfile.TemporaryDirectory(prefix="procflow-bench-") as path:
        folder = StateFolder.open(path)
        folder.new_run(run_id)
        objects = make_folder(str(folder.run(run_id) / "objects"))
        with Guard(folder, "bench") as guard:
            executors = guard.open(sorted(graph.executors), prepared.workers, run_id, objects.path)
            began = time.perf_counter()
            seen: dict[int, Attempt] = {}
            ended: list[tuple[Attempt, Outcome]] = []
            taps: dict[str, Any] = {name: _Tap(executor, seen, ended) for name, executor in executors.items()}
            recorder = Recorder(prepared.workers, graph)
            store = MemoryStore()
            store.begin(RunRecord(run_id, prepared.pipeline.name))
            scheduler = Scheduler(
                graph,
                slots={name: each.slots for name, each in executors.items()},
                memory_bytes=prepared.memory_bytes,
                run_id=run_id,
            )
            watch = MemoryWatch(executors.values(), prepared.memory_bytes)
            Engine(scheduler, taps, open_waiter(taps), store, observers=(recorder,), memory=watch).run()
            result = recorder.result(scheduler.outputs, state=LazyState(*scheduler.state))
            if result.status != "succeeded":
                failed = "; ".join(str(failure) for failure in result.failures[:3])
                raise ProcflowError(f"the run that makes the steps' inputs {result.status}: {failed}")
            # Its workers are not used any more, and would take memory beside those that are measured.
            for executor in executors.values():
                executor.close()
            yield Captured(_works(graph.root, ended), objects.path, time.perf_counter() - began)


def _works(root: Unit, ended: list[tuple[Attempt, Outcome]]) -> list[Work]:
    """What was run, by step; gates, merges of blocks and the reading of items are no steps of their own."""
    works: dict[str, Work] = {}
    bodies = {id(unit.body) for unit in walk(root) if isinstance(unit, MapUnit)}
    for unit in walk(root):
        if isinstance(unit, TaskUnit) and unit.call.kind not in ("gate", "expand", "fold"):
            works.setdefault(unit.call.path, Work(unit, is_map=id(unit) in bodies))
    for attempt, outcome in ended:
        work = works.get(attempt.call.path)
        if work is None or attempt.call is not work.unit.call:
            continue
        work.attempts.append(_unlogged(attempt))
        work.pieces += len(attempt.items.indices) if attempt.items is not None else 1
        work.seconds += outcome.usage.wall_s if isinstance(outcome, Succeeded) else 0.0
    return [work for work in works.values() if work.attempts]


def _unlogged(attempt: Attempt) -> Attempt:
    """The same attempt for any executor: no log, no memory limit, and nothing that the engine added."""
    return Attempt(
        attempt.key, attempt.call, attempt.number, attempt.values, attempt.items, attempt.labels, attempt.cpus, None,
        attempt.report_each, attempt.run_id,
    )  # fmt: skip


def _pieces(attempt: Attempt) -> list[Attempt]:
    items = attempt.items
    if items is None:
        return [attempt]
    return [replace(attempt, items=Items(items.page, items.first, range(i, i + 1))) for i in items.indices]
