"""Report: what ``procflow bench`` prints, as lines and as a tree for JSON. It measures and judges nothing."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from procflow.benching.cores import Cores
from procflow.benching.samples import EXECUTORS, Measured
from procflow.benching.verdict import DECLARED, Verdict
from procflow.plaintext import clean, counted
from procflow.units import duration_text

__all__ = ["Report", "Row", "data", "lines"]


@dataclass(frozen=True, slots=True)
class Row:
    """One step: where it is, what it is declared for, what was measured; or why it was left out."""

    label: str
    path: str
    loc: tuple[str | int, ...]
    declared: str
    pieces: int
    measured: Measured | None = None
    verdict: Verdict | None = None
    left_out: str = ""
    refused: str = ""
    """Why the change that the verdict asks for can't be made."""


@dataclass(frozen=True, slots=True)
class Report:
    """A whole measurement. ``run_s`` is how long the run took that made the inputs."""

    pipeline: str
    file: str
    workers: int
    cores: Cores
    start_s: float
    run_s: float
    rows: list[Row]

    @property
    def sure(self) -> bool:
        """Whether the machine was quiet enough to believe the figures."""
        return not self.cores.busy

    def changes(self) -> list[Row]:
        """Steps that another executor suits better, and may have it."""
        return [row for row in self.rows if row.verdict is not None and row.verdict.change and not row.refused]


def lines(report: Report) -> list[str]:
    """The table for people, and what to paste."""
    found = [_machine(report)]
    if not report.sure:
        found.append(
            f"machine busy, verdict unsure: {report.cores.usable:.1f} of {report.cores.seen} CPUs to be had, one process "
            f"alone varies by {report.cores.noise:.0%}; times with ~ may be wrong, try again when it is quiet"
        )
    found.append(f"inputs    one run, {duration_text(report.run_s)}; then each step alone, on warm workers")
    found.append("")
    found += _table(report)
    found += _notes(report)
    return found + _paste(report)


def _machine(report: Report) -> str:
    cores = report.cores
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return (
        f"machine   {counted(cores.seen, 'CPU')} seen, {cores.usable:.1f} usable now (probe {duration_text(cores.seconds)})"
        f" · python {platform.python_version()} ({'GIL' if gil else 'free-threaded: threads run Python at once'})"
        f" · {counted(report.workers, 'worker')}, BLAS 1 thread each · noise ±{cores.noise:.0%}"
        f" · a worker starts in {duration_text(report.start_s)}"
    )


def _table(report: Report) -> list[str]:
    heads = [
        "step",
        "pieces",
        "sequential",
        f"threads({report.workers})",
        f"processes({report.workers})",
        "best",
        "why",
    ]
    cells = [_cells(row, report.sure) for row in report.rows]
    measured = [row for row in report.rows if row.verdict is not None]
    if measured:
        cells.append(_totals(measured))
    widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(6)]

    def line(row: Sequence[str]) -> str:
        left = [row[0].ljust(widths[0]), row[1].rjust(widths[1])]
        return "  ".join(
            [*left, *(row[i].rjust(widths[i]) for i in (2, 3, 4)), row[5].ljust(widths[5]), row[6]]
        ).rstrip()

    ruled = [line(row) for row in cells]
    if measured:
        ruled.insert(-1, "─" * (sum(widths) + 30))
    return [line(heads), *ruled]


def _cells(row: Row, sure: bool) -> list[str]:
    name = clean(row.label)
    if row.measured is None or row.verdict is None:
        return [name, str(row.pieces), "", "", "", "-", row.left_out]
    m, verdict = row.measured, row.verdict
    base = m.wall_s("sequential")
    mark = "" if sure and verdict.sure else "~"
    texts = [_seconds(base)]
    for executor in EXECUTORS[1:]:
        wall = m.wall_s(executor)
        star = "◀" if verdict.best == executor or (verdict.best == "either" and executor == "processes") else " "
        texts.append(f"{_seconds(wall)} {mark}{base / max(wall, 1e-9):.1f}x {star}")
    return [name, str(m.pieces), *texts, mark + verdict.best, verdict.why]


