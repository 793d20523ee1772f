"""Traces of runs: slices that nest on one track a worker, counters, instants, and what a viewer asks of the format."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from procflow import events as ev
from procflow.attempt import Failure, Usage
from procflow.cli import cli
from procflow.report.facts import Facts, Session, Try, read_facts
from procflow.report.trace import events, write_trace
from procflow.storing.history import History, RunRow
from procflow.storing.samples import NAME, encoded
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store, utc_now

RUN = "20261120-080000-abc"
DIED = Failure("oom", "OutOfMemory", "used 3 GiB", signal=9)
RUN_ROW = RunRow(
    RUN, "p", None, None, {}, {}, None, "processes", 2, "succeeded", None, "", "", 0, 1, "h", "0", "3", 1, 1,
    0, 0, 0, 0, 0, 0, 0, 1.0, 1.0,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFolder:
    """A state folder with a run of a block, a killed attempt that was tried again, and samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROCFLOW_STATE_DIR", raising=False)
    folder = StateFolder.open(".procflow")
    folder.new_run(RUN)
    with Store.open(folder) as store:
        store.begin(RunRecord(RUN, "nightly </script>", workers=2))
        for event in (
            ev.RunStarted(0.0, RUN, "nightly", 2),
            ev.BlockStarted(0.0, "0", "both", "", "parallel", 2, "all"),
            ended(1, "0.0", "both/a", 0.0, 1.0, status="lost", failure=DIED, retry_in_s=0.5),
            ended(2, "0.1", "both/\u202eb", 0.0, 2.0, item="3/7"),
            ended(3, "0.0", "both/a", 1.5, 3.0, number=2),
            ev.BlockFinished(3.0, "0", "both", "", "parallel", "succeeded", 2, 2, 0, 3.0, 4.0, 1.0, 0.0),
            ev.RunFinished(3.0, RUN, "succeeded", 0, 0, 3.0, 4.0),
        ):
            store.record(event)
    line = {
        "samples": [[0.0, 1000, 0.0], [1.0, 2000, 1.5], [3.0, 500, 4.0]],
        "attempts": encoded([1, 1, 20_000, 30_000, 2, 2, 10, 20, 3, 3, 10, 20]),
    }
    (folder.run(RUN) / NAME).write_text(
        json.dumps({"session": utc_now(), "workers": 2}) + "\n" + json.dumps(line) + "\n"
    )
    return folder


def ended(key: int, path: str, label: str, start: float, end: float, **more: Any) -> ev.Event:
    known: dict[str, Any] = {
        "status": "succeeded",
        "item": "",
        "number": 1,
        "usage": Usage(end - start - 0.4, 0.5, 5),
    } | more
    item, number = known.pop("item"), known.pop("number")
    return ev.AttemptFinished(end, key, path, label, item, number, "processes", started_at=start, **known)


def trace_of(folder: StateFolder) -> dict[str, Any]:
    file = io.StringIO()
    with History.open(folder) as past:
        write_trace(past, past.run(RUN), file)
    found: dict[str, Any] = json.loads(file.getvalue())
    return found


def assert_nested(found: list[dict[str, Any]]) -> None:
    """On every track each slice lies within the one that is open, or begins when that is over."""
    tracks: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in found:
        assert {"ph", "name", "pid", "tid"} <= event.keys()
        if event["ph"] == "X":
            assert event["dur"] > 0
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in tracks.values():
        open_until: list[float] = []
        for start, end in sorted(slices, key=lambda s: (s[0], -s[1])):
            while open_until and open_until[-1] <= start + 0.06:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 0.2
            open_until.append(end)


def test_every_worker_is_a_track_with_a_name(folder: StateFolder) -> None:
    found = trace_of(folder)["traceEvents"]
    assert_nested(found)
    names = {e["tid"]: e["args"]["name"] for e in found if e["name"] == "thread_name"}
    assert names == {0: "run", 1: "worker 1", 2: "worker 2", 3: "worker 3"}
    assert [e["args"]["name"] for e in found if e["name"] == "process_name"] == ["nightly </script>"]
    attempts = [(e["name"], e["tid"], e["ts"], e["dur"]) for e in found if e["ph"] == "X" and e["cat"] != "part"]
    assert attempts == [("a", 1, 0.0, 1e6), ("\\u202eb 3/7", 2, 0.0, 2e6), ("a", 3, 1.5e6, 1.5e6)]


