"""Reading the journal: lists, one run, live and killed runs, logs, and what past runs teach."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from procflow import events as ev
from procflow.attempt import Failure, Usage
from procflow.errors import StoreError
from procflow.ref import Inline
from procflow.storing import store_seal
from procflow.storing.history import History, OutputRow, UnknownRun
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store

DEADLINE_S = 60
BAD = Failure("error", "ValueError", "bad row", "Traceback ...", "jobs.py:8", ("ValueError", "Exception"))


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder.open(tmp_path / ".procflow")


def attempt(key: int, label: str = "a", item: str = "", number: int = 1, **more: Any) -> ev.Event:
    known: dict[str, Any] = {"status": "succeeded", "started_at": 1.0, "usage": Usage(2.0, 1.0, 1000)} | more
    return ev.AttemptFinished(3.0, key, label, label, item, number, "processes", **known)


def run(folder: StateFolder, run_id: str, *events: ev.Event, status: Any = "succeeded", **record: Any) -> None:
    """Journal a whole run."""
    with Store.open(folder) as store:
        store.begin(RunRecord(run_id, **({"pipeline": "nightly"} | record)))
        for event in (*events, ev.RunFinished(9.0, run_id, status, 0, 0, 9.0, 20.0)):
            store.record(event)


def test_a_folder_in_which_nothing_ran_has_no_runs(folder: StateFolder) -> None:
    with History.open(folder) as past:
        assert past.runs() == []
        assert list(past.steps("r1")) == []
        with pytest.raises(UnknownRun, match="nothing was run yet"):
            past.run()
        with pytest.raises(UnknownRun, match="there is no run 'x'"):
            past.run("x")
    assert not folder.db.exists()


def test_runs_come_newest_first_and_are_filtered(folder: StateFolder) -> None:
    run(folder, "r1", started="2026-11-01T08:00:00.000Z")
    run(folder, "r2", started="2026-11-19T08:00:00.000Z", status="failed")
    run(folder, "r3", started="2026-11-20T08:00:00.000Z", pipeline="hourly")
    now = datetime(2026, 11, 20, 9, tzinfo=timezone.utc)
    with History.open(folder) as past:
        ids = lambda **filters: [r.run_id for r in past.runs(now=now, **filters)]  # noqa: E731
        assert ids() == ["r3", "r2", "r1"]
        assert ids(last_s=3600) == ["r3"]
        assert ids(last_s=3599) == []
        assert ids(last_s=2 * 86400) == ["r3", "r2"]
        assert ids(status="failed") == ["r2"]
        assert ids(pipeline="hourly") == ["r3"]
        assert ids(limit=2) == ["r3", "r2"]
        assert ids(status="succeeded", limit=1) == ["r3"]


def test_a_run_is_found_by_its_unique_beginning(folder: StateFolder) -> None:
    for run_id in ("20261120-080000-abc", "20261120-080000-abd", "20261121-080000-xyz", "20261121"):
        run(folder, run_id, params={"day": "x"})
    with History.open(folder) as past:
        assert past.run().run_id == "20261121"
        assert past.run("20261121").run_id == "20261121"
        assert past.run("20261121-").run_id == "20261121-080000-xyz"
        assert past.run("20261120-080000-abc").params == {"day": "x"}
        with pytest.raises(UnknownRun, match="begins 2 run ids: 20261120-080000-abd, 20261120-080000-abc") as e:
            past.run("20261120-08")
        assert len(e.value.near) == 2
        with pytest.raises(UnknownRun, match="did you mean 20261120-080000-ab"):
            past.run("20261120-080000-abe")
        for odd in ("", "%", "../../etc", "'; DROP TABLE runs --"):
            with pytest.raises(UnknownRun):
                past.run(odd)


@pytest.mark.parametrize("change", ["UPDATE metrics SET value = 4", "UPDATE step_executions SET attempt = 2"])
def test_a_metric_that_is_not_as_it_was_written_is_refused(folder: StateFolder, change: str) -> None:
    run(folder, "r1", attempt(1, "a", metrics={"rows": 3}))
    with closing(sqlite3.connect(folder.db)) as db, db:
        db.execute(change)
    with History.open(folder) as past, pytest.raises(StoreError, match="the checksum is wrong"):
        list(past.metrics("r1"))


def test_steps_failures_metrics_and_outputs_of_one_run(folder: StateFolder) -> None:
    ref = Inline(b"x")
    run(folder, "other", attempt(1))
    run(
        folder,
        "r1",
        attempt(1, "a", outputs={"a": ref}, metrics={"rows": 3}),
        attempt(2, "b", status="failed", failure=BAD, retry_in_s=1.0),
        attempt(3, "b", number=2, status="failed", failure=BAD),
    )
    with History.open(folder) as past:
        assert [(s.label, s.attempt, s.status) for s in past.steps("r1")] == [
            ("a", 1, "succeeded"),
            ("b", 1, "failed"),
            ("b", 2, "failed"),
        ]
        assert [s.key for s in past.steps("r1", label="a")] == [1]
        (failed,) = past.failures("r1")
        assert (failed.attempt, failed.failure_record) == (2, BAD)
        assert past.labels("r1") == ["a", "b"]
        assert list(past.metrics("r1")) == [("a", "", 1, "rows", 3.0)]
        assert list(past.outputs("r1")) == [OutputRow("a", "", "a", ref)]
        assert next(past.steps("other")).failure_record is None


def test_logs_are_found_only_where_something_was_written(folder: StateFolder) -> None:
    run_id = folder.new_run("r1")
    run(folder, run_id, attempt(1, "fetch/a"), attempt(2, "fetch/b"))
    path = folder.logs(run_id) / "fetch__a" / "1.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"hello")
    with History.open(folder) as past:
        assert [past.log(row) for row in past.steps(run_id)] == [path, None]


def test_a_log_outside_its_run_is_never_opened(folder: StateFolder, tmp_path: Path) -> None:
    import contextlib
    import sqlite3

    folder.new_run("r1")
    (tmp_path / "secret").write_text("x")
    run(folder, "r1", attempt(1))
    with contextlib.closing(sqlite3.connect(folder.db)) as db, db:
        db.execute("UPDATE step_executions SET log = '../../../secret'")
        store_seal.install(db)
        store_seal.reseal(db, "step_executions", "1", ())
    assert (folder.run("r1") / "../../../secret").exists()
    with History.open(folder) as past:
        assert [past.log(row) for row in past.steps("r1")] == [None]


def test_a_damaged_result_names_its_run_and_step(folder: StateFolder) -> None:
    import contextlib
    import sqlite3

    run(folder, "r1", attempt(1, outputs={"a": Inline(b"x")}))
    with contextlib.closing(sqlite3.connect(folder.db)) as db, db:
        db.execute("UPDATE step_executions SET refs = CAST(substr(refs, 1, length(refs) - 1) || x'00' AS BLOB)")
    with History.open(folder) as past, pytest.raises(StoreError, match=r"run r1, step a, 'a': .*checksum"):
        list(past.outputs("r1"))


RUN = """
import sys
from procflow import events as ev
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store
folder = StateFolder.open(sys.argv[1])
lock = folder.lock("nightly.yaml")
lock.acquire("r1")
store = Store.open(folder)
store.begin(RunRecord("r1", "nightly", lock="nightly.yaml"))
store.record(ev.AttemptStarted(1.0, 1, "0", "a", "", 1, "processes"))
store.commit()
print("running", flush=True)
sys.stdin.read()
"""


def test_a_run_is_live_until_its_process_dies_and_then_it_was_killed(folder: StateFolder) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        with History.open(folder) as past:
            live = past.run()
            assert (live.status, live.live, live.pid) == ("running", True, process.pid)
            assert [s.status for s in past.steps("r1")] == ["running"]
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE_S)
            killed = past.run()
            assert (killed.status, killed.live, killed.exit_code) == ("killed", False, None)
            assert [r.run_id for r in past.runs(status="killed")] == ["r1"]
            assert past.runs(status="running") == []
            # Another run of the same pipeline holding the lock does not bring it back to life.
            with folder.lock("nightly.yaml") as lock:
                lock.acquire("r2")
                assert past.run("r1").status == "killed"
    finally:
        process.kill()
        process.communicate(timeout=DEADLINE_S)


def test_past_runs_teach_durations_and_memory(folder: StateFolder) -> None:
    run(folder, "r1", attempt(1, usage=Usage(2.0, 1.0, 100)), attempt(2, "b", status="failed", failure=BAD))
    run(folder, "r2", attempt(1, usage=Usage(4.0, 1.0, 900)), attempt(2, usage=Usage(6.0, 1.0, 300)))
    run(folder, "r3", attempt(1, usage=Usage(50.0, 1.0, 9000)), pipeline="hourly")
    with History.open(folder) as past:
        taught = [dict(each.lessons.each())["a", "member", "processes"] for each in past.learned("nightly").runs]
        assert [(one.attempts, one.wall_s, one.peaks) for one in taught] == [(2, 10.0, (300, 900)), (1, 2.0, (100,))]
        assert past.learned("none").runs == []


@pytest.mark.parametrize(
    ("own", "item", "covered"),
    [
        ("7", "7", True),
        ("0-99", "7", True),
        ("0-99", "100", False),
        ("3,8,9", "8", True),
        ("3,8,9", "7", False),
        ("3/0-9", "3/7", True),
        ("3/0-9", "7", False),
        ("0-9", "3/7", False),
        ("", "7", False),
        ("0-9", "x", False),
        ("0-9", "", False),
        ("0-9", "٧", False),
    ],
)
def test_a_batch_covers_its_items(folder: StateFolder, own: str, item: str, covered: bool) -> None:
    run(folder, "r1", attempt(1, item=own))
    with History.open(folder) as past:
        assert next(past.steps("r1")).covers(item) is covered


def test_a_closed_history_has_nothing(folder: StateFolder) -> None:
    run(folder, "r1")
    past = History.open(folder)
    past.close()
    past.close()
    assert past.runs() == []
