"""``procflow validate``: everything that can be found wrong with a file without running it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from procflow.cli.options import dialect_options, limit_options, param_options, params_of, reading_of
from procflow.cli.output import out, refused
from procflow.errors import PipelineError, Problem, dotted
from procflow.plaintext import clean, counted
from procflow.units import Share

if TYPE_CHECKING:
    from procflow.launch import Prepared

__all__ = ["validate"]


@click.command()
@click.argument("file", type=click.Path())
@param_options
@limit_options
@dialect_options
@click.option("--deep", is_flag=True, help="Import the functions, check what they take, and connect to the sources.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as a JSON object.")
def validate(
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
    deep: bool,
    as_json: bool,
) -> int:
    """Check the pipeline in FILE: its text, names and references, functions, and limits of this machine.

    Nothing is run, and no module of yours is imported unless with --deep. All problems are listed at once.
    """
    from procflow.launch import prepare
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.showing.plan import leaf_count

    try:
        loaded = load_pipeline(file, Pipeline, reading_of(dialect, bind, bindings))
        params = params_of(param, params_file)
        ready = prepare(
            loaded.pipeline,
            source=loaded.source,
            params=params,
            workers=workers,
            memory=memory,
            executor=executor,
            timeout=timeout,
        )
        if deep:
            _check_deep(ready)
    except PipelineError as error:
        if as_json:
            out(json.dumps({"file": file, "ok": False, "problems": [_plain(p) for p in error.problems]}, indent=2))
            return error.exit_code
        return refused(error, file, "")
    steps = leaf_count(ready.graph)
    if as_json:
        out(
            json.dumps(
                {"file": file, "ok": True, "pipeline": ready.graph.name, "steps": steps, "problems": []}, indent=2
            )
        )
    else:
        out(f"{clean(file)}: ok, {counted(steps, 'step')}")
    return 0


def _check_deep(ready: Prepared) -> None:
    """Raises ``PipelineError`` with what only imports and connections show."""
    from procflow import secrets
    from procflow.checking.deep import deep_check

    with secrets.known({name: os.environ[name] for name in ready.graph.secrets}):
        problems = deep_check(ready.graph)
    if problems:
        raise PipelineError(ready.source.locate(problems) if ready.source is not None else problems)


def _plain(problem: Problem) -> dict[str, Any]:
    place = problem.place
    return {
        "file": place.file if place is not None else None,
        "line": place.line if place is not None else None,
        "column": place.column if place is not None else None,
        "path": dotted(problem.loc),
        "message": problem.message,
        "hint": problem.hint,
    }
