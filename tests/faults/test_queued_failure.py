"""A step fails while short steps wait behind others: some begin before the stop comes, and what is dropped was never told."""

from __future__ import annotations

from pathlib import Path

import ledger
import pytest
import queued

from procflow import Parallel, Pipeline, Step
from procflow.events import AttemptFinished, Event, RunFinished, StepFinished
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder

KEYS = queued.keys()
FAILS = "s300"


def work(key: str, marker: str) -> str:
    ledger.write(key, "start")
    if key == FAILS and not Path(marker).exists():
        Path(marker).touch()
        raise RuntimeError("once")
    ledger.write(key, "end")
    return key


def labels(events: list[Event], status: str) -> set[str]:
    kinds = (AttemptFinished, StepFinished)
    return {e.label.rpartition("/")[2] for e in events if isinstance(e, kinds) and e.status == status and e.path != "0"}


def test_what_was_announced_runs_once_and_what_was_dropped_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ledger.VARIABLE, str(tmp_path / "ledger"))
    members = (Step(key, work, params={"key": key, "marker": str(tmp_path / "failed")}) for key in KEYS)
    pipeline = Pipeline("queued", steps=[Parallel("block", *members)])
    state = tmp_path / "state"
    first = list(pipeline.stream(executor="processes", workers=queued.SLOTS, state_dir=state))
    assert isinstance(first[-1], RunFinished)
    assert first[-1].status == "failed"
    lines = ledger.read(tmp_path / "ledger")
    told, began = labels(first, "succeeded"), {line.key for line in lines}
    ended = {line.key for line in lines if line.what == "end"}
    assert told <= ended, "what was announced as done is done"
    with History.open(StateFolder(state)) as past:
        (run,) = past.runs()
        rows = {row.label.rpartition("/")[2]: row.status for row in past.steps(run.run_id) if row.path != "0"}
    assert {key for key, status in rows.items() if status == "succeeded"} == told
    assert rows[FAILS] == "failed"
    dropped = began - told - {FAILS}
    assert {rows.get(key, "cancelled") for key in dropped} <= {"cancelled"}

    again = pipeline.resume(state_dir=state)
    assert again.status == "succeeded", again.failures
    assert dict(again.outputs) == {key: key for key in KEYS}
    starts = ledger.starts(ledger.read(tmp_path / "ledger"))
    assert {key for key, times in starts.items() if times > 1} == dropped | {FAILS}
    assert max(starts.values()) == 2
