"""Writes the pages of ``docs/reference`` from the models, the commands and the docstrings, so that they can't drift.

python docs/generate.py           writes them
python docs/generate.py --check   exit code 1 where one is not as it would be written (the tests ask the same)
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "reference"
COMMON = "Defaults"
TITLES = {
    "Transform": "`type: transform` (or `function`)", "Shell": "`type: shell`", "Query": "`type: query`", "Rest": "`type: rest`",
    "UseSkill": "`type: skill`", "Merge": "`type: merge`", "Split": "`type: split`", "Subpipeline": "`type: pipeline`",
    "Sequence": "`type: sequence`", "Parallel": "`type: parallel`", "Graph": "`type: graph`", "Map": "`type: map`",
    "Limits": "`limits`", "Defaults": "`defaults`", "Retry": "`retry`", "Param": "`params`, long form", "Source": "`sources`",
    "Skill": "`skills`", "Prices": "`prices` of a skill", "AnyStep": "a step",
}  # fmt: skip
STEPS = (
    "Transform",
    "Shell",
    "Query",
    "Rest",
    "UseSkill",
    "Merge",
    "Split",
    "Subpipeline",
    "Sequence",
    "Parallel",
    "Graph",
    "Map",
)


def pages() -> dict[str, str]:
    """File name and text of every page."""
    return {"keys.md": "\n".join(_keys()), "commands.md": "\n".join(_commands()), "api.md": "\n".join(_api())}


# -- keys of a pipeline file -------------------------------------------------------------------------------------------


def _keys() -> Iterator[str]:
    from procflow.loading.schema import pipeline_schema

    schema = pipeline_schema()
    definitions = schema["definitions"]
    yield "# Keys of a pipeline file\n"
    yield "Written by `docs/generate.py` from the models that read the file. `procflow schema` prints the same as JSON Schema.\n"
    yield "## The file\n"
    yield from _table(schema)
    common = _shared([definitions[name] for name in STEPS])
    yield "## Keys of every step\n"
    yield "A type of step that can't honour one of them refuses it, and says what to write instead.\n"
    yield from _table({"properties": common, "required": []})
    for name in (*STEPS, *(n for n in definitions if n not in (*STEPS, "AnyStep"))):
        definition = definitions[name]
        yield f"## {TITLES.get(name, name)}\n"
        if definition.get("description"):
            yield f"{_text(definition['description'])}\n"
        own = {k: v for k, v in definition.get("properties", {}).items() if name not in STEPS or common.get(k) != v}
        yield from _table({"properties": own, "required": definition.get("required", [])})


def _shared(definitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Keys that mean the same in most types of steps."""
    first = definitions[0]["properties"]
    return {
        key: value
        for key, value in first.items()
        if sum(d["properties"].get(key) == value for d in definitions) > len(definitions) // 2
    }


def _table(definition: dict[str, Any]) -> Iterator[str]:
    required = definition.get("required", [])
    rows = [
        (f"`{key}`", _type(value), _default(value, key in required), _text(value.get("description", "")))
        for key, value in definition.get("properties", {}).items()
    ]
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _default(value: dict[str, Any], is_required: bool) -> str:
    if is_required:
        return "*required*"
    default = value.get("default")
    if default in (None, "", [], {}, ()):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type(value: dict[str, Any]) -> str:
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return " or ".join(f"`{one}`" for one in value["enum"] if one is not None)
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return TITLES.get(name, name)
    for key in ("anyOf", "oneOf"):
        if key in value:
            known = dict.fromkeys(text for one in value[key] if (text := _type(one)))
            return " or ".join(known)
    examples = value.get("examples")
    if examples:
        return ", ".join(f"`{one}`" for one in examples)
    kind = value.get("type")
    if isinstance(kind, list):
        return " or ".join(_word(one) for one in kind if one != "null")
    if kind == "array":
        return f"list of {_type(value['items'])}" if "items" in value else "list"
    if kind in ("integer", "number") and "minimum" in value:
        return f"{_word(kind)} from {value['minimum']:,}" + (f" to {value['maximum']:,}" if "maximum" in value else "")
    return _word(kind) if kind and kind != "null" else ""


def _word(kind: str) -> str:
    return {
        "string": "text",
        "integer": "whole number",
        "object": "mapping",
        "boolean": "`true` or `false`",
        "array": "list",
    }.get(kind, kind)


def _text(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


# -- commands ----------------------------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    import click

    from procflow.cli import COMMANDS, cli

    yield "# Commands\n"
    yield "Written by `docs/generate.py` from the commands themselves; `procflow COMMAND --help` prints the same.\n"
    yield "| command | does |\n| --- | --- |"
    for name, (_, text) in COMMANDS.items():
        yield f"| [`{name}`](#procflow-{name}) | {text} |"
    yield ""
    own = {"help_option_names": ["-h", "--help"], "terminal_width": 100, "max_content_width": 100}
    parent = click.Context(cli, info_name="procflow", **own)
    for name in COMMANDS:
        command = cli.get_command(parent, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=parent, **own)
        yield f"## procflow {name}\n"
        yield "```text"
        yield command.get_help(context)
        yield "```\n"


# -- Python API --------------------------------------------------------------------------------------------------------


def _api() -> Iterator[str]:
    import procflow

    yield "# Python API\n"
    yield "Written by `docs/generate.py` from the docstrings of the public names.\n"
    for name in sorted(procflow.__all__, key=str.lower):
        if name.startswith("__"):
            continue
        value = getattr(procflow, name)
        yield from _entry(f"procflow.{name}", value)
    yield "# Inside a step\n"
    yield "`from procflow import step`. Outside a run all of it is harmless, so that a function can be tested alone.\n"
    step = importlib.import_module("procflow.step")
    for name in step.__all__:
        yield from _entry(f"step.{name}", getattr(step, name, None))


def _entry(title: str, value: Any) -> Iterator[str]:
    if inspect.ismodule(value) or value is None:
        return
    yield f"## `{title}`\n"
    is_code = inspect.isclass(value) or callable(value)
    if is_code:
        yield f"```python\n{title.rpartition('.')[2]}{_signature(value)}\n```\n"
    text = inspect.getdoc(value) if is_code else None
    if text:
        yield _paragraphs(text) + "\n"
    if inspect.isclass(value):
        for name, member in vars(value).items():
            if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
                continue
            own = inspect.getdoc(member)
            if own:
                call = _signature(member) if inspect.isfunction(member) else ""
                yield f"- `{name}{call}`: {_text(own)}"
        yield ""


def _signature(value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(...)"
    text = re.sub(r"<[^>]*? at 0x[0-9a-f]+>", "...", text)
    text = re.sub(r"<factory>|<class '[^']*'>", "...", text).replace("procflow.", "").replace("'", "")
    return text if len(text) <= 600 else "(...)"


def _paragraphs(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


def main() -> int:
    """Write the pages, or check them."""
    HERE.mkdir(exist_ok=True)
    stale = []
    for name, text in pages().items():
        path = HERE / name
        text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).rstrip() + "\n"
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, "utf-8")
    for name in stale:
        print(f"{'not up to date' if '--check' in sys.argv else 'wrote'}: docs/reference/{name}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
