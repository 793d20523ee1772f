"""YAML text into a tree: YAML 1.2 core scalars, one document, no tags, no merge keys.

Works on the parser's events and never composes: PyYAML's C composer crashes on deep nesting and expands aliases without bound.
``no``, ``on``, ``1:30`` and dates are text, ``010`` is ten, ``1e3`` is a number. Builds nothing but dicts, lists, text and numbers.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from procflow.loading.source import Tree, clip

__all__ = ["read_yaml"]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
    | dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf)
    | dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf)
    | dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan)
)
_NUMBER_STARTS = frozenset("+-.0123456789")
LONGEST_NUMBER = 100


def read_yaml(text: str, tree: Tree) -> None:
    """Feed the events of ``text`` to ``tree``; raises ``PipelineError`` where it is not one plain YAML document."""
    lines = text.split("\n")
    parser = _LOADER(text)
    documents = 0
    try:
        while parser.check_event():
            event = parser.get_event()
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                _document(event, documents, tree)
            else:
                _node(event, tree)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        tree.fail(f"not valid YAML: {error.problem or error.context}", line, column, _advice(lines, line, column))
    except yaml.YAMLError as error:
        tree.fail(f"not valid YAML: {str(error).splitlines()[0][:200]}", 1, 1)
    finally:
        parser.dispose()
    if documents == 0:
        tree.fail("the file is empty", 1, 1, "a pipeline is a mapping with name and steps")


def _document(event: Any, count: int, tree: Tree) -> None:
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    if count > 1:
        tree.fail("a second document begins here", line, column, "a pipeline file holds one; remove the line ---")
    if event.version is not None and event.version != (1, 2):
        written = ".".join(map(str, event.version))
        tree.fail(f"YAML {written} is not read here, only 1.2", line, column, "remove the line %YAML")
    if event.tags:
        tree.fail("tags are not allowed", line, column, "remove the line %TAG")


def _node(event: Any, tree: Tree) -> None:
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    if isinstance(event, yaml.ScalarEvent):
        if event.tag is not None:
            _tag(event.tag, line, column, tree)
        is_plain = event.implicit[0] and event.tag is None
        if is_plain and event.value == "<<" and tree.expects_key:
            tree.drop_key(
                "merge keys (<<) are not part of YAML 1.2",
                line,
                column,
                "repeat the keys, or write them under defaults",
            )
            return
        value = _plain(event.value, line, column, tree) if is_plain else event.value
        tree.scalar(value, event.value, line, column, event.anchor)
    elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
        if event.tag is not None:
            _tag(event.tag, line, column, tree)
        tree.open({} if isinstance(event, yaml.MappingStartEvent) else [], line, column, event.anchor)
    elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
        tree.close()
    elif isinstance(event, yaml.AliasEvent):
        tree.alias(event.anchor or "", line, column)


def _tag(tag: str, line: int, column: int, tree: Tree) -> None:
    shown = tag.replace("tag:yaml.org,2002:", "!!")
    tree.note(
        f"the tag {clip(shown)[1:-1]} is not allowed",
        line,
        column,
        "remove it: values are plain text, numbers, lists and mappings",
    )


def _plain(text: str, line: int, column: int, tree: Tree) -> Any:
    """The value of an unquoted scalar by the core schema of YAML 1.2."""
    if len(text) <= 5 and text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMBER_STARTS:
        return text
    is_int = _INT.fullmatch(text) is not None
    if not is_int and _FLOAT.fullmatch(text) is None:
        return text
    if len(text) > LONGEST_NUMBER:
        tree.note(f"a number of {len(text):,} digits", line, column, "put quotes around it if it is text")
        return text
    if is_int:
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    value = float(text)
    if math.isinf(value):
        tree.note(f"{clip(text)[1:-1]} is too large for a number", line, column, "put quotes around it if it is text")
    return value


def _advice(lines: list[str], line: int, column: int) -> str:
    """What to do about a syntax error, guessed from the text around it."""
    here = lines[line - 1] if line <= len(lines) else ""
    near = [lines[line - 2] if 2 <= line <= len(lines) + 1 else "", here]
    if "\t" in here[: len(here) - len(here.lstrip()) + 1] or here[column - 1 : column] == "\t":
        return "indent with spaces, not tabs"
    if here[column - 1 : column] in ("@", "`", "%"):
        return f"put quotes around text that begins with {here[column - 1]}"
    if any("${" in text and ("{" in text.replace("${", "") or "[" in text) for text in near):
        return 'put quotes around "${...}" inside { } and [ ]'
    if any(text.count(": ") > 1 and "{" not in text for text in near):
        return "put quotes around text that holds a colon and a space"
    return ""
