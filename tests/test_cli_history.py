"""``history``, ``show`` and ``logs``: what they print, and how they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from procflow import events as ev
from procflow.attempt import Failure, Usage
from procflow.cli import cli
from procflow.cli.logs import _last_lines
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store
from procflow.units import duration_text

RUN = "20261120-080000-abc"
BAD = Failure("error", "ValueError", "bad \x1b[31mrow", 'File "jobs.py", line 8, in parse\nValueError: bad \x1b[31mrow')


def attempt(key: int, label: str, item: str = "", number: int = 1, **more: Any) -> ev.Event:
    known: dict[str, Any] = {"status": "succeeded", "started_at": 1.0, "usage": Usage(2.0, 1.0, 5 << 20)} | more
    return ev.AttemptFinished(3.0, key, label, label, item, number, "processes", **known)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFolder:
    """A state folder with one failed run, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROCFLOW_STATE_DIR", raising=False)
    folder = StateFolder.open(".procflow")
    folder.new_run(RUN)
    with Store.open(folder) as store:
        store.begin(RunRecord(RUN, "nightly", "/x/nightly.yaml", params={"day": "2026-11-20"}, workers=4))
        for event in (
            attempt(1, "fetch/sales", metrics={"rows": 3}),
            attempt(2, "fetch/files", status="failed", failure=BAD, retry_in_s=1.0),
            attempt(3, "fetch/files", number=2, status="failed", failure=BAD),
            *(attempt(10 + i, "parse", f"{i * 50}-{i * 50 + 49}", count=50) for i in range(20)),
            ev.StepFinished(4.0, "parse", "parse", "7", "failed", 1, (), BAD, "", True),
            ev.RunFinished(9.0, RUN, "failed", 2, 1, 9.0, 27.0, "fetch failed"),
        ):
            store.record(event)
    for name, text in (
        ("fetch__sales/1.log", b"sold\n"),
        ("parse/0-49.1.log", b"page 0\n"),
        ("parse/50-99.1.log", b"page 1\n"),
    ):
        path = folder.logs(RUN) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return folder


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.output
    return result


def test_history_is_a_table_of_runs(folder: StateFolder) -> None:
    head, line = invoke("history").stdout.splitlines()
    assert head.split() == ["RUN", "PIPELINE", "STATUS", "STARTED", "TIME", "ATTEMPTS", "FAILURES"]
    assert line.split()[:3] == [RUN, "nightly", "failed"]
    assert line.split()[-2:] == ["23", "2"]


def test_history_as_json_has_every_field(folder: StateFolder) -> None:
    (run,) = json.loads(invoke("history", "--format", "json").stdout)
    assert (run["run_id"], run["status"], run["exit_code"], run["params"]) == (RUN, "failed", 1, {"day": "2026-11-20"})


@pytest.mark.parametrize(
    "filters", [("--status", "succeeded"), ("--pipeline", "hourly"), ("--status", "killed", "--last", "7d")]
)
def test_history_says_when_no_run_matches(folder: StateFolder, filters: tuple[str, ...]) -> None:
    assert "no runs in" in invoke("history", *filters).stdout
    assert json.loads(invoke("history", "--format", "json", *filters).stdout) == []


def test_history_of_a_folder_in_which_nothing_ran(tmp_path: Path) -> None:
    StateFolder.open(tmp_path / "state")
    assert invoke("history", "--state-dir", str(tmp_path / "state")).stdout.endswith("yet\n")


def test_the_variable_names_the_state_folder(
    folder: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PROCFLOW_STATE_DIR", str(folder.path))
    assert RUN in invoke("history").stdout


def test_show_tells_the_run_its_steps_and_its_failures(folder: StateFolder) -> None:
    text = invoke("show").stdout
    assert f"run       {RUN}  failed, exit code 1" in text
    assert "pipeline  nightly  (/x/nightly.yaml)" in text
    assert f"work {duration_text(27.0)}, 3.0 times as fast as one by one  (processes, 4 workers)" in text
    assert "attempts  21 succeeded, 2 failed" in text
    assert 'params    day="2026-11-20"' in text
    assert "reason    fetch failed" in text
    assert "fetch/files failed (error), attempt 2" in text
    assert '    File "jobs.py", line 8, in parse' in text
    assert "tolerated: ValueError" in text


def test_show_puts_the_items_that_went_well_on_one_line(folder: StateFolder) -> None:
    lines = [line for line in invoke("show", RUN[:10]).stdout.splitlines() if line.startswith("parse ")]
    assert len(lines) == 3  # the sum, the failed item, and the failure below
    assert lines[0].endswith("1,000 items in 20 attempts")
    assert lines[1].split()[:2] == ["parse", "7"]


def test_show_as_json_has_steps_metrics_and_logs(folder: StateFolder) -> None:
    run = json.loads(invoke("show", "--format", "json").stdout)
    assert len(run["step_executions"]) == 24
    assert run["metrics"] == [{"label": "fetch/sales", "item": "", "attempt": 1, "name": "rows", "value": 3.0}]
    first = run["step_executions"][0]
    assert first["log"] == str(folder.logs(RUN) / "fetch__sales" / "1.log")
    assert run["step_executions"][1]["failure"]["type"] == "ValueError"


def test_no_text_of_a_step_drives_the_terminal(folder: StateFolder) -> None:
    text = invoke("show").stdout
    assert "\x1b" not in text
    assert "bad \\x1b[31mrow" in text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("last", "fetch/sales"), "sold\n"),
        (("last", "sales"), "sold\n"),
        ((RUN[:8], "parse", "--item", "50-99"), "page 1\n"),
        ((RUN[:8], "parse", "--item", "7"), "page 0\n"),
        ((RUN, "parse"), "==> logs/parse/0-49.1.log <==\npage 0\n==> logs/parse/50-99.1.log <==\npage 1\n"),
    ],
)
def test_logs_prints_what_was_asked_for(folder: StateFolder, arguments: tuple[str, ...], shown: str) -> None:
    assert invoke("logs", *arguments).stdout == shown


