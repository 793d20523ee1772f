"""What has a value where: scopes on scopes, and what a reference means in them."""

from __future__ import annotations

from typing import Any

import pytest

from procflow.call import Lookup
from procflow.compiling.names import Facts, NoValue, Scope, did_you_mean
from procflow.compiling.surface import Face, Surfaces, is_off, references, unique_names, written_at
from procflow.compiling.template import parse_reference
from procflow.model import AnyStep, Pipeline

FACTS = Facts({"day": "mon", "deep": {"k": [1]}}, {"HOME": "/h"}, {"id": "r"}, frozenset({"unset"}))


def f(*values: Any) -> int:
    return 1


def steps(*declared: dict[str, Any]) -> tuple[AnyStep, ...]:
    return Pipeline(name="p", steps=declared).steps


def one(**keys: Any) -> AnyStep:
    return steps({"type": "transform", "name": "s", "function": f, **keys})[0]


def resolve(scope: Scope, text: str) -> Any:
    return scope.resolve(parse_reference(text))


def refusal(scope: Scope, text: str) -> str:
    with pytest.raises(NoValue) as caught:
        resolve(scope, text)
    return caught.value.message


def test_facts_are_constants_with_paths_and_a_parameter_told_elsewhere_is_none() -> None:
    scope = Scope(FACTS)
    assert [resolve(scope, t) for t in ("params.day", "params.deep.k.0", "env.HOME", "run.id", "params.unset.x")] == [
        "mon", 1, "/h", "r", None,
    ]  # fmt: skip
    assert resolve(scope, "params") == {"day": "mon", "deep": {"k": [1]}}


def test_a_wrong_variable_of_the_environment_gives_no_hint_about_others() -> None:
    with pytest.raises(NoValue) as caught:
        resolve(Scope(Facts({}, {"SECRET_TOKEN": "x"}, {})), "env.SECRET_TOKE")
    assert "SECRET_TOKEN" not in caught.value.message + caught.value.hint


def test_inner_scopes_see_outer_values_and_not_the_other_way_round() -> None:
    outer = Scope(FACTS).block()
    outer.publish("a", Face(("x",), main="x"))
    inner = outer.view("b").block()
    inner.publish("c", Face(("y",), main="y"))
    assert resolve(inner.view("d"), "x.0") == Lookup("x", (0,))
    assert resolve(inner.view("d"), "a.output") == Lookup("x")
    assert "publishes 'y'" in refusal(outer, "y")


def test_a_member_of_a_graph_does_not_see_its_own_output_but_an_outer_value_of_that_name() -> None:
    outer = Scope(FACTS).block()
    graph = outer.view("g").block()
    graph.publish("a", Face(("x",), main="x"))
    assert not graph.view("a").has("x")
    assert graph.view("b").has("x")
    assert refusal(graph.view("a"), "x") == "'x' has no value here: this step itself writes it"
    assert refusal(graph.view("a").block().view("deep"), "x") == "'x' has no value here: this step itself writes it"
    outer.publish("z", Face(("x",), main="x"))
    assert graph.view("a").has("x")


def test_unknown_outputs_open_a_scope_for_all_but_their_own_step() -> None:
    scope = Scope(FACTS).block()
    scope.publish("a", Face((), is_open=True, keyed=True))
    assert resolve(scope.view("b"), "what.0") == Lookup("what", (0,))
    assert resolve(scope.view("b"), "a.output.k.1") == Lookup("k", (1,))
    assert not scope.view("a").is_open
    assert scope.view("b").block().view("c").is_open


def test_what_is_withheld_says_why_and_is_forgotten_once_published() -> None:
    scope = Scope(FACTS).block()
    scope.withhold(lambda: [("a", ("x",), "because")])
    assert refusal(scope.view("b"), "x") == "'x' has no value here: because"
    scope.publish("a", Face(("x",), main="x"))
    assert resolve(scope.view("b"), "x") == Lookup("x")


def test_reasons_are_asked_for_once_and_only_where_a_name_is_missed() -> None:
    asked: list[str] = []

    def reasons(step: str, why: str) -> list[tuple[str, tuple[str, ...], str]]:
        asked.append(step)
        return [(step, ("x", step), why)]

    scope = Scope(FACTS).block()
    scope.withhold(lambda: reasons("a", "because"))
    scope.withhold(lambda: reasons("b", "{name!r} says so"))
    scope.publish("c", Face(("y",), main="y"))
    assert resolve(scope.view("d"), "y") == Lookup("y")
    assert asked == []
    assert refusal(scope.view("d"), "x") == "'x' has no value here: because"
    assert refusal(scope.view("d"), "b") == "'b' has no value here: 'b' says so"
    assert asked == ["a", "b"]


