"""The proof: each figure that procflow set out to reach, with the peers measured in the same run.

A row says what was asked, what was found, what the peers took, and whether the target is reached. The measuring is in the
``bench_*`` files; this one puts their answers side by side.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.table import Contender, measure, spread

__all__ = ["QUESTIONS", "Row", "failed", "rows"]

FACTORS = {"us": 1e6, "ms": 1e3, "s": 1.0, "%": 100.0, "B": 1.0, "MB": 1e-6, "x": 1.0}


EVEN = 0.005
"""Who is better by no more than this share is not ahead."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``ours``, ``target`` and ``peers`` are in SI units (seconds, bytes, shares); ``unit`` is what they are
    shown in. ``at_least`` turns the target round. ``note`` says what a reader has to know of how it was measured.

    Figures are medians; ``noise`` has half of what lies between their quartiles, as a share of them, by peer ("" is ours).
    ``failed`` says why there is no figure.
    """

    what: str
    unit: str
    ours: float
    target: float
    peers: dict[str, float] = field(default_factory=dict)
    at_least: bool = False
    note: str = ""
    noise: dict[str, float] = field(default_factory=dict)
    failed: str = ""

    @property
    def reached(self) -> bool:
        """Whether the target is met."""
        return not self.failed and (self.ours >= self.target if self.at_least else self.ours <= self.target)

    @property
    def ratio(self) -> float | None:
        """The best peer by ours: how many times as good; below 1 a peer is ahead. None without peers."""
        if not self.peers:
            return None
        best = max(self.peers.values()) if self.at_least else min(self.peers.values())
        return self.ours / best if self.at_least else best / max(self.ours, 1e-12)

    @property
    def ahead(self) -> list[str]:
        """The peers that are better than we are by more than ``EVEN``, the best first."""
        sign = -1 if self.at_least else 1
        better = [name for name, value in self.peers.items() if sign * (self.ours - value) > EVEN * self.ours]
        return sorted(better, key=lambda name: sign * self.peers[name])

    def text(self, value: float, name: str | None = None) -> str:
        """A value in the row's unit, with its noise where ``name`` says whose it is."""
        shown = value * FACTORS[self.unit]
        text = f"{shown:,.0f} {self.unit}" if abs(shown) >= 100 else f"{shown:.3g} {self.unit}"
        return f"{text} ±{self.noise[name]:.0%}" if name is not None and name in self.noise else text


def failed(what: str, why: str) -> Row:
    """A row without a figure."""
    return Row(what, "x", 0.0, 0.0, failed=why)


Times = dict[str, list[float]]


def _row(what: str, unit: str, times: Times, target: float, left_out: dict[str, str] | None = None, **more: Any) -> Row:
    """The row of what was measured, ours first."""
    ours = next(iter(times))
    noise = {("" if name == ours else name): spread(values) for name, values in times.items() if len(values) > 1}
    peers = {name: statistics.median(values) for name, values in times.items() if name != ours}
    note = "; ".join(
        [*filter(None, [more.pop("note", "")]), *(f"{name} left out: {why}" for name, why in (left_out or {}).items())]
    )
    return Row(what, unit, statistics.median(times[ours]), target, peers, noise=noise, note=note, **more)


def _each(times: Times, per: int | dict[str, int]) -> Times:
    """Seconds of a round by the units of work in it."""
    return {
        name: [value / (per if isinstance(per, int) else per[name]) for value in values]
        for name, values in times.items()
    }


