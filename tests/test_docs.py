"""The documentation: its files and commands run in the order in which they stand; the reference is as the code has it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

import procflow
from procflow import model
from procflow.cli import cli
from procflow.loader import read_tree

ROOT = Path(procflow.__file__).parents[1]
DOCS = ROOT / "docs"
LONG_S = 120
_FENCE = re.compile(
    r"(?:^`(?P<file>[\w./-]+)`[^\n]*:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_EXIT = re.compile(r"\s+# exit (\d+)$")

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not installed")


@dataclass(frozen=True)
class Block:
    file: str | None
    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(m["file"], m["kind"], m["text"]) for m in _FENCE.finditer(page.read_text("utf-8"))]


def pages() -> list[Path]:
    return sorted(DOCS.glob("*.md"))


def with_commands() -> list[Path]:
    return [page for page in pages() if any(block.kind == "sh" for block in blocks(page))]


@pytest.mark.parametrize("page", with_commands(), ids=lambda page: page.stem)
def test_the_files_and_commands_of_a_page_work(page: Path, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PROCFLOW_")}
    env |= {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}
    for block in blocks(page):
        if block.file is not None and "/" not in block.file:
            (tmp_path / block.file).write_text(block.text)
        for command, code in commands(block):
            done = subprocess.run(
                command.replace("python ", f"{sys.executable} ", 1) if command.startswith("python ") else command,
                shell=True, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=LONG_S, check=False,
            )  # fmt: skip
            assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"


def commands(block: Block) -> Iterator[tuple[str, int]]:
    if block.kind != "sh":
        return
    for line in block.text.splitlines():
        if line.strip() and not line.startswith("#"):
            found = _EXIT.search(line)
            yield _EXIT.sub("", line), int(found[1]) if found else 0


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_pieces_of_yaml_hold_only_keys_that_there_are(page: Path) -> None:
    for block in blocks(page):
        if block.kind == "yaml" and block.file is None:
            read, _ = read_tree(block.text, f"{page.stem}.yaml", Path())
            assert not read.problems
            tree: Any = read.value
            whole = {"name": "piece", "steps": tree} if isinstance(tree, list) else tree
            if "steps" not in whole:
                whole = {"name": "piece", "steps": [{"type": "shell", "name": "s", "command": "true"}], **whole}
            model.Pipeline.model_validate(whole)


@pytest.mark.parametrize(
    "page", [*pages(), *DOCS.glob("reference/*.md"), ROOT / "README.md"], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_reference_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        # Other versions of the libraries break lines elsewhere.
        there = (DOCS / "reference" / name).read_text("utf-8").split()
        assert there == text.split(), f"run python docs/generate.py: {name} is not up to date"


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    assert all(f"({page.name})" in index for page in pages() if page.name != "README.md")


def shown_commands() -> list[str]:
    """Commands that stand where they are not run: in the README, in tables, in crontabs."""
    found = set()
    for page in [*pages(), ROOT / "README.md"]:
        for line in re.findall(r"python -m procflow ([^`\n#]+)", page.read_text("utf-8")):
            found.add(line.split("&&")[0].split("|")[0].strip())
    return sorted(found)


@pytest.mark.parametrize("line", shown_commands())
def test_commands_that_are_only_shown_are_right(line: str) -> None:
    words = shlex.split(line)
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, words[0]
    if words[1:] and not {"FILE", "COMMAND"} & set(words):
        command.make_context(words[0], words[1:])
