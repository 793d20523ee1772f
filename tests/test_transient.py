"""transient: large values in shared memory, gone with their last reader, with the run, and after any kill."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from procflow import Graph, Map, Parallel, Pipeline, PipelineError, Sequence, Step
from procflow.compiler import compile_pipeline
from procflow.guarding import sweep
from procflow.ref import Stored
from procflow.values import object_files, transient

pytestmark = pytest.mark.skipif(bool(transient.unusable()), reason="needs /dev/shm")
THREE = ["inline", "threads", "processes"]
SIZE = 1_000_000


def segments() -> set[str]:
    """Folders of transient values of this test's runs that are there now."""
    own = sweep.prefix(os.environ["TEST_TOKEN"])
    return {name for name in os.listdir(sweep.SHM) if name.startswith(own) and name.endswith("-values")}


def make(*args: Any, fill: int = 1) -> bytes:
    return bytes([fill]) * SIZE


def look(value: Any) -> dict[str, Any]:
    own = {name: os.listdir(os.path.join(sweep.SHM, name)) for name in segments()}
    parts = value if isinstance(value, list) else [value]
    return {"bytes": sum(map(len, parts)), "files": sum(map(len, own.values()))}


def fails_once(value: bytes, marker: str) -> int:
    if not os.path.exists(marker):
        Path(marker).touch()
        raise RuntimeError("once")
    return len(value)


def counted(into: str) -> bytes:
    with open(into, "a", encoding="utf-8") as file:
        file.write("x")
    return bytes(SIZE)


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs of this test bear a token that their steps know; other tests may run at the same time."""
    base, count = secrets.token_hex(6), itertools.count()
    monkeypatch.setenv("TEST_TOKEN", base)
    monkeypatch.setattr("procflow.guarding.guard.new_token", lambda: f"{base}{next(count):04}")
    yield
    assert segments() == set()


def run(tmp_path: Path, *steps: Any, executor: str = "processes", **keys: Any) -> Any:
    return Pipeline("t", steps=steps, **keys).run(executor=executor, workers=2, state_dir=tmp_path / "state")


@pytest.mark.parametrize("executor", THREE)
def test_a_large_value_lies_in_shared_memory_until_its_last_reader_is_done(tmp_path: Path, executor: str) -> None:
    result = run(
        tmp_path, Step("a", make, transient=True), Step("b", look, inputs=["a"]), Step("c", make, transient=True),
        Step("d", look, inputs=["c"]), executor=executor,
    )  # fmt: skip
    assert result.status == "succeeded", result.failures
    assert result.outputs["b"] == {"bytes": SIZE, "files": 1}
    # That of a is gone by then.
    assert result.outputs["d"] == {"bytes": SIZE, "files": 1}
    objects_folder = tmp_path / "state" / "runs" / result.run_id / "objects"
    assert [p for p in objects_folder.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("executor", THREE)
def test_items_of_a_map_may_be_transient(tmp_path: Path, executor: str) -> None:
    result = run(
        tmp_path,
        Map("m", make, items=range(4), batch=2, transient=True),
        Step("b", look, inputs=["m"]),
        executor=executor,
    )
    assert result.status == "succeeded", result.failures
    assert result.outputs["b"] == {"bytes": 4 * SIZE, "files": 2}


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_a_resume_makes_a_transient_value_anew(tmp_path: Path, executor: str) -> None:
    into, marker = tmp_path / "ran", tmp_path / "marker"
    steps = [
        Step("a", counted, params={"into": str(into)}, transient=True),
        Step("b", fails_once, inputs=["a"], params={"marker": str(marker)}),
    ]
    pipeline = Pipeline("t", steps=steps)
    assert pipeline.run(executor=executor, state_dir=tmp_path / "state").status == "failed"
    assert pipeline.resume(state_dir=tmp_path / "state").outputs["b"] == SIZE
    assert into.read_text() == "xx"


def test_a_resume_does_not_make_anew_what_nobody_reads_any_more(tmp_path: Path) -> None:
    into, marker = tmp_path / "ran", tmp_path / "marker"
    steps = [
        Step("a", counted, params={"into": str(into)}, transient=True),
        Step("b", look, inputs=["a"]),
        Step("c", fails_once, inputs=["b"], params={"marker": str(marker)}),
    ]
    pipeline = Pipeline("t", steps=steps)
    assert pipeline.run(executor="inline", state_dir=tmp_path / "state").status == "failed"
    assert pipeline.resume(state_dir=tmp_path / "state").status == "succeeded"
    assert into.read_text() == "x"


def test_a_value_that_has_no_room_goes_to_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared, kept = tmp_path / "shm", tmp_path / "objects"
    for folder in (shared, kept):
        folder.mkdir(mode=0o700)
    spilling = transient.SpillingFolder(str(shared), str(kept))
    assert os.path.dirname(spilling.write(b"x" * 100_000).path) == str(shared)
    real = os.statvfs(shared)
    few = os.statvfs_result((*real[:4], 10, *real[5:]))
    monkeypatch.setattr(transient.os, "statvfs", lambda path: few)
    stored = spilling.write(b"y" * 100_000)
    assert os.path.dirname(stored.path) == str(kept)
    assert "has no room in shared memory" in caplog.text


def test_freeing_gives_memory_back_at_once_and_leaves_others_to_their_folder(tmp_path: Path) -> None:
    kept = object_files.make_folder(str(tmp_path / "objects"))
    token = "0123456789abcdef"
    path = transient.folder_of(token)
    os.mkdir(path, 0o700)
    try:
        stored = object_files.ObjectFolder(path).write(b"x" * (2 << 20))
        transient.freeing(kept, token)(stored)
        assert os.listdir(path) == []
        other = kept.write(b"x" * 100)
        transient.freeing(kept, token)(other)
        assert not os.path.exists(other.path)
        assert isinstance(stored, Stored)
    finally:
        assert sweep.remove_left(token) == 1


SCRIPT = """
import os, sys, time
from procflow.guarding import guard
guard.new_token = lambda: os.environ["TEST_TOKEN"] + "abcd"
from procflow import Pipeline, Step
def make(): return bytes(1_000_000)
def wait(value, marker):
    open(marker, "w").close()
    time.sleep(120)
