"""The scheduler's decisions, one fact a test, in fake time on the fake executor."""

from __future__ import annotations

from typing import Any

import pytest

from procflow import Graph, Map, Parallel, Pipeline, Sequence, Step
from procflow.attempt import Failed, Failure, Lost, Succeeded
from procflow.compiler import compile_pipeline
from procflow.errors import InternalError
from procflow.events import AttemptFinished, BlockFinished, Event, StepFinished
from procflow.ref import Inline
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Kill, Measured, StopAsked, Submit, Tick
from procflow.scheduling.kept import KeptTask
from procflow.scheduling.states import TRANSITIONS
from procflow.testing import Act, run_fake


def f(*args: Any, **kwargs: Any) -> None:
    """A step that does nothing."""


class Log:
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def handle(self, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type, **want: Any) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind) and all(getattr(e, k) == v for k, v in want.items())]


def run(*steps: Any, script: Any = None, slots: int = 2, **keys: Any) -> tuple[Any, Log]:
    log = Log()
    options = {k: keys.pop(k) for k in ("memory_bytes",) if k in keys}
    result = run_fake(Pipeline("t", steps=steps, **keys), script=script or {}, slots=slots, observers=[log], **options)
    return result, log


def started(*steps: Any, script: Any = None, slots: int = 1, **keys: Any) -> list[str]:
    """Names in the order of their start."""
    seen: list[str] = []

    def act(attempt: Any) -> Act:
        seen.append(attempt.call.name)
        chosen = (script or {}).get(attempt.call.name, Act())
        return chosen if isinstance(chosen, Act) else chosen[min(attempt.number, len(chosen)) - 1]

    run_fake(Pipeline("t", steps=steps, **keys), script=act, slots=slots)
    return seen


def world(*steps: Any, slots: int = 2, **keys: Any) -> Scheduler:
    graph = compile_pipeline(Pipeline("t", steps=steps, **keys))
    return Scheduler(graph, slots=dict.fromkeys(graph.executors, slots), run_id="t")


def submits(actions: list[Any]) -> list[Submit]:
    return [a for a in actions if isinstance(a, Submit)]


# -- what starts when --------------------------------------------------------------------------------------------


def test_higher_priority_starts_first() -> None:
    assert started(Parallel("p", Step("a", f), Step("b", f, priority=5), Step("c", f, priority=1))) == ["b", "c", "a"]


def test_longest_remaining_path_starts_first() -> None:
    steps = Graph(
        "g", Step("short", f), Step("head", f), Step("mid", f, depends_on="head"), Step("end", f, depends_on="mid")
    )
    assert started(steps) == ["head", "mid", "short", "end"]


def test_a_member_starts_as_soon_as_what_it_needs_is_there() -> None:
    steps = Graph("g", Step("slow", f), Step("fast", f), Step("next", f, depends_on="fast"))
    _, log = run(steps, script={"slow": Act(after_s=100)})
    assert log.of(AttemptFinished, label="g/next")[0].started_at == 1.0


def test_max_parallelism_bounds_members_at_once() -> None:
    result, _ = run(Parallel("p", *[Step(f"s{i}", f) for i in range(9)], max_parallelism=3), slots=8)
    assert result.metrics.wall_s == 3.0


def test_blocks_wait_for_a_place_too() -> None:
    blocks = [Sequence(f"q{i}", Step(f"a{i}", f), Step(f"b{i}", f)) for i in range(4)]
    result, _ = run(Parallel("p", *blocks, max_parallelism=2), slots=8)
    assert result.metrics.wall_s == 4.0


def test_memory_admission_keeps_reservations_within_the_budget() -> None:
    steps = [Step(f"s{i}", f, memory="3GB") for i in range(4)]
    result, _ = run(Parallel("p", *steps), slots=4, memory_bytes=7_000_000_000)
    assert result.metrics.wall_s == 2.0


def test_named_resources_bound_what_runs_at_once() -> None:
    steps = [Step(f"s{i}", f, resources={"db": 1.0}) for i in range(4)]
    result, _ = run(Parallel("p", *steps), slots=4, limits={"resources": {"db": 1.0}})
    assert result.metrics.wall_s == 4.0