def round_trip(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_roundtrip as bench
    from benchmarks.peers import round_trips

    own = {"ours": bench.procflow_executor, "pool": bench.procflow_pool}
    left_out: dict[str, str] = {}
    times = measure(own | round_trips(bench.empty, bench.TRIPS), 3 if quick else 15, dropped=left_out)
    found = _each(times, bench.TRIPS)
    pool = {"pool": found.pop("pool"), **{name: values for name, values in found.items() if name != "ours"}}
    yield _row("round trip of an empty step, idle workers", "us", found, 60e-6, left_out)
    best = min(statistics.median(values) for name, values in pool.items() if name != "pool")
    note = "target: no peer ahead"
    yield _row("the same through ProcessPool, with a future", "us", pool, best, left_out, note=note)


def throughput(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_throughput as bench
    from benchmarks.peers import many_tasks

    steps, tasks = (1_000, 500) if quick else (bench.TASKS, 2_000)
    left_out: dict[str, str] = {}
    few = steps // 10
    own: dict[str, Contender] = {
        "ours": partial(bench.procflow_steps, steps),
        "few": partial(bench.procflow_steps, few),
    }
    times = measure(own | many_tasks(bench.empty, tasks), 2 if quick else 7, dropped=left_out)
    more = {"ours": bench.one_more(times, steps, few)}
    del times["few"]
    found = _each(times, {"ours": steps} | dict.fromkeys(list(times)[1:], tasks))
    peers = {name: values for name, values in found.items() if name != "ours"}
    note = "ours without the start and end of a run, peers on warm pools"
    yield _row("an empty independent step more, journal on", "us", more | peers, 50e-6, left_out, note=note)
    note = f"ours with the start and end of a run of {steps:,} steps, workers' start included"
    yield _row("the same, all of a run", "us", found, 50e-6, left_out, note=note)


def items(quick: bool) -> Iterator[Row]:
    from benchmarks.bench_items import costs

    yield _row("an empty item of a map, adaptive batches", "us", costs(2 if quick else 7), 1e-6)


def arrays(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_arrays as bench

    size = 20 if quick else 200
    left_out: dict[str, str] = {}
    times = measure(bench.contenders(size), 3 if quick else 9, warm_up=2, dropped=left_out)
    alone = statistics.median(times.pop("work alone"))
    over = {name: [max(0.0, seconds - alone) for seconds in values] for name, values in times.items()}
    yield _row(f"{size} MB array to another worker, over the work alone", "ms", over, 0.06, left_out)


def cpu_bound(quick: bool) -> Iterator[Row]:
    from benchmarks.bench_cpu_bound import efficiency

    found = {"ours": efficiency(1 if quick else 9)}
    yield _row("CPU-bound branches, of N copies alone at once", "%", found, 0.97, at_least=True)


def makespan(quick: bool) -> Iterator[Row]:
    from benchmarks.bench_makespan import everything

    found = everything().values()
    worst = max(one["procflow"] / one["b-level"] for one in found)
    fifo = statistics.geometric_mean(one["fifo"] / one["b-level"] for one in found)
    bound = statistics.geometric_mean(one["procflow"] / one["bound"] for one in found)
    yield Row(
        "makespan of workflows, worst, of b-level", "x", worst, 1.03, {"b-level": 1.0, "fifo (mean)": fifo},
        note=f"{len(found)} cases; {bound:.3f} x the lower bound on average",
    )  # fmt: skip


def recovery(quick: bool) -> Iterator[Row]:
    from benchmarks.bench_recovery import times

    note = (
        "stdlib and loky lose the whole pool with all its tasks and are made anew; stdlib forks, which takes no start"
    )
    yield _row("from a kill to the next answer of that worker", "ms", times(3 if quick else 15), 0.2, note=note)


def command_line(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_cli as bench

    found = measure(bench.CONTENDERS, 3 if quick else 21, warm_up=2)
    base = f"python -c pass takes {statistics.median(found['python -c pass']) * 1e3:.0f} ms"
    for what, name, target in (
        ("procflow --help, whole process", "procflow --help", 0.12),
        ("a one-step run, whole process", "procflow run, a worker", 0.35),
    ):
        yield _row(what, "ms", {name: found[name]}, target, note=base)


def growth(quick: bool) -> Iterator[Row]:
    from benchmarks import bench_growth as bench

    for kind, sizes, most in (("tasks", bench.TASKS, 1024.0), ("items", bench.ITEMS, 100.0)):
        sizes = tuple(size // 20 for size in sizes) if quick else sizes
        found = [bench.growth(kind, sizes) for _ in range(1 if quick else 3)]
        last_us, declared = (statistics.median(one[key] for one in found) for key in ("last_us", "declared_bytes"))
        note = f"{last_us:.1f} us each; as declared, before the run, {declared:.0f} B each"
        held, bend = ({"ours": [one[key] for one in found]} for key in ("bytes", "bend"))
        yield _row(f"parent memory of a run for one of {sizes[-1]:,} {kind}", "B", held, most, note=note)
        yield _row(f"time of one of the last {kind}, by the average", "x", bend, 1.25, note="1: linear")


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


def rows(name: str, quick: bool) -> Iterator[Row]:
    """The rows of a question."""
    yield from QUESTIONS[name](quick)
