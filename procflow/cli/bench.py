"""``procflow bench``: every step sequentially, on threads and on processes; which suits it, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from procflow import units
from procflow.cli.options import dialect_options, param_options, params_of, reading_of, workers_option
from procflow.cli.output import err, out, refused
from procflow.errors import PipelineError, ProcflowError
from procflow.units import Share

if TYPE_CHECKING:
    from procflow.benching.capture import Work
    from procflow.benching.cores import Cores
    from procflow.benching.report import Report, Row
    from procflow.launch import Prepared
    from procflow.loading.source import Source

__all__ = ["bench"]


def _duration(text: str) -> float:
    try:
        return units.duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _share(text: str) -> float:
    try:
        return units.share(text).fraction
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("file", type=click.Path())
@param_options
@workers_option
@dialect_options
@click.option("--items", default=20, show_default=True, type=click.IntRange(1), help="Pieces of each step to measure.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), help="Rounds on each executor.")
@click.option("--budget", default="60s", show_default=True, type=_duration, help="Time for all steps together.")
@click.option("--include", metavar="STEP", multiple=True, help="Also repeat this command, request or writing query.")
@click.option("--apply", is_flag=True, help="Write the better executors into FILE, comments kept.")
@click.option("--json", "as_json", is_flag=True, help="Print everything, raw samples too, as a JSON object.")
@click.option("--compare", metavar="OLD.json", type=click.Path(exists=True, dir_okay=False), help="A former --json.")
@click.option("--fail-slower", metavar="SHARE", type=_share, help="With --compare: exit 1 if a step is slower by 20%.")
def bench(
    file: str,
    param: tuple[str, ...],
    params_file: Path | None,
    workers: int | str | Share | None,
    dialect: str | None,
    bind: tuple[str, ...],
    bindings: str | None,
    items: int,
    repeat: int,
    budget: float,
    include: tuple[str, ...],
    apply: bool,
    as_json: bool,
    compare: str | None,
    fail_slower: float | None,
) -> int:
    """Find the executor that suits each step of FILE: sequential, threads or processes.

    FILE is run once, in a state folder of its own, to make the inputs of every step; then each step is repeated alone on each
    executor, in turns, and the results are compared. Steps with effects outside (commands, requests, queries that
    write) are not repeated unless --include names them.
    """
    from procflow.launch import prepare
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline

    if fail_slower is not None and compare is None:
        raise click.UsageError("--fail-slower needs --compare OLD.json")
    old = _read_old(compare) if compare is not None else None
    try:
        loaded = load_pipeline(file, Pipeline, reading_of(dialect, bind, bindings))
        ready = prepare(loaded.pipeline, source=loaded.source, params=params_of(param, params_file), workers=workers)
    except PipelineError as error:
        return refused(error, file, "nothing was measured")
    _check_names(ready, include)
    report = _measure(ready, file, items, repeat, budget, set(include), loaded.source)
    from procflow.benching.report import data, lines

    tree = data(report)
    for line in [json.dumps(tree, indent=1)] if as_json else lines(report):
        out(line)
    if apply:
        _apply(report, loaded.source)
    return _compared(old, tree, compare, fail_slower, report.sure, as_json)


def _check_names(ready: Prepared, include: tuple[str, ...]) -> None:
    from procflow.graph import TaskUnit, walk

    known = {name for unit in walk(ready.graph.root) if isinstance(unit, TaskUnit) for name in (unit.name, unit.label)}
    for name in include:
        if name not in known:
            raise click.UsageError(f"--include {name}: there is no such step; there are {', '.join(sorted(known))}")


def _measure(
    ready: Prepared, file: str, items: int, repeat: int, budget_s: float, include: set[str], source: Source
) -> Report:
    """Probe, run once, then step by step."""
    from procflow.benching import capture
    from procflow.benching.cores import probe
    from procflow.benching.report import Report, Row
    from procflow.benching.samples import Bench
    from procflow.pool import ProcessPool
    from procflow.values.object_files import folder

    with ProcessPool(ready.machine.cpus) as pool:
        cores = probe(pool, ready.machine.cpus)
    err(f"{file}: running it once to make the inputs of its steps")
    with capture.captured(ready) as run, _quiet(), Bench(ready.workers, folder(run.objects)) as on:
        todo = [work for work in run.works if not work.repeats or include & {work.unit.name, work.unit.label}]
        share_s = budget_s / max(1, len(todo))
        rows: list[Row] = []
        for work in run.works:
            unit = work.unit
            row = Row(unit.label, unit.path, unit.loc, unit.executor, work.pieces)
            if work not in todo:
                rows.append(_with(row, left_out=f"not repeated: {work.repeats} (--include {unit.name})"))
                continue
            err(f"{file}: measuring {unit.label}")
            rows.append(_row(row, work, on, cores, items, repeat, share_s))
        rows = [_allowed(row, ready, source) for row in rows]
        return Report(ready.pipeline.name, file, ready.workers, cores, on.start_s, run.seconds, rows)


def _row(row: Row, work: Work, on: Any, cores: Cores, items: int, repeat: int, share_s: float) -> Row:
    from procflow.benching.verdict import judge

    pieces = work.sample(items, on.slots)
    try:
        measured = on.measure(pieces, repeat, share_s, work.seconds / max(1, work.pieces))
    except ProcflowError as error:
        return _with(row, left_out=f"not measured: {error}"[:300])
    verdict = judge(
        measured,
        pieces=work.pieces,
        declared=work.unit.executor,
        slots=on.slots,
        usable=cores.usable,
        start_s=on.start_s,
        is_map=work.is_map,
    )
    return _with(row, measured=measured, verdict=verdict)


def _with(row: Row, **fields: Any) -> Row:
    from dataclasses import replace

    return replace(row, **fields)


@contextmanager
def _quiet() -> Iterator[None]:
    """What steps print again and again is of no use here."""
    import contextlib
    import os

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), suppress(ValueError):
        yield


def _allowed(row: Row, ready: Prepared, source: Source) -> Row:
    """The row, with the reason where its step can't have the executor that suits it."""
    from procflow.loading.source import Source as Plain

    if row.verdict is None or row.verdict.change is None:
        return row
    if row.measured is not None and row.measured.same is False:
        return _with(row, refused="its results differ there")
    if type(source) is not Plain or source.path is None:
        return _with(row, refused="the file is not in procflow's own language (procflow convert)")
    if ready.graph.files and any(row.loc[: len(at)] == at for at in ready.graph.files if at):
        return _with(row, refused="the step is in the file of a type: pipeline step")
    try:
        _edited(_text(source.path), source, [row])
    except PipelineError as error:
        return _with(row, refused=error.problems[0].message)
    except ProcflowError as error:
        return _with(row, refused=str(error))
    return row