def test_cpus_take_so_many_slots() -> None:
    result, _ = run(Parallel("p", Step("wide", f, cpus=2), Step("a", f), Step("b", f)), slots=2)
    assert result.metrics.wall_s == 2.0


def test_a_wide_task_is_passed_over_only_so_often() -> None:
    small = [Step(f"s{i}", f) for i in range(200)]
    order = started(
        Parallel("p", Step("first", f), Step("wide", f, cpus=2, priority=1), *small),
        slots=2,
        script=lambda_acts(),
    )
    assert order.index("wide") < 60


def lambda_acts() -> dict[str, Act]:
    """Small tasks end at different times, so that two cores are hardly ever free together."""
    return {f"s{i}": Act(after_s=1.0 + i % 2 / 2) for i in range(200)} | {"first": Act(after_s=0.25)}


def test_rate_limit_spaces_starts() -> None:
    _, log = run(Map("m", f, items=[1, 2, 3, 4, 5], rate_limit="2/10s", batch=1), slots=4)
    starts = sorted(e.started_at for e in log.of(AttemptFinished, label="m") if e.item)
    first = starts[0]
    assert [s - first for s in starts] == [0.0, 0.0, 10.0, 10.0, 20.0]


# -- time --------------------------------------------------------------------------------------------------------


def test_an_attempt_is_killed_when_its_timeout_is_over() -> None:
    result, _log = run(Step("a", f, timeout="5s", kill_grace="3s"), script={"a": Act(hangs=True)})
    assert result.status == "failed"
    assert result.metrics.wall_s == 8.0
    assert result.failures[0].failure.cause == "timeout"
    assert "timeout of 5 s" in result.failures[0].failure.message


def test_a_result_that_comes_after_the_timeout_is_dropped() -> None:
    result, _ = run(Step("a", f, timeout="5s", kill_grace="3s"), script={"a": Act(after_s=6)})
    assert result.status == "failed"
    assert "result was dropped" in result.failures[0].failure.message


def test_a_result_that_comes_with_the_timeout_counts_once() -> None:
    scheduler = world(Step("a", f, timeout="5s"))
    key = submits(scheduler.start(0.0))[0].key
    assert scheduler.handle(Succeeded(key, {"a": Inline(b"")}), 5.0)
    assert scheduler.finished
    assert scheduler.status == "succeeded"
    assert scheduler.handle(Lost(key, Failure("timeout", "T", "")), 5.0) == []
    assert scheduler.late == 1


def test_idle_timeout_ends_a_silent_step() -> None:
    result, _ = run(Step("a", f, idle_timeout="4s"), script={"a": Act(hangs=True)})
    assert result.failures[0].failure.cause == "idle"
    assert result.metrics.wall_s == 6.0


def test_block_timeout_ends_all_members_and_counts_waiting() -> None:
    steps = Parallel("p", *[Step(f"s{i}", f) for i in range(20)], timeout="3s")
    result, log = run(steps, script={f"s{i}": Act(hangs=True) for i in range(20)}, slots=2)
    block = log.of(BlockFinished, label="p")[0]
    assert block.status == "failed"
    assert block.failure.cause == "timeout"
    assert len(log.of(StepFinished, status="cancelled")) == 20
    assert result.metrics.wall_s == 5.0


def test_run_timeout_has_its_own_status() -> None:
    result, _ = run(Step("a", f), script={"a": Act(hangs=True)}, limits={"timeout": "7s"})
    assert result.status == "timed_out"
    assert result.exit_code == 4


def test_items_of_a_map_have_a_clock_each() -> None:
    result, _log = run(Map("m", f, items=[1, 2, 3, 4], timeout="2s", batch=4), script={"m": Act(after_s=1)}, slots=1)
    assert result.status == "succeeded"


# -- retries -----------------------------------------------------------------------------------------------------


def test_pauses_between_attempts_grow_and_leave_the_slot() -> None:
    retry = {"retries": 3, "delay": "10s", "backoff": 2.0, "jitter": False}
    result, log = run(
        Parallel("p", Step("a", f, retry=retry), Step("b", f), Step("c", f)),
        script={"a": [Act(raises=OSError("x"))] * 3 + [Act()], "b": Act(after_s=1), "c": Act(after_s=1)},
        slots=1,
    )
    attempts = log.of(AttemptFinished, label="p/a")
    assert [e.retry_in_s for e in attempts] == [10.0, 20.0, 40.0, None]
    assert result.status == "succeeded"
    assert log.of(AttemptFinished, label="p/b")[0].started_at == 1.0


