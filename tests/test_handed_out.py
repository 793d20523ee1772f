"""What is handed out ahead, what its end means where its beginning was never told, and what the loop makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from procflow import Parallel, Pipeline, Step
from procflow.attempt import Attempt, Failed, Failure, Lost, Returned, Skipped, Started, Succeeded, Usage
from procflow.compiler import compile_pipeline
from procflow.engine import Engine
from procflow.events import AttemptFinished, AttemptStarted, Event, StepFinished
from procflow.ref import Inline
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Submit
from procflow.scheduling.states import State
from procflow.testing import Act, FakeExecutor

DEPTH = 3
NONE = Inline(b"x")


def f() -> None:
    """A step that does nothing."""


def scheduler_of(count: int, slots: int = 1, memory_bytes: int | None = None, **options: Any) -> Scheduler:
    steps = [Step(f"s{i}", f, **options) for i in range(count)]
    graph = compile_pipeline(Pipeline("t", steps=[Parallel("p", *steps)]))
    cores = dict.fromkeys(graph.executors, slots)
    return Scheduler(graph, slots=cores, memory_bytes=memory_bytes, depth=dict.fromkeys(graph.executors, DEPTH))


def submits(actions: list[Any]) -> list[Submit]:
    return [action for action in actions if isinstance(action, Submit)]


def well(submit: Submit, wall_s: float = 1e-5) -> Succeeded:
    return Succeeded(submit.key, {submit.unit.name: NONE}, Usage(wall_s))


def with_a_line(scheduler: Scheduler) -> list[Submit]:
    """One attempt that runs and those queued behind it, once the first step has been measured to be short."""
    [first] = submits(scheduler.start(0.0))
    return submits(scheduler.handle(well(first), 0.001))


def test_what_is_handed_out_ahead_comes_in_declared_order_and_no_deeper_than_the_executor_holds() -> None:
    line = with_a_line(scheduler_of(10))
    assert [submit.unit.name for submit in line] == ["s1", "s2", "s3", "s4"]
    assert [submit.behind for submit in line] == [False, True, True, True]


def test_what_takes_long_is_not_handed_out_ahead() -> None:
    scheduler = scheduler_of(10)
    [first] = submits(scheduler.start(0.0))
    assert [s.behind for s in submits(scheduler.handle(well(first, wall_s=1.0), 1.0))] == [False]


def test_a_queued_attempt_that_ended_unheard_is_told_as_begun_and_ended_and_holds_nothing() -> None:
    scheduler = scheduler_of(10)
    line = with_a_line(scheduler)
    free = dict(scheduler.ready.budget.cpus)
    actions = scheduler.handle_all([well(line[0]), well(line[1])], 0.002)
    told = [(type(a), getattr(a, "key", None)) for a in actions if isinstance(a, Event) and a.label.endswith("s2")]
    assert told == [(AttemptStarted, line[1].key), (AttemptFinished, line[1].key), (StepFinished, None)]
    assert line[1].key not in scheduler.queued
    assert line[1].key not in scheduler.running
    assert scheduler.ready.budget.cpus == free, "one that ran has ended, the next one runs"
    assert len(scheduler.running) == 1


def test_memory_that_was_held_while_queued_comes_back_with_the_end() -> None:
    scheduler = scheduler_of(10, memory_bytes=1000)
    for run in scheduler.root.unit.members[0].members:  # type: ignore[attr-defined]
        object.__setattr__(run, "learned_bytes", 100)
    line = with_a_line(scheduler)
    assert scheduler.ready.budget.memory_bytes == 1000 - 100 * len(line)
    while line:
        line = submits(scheduler.handle_all(list(map(well, line)), 0.003))
        held = [*scheduler.running, *scheduler.queued]
        assert scheduler.ready.budget.memory_bytes == 1000 - 100 * len(held)
    assert scheduler.finished


def test_an_end_that_came_unheard_leaves_no_clock_behind() -> None:
    scheduler = scheduler_of(3, timeout="10s")
    line = with_a_line(scheduler)
    scheduler.handle_all(list(map(well, line)), 0.002)
    assert scheduler.finished
    clocks = [at for at, _, kind, *_ in scheduler._timers if kind == "attempt"]
    assert clocks == [10.0, 10.001], "those of the two that ran; the third had none to watch"


def test_a_queued_attempt_that_begins_gets_its_clock_then() -> None:
    scheduler = scheduler_of(4, timeout="10s")
    line = with_a_line(scheduler)
    scheduler.handle_all([well(line[0]), Started(line[1].key)], 5.0)
    assert scheduler.running[line[1].key].clock == 15.0


def test_a_queued_attempt_that_failed_unheard_fails_like_any_other() -> None:
    scheduler = scheduler_of(3, retries=1)
    line = with_a_line(scheduler)
    actions = scheduler.handle_all([well(line[0]), Failed(line[1].key, Failure("error", "Oops", "x"))], 0.002)
    [end] = [a for a in actions if isinstance(a, AttemptFinished) and a.key == line[1].key]
    assert (end.status, end.retry_in_s is None) == ("failed", False)


@pytest.mark.parametrize(
    ("retries", "end", "state"),
    [
        (0, Failed(0, Failure("error", "Oops", "x")), "failed"),
        (1, Failed(0, Failure("error", "Oops", "x")), "retrying"),
        (0, Lost(0, Failure("crash", "WorkerDied", "SIGKILL", signal=9)), "failed"),
        (0, Skipped(0), "skipped"),
    ],
)
def test_an_end_that_came_unheard_moves_its_step_from_queued_at_once(retries: int, end: Any, state: State) -> None:
    scheduler = scheduler_of(10, retries=retries)
    queued = with_a_line(scheduler)[1]
    [task] = [task for task in scheduler.queued.values() if task.key == queued.key]
    told = scheduler.handle(replace(end, key=queued.key), 0.002)
    assert [type(event) for event in told[:2]] == [AttemptStarted, AttemptFinished]
    assert [(before, after) for run, before, after in scheduler._story if run is task][-1] == ("queued", state)
    assert task.scope.active == len(scheduler.running) + len(scheduler.queued)


def test_what_is_given_back_is_handed_out_again_under_another_key_and_the_same_number() -> None:
    scheduler = scheduler_of(3)
    line = with_a_line(scheduler)
    actions = scheduler.handle_all([well(line[0]), Returned(line[1].key)], 0.002)
    [again] = [submit for submit in submits(actions) if submit.unit is line[1].unit]
    assert again.key != line[1].key
    assert again.number == line[1].number == 1


def test_a_submission_is_the_attempt_itself() -> None:
    [submit] = submits(scheduler_of(1).start(0.0))
    assert isinstance(submit, Attempt)
    assert (submit.call, submit.cpus, submit.run_id) == (submit.unit.call, 1, "run")
    assert submit.log is None, "the loop gives it one"
    assert submit.about == (submit.unit.path, submit.unit.label, "", 1, submit.unit.executor, "member", 0.0)


class Journal:
    """Says in which order the loop recorded, noted and submitted."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def record(self, *events: Event) -> None:
        self.heard.append("ends" if any(isinstance(e, AttemptFinished) for e in events) else "record")

    def note(self) -> None:
        self.heard.append("note")

    def commit(self) -> None:
        pass


class Deep(FakeExecutor):
    """Takes what is queued at once, and tells the journal of every attempt."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(1 + DEPTH, {"s0": Act(after_s=1e-5)})
        self.journal = journal

    def submit(self, attempt: Attempt) -> None:
        self.journal.heard.append("submit")
        super().submit(attempt)

    queue = submit


def test_ends_are_noted_before_anything_new_is_submitted_and_only_once() -> None:
    journal = Journal()
    executor = Deep(journal)
    scheduler = scheduler_of(12)
    executors = dict.fromkeys(scheduler.slots, executor)
    Engine(scheduler, executors, executor, journal, clock=executor.clock).run()  # type: ignore[arg-type]
    text = " ".join(journal.heard)
    assert text.count("submit") == 12
    assert "ends note submit" in text
    assert "ends submit" not in text
    assert "submit submit submit" in text, "what goes out together is noted once"
    notes = text.split("note")[1:-1]
    assert all("record" in between or "ends" in between for between in notes), "nothing is noted twice"
