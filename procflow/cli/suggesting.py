"""``procflow plan --suggest``: which steps of a sequence could run at once and what that would save; ``--apply`` writes it.

Times come from the simulation of the pipeline as it is and as it could be, by the same scheduler that runs it, with what
earlier runs taught. A file is written only where what was written loads and compiles to the graph that was suggested.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from procflow.cli.output import err, out, refused
from procflow.errors import PipelineError, ProcflowError
from procflow.plaintext import clean, counted

if TYPE_CHECKING:
    from procflow.dialects import Reading
    from procflow.launch import Prepared
    from procflow.learning.known import Knowledge

__all__ = ["asked", "print_suggestions"]


def asked(
    file: str,
    params: Mapping[str, Any],
    limits: Mapping[str, Any],
    state_dir: str | None,
    *,
    suggest: bool,
    **more: Any,
) -> int:
    """``print_suggestions`` for the options as they were given; ``limits`` may hold several numbers of workers."""
    if not suggest:
        raise click.UsageError("--apply goes with --suggest")
    workers = limits["workers"]
    if workers is not None and len(workers) > 1:
        raise click.UsageError("--suggest takes one number of workers")
    return print_suggestions(file, params, {**limits, "workers": workers[0] if workers else None}, state_dir, **more)


def print_suggestions(
    file: str, params: Mapping[str, Any], limits: Mapping[str, Any], state_dir: str | None, *, as_json: bool,
    reading: Reading | None = None, apply: bool = False,
) -> int:  # fmt: skip
    """Print what a graph would save, and write it into the file where asked to; the exit code."""
    from procflow.cli.plan import _known
    from procflow.launch import prepare
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.showing.suggest import suggestion_data, suggestion_lines, suggestions, with_graphs
    from procflow.storing.state_folder import locate

    try:
        loaded = load_pipeline(file, Pipeline, reading)

        def ready(pipeline: Pipeline) -> Prepared:
            return prepare(pipeline, source=loaded.source, params=params, **limits)

        before = ready(loaded.pipeline)
        known = _known(before, locate(state_dir, loaded.source.path))
        found = suggestions(loaded.pipeline)
        useful = [each for each in found if not each.refused]
        seconds = {each.loc: _expected_s(ready(with_graphs(loaded.pipeline, [each])), known) for each in useful}
        all_s = _expected_s(ready(with_graphs(loaded.pipeline, useful)), known)
    except PipelineError as error:
        return refused(error, file, "it would not run")
    source = (
        f"learned from {counted(known.runs, 'run')}" if known.runs else "a second for each step: it has not run yet"
    )
    about = f"{source}, with {counted(before.workers, 'worker')}"
    before_s = _expected_s(before, known)
    if as_json:
        out(json.dumps(suggestion_data(found, seconds, before_s, all_s, about), indent=2))
    else:
        if not found:
            out("there is no sequence of several steps in this pipeline")
        for line in suggestion_lines(found, seconds, before_s, all_s, about):
            if not (apply and line.startswith("--apply")):
                out(line)
    if not apply:
        return 0
    if not useful:
        err(f"{clean(file)}: left as it is")
        return 0
    if reading is not None and getattr(reading, "dialect", None):
        raise ProcflowError(f"{file} is in another format: procflow convert writes it in ours, which can be changed")
    _apply(Path(file), useful, ready)
    err(f"{clean(file)}: written")
    return 0


def _expected_s(ready: Prepared, known: Knowledge) -> float:
    from procflow.learning.simulation import simulate

    return simulate(
        ready.graph, known, workers=ready.workers, memory_bytes=ready.memory_bytes, cores=ready.machine.cpus
    ).wall_s


def _apply(path: Path, useful: list[Any], ready: Any) -> None:
    """Write the suggestions into the file, all or nothing."""
    from procflow.loader import load_text
    from procflow.model import Pipeline
    from procflow.showing.rewrite import CannotRewrite, rewritten
    from procflow.showing.suggest import with_graphs

    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    new = rewritten(text, useful)
    was = load_text(text, str(path), path.parent, Pipeline).pipeline
    try:
        now = load_text(new, str(path), path.parent, Pipeline).pipeline
        same = _shape(ready(now).graph.root) == _shape(ready(with_graphs(was, useful)).graph.root)
    except PipelineError as error:
        raise CannotRewrite(f"{path} was left as it is: the text as changed would not load: {error}") from error
    if not same:
        raise CannotRewrite(
            f"{path} was left as it is: the text as changed would mean another graph; change it by hand"
        )
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, os.stat(path).st_mode & 0o7777)
        os.replace(temporary, os.path.realpath(path))
    except BaseException:
        os.unlink(temporary)
        raise


def _shape(unit: Any) -> Any:
    """Who waits for whom, all the way down."""
    below = [*getattr(unit, "members", ()), *([unit.body] if hasattr(unit, "body") else ())]
    return (unit.label, getattr(unit, "kind", ""), unit.after, unit.strict, tuple(map(_shape, below)))
