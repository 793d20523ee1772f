"""A control group for each worker: used where a subtree is ours, silently left alone where it is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from executor_contract import LONG_S, finish, is_final
from test_memory import GIB, attempt, hold, pid, run_attempts

from procflow.attempt import Lost
from procflow.executors.footprint import Footprint
from procflow.executors.processes import ProcessExecutor
from procflow.machine import cgroup, cgroup_slots
from procflow.machine.cgroup_slots import WorkerGroup, WorkerGroups, delegated

MOUNT = "30 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
FILES = {
    "cgroup.type": "domain\n",
    "cgroup.controllers": "cpu memory pids\n",
    "cgroup.subtree_control": "",
    "cgroup.procs": "",
    "cgroup.kill": "",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "memory.max": "max\n",
    "memory.swap.max": "max\n",
    "memory.oom.group": "0\n",
    "memory.events": "low 0\noom 0\noom_kill 0\n",
}


def populate(folder: Path) -> bool:
    """What the kernel does where a group is made."""
    try:
        folder.mkdir()
    except OSError:
        return False
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return True


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a group of our own, ``/user/scope``, that was given to us."""
    for path, text in {"proc/self/cgroup": "0::/user/scope\n", "proc/self/mountinfo": MOUNT}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "sys/fs/cgroup/user").mkdir(parents=True)
    assert populate(tmp_path / "sys/fs/cgroup/user/scope")

    def remove(folder: Path, tries: int) -> None:
        if folder.is_dir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    monkeypatch.setattr(cgroup_slots, "_mkdir", populate)
    monkeypatch.setattr(cgroup_slots, "_rmdir", remove)
    monkeypatch.setattr(cgroup_slots, "_is_marked", lambda folder: True)
    return tmp_path


def scope(tree: Path) -> Path:
    return tree / "sys/fs/cgroup/user/scope"


def text(folder: Path, name: str) -> str:
    return (folder / name).read_text()


# Is it ours?


def test_a_subtree_that_was_given_to_us_is_used(tree: Path) -> None:
    found = delegated(tree)
    assert found is not None
    assert found.shown == "/sys/fs/cgroup/user/scope"


def test_a_group_that_root_can_write_to_but_nobody_gave_away_is_left_alone(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup_slots, "_is_marked", lambda folder: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert delegated(tree) is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert delegated(tree) is not None


def test_the_top_of_a_container_is_its_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_slots, "_is_marked", lambda folder: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tree / "proc/self/cgroup").write_text("0::/\n")
    for name, content in FILES.items():
        (tree / "sys/fs/cgroup" / name).write_text(content)
    assert delegated(tree) is not None
    (tree / "sys/fs/cgroup/cgroup.type").unlink()
    assert delegated(tree) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: (scope(tree) / "cgroup.controllers").write_text("cpu pids\n"),
        lambda tree: (scope(tree) / "cgroup.subtree_control").unlink(),
        lambda tree: (tree / "proc/self/mountinfo").write_text(""),
        lambda tree: (tree / "proc/self/cgroup").write_text("4:memory:/a\n"),
        lambda tree: (tree / "proc/self/cgroup").unlink(),
    ],
    ids=["no memory", "can't be divided", "no v2", "only v1", "nothing"],
)
def test_without_a_subtree_for_memory_nothing_is_done_and_nothing_said(tree: Path, spoil: object) -> None:
    spoil(tree)  # type: ignore[operator]
    assert WorkerGroups.open(tree) is None
    footprint = Footprint(tree)
    assert footprint.size(os.getpid()).group is None


