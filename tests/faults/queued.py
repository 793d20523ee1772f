"""A block of short steps that write to the ledger: ``python queued.py STATE RUN_ID [resume]`` runs it, or goes on with it.

So short that they are handed out ahead and wait in the workers.
"""

from __future__ import annotations

import os
import signal
import sys

import ledger

from procflow import Parallel, Pipeline, Step

STEPS = 600
SLOTS = 2
DEADLY = ("s100", "s300")
"""These kill their worker the first time."""


def work(key: str) -> str:
    ledger.write(key, "start")
    if key in DEADLY and not os.path.exists(os.environ["QUEUED_DONE"] + key):
        with open(os.environ["QUEUED_DONE"] + key, "x"):
            os.kill(os.getpid(), signal.SIGKILL)
    return key


def keys() -> list[str]:
    return [f"s{i}" for i in range(STEPS)]


def pipeline() -> Pipeline:
    members = (Step(key, work, params={"key": key}, retry={"retries": 1, "delay": 0}) for key in keys())
    return Pipeline("queued", steps=[Parallel("block", *members)])


if __name__ == "__main__":
    from procflow.launch import launch
    from procflow.resuming.continuing import Earlier

    state, run_id = sys.argv[1:3]
    earlier = Earlier(run_id, same_run=True) if sys.argv[3:] else None
    result = launch(pipeline(), run_id=run_id, state_dir=state, workers=SLOTS, earlier=earlier)
    assert result.status == "succeeded", result.failures
    assert dict(result.outputs) == {key: key for key in keys()}
