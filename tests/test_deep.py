"""``validate --deep``: what only importing the functions and asking the sources shows."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from procflow.cli import cli

MODULE = """
import threading
open("imported", "a").close()
def two(a, b=1): return a
def item_of(item, *, by): return item
async def later(a): return a
class Holder:
    def __init__(self): self.lock = threading.Lock()
    def __call__(self, a): return a
holder = Holder()
text = "no function"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep_steps.py").write_text(MODULE)
    return tmp_path


def call(name: str, function: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "function": function if ":" in function else f"deep_steps:{function}",
        **more,
    }


def told(*steps: dict[str, Any], code: int = 2, **more: Any) -> list[dict[str, Any]]:
    Path("p.yaml").write_text(json.dumps({"name": "p", "steps": list(steps), **more}, indent=1))
    result = CliRunner().invoke(cli, ["validate", "p.yaml", "--deep", "--json"])
    assert result.exit_code == code, result.output
    problems: list[dict[str, Any]] = json.loads(result.stdout)["problems"]
    return problems


def test_a_pipeline_that_is_right_is_ok_and_its_functions_were_imported(folder: Path) -> None:
    steps = [
        call("one", "two", params={"a": 1}),
        call("three", "later", inputs=["one"]),
        {"type": "map", "name": "m", "items": [1], "function": "deep_steps:item_of", "params": {"by": 2}},
    ]
    assert told(*steps, code=0) == []
    assert (folder / "imported").exists()


def test_without_deep_nothing_is_imported(folder: Path) -> None:
    told(call("one", "two", params={"a": 1}), code=0)
    (folder / "imported").unlink()
    assert CliRunner().invoke(cli, ["validate", "p.yaml"]).exit_code == 0
    assert not (folder / "imported").exists()


def test_what_a_function_does_not_take_is_told_with_its_place(folder: Path) -> None:
    problems = told(
        call("one", "two", params={"c": 1}),
        {"type": "map", "name": "m", "items": [1], "function": "deep_steps:item_of"},
    )
    messages = [problem["message"] for problem in problems]
    assert messages[0].startswith("deep_steps:two(a, b=1) does not take what the step gives it (c by keyword): missing")
    assert messages[1].startswith(
        "deep_steps:item_of(item, *, by) does not take what the step gives it (1 by position)"
    )
    assert [problem["path"] for problem in problems] == ["steps[0].function", "steps[1].function"]
    assert all(problem["line"] for problem in problems)


def test_what_folds_must_take_two_values(folder: Path) -> None:
    mapped = {"type": "map", "name": "m", "items": [1], "function": "deep_steps:two", "reduce": "deep_steps:item_of"}
    state = {"seen": "deep_steps:item_of", "sum": "operator:add"}
    problems = told(mapped, call("again", "two", params={"a": 1}), state=state)
    assert {problem["path"] for problem in problems} == {"steps[0].reduce", "state.seen"}
    assert len(problems) == 2
    assert all("does not take what the step gives it (2 by position)" in problem["message"] for problem in problems)


def test_a_callable_object_that_cannot_travel_is_told_with_the_attribute(folder: Path) -> None:
    (problem,) = told(call("one", "holder", params={"a": 1}))
    assert "can't be sent to a worker" in problem["message"]
    assert "lock" in problem["message"]


def test_what_is_no_function_is_told(folder: Path) -> None:
    (problem,) = told(call("one", "text"))
    assert "str, which can't be called" in problem["message"] or "not callable" in problem["message"]


def test_an_import_that_raises_is_told_with_the_line(folder: Path) -> None:
    (folder / "deep_broken.py").write_text("import math\n\nLIMIT = 1 / 0\ndef f(): pass\n")
    (problem,) = told(call("one", "deep_broken:f"))
    assert "ZeroDivisionError" in problem["message"]
    assert "deep_broken.py:3" in problem["message"]


def test_an_import_that_ends_the_process_is_told_and_the_rest_is_not_lost(folder: Path) -> None:
    ending = "import os, sys\nsys.stderr.write('goodbye')\nsys.stderr.flush()\nos._exit(7)\ndef f(): pass\n"
    (folder / "deep_gone.py").write_text(ending)
    problems = told(call("bad", "two", params={"c": 1}), call("one", "deep_gone:f"))
    assert len(problems) == 2
    assert problems[1]["message"] == "deep_gone:f: importing it ended the whole process (exit code 7): goodbye"


def test_an_import_that_never_ends_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from procflow.checking import deep

    monkeypatch.setattr(deep.deep_check, "__defaults__", (3.0,))
    (folder / "deep_slow.py").write_text("while True: pass\ndef f(): pass\n")
    (problem,) = told(call("one", "deep_slow:f"))
    assert "took longer than 3.0 s" in problem["message"]


def test_what_a_module_prints_is_no_answer(folder: Path) -> None:
    (folder / "deep_loud.py").write_text("print('[0, [\"forged\"]]', flush=True)\ndef f(): pass\n")
    assert told(call("one", "deep_loud:f"), code=0) == []


def test_sources_are_asked_once_and_a_dead_one_is_named(folder: Path) -> None:
    pytest.importorskip("sqlalchemy")
    with sqlite3.connect(folder / "there.db") as db:
        db.execute("CREATE TABLE t (a)")
    db.close()
    sources = {"there": {"url": "sqlite:///there.db"}, "gone": {"url": "sqlite:////nowhere/at/all.db"}}
    steps = [
        {"type": "query", "name": "a", "source": "there", "query": "SELECT a FROM t"},
        {"type": "query", "name": "b", "source": "gone", "query": "SELECT 1"},
        {"type": "query", "name": "c", "source": "gone", "query": "SELECT 2"},
    ]
    (problem,) = told(*steps, sources=sources)
    assert "source 'gone'" in problem["message"]
    assert problem["path"] == "steps[1].source"


def test_a_source_that_refuses_connections_is_named(folder: Path) -> None:
    pytest.importorskip("redis")
    sources = {"cache": {"url": "redis://127.0.0.1:1/0"}}
    (problem,) = told({"type": "query", "name": "a", "source": "cache", "command": ["GET", "x"]}, sources=sources)
    assert "source 'cache'" in problem["message"]
    assert "can't be reached" in problem["message"]
    assert os.path.exists("p.yaml")
