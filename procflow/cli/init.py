"""``procflow init``: a commented pipeline and its module that run as they are, and the schema for the editor.

Owns the texts of both. Never overwrites a file.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click

from procflow.cli.output import out
from procflow.errors import StoreError
from procflow.plaintext import clean

__all__ = ["init"]

_PIPELINE = """\
# yaml-language-server: $schema=./.procflow/schema.json
# Run it:        python -m procflow run {name}.yaml
# Look before:   python -m procflow plan {name}.yaml
# In cron:       0 2 * * * cd {folder} && python -m procflow run {name}.yaml -q --if-running skip
name: {name}

# Set them with -p day=2026-01-31, or with --params-file.
params:
  folder: {{default: ".", help: where the text files are}}
  most: 200

# The smaller of what is written here and what the machine gives counts. Left out: all cores, 80% of the memory.
limits:
  memory: 80%

steps:
  # A plain function in {module}.py. Its value gets the name under output.
  - type: transform
    name: list_files
    function: "{module}:list_files"
    params: {{folder: "${{params.folder}}", most: "${{params.most}}"}}
    output: files

  # The same function for every item, on all cores. One item that fails does not stop the others.
  - type: map
    name: count_words
    items: ${{files}}
    function: "{module}:count_words"
    tolerate: 5%
    retries: 1
    output: counts

  # Members of a parallel block run side by side.
  - type: parallel
    name: summaries
    steps:
      - {{type: transform, name: longest, function: "{module}:longest", inputs: [counts]}}
      - {{type: transform, name: words, function: "{module}:words", inputs: [counts]}}

  - type: transform
    name: report
    function: "{module}:report"
    inputs: [longest, words]
    output: summary

# Printed at the end, to stdout.
show: [summary]
"""

_MODULE = '''\
"""Steps of {name}.yaml: plain functions, which can be called and tested like any others."""

from collections import Counter
from pathlib import Path

from procflow import step


def list_files(folder, most):
    """Names of text files below a folder, at most so many."""
    found = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix in (".txt", ".md", ".py"))
    step.log.info("%d files", len(found))
    return found[:most]


def count_words(file):
    """How often each word is in one file."""
    text = Path(file).read_text("utf-8", "replace")
    return {{"file": file, "words": Counter(word for word in text.split() if word.isalpha())}}


def longest(counts):
    """The file with most words. An item that failed has no value, so it is left out."""
    known = [row for row in counts if row]
    return max(known, key=lambda row: sum(row["words"].values()), default={{"file": "none", "words": {{}}}})["file"]


def words(counts):
    """The most frequent words of all files together."""
    total = Counter()
    for row in counts:
        total.update(row["words"] if row else {{}})
    return total.most_common(5)


def report(longest, words):
    """A text for people."""
    lines = [f"longest file  {{longest}}"]
    lines += [f"{{count:>7,}}  {{word}}" for word, count in words]
    return "\\n".join(lines)
'''


@click.command()
@click.argument("name", default="pipeline")
@click.option(
    "--dir", "folder", metavar="DIR", type=click.Path(file_okay=False), default=".", help="Where; default here."
)
def init(name: str, folder: str) -> int:
    """Write NAME.yaml and a module beside it: a commented pipeline that runs as it is, to begin from.

    The schema that the first line names is written as well, so that an editor with a YAML language server completes keys
    and marks mistakes. Files that are there already are never changed.
    """
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,60}", name) is None:
        raise click.BadParameter(f"{name!r}: use a letter, then letters, digits, - and _", param_hint="NAME")
    module = f"{name.replace('-', '_')}_steps"
    place = Path(folder)
    texts = {
        place / f"{name}.yaml": _PIPELINE.format(name=name, module=module, folder=place.resolve()),
        place / f"{module}.py": _MODULE.format(name=name),
    }
    there = [path for path in texts if os.path.lexists(path)]
    if there:
        raise click.UsageError(f"{there[0]} is there already; choose another name, or move it away")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            out(f"wrote {clean(path)}")
        out(f"wrote {clean(_write_schema(place))}")
    except OSError as error:
        raise StoreError(f"{error.filename}: {error.strerror}") from None
    out(f"run it: python -m procflow run {clean(place / f'{name}.yaml')}")
    return 0


def _write_schema(place: Path) -> Path:
    """The schema where the first line of the pipeline says: in the state folder, which git should ignore."""
    from procflow.loading.schema import pipeline_schema
    from procflow.storing.state_folder import FOLDER, StateFolder

    path = StateFolder.open(place / FOLDER).path / "schema.json"
    path.write_text(json.dumps(pipeline_schema(), indent=1) + "\n", "utf-8")
    return path