def test_jitter_is_the_same_in_the_same_run() -> None:
    def pauses() -> list[Any]:
        _, log = run(Step("a", f, retries=4), script={"a": Act(raises=OSError("x"))})
        return [e.retry_in_s for e in log.of(AttemptFinished)]

    first = pauses()
    assert first == pauses()
    assert all(a < b for a, b in zip(first[:-1], [1.0, 2.0, 4.0, 8.0], strict=True))


def test_only_chosen_errors_are_retried() -> None:
    retry = {"retries": 2, "on": ["OSError"]}
    assert started(Step("a", f, retry=retry), script={"a": Act(raises=FileNotFoundError("x"))}).count("a") == 3
    assert started(Step("a", f, retry=retry), script={"a": Act(raises=ValueError("x"))}).count("a") == 1
    assert started(Step("a", f, retry=retry), script={"a": Act(dies=11)}).count("a") == 1


def test_causes_are_charged_apart() -> None:
    acts = [Act(raises=OSError("x")), Act(dies=9), Act(raises=OSError("x")), Act()]
    assert len(started(Step("a", f, retries=1), script={"a": acts})) == 3


def test_a_block_runs_again_and_keeps_what_succeeded() -> None:
    retry = {"retries": 2, "delay": "1s", "jitter": False}
    block = Parallel("p", Step("good", f), Step("bad", f), retry=retry, on_error="finish")
    order = started(block, script={"bad": [Act(raises=OSError("x")), Act()]}, slots=2)
    assert order == ["good", "bad", "bad"]
    result, log = run(block, script={"bad": [Act(raises=OSError("x")), Act()]})
    assert result.status == "succeeded"
    assert [e.status for e in log.of(BlockFinished, label="p")] == ["failed", "succeeded"]


def test_a_map_that_runs_again_runs_every_unfinished_item() -> None:
    tried: list[int] = []

    def body(x: int) -> int:
        tried.append(x)
        if tried.count(x) == 1 and x == 1:
            raise OSError("x")
        return x

    block = Sequence("q", Map("m", body, items=[0, 1, 2, 3], batch=1), retry={"retries": 1, "delay": "1s"})
    result, _ = run(block, slots=1)
    assert result.status == "succeeded"
    assert result.outputs["m"] == [0, 1, 2, 3]
    assert tried == [0, 1, 1, 2, 3]


# -- failures ----------------------------------------------------------------------------------------------------


def test_stop_kills_the_siblings() -> None:
    steps = Parallel("p", Step("bad", f), Step("long", f, kill_grace="1s"), Step("never", f))
    result, log = run(steps, script={"bad": Act(raises=OSError("x")), "long": Act(hangs=True)})
    states = {e.label: e.status for e in log.of(StepFinished)}
    assert states == {"p/bad": "failed", "p/long": "cancelled", "p/never": "cancelled"}
    assert result.exit_code == 1


def test_finish_lets_the_siblings_finish() -> None:
    steps = Parallel("p", Step("bad", f), Step("long", f), Step("more", f), on_error="finish")
    result, log = run(steps, script={"bad": Act(raises=OSError("x")), "long": Act(after_s=50)})
    states = {e.label: e.status for e in log.of(StepFinished)}
    assert states == {"p/bad": "failed", "p/long": "succeeded", "p/more": "succeeded"}
    assert result.status == "failed"


def test_continue_goes_on_with_what_there_is_and_the_run_is_partial() -> None:
    steps = Parallel("p", Step("bad", f), Step("good", f), on_error="continue")
    result, _ = run(steps, Step("after", f, inputs=["good"]), script={"bad": Act(raises=OSError("x"))})
    assert result.status == "partial"
    assert result.exit_code == 3


