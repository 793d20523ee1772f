"""Merge: each strategy, its laws, and errors that name the members."""

from __future__ import annotations

import sys
import types
from collections import Counter, OrderedDict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow.attempt import Failed, Succeeded
from procflow.call import Lookup, StepCall
from procflow.steps import combine as combine_module
from procflow.steps.combine import CombineError, combine, register
from procflow.values.objects import pack, unpack
from procflow.working.perform import perform


def outcome(values: Any, function: Any = None, folder: str | None = None, **options: Any) -> Any:
    call = StepCall(
        "merge",
        "0",
        "m",
        function=function,
        args=(Lookup("results"),),
        outputs=("out",),
        options=options,
        folder=folder,
    )
    return perform(call, {"results": pack(values)})


def merged(values: Any, function: Any = None, **options: Any) -> Any:
    ended = outcome(values, function, **options)
    assert isinstance(ended, Succeeded), ended
    return unpack(ended.outputs["out"])


def failed(values: Any, **options: Any) -> str:
    ended = outcome(values, **options)
    assert isinstance(ended, Failed), ended
    return ended.failure.message


def test_update_joins_mappings_and_the_later_wins() -> None:
    assert merged({"a": {"x": 1, "y": 1}, "b": {"y": 2}}, strategy="update") == {"x": 1, "y": 2}
    assert merged([], strategy="update") == {}
    assert "b is list: use collect_all" in failed({"a": {}, "b": [1]}, strategy="update")


def test_collect_all_and_first_success_follow_the_order_of_the_members() -> None:
    assert merged({"b": 2, "a": 1}, strategy="collect_all") == [2, 1]
    assert merged({"b": 2, "a": 1}, strategy="first_success") == 2
    assert merged([7, 8], strategy="first_success") == 7
    assert "no successful member" in failed({}, strategy="first_success")


def test_members_may_be_single_lookups() -> None:
    call = StepCall(
        "merge",
        "0",
        "m",
        args=({"x": Lookup("a"), "y": Lookup("b")},),
        outputs=("out",),
        options={"strategy": "collect_all"},
    )
    ended = perform(call, {"a": pack(1), "b": pack(2)})
    assert isinstance(ended, Succeeded)
    assert unpack(ended.outputs["out"]) == [1, 2]


def test_best_quality_takes_the_highest_score_and_the_first_of_equals() -> None:
    values = {"a": {"q": {"s": 1}, "n": "a"}, "b": {"q": {"s": 3}, "n": "b"}, "c": {"q": {"s": 3}, "n": "c"}}
    assert merged(values, strategy="best_quality", score="q.s")["n"] == "b"
    assert merged([3, 9, 2], strategy="best_quality", score=lambda value: -value) == 2
    assert merged([[1], [1, 2]], strategy="best_quality", score="builtins:len") == [1, 2]


@pytest.mark.parametrize(
    ("values", "score", "says"),
    [
        ({"a": {"q": 1}, "b": {}}, "q", "b has no score"),
        ({"a": {"q": "x"}}, "q", "the score of a is str, not a number"),
        ({"a": {"q": None}}, "q", "the score of a is None"),
        ({"a": {"q": float("nan")}}, "q", "a is not a number (NaN)"),
        ({"a": {"q": 1}, "b": {"q": [2]}}, "q", "scores of a (int) and b (list) can't be compared"),
        ({"a": {"q": 1}}, None, "needs score"),
        ({}, "q", "no successful member"),
        ({"a": 1}, "builtins:nothing", "has no name 'nothing'"),
    ],
)
def test_scores_that_cannot_be_judged_name_the_member(values: Any, score: Any, says: str) -> None:
    assert says in failed(values, strategy="best_quality", score=score)


def test_a_function_gets_the_mapping_of_names_to_values(tmp_path: Path) -> None:
    assert merged({"a": 1, "b": 2}, lambda given: list(given.items()), strategy="custom") == [("a", 1), ("b", 2)]
    assert merged([1, 2], "builtins:sum", strategy="custom") == 3


def test_an_unknown_strategy_and_a_value_that_is_no_members_are_told() -> None:
    assert "unknown strategy 'x'" in failed({}, strategy="x")
    assert "not int" in failed(5, strategy="update")


