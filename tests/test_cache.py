"""``cache: true``: a step whose code, inputs and all it builds on are the same is not run again by the next run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from procflow.cli import cli

MODULE = """
from pathlib import Path
def told(name):
    with open("told", "a") as file: file.write(name + "\\n")
def first(n): told("first"); return list(range(n))
def item(x): told(f"item{x}"); return x * 2
def total(rows): told("total"); return sum(rows)
def large(): told("large"); return bytes(300_000)
def size(blob): told("size"); return len(blob)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROCFLOW_STATE_DIR", raising=False)
    Path("cache_steps.py").write_text(MODULE)
    return tmp_path


def call(name: str, function: str, **more: Any) -> dict[str, Any]:
    return {"type": "transform", "name": name, "function": f"cache_steps:{function}", **more}


def pipeline(*steps: dict[str, Any], **more: Any) -> None:
    Path("p.yaml").write_text(json.dumps({"name": "p", "steps": list(steps), **more}))


def run(*options: str, executor: str = "inline", code: int = 0) -> Result:
    sys.modules.pop("cache_steps", None)
    path = sys.path[:]
    try:
        result = CliRunner().invoke(cli, ["run", "p.yaml", "--executor", executor, *options])
    finally:
        sys.path[:] = path
        sys.modules.pop("cache_steps", None)
    assert result.exit_code == code, result.output
    return result


def ran() -> list[str]:
    told = Path("told")
    lines = told.read_text().split() if told.exists() else []
    told.unlink(missing_ok=True)
    return sorted(lines)


FIRST = call("first", "first", params={"n": 3})
ROWS = {"type": "map", "name": "rows", "items": "${first}", "function": "cache_steps:item"}
TOTAL = call("total", "total", inputs=["rows"])
ALL = ["first", "item0", "item1", "item2", "total"]


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_what_is_cached_runs_once(executor: str) -> None:
    pipeline(FIRST, ROWS, TOTAL, defaults={"cache": True}, show=["total"])
    assert run(executor=executor).stdout == "6\n"
    assert ran() == ALL
    again = run(executor=executor)
    assert (again.stdout, ran()) == ("6\n", [])
    assert "kept, done before" in again.stderr
    assert run("--no-cache", executor=executor).stdout == "6\n"
    assert ran() == ALL


def test_without_the_key_all_runs_each_time() -> None:
    pipeline(FIRST, ROWS, TOTAL)
    run()
    ran()
    run()
    assert ran() == ALL


def test_what_changed_runs_again_with_all_that_builds_on_it() -> None:
    pipeline(FIRST, ROWS, TOTAL, defaults={"cache": True}, show=["total"])
    run()
    ran()
    pipeline({**FIRST, "params": {"n": 2}}, ROWS, TOTAL, defaults={"cache": True}, show=["total"])
    assert run().stdout == "2\n"
    assert ran() == ["first", "item0", "item1", "total"]


def test_a_step_is_kept_only_if_all_it_builds_on_is() -> None:
    pipeline(FIRST, {**ROWS, "cache": True}, {**TOTAL, "cache": True})
    run()
    ran()
    run()
    assert ran() == ALL, "first is made anew each time"
    pipeline({**FIRST, "cache": True}, {**ROWS, "cache": True}, TOTAL)
    run()
    ran()
    run()
    assert ran() == ["total"]


def test_a_step_can_be_left_out_of_the_defaults() -> None:
    pipeline(FIRST, {**ROWS, "cache": False}, defaults={"cache": True})
    run()
    ran()
    run()
    assert ran() == ["item0", "item1", "item2"]


def test_large_values_of_cached_steps_stay_also_when_old_runs_go() -> None:
    pipeline(call("blob", "large", cache=True), call("size", "size", inputs=["blob"]), show=["size"])
    for _ in range(3):
        assert run().stdout == "300000\n"
        assert CliRunner().invoke(cli, ["clean", "--keep", "1"]).exit_code == 0
    assert ran() == ["large", "size", "size", "size"]


def test_a_failed_run_is_built_on_as_well() -> None:
    pipeline(FIRST, ROWS, call("total", "size", inputs=["rows"]), {"type": "shell", "name": "bad", "command": "exit 1"},
             defaults={"cache": True})  # fmt: skip
    run(code=1)
    ran()
    run(code=1)
    assert ran() == []


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({**FIRST, "cache": True, "transient": True}, "leave out cache or transient"),
        (
            {"type": "parallel", "name": "b", "cache": True, "steps": [FIRST]},
            "cache: has no meaning for a parallel step",
        ),
        ({**FIRST, "cache": "often"}, "cache"),
    ],
)
def test_what_cannot_be_is_refused(step: dict[str, Any], said: str) -> None:
    pipeline(step)
    assert said in run(code=2).stderr


@pytest.mark.parametrize("options", [[], ["--only", "first"], ["--from", "first"]])
def test_hooks_run_each_time_whatever_is_kept_or_chosen(options: list[str]) -> None:
    hook = call("hook", "first", params={"n": 1})
    own = {**FIRST, "on_success": [hook]}
    pipeline(own, call("last", "first", params={"n": 2}), defaults={"cache": True}, on_finish=[hook])
    run()
    assert ran() == ["first"] * 4
    run(*options)
    assert ran() == (["first"] if not options else ["first"] * (3 if "--only" in options else 4))


def test_a_hook_that_asks_for_the_cache_is_refused() -> None:
    pipeline(FIRST, on_finish=[{**call("hook", "first", params={"n": 1}), "cache": True}])
    assert "cache has no meaning for a hook" in run(code=2).stderr


def test_a_plan_of_what_has_hooks_is_told_once_it_has_run() -> None:
    hook = call("hook", "first", params={"n": 1})
    pipeline({**FIRST, "on_success": [hook]}, ROWS, TOTAL, on_finish=[hook])
    run()
    result = CliRunner().invoke(cli, ["plan", "p.yaml"])
    assert result.exit_code == 0, result.output
    assert "learned" in result.stdout
