"""Foreign: a document of another system as parts that know their place, and the tree in procflow's language made of it.

``Part`` is a value of the foreign document with its path and position; ``Made`` is a mapping in procflow's language that
remembers which parts it stands for, so that the foreign place of everything is found later. ``Translation`` is one document on
its way: it collects problems, notes and the functions asked for. This file knows no dialect and reads no file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from procflow.dialects.bindings import Bindings
from procflow.errors import Loc, PipelineError, Place, Problem, dotted
from procflow.loading.source import Spot, Tree, clip

__all__ = ["Made", "Part", "Translation", "escaped", "name_of", "near"]


def escaped(value: Any) -> Any:
    """A constant of a foreign file as procflow's language writes it: ``${`` would be a reference there."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {escaped(key): escaped(member) for key, member in value.items()}
    return [escaped(member) for member in value] if isinstance(value, list) else value


def name_of(text: str, default: str = "pipeline") -> str:
    """The text as a name of procflow's: letters, digits, ``_`` and ``-``; ``default`` where nothing is left of it."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in text.strip()).strip("_")[:120]
    if not kept:
        return default
    return kept if kept[0].isalpha() else f"_{kept}"


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """A value of the foreign document.

    A part that is not there has ``is_there`` False, the value None, and the place of what should hold it. ``part["key"]`` never
    raises.
    """

    work: Translation = field(repr=False)
    value: Any
    loc: Loc
    spot: Spot = field(repr=False)
    is_there: bool = True
    key: tuple[int, int] | None = None

    def __getitem__(self, key: str | int) -> Part:
        at: Loc = (*self.loc, key)
        spot = (self.spot.members or {}).get(key)
        if spot is None or not isinstance(self.value, (dict, list)):
            return Part(self.work, None, at, self.spot, False)
        known = (self.spot.keys or {}).get(key) if isinstance(key, str) else None
        value: Any = self.value
        return Part(self.work, value[key], at, spot, True, known)

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def __iter__(self) -> Iterator[Part]:
        if isinstance(self.value, list):
            yield from (self[i] for i in range(len(self.value)))

    def items(self) -> Iterator[tuple[str, Part]]:
        """The members of a mapping; none of anything else."""
        if isinstance(self.value, dict):
            yield from ((key, self[key]) for key in self.value)

    @property
    def path(self) -> str:
        """``steps[0].query``."""
        return dotted(self.loc)

    def fail(self, message: str, hint: str = "", on_key: bool = False) -> None:
        """A problem here; the translation goes on. ``on_key`` puts it at the key instead of the value."""
        line, column = self.key if on_key and self.key is not None else (self.spot.line, self.spot.column)
        where = f"{self.path}: " if self.loc else ""
        self.work.problems.append(
            Problem(f"{self.work.dialect}: {where}{message}", self.loc, hint, Place(self.work.name, line, column))
        )

    def note(self, message: str) -> None:
        """Something tolerated, or understood in one way of several."""
        line, column = self.key or (self.spot.line, self.spot.column)
        where = f"{self.path}: " if self.loc else ""
        self.work.notes.append(f"{Place(self.work.name, line, column)}: {where}{message}")

    # -- typed values --------------------------------------------------------------------------------------------------

    def _typed(self, kinds: type | tuple[type, ...], what: str, default: Any, required: bool) -> Any:
        if self.value is None:
            if required:
                self.fail("is missing" if not self.is_there else "is empty", f"expected {what}")
            return default
        if isinstance(self.value, kinds) and (kinds is bool or not isinstance(self.value, bool)):
            return self.value
        self.fail(f"expected {what}, not {_shown(self.value)}")
        return default

    def text(self, default: str = "", required: bool = False) -> str:
        """Text; numbers are refused."""
        return cast(str, self._typed(str, "text", default, required))

    def flag(self, default: bool = False) -> bool:
        """True or false."""
        return cast(bool, self._typed(bool, "true or false", default, False))

    def whole(self, default: int | None = None, least: int = 0, required: bool = False) -> int | None:
        """A whole number of at least ``least``."""
        value = self._typed(int, f"a whole number of at least {least}", default, required)
        if value is not None and value is not default and value < least:
            self.fail(f"expected a whole number of at least {least}, not {value}")
            return default
        return cast("int | None", value)

    def seconds(self) -> str | None:
        """A number of seconds as a duration of procflow's; None where there is none."""
        value = self._typed((int, float), "a number of seconds", None, False)
        if value is None:
            return None
        if not 0 < value <= 10**9:
            self.fail(f"expected a number of seconds above 0, not {value}")
            return None
        return f"{value:g}s"

    def choice(self, known: Sequence[str], default: str = "", required: bool = False, any_case: bool = False) -> str:
        """One of the known words; ``any_case`` takes upper case, too."""
        text = self.text(default, required)
        word = text.strip().lower() if any_case else text
        if word in known or text == default:
            return word
        self.fail(f"{clip(text)} is not known", near(word, known) or f"expected {', '.join(known)}")
        return default

    def mapping(self, required: bool = False) -> bool:
        """Whether this is a mapping; a problem where it is something else, or absent and ``required``."""
        return isinstance(self._typed(dict, "a mapping", None, required), dict)

    def members(self, least: int = 0, what: str = "a list") -> list[Part]:
        """The parts of a list; a problem where it is something else or has fewer than ``least``."""
        value = self._typed(list, what, None, least > 0)
        if value is not None and len(value) < least:
            self.fail(f"has {len(value)} of at least {least} members", f"expected {what}")
        return list(self)

    def only(
        self,
        known: Iterable[str],
        refused: Mapping[str, str] | None = None,
        tolerant: bool = False,
        why: str = "procflow can't do this",
    ) -> None:
        """A problem for each key that is not known, with a hint for those that the dialect has and procflow can't do.

        ``tolerant`` notes unknown keys instead; ``refused`` are refused all the same, with ``why`` as the message.
        """
        words = list(known)
        for key, part in self.items():
            if key in words or part.value is None:
                continue
            if refused and key in refused:
                part.fail(why, refused[key], on_key=True)
            elif tolerant:
                part.note("not a key of this format; left out")
            else:
                part.fail("unknown key", near(key, words), on_key=True)