def test_the_parts_of_an_attempt_lie_inside_it(folder: StateFolder) -> None:
    found = trace_of(folder)["traceEvents"]
    parts = [(e["name"], e["ts"], e["dur"]) for e in found if e.get("cat") == "part" and e["tid"] == 1]
    assert parts == [("start", 0.0, 2e5), ("send", 2e5, 1e5), ("work", 3e5, 6e5), ("receive", 9e5, 1e5)]


def test_kills_and_retries_are_instants_and_figures_are_counters(folder: StateFolder) -> None:
    found = trace_of(folder)["traceEvents"]
    assert [(e["name"], e["ts"], e["tid"]) for e in found if e["ph"] == "i"] == [
        ("killed: oom", 1e6, 1),
        ("retry after oom", 1e6, 1),
    ]
    counters: dict[str, list[Any]] = defaultdict(list)
    for event in found:
        if event["ph"] == "C":
            counters[event["name"]].append((event["ts"], *event["args"].values()))
    assert counters["memory"] == [(0.0, 1000), (1e6, 2000), (3e6, 500)]
    assert counters["cores"] == [(1e6, 1.5), (3e6, 1.25)]
    assert counters["running tasks"][-1] == (3e6, 0)
    assert max(value for _, value in counters["running tasks"]) == 2


def test_blocks_begin_and_end(folder: StateFolder) -> None:
    found = trace_of(folder)["traceEvents"]
    assert [(e["ph"], e["name"], e["ts"]) for e in found if e.get("cat") == "block"] == [
        ("b", "both", 0.0),
        ("e", "both", 3e6),
    ]


def test_the_head_says_which_run_it_is(folder: StateFolder) -> None:
    about = trace_of(folder)["otherData"]
    assert (about["run"], about["status"], about["pipeline"]) == (RUN, "succeeded", "nightly </script>")


def test_a_trace_without_samples_has_lanes(folder: StateFolder) -> None:
    (folder.run(RUN) / NAME).unlink()
    found = trace_of(folder)["traceEvents"]
    assert_nested(found)
    assert {e["args"]["name"] for e in found if e["name"] == "thread_name"} == {"run", "lane 1", "lane 2"}


TIMES = st.floats(0, 1e4, allow_nan=False)


@given(st.lists(st.tuples(TIMES, TIMES, TIMES, TIMES, st.integers(0, 3), st.booleans()), max_size=40))
def test_slices_nest_whatever_the_clocks_say(rows: list[tuple[float, float, float, float, int, bool]]) -> None:
    facts = Facts(RUN_ROW, "", [Session(1, "", None, 0, 0.0, 1e4)])
    for key, (start, length, sent, wall_s, worker, known) in enumerate(rows, 1):
        facts.tries.append(
            Try(
                key,
                key,
                "s",
                "0",
                "",
                1,
                "member",
                "succeeded",
                None,
                "processes",
                0,
                start,
                start + length,
                wall_s,
                0.0,
                0,
                1,
                False,
                worker,
                sent if known else -1.0,
                sent + 0.1 if known else -1.0,
            )
        )
    facts.tries.sort(key=lambda t: (t.start, t.id))
    assert_nested(list(events(facts)))


def test_the_command_writes_a_file_or_stdout(folder: StateFolder, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["trace"])
    assert (done.exit_code, done.stdout) == (0, f"trace-{RUN}.json\n")
    whole = json.loads((tmp_path / f"trace-{RUN}.json").read_text())
    assert json.loads(CliRunner().invoke(cli, ["trace", RUN[:10], "-o", "-"]).stdout) == whole
    assert CliRunner().invoke(cli, ["trace", "-o", "no/such/t.json"]).exit_code == 1
    assert CliRunner().invoke(cli, ["trace", "nosuch"]).exit_code == 2


def test_a_long_run_is_written_event_by_event(folder: StateFolder) -> None:
    with Store.open(folder) as store:
        store.begin(RunRecord("long", "long", workers=2))
        for key in range(1, 5001):
            store.record(ended(key, "0", "each", key * 0.1, key * 0.1 + 0.09, item=str(key)))
    with History.open(folder) as past:
        run = past.run("long")
        most = 0

        class File:
            def write(self, text: str) -> int:
                nonlocal most
                most = max(most, len(text))
                return len(text)

        write_trace(past, run, File())
        facts = read_facts(past, run)
    assert len(facts.tries) == 5000
    assert most < 1000
