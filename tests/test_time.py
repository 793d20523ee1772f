"""Time: durations come from the monotonic clock, the wall clock and the time zone are for display only (F66 to F68)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import procflow
from procflow import Parallel, Pipeline, Step
from procflow.scheduling.kept import KeptTask
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder
from procflow.testing import Act, FakeExecutor, run_fake

PACKAGE = Path(procflow.__file__).parent
DEADLINE_S = 60

DISPLAYED = {
    "storing/state_folder.py": "run ids and the holder's name in a lock",
    "storing/attempt_log.py": "the time in front of a log line",
    "storing/store_begin.py": "when a run began, for people",
    "showing/progress.py": "the time in front of a line",
    "showing/metrics_file.py": "timestamps of the run",
    "showing/progress_json.py": "the time in a line",
    "storing/history.py": "the list of the last days",
    "storing/cleaning.py": "how old a run is, in days",
    "storing/recovery.py": "the dated name of a damaged journal",
    "storing/store_migrate.py": "the dated name of an older journal",
    "report/facts.py": "for how long a live run has been going on",
    "report/page.py": "when the page was made",
    "report/spans.py": "spans are told in the time of day",
    "sources/web.py": "Retry-After may be a date",
    "dialects/node_functions.py": "what a node of that kind gives",
    "cli/status.py": "for how long a run has been going on",
    "cli/history.py": "local times of a list",
}
"""Files that may ask the wall clock, and what for: nothing there is a duration."""
WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("time", "localtime")}
WALL |= {("time", "gmtime"), ("time", "strftime"), ("date", "today"), ("datetime", "today")}


def asks_the_wall_clock(path: Path) -> list[int]:
    """Lines that read the wall clock."""
    found = []
    for part in ast.walk(ast.parse(path.read_text())):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and (part.value.id, part.attr) in WALL:
            found.append(part.lineno)
        elif isinstance(part, ast.ImportFrom) and part.module == "time":
            found += [part.lineno for name in part.names if ("time", name.name) in WALL]
    return found


def test_only_what_is_displayed_comes_from_the_wall_clock() -> None:
    asking = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if asks_the_wall_clock(path)}
    assert asking <= set(DISPLAYED), "use time.monotonic for durations and deadlines"


def test_reading_the_wall_clock_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import time\ndef f():\n    return time.time()\n")
    (tmp_path / "b.py").write_text("from time import time\n")
    (tmp_path / "c.py").write_text("import time\nnow = time.monotonic()\n")
    assert [asks_the_wall_clock(tmp_path / name) for name in ("a.py", "b.py", "c.py")] == [[3], [1], []]


JUMPS = """
import sys, time
real = time.time
jump = [0.0]
time.time = lambda: real() + jump[0]
from procflow import Map, Pipeline, Step
from procflow.storing.history import History
from procflow.launch import launch
from procflow.storing.state_folder import StateFolder

class Leaps:
    def handle(self, event):
        jump[0] = 86400.0 if jump[0] <= 0 else -86400.0

def slow(item):
    import time
    time.sleep(0.05)
    return item

pipeline = Pipeline("p", steps=[Map("m", slow, items=[1, 2, 3, 4]), Step("s", slow, params={"item": 5}, timeout="20s")],
                    limits={"timeout": "40s"})
result = launch(pipeline, state_dir=sys.argv[1], executor="processes", workers=1, run_id="r", observers=(Leaps(),))
assert jump[0]
assert result.status == "succeeded", result.status
with History.open(StateFolder(__import__("pathlib").Path(sys.argv[1]))) as past:
    run = past.run("r")
    assert 0 <= run.wall_s < 20, run.wall_s
    for row in past.steps("r"):
        assert 0 <= row.started <= row.ended <= 20, (row.started, row.ended)
"""


def test_a_wall_clock_that_jumps_a_day_back_and_forth_changes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JUMPS, str(tmp_path / "state")],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class _Used:
    """Earlier sessions in which nothing was finished, but time was used up."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    def task(self, path: str, item: str, role: Any) -> KeptTask | None:
        return None

    def items(self, path: str, item: str) -> Any:
        return ()

    def attempts(self, path: str, item: str) -> int:
        return 0

    def consumed_s(self, path: str, item: str) -> float:
        return self._seconds.get(path, 0.0)


@pytest.mark.parametrize(("used_s", "status"), [(0.0, "succeeded"), (30.0, "succeeded"), (45.0, "failed")])
def test_a_blocks_time_is_kept_as_time_used_up_whatever_the_clock_says_after_a_reboot(
    used_s: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from procflow import testing

    real = testing.Scheduler

    def with_kept(*args: Any, **more: Any) -> Any:
        return real(*args, **more, kept=_Used({"0": used_s}))

    # After a reboot the monotonic clock begins anew, lower than any time of the first session.
    monkeypatch.setattr(
        testing, "FakeExecutor", lambda slots, script: FakeExecutor(slots, script, testing.FakeClock(0.5))
    )
    monkeypatch.setattr(testing, "Scheduler", with_kept)
    block = Parallel("block", Step("a", len, params={"obj": ""}), timeout="60s")
    result = run_fake(Pipeline("p", steps=[block]), script={"a": Act(after_s=20, value=0)})
    assert result.status == status


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Kiritimati", "XYZ+25"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("now", [1_774_745_990.0, 1_792_889_990.0, 0.0], ids=["before spring", "before autumn", "1970"])
def test_run_ids_are_made_in_every_zone_around_every_change(
    zone: str, now: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        folder = StateFolder.open(tmp_path / "state")
        made = [folder.new_run(now=now + minute * 60) for minute in range(0, 180, 30)]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert len(set(made)) == len(made)


def test_runs_are_ordered_by_their_number_not_by_the_clock(tmp_path: Path) -> None:
    from procflow.storing.store import RunRecord, Store

    folder = StateFolder.open(tmp_path / "state")
    for run_id, started in (("first", "2026-11-20T08:00:00.000Z"), ("second", "1999-01-01T00:00:00.000Z")):
        with Store.open(folder) as store:
            store.begin(RunRecord(run_id, "p", started=started))
    with History.open(folder) as past:
        assert [run.run_id for run in past.runs()] == ["second", "first"]
        assert past.run().run_id == "second"