def test_what_reads_a_missing_value_is_skipped_and_says_so() -> None:
    steps = Parallel("p", Step("bad", f), Step("good", f), on_error="continue")
    _result, log = run(steps, Step("after", f, inputs=["bad"]), script={"bad": Act(raises=OSError("x"))})
    assert log.of(StepFinished, label="after")[0].status == "skipped"
    assert "'bad' has no value" in log.of(StepFinished, label="after")[0].reason


def test_more_failures_than_tolerated_end_the_block() -> None:
    steps = Map("m", f, items=list(range(10)), tolerate=2, on_error="continue", batch=1)
    result, _ = run(steps, script=lambda a: Act(raises=OSError("x")) if a.items else Act())
    assert result.status == "failed"
    assert result.failure_count == 3


def test_dependents_of_a_failed_step_are_skipped() -> None:
    steps = Graph("g", Step("bad", f), Step("needs", f, depends_on="bad"), Step("free", f), on_error="finish")
    _, log = run(steps, script={"bad": Act(raises=OSError("x"))})
    assert {e.label: e.status for e in log.of(StepFinished)} == {
        "g/bad": "failed",
        "g/needs": "skipped",
        "g/free": "succeeded",
    }


def test_join_any_cancels_the_rest() -> None:
    steps = Parallel("p", Step("slow", f), Step("fast", f), join="any")
    result, log = run(steps, script={"slow": Act(hangs=True)})
    assert result.status == "succeeded"
    assert {e.label: e.status for e in log.of(StepFinished)} == {"p/fast": "succeeded", "p/slow": "cancelled"}


def test_join_that_can_no_longer_be_reached_fails_at_once() -> None:
    steps = Parallel("p", Step("a", f), Step("b", f), Step("c", f), join=2)
    script = {"a": Act(raises=OSError("x")), "b": Act(raises=OSError("x")), "c": Act(hangs=True)}
    result, _ = run(steps, script=script, slots=3)
    assert result.status == "failed"


def test_a_step_may_say_that_its_own_failure_is_tolerated() -> None:
    result, _ = run(Step("a", f, on_error="continue"), Step("b", f), script={"a": Act(raises=OSError("x"))})
    assert result.status == "partial"
    assert result.steps["b"].status == "succeeded"


def test_stop_asked_cancels_everything_and_waits_for_what_runs() -> None:
    scheduler = world(Parallel("p", Step("a", f), Step("b", f), Step("c", f)))
    keys = [s.key for s in submits(scheduler.start(0.0))]
    kills = [a for a in scheduler.handle(StopAsked("SIGTERM"), 1.0) if isinstance(a, Kill)]
    assert [k.key for k in kills] == keys
    assert not scheduler.finished
    for key in keys:
        scheduler.handle(Lost(key, Failure("cancelled", "C", "")), 2.0)
    assert scheduler.finished
    assert scheduler.status == "cancelled"


# -- maps --------------------------------------------------------------------------------------------------------


def pages(scheduler: Scheduler, key: int, count: int, now: float = 0.0) -> list[Any]:
    return scheduler.handle(Succeeded(key, pages=((Inline(b""), count),)), now)


def test_batches_grow_with_short_items_and_shrink_at_the_end() -> None:
    scheduler = world(Map("m", f, items=[0]), slots=1)
    actions = pages(scheduler, submits(scheduler.start(0.0))[0].key, 10_000)
    sizes = []
    now = 0.0
    while not scheduler.finished:
        batch = submits(actions)[0]
        assert batch.items is not None
        count = len(batch.items.indices)
        sizes.append(count)
        now += count * 0.001
        actions = scheduler.handle(Succeeded(batch.key, indices=batch.items.indices, chunk=Inline(b"")), now)
    assert sizes[0] == 1
    assert max(sizes) == 200
    assert sizes[-1] == 1
    assert sum(sizes) == 10_000


def test_long_items_run_one_by_one() -> None:
    _, log = run(Map("m", f, items=[1, 2, 3, 4]), script={"m": Act(after_s=5)}, slots=1)
    assert [e.item for e in log.of(AttemptFinished, label="m") if e.item] == ["0", "1", "2", "3"]


