"""Runs that are killed and go on: real processes, real SIGKILLs at any moment.

``PROCFLOW_KILLS`` is the number of kills, 200 by default, in chains of one to five; the moments follow from ``PROCFLOW_SEED``.
Commands come from a warm server (``warm.py``), so that a kill costs a few tenths of a second.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ledger
import pytest
from forked import MARK, marked, soon
from warm import Warm

DEADLINE_S = 60
KILLS = int(os.environ.get("PROCFLOW_KILLS", "200"))
SEED = os.environ.get("PROCFLOW_SEED", "1")
LENGTHS = (5, 4, 4, 3, 2, 2)
"""Kills of one run, over and over: the default is 200 kills in 60 chains."""
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
    warm: Warm
    announced: set[str] = field(default_factory=set)
    kills: int = 0
    said: str = ""
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    """What stands in the environment of every process of this night."""

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

    def session(self, *words: str, kill_after: int | None = None, wait_s: float = 0.0) -> tuple[int, str]:
        """Run a command to its end, or kill it once ``kill_after`` more lines stand in the ledger and ``wait_s`` is over.

        Exit code and stdout. What it announced is taken in, and nothing of it may live on.
        """
        before = len(self.ledger)
        out, err = self.folder / "out", self.folder / "err"
        env = {"LEDGER": str(self.folder / "ledger"), MARK: self.mark, "PROCFLOW_STATE_DIR": ""}
        pid = self.warm.start(words, self.folder, env, out, err)
        code = None
        if kill_after is not None:
            deadline = time.monotonic() + DEADLINE_S
            while code is None and len(self.ledger) - before < kill_after:
                assert time.monotonic() < deadline
                code = self.warm.ended(0.002)
            if code is None:
                code = self.warm.ended(wait_s)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                self.kills += 1
                ledger.count("parent kills", 1)
        code = self.warm.wait() if code is None else code
        self.said = err.read_text()
        self.check(before)
        return code, out.read_text()

    def check(self, before: int) -> None:
        """Nothing that was announced has run again since line ``before`` of the ledger, and no process is left."""
        again = {key for key, what in self.ledger[before:] if what == "start"} & self.announced
        ledger.count("LOST", len(again))
        assert not again, f"announced as done, and ran again: {sorted(again)}\n{self.said}"
        self.announced |= set(re.findall(r"Pipeline step [\d.]+ \((?:\w+/)*(\w+)\): succeeded", self.said)) & KEYS
        soon(lambda: not marked(self.mark), GONE_S)
        left = marked(self.mark)
        ledger.count("ORPHANS", len(left))
        assert not left, f"still alive: {left}"


GONE_S = 10
"""Two seconds are promised (``test_reaper.py`` holds us to it); here two processors may be full of other tests."""


KEYS = {*(f"c{i}" for i in range(8)), *(f"w{i}" for i in range(8)), *(f"g{i}" for i in range(6)), "items", "end"}


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> str:
    """What the pipeline prints when nothing happens to it."""
    night = Night(tmp_path_factory.mktemp("undisturbed") / "night", warm)
    code, out = night.session("run", "night.yaml", "-j", str(SLOTS))
    assert code == 0, night.said
    assert Counter(what for _, what in night.ledger) == {"start": NUMBER, "end": NUMBER}
    assert night.announced == KEYS
    return out


def chains() -> list[int]:
    """Lengths of the chains of kills."""
    lengths: list[int] = []
    while (left := KILLS - sum(lengths)) > 0:
        lengths.append(min(left, LENGTHS[len(lengths) % len(LENGTHS)]))
    return lengths


@pytest.mark.parametrize(("number", "length"), list(enumerate(chains())))
def test_a_run_killed_at_any_moment_gets_to_the_same_end_and_repeats_nothing_that_is_done(
    tmp_path: Path, undisturbed: str, warm: Warm, number: int, length: int
) -> None:
    chance = random.Random(f"{SEED}:{number}")
    night = Night(tmp_path / "night", warm)
    words: tuple[str, ...] = ("run", "night.yaml", "--run-id", "n", "-j", str(SLOTS))
    ledger.count("chains", 1)
    for _ in range(length):
        # Two lines a step; a chain of five kills takes a sixth of them each.
        most = max(2, 2 * NUMBER // (length + 1))
        code, out = night.session(*words, kill_after=chance.randrange(1, most), wait_s=chance.uniform(0, 0.03))
        if code == 0:
            break
        assert code == -signal.SIGKILL, night.said
        words = ("resume", "n")
    else:
        code, out = night.session("resume", "n")
    assert code == 0, night.said
    assert out == undisturbed
    starts = Counter(key for key, what in night.ledger if what == "start")
    wrong = [key for key in starts if key not in ALL] + [key for key in ALL if key not in starts]
    again = sum(starts.values()) - NUMBER
    ledger.count("law violations", len(wrong) + (again > night.kills * AT_ONCE))
    assert not wrong
    assert again <= night.kills * AT_ONCE
    assert {key for key, what in night.ledger if what == "end"} == set(starts)


ALL = KEYS | {f"each/{i}" for i in range(12)} | {f"{key}/{i}" for key in "pq" for i in range(4)}


def test_a_run_killed_before_its_first_step_goes_on(tmp_path: Path, undisturbed: str, warm: Warm) -> None:
    night = Night(tmp_path / "night", warm)
    env = {**os.environ, "LEDGER": str(night.folder / "ledger"), "PYTHONPATH": str(HERE.parent)}
    env.pop("PROCFLOW_STATE_DIR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "procflow", "run", "night.yaml", "--run-id", "n", "-j", str(SLOTS)],
        cwd=night.folder, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + DEADLINE_S
    while not (night.folder / ".procflow" / "runs" / "n").exists():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=DEADLINE_S)
    code, out = night.session("resume")
    if code != 0:
        # The kill came before the journal knew of the run: there is nothing to go on with.
        assert code == 2
        code, out = night.session("run", "night.yaml", "-j", str(SLOTS))
    assert (code, out) == (0, undisturbed)
