"""What procflow promises, line by line: the README's contract, each line held by the test of the same name.

These run the command as a person does, with real processes and real faults. What each promise means in detail is
tested elsewhere; here it is enough that a line of the README can't become untrue without a test that says so.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60.0

MODULE = '''
import itertools, os, pathlib, subprocess, time

def note(name):
    """One line in the ledger for each start, written at once."""
    fd = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{name} {os.getpid()}\\n".encode())
    os.close(fd)

def work(name, seconds=0.0, value=None):
    note(name)
    time.sleep(seconds)
    return name if value is None else value

def item(x, seconds=0.02, poison=None):
    note(f"item{x}")
    if x == poison:
        os.kill(os.getpid(), 9)
    time.sleep(seconds)
    return x * x

def die(name):
    note(name)
    os.kill(os.getpid(), 9)

def hog(name):
    note(name)
    return sum(itertools.repeat(1, 10**12))

def daemon(name):
    note(name)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(300)
        os._exit(0)
    time.sleep(60)

def fail(name):
    note(name)
    raise OSError("always")

def eat(name, mebibytes):
    note(name)
    block = bytearray(mebibytes << 20)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(20)

def tell(secret):
    print("the secret is", secret)
    raise ValueError(f"no good: {secret}")

def total(rows):
    note("total")
    return sum(rows)
'''


class Folder:
    """A folder with a module of steps; runs the command in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "ledger"
        (path / "steps.py").write_text(MODULE)
        self.env = {**os.environ, "LEDGER": str(self.ledger), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self.env.pop("PROCFLOW_STATE_DIR", None)

    def pipeline(self, **tree: Any) -> None:
        # JSON is YAML, and needs no indentation.
        (self.path / "p.yaml").write_text(json.dumps({"name": "p", **tree}))

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "procflow", *words],
            cwd=self.path, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, output

    def starts(self) -> Counter[str]:
        return (
            Counter(line.split()[0] for line in self.ledger.read_text().splitlines())
            if self.ledger.exists()
            else Counter()
        )

    def pids(self) -> list[int]:
        """Everything that runs with this ledger in its environment, but the command itself."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if f"LEDGER={self.ledger}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def wait_for(self, condition: Any, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds} s in vain; ledger: {dict(self.starts())}"
            time.sleep(0.02)

    def succeeded(self) -> set[tuple[str, str]]:
        """Steps and items that the journal says are done."""
        db = sqlite3.connect(f"file:{self.path / '.procflow' / 'procflow.db'}?mode=ro", uri=True)
        try:
            rows = db.execute("SELECT label, item FROM step_executions WHERE status = 'succeeded'").fetchall()
        finally:
            db.close()
        return {(label, item) for label, item in rows}


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    made = Folder(tmp_path)
    yield made
    end = time.monotonic() + 3.0
    while made.pids() and time.monotonic() < end:
        time.sleep(0.05)
    left = made.pids()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes were left: {left}"


def step(name: str, function: str = "work", **keys: Any) -> dict[str, Any]:
    return {"name": name, "function": f"steps:{function}", "params": {"name": name}, **keys}


def test_a_dying_worker_costs_exactly_the_attempt_it_ran(folder: Folder) -> None:
    members = [step("a"), step("b", "die"), step("c"), step("d")]
    folder.pipeline(steps=[{"type": "parallel", "name": "all", "on_error": "finish", "steps": members}])
    code, output = folder.run("run", "p.yaml")
    assert code == 1
    assert folder.starts() == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert re.search(r"all/b.*\n.*SIGKILL", output)
    assert "3 succeeded, 1 failed" in output


def test_sigkill_of_the_parent_loses_no_finished_step(folder: Folder) -> None:
    folder.pipeline(
        show=["sum"],
        steps=[
            {"type": "map", "name": "m", "items": list(range(60)), "function": "steps:item", "batch": 3},
            {"name": "sum", "function": "steps:total", "inputs": ["m"]},
        ],
    )
    kills = 0
    code, output = -signal.SIGKILL, ""
    for wanted in (6, 20, 35, 10_000):
        process = folder.start("run", "p.yaml") if not kills else folder.start("resume", "-j", "2")
        enough = wanted + kills
        while process.poll() is None and folder.starts().total() < enough:
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            kills += 1
        output, _ = process.communicate(timeout=PATIENCE_S)
        code = process.returncode
        if code == 0:
            break
        done = {item for label, item in folder.succeeded() if label == "m"}
        assert done or kills == 1
    assert code == 0, output
    assert str(sum(x * x for x in range(60))) in output
    assert folder.starts()["total"] == 1
    again = sum(n - 1 for n in folder.starts().values())
    assert again <= kills * 2 * 3, "a kill costs at most the batch that each of two workers had"


def test_every_result_is_merged_exactly_once_in_declared_order(folder: Folder) -> None:
    members = [step(f"s{i}", params={"name": f"s{i}", "seconds": (4 - i) * 0.05, "value": [i]}) for i in range(4)]
    folder.pipeline(
        show=["joined"],
        steps=[{"type": "parallel", "name": "p", "steps": members, "merge": "combine_outputs", "output": "joined"}],
    )
    outputs = {
        folder.run("run", "p.yaml", "-q", *words)[1] for words in (["-j", "1"], ["-j", "4"], ["--executor", "threads"])
    }
    assert outputs == {"[0, 1, 2, 3]\n"}


def test_no_process_outlives_the_run(folder: Folder) -> None:
    folder.pipeline(steps=[step("d", "daemon")])
    process = folder.start("run", "p.yaml")
    folder.wait_for(lambda: folder.starts()["d"] and len(folder.pids()) >= 3)
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    folder.wait_for(lambda: not folder.pids(), 3.0)


def test_two_runs_never_overlap(folder: Folder) -> None:
    folder.pipeline(steps=[step("a", params={"name": "a", "seconds": 30})])
    first = folder.start("run", "p.yaml")
    folder.wait_for(lambda: folder.starts()["a"])
    code, output = folder.run("run", "p.yaml")
    assert code == 75
    assert str(first.pid) in output
    first.kill()
    first.communicate(timeout=PATIENCE_S)
    folder.pipeline(steps=[step("b")])
    assert folder.run("run", "p.yaml")[0] == 0, "a lock is the kernel's: it can't be stale"


def test_a_step_over_its_memory_is_stopped_and_it_alone(folder: Folder) -> None:
    fat = step("fat", "eat", params={"name": "fat", "mebibytes": 400}, memory="150MB", retry={"retries": 0})
    folder.pipeline(
        steps=[{"type": "parallel", "name": "p", "on_error": "finish", "steps": [fat, step("thin", memory="100MB")]}]
    )
    code, output = folder.run("run", "p.yaml")
    assert code == 1
    assert "over its memory limit of 143 MiB" in output
    assert folder.starts() == {"fat": 1, "thin": 1}


def test_a_timeout_holds_whatever_the_step_does(folder: Folder) -> None:
    folder.pipeline(steps=[step("h", "hog", timeout="1s", kill_grace="500ms")])
    begun = time.monotonic()
    code, output = folder.run("run", "p.yaml")
    assert code == 1
    assert "longer than its timeout of 1 s" in output
    assert re.search(r"steps\.py.* in hog", output), "the stack of that moment is shown"
    assert time.monotonic() - begun < 12


def test_nothing_waits_without_a_deadline() -> None:
    """No call in the package blocks for ever on another process, thread or queue."""
    endless = []
    for path in sorted((ROOT / "procflow").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        # What a step does runs under its clock; the reaper has nothing to do but wait for its parent's end.
        # The lock of a pool is only ever held between two waits.
        if name.startswith("procflow/steps/") or name in ("procflow/guarding/sweep.py", "procflow/pool/workers.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.args + node.keywords:
                receiver = ast.unparse(node.func.value)
                if node.func.attr in ("join", "wait", "communicate", "acquire") and receiver != "lock":
                    endless.append(f"{name}:{node.lineno}: {receiver}.{node.func.attr}()")
    assert endless == []


def test_a_bad_configuration_never_starts_a_worker(folder: Folder) -> None:
    (folder.path / "p.yaml").write_text(
        "name: p\nsteps:\n  - {name: a, function: 'steps:work', retires: 3}\n  - {nmae: b}\n"
    )
    code, output = folder.run("run", "p.yaml")
    assert code == 2
    assert re.search(r"p\.yaml:3:\d+: .*retires.*did you mean 'retries'", output)
    assert re.search(r"p\.yaml:4:\d+: ", output)
    assert not folder.starts()


def test_resume_runs_what_failed_or_changed_and_nothing_else(folder: Folder) -> None:
    folder.pipeline(steps=[step("a"), step("b"), step("c", "fail")])
    assert folder.run("run", "p.yaml")[0] == 1
    text = (folder.path / "steps.py").read_text()
    (folder.path / "steps.py").write_text(text.replace('raise OSError("always")', "return 1"))
    code, output = folder.run("resume")
    assert code == 0, output
    assert folder.starts() == {"a": 1, "b": 1, "c": 2}


def test_a_damaged_journal_is_refused_and_kept(folder: Folder) -> None:
    folder.pipeline(steps=[step("a")])
    assert folder.run("run", "p.yaml")[0] == 0
    db = folder.path / ".procflow" / "procflow.db"
    damaged = b"no database at all" * 1000
    db.write_bytes(damaged)
    code, output = folder.run("run", "p.yaml")
    assert code == 74
    assert "procflow.db" in output
    assert db.read_bytes() == damaged
    assert folder.starts() == {"a": 1}


def test_retries_are_bounded_for_a_step_and_for_the_run(folder: Folder) -> None:
    retry = {"retries": 2, "delay": "10ms", "jitter": False}
    folder.pipeline(steps=[step("a", "fail", retry=retry)])
    assert folder.run("run", "p.yaml")[0] == 1
    assert folder.starts() == {"a": 3}
    folder.ledger.unlink()
    many = [step(f"s{i}", "fail", retry={"retries": 50, "delay": "10ms", "jitter": False}) for i in range(20)]
    folder.pipeline(steps=[{"type": "parallel", "name": "p", "steps": many, "on_error": "finish"}])
    assert folder.run("run", "p.yaml")[0] == 1
    assert folder.starts().total() < 80


def test_secrets_reach_neither_disk_nor_screen(folder: Folder) -> None:
    canary = "c4nary-" + "0123456789abcdef" * 2
    folder.env["TOKEN_X"] = canary
    folder.pipeline(
        secrets={"token": "${env.TOKEN_X}"},
        steps=[{"name": "t", "function": "steps:tell", "params": {"secret": "${secrets.token}"}}],
    )
    code, output = folder.run("run", "p.yaml")
    assert code == 1
    assert canary not in output
    assert "no good: ***" in output
    for path in (folder.path / ".procflow").rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path


def test_exit_codes_are_a_contract(folder: Folder) -> None:
    def code_of(*words: str, **tree: Any) -> int:
        folder.pipeline(**tree)
        return folder.run("run", "p.yaml", "-q", *words)[0]

    assert code_of(steps=[step("a")]) == 0
    assert code_of(steps=[step("a", "fail")]) == 1
    assert code_of(steps=[step("a", "nothing_there")]) == 2
    assert code_of(steps=[step("a", "fail", on_error="continue")]) == 3
    assert code_of("--timeout", "1s", steps=[step("a", params={"name": "a", "seconds": 30})]) == 4
    assert code_of("--state-dir", "/dev/null/x", steps=[step("a")]) == 74
    folder.pipeline(steps=[step("a", params={"name": "a", "seconds": 30})])
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        folder.ledger.unlink(missing_ok=True)
        process = folder.start("run", "p.yaml")
        folder.wait_for(lambda: folder.starts()["a"])
        process.send_signal(number)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code


def test_the_readme_names_every_test_of_the_contract() -> None:
    text = (ROOT / "README.md").read_text()
    promised = set(re.findall(r"`(test_\w+)`", text))
    here = {name for name in globals() if name.startswith("test_")} - {
        "test_the_readme_names_every_test_of_the_contract"
    }
    assert promised == here
