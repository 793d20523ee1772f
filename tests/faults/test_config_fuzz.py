"""Pipeline files with mistakes in them, by the thousand: each is compiled, or refused with places, quickly, and runs nothing.

Documents are good ones with one to three mistakes in their tree, or in their text, or in their bytes, as YAML and as
JSON. ``PROCFLOW_FUZZ`` is their number, 20,000 by default; number n of seed s is always the same document, and what
fails names both.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ledger
import pytest
import yaml

from procflow.compiler import compile_pipeline
from procflow.errors import PipelineError
from procflow.loader import load_pipeline, load_text
from procflow.model import Pipeline

DOCUMENTS = int(os.environ.get("PROCFLOW_FUZZ", "0")) or 20_000
SEED = int(os.environ.get("PROCFLOW_SEED", "20261120"))
PARTS = 20
MOST_S = 1.0
MOST_KIB = 200 << 10

STEPS: list[dict[str, Any]] = [
    {"type": "transform", "name": "a", "function": "mine_fuzz:f", "params": {"x": 1, "y": "${params.day}"}},
    {"name": "b", "function": "mine_fuzz:g", "inputs": ["a"], "timeout": "30s", "retries": 2, "memory": "100MB"},
    {"name": "c", "function": "mine_fuzz:g", "inputs": {"x": "a"}, "outputs": ["p", "q"], "when": "${a} != ''"},
    {"type": "shell", "name": "d", "command": ["echo", "${params.day}"], "parse": "text", "env": {"K": "v"}},
    {"type": "shell", "name": "e", "command": "echo ${a}", "ok_codes": [0, 3]},
    {"type": "split", "name": "f", "inputs": ["a"], "into": 3},
    {"type": "merge", "name": "g", "inputs": ["a", "b"], "merge": "combine_outputs", "output": "both"},
    {"name": "h", "function": "mine_fuzz:h", "retry": {"retries": 3, "delay": "1s", "backoff": 2.0, "on": ["error"]}},
]
BLOCKS: list[dict[str, Any]] = [
    {"type": "parallel", "name": "wide", "max_parallelism": 2, "join": "any", "steps": [0, 0, 0]},
    {"type": "sequence", "name": "line", "timeout": "1h", "steps": [0, 0]},
    {"type": "graph", "name": "net", "on_error": "continue", "tolerate": 2, "steps": [0, 0, 0]},
    {"type": "map", "name": "each", "items": {"range": [0, 9]}, "tolerate": "2%", "output": "rows", "steps": [0, 0]},
    {"type": "map", "name": "one", "items": [1, 2, 3], "function": "mine_fuzz:each", "batch": 4, "output": "ones"},
]
WORDS = (
    *("name", "type", "steps", "inputs", "output", "when", "timeout", "retry", "memory", "function", "items", "nmae"),
    *("merge", "tolerate", "join", "cpus", "on_error", "params", "limits", "defaults", "depends_on", "stpes", "x y"),
)
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e308, 10**30, "", " ", "no", "010", "1:30", "10 GB", "500", "1.5h", "-3s", "∞"),
    *(
        "${",
        "${a",
        "${a.b.c}",
        "${missing}",
        "${params.nothing}",
        "${env.HOME}",
        "mine_fuzz",
        "mine_fuzz:",
        ":f",
        "a" * 300,
    ),
    *("../../x", "a/b", "\u202egnp", "A", [], {}, [[]], [None], {"a": {}}, {"": 1}, ["a", "a"], [1, "b", {"c": [2]}]),
    *("parallel", "map", "transform", "shell", "unlimited", "auto", "80%", "101%", "2001-01-01", "*a", "&a", "!!x"),
)
BITS = ("[", "]", "{", "}", ":", "- ", "\n", "\t", "  ", "'", '"', "#", "&a ", "*a", "!!python/object:os.system ", "|",
        ">", "---\n", "...\n", "\0", "\ufeff", "\u2028", "${", ",", "?", "<<: ", "%YAML 1.1\n", "\r", "é", "\ud800")  # fmt: skip


def good(chance: random.Random) -> dict[str, Any]:
    """The tree of a pipeline that mostly makes sense."""
    tree: dict[str, Any] = {
        "name": "p",
        "params": {"day": "x", "corpus": {"default": 3, "help": "a number"}},
        "steps": copy.deepcopy(STEPS[:2]) + [_step(chance, i, 0) for i in range(2, chance.randint(2, 7))],
    }
    if chance.random() < 0.5:
        tree["limits"] = {"workers": "auto", "memory": "80%", "timeout": "2h", "resources": {"db": 4}}
    if chance.random() < 0.5:
        tree["defaults"] = {"timeout": "30m", "retries": 1}
    if chance.random() < 0.3:
        tree["type"] = "graph"
    return tree


def _step(chance: random.Random, number: int, depth: int) -> dict[str, Any]:
    if depth < 3 and chance.random() < 0.3:
        step = copy.deepcopy(chance.choice(BLOCKS))
        if "steps" in step:
            step["steps"] = [_step(chance, 10 * number + i, depth + 1) for i in range(len(step["steps"]))]
    else:
        step = copy.deepcopy(chance.choice(STEPS[2:] if depth < 2 else STEPS[:1]))
    step["name"] = f"{step['name']}{number}"
    if "outputs" in step:
        step["outputs"] = [f"{name}{number}" for name in step["outputs"]]
    elif "output" in step:
        step["output"] += str(number)
    return step


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a tree with each of its keys or indices."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        for key in list(one) if isinstance(one, dict) else range(len(one)):
            yield one, key
            if isinstance(one[key], (dict, list)):
                waiting.append(one[key])


def spoil_tree(tree: dict[str, Any], chance: random.Random) -> None:
    """One mistake in the tree."""
    found = list(places(tree))
    if not found:
        return
    where, key = chance.choice(found)
    kind = chance.randrange(6)
    if kind == 0:
        where[key] = copy.deepcopy(chance.choice(ODD))
    elif kind == 1:
        del where[key]
    elif kind == 2 and isinstance(where, dict):
        where[chance.choice(WORDS)] = where.pop(key)
    elif kind == 3 and isinstance(where, dict):
        where[chance.choice(WORDS)] = copy.deepcopy(chance.choice(ODD))
    elif kind == 4 and isinstance(where, list):
        where.insert(key, copy.deepcopy(where[key]))
    else:
        other, at = chance.choice(found)
        where[key] = copy.deepcopy(other[at] if isinstance(other, dict) and at in other else chance.choice(ODD))


def spoil_text(text: str, chance: random.Random) -> str:
    """One mistake in the text."""
    at = chance.randrange(len(text) + 1)
    kind = chance.randrange(5)
    if kind == 0:
        return text[:at] + chance.choice(BITS) * chance.choice((1, 1, 1, 2, 200)) + text[at:]
    if kind == 1:
        return text[:at] + text[at + chance.randint(1, 8) :]
    if kind == 2:
        return text[:at] + chr(chance.choice((chance.randrange(32, 127), chance.randrange(0xD7FF)))) + text[at + 1 :]
    lines = text.splitlines(keepends=True)
    if kind == 3 and lines:
        line = chance.randrange(len(lines))
        lines.insert(chance.randrange(len(lines) + 1), lines[line])
        return "".join(lines)
    return text[:at]


def document(number: int) -> tuple[str, str | bytes]:
    """Its name and its text, or its bytes where those are not UTF-8."""
    chance = random.Random(f"{SEED}:{number}")
    tree, mistakes = good(chance), chance.choice((1, 1, 2, 3))
    kind = chance.random()
    if kind < 0.6:
        for _ in range(mistakes):
            spoil_tree(tree, chance)
    as_json = chance.random() < 0.4
    text = json.dumps(tree) if as_json else yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    if kind >= 0.5:
        for _ in range(mistakes):
            text = spoil_text(text, chance)
    name = "p.json" if as_json else "p.yaml"
    if kind < 0.97:
        return name, text
    data = bytearray(text.encode("utf-8", "surrogatepass")) or bytearray(b"x")
    for _ in range(mistakes):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return name, bytes(data)


def compiled_or_refused(name: str, text: str | bytes, folder: Path) -> bool:
    """Whether it was refused; anything but a PipelineError whose problems have places is a failure."""
    try:
        if isinstance(text, bytes):
            (folder / name).write_bytes(text)
            pipeline = load_pipeline(folder / name, Pipeline).pipeline
        else:
            pipeline = load_text(text, name, folder).pipeline
    except PipelineError as error:
        problems, placed = error.problems, True
    else:
        try:
            compile_pipeline(pipeline, params={}, environ={}, run_id="r", folder=str(folder))
            return False
        except PipelineError as error:
            # Their places are added by ``prepare``, which knows the source.
            problems, placed = error.problems, False
    assert problems
    for problem in problems:
        assert problem.message
        assert not placed or (problem.place is not None and problem.place.line >= 1)
    return True


@pytest.mark.parametrize("part", range(PARTS))
def test_a_file_with_mistakes_is_compiled_or_refused_with_places(part: int, tmp_path: Path) -> None:
    refused = 0
    numbers = range(part, DOCUMENTS, PARTS)
    for number in numbers:
        name, text = document(number)
        before_s, before_kib = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            refused += compiled_or_refused(name, text, tmp_path)
        except Exception as error:
            raise AssertionError(f"PROCFLOW_SEED={SEED}, document {number} ({name}): {error!r}\n{text!r}") from error
        took_s = time.process_time() - before_s
        grew_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        assert took_s < MOST_S, f"PROCFLOW_SEED={SEED}, document {number} took {took_s:.1f} s: {text!r}"
        assert grew_kib < MOST_KIB, f"PROCFLOW_SEED={SEED}, document {number} took {grew_kib} KiB: {text!r}"
    assert "mine_fuzz" not in sys.modules
    ledger.count("fuzzed documents", len(numbers))
    ledger.count("fuzzed documents that were refused", refused)
    assert len(numbers) < 200 or 0 < refused < len(numbers), "documents of both kinds are wanted"
