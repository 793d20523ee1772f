"""Kills of the run while short steps wait in its workers, done but not received: a kill costs at most one step a slot."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import ledger
import pytest
import queued

from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder

HERE = Path(__file__).parent
DEADLINE_S = 120
PLACES = ("engine.received", "engine.submit", "pool.received", "journal.commit.after", "journal.record")


def session(folder: Path, run_id: str, resume: bool, failpoint: str) -> int:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(HERE))),
        "PROCFLOW_FAILPOINTS": failpoint,
        ledger.VARIABLE: str(folder / "ledger"),
        "QUEUED_DONE": str(folder / "done-"),
    }
    command = [sys.executable, str(HERE / "queued.py"), str(folder / "state"), run_id, *(["resume"] if resume else [])]
    done = subprocess.run(command, env=env, timeout=DEADLINE_S, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def status(folder: Path, run_id: str) -> str | None:
    """How the run stands; None where nothing is recorded of it."""
    if not (folder / "state" / "procflow.db").exists():
        return None
    with History.open(StateFolder(folder / "state")) as past:
        return next((run.status for run in past.runs() if run.run_id == run_id), None)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_kill_of_the_run_costs_at_most_one_step_a_slot(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    kills, tidy = 0, True
    for place in PLACES:
        most = 8 if place == "journal.commit.after" else 200
        failpoint = f"{place}=kill@{chance.randint(2, most)}"
        if session(tmp_path, "run", status(tmp_path, "run") is not None, failpoint) == 0:
            break
        kills += 1
        ledger.count("kill points", 1)
        if status(tmp_path, "run") == "succeeded":
            # The kill came after the commit that says so: a resume would find nothing to do, and nobody tidied up.
            tidy = False
            break
    else:
        assert session(tmp_path, "run", True, "") == 0
    assert status(tmp_path, "run") == "succeeded"
    assert kills
    lines = ledger.read(tmp_path / "ledger")
    faults = dict.fromkeys(queued.DEADLY, 1)
    ledger.check_law(lines, queued.keys(), faults=faults, kills=kills, slots=queued.SLOTS)
    assert not tidy or not list((tmp_path / "state" / "tails").iterdir())
