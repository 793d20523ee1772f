"""Bindings: the user's functions for names that a foreign format leaves to its own registry.

From ``--bind NAME=module:function`` first, then the mapping in a ``--bindings`` file, then installed packages (entry point group
``procflow.bindings``). A binding is ``module:function``, or a mapping with ``function`` and keys of a step (``retries``,
``timeout``, ``memory``, ...), which hold for every step that uses it: what other systems keep in a registry beside the
file. No function is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from procflow.errors import PipelineError, Place, Problem

if TYPE_CHECKING:
    from procflow.dialects import Reading

__all__ = ["GROUP", "STEP_KEYS", "Bindings"]

GROUP = "procflow.bindings"
"""Entry point group: each entry point is a name, and the function it stands for."""
STEP_KEYS = frozenset({
    "function", "executor", "cpus", "memory", "resources",
    "timeout", "idle_timeout", "kill_grace", "retries", "retry",
    "priority", "rate_limit",
})  # fmt: skip
"""What a binding that is a mapping may hold."""


class Bindings:
    """Functions by name, and which of them were asked for."""

    def __init__(self, given: Mapping[str, Any], of_file: Mapping[str, Any], exact: bool = False) -> None:
        self._given = dict(given)
        self._exact = exact
        self._of_file = dict(of_file)
        self._installed: dict[str, Any] | None = None
        self._used: set[str] = set()

    @classmethod
    def of(cls, reading: Reading, folder: Path) -> Bindings:
        """Those of the command line and of the file; raises ``PipelineError`` for what is no binding."""
        given = {name: _checked(name, bound, None) for name, bound in reading.bind.items()}
        return cls(given, _of_file(reading.file) if reading.file is not None else {}, reading.exact)

    def find(self, name: str) -> dict[str, Any] | None:
        """The keys of a step for a name, ``function`` among them; None where it is not bound."""
        self._used.add(name)
        for known in (self._given, self._of_file):
            if name in known:
                bound = known[name]
                return dict(bound) if isinstance(bound, Mapping) else {"function": bound}
        bound = self._entry_points().get(name)
        return None if bound is None else {"function": bound}

    def names(self) -> list[str]:
        """All names that are bound."""
        return [*self._given, *self._of_file, *self._entry_points()]

    def unused(self) -> list[Problem]:
        """A problem for each ``--bind`` that nothing in the document asks for; files and programs may bind for several."""
        asked = ", ".join(sorted(self._used)) or "none"
        return [
            Problem(f"--bind {name}: nothing in the file asks for it", (), f"asked for: {asked}")
            for name in self._given
            if self._exact and name not in self._used
        ]

    def _entry_points(self) -> dict[str, Any]:
        if self._installed is None:
            from importlib.metadata import entry_points

            self._installed = {point.name: point.value for point in entry_points(group=GROUP)}
        return self._installed


def _of_file(name: str) -> dict[str, Any]:
    from procflow.loader import read_tree

    try:
        text = Path(name).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PipelineError([Problem(f"--bindings {name}: {reason}")]) from None
    tree, _ = read_tree(text, os.fspath(name), Path())
    if tree.problems:
        raise PipelineError(tree.problems)
    if not isinstance(tree.value, dict):
        place = Place(tree.name, tree.spot.line, tree.spot.column)
        raise PipelineError([Problem("bindings are a mapping of names to module:function", (), "", place)])
    spots = tree.spot.members or {}
    found = {}
    for key, bound in tree.value.items():
        spot = spots[key]
        found[key] = _checked(key, bound, Place(tree.name, spot.line, spot.column))
    return found


def _checked(name: str, bound: Any, place: Place | None) -> Any:
    """The binding as it is; raises ``PipelineError`` where it names no function."""
    function = bound.get("function") if isinstance(bound, dict) else bound
    wrong = ""
    if not callable(function) and not (isinstance(function, str) and function.count(":") == 1):
        wrong = "a binding is module:function, or a mapping with function and keys of a step"
    elif isinstance(bound, dict) and (unknown := bound.keys() - STEP_KEYS):
        wrong = f"{', '.join(sorted(map(str, unknown)))} can't stand in a binding; it may hold {', '.join(sorted(STEP_KEYS))}"
    if wrong:
        raise PipelineError([Problem(f"binding {name!r}: {wrong}", (), "", place)])
    return bound
