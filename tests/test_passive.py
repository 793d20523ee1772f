"""Passive records: equality, hash and copies as those of frozen dataclasses, and what compiled steps share."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow import Graph, Parallel, Pipeline, Sequence, Step
from procflow.call import NOTHING
from procflow.compiler import compile_pipeline
from procflow.graph import TaskUnit, walk
from procflow.passive import alike, changer, passive


@passive(frozen=True, slots=True, kw_only=True)
class Passive:
    a: int = 0
    b: tuple[int, ...] = ()
    c: Any = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    a: int = 0
    b: tuple[int, ...] = ()
    c: Any = field(default=None, compare=False)


VALUES = st.fixed_dictionaries({"a": st.integers(0, 2), "b": st.lists(st.integers(0, 1), max_size=2).map(tuple)})


def empty() -> None:
    pass


def tasks(*steps: Any, **keys: Any) -> list[TaskUnit]:
    graph = compile_pipeline(Pipeline("p", steps=steps, **keys))
    return [unit for unit in walk(graph.root) if isinstance(unit, TaskUnit)]


@given(VALUES, VALUES)
def test_a_passive_record_is_equal_and_hashed_as_a_frozen_one(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (Passive(**one) == Passive(**other)) == (Frozen(**one) == Frozen(**other))
    assert hash(Passive(**one)) == hash(Frozen(**one))
    assert repr(Passive(**one)) == repr(Frozen(**one)).replace("Frozen", "Passive")
    assert not hasattr(Passive(**one), "__dict__")


@given(values=VALUES, other=VALUES)
def test_a_changed_record_is_what_replace_makes(values: dict[str, Any], other: dict[str, Any]) -> None:
    record = Passive(**values, c=[1])
    made = changer(Passive, *other)(record, *other.values())
    assert made == replace(record, **other)
    assert made.c is record.c
    assert all(getattr(record, key) == value for key, value in values.items())


@given(VALUES, VALUES)
def test_records_that_are_alike_differ_in_the_named_fields_alone(values: dict[str, Any], other: dict[str, Any]) -> None:
    record = Passive(**values, c=[1])
    make = alike(record, "b", "a")
    one, two = make(other["b"], other["a"]), make((7,), 8)
    assert one == replace(record, **other)
    assert (two.a, two.b) == (8, (7,))
    assert one.c is two.c is record.c
    assert (record.a, record.b) == (values["a"], values["b"])


def test_a_field_that_is_not_there_is_refused() -> None:
    with pytest.raises(TypeError):
        changer(Passive, "nothing_of_that_name")
    with pytest.raises(TypeError, match="Passive has no field 'nothing_of_that_name'"):
        alike(Passive(), "a", "nothing_of_that_name")


def test_what_a_passive_record_says_itself_stays() -> None:
    @passive(frozen=True, slots=True)
    class Told:
        a: int = 0
        secret: str = field(default="x", repr=False)

        def __repr__(self) -> str:
            return "told"

    @passive(frozen=True, slots=True)
    class Under(Told):
        pass

    assert repr(Told()) == "told"
    assert repr(Under(3)).endswith("Under(a=3)")
    assert Told(1) == Told(1) != Told(1, "y")
    assert Told(1) != Under(1)
    assert hash(Told(1)) == hash(Told(1))


def test_only_the_guard_at_run_time_is_left_out() -> None:
    record = Passive(a=1)
    record.a = 2  # type: ignore[misc]
    assert record.a == 2
    with pytest.raises(FrozenInstanceError):
        Frozen().a = 2  # type: ignore[misc]


def test_steps_that_say_nothing_share_what_they_inherit() -> None:
    one, two = tasks(Parallel(Step("a", empty), Step("b", empty)), defaults={"retries": 2, "timeout": "5m"})
    assert one.retry is two.retry
    assert one.resources is two.resources is NOTHING
    assert one.inherited is two.inherited
    assert one.call.params is one.call.options is NOTHING
    assert (one.timeout_s, one.retry.retries, one.inherited) == (300.0, 2, {"timeout"})


@pytest.mark.parametrize(
    ("keys", "name", "value"),
    [
        ({"cpus": 3}, "cpus", 3), ({"memory": "1GB"}, "memory_bytes", 10**9), ({"timeout": "1m"}, "timeout_s", 60.0),
        ({"idle_timeout": "2m"}, "idle_timeout_s", 120.0), ({"kill_grace": "3s"}, "kill_grace_s", 3.0),
        ({"on_error": "continue"}, "tolerated", True), ({"resources": {"gpu": 1}}, "resources", {"gpu": 1.0}),
        ({"timeout": "300%"}, "timeout_share", 3.0),
    ],
)  # fmt: skip
def test_a_step_that_says_something_shares_it_with_no_other(keys: dict[str, Any], name: str, value: Any) -> None:
    before, own, after = tasks(Parallel(Step("a", empty), Step("b", empty, **keys), Step("c", empty)))
    assert getattr(own, name) == value
    assert getattr(before, name) == getattr(after, name) != value
    alike = {f.name for f in fields(TaskUnit)} - {"index", "name", "path", "label", "loc", "writes", "call"}
    assert all(getattr(before, key) == getattr(after, key) for key in alike)


def test_steps_that_say_the_same_share_it() -> None:
    one, two, other, counted = tasks(
        Parallel(
            Step("a", empty, retry={"retries": 2}, timeout=60), Step("b", empty, timeout="1m", retry={"retries": 2}),
            Step("c", empty, timeout=61, retry={"retries": 2}), Step("d", empty, cpus=1, timeout=60),
        ),
        defaults={"cpus": 2},
    )  # fmt: skip
    assert one.retry is two.retry
    assert (one.timeout_s, other.timeout_s) == (60.0, 61.0)
    assert (one.cpus, counted.cpus) == (2, 1)
    assert ("cpus" in one.inherited, "cpus" in counted.inherited) == (True, False)


@pytest.mark.parametrize(
    "keys",
    [
        {}, {"defaults": {"cache": True}}, {"defaults": {"retries": 3, "cpus": 2, "executor": "threads"}},
        {"state": {"log": "append"}}, {"limits": {"timeout": "1h"}}, {"type": "graph"},
    ],
)  # fmt: skip
def test_a_step_that_says_nothing_is_compiled_as_one_that_says_what_holds_anyway(keys: dict[str, Any]) -> None:
    block = {"executor": "threads", "priority": 4, "rate_limit": "9/s"}
    plain = Pipeline(
        "p", steps=[Step("a", empty), Parallel(Step("b", empty), Step("c", "json:dumps"), **block)], **keys
    )
    said = {"params": {}, "retry": None, "when": None, "priority": 0}
    inside = {**said, "priority": 4}
    full = Pipeline(
        "p",
        steps=[
            Step("a", empty, **said),
            Parallel(Step("b", empty, **inside), Step("c", "json:dumps", **inside), **block),
        ],
        **keys,
    )
    assert compile_pipeline(plain) == compile_pipeline(full)


@pytest.mark.parametrize(
    "said",
    [
        {"params": {"n": 3, "text": "plain $", "none": None}}, {"params": {"n": [1, {"a": "b"}]}},
        {"params": {"n": "$${x}"}}, {"params": {"n": "${run.name}"}}, {"output": "x"}, {"outputs": ["x", "y"]},
        {"outputs": "*"}, {"retries": 2}, {"timeout": "300%", "cpus": 2, "memory": "1GB"},
        {"priority": 7, "on_error": "continue", "rate_limit": "3/s"}, {"enabled": False, "params": {"n": 1}},
        {"params": {}, "output": None},
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", [Sequence, Parallel, Graph])
def test_what_is_made_for_many_steps_at_once_is_what_is_made_for_each(said: dict[str, Any], block: Any) -> None:
    # A condition, even none, is looked at for each step by itself.
    at_once, each = (
        Pipeline(
            "p",
            steps=[
                block(
                    Step("a", empty, **more),
                    Step("b", "json:dumps", **said, **more),
                    Step("c", empty, **more),
                    name="x",
                )
            ],
            state={"log": "append"},
            defaults={"kill_grace": "1s"},
        )
        for more in ({}, {"when": None})
    )
    assert compile_pipeline(at_once) == compile_pipeline(each)


def test_limits_of_one_block_are_not_those_of_another() -> None:
    found = tasks(
        Parallel(Step("a", empty), executor="threads", priority=3),
        Graph(Step("b", empty, priority=0), Step("c", empty), priority=5, rate_limit="3/s"),
        Step("d", empty),
    )
    told = {unit.name: (unit.executor, unit.priority, unit.rates) for unit in found}
    assert told == {
        "a": ("threads", 3, ()),
        "b": ("processes", 0, ("block:1",)),
        "c": ("processes", 5, ("block:1",)),
        "d": ("processes", 0, ()),
    }
