"""Which results of a journal still hold, decided from rows alone; and what a scheduler makes of them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from procflow import Map, Merge, Parallel, Pipeline, Step
from procflow import events as ev
from procflow.attempt import Failure, Usage
from procflow.compiler import compile_pipeline
from procflow.errors import StoreError
from procflow.ref import Element, Inline, ListOf, MappingOf, Ref, Stored
from procflow.resuming.fingerprint import Fingerprint, fingerprints
from procflow.resuming.needs import Key, needs_of
from procflow.scheduler import Scheduler
from procflow.scheduling.kept import Kept, KeptTask
from procflow.storing.journal_kept import JournalKept
from procflow.storing.journal_results import Results
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store
from procflow.storing.store_prints import Prints

BAD = Failure("error", "ValueError", "bad")


def ref(value: Any) -> Inline:
    return Inline(pickle.dumps(value, 5))


def opened(found: Ref) -> Any:
    from procflow.values.objects import unpack

    return unpack(found)


PIPELINE = Pipeline("p", steps=[
    Step("a", "os:getcwd"),
    Step("b", "os:fspath", inputs=["a"]),
    Step("c", "os:fspath", inputs=["b"]),
    Map("m", "os:fspath", items="a", output="rows"),
    Map("n", Step("x", "os:fspath", inputs=["item"]), Step("y", "os:fspath", inputs=["x"]), items="a", output="more"),
    Step("end", "os:fspath", inputs={"rows": "rows", "more": "more"}),
])  # fmt: skip


class Journal:
    """A state folder and the run ``r`` in it, session after session."""

    def __init__(self, path: Path, pipeline: Pipeline = PIPELINE) -> None:
        self.folder = StateFolder.open(path)
        self.graph = compile_pipeline(pipeline)
        self.needs = needs_of(self.graph)
        self.prints: dict[Key, Fingerprint] = dict(fingerprints(self.needs).by_key)
        self.paths = {key: need.unit.path for key, need in self.needs.items()}
        self._key = 0

    def change(self, *keys: Key) -> None:
        """From now on these tasks are made from something else."""
        for key in keys:
            old = self.prints[key]
            text = json.dumps({**old.parts, "code": "other"})
            self.prints[key] = replace(old, digest=old.digest + "'", text=text)

    def done(self, label: str, item: str = "", role: Any = "member", **more: Any) -> list[ev.Event]:
        """An attempt that ended well (or as ``more`` says)."""
        self._key += 1
        path = self.paths[label, role]
        known: dict[str, Any] = {"status": "succeeded", "role": role, "outputs": {label: ref(f"{label}{item}")}} | more
        return [
            ev.AttemptStarted(1.0, self._key, path, label, item, 1, "inline", role),
            ev.AttemptFinished(2.0, self._key, path, label, item, 1, "inline", started_at=1.0, usage=Usage(1.0), **known),
        ]  # fmt: skip

    def session(self, *happened: list[ev.Event], end: str | None = None) -> None:
        """One session with these events; without ``end`` it is cut off."""
        with self.kept() as kept, Store.open(self.folder) as store:
            prints = kept.prints() if kept is not None else Prints.of(self.prints)
            store.begin(RunRecord("r", "p", lock="p", prints=prints))
            for event in (event for events in happened for event in events):
                store.record(event)
            if end is not None:
                store.record(ev.RunFinished(9.0, "r", end, 0, 0, 9.0, 9.0))  # type: ignore[arg-type]

    @contextmanager
    def kept(self, **options: Any) -> Iterator[JournalKept | None]:
        try:
            results = Results.read(self.folder, "r")
        except StoreError:
            yield None
            return
        try:
            yield JournalKept(self.needs, self.prints, results, **{"same_run": True, **options})
        finally:
            results.close()

    def holds(self, label: str, item: str = "", role: Any = "member") -> bool:
        with self.kept() as kept:
            assert kept is not None
            return kept.task(self.paths[label, role], item, role) is not None


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / ".procflow")


def pages(count: int) -> dict[str, Any]:
    return {"outputs": {}, "pages": ((ref(list(range(count))), count),)}


def chunk(*indices: int) -> dict[str, Any]:
    return {"outputs": {"": ref([i * 10 for i in indices])}, "indices": tuple(indices)}


def test_what_ended_well_is_kept_with_all_that_it_published(journal: Journal) -> None:
    journal.session(
        journal.done("a", outputs={"a": ref("A"), "z": ListOf((ref(1), ref(2)))}),
        journal.done("m", role="expand", **pages(3)),
    )
    with journal.kept() as kept:
        assert kept is not None
        found = kept.task("0", "", "member")
        assert found is not None
        assert {name: opened(value) for name, value in found.outputs.items()} == {"a": "A", "z": [1, 2]}
        expand = kept.task(journal.paths["m", "expand"], "", "expand")
        assert expand is not None
        assert [(opened(page), count) for page, count in expand.pages] == [([0, 1, 2], 3)]
        assert kept.task("1", "", "member") is None
        assert kept.task("no such path", "", "member") is None


@pytest.mark.parametrize("status", ["failed", "lost", "cancelled"])
def test_what_ended_badly_is_not_kept(journal: Journal, status: str) -> None:
    journal.session(journal.done("a", status=status, failure=BAD, outputs={}))
    assert not journal.holds("a")


def test_what_its_condition_left_out_is_kept_as_left_out(journal: Journal) -> None:
    journal.session(journal.done("a", status="skipped", outputs={}))
    with journal.kept() as kept:
        assert kept is not None
        assert kept.task("0", "", "member") == KeptTask(skipped=True)


def test_what_was_running_at_the_kill_is_not_kept_and_its_attempt_counts(journal: Journal) -> None:
    journal.session(journal.done("a")[:1])
    assert not journal.holds("a")
    with journal.kept() as kept:
        assert kept is not None
        assert kept.attempts("0", "") == 1
        assert kept.attempts("1", "") == 0
    with journal.kept(same_run=False) as kept:
        assert kept is not None
        assert kept.attempts("0", "") == 0


def test_a_changed_step_and_all_that_builds_on_it_do_not_hold(journal: Journal) -> None:
    journal.session(
        journal.done("a"), journal.done("b"), journal.done("c"), journal.done("m", role="expand", **pages(1))
    )
    journal.change(("b", "member"))
    assert [journal.holds(label) for label in "abc"] == [True, False, False]
    assert journal.holds("m", role="expand")


def test_a_change_outlives_the_kill_of_the_session_that_saw_it(journal: Journal) -> None:
    journal.session(journal.done("a"), journal.done("b"), journal.done("c"))
    journal.change(("b", "member"))
    journal.session()
    # What it is made from is known by now; that the old result was made from something else must be, too.
    assert [journal.holds(label) for label in "abc"] == [True, False, False]
    journal.session(journal.done("b"))
    assert [journal.holds(label) for label in "abc"] == [True, True, False]
    journal.session(journal.done("c"))
    assert [journal.holds(label) for label in "abc"] == [True, True, True]


def test_a_reader_from_before_its_value_was_made_anew_does_not_hold(journal: Journal) -> None:
    journal.session(journal.done("a"), journal.done("b"), journal.done("c"))
    # Whatever the reason for which it ran again.
    journal.session(journal.done("b"))
    assert [journal.holds(label) for label in "abc"] == [True, True, False]


def test_chunks_of_cut_off_batches_are_kept_item_by_item(journal: Journal) -> None:
    running = journal.done("m", "2-5", "batch")[0]
    done = ev.ItemsDone(1.5, journal._key, journal.paths["m", "batch"], "m", "", (2, 3), ref([20, 30]))
    journal.session(
        journal.done("a"), journal.done("m", role="expand", **pages(8)),
        journal.done("m", "0-1", "batch", **chunk(0, 1)), [running, done],
    )  # fmt: skip
    with journal.kept() as kept:
        assert kept is not None
        found = [(tuple(indices), opened(values)) for indices, values in kept.items(journal.paths["m", "batch"], "")]
        assert found == [((0, 1), [0, 10]), ((2, 3), [20, 30])]
        assert kept.verdicts()["m", "batch"].done == 4
        assert kept.verdicts()["m", "batch"].total == 8


def test_items_that_were_recorded_twice_count_once(journal: Journal) -> None:
    journal.session(
        journal.done("a"), journal.done("m", role="expand", **pages(4)),
        journal.done("m", "0-1", "batch", **chunk(0, 1)), journal.done("m", "1-2", "batch", **chunk(1, 2)),
    )  # fmt: skip
    with journal.kept() as kept:
        assert kept is not None
        found = [(tuple(indices), opened(values)) for indices, values in kept.items(journal.paths["m", "batch"], "")]
        assert found == [((0, 1), [0, 10]), ((2,), [20])]


def test_items_do_not_hold_once_the_list_of_items_was_made_anew(journal: Journal) -> None:
    journal.session(
        journal.done("a"), journal.done("m", role="expand", **pages(2)), journal.done("m", "0", "batch", **chunk(0))
    )
    journal.session(journal.done("m", role="expand", **pages(2)))
    with journal.kept() as kept:
        assert kept is not None
        assert list(kept.items(journal.paths["m", "batch"], "")) == []


def test_items_of_a_map_of_steps_do_not_depend_on_each_other(journal: Journal) -> None:
    expand = journal.done("n", role="expand", **pages(2))
    journal.session(
        journal.done("a"), expand, journal.done("n/x", "0"), journal.done("n/x", "1"), journal.done("n/y", "0"),
        journal.done("n/y", "1"),
    )  # fmt: skip
    journal.session(journal.done("n/x", "1"))
    assert journal.holds("n/y", "0")
    assert not journal.holds("n/y", "1")


def test_readers_of_a_map_depend_on_all_its_items(journal: Journal) -> None:
    everything = [
        journal.done("a"), journal.done("m", role="expand", **pages(1)), journal.done("m", "0", "batch", **chunk(0)),
        journal.done("n", role="expand", **pages(2)), *(journal.done(f"n/{s}", i) for i in "01" for s in "xy"),
        journal.done("end"),
    ]  # fmt: skip
    journal.session(*everything)
    assert journal.holds("end")
    journal.session(journal.done("n/y", "1"))
    assert not journal.holds("end")


def test_a_step_that_moved_to_another_place_keeps_its_result(journal: Journal, tmp_path: Path) -> None:
    journal.session(journal.done("a"))
    moved = Journal(tmp_path / ".procflow", Pipeline("p", steps=[Step("new", "os:getcwd"), *PIPELINE.steps]))
    assert moved.paths["a", "member"] == "1"
    assert moved.holds("a")
    with moved.kept() as kept:
        assert kept is not None
        assert kept.verdicts()["new", "member"].why == "is new"
        assert kept.verdicts()["a", "member"].kept


def test_verdicts_name_the_cause(journal: Journal) -> None:
    journal.session(journal.done("a"), journal.done("b", status="failed", failure=BAD, outputs={}))
    journal.change(("c", "member"))
    with journal.kept() as kept:
        assert kept is not None
        why = {key[0]: verdict.why for key, verdict in kept.verdicts().items() if key[1] == "member"}
    assert (why["a"], why["b"], why["c"]) == ("", "failed", "code changed")
    assert why["end"] == "reads 'rows', a value of m, which runs again"


def test_the_time_of_cut_off_sessions_counts_and_what_failed_begins_anew(journal: Journal) -> None:
    def consumed() -> tuple[float, float]:
        with journal.kept() as kept:
            assert kept is not None
            return kept.consumed_s("", ""), kept.consumed_s(journal.paths["n", "block"], "")

    opening: list[ev.Event] = [ev.BlockStarted(1.5, journal.paths["n", "block"], "n", "", "map", 2, "all")]
    journal.session(journal.done("a"), opening)
    assert consumed() == (2.0, 0.5)
    journal.session(journal.done("b"), opening, end="cancelled")
    assert consumed() == (4.0, 1.0)
    journal.session(opening, end="failed")
    assert consumed()[0] == 0.0
    journal.session(journal.done("c"))
    assert consumed()[0] == 2.0


def test_a_new_run_takes_over_what_holds_and_is_whole_by_itself(journal: Journal, tmp_path: Path) -> None:
    journal.session(
        journal.done("a"), journal.done("m", role="expand", **pages(2)), journal.done("m", "0", "batch", **chunk(0)),
        journal.done("b"), journal.done("b"), journal.done("c", status="failed", failure=BAD, outputs={}),
    )  # fmt: skip
    with journal.kept(same_run=False) as old, Store.open(journal.folder) as store:
        assert old is not None
        store.begin(RunRecord("s", "p", earlier="r", prints=old.prints(), taken=old.taken()))
    results = Results.read(journal.folder, "s")
    new = JournalKept(journal.needs, journal.prints, results, same_run=True)
    try:
        task = new.task("0", "", "member")
        assert task is not None
        assert opened(task.outputs["a"]) == "a"
        assert new.task("1", "", "member") is not None
        assert [tuple(indices) for indices, _ in new.items(journal.paths["m", "batch"], "")] == [(0,)]
        assert new.task("2", "", "member") is None
        assert new.attempts("0", "") == 0
    finally:
        results.close()


def test_a_result_whose_file_is_gone_does_not_hold(journal: Journal, tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_bytes(b"1234")
    stored = MappingOf((("k", Stored(str(file), (4,), xxhash.xxh3_128_digest(b"1234"))),))
    journal.session(journal.done("a", outputs={"a": stored}))
    assert journal.holds("a")
    file.unlink()
    assert not journal.holds("a")


def test_a_value_that_was_freed_after_its_last_reader_is_not_missed(journal: Journal, tmp_path: Path) -> None:
    gone = {"b": Stored(str(tmp_path / "gone"), (4,), b"digest")}
    journal.session(journal.done("a"), journal.done("b", outputs=gone))
    assert not journal.holds("b")
    journal.session(journal.done("b", outputs=gone), journal.done("c"))
    assert journal.holds("b")
    journal.change(("c", "member"))
    assert not journal.holds("b")


# -- with a scheduler -------------------------------------------------------------------------------------------------


class Told:
    """Kept results out of a mapping."""

    def __init__(self, tasks: Mapping[tuple[str, str, str], KeptTask], items: Any = ()) -> None:
        self._tasks = tasks
        self._items = items

    def task(self, path: str, item: str, role: ev.Role) -> KeptTask | None:
        return self._tasks.get((path, item, role))

    def items(self, path: str, item: str) -> Any:
        return self._items

    def attempts(self, path: str, item: str) -> int:
        return 3

    def consumed_s(self, path: str, item: str) -> float:
        return 0.0


def started(pipeline: Pipeline, kept: Kept) -> list[tuple[str, str, int]]:
    """Label, item and number of the attempts that a run would start first."""
    from procflow.scheduling.actions import Submit

    graph = compile_pipeline(pipeline)
    scheduler = Scheduler(graph, slots=dict.fromkeys(graph.executors, 4), run_id="t", kept=kept)
    actions = scheduler.start(0.0)
    return [(a.unit.label, a.items.label if a.items else "", a.number) for a in actions if isinstance(a, Submit)]


def test_a_merge_whose_members_are_all_kept_is_kept_and_numbers_of_attempts_go_on() -> None:
    both = Parallel("both", Step("x", "os:getcwd"), Step("y", "os:getcwd"), merge="combine_outputs", output="sum")
    pipeline = Pipeline("p", steps=[both, Merge("end", inputs=["sum"])])
    x, y = KeptTask({"x": ref(1)}), KeptTask({"y": ref(2)})
    merged = KeptTask({"sum": ref(3)})
    everything = {("0.0", "", "member"): x, ("0.1", "", "member"): y, ("0", "", "merger"): merged}
    assert started(pipeline, Told(everything)) == [("end", "", 4)]
    assert started(pipeline, Told({k: v for k, v in everything.items() if k[0] != "0.1"})) == [("both/y", "", 4)]


def test_a_map_starts_only_the_items_that_have_no_value() -> None:
    pipeline = Pipeline("p", steps=[Map("m", "os:fspath", items=[1, 2, 3, 4], batch=1)])
    page = ref([1, 2, 3, 4])
    tasks = {("0", "", "expand"): KeptTask(pages=((page, 4),))}
    found = started(pipeline, Told(tasks, [(range(2), ref([1, 2])), ((3,), ListOf((Element(page, 3),)))]))
    assert found == [("m", "2", 4)]