def test_logs_of_the_last_run_are_all_of_them(folder: StateFolder) -> None:
    text = invoke("logs").stdout
    assert [text.count(f"==> logs/{name}") for name in ("fetch__sales/1", "parse/0-49.1", "parse/50-99.1")] == [1, 1, 1]


def test_a_silent_step_has_no_log(folder: StateFolder) -> None:
    result = invoke("logs", "last", "files")
    assert result.stdout == ""
    assert "step fetch/files wrote no log" in result.stderr


def test_tail_prints_the_last_lines(folder: StateFolder) -> None:
    path = folder.logs(RUN) / "fetch__sales" / "1.log"
    path.write_bytes(b"".join(b"line %d %s\n" % (i, b"x" * 50) for i in range(20_000)) + b"unfinished")
    shown = invoke("logs", "last", "sales", "--tail", "3").stdout.splitlines()
    assert [line.split()[:2] for line in shown[:2]] == [["line", "19998"], ["line", "19999"]]
    assert shown[2] == "unfinished"


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("text", [b"", b"\n", b"a", b"a\nb", b"a\nb\n", b"\n\n\n", b"a\n\nb\n\n"])
def test_the_last_lines_are_those_of_the_whole_file(tmp_path: Path, text: bytes, count: int) -> None:
    (tmp_path / "log").write_bytes(text)
    assert _last_lines(tmp_path / "log", count) == text.splitlines(keepends=True)[-count:]


def test_a_log_on_a_terminal_shows_its_control_characters(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.logs(RUN) / "fetch__sales" / "1.log").write_bytes(b"\x1b[2Jgone \xff\tz\r\n")
    shown = []
    monkeypatch.setattr("procflow.cli.logs.out", shown.append)
    monkeypatch.setattr("procflow.cli.logs._on_terminal", lambda: True)
    invoke("logs", "last", "sales")
    assert shown == ["\\x1b[2Jgone \\xff    z"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "2027"), f"there is no run '2027'; the last run is {RUN}"),
        (("show", "20261120-080000-abd"), f"did you mean {RUN}?"),
        (("show", "../../etc/passwd"), "there is no run '../../etc/passwd'"),
        (("logs", "last", "sals"), "has no step 'sals'; did you mean fetch/sales?"),
        (("logs", "last", "zzzzzz"), "it has fetch/files, fetch/sales, parse"),
        (("logs", "last", "parse", "--item", "50-98"), "there is no item '50-98'; items are 50-99"),
        (("logs", "last", "parse", "--item", "1000"), "there is no item '1000'"),
        (("logs", "last", "sales", "--item", "7"), "this step has no items"),
        (("logs", "last", "files", "--attempt", "9"), "there is no such attempt; there are 1, 2"),
        (("history", "--last", "seven"), "is not a duration; write 90s, 15m or 2h"),
        (("history", "--status", "fine"), "fine"),
    ],
)
def test_what_is_not_there_is_a_usage_error_with_close_matches(
    folder: StateFolder, arguments: tuple[str, ...], said: str
) -> None:
    assert said in invoke(*arguments, code=2).stderr


@pytest.mark.parametrize("command", ["history", "show", "logs"])
def test_a_state_folder_that_cant_be_used_ends_with_74(folder: StateFolder, tmp_path: Path, command: str) -> None:
    missing = invoke(command, "--state-dir", str(tmp_path / "none"), code=74)
    assert "there is no state folder" in missing.stderr
    folder.db.write_bytes(b"garbage" * 1000)
    assert "procflow.db" in invoke(command, code=74).stderr
    folder.path.chmod(0o777)
    assert "others may write it" in invoke(command, code=74).stderr