def _totals(rows: list[Row]) -> list[str]:
    """All steps one after the other, each with all its pieces."""
    sums = {name: sum(row.verdict.whole_s[name] for row in rows if row.verdict is not None) for name in EXECUTORS}
    mixed = sum(min(row.verdict.whole_s.values()) for row in rows if row.verdict is not None)
    base = sums["sequential"]
    texts = [_seconds(base)] + [f"{_seconds(sums[n])} {base / max(sums[n], 1e-9):.1f}x  " for n in EXECUTORS[1:]]
    best = min(EXECUTORS, key=lambda name: sums[name])
    told = f"the best of each: {_seconds(mixed)}, {base / max(mixed, 1e-9):.1f}x sequential"
    if best != "sequential":
        told += f", {sums[best] / max(mixed, 1e-9):.1f}x all {best}"
    return ["all pieces, steps in turn", "", *texts, "mixed", told]


def _notes(report: Report) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in report.rows:
        for note in _notes_of(row):
            found.setdefault(note, []).append(clean(row.label))
    told = []
    for note, names in found.items():
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        told.append(f"{', '.join(names[:4])}{more}: {note}")
    return ["", *told] if told else []


def _notes_of(row: Row) -> Iterator[str]:
    m, verdict = row.measured, row.verdict
    if m is None or verdict is None:
        return
    if row.refused:
        yield f"{verdict.change} would be quicker, but {row.refused}"
    if m.cut:
        yield f"measured {m.cut} (--budget)"
    if m.same is False:
        yield f"{m.compared}: it must not be moved without knowing why"
    elif m.compared:
        yield m.compared
    if not verdict.sure:
        yield "rounds spread by more than 10%, so its times are marked ~"


def _paste(report: Report) -> list[str]:
    changes = report.changes()
    if not changes:
        return ["", "nothing to change: each step is declared for an executor that suits it"]
    hint = "(--apply writes it)" if report.sure else "(not sure: the machine is busy)"
    return [
        "",
        f"put this into {report.file}: {hint}",
        *(
            f"  {clean(row.label)}:  executor: {row.verdict.change}    # {row.declared} now"
            for row in changes
            if row.verdict is not None
        ),
    ]


def _seconds(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 0.995
        else f"{seconds * 1e3:.0f} ms"
        if seconds >= 0.01
        else f"{seconds * 1e3:.1f} ms"
    )


def data(report: Report) -> dict[str, Any]:
    """Everything, with the raw samples, for JSON and for ``--compare``."""
    rows = []
    for row in report.rows:
        tree: dict[str, Any] = {
            "step": row.label, "path": row.path, "executor": row.declared, "pieces_in_run": row.pieces,
        }  # fmt: skip
        if row.measured is None or row.verdict is None:
            rows.append({**tree, "left_out": row.left_out})
            continue
        m, verdict = row.measured, row.verdict
        rows.append(
            {
                **tree,
                "pieces": m.pieces,
                "input_bytes": m.input_bytes,
                "samples": {name: [asdict(each) for each in rounds] for name, rounds in m.rounds.items()},
                "median_s": {name: m.wall_s(name) for name in m.rounds},
                "cores": {name: m.cores(name) for name in m.rounds},
                "spread": m.spread(),
                "same_results": m.same,
                "note": m.compared,
                "cut": m.cut,
                "best": verdict.best,
                "kind": verdict.kind,
                "why": verdict.why,
                "change": verdict.change if not row.refused else None,
                "refused": row.refused,
                "sure": report.sure and verdict.sure,
            }
        )
    return {
        "format": 1,
        "pipeline": report.pipeline,
        "file": report.file,
        "python": platform.python_version(),
        "workers": report.workers,
        "machine": asdict(report.cores),
        "sure": report.sure,
        "worker_start_s": report.start_s,
        "run_s": report.run_s,
        "executors": DECLARED,
        "steps": rows,
    }
