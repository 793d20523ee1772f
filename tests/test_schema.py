"""The JSON Schema for editors: it takes what the loader takes, and sees the mistakes that a schema can see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_model import BLOCKS, LEAVES

from procflow.loader import load_text
from procflow.loading.schema import pipeline_schema
from procflow.model import STEP_TYPES, Pipeline

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
GOOD: dict[str, dict[str, Any]] = {
    **{kind: {"name": "p", "steps": [step]} for kind, step in (LEAVES | BLOCKS).items()},
    "a function without type": {"name": "p", "steps": [{"function": "m:f"}]},
    "an item's name": {"name": "p", "steps": [{"type": "map", "items": [1], "function": "m:f", "as": "row"}]},
    "everything": {
        "name": "p",
        "description": "text",
        "type": "graph",
        "params": {"a": 1, "b": {"default": 2, "help": "text"}, "c": {"required": True}, "d": [1, {"x": None}]},
        "limits": {"workers": 4, "memory": "80%", "timeout": "2h", "resources": {"db": 4}},
        "defaults": {"timeout": 30, "retry": {"retries": 1, "delay": 0, "on": "error"}},
        "on_error": "continue",
        "tolerate": "2%",
        "show": "a",
        "sources": {"a": "sqlite:///a.db", "b": {"url": "https://h", "headers": {"X": "y"}, "max_connections": 2, "timeout": "5s"}},
        "skills": {
            "a": {
                "kind": "llm", "base_url": "https://h", "model": "m", "prompt": "{x}", "requires": ["x"],
                "produces": {"y": "string"},
            },
            "b": {"kind": "rest", "url": "https://h", "json": {"a": 1}, "produces": {"z": {"type": "integer", "minimum": 1}}},
        },
        "steps": [
            {
                "type": "parallel", "name": "a", "max_parallelism": 2, "join": 1, "merge": "best_quality", "score": "m:f",
                "when": "${x}",
                "tolerate": 0, "on_error": "continue", "rate_limit": "10/s", "priority": -1, "retries": 0, "output": None,
                "depends_on": "b",
                "steps": [
                    {"function": "m:f", "inputs": {"a": "rows"}, "outputs": "*", "resources": {"db": 0.5}, "cpus": 2},
                    {"type": "shell", "command": ["ls", 1], "env": {"A": 1}, "parse": "json", "ok_codes": [0, 1]},
                    {"type": "map", "items": {"range": [0, 5]}, "steps": [{"type": "merge", "inputs": ["a"], "merge": "m:f"}]},
                ],
            }
        ],
    },
}  # fmt: skip
BAD: dict[str, dict[str, Any]] = {
    "no steps": {"name": "p"},
    "empty steps": {"name": "p", "steps": []},
    "no type": {"name": "p", "steps": [{"command": ["ls"]}]},
    "unknown type": {"name": "p", "steps": [{"type": "mpa", "items": [1], "function": "m:f"}]},
    "unknown key": {"name": "p", "steps": [{"function": "m:f", "retires": 1}]},
    "bad name": {"name": "a b", "steps": [{"function": "m:f"}]},
    "bad number": {"name": "p", "steps": [{"function": "m:f", "retries": "three"}]},
    "bare size": {"name": "p", "limits": {"memory": 500}, "steps": [{"function": "m:f"}]},
    "bad word deep inside": {
        "name": "p",
        "steps": [{"type": "parallel", "steps": [{"function": "m:f", "on_error": "no"}]}],
    },
    "bad resource": {"name": "p", "limits": {"resources": {"d b": 1}}, "steps": [{"function": "m:f"}]},
    "bad kind of source": {"name": "p", "sources": {"a": {"url": "x", "kind": "sqll"}}, "steps": [{"function": "m:f"}]},
    "bad form of rows": {"name": "p", "steps": [{"type": "query", "source": "a", "query": "x", "as": "arow"}]},
    "bad type of an output": {
        "name": "p",
        "skills": {"a": {"kind": "python", "function": "m:f", "produces": {"y": "text"}}},
        "steps": [{"function": "m:f"}],
    },
    "bad merge": {"name": "p", "steps": [{"type": "merge", "inputs": ["a"], "merge": "updat"}]},
}


def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = pipeline_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_the_schema_is_plain_json_of_draft_7_with_every_type_of_step() -> None:
    schema = pipeline_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert {record.__name__ for record in STEP_TYPES.values()} <= set(schema["definitions"])
    text = json.dumps(schema)
    assert "$defs" not in text
    assert "prefixItems" not in text
    assert set(schema["properties"]) == set(Pipeline.model_fields)
    assert {"as", "items"} <= set(schema["definitions"]["Map"]["properties"])


def test_every_reference_of_the_schema_leads_somewhere() -> None:
    schema = pipeline_schema()
    waiting: list[Any] = [schema]
    seen = set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            seen |= {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    assert seen
    assert all(name.removeprefix("#/definitions/") in schema["definitions"] for name in seen)


@pytest.mark.parametrize("kind", GOOD)
def test_what_the_loader_takes_the_schema_takes(kind: str) -> None:
    load_text(json.dumps(GOOD[kind]), "p.json", ".")
    assert [e.message for e in validator().iter_errors(GOOD[kind])] == []


@pytest.mark.parametrize("kind", BAD)
def test_what_is_plainly_wrong_the_schema_sees(kind: str) -> None:
    assert list(validator().iter_errors(BAD[kind]))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.name for path in CONFIGS])
def test_the_pipelines_that_come_with_procflow_fit_the_schema(path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    assert [e.message for e in validator().iter_errors(yaml.safe_load(path.read_text()))] == []
