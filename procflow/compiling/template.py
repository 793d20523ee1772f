"""Template: text with ``${name.path}`` in it, as a tree of constants, ``Lookup`` and ``Text``.

Strings are parsed once, before a run; workers only fill trees in. A reference is a name and a path, never an
expression: nothing here evaluates, calls or imports anything. Pure: no clock, no files, no environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from procflow.call import Lookup, Text
from procflow.errors import Loc, ProcflowError

__all__ = [
    "ReferenceFailed",
    "TemplateError",
    "fill",
    "follow",
    "lookups",
    "lookups_in",
    "may_refer",
    "parse",
    "parse_reference",
    "replace",
    "shell_word",
]

MAX_DEPTH = 100
"""Deepest nesting of containers in a declared argument."""

_OPENING = re.compile(r"\$\$\{|\$\{")
_REFERENCE = re.compile(r"[^\W\d][\w-]*(?:\.[\w-]+)*")
_INT = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_CONTAINERS = (dict, list, tuple)
_HOLDING = (Lookup, Text, *_CONTAINERS)


class TemplateError(ProcflowError):
    """A string holds ``${`` and is not a reference; ``loc`` is its place in the tree that was parsed."""

    def __init__(self, message: str, loc: Loc = ()) -> None:
        super().__init__(message, loc)
        self.message = message
        self.loc = loc

    def __str__(self) -> str:
        return self.message


class ReferenceFailed(ProcflowError):
    """A reference leads nowhere in the value it was given; the message says where it stopped and what is there."""


def parse(value: Any, loc: Loc = ()) -> Any:
    """The tree for a declared value: strings become ``Lookup``, ``Text`` or stay str; dict, list and tuple recursively.

    ``$${`` stands for a literal ``${``. Raises ``TemplateError``.
    """
    if isinstance(value, str):
        return _parse_text(value, loc) if "${" in value else value
    kind = type(value)
    if kind not in _CONTAINERS:
        return value
    if len(loc) > MAX_DEPTH + 8:
        raise TemplateError(f"nested deeper than {MAX_DEPTH} levels", loc[:8])
    if kind is dict:
        return {
            _parse_key(key, loc): parse(member, (*loc, str(key))) if may_refer(member) else member
            for key, member in value.items()
        }
    return kind([parse(member, (*loc, i)) if may_refer(member) else member for i, member in enumerate(value)])


def may_refer(value: Any) -> bool:
    """Whether there may be something to parse: what most arguments are needs no place."""
    return "${" in value if isinstance(value, str) else type(value) in _CONTAINERS


def _parse_key(key: Any, loc: Loc) -> Any:
    tree = _parse_text(key, loc) if isinstance(key, str) and "${" in key else key
    if isinstance(tree, (Lookup, Text)):
        raise TemplateError(f"the key {key!r} can't hold a reference; write $${{ for a literal ${{", loc)
    return tree


def _parse_text(text: str, loc: Loc) -> Lookup | Text | str:
    parts: list[str | Lookup] = []
    literal = ""
    at = 0
    while (opening := _OPENING.search(text, at)) is not None:
        literal += text[at : opening.start()]
        if opening[0] == "$${":
            literal += "${"
            at = opening.end()
            continue
        end = text.find("}", opening.end())
        if end < 0:
            raise TemplateError(f"{_short(text)}: ${{ has no closing }}; write $${{ for a literal ${{", loc)
        if literal:
            parts.append(literal)
            literal = ""
        parts.append(parse_reference(text[opening.end() : end], loc))
        at = end + 1
    literal += text[at:]
    if literal:
        parts.append(literal)
    if len(parts) == 1:
        return parts[0]
    return Text(tuple(parts))


def parse_reference(inner: str, loc: Loc = ()) -> Lookup:
    """The lookup for what stands between ``${`` and ``}``; whole numbers in the path become int."""
    found = _REFERENCE.fullmatch(inner.strip())
    if found is None:
        shown = _short("${" + inner + "}")
        if not inner.strip():
            raise TemplateError(f"{shown} names nothing; write ${{name}} or ${{name.key.0}}", loc)
        raise TemplateError(f"{shown} is not a reference: only a name and a path such as ${{name.key.0}}", loc)
    name, *path = found[0].split(".")
    return Lookup(name, tuple(int(part) if _INT.fullmatch(part) else part for part in path))


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def lookups(tree: Any, loc: Loc = ()) -> Iterator[tuple[Loc, Lookup]]:
    """Every lookup of a tree with its place, in order."""
    kind = type(tree)
    if kind is Lookup:
        yield loc, tree
    elif kind is Text:
        for part in tree.parts:
            if type(part) is Lookup:
                yield loc, part
    elif kind is dict:
        for key, member in tree.items():
            if type(member) in _HOLDING:
                yield from lookups(member, (*loc, str(key)))
    elif kind is list or kind is tuple:
        for i, member in enumerate(tree):
            if type(member) in _HOLDING:
                yield from lookups(member, (*loc, i))


def lookups_in(trees: Iterable[Any]) -> list[Lookup]:
    """The same without their places, which most need not know."""
    found: list[Lookup] = []
    for tree in trees:
        kind = type(tree)
        if kind is Lookup:
            found.append(tree)
        elif kind is Text:
            found += [part for part in tree.parts if type(part) is Lookup]
        elif kind in _CONTAINERS and tree:
            found += lookups_in(tree.values() if kind is dict else tree)
    return found


def replace(tree: Any, fn: Callable[[Lookup], Any], text: Callable[[Any], str] = str) -> Any:
    """The tree with each lookup replaced by ``fn(lookup)``: a constant, or another lookup.

    A ``Text`` that is left without lookups becomes a str. ``text`` turns a constant into its part of a ``Text``;
    pass ``shell_word`` for a command line, so that a value can't add words to it.
    """
    kind = type(tree)
    if kind is Lookup:
        return fn(tree)
    if kind is Text:
        parts: list[str | Lookup] = []
        for part in tree.parts:
            if type(part) is Lookup:
                value = fn(part)
                if type(value) is Text:
                    parts += value.parts
                    continue
                part = value if type(value) is Lookup else text(value)
            if parts and isinstance(part, str) and isinstance(parts[-1], str):
                parts[-1] += part
            else:
                parts.append(part)
        return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else Text(tuple(parts))
    if kind is dict:
        return {key: replace(member, fn, text) for key, member in tree.items()}
    if kind is list or kind is tuple:
        return kind([replace(member, fn, text) for member in tree])
    return tree


def fill(tree: Any, values: Callable[[str], Any], text: Callable[[Any], str] = str) -> Any:
    """The value of a tree: lookups become values, texts become str, containers are made afresh.

    ``values`` gives the value of a name. Raises ``ReferenceFailed``.
    """
    kind = type(tree)
    if kind is Lookup:
        value = values(tree.name)
        return follow(value, tree.path, tree) if tree.path else value
    if kind is Text:
        return "".join([p if isinstance(p, str) else text(fill(p, values)) for p in tree.parts])
    if kind is dict:
        return {key: fill(member, values, text) for key, member in tree.items()}
    if kind is list or kind is tuple:
        return kind([fill(member, values, text) for member in tree])
    if kind is set:
        return set(tree)
    return tree


def shell_word(value: Any) -> str:
    """The value as one word of a shell command line, quoted; a list or tuple gives one word a member."""
    from shlex import quote

    if isinstance(value, (list, tuple)):
        return " ".join(quote(str(member)) for member in value)
    return quote(str(value))


def follow(value: Any, path: tuple[str | int, ...], lookup: Lookup) -> Any:
    """What ``path`` leads to inside ``value``; ``lookup`` is the reference being followed, for the message."""
    for depth, part in enumerate(path):
        if isinstance(value, Mapping):
            if part in value:
                value = value[part]
            elif isinstance(part, int) and str(part) in value:
                value = value[str(part)]
            else:
                raise _no_key(value, part, depth, lookup)
        else:
            value = _member(value, part, depth, lookup)
    return value


def _member(value: Any, part: str | int, depth: int, lookup: Lookup) -> Any:
    names = getattr(type(value), "_fields", None) if isinstance(value, tuple) else None
    if names is None and is_dataclass(value) and not isinstance(value, type):
        names = tuple(f.name for f in fields(value))
    if names is not None and isinstance(part, str):
        if part in names:
            return getattr(value, part)
        raise _no_key(names, part, depth, lookup, kind=type(value).__name__, what="field")
    if isinstance(value, (str, bytes, bytearray)) or not hasattr(value, "__getitem__"):
        raise ReferenceFailed(f"{lookup}: {_where(lookup, depth)} is {_a(value)}, which has no part {part!r}")
    if isinstance(value, (list, tuple)) and not isinstance(part, int):
        raise ReferenceFailed(
            f"{lookup}: {_where(lookup, depth)} is {_a(value)} of length {len(value)}; "
            f"write an index such as 0 instead of {part!r}"
        )
    try:
        return value[part]
    except IndexError:
        raise ReferenceFailed(
            f"{lookup}: {_where(lookup, depth)} is {_a(value)} of length {len(value)}; there is no index {part}"
        ) from None
    except Exception as exc:
        raise ReferenceFailed(
            f"{lookup}: {_where(lookup, depth)} is {_a(value)} and gave no part {part!r} ({type(exc).__name__}: {exc})"
        ) from exc


def _no_key(
    value: Any, part: str | int, depth: int, lookup: Lookup, kind: str | None = None, what: str = "key"
) -> ReferenceFailed:
    from difflib import get_close_matches

    names = [str(key) for _, key in zip(range(1000), value, strict=False)]
    close = get_close_matches(str(part), names, n=1)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    has = f"it has {shown}" if names else "it is empty"
    guess = f"; did you mean {close[0]!r}?" if close else ""
    article = f"a {kind}" if kind is not None else _a(value)
    return ReferenceFailed(f"{lookup}: {_where(lookup, depth)} is {article} without {what} {part!r}; {has}{guess}")


def _where(lookup: Lookup, depth: int) -> str:
    return ".".join([lookup.name, *map(str, lookup.path[:depth])])


def _a(value: Any) -> str:
    name = "null" if value is None else type(value).__name__
    return name if value is None else f"an {name}" if name[0] in "aeio" else f"a {name}"
