"""``init``, ``doctor`` and ``completion``: the first minutes with procflow."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import procflow
from procflow.cli import COMMANDS, cli, doctor

ROOT = str(Path(procflow.__file__).parents[1])
LONG_S = 90


def invoke(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROCFLOW_STATE_DIR", raising=False)


def test_what_init_writes_runs_and_says_what_it_found(tmp_path: Path) -> None:
    invoke("init", "my-night", "--dir", "new")
    (tmp_path / "new" / "a.txt").write_text("one two two three three three")
    (tmp_path / "new" / "b.txt").write_text("three")
    done = subprocess.run(
        [sys.executable, "-m", "procflow", "run", "my-night.yaml", "-q", "-p", "most=2"],
        cwd=tmp_path / "new", env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True,
        timeout=LONG_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["longest file  a.txt", "      4  three", "      2  two", "      1  one"]


def test_what_init_writes_is_valid_by_the_schema_it_names(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    invoke("init")
    first = Path("pipeline.yaml").read_text().splitlines()[0]
    schema = first.partition("$schema=")[2]
    assert first.startswith("# yaml-language-server: ")
    jsonschema.validate(yaml.safe_load(Path("pipeline.yaml").read_text()), json.loads(Path(schema).read_text()))
    assert "ok, 5 steps" in invoke("validate", "pipeline.yaml").stdout


def test_init_never_changes_what_is_there() -> None:
    Path("nightly_steps.py").write_text("mine")
    assert "nightly_steps.py is there already" in invoke("init", "nightly", code=2).stderr
    assert Path("nightly_steps.py").read_text() == "mine"
    assert not Path("nightly.yaml").exists()


@pytest.mark.parametrize("name", ["../x", "1st", "a b", "", "x" * 80])
def test_init_refuses_names_that_are_no_module(name: str) -> None:
    assert "use a letter" in invoke("init", name, code=2).stderr


def test_init_into_a_folder_that_cannot_be_made() -> None:
    Path("file").write_text("")
    assert "file" in CliRunner().invoke(cli, ["init", "--dir", "file/below"]).stderr


def test_doctor_looks_at_everything_and_json_says_the_same() -> None:
    text = CliRunner().invoke(cli, ["doctor"])
    told = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)
    topics = [one["topic"] for one in told]
    assert topics[:3] == ["python", "cores", "memory"]
    assert {"cgroup", "state folder", "shared memory", "libraries", "blas", "kernel"} <= set(topics)
    assert all(any(line[9:].startswith(topic) for line in text.stdout.splitlines()) for topic in topics)
    assert text.exit_code == int(any(one["level"] == "warning" for one in told))
    assert not Path(".procflow").exists(), "it changes nothing"


def test_doctor_warns_of_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    found = {one.topic: one for one in doctor.findings()}
    assert found["open files"].level == "warning"
    assert "ulimit -n" in found["open files"].advice
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 1


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Finding:
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_swap", broken)
    found = {one.topic: one for one in doctor.findings()}
    assert found["swap"].text == "could not be looked at: OSError: no such thing"


def test_completion_is_for_the_command_and_completes(tmp_path: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_PROCFLOW_COMPLETE" in invoke("completion", shell).stdout
    env = {
        **os.environ, "PYTHONPATH": ROOT, "_PROCFLOW_COMPLETE": "bash_complete", "COMP_WORDS": "procflow re", "COMP_CWORD": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from procflow.cli import main; main()"],
        env=env, capture_output=True, text=True, timeout=LONG_S, check=False,
    )  # fmt: skip
    found = {line.partition(",")[2] for line in done.stdout.splitlines()}
    assert found == {name for name in COMMANDS if name.startswith("re")}


@pytest.mark.parametrize("arguments", [["run", "one.yaml"], ["run", "one.yaml", "--executor", "inline"], ["--version"]])
def test_what_others_registered_for_the_end_of_the_process_is_done(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "one.yaml").write_text(
        "name: p\nshow: [a]\nsteps: [{type: transform, name: a, function: 'os:getpid'}]\n"
    )
    script = (
        "import atexit, sys\natexit.register(lambda: print('the end'))\n"
        f"sys.argv = ['procflow', *{arguments!r}]\nfrom procflow.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=LONG_S, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 2
    assert done.stdout.endswith("\nthe end\n")
