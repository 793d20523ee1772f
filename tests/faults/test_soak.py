"""The soak: random pipelines with harm done to every process of theirs, for as long as one likes.

    pytest -m soak tests/faults/test_soak.py            half an hour; PROCFLOW_SOAK_S=28800 for eight
    PROCFLOW_SEED=7 pytest -m soak ...                  other pipelines, other harm

The parent is killed, signalled and stopped, workers are killed and stopped, the reaper is killed, the disk is full, the clock
jumps, steps are short of memory, leave daemons and forks. What must hold is in ``soak.py``; the counts are printed at the
end. A few runs of it are part of every test run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import ledger
import pytest
from soak import Soak
from warm import Warm

SOAK_S = float(os.environ.get("PROCFLOW_SOAK_S", "1800"))
SEED = os.environ.get("PROCFLOW_SEED", "1")
RUNS_A_FOLDER = 25


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as server:
        yield server


@pytest.mark.parametrize("part", range(4))
def test_a_few_runs_that_are_harmed_get_to_their_end(warm: Warm, memory: Path, part: int) -> None:
    soak = Soak(memory / f"sample-{part}", warm, f"{SEED}:sample:{part}")
    for _ in range(2):
        soak.one()


@pytest.mark.soak
def test_runs_that_are_harmed_get_to_their_end(warm: Warm, memory: Path) -> None:
    began = time.monotonic()
    folders = 0
    wrong: list[str] = []
    while time.monotonic() - began < SOAK_S:
        folders += 1
        soak = Soak(memory / f"soak-{folders}", warm, f"{SEED}:{folders}")
        for _ in range(RUNS_A_FOLDER):
            if time.monotonic() - began < SOAK_S:
                try:
                    soak.one()
                except AssertionError as error:
                    # Half an hour is too long to stop at the first.
                    wrong.append(str(error))
                    print(error, flush=True)
                    break
    ledger.count("soak: seconds", int(time.monotonic() - began))
    assert not wrong, "\n".join(wrong)
