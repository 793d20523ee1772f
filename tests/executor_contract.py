"""What every executor must do, as one class that each executor's tests inherit."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procflow.attempt import Attempt, Failed, Items, Lost, Outcome, Progressed, Skipped, Started, Succeeded
from procflow.call import Kind, Lookup, StepCall
from procflow.errors import ExecutorError
from procflow.executors.base import Executor
from procflow.values import objects

STEPS = "steps_for_executors"
FOLDER = str(Path(__file__).parent)
LONG_S = 20.0
"""More than anything here takes; a test that waits so long has found a hang."""


class Log:
    """An attempt's log in memory."""

    def __init__(self) -> None:
        self.data = b""
        self.records: list[tuple[int, str, str]] = []
        self.closed = 0

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.data += data

    def record(self, level: int, logger: str, message: str) -> None:
        assert not self.closed
        self.records.append((level, logger, message))

    def close(self) -> None:
        self.closed += 1


def step_call(
    function: str | Callable[..., Any],
    *args: Any,
    kind: Kind = "transform",
    when: str | None = None,
    item_name: str | None = None,
    constants: dict[str, Any] | None = None,
) -> StepCall:
    name = f"{STEPS}:{function}" if isinstance(function, str) and ":" not in function else function
    return StepCall(
        kind, "0.1", "a_step", name, args, {}, ("out",), when=when, constants=constants or {}, folder=FOLDER,
        item_name=item_name,
    )  # fmt: skip


def attempt(key: int, function: str | Callable[..., Any], *args: Any, cpus: int = 1, **options: Any) -> Attempt:
    return Attempt(key, step_call(function, *args, **options), cpus=cpus, log=Log())


def is_final(outcome: Outcome) -> bool:
    return not isinstance(outcome, (Started, Progressed))


def finish(executor: Executor, count: int = 1, seconds: float = LONG_S) -> list[Outcome]:
    """Outcomes until so many final ones have come."""
    until = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    while sum(map(is_final, outcomes)) < count:
        assert time.monotonic() < until, f"only {outcomes} in {seconds} s"
        outcomes += executor.wait(until)
    return outcomes


def run(executor: Executor, *attempts: Attempt) -> dict[int, Outcome]:
    """Run all, as many at a time as there are slots; final outcomes by key."""
    waiting, ended, out = list(attempts), dict[int, Outcome](), 0
    while len(ended) < len(attempts):
        while waiting and out < executor.slots:
            executor.submit(waiting.pop(0))
            out += 1
        for outcome in finish(executor):
            if is_final(outcome):
                assert outcome.key not in ended
                ended[outcome.key] = outcome
                out -= 1
    return ended


def value(outcome: Outcome, name: str = "out") -> Any:
    assert isinstance(outcome, Succeeded), outcome
    return objects.unpack(outcome.outputs[name])


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


