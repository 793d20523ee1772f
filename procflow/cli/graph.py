"""``procflow graph``: a pipeline drawn as a tree, as Mermaid or DOT text, or as SVG; with ``--run``, how a run of it went."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from procflow.cli.options import dialect_options, param_options, params_of, reading_of
from procflow.cli.output import err, out, refused
from procflow.errors import PipelineError
from procflow.plaintext import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from procflow.loader import Loaded
    from procflow.model import Pipeline
    from procflow.showing.shape import Outcome, Part

__all__ = ["graph"]

FORMATS = ("text", "mermaid", "dot", "svg")


@click.command()
@click.argument("file", type=click.Path(), required=False)
@param_options
@dialect_options
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="mermaid", show_default=True, help="What to draw."
)
@click.option("--run", metavar="RUN", help="Draw this run as it was, coloured by outcome; last is the last one.")
@click.option("--state-dir", metavar="DIR", type=click.Path(), help="State folder of the run.")
@click.option("-o", "--output", metavar="F", type=click.Path(dir_okay=False), help="Write to this file, not to stdout.")
def graph(file: str | None, form: str, run: str | None, state_dir: str | None, output: str | None, **given: Any) -> int:
    """Draw the pipeline in FILE: blocks as boxes, the order of steps as arrows.

    \b
      procflow graph nightly.yaml                       Mermaid, as GitHub and GitLab show it
      procflow graph nightly.yaml --format text         a tree, for the terminal
      procflow graph nightly.yaml --format dot | dot -Tpdf > nightly.pdf
      procflow graph --run last --format svg -o run.svg

    With --run no FILE is needed: the run kept what it looked like. Neither functions nor the limits of this machine are
    looked at: see validate.
    """
    outcomes = None
    try:
        if run is not None:
            root, outcomes = _of_run(run, state_dir, file, given)
        elif file is None:
            raise click.UsageError("name the FILE of a pipeline, or a run with --run")
        else:
            root = _of_file(file, given)
    except PipelineError as error:
        return refused(error, file or "", "nothing was drawn")
    return _tell(_drawn(root, outcomes, form), output)


def _drawn(root: Part, outcomes: Mapping[str, Outcome] | None, form: str) -> str:
    from procflow.showing.diagram import dot, mermaid, text
    from procflow.showing.drawing import svg

    if form == "svg":
        return svg(root, outcomes)
    return {"text": text, "mermaid": mermaid, "dot": dot}[form](root, outcomes)


def _of_file(file: str, given: Mapping[str, Any]) -> Part:
    from procflow.compiler import compile_pipeline
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.showing.shape import part_of

    reading = reading_of(given["dialect"], given["bind"], given["bindings"])
    loaded = load_pipeline(file, Pipeline, reading)
    source, params = loaded.source, params_of(given["param"], given["params_file"])

    def load(other: str, folder: str | None) -> Loaded[Pipeline]:
        return load_pipeline(os.path.join(folder or "", other), Pipeline)

    try:
        tasks = compile_pipeline(
            loaded.pipeline, params=params, environ=os.environ, folder=str(source.folder), load=load
        )
    except PipelineError as error:
        raise PipelineError(source.locate(error.problems)) from None
    return part_of(tasks, most=1 << 30)


def _of_run(
    run: str, state_dir: str | None, file: str | None, given: Mapping[str, Any]
) -> tuple[Part, Mapping[str, Outcome]]:
    """What a run looked like and how it went; where it did not keep its looks, those of the file as it is now."""
    from procflow.cli.report import opened, run_found
    from procflow.report.facts import read_facts

    with opened(state_dir) as past:
        facts = read_facts(past, run_found(past, run))
    if facts.graph is not None:
        if file is not None and facts.run.file and os.path.realpath(file) != os.path.realpath(facts.run.file):
            raise click.UsageError(f"run {facts.run.run_id} is one of {clean(facts.run.file)}, not of {clean(file)}")
        return facts.graph, facts.outcomes
    file = file or facts.run.file
    if file is None:
        raise click.UsageError(f"run {facts.run.run_id} did not keep what it looked like; name its FILE as well")
    err(f"warning: run {facts.run.run_id} did not keep what it looked like; this is {clean(file)} as it is now")
    return _of_file(file, given), facts.outcomes


def _tell(drawn: str, output: str | None) -> int:
    if output is None:
        out(drawn.removesuffix("\n"))
        return 0
    try:
        Path(output).write_text(drawn, "utf-8")
    except OSError as error:
        err(f"error: {clean(output)} can't be written: {error.strerror or error}")
        return 1
    return 0
