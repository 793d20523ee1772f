"""Bindings: ``{name}`` in queries, requests and prompts, apart from the text around it. Pure.

One rule for all of them: ``{name}`` (or ``{name.key.0}``) stands for a value, ``{{name}}`` for the text ``{name}``, and any other
brace is itself, so JSON and arrays need no escapes. In SQL nothing is bound inside quotes, and a name found there is refused,
because it would stay text; comments are left alone. This file finds names; what they mean is ``asking.py``'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from procflow.call import Lookup, Text
from procflow.errors import Loc, ProcflowError
from procflow.passive import passive

__all__ = [
    "BindingError",
    "Bound",
    "Mixed",
    "composed",
    "in_sql",
    "in_text",
    "joined",
    "left_open",
    "places",
    "settled",
]

_REFERENCE = r"[^\W\d][\w-]*(?:\.[\w-]+)*"
_BRACED = re.compile(rf"\{{\{{\s*({_REFERENCE})\s*\}}\}}|\{{\s*({_REFERENCE})\s*\}}")
_CLOSED = re.compile(
    r"""[eE]'(?:[^'\\]|\\.|'')*(?:'|$)|'(?:[^']|'')*(?:'|$)|"(?:[^"]|"")*(?:"|$)|`[^`]*(?:`|$)"""
    r"""|(?P<comment>--[^\n]*|/\*.*?(?:\*/|$))|\$(?P<tag>[A-Za-z_]\w*|)\$.*?(?:\$(?P=tag)\$|$)""",
    re.DOTALL,
)
"""What a name inside is not looked for: quoted texts and names, comments, dollar quotes."""


class BindingError(ProcflowError):
    """A ``{name}`` stands where nothing can be bound; ``loc`` is its place in the tree."""

    def __init__(self, message: str, hint: str = "", loc: Loc = ()) -> None:
        super().__init__(message, hint, loc)
        self.message = message
        self.hint = hint
        self.loc = loc


@passive(frozen=True, slots=True)
class Bound:
    """A place for a value: ``{rows.0.id}`` is ``Bound("rows.0.id")``."""

    name: str

    def __str__(self) -> str:
        return f"{{{self.name}}}"


Pieces = list["str | Bound"]


def in_text(text: str) -> Pieces:
    """The text with its places for values; neighbours that are text are one piece."""
    pieces: Pieces = []
    at = 0
    for found in _BRACED.finditer(text):
        _add(pieces, text[at : found.start()])
        if found[1] is not None:
            _add(pieces, f"{{{found[1]}}}")
        else:
            pieces.append(Bound(found[2]))
        at = found.end()
    _add(pieces, text[at:])
    return pieces


def _add(pieces: Pieces, text: str) -> None:
    if not text:
        return
    if pieces and isinstance(pieces[-1], str):
        pieces[-1] += text
    else:
        pieces.append(text)


def in_sql(text: str) -> Pieces:
    """The same for SQL; ``BindingError`` for a name inside quotes."""
    pieces: Pieces = []
    at = 0
    for closed in _CLOSED.finditer(text):
        _join(pieces, in_text(text[at : closed.start()]))
        at = closed.end()
        if closed["comment"] is not None:
            _add(pieces, closed[0])
            continue
        inside = in_text(closed[0])
        for piece in inside:
            if isinstance(piece, Bound):
                raise _quoted(piece, closed[0])
        _join(pieces, inside)
    _join(pieces, in_text(text[at:]))
    return pieces


def _join(pieces: Pieces, more: Pieces) -> None:
    for piece in more:
        if isinstance(piece, str):
            _add(pieces, piece)
        else:
            pieces.append(piece)


def _quoted(piece: Bound, text: str) -> BindingError:
    literal = f"{{{piece}}} is the text {piece}"
    if text[0] in '"`':
        return BindingError(
            f"{piece} stands inside {text[0]}, as the name of a column or table, and only values are bound",
            f"write ${{params.x}} for a name; {literal}",
        )
    hint = f"write {piece} without them" if text.strip("eE'") == str(piece) else f"join it: '...' || {piece}"
    return BindingError(f"{piece} stands inside quotes, where nothing is bound", f"{hint}; {literal}")


@passive(frozen=True, slots=True)
class Mixed:
    """A text with places for values that are not yet known, beside constants and references."""

    parts: tuple[Any, ...]


