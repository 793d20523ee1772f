"""``procflow plan`` and ``run --dry-run``: what a run would do, with which limits, and where these come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from procflow.cli.options import (
    dialect_options,
    limit_options,
    many_workers_option,
    param_options,
    params_of,
    reading_of,
)
from procflow.cli.output import out, refused
from procflow.errors import PipelineError, StoreError
from procflow.plaintext import clean, counted, shortened
from procflow.units import Share, duration_text, size_text

if TYPE_CHECKING:
    from procflow.dialects import Reading
    from procflow.graph import Unit
    from procflow.launch import Prepared
    from procflow.learning.known import Knowledge

__all__ = ["plan", "print_plan", "print_table"]


@click.command()
@click.argument("file", type=click.Path())
@param_options
@many_workers_option
@limit_options
@dialect_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as a JSON object.")
@click.option(
    "--suggest", is_flag=True, help="Which steps of a sequence could run at once, and what a graph would save."
)
@click.option("--apply", "apply_it", is_flag=True, help="With --suggest: write it into FILE, comments and all.")
def plan(
    file: str,
    param: tuple[str, ...],
    params_file: Path | None,
    workers: tuple[int | str | Share, ...] | None,
    memory: int | Share | None,
    executor: str | None,
    timeout: float | None,
    state_dir: str | None,
    dialect: str | None,
    bind: tuple[str, ...],
    bindings: str | None,
    as_json: bool,
    suggest: bool,
    apply_it: bool,
) -> int:
    """Show what a run of FILE would do: its steps in order, what each waits for, and all limits.

    Once it has run: how long it is expected to take, its critical path, its memory. With several numbers of workers
    (-j 1,2,4,64), what each would bring, on a machine with so many cores and the memory of --memory.

    What would be refused is listed instead, with exit code 2. Nothing is run.
    """
    limits = {"workers": workers, "memory": memory, "executor": executor, "timeout": timeout}
    reading = reading_of(dialect, bind, bindings)
    given = params_of(param, params_file)
    if suggest or apply_it:
        from procflow.cli.suggesting import asked

        return asked(file, given, limits, state_dir, suggest=suggest, as_json=as_json, reading=reading, apply=apply_it)
    if workers is not None and len(workers) > 1:
        return print_table(file, given, limits, state_dir, as_json=as_json, reading=reading)
    limits["workers"] = workers[0] if workers is not None else None
    return print_plan(file, given, limits, state_dir, as_json=as_json, reading=reading)


def print_plan(
    file: str,
    params: Mapping[str, Any],
    limits: Mapping[str, Any],
    state_dir: str | None,
    *,
    as_json: bool,
    reading: Reading | None = None,
) -> int:
    """Print the plan of a file; the exit code."""
    from procflow.learning.simulation import simulate
    from procflow.showing import forecast
    from procflow.showing.plan import plan_data, plan_lines

    try:
        ready, state = _prepared(file, params, limits, state_dir, reading)
    except PipelineError as error:
        return refused(error, file, "it would not run")
    known, graph, budget = _known(ready, state), ready.graph, ready.memory_bytes
    played = None
    if known.runs:
        played = simulate(graph, known, workers=ready.workers, memory_bytes=budget, cores=ready.machine.cpus)
    if as_json:
        figures = _figures(ready, str(state)) | forecast.expected_data(graph, known, played)
        data = plan_data(graph, figures, lambda unit: forecast.learned_data(unit, known))
        out(json.dumps(data, indent=2, default=str))
        return 0
    facts = _facts(ready, limits, str(state)) + forecast.expected_facts(graph, known, played, budget)
    clocks = forecast.timeouts(graph, known)

    def more(unit: Unit) -> str:
        clock = f"timeout {clocks[unit.label]}" if unit.label in clocks else ""
        return "; ".join(filter(None, (clock, forecast.learned_text(unit, known))))

    for line in plan_lines(graph, facts, more):
        out(line)
    return 0


def print_table(
    file: str,
    params: Mapping[str, Any],
    limits: Mapping[str, Any],
    state_dir: str | None,
    *,
    as_json: bool,
    reading: Reading | None = None,
) -> int:
    """Print what each of several numbers of workers would bring; the exit code."""
    from procflow.launch import workers_for
    from procflow.learning.simulation import simulate
    from procflow.machine.resources import probe
    from procflow.showing import forecast

    machine = probe()
    counts = sorted({workers_for(machine, each) for each in limits["workers"]})
    memory = limits["memory"]
    asked = memory if isinstance(memory, int) else None
    # A size may be that of another machine, which this one need not have.
    here = {**limits, "workers": counts[-1], "memory": memory if asked is None else None}
    try:
        ready, state = _prepared(file, params, here, state_dir, reading)
    except PipelineError as error:
        return refused(error, file, "it would not run")
    known, graph, budget = _known(ready, state), ready.graph, asked or ready.memory_bytes
    rows = [
        forecast.refused(graph, count, budget) or simulate(graph, known, workers=count, memory_bytes=budget)
        for count in counts
    ]
    if as_json:
        data = {"pipeline": graph.name, "memory_bytes": budget, "runs": known.runs, "unusable": list(known.unusable)}
        out(json.dumps({**data, "simulated": forecast.table_data(rows)}, indent=2, default=str))
        return 0
    source = f"learned from {counted(known.runs, 'run')}" if known.runs else "without history"
    out(f"{clean(graph.name)}: simulated, {source}; a core for each worker, {size_text(budget)} for all")
    if "threads" in graph.executors:
        out(
            "threads are taken to work at once: those that hold the interpreter's lock don't, so they take longer than this"
        )
    out("")
    for line in forecast.table_lines(rows, known):
        out(line)
    return 0


def _prepared(
    file: str, params: Mapping[str, Any], limits: Mapping[str, Any], state_dir: str | None, reading: Reading | None
) -> tuple[Prepared, Path]:
    from procflow.launch import prepare
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.storing.state_folder import locate

    loaded = load_pipeline(file, Pipeline, reading)
    ready = prepare(loaded.pipeline, source=loaded.source, params=params, **limits)
    return ready, locate(state_dir, loaded.source.path)


def _known(ready: Prepared, state: Path) -> Knowledge:
    """What earlier runs teach; a history that can't be used is told in it."""
    from procflow.learning.known import Knowledge
    from procflow.resuming.continuing import open_session
    from procflow.storing.learned import learned
    from procflow.storing.state_folder import StateFolder, lock_name

    try:
        folder = StateFolder.open(state, create=False)
    except StoreError as error:
        return Knowledge(unusable=(str(error),) if state.exists() else ())
    lock = lock_name(ready.source.path if ready.source is not None else None, ready.pipeline.name)
    with open_session(ready, folder, lock, None) as session:
        return learned(folder, ready.graph, lock, session.prints)


