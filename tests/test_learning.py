"""What runs teach: lessons and their text, what several runs say together, and what a graph makes of it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from procflow import events as ev
from procflow.api import Map, Parallel, Pipeline, Step
from procflow.attempt import Failure, Succeeded, Usage
from procflow.compiler import compile_pipeline
from procflow.errors import PipelineError
from procflow.graph import TaskGraph, TaskUnit, walk
from procflow.learning.known import Course, Knowledge, Known, gather
from procflow.learning.lessons import (
    AT_ONCE,
    Lesson,
    Lessons,
    Once,
    Seen,
    columns_text,
    decoded,
    encoded,
    learn,
    median,
    quantile,
)  # fmt: skip
from procflow.learning.teaching import changed_tasks, expected, reserve, taught
from procflow.ref import Inline
from procflow.resuming.fingerprint import Fingerprint
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Kill, Measured, Submit
from procflow.storing import store_learned
from procflow.storing.history import History
from procflow.storing.learned import learned, made_of
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store
from procflow.storing.store_prints import Prints
from procflow.storing.store_seal import install

DEADLINE_S = 60
GB = 10**9


def f(*values: Any) -> int:
    return 1


@dataclass
class PastRun:
    """A run that taught something, without a journal."""

    lessons: Lessons
    workers: int = 2
    params: dict[str, Any] = field(default_factory=dict)


def seen(label: str = "a", wall_s: float = 1.0, role: str = "member", **more: Any) -> Seen:
    known: dict[str, Any] = {
        "executor": "processes", "item": "", "status": "succeeded", "cpu_s": wall_s, "outside_s": 0.001, "peak_bytes": 10**8
    }  # fmt: skip
    return Seen(label, role, wall_s=wall_s, **(known | more))


def knowledge(*attempts: Seen, **more: Any) -> Knowledge:
    return gather([PastRun(learn(attempts))], **more)


def graph_of(*steps: Any, **keys: Any) -> TaskGraph:
    return compile_pipeline(Pipeline("p", steps=steps, **keys))


def task(graph: TaskGraph, label: str) -> TaskUnit:
    return next(
        u for u in walk(graph.root) if isinstance(u, TaskUnit) and u.label == label and u.call.kind == "transform"
    )


# -- lessons of one run ------------------------------------------------------------------------------------------------

amounts = st.floats(0, 1e6).map(lambda x: round(x, 6))
lessons = st.builds(
    Lesson, st.integers(1, 9), st.integers(1, 9), amounts, amounts, amounts, st.lists(amounts).map(tuple),
    st.lists(st.integers(0, 2**50)).map(tuple), st.lists(st.tuples(st.integers(1, 9), amounts, amounts)).map(tuple),
    st.integers(0, 9), st.integers(0, 9), st.integers(0, 9),
)  # fmt: skip


single = st.lists(st.tuples(*[st.text(), *[st.integers(0, 2**50)] * 4]), min_size=1, max_size=9).map(
    lambda rows: Once._make(map(list, zip(*rows, strict=True)))
)  # type: ignore[arg-type]


@given(
    st.dictionaries(st.tuples(st.text(), st.sampled_from(["member", "batch"]), st.text()), lessons),
    st.dictionaries(st.text(), single, max_size=3),
    st.integers(0, 99),
    st.text(max_size=9),
)
def test_lessons_survive_their_text(
    found: dict[tuple[str, str, str], Lesson], once: dict[str, Once], cores: int, made_of: str
) -> None:
    texts = [
        columns_text(of, one.labels, *(",".join(map(str, column)) for column in one[1:])) for of, one in once.items()
    ]
    made = Lessons(found, 0.125, cores, once, made_of)
    assert decoded(encoded(Lessons(found, 0.125, cores, {}, made_of), texts)) == made
    assert len(list(made.each())) == len(made)


def test_lessons_of_version_1_are_read() -> None:
    rows = [
        ["a", "member", "processes", 1.5, 1.25, 0.001, 4096, "xx:1"],
        ["b", "gate", "inline", 0.5, 0.25, 0.0, 0, ""],
        ["m", "batch", "processes", 2, 30, 3.0, 2.0, 0.001, [0.1], [4096], [[10, 1.0, 0.5]], 0, 0, 1, "xx:2"],
    ]
    assert decoded(zlib.compress(json.dumps([0.125, 4, rows]).encode())) == Lessons(
        {
            ("a", "member", "processes"): Lesson(1, 1, 1.5, 1.25, 0.001, (1.5,), (4096,)),
            ("b", "gate", "inline"): Lesson(1, 1, 0.5, 0.25, 0.0, (0.5,)),
            ("m", "batch", "processes"): Lesson(2, 30, 3.0, 2.0, 0.001, (0.1,), (4096,), ((10, 1.0, 0.5),), 0, 0, 1),
        },
        0.125,
        4,
        prints={("a", "member"): "xx:1", ("b", "gate"): "", ("m", "batch"): "xx:2"},
    )


def test_lessons_of_version_2_are_read() -> None:
    rows = [["b", "gate", "inline", 1, 1, 0.5, 0.25, 0.0, [0.5], [], [], 0, 0, 0, "xx:2"]]
    parts = [["processes", ["a", "c"], [1500, 20], [1200, 10], [7, 8], [4096, 0], ["xx:1", "xx:3"]]]
    found = decoded(zlib.compress(json.dumps([0.125, 4, rows, parts]).encode()))
    assert found == Lessons(
        {("b", "gate", "inline"): Lesson(1, 1, 0.5, 0.25, 0.0, (0.5,))},
        0.125,
        4,
        {"processes": Once(["a", "c"], [1500, 20], [1200, 10], [7, 8], [4096, 0])},
        prints={("a", "member"): "xx:1", ("b", "gate"): "xx:2", ("c", "member"): "xx:3"},
    )


def test_times_that_are_no_numbers_teach_nothing_and_end_no_run() -> None:
    made = learn([seen("a", float("inf"), cpu_s=float("nan"), outside_s=float("nan")), seen("b", 2.0)])
    assert [(key[0], lesson.wall_s) for key, lesson in decoded(encoded(made)).each()] == [("a", 0.0), ("b", 2.0)]


def test_more_lessons_than_are_told_at_once_survive_their_text() -> None:
    made = learn(seen(f"step {i}", i / 8) for i in range(2 * AT_ONCE + 1))
    text = zlib.decompress(encoded(made))
    assert text.decode() == json.dumps(json.loads(text), separators=(",", ":"))
    assert list(decoded(encoded(made)).each()) == list(made.each())
    assert len(made) == 2 * AT_ONCE + 1


@pytest.mark.parametrize(
    "data",
    [
        b"", b"what?", zlib.compress(b"{"), zlib.compress(b"[1, 2]"), zlib.compress(b'[0, 1, [["a"]]]'),
        zlib.compress(b"[0, 1, 2]"), zlib.compress(b'[0, 1, [], [["inline", ["a"], [1], [1], [1], [1], []]]]'),
        zlib.compress(b'[0, 1, [], [["inline", ["a"]]]]'),
        zlib.compress(b'[null, 1, []]'), encoded(Lessons({}, 1.0))[:-3], zlib.compress(b"\xff"),
    ],
)  # fmt: skip
def test_what_is_no_text_of_lessons_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"lessons|Expecting|not enough|unpack"):
        decoded(data)


def test_text_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        decoded(zlib.compress(b" " * 10_000), most_bytes=1000)


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_a_value_that_enough_others_do_not_pass(values: list[float], share: float) -> None:
    values.sort()
    found = quantile(values, share)
    assert found in values
    assert sum(v <= found for v in values) >= share * len(values) - 1e-6
    assert min(values) <= median(values) <= max(values)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.001, 10)), min_size=1, max_size=400))
def test_a_course_in_few_spans_has_all_items_and_seconds(batches: list[tuple[int, float]]) -> None:
    at, attempts = 0, []
    for count, wall_s in batches:
        attempts.append(seen(role="batch", wall_s=wall_s, item=f"{at}-{at + count - 1}" if count > 1 else str(at)))
        at += count
    made = learn(attempts).by_key["a", "batch", "processes"]
    assert (made.items, made.attempts) == (at, len(batches))
    if len(batches) > 1:
        assert len(made.spans) <= 2 * 64 + 1
        assert sum(count for count, _, _ in made.spans) == at
        assert sum(wall for _, wall, _ in made.spans) == pytest.approx(sum(wall for _, wall in batches))


def test_an_item_that_took_long_stays_by_itself_among_many_short_ones() -> None:
    attempts = [seen(role="batch", wall_s=5.0 if i == 500 else 0.001, item=str(i)) for i in range(1000)]
    made = learn(attempts).by_key["a", "batch", "processes"]
    assert (1, 5.0, 5.0) in made.spans
    assert len(made.spans) < 20


def test_peaks_of_attempts_that_ran_out_of_memory_count_and_their_times_do_not() -> None:
    made = learn([seen(wall_s=1.0), seen(wall_s=50.0, status="lost", peak_bytes=9 * GB)])
    assert made.by_key["a", "member", "processes"].walls == (1.0,)
    assert made.by_key["a", "member", "processes"].peaks == (10**8, 9 * GB)


def test_what_passes_while_a_worker_starts_is_no_overhead_of_the_step() -> None:
    made = learn([seen(outside_s=0.3), seen(outside_s=0.002), seen(outside_s=0.004)])
    assert made.start_s == 0.3
    assert made.by_key["a", "member", "processes"].overhead_s == pytest.approx(0.003)


# -- several runs together ---------------------------------------------------------------------------------------------


def test_one_odd_run_does_not_decide() -> None:
    runs = [PastRun(learn([seen(wall_s=w, peak_bytes=int(w * 100))])) for w in (2.0, 900.0, 2.2, 1.8, 2.0)]
    known = gather(runs)("a", "member")
    assert known is not None
    assert (known.runs, known.attempts, known.mean_s, known.median_s) == (5, 5, 2.0, 2.0)
    assert (known.high_s, known.peak_bytes, known.most_bytes) == (900.0, 90_000, 90_000)


def test_runs_with_the_same_parameters_and_tasks_made_of_the_same_are_preferred() -> None:
    small, large = {"limit": 10}, {"limit": 1000}
    runs = [
        PastRun(learn([seen(wall_s=1.0)]), params=small),
        PastRun(learn([seen(wall_s=9.0)]), params=large),
        PastRun(learn([seen(wall_s=7.0)]), params=large),
    ]
    as_second: list[set[tuple[str, str]]] = [set(), {("a", "member")}, set()]
    of = lambda **more: gather(runs, **more).by_place["a", "member"]  # noqa: E731
    assert of(params=small).mean_s == 1.0
    assert (of(params=large).mean_s, of(params=large).runs) == (8.0, 2)
    assert (of(params=large, same=as_second).mean_s, of(params=large, same=as_second).same) == (9.0, True)
    assert (of(params={"limit": 3}).runs, of(params={"limit": 3}).same) == (3, False)


names = st.sampled_from("abcde")
few_columns = st.dictionaries(names, st.tuples(*[st.integers(0, 9)] * 4)).map(
    lambda rows: Once(list(rows), *(list(column) for column in zip(*rows.values(), strict=True))) if rows else Once()
)
past_runs = st.builds(
    PastRun,
    st.builds(
        Lessons,
        st.dictionaries(
            st.tuples(names, st.sampled_from(["member", "gate"]), st.sampled_from(["processes", "threads"])),
            st.builds(
                Lesson, st.just(1), st.just(1), amounts, amounts, amounts, st.just((2.0,)), st.just((3,)), st.just(())
            ),
            max_size=2,
        ),
        st.just(0.0),
        st.integers(1, 3),
        st.dictionaries(st.sampled_from(["processes", "threads"]), few_columns),
    ),
    st.integers(1, 3),
    st.sampled_from([{}, {"n": 1}]),
)


@given(
    st.lists(past_runs, max_size=4), st.lists(st.sets(st.tuples(names, st.just("member"))), max_size=4),
    st.dictionaries(st.tuples(names, st.just("member")), st.sampled_from(["processes", "threads"])),
)  # fmt: skip
def test_steps_that_ran_once_teach_as_columns_what_they_teach_one_by_one(
    runs: list[PastRun], same: list[set[tuple[str, str]]], executors: dict[tuple[str, str], str]
) -> None:
    for run in runs:
        for executor, once in run.lessons.once.items():
            # What has a lesson of its own is in no column.
            assume(not {(label, "member", executor) for label in once.labels} & run.lessons.by_key.keys())
    one_by_one = [replace(run, lessons=replace(run.lessons, by_key=dict(run.lessons.each()), once={})) for run in runs]
    known = gather(runs, params={}, same=same, executors=executors)
    assert known == gather(one_by_one, params={}, same=same, executors=executors)


def test_what_ran_on_the_same_executor_is_preferred() -> None:
    runs = [PastRun(learn([seen(wall_s=9.0, executor="threads"), seen(wall_s=1.0)]))]
    assert gather(runs, executors={("a", "member"): "threads"}).by_place["a", "member"].mean_s == 9.0
    assert gather(runs, executors={("a", "member"): "inline"}).by_place["a", "member"].runs == 2


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.001, 10)), min_size=1, max_size=20), st.data())
def test_the_seconds_of_parts_of_a_map_add_up_to_those_of_the_whole(
    spans: list[tuple[int, float]], data: st.DataObject
) -> None:
    course = Course(tuple((count, wall, wall / 2) for count, wall in spans))
    size = data.draw(st.integers(1, 300))
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size)))})
    parts = [course.between(a, b, size) for a, b in pairwise(cuts)]
    mean = sum(wall for _, wall in spans) / sum(count for count, _ in spans)
    assert sum(wall for wall, _ in parts) == pytest.approx(mean * size)
    assert sum(cpu for _, cpu in parts) == pytest.approx(mean * size / 2)
    assert all(wall >= -1e-9 for wall, _ in parts)


def known_of(workers: int, cores: int, wall_s: float, cpu_s: float) -> Known:
    lessons = learn([seen(wall_s=wall_s, cpu_s=cpu_s)], cores=cores)
    return gather([PastRun(lessons, workers)]).by_place["a", "member"]


def test_waiting_for_a_core_shrinks_with_fewer_workers_and_other_waiting_does_not() -> None:
    busy, waits = known_of(2, 2, 1.2, 1.0), known_of(2, 2, 1.2, 0.1)
    assert [busy.seconds(1.2, 1.0, workers) for workers in (1, 2, 64)] == pytest.approx([1.0, 1.2, 1.2])
    assert [waits.seconds(1.2, 0.1, workers) for workers in (1, 2, 64)] == [1.2, 1.2, 1.2]
    crowded = known_of(8, 2, 4.0, 1.0)
    assert [crowded.seconds(4.0, 1.0, workers) for workers in (1, 8)] == [1.0, 1.0]
    assert crowded.seconds(4.0, 1.0, 8, crowd=4.0) == 4.0


# -- what a graph makes of it ------------------------------------------------------------------------------------------


@given(st.integers(1, 2**40), st.integers(1, 2**40), st.integers(1, 512))
def test_more_is_reserved_than_past_peaks_and_never_more_than_the_budget(peak: int, budget: int, slots: int) -> None:
    amount = reserve(peak, budget, slots)
    assert 1 <= amount <= budget
    assert amount == budget or amount >= peak
    assert amount <= max(1.5 * peak + 1, budget / 50 + 2)


@given(st.integers(10**6, 2**40), st.integers(1, 64))
def test_few_different_amounts_are_reserved_so_that_the_choice_of_the_next_task_stays_quick(
    budget: int, slots: int
) -> None:
    amounts = {reserve(int(budget * i / 3000), budget, slots) for i in range(1, 3300)}
    assert len(amounts) < 100


def test_ranks_are_longest_paths_in_learned_seconds() -> None:
    graph = graph_of(Parallel("p", Step("short", f), Step("long", f), Step("new", f)), Step("end", f))
    graph = taught(
        graph, knowledge(seen("p/short", 1.0), seen("p/long", 9.0), seen("end", 5.0)), slots=2, memory_bytes=None
    ).graph
    assert [m.rank for m in graph.root.members[0].members] == [6.0, 14.0, 10.0]  # type: ignore[attr-defined]


def test_a_map_weighs_what_all_workers_need_for_it_and_its_items_what_one_takes() -> None:
    items = [seen("m", 1.0, "batch", item=str(i)) for i in range(3)] + [seen("m", 0.0, "expand", size=12)]
    graph = graph_of(Step("rows", f), Map("m", f, items="rows"), Step("end", f))
    made: Any = taught(graph, knowledge(*items, seen("end", 2.0)), slots=4, memory_bytes=None).graph.root.members[1]
    assert (made.rank, made.body.rank) == (5.0, 3.0)
    assert expected(graph, knowledge(*items), 0).rounds == {}


def test_declared_memory_wins_over_learned_and_threads_learn_none() -> None:
    graph = graph_of(
        Step("a", f), Step("declared", f, memory="1GB"), Step("thread", f, executor="threads"), Step("new", f)
    )
    past = [seen(label, peak_bytes=2 * GB) for label in ("a", "declared", "thread")]
    graph = taught(graph, knowledge(*past), slots=2, memory_bytes=8 * GB).graph
    found = {label: task(graph, label).learned_bytes for label in ("a", "declared", "thread", "new")}
    assert found == {"a": found["a"], "declared": None, "thread": None, "new": None}
    assert 2 * GB < (found["a"] or 0) < 2.6 * GB


def starts(actions: list[Any]) -> list[str]:
    return [a.unit.label for a in actions if isinstance(a, Submit)]


def test_learned_memory_is_reserved_and_is_no_limit() -> None:
    graph = graph_of(Parallel("p", Step("a", f), Step("b", f)))
    known = knowledge(seen("p/a", peak_bytes=5 * GB), seen("p/b", peak_bytes=5 * GB))
    graph = taught(graph, known, slots=2, memory_bytes=8 * GB).graph
    scheduler = Scheduler(graph, slots={"processes": 2}, memory_bytes=8 * GB)
    assert starts(scheduler.start(0.0)) == ["p/a"]
    (key,) = scheduler.running
    assert not [a for a in scheduler.handle(Measured({key: 7 * GB}, 7 * GB), 1.0) if isinstance(a, Kill)]
    assert starts(scheduler.handle(Succeeded(key, {"a": Inline(b"")}), 2.0)) == ["p/b"]


def test_a_step_that_held_more_than_the_budget_runs_alone_and_that_is_said() -> None:
    graph = graph_of(Parallel("p", Step("a", f), Step("huge", f), Step("b", f)))
    known = knowledge(seen("p/a"), seen("p/huge", peak_bytes=9 * GB), seen("p/b"))
    graph, warnings = taught(graph, known, slots=3, memory_bytes=4 * GB)
    assert warnings == (
        "p/huge held 8.4 GiB in earlier runs, and the run may use 3.7 GiB: it runs alone, and is stopped where it needs more",
    )
    scheduler = Scheduler(graph, slots={"processes": 3}, memory_bytes=4 * GB)
    order = [starts(scheduler.start(0.0))]
    while scheduler.running:
        key = next(iter(scheduler.running))
        name = scheduler.running[key].unit.name
        order.append(starts(scheduler.handle(Succeeded(key, {name: Inline(b"")}), 1.0)))
    assert scheduler.status == "succeeded"
    assert ["p/huge"] in order
    assert not [several for several in order if "p/huge" in several and len(several) > 1]


# -- timeouts ----------------------------------------------------------------------------------------------------------


def test_a_relative_timeout_is_a_multiple_of_the_learned_median() -> None:
    graph = graph_of(Step("a", f, timeout="300%"), Step("quick", f, timeout="150%"), Step("new", f, timeout="200%"))
    known = knowledge(seen("a", 2.0), seen("a", 2.0), seen("a", 9.0), seen("quick", 0.01))
    graph, warnings = taught(graph, known, slots=2, memory_bytes=None)
    assert [task(graph, label).timeout_s for label in ("a", "quick", "new")] == [6.0, 1.0, None]
    assert warnings == ("no history yet, so no timeout: new (a share of the learned median)",)


def test_a_map_with_a_function_has_the_timeout_of_an_item_and_defaults_are_inherited() -> None:
    graph = graph_of(Map("m", f, items=[1, 2], timeout="200%"), Step("a", f), defaults={"timeout": "400%"})
    known = knowledge(seen("m", 4.0, "batch", item="0-1"), seen("a", 1.0))
    graph = taught(graph, known, slots=2, memory_bytes=None).graph
    assert (task(graph, "m").timeout_s, task(graph, "a").timeout_s) == (4.0, 4.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Step("a", f, timeout="50%"), "must be from 100% to"),
        (lambda: Step("a", f, timeout="1e9%"), "not a duration"),
        (lambda: Step("a", f, idle_timeout="300%"), "not a duration"),
        (lambda: Parallel("p", Step("a", f), timeout="300%"), "is for single steps"),
        (lambda: Map("m", steps=[Step("a", f)], items=[1], timeout="300%"), "is for single steps"),
        (lambda: Pipeline("p", steps=[Step("a", f)], limits={"timeout": "300%"}), "not a duration"),
    ],
)
def test_a_relative_timeout_is_refused_where_it_makes_no_sense(make: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        make()


# -- the journal -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder.open(tmp_path / ".procflow")


def attempt(key: int, label: str = "a", wall_s: float = 2.0, item: str = "", **more: Any) -> ev.Event:
    known: dict[str, Any] = {
        "status": "succeeded", "started_at": 1.0, "usage": Usage(wall_s, 1.0, 1000), "executor": "processes"
    } | more  # fmt: skip
    return ev.AttemptFinished(1.001 + wall_s, key, label, label, item, 1, **known)


def run(folder: StateFolder, run_id: str, *events: ev.Event, **record: Any) -> None:
    with Store.open(folder) as store:
        store.begin(RunRecord(run_id, **({"pipeline": "p"} | record)))
        for event in (*events, ev.RunFinished(9.0, run_id, "succeeded", 0, 0, 9.0, 20.0)):
            store.record(event)


def change(folder: StateFolder, sql: str) -> None:
    with closing(sqlite3.connect(folder.db)) as db:
        db.execute(sql)
        db.commit()


def known_a(folder: StateFolder, graph: TaskGraph | None = None) -> tuple[float | None, tuple[str, ...]]:
    found = learned(folder, graph or graph_of(Step("a", f)), None)
    known = found("a", "member")
    return (known.mean_s if known is not None else None), found.unusable


def test_a_run_that_ended_is_learned_from_and_one_of_another_file_is_not(folder: StateFolder) -> None:
    assert known_a(folder) == (None, ())
    run(folder, "r1", attempt(1), lock="one")
    run(folder, "r2", attempt(1, wall_s=8.0), lock="two")
    graph = graph_of(Step("a", f))
    assert [learned(folder, graph, lock).by_place["a", "member"].mean_s for lock in ("one", "two")] == [2.0, 8.0]
    assert known_a(folder)[0] == 5.0


def test_only_the_last_runs_are_read(folder: StateFolder) -> None:
    for i in range(25):
        run(folder, f"r{i}", attempt(1, wall_s=100.0 if i < 15 else 1.0))
    with History.open(folder) as past:
        assert [r.run_id for r in past.learned("p").runs] == [f"r{i}" for i in range(24, 14, -1)]
    assert known_a(folder)[0] == 1.0


def test_lessons_whose_bits_were_flipped_are_not_used_and_told(folder: StateFolder) -> None:
    run(folder, "r1", attempt(1))
    run(folder, "r2", attempt(1, wall_s=8.0))
    change(folder, "UPDATE learned SET data = zeroblob(40) WHERE run_id = 'r2'")
    mean_s, unusable = known_a(folder)
    assert mean_s == 2.0
    assert len(unusable) == 1
    assert "what run r2 taught is not used: it is damaged (the checksum is wrong)" in unusable[0]


def test_a_damaged_row_of_a_run_is_not_used_and_told(folder: StateFolder) -> None:
    run(folder, "r1", attempt(1))
    run(folder, "r2", attempt(1, wall_s=8.0))
    change(folder, "UPDATE runs SET workers = 77 WHERE run_id = 'r2'")
    mean_s, unusable = known_a(folder)
    assert mean_s == 2.0
    assert "run r2 is not used: its row is damaged" in unusable[0]


def test_lessons_of_another_version_are_not_used_and_told(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, "r1", attempt(1))
    monkeypatch.setattr(store_learned, "VERSION", 99)
    run(folder, "r2", attempt(1, wall_s=8.0))
    monkeypatch.undo()
    mean_s, unusable = known_a(folder)
    assert mean_s == 2.0
    assert "written by another version of procflow" in unusable[0]


def test_lessons_that_an_earlier_procflow_wrote_are_used(folder: StateFolder) -> None:
    run(folder, "r1", attempt(1, wall_s=8.0))
    row = (1, "r1", 1, zlib.compress(b'[0.0,2,[["a","member","processes",3.0,1.0,0.001,1000,""]]]'))
    with closing(sqlite3.connect(folder.db)) as db:
        db.execute("INSERT OR REPLACE INTO learned VALUES (?,?,?,?,?)", (*row, store_learned.seal(*row)))
        db.commit()
    assert known_a(folder) == (3.0, ())


def test_a_journal_from_before_lessons_is_read_attempt_by_attempt(folder: StateFolder) -> None:
    run(folder, "r1", attempt(1, wall_s=3.0))
    change(folder, "DROP TABLE learned")
    assert known_a(folder) == (3.0, ())
    change(folder, "UPDATE step_executions SET wall_s = 50")
    assert known_a(folder) == (None, ())
    run(folder, "r2", attempt(1, wall_s=4.0))
    assert known_a(folder) == (4.0, ())


@pytest.mark.parametrize(
    "again",
    [
        [attempt(9, "b", 7.0)],
        [attempt(9, "b", 7.0, status="skipped")],
        [attempt(9, "b", 7.0, failure=Failure("oom", "MemoryError", ""), status="lost")],
        [attempt(9, "b", 7.0, role="gate")],
        [attempt(9, "b", 7.0, item="3")],
        [attempt(9, "b", 7.0, executor="threads")],
        [attempt(9, "b", 7.0, usage=Usage(float("inf"), float("nan"), 1))],
        [attempt(9, "b", 7.0, started_at=-1.0)],
        [],
    ],
)
def test_what_is_kept_as_columns_teaches_what_all_attempts_teach(folder: StateFolder, again: list[ev.Event]) -> None:
    run(folder, "r1", attempt(1, "a", 1.5), attempt(2, "b", 2.5), attempt(3, "c", 3.5), *again)
    with closing(sqlite3.connect(folder.db)) as db:
        install(db)
        (data,) = db.execute("SELECT data FROM learned").fetchone()
        one_by_one = store_learned._learned(db, 1, 0, every=True)
    written = decoded(data)
    assert written.start_s == pytest.approx(one_by_one.start_s)
    assert dict(written.each()).keys() == dict(one_by_one.each()).keys()
    for key, lesson in written.each():
        one = one_by_one.by_key[key]
        assert lesson.spans == one.spans
        for name in set(Lesson._fields) - {"spans"}:
            assert getattr(lesson, name) == pytest.approx(getattr(one, name), abs=1e-6)
    twice = any(e.role == "member" and e.executor == "processes" for e in again)
    assert bool(written.once) != twice


def test_of_an_earlier_session_what_is_damaged_is_left_out(folder: StateFolder) -> None:
    run(folder, "r1", attempt(1, "a", 5.0), attempt(2, "b", 6.0))
    change(folder, "UPDATE step_executions SET wall_s = 50 WHERE label = 'b'")
    run(folder, "r1", attempt(1, "c", 7.0))
    with History.open(folder) as past:
        (taught_by_it,) = past.learned("p").runs
    assert dict(zip(*taught_by_it.lessons.once["processes"][:2], strict=True)) == {"a": 5_000_000, "c": 7_000_000}
    assert not taught_by_it.lessons.by_key


def test_what_tasks_were_made_of_is_read_where_it_is_not_the_same_as_now(folder: StateFolder) -> None:
    prints = {("a", "member"): Fingerprint("xx:1"), ("b", "member"): Fingerprint("xx:2")}
    changed = {**prints, ("b", "member"): Fingerprint("xx:3")}
    told = Prints.of(prints)
    run(folder, "r1", attempt(1, "a"), attempt(2, "b"), prints=told, made_of=made_of(prints))
    graph = graph_of(Step("a", f), Step("b", f))
    for now, expected_same in ((prints, (True, True)), (changed, (True, False)), ({}, (False, False))):
        found = learned(folder, graph, None, now)
        assert tuple(found.by_place[label, "member"].same for label in "ab") == expected_same
    assert made_of(prints) != made_of(changed) != made_of({})


def test_a_history_that_is_no_database_is_told_and_teaches_nothing(folder: StateFolder) -> None:
    folder.db.write_bytes(b"no database at all, but long enough to be looked at" * 99)
    mean_s, unusable = known_a(folder)
    assert mean_s is None
    assert len(unusable) == 1


KILLED = """
import sys
from procflow.storing.state_folder import StateFolder
from test_learning import RunRecord, Store, attempt
store = Store.open(StateFolder.open(sys.argv[1]))
store.begin(RunRecord("r1", "p", lock="p.yaml"))
store.record(attempt(1, "first", 5.0))
store.commit()
print("running", flush=True)
sys.stdin.read()
"""


def test_a_run_that_was_killed_and_resumed_teaches_all_of_it(folder: StateFolder) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=DEADLINE_S)
    run(folder, "r1", attempt(1, "second", 7.0), lock="p.yaml")
    found = learned(folder, graph_of(Step("first", f), Step("second", f)), "p.yaml")
    assert {label: known.mean_s for (label, _), known in found.by_place.items()} == {"first": 5.0, "second": 7.0}


def test_the_item_count_and_bytes_of_a_map_are_learned(folder: StateFolder) -> None:
    page = Inline(b"12345")
    expand = attempt(1, "m", role="expand", pages=((page, 30), (page, 12)))
    run(folder, "r1", expand, attempt(2, "m", 4.0, role="batch", item="0-41"))
    found = learned(folder, graph_of(Step("rows", f), Map("m", f, items="rows")), None)
    assert (found.by_place["m", "expand"].size, found.by_place["m", "expand"].size_bytes) == (42, 10)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 300), st.integers(0, 255))
def test_no_byte_of_the_lessons_can_change_unseen(at: int, byte: int) -> None:
    data = bytearray(encoded(learn([seen(), seen("b", 3.0)])))
    at %= len(data)
    was, data[at] = data[at], byte
    row = (1, "r1", 1, bytes(data))
    seals = store_learned.seal(*row) == store_learned.seal(*row[:3], encoded(learn([seen(), seen("b", 3.0)])))
    assert seals == (was == byte)


def test_a_changed_tree_has_every_task_changed_once() -> None:
    graph = graph_of(Parallel("p", Map("m", f, items=[1], merge="combine_outputs"), Step("a", f), when="1 > 0"))
    calls: list[str] = []

    def note(unit: TaskUnit) -> TaskUnit:
        calls.append(f"{unit.label}:{unit.call.kind}")
        return unit

    assert changed_tasks(graph.root, note) == graph.root
    assert sorted(calls) == ["p/a:transform", "p/m:expand", "p/m:merge", "p/m:transform", "p:gate"]
