"""The steps of quickstart.yaml: what do the sources of Python's standard library look like?

Plain functions of plain values: each can be called and tested by hand, without procflow. The ones that a map
calls take one item (a file, or a share of the files) and return a small summary, so that little data travels.
"""

from __future__ import annotations

import ast
import bz2
import hashlib
import io
import logging
import lzma
import os
import sys
import sysconfig
import tokenize
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from keyword import kwlist
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LEFT_OUT = {"site-packages", "dist-packages", "__pycache__"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While, ast.comprehension)
DECISIONS = (*LOOPS, ast.If, ast.IfExp, ast.ExceptHandler, ast.Assert, ast.match_case)
UNREADABLE = (OSError, SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError)
"""What a file can do to us: not be there, not be Python, not be text, or be nested too deeply."""

SMALLEST_CLONE = 8
"""Functions with fewer lines than this look alike by chance."""


# ---------------------------------------------------------------- which files


def list_sources(folder: str = "stdlib", limit: int = 0) -> dict[str, Any]:
    """Find the ``*.py`` files below ``folder``, largest first; ``limit`` keeps that many, evenly spread over the sizes.

    Returns ``title``, ``folder`` (absolute) and ``files`` (names from there). Largest first is the order to work
    in: the small ones fill the gaps at the end.
    """
    if folder == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        title = f"the standard library of Python {sys.version_info.major}.{sys.version_info.minor}"
    else:
        root = Path(folder).expanduser().resolve()
        title = f"the folder {root.name}"
    sizes = dict(python_files(root))
    if not sizes:
        raise FileNotFoundError(f"no Python files below {root}; name another folder with -p folder=PATH")
    files = sorted(sizes, key=lambda name: (-sizes[name], name))
    if 0 < limit < len(files):
        title = f"{limit} of the {len(files):,} files of {title}"
        files = [files[i * len(files) // limit] for i in range(limit)]
    log.info("%d files, %.1f MB", len(files), sum(sizes[name] for name in files) / 1e6)
    return {"title": title, "folder": str(root), "files": files}


def python_files(root: Path) -> Iterator[tuple[str, int]]:
    """Name and size of every Python file below ``root``, but not of installed packages."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in names:
            path = Path(folder, name)
            if name.endswith(".py") and path.is_file():
                yield path.relative_to(root).as_posix(), path.stat().st_size


def module_name(file: str) -> str:
    """``json.decoder`` for ``json/decoder.py``, ``json`` for ``json/__init__.py``."""
    parts = file.removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def parse(source: bytes) -> ast.Module:
    """The syntax tree, without the warnings that Python has about the code of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


# ---------------------------------------------------------------- complexity and imports, one file at a time


def measure(file: str, folder: str, top: int = 10) -> dict[str, Any] | None:
    """Lines, functions, classes, imports and the ``top`` most complex functions of a file; None if it can't be read."""
    try:
        source = Path(folder, file).read_bytes()
        tree = parse(source)
        module = module_name(file)
        functions = [
            (complexity(function), function.end_lineno - function.lineno + 1, f"{module}:{name}")
            for name, function in named_functions(tree)
        ]
    except UNREADABLE:
        return None
    return {
        "module": module,
        "bytes": len(source),
        "lines": source.count(b"\n"),
        "classes": sum(isinstance(part, ast.ClassDef) for part in ast.walk(tree)),
        "functions": len(functions),
        "complexity": sum(score for score, _, _ in functions),
        "most_complex": sorted(functions, key=lambda row: (-row[0], row[2]))[:top],
        "imports": sorted(imported_modules(tree, module, is_package=file.endswith("__init__.py"))),
    }


def named_functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every function below ``tree`` with its dotted name: ``Class.method``, ``outer.inner``."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            name = f"{prefix}{child.name}"
            if isinstance(child, FUNCTIONS):
                yield name, child
            yield from named_functions(child, f"{name}.")
        else:
            yield from named_functions(child, prefix)


def complexity(function: ast.AST) -> int:
    """McCabe's cyclomatic complexity: 1, and 1 for each way to branch; inner functions count for themselves."""
    score, waiting = 1, list(ast.iter_child_nodes(function))
    while waiting:
        part = waiting.pop()
        if isinstance(part, DECISIONS):
            score += 1 + len(getattr(part, "ifs", ()))
        elif isinstance(part, ast.BoolOp):
            score += len(part.values) - 1
        if not isinstance(part, FUNCTIONS):
            waiting.extend(ast.iter_child_nodes(part))
    return score


def imported_modules(tree: ast.AST, module: str, is_package: bool) -> set[str]:
    """Full names of the modules that a module imports anywhere in it; relative imports are resolved."""
    found: set[str] = set()
    package = module.split(".") if is_package else module.split(".")[:-1]
    for part in ast.walk(tree):
        if isinstance(part, ast.Import):
            found.update(alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            base = package[: len(package) - part.level + 1] if part.level else []
            name = ".".join([*base, *(part.module or "").split(".")]).strip(".")
            if name:
                found.add(name)
    return found


def rank_modules(modules: list[dict[str, Any] | None], top: int = 10) -> dict[str, Any]:
    """Totals over all files, and the tables of biggest modules, most complex functions and most imported modules."""
    known = [module for module in modules if module is not None]
    importers = Counter(name for module in known for name in module["imports"])
    functions = [row for module in known for row in module["most_complex"]]
    return {
        "files": len(modules),
        "skipped": len(modules) - len(known),
        "totals": {key: sum(m[key] for m in known) for key in ("bytes", "lines", "classes", "functions", "complexity")},
        "biggest": ranked(((m["lines"], m["functions"], m["module"]) for m in known), top),
        "most_complex": ranked(functions, top),
        "most_imported": ranked(((count, name) for name, count in importers.items()), top),
        "imports_most": ranked(((len(m["imports"]), m["module"]) for m in known), top),
    }


# ---------------------------------------------------------------- words, a share of the files at a time


def index_words(files: list[str], folder: str) -> dict[str, Any]:
    """How often each identifier is used in these files, and in how many of them; tokens by kind.

    Counts come back as one list, ``(word, uses, files)`` each: far less to send than a list per file.
    """
    uses: Counter[str] = Counter()
    spread: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for file in files:
        try:
            here: Counter[str] = Counter()
            for token in tokenize.tokenize(io.BytesIO(Path(folder, file).read_bytes()).readline):
                kinds[tokenize.tok_name[token.type]] += 1
                if token.type == tokenize.NAME:
                    here[token.string] += 1
        except UNREADABLE:
            continue
        uses.update(here)
        spread.update(here.keys())
    return {"words": [(word, uses[word], spread[word]) for word in uses], "kinds": dict(kinds)}


def rank_words(shares: list[dict[str, Any]], top: int = 10) -> dict[str, Any]:
    """The index of all shares together: how many words there are, and the most used that are not keywords."""
    uses: Counter[str] = Counter()
    spread: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for share in shares:
        kinds.update(share["kinds"])
        for word, count, files in share["words"]:
            uses[word] += count
            spread[word] += files
    rows = [(count, spread[word], word) for word, count in uses.items() if word not in kwlist]
    return {
        "tokens": kinds.total(),
        "words": len(rows),
        "used_once": sum(1 for count, _, _ in rows if count == 1),
        "most_used": ranked(rows, top),
    }


# ---------------------------------------------------------------- compression, one file at a time


def compress(file: str, folder: str) -> dict[str, Any] | None:
    """The size of one file, and its size under three compressors; None if it can't be read."""
    try:
        source = Path(folder, file).read_bytes()
    except OSError:
        return None
    return {
        "module": module_name(file),
        "bytes": len(source),
        "zlib": len(zlib.compress(source, 9)),
        "bz2": len(bz2.compress(source, 9)),
        "lzma": len(lzma.compress(source)),
    }


def rank_compression(sizes: list[dict[str, Any] | None], top: int = 10) -> dict[str, Any]:
    """The share of its size that each compressor leaves, overall and for the modules that shrink most and least."""
    known = [size for size in sizes if size is not None and size["bytes"] >= 1000]
    whole = sum(size["bytes"] for size in known) or 1
    rows = [(round(100 * size["lzma"] / size["bytes"], 1), size["bytes"], size["module"]) for size in known]
    return {
        "left": {name: round(100 * sum(size[name] for size in known) / whole, 1) for name in ("zlib", "bz2", "lzma")},
        "shrink_most": sorted(rows, key=lambda row: (row[0], row[2]))[:top],
        "shrink_least": ranked(rows, top),
    }


# ---------------------------------------------------------------- clones, one file at a time


def fingerprint(file: str, folder: str) -> list[tuple[bytes, int, str]]:
    """A digest of the shape of each longer function in one file, with its lines and name.

    Two functions have one digest if they differ only in names, constants, comments and docstrings.
    """
    try:
        tree = parse(Path(folder, file).read_bytes())
        found = list(named_functions(tree))
        rows = []
        for name, function in found:
            lines = function.end_lineno - function.lineno + 1
            if lines >= SMALLEST_CLONE:
                digest = hashlib.blake2b(shape(function).encode(), digest_size=12).digest()
                rows.append((digest, lines, f"{module_name(file)}:{name}"))
    except UNREADABLE:
        return []
    return rows


def shape(function: Any) -> str:
    """The kinds of a function's parts, in order and nested by brackets; no names, no constants, no docstring."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return " ".join(shape_of(part) for part in body)


def shape_of(part: ast.AST) -> str:
    inside = " ".join(shape_of(child) for child in ast.iter_child_nodes(part))
    return f"({type(part).__name__} {inside})"


def rank_clones(files: list[list[tuple[bytes, int, str]]], top: int = 10) -> dict[str, Any]:
    """Functions of the same shape in two or more places, largest first."""
    places: dict[bytes, list[str]] = {}
    lines: dict[bytes, int] = {}
    for rows in files:
        for digest, length, name in rows:
            places.setdefault(digest, []).append(name)
            lines[digest] = min(length, lines.get(digest, length))
    groups = [(lines[digest], len(names), min(names)) for digest, names in places.items() if len(names) > 1]
    return {
        "functions": sum(len(names) for names in places.values()),
        "copies": sum(count - 1 for _, count, _ in groups),
        "groups": ranked(groups, top),
    }


# ---------------------------------------------------------------- the report


def ranked(rows: Iterable[tuple[Any, ...]], top: int) -> list[tuple[Any, ...]]:
    """The ``top`` rows: largest first number first, then by name, so that ties never depend on who finished first."""
    return sorted(rows, key=lambda row: (-row[0], row[-1]))[:top]


def table(title: str, heads: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A title, column heads and rows as text; the last column is aligned to the left, the others are numbers."""
    cells = [heads, *([f"{cell:,}" if isinstance(cell, (int, float)) else cell for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads) - 1)]
    lines = ["  ".join([*(row[i].rjust(w) for i, w in enumerate(widths)), row[-1]]) for row in cells]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def report(
    title: str, modules: dict[str, Any], words: dict[str, Any], compression: dict[str, Any], clones: dict[str, Any]
) -> str:
    """All findings as text. It holds no times and no paths, so two runs can be compared byte for byte."""
    totals, left = modules["totals"], compression["left"]
    mean = totals["complexity"] / (totals["functions"] or 1)
    head = [
        f"{title[0].upper()}{title[1:]}",
        "",
        f"  parsed       {modules['files'] - modules['skipped']:,} files, {modules['skipped']:,} skipped"
        " because they can't be read as Python",
        f"  size         {totals['bytes'] / 1e6:,.1f} MB, {totals['lines']:,} lines",
        f"  classes      {totals['classes']:,}",
        f"  functions    {totals['functions']:,}, mean complexity {mean:.2f}",
        f"  tokens       {words['tokens']:,}",
        f"  identifiers  {words['words']:,}, {words['used_once']:,} of them used once",
        f"  compressed   to {left['zlib']}% by zlib, {left['bz2']}% by bz2, {left['lzma']}% by lzma",
        f"  clones       {clones['copies']:,} of {clones['functions']:,} functions of {SMALLEST_CLONE} lines or more"
        " have the shape of another",
    ]
    tables = [
        table("Most complex functions", ("complexity", "lines", "function"), modules["most_complex"]),
        table("Biggest modules", ("lines", "functions", "module"), modules["biggest"]),
        table("Most imported modules", ("importers", "module"), modules["most_imported"]),
        table("Modules that import most", ("imports", "module"), modules["imports_most"]),
        table("Most used identifiers", ("uses", "files", "identifier"), words["most_used"]),
        table("Modules that shrink most", ("left %", "bytes", "module"), compression["shrink_most"]),
        table("Modules that shrink least", ("left %", "bytes", "module"), compression["shrink_least"]),
        table("Largest clones", ("lines", "places", "first place"), clones["groups"]),
    ]
    return "\n\n".join(["\n".join(head), *tables])