class ExecutorContract:
    """Inherit, and give ``make_executor``."""

    def make_executor(self, slots: int) -> Executor:
        raise NotImplementedError

    @pytest.fixture
    def executor(self) -> Iterator[Executor]:
        executor = self.make_executor(2)
        yield executor
        executor.close()

    def test_a_step_gives_its_value(self, executor: Executor) -> None:
        assert value(run(executor, attempt(1, "double", 21))[1]) == 42

    def test_every_attempt_has_exactly_one_final_outcome(self, executor: Executor) -> None:
        ended = run(executor, *(attempt(k, "fail" if k % 3 == 0 else "double", k) for k in range(30)))
        assert [key for key, outcome in sorted(ended.items()) if isinstance(outcome, Failed)] == list(range(0, 30, 3))
        assert executor.wait(time.monotonic() + 0.05) == []
        assert executor.running == 0

    def test_results_belong_to_their_attempts_whatever_the_order(self, executor: Executor) -> None:
        ended = run(executor, *(attempt(k, "sleep" if k % 4 == 0 else "double", 0.01 * k) for k in range(12)))
        assert {k: value(o) for k, o in ended.items()} == {k: "slept" if k % 4 == 0 else 0.02 * k for k in range(12)}

    def test_values_reach_the_step_by_name(self, executor: Executor) -> None:
        call = step_call("echo", Lookup("rows", (1, "price")))
        refs = {"rows": objects.pack([{}, {"price": 7}])}
        executor.submit(Attempt(5, call, values=refs))
        assert value(finish(executor)[-1]) == 7

    def test_an_exception_is_told_as_data_with_the_users_place(self, executor: Executor) -> None:
        outcome = run(executor, attempt(1, "fail", "no such day"))[1]
        assert isinstance(outcome, Failed)
        assert (outcome.failure.cause, outcome.failure.type) == ("error", "ValueError")
        assert outcome.failure.message == "no such day"
        assert "steps_for_executors.py" in outcome.failure.user_place
        assert "in fail" in outcome.failure.traceback

    def test_an_exception_that_cannot_be_rebuilt_is_told_as_text(self, executor: Executor) -> None:
        outcome = run(executor, attempt(1, "fail_unpicklably"))[1]
        assert isinstance(outcome, Failed)
        assert outcome.failure.message == "one and two"
        assert outcome.failure.exception is None

    def test_a_result_that_cannot_be_pickled_fails_only_its_step(self, executor: Executor) -> None:
        ended = run(executor, attempt(1, "unpicklable"), attempt(2, "double", 4), attempt(3, "double", 5))
        failed = ended[1]
        assert isinstance(failed, Failed)
        assert "lock" in failed.failure.message
        assert [value(ended[2]), value(ended[3])] == [8, 10]

    @pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
    def test_a_step_that_raises_to_end_the_process_has_failed(self, executor: Executor, name: str) -> None:
        outcome = run(executor, attempt(1, "raise_base", name))[1]
        assert isinstance(outcome, Failed)
        assert outcome.failure.type == name
        assert value(run(executor, attempt(2, "double", 1))[2]) == 2

    def test_a_module_that_is_missing_fails_the_step(self, executor: Executor) -> None:
        outcome = run(executor, attempt(1, "no_such_module_at_all:f"))[1]
        assert isinstance(outcome, Failed)
        assert "no_such_module_at_all" in outcome.failure.message

    def test_output_and_records_reach_the_log_of_their_own_attempt(self, executor: Executor) -> None:
        attempts = [attempt(k, "shout", f"word{k}") for k in range(6)]
        run(executor, *attempts)
        for k, each in enumerate(attempts):
            log = each.log
            assert isinstance(log, Log)
            assert sorted(log.data.decode().splitlines()) == [f"err word{k}", f"out word{k}"]
            assert log.records == [(logging.INFO, "tests.shout", f"logged word{k}")]
            assert log.closed == 1

    def test_output_outside_attempts_goes_where_it_went(
        self, executor: Executor, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(executor, attempt(1, "shout", "inside"))
        print("outside")
        assert "inside" not in capsys.readouterr().out

    def test_an_attempt_whose_condition_is_false_is_skipped(self, executor: Executor) -> None:
        ended = run(executor, attempt(1, "fail", "ran", when="1 > 2"), attempt(2, "double", 3, when="1 < 2"))
        assert isinstance(ended[1], Skipped)
        assert value(ended[2]) == 6

    def test_items_of_a_map_fail_alone(self, executor: Executor) -> None:
        items = Items(objects.pack(list(range(100, 110))), 100, range(102, 107))
        call = step_call("odd_fails", Lookup("item"), item_name="item")
        executor.submit(Attempt(1, call, items=items))
        outcomes = finish(executor)
        good: dict[int, int] = {}
        bad: dict[int, str] = {}
        for outcome in outcomes:
            if isinstance(outcome, (Succeeded, Progressed)):
                chunk = objects.unpack(outcome.chunk) if outcome.chunk is not None else []
                good.update(zip(outcome.indices, chunk, strict=True))
                bad.update((index, failure.message) for index, failure in outcome.failures)
        assert good == {102: 1020, 104: 1040, 106: 1060}
        assert bad == {103: "odd 103", 105: "odd 105"}

    def test_progress_arrives_before_the_end(self, executor: Executor) -> None:
        executor.submit(attempt(1, "report_progress", 3))
        outcomes = finish(executor)
        progress = [o for o in outcomes if isinstance(o, Progressed) and o.done is not None]
        assert progress
        assert all(o.key == 1 and o.total == 3 for o in progress)
        assert is_final(outcomes[-1])

    def test_wait_returns_at_its_deadline_with_nothing(self, executor: Executor) -> None:
        began = time.monotonic()
        assert executor.wait(began + 0.05) == []
        assert 0.05 <= time.monotonic() - began < 5

    def test_wait_without_deadline_returns_at_once_where_nothing_runs(self, executor: Executor) -> None:
        assert executor.wait(None) == []

    def test_wait_without_deadline_waits_for_what_runs(self, executor: Executor) -> None:
        executor.submit(attempt(1, "sleep", 0.05))
        outcomes: list[Outcome] = []
        while not any(map(is_final, outcomes)):
            outcomes += executor.wait(None)
        assert value(outcomes[-1]) == "slept"

    def test_a_watched_descriptor_ends_the_wait(self, executor: Executor) -> None:
        reader, writer = os.pipe()
        try:
            executor.watch(reader)
            os.write(writer, b"x")
            began = time.monotonic()
            assert executor.wait(began + LONG_S) == []
            assert time.monotonic() - began < 5
            executor.unwatch(reader)
            assert executor.wait(time.monotonic() + 0.02) == []
        finally:
            os.close(reader)
            os.close(writer)

    def test_the_descriptor_is_readable_when_an_attempt_has_ended(self, executor: Executor) -> None:
        executor.submit(attempt(1, "double", 1))
        until = time.monotonic() + LONG_S
        outcomes: list[Outcome] = []
        while not any(map(is_final, outcomes)):
            assert select.select([executor], [], [], max(0.0, until - time.monotonic()))[0]
            outcomes += executor.wait(time.monotonic())
        while select.select([executor], [], [], 0)[0]:
            assert executor.wait(time.monotonic()) == []
            assert time.monotonic() < until

    def test_nothing_can_be_submitted_after_close(self) -> None:
        executor = self.make_executor(1)
        executor.close()
        with pytest.raises(ExecutorError, match="closed"):
            executor.submit(attempt(1, "double", 1))

    def test_killing_a_key_that_is_done_is_harmless(self, executor: Executor) -> None:
        run(executor, attempt(1, "double", 1))
        executor.kill(1, "timeout", 0.1)
        executor.kill(99, "timeout", 0.1)
        assert executor.wait(time.monotonic() + 0.02) == []
        assert value(run(executor, attempt(2, "double", 1))[2]) == 2

    def test_close_leaves_no_descriptor_and_no_thread_and_may_be_repeated(self) -> None:
        self.make_executor(1).close()
        fds, threads = open_fds(), threading.active_count()
        executor = self.make_executor(2)
        run(executor, *(attempt(k, "double", k) for k in range(4)))
        executor.close()
        executor.close()
        assert open_fds() == fds
        assert threading.active_count() == threads

    def test_a_result_that_nobody_took_is_dropped_by_close(self) -> None:
        executor = self.make_executor(1)
        executor.submit(attempt(1, "double", 1))
        began = time.monotonic()
        executor.close()
        assert time.monotonic() - began < 5

    def test_no_final_outcome_is_lost_for_a_caller_that_only_polls(self, executor: Executor) -> None:
        executor.submit(attempt(1, "double", 2))
        until = time.monotonic() + LONG_S
        outcomes: list[Outcome] = []
        while not any(map(is_final, outcomes)):
            assert time.monotonic() < until
            outcomes += executor.wait(time.monotonic())
        assert value(outcomes[-1]) == 4
        assert not any(isinstance(o, Lost) for o in outcomes)