def _figures(ready: Prepared, state: str) -> dict[str, Any]:
    return {
        "workers": ready.workers,
        "memory_bytes": ready.memory_bytes,
        "timeout_s": ready.graph.root.timeout_s,
        "executors": sorted(ready.graph.executors),
        "params": dict(ready.graph.params),
        "state_dir": state,
    }


def _facts(ready: Prepared, limits: Mapping[str, Any], state: str) -> list[tuple[str, str]]:
    graph, declared = ready.graph, ready.pipeline.limits
    workers = limits["workers"] if limits["workers"] is not None else declared.workers
    memory = limits["memory"] if limits["memory"] is not None else declared.memory
    facts = [
        ("workers", f"{ready.workers} ({_workers_source(ready, workers, limits['workers'] is not None)})"),
        ("memory", f"{size_text(ready.memory_bytes)} ({_memory_source(ready, memory, limits['memory'] is not None)})"),
        ("executor", ", ".join(sorted(graph.executors))),
    ]
    if graph.root.timeout_s is not None:
        source = "--timeout" if limits["timeout"] is not None else "limits.timeout"
        facts.append(("timeout", f"{duration_text(graph.root.timeout_s)} ({source})"))
    if graph.resources:
        facts.append(("resources", ", ".join(f"{name}={amount:g}" for name, amount in graph.resources.items())))
    if graph.params:
        facts.append(("params", ", ".join(f"{name}={shortened(repr(v), 60)}" for name, v in graph.params.items())))
    return [*facts, ("state", state)]


def _workers_source(ready: Prepared, workers: Any, is_option: bool) -> str:
    cores = f"{counted(ready.machine.cpus, 'usable core')}, by {ready.machine.cpus_source}"
    if isinstance(workers, Share):
        return f"-j {workers} of {cores}"
    if workers == "auto":
        return f"auto: {cores}"
    return f"{'-j' if is_option else 'limits.workers'}; {cores}"


def _memory_source(ready: Prepared, memory: Any, is_option: bool) -> str:
    name = "--memory" if is_option else "limits.memory"
    whole = f"{size_text(ready.machine.memory_bytes)} {ready.machine.memory_source}"
    return f"{name}: {memory} of {whole}" if isinstance(memory, Share) else f"{name}; of {whole}"
