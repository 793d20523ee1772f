"""``status``, ``failures``, ``why``, ``diff`` and ``clean``: what people ask after (and during) a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import procflow
from procflow.cli import cli
from procflow.storing import cleaning
from procflow.storing.history import History, RunRow
from procflow.storing.state_folder import StateFolder

ROOT = str(Path(procflow.__file__).parents[1])
LONG_S = 60
MODULE = """
LIMIT = 3
def within(item): return item < LIMIT
def numbers(n): return list(range(n))
def check(item):
    if not within(item):
        raise ValueError(f"{item} is too large")
    return item
def large(): return bytes(500_000)
def total(rows, blob=b""): return sum(r for r in rows if r)
"""
NUMBERS = {
    "type": "function",
    "name": "numbers",
    "function": "after_steps:numbers",
    "params": {"n": 4},
    "output": "items",
}
CHECKED = {"type": "map", "name": "checked", "items": "${items}", "function": "after_steps:check", "output": "rows"}
TOTAL = {"type": "function", "name": "total", "function": "after_steps:total", "inputs": ["rows"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROCFLOW_STATE_DIR", raising=False)
    (tmp_path / "after_steps.py").write_text(MODULE)
    return tmp_path


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.output
    return result


def write(*steps: dict[str, Any], name: str = "p") -> None:
    Path(f"{name}.yaml").write_text(json.dumps({"name": name, "steps": list(steps)}))


def run(*options: str, name: str = "p", code: int = 0) -> str:
    """A run in this process, with the module as it is now; its id."""
    sys.modules.pop("after_steps", None)
    path = sys.path[:]
    try:
        invoke("run", f"{name}.yaml", "-q", "--executor", "inline", *options, code=code)
    finally:
        sys.path[:] = path
        sys.modules.pop("after_steps", None)
    return str(json.loads(invoke("history", "--format", "json").stdout)[0]["run_id"])


def run_apart() -> str:
    """The same in a process of its own, with nothing loaded."""
    command = [sys.executable, "-m", "procflow", "run", "p.yaml", "-q", "--executor", "inline"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": ROOT}, timeout=LONG_S, check=True)
    return str(json.loads(invoke("history", "--format", "json").stdout)[0]["run_id"])


def test_status_of_a_run_that_failed_says_what_to_type(folder: Path) -> None:
    write(NUMBERS, CHECKED, TOTAL)
    run_id = run(code=1)
    lines = invoke("status", code=1).stdout.splitlines()
    assert lines[0] == f"p  run {run_id}  failed, exit code 1"
    assert lines[-2:] == [f"  procflow failures {run_id}", f"  procflow resume {run_id}"]
    assert json.loads(invoke("status", "--format", "json", code=1).stdout)["ended"]["succeeded"] == 1


def test_status_of_a_live_run_says_what_runs(folder: Path) -> None:
    write(
        {"type": "shell", "name": "first", "command": "true"}, {"type": "shell", "name": "nap", "command": "sleep 60"}
    )
    command = [sys.executable, "-m", "procflow", "run", "p.yaml", "-q"]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": ROOT}, stderr=subprocess.DEVNULL) as live:
        try:
            deadline = time.monotonic() + LONG_S
            while True:
                facts = json.loads(CliRunner().invoke(cli, ["status", "--format", "json"]).stdout or "{}") if Path(
                    ".procflow/procflow.db"
                ).exists() else {}  # fmt: skip
                if [row["label"] for row in facts.get("running", ())] == ["nap"]:
                    break
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert (facts["live"], facts["pid"], facts["ended"]) == (True, live.pid, {"succeeded": 1})
            text = invoke("status").stdout
            assert f"running, pid {live.pid}" in text
            assert "  running: nap for " in text
        finally:
            live.send_signal(signal.SIGTERM)
            live.wait(LONG_S)
    assert "cancelled, exit code 143" in invoke("status", code=143).stdout


def test_failures_are_told_with_cause_and_place(folder: Path) -> None:
    write(NUMBERS, CHECKED, TOTAL)
    run(code=1)
    text = invoke("failures", code=1).stdout
    assert "FAILED checked[3] (error)" in text
    assert "ValueError: 3 is too large" in text
    assert "after_steps.py:7" in text
    (record,) = [json.loads(line) for line in invoke("failures", "--format", "json", code=1).stdout.splitlines()]
    assert (record["label"], record["item"], record["tolerated"]) == ("checked", "3", False)


def test_tolerated_failures_are_named_so_and_no_failure_is_said(folder: Path) -> None:
    write(NUMBERS, {**CHECKED, "tolerate": 1}, TOTAL)
    run(code=3)
    assert "tolerated checked[3]" in invoke("failures").stdout
    write(NUMBERS)
    run_id = run()
    assert invoke("failures").stdout == f"nothing failed in run {run_id} (succeeded)\n"


def test_an_item_that_killed_its_worker_is_told_once_and_its_neighbours_not_at_all(folder: Path) -> None:
    module = folder / "after_steps.py"
    module.write_text(
        module.read_text() + "import os\ndef poison(item):\n    if item == 13: os._exit(7)\n    return item\n"
    )
    write({"type": "map", "name": "m", "items": {"range": [0, 40]}, "function": "after_steps:poison", "tolerate": 1})
    command = [sys.executable, "-m", "procflow", "run", "p.yaml", "-q", "-j", "2"]
    env = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(command, env=env, capture_output=True, timeout=LONG_S, check=False)
    assert done.returncode == 3
    (record,) = [json.loads(line) for line in invoke("failures", "--format", "json").stdout.splitlines()]
    assert (record["item"], record["tolerated"], record["cause"]) == ("13", True, "crash")


def test_why_names_the_function_that_changed(folder: Path) -> None:
    write({**NUMBERS, "params": {"n": 3}}, CHECKED, TOTAL)
    run()
    assert "now: its result still holds" in invoke("why", "total").stdout
    module = folder / "after_steps.py"
    module.write_text(module.read_text().replace("item < LIMIT", "item <= LIMIT").replace("LIMIT = 3", "LIMIT = 30"))
    text = invoke("why", "checked").stdout
    assert "now: it would run again\n  its function: code changed (LIMIT, within)" in text
    text = invoke("why", "total").stdout
    assert "reads 'rows', a value of checked, which runs again" in text
    assert "  checked (its function): code changed (LIMIT, within)" in text
    assert "now: its result still holds" in invoke("why", "numbers").stdout


def test_why_tells_how_the_step_failed_then(folder: Path) -> None:
    write(NUMBERS, CHECKED, TOTAL)
    run(code=1)
    assert "failed[3] (error): ValueError: 3 is too large at " in invoke("why", "checked").stdout
    assert "total in run " in invoke("why", "total").stdout
    assert "did you mean total" in invoke("why", "totl", code=2).stderr


def test_diff_shows_what_changed_and_only_that(folder: Path) -> None:
    write({**NUMBERS, "params": {"n": 3}}, CHECKED, TOTAL)
    one, two = run_apart(), run_apart()
    assert "no step differs" in invoke("diff", one, two).stdout
    module = folder / "after_steps.py"
    module.write_text(module.read_text().replace("return sum(", "return 1 + sum("))
    three = run_apart()
    text = invoke("diff", two, three, code=1).stdout
    assert [line.split()[0] for line in text.splitlines()[4:]] == ["total"]
    assert text.rstrip().endswith("other")
    told = json.loads(invoke("diff", two, three, "--format", "json", code=1).stdout)
    assert told["changed"] == 1
    assert {step["label"]: step["values"] for step in told["steps"]}["numbers"] == "same"


def test_diff_tells_another_ending_and_other_params(folder: Path) -> None:
    step = {**NUMBERS, "params": {"n": "${params.n}"}}
    Path("p.yaml").write_text(json.dumps({"name": "p", "params": {"n": 3}, "steps": [step, CHECKED]}))
    one = run()
    two = run("-p", "n=9", code=1)
    text = invoke("diff", one, two, code=1).stdout
    assert "params  n: 3 -> 9" in text
    assert "succeeded -> failed" in text


# -- clean -------------------------------------------------------------------------------------------------------------


def ids() -> list[str]:
    return [row["run_id"] for row in json.loads(invoke("history", "--format", "json").stdout)]


def test_clean_keeps_the_newest_and_frees_the_rest(folder: Path) -> None:
    write({"type": "shell", "name": "talk", "command": "echo hello >&2"})
    runs = [run() for _ in range(3)]
    dry = invoke("clean", "--keep", "1", "-n").stdout
    assert "2 runs would go" in dry
    assert ids() == runs[::-1]
    assert "2 runs removed" in invoke("clean", "--keep", "1").stdout
    assert ids() == runs[-1:]
    assert [path.name for path in Path(".procflow/runs").iterdir()] == runs[-1:]
    assert list(Path(".procflow/runs", runs[-1], "logs").rglob("*.log"))
    assert invoke("clean", "--keep", "1").stdout == "nothing to remove\n"
    run()


def test_clean_by_time_never_takes_the_newest_of_a_pipeline(folder: Path) -> None:
    write({"type": "shell", "name": "a", "command": "true"})
    write({"type": "shell", "name": "a", "command": "true"}, name="other")
    old, newer, other = run(), run(), run(name="other")
    text = invoke("clean", "--keep", "0.001s").stdout
    assert f"{newer} stays: the newest run of its pipeline" in text
    assert f"{other} stays: the newest run of its pipeline" in text
    assert set(ids()) == {newer, other}
    assert old not in text.split("removed")[1]


def test_clean_keeps_what_a_run_builds_on(folder: Path) -> None:
    large = {**NUMBERS, "name": "large", "function": "after_steps:large", "params": {}, "output": "blob"}
    write(large, NUMBERS, CHECKED, {**TOTAL, "inputs": ["rows", "blob"]})
    first = run(code=1)
    sys.modules.pop("after_steps", None)
    invoke("retry", "-q", code=1)
    assert len(ids()) == 2
    assert f"{first} stays: values of a run that stays are in its files" in invoke("clean", "--keep", "1").stdout
    assert len(ids()) == 2


def test_clean_takes_a_run_whose_values_a_later_one_holds_itself(folder: Path) -> None:
    write(NUMBERS, CHECKED, TOTAL)
    first = run(code=1)
    sys.modules.pop("after_steps", None)
    invoke("retry", "-q", code=1)
    assert "1 run removed" in invoke("clean", "--keep", "1").stdout
    assert first not in ids()
    assert "kept" in invoke("resume", "--plan").stdout


def test_folders_of_no_run_go_once_they_are_old(folder: Path) -> None:
    write({"type": "shell", "name": "a", "command": "true"})
    run()
    lost = Path(".procflow/runs/20200101-000000-abc")
    lost.mkdir()
    (lost / "x.log").write_text("x" * 10_000)
    assert invoke("clean").stdout == "nothing to remove\n", "it may be of a run that just begins"
    os.utime(lost, (1, 1))
    assert "the files of no run" in invoke("clean").stdout
    assert not lost.exists()


@pytest.mark.parametrize("keep", ["0", "soon", "-1", ""])
def test_a_wrong_keep_is_refused(folder: Path, keep: str) -> None:
    assert "--keep" in invoke("clean", "--keep", keep, code=2).stderr


def made(run_id: str, **more: Any) -> RunRow:
    values = dict.fromkeys(RunRow.__dataclass_fields__) | {"run_id": run_id, "pipeline": "p", "live": False} | more
    return RunRow(**values)


def test_a_live_run_and_the_last_commits_stay() -> None:
    now = datetime(2026, 11, 21, tzinfo=timezone.utc)
    old = {"started": "2026-01-01T00:00:00Z", "ended": "2026-01-01T01:00:00Z"}
    runs = [made("d", **old), made("c", **{**old, "live": True}), made("b", **old), made("a", **old)]
    going, kept = cleaning.to_go(runs, "b", older_s=86400.0, newest=None, now=now)
    assert [run.run_id for run in going] == ["a"]
    assert {one.run.run_id: one.why for one in kept} == {
        "d": "the newest run of its pipeline",
        "b": "it made the last commit of the journal",
    }


def test_nothing_of_a_removed_run_is_left_in_any_table(folder: Path) -> None:
    import sqlite3

    write(NUMBERS, {**CHECKED, "tolerate": 1}, TOTAL)
    first = run(code=3)
    run(code=3)
    invoke("clean", "--keep", "1")
    with sqlite3.connect(".procflow/procflow.db") as db:
        for (name,) in db.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        ).fetchall():
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({name})")]
            if "run_id" in columns:
                assert db.execute(f"SELECT count(*) FROM {name} WHERE run_id = ?", (first,)).fetchone() == (0,), name
    db.close()
    with History.open(StateFolder.open(".procflow", create=False)) as past:
        assert past.learned("p") is not None


def test_logs_can_be_followed_to_the_end_of_the_run(folder: Path) -> None:
    go = folder / "go"
    wait = f"echo early >&2; while [ ! -e {go} ]; do sleep 0.05; done; echo late >&2"
    write(
        {"type": "shell", "name": "talk", "command": wait},
        {"type": "shell", "name": "then", "command": "echo last >&2"},
    )
    env = {**os.environ, "PYTHONPATH": ROOT}
    command = [sys.executable, "-m", "procflow"]
    with subprocess.Popen([*command, "run", "p.yaml", "-q"], env=env) as live:
        try:
            deadline = time.monotonic() + LONG_S
            while not list(folder.glob(".procflow/runs/*/logs/talk/1.log")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            follow = subprocess.Popen([*command, "logs", "last", "-f"], env=env, stdout=subprocess.PIPE, text=True)
            with follow:
                assert follow.stdout is not None
                assert [follow.stdout.readline() for _ in range(2)] == ["==> logs/talk/1.log <==\n", "early\n"]
                go.touch()
                assert follow.stdout.read() == "late\n==> logs/then/1.log <==\nlast\n"
                assert follow.wait(LONG_S) == 0
        finally:
            go.touch()
            live.wait(LONG_S)
