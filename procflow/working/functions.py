"""Functions: ``module:name`` to a callable, in the worker; and a check of the same without importing, before a run.

``resolve`` runs the user's module; ``find`` only looks at files. Neither calls the function.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

from procflow.errors import ProcflowError
from procflow.secrets import masked

if TYPE_CHECKING:
    import ast

__all__ = ["FunctionError", "add_folder", "did_you_mean", "find", "resolve"]


class FunctionError(ProcflowError):
    """``module:name`` leads to no callable; the message names module, reason and what is near."""


_resolved: dict[tuple[str, str | None], Callable[..., Any]] = {}
_added: set[str] = set()


def add_folder(folder: str | None) -> None:
    """Put the pipeline's folder at the front of ``sys.path``, once."""
    if folder is None or folder in _added:
        return
    path = os.path.abspath(folder)
    if path not in sys.path:
        sys.path.insert(0, path)
    _added.add(folder)


def resolve(target: str | Callable[..., Any], folder: str | None = None) -> Callable[..., Any]:
    """The callable that ``module:name.attr`` names; modules in ``folder`` can be imported. Raises ``FunctionError``."""
    if not isinstance(target, str):
        return target
    found = _resolved.get((target, folder))
    if found is None:
        found = _resolved[(target, folder)] = _resolve(target, folder)
    return found


def _resolve(target: str, folder: str | None) -> Callable[..., Any]:
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise FunctionError(f"{target!r} does not name a function; write module:name")
    add_folder(folder)
    value = _imported(module_name, target, folder)
    at = module_name
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            guess = did_you_mean(part, dir(value))
            file = getattr(value, "__file__", None)
            where = f" ({file})" if file and at == module_name else ""
            raise FunctionError(f"{target}: {at}{where} has no name {part!r}{guess}") from None
        at += f".{part}"
    if not callable(value):
        raise FunctionError(f"{target}: {at} is of type {type(value).__name__}, which can't be called")
    return value  # type: ignore[no-any-return]


def _imported(module_name: str, target: str, folder: str | None) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        missing = exc.name or ""
        if module_name == missing or module_name.startswith(missing + "."):
            raise FunctionError(_no_module(missing or module_name, target, folder)) from None
        raise FunctionError(f"{target}: importing {module_name} failed: {exc}") from exc
    except BaseException as exc:
        # A module may do anything at import, sys.exit included: that ends the step, not the worker.
        text = f"{type(exc).__name__}: {exc}".rstrip(": ")
        raise FunctionError(f"{target}: importing {module_name} failed: {masked(text)[:2000]}") from exc


def _no_module(module_name: str, target: str, folder: str | None) -> str:
    near = list(_modules_in(folder)) if folder is not None and "." not in module_name else []
    looked = f" in {folder} or among installed packages" if folder is not None else ""
    return f"{target}: there is no module {module_name!r}{looked}{did_you_mean(module_name, near)}"


def _modules_in(folder: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        stem, dot, _ = name.partition(".")
        if stem.isidentifier() and (name.endswith(".py") or not dot):
            yield stem


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``; did you mean load or loads?`` for the known names most like this one, empty where none is."""
    from difflib import get_close_matches

    close = get_close_matches(name, [n for n in names if not n.startswith("__")], n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def find(target: str, folder: str | None = None) -> str | None:
    """What is wrong with ``module:name``, found without importing anything; None if all is well or it can't be told."""
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        return f"{target!r} does not name a function; write module:name"
    try:
        spec, problem = _spec(module_name, target, folder)
    except Exception:
        return None
    if problem is not None or spec is None:
        return problem
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        found = os.stat(spec.origin)
        names = _names_of(spec.origin, found.st_mtime_ns, found.st_size)
    except SyntaxError as exc:
        return f"{target}: {spec.origin}:{exc.lineno}: {exc.msg}"
    except (OSError, ValueError, RecursionError, MemoryError):
        return None
    first = name.split(".")[0]
    if names is None or first in names or spec.submodule_search_locations is not None:
        return None
    return f"{target}: {spec.origin} has no name {first!r}{did_you_mean(first, sorted(names))}"


@lru_cache(maxsize=64)
def _names_of(path: str, mtime_ns: int, size_bytes: int) -> frozenset[str] | None:
    """Names at the top of a module's file, None where only an import can tell; a pipeline names many of one module."""
    from procflow.resuming.syntax import parse_module

    with open(path, "rb") as file:
        names = _top_names(parse_module(file.read(), path))
    return None if names is None else frozenset(names)


def _spec(module_name: str, target: str, folder: str | None) -> tuple[ModuleSpec | None, str | None]:
    """The place of a module, or a message that says which part of its name is missing, or neither."""
    path = [os.path.abspath(folder)] if folder is not None else []
    spec: ModuleSpec | None = None
    done = ""
    for part in module_name.split("."):
        done = f"{done}.{part}" if done else part
        found = PathFinder.find_spec(done, path) if path else None
        if found is None and (done in sys.builtin_module_names or done in sys.modules):
            # Built in, or there already: importing it would not look at files, so neither do we.
            found = getattr(sys.modules.get(done), "__spec__", None)
            if not isinstance(found, ModuleSpec):
                return None, None
        if found is None and spec is None:
            found = PathFinder.find_spec(part, sys.path) or _other_finders(part)
        if found is None:
            return None, _no_module(done, target, folder)
        spec = found
        path = list(spec.submodule_search_locations or ())
    return spec, None


def _other_finders(name: str) -> ModuleSpec | None:
    # Editable installs and frozen modules have finders of their own.
    for finder in sys.meta_path:
        if finder is not PathFinder and hasattr(finder, "find_spec"):
            spec = finder.find_spec(name, None)
            if spec is not None:
                return spec
    return None


def _top_names(tree: ast.Module) -> set[str] | None:
    """Names that a module binds at its top level; None where that can't be known without running it."""
    import ast

    names: set[str] = set()
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if alias.name == "*":
                    return None
                names.add(alias.asname or alias.name.split(".")[0])
            continue
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif node.id in ("globals", "vars", "exec", "setattr", "locals"):
                return None
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
        if not isinstance(node, ast.Lambda):
            queue.extend(ast.iter_child_nodes(node))
    return None if "__getattr__" in names or _sets_globals(tree) else names


def _sets_globals(tree: ast.Module) -> bool:
    import ast

    return any(isinstance(node, ast.Global) for node in ast.walk(tree))
