"""The live table: rows from events, pictures of any size, and real runs on a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import procflow
from procflow import model
from procflow.attempt import Failure, Usage
from procflow.compiler import compile_pipeline
from procflow.events import (
    AttemptFinished,
    AttemptStarted,
    BlockFinished,
    BlockStarted,
    RunFinished,
    RunStarted,
    StepFinished,
    StepProgress,
)
from procflow.graph import TaskGraph
from procflow.showing.live import suits
from procflow.showing.live_rows import LiveRows
from procflow.showing.live_table import Gauges, clock_text, done_line, picture

ROOT = str(Path(procflow.__file__).parents[1])
LONG_S = 60
GAUGES = Gauges(2, 3 << 30, 16 << 30, 1.94, 70.0)


def graph_of(*steps: dict[str, Any]) -> TaskGraph:
    pipeline = model.Pipeline.model_validate({"name": "nightly", "steps": list(steps)})
    return compile_pipeline(pipeline, params=None, environ={}, run_id="r", folder="/", executor=None, load=None)  # type: ignore[arg-type]


def leaf(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "function": "m:f", **more}


NIGHTLY = (
    leaf("extract", output="items", retries=2),
    {"type": "map", "name": "features", "items": "${items}", "function": "m:g", "output": "rows"},
    leaf("train", inputs=["rows"]),
)


def started(key: int, path: str, label: str, item: str = "", number: int = 1, at: float = 0.0, **more: Any) -> Any:
    return AttemptStarted(at, key, path, label, item, number, "processes", **more)


def finished(key: int, path: str, label: str, item: str = "", at: float = 2.0, **more: Any) -> Any:
    values = {"status": "succeeded", "started_at": 0.0, "usage": Usage(2.0, 1.9, 5 << 20), **more}
    return AttemptFinished(at, key, path, label, item, 1, "processes", **values)


def text_of(
    rows: LiveRows, now: float = 10.0, width: int = 80, height: int = 24, ascii_only: bool = False
) -> list[str]:
    console = Console(width=width, height=height, color_system=None, legacy_windows=False, file=open(os.devnull, "w"))  # noqa: SIM115
    try:
        with console.capture() as capture:
            console.print(picture(rows, now, GAUGES, width, height, ascii_only=ascii_only))
    finally:
        console.file.close()
    return capture.get().splitlines()


def test_a_row_comes_with_the_first_attempt_and_goes_with_the_last_line() -> None:
    rows = LiveRows(graph_of(*NIGHTLY))
    assert rows.steps == 3
    rows.take(RunStarted(0.0, "k3f", "nightly", 3))
    assert rows.waiting(9) == [("extract", ""), ("features", "extract"), ("train", "features")]
    rows.take(started(1, "0", "extract"))
    assert list(rows.rows) == ["0"]
    assert rows.take(finished(1, "0", "extract")) == []
    (done,) = rows.take(StepFinished(2.0, "0", "extract", "", "succeeded", 1))
    assert (done.label, done.status, done.wall_s, done.cpu_s) == ("extract", "succeeded", 2.0, 1.9)
    assert not rows.rows
    assert rows.ended == 1
    assert done_line(done).plain == "✔ extract  2.0 s  95% cpu  5.0 MiB"


def test_all_that_is_in_a_map_is_one_row() -> None:
    rows = LiveRows(graph_of(*NIGHTLY))
    rows.take(BlockStarted(1.0, "1", "features", "", "map", 4, "all"))
    for key in (5, 6):
        rows.take(started(key, "1", "features", str(key), role="batch", at=1.0))
    rows.take(StepProgress(2.0, "1", "features", "", 1, 4))
    rows.take(StepFinished(2.5, "1", "features", "2", "failed", 1, failure=Failure("error", "ValueError", "bad")))
    rows.take(StepProgress(3.0, "1", "features", "", 2, 4))
    (row,) = rows.rows.values()
    assert (row.done, row.total, row.failed, len(row.running)) == (2, 4, 1, 2)
    assert row.left_s(3.0) == pytest.approx(2.0)
    assert rows.memory_bytes(row, {5: 10, 6: 20, 7: 40}) == 30
    ended = BlockFinished(
        5.0, "1", "features", "", "map", "succeeded", 4, 3, 1, wall_s=4.0, work_s=7.0, saved_s=3.0, cost=0.0
    )
    (done,) = rows.take(ended)
    assert done.items == (3, 4)
    assert "3 of 4 items" in done_line(done).plain
    assert "1 failed, tolerated" in done_line(done).plain


def test_a_retry_is_told_in_the_row() -> None:
    rows = LiveRows(graph_of(*NIGHTLY))
    rows.take(started(1, "0", "extract"))
    rows.take(finished(1, "0", "extract", at=2.0, status="failed", retry_in_s=5.0))
    assert "again in 0:03" in "\n".join(text_of(rows, now=4.0))
    rows.take(started(2, "0", "extract", number=2, at=7.0))
    assert "attempt 2 of 3" in "\n".join(text_of(rows, now=8.0))


def test_a_failed_step_says_why_in_its_last_line() -> None:
    rows = LiveRows(graph_of(*NIGHTLY))
    failure = Failure("error", "ValueError", "bad\n\x1b[2J row", user_place="jobs/x.py:88")
    (done,) = rows.take(StepFinished(2.0, "0", "extract", "", "failed", 1, failure=failure))
    assert done_line(done).plain == "✘ extract    ValueError: bad\\n\\x1b[2J row at jobs/x.py:88"
    assert rows.failed == 1


def test_the_end_of_the_run_leaves_no_row() -> None:
    rows = LiveRows(graph_of(*NIGHTLY))
    rows.take(started(1, "0", "extract"))
    rows.take(RunFinished(3.0, "k3f", "cancelled", 0, 0, 3.0, 3.0, "SIGINT"))
    assert not rows.rows
    assert not rows.waiting(5)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_long_label_loses_its_blocks_and_numbers_are_whole(width: int) -> None:
    rows = LiveRows(graph_of({"type": "parallel", "name": "p", "steps": [leaf("measure"), leaf("count")]}))
    for n, name in enumerate(("measure", "count")):
        rows.take(started(n, f"0.{n}", f"surveys_of_every_month_of_the_year/{name}"))
        rows.take(StepProgress(2.0, f"0.{n}", name, "", 5_000, 60_000))
    first, second = text_of(rows, 100.0, width)[1:3]
    assert "/measure " in first
    assert "/count " in second
    for line in (first, second):
        assert "5,000/60,000" in line
        assert " 1:40 " in line
        assert len(line) <= width


@given(
    count=st.integers(1, 60),
    width=st.integers(12, 200),
    height=st.integers(4, 60),
    name=st.text(min_size=1, max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_a_picture_fits_any_terminal(count: int, width: int, height: int, name: str) -> None:
    block = {"type": "parallel", "name": "p", "steps": [leaf(f"step{n}") for n in range(count)]}
    rows = LiveRows(graph_of(block, leaf("last")))
    for n in range(count):
        rows.take(started(n, f"0.{n}", f"p/{name}{n}", at=float(n)))
        rows.take(StepProgress(float(n), f"0.{n}", f"p/{name}{n}", "", n, count))
    for ascii_only in (False, True):
        lines = text_of(rows, float(count), width, height, ascii_only)
        assert len(lines) <= height - 1
        assert all(len(line.rstrip()) <= width for line in lines)
        assert not ascii_only or all(line.isascii() for line in lines)
        assert not any(ord(c) < 32 for line in lines for c in line)


def test_clocks() -> None:
    assert [clock_text(s) for s in (-1, 0, 42.9, 725, 3723)] == ["0:00", "0:00", "0:42", "12:05", "1:02:03"]


# -- real runs on a pseudo-terminal ------------------------------------------------------------------------------------

MODULE = """
import time
from procflow import step
def quick(): return 1
def slow(s):
    end = time.monotonic() + s
    while time.monotonic() < end:
        time.sleep(0.05)
        step.progress(1, 2)
