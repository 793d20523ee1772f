"""Whoever follows a run takes every kind of event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from procflow import events as ev
from procflow.attempt import Failure, Usage
from procflow.ref import Inline
from procflow.result import Recorder
from procflow.showing.progress import LineProgress
from procflow.showing.progress_json import JsonProgress
from procflow.storing.failures_file import FailuresFile
from procflow.storing.store import MemoryStore, RunRecord

REF = Inline(b"x")
EVENTS: list[Any] = [
    ev.RunStarted(0.0, "r", "p", 3),
    ev.BlockStarted(0.1, "0", "m", "", "map", 4, "all"),
    ev.AttemptStarted(0.1, 1, "0", "m", "0-3", 1, "processes", "batch"),
    ev.ItemsDone(0.2, 1, "0", "m", "", range(2), REF),
    ev.StepProgress(0.2, "0", "m", "", 2.0, 4.0),
    ev.AttemptFinished(
        0.3, 1, "0", "m", "0-3", 1, "processes", "succeeded", 0.1, Usage(0.2), None, {"": REF},
        count=2, role="batch", indices=(2, 3), pages=((REF, 4),),
    ),
    ev.StepFinished(0.3, "0", "m", "1", "failed", 2, (), Failure("error", "E", "m")),
    ev.BlockFinished(0.4, "0", "m", "", "map", "failed", 4, 3, 1, 0.3, 0.3, 0.0, 0.0, (), Failure("error", "E", "m")),
    ev.RunFinished(0.5, "r", "failed", 1, 0, 0.5, 0.3),
]  # fmt: skip


def observers(tmp_path: Path) -> dict[str, Any]:
    store = MemoryStore()
    store.begin(RunRecord("r", "p"))
    lines: list[str] = []

    class Store:
        handle = staticmethod(store.record)

    class Json(JsonProgress):
        def handle(self, event: Any) -> None:
            super().handle(event)
            assert all(json.loads(line) for line in lines)

    return {
        "lines": LineProgress(lambda line: None),
        "json": Json(lines.append),
        "result": Recorder(2),
        "failures": FailuresFile(tmp_path),
        "store": Store(),
    }


@pytest.mark.parametrize("name", ["lines", "json", "result", "failures", "store"])
def test_every_kind_of_event_is_taken(name: str, tmp_path: Path) -> None:
    assert {type(event) for event in EVENTS} == set(get_args(ev.Event)), "this list has one of each"
    observer = observers(tmp_path)[name]
    for event in EVENTS:
        observer.handle(event)
