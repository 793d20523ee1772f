"""``procflow plan`` and ``run --dry-run``: what a run would do, with which limits, and where these come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from procflow.cli.options import dialect_options, limit_options, param_options, params_of, reading_of
from procflow.cli.output import out, refused
from procflow.errors import PipelineError
from procflow.plaintext import counted, shortened
from procflow.units import Share, duration_text, size_text

if TYPE_CHECKING:
    from procflow.dialects import Reading
    from procflow.launch import Prepared

__all__ = ["plan", "print_plan"]


@click.command()
@click.argument("file", type=click.Path())
@param_options
@limit_options
@dialect_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as a JSON object.")
def plan(
    file: str,
    param: tuple[str, ...],
    params_file: Path | None,
    workers: int | str | Share | None,
    memory: int | Share | None,
    executor: str | None,
    timeout: float | None,
    state_dir: str | None,
    dialect: str | None,
    bind: tuple[str, ...],
    bindings: str | None,
    as_json: bool,
) -> int:
    """Show what a run of FILE would do: its steps in order, what each waits for, and all limits.

    What would be refused is listed instead, with exit code 2. Nothing is run.
    """
    limits = {"workers": workers, "memory": memory, "executor": executor, "timeout": timeout}
    reading = reading_of(dialect, bind, bindings)
    return print_plan(file, params_of(param, params_file), limits, state_dir, as_json=as_json, reading=reading)


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
    from procflow.launch import prepare
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.showing.plan import plan_data, plan_lines
    from procflow.storing.state_folder import locate

    try:
        loaded = load_pipeline(file, Pipeline, reading)
        ready = prepare(loaded.pipeline, source=loaded.source, params=params, **limits)
    except PipelineError as error:
        return refused(error, file, "it would not run")
    state = str(locate(state_dir, loaded.source.path))
    if as_json:
        out(json.dumps(plan_data(ready.graph, _figures(ready, state)), indent=2, default=str))
        return 0
    for line in plan_lines(ready.graph, _facts(ready, limits, state)):
        out(line)
    return 0


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
