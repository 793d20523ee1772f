"""The threads executor keeps the contract, and lets stuck threads be."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from executor_contract import ExecutorContract, Log, attempt, finish, run, value

from procflow.attempt import Succeeded, Usage
from procflow.errors import ExecutorError
from procflow.executors.threads import ThreadExecutor, _alone


class TestThreadExecutor(ExecutorContract):
    def make_executor(self, slots: int) -> ThreadExecutor:
        return ThreadExecutor(slots)


def test_kill_lets_the_attempt_run_to_its_real_outcome(tmp_path: Path) -> None:
    with ThreadExecutor(1) as executor:
        executor.submit(attempt(1, "wait_for", str(tmp_path / "go")))
        executor.kill(1, "timeout", 0.0)
        assert executor.wait(time.monotonic() + 0.05) == []
        (tmp_path / "go").touch()
        assert value(finish(executor)[-1]) == "found"


def test_close_does_not_wait_for_a_stuck_thread(tmp_path: Path) -> None:
    executor = ThreadExecutor(1)
    executor.submit(attempt(1, "wait_for", str(tmp_path / "go")))
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 3
    (tmp_path / "go").touch()
    for thread in threading.enumerate():
        if thread.name.startswith("procflow-"):
            thread.join(5)
            assert not thread.is_alive()


def test_attempts_run_side_by_side(tmp_path: Path) -> None:
    with ThreadExecutor(2) as executor:
        executor.submit(attempt(1, "wait_for", str(tmp_path / "go")))
        executor.submit(attempt(2, Path.touch, tmp_path / "go"))
        assert len(finish(executor, 2)) >= 2


def test_streams_and_logging_are_as_before_after_close() -> None:
    root = logging.getLogger()
    before = (sys.stdout, sys.stderr, root.level, list(root.handlers))
    executor, other = ThreadExecutor(1), ThreadExecutor(1)
    assert sys.stdout is not before[0]
    executor.close()
    assert sys.stdout is not before[0]
    other.close()
    assert (sys.stdout, sys.stderr, root.level, list(root.handlers)) == before


def test_records_of_the_parent_itself_are_judged_by_the_level_that_the_user_set(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ThreadExecutor(1) as executor:
        logging.getLogger("mine").info("too low")
        logging.getLogger("mine").warning("heard")
        run(executor, attempt(1, "shout", "x"))
    assert caplog.messages == ["heard"]


def test_bytes_written_to_the_buffer_of_stdout_are_captured() -> None:
    def binary() -> None:
        sys.stdout.buffer.write(b"\xff\x00raw")
        sys.stdout.flush()

    with ThreadExecutor(1) as executor:
        mine = attempt(1, binary)
        run(executor, mine)
        assert isinstance(mine.log, Log)
        assert mine.log.data == b"\xff\x00raw"


def test_more_attempts_than_slots_are_refused(tmp_path: Path) -> None:
    with ThreadExecutor(1) as executor:
        executor.submit(attempt(1, "wait_for", str(tmp_path / "go")))
        with pytest.raises(ExecutorError, match="more than 1 attempts"):
            executor.submit(attempt(2, "double", 1))
        (tmp_path / "go").touch()
        finish(executor)


def _spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_threads_that_wait_for_the_interpreter_do_no_more_work(tmp_path: Path) -> None:
    from procflow import Parallel, Pipeline, Step

    def speedup(function: Any) -> float:
        steps = [Step(f"s{i}", function, params={"seconds": 0.3}) for i in range(4)]
        pipeline = Pipeline("p", steps=[Parallel("all", *steps)])
        return pipeline.run(executor="threads", workers=4, state_dir=tmp_path).metrics.speedup

    # How far apart they are depends on who else uses the machine; the figures themselves are in the test below.
    assert speedup(_spin) < speedup(_sleep)


@pytest.mark.parametrize(
    ("wall_s", "cpu_s", "process_cpu_s", "alone_s"),
    [
        (1.2, 0.3, 1.2, 0.3),  # three others held the interpreter all the while
        (0.3, 0.0, 0.0, 0.3),  # it waited for something outside
        (1.0, 0.2, 0.6, 0.52),  # half of its waiting was for the interpreter
    ],
)
def test_work_is_what_an_attempt_would_have_taken_alone(
    wall_s: float, cpu_s: float, process_cpu_s: float, alone_s: float
) -> None:
    outcome = _alone(Succeeded(1, usage=Usage(wall_s, cpu_s)), wall_s, process_cpu_s)
    assert outcome.usage.alone_s == pytest.approx(alone_s)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