def test_where_others_live_in_the_group_it_is_left_as_it_was(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = cgroup_slots._write
    monkeypatch.setattr(
        cgroup_slots, "_write", lambda file, what: what != "+memory" and write(file, what)
    )  # the kernel says EBUSY
    assert WorkerGroups.open(tree) is None
    assert not list(scope(tree).glob("procflow-*"))
    assert text(scope(tree), "cgroup.procs") == str(os.getpid())


# What is done with it


def test_this_process_moves_beside_its_workers_and_back(tree: Path) -> None:
    left = scope(tree) / "procflow-1.77"
    assert populate(left)
    groups = WorkerGroups.open(tree)
    assert groups is not None
    assert not left.exists()
    main = scope(tree) / f"procflow-{os.getpid()}.main"
    assert text(main, "cgroup.procs") == str(os.getpid())
    assert text(scope(tree), "cgroup.subtree_control") == "+memory"
    group = groups.new(4711)
    assert group is not None
    assert text(group.folder, "cgroup.procs") == "4711"
    assert text(group.folder, "memory.oom.group") == "1"
    groups.close()
    groups.close()
    assert sorted(p.name for p in scope(tree).iterdir()) == sorted(FILES)
    assert text(scope(tree), "cgroup.procs") == str(os.getpid())
    assert text(scope(tree), "cgroup.subtree_control") == "-memory"


def test_a_limit_is_written_when_it_changes(tree: Path) -> None:
    folder = scope(tree) / "w"
    assert populate(folder)
    group = WorkerGroup(folder, "/w")
    group.limit(100)
    assert (text(folder, "memory.max"), text(folder, "memory.swap.max")) == ("100", "0")
    (folder / "memory.max").write_text("untouched")
    group.limit(100)
    assert text(folder, "memory.max") == "untouched"
    group.limit(None)
    assert (text(folder, "memory.max"), text(folder, "memory.swap.max")) == ("max", "max")
    (folder / "memory.events").write_text("oom 3\noom_kill 2\noom_group_kill 1\n")
    assert group.oom_kills() == 2
    group.kill()
    assert text(folder, "cgroup.kill") == "1"


def test_attempts_run_in_their_workers_group_with_their_limit(tree: Path) -> None:
    with ProcessExecutor(1) as executor:
        executor._footprint = Footprint(tree)
        worker = run_attempts(executor, attempt(1, pid, memory_bytes=GIB))
        (folder,) = [p for p in scope(tree).glob("procflow-*") if not p.name.endswith(".main")]
        assert folder.name == f"procflow-{os.getpid()}.{next(iter(executor.workers()))}"
        assert text(folder, "memory.max") == str(GIB)
        run_attempts(executor, attempt(2, pid))
        assert text(folder, "memory.max") == "max"
    assert worker
    assert not list(scope(tree).glob("procflow-*"))


def test_a_kill_that_the_workers_group_counts_is_out_of_memory(tree: Path) -> None:
    with ProcessExecutor(1) as executor:
        executor._footprint = Footprint(tree)
        executor.submit(attempt(1, hold, 100, 30.0, memory_bytes=GIB))
        until = time.monotonic() + LONG_S
        while executor.memory(None).rss_bytes.get(1, 0) < 100 << 20:
            assert time.monotonic() < until
            executor.wait(time.monotonic() + 0.02)
        worker = executor.pids()[1]
        folder = scope(tree) / f"procflow-{os.getpid()}.{worker}"
        (folder / "memory.events").write_text("oom 1\noom_kill 1\n")
        os.kill(worker, signal.SIGKILL)
        (lost,) = [o for o in finish(executor) if is_final(o)]
    assert isinstance(lost, Lost)
    assert lost.failure.cause == "oom"
    assert f"/sys/fs/cgroup/user/scope/{folder.name}/memory.events" in lost.failure.message
    assert lost.failure.peak_rss_bytes is not None
    assert lost.failure.peak_rss_bytes >= 100 << 20


# With the kernel's own


def test_a_real_group_kills_all_that_is_in_it_and_goes_away() -> None:
    own = next((g for g in cgroup.groups(Path("/")) if g.version == 2), None)
    folder = own.folder / f"procflow-{os.getpid()}.test" if own is not None else Path("/nowhere/procflow")
    if not cgroup_slots._mkdir(folder):
        pytest.skip("no cgroup v2 that this process may make a group in")
    group = WorkerGroup(folder, str(folder))
    code = "import os, signal; os.fork(); os.setsid() if os.fork() == 0 else 0; print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", "input();" + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert cgroup_slots._write(folder / "cgroup.procs", str(process.pid))
        out, _ = process.stdout, process.stdin.write(b"\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        for _ in range(4):
            out.readline()  # type: ignore[union-attr]
        assert len(text(folder, "cgroup.procs").split()) == 4
        group.kill()
        assert process.wait(LONG_S) == -signal.SIGKILL
        until = time.monotonic() + LONG_S
        while folder.exists():
            assert time.monotonic() < until
            group.remove()
    finally:
        process.kill()
        process.communicate()


def test_the_kernel_holds_a_worker_to_its_limit() -> None:
    if delegated(Path("/")) is None:
        pytest.skip(
            "no delegated cgroup v2 subtree with the memory controller (systemd-run --user --scope -p Delegate=yes)"
        )
    with ProcessExecutor(1) as executor:
        executor.submit(attempt(1, hold, 400, 30.0, memory_bytes=100 << 20))
        (lost,) = [o for o in finish(executor) if is_final(o)]
    assert isinstance(lost, Lost)
    assert lost.failure.cause == "oom"
    assert "memory.events" in lost.failure.message
    assert (lost.failure.peak_rss_bytes or 0) < 200 << 20
