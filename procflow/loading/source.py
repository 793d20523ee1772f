"""Source: a pipeline's text as a plain tree, with the position of every key and value.

``Tree`` takes a reader's events (open, scalar, alias, close) and builds dicts, lists and scalars, so that YAML and JSON share
one set of bounds: depth, aliases, expanded size, duplicate and non-text keys. It knows nothing of pipelines, reads no file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from procflow.errors import Loc, PipelineError, Place, Problem
from procflow.passive import passive

__all__ = ["MAX_ALIASES", "MAX_DEPTH", "MAX_VALUES", "Source", "Spot", "Tree", "clip"]

MAX_DEPTH = 64
MAX_ALIASES = 100
MAX_VALUES = 100_000


def clip(text: str) -> str:
    """Text in double quotes, on one line and at most 60 characters long."""
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return '"' + short.encode("unicode_escape").decode().replace('"', '\\"') + '"'


@dataclass(slots=True)
class Spot:
    """Where a value stands, with the spots of its members and the positions of its keys."""

    line: int
    column: int
    members: dict[str | int, Spot] | None = None
    keys: dict[str, tuple[int, int]] | None = None


@passive(frozen=True, slots=True)
class Source:
    """Where a pipeline came from.

    ``name`` is what messages call it, ``path`` its file (None for text), ``folder`` the absolute folder that its relative paths and
    modules start from.
    """

    name: str
    path: Path | None
    folder: Path
    root: Spot = field(default_factory=lambda: Spot(1, 1), repr=False)

    def place(self, loc: Loc) -> Place | None:
        """The position of the value at ``loc``, or of its nearest ancestor that is in the text."""
        spot = self.root
        for part in loc:
            below = spot.members.get(part) if spot.members is not None else None
            if below is None:
                break
            spot = below
        return Place(self.name, spot.line, spot.column)

    def key_place(self, loc: Loc) -> Place | None:
        """The position of the key that ``loc`` ends with; that of the value where it has no key."""
        spot = self.root
        for part in loc[:-1]:
            below = spot.members.get(part) if spot.members is not None else None
            if below is None:
                return self.place(loc)
            spot = below
        found = spot.keys.get(str(loc[-1])) if loc and spot.keys is not None else None
        return Place(self.name, *found) if found is not None else self.place(loc)

    def locate(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems with their positions; those that have one keep it."""
        return [p if p.place is not None else p.at(self.place(p.loc)) for p in problems]

    def told(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems as they are told of this source; a file of another format says more."""
        return list(problems)


@dataclass(slots=True)
class _Open:
    """A list or mapping that is being read. ``wanted`` is False while a value is read only to be dropped."""

    value: Any
    spot: Spot
    anchor: str | None
    before: int
    height: int = 1
    key: str | None = None
    wanted: bool = True
    at: str | int = 0


@dataclass(slots=True)
class _Anchored:
    value: Any
    spot: Spot
    size: int
    height: int
    is_open: bool = False


class Tree:
    """Builds the tree from a reader's events; lines and columns count from 1.

    Small mistakes are collected in ``problems`` and reading goes on; ``fail`` ends it with all that was found so far.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Any = None
        self.spot = Spot(1, 1)
        self.problems: list[Problem] = []
        self._stack: list[_Open] = []
        self._anchors: dict[str, _Anchored] = {}
        self._values = 0
        self._aliases = 0

    def note(self, message: str, line: int, column: int, hint: str = "") -> None:
        """One more problem; reading goes on."""
        loc = tuple(o.at for o in self._stack)
        self.problems.append(Problem(message, loc, hint, Place(self.name, line, column)))

    def fail(self, message: str, line: int, column: int, hint: str = "") -> NoReturn:
        """Reading can't go on: raises ``PipelineError``."""
        self.note(message, line, column, hint)
        raise PipelineError(self.problems)

    def open(self, value: dict[str, Any] | list[Any], line: int, column: int, anchor: str | None = None) -> None:
        """A list or mapping begins; ``value`` is the empty one to fill."""
        if len(self._stack) >= MAX_DEPTH:
            self.fail(
                f"nested more than {MAX_DEPTH} deep",
                line,
                column,
                "move inner steps to a file of their own: type: pipeline",
            )
        if self._expects_key():
            self.fail("a key must be text, not a list or mapping", line, column)
        self._count(1, line, column)
        spot = Spot(line, column, {}, {} if isinstance(value, dict) else None)
        if anchor is not None:
            self._anchors[anchor] = _Anchored(value, spot, 0, 0, is_open=True)
        self._stack.append(_Open(value, spot, anchor, self._values))

    def close(self) -> None:
        """The list or mapping opened last ends."""
        done = self._stack.pop()
        if done.anchor is not None:
            self._anchors[done.anchor] = _Anchored(done.value, done.spot, self._values - done.before + 1, done.height)
        self._place(done.value, done.spot, done.height)

    def scalar(self, value: Any, text: str, line: int, column: int, anchor: str | None = None) -> None:
        """A value without parts; ``text`` is what was written."""
        if self._expects_key():
            self._key(value, text, line, column)
        else:
            self._count(1, line, column)
            self._place(value, Spot(line, column), 0)
        if anchor is not None:
            self._anchors[anchor] = _Anchored(value, Spot(line, column), 1, 0)

    def alias(self, anchor: str, line: int, column: int) -> None:
        """A second use of an anchored value: the same object, counted as often as it is used."""
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            self.fail(f"more than {MAX_ALIASES} aliases", line, column, "a map step makes many steps from a list")
        found = self._anchors.get(anchor)
        if found is None:
            self.fail(f"unknown alias *{anchor[:60]}", line, column, "an anchor is written &name, before its first use")
        if found.is_open:
            self.fail(
                f"*{anchor[:60]} stands inside the value that it names", line, column, "a value can't hold itself"
            )
        if self._expects_key():
            if not isinstance(found.value, str):
                self.fail("a key must be text, not a list or mapping", line, column)
            self._key(found.value, found.value, line, column)
            return
        if len(self._stack) + found.height > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} deep through *{anchor[:60]}", line, column)
        self._count(found.size, line, column)
        self._place(found.value, Spot(line, column, found.spot.members, found.spot.keys), found.height)

    def drop_key(self, message: str, line: int, column: int, hint: str) -> None:
        """Note a key that can't be used; its value is read and dropped."""
        mapping = self._stack[-1]
        mapping.key, mapping.wanted = "", False
        self.note(message, line, column, hint)

    @property
    def expects_key(self) -> bool:
        """Whether what comes next is a key of a mapping."""
        return self._expects_key()

    def _expects_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None

    def _count(self, values: int, line: int, column: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            self.fail(
                f"more than {MAX_VALUES:,} values", line, column, "keep data in files of its own and read it in a step"
            )

    def _key(self, value: Any, text: str, line: int, column: int) -> None:
        mapping = self._stack[-1]
        if not isinstance(value, str):
            mapping.at = text[:60]
            self.drop_key(f"the key {text[:60] or 'null'} is not text", line, column, "put quotes around it")
            return
        mapping.at = value
        assert mapping.spot.keys is not None
        first = mapping.spot.keys.get(value)
        if first is not None:
            self.drop_key(
                f"duplicate key {clip(value)}: first in line {first[0]}, column {first[1]}, again in line {line}, column {column}",
                line, column, "keep one",
            )  # fmt: skip
            return
        mapping.spot.keys[value] = (line, column)
        mapping.key, mapping.wanted = value, True

    def _place(self, value: Any, spot: Spot, height: int) -> None:
        if not self._stack:
            self.value, self.spot = value, spot
            return
        into = self._stack[-1]
        if height >= into.height:
            into.height = height + 1
        assert into.spot.members is not None
        if isinstance(into.value, dict):
            if into.wanted:
                assert into.key is not None
                into.value[into.key] = value
                into.spot.members[into.key] = spot
            into.key, into.wanted = None, True
        else:
            into.spot.members[len(into.value)] = spot
            into.value.append(value)
            into.at = len(into.value)