def near(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the known word most like this one, empty where none is."""
    found = difflib.get_close_matches(word[:64], list(known)[:2000], 1, 0.6)
    return f"did you mean {found[0]!r}?" if found else ""


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return clip(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)[:60]


# -- making ------------------------------------------------------------------------------------------------------------


class Made(dict[str, Any]):
    """A mapping in procflow's language, made from ``origin``; keys in the order they are set."""

    def __init__(self, origin: Part, **keys: Any) -> None:
        super().__init__(keys)
        self.origin = origin
        self.origins: dict[str, Part] = {}

    def set(self, key: str, value: Any, origin: Part | None = None) -> Made:
        """Set a key, made from a part of its own."""
        self[key] = value
        if origin is not None and origin.is_there:
            self.origins[key] = origin
        return self

    def take(self, other: Made, without_empty: bool = False) -> Made:
        """The keys of another, with their parts; ``without_empty`` as ``put`` does."""
        for key, value in other.items():
            (self.put if without_empty else self.set)(key, value, other.origins.get(key))
        return self

    def put(self, key: str, value: Any, origin: Part | None = None) -> Made:
        """As ``set``; None, empty text and empty containers are left out."""
        empty = value is None or (isinstance(value, (str, list, dict)) and not value)
        return self if empty else self.set(key, value, origin)


class Translation:
    """One foreign document on its way. ``root`` is all of it."""

    def __init__(self, dialect: str, tree: Tree, bindings: Bindings) -> None:
        self.dialect = dialect
        self.name = tree.name
        self.problems: list[Problem] = list(tree.problems)
        self.notes: list[str] = []
        self.bindings = bindings
        self.root = Part(self, tree.value, (), tree.spot)
        self._unbound: dict[str, list[Part]] = {}
        self._what: dict[str, str] = {}

    def bound(self, part: Part, *names: str, what: str = "function") -> dict[str, Any]:
        """The keys of a step, ``function`` among them, for the first of the names that is bound.

        Where none is, that is told once for the whole document, and the step calls nothing.
        """
        for name in names:
            found = self.bindings.find(name)
            if found is not None:
                return found
        self._unbound.setdefault(names[-1], []).append(part)
        self._what.setdefault(names[-1], what)
        return {"function": "procflow.dialects.runtime:nothing"}

    def finish(self) -> None:
        """Raise ``PipelineError`` with all that was found wrong, unbound names as one problem."""
        if self._unbound:
            count = len(self._unbound)
            listed = "; ".join(
                f"{self._what[name]} {name!r} ({'; '.join(_place(part) for part in parts[:5])}"
                + (f"; and {len(parts) - 5} more)" if len(parts) > 5 else ")")
                for name, parts in self._unbound.items()
            )
            first = next(iter(self._unbound))
            near_miss = near(first, self.bindings.names())
            hint = f"write --bind {first}=module:function for each, or a mapping of them in a file for --bindings"
            each = next(iter(self._unbound.values()))[0]
            self.problems.append(
                Problem(
                    f"{self.dialect}: {count} name{'s are' if count > 1 else ' is'} bound to no function of yours: {listed}",
                    each.loc, f"{hint}; {near_miss}" if near_miss else hint, Place(self.name, each.spot.line, each.spot.column),
                )
            )  # fmt: skip
        if not self.problems:
            self.problems += self.bindings.unused()
        if self.problems:
            raise PipelineError(dict.fromkeys(self.problems))


def _place(part: Part) -> str:
    return f"line {part.spot.line}: {part.path}"
