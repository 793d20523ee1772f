"""Expand: all items, in order, in pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow.attempt import Failed, Succeeded
from procflow.call import Lookup, StepCall
from procflow.steps import expand
from procflow.values.objects import pack, unpack
from procflow.working.perform import perform


def outcome(*args: Any, folder: str | None = None, values: Any = None, **options: Any) -> Any:
    call = StepCall("expand", "0", "m", args=args, options=options, folder=folder)
    return perform(call, {name: pack(value) for name, value in (values or {}).items()})


def opened(*args: Any, **given: Any) -> list[list[Any]]:
    ended = outcome(*args, **given)
    assert isinstance(ended, Succeeded), ended
    assert ended.outputs == {}
    pages = [list(unpack(ref)) for ref, _ in ended.pages]
    assert [len(page) for page in pages] == [count for _, count in ended.pages]
    return pages


def flat(*args: Any, **given: Any) -> list[Any]:
    return [item for page in opened(*args, **given) for item in page]


def failed(*args: Any, **given: Any) -> str:
    ended = outcome(*args, **given)
    assert isinstance(ended, Failed), ended
    return ended.failure.message


@given(st.lists(st.integers(), max_size=30), st.integers(1, 8))
def test_pages_hold_every_item_once_in_order(items: list[int], page: int) -> None:
    pages = opened(items, page=page)
    assert [item for part in pages for item in part] == items
    assert all(len(part) == page for part in pages[:-1])
    assert all(pages)


@given(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([-3, -1, 1, 2]), st.integers(1, 5))
def test_a_range_is_as_in_python(start: int, stop: int, stride: int, page: int) -> None:
    assert flat(range=(start, stop, stride), page=page) == list(range(start, stop, stride))
    assert flat(range=(stop,), page=page) == list(range(stop))


def test_a_million_numbers_are_a_thousand_small_pages() -> None:
    ended = outcome(range=(1_000_000,))
    assert len(ended.pages) == 1000
    assert sum(ref.size_bytes for ref, _ in ended.pages) < 100_000


@pytest.mark.parametrize("bounds", [(), (1, 2, 3, 4), ("a",), (1, 2, 0), (True,), (1.5,), "abc", (10**12,)])
def test_a_bad_range_is_refused(bounds: Any) -> None:
    assert "range" in failed(range=bounds) or "items" in failed(range=bounds)


def test_files_are_found_sorted_from_the_folder(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "deep/down/c.csv", "x.txt", ".hidden.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dir.csv").mkdir()
    root = str(tmp_path)
    assert flat(glob="*.csv", folder=root) == [f"{root}/a.csv", f"{root}/b.csv"]
    assert flat(glob="**/*.csv", folder=root) == [f"{root}/a.csv", f"{root}/b.csv", f"{root}/deep/down/c.csv"]
    assert flat(glob=f"{root}/x.*", folder="/") == [f"{root}/x.txt"]
    assert flat(glob="*.none", folder=root) == []
    assert "there is no folder" in failed(glob="*", folder=f"{root}/nothing")


def test_a_value_is_looked_up_and_a_mapping_gives_pairs() -> None:
    assert flat(Lookup("v", ("rows",)), values={"v": {"rows": [1, 2]}}) == [1, 2]
    assert flat({"a": 1, "b": 2}) == [("a", 1), ("b", 2)]
    assert flat((3, 4)) == [3, 4]
    assert [row.tolist() for row in flat(np.arange(4).reshape(2, 2))] == [[0, 1], [2, 3]]
    assert flat([]) == []


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ("abc", "items are one str"),
        (b"abc", "items are one bytes"),
        (5, "int is no list of items; write"),
        (None, "None is no list of items"),
        ({1, 2}, "sorted"),
        (np.array(1), "without dimensions"),
    ],
)
def test_what_is_no_list_of_items_is_refused_with_advice(items: Any, says: str) -> None:
    assert says in failed(items)


class Source:
    def __init__(self, good: int) -> None:
        self.good = good

    def __iter__(self) -> Iterator[int]:
        yield from range(self.good)
        raise ValueError("the disk is gone")


@pytest.mark.parametrize("good", [0, 3, 1000])
def test_a_source_that_raises_names_the_index(good: int) -> None:
    assert failed(Source(good), page=4) == f"getting item {good} failed: ValueError: the disk is gone"


class Old:
    def __getitem__(self, i: int) -> int:
        if i > 2:
            raise IndexError
        return i


def test_a_sequence_of_the_old_kind_works() -> None:
    assert flat(Old()) == [0, 1, 2]


def test_a_source_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    import itertools

    monkeypatch.setattr(expand, "MAX_ITEMS", 5000)
    assert "did not end" in failed(itertools.count())


def test_an_item_that_cannot_be_pickled_is_named_by_its_index() -> None:
    assert failed([1, 2, 3, [lambda: (yield), (i for i in ())]], page=2).startswith(
        "items[3][1]: cannot pickle 'generator'"
    )


def test_pages_of_large_items_are_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand, "MAX_PAGE_BYTES", 10_000)
    pages = opened([bytes(3000) for _ in range(10)])
    assert [len(page) for page in pages] == [2, 3, 2, 3]
    assert [len(page) for page in opened([bytes(30_000)] * 2)] == [1, 1]
