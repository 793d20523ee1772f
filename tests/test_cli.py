"""The command line as people and cron call it: options, outlets, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import procflow
from procflow.cli import COMMANDS, cli, output
from procflow.cli.options import params_of
from procflow.errors import InternalError, LockHeld, PipelineError, Problem, StoreError
from procflow.scheduling.easing import Easing
from procflow.storing.state_folder import StateFolder, lock_name

DEADLINE_S = 60
ROOT = str(Path(procflow.__file__).parents[1])

STEPS = """
import sys, time

def hello(name="world"):
    return f"hello {name}"

def typed(**params):
    return params

def fail():
    print("about to fail")
    raise ValueError("bad row")

def odd(n):
    if n % 2:
        raise ValueError(n)
    return n

def wait(seconds=60):
    time.sleep(seconds)

def large():
    return "x" * 1_000_000
"""

HELLO = """
name: hello
params: {name: world}
show: greeting
steps:
  - {type: transform, name: greeting, function: "cli_steps:hello", params: {name: "${params.name}"}}
"""
TYPED = """
name: typed
params: {a: null, b: null, c: null}
show: typed
steps:
  - {type: transform, name: typed, function: "cli_steps:typed", params: {a: "${params.a}", b: "${params.b}", c: "${params.c}"}}
"""
FAILS = """
name: fails
show: after
steps:
  - {type: transform, name: bad, function: "cli_steps:fail"}
  - {type: transform, name: after, function: "cli_steps:hello", inputs: [bad]}
"""
PARTIAL = """
name: partial
show: odd
steps:
  - {type: map, name: odd, items: [0, 1, 2], function: "cli_steps:odd", tolerate: 1}
"""
WAITS = """
name: waits
steps:
  - {type: transform, name: wait, function: "cli_steps:wait", kill_grace: 0.1s}