def test_a_batch_that_loses_its_worker_runs_its_items_alone() -> None:
    scheduler = world(Map("m", f, items=[0], batch=4, on_error="continue"), slots=1)
    actions = pages(scheduler, submits(scheduler.start(0.0))[0].key, 4)
    first = submits(actions)[0]
    actions = scheduler.handle(Lost(first.key, Failure("crash", "Died", "", signal=11)), 1.0)
    tried = []
    while not scheduler.finished:
        batch = submits(actions)[0]
        assert batch.items is not None
        (item,) = batch.items.indices
        tried.append(item)
        outcome: Any = Succeeded(batch.key, indices=(item,), chunk=Inline(b""))
        if item == 2:
            outcome = Lost(batch.key, Failure("crash", "Died", "", signal=11))
        actions = scheduler.handle(outcome, 2.0)
    assert tried == [0, 1, 2, 3], "item 2 was a suspect once, so its second loss is its last"
    assert list(scheduler.root.members[0].failures) == [2]  # type: ignore[union-attr]


def test_a_known_culprit_runs_once_more_alone_and_is_then_set_aside() -> None:
    scheduler = world(Map("m", f, items=[0], batch=4, on_error="continue"), slots=1)
    actions = pages(scheduler, submits(scheduler.start(0.0))[0].key, 4)
    tried = []
    while not scheduler.finished:
        batch = submits(actions)[0]
        assert batch.items is not None
        tried.append(tuple(batch.items.indices))
        outcome: Any = Succeeded(batch.key, indices=batch.items.indices, chunk=Inline(b""))
        if 1 in batch.items.indices:
            outcome = Lost(batch.key, Failure("crash", "Died", "SIGKILL", signal=9), culprit=1)
        actions = scheduler.handle(outcome, 1.0)
    assert tried == [(0, 1, 2, 3), (0,), (1,), (2, 3)]
    failure = scheduler.root.members[0].failures[1]  # type: ignore[union-attr]
    assert (failure.type, failure.signal) == ("Quarantined", 9)
    assert scheduler.status == "partial"


def test_open_iterations_are_bounded() -> None:
    scheduler = world(Map("m", Step("a", f, inputs=["item"]), Step("b", f), items=[0]), slots=1)
    pages(scheduler, submits(scheduler.start(0.0))[0].key, 100_000)
    assert len(scheduler.root.members[0].live) == 4  # type: ignore[union-attr]


def test_an_executor_that_forgets_items_is_found_out() -> None:
    scheduler = world(Map("m", f, items=[0], batch=2), slots=1)
    actions = pages(scheduler, submits(scheduler.start(0.0))[0].key, 2)
    with pytest.raises(InternalError, match="no result for items"):
        scheduler.handle(Succeeded(submits(actions)[0].key, indices=(0,), chunk=Inline(b"")), 1.0)


# -- values ----------------------------------------------------------------------------------------------------


def test_a_value_that_nobody_published_in_spite_of_success_is_a_failure() -> None:
    result, _ = run(Step("a", lambda: {"x": 1}, outputs="*"), Step("b", f, inputs=["typo"]))
    assert result.status == "failed"
    assert "no step published 'typo'" in result.failures[0].failure.message


def test_the_failure_of_a_hidden_task_is_told() -> None:
    result, _ = run(Step("n", lambda: 5), Map("m", f, items="n"))
    assert result.status == "failed"
    assert [r.label for r in result.failures] == ["m"]


def test_nothing_to_merge_is_no_failure() -> None:
    result, _ = run(Map("m", f, items=[], merge="combine_outputs"), Step("n", len, inputs=["m"]))
    assert result.outputs["n"] == 0


def test_a_join_of_members_that_were_all_skipped_is_skipped() -> None:
    result, log = run(Parallel("p", Step("a", f, when="1 > 2"), Step("b", f, when="1 > 2"), join="any"))
    assert result.status == "succeeded"
    assert log.of(BlockFinished, label="p")[0].status == "skipped"


def test_names_known_only_at_run_time_do_not_hide_outer_values_of_a_graph() -> None:
    graph = Graph("g", Step("a", lambda: {"rows": "inner"}, outputs="*"), Step("b", lambda r: r, inputs=["rows"]))
    for slow in ("a", "b"):
        result, _ = run(Step("rows", lambda: "outer"), graph, script={slow: Act(after_s=9)})
        assert result.outputs["b"] == "outer"