def places(tree: Any, loc: Loc = ()) -> Iterator[tuple[Loc, Bound]]:
    """Every place for a value in the texts of a declared tree, with where it is."""
    if isinstance(tree, str):
        yield from ((loc, piece) for piece in in_text(tree) if isinstance(piece, Bound))
    yield from _inside(tree, loc, places)


def left_open(tree: Any, loc: Loc = ()) -> Iterator[tuple[Loc, Bound]]:
    """Every place that ``composed`` has left open; texts in its tree are texts."""
    if isinstance(tree, Bound):
        yield loc, tree
    elif isinstance(tree, Mixed):
        yield from ((loc, part) for part in tree.parts if isinstance(part, Bound))
    yield from _inside(tree, loc, left_open)


def _inside(
    tree: Any, loc: Loc, find: Callable[[Any, Loc], Iterator[tuple[Loc, Bound]]]
) -> Iterator[tuple[Loc, Bound]]:
    if isinstance(tree, dict):
        for key, member in tree.items():
            yield from find(member, (*loc, str(key)))
    elif isinstance(tree, (list, tuple)):
        for i, member in enumerate(tree):
            yield from find(member, (*loc, i))


Find = Callable[[Any, Loc], Any]


def composed(tree: Any, name: Find, reference: Find, whole: bool = False, loc: Loc = ()) -> Any:
    """What ``template.parse`` made, with ``name(Bound, loc)`` in each place and ``reference(Lookup, loc)`` for each reference.

    What those return is never looked at again, so no value can bring places of its own. ``whole`` refuses a place inside a
    longer text. Raises ``BindingError``.
    """
    if isinstance(tree, Lookup):
        return reference(tree, loc)
    if isinstance(tree, (str, Text)):
        given = (tree,) if isinstance(tree, str) else tree.parts
        pieces = [p for part in given for p in (in_text(part) if isinstance(part, str) else [part])]
        found = next((piece for piece in pieces if isinstance(piece, Bound)), None)
        if whole and found is not None and len(pieces) > 1:
            raise BindingError(
                f"{found} stands inside a longer text, and only a whole text is a bound value",
                f'write "{found}"; {{{found}}} is the text {found}', loc,
            )  # fmt: skip
        return joined(
            [p if isinstance(p, str) else (name if isinstance(p, Bound) else reference)(p, loc) for p in pieces]
        )
    if isinstance(tree, dict):
        for key in tree:
            if isinstance(key, str) and any(isinstance(piece, Bound) for piece in in_text(key)):
                raise BindingError(f"the key {key!r:.80} can't be a bound value", "only values are bound", loc)
        return {_plain(k): composed(member, name, reference, whole, (*loc, str(k))) for k, member in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([composed(member, name, reference, whole, (*loc, i)) for i, member in enumerate(tree)])
    return tree


def settled(tree: Any, name: Find, loc: Loc = ()) -> Any:
    """A tree from ``composed`` whose places were left open, with ``name(Bound, loc)`` in each."""
    if isinstance(tree, Bound):
        return name(tree, loc)
    if isinstance(tree, Mixed):
        return joined([name(part, loc) if isinstance(part, Bound) else part for part in tree.parts])
    if isinstance(tree, dict):
        return {key: settled(member, name, (*loc, str(key))) for key, member in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([settled(member, name, (*loc, i)) for i, member in enumerate(tree)])
    return tree


def joined(parts: list[Any]) -> Any:
    """A text of parts; a single part stays what it is."""
    if len(parts) == 1:
        return parts[0]
    flat: list[Any] = []
    for part in parts:
        for piece in part.parts if isinstance(part, (Text, Mixed)) else (part,):
            shown = piece if isinstance(piece, (str, Lookup, Bound)) else str(piece)
            if flat and isinstance(shown, str) and isinstance(flat[-1], str):
                flat[-1] += shown
            else:
                flat.append(shown)
    if any(isinstance(piece, Bound) for piece in flat):
        return Mixed(tuple(flat))
    return flat[0] if len(flat) == 1 and isinstance(flat[0], str) else Text(tuple(flat)) if flat else ""


def _plain(key: Any) -> Any:
    return "".join(map(str, in_text(key))) if isinstance(key, str) else key
