"""Reports: what a page says of runs of every fate, and that nothing in it can act."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from procflow import events as ev
from procflow.api import Graph, Map, Parallel, Pipeline, Step
from procflow.attempt import Failure, Usage
from procflow.cli import cli
from procflow.compiler import compile_pipeline
from procflow.errors import StoreError
from procflow.report.chains import give_lanes, mark_critical, queued
from procflow.report.facts import Facts, read_facts
from procflow.report.failures import advice, groups
from procflow.report.figures import quantile, shares, step_figures
from procflow.report.page import page
from procflow.report.plots import curves, ticks, timeline
from procflow.showing.shape import part_of, plain_of
from procflow.storing.history import History
from procflow.storing.samples import GRAPH, NAME, encoded
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store, utc_now

RUN = "20261120-080000-abc"
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31mred\x1b[0m \u202egnp.exe\x00\"'&{{7*7}}"
)


def work(*values: Any) -> int:
    return 1


def pipeline() -> Pipeline:
    """fetch, then a and b at once, then a map; publish follows the map."""
    steps = Graph(
        Step("fetch", work),
        Parallel("both", Step("a", work), Step("b", work), depends_on=["fetch"]),
        Map("scan", work, items=[1, 2, 3, 4], depends_on=["both"]),
        Step("publish", work, depends_on=["scan"]),
        name="all",
    )
    return Pipeline("nightly", steps=[steps])


def ended(key: int, path: str, label: str, start: float, end: float, **more: Any) -> ev.AttemptFinished:
    known: dict[str, Any] = {
        "status": "succeeded",
        "started_at": start,
        "usage": Usage(end - start - 0.1, 0.5, 5 << 20),
    }
    known |= more
    item, number = known.pop("item", ""), known.pop("number", 1)
    return ev.AttemptFinished(end, key, path, label, item, number, "processes", **known)


def block(path: str, label: str, kind: str, start: float, end: float, **more: Any) -> list[ev.Event]:
    known: dict[str, Any] = {"status": "succeeded", "members": 2, "successful_count": 2, "failed_count": 0} | more
    return [
        ev.BlockStarted(start, path, label, "", kind, known["members"], "all"),
        ev.BlockFinished(end, path, label, "", kind, wall_s=end - start, work_s=1.0, saved_s=0.0, cost=0.0, **known),
    ]


BAD = Failure(
    "error", "KeyError", "'price'", 'Traceback\n  File "jobs.py", line 8, in parse\nKeyError: price', "jobs.py:8"
)


def went_well() -> list[ev.Event]:
    outer, outer_end = block("0", "all", "graph", 0.0, 9.0, members=4, successful_count=4)
    both, both_end = block("0.1", "all/both", "parallel", 1.0, 4.0)
    scan, scan_end = block("0.2", "all/scan", "map", 4.0, 8.0, members=4, successful_count=4)
    return [
        ev.RunStarted(0.0, RUN, "nightly", 5),
        outer,
        ended(1, "0.0", "all/fetch", 0.0, 1.0),
        both,
        ended(2, "0.1.0", "all/both/a", 1.0, 2.0),
        ended(3, "0.1.1", "all/both/b", 1.5, 4.0),
        both_end,
        scan,
        ended(4, "0.2", "all/scan", 4.0, 6.0, item="0-1", count=2, role="batch"),
        ended(5, "0.2", "all/scan", 4.0, 8.0, item="2-3", count=2, role="batch"),
        scan_end,
        ended(6, "0.3", "all/publish", 8.0, 9.0),
        outer_end,
        ev.RunFinished(9.0, RUN, "succeeded", 0, 0, 9.0, 11.0),
    ]


def went_wrong(failure: Failure = BAD) -> list[ev.Event]:
    outer, outer_end = block("0", "all", "graph", 0.0, 5.0, members=4, status="failed", failed_count=1, failure=failure)
    return [
        ev.RunStarted(0.0, RUN, "nightly", 5),
        outer,
        ended(
            1,
            "0.0",
            "all/fetch",
            0.0,
            1.0,
            status="lost",
            failure=Failure("crash", "WorkerDied", "died"),
            retry_in_s=0.1,
        ),
        ended(2, "0.0", "all/fetch", 1.1, 2.0, number=2),
        ended(3, "0.1.0", "all/both/a", 2.0, 5.0, status="failed", failure=failure),
        ev.StepFinished(5.0, "0.1.0", "all/both/a", "", "failed", 1, (), failure),
        ev.StepFinished(5.0, "0.3", "all/publish", "", "cancelled", 0, (), None, "a failed"),
        outer_end,
        ev.RunFinished(5.0, RUN, "failed", 1, 0, 5.0, 5.0, "a failed"),
    ]


def samples(started: str, attempts: list[tuple[int, int, int, int]], until: float) -> str:
    head = {
        "session": started,
        "cpus": 2,
        "budget_bytes": 1 << 30,
        "workers": 2,
        "packages": ["numpy 2.0"],
        "platform": "Linux",
    }
    packed = encoded([number for row in attempts for number in row])
    line = {"samples": [[0.0, 1000, 0.0], [4.0, 300 << 20, 6.0], [until, 5000, until]], "attempts": packed}
    return json.dumps(head) + "\n" + json.dumps(line) + "\n"


SENT = [(1, 1, 5_000, 6_000), (2, 1, 10, 20), (3, 2, 10, 20), (4, 1, 10, 20), (5, 2, 10, 20), (6, 1, 10, 20)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFolder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROCFLOW_STATE_DIR", raising=False)
    return StateFolder.open(".procflow")


def record(folder: StateFolder, events: list[ev.Event], *, known: bool = True, run_id: str = RUN, **more: Any) -> None:
    """A session of a run in the journal, with what its folder holds besides unless not ``known``."""
    if not folder.run(run_id).exists():
        folder.new_run(run_id)
    with Store.open(folder) as store:
        store.begin(RunRecord(run_id, more.pop("name", "nightly"), "/x/nightly.yaml", workers=2, **more))
        for event in events:
            store.record(event)
    if known:
        graph = compile_pipeline(pipeline())
        (folder.run(run_id) / GRAPH).write_text(json.dumps(plain_of(part_of(graph))))
        with open(folder.run(run_id) / NAME, "a") as file:
            file.write(samples(utc_now(), SENT, events[-1].at))


def facts_of(folder: StateFolder, now: datetime | None = None) -> Facts:
    with History.open(folder) as past:
        return read_facts(past, past.run(RUN), now)


def page_of(folder: StateFolder) -> str:
    with History.open(folder) as past:
        return page(past, past.run(RUN))


class Parsed(HTMLParser):
    """Tags, attributes and the text that a reader sees."""

    VOID = frozenset({"meta", "br", "img", "rect", "path", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open, tag
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def assert_inert(text: str) -> Parsed:
    """Whatever a run was called or printed, the page has no script, no address, and no character that acts."""
    parsed = Parsed(text)
    assert not parsed.open
    assert not {"script", "img", "iframe", "object", "embed", "form", "link", "base", "a", "input"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("src", "href", "xlink:href")]
    assert "http:" not in re.sub(r'xmlns="http://www\.w3\.org/2000/svg"', "", text).replace("http-equiv", "")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200e\u200f]", text)
    return parsed


# -- what a page says --------------------------------------------------------------------------------------------------


def test_the_page_of_a_run_that_went_well(folder: StateFolder) -> None:
    record(folder, went_well(), params={"day": "2026-11-20"})
    text = page_of(folder)
    parsed = assert_inert(text)
    for said in ("nightly", "succeeded", RUN, "all/both/b", "Critical path", "Peak memory", "300 MiB", "limit 1.0 GiB"):
        assert said in parsed.text
    for said in ("start-up", "receive", "idle", "numpy 2.0", "day 2026-11-20", "4 items", "busy", "Cores in use"):
        assert said in parsed.text
    assert "What to do" not in parsed.text
    assert "Not everything is known" not in parsed.text
    assert "prefers-color-scheme:dark" in text
    assert len(text) < 100_000


def test_the_page_of_a_failed_run_says_first_what_to_do(folder: StateFolder) -> None:
    record(folder, went_wrong())
    log = folder.logs(RUN) / "all__both__a" / "1.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"reading\n\x1b[31mwarning\x1b[0m: 3 rows\n")
    parsed = assert_inert(page_of(folder))
    at = [
        parsed.text.index(w) for w in ("What to do first", "all/both/a raised at jobs.py:8", f"procflow resume {RUN}")
    ]
    assert at == sorted(at)
    assert f"procflow logs {RUN} all/both/a" in parsed.text
    for said in ("KeyError: 'price'", 'File "jobs.py", line 8', "warning: 3 rows", "Not run: all/publish"):
        assert said in parsed.text


def test_a_page_is_made_without_what_the_folder_no_longer_holds(folder: StateFolder) -> None:
    record(folder, went_well(), known=False)
    shutil.rmtree(folder.run(RUN))
    parsed = assert_inert(page_of(folder))
    assert "Not everything is known" in parsed.text
    assert "the order of steps and the critical path are unknown" in parsed.text
    assert "memory and CPU over time" in parsed.text
    assert "all/both/b" in parsed.text
    assert "Tasks running" in parsed.text
    assert "Critical path" not in parsed.text


def test_a_killed_run_is_told_as_cut_off(folder: StateFolder) -> None:
    begun = [ev.AttemptStarted(2.0, 9, "0.1.0", "all/both/a", "", 1, "processes")]
    record(folder, [*went_well()[:4], *begun])
    facts = facts_of(folder)
    assert facts.run.status == "killed"
    cut = facts.tries[-1]
    assert (cut.status, cut.end) == ("lost", facts.length)
    parsed = assert_inert(page_of(folder))
    assert "procflow itself was killed" in parsed.text
    assert f"procflow resume {RUN}" in parsed.text
    assert "cut off" in parsed.text


def test_a_live_run_is_told_until_now(folder: StateFolder) -> None:
    lock = folder.lock("nightly-lock")
    lock.acquire(RUN)
    started = datetime.now(timezone.utc)
    begun = [ev.AttemptStarted(2.0, 9, "0.1.0", "all/both/a", "", 1, "processes")]
    record(folder, [*went_well()[:4], *begun], lock="nightly-lock")
    facts = facts_of(folder, started + timedelta(seconds=60))
    assert facts.tries[-1].status == "running"
    assert facts.tries[-1].end == facts.length == pytest.approx(60, abs=2)
    parsed = assert_inert(page_of(folder))
    assert "is running" in parsed.text
    assert f"procflow report {RUN}" in parsed.text
    lock.release()


def test_sessions_of_a_resumed_run_follow_each_other_without_the_pause(folder: StateFolder) -> None:
    record(folder, went_wrong())
    kept = ev.StepFinished(0.0, "0.0", "all/fetch", "", "succeeded", 2, ("x",), kept=True)
    record(folder, [ev.RunStarted(0.0, RUN, "nightly", 5), kept, *went_well()[3:]])
    facts = facts_of(folder)
    assert [(s.offset, s.length) for s in facts.sessions] == [(0.0, 5.0), (5.0, 9.0)]
    assert facts.outcomes["0.0"].status == "kept"
    assert facts.outcomes["0.1.0"].status == "succeeded"
    assert not facts.bad
    assert {t.label: t.start for t in facts.tries if t.session == 1}["all/both/a"] == 6.0
    parsed = assert_inert(page_of(folder))
    assert "session 2" in parsed.text
    assert "Session 2 begins at the dashed line" in parsed.text
    assert "done before, not run again" in parsed.text


def test_damaged_rows_are_left_out_and_told(folder: StateFolder) -> None:
    record(folder, went_well())
    with sqlite3.connect(folder.db) as db:
        db.execute("UPDATE step_executions SET wall_s = 77 WHERE label = 'all/both/a'")
    db.close()
    parsed = assert_inert(page_of(folder))
    assert "1 row of the journal, damaged and left out" in parsed.text
    assert "all/both/b" in parsed.text


def test_a_damaged_row_of_the_run_itself_is_refused(folder: StateFolder) -> None:
    record(folder, went_well())
    with sqlite3.connect(folder.db) as db:
        db.execute("UPDATE runs SET wall_s = 77")
    db.close()
    with pytest.raises(StoreError, match="damaged"):
        page_of(folder)


@pytest.mark.parametrize("text", ["", "{", "[]\n{}", '{"session": 3}\n{"samples": [[1]]}', "\x00" * 50, "[" * 100_000])
def test_torn_files_of_a_run_folder_are_told_as_missing_and_nothing_more(folder: StateFolder, text: str) -> None:
    record(folder, went_well(), known=False)
    for name in (GRAPH, NAME):
        (folder.run(RUN) / name).write_text(text)
    assert "Not everything is known" in assert_inert(page_of(folder)).text


# -- hostile texts -----------------------------------------------------------------------------------------------------


def hostile(folder: StateFolder) -> None:
    failure = Failure("error", HOSTILE, HOSTILE * 20_000, f"Traceback\n{HOSTILE}\n" * 3000, HOSTILE)
    events: list[ev.Event] = [
        ev.RunStarted(0.0, RUN, HOSTILE, 2),
        ended(1, "0", HOSTILE, 0.0, 1.0, item=HOSTILE),
        ended(2, "1", HOSTILE * 3000, 0.0, 1.0, status="failed", failure=failure, metrics={HOSTILE: 1.0}),
        ev.StepFinished(1.0, "1", HOSTILE * 3000, "", "failed", 1, (), failure, HOSTILE),
        ev.StepFinished(1.0, "2", HOSTILE, "", "skipped", 0, (), None, HOSTILE),
        ev.RunFinished(1.0, RUN, "failed", 1, 0, 1.0, 1.0, HOSTILE),
    ]
    record(folder, events, known=False, name=HOSTILE, params={HOSTILE: HOSTILE * 1000})
    row = [-1, "", "", HOSTILE, "sequence", HOSTILE, [], 2]
    rows = [
        row,
        [0, "0", HOSTILE, HOSTILE, "map", HOSTILE, [], 0],
        [0, "1", HOSTILE, HOSTILE, HOSTILE, HOSTILE, [0, 99], 0],
    ]
    (folder.run(RUN) / GRAPH).write_text(json.dumps(rows))
    with History.open(folder) as past:
        for row_ in past.steps(RUN, bad=True):
            log = folder.run(RUN) / str(row_.log)
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_bytes(HOSTILE.encode() * 50_000)


def test_hostile_names_and_tracebacks_stay_inert_readable_and_small(folder: StateFolder) -> None:
    hostile(folder)
    text = page_of(folder)
    parsed = assert_inert(text)
    assert "</script><script>alert(1)</script>" in parsed.text
    assert "\\u202egnp.exe" in parsed.text
    assert "{{7*7}}" in parsed.text
    assert len(text) < 300_000


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_runs_nothing_of_a_hostile_page(folder: StateFolder, tmp_path: Path) -> None:
    hostile(folder)
    target = tmp_path / "page.html"
    target.write_text(page_of(folder).replace("alert(1)", "document.documentElement.id='owned'"), "utf-8")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", target.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode or "<html" not in done.stdout:
        pytest.skip(f"chromium does not run here: {done.stderr[-200:]}")
    parsed = Parsed(re.sub(r"<!doctype[^>]*>", "", done.stdout, flags=re.I))
    assert "script" not in parsed.tags
    assert ("id", "owned") not in parsed.attributes
    assert "img" not in parsed.tags


# -- figures -----------------------------------------------------------------------------------------------------------


def test_lanes_are_workers_and_where_those_are_unknown_as_few_as_can_be(folder: StateFolder) -> None:
    record(folder, went_well())
    facts = facts_of(folder)
    assert give_lanes(facts) == ["1", "2"]
    assert {t.key: t.lane for t in facts.tries} == {1: 0, 2: 0, 3: 1, 4: 0, 5: 1, 6: 0}
    for each in facts.tries:
        each.worker = 0
    assert give_lanes(facts) == ["1", "2"]
    for lane in (0, 1):
        ends = [(t.start, t.end) for t in facts.tries if t.lane == lane]
        assert all(one[1] <= other[0] + 1e-6 for one, other in pairwise(ends))


def test_the_critical_path_goes_back_from_what_ended_last(folder: StateFolder) -> None:
    record(folder, went_well())
    facts = facts_of(folder)
    give_lanes(facts)
    assert mark_critical(facts) == ["all/fetch", "all/both/b", "all/scan", "all/publish"]
    assert {t.key for t in facts.tries if t.critical} == {1, 3, 5, 6}


def test_waiting_for_a_place_counts_from_when_a_step_was_ready(folder: StateFolder) -> None:
    record(folder, went_well())
    found = queued(facts_of(folder))
    assert found is not None
    assert found[0] == pytest.approx(0.5)
    assert found[1] == [("all/both/b", pytest.approx(0.5))]


def test_where_the_time_went_adds_up_to_the_time_of_all_workers(folder: StateFolder) -> None:
    record(folder, went_well())
    facts = facts_of(folder)
    parts = {part.key: part for part in shares(facts)}
    assert sum(part.seconds for part in parts.values()) == pytest.approx(2 * 9.0)
    assert sum(part.share for part in parts.values()) == pytest.approx(1.0)
    # The first attempt was sent 50 ms after it was handed out, since its worker had to start.
    assert parts["start"].seconds == pytest.approx(0.05)
    assert parts["work"].seconds == pytest.approx(sum(t.wall_s for t in facts.tries))


def test_lost_attempts_are_lost_work(folder: StateFolder) -> None:
    record(folder, went_wrong())
    parts = {part.key: part.seconds for part in shares(facts_of(folder))}
    assert parts["waste"] == pytest.approx(0.9 + 2.9, abs=0.2)


def test_the_table_of_steps_counts_attempts_and_items(folder: StateFolder) -> None:
    record(folder, went_well())
    steps, rest = step_figures(facts_of(folder), 10)
    by_name = {step.name: step for step in steps}
    scan = by_name["all/scan"]
    assert (scan.attempts, scan.items, scan.median_s, scan.most_s) == (2, 4, pytest.approx(2.9), pytest.approx(3.9))
    assert rest is None
    steps, rest = step_figures(facts_of(folder), 2)
    assert [step.name for step in steps] == ["all/both/b", "all/scan"]
    assert rest is not None
    assert (rest.steps, rest.attempts) == (3, 3)


@pytest.mark.parametrize(("share", "value"), [(0, 1.0), (0.5, 2.5), (0.95, 3.85), (1, 4.0)])
def test_quantiles_lie_between_the_times(share: float, value: float) -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], share) == pytest.approx(value)


def test_failures_alike_are_one_group_and_tolerated_ones_come_last(folder: StateFolder) -> None:
    outer, outer_end = block("0", "each", "map", 0.0, 2.0, members=9, successful_count=6, failed_count=3)
    items = [ev.StepFinished(1.0, "0", "each", str(i), "failed", 1, (), BAD) for i in range(3)]
    last = ended(9, "1", "last", 2.0, 3.0, status="failed", failure=BAD)
    end = [
        last,
        ev.StepFinished(3.0, "1", "last", "", "failed", 1, (), BAD),
        ev.RunFinished(3.0, RUN, "failed", 4, 3, 3.0, 3.0),
    ]
    record(folder, [ev.RunStarted(0.0, RUN, "nightly", 2), outer, *items, outer_end, *end])
    with History.open(folder) as past:
        facts = read_facts(past, past.run(RUN))
        found = groups(past, facts)
    assert [(g.label, g.count, g.tolerated) for g in found] == [("last", 1, False), ("each", 3, True)]
    assert found[1].items == ["0", "1", "2"]
    assert facts.outcomes["0"].failed == 3
    assert advice(facts, found, "")[0][0].startswith("last raised at jobs.py:8")


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        *(("timeout", "timeout:"), ("idle", "heartbeat"), ("oom", "raise memory:"), ("crash", "worker")),
        *(("pressure", "-j"), ("spawn", "limits")),
    ],
)
def test_what_to_do_is_told_by_the_cause(folder: StateFolder, cause: Any, said: str) -> None:
    record(folder, went_wrong(Failure(cause, "Lost", "lost")))
    with History.open(folder) as past:
        facts = read_facts(past, past.run(RUN))
        first = advice(facts, groups(past, facts), "")[0][0]
    assert said in first


@pytest.mark.parametrize("length", [1e-6, 0.004, 0.3, 9.2, 61.0, 3700.0, 90_000.0, 1e7])
def test_ticks_are_few_and_lie_on_the_axis(length: float) -> None:
    found = ticks(length)
    assert 1 <= len(found) <= 7
    assert found[0] == (0.0, "0")
    assert all(0 <= at < 98 for at, _ in found)


def many(folder: StateFolder, count: int, workers: int) -> None:
    events: list[ev.Event] = [ev.RunStarted(0.0, RUN, "nightly", 1)]
    for i in range(count):
        bad: dict[str, Any] = {"status": "failed", "failure": BAD} if i % 1000 == 7 else {}
        at = i // workers * 0.1
        events.append(ended(i + 1, "0", "each", at, at + 0.1, item=str(i), role="batch", **bad))
    record(
        folder,
        [*events, ev.RunFinished(count / workers / 10, RUN, "failed", 5, 0, count / workers / 10, 1.0)],
        known=False,
    )


def test_five_thousand_attempts_on_a_hundred_workers_are_binned_and_small(folder: StateFolder) -> None:
    many(folder, 5000, 100)
    facts = facts_of(folder)
    found = timeline(facts, give_lanes(facts))
    assert found is not None
    assert found.binned
    assert (found.per_lane, len(found.lanes)) == (3, 34)
    assert "<title>" not in found.svg
    text = page_of(folder)
    assert_inert(text)
    assert len(text) < 200_000


def test_few_attempts_are_bars_that_tell_themselves(folder: StateFolder) -> None:
    record(folder, went_well())
    facts = facts_of(folder)
    found = timeline(facts, give_lanes(facts))
    assert found is not None
    assert not found.binned
    assert found.svg.count("<title>") == len(facts.tries) == 6
    assert "all/both/b: succeeded" in found.svg


def test_curves_show_a_limit_only_where_it_lies_near(folder: StateFolder) -> None:
    record(folder, went_well())
    by_key = {curve.key: curve for curve in curves(facts_of(folder))}
    assert set(by_key) == {"memory", "cpu", "running"}
    assert by_key["memory"].peak == 300 << 20
    assert 'class="limit"' not in by_key["memory"].svg
    assert by_key["cpu"].peak == pytest.approx(1.5)
    assert 'class="limit"' in by_key["cpu"].svg
    assert by_key["running"].peak == pytest.approx(2.0, abs=0.05)


# -- the commands ------------------------------------------------------------------------------------------------------


def test_report_writes_the_last_run_or_the_one_that_is_named(folder: StateFolder, tmp_path: Path) -> None:
    record(folder, went_well())
    for arguments in ((), ("last",), (RUN[:8],)):
        done = CliRunner().invoke(cli, ("report", *arguments))
        assert (done.exit_code, done.stdout) == (0, f"report-{RUN}.html\n")
        assert "nightly" in (tmp_path / f"report-{RUN}.html").read_text()
    assert CliRunner().invoke(cli, ("report", "-o", "x.html")).stdout == "x.html\n"
    assert CliRunner().invoke(cli, ("report", "nosuch")).exit_code == 2
    assert CliRunner().invoke(cli, ("report", "-o", "no/such/x.html")).exit_code == 1


def test_a_run_writes_its_report_and_a_target_that_cant_be_written_is_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.py").write_text("def bad():\n    raise KeyError('price')\ndef good():\n    return 1\n")
    (tmp_path / "n.yaml").write_text(
        "name: n\nsteps:\n  - {type: transform, name: a, function: 'jobs:good', output: x}\n"
        "  - {type: transform, name: b, function: 'jobs:bad'}\n"
    )
    done = CliRunner().invoke(cli, ("run", "n.yaml", "-q", "--executor", "inline", "--report", "r.html"))
    assert done.exit_code == 1
    parsed = assert_inert((tmp_path / "r.html").read_text())
    assert "b raised at" in parsed.text
    assert "Not everything is known" not in parsed.text
    done = CliRunner().invoke(cli, ("run", "n.yaml", "--report", "no/such/r.html"))
    assert done.exit_code == 2
    assert "there is no folder" in done.stderr
    with History.open(StateFolder.open(tmp_path / ".procflow", create=False)) as past:
        assert len(past.runs()) == 1