def test_failures_that_a_block_forgave_are_told_as_tolerated() -> None:
    result, _ = run(Parallel("p", Step("a", f), Step("b", f), on_error="continue"), script={"a": Act(raises=OSError())})
    assert [r.tolerated for r in result.failures] == [True]


# -- memory ------------------------------------------------------------------------------------------------------


def test_a_step_over_its_limit_is_stopped_and_runs_again_with_more() -> None:
    scheduler = world(Step("a", f, memory="1GB", retries=1))
    scheduler.memory_bytes = scheduler.ready.budget.memory_bytes = 8 * 10**9
    key = submits(scheduler.start(0.0))[0].key
    kills = [a for a in scheduler.handle(Measured({key: 3 * 10**9}, 3 * 10**9), 1.0) if isinstance(a, Kill)]
    assert [k.cause for k in kills] == ["oom"]
    scheduler.handle(Lost(key, Failure("oom", "X", "", peak_rss_bytes=3 * 10**9)), 1.1)
    assert submits(scheduler.handle(Tick(), scheduler.next_deadline() or 0.0))
    assert scheduler.ready.budget.memory_bytes == 8 * 10**9 - int(3 * 10**9 * 1.25)


def test_a_step_that_needs_more_than_the_run_has_fails_at_once() -> None:
    scheduler = world(Step("a", f, memory="4GB", retries=5))
    scheduler.memory_bytes = scheduler.ready.budget.memory_bytes = 4 * 10**9
    key = submits(scheduler.start(0.0))[0].key
    scheduler.handle(Measured({key: 5 * 10**9}, 5 * 10**9), 1.0)
    scheduler.handle(Lost(key, Failure("oom", "X", "")), 1.1)
    assert scheduler.status == "failed"
    assert "over its memory limit of 3.7 GiB" in scheduler.root.members[0].failure.message  # type: ignore[union-attr]


def test_under_pressure_the_youngest_runs_again_alone_without_a_charge() -> None:
    scheduler = world(Parallel("p", Step("old", f), Step("young", f), Step("next", f)), slots=2)
    scheduler.memory_bytes = scheduler.ready.budget.memory_bytes = 10**9
    old, young = (s.key for s in submits(scheduler.start(0.0)))
    actions = scheduler.handle(Measured({old: 5 * 10**8, young: 5 * 10**8}, 10**9), 1.0)
    assert [(a.key, a.cause) for a in actions if isinstance(a, Kill)] == [(young, "pressure")]
    assert not submits(scheduler.handle(Lost(young, Failure("pressure", "X", "")), 1.5)), (
        "others wait until it had its turn"
    )
    alone = submits(scheduler.handle(Succeeded(old, {}), 2.0))
    assert [s.unit.name for s in alone] == ["young"]
    last = submits(scheduler.handle(Succeeded(alone[0].key, {}), 3.0))
    assert [s.unit.name for s in last] == ["next"]


def test_nothing_starts_while_memory_is_short() -> None:
    scheduler = world(Parallel("p", *[Step(f"s{i}", f) for i in range(4)]), slots=2)
    scheduler.memory_bytes = scheduler.ready.budget.memory_bytes = 10**9
    one, two = (s.key for s in submits(scheduler.start(0.0)))
    assert scheduler.handle(Measured({one: 1, two: 1}, 92 * 10**7), 1.0) == []
    assert not submits(scheduler.handle(Succeeded(one, {}), 2.0))
    assert submits(scheduler.handle(Measured({two: 1}, 10**8), 3.0))


# -- bad nights --------------------------------------------------------------------------------------------------


def test_workers_that_die_one_after_the_other_stop_the_run_early() -> None:
    steps = Parallel("p", *[Step(f"s{i}", f) for i in range(1000)], on_error="finish")
    result, log = run(steps, script=lambda _: Act(after_s=0.1, dies=9))
    assert result.status == "failed"
    assert "stops early" in result.reason
    assert len(log.of(AttemptFinished)) < 10


def test_single_crashes_among_successes_do_not_stop_the_run() -> None:
    steps = Map("m", f, items=list(range(100)), on_error="continue", batch=1)
    result, _ = run(
        steps, script=lambda a: Act(after_s=0.1, dies=9) if a.items and a.items.indices[0] % 10 == 3 else Act()
    )
    assert result.status == "partial"
    assert result.failure_count == 10


