"""Samples: the same pieces of work on each executor in turns (A B C A B C), and what that took.

    sequential   one after the other, in this process        threads   in threads of this process
    processes    in workers that are started and warm

A round hands out as many pieces at once as there are slots, small ones in batches as a run does. Only rounds after the first
count. This file measures and compares results; it says nothing about what is good.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from procflow.attempt import Attempt, Failed, Items, Lost, Outcome, Skipped, Started, Succeeded
from procflow.errors import ProcflowError
from procflow.executors import open_executor
from procflow.executors.base import Executor
from procflow.ref import Ref, stored_in
from procflow.values.object_files import ObjectFolder

__all__ = ["EXECUTORS", "Bench", "Measured", "Round", "spread"]

EXECUTORS = ("sequential", "threads", "processes")
BATCH_S = 0.1
"""Small pieces of one page travel together until they take about so long."""
HANG_S = 600.0


@dataclass(frozen=True, slots=True)
class Round:
    """All pieces once: seconds on the clock, CPU seconds used for it, bytes of results, most memory of workers.

    ``wanted_s`` are the CPU seconds with those in which a thread of this process was ready for a core and got none: somebody
    else had it, so it did not wait for anything of its own.
    """

    wall_s: float
    cpu_s: float
    result_bytes: int
    wanted_s: float = 0.0
    rss_bytes: int = 0


@dataclass(slots=True)
class Measured:
    """One step: its rounds on each executor. ``pieces`` were run a round; ``input_bytes`` are read for all of them.

    ``same`` says whether all gave the same results, None where they can't be compared (``compared`` tells why).
    """

    pieces: int
    input_bytes: int
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    same: bool | None = None
    compared: str = ""
    cut: str = ""

    def wall_s(self, executor: str) -> float:
        """Median seconds of a round."""
        return statistics.median(each.wall_s for each in self.rounds[executor])

    def cores(self, executor: str) -> float:
        """CPU seconds a second, median."""
        return statistics.median(each.cpu_s / max(each.wall_s, 1e-9) for each in self.rounds[executor])

    def busy(self) -> float:
        """Share of the time that one call after the other would use a core, were there nobody else; more than 1 on several."""
        return statistics.median(each.wanted_s / max(each.wall_s, 1e-9) for each in self.rounds["sequential"])

    def spread(self) -> float:
        """The widest spread of an executor's rounds, 0.1 for 10 %."""
        return max((spread([each.wall_s for each in rounds]) for rounds in self.rounds.values()), default=0.0)


