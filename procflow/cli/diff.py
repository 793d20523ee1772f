"""``procflow diff``: two runs of a pipeline side by side: times, memory, how steps ended, and whether their values are equal.

Reads the journal only. Values are compared by the digests of what was stored, so a value whose bytes differ though it is equal
(a set, a dictionary in another order) counts as another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from procflow.cli.output import out
from procflow.cli.reading import format_option, found_run, json_text, opened, state_option, table, time_text
from procflow.plaintext import clean, counted
from procflow.ref import Inline, Ref, Stored
from procflow.storing.history import History, RunRow
from procflow.units import size_text

__all__ = ["diff"]

NOISE = 0.1
"""A time or a peak that differs by less is called the same."""


@dataclass(slots=True)
class _Step:
    """A step in one run: all its attempts together."""

    status: str = ""
    attempts: int = 0
    items: int = 0
    work_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    values: dict[str, str] = field(default_factory=dict)
    """Digest of each value, by item and name; empty text where it can't be told."""


@click.command()
@click.argument("before")
@click.argument("after")
@click.option("--all", "everything", is_flag=True, help="Also the steps that differ in nothing.")
@format_option
@state_option
def diff(before: str, after: str, everything: bool, form: str, state_dir: str | None) -> int:
    """Compare two runs, each an id, the beginning of one, or last: times, memory, how steps ended, and their values.

    The exit code is 1 where a step ended otherwise or has another value, else 0, whatever the times.
    """
    with opened(state_dir) as past:
        runs = [found_run(past, None if name == "last" else name) for name in (before, after)]
        old, new = (_steps(past, run) for run in runs)
    labels = list(dict.fromkeys([*old, *new]))
    rows = [(label, old.get(label), new.get(label)) for label in labels]
    changed = sum(1 for _, one, two in rows if _ended(one) != _ended(two) or _values(one, two) == "other")
    if form == "json":
        steps = [
            {"label": n, "before": a and asdict(a), "after": b and asdict(b), "values": _values(a, b)}
            for n, a, b in rows
        ]
        out(json_text({"before": asdict(runs[0]), "after": asdict(runs[1]), "steps": steps, "changed": changed}))
        return int(changed > 0)
    for line in _lines(runs[0], runs[1], rows, everything):
        out(line)
    return int(changed > 0)


def _steps(past: History, run: RunRow) -> dict[str, _Step]:
    found: dict[str, _Step] = {}
    labels: dict[str, str] = {}
    for row in past.steps(run.run_id):
        labels[row.path] = row.label
        if row.kind == "copied":
            continue
        step = found.setdefault(row.label, _Step())
        if not row.item:
            step.status = "succeeded" if row.kind == "kept" else row.status
        elif row.kind == "item":
            step.status = step.status or row.status
        if row.members is None and row.attempt and row.kind == "task":
            step.attempts += 1
            step.items += row.count or 0 if row.item else 0
            step.work_s += row.wall_s or 0.0
            step.cpu_s += row.cpu_s or 0.0
            step.peak_bytes = max(step.peak_bytes, row.peak_rss_bytes or 0)
    for output in past.outputs(run.run_id):
        label = labels.get(output.path, output.path)
        found.setdefault(label, _Step()).values[f"{output.item}:{output.name}"] = _digest(output.ref)
    return found


def _digest(ref: Ref) -> str:
    """What tells a value from another without opening it; empty where nothing does."""
    if isinstance(ref, Inline):
        digest = hashlib.sha256(ref.data)
        for buffer in ref.buffers:
            digest.update(buffer)
        return digest.hexdigest()
    if isinstance(ref, Stored):
        return ref.digest.hex()
    return ""


def _ended(step: _Step | None) -> str:
    return step.status if step is not None else "not there"


def _values(one: _Step | None, two: _Step | None) -> str:
    """``same``, ``other``, or nothing where it can't be told (items in other batches, no values)."""
    if one is None or two is None or not one.values or not two.values:
        return ""
    if any(not digest for digest in (*one.values.values(), *two.values.values())):
        return ""
    if one.values == two.values:
        return "same"
    # Chunks of a map depend on how its items were dealt out.
    chunks = any(name.endswith(":") for name in (*one.values, *two.values))
    return "" if chunks and one.values.keys() != two.values.keys() else "other"


def _lines(
    old: RunRow, new: RunRow, rows: list[tuple[str, _Step | None, _Step | None]], everything: bool
) -> Iterator[str]:
    yield f"before  {clean(old.run_id)}  {old.status}  {time_text(old.wall_s)}  {counted(old.workers, 'worker')}"
    yield (
        f"after   {clean(new.run_id)}  {new.status}  {time_text(new.wall_s)}  {counted(new.workers, 'worker')}"
        + _change(old.wall_s, new.wall_s)
    )
    if old.params != new.params:
        names = sorted(n for n in {*old.params, *new.params} if old.params.get(n) != new.params.get(n))
        yield "params  " + ", ".join(f"{clean(n)}: {old.params.get(n)!r} -> {new.params.get(n)!r}" for n in names)
    shown = [cells for label, a, b in rows if (cells := _cells(label, a, b, everything))]
    if not shown:
        yield "no step differs"
        return
    yield ""
    yield from table(("STEP", "ENDED", "TIME", "", "", "MEMORY", "", "VALUES"), shown, right=(2, 3, 5))


def _cells(label: str, one: _Step | None, two: _Step | None, everything: bool) -> tuple[str, ...] | None:
    ended = _ended(one) if _ended(one) == _ended(two) else f"{_ended(one)} -> {_ended(two)}"
    old, new = one or _Step(), two or _Step()
    time_change, memory_change = _change(old.work_s, new.work_s), _change(old.peak_bytes, new.peak_bytes)
    values = _values(one, two)
    if not everything and not time_change and not memory_change and values != "other" and _ended(one) == _ended(two):
        return None
    sizes = [size_text(step.peak_bytes) if step.peak_bytes else "" for step in (old, new)]
    memory = sizes[1] if sizes[0] == sizes[1] else f"{sizes[0]} -> {sizes[1]}"
    return (label, ended, time_text(old.work_s), time_text(new.work_s), time_change, memory, memory_change, values)


def _change(old: Any, new: Any) -> str:
    """``  +12 %``, nothing where it is the same or can't be told; short times are noise."""
    if not old or not new or abs(new - old) <= NOISE * old or max(old, new) < 0.05:
        return ""
    return f"  {new / old - 1:+.0%}" if new < 10 * old else f"  x{new / old:.0f}"
