"""``procflow convert``: another system's file in procflow's language, as YAML to read, keep and run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from procflow.cli.options import dialect_options, reading_of
from procflow.cli.output import err, out, refused
from procflow.errors import PipelineError, Problem
from procflow.plaintext import clean

if TYPE_CHECKING:
    from procflow.dialects import Reading
    from procflow.dialects.translating import Translated

__all__ = ["convert"]


@click.command()
@click.argument("file", type=click.Path())
@dialect_options
@click.option("-o", "--output", metavar="F", type=click.Path(dir_okay=False), help="Write to this file, not to stdout.")
def convert(
    file: str, dialect: str | None, bind: tuple[str, ...], bindings: str | None, output: str | None
) -> int:  # fmt: skip
    """Print the pipeline in FILE, written for another system, in procflow's language.

    \b
      procflow convert nightly.json -o nightly.yaml
      procflow convert content.yaml --bind text_to_speech=voices:speak

    The converted file runs to the same outputs. What was tolerated or left out is told on stderr; what procflow can't do is
    refused, with exit code 2.
    """
    from procflow.dialects.writing import yaml_text

    try:
        found = _translated(file, reading_of(dialect, bind, bindings))
    except PipelineError as error:
        return refused(error, file, "nothing was converted")
    for note in found.notes:
        err(f"note: {clean(note)}")
    text = yaml_text(
        found.plain, f"Converted by procflow from {os.path.basename(file)}, a file of the format {found.dialect}."
    )
    if output is None:
        out(text.removesuffix("\n"))
        return 0
    target = Path(os.path.abspath(output))
    try:
        if target.exists() and target.samefile(file):
            err(f"error: {clean(output)} is the file to convert; name another")
            return 2
        target.write_text(text, "utf-8")
    except OSError as error:
        err(f"error: {clean(output)} can't be written: {error.strerror or error}")
        return 1
    if target.parent != found.source.folder:
        err(f"note: modules and relative paths now start from {clean(target.parent)}")
    return 0


def _translated(file: str, reading: Reading | None) -> Translated:
    """The file in procflow's language, valid by its rules; raises ``PipelineError``."""
    from procflow.dialects import translated
    from procflow.errors import Place
    from procflow.loader import load_pipeline, read_file

    tree, source = read_file(file)
    found = translated(tree, source, reading)
    if found is None:
        if tree.problems:
            raise PipelineError(tree.problems)
        place = Place(tree.name, tree.spot.line, tree.spot.column)
        hint = "name the format with --dialect if it is one of another system"
        raise PipelineError([Problem("this is procflow's own language already, or no known format", (), hint, place)])
    load_pipeline(file, reading=reading)
    return found
