"""Who waits for whom inside a block, and which circle is named where steps wait for each other."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow.compiling.names import Facts, Scope
from procflow.compiling.ordering import Edges, order, shortest_cycles
from procflow.compiling.surface import Face, Surfaces, is_off, unique_names
from procflow.errors import Problem, dotted
from procflow.model import Pipeline


def f(*values: Any) -> int:
    return 1


def leaf(name: str, *inputs: str, **keys: Any) -> dict[str, Any]:
    return {"type": "transform", "name": name, "function": f, "inputs": list(inputs), **keys}


def ordered(
    kind: str, *declared: dict[str, Any], outside: tuple[str, ...] = ()
) -> tuple[dict[str, str], list[Problem]]:
    """For each member the names of those before it, strict ones in capitals; and the problems."""
    steps = Pipeline(name="p", steps=declared).steps
    names, surfaces = unique_names(steps), Surfaces()
    faces = {i: surfaces.face(step, names[i]) for i, step in enumerate(steps) if not is_off(step)}
    scope = Scope(Facts({}, {}, {})).block()
    scope.publish("before", Face(outside))
    problems: list[Problem] = []
    after, strict = order(steps, names, faces, kind, scope, surfaces, ("steps",), problems)
    words = {
        names[i]: " ".join(names[j].upper() if j in strict[i] else names[j] for j in sorted(after[i])) for i in faces
    }
    return words, problems


def test_a_sequence_waits_for_the_member_before_and_a_parallel_block_for_nothing() -> None:
    members = (leaf("a"), leaf("b", enabled=False), leaf("c"), leaf("d", depends_on=["a"]))
    assert ordered("sequence", *members)[0] == {"a": "", "c": "a", "d": "A c"}
    assert ordered("parallel", *members[:3])[0] == {"a": "", "c": ""}


def test_a_graph_waits_for_writers_and_depends_on() -> None:
    words, problems = ordered("graph", leaf("a", "v"), leaf("b", output="v"), leaf("c", depends_on=["a", "b"]))
    assert (words, problems) == ({"a": "b", "b": "", "c": "A B"}, [])


def test_a_steps_output_means_the_step_even_where_another_writes_a_value_of_its_name() -> None:
    words, _ = ordered("graph", leaf("x", output="y"), leaf("b", output="x"), leaf("c", "${x.output}"), leaf("d", "x"))
    assert words == {"x": "", "b": "", "c": "x", "d": "b"}


def test_a_value_that_is_there_already_needs_no_wait_for_those_who_may_write_anything() -> None:
    anything = (leaf("a", "rows", outputs="*"), leaf("b", "rows", outputs="*"))
    assert ordered("graph", *anything, outside=("rows",))[0] == {"a": "", "b": ""}
    words, problems = ordered(
        "graph", leaf("a", "what", depends_on=["b"]), leaf("b", outputs="*"), leaf("c", outputs="*", depends_on=["a"])
    )
    assert (words, problems) == ({"a": "B", "b": "", "c": "A"}, [])


@pytest.mark.parametrize(
    ("kind", "members", "loc", "message"),
    [
        (
            "graph", (leaf("a"), leaf("b", depends_on=["a", "aa"])), "steps[1].depends_on[1]",
            "there is no step 'aa' in this block (did you mean 'a'?)",
        ),
        ("graph", (leaf("a", depends_on=["a"]),), "steps[0].depends_on[0]", "step 'a' depends on itself"),
        (
            "parallel", (leaf("a"), leaf("b", depends_on=["a"])), "steps[1].depends_on[0]",
            "members of a parallel block run at once (use type: graph for depends_on)",
        ),
        (
            "sequence", (leaf("a", depends_on=["b"]), leaf("b")), "steps[0].depends_on[0]",
            "'b' comes after this step in its sequence (use type: graph, or change their order)",
        ),
        (
            "graph", (leaf("a", enabled=False), leaf("b", depends_on="a")), "steps[1].depends_on[0]",
            "this step depends on 'a', and it is disabled (enabled: false) (take it out of depends_on, or enable that step)",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_depended_on(kind: str, members: tuple[dict[str, Any], ...], loc: str, message: str) -> None:
    problems = ordered(kind, *members)[1]
    assert [(dotted(p.loc), f"{p.message} ({p.hint})" if p.hint else p.message) for p in problems] == [(loc, message)]


def test_the_shortest_circle_is_named_at_the_key_that_closes_it() -> None:
    members = (
        leaf("a", "e"),
        leaf("b", "a"),
        leaf("c", "b"),
        leaf("d", "c"),
        leaf("e", "d", "c", depends_on=["c"]),
        leaf("c2"),
    )
    problems = ordered("graph", *members[:2], leaf("c", "b", depends_on=["e"]), *members[3:])[1]
    assert [(dotted(p.loc), p.message) for p in problems] == [
        ("steps[2].depends_on[0]", "steps wait for each other in a circle: c -> e -> c")
    ]


def test_circles_that_do_not_touch_are_each_named() -> None:
    problems = ordered(
        "graph", leaf("a", "b"), leaf("b", "a"), leaf("c", "${d.output.k}"), leaf("d", "c"), leaf("e", "a")
    )[1]
    assert [(dotted(p.loc), p.message.rpartition(": ")[2]) for p in problems] == [
        ("steps[0].inputs[0]", "a -> b -> a"), ("steps[2].inputs[0]", "c -> d -> c"),
    ]  # fmt: skip


def test_a_long_circle_is_told_in_a_short_message() -> None:
    problems = ordered("graph", *(leaf(f"s{i}", f"s{(i + 1) % 5000}") for i in range(5000)))[1]
    assert len(problems) == 1
    assert len(problems[0].message) < 300
    assert "(4,981 more)" in problems[0].message


def by_hand(after: Edges) -> int:
    """Length of the shortest cycle, by trying all; 0 where there is none."""
    for length in range(2, len(after) + 1):
        for ring in permutations(after, length):
            if all(ring[(i + 1) % length] in after[ring[i]] for i in range(length)):
                return length
    return 0


@settings(max_examples=150, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda e: e[0] != e[1]), max_size=14))
def test_the_shortest_cycle_is_found_and_is_one(edges: set[tuple[int, int]]) -> None:
    after: Edges = {i: {b for a, b in edges if a == i} for i in range(6)}
    rings = shortest_cycles(after)
    assert min(map(len, rings), default=0) == by_hand(after)
    for ring in rings:
        assert all(ring[(i + 1) % len(ring)] in after[ring[i]] for i in range(len(ring)))
        assert ring[0] == min(ring)
    members = [i for ring in rings for i in ring]
    assert len(members) == len(set(members))
