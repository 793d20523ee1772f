"""Writing: a pipeline in procflow's language as YAML that people read: block style, stable, short lists on one line.

The text reads back as exactly the tree it was made from, which is checked each time: procflow reads YAML 1.2, and PyYAML writes for
1.1. This file knows nothing of dialects.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from procflow.errors import InternalError

__all__ = ["yaml_text"]

WIDTH = 110
_LOOKS_LIKE_NUMBER = re.compile(r"[-+]?(?:\.?[0-9][0-9.]*(?:[eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+)")


class _Dumper(yaml.SafeDumper):
    """Block style, indented lists, no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: _Dumper, value: str) -> Any:
    style = None
    if "\n" in value and not any(line != line.rstrip() for line in value.split("\n")):
        style = "|"
    elif _LOOKS_LIKE_NUMBER.fullmatch(value):
        style = '"'  # 1e3 is text for YAML 1.1 and a number for 1.2
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)


def _is_short(value: Any) -> bool:
    return not isinstance(value, (dict, list)) and len(str(value)) <= 40 and "\n" not in str(value)


def _list(dumper: _Dumper, value: list[Any]) -> Any:
    flow = all(map(_is_short, value)) and sum(len(str(member)) + 2 for member in value) <= 80
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)


def yaml_text(pipeline: dict[str, Any], head: str = "") -> str:
    """The pipeline as YAML; ``head`` are lines of comment above it, without ``#``."""
    text = yaml.dump(
        pipeline, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=False
    )
    # One empty line between the parts of the file and between its top steps: a page, not a wall.
    text = re.sub(r"\n(?=(?:params|sources|secrets|limits|defaults|show|steps):)|\n(?=  - )(?<!steps:\n)", "\n\n", text)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head.split("\n")) if head else ""
    _check(pipeline, text)
    return f"{comment}{text}"


def _check(pipeline: dict[str, Any], text: str) -> None:
    from procflow.loader import read_tree

    tree, _ = read_tree(text, "converted.yaml", Path())
    if tree.problems or tree.value != pipeline:
        raise InternalError("the YAML of a converted pipeline does not read back as it was", [text[:2000]])