def test_the_words_for_a_near_name_do_not_offer_the_name_itself() -> None:
    assert did_you_mean("rows", ["rows", "row"]) == "did you mean 'row'?"
    assert did_you_mean("rows", ["rows"]) == ""
    assert did_you_mean("r" * 10_000, (f"name{i}" for i in range(100_000))) == ""


@pytest.mark.parametrize(
    ("keys", "face"),
    [
        ({}, Face(("s",), main="s")),
        ({"output": "o"}, Face(("o",), main="o")),
        ({"outputs": ["a"]}, Face(("a",), main="a", keyed=True)),
        ({"outputs": ["a", "b"]}, Face(("a", "b"), keyed=True)),
        ({"outputs": "*"}, Face((), is_open=True, keyed=True)),
    ],
)
def test_the_face_of_a_leaf(keys: dict[str, Any], face: Face) -> None:
    assert Surfaces().face(one(**keys), "s") == face


def test_the_face_of_a_block_joins_those_of_its_members_without_the_disabled() -> None:
    inner = [
        {"type": "transform", "function": f}, {"type": "transform", "name": "b", "function": f, "outputs": ["x", "y"]},
        {"type": "transform", "name": "c", "function": f, "enabled": False},
        {"type": "transform", "name": "d", "function": f, "when": False},
        {"type": "parallel", "name": "e", "steps": [{"type": "transform", "name": "g", "function": f, "outputs": "*"}]},
    ]  # fmt: skip
    declared = steps({"type": "sequence", "name": "s", "steps": inner})[0]
    surfaces = Surfaces()
    assert surfaces.face(declared, "s") == Face(("step_0", "x", "y"), is_open=True, keyed=True)
    assert surfaces.face(declared, "s").names is None
    assert list(surfaces.dormant(declared, "s")) == [
        ("c", "c", "it is disabled (enabled: false)"), ("d", "d", "it never runs (when: false)"),
    ]  # fmt: skip
    assert written_at(declared, "y", surfaces) == ("steps", 1, "outputs", 1)
    assert written_at(declared, "step_0", surfaces) == ("steps", 0)


def test_a_block_is_off_when_all_in_it_is() -> None:
    off = {"type": "transform", "function": f, "enabled": False}
    both = steps(
        {"type": "sequence", "steps": [off, {"type": "graph", "steps": [off, off]}]},
        {"type": "sequence", "steps": [off, {"type": "transform", "function": f}]},
    )
    assert [is_off(step) for step in both] == [True, False]
    assert unique_names(both) == ["step_0", "step_1"]


def reads(declared: dict[str, Any]) -> list[str]:
    return [str(lookup) for lookup in Surfaces().reads(steps(declared)[0])]


def leaf(name: str, *inputs: str, **keys: Any) -> dict[str, Any]:
    return {"type": "transform", "name": name, "function": f, "inputs": list(inputs), **keys}


def test_what_a_block_needs_from_outside() -> None:
    inner = [leaf("a", "x"), leaf("b", "a", "y"), leaf("c", "${a.output}", "d"), leaf("d")]
    assert reads({"type": "sequence", "steps": inner}) == ["${x}", "${y}", "${d}"]
    assert reads({"type": "graph", "steps": inner}) == ["${x}", "${y}"]
    assert reads({"type": "parallel", "steps": inner}) == ["${x}", "${a}", "${y}", "${a.output}", "${d}"]
    assert reads({"type": "sequence", "when": "w > 1", "steps": [leaf("a", "w")]}) == ["${w}"]


def test_the_name_of_a_step_does_not_hide_an_outer_value_of_that_name() -> None:
    assert reads({"type": "sequence", "steps": [leaf("x", output="y"), leaf("b", "x", "y")]}) == ["${x}"]


def test_items_and_index_of_a_map_come_from_the_map() -> None:
    function = {
        "type": "map",
        "items": "${rows}",
        "function": f,
        "inputs": ["item", "index", "k"],
        "params": {"p": "${item.x}"},
    }
    assert reads(function) == ["${k}", "${rows}"]
    assert reads({"type": "map", "items": "${item.parts}", "function": f}) == ["${item.parts}"]
    assert reads({"type": "map", "items": [1], "as": "row", "steps": [leaf("a", "row", "index", "item")]}) == [
        "${item}"
    ]


def test_disabled_steps_need_nothing() -> None:
    assert reads({"type": "sequence", "steps": [leaf("a", "x", enabled=False), leaf("b", "y")]}) == ["${y}"]


def test_references_come_with_their_places() -> None:
    declared = steps(
        {"type": "shell", "command": ["a", "${x}"], "env": {"A": "-${y.0}-"}, "cwd": "${params.d}", "when": "z > 1"}
    )[0]
    assert [(str(lookup), at) for lookup, at in references(declared)] == [
        ("${x}", ("command", 1)), ("${y.0}", ("env", "A")), ("${params.d}", ("cwd",)), ("${z}", ("when",)),
    ]  # fmt: skip
