"""JSON text into a tree, with positions and by the letter of RFC 8259: no comments, no trailing commas, no NaN.

The standard library's parser knows no positions, keeps the last of two equal keys, and recurses; strings are still its work.
"""

from __future__ import annotations

import bisect
import math
import re
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]
from typing import Any

from procflow.loading.source import Tree, clip

__all__ = ["read_json"]

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z]+")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
_LONGEST_NUMBER = 100


def read_json(text: str, tree: Tree) -> None:
    """Feed the values of ``text`` to ``tree``; raises ``PipelineError`` where it is not one JSON value."""
    _Reader(text, tree).read()


class _Reader:
    def __init__(self, text: str, tree: Tree) -> None:
        self.text = text
        self.tree = tree
        self.at = 0
        self._starts = [0, *(found.end() for found in re.finditer("\n", text))]

    def place(self, at: int) -> tuple[int, int]:
        line = bisect.bisect_right(self._starts, at)
        return line, at - self._starts[line - 1] + 1

    def fail(self, message: str, at: int, hint: str = "") -> None:
        self.tree.fail(f"not valid JSON: {message}", *self.place(at), hint)

    def next(self) -> str:
        """The next character that is not space, empty at the end."""
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return self.text[self.at : self.at + 1]

    def read(self) -> None:
        if self.next() == "":
            self.tree.fail("the file is empty", 1, 1, "a pipeline is a mapping with name and steps")
        closers: list[str] = []
        self.value(closers)
        while closers:
            self.member(closers)
        if self.next() != "":
            self.fail("more text after the end of the value", self.at)

    def member(self, closers: list[str]) -> None:
        """One step inside the innermost list or mapping: its end, or its next member."""
        closer, fresh = closers[-1], self.fresh
        self.fresh = False
        found = self.next()
        if found == closer:
            self.at += 1
            closers.pop()
            self.tree.close()
            return
        if not fresh:
            if found != ",":
                self.fail(f"expected , or {closer}", self.at)
            self.at += 1
            if self.next() == closer:
                self.fail("a comma before the end", self.at, "remove it")
        if closer == "}":
            if self.next() != '"':
                self.fail("expected a key in double quotes", self.at)
            self.string()
            if self.next() != ":":
                self.fail("expected : after the key", self.at)
            self.at += 1
        self.value(closers)

    fresh = False

    def value(self, closers: list[str]) -> None:
        """The value that begins here; a list or mapping is only opened."""
        found = self.next()
        if found in ("{", "["):
            self.tree.open({} if found == "{" else [], *self.place(self.at))
            closers.append("}" if found == "{" else "]")
            self.at += 1
            self.fresh = True
        elif found == '"':
            self.string()
        else:
            self.bare()

    def string(self) -> None:
        start = self.at
        try:
            value, self.at = scanstring(self.text, start + 1, True)
        except JSONDecodeError as error:
            self.fail(error.msg, error.pos)
        if "\0" in value:
            self.fail("a NUL character", start)
        if any("\ud800" <= c <= "\udfff" for c in value):
            self.fail("half of a surrogate pair", start)
        self.tree.scalar(value, value, *self.place(start))

    def bare(self) -> None:
        start = self.at
        number = _NUMBER.match(self.text, start)
        if number is not None:
            self.at = number.end()
            self.tree.scalar(self.number(number, start), number[0], *self.place(start))
            return
        word = _WORD.match(self.text, start)
        if word is None or word[0] not in _WORDS:
            shown = word[0] if word is not None else self.text[start : start + 1]
            self.fail(f"expected a value, got {clip(shown)}" if shown else "the text ends too early", start)
        assert word is not None
        self.at = word.end()
        self.tree.scalar(_WORDS[word[0]], word[0], *self.place(start))

    def number(self, found: re.Match[str], start: int) -> Any:
        if len(found[0]) > _LONGEST_NUMBER:
            self.tree.note(
                f"a number of {len(found[0]):,} digits", *self.place(start), "put quotes around it if it is text"
            )
            return found[0]
        if found[1] is None and found[2] is None:
            return int(found[0])
        value = float(found[0])
        if math.isinf(value):
            self.tree.note(
                f"{found[0]} is too large for a number", *self.place(start), "put quotes around it if it is text"
            )
        return value