def spread(values: Sequence[float]) -> float:
    """Half the distance of the quarters, as a share of the median; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / max(statistics.median(values), 1e-9)


class Bench:
    """The executors to measure on; use it in a ``with``. ``start_s`` is how long a worker takes to be ready."""

    def __init__(self, slots: int, folder: ObjectFolder) -> None:
        self.slots = slots
        self.start_s = 0.0
        self._folder = folder
        self._stack = ExitStack()
        self._executors: dict[str, Executor] = {}
        self._keys = itertools.count(1)

    def __enter__(self) -> Bench:
        for name, kind in zip(EXECUTORS, ("inline", "threads", "processes"), strict=True):
            executor = open_executor(kind, self.slots, objects=self._folder.path)
            self._stack.callback(executor.close)
            self._executors[name] = executor
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, pieces: list[Attempt], repeat: int, budget_s: float, piece_s: float) -> Measured:
        """Run the pieces ``repeat`` times on each executor, after a round that does not count.

        Where that would take longer than the budget, there are fewer pieces first, then fewer rounds. ``piece_s`` is how
        long one is known to take. ProcflowError where a piece fails.
        """
        found = Measured(len(pieces), 0)
        round_s = piece_s * (1 + 2 / self.slots)
        most = int(budget_s / max(round_s * (repeat + 1), 1e-9))
        if most < len(pieces):
            # As many for each slot, or the last one runs alone and the figure is of that.
            count = max(min(self.slots, len(pieces)), most // self.slots * self.slots)
            found.cut = f"{count} of {len(pieces)} pieces" if count < len(pieces) else ""
            pieces = [pieces[i * len(pieces) // count] for i in range(count)]
            found.pieces = count
        found.input_bytes = sum(_input_bytes(pieces))
        until = time.perf_counter() + budget_s
        results: dict[str, list[Any]] = {}
        for number in range(-1, repeat):
            if number > 0 and time.perf_counter() > until:
                found.cut = ", ".join(filter(None, (found.cut, f"{number} of {repeat} rounds")))
                break
            for name in EXECUTORS:
                took, refs = self._round(name, self._batches(pieces, piece_s))
                if number >= 0:
                    found.rounds.setdefault(name, []).append(took)
                if number == 0:
                    results[name] = [_opened(ref) for ref in refs]
                elif number < 0 and name == "sequential":
                    results["before"] = [_opened(ref) for ref in refs]
                self._forget(refs)
        found.same, found.compared = _compare(results)
        return found

    def _batches(self, pieces: list[Attempt], piece_s: float) -> list[Attempt]:
        """Pieces of one page joined, so that a batch takes a while and every slot has some."""
        most = max(1, min(int(BATCH_S / max(piece_s, 1e-6)), -(-len(pieces) // (2 * self.slots))))
        batches: list[Attempt] = []
        for piece in pieces:
            last = batches[-1] if batches else None
            if (
                last is not None and last.items is not None and piece.items is not None
                and last.items.page is piece.items.page and len(last.items.indices) < most
                and last.items.indices[-1] < piece.items.indices[0] and last.labels == piece.labels
            ):  # fmt: skip
                joined = (*last.items.indices, *piece.items.indices)
                batches[-1] = replace(last, items=Items(last.items.page, last.items.first, joined))
            else:
                batches.append(piece)
        return batches

    def _round(self, name: str, attempts: list[Attempt]) -> tuple[Round, list[Ref]]:
        executor: Any = self._executors[name]
        waiting = [replace(attempt, key=next(self._keys)) for attempt in attempts]
        order = {attempt.key: at for at, attempt in enumerate(waiting)}
        refs: dict[int, list[Ref]] = {}
        waiting.reverse()
        out, cpu_s = 0, 0.0
        own, wanted_s = time.process_time(), _wanted_s()
        began = time.perf_counter()
        while waiting or out:
            while waiting and out < executor.slots:
                executor.submit(waiting.pop())
                out += 1
            outcomes: list[Outcome] = executor.wait(time.monotonic() + HANG_S)
            if not outcomes:
                raise ProcflowError(f"nothing came back from {name} for {HANG_S:g} s")
            for outcome in outcomes:
                if isinstance(outcome, Started):
                    self.start_s = max(self.start_s, time.perf_counter() - began)
                elif isinstance(outcome, (Failed, Lost)):
                    raise ProcflowError(f"on {name}: {outcome.failure}")
                elif isinstance(outcome, (Succeeded, Skipped)):
                    out -= 1
                    cpu_s += outcome.usage.cpu_s
                if isinstance(outcome, Succeeded) and outcome.failures:
                    raise ProcflowError(f"on {name}: {outcome.failures[0][1]}")
                refs.setdefault(order[outcome.key], []).extend(_refs(outcome))
        wall_s = time.perf_counter() - began
        if name != "processes":
            cpu_s = time.process_time() - own
            wanted_s = _wanted_s() - wanted_s
        found = [ref for at in sorted(refs) for ref in refs[at]]
        rss = executor.memory(None).total_bytes if name == "processes" else 0
        return Round(wall_s, cpu_s, sum(ref.size_bytes for ref in found), wanted_s, rss), found

    def _forget(self, refs: Iterable[Ref]) -> None:
        for ref in refs:
            for stored in stored_in(ref):
                self._folder.free(stored)


def _wanted_s() -> float:
    """CPU seconds that the threads of this process have used, or were kept from using by others."""
    try:
        total = 0
        for name in os.listdir("/proc/self/task"):
            with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/self/task/{name}/schedstat") as file:
                used, queued, _ = file.read().split()
                total += int(used) + int(queued)
        return total / 1e9
    except (OSError, ValueError):
        # A kernel without these statistics.
        return time.process_time()


def _refs(outcome: Outcome) -> list[Ref]:
    """What an outcome published: values, and results of items."""
    outputs = getattr(outcome, "outputs", {})
    chunk = getattr(outcome, "chunk", None)
    return [*outputs.values(), *([chunk] if chunk is not None else [])]


def _input_bytes(pieces: list[Attempt]) -> list[int]:
    return [sum(ref.size_bytes for ref in piece.values.values()) for piece in pieces]


def _opened(ref: Ref) -> Any:
    from procflow.values.objects import unpack

    return unpack(ref)


def _compare(results: dict[str, list[Any]]) -> tuple[bool | None, str]:
    first = _flat(results.get("sequential", []))
    if not equal(first, _flat(results.get("before", []))):
        return None, "results differ from one call to the next, so they were not compared"
    for name in EXECUTORS[1:]:
        if name in results and not equal(first, _flat(results[name])):
            return False, f"{name} gave other results than one call after the other"
    return True, ""


def _flat(results: list[Any]) -> list[Any]:
    """Results of items come in chunks whose cuts depend on the executor."""
    return [member for each in results for member in (each if isinstance(each, list) else [each])]


def equal(one: Any, other: Any) -> bool:
    """Whether two results are the same; what can't be compared counts as the same."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, float):
        return one == other or (one != one and other != other)
    try:
        if hasattr(one, "equals"):
            return bool(one.equals(other))
        if hasattr(one, "dtype") and hasattr(one, "shape"):
            import numpy

            return bool(numpy.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))
        if getattr(type(one), "__eq__", None) is object.__eq__:
            own = getattr(one, "__dict__", None)
            return own is None or equal(own, other.__dict__)
        return bool(one == other)
    except Exception:
        return True