def bad(): raise ValueError("bad row")
"""


class Terminal:
    """A run whose stderr is a pseudo-terminal; stdout goes nowhere."""

    def __init__(self, folder: Path, *options: str, **environ: str) -> None:
        self.master, slave = pty.openpty()
        env = {
            **os.environ,
            "PYTHONPATH": ROOT,
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "PYTHONUTF8": "1",
            **environ,
        }
        for name in ("COLUMNS", "LINES", *(["NO_COLOR"] if "NO_COLOR" not in environ else [])):
            env.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "procflow", "run", "p.yaml", *options],
            cwd=folder,
            env=env,
            stdin=slave,
            stdout=subprocess.DEVNULL,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def read_until(self, text: str | None) -> str:
        """Read until the text was seen, or to the end."""
        deadline = time.monotonic() + LONG_S
        while text is None or text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.seen[-2000:]!r}"
            if select.select([self.master], [], [], 0.5)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:
                    data = b""
                if not data:
                    break
                self.seen += data.decode()
            elif self.process.poll() is not None and text is None:
                break
        assert text is None or text in self.seen, self.seen[-2000:]
        return self.seen

    def end(self) -> int:
        return self.process.wait(LONG_S)


@contextmanager
def terminal(folder: Path, *options: str, **environ: str) -> Iterator[Terminal]:
    made = Terminal(folder, *options, **environ)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.send_signal(signal.SIGKILL)
        made.process.wait(LONG_S)
        with suppress(OSError):
            os.close(made.master)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "live_steps.py").write_text(MODULE)
    return tmp_path


def write(folder: Path, *steps: dict[str, Any]) -> None:
    (folder / "p.yaml").write_text(json.dumps({"name": "p", "steps": list(steps)}))


def call(name: str, function: str, **params: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "function": f"live_steps:{function}", "params": params}


def status_of(folder: Path) -> str:
    command = [sys.executable, "-m", "procflow", "history", "--format", "json"]
    env = {**os.environ, "PYTHONPATH": ROOT}
    told = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LONG_S, check=True)
    return str(json.loads(told.stdout)[0]["status"])


def test_on_a_terminal_finished_steps_scroll_up_and_what_runs_is_a_table(folder: Path) -> None:
    write(folder, call("first", "quick"), call("second", "slow", s=1.2))
    with terminal(folder) as screen:
        seen = screen.read_until(None)
        assert screen.end() == 0
    assert "✔ first" in seen.replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert "1/2" in seen
    assert "succeeded: 2 steps" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "Pipeline step" not in seen


def test_ctrl_c_stops_orderly_and_says_so(folder: Path) -> None:
    write(folder, call("long", "slow", s=60), call("never", "quick"))
    with terminal(folder) as screen:
        screen.read_until("1/2")
        screen.process.send_signal(signal.SIGINT)
        seen = screen.read_until(None)
        assert screen.end() == 130
    assert "SIGINT: stopping" in seen
    assert "was STOPPED (SIGINT)" in seen
    assert "\x1b[?25h" in seen[-20:]


def test_a_terminal_that_goes_away_does_not_stop_the_run(folder: Path) -> None:
    write(folder, call("long", "slow", s=1.5), call("then", "quick"))
    with terminal(folder) as screen:
        screen.read_until("1/2")
        os.close(screen.master)
        # The kernel sends it to the leader of the session; here that is the run itself only where it took the terminal.
        screen.process.send_signal(signal.SIGHUP)
        assert screen.end() == 0
    assert status_of(folder) == "succeeded"


def test_a_hangup_sent_by_somebody_stops_the_run(folder: Path) -> None:
    write(folder, call("long", "slow", s=60))
    with terminal(folder) as screen:
        screen.read_until("1/2")
        screen.process.send_signal(signal.SIGHUP)
        screen.read_until(None)
        assert screen.end() == 129


def test_a_terminal_that_takes_nothing_does_not_hold_the_run_up(folder: Path) -> None:
    steps = [call(f"{'n' * 100}{n}", "quick") for n in range(120)]
    write(folder, {"type": "parallel", "name": "wide", "steps": steps}, call("long", "slow", s=1))
    with terminal(folder) as screen:
        # Nobody reads: the buffer of the terminal (a few KiB) is full long before the last line.
        assert screen.end() == 0
    assert status_of(folder) == "succeeded"


def test_a_failure_ends_with_the_block_that_says_what_to_do(folder: Path) -> None:
    write(folder, call("worse", "bad"), call("after", "quick"))
    with terminal(folder) as screen:
        seen = screen.read_until(None)
        assert screen.end() == 1
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)
    assert "✘ worse" in plain
    assert "FAILED step 0 (worse)" in plain
    assert "python -m procflow resume" in plain


def test_no_color_is_honoured(folder: Path) -> None:
    write(folder, call("first", "quick"), call("second", "slow", s=0.6))
    with terminal(folder, NO_COLOR="1") as screen:
        seen = screen.read_until(None)
        assert screen.end() == 0
    codes = {int(c) for found in re.findall(r"\x1b\[([0-9;]*)m", seen) for c in found.split(";") if c}
    assert not codes & set(range(30, 50)), "no colours, whatever else"


@pytest.mark.parametrize(("options", "environ"), [(("--progress", "plain"), {}), ((), {"TERM": "dumb"})])
def test_plain_lines_where_no_table_is_wanted_or_possible(
    folder: Path, options: tuple[str, ...], environ: dict[str, str]
) -> None:
    write(folder, call("first", "quick"))
    with terminal(folder, *options, **environ) as screen:
        seen = screen.read_until(None)
        assert screen.end() == 0
    assert "Pipeline step 0 (first): succeeded" in seen
    assert "\x1b" not in seen


def test_a_table_is_never_drawn_off_a_terminal(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        assert not suits(file)
