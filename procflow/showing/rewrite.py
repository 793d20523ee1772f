"""Rewrite: suggestions written into the text of a pipeline file, at the positions that its parser tells.

Only what changes is touched: comments, order, quotes and line ends stay. Text that can't be changed that way (a step that
stands there twice through an alias, say) is refused with a reason; the caller checks the result by loading it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

from procflow.errors import Loc, ProcflowError
from procflow.showing.suggest import Suggestion

__all__ = ["CannotRewrite", "rewritten"]


class CannotRewrite(ProcflowError):
    """The file can't be changed without changing something else; the message says what."""

    exit_code = 2


def rewritten(text: str, chosen: Sequence[Suggestion]) -> str:
    """The text with a graph in the place of each sequence that was chosen."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    root = yaml.compose(text, Loader=loader)
    if root is None:
        raise CannotRewrite("the file is empty")
    edits: list[tuple[int, int, str]] = []
    for each in chosen:
        if not each.refused:
            _edit(text, root, each, edits)
    for begin, end, new in sorted(edits, reverse=True):
        text = text[:begin] + new + text[end:]
    return text


def _edit(text: str, root: Any, each: Suggestion, edits: list[tuple[int, int, str]]) -> None:
    block = _at(root, each.loc)
    _set(text, block, "type", "graph", edits, before="steps")
    steps = _value(block, "steps")
    for i, names in each.added.items():
        step = steps.value[i]
        old = _value(step, "depends_on")
        known = [] if old is None else [old.value] if isinstance(old, yaml.ScalarNode) else [n.value for n in old.value]
        _set(text, step, "depends_on", [*known, *(name for name in names if name not in known)], edits)


def _at(root: Any, loc: Loc) -> Any:
    node = root
    seen = {id(node)}
    for part in loc:
        node = node.value[part] if isinstance(part, int) else _value(node, part)
        if node is None:
            raise CannotRewrite(
                f"{'.'.join(map(str, loc))} is not where it should be; is it merged from elsewhere (<<)?"
            )
        if id(node) in seen:
            raise CannotRewrite("the file refers to itself")
        seen.add(id(node))
    if _uses(root, node) > 1:
        raise CannotRewrite(
            f"{'.'.join(map(str, loc)) or 'the file'} stands in several places through an alias (*name)"
        )
    return node


def _uses(root: Any, wanted: Any) -> int:
    """How often a node stands in the tree."""
    count = 0
    waiting = [root]
    while waiting:
        node = waiting.pop()
        count += node is wanted
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return count


def _value(mapping: Any, key: str) -> Any:
    if not isinstance(mapping, yaml.MappingNode):
        return None
    return next((value for name, value in mapping.value if name.value == key), None)


def _set(
    text: str, mapping: Any, key: str, value: Any, edits: list[tuple[int, int, str]], before: str | None = None
) -> None:
    """Give a key of a mapping another value, or put it there: before the key named, else behind its first line."""
    if not isinstance(mapping, yaml.MappingNode):
        raise CannotRewrite("a step is no mapping")
    plain = _plain(value)
    old = _value(mapping, key)
    if old is not None:
        quoted = isinstance(old, yaml.ScalarNode) and old.style in ("'", '"')
        quoted = quoted or bool(mapping.flow_style and mapping.value[0][0].style == '"')
        new = json.dumps(value) if quoted else plain
        edits.append((old.start_mark.index, old.end_mark.index, new))
        return
    first = next((name for name, _ in mapping.value if before is None or name.value == before), mapping.value[0][0])
    if mapping.flow_style:
        quotes = first.style == '"'
        written = f'"{key}": {json.dumps(value)}' if quotes else f"{key}: {plain}"
        edits.append((first.start_mark.index, first.start_mark.index, f"{written}, "))
        return
    end = "\r\n" if "\r\n" in text else "\n"
    indent = " " * first.start_mark.column
    if before is not None:
        at = first.start_mark.index
        edits.append((at, at, f"{key}: {plain}{end}{indent}"))
        return
    # Behind the first key and all of its value, with the comment on that line.
    follows = mapping.value[1][0].start_mark.index if len(mapping.value) > 1 else None
    if follows is not None:
        edits.append((follows, follows, f"{key}: {plain}{end}{indent}"))
        return
    at = first.start_mark.index
    edits.append((at, at, f"{key}: {plain}{end}{indent}"))


def _plain(value: Any) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
