"""``procflow replay``: an attempt of an earlier run once more, from the values it was given then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import procflow

ROOT = str(Path(procflow.__file__).parents[1])
LONG_S = 60
MODULE = """
import json, os
from procflow import step
def numbers(n): return list(range(n))
def half(item, by=1):
    if item == 3:
        raise ValueError(json.dumps({"item": item}))
    return item / 2 * by
def tenth(value, index): return (value / 10, index)
def deep(value):
    return json.loads("{" + str(value))
def attempt(): return (step.attempt, step.run_id, os.getpid())
"""


def call(name: str, function: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "function": f"replay_steps:{function}", **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "replay_steps.py").write_text(MODULE)
    return tmp_path


def procflow_(folder: Path, *arguments: str, code: int = 0, typed: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "procflow", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT},
        input=typed,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def run(folder: Path, *steps: dict[str, Any], code: int = 0, executor: str = "inline") -> None:
    (folder / "p.yaml").write_text(json.dumps({"name": "p", "steps": list(steps)}))
    procflow_(folder, "run", "p.yaml", "-q", "--executor", executor, code=code)


NUMBERS = call("numbers", "numbers", params={"n": 6}, output="items")
HALVES = {
    "type": "map", "name": "halves", "items": "${items}", "function": "replay_steps:half", "params": {"by": 10},
    "output": "out",
}  # fmt: skip


def test_a_failed_item_fails_again_with_its_own_traceback(folder: Path) -> None:
    run(folder, NUMBERS, HALVES, code=1)
    before = sorted(str(path) for path in (folder / ".procflow").rglob("*"))
    done = procflow_(folder, "replay", "last", "halves[3]", code=1)
    assert 'ValueError: {"item": 3}' in done.stderr
    assert 'replay_steps.py", line 7, in half' in done.stderr
    assert procflow_(folder, "replay", "last", "halves", "--item", "4").stdout == "20.0\n"
    kept = {str(path) for path in (folder / ".procflow").rglob("*") if path.suffix not in (".db-wal", ".db-shm")}
    assert kept <= set(before), "nothing was written"


def test_the_debugger_stops_at_the_users_line(folder: Path) -> None:
    run(folder, call("value", "numbers", params={"n": 2}, output="v"), call("deep", "deep", inputs=["v"]), code=1)
    done = procflow_(folder, "replay", "last", "deep", "--pdb", typed="p value\nq\n", code=1)
    at, _, rest = done.stdout.partition("\n")
    assert at.endswith("replay_steps.py(11)deep()"), "not inside the json module"
    assert "(Pdb) [0, 1]" in rest


def test_a_step_inside_a_map_gets_the_values_of_its_item(folder: Path) -> None:
    steps = [
        call("first", "half", inputs=["item"], output="value"),
        call("second", "tenth", inputs=["value", "index"]),
    ]
    run(
        folder,
        NUMBERS,
        {"type": "map", "name": "m", "items": "${items}", "steps": steps, "on_error": "continue"},
        code=3,
    )
    assert "second = (0.2, 4)" in procflow_(folder, "replay", "last", "m/second[4]").stdout
    gone = procflow_(folder, "replay", "last", "m/second[3]", code=2)
    assert "can't be replayed: what it reads was not saved" in gone.stderr


def test_it_is_the_same_run_and_a_new_process(folder: Path) -> None:
    run(folder, call("who", "attempt"), executor="processes")
    (row,) = json.loads(procflow_(folder, "history", "--format", "json").stdout)
    done = procflow_(folder, "replay", row["run_id"][:10], "who")
    assert f"who = (1, '{row['run_id']}', " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("last", "halfs"), "did you mean halves"),
        (("last", "halves"), "halves is of a map: name the item, such as halves[0]"),
        (("last", "halves[6]"), "halves has 6 items, so there is no item 6"),
        (("last", "numbers[1]"), "numbers is in no map, so it has no item '1'"),
        (("nonsense", "halves[1]"), "there is no run 'nonsense'"),
    ],
)
def test_what_cannot_be_replayed_is_refused(folder: Path, arguments: tuple[str, ...], told: str) -> None:
    run(folder, NUMBERS, {**HALVES, "tolerate": 1}, code=3)
    assert told in procflow_(folder, "replay", *arguments, code=2).stderr
