"""Edit: an ``executor:`` written into a pipeline's text at its place, with every other character as it was.

YAML in block and flow style, and JSON. What comes out is read again and must differ from what went in by this one key, else
nothing is changed. It reads and writes no files.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from procflow.errors import Loc, PipelineError, ProcflowError
from procflow.loading.source import Source

__all__ = ["NotEdited", "with_executor"]

_SCALAR = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[A-Za-z0-9_.:-]*[A-Za-z0-9_-]""")

_LINE = re.compile(r"[^\n]*\n|[^\n]+")


class NotEdited(ProcflowError):
    """The text can't be changed at this place without risk; the message says where, and what to write by hand."""


def with_executor(text: str, source: Source, loc: Loc, executor: str) -> str:
    """The text with ``executor`` for the step at ``loc``; ``NotEdited`` where that can't be done safely."""
    lines = _LINE.findall(text)
    is_json = source.name.lower().endswith(".json")
    word = f'"{executor}"' if is_json else executor
    if _has(source, (*loc, "executor")):
        _replace(lines, source, (*loc, "executor"), word)
    else:
        _insert(lines, source, loc, '"executor"' if is_json else "executor", word)
    edited = "".join(lines)
    _check(text, edited, source, loc, executor)
    return edited


def _has(source: Source, loc: Loc) -> bool:
    spot: Any = source.root
    for part in loc:
        spot = (spot.members or {}).get(part) if spot is not None else None
    return spot is not None


def _at(source: Source, loc: Loc, is_key: bool = False) -> tuple[int, int]:
    """Line and column from 0."""
    place = source.key_place(loc) if is_key else source.place(loc)
    assert place is not None
    return place.line - 1, place.column - 1


def _replace(lines: list[str], source: Source, loc: Loc, word: str) -> None:
    row, column = _at(source, loc)
    line = lines[row]
    found = _SCALAR.match(line, column)
    if found is None:
        raise _by_hand(source, loc, word)
    lines[row] = line[:column] + word + line[found.end() :]


def _insert(lines: list[str], source: Source, loc: Loc, key: str, word: str) -> None:
    """After the step's name, or its type where it has none: on a line of its own, or behind a comma."""
    anchor = next((name for name in ("name", "type", "function") if _has(source, (*loc, name))), None)
    if anchor is None:
        raise _by_hand(source, loc, word)
    row, column = _at(source, (*loc, anchor))
    line = lines[row]
    found = _SCALAR.match(line, column)
    if found is None:
        raise _by_hand(source, loc, word)
    step_row, step_column = _at(source, loc)
    if lines[step_row][step_column : step_column + 1] == "{":
        lines[row] = f"{line[: found.end()]}, {key}: {word}{line[found.end() :]}"
        return
    key_row, key_column = _at(source, (*loc, anchor), is_key=True)
    if key_row != row:
        raise _by_hand(source, loc, word)
    ending = "\r\n" if line.endswith("\r\n") else "\n"
    if not line.endswith(("\n", "\r")):
        lines[row] = line + ending
    lines.insert(row + 1, f"{' ' * key_column}{key}: {word}{ending}")


def _check(before: str, after: str, source: Source, loc: Loc, executor: str) -> None:
    try:
        (old, old_problems), (new, new_problems) = (_read(text, source) for text in (before, after))
    except PipelineError:
        raise _by_hand(source, loc, executor) from None
    step = old
    try:
        for part in loc:
            step = step[part]
        step["executor"] = executor
    except (KeyError, IndexError, TypeError):
        raise _by_hand(source, loc, executor) from None
    if new != old or new_problems > old_problems:
        raise _by_hand(source, loc, executor)


def _read(text: str, source: Source) -> tuple[Any, int]:
    """A copy of its tree (aliases name the same parts of it), and how many small mistakes it has."""
    from procflow.loader import read_tree

    tree, _ = read_tree(text, source.name, source.folder)
    return copy.deepcopy(tree.value), len(tree.problems)


def _by_hand(source: Source, loc: Loc, word: str) -> NotEdited:
    return NotEdited(f"{source.place(loc)}: can't be edited safely here; write executor: {word} by hand")
