"""Runs that are killed and go on: real processes, real SIGKILLs at any moment.

``PROCFLOW_KILLS`` is the number of kills, 20 by default; the moments follow from ``PROCFLOW_SEED``.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

DEADLINE_S = 60
KILLS = int(os.environ.get("PROCFLOW_KILLS", "20"))
SEED = os.environ.get("PROCFLOW_SEED", "1")
LONGEST_CHAIN = 5
SLOTS = 2
AT_ONCE = SLOTS
"""Steps that one kill may cost: what was running. What was received is safe before its worker gets more to do."""

HERE = Path(__file__).parent
STEP = '{{type: transform, name: {name}, function: "resume_steps:work", params: {{key: {name}}}{more}}}'


def pipeline_text() -> str:
    """40 steps and more: a chain, a parallel block, a graph, a map of a function, a map of steps, and an end."""
    lines = ["name: night", "show: [end]", "steps:"]

    def step(name: str, indent: int = 2, **more: str) -> None:
        keys = "".join(f", {key}: {value}" for key, value in more.items())
        lines.append(" " * indent + "- " + STEP.format(name=name, more=keys))

    step("c0")
    for i in range(1, 8):
        step(f"c{i}", inputs=f"[c{i - 1}]")
    lines.append("  - {type: transform, name: items, function: 'resume_steps:items', inputs: [c7]}")
    lines += ["  - type: parallel", "    name: wide", "    steps:"]
    for i in range(8):
        step(f"w{i}", 6, inputs="[c0]")
    # One item a batch: the items of a batch that have ended are lost with it until it reports.
    lines.append(
        "  - {type: map, name: each, items: '${items}', function: 'resume_steps:each', batch: 1, output: rows}"
    )
    lines += ["  - type: graph", "    name: net", "    steps:"]
    for i in range(6):
        step(f"g{i}", 6, inputs=f"[{'w0' if i < 2 else f'g{i - 2}'}]")
    lines += ["  - type: map", "    name: each_of", "    items: {range: [0, 4]}", "    output: pairs", "    steps:"]
    for name in ("p", "q"):
        reads = "[item]" if name == "p" else "[p]"
        lines.append(
            f"      - {{type: transform, name: {name}, function: 'resume_steps:inner', inputs: [item], "
            f"params: {{key: {name}}}, depends_on: {'[]' if reads == '[item]' else '[p]'}}}"
        )
    step("end", inputs="[c7, w0, w7, rows, g5, pairs]")
    return "\n".join(lines) + "\n"


NUMBER = 8 + 1 + 8 + 12 + 6 + 8 + 1
"""Steps and items of the pipeline that write to the ledger."""


@dataclass
class Night:
    """A folder with the pipeline, its ledger and its sessions."""

    folder: Path
    announced: set[str] = field(default_factory=set)
    kills: int = 0
    said: str = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "night.yaml").write_text(pipeline_text())
        (self.folder / "resume_steps.py").write_text((HERE / "resume_steps.py").read_text())

    @property
    def ledger(self) -> list[tuple[str, str]]:
        """Key and what it did, in the order in which it was written."""
        path = self.folder / "ledger"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line.split()[0], line.split()[3]) for line in lines]

    def command(self, *words: str) -> subprocess.Popen[str]:
        env = {**os.environ, "LEDGER": str(self.folder / "ledger"), "PYTHONPATH": str(HERE.parent)}
        env.pop("PROCFLOW_STATE_DIR", None)
        return subprocess.Popen(
            [sys.executable, "-m", "procflow", *words], cwd=self.folder, env=env, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def session(self, *words: str, kill_after: int | None = None, wait_s: float = 0.0) -> tuple[int, str]:
        """Run a command to its end, or kill it once ``kill_after`` more lines stand in the ledger and ``wait_s`` is over.

        Exit code and stdout. What it announced is taken in.
        """
        before = len(self.ledger)
        done = {key for key, what in self.ledger if what == "start"}
        process = self.command(*words)
        deadline = time.monotonic() + DEADLINE_S
        if kill_after is not None:
            while process.poll() is None and len(self.ledger) - before < kill_after:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(wait_s)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                self.kills += 1
        out, said = process.communicate(timeout=DEADLINE_S)
        self.said = said
        again = {key for key, what in self.ledger[before:] if what == "start"} & self.announced
        assert not again, f"announced as done, and ran again: {sorted(again)}\n{said}"
        assert done >= self.announced
        self.announced |= set(re.findall(r"Pipeline step [\d.]+ \((?:\w+/)*(\w+)\): succeeded", said)) & KEYS
        return process.returncode, out


KEYS = {*(f"c{i}" for i in range(8)), *(f"w{i}" for i in range(8)), *(f"g{i}" for i in range(6)), "items", "end"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the pipeline prints when nothing happens to it."""
    night = Night(tmp_path_factory.mktemp("undisturbed"))
    code, out = night.session("run", "night.yaml", "-j", str(SLOTS))
    assert code == 0
    assert Counter(what for _, what in night.ledger) == {"start": NUMBER, "end": NUMBER}
    assert night.announced == KEYS
    return out


def chains() -> list[int]:
    """Lengths of the chains of kills."""
    lengths = [LONGEST_CHAIN] * (KILLS // LONGEST_CHAIN)
    return lengths + [1] * (KILLS - sum(lengths))


@pytest.mark.parametrize(("number", "length"), list(enumerate(chains())))
def test_a_run_killed_at_any_moment_gets_to_the_same_end_and_repeats_nothing_that_is_done(
    tmp_path: Path, undisturbed: str, number: int, length: int
) -> None:
    chance = random.Random(f"{SEED}:{number}")
    night = Night(tmp_path / "night")
    words: tuple[str, ...] = ("run", "night.yaml", "--run-id", "n", "-j", str(SLOTS))
    for _ in range(length):
        most = max(2, 2 * NUMBER // (length + 1))
        code, out = night.session(*words, kill_after=chance.randrange(1, most), wait_s=chance.uniform(0, 0.05))
        if code == 0:
            break
        assert code == -signal.SIGKILL, night.said
        words = ("resume", "n")
    else:
        code, out = night.session("resume", "n")
    assert code == 0, night.said
    assert out == undisturbed
    starts = Counter(key for key, what in night.ledger if what == "start")
    assert len(starts) == NUMBER
    assert sum(starts.values()) <= NUMBER + night.kills * AT_ONCE
    assert {key for key, what in night.ledger if what == "end"} == set(starts)


def test_a_run_killed_before_its_first_step_goes_on(tmp_path: Path, undisturbed: str) -> None:
    night = Night(tmp_path / "night")
    process = night.command("run", "night.yaml", "--run-id", "n", "-j", str(SLOTS))
    deadline = time.monotonic() + DEADLINE_S
    while not (tmp_path / "night" / ".procflow" / "runs" / "n").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)
    code, out = night.session("resume")
    if code != 0:
        # The kill came before the journal knew of the run: there is nothing to go on with.
        assert code == 2
        code, out = night.session("run", "night.yaml", "-j", str(SLOTS))
    assert (code, out) == (0, undisturbed)
