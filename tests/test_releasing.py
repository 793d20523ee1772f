"""When the files of values are let go: not before their last reader is done, and not where a resume would need them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from procflow import Graph, Map, Parallel, Pipeline, Sequence, Step
from procflow.attempt import Failed, Failure, Progressed, Skipped, Succeeded
from procflow.compiler import compile_pipeline
from procflow.events import AttemptFinished
from procflow.ref import Inline, ListOf, Ref, Stored, stored_in
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Release, Submit, Tick
from procflow.scheduling.kept import KeptTask
from procflow.scheduling.releasing import may_read, surely_reads


def f(*args: Any, **kwargs: Any) -> None:
    """A step that does nothing."""


def file(name: str) -> Stored:
    return Stored(f"/o/{name}", (1,), b"d")


class Told:
    """A run in which every step publishes files under its own name, but for those told otherwise.

    ``ends`` is how the attempts of a step end, by its name: ``fail``, ``skip``, ``small`` or a ref. ``released`` are the
    names of files that were let go, in order.
    """

    def __init__(self, *steps: Any, kept: Any = None, ends: dict[str, Any] | None = None, **keys: Any) -> None:
        self.graph = compile_pipeline(Pipeline("t", steps=steps, **keys))
        slots = dict.fromkeys(self.graph.executors, 100)
        self.scheduler = Scheduler(self.graph, slots=slots, run_id="t", kept=kept)
        self.ends = ends or {}
        self.released: list[str] = []
        self.out: dict[str, Submit] = {}
        self.now = 0.0
        self._take(self.scheduler.start(self.now))

    def _take(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Release):
                self.released += [stored.path.removeprefix("/o/") for stored in action.files]
            elif isinstance(action, Submit):
                name = "/".join((action.unit.label, *action.labels)) + f".{action.unit.call.kind}"
                label = name.removesuffix(".transform")
                self.out[f"{label}#{action.items.label}" if action.items is not None else label] = action

    def send(self, outcome: Any) -> None:
        self.now += 1.0
        self._take(self.scheduler.handle(outcome, self.now))

    def end(self, name: str) -> None:
        """One attempt ends."""
        submit = self.out.pop(name)
        call, key = submit.unit.call, submit.key
        how = self.ends.get(name, self.ends.get(call.name))
        if how == "fail":
            self.send(Failed(key, Failure("error", "ValueError", "no")))
        elif how == "skip":
            self.send(Skipped(key))
        elif call.kind == "expand":
            self.send(Succeeded(key, pages=((file(f"{name}.page"), 3),)))
        elif submit.items is not None:
            self.send(Succeeded(key, indices=submit.items.indices, chunk=file(name)))
        else:
            names = call.outputs if isinstance(call.outputs, tuple) else ("free",)
            ref: Ref = Inline(b"x") if how == "small" else how if isinstance(how, Ref) else file(name)
            self.send(Succeeded(key, {n: ref if n == names[0] else file(f"{name}.{n}") for n in names}))

    def all(self) -> list[str]:
        """Go on to the end; what was released."""
        while self.out:
            self.end(next(iter(self.out)))
        assert self.scheduler.finished
        return self.released


def a(*reads: str, name: str = "a", **keys: Any) -> Step:
    return Step(name, f, inputs=list(reads), **keys)


def test_a_value_is_let_go_when_its_last_reader_is_done() -> None:
    run = Told(a(), Graph("g", a("a", name="b"), a("a", name="c")), a(name="d"))
    run.end("a")
    run.end("g/b")
    assert run.released == []
    run.end("g/c")
    assert run.released == ["a"]
    run.end("d")
    assert run.released == ["a"]
    assert set(run.scheduler.outputs) == {"b", "c", "d"}
    assert run.scheduler.dropped == {"a"}


def test_a_value_that_nobody_reads_is_a_result() -> None:
    assert Told(a(), a(name="b")).all() == []


def test_small_values_need_no_release_and_stay_visible() -> None:
    run = Told(a(), a("a", name="b"), ends={"a": "small"})
    assert run.all() == []
    assert set(run.scheduler.outputs) == {"a", "b"}


@pytest.mark.parametrize("key", ["keep", "show"])
def test_what_is_to_be_kept_or_shown_stays(key: str) -> None:
    run = Told(a(), a("a", name="b"), a("b", name="c"), **{key: ["a"]})
    assert run.all() == ["b"]
    assert set(run.scheduler.outputs) == {"a", "c"}


def test_a_release_comes_after_the_record_that_allows_it() -> None:
    run = Told(a(), a("a", name="b"), a(name="c"))
    run.end("a")
    key = run.out["b"].key
    actions = run.scheduler.handle(Succeeded(key, {"b": file("b")}), 5.0)
    kinds = [type(x) for x in actions]
    finished = next(i for i, x in enumerate(actions) if isinstance(x, AttemptFinished))
    assert finished < kinds.index(Release)


def test_a_reader_that_failed_keeps_its_value_for_the_resume() -> None:
    run = Told(a(), a("a", name="b", on_error="continue"), a(name="c"), ends={"b": "fail"})
    assert run.all() == []
    assert set(run.scheduler.outputs) == {"a", "c"}


def test_a_reader_that_runs_again_keeps_its_value_until_it_is_done() -> None:
    run = Told(a(), a("a", name="b", retry={"retries": 1, "delay": 0}), ends={"b": "fail"})
    run.end("a")
    run.end("b")
    assert run.released == []
    run.send(Tick())
    run.ends.clear()
    assert run.all() == ["a"]


def test_a_reader_that_was_never_there_or_cancelled_keeps_its_value() -> None:
    starved = Told(a(), a(name="x", on_error="continue"), a("a", "x", name="b"), a(name="c"), ends={"x": "fail"})
    assert starved.all() == []
    stopped = Told(a(), Parallel("p", a("a", name="b"), a(name="c"), join="any"))
    stopped.end("a")
    stopped.end("p/c")
    # Only what came too late: the value that its reader would need in a resume stays.
    assert stopped.all() == ["p/b"]


def test_a_reader_whose_condition_is_false_is_done() -> None:
    assert Told(a(), a("a", name="b", when="len('x') > 1"), a(name="c"), ends={"b": "skip"}).all() == ["a"]
    block = Sequence("s", a("a", name="b"), when="len('x') > 1")
    assert Told(a(), block, a(name="c"), ends={"s.gate": "skip"}).all() == ["a"]


def test_a_reader_that_was_left_out_and_then_fails_as_its_block_runs_again_keeps_its_value() -> None:
    members = (a("a", name="b", when="len('x') > 1"), a(name="c"))
    block = Graph("g", *members, on_error="finish", retry={"retries": 1, "delay": 0})
    run = Told(a(), block, a(name="end"), on_error="continue", ends={"b": "skip", "c": "fail"})
    for name in ("a", "g/b", "g/c"):
        run.end(name)
    run.ends = {"b": "fail"}
    run.send(Tick())
    assert sorted(run.out) == ["g/b", "g/c"]
    assert run.all() == []


def test_a_block_that_reads_a_value_deep_inside_is_a_reader() -> None:
    deep = Parallel("p", Sequence("s", a(name="x"), a("x", "a", name="y")), a(name="z"))
    run = Told(a(), deep, a(name="end"))
    for name in ("a", "p/s/x", "p/s/y"):
        run.end(name)
    assert run.released == []
    assert run.all() == ["a"]


def test_a_block_with_a_tolerated_failure_keeps_what_it_reads_and_made() -> None:
    block = Sequence("s", a("a", name="x"), a("x", name="y", on_error="continue"), merge="collect_all", output="both")
    assert Told(a(), block, a(name="end"), ends={"y": "fail"}).all() == []


def test_a_name_that_is_written_twice_is_never_let_go() -> None:
    first, second = Step("s1", f, output="v"), Step("s2", f, inputs=["v"], output="v")
    assert Told(first, second, a("v", name="end")).all() == []


def test_a_name_that_an_inner_block_writes_itself_does_not_make_the_outer_value_an_intermediate() -> None:
    inner = Sequence("s", Step("w", f, output="v"), a("v", name="x"), output="o")
    run = Told(Step("first", f, output="v"), inner)
    run.all()
    assert "first" not in run.released
    assert "v" in run.scheduler.outputs


def test_a_value_in_two_names_goes_with_the_last_of_them() -> None:
    ref = file("shared")
    run = Told(
        a(), a(name="b"), a("a", name="c"), a("b", name="d"),
        ends={"a": ListOf((ref, file("own"))), "b": ListOf((ref,))},
    )  # fmt: skip
    run.end("a")
    run.end("b")
    run.end("c")
    assert run.released == ["own"]
    run.end("d")
    assert run.released == ["own", "shared"]


def test_what_a_block_does_not_hand_on_goes_when_it_ends() -> None:
    block = Parallel("p", a(name="x"), a(name="y"), merge="combine_outputs", output="sum")
    run = Told(block, a("sum", name="end"))
    run.end("p/x")
    run.end("p/y")
    assert run.released == []
    run.end("p.merge")
    assert run.released == ["p/x", "p/y"]
    assert run.all() == ["p/x", "p/y", "p.merge"]


def test_a_block_that_hands_all_on_keeps_it() -> None:
    run = Told(Parallel("p", a(name="x"), a(name="y"), merge="collect_all", output="both"), a(name="end"))
    assert run.all() == []
    assert {stored.path for stored in stored_in(run.scheduler.outputs["both"])} == {"/o/p/x", "/o/p/y"}


def test_the_items_of_a_map_go_when_it_ends_and_its_rows_with_their_last_reader() -> None:
    run = Told(Map("m", f, items=[1, 2, 3], batch=2), a("m", name="end"), a(name="last"))
    run.end("m.expand")
    run.end("m#0-1")
    assert run.released == []
    run.end("m#2")
    assert run.released == ["m.expand.page"]
    run.end("end")
    assert run.released == ["m.expand.page", "m#0-1", "m#2"]


def test_of_an_iteration_only_the_last_value_stays() -> None:
    run = Told(Map("m", a("item", name="x"), a("x", name="y"), items=[1, 2, 3]), a(name="end"))
    for name in ("m.expand", "m/x/1", "m/y/1"):
        run.end(name)
    assert run.released == ["m/x/1"]
    released = run.all()
    assert sorted(released) == ["m.expand.page", "m/x/0", "m/x/1", "m/x/2"]
    assert {stored.path for stored in stored_in(run.scheduler.outputs["m"])} == {f"/o/m/y/{i}" for i in range(3)}


def test_a_failed_iteration_keeps_what_it_made_and_the_items() -> None:
    run = Told(
        Map("m", a("item", name="x"), a("x", name="y"), items=[1, 2, 3], tolerate=1),
        a(name="end"),
        ends={"m/y/1": "fail"},
    )
    assert sorted(run.all()) == ["m/x/0", "m/x/2"]


def test_a_result_that_comes_while_its_attempt_is_stopped_is_let_go() -> None:
    run = Told(Parallel("p", a(name="b"), Map("m", f, items=[1, 2, 3], batch=3), join="any"))
    run.end("p/m.expand")
    key = run.out["p/m#0-2"].key
    run.end("p/b")
    run.send(Progressed(key, (0,), file("part")))
    assert run.released == ["part"]
    run.send(Succeeded(key, indices=(1, 2), chunk=file("rest")))
    assert run.released[:2] == ["part", "rest"]


class Kept:
    """Results of an earlier session."""

    def __init__(self, **outputs: Ref) -> None:
        self.outputs = outputs

    def task(self, path: str, item: str, role: Any) -> KeptTask | None:
        name = "abcd"[int(path)]
        return KeptTask({name: self.outputs[name]}) if name in self.outputs else None

    def items(self, path: str, item: str) -> Iterator[Any]:
        return iter(())

    def attempts(self, path: str, item: str) -> int:
        return 0

    def consumed_s(self, path: str, item: str) -> float:
        return 0.0


def test_values_whose_readers_were_all_kept_are_let_go_at_once() -> None:
    steps = (a(), a("a", name="b"), a("b", name="c"))
    run = Told(*steps, kept=Kept(a=file("old a"), b=file("old b")))
    assert list(run.out) == ["c"]
    assert run.released == ["old a"]
    assert run.all() == ["old a", "old b"]


def unit(step: Any, *before: Any) -> Any:
    return compile_pipeline(Pipeline("t", steps=[*before, step])).root.members[-1]


def test_who_may_read_a_name_and_who_surely_does() -> None:
    hides = Sequence("s", Step("w", f, output="v"), a("v", name="x"), output="o")
    found = unit(hides, Step("first", f, output="v"))
    assert "v" in may_read(found)
    assert "v" not in surely_reads(found)
    mapped = unit(Map("m", a("item", "v", name="x"), items=[1]), Step("first", f, output="v"))
    assert surely_reads(mapped) == {"v"}
    assert may_read(mapped) >= {"v", "item"}
