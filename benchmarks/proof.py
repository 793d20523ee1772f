"""The proof: each figure that procflow set out to reach, with the peers measured in the same run.

A row says what was asked, what was found, what the peers took, and whether the target is reached. The measuring is in the
``bench_*`` files; this one puts their answers side by side.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["QUESTIONS", "Row", "rows"]

FACTORS = {"us": 1e6, "ms": 1e3, "s": 1.0, "%": 100.0, "B": 1.0, "MB": 1e-6, "x": 1.0}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``ours``, ``target`` and ``peers`` are in SI units (seconds, bytes, shares); ``unit`` is what they are
    shown in. ``at_least`` turns the target round. ``note`` says what a reader has to know of how it was measured.
    """

    what: str
    unit: str
    ours: float
    target: float
    peers: dict[str, float] = field(default_factory=dict)
    at_least: bool = False
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return self.ours >= self.target if self.at_least else self.ours <= self.target

    @property
    def ratio(self) -> float | None:
        """The best peer by ours: how many times as good; below 1 a peer is ahead. None without peers."""
        if not self.peers:
            return None
        best = max(self.peers.values()) if self.at_least else min(self.peers.values())
        return self.ours / best if self.at_least else best / max(self.ours, 1e-12)

    @property
    def best_peer(self) -> str:
        """Its name."""
        pick = max if self.at_least else min
        return pick(self.peers, key=lambda name: self.peers[name])

    def text(self, value: float) -> str:
        """A value in the row's unit."""
        shown = value * FACTORS[self.unit]
        return f"{shown:,.0f} {self.unit}" if abs(shown) >= 100 else f"{shown:.3g} {self.unit}"


def _medians(times: dict[str, list[float]], per: int = 1) -> dict[str, float]:
    return {name: statistics.median(values) / per for name, values in times.items()}


def round_trip(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_roundtrip as bench
    from benchmarks.peers import round_trips
    from benchmarks.table import measure

    own = {"ours": bench.procflow_executor, "pool": bench.procflow_pool}
    found = _medians(measure(own | round_trips(bench.empty, bench.TRIPS), 3 if quick else 9), bench.TRIPS)
    ours, pool = found.pop("ours"), found.pop("pool")
    yield Row("round trip of an empty step, idle workers", "us", ours, 60e-6, found)
    yield Row(
        "the same through ProcessPool, with a future",
        "us",
        pool,
        min(found.values()),
        found,
        note="target: no peer ahead",
    )


def throughput(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_throughput as bench
    from benchmarks.peers import many_tasks
    from benchmarks.table import measure

    tasks = 500 if quick else 2_000
    rounds = 1 if quick else 3
    ours = _medians(measure({"ours": bench.procflow_steps}, rounds), bench.TASKS)["ours"]
    yield Row(
        "an empty independent step, journal on", "us", ours, 50e-6,
        _medians(measure(many_tasks(bench.empty, tasks), rounds), tasks),
        note="ours with the start and end of a run, peers on warm pools",
    )  # fmt: skip


def items(quick: bool) -> Iterator[Row]:
    from benchmarks.bench_items import costs

    found = _medians(costs(2 if quick else 5))
    yield Row("an empty item of a map, adaptive batches", "us", found.pop("procflow, map"), 1e-6, found)


def arrays(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_arrays as bench
    from benchmarks.table import measure

    size = 20 if quick else 200
    found = _medians(measure(bench.contenders(size), 3 if quick else 7, warm_up=2))
    alone = found.pop("work alone")
    over = {name: max(0.0, seconds - alone) for name, seconds in found.items()}
    yield Row(
        f"{size} MB array to another worker, over the work alone", "ms", over.pop("procflow, executor"), 0.06, over,
    )  # fmt: skip


def cpu_bound(quick: bool) -> Iterator[Row]:
    from benchmarks.bench_cpu_bound import efficiency

    yield Row("CPU-bound branches, of N copies alone at once", "%", efficiency(1 if quick else 7), 0.97, at_least=True)


def makespan(quick: bool) -> Iterator[Row]:
    from benchmarks.bench_makespan import everything

    found = everything().values()
    worst = max(one["procflow"] / one["b-level"] for one in found)
    fifo = statistics.geometric_mean(one["fifo"] / one["b-level"] for one in found)
    bound = statistics.geometric_mean(one["procflow"] / one["bound"] for one in found)
    yield Row(
        "makespan of workflows, worst, of b-level", "x", worst, 1.03, {"fifo (mean)": fifo},
        note=f"{len(found)} cases; {bound:.3f} x the lower bound on average",
    )  # fmt: skip


def recovery(quick: bool) -> Iterator[Row]:
    from benchmarks.bench_recovery import times

    found = _medians(times(3 if quick else 9))
    ours = found.pop("procflow")
    yield Row(
        "from a kill to the next answer of that worker", "ms", ours, 0.2, found,
        note="stdlib and loky lose the whole pool with all its tasks and are made anew; stdlib forks, which takes no start",
    )  # fmt: skip


def command_line(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_cli as bench
    from benchmarks.table import measure

    found = _medians(measure(bench.CONTENDERS, 3 if quick else 11, warm_up=2))
    base = f"python -c pass takes {found['python -c pass'] * 1e3:.0f} ms"
    yield Row("procflow --help, whole process", "ms", found["procflow --help"], 0.12, note=base)
    yield Row("a one-step run, whole process", "ms", found["procflow run, a worker"], 0.35, note=base)


def growth(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_growth as bench

    for kind, sizes, most in (("tasks", bench.TASKS, 1024.0), ("items", bench.ITEMS, 100.0)):
        found = bench.growth(kind, tuple(size // 20 for size in sizes) if quick else sizes)
        note = f"{found['last_us']:.1f} us each; as declared, before the run, {found['declared_bytes']:.0f} B each"
        yield Row(f"parent memory of a run for one of {sizes[-1]:,} {kind}", "B", found["bytes"], most, note=note)
        yield Row(f"time of one of the last {kind}, by the average", "x", found["bend"], 1.25, note="1: linear")


def large_value(quick: bool) -> Iterator[Row]:
    from benchmarks.bench_large_value import through_five_steps

    size = 100 if quick else 1000
    found = through_five_steps(size)
    steps = max(found["step_bytes"])
    yield Row(
        f"{size} MB through five steps: parent's growth", "MB", max(0.0, found["parent_bytes"]), 30e6,
        note=f"steps that read it grow by {max(0.0, steps) / 1e6:.1f} MB, {found['disk_bytes'] / 1e6:.0f} MB on disk",
    )  # fmt: skip


QUESTIONS: dict[str, Callable[[bool], Iterator[Row]]] = {
    made.__name__: made
    for made in (
        *(round_trip, throughput, items, arrays, cpu_bound, makespan),
        *(recovery, command_line, growth, large_value),
    )
}


def rows(names: list[str], quick: bool) -> Iterator[Row]:
    """The rows of the questions named, one after the other."""
    for name in names:
        yield from QUESTIONS[name](quick)
