"""What the code of a step is made of, as canonical bytes: read from source files by their syntax, never imported.

Of ``module:name`` counts the function itself, what it uses from its own module (functions, classes, constants, and what
these use), the module's statements that only act (``random.seed(1)``), and every local module that any of these import,
whole, with the local modules that those import. Comments, docstrings and formatting do not count. Installed packages count
by name and major version, the standard library not at all (the journal records Python's version).

Callables that exist already (Python API) count by the same reading of the file they came from, with the values they
closed over and their defaults; those without a file by their bytecode and the globals it names.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

from procflow.resuming.canonical import Canonical, digest
from procflow.resuming.source_module import Module, Modules, Use, is_local

__all__ = ["CodePrints"]


class CodePrints:
    """Prints of functions, each file read once."""

    def __init__(self) -> None:
        self._modules = Modules()
        self._targets: dict[tuple[str, str | None], bytes] = {}
        self._sources: dict[int, tuple[CodeType, bytes | None]] = {}
        self._classes: dict[int, tuple[type, bytes]] = {}

    def target(self, target: str, folder: str | None) -> bytes:
        """The print of ``module:name``, modules in ``folder`` first; of the name alone where there is no source."""
        known = self._targets.get((target, folder))
        if known is None:
            name, _, attribute = target.partition(":")
            module = self._modules.find(name, folder)
            parts = [target.encode()]
            if module is None:
                parts.append(_version(name))
            else:
                parts.append(self._closure(module, module.use([attribute.split(".")[0]]), folder))
            known = self._targets[target, folder] = b"\0".join(parts)
        return known

    def pieces(self, target: str, folder: str | None) -> dict[str, bytes]:
        """What the print of ``module:name`` is made of, by name: its own module's definitions, other modules whole."""
        name, _, attribute = target.partition(":")
        module = self._modules.find(name, folder)
        if module is None:
            return {}
        use = module.use([attribute.split(".")[0]])
        found: dict[str, bytes] = {}
        for bound, text in use.pieces:
            found[bound or "statements"] = found.get(bound or "statements", b"") + text
        waiting = list(use.modules)
        while waiting:
            other_name = waiting.pop()
            other = None if f"module {other_name}" in found else self._modules.find(other_name, folder)
            if other is not None:
                whole = other.whole()
                found[f"module {other_name}"] = whole.text
                waiting += whole.modules
        return found

    def callable(self, value: Any, canonical: Canonical) -> bytes:
        """The print of a function, a class, or another callable; as ``Canonical`` asks for it."""
        if isinstance(value, partial):
            return b"partial " + canonical.of((value.func, value.args, value.keywords))
        if isinstance(value, MethodType):
            return b"method " + canonical.of((value.__func__, value.__self__))
        if isinstance(value, FunctionType):
            return self._function(value, canonical)
        if isinstance(value, type):
            if id(value) not in self._classes:
                self._classes[id(value)] = (value, self._class(value))
            return self._classes[id(value)][1]
        if isinstance(value, BuiltinFunctionType):
            return f"builtin {value.__module__}.{value.__qualname__}".encode()
        return b"instance " + canonical.of((type(value), getattr(value, "__dict__", {})))

    def _class(self, kind: type) -> bytes:
        name = f"class {kind.__module__}.{kind.__qualname__}".encode()
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        module = self._modules.at(file, kind.__module__) if file and is_local(file) else None
        if module is None:
            return name
        return name + self._closure(module, module.use([kind.__qualname__.split(".")[0]]), os.path.dirname(module.path))

    def _function(self, function: FunctionType, canonical: Canonical) -> bytes:
        code = function.__code__
        state = {
            "cells": dict(zip(code.co_freevars, map(_cell, function.__closure__ or ()), strict=False)),
            "defaults": function.__defaults__,
            "keyword defaults": function.__kwdefaults__,
        }
        # By identity: equal code may come from another file. The code is held, so its id stays its own.
        if id(code) not in self._sources:
            self._sources[id(code)] = (code, self._source(function))
        own = self._sources[id(code)][1] or canonical.of(self._bytecode(code, function.__globals__))
        return own + canonical.of(state)

    def _source(self, function: FunctionType) -> bytes | None:
        code = function.__code__
        module = self._modules.at(code.co_filename, function.__module__)
        node = module.function(code.co_name, code.co_firstlineno) if module is not None else None
        if module is None or node is None:
            return None
        if not is_local(module.path):
            return f"installed {function.__module__}.{function.__qualname__} ".encode() + _version(function.__module__)
        return self._closure(module, module.use_of(node), os.path.dirname(os.path.abspath(module.path)))

    def _bytecode(self, code: CodeType, names: dict[str, Any]) -> list[Any]:
        constants = [self._bytecode(c, names) if isinstance(c, CodeType) else c for c in code.co_consts]
        used = {name: names[name] for name in code.co_names if name in names}
        return [code.co_code, constants, code.co_names, code.co_varnames, code.co_flags, used]

    def _closure(self, module: Module, use: Use, folder: str | None) -> bytes:
        """The used statements of a module, and all local modules behind them."""
        found: dict[str, bytes] = {}
        packages: set[bytes] = set()
        waiting = list(use.modules)
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            other = self._modules.find(name, folder)
            if other is None:
                found[name] = b""
                packages.add(_version(name))
                continue
            whole = other.whole()
            found[name] = digest(whole.text).encode()
            waiting += whole.modules
        local = b"".join(f"{name}=".encode() + found[name] for name in sorted(found) if found[name])
        return b"\0".join([digest(use.text).encode(), local, *sorted(packages)])


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


@lru_cache(maxsize=1000)
def _version(module: str) -> bytes:
    """Name and major version of the package that a module is of; empty for the standard library."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "__main__":
        return b""
    from importlib import metadata

    try:
        return f"{top} {metadata.version(top).partition('.')[0]}".encode()
    except metadata.PackageNotFoundError:
        return top.encode()
