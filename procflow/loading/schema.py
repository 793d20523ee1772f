"""Schema: the pipeline language as JSON Schema (draft 7), for editors and for ``procflow schema``.

Made from the model, so it can't drift. It accepts whatever the loader accepts; rules between several keys, references and names
are beyond it, so the loader and the compiler refuse more.
"""

from __future__ import annotations

import copy
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from procflow.model import STEP_TYPES, Pipeline
from procflow.record import NAMED, Record
from procflow.units import Share

__all__ = ["pipeline_schema"]

_PLACE = "#/definitions/"


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, with our own values in defaults."""

    def encode_default(self, dft: Any) -> Any:
        return str(dft) if isinstance(dft, Share) else super().encode_default(dft)


def pipeline_schema() -> dict[str, Any]:
    """The schema of a pipeline file, as plain dicts and lists that ``json.dumps`` takes."""
    definitions: dict[str, Any] = {}
    made: dict[str, Any] = {}
    records: list[type[Record]] = [*dict.fromkeys(STEP_TYPES.values()), Pipeline]
    for record in records:
        made = record.model_json_schema(
            by_alias=True, ref_template=f"{_PLACE}{{model}}", schema_generator=_Generator, mode="validation"
        )
        definitions |= made.pop("$defs", {})
        if record is not Pipeline:
            definitions[record.__name__] = made
    definitions = {name: definitions[name] for name in sorted(definitions)}
    for kind, record in STEP_TYPES.items():
        properties = definitions[record.__name__]["properties"]
        if kind not in ("transform", "function"):
            # Without type only a function is a step; the model's default is for Python.
            required = definitions[record.__name__].setdefault("required", [])
            definitions[record.__name__]["required"] = ["type", *(k for k in required if k != "type")]
        if kind == "map":
            properties["item_name"] = copy.deepcopy(properties["as"])
    definitions["Param"] = {"title": "Param", "description": "a default, or a mapping with default, help and required"}
    definitions["Source"] = {"anyOf": [{"type": "string", "minLength": 1}, definitions["Source"]]}
    schema: dict[str, Any] = _plainer(made)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "procflow pipeline",
        **{key: value for key, value in schema.items() if key != "title"},
        "definitions": _plainer(definitions),
    }


def _plainer(tree: Any) -> Any:
    """Without titles that only repeat a key, which editors would show; names that no pattern allows are refused."""
    if isinstance(tree, dict):
        if tree.keys() == {NAMED}:
            return {"$ref": _PLACE + tree[NAMED]}
        plain = {
            key: {name: _plainer(value) for name, value in part.items()} if key == "properties" else _plainer(part)
            for key, part in tree.items()
            if key != "title" or not isinstance(part, str)
        }
        return plain | {"additionalProperties": False} if "patternProperties" in plain else plain
    return [_plainer(part) for part in tree] if isinstance(tree, (list, tuple)) else tree