"""
WRONG = """
name: wrong
steps:
  - {type: transform, name: a, function: "cli_steps:helo"}
  - {type: transform, name: b, function: "cli_steps:hello", inputs: [c]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PROCFLOW_STATE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_steps.py").write_text(STEPS)
    texts = {"hello": HELLO, "typed": TYPED, "fails": FAILS, "partial": PARTIAL, "waits": WAITS, "wrong": WRONG}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture(autouse=True)
def _outlets() -> Iterator[None]:
    output.failed_outlets.clear()
    yield
    output.failed_outlets.clear()


def invoke(*args: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(cli, args, prog_name="procflow")


def started(*args: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": ROOT}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-m", "procflow", *args], cwd=cwd, env=env, text=True, **options)


def call(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    process = started(*args, cwd=cwd)
    try:
        stdout, stderr = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


# -- the group ---------------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_each_has_a_help_of_its_own() -> None:
    text = invoke("--help").output
    for name, (_, short) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(short)}$", text, re.MULTILINE)
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
        assert f"Usage: procflow {name}" in invoke(name, "--help").output


def test_help_loads_nothing_of_weight() -> None:
    script = (
        "import sys\nfrom procflow.cli import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} | {n for n in sys.modules if n.startswith('procflow')}))"
    )
    env = {**os.environ, "PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {
        "pydantic",
        "yaml",
        "rich",
        "psutil",
        "loky",
        "sqlite3",
        "jinja2",
        "asyncio",
        "multiprocessing",
    }
    assert {name for name in loaded if name.startswith("procflow.")} == {
        "procflow.cli", "procflow.cli.output", "procflow.errors", "procflow.passive", "procflow.plaintext",
    }  # fmt: skip


def test_the_version_is_told(folder: Path) -> None:
    assert procflow.__version__ in invoke("--version").output


def test_an_unknown_command_is_a_usage_error_with_a_hint() -> None:
    result = invoke("rnu", "x.yaml")
    assert result.exit_code == 2
    assert "no command 'rnu'; did you mean 'run'?" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["run"],
        ["run", "hello.yaml", "--no-such-option"],
        ["run", "hello.yaml", "-p", "novalue"],
        ["run", "hello.yaml", "-p", "=3"],
        ["run", "hello.yaml", "-p", "name=[1"],
        ["run", "hello.yaml", "-j", "0"],
        ["run", "hello.yaml", "-j", "many"],
        ["run", "hello.yaml", "-j", "200%"],
        ["run", "hello.yaml", "--memory", "8"],
        ["run", "hello.yaml", "--timeout", "soon"],
        ["run", "hello.yaml", "--executor", "proceses"],
        ["run", "hello.yaml", "--if-running", "never"],
        ["run", "hello.yaml", "--if-running", "wait=soon"],
        ["run", "hello.yaml", "--run-id", "../x"],
        ["run", "hello.yaml", "--params-file", "missing.yaml"],
        ["run", "hello.yaml", "-p", "nmae=3"],
        ["run", "missing.yaml"],
        ["graph", "hello.yaml", "--format", "png"],
        ["validate", "missing.yaml"],
        ["plan", "wrong.yaml"],
        ["graph", "wrong.yaml"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_says_why_and_runs_nothing(args: list[str], folder: Path) -> None:
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr
    assert not (folder / ".procflow").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PipelineError([Problem("wrong")]), 2),
        (StoreError("disk"), 74),
        (LockHeld("held"), 75),
        (InternalError("broken", ["its story"]), 70),
        (RuntimeError("bug"), 70),
        (RecursionError(), 70),
        (MemoryError(), 70),
        (KeyboardInterrupt(), 130),
        (click.UsageError("usage"), 2),
        (SystemExit(5), 5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("procflow.launch.launch", broken)
    result = invoke("run", "hello.yaml")
    assert result.exit_code == code
    assert ("Traceback" in result.stderr) == (code == 70)
    assert ("please report it" in result.stderr) == (code == 70)


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-3", -3), ("1e3", 1000.0), ("0x10", 16), ("010", 10), ("true", True), ("null", None), ("~", None),
        ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("2026-11-21", "2026-11-21"), ("", ""), ("-", "-"), ("---", "---"),
        ("[1, two]", [1, "two"]), ("{a: 1}", {"a": 1}), ('"3"', "3"), ("'true'", "true"), ("a: b", "a: b"), ("*.csv", "*.csv"),
        ("&x", "&x"), ("@file", "@file"), ("100%", "100%"), ("http://x/?a=b", "http://x/?a=b"), ("two words", "two words"),
        ("# no comment", "# no comment"), ("~/data", "~/data"), ("a=b", "a=b"), ("äöü", "äöü"), ("!tag", "!tag"),
    ],
)  # fmt: skip
def test_params_are_yaml_scalars_and_flow_collections_and_else_text(text: str, value: Any) -> None:
    found = params_of((f"k={text}",), None)["k"]
    assert found == value
    assert type(found) is type(value)


def test_params_of_a_file_are_overridden_by_those_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("a: 1\nb: [x, 010]\n")
    (tmp_path / "p.json").write_text('{"a": 1.5}')
    assert params_of(("a=2", "a=3"), tmp_path / "p.yaml") == {"a": 3, "b": ["x", 10]}
    assert params_of((), tmp_path / "p.json") == {"a": 1.5}


@pytest.mark.parametrize("text", ["[1, 2]", "a: 1\na: 2\n", "{", "", "a: !!python/object:os.system {}"])
def test_a_file_of_params_that_is_no_clean_mapping_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises((click.UsageError, PipelineError)):
        params_of((), tmp_path / "p.yaml")


