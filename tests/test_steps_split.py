"""Split: the parts together are the whole, whatever the type."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow.attempt import Failed, Succeeded
from procflow.call import Lookup, StepCall
from procflow.steps.combine import combine
from procflow.steps.split import SplitError, split
from procflow.values.objects import pack, unpack
from procflow.working.perform import perform

LISTS = st.lists(st.integers())
SEQUENCES = LISTS | LISTS.map(tuple) | st.text() | st.binary()
INTO = st.integers(1, 9)


@given(SEQUENCES, INTO)
def test_chunks_join_to_the_whole_and_differ_by_at_most_one(value: Any, into: int) -> None:
    parts = split(value, "chunks", into)
    assert len(parts) == into
    assert combine(parts) == value
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    assert all(type(part) is type(value) for part in parts)


@given(SEQUENCES, INTO)
def test_round_robin_deals_member_i_to_part_i(value: Any, into: int) -> None:
    parts = split(value, "round_robin", into)
    assert len(parts) == into
    assert all(part == value[i::into] for i, part in enumerate(parts))


@given(st.dictionaries(st.text(), st.integers()), INTO, st.sampled_from(["chunks", "round_robin"]))
def test_mappings_split_by_items_and_join_to_the_whole(value: dict[str, int], into: int, strategy: str) -> None:
    parts = split(value, strategy, into)
    assert len(parts) == into
    assert combine(parts) == value
    assert sum(map(len, parts)) == len(value)


@given(LISTS, INTO)
def test_arrays_split_as_lists_do(value: list[int], into: int) -> None:
    array = np.array(value, dtype=object)
    for strategy in ("chunks", "round_robin"):
        assert [part.tolist() for part in split(array, strategy, into)] == split(value, strategy, into)


def test_arrays_split_along_their_first_axis() -> None:
    array = np.arange(14).reshape(7, 2)
    parts = split(array, "chunks", 3)
    assert [part.shape for part in parts] == [(3, 2), (2, 2), (2, 2)]
    assert np.array_equal(combine(parts), array)


def test_duplicate_gives_the_value_itself_any_type() -> None:
    assert split(5, "duplicate", 3) == [5, 5, 5]
    assert split({1}, "duplicate", 2) == [{1}, {1}]


def test_ordered_dicts_and_ranges_and_named_tuples() -> None:
    assert split(OrderedDict(a=1, b=2), "chunks", 2) == [OrderedDict(a=1), OrderedDict(b=2)]
    assert split(range(5), "chunks", 2) == [range(3), range(3, 5)]
    assert split(namedtuple("P", "x y")(1, 2), "chunks", 2) == [(1,), (2,)]


@pytest.mark.parametrize(
    ("value", "strategy", "into", "says"),
    [
        ({1, 2}, "chunks", 2, "sorted"),
        (5, "chunks", 2, "type int can't be split"),
        ((i for i in range(3)), "chunks", 2, "list"),
        (np.array(5), "chunks", 2, "without dimensions"),
        ([1], "chunks", 0, "at least 1"),
        ([1], "chunks", True, "at least 1"),
        ([1], "chunks", "2", "at least 1"),
        ([1], "zigzag", 2, "unknown strategy"),
    ],
)
def test_what_cannot_be_split_is_told(value: Any, strategy: str, into: Any, says: str) -> None:
    with pytest.raises(SplitError, match=says):
        split(value, strategy, into)


@pytest.mark.parametrize("strategy", ["chunks", "round_robin"])
def test_frames_and_tables_split_by_rows(strategy: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(7)})
    expected = split(list(range(7)), strategy, 3)
    assert [part["a"].tolist() for part in split(frame, strategy, 3)] == expected


# -- as a step -------------------------------------------------------------------------------------------------


def step(value: Any, outputs: Any, function: Any = None, kwargs: Any = None, **options: Any) -> Any:
    call = StepCall(
        "split", "0", "s", function=function, args=(Lookup("v"),), kwargs=kwargs or {}, outputs=outputs, options=options
    )
    return perform(call, {"v": pack(value)})


def published(outcome: Any) -> dict[str, Any]:
    assert isinstance(outcome, Succeeded), outcome
    return {name: unpack(ref) for name, ref in outcome.outputs.items()}


def test_each_name_gets_a_part() -> None:
    assert published(step([1, 2, 3], ("a", "b"), strategy="chunks")) == {"a": [1, 2], "b": [3]}


def test_one_name_gets_the_list_of_parts() -> None:
    assert published(step([1, 2, 3], ("parts",), into=2)) == {"parts": [[1, 2], [3]]}


def test_a_function_divides_as_it_likes_but_into_the_right_number() -> None:
    def by_size(value: list[int], into: int | None, size: int = 1) -> list[list[int]]:
        return [value[i : i + size] for i in range(0, len(value), size)]

    assert published(step([1, 2, 3], ("a", "b", "c"), by_size)) == {"a": [1], "b": [2], "c": [3]}
    assert published(step([1, 2, 3], ("parts",), by_size, {"size": 2})) == {"parts": [[1, 2], [3]]}
    outcome = step([1, 2, 3], ("a", "b"), by_size)
    assert isinstance(outcome, Failed)
    assert "returned 3 parts instead of 2" in outcome.failure.message
    outcome = step([1], ("a", "b"), lambda value, into: "ab")
    assert isinstance(outcome, Failed)
    assert "not str" in outcome.failure.message


def test_without_a_number_of_parts_it_says_what_to_set() -> None:
    outcome = step([1], ("parts",))
    assert isinstance(outcome, Failed)
    assert "set into" in outcome.failure.message
