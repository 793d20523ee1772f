"""Translating: a foreign tree into procflow's language, by the dialect that is asked for or that its shape tells.

    Tree ─ detect ─ dialect.translate ─> Made ─ settled ─> plain data, and a source with foreign positions

What the ordinary loader and compiler find wrong later is told at the place in the foreign file, with dialect and path. This file
knows the way and no dialect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from procflow.dialects import DIALECTS, Reading, detect
from procflow.dialects.bindings import Bindings
from procflow.dialects.foreign import Made, Part, Translation, near
from procflow.errors import Loc, PipelineError, Place, Problem, dotted
from procflow.loading.source import Source, Spot, Tree
from procflow.passive import passive

__all__ = ["Translated", "TranslatedSource", "translate"]


@passive(frozen=True, slots=True)
class TranslatedSource(Source):
    """A source whose positions are those of the foreign file; messages name dialect and path, too."""

    dialect: str = ""
    paths: Mapping[tuple[int, int], Loc] = field(default_factory=dict, repr=False)
    reading: Mapping[str, Any] = field(default_factory=dict)
    """As ``Reading.kept``: how the file was read, for whoever reads it again."""

    def locate(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems with their positions, dialect and path; those that have a position keep it."""
        found = list(problems)
        return self.told([p if p.place is not None else p.at(self.place(p.loc)) for p in found])

    def told(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems in this file with dialect and path before their messages."""
        return [self._told(problem) for problem in problems]

    def _told(self, problem: Problem) -> Problem:
        place = problem.place
        if place is None or place.file != self.name or problem.message.startswith(f"{self.dialect}: "):
            return problem
        path = dotted(self.paths.get((place.line, place.column), ()))
        return Problem(
            f"{self.dialect}: {path}{': ' if path else ''}{problem.message}", problem.loc, problem.hint, place
        )


@passive(frozen=True, slots=True)
class Translated:
    """A foreign document in procflow's language. ``plain`` is dicts, lists and scalars in the order people read them."""

    dialect: str
    plain: dict[str, Any]
    source: TranslatedSource
    notes: tuple[str, ...]


def translate(tree: Tree, source: Source, reading: Reading) -> Translated | None:
    """See ``procflow.dialects.translated``."""
    if tree.problems and not isinstance(tree.value, dict):
        return None
    name = reading.dialect or _detected(tree, reading)
    if name is None:
        return None
    if name not in DIALECTS:
        hint = near(name, DIALECTS) or f"known are {', '.join(DIALECTS)}"
        raise PipelineError([Problem(f"there is no dialect {name!r}", (), hint)])
    if not isinstance(tree.value, dict):
        place = Place(tree.name, tree.spot.line, tree.spot.column)
        raise PipelineError([Problem(f"{name}: a file of this format is a mapping", (), "", place)])
    work = Translation(name, tree, Bindings.of(reading, source.folder))
    made = DIALECTS[name].load().translate(work)
    work.finish()
    assert made is not None, "a dialect that notes no problem returns a pipeline"
    paths: dict[tuple[int, int], Loc] = {}
    plain, spot = _settled(made, work.root, paths)
    found = TranslatedSource(source.name, source.path, source.folder, spot, name, paths, reading.kept())
    return Translated(name, plain, found, tuple(work.notes))


def _detected(tree: Tree, reading: Reading) -> str | None:
    found = detect(tree.value) if isinstance(tree.value, dict) else []
    if len(found) > 1:
        place = Place(tree.name, tree.spot.line, tree.spot.column)
        names = " and ".join(dialect.name for dialect in found)
        raise PipelineError([Problem(f"this may be {names}", (), f"say which: --dialect {found[0].name}", place)])
    if not found and (reading.bind or reading.file):
        option = "--bind" if reading.bind else "--bindings"
        hint = f"name a dialect if it is one: --dialect {'|'.join(DIALECTS)}"
        raise PipelineError(
            [Problem(f"{option} is for files of other systems, and {tree.name} is procflow's own", (), hint)]
        )
    return found[0].name if found else None


_FIRST = (
    "type", "name", "description", "when", "items", "as", "source", "function", "strategy", "into", "inputs", "params",
)  # fmt: skip
_LAST = ("output", "outputs", "merge", "score", "steps")


def _in_order(value: dict[str, Any]) -> list[tuple[str, Any]]:
    """The keys of a step in the order in which people read them; other mappings as they are."""
    if not isinstance(value, Made) or "type" not in value:
        return list(value.items())
    first = [(key, value[key]) for key in _FIRST if key in value]
    last = [(key, value[key]) for key in _LAST if key in value]
    return [*first, *((key, member) for key, member in value.items() if key not in (*_FIRST, *_LAST)), *last]


def _settled(value: Any, origin: Part, paths: dict[tuple[int, int], Loc]) -> tuple[Any, Spot]:
    """Plain data and its spots. A part taken over as it is keeps the position of each of its values."""
    if isinstance(value, Made):
        origin = value.origin
    line, column = origin.spot.line, origin.spot.column
    paths.setdefault((line, column), origin.loc)
    if origin.key is not None:
        paths.setdefault(origin.key, origin.loc)
    if isinstance(value, dict):
        spot = Spot(line, column, {}, {})
        assert spot.members is not None
        assert spot.keys is not None
        plain: dict[str, Any] = {}
        for key, member in _in_order(value):
            own = value.origins.get(key) if isinstance(value, Made) else None
            below = own or (origin[key] if not isinstance(value, Made) and isinstance(origin.value, dict) else origin)
            below = below if below.is_there else origin
            plain[key], spot.members[key] = _settled(member, below, paths)
            if below is not origin and below.key is not None:
                spot.keys[key] = below.key
        return plain, spot
    if isinstance(value, (list, tuple)):
        spot = Spot(line, column, {})
        assert spot.members is not None
        members = []
        for i, member in enumerate(value):
            below = origin[i] if isinstance(origin.value, list) and i < len(origin.value) else origin
            made, spot.members[i] = _settled(member, below, paths)
            members.append(made)
        return members, spot
    return value, Spot(line, column)