def test_params_reach_the_steps_with_their_types(folder: Path) -> None:
    (folder / "params.yaml").write_text("a: [1, 2]\nc: from the file\n")
    result = invoke(
        "run", "typed.yaml", "--executor", "inline", "--params-file", "params.yaml", "-p", "b=1.5", "-p", "c=no"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == "{'a': [1, 2], 'b': 1.5, 'c': 'no'}\n"


# -- run ---------------------------------------------------------------------------------------------------------------


def test_a_run_prints_shown_values_to_stdout_and_progress_to_stderr(folder: Path) -> None:
    done = call("run", "hello.yaml", "-p", "name=cron", "-j", "1", "--run-id", "r1", cwd=folder)
    assert done.returncode == 0
    assert done.stdout == "hello cron\n"
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ Pipeline hello: run r1 started, 1 step on 1 worker", lines[0])
    assert re.search(r"Pipeline step 0 \(greeting\): started$", lines[1])
    assert re.search(r"Pipeline step 0 \(greeting\): succeeded in [\d.]+ m?s, peak [\d.]+ MiB$", lines[2])
    assert re.search(r"run r1 succeeded: 1 step in .* m?s; .* of work.*, 1 worker$", lines[-1])


def test_quiet_says_nothing_of_a_run_that_succeeded(folder: Path) -> None:
    result = invoke("run", "hello.yaml", "-q", "--executor", "inline")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello world\n", "")


def test_a_machine_that_was_short_of_cores_is_told_but_not_to_the_quiet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin = Easing.__init__

    def eased(self: Easing, *arguments: Any) -> None:
        begin(self, *arguments)
        self.least = 1

    monkeypatch.setattr(Easing, "__init__", eased)
    for words, told in (("-q", 0), ("--progress=plain", 1)):
        caplog.clear()
        assert invoke("run", "hello.yaml", words, "--executor", "inline").exit_code == 0
        assert len([r for r in caplog.records if "no more than 1 of" in r.getMessage()]) == told


def test_without_progress_there_is_a_summary_only(folder: Path) -> None:
    result = invoke("run", "hello.yaml", "--progress", "none", "--executor", "inline")
    assert len(result.stderr.splitlines()) == 1
    assert "succeeded: 1 step" in result.stderr


def test_progress_can_be_json(folder: Path) -> None:
    result = invoke("run", "hello.yaml", "--log-format", "json", "--executor", "inline")
    events = [json.loads(line)["event"] for line in result.stderr.splitlines()]
    assert events == ["run_started", "attempt_started", "attempt_finished", "step_finished", "run_finished"]


def test_a_failed_run_exits_with_1_and_ends_with_what_failed_and_what_to_type(folder: Path) -> None:
    done = call("run", "fails.yaml", "-q", "--run-id", "r1", cwd=folder)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "FAILED step 0 (bad)"
    assert lines[1] == "    ValueError: bad row"
    assert re.fullmatch(r"    at .*cli_steps\.py:12", lines[2])
    assert "    log .procflow/runs/r1/logs/bad/1.log (last 1 line below)" in lines
    assert "      about to fail" in lines
    assert "  not run because of it: after" in lines
    assert "run r1 FAILED" in lines[-1]
    commands = [line.split() for line in lines if line.startswith("    python -m procflow ")]
    assert [command[3] for command in commands] == ["resume", "logs", "show"]
    for command in commands[1:]:
        again = call(*command[3:], cwd=folder)
        assert again.returncode == 0, again.stderr
        assert ("about to fail" if command[3] == "logs" else "ValueError") in again.stdout


def test_commands_name_the_state_folder_where_they_would_not_find_it(folder: Path, tmp_path: Path) -> None:
    result = invoke("run", "fails.yaml", "--executor", "inline", "--state-dir", "my state")
    assert "procflow show " in result.stderr
    assert " --state-dir 'my state'" in result.stderr
    shown = re.search(r"procflow (logs \S+ bad) --state-dir", result.stderr)
    assert shown is not None
    assert "about to fail" in invoke(*shown[1].split(), "--state-dir", "my state").output


def test_a_run_with_tolerated_failures_exits_with_3_and_shows_what_there_is(folder: Path) -> None:
    result = invoke("run", "partial.yaml", "--executor", "inline")
    assert result.exit_code == 3, result.output
    assert result.stdout == "[0, 2]\n"
    assert "finished with 1 tolerated failure" in result.stderr
    assert "tolerated step 0 (odd), item 1: ValueError: 1" in result.stderr


def test_a_run_that_takes_longer_than_its_clock_exits_with_4(folder: Path) -> None:
    done = call("run", "waits.yaml", "--timeout", "0.5", cwd=folder)
    assert done.returncode == 4, done.stderr
    assert "TIMED OUT" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_its_exit_code(number: signal.Signals, code: int, folder: Path) -> None:
    process = started("run", "waits.yaml", cwd=folder)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "(wait): started" in line:
                break
        process.send_signal(number)
        _, stderr = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    assert process.returncode == code, stderr
    assert "was STOPPED" in stderr
    assert "Traceback" not in stderr


def test_a_bad_file_exits_with_2_and_lists_every_problem_with_its_line(folder: Path) -> None:
    done = call("run", "wrong.yaml", cwd=folder)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert re.match(r"wrong\.yaml:5:\d+: .*'c'", lines[0])
    assert lines[-1] == f"{len(lines) - 1} problem{'s' if len(lines) > 2 else ''} in wrong.yaml; nothing was run"
    assert not (folder / ".procflow").exists()


def test_state_that_can_not_be_written_exits_with_74(folder: Path) -> None:
    (folder / "state").write_text("a file")
    done = call("run", "hello.yaml", "--state-dir", "state", cwd=folder)
    assert done.returncode == 74
    assert done.stderr.startswith("error: ")
    assert "state" in done.stderr


@pytest.fixture
def held(folder: Path) -> Iterator[Path]:
    """The lock of hello.yaml, held as another run would."""
    state = StateFolder.open(folder / ".procflow")
    lock = state.lock(lock_name(folder / "hello.yaml", "hello"))
    lock.acquire("other-run")
    yield folder
    lock.release()


def test_a_second_run_of_a_pipeline_exits_with_75_and_names_the_first(held: Path) -> None:
    done = call("run", "hello.yaml", cwd=held)
    assert done.returncode == 75
    assert "other-run" in done.stderr


def test_a_second_run_may_be_skipped(held: Path) -> None:
    done = call("run", "hello.yaml", "--if-running", "skip", cwd=held)
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr.startswith("skipped: ")


def test_a_second_run_may_wait_but_not_for_longer_than_it_was_told(held: Path) -> None:
    begun = time.monotonic()
    done = call("run", "hello.yaml", "--if-running", "wait=500ms", cwd=held)
    assert done.returncode == 75
    assert time.monotonic() - begun >= 0.5


def test_nobody_reading_stdout_or_stderr_does_not_end_a_run(folder: Path) -> None:
    (folder / "large.yaml").write_text(
        'name: large\nshow: t\nsteps:\n  - {type: transform, name: t, function: "cli_steps:large"}\n'
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = started("run", "large.yaml", "--run-id", "r1", cwd=folder, stdout=writer, stderr=writer)
    finally:
        os.close(writer)
    assert process.wait(timeout=DEADLINE_S) == 0
    assert "succeeded" in call("history", cwd=folder).stdout


def test_one_reader_that_goes_away_does_not_silence_the_other_outlet(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        process = started("run", "hello.yaml", cwd=folder, stdout=writer)
    finally:
        os.close(writer)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert "succeeded" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_text_that_the_terminal_can_not_show_is_escaped(folder: Path) -> None:
    env = {**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "ascii"}
    args = [sys.executable, "-m", "procflow", "run", "hello.yaml", "-q", "--executor", "inline", "-p", "name=ü"]
    done = subprocess.run(args, cwd=folder, env=env, capture_output=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello \\xfc\n", b"")


def test_a_shown_value_that_can_not_be_opened_is_told_and_is_no_success(folder: Path) -> None:
    (folder / "cli_steps.py").write_text(
        STEPS + "\ndef back():\n    raise ValueError('only in workers')\n\nclass Odd:\n"
        "    def __reduce__(self):\n        return (back, ())\n\ndef odd_value():\n    return Odd()\n"
    )
    (folder / "odd.yaml").write_text(
        'name: odd\nshow: o\nsteps:\n  - {type: transform, name: o, function: "cli_steps:odd_value"}\n'
    )
    done = call("run", "odd.yaml", cwd=folder)
    assert done.returncode == 1
    assert "only in workers" in done.stderr


# -- validate, plan, graph, schema -------------------------------------------------------------------------------------


def test_validate_says_ok_and_counts_steps(folder: Path) -> None:
    result = invoke("validate", "hello.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "hello.yaml: ok, 1 step\n", "")


def test_validate_finds_missing_functions_without_importing_the_module(folder: Path) -> None:
    (folder / "cli_steps.py").write_text(STEPS + "\nopen('imported', 'w')\n")
    (folder / "wrong.yaml").write_text(WRONG.replace(", inputs: [c]", ""))
    result = invoke("validate", "wrong.yaml")
    assert result.exit_code == 2
    assert re.match(r"wrong\.yaml:4:\d+: .*helo", result.stderr)
    assert result.stderr.splitlines()[-1] == "1 problem in wrong.yaml"
    assert not (folder / "imported").exists()


def test_validate_checks_the_limits_that_options_set(folder: Path) -> None:
    (folder / "big.yaml").write_text(HELLO.replace("name: greeting,", "name: greeting, cpus: 3,"))
    assert invoke("validate", "big.yaml", "-j", "3").exit_code == 0
    result = invoke("validate", "big.yaml", "-j", "2")
    assert result.exit_code == 2
    assert "3 cpus" in result.stderr


def test_validate_as_json_lists_problems_with_their_places(folder: Path) -> None:
    good = json.loads(invoke("validate", "hello.yaml", "--json").stdout)
    assert good == {"file": "hello.yaml", "ok": True, "pipeline": "hello", "steps": 1, "problems": []}
    result = invoke("validate", "wrong.yaml", "--json")
    bad = json.loads(result.stdout)
    assert result.exit_code == 2
    assert bad["ok"] is False
    assert bad["problems"][0]["line"] == 5
    assert bad["problems"][0]["path"].startswith("steps[1]")


@pytest.mark.parametrize(
    "args", [["plan", "hello.yaml"], ["run", "hello.yaml", "--dry-run"], ["run", "-n", "hello.yaml"]]
)
def test_a_plan_shows_limits_with_their_sources_and_the_steps_and_runs_nothing(args: list[str], folder: Path) -> None:
    result = invoke(*args, "-j", "2", "--memory", "100MB", "--timeout", "1h", "-p", "name=x")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "hello: 1 step"
    facts = dict(line.strip().split(None, 1) for line in lines[1 : lines.index("")])
    assert facts["workers"].startswith("2 (-j; ")
    assert facts["memory"].startswith("95 MiB (--memory; of ")
    assert facts["executor"] == "processes"
    assert facts["timeout"].endswith("(--timeout)")
    assert facts["params"] == "name='x'"
    assert facts["state"] == str(folder / ".procflow")
    assert lines[-1] == "0  greeting  cli_steps:hello; writes greeting; on processes"
    assert not (folder / ".procflow").exists()


def test_a_plan_says_where_undeclared_limits_come_from(folder: Path) -> None:
    text = invoke("plan", "hello.yaml").stdout
    assert re.search(r"workers +\d+ \(auto: \d+ usable cores?, by ", text)
    assert re.search(r"memory +.* \(limits.memory: 80% of ", text)
    assert re.search(r"workers +1 \(-j 1% of ", invoke("plan", "hello.yaml", "-j", "1%").stdout)


def test_a_plan_can_be_json(folder: Path) -> None:
    data = json.loads(invoke("plan", "hello.yaml", "-j", "2", "--json").stdout)
    assert data["workers"] == 2
    assert data["params"] == {"name": "world"}
    assert [step["label"] for step in data["steps"]] == ["greeting"]


def test_what_a_run_would_refuse_the_plan_refuses(folder: Path) -> None:
    result = invoke("plan", "wrong.yaml")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("in wrong.yaml; it would not run")


def test_a_graph_is_drawn_to_stdout_or_a_file_without_looking_at_functions(folder: Path) -> None:
    (folder / "cli_steps.py").unlink()
    assert invoke("graph", "hello.yaml").stdout.startswith("flowchart TD\n")
    assert invoke("graph", "hello.yaml", "--format", "dot").stdout.startswith('digraph "hello" {')
    assert invoke("graph", "hello.yaml", "-o", "out.mmd").stdout == ""
    assert (folder / "out.mmd").read_text() == invoke("graph", "hello.yaml").stdout
    assert invoke("graph", "hello.yaml", "-o", "no/such/folder").exit_code == 1


def test_a_graph_shows_the_steps_of_other_files(folder: Path) -> None:
    (folder / "outer.yaml").write_text("name: outer\nsteps:\n  - {type: pipeline, name: inner, file: hello.yaml}\n")
    text = invoke("graph", "outer.yaml").stdout
    assert 'subgraph b0["inner: pipeline of 1 step"]' in text
    assert "greeting" in text


def test_the_schema_is_json_and_describes_pipelines() -> None:
    schema = json.loads(invoke("schema").stdout)
    assert "steps" in schema["properties"]
    assert "steps" in schema["required"]
