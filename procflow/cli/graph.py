"""``procflow graph``: a pipeline drawn as text, for a README or for Graphviz."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from procflow.cli.options import dialect_options, param_options, params_of, reading_of
from procflow.cli.output import err, out, refused
from procflow.errors import PipelineError
from procflow.plaintext import clean

if TYPE_CHECKING:
    from procflow.loader import Loaded
    from procflow.model import Pipeline

__all__ = ["graph"]


@click.command()
@click.argument("file", type=click.Path())
@param_options
@dialect_options
@click.option("--format", "form", type=click.Choice(["mermaid", "dot"]), default="mermaid", help="Kind of text.")
@click.option("-o", "--output", metavar="F", type=click.Path(dir_okay=False), help="Write to this file, not to stdout.")
def graph(
    file: str,
    param: tuple[str, ...],
    params_file: Path | None,
    dialect: str | None,
    bind: tuple[str, ...],
    bindings: str | None,
    form: str,
    output: str | None,
) -> int:
    """Draw the pipeline in FILE: blocks as boxes, the order of steps as arrows.

    \b
      procflow graph nightly.yaml                       Mermaid, as GitHub and GitLab show it
      procflow graph nightly.yaml --format dot | dot -Tsvg > nightly.svg

    Neither functions nor the limits of this machine are looked at: see validate.
    """
    from procflow.compiler import compile_pipeline
    from procflow.loader import load_pipeline
    from procflow.model import Pipeline
    from procflow.showing.diagram import dot, mermaid

    try:
        loaded = load_pipeline(file, Pipeline, reading_of(dialect, bind, bindings))
        source, params = loaded.source, params_of(param, params_file)
        folder = str(source.folder)

        def load(other: str, folder: str | None) -> Loaded[Pipeline]:
            return load_pipeline(os.path.join(folder or "", other), Pipeline)

        try:
            tasks = compile_pipeline(loaded.pipeline, params=params, environ=os.environ, folder=folder, load=load)
        except PipelineError as error:
            raise PipelineError(source.locate(error.problems)) from None
    except PipelineError as error:
        return refused(error, file, "nothing was drawn")
    text = dot(tasks) if form == "dot" else mermaid(tasks)
    if output is None:
        out(text.removesuffix("\n"))
        return 0
    try:
        Path(output).write_text(text, "utf-8")
    except OSError as error:
        err(f"error: {clean(output)} can't be written: {error.strerror or error}")
        return 1
    return 0
