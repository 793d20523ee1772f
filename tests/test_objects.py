"""Objects: every value comes back as it went, and what can't go is named."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow.ref import Inline, ListOf, MappingOf, Ordered, Ref, from_plain
from procflow.values.objects import PackError, dumps, explain, pack, unpack

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda s: st.lists(s) | st.dictionaries(st.text(), s) | st.tuples(s, s),
    max_leaves=12,
)


@given(PLAIN)
def test_plain_values_come_back(value: object) -> None:
    assert unpack(pack(value)) == value
    assert unpack(from_plain(pack(value).plain())) == value


def test_arrays_travel_beside_the_pickle_and_come_back_read_only() -> None:
    array = np.arange(100_000.0)
    ref = pack({"a": array})
    assert isinstance(ref, Inline)
    assert len(ref.data) < 1000
    assert ref.size_bytes >= array.nbytes
    opened = unpack(ref)["a"]
    assert np.array_equal(opened, array)
    with pytest.raises(ValueError, match="read-only"):
        opened[0] = 1
    assert np.shares_memory(opened, np.frombuffer(ref.buffers[0], dtype=np.uint8))


def test_small_and_fortran_ordered_and_strided_arrays_come_back_equal() -> None:
    for array in (np.arange(3), np.asfortranarray(np.ones((3, 4))), np.arange(20)[::3], np.zeros((0, 4)), np.array(5)):
        opened = unpack(pack(array))
        assert np.array_equal(opened, array)
        assert opened.shape == array.shape


def test_the_sender_may_change_its_array_after_packing() -> None:
    array = np.zeros(10)
    ref = pack(array)
    array[:] = 1
    assert not unpack(ref).any()


def test_composite_refs_open_to_lists_mappings_and_ordered_results() -> None:
    assert unpack(ListOf((pack(1), pack("a")))) == [1, "a"]
    assert list(unpack(MappingOf((("b", pack(1)), ("a", pack(2))))).items()) == [("b", 1), ("a", 2)]
    assert unpack(ListOf((MappingOf((("a", ListOf(())),)),))) == [{"a": []}]


@given(st.lists(st.integers(0, 60), unique=True, min_size=1), st.data())
def test_ordered_chunks_open_in_index_order(indices: list[int], data: st.DataObject) -> None:
    chunks: list[tuple[range | tuple[int, ...], Ref]] = []
    left = indices
    while left:
        count = data.draw(st.integers(1, len(left)))
        chunk, left = tuple(sorted(left[:count])), left[count:]
        chunks.append((chunk, pack([f"r{i}" for i in chunk])))
    assert unpack(Ordered(tuple(chunks))) == [f"r{i}" for i in sorted(indices)]


def test_ranges_as_indices_open_too() -> None:
    assert unpack(Ordered(((range(2, 4), pack(["c", "d"])), (range(2), pack(["a", "b"])), ((), pack([]))))) == list(
        "abcd"
    )


def test_lambdas_and_local_classes_are_packed_by_cloudpickle() -> None:
    class Local:
        def __init__(self) -> None:
            self.x = 3

    assert unpack(pack(lambda: 7))() == 7
    assert unpack(pack(Local())).x == 3


def test_classes_of_main_are_packed_by_value() -> None:
    program = textwrap.dedent(
        """
        import sys
        from procflow.values.objects import pack
        class Mine:
            def __init__(self, x): self.x = x
        ref = pack([Mine(41)])
        sys.stdout.buffer.write(ref.data)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    assert unpack(Inline(done.stdout))[0].x == 41


class Holder:
    def __init__(self, lock: Any) -> None:
        self.lock = lock


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Refuses:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def test_what_cannot_be_pickled_is_named_by_its_path() -> None:
    value = {"ok": 1, "a": [0, 1, 2, Holder(threading.Lock())]}
    with pytest.raises(PackError) as caught:
        pack(value)
    assert str(caught.value) == "result['a'][3].lock: cannot pickle '_thread.lock' object"


def test_paths_lead_through_slots_sets_keys_and_closures() -> None:
    lock = threading.Lock()

    def closes_over() -> Any:
        return lock

    assert explain(Slotted([lock])).startswith("result.inner[0]: cannot pickle '_thread.lock'")
    assert explain({lock}).startswith("result.<member>: ")
    assert explain({lock: 1}).startswith("result.<key <unlocked")
    assert explain(closes_over, "call").startswith("call.<variable lock>: ")
    assert explain([1, "a"]) == ""


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), ValueError("no"), TypeError("cannot")]
)
def test_a_reduce_that_raises_anything_is_a_pack_error(error: BaseException) -> None:
    with pytest.raises(PackError) as caught:
        pack([Refuses(error)])
    assert "result[0]" in str(caught.value)
    assert "Refuses" in str(caught.value)


def test_generators_get_the_advice_to_return_a_list() -> None:
    with pytest.raises(PackError, match="return a list"):
        pack({"rows": (i for i in range(3))})


def test_a_nesting_of_a_hundred_thousand_is_a_clear_error() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PackError, match="nested too deeply"):
        pack(deep)


def test_a_cyclic_value_that_can_be_pickled_comes_back_and_one_that_cannot_is_named() -> None:
    cyclic: list[Any] = [1]
    cyclic.append(cyclic)
    opened = unpack(pack(cyclic))
    assert opened[1] is opened
    cyclic.append(threading.Lock())
    with pytest.raises(PackError, match=r"result\[2\]"):
        pack(cyclic)


def test_dumps_is_one_pickle_without_buffers() -> None:
    import pickle

    assert np.array_equal(pickle.loads(dumps(np.arange(5))), np.arange(5))
    assert pickle.loads(dumps(lambda: 3))() == 3