# -- combine_outputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "whole"),
    [
        ([[1], [2, 3], []], [1, 2, 3]),
        ([(1,), (2,)], (1, 2)),
        (["a", "b"], "ab"),
        ([b"a", b"b"], b"ab"),
        ([{1}, {2}, {1}], {1, 2}),
        ([frozenset({1}), {2}], frozenset({1, 2})),
        ([1, 2.5], 3.5),
        ([1, 2j], 1 + 2j),
        ([Decimal("1.1"), Decimal("2")], Decimal("3.1")),
        ([Fraction(1, 3), 1], Fraction(4, 3)),
        ([Counter(a=1, b=-2), Counter(a=2)], Counter(a=3, b=-2)),
        ([{"a": {"x": [1]}, "n": 1}, {"a": {"x": [2], "y": 3}, "n": 2}], {"a": {"x": [1, 2], "y": 3}, "n": 3}),
        ([{"ok": True, "e": None}, {"ok": True, "e": None}], {"ok": True, "e": None}),
        ([{"a": 1}, OrderedDict(b=2)], {"a": 1, "b": 2}),
        ([5], 5),
    ],
)
def test_values_of_one_type_become_one(values: list[Any], whole: Any) -> None:
    result = merged({str(i): value for i, value in enumerate(values)}, strategy="combine_outputs")
    assert result == whole
    assert type(result) is type(whole)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"a": [1], "b": "x"}, "a (list) and b (str) are of different types"),
        ({"a": [1], "b": (1,)}, "a (list) and b (tuple)"),
        ({"a": 1, "b": "x"}, "a (int) and b (str)"),
        ({"a": Counter(), "b": {}}, "a (Counter) and b (dict)"),
        ({"a": True, "b": 1}, "a is bool"),
        ({"a": 1, "b": True}, "b is bool"),
        ({"a": None}, "a is None"),
        ({"a": {"k": {"j": [1]}}, "b": {"k": {"j": 2}}}, "a['k']['j'] (list) and b['k']['j'] (int)"),
        ({"a": {"ok": True}, "b": {"ok": False}}, "a['ok'] is bool"),
        ({"a": object}, "combine_outputs does not know"),
        ({"a": Decimal(1), "b": 1.5}, "a (Decimal) to b (float) can't be combined"),
        ({}, "nothing to combine"),
        ({"a": np.zeros((2, 2)), "b": np.zeros((2, 3))}, "a (ndarray) to b (ndarray) can't be combined"),
        ({"a": np.array(1), "b": np.array(2)}, "without dimensions"),
        ({"a": np.zeros(2), "b": [1]}, "a (ndarray) and b (list)"),
    ],
)
def test_values_that_do_not_go_together_name_both(values: dict[str, Any], says: str) -> None:
    assert says in failed(values, strategy="combine_outputs")


def test_arrays_concatenate_along_the_first_axis() -> None:
    whole = merged({"a": np.arange(4).reshape(2, 2), "b": np.arange(2).reshape(1, 2)}, strategy="combine_outputs")
    assert whole.tolist() == [[0, 1], [2, 3], [0, 1]]


@settings(deadline=None)
@given(st.data())
def test_combining_is_associative(data: st.DataObject) -> None:
    kind = data.draw(
        st.sampled_from(
            [
                st.lists(st.integers()),
                st.text(),
                st.integers(),
                st.sets(st.integers()),
                st.dictionaries(st.sampled_from("abc"), st.lists(st.integers()), max_size=3),
                st.dictionaries(st.sampled_from("abc"), st.dictionaries(st.sampled_from("xy"), st.integers())),
                st.dictionaries(st.text(), st.integers()).map(Counter),
            ]
        )
    )
    a, b, c = data.draw(kind), data.draw(kind), data.draw(kind)
    assert combine([a, combine([b, c])]) == combine([combine([a, b]), c]) == combine([a, b, c])


def test_the_members_are_not_changed() -> None:
    a, b = {"k": {"l": [1]}}, {"k": {"l": [2]}}
    combine([a, b])
    assert (a, b) == ({"k": {"l": [1]}}, {"k": {"l": [2]}})


def test_too_deep_a_mapping_is_an_error() -> None:
    def deep() -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(500):
            value = {"k": value}
        return value

    with pytest.raises(CombineError, match="nested deeper"):
        combine([deep(), deep()])


class Tally:
    def __init__(self, n: int) -> None:
        self.n = n


class SubTally(Tally):
    pass


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combine_module, "_registered", {})


@pytest.mark.usefixtures("registry")
def test_a_type_of_ones_own_can_be_registered_and_wins() -> None:
    register(Tally, lambda values: Tally(sum(value.n for value in values)))
    register(list, lambda values: "mine")
    assert combine([Tally(1), SubTally(2)]).n == 3
    assert combine([[1], [2]]) == "mine"
    assert combine([{"k": Tally(1)}, {"k": Tally(4)}])["k"].n == 5
    with pytest.raises(CombineError, match=r"value 0 \(Tally\) and value 1 \(int\)"):
        combine([Tally(1), 2])


def test_images_of_equal_shape_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands in for Pillow, which is no dependency: a class by that name with what is used of it.
    class Image:
        mode = "L"

        def __init__(self, size: tuple[int, int]) -> None:
            self.size = size

        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return np.zeros(self.size)

    Image.__module__ = "PIL.Image"
    monkeypatch.setitem(sys.modules, "PIL", types.ModuleType("PIL"))
    assert combine([Image((2, 3)), Image((2, 3))]).shape == (2, 2, 3)
    with pytest.raises(CombineError, match="different shapes"):
        combine([Image((2, 3)), Image((2, 4))])


def test_pandas_frames_and_series_concatenate() -> None:
    pandas = pytest.importorskip("pandas")
    assert combine([pandas.DataFrame({"a": [1]}), pandas.DataFrame({"a": [2]})])["a"].tolist() == [1, 2]
    assert combine([pandas.Series([1]), pandas.Series([2])]).tolist() == [1, 2]


def test_polars_frames_concatenate() -> None:
    polars = pytest.importorskip("polars")
    assert combine([polars.DataFrame({"a": [1]}), polars.DataFrame({"a": [2]})])["a"].to_list() == [1, 2]


def test_arrow_tables_concatenate() -> None:
    arrow = pytest.importorskip("pyarrow")
    assert combine([arrow.table({"a": [1]}), arrow.table({"a": [2]})])["a"].to_pylist() == [1, 2]