Pipeline("t", steps=[Step("a", make, transient=True), Step("b", wait, inputs=["a"], params={"marker": sys.argv[1]})]).run(
    executor=sys.argv[2], workers=2, state_dir=sys.argv[3])
"""


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_nothing_is_left_after_sigkill(tmp_path: Path, executor: str) -> None:
    marker = tmp_path / "marker"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", SCRIPT, str(marker), executor, str(tmp_path / "state")]
    process = subprocess.Popen(command, env=env)
    until = time.monotonic() + 60
    while not marker.exists():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    assert len(segments()) == 1
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    while segments():
        assert time.monotonic() < until
        time.sleep(0.05)


def problems(*steps: Any, **keys: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        compile_pipeline(Pipeline("t", steps=steps, **keys))
    return "\n".join(map(str, caught.value.problems))


def test_transient_is_refused_where_it_cannot_work() -> None:
    a = Step("a", make, transient=True)
    reader = Step("b", look, inputs=["a"])
    assert "no step reads 'a'" in problems(a)
    assert "named under show or keep" in problems(a, reader, show="a")
    assert "read by a hook" in problems(a, reader, on_finish=[Step("h", look, inputs=["a"])])
    everything = Step("a", make, outputs="*", transient=True)
    assert "only the run can tell" in problems(everything, Step("b", make))
    for block in (
        Sequence("s", a, reader, transient=True),
        Parallel("p", a, transient=True),
        Graph("g", a, transient=True),
    ):
        assert "write it on the steps inside" in problems(block)
    each = Map("m", Step("x", make), Step("y", make, transient=True), items=[1])
    assert "its value is the item's result" in problems(each, Step("z", look, inputs=["m"]))
    assert "no meaning for a hook" in problems(Step("o", make), on_finish=[Step("h", make, transient=True)])


def test_members_that_a_merge_reads_may_be_transient(tmp_path: Path) -> None:
    block = Parallel(
        "p", Step("a", make, transient=True), Step("b", make, transient=True), merge="combine_outputs", output="both"
    )
    result = run(tmp_path, block, Step("c", len, inputs=["both"]))
    assert result.outputs["c"] == 2 * SIZE
