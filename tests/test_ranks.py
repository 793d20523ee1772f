"""Ranks are longest remaining paths: checked by hand on small graphs, and by enumeration on random ones."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from procflow import api
from procflow.call import StepCall
from procflow.compiler import compile_pipeline
from procflow.compiling.ranks import ranked
from procflow.graph import ScopeUnit, TaskUnit, walk
from procflow.learning.teaching import places


def f(*values: Any) -> int:
    return 1


def rank_by_label(pipeline: Any, durations: dict[str, float] | None = None) -> dict[str, float]:
    graph = compile_pipeline(pipeline, durations=durations)
    return {u.label: u.rank for u in walk(graph.root) if not (isinstance(u, TaskUnit) and u.call.kind != "transform")}


def test_in_a_sequence_each_step_counts_those_behind_it() -> None:
    p = api.Pipeline("p", steps=[api.Step("a", f), api.Step("b", f), api.Step("c", f)])
    assert rank_by_label(p) == {"": 3, "a": 3, "b": 2, "c": 1}
    assert rank_by_label(p, {"b": 10}) == {"": 12, "a": 12, "b": 11, "c": 1}


def test_a_block_weighs_its_longest_path_and_its_members_count_what_follows_the_block() -> None:
    p = api.Pipeline(
        "p",
        steps=[
            api.Step("first", f),
            api.Parallel("par", api.Sequence("s", api.Step("a", f), api.Step("b", f)), api.Step("c", f)),
            api.Step("last", f),
        ],
    )
    assert rank_by_label(p, {"par/s/b": 5}) == {
        "": 8, "first": 8, "par": 7, "par/s": 7, "par/s/a": 7, "par/s/b": 6, "par/c": 2, "last": 1,
    }  # fmt: skip


def test_the_body_and_the_expansion_of_a_map_count_what_follows_the_map() -> None:
    p = api.Pipeline("p", steps=[api.Map("m", f, items=[1]), api.Step("z", f)])
    graph = compile_pipeline(p, durations={"z": 4})
    made: Any = graph.root.members[0]
    assert (made.body.rank, made.expand.rank, made.rank) == (5, 6, 6)


def test_gate_and_merger_are_ranked_with_their_block() -> None:
    p = api.Pipeline(
        "p", steps=[api.Step("w", f), api.Parallel("b", f, when="w > 1", merge="combine_outputs"), api.Step("z", f)]
    )
    made: Any = compile_pipeline(p).root.members[1]
    assert (made.gate.rank, made.merger.rank, made.members[0].rank) == (2, 2, 2)


def test_what_differs_by_less_than_a_millisecond_keeps_its_declared_order() -> None:
    p = api.Pipeline("p", steps=[api.Parallel("b", *(api.Step(name, f) for name in "abc"), api.Map("m", f, items=[1]))])
    root = compile_pipeline(p).root
    made: Any = ranked(root, {"b/a": 0.0001, "b/b": 0.0004, "b/c": 0.0021, "b/m": 0.0023}).members[0]
    assert [member.rank for member in made.members[:3]] == [0.0, 0.0, 0.002]
    assert made.members[3].body.rank == 0.002


def test_what_is_told_of_a_task_is_asked_for_by_the_role_that_it_has_everywhere_else() -> None:
    p = api.Pipeline(
        "p",
        steps=[
            api.Step("w", f),
            api.Parallel("b", api.Step("s", f), api.Map("m", f, items="${w}"), when="w > 1", merge="combine_outputs"),
        ],
    )
    root, asked = compile_pipeline(p).root, {}
    ranked(root, {}, lambda unit, role: asked.update({id(unit): (unit.label, role)}))
    assert asked == places(root)
    assert {role for _, role in asked.values()} == {"member", "gate", "expand", "batch", "merger"}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_rank_of_a_task_is_the_longest_path_from_it(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    before = [data.draw(st.sets(st.integers(0, i - 1))) if i else set() for i in range(count)]
    weights = [data.draw(st.integers(1, 9)) for _ in range(count)]
    members = tuple(
        TaskUnit(
            index=i, name=str(i), path=str(i), label=str(i), after=tuple(before[i]), executor="inline",
            call=StepCall("transform", str(i), str(i)),
        )
        for i in range(count)
    )  # fmt: skip
    root = ScopeUnit(index=0, name="", path="", label="", kind="graph", members=members)

    def longest(i: int) -> int:
        return weights[i] + max((longest(j) for j in range(count) if i in before[j]), default=0)

    made = ranked(root, {str(i): weights[i] for i in range(count)})
    assert [m.rank for m in made.members] == [longest(i) for i in range(count)]
    assert made.rank == max(map(longest, range(count)))
