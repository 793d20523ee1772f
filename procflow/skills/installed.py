"""Installed: skills of installed packages, by the entry point group ``procflow.skills``.

An entry point names a function (a skill of kind python; its attributes ``requires`` and ``produces`` count), or a mapping with
the keys of a skill in a file. Only those that a pipeline uses are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from procflow.record_sources import Skill

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "Installed"]

GROUP = "procflow.skills"


class Installed:
    """The skills of installed packages; see ``compiling.declared.Installed``."""

    def __init__(self) -> None:
        self._points: dict[str, EntryPoint] | None = None
        self._known: dict[str, Skill | str | None] = {}

    def names(self) -> tuple[str, ...]:
        """All that there are."""
        if self._points is None:
            from importlib.metadata import entry_points

            self._points = {point.name: point for point in entry_points(group=GROUP)}
        return tuple(self._points)

    def __call__(self, name: str) -> Skill | str | None:
        """The skill of this name, a sentence on why it can't be used, or None."""
        if name not in self._known:
            self._known[name] = _loaded(self._points[name]) if name in self.names() and self._points else None
        return self._known[name]


def _loaded(point: EntryPoint) -> Skill | str:
    try:
        found = point.load()
    except BaseException as error:
        # A package may do anything at import, sys.exit included.
        return f"loading {point.value} failed: {type(error).__name__}: {error}"
    if isinstance(found, Skill):
        return found
    given: Any = found
    if not isinstance(found, Mapping):
        if not callable(found):
            return f"{point.value} is of type {type(found).__name__}, neither a function nor a mapping"
        shapes = {key: getattr(found, key) for key in ("requires", "produces") if hasattr(found, key)}
        given = {"kind": "python", "function": f"{point.module}:{point.attr}", **shapes}
    try:
        return Skill.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        return f"{point.value}: {at + ': ' if at else ''}{first['msg']}"