def _edited(text: str, source: Source, rows: list[Row]) -> str:
    """The text with the changes of the rows; what it has become must be a pipeline that may run here."""
    from procflow.benching.edit import with_executor
    from procflow.launch import prepare
    from procflow.loader import load_text
    from procflow.model import Pipeline

    assert source.path is not None
    for row in rows:
        assert row.verdict is not None
        assert row.verdict.change is not None
        loaded = load_text(text, source.name, source.folder, Pipeline)
        text = with_executor(text, loaded.source, row.loc, row.verdict.change)
    loaded = load_text(text, source.name, source.folder, Pipeline)
    prepare(loaded.pipeline, source=loaded.source)
    return text


def _text(path: Path) -> str:
    """With the ends of its lines as they are."""
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def _apply(report: Report, source: Source) -> None:
    rows = report.changes()
    if not rows:
        return
    if not report.sure:
        err("--apply: the machine is busy, so nothing was written; try again when it is quiet")
        return
    assert source.path is not None
    import os
    import shutil

    path = source.path.resolve()
    edited = _edited(_text(path), source, rows)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w", encoding="utf-8", newline="") as file:
            file.write(edited)
        shutil.copymode(path, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    err(f"wrote {len(rows)} change{'s' if len(rows) != 1 else ''} to {source.path}")


def _read_old(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--compare {path}: it can't be read: {error}") from None


def _compared(
    old: Any, tree: dict[str, Any], path: str | None, fail_slower: float | None, sure: bool, as_json: bool
) -> int:
    """Say what has changed; 1 where a step is slower by more than was allowed."""
    from procflow.benching import compare

    if old is None or path is None:
        return 0
    say = err if as_json else out
    try:
        found = compare.changes(old, tree)
    except ProcflowError as error:
        raise click.UsageError(f"--compare {path}: {error}") from None
    say("")
    for line in compare.lines(found, path):
        say(line)
    worse = compare.slower(found, fail_slower) if fail_slower is not None else []
    if not worse:
        return 0
    if not (sure and old.get("sure", True)):
        err("--fail-slower: one of the two measurements was made on a busy machine, so it is not judged")
        return 0
    err(f"--fail-slower: {', '.join(f'{each.step} on {each.executor}' for each in worse)}")
    return 1
