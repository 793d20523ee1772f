"""Object files: zero copies, read-only views, clean errors, reuse that nobody can notice, and resume after their loss."""

from __future__ import annotations

import gc
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow import Map, Parallel, Pipeline, Step
from procflow.errors import StoreError
from procflow.ref import Inline, ListOf, MappingOf, Stored, from_plain, stored_in
from procflow.result import ValueDropped
from procflow.storing.store_refs import decode_ref, encode_ref
from procflow.values import objects
from procflow.values.object_files import NotStored, ObjectFolder, make_folder
from procflow.values.object_views import Gone, open_stored, verify
from procflow.values.objects import INLINE_MAX, PackError, pack, unpack

MB = 1_000_000
PAGE = resource.getpagesize()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[ObjectFolder]:
    made = make_folder(str(tmp_path / "objects"))
    token = objects.FOLDER.set(made.path)
    yield made
    objects.FOLDER.reset(token)


def array(megabytes: float, fill: float = 1.0) -> Any:
    return np.full(int(megabytes * MB) // 8, fill)


def stored(value: Any) -> Stored:
    ref = pack(value)
    assert isinstance(ref, Stored)
    return ref


def mapped_file(value: Any) -> str:
    """The file that an array's memory is mapped from, from the kernel's table."""
    address = value.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= address < int(end, 16):
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


def own_rss_bytes() -> int:
    """Memory that is this process's alone."""
    total, shared = (int(field) for field in Path("/proc/self/statm").read_text().split()[1:3])
    return (total - shared) * PAGE


# -- values and their files --------------------------------------------------------------------------------------------


def test_small_values_stay_inline_and_large_ones_go_to_a_file(folder: ObjectFolder) -> None:
    assert isinstance(pack(b"x" * 1000), Inline)
    assert isinstance(pack("x" * (INLINE_MAX + 1)), Stored)
    assert isinstance(pack([b"x" * 1000] * 2), Inline)
    assert isinstance(pack(list(range(INLINE_MAX))), Stored)
    assert isinstance(pack(np.zeros(INLINE_MAX // 8 - 100)), Inline)
    assert isinstance(pack(np.zeros(INLINE_MAX // 8 + 1)), Stored)


def test_without_a_folder_all_values_are_inline() -> None:
    assert isinstance(pack(array(1)), Inline)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3 * INLINE_MAX), min_size=1, max_size=5), st.integers(0, 2**32))
def test_any_mixture_of_buffers_comes_back(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mixtures"
    token = objects.FOLDER.set(make_folder(str(path)).path)
    try:
        random = np.random.default_rng(seed)
        value = [random.integers(0, 255, size, dtype="u1") for size in sizes]
        ref = pack({"members": value, "sizes": sizes})
        opened = unpack(ref)
        assert opened["sizes"] == sizes
        assert all(np.array_equal(a, b) for a, b in zip(opened["members"], value, strict=True))
        for one in stored_in(ref):
            assert verify(one) == ""
    finally:
        objects.FOLDER.reset(token)


def test_a_stored_ref_travels_as_plain_data_and_through_the_journal(folder: ObjectFolder) -> None:
    ref = MappingOf((("a", ListOf((stored(array(0.1)), pack(1)))),))
    assert from_plain(ref.plain()) == ref
    assert decode_ref(encode_ref(ref)) == ref
    assert unpack(decode_ref(encode_ref(ref)))["a"][0].sum() == 12500


def test_an_array_is_mapped_not_copied(folder: ObjectFolder) -> None:
    ref = stored({"a": array(100), "b": array(1)})
    gc.collect()
    before = own_rss_bytes()
    opened = unpack(ref)
    assert opened["a"].sum() == 12_500_000
    assert own_rss_bytes() - before < 2 * MB
    assert mapped_file(opened["a"]) == ref.path
    again = unpack(ref)
    assert mapped_file(again["a"]) == ref.path


def test_views_of_a_file_are_aligned_and_share_its_memory(folder: ObjectFolder) -> None:
    ref = stored([array(2), array(2, 3.0)])
    data, buffers = open_stored(ref)
    first, second = pickle.loads(data, buffers=buffers)
    for opened, buffer in ((first, buffers[0]), (second, buffers[1])):
        assert np.shares_memory(opened, np.frombuffer(buffer, dtype="u1"))
        assert opened.__array_interface__["data"][0] % 64 == 0


@pytest.mark.parametrize("megabytes", [0.5, 3])
def test_stored_arrays_can_not_be_written_to(folder: ObjectFolder, megabytes: float) -> None:
    opened = unpack(stored(array(megabytes)))
    with pytest.raises(ValueError, match="read-only"):
        opened[0] = 2.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        opened.flags.writeable = True


def test_a_mapping_keeps_no_descriptor_and_ends_with_the_last_view(folder: ObjectFolder) -> None:
    refs = [stored(array(1.5, i)) for i in range(50)]
    before = len(os.listdir("/proc/self/fd"))
    opened = [unpack(ref) for ref in refs]
    assert len(os.listdir("/proc/self/fd")) == before
    part = opened[7][10:20]
    assert mapped_file(part) == refs[7].path
    del opened
    gc.collect()
    assert Path("/proc/self/maps").read_text().count(folder.path) == 1
    assert part.sum() == 70
    del part
    gc.collect()
    assert folder.path not in Path("/proc/self/maps").read_text()


def test_pandas_values_come_back_from_a_file(folder: ObjectFolder) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"x": np.arange(100_000), "y": np.arange(100_000) * 0.5})
    pandas.testing.assert_frame_equal(unpack(stored(table)), table)


def test_arrow_values_come_back_from_a_file(folder: ObjectFolder) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"x": np.arange(100_000)})
    assert unpack(stored(table)).equals(table)


class Reports:
    """An object that hands out whatever buffer it was made with."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytes, (pickle.PickleBuffer(self.buffer),)


class Releases:
    """An object that takes back what it handed out."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        buffer = pickle.PickleBuffer(bytearray(100_000))
        return list, (), None, self.after(buffer)

    def after(self, buffer: pickle.PickleBuffer) -> Iterator[Any]:
        yield buffer
        buffer.release()


def test_objects_that_lie_about_their_buffers_are_refused_or_taken_at_their_word(folder: ObjectFolder) -> None:
    with pytest.raises(PackError, match="non-contiguous"):
        pack(Reports(np.zeros((400, 400))[:, ::2]))
    with pytest.raises(PackError, match="released"):
        pack(Releases())
    block = bytearray(b"x" * 100_000)
    ref = stored(Reports(block))
    block[:] = b"y" * 100_000
    assert unpack(ref) == b"x" * 100_000
    assert unpack(stored(Reports(np.asfortranarray(np.ones((300, 300)))))) == np.ones(90_000).tobytes()


def test_files_are_private_and_have_names_that_nobody_can_guess(folder: ObjectFolder) -> None:
    first, second = stored(array(1)), stored(array(1))
    assert first.path != second.path
    assert os.stat(first.path).st_mode & 0o777 == 0o600
    assert os.stat(folder.path).st_mode & 0o777 == 0o700
    assert len(os.path.basename(first.path)) >= 24


# -- what may be wrong with a file -------------------------------------------------------------------------------------


def flip(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_a_whole_file_is_told_from_a_damaged_one(folder: ObjectFolder) -> None:
    whole, cut, flipped, gone = (stored(array(2, i)) for i in range(4))
    os.truncate(cut.path, 1000)
    flip(flipped.path)
    os.unlink(gone.path)
    assert verify(whole) == ""
    assert "1000 bytes are there" in verify(cut)
    assert "digest" in verify(flipped)
    assert "gone" in verify(gone)
    for wrong in (cut, gone):
        with pytest.raises(Gone, match=os.path.basename(wrong.path)):
            unpack(wrong)


def test_swapped_files_are_seen(folder: ObjectFolder) -> None:
    first, second = stored(array(2, 1.0)), stored(array(2, 2.0))
    os.rename(first.path, first.path + "x")
    os.rename(second.path, first.path)
    os.rename(first.path + "x", second.path)
    assert "digest" in verify(first)
    assert "digest" in verify(second)


def test_files_that_others_could_have_written_are_not_opened(folder: ObjectFolder, tmp_path: Path) -> None:
    writable, linked, planted, pipe = (stored(array(1, i)) for i in range(4))
    os.chmod(writable.path, 0o666)
    os.link(linked.path, tmp_path / "second name")
    os.rename(planted.path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", planted.path)
    os.unlink(pipe.path)
    os.mkfifo(pipe.path)
    for ref, why in ((writable, "others may write"), (linked, "hard links"), (planted, "can't be opened")):
        with pytest.raises(StoreError, match=why):
            unpack(ref)
        assert verify(ref)
    with pytest.raises(Gone):
        unpack(pipe)


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "objects").symlink_to(tmp_path / "real")
    with pytest.raises(StoreError, match="symbolic link"):
        make_folder(str(tmp_path / "objects"))


def program(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(text), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_value_that_does_not_fit_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "objects")
    done = program(
        """
        import resource, signal, sys
        import numpy as np
        from procflow.values import objects
        from procflow.values.object_files import NotStored, make_folder
        objects.FOLDER.set(make_folder(sys.argv[1]).path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
        objects.pack(np.zeros(100_000))
        try:
            objects.pack(np.zeros(1_000_000))
        except NotStored as error:
            print(error)
        """,
        path,
    )
    assert done.returncode == 0, done.stderr
    assert "a value of 7.6 MiB can't be stored in" in done.stdout
    assert path in done.stdout
    assert "free some space" in done.stdout
    assert [os.path.getsize(os.path.join(path, name)) // 1000 for name in os.listdir(path)] == [800]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs a small file system")
def test_a_full_disk_is_a_clear_error_and_free_files_make_room(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    made = make_folder(str(disk / "objects"))
    token = objects.FOLDER.set(made.path)
    try:
        first = stored(array(4))
        with pytest.raises(NotStored, match="No space left on device; free some space"):
            pack(array(6))
        assert os.listdir(made.path) == [os.path.basename(first.path)]
        made.free(first)
        assert unpack(stored(array(6))).sum() == 750_000
    finally:
        objects.FOLDER.reset(token)
        gc.collect()
        subprocess.run(["umount", "-l", disk], check=False)


def test_a_folder_that_is_gone_is_a_clear_error(folder: ObjectFolder) -> None:
    os.rmdir(folder.path)
    with pytest.raises(NotStored, match="No such file or directory"):
        pack(array(1))


# -- files that are used again -----------------------------------------------------------------------------------------


def inode(ref: Stored) -> int:
    return os.stat(ref.path).st_ino


def test_a_freed_file_is_used_for_the_next_value_of_its_size(folder: ObjectFolder) -> None:
    first = stored(array(4, 1.0))
    number = inode(first)
    folder.free(first)
    assert not os.path.exists(first.path)
    second = stored(array(3.5, 2.0))
    assert inode(second) == number
    assert verify(second) == ""
    assert unpack(second).sum() == 875_000
    other = stored(array(1, 2.0))
    folder.free(second)
    assert inode(stored(array(1, 2.0))) != number, "too large for it"
    assert unpack(other).sum() == 250_000


def test_a_freed_file_is_never_written_to_while_somebody_maps_it(folder: ObjectFolder) -> None:
    first = stored(array(4, 1.0))
    held = unpack(first)[5:10]
    number = inode(first)
    folder.free(first)
    second = stored(array(4, 2.0))
    assert inode(second) != number
    assert held.tolist() == [1.0] * 5
    assert unpack(second).sum() == 1_000_000


def test_a_mapping_of_another_process_protects_a_file_too(folder: ObjectFolder) -> None:
    first = stored(array(4, 1.0))
    number = inode(first)
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(
            """
            import pickle, sys
            from procflow.values.objects import unpack
            from procflow.ref import from_plain
            held = unpack(from_plain(pickle.loads(bytes.fromhex(sys.argv[1]))))
            print("mapped", flush=True)
            sys.stdin.read()
            print(held.sum())
            """
        ), pickle.dumps(first.plain()).hex()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "mapped\n"
    folder.free(first)
    assert inode(stored(array(4, 2.0))) != number
    assert child.communicate(timeout=60)[0] == "500000.0\n"


def test_where_a_lease_tells_nothing_no_file_is_used_again(
    folder: ObjectFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procflow.values.object_files._sole", lambda fd: True)
    first = stored(array(4))
    folder.free(first)
    stored(array(4))
    assert folder._tells_mappings is False


def test_the_files_kept_for_use_are_bounded(folder: ObjectFolder) -> None:
    for ref in [stored(array(1.1, i)) for i in range(20)]:
        folder.free(ref)
    assert len(os.listdir(os.path.join(folder.path, "free"))) == 8
    for ref in [stored(array(0.5, i)) for i in range(3)]:
        folder.free(ref)
    assert len(os.listdir(os.path.join(folder.path, "free"))) == 8
    folder.clean(())
    assert os.listdir(folder.path) == []


def test_files_of_other_folders_are_left_alone(folder: ObjectFolder, tmp_path: Path) -> None:
    other = make_folder(str(tmp_path / "other"))
    ref = stored(array(1))
    other.free(ref)
    other.clean([])
    assert verify(ref) == ""
    folder.free(Stored(folder.path + "/nothing", (2_000_000,), b""))


def test_cleaning_leaves_what_is_needed(folder: ObjectFolder) -> None:
    needed, forgotten = stored(array(1)), stored(array(1))
    Path(folder.path, "tmp-123").write_bytes(b"half")
    folder.free(stored(array(2)))
    folder.clean([needed.path])
    assert os.listdir(folder.path) == [os.path.basename(needed.path)]
    assert not os.path.exists(forgotten.path)


def test_many_writers_and_one_that_frees_never_mix_their_values(folder: ObjectFolder) -> None:
    text = """
    import os, pickle, sys
    import numpy as np
    from procflow.values import objects
    objects.FOLDER.set(sys.argv[1])
    own = float(sys.argv[2])
    for i in range(40):
        ref = objects.pack(np.full(150_000, own + i))
        assert (objects.unpack(ref) == own + i).all()
        sys.stdout.write(pickle.dumps(ref.plain()).hex() + chr(10))
        sys.stdout.flush()
        sys.stdin.readline()
        assert (objects.unpack(ref) == own + i).all()
        sys.stdout.write(chr(10))
        sys.stdout.flush()
    """
    command = [sys.executable, "-c", textwrap.dedent(text), folder.path]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, str(1000 * i)], **pipes) for i in range(3)]
    used: set[int] = set()
    try:
        for i in range(40):
            for number, writer in enumerate(writers):
                assert writer.stdin is not None
                assert writer.stdout is not None
                ref = from_plain(pickle.loads(bytes.fromhex(writer.stdout.readline().strip())))
                assert isinstance(ref, Stored)
                used.add(inode(ref))
                assert (unpack(ref) == 1000 * number + i).all()
                writer.stdin.write("\n")
                writer.stdin.flush()
                assert writer.stdout.readline() == "\n"
                folder.free(ref)
    finally:
        for writer in writers:
            writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(used) < 100, "files are used again"


# -- in runs -----------------------------------------------------------------------------------------------------------


def make(megabytes: float, fill: float = 1.0) -> Any:
    return array(megabytes, fill)


def plus_one(value: Any) -> Any:
    return value + 1


def total(value: Any) -> float:
    return float(value.sum())


def objects_of(state: Path) -> list[str]:
    return sorted(str(path) for path in state.glob("runs/*/objects/**/*") if path.is_file())


@pytest.mark.parametrize("executor", ["processes", "threads", "inline"])
def test_large_values_go_from_step_to_step_as_files(tmp_path: Path, executor: str) -> None:
    steps = [
        Step("a", make, params={"megabytes": 2}),
        Step("b", plus_one, inputs=["a"]),
        Step("c", total, inputs=["b"]),
    ]
    result = Pipeline("p", steps=[*steps, Step("d", plus_one, inputs=["b"])]).run(
        executor=executor, workers=2, state_dir=tmp_path
    )
    assert result.status == "succeeded"
    assert dict(result.outputs)["c"] == 500_000
    assert list(result.outputs) == ["c", "d"]
    assert result.outputs["d"].sum() == 750_000
    assert objects_of(tmp_path) == [next(stored_in(result.outputs.refs()["d"])).path]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="read-only"):
        result.outputs["d"][0] = 1


def test_a_value_that_was_dropped_says_how_to_keep_it_and_keep_does(tmp_path: Path) -> None:
    steps = [
        Step("a", make, params={"megabytes": 1}),
        Step("b", plus_one, inputs=["a"]),
        Step("c", total, inputs=["b"]),
    ]
    result = Pipeline("p", steps=steps, keep=["b"]).run(executor="inline", state_dir=tmp_path)
    assert "a" not in result.outputs
    with pytest.raises(KeyError) as caught:
        result.outputs["a"]
    assert isinstance(caught.value, ValueDropped)
    assert "keep: [a]" in str(caught.value)
    assert result.outputs["b"].sum() == 250_000


def use_disk(folder: str, value: Any = None) -> tuple[Any, int]:
    """Another value, and the bytes of all files of the run while it is made."""
    made = array(5)
    used = sum(path.stat().st_size for path in Path(folder).glob("runs/*/objects/**/*") if path.is_file())
    return made, used


def test_ten_values_one_after_the_other_need_no_more_disk_than_those_that_live(tmp_path: Path) -> None:
    params = {"folder": str(tmp_path)}
    steps = [Step("s0", use_disk, params=params, outputs=["v0", "used0"])]
    for i in range(1, 10):
        steps.append(
            Step(f"s{i}", use_disk, inputs={"value": f"v{i - 1}"}, params=params, outputs=[f"v{i}", f"used{i}"])
        )
    result = Pipeline("p", steps=steps).run(workers=1, state_dir=tmp_path)
    assert result.status == "succeeded", result.failures
    used = [result.outputs[f"used{i}"] / (5 * MB) for i in range(10)]
    # What is read, the one read before it (its place is used for what is being made), and one that commits lag behind.
    assert max(used) < 4.1, used
    assert len(objects_of(tmp_path)) == 1


def test_the_parents_memory_stays_flat(tmp_path: Path) -> None:
    done = program(
        """
        import sys
        sys.path.insert(0, sys.argv[2])
        from test_object_files import make, own_rss_bytes, plus_one, total
        from procflow import Parallel, Pipeline, Step
        first = Pipeline("p", steps=[Step("a", make, params={"megabytes": 1})]).run(workers=2, state_dir=sys.argv[1])
        first.outputs["a"]
        before = own_rss_bytes()
        steps = [Step("a", make, params={"megabytes": 100})]
        steps += [Parallel("both", Step("b", plus_one, inputs=["a"]), Step("c", plus_one, inputs=["a"]))]
        result = Pipeline("p", steps=[*steps, Step("d", total, inputs=["b"])]).run(workers=2, state_dir=sys.argv[1])
        assert result.outputs["d"] == 25_000_000, result.failures
        assert result.outputs["c"][7] == 2
        grown = own_rss_bytes() - before
        assert grown < 20_000_000, grown
        """,
        str(tmp_path),
        str(Path(__file__).parent),
    )
    assert done.returncode == 0, done.stderr


kept_array: Any = None


def hold(value: Any) -> float:
    global kept_array
    kept_array = value
    return float(value[0])


def look(value: Any) -> list[float]:
    return [float(kept_array.min()), float(kept_array.max()), float(value[0])]


def test_an_array_in_a_global_does_not_change_when_its_value_is_dropped(tmp_path: Path) -> None:
    steps: list[Any] = [Step("a", make, params={"megabytes": 2, "fill": 7.0}), Step("held", hold, inputs=["a"])]
    steps += [Step(f"n{i}", make, params={"megabytes": 2, "fill": float(i)}) for i in range(4)]
    steps += [Step("end", look, inputs=["n3"])]
    result = Pipeline("p", steps=steps).run(workers=1, state_dir=tmp_path)
    assert result.outputs["end"] == [7.0, 7.0, 3.0]


def note(value: Any, name: str, folder: str, add: float = 1.0) -> Any:
    with open(os.path.join(folder, "started"), "a") as file:
        file.write(f"{name}\n")
    return value + add


def begin(folder: str, name: str) -> Any:
    with open(os.path.join(folder, "started"), "a") as file:
        file.write(f"{name}\n")
    return array(1)


def fail_unless(marker: str, *values: Any) -> float:
    """Their sum; fails unless the marker is there."""
    if not os.path.exists(marker):
        raise ValueError("not yet")
    return float(sum(value.sum() for value in values))


def split_end(left: Any, right: Any, marker: str) -> float:
    return fail_unless(marker, left, right)


class Place:
    """A pipeline in a folder: a, then b and c of a, d of b, then an end that fails until it is told not to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / ".procflow"
        folder = str(path)
        self.pipeline = Pipeline("p", steps=[
            Step("a", begin, params={"folder": folder, "name": "a"}),
            Parallel(
                "both",
                Step("b", note, inputs={"value": "a"}, params={"folder": folder, "name": "b"}),
                Step("c", note, inputs={"value": "a"}, params={"folder": folder, "name": "c", "add": 3.0}),
            ),
            Step("d", note, inputs={"value": "b"}, params={"folder": folder, "name": "d"}),
            Step("end", split_end, inputs={"left": "c", "right": "d"}, params={"marker": f"{folder}/marker"}),
        ])  # fmt: skip

    def first(self) -> dict[str, Stored]:
        """The run that fails; the files of the values that are left."""
        result = self.pipeline.run(executor="inline", state_dir=self.state)
        assert result.status == "failed"
        assert sorted(self.started()) == ["a", "b", "c", "d"]
        return {name: next(stored_in(ref)) for name, ref in result.outputs.refs().items()}  # type: ignore[attr-defined]

    def started(self) -> list[str]:
        """What was started since the last look."""
        file = self.path / "started"
        names = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        return names

    def resume(self) -> list[str]:
        (self.path / "marker").touch()
        result = self.pipeline.resume(executor="inline", state_dir=self.state)
        assert result.status == "succeeded", result.failures
        assert result.outputs["end"] == 125_000 * (4 + 3)
        return self.started()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_a_resume_does_not_need_is_gone_and_is_not_missed(place: Place) -> None:
    left = place.first()
    assert sorted(left) == ["c", "d"]
    assert place.resume() == []


@pytest.mark.parametrize("what", ["delete", "truncate", "flip"])
def test_a_lost_file_costs_its_step_and_what_that_needs(place: Place, what: str) -> None:
    left = place.first()
    path = left["d"].path
    {"delete": os.unlink, "truncate": lambda p: os.truncate(p, 100), "flip": flip}[what](path)
    # d reads b, and b reads a, whose files were removed when they had been read; c was made from the same a.
    assert sorted(place.resume()) == ["a", "b", "c", "d"]


def test_only_the_step_runs_again_whose_file_is_lost_where_its_inputs_are_there(place: Place) -> None:
    place.pipeline = place.pipeline.model_copy(update={"keep": ("a", "b")})
    left = place.first()
    assert sorted(left) == ["a", "b", "c", "d"]
    os.unlink(left["d"].path)
    assert place.resume() == ["d"]


def test_what_builds_on_a_lost_value_runs_again(place: Place) -> None:
    place.pipeline = place.pipeline.model_copy(update={"keep": ("a", "b")})
    left = place.first()
    flip(left["b"].path)
    assert place.resume() == ["b", "d"]


def test_swapped_files_cost_both_steps(place: Place) -> None:
    place.pipeline = place.pipeline.model_copy(update={"keep": ("a", "b")})
    left = place.first()
    os.rename(left["c"].path, left["c"].path + "x")
    os.rename(left["d"].path, left["c"].path)
    os.rename(left["c"].path + "x", left["d"].path)
    assert sorted(place.resume()) == ["c", "d"]


def row(item: int, folder: str) -> Any:
    with open(os.path.join(folder, "started"), "a") as file:
        file.write(f"{item}\n")
    return np.full(20_000, item)


def sum_rows(rows: Any, marker: str) -> float:
    return fail_unless(marker, *rows)


def test_of_a_map_only_the_items_run_again_whose_file_is_lost(tmp_path: Path) -> None:
    pipeline = Pipeline("p", steps=[
        Map("rows", row, items=[0, 1, 2, 3], params={"folder": str(tmp_path)}, batch=1),
        Step("end", sum_rows, inputs=["rows"], params={"marker": str(tmp_path / "marker")}),
    ])  # fmt: skip
    first = pipeline.run(executor="inline", state_dir=tmp_path / "s")
    assert first.status == "failed"
    files = [one.path for one in stored_in(first.outputs.refs()["rows"])]  # type: ignore[attr-defined]
    assert len(files) == 4
    (tmp_path / "started").unlink()
    chunks = first.outputs.refs()["rows"].chunks  # type: ignore[attr-defined]
    os.unlink(chunks[1][1].path)
    flip(chunks[3][1].path)
    (tmp_path / "marker").touch()
    second = pipeline.resume(executor="inline", state_dir=tmp_path / "s")
    assert second.outputs["end"] == 20_000 * 6
    assert sorted((tmp_path / "started").read_text().split()) == ["1", "3"]


def test_an_attempt_that_is_killed_leaves_no_file(tmp_path: Path) -> None:
    steps = [Step("a", make, params={"megabytes": 1}), Step("b", store_and_die, retries=0)]
    result = Pipeline("p", steps=steps).run(workers=1, state_dir=tmp_path)
    assert result.status == "failed"
    assert len(objects_of(tmp_path)) == 1


class Deadly:
    """Kills its process when it is pickled."""

    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        return str, ()


def store_and_die() -> Any:
    objects.pack(array(1))
    return Deadly()


def two_outputs() -> Any:
    return array(1), (i for i in range(3))


def test_an_output_that_can_not_be_pickled_leaves_no_file_of_the_others(folder: ObjectFolder) -> None:
    from procflow.working.perform import publish

    with pytest.raises(PackError, match="generator"):
        publish(("x", "y"), two_outputs())
    assert os.listdir(folder.path) == []


def test_workers_load_the_hash_library_only_when_they_store(tmp_path: Path) -> None:
    # Lambdas, because importing this file loads it all.
    loaded = lambda: [name for name in ("procflow.values.object_files", "xxhash") if name in __import__("sys").modules]  # noqa: E731
    steps = [Step("before", loaded), Step("a", lambda: b"x" * 100_000), Step("after", loaded)]
    result = Pipeline("p", steps=steps).run(workers=1, state_dir=tmp_path)
    assert result.outputs["before"] == []
    assert result.outputs["after"] == ["procflow.values.object_files", "xxhash"]


def rising(item: int) -> Any:
    return np.arange(20_000) + item


def add_up(*values: Any) -> Any:
    return sum(np.asarray(value, dtype="f8").sum(axis=0) for value in values) + np.zeros(20_000)


def big_night() -> Pipeline:
    """A chain, a block, both kinds of map and an end, with values of 160 KB and items of as much."""
    chain = [Step("c0", rising, params={"item": 0})]
    chain += [Step(f"c{i}", plus_one, inputs=[f"c{i - 1}"]) for i in range(1, 4)]
    steps: list[Any] = [
        *chain,
        Parallel("both", Step("x", plus_one, inputs=["c3"]), Step("y", plus_one, inputs=["c3"])),
    ]
    steps.append(Step("items", lambda: [rising(i) for i in range(4)]))
    steps.append(Map("rows", plus_one, items="items", batch=1))
    two = (Step("u", plus_one, inputs=["item"]), Step("v", plus_one, inputs=["u"]))
    steps.append(Map("more", *two, items="items"))
    return Pipeline("night", steps=[*steps, Step("end", add_up, inputs=["x", "y", "rows", "more"])])


NIGHT = """
import os, sys
sys.path.insert(0, os.environ["TESTS"])
from test_object_files import big_night
from procflow import engine
# At every turn, so that the passes are the same each time.
engine.COMMIT_S = engine.COMMIT_MOST_S = 0.0
result = big_night().run(executor="inline", state_dir=sys.argv[1])
"""


@pytest.mark.parametrize("place", ["journal.commit.before", "journal.commit.after", "engine.submit"])
@pytest.mark.parametrize("passed", [7, 16])
def test_a_run_that_is_killed_anywhere_comes_to_the_same_end_and_leaves_only_its_results(
    tmp_path: Path, place: str, passed: int
) -> None:
    env = {**os.environ, "PROCFLOW_FAILPOINTS": f"{place}=kill@{passed}", "TESTS": str(Path(__file__).parent)}
    command = [sys.executable, "-c", NIGHT, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    result = big_night().resume(executor="inline", state_dir=tmp_path)
    assert result.status == "succeeded", result.failures
    chain = np.arange(20_000) + 3
    rows = sum(np.arange(20_000) + i + 1 for i in range(4)) + sum(np.arange(20_000) + i + 2 for i in range(4))
    assert result.outputs["end"].tolist() == (np.zeros(20_000) + 2 * (chain + 1).sum() + rows).tolist()
    assert list(result.outputs) == ["end"]
    assert len(objects_of(tmp_path)) == 1