def test_retries_of_the_run_as_a_whole_are_bounded() -> None:
    steps = Parallel("p", *[Step(f"s{i}", f, retries=100) for i in range(20)], on_error="finish")
    result, log = run(steps, script=lambda _: Act(after_s=0.1, raises=OSError("host down")))
    assert result.status == "failed"
    assert len(log.of(AttemptFinished)) < 60


# -- an earlier session ------------------------------------------------------------------------------------------


class Earlier:
    """Results of an earlier session by path, item and role."""

    def __init__(self, tasks: dict[tuple[str, str, str], KeptTask], items: dict[str, Any] | None = None) -> None:
        self.tasks, self.chunks = tasks, items or {}

    def task(self, path: str, item: str, role: str) -> KeptTask | None:
        return self.tasks.get((path, item, role))

    def items(self, path: str, item: str) -> Any:
        return self.chunks.get(path, ())

    def attempts(self, path: str, item: str) -> int:
        return 3

    def consumed_s(self, path: str, item: str) -> float:
        return 0.0


def resumed(*steps: Any, earlier: Earlier) -> tuple[Scheduler, list[str], list[Any]]:
    """Run to the end with ``earlier`` results; names of what was started, and all events."""
    graph = compile_pipeline(Pipeline("t", steps=steps))
    scheduler = Scheduler(graph, slots=dict.fromkeys(graph.executors, 2), run_id="t", kept=earlier)
    queue = scheduler.start(0.0)
    names, events = [], []
    while queue:
        action = queue.pop(0)
        if isinstance(action, Event):
            events.append(action)
        elif isinstance(action, Submit):
            names.append(
                action.unit.name if action.items is None else f"{action.unit.name}{list(action.items.indices)}"
            )
            if action.unit.call.kind == "expand":
                outcome = Succeeded(action.key, pages=((Inline(b"p"), 3),))
            elif action.items is not None:
                outcome = Succeeded(action.key, indices=action.items.indices, chunk=Inline(b"c"))
            else:
                outcome = Succeeded(action.key, dict.fromkeys(action.unit.call.outputs, Inline(b"new")))
            queue += scheduler.handle(outcome, 1.0)
    assert scheduler.finished
    return scheduler, names, events


def test_what_succeeded_before_is_kept_and_not_run() -> None:
    old = Inline(b"old")
    earlier = Earlier({("0", "", "member"): KeptTask({"a": old})})
    scheduler, names, events = resumed(Step("a", f), Step("b", f, inputs=["a"]), earlier=earlier)
    assert names == ["b"]
    assert scheduler.outputs["a"] is old
    assert [e.kept for e in events if isinstance(e, StepFinished)] == [True, False]


def test_what_reads_a_new_value_runs_again() -> None:
    earlier = Earlier(
        {("1", "", "member"): KeptTask({"b": Inline(b"old")}), ("2", "", "member"): KeptTask({"c": Inline(b"old")})}
    )
    _, names, _ = resumed(Step("a", f), Step("b", f, inputs=["a"]), Step("c", f), earlier=earlier)
    assert names == ["a", "b"]


def test_what_depends_on_a_step_that_runs_again_runs_again_too() -> None:
    earlier = Earlier(
        {("0.1", "", "member"): KeptTask({"b": Inline(b"old")}), ("0.2.0", "", "member"): KeptTask({"c": Inline(b"")})}
    )
    block = Sequence("q", Step("c", f), depends_on="a")
    _, names, _ = resumed(Graph("g", Step("a", f), Step("b", f, depends_on="a"), block), earlier=earlier)
    assert sorted(names) == ["a", "b", "c"]


def test_a_map_goes_on_inside() -> None:
    page = Inline(b"p")
    earlier = Earlier({("0", "", "expand"): KeptTask(pages=((page, 3),))}, {"0": [(range(2), Inline(b"old"))]})
    scheduler, names, _ = resumed(Map("m", f, items=[1, 2, 3]), Step("s", f, inputs=["m"]), earlier=earlier)
    assert names == ["m[2]", "s"]
    assert [list(i) for i, _ in scheduler.outputs["m"].chunks] == [[0, 1], [2]]  # type: ignore[attr-defined]


