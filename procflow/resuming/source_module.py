"""A Python source file by its syntax: what a function in it uses, without running anything.

A module is its top-level statements, the names that each binds, and the modules that each imports. ``use`` follows names
from a function to all it needs. Modules are found as an import would find them, except that nothing is imported. Local
are all modules but the standard library's and those of installed packages.
"""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import PathFinder

from procflow.passive import passive
from procflow.resuming.syntax import parse_module

__all__ = ["Module", "Modules", "Use", "is_local"]

_DYNAMIC = {"globals", "exec", "eval"}
"""A function that calls these may use any name of its module."""
Node = ast.stmt | ast.expr


@passive(frozen=True, slots=True)
class Use:
    """What is used of a module: normalized text of its statements, and names of the modules they import.

    ``pieces`` are the same statements one by one, each under the name that it binds (empty where it only acts).
    """

    text: bytes
    modules: tuple[str, ...]
    pieces: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class _Statement:
    """A top-level statement: the names it binds and reads, the modules it imports by the name they get here."""

    node: ast.stmt
    binds: set[str] = field(default_factory=set)
    reads: set[str] = field(default_factory=set)
    imports: dict[str, list[str]] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)
    text: bytes = b""


class Module:
    """One parsed file. ``name`` is that of the module, for relative imports."""

    def __init__(self, path: str, name: str, tree: ast.Module) -> None:
        self.path = path
        self._package = name if os.path.basename(path) == "__init__.py" else name.rpartition(".")[0]
        self._tree = _Bare().visit(tree)
        self._statements = [self._statement(node) for node in tree.body if not _is_idle(node)]
        self._binders: dict[str, list[int]] = {}
        for index, statement in enumerate(self._statements):
            for bound in statement.binds:
                self._binders.setdefault(bound, []).append(index)

    def whole(self) -> Use:
        """All of it."""
        return self._used(set(range(len(self._statements))), [])

    def use(self, names: Iterable[str]) -> Use:
        """What these names lead to; all of it where one is bound nowhere to be seen."""
        return self._follow(set(names), [])

    def use_of(self, node: ast.AST) -> Use:
        """What a function or lambda anywhere in the file leads to, itself included.

        The file may be a script, so statements that only act do not count: some of them start the run.
        """
        own = _Statement(ast.Pass())
        self._look(node, own)
        modules = [m for found in own.imports.values() for m in found] + own.stars
        used = self._follow({name for name in own.reads if name in self._binders}, modules, own.reads, acting=False)
        return Use(ast.dump(node).encode("utf-8", "surrogatepass") + b"\n" + used.text, used.modules, used.pieces)

    def function(self, name: str, line: int) -> ast.AST | None:
        """The function (or the lambda) that begins in a line; None unless there is just one."""
        kinds = (ast.Lambda,) if name == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
        found = [
            node for node in ast.walk(self._tree)
            if isinstance(node, kinds) and _first_line(node) == line and getattr(node, "name", name) == name
        ]  # fmt: skip
        return found[0] if len(found) == 1 else None

    def _follow(self, names: set[str], modules: list[str], read: Iterable[str] = (), acting: bool = True) -> Use:
        if _DYNAMIC & {*names, *read}:
            return self._used(set(range(len(self._statements))), modules)
        used = {i for i, statement in enumerate(self._statements) if acting and not statement.binds}
        waiting = [*names, *(name for i in used for name in self._statements[i].reads)]
        done: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in done:
                continue
            done.add(name)
            if name in _DYNAMIC or (name in names and name not in self._binders):
                return self._used(set(range(len(self._statements))), modules)
            for index in self._binders.get(name, ()):
                if index not in used:
                    used.add(index)
                    waiting += self._statements[index].reads
        return self._used(used, modules, done)

    def _used(self, indices: set[int], modules: list[str], names: set[str] | None = None) -> Use:
        """The statements in their order; of imports only the names that are used."""
        found = list(modules)
        texts = []
        pieces = []
        for index in sorted(indices):
            statement = self._statements[index]
            found += statement.stars
            for name, imported in statement.imports.items():
                if names is None or name in names or name not in statement.binds:
                    found += imported
            texts.append(_text_of(statement, names))
            if not statement.imports:
                pieces.append((min(statement.binds, default=""), texts[-1]))
        for statement in self._statements:
            # What a star brings can't be seen, so it may be what was used.
            found += statement.stars
        return Use(b"\n".join(texts), tuple(dict.fromkeys(found)), tuple(pieces))

    def _statement(self, node: ast.stmt) -> _Statement:
        found = _Statement(node)
        self._look(node, found)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.binds = {node.name}
            return found
        waiting: list[ast.AST] = [node]
        while waiting:
            part = waiting.pop()
            if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.binds.add(part.name)
                continue
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                found.binds.add(part.id)
            elif isinstance(part, (ast.Import, ast.ImportFrom)):
                found.binds.update((alias.asname or alias.name.partition(".")[0]) for alias in part.names)
            elif isinstance(part, ast.ExceptHandler) and part.name:
                found.binds.add(part.name)
            if not isinstance(part, ast.Lambda):
                waiting.extend(ast.iter_child_nodes(part))
        return found

    def _look(self, node: ast.AST, into: _Statement) -> None:
        """The names that a piece of code reads, and the modules it imports wherever it does."""
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                if isinstance(part.ctx, ast.Load):
                    into.reads.add(part.id)
            elif isinstance(part, ast.Import):
                for alias in part.names:
                    into.imports.setdefault(alias.asname or alias.name.partition(".")[0], []).extend(
                        _parents(alias.name)
                    )
            elif isinstance(part, ast.ImportFrom):
                self._look_from(part, into)
            elif isinstance(part, ast.Call):
                into.stars += _imported_by_call(part)

    def _look_from(self, part: ast.ImportFrom, into: _Statement) -> None:
        base = part.module or ""
        if part.level:
            package = self._package.split(".") if self._package else []
            above = package[: len(package) - part.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in part.names:
            if alias.name == "*":
                into.stars += _parents(base)
            else:
                # The name may be a module of its own.
                into.imports.setdefault(alias.asname or alias.name, []).extend(
                    [*_parents(base), f"{base}.{alias.name}" if base else alias.name]
                )


class Modules:
    """Modules by name and folder, each parsed once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str | None], str | None] = {}
        self._parsed: dict[str, Module | None] = {}

    def find(self, name: str, folder: str | None) -> Module | None:
        """The local module of this name, None where there is none, or none with readable source."""
        key = (name, folder)
        if key not in self._found:
            self._found[key] = _origin(name, folder)
        path = self._found[key]
        return self.at(path, name) if path is not None and (is_local(path) or _below(path, folder)) else None

    def at(self, path: str, name: str) -> Module | None:
        """The module in a file, local or not."""
        if path not in self._parsed:
            self._parsed[path] = _parsed(path, name)
        return self._parsed[path]


def _text_of(statement: _Statement, names: set[str] | None) -> bytes:
    """The statement without its layout; of an import only what is used."""
    node = statement.node
    if names is not None and isinstance(node, (ast.Import, ast.ImportFrom)):
        used = [a for a in node.names if (a.asname or a.name.partition(".")[0]) in names]
        return "".join(map(ast.dump, used)).encode()
    if not statement.text:
        statement.text = ast.dump(node).encode("utf-8", "surrogatepass")
    return statement.text


def _parsed(path: str, name: str) -> Module | None:
    try:
        with open(path, "rb") as file:
            return Module(path, name, parse_module(file.read()))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _origin(name: str, folder: str | None) -> str | None:
    """The source file of a module, looked for as an import would, without importing its packages."""
    search: list[str] | None = [os.path.abspath(folder), *sys.path] if folder is not None else None
    origin: str | None = None
    full = ""
    for part in name.split("."):
        full = f"{full}.{part}" if full else part
        if not full or ("." not in full and full in sys.builtin_module_names):
            return None
        try:
            spec = PathFinder.find_spec(full, search)
            if spec is None and "." not in full:
                spec = next((s for f in sys.meta_path if f is not PathFinder and (s := f.find_spec(full, None))), None)
        except Exception:
            return None
        if spec is None:
            return None
        origin = spec.origin if spec.has_location else None
        search = list(spec.submodule_search_locations or ())
    return origin if origin is not None and origin.endswith(".py") else None


def is_local(path: str) -> bool:
    """Whether a source file is of the user's, not of the standard library or an installed package."""
    real = os.path.realpath(path)
    if "site-packages" in real or "dist-packages" in real:
        return False
    return os.path.isfile(real) and not real.startswith(_installed())


@lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    own = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return tuple({os.path.realpath(sysconfig.get_path(name)) + os.sep for name in names} | {own + os.sep})


def _below(path: str, folder: str | None) -> bool:
    return folder is not None and os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


def _parents(name: str) -> list[str]:
    """``a``, ``a.b``, ``a.b.c``: importing the last runs them all."""
    parts = name.split(".") if name else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _imported_by_call(call: ast.Call) -> list[str]:
    """Modules that ``importlib.import_module("x")`` or ``__import__("x")`` name."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    first = call.args[0] if call.args else None
    if name not in ("import_module", "__import__") or not isinstance(first, ast.Constant):
        return []
    return _parents(first.value) if isinstance(first.value, str) and not first.value.startswith(".") else []


def _first_line(node: ast.AST) -> int:
    decorators = getattr(node, "decorator_list", None)
    line: int = decorators[0].lineno if decorators else node.lineno  # type: ignore[attr-defined]
    return line


def _is_idle(node: ast.stmt) -> bool:
    """Says nothing at run time of an import: a bare constant, ``if __name__ == "__main__"``, ``if TYPE_CHECKING``."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if not isinstance(node, ast.If) or node.orelse:
        return False
    names = {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
    attributes = {part.attr for part in ast.walk(node.test) if isinstance(part, ast.Attribute)}
    return "__name__" in names or "TYPE_CHECKING" in names | attributes


class _Bare(ast.NodeTransformer):
    """Takes the docstrings out."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and isinstance(body, list):
            node.body = list(_without_docstring(body))
        return node


def _without_docstring(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for index, statement in enumerate(body):
        is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if index or not is_text or not isinstance(statement.value.value, str):  # type: ignore[attr-defined]
            yield statement
