"""The layers of procflow, read from its imports: words < core < edges < loop < top.

A module that is not named here is an edge. ``TYPE_CHECKING`` imports are free: they load nothing.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "procflow"

WORDS = (
    "errors passive failpoints units ref call attempt events grammar record record_sources record_state model graph"
    " executors.base"
)
CORE = "state compiler compiling learning scheduler scheduling resuming.needs resuming.selection showing.critical_path plaintext"
LOOP = "engine"
TOP = "procflow __main__ api launch session cli compat testing benching.capture"
LAYER_OF = {
    name: layer
    for layer, names in {"words": WORDS, "core": CORE, "loop": LOOP, "top": TOP}.items()
    for name in names.split()
}
MAY_IMPORT = {
    "words": {"words"},
    "core": {"words", "core"},
    "edges": {"words", "core", "edges"},
    "loop": {"words", "core", "loop"},
    "top": {"words", "core", "edges", "loop", "top"},
}
IMPURE = {
    *("asyncio", "concurrent", "datetime", "fcntl", "logging", "multiprocessing", "os", "queue", "random", "resource"),
    *("secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "subprocess", "tempfile", "threading"),
    *("time", "uuid"),
}
"""What a pure layer may not touch: the clock, chance, the machine, threads."""
LIBRARIES = {"words": {"pydantic", "pydantic_core", "typing_extensions"}, "core": set[str]()}
"""Libraries beyond the standard one that a layer may import; the other layers are free."""

MOST_LINES = 400
MOST_FUNCTION_LINES = 60
EXCUSE = "longer than 400 lines because"


def modules() -> list[tuple[str, Path]]:
    """Dotted names below ``procflow`` (``procflow`` for the package itself), with their files."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.append((".".join(parts) or "procflow", path))
    return found


def layer(module: str) -> str:
    """The layer of a module: its own, or that of the closest package above it, else edges."""
    while module:
        if module in LAYER_OF:
            return LAYER_OF[module]
        module = module.rpartition(".")[0]
    return "edges"


def loaded_imports(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements anywhere in a module, without those under ``if TYPE_CHECKING``."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (ast.Import, ast.ImportFrom)):
            yield part
        elif isinstance(part, ast.If) and ast.unparse(part.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting.extend(part.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(part))


def imported(statement: ast.Import | ast.ImportFrom, known: set[str]) -> Iterator[str]:
    """Full names of the modules that a statement loads; ``from procflow import units`` loads ``procflow.units``."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    assert statement.level == 0, "procflow imports by full names, so that they can be read here"
    base = statement.module or ""
    inside = base.removeprefix("procflow").removeprefix(".")
    for alias in statement.names:
        member = f"{inside}.{alias.name}".removeprefix(".")
        if base.split(".")[0] != "procflow" or alias.name == "__version__":
            yield base if base.split(".")[0] != "procflow" else "procflow.units"  # a constant: as light as a word
        elif member in known:
            yield f"procflow.{member}"
        else:
            yield base


def breaches(module: str, source: str, known: set[str]) -> list[str]:
    """What a module imports against the table."""
    own = layer(module)
    found = []
    for statement in loaded_imports(ast.parse(source)):
        for name in imported(statement, known):
            place = f"{module}:{statement.lineno} ({own}) imports {name}"
            root = name.split(".")[0]
            if root == "procflow":
                other = layer(name.removeprefix("procflow.") if name != "procflow" else name)
                if other not in MAY_IMPORT[own]:
                    found.append(f"{place}, which is of the layer {other}")
            elif own in LIBRARIES and root in IMPURE:
                found.append(f"{place}, which is not pure")
            elif own in LIBRARIES and root not in sys.stdlib_module_names and root not in LIBRARIES[own]:
                found.append(f"{place}, a library this layer does without")
    return found


MODULES = modules()
KNOWN = {name for name, _ in MODULES}


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_a_module_imports_only_what_its_layer_may(module: str, path: Path) -> None:
    assert breaches(module, path.read_text(), KNOWN) == []


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_a_module_that_calls_itself_pure_is_in_a_pure_layer(module: str, path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert layer(module) in LIBRARIES or not re.search(r"\bPure[.:]", text), f"add {module} to CORE in {__file__}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("units", "import time"),
        ("scheduler", "def f():\n    from random import random"),
        ("scheduler", "import os.path"),
        ("scheduling.merge", "import numpy"),
        ("scheduler", "from procflow import engine"),
        ("scheduler", "from procflow.engine import Engine"),
        ("units", "import procflow.scheduler"),
        ("steps.shell", "import procflow.cli.run"),
        ("executors.processes", "from procflow import Pipeline"),
        ("engine", "from procflow.executors.processes import ProcessExecutor"),
    ],
)
def test_an_import_against_the_layers_is_seen(module: str, source: str) -> None:
    known = {*KNOWN, "engine", "scheduler", "cli.run", "executors.processes"}
    assert len(breaches(module, source, known)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("scheduler", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from procflow.engine import Engine"),
        ("engine", "import time\nfrom procflow.executors.base import Executor"),
        ("model", "import pydantic"),
        ("cli.run", "from procflow import __version__, engine"),
        ("store", "import sqlite3\nfrom procflow import events"),
    ],
)
def test_an_import_within_the_layers_is_let_through(module: str, source: str) -> None:
    assert breaches(module, source, {*KNOWN, "engine"}) == []


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_a_module_says_what_it_is_for_and_fits_on_a_few_screens(module: str, path: Path) -> None:
    source = path.read_text()
    text = ast.get_docstring(ast.parse(source)) or ""
    assert text, f"{module} has no docstring"
    lines = source.count("\n")
    assert lines <= MOST_LINES or EXCUSE in " ".join(text.split()), (
        f"{module} has {lines} lines: divide it, or say in its docstring that it is {EXCUSE} ..."
    )


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, source: list[str]) -> int:
    """Lines of a function without its docstring, comments and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    texts = source[body[0].lineno - 1 : function.end_lineno] if body else []
    return sum(1 for text in texts if text.strip() and not text.strip().startswith("#"))


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_functions_are_short(module: str, path: Path) -> None:
    source = path.read_text()
    functions = [f for f in ast.walk(ast.parse(source)) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f"{module}.{f.name}:{f.lineno}": code_lines(f, source.splitlines()) for f in functions}
    assert {name: lines for name, lines in long.items() if lines > MOST_FUNCTION_LINES} == {}


def test_the_table_names_modules_that_exist() -> None:
    assert {name for name in LAYER_OF if name not in KNOWN} == set()