def test_a_whole_map_is_kept_with_what_reads_it() -> None:
    earlier = Earlier(
        {
            ("0", "", "expand"): KeptTask(pages=((Inline(b"p"), 2),)),
            ("1", "", "member"): KeptTask({"s": Inline(b"old")}),
        },
        {"0": [(range(2), Inline(b"old"))]},
    )
    _, names, _ = resumed(Map("m", f, items=[1, 2]), Step("s", f, inputs=["m"]), earlier=earlier)
    assert names == []


def test_attempt_numbers_go_on() -> None:
    _, _, events = resumed(Step("a", f), earlier=Earlier({}))
    assert [e.number for e in events if isinstance(e, AttemptFinished)] == [4]


# -- durability and rules ----------------------------------------------------------------------------------------


def test_a_step_waits_for_the_record_of_the_one_before() -> None:
    scheduler = world(Step("a", f), Step("b", f))
    first = scheduler.start(0.0)
    records = sum(isinstance(a, Event) for a in first)
    second = scheduler.handle(Succeeded(submits(first)[0].key, {"a": Inline(b"")}), 1.0)
    submit = submits(second)[0]
    before = second[: second.index(submit)]
    assert submit.after == records + sum(isinstance(a, Event) for a in before)


def test_independent_tasks_wait_for_no_record() -> None:
    scheduler = world(Parallel("p", *[Step(f"s{i}", f) for i in range(5)]), slots=1)
    actions = scheduler.start(0.0)
    base = submits(actions)[0].after
    for _ in range(4):
        actions = scheduler.handle(Succeeded(submits(actions)[0].key, {}), 1.0)
        assert submits(actions)[0].after == base


def test_a_move_that_is_not_in_the_table_tells_the_story() -> None:
    scheduler = world(Step("a", f))
    scheduler.start(0.0)
    task = next(iter(scheduler.running.values()))
    with pytest.raises(InternalError, match=r"a \[\] can't go from running to waiting") as caught:
        scheduler._move(task, "waiting")
    assert "waiting -> ready" in str(caught.value)


def test_outcomes_of_unknown_attempts_are_counted_and_dropped() -> None:
    scheduler = world(Step("a", f))
    scheduler.start(0.0)
    assert scheduler.handle(Failed(99, Failure("error", "X", "")), 1.0) == []
    assert scheduler.late == 1


def test_ticks_change_nothing_before_their_time() -> None:
    scheduler = world(Step("a", f, timeout="5s"))
    scheduler.start(0.0)
    assert scheduler.next_deadline() == 5.0
    assert scheduler.handle(Tick(), 4.9) == []
    assert [type(a) for a in scheduler.handle(Tick(), 5.0)] == [Kill]


def test_a_chain_of_a_hundred_thousand_members_ends_without_recursion() -> None:
    scheduler = world(*[Step(f"s{i}", f) for i in range(20_000)])
    actions = scheduler.start(0.0)
    count = 0
    while not scheduler.finished:
        key = submits(actions)[0].key
        count += 1
        actions = scheduler.handle(Failed(key, Failure("error", "X", "")) if count == 10 else Succeeded(key, {}), 1.0)
    assert count == 10


def test_a_block_that_runs_again_starts_skipped_and_cancelled_members_too() -> None:
    retry = {"retries": 1, "delay": "1s"}
    bad = [Act(raises=OSError("x")), Act()]
    order = started(Sequence("q", Step("bad", f), Step("next", f), retry=retry), script={"bad": bad})
    assert order == ["bad", "bad", "next"]
    graph = Graph("g", Step("bad", f), Step("next", f, depends_on="bad"), retry=retry, on_error="finish")
    assert started(graph, script={"bad": bad}) == ["bad", "bad", "next"]


def test_a_block_whose_clock_runs_out_in_its_pause_is_over() -> None:
    block = Sequence("q", Step("bad", f), retry={"retries": 3, "delay": "1m"}, timeout="10s")
    result, _ = run(block, script={"bad": Act(raises=OSError("x"))})
    assert result.metrics.wall_s == 10.0
    assert result.status == "failed"


def test_every_move_in_the_table_has_a_reason() -> None:
    assert all(TRANSITIONS.values())
