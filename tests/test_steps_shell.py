"""Shell steps: what runs, what it gets, what its end means. Real commands."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow.attempt import Failed, Failure, Succeeded
from procflow.call import StepCall
from procflow.compiling.template import parse
from procflow.values.objects import pack, unpack
from procflow.working.perform import perform

PYTHON = sys.executable


def outcome(command: Any, values: dict[str, Any] | None = None, folder: str | None = None, **options: Any) -> Any:
    tree = {name: parse(option) for name, option in {"command": command, **options}.items()}
    call = StepCall("shell", "0", "s", options=tree, outputs=("out",), folder=folder)
    return perform(call, {name: pack(value) for name, value in (values or {}).items()})


def run(command: Any, values: dict[str, Any] | None = None, **options: Any) -> Any:
    ended = outcome(command, values, **options)
    assert isinstance(ended, Succeeded), ended
    return unpack(ended.outputs["out"])


def failed(command: Any, values: dict[str, Any] | None = None, **options: Any) -> Failure:
    ended = outcome(command, values, **options)
    assert isinstance(ended, Failed), ended
    return ended.failure


def test_a_list_is_run_as_it_is_without_a_shell() -> None:
    assert run(["echo", "$(id)", "*", 3, "${v}"], {"v": "a b"}, parse="text") == "$(id) * 3 a b"


def test_a_line_is_run_by_a_shell() -> None:
    assert run("echo a; echo b | tr b c", parse="lines") == ["a", "c"]


@pytest.mark.parametrize(
    "hostile", ["$(id)", "`id`", "a; echo pwned", "a\nb", "'", '"', "$HOME", "-n", "a' ; echo x '", "\\"]
)
def test_a_value_is_one_word_whatever_it_holds(hostile: str) -> None:
    assert run("printf '%s|' start ${v} end", {"v": hostile}, parse="text") == f"start|{hostile}|end|"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))), min_size=1, max_size=4)
)
def test_a_list_in_a_line_is_as_many_words(words: list[str]) -> None:
    assert run("printf '%s\\000' ${words}", {"words": words}, parse="text").split("\0")[:-1] == words


def test_a_command_that_is_one_reference_is_taken_as_its_value_is() -> None:
    assert run("${c}", {"c": ["echo", "$HOME"]}, parse="text") == "$HOME"
    assert run("${c}", {"c": "echo a; echo b"}, parse="lines") == ["a", "b"]


def test_without_parse_the_exit_code_is_the_value_and_output_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("echo out; echo err >&2; exit 3", ok_codes=[0, 3]) == 3
    assert capfd.readouterr() == ("out\n", "err\n")


def test_a_bad_exit_code_fails_with_the_end_of_stderr() -> None:
    failure = failed("i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 7")
    assert failure.type == "CommandFailed"
    assert failure.exit_code == 7
    assert "ended with exit code 7" in failure.message
    assert failure.message.endswith("line 2999")
    assert len(failure.message) < 5000


def test_a_death_by_a_signal_names_it() -> None:
    failure = failed("kill -SEGV $$")
    assert failure.signal == 11
    assert failure.exit_code is None
    assert "died by SIGSEGV (11); it wrote nothing to stderr" in failure.message


def test_parsing() -> None:
    assert run("printf 'a\\n\\n'", parse="text") == "a\n"
    assert run("printf ''", parse="lines") == []
    assert run("printf 'a\\r\\n\\nb'", parse="lines") == ["a", "", "b"]
    assert run("""printf '{"a": [1, null]}'""", parse="json") == {"a": [1, None]}


@pytest.mark.parametrize(
    ("line", "parse_as", "says"),
    [
        ("printf 'no json'", "json", "stdout is not JSON"),
        ("printf '\\377'", "text", "byte 0xff at 0"),
        ("true", "xml", "parse is text, lines or json"),
    ],
)
def test_output_that_is_not_what_parse_says_fails(line: str, parse_as: str, says: str) -> None:
    assert says in failed(line, parse=parse_as).message


def test_stdin_takes_text_and_is_empty_without() -> None:
    assert run(["cat"], {"t": "a\nü"}, stdin="${t}", parse="text") == "a\nü"
    assert run(["cat"], {"t": b"bytes"}, stdin="${t}", parse="text") == "bytes"
    assert run(["cat"], parse="text") == ""
    assert run(["cat"], stdin="", parse="text") == ""
    assert "stdin takes text" in failed(["cat"], {"t": [1]}, stdin="${t}").message


def test_large_data_both_ways_does_not_block() -> None:
    big = "x" * 3_000_000
    assert len(run(["cat"], {"t": big}, stdin="${t}", parse="text")) == len(big)
    # A command that does not read what it is given is no error.
    assert run("true", {"t": big}, stdin="${t}") == 0


def test_environment_is_added_to_and_taken_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_GONE", "1")
    monkeypatch.setenv("PF_KEPT", "kept")
    line = "echo $PF_NEW $PF_KEPT ${PF_GONE:-gone}".replace("${", "$${")
    assert run(line, {"n": 5}, env={"PF_NEW": "${n}", "PF_GONE": None}, parse="text") == "5 kept gone"
    assert "env:" in failed("true", env={"A=B": "1"}).message


def test_the_folder_is_the_pipelines_or_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert run("pwd -P", folder=str(tmp_path), parse="text") == os.path.realpath(tmp_path)
    assert run("pwd -P", folder=str(tmp_path), cwd="sub", parse="text") == os.path.realpath(tmp_path / "sub")
    assert "there is no folder" in failed("pwd", folder=str(tmp_path), cwd="nothing").message


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["no-such-command-at-all"], "there is no command 'no-such-command-at-all'"),
        (["/"], "can't be started"),
        ([], "a command is a list"),
        ("  ", "empty"),
        (["echo", None], "argument 1"),
        (["echo", ["a"]], "argument 1"),
        (["echo", "a\0b"], "NUL"),
    ],
)
def test_what_cannot_be_started_is_told(command: Any, says: str) -> None:
    assert says in failed(command).message


def test_the_command_stays_in_the_session_and_group_of_the_worker() -> None:
    program = "import os; print(os.getsid(0), os.getpgid(0))"
    assert run([PYTHON, "-c", program], parse="text") == f"{os.getsid(0)} {os.getpgid(0)}"


def test_a_process_left_in_the_background_does_not_hold_the_step() -> None:
    start = time.monotonic()
    pid = run("sleep 60 & echo $!", parse="text")
    took = time.monotonic() - start
    os.kill(int(pid), 9)
    assert took < 20


def test_without_pidfd_the_end_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    assert run("sleep 60 & echo $!; kill $!", parse="text").isdigit()
    assert run("exec 1>&- 2>&-; sleep 0.1", parse="text") == ""
    assert run("exit 0") == 0


def test_no_descriptor_is_left_open() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    run("true", stdin="x", parse="text")
    before = count()
    for _ in range(5):
        run("true", stdin="x", parse="text")
        failed("exit 1", stdin="x")
        failed(["no-such-command-at-all"], stdin="x")
    assert count() == before


def test_cpu_of_the_command_counts() -> None:
    ended = outcome([PYTHON, "-c", "sum(range(3_000_000))"])
    assert ended.usage.cpu_s > 0.01


@pytest.mark.parametrize("executor", ["inline", "threads", "processes"])
def test_what_a_command_prints_is_in_its_log_wherever_it_runs(executor: str, tmp_path: Path) -> None:
    from procflow import load

    (tmp_path / "p.yaml").write_text("""
name: p
steps:
  - {type: shell, name: talk, command: "echo out; echo err >&2"}
  - {type: shell, name: parsed, command: "echo value; echo aside >&2", parse: text}
""")
    result = load(tmp_path / "p.yaml").run(executor=executor, state_dir=tmp_path / "s")
    assert result.outputs["parsed"] == "value"
    (run,) = (tmp_path / "s" / "runs").iterdir()
    assert sorted((run / "logs" / "talk" / "1.log").read_text().split()) == ["err", "out"]
    assert (run / "logs" / "parsed" / "1.log").read_text().split() == ["aside"]
