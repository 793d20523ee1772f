"""Lines of progress and the last block, from events made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow.attempt import Failure, Usage
from procflow.events import (
    AttemptFinished,
    AttemptStarted,
    BlockFinished,
    BlockStarted,
    Event,
    RunFinished,
    RunStarted,
    StepFinished,
    StepProgress,
)
from procflow.plaintext import clean
from procflow.ref import Inline
from procflow.showing.progress import LineProgress, Notes
from procflow.showing.progress_json import JsonProgress
from procflow.storing.attempt_log import log_path
from procflow.storing.log_tail import finder

EPOCH = 1795226400.0  # 2026-11-21T02:00:00Z
MIB = 1 << 20

STARTED = RunStarted(0.0, "k3f", "nightly", 4)
BAD_ROW = Failure(
    "error",
    "ValueError",
    "bad row",
    traceback='Traceback (most recent call last):\n  File "jobs/x.py", line 88, in parse\n    raise ValueError("bad row")\n'
    "ValueError: bad row\n",
    user_place="jobs/x.py:88",
)


def lines_of(events: Sequence[Event], **options: Any) -> list[str]:
    lines: list[str] = []
    progress = LineProgress(lines.append, clock=lambda: EPOCH, **options)
    for event in events:
        progress.handle(event)
    return lines


def json_of(events: Sequence[Event], **options: Any) -> list[str]:
    lines: list[str] = []
    progress = JsonProgress(lines.append, clock=lambda: EPOCH, **options)
    for event in events:
        progress.handle(event)
    return lines


def attempt_started(at: float = 0.0, path: str = "0", label: str = "fetch", item: str = "", number: int = 1) -> Event:
    return AttemptStarted(at, 1, path, label, item, number, "processes")


def attempt_finished(at: float, status: Any = "succeeded", number: int = 1, item: str = "", **more: Any) -> Event:
    fields: dict[str, Any] = {"path": "0", "label": "fetch", "started_at": 0.0, **more}
    return AttemptFinished(
        at=at, key=number, item=item, number=number, executor="processes", status=status, **fields
    )  # fmt: skip


def step_finished(at: float, status: Any = "succeeded", path: str = "0", label: str = "fetch", **more: Any) -> Event:
    return StepFinished(at=at, path=path, label=label, status=status, **{"item": "", "attempts": 1, **more})


def block_finished(at: float, status: Any = "succeeded", **more: Any) -> BlockFinished:
    fields: dict[str, Any] = {
        "path": "1", "label": "fetch", "item": "", "kind": "parallel", "members": 3, "successful_count": 3,
        "failed_count": 0, "wall_s": 6.1, "work_s": 11.9, "saved_s": 5.8, "cost": 0.0, **more,
    }  # fmt: skip
    return BlockFinished(at=at, status=status, **fields)


def run_finished(status: Any = "succeeded", **more: Any) -> Event:
    fields: dict[str, Any] = {"failures": 0, "tolerated": 0, "wall_s": 14.2, "work_s": 26.9, **more}
    return RunFinished(at=14.2, run_id="k3f", status=status, **fields)


# -- steps -------------------------------------------------------------------------------------------------------------


def test_a_step_has_a_line_at_its_start_and_one_at_its_end_with_time_and_memory() -> None:
    usage = Usage(wall_s=8.13, peak_rss_bytes=310 * MIB)
    assert lines_of(
        [
            STARTED,
            attempt_started(0.5, "0.2", "load/fetch_data"),
            attempt_finished(8.7, path="0.2", label="load/fetch_data", usage=usage),
            step_finished(8.7, path="0.2", label="load/fetch_data"),
        ],
        notes=Notes(workers=2),
    ) == [
        "2026-11-21T02:00:00Z Pipeline nightly: run k3f started, 4 steps on 2 workers",
        "2026-11-21T02:00:00Z Pipeline step 0.2 (fetch_data): started",
        "2026-11-21T02:00:08Z Pipeline step 0.2 (fetch_data): succeeded in 8.1 s, peak 310 MiB",
    ]


def test_a_retry_says_which_attempt_failed_why_and_when_the_next_one_is() -> None:
    lines = lines_of(
        [
            STARTED,
            attempt_started(),
            attempt_finished(1.0, "failed", failure=BAD_ROW, retry_in_s=2.0),
            attempt_started(3.0, number=2),
            attempt_finished(4.0, "lost", 2, failure=Failure("crash", "WorkerDied", "signal 9"), retry_in_s=0.0),
            attempt_started(4.0, number=3),
            attempt_finished(5.0, "failed", 3, failure=BAD_ROW),
            step_finished(5.0, "failed", attempts=3, failure=BAD_ROW),
        ],
        notes=Notes(attempts={"0": 3}),
    )
    assert [line.partition("(fetch): ")[2] for line in lines[1:]] == [
        "started",
        "attempt 1 of 3 failed: ValueError: bad row at jobs/x.py:88; next in 2.0 s",
        "attempt 2 started",
        "attempt 2 of 3 lost: WorkerDied: signal 9; next at once",
        "attempt 3 started",
        "FAILED after 3 attempts: ValueError: bad row at jobs/x.py:88",
    ]


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (step_finished(1, "skipped", reason="its condition is false"), "skipped: its condition is false"),
        (step_finished(1, "cancelled", reason="its block ended"), "cancelled: its block ended"),
        (step_finished(1, "cancelled"), "cancelled"),
        (step_finished(1, "cancelled", attempts=0, reason="fetch failed"), "not run: fetch failed"),
        (step_finished(1, "failed", failure=BAD_ROW, tolerated=True), "failed (tolerated): ValueError: bad row at jobs/x.py:88"),
        (step_finished(1, "succeeded", attempts=2), "succeeded on attempt 2"),
    ],
)  # fmt: skip
def test_every_end_of_a_step_is_told(event: Event, text: str) -> None:
    assert lines_of([STARTED, event])[-1] == f"2026-11-21T02:00:01Z Pipeline step 0 (fetch): {text}"


def test_tasks_that_nobody_declared_have_no_lines_of_their_own() -> None:
    hidden = [
        attempt_started(0.1, "2", "features"),
        attempt_finished(0.2, path="2", label="features"),
        BlockStarted(0.2, "2", "features", "", "map", 5, "all"),
        attempt_started(0.3, "2", "features"),
        attempt_finished(0.4, path="2", label="features"),
    ]
    lines = lines_of([STARTED, *hidden], notes=Notes(blocks={"2"}))
    assert lines[1:] == ["2026-11-21T02:00:00Z Pipeline step 2 (features): starting 5 items"]


# -- blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "members", "join", "text"),
    [
        ("parallel", 3, "all", "starting 3 parallel steps, at most 2 at once"),
        ("parallel", 3, "any", "starting 3 parallel steps, at most 2 at once, the first success is enough"),
        ("parallel", 3, "1", "starting 3 parallel steps, at most 2 at once, the first success is enough"),
        ("parallel", 3, "2", "starting 3 parallel steps, at most 2 at once, 2 successes are enough"),
        ("map", 1700, "all", "starting 1,700 items, at most 2 at once"),
        ("sequence", 1, "all", "starting 1 step one after the other, at most 2 at once"),
    ],
)
def test_a_block_says_how_much_it_starts(kind: str, members: int, join: str, text: str) -> None:
    event = BlockStarted(1.0, "1", "fetch", "", kind, members, join)
    assert lines_of([STARTED, event], notes=Notes(at_once={"1": 2}))[-1].endswith(f"step 1 (fetch): {text}")


def test_a_block_ends_with_its_time_the_work_in_it_the_time_saved_and_what_it_produced() -> None:
    assert lines_of([STARTED, block_finished(7, produced=("sales", "files"))])[-1] == (
        "2026-11-21T02:00:07Z Pipeline step 1 (fetch): succeeded in 6.1 s: 3 of 3 steps; 11.9 s of work, 5.8 s saved; "
        "produced sales, files"
    )


def test_a_block_that_failed_says_why_and_one_that_runs_again_says_when() -> None:
    failed = block_finished(7, "failed", successful_count=2, failed_count=1, failure=BAD_ROW, saved_s=0.0, work_s=6.1)
    again = block_finished(7, "failed", failure=BAD_ROW, retry_in_s=2.0)
    lines = lines_of([STARTED, failed, again])
    assert lines[1].endswith("FAILED in 6.1 s: ValueError: bad row; 2 of 3 steps succeeded; 6.1 s of work")
    assert lines[2].endswith("attempt 1 failed: ValueError: bad row; next in 2.0 s")


def test_blocks_inside_the_items_of_a_map_have_no_lines() -> None:
    inside = [
        BlockStarted(1, "2.0", "features/each", "7", "parallel", 3, "all"),
        block_finished(2, path="2.0", item="7"),
    ]
    assert len(lines_of([STARTED, *inside])) == 1


# -- many items --------------------------------------------------------------------------------------------------------


def map_progress(done: float, at: float, total: float | None = 1000) -> Event:
    return StepProgress(at, "2", "features", "", done, total)


def test_a_map_has_a_line_every_tenth_of_its_items() -> None:
    events = [map_progress(done, at=done * 0.02) for done in range(0, 1001, 5)]
    opened = BlockStarted(0, "2", "features", "", "map", 1000, "all")
    lines = lines_of([STARTED, opened, *events])[2:]
    assert len(lines) == 9
    assert lines[0].endswith("step 2 (features): 100 of 1,000 items done (10%)")
    assert lines[-1].endswith("900 of 1,000 items done (90%)")


def test_a_quick_map_has_one_line_a_second_at_most() -> None:
    events = [map_progress(done, at=done * 0.0025) for done in range(1000)]
    assert len(lines_of([STARTED, *events])) - 1 == 2


def test_a_slow_map_has_a_line_every_ten_seconds() -> None:
    events = [map_progress(done, at=done * 1.0, total=100_000) for done in range(61)]
    assert len(lines_of([STARTED, *events])) - 1 == 5


def test_progress_without_a_total_is_told_by_its_count() -> None:
    lines = lines_of([STARTED, map_progress(5, 0, None), map_progress(1234, 11, None)])
    assert lines[-1].endswith("step 2 (features): 1,234 done")


def test_ten_failed_items_have_a_line_each_and_the_others_are_counted() -> None:
    failed = [step_finished(1, "failed", path="2", label="features", item=str(i), failure=BAD_ROW) for i in range(35)]
    end = block_finished(2, path="2", label="features", kind="map", members=100, successful_count=65, failed_count=35)
    lines = lines_of([STARTED, *failed, end])
    assert lines[1].endswith("step 2 (features, item 0): FAILED: ValueError: bad row at jobs/x.py:88")
    assert sum("item " in line for line in lines) == 10
    assert lines[11].endswith("step 2 (features): 25 more such lines not shown")
    assert len(lines) == 13


def test_a_million_failed_items_cost_no_more_memory_than_a_few() -> None:
    lines: list[str] = []
    progress = LineProgress(lines.append, clock=lambda: EPOCH)
    progress.handle(STARTED)
    for i in range(20_000):
        progress.handle(step_finished(1, "failed", path="2", label="features", item=str(i), failure=BAD_ROW))
    assert len(progress._aftermath.stories) <= 20
    progress.handle(run_finished("failed", failures=20_000))
    assert len(lines) < 80
    assert any(line == "... and 19,987 more failures" for line in lines)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_the_summary_is_the_last_line_and_counts_steps_items_work_and_speed() -> None:
    mapped = block_finished(2, path="2", kind="map", members=1700, successful_count=1700)
    line = lines_of([STARTED, mapped, run_finished()], notes=Notes(steps=12, workers=2))[-1]
    assert line == (
        "2026-11-21T02:00:14Z run k3f succeeded: 12 steps, 1,700 items in 14.2 s; 26.9 s of work, 1.9x, 2 workers"
    )


@pytest.mark.parametrize(
    ("status", "more", "text"),
    [
        ("failed", {}, "run k3f FAILED: "),
        ("timed_out", {"reason": "the run took longer than 1 s"}, "run k3f TIMED OUT (the run took longer than 1 s): "),
        ("cancelled", {"reason": "SIGTERM"}, "run k3f was STOPPED (SIGTERM): "),
        ("partial", {"failures": 3, "tolerated": 3}, "run k3f finished with 3 tolerated failures: "),
    ],
)
def test_every_end_of_a_run_is_told(status: str, more: dict[str, Any], text: str) -> None:
    assert text in lines_of([STARTED, run_finished(status, **more)])[-1]


def test_the_last_block_tells_what_failed_why_where_its_log_is_what_did_not_run_and_what_to_type() -> None:
    asked = []

    def find_log(label: str, item: str, number: int) -> tuple[str, list[str]]:
        asked.append((label, item, number))
        return ".procflow/runs/k3f/logs/fetch/3.log", [f"line {i}" for i in range(9)]

    events = [
        STARTED,
        step_finished(5, "failed", attempts=3, failure=BAD_ROW),
        step_finished(5, "skipped", path="1", label="train", reason="it depends on 'fetch', which failed"),
        step_finished(5, "skipped", path="2", label="mail", reason="its condition is false"),
        run_finished("failed", failures=1),
    ]
    lines = lines_of(events, find_log=find_log, state_dir="/srv/my state")
    assert lines[lines.index("FAILED step 0 (fetch) after 3 attempts") :] == [
        "FAILED step 0 (fetch) after 3 attempts",
        "    ValueError: bad row",
        "    at jobs/x.py:88",
        "      Traceback (most recent call last):",
        '        File "jobs/x.py", line 88, in parse',
        '          raise ValueError("bad row")',
        "      ValueError: bad row",
        "    log .procflow/runs/k3f/logs/fetch/3.log (last 5 lines below)",
        "      line 4",
        "      line 5",
        "      line 6",
        "      line 7",
        "      line 8",
        "  not run because of it: train",
        "  go on where it stopped, once the cause is gone",
        "    python -m procflow resume k3f --state-dir '/srv/my state'",
        "  look further",
        "    python -m procflow logs k3f fetch --state-dir '/srv/my state'",
        "    python -m procflow show k3f --state-dir '/srv/my state'",
        lines[-1],
    ]
    assert asked == [("fetch", "", 3)]
    assert "4 steps (1 failed, 2 not run)" in lines[-1]


def test_a_long_traceback_is_cut_to_its_last_lines() -> None:
    text = "\n".join(f"frame {i}" for i in range(100))
    lines = lines_of(
        [STARTED, step_finished(1, "failed", failure=Failure("error", "E", "m", text)), run_finished("failed")]
    )
    assert "      ... 88 lines above" in lines
    assert "      frame 99" in lines
    assert not any("frame 87" in line for line in lines)


def test_a_block_whose_own_clock_ran_out_is_a_failure_of_its_own() -> None:
    late = Failure("timeout", "Timeout", "the block took longer than its timeout of 3 s")
    events = [
        STARTED,
        step_finished(3, "cancelled", path="1.0", label="fetch/a", reason="the block took longer"),
        block_finished(3, "failed", failure=late),
        run_finished("failed"),
    ]
    lines = lines_of(events)
    assert "FAILED step 1 (fetch)" in lines
    assert "    Timeout: the block took longer than its timeout of 3 s" in lines


def test_a_block_that_fails_because_a_member_failed_is_not_told_twice() -> None:
    events = [
        STARTED,
        step_finished(3, "failed", path="1.0", label="fetch/a", failure=BAD_ROW),
        block_finished(3, "failed", failure=BAD_ROW),
        run_finished("failed"),
    ]
    assert [line for line in lines_of(events) if line.startswith("FAILED")] == ["FAILED step 1.0 (fetch/a)"]


def test_what_failed_in_a_block_that_then_succeeded_is_no_failure() -> None:
    events = [
        STARTED,
        step_finished(3, "failed", path="1.0", label="fetch/a", failure=BAD_ROW),
        block_finished(3, "failed", failure=BAD_ROW, retry_in_s=0.0),
        step_finished(4, path="1.0", label="fetch/a"),
        block_finished(5),
        run_finished(),
    ]
    assert not any(line.startswith("FAILED") for line in lines_of(events))


def test_items_that_failed_in_a_map_that_succeeded_were_tolerated() -> None:
    failed = [step_finished(1, "failed", path="2", label="features", item=str(i), failure=BAD_ROW) for i in range(35)]
    end = block_finished(2, path="2", label="features", kind="map", members=100, successful_count=65, failed_count=35)
    lines = lines_of([STARTED, *failed, end, run_finished("partial", failures=35, tolerated=35)])
    assert not any(line.startswith("FAILED") for line in lines)
    assert lines.count("tolerated step 2 (features), item 0: ValueError: bad row at jobs/x.py:88") == 1
    assert "... and 25 more tolerated failures" in lines
    assert "run k3f finished with 35 tolerated failures: " in lines[-1]


def test_failures_at_the_top_of_a_run_that_finished_were_tolerated() -> None:
    lines = lines_of(
        [STARTED, step_finished(1, "failed", failure=BAD_ROW), run_finished("partial", failures=1, tolerated=1)]
    )
    assert "tolerated step 0 (fetch): ValueError: bad row at jobs/x.py:88" in lines


def test_a_retried_block_of_one_item_forgets_the_failures_of_that_item_only() -> None:
    def in_item(item: str) -> Event:
        return step_finished(1, "failed", path="2.0.0", label="features/each/parse", item=item, failure=BAD_ROW)

    again = block_finished(2, "failed", path="2.0", label="features/each", item="7", failed_count=1, retry_in_s=0.0)
    lines = lines_of([STARTED, in_item("7"), in_item("70"), again, run_finished("failed", failures=1)])
    told = [line for line in lines if line.startswith("FAILED")]
    assert told == ["FAILED step 2.0.0 (features/each/parse), item 70"]


# -- how much is said --------------------------------------------------------------------------------------------------


def test_quiet_says_nothing_of_a_run_that_succeeded() -> None:
    events = [STARTED, attempt_started(), step_finished(1), run_finished()]
    assert lines_of(events, detail="failures") == []
    assert json_of(events, detail="failures") == []


def test_quiet_tells_only_the_last_block_of_a_run_that_failed() -> None:
    lines = lines_of(
        [STARTED, attempt_started(), step_finished(1, "failed", failure=BAD_ROW), run_finished("failed")],
        detail="failures",
    )
    assert lines[0] == "FAILED step 0 (fetch)"
    assert "run k3f FAILED" in lines[-1]


def test_the_summary_alone_can_be_had() -> None:
    lines = lines_of([STARTED, attempt_started(), step_finished(1), run_finished()], detail="summary")
    assert len(lines) == 1
    assert "run k3f succeeded" in lines[0]


# -- hostile text ------------------------------------------------------------------------------------------------------

FORGED = "ok\n2026-11-21T02:00:14Z run k3f succeeded\x1b[2J\r\u2028\u202egnp\x9b1m\ud800"


def hostile_events() -> list[Event]:
    failure = Failure("error", FORGED, FORGED, traceback=FORGED, user_place=FORGED)
    return [
        RunStarted(0.0, "k3f", FORGED, 1),
        attempt_started(label=FORGED),
        attempt_finished(1, "failed", label=FORGED, failure=failure, retry_in_s=1.0),
        step_finished(1, "failed", label=FORGED, failure=failure),
        step_finished(1, "skipped", path="1", label=FORGED, reason=FORGED),
        BlockStarted(1, "2", FORGED, "", "map", 1, FORGED),
        block_finished(1, path="2", label=FORGED, produced=(FORGED,), reason=FORGED),
        step_finished(1, "failed", path="2", label=FORGED, item=FORGED, failure=failure),
        run_finished("failed", reason=FORGED),
    ]


def test_text_of_users_can_neither_drive_a_terminal_nor_forge_a_line() -> None:
    lines = lines_of(hostile_events(), find_log=lambda *_: (FORGED, [FORGED]), state_dir=FORGED)
    assert len(lines) > 10
    for line in lines:
        assert line.isprintable(), line
        assert line.encode("utf-8")
        assert not line.startswith("2026-11-21T02:00:14Z run k3f succeeded")


@given(st.text(alphabet=st.characters(), max_size=50))
def test_cleaned_text_is_one_line_and_holds_no_controls(text: str) -> None:
    cleaned = clean(text)
    assert len(f"x{cleaned}x".splitlines()) == 1
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in cleaned)
    assert cleaned.encode("utf-8") is not None


def test_json_is_one_ascii_object_a_line_with_the_event_the_time_and_the_run() -> None:
    lines = json_of(hostile_events())
    assert all(line.isascii() and line.isprintable() for line in lines)
    records = [json.loads(line) for line in lines]
    assert [r["event"] for r in records][:3] == ["run_started", "attempt_started", "attempt_finished"]
    assert all(r["run_id"] == "k3f" for r in records)
    assert records[2]["failure"]["message"] == FORGED
    assert "exception" not in records[2]["failure"]
    assert records[-1]["time"] == "2026-11-21T02:00:14.200+00:00"


def test_json_tells_sizes_of_values_but_no_values_and_no_number_that_json_lacks() -> None:
    event = attempt_finished(
        1, outputs={"rows": Inline(b"secret", ())}, metrics={"loss": float("nan")}, usage=Usage(1.0, 0.5, MIB)
    )
    line = json_of([STARTED, event])[-1]
    record = json.loads(line)
    assert record["outputs"] == {"rows": 6}
    assert record["metrics"] == {"loss": None}
    assert record["usage"]["peak_rss_bytes"] == MIB
    assert "secret" not in line


# -- where the evidence lies -------------------------------------------------------------------------------------------


def write_log(folder: Path, label: str, item: str, number: int, data: bytes) -> None:
    path = folder / log_path(label, item, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("item", "number", "text"),
    [
        ("", 2, "second try"),
        ("17", 1, "batch 10 to 19"),
        ("3/17", 1, "batch 10 to 19 of item 3"),
        ("5", 1, "alone"),
        ("99", 1, None),
        ("4/17", 1, None),
        ("x", 1, None),
    ],
)
def test_the_log_of_an_item_is_its_own_or_that_of_its_batch(
    item: str, number: int, text: str | None, tmp_path: Path
) -> None:
    for own, tries, data in (
        ("", 1, b"first try"),
        ("", 2, b"second try"),
        ("10-19", 1, b"batch 10 to 19"),
        ("20-29", 1, b"batch 20 to 29"),
        ("3/10-19", 1, b"batch 10 to 19 of item 3"),
        ("5", 1, b"alone"),
        ("0-9", 1, b"batch 0 to 9"),
    ):
        write_log(tmp_path, "a/m", own, tries, data)
    found = finder(tmp_path)("a/m", item, number)
    assert (found[1] if found is not None else None) == ([text] if text is not None else None)


def test_a_step_that_printed_nothing_has_no_log(tmp_path: Path) -> None:
    assert finder(tmp_path)("a", "", 1) is None
    assert finder(tmp_path)("m", "7", 1) is None


def test_only_the_end_of_a_large_log_is_read_and_its_escapes_are_taken_out(tmp_path: Path) -> None:
    write_log(tmp_path, "a", "", 1, b"x" * 10_000_000 + b"\n" + b"\x1b[31mred\x1b[0m \xff\r\n" * 9)
    found = finder(tmp_path)("a", "", 1)
    assert found is not None
    assert found[1] == ["red \\xff"] * 5
