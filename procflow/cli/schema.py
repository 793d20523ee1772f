"""``procflow schema``: the JSON Schema of pipeline files, for editors and checks."""

from __future__ import annotations

import json

import click

from procflow.cli.output import out


@click.command()
def schema() -> None:
    """Print the JSON Schema of pipeline files.

    Save it, and name it in the first line of a pipeline:

    \b
      # yaml-language-server: $schema=./.procflow/schema.json
    """
    from procflow.loading.schema import pipeline_schema

    out(json.dumps(pipeline_schema(), indent=2, ensure_ascii=False))
