"""Cores and memory: the smallest limit counts, wherever it stands, in trees of files made for the purpose."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from procflow.errors import PipelineError
from procflow.machine import cgroup
from procflow.machine.resources import Machine, available_bytes, budget, probe, workers
from procflow.units import Share

MIB = 1 << 20
GIB = 1 << 30
NO_LIMIT = str(2**63 - 4096)
V2_MOUNT = "30 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"


def v1_mount(controllers: str, root: str = "/", where: str = "") -> str:
    return f"31 23 0:29 {root} {where or '/sys/fs/cgroup/' + controllers} rw shared:5 master:2 - cgroup cgroup rw,{controllers}"


class Tree:
    """A root folder with ``/proc/self`` files and cgroup files below it."""

    def __init__(self, root: Path, own: str = "", *mounts: str) -> None:
        self.root = root
        self.write("proc/self/cgroup", own)
        self.write("proc/self/mountinfo", "\n".join(["22 1 8:1 / / rw - ext4 /dev/root rw", *mounts]) + "\n")

    def write(self, path: str, text: str) -> Tree:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    def limits(self) -> tuple[float | None, float | None]:
        """Cores and bytes that the groups allow."""
        found = cgroup.groups(self.root)
        cpu, memory = cgroup.cpu_limit(found), cgroup.memory_limit(found)
        return cpu.amount if cpu else None, memory.amount if memory else None


def test_a_limit_of_an_ancestor_binds_in_v2(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/batch.slice/night.scope/step\n", V2_MOUNT)
    base = "sys/fs/cgroup/batch.slice"
    tree.write(f"{base}/memory.max", f"{512 * MIB}\n").write(f"{base}/cpu.max", "150000 100000\n")
    tree.write(f"{base}/night.scope/memory.max", "max\n").write(f"{base}/night.scope/cpu.max", "max 100000\n")
    tree.write(f"{base}/night.scope/step/memory.max", f"{GIB}\n").write(
        f"{base}/night.scope/step/cpu.max", "400000 100000\n"
    )
    assert tree.limits() == (1.5, 512 * MIB)
    found = cgroup.groups(tmp_path)
    assert [g.shown for g in found] == [
        "/sys/fs/cgroup/batch.slice/night.scope/step",
        "/sys/fs/cgroup/batch.slice/night.scope",
        "/sys/fs/cgroup/batch.slice",
        "/sys/fs/cgroup",
    ]
    limit = cgroup.memory_limit(found)
    assert limit is not None
    assert limit.source == "/sys/fs/cgroup/batch.slice/memory.max"


def test_memory_high_counts_like_memory_max(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/a\n", V2_MOUNT)
    tree.write("sys/fs/cgroup/a/memory.max", f"{GIB}").write("sys/fs/cgroup/a/memory.high", f"{256 * MIB}")
    assert tree.limits() == (None, 256 * MIB)


def test_a_limit_at_the_mount_binds_a_process_in_its_own_namespace(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/\n", V2_MOUNT)
    tree.write("sys/fs/cgroup/memory.max", f"{GIB}").write("sys/fs/cgroup/cpu.max", "50000 100000")
    assert tree.limits() == (0.5, GIB)


def test_limits_of_v1_bind_at_every_level(tmp_path: Path) -> None:
    tree = Tree(
        tmp_path,
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/x\n",
        v1_mount("cpu,cpuacct"),
        v1_mount("memory"),
    )
    tree.write("sys/fs/cgroup/memory/docker/memory.limit_in_bytes", f"{2 * GIB}\n")
    tree.write("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", f"{NO_LIMIT}\n")
    tree.write("sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us", "300000\n").write(
        "sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n"
    )
    tree.write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "-1\n")
    assert tree.limits() == (3.0, 2 * GIB)


def test_a_container_that_sees_only_its_own_group_reads_it_at_the_mount(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "4:memory:/docker/abc/inner\n", v1_mount("memory", "/docker/abc"))
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{GIB}").write(
        "sys/fs/cgroup/memory/inner/memory.limit_in_bytes", f"{2 * GIB}"
    )
    assert tree.limits() == (None, GIB)


@pytest.mark.parametrize("own", ["/../other", "/elsewhere"])
def test_a_group_outside_the_mounted_part_leaves_the_mount(tmp_path: Path, own: str) -> None:
    mount = V2_MOUNT.replace("0:28 / ", f"0:28 {'/' if '..' in own else '/docker/abc'} ")
    tree = Tree(tmp_path, f"0::{own}\n", mount).write("sys/fs/cgroup/memory.max", f"{GIB}")
    (tmp_path / "sys/fs/other").mkdir()
    tree.write("sys/fs/other/memory.max", "5")
    assert tree.limits() == (None, GIB)


def test_both_versions_together_bind_together(tmp_path: Path) -> None:
    hybrid = V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    tree = Tree(tmp_path, "4:memory:/a\n3:cpu:/a\n0::/b\n", v1_mount("memory"), v1_mount("cpu"), hybrid)
    tree.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", f"{GIB}").write(
        "sys/fs/cgroup/unified/b/cpu.max", "200000 100000"
    )
    tree.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000").write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "50000")
    assert tree.limits() == (2.0, GIB)


@pytest.mark.parametrize("text", ["", "max", "\n", NO_LIMIT, "-1", "0", "nonsense", "9" * 30, "12 34", "٣"])
def test_odd_limit_files_are_no_limits(tmp_path: Path, text: str) -> None:
    tree = Tree(tmp_path, "0::/a\n4:memory:/a\n3:cpu:/a\n", V2_MOUNT, v1_mount("memory"), v1_mount("cpu"))
    for file in ("a/memory.max", "a/memory.high", "memory/a/memory.limit_in_bytes"):
        tree.write(f"sys/fs/cgroup/{file}", text)
    for file in ("a/cpu.max", "cpu/a/cpu.cfs_quota_us"):
        tree.write(f"sys/fs/cgroup/{file}", text if text not in ("12 34", "9" * 30, NO_LIMIT) else "max 100000")
    assert tree.limits() == (None, None)


@pytest.mark.parametrize("file", ["proc/self/cgroup", "proc/self/mountinfo"])
@pytest.mark.parametrize("text", [None, "", "nonsense\n", "::\n\n:", "1 2 3 - cgroup2\n", "0::/a\n" * 3])
def test_missing_and_odd_files_of_proc_are_no_limits(tmp_path: Path, file: str, text: str | None) -> None:
    tree = Tree(tmp_path, "0::/a\n", V2_MOUNT)
    if text is None:
        (tmp_path / file).unlink()
    else:
        tree.write(file, text)
    assert tree.limits() == (None, None)
    assert probe(tmp_path).memory_bytes == psutil.virtual_memory().total


def test_a_mount_with_a_space_in_its_name_is_found(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/\n", V2_MOUNT.replace("/sys/fs/cgroup", "/my\\040groups"))
    assert tree.write("my groups/memory.max", f"{GIB}").limits() == (None, GIB)


def test_headroom_is_that_of_the_tightest_group_and_cache_counts_as_free(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/a/b\n", V2_MOUNT)
    a, b = "sys/fs/cgroup/a", "sys/fs/cgroup/a/b"
    tree.write(f"{a}/memory.max", f"{GIB}").write(f"{a}/memory.current", f"{1000 * MIB}")
    tree.write(f"{a}/memory.stat", f"anon 5\ninactive_file {300 * MIB}\nactive_file 7\n")
    tree.write(f"{b}/memory.max", f"{512 * MIB}").write(f"{b}/memory.current", f"{100 * MIB}")
    assert cgroup.memory_headroom(cgroup.groups(tmp_path)) == 324 * MIB
    tree.write(f"{b}/memory.current", f"{600 * MIB}")
    assert cgroup.memory_headroom(cgroup.groups(tmp_path)) == 0
    assert available_bytes(tmp_path) == 0


def test_headroom_of_v1_reads_its_own_files(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "4:memory:/a\n", v1_mount("memory"))
    a = "sys/fs/cgroup/memory/a"
    tree.write(f"{a}/memory.limit_in_bytes", f"{GIB}").write(f"{a}/memory.usage_in_bytes", f"{900 * MIB}")
    tree.write(f"{a}/memory.stat", f"inactive_file 1\ntotal_inactive_file {100 * MIB}\n")
    assert cgroup.memory_headroom(cgroup.groups(tmp_path)) == 224 * MIB


def test_the_machine_is_what_is_smallest_with_its_source(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0::/a\n", V2_MOUNT)
    tree.write("sys/fs/cgroup/a/memory.max", f"{64 * MIB}").write("sys/fs/cgroup/a/cpu.max", "50000 100000")
    machine = probe(tmp_path)
    assert (machine.cpus, machine.memory_bytes) == (1, 64 * MIB)
    assert machine.memory_source == "/sys/fs/cgroup/a/memory.max"
    assert machine.available_bytes <= 64 * MIB
    if (os.cpu_count() or 1) > 1 and len(os.sched_getaffinity(0)) > 1:
        assert machine.cpus_source == "/sys/fs/cgroup/a/cpu.max"
    assert "64 MiB" in str(machine)


def test_a_quota_of_one_and_a_half_cores_keeps_two_workers_busy(tmp_path: Path) -> None:
    Tree(tmp_path, "0::/a\n", V2_MOUNT).write("sys/fs/cgroup/a/cpu.max", "150000 100000")
    assert probe(tmp_path).cpus == min(2, os.cpu_count() or 1, len(os.sched_getaffinity(0)))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_binds_and_one_core_needs_no_loky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tree(tmp_path)
    monkeypatch.setitem(sys.modules, "loky", None)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    machine = probe(tmp_path)
    assert (machine.cpus, machine.cpus_source) == (1, "affinity")


def test_lokys_own_limit_binds_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tree(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "3")
    machine = probe(tmp_path)
    assert (machine.cpus, machine.cpus_source) == (3, "loky.cpu_count")


def test_this_machine_can_be_probed() -> None:
    machine = probe()
    assert 1 <= machine.cpus <= (os.cpu_count() or 1)
    assert 0 < machine.memory_bytes <= psutil.virtual_memory().total
    assert 0 <= machine.available_bytes <= machine.memory_bytes


MACHINE = Machine(8, 10 * GIB, 5 * GIB, "affinity", "/sys/fs/cgroup/memory.max")


def test_a_budget_is_a_share_of_the_memory_or_a_size_within_it() -> None:
    assert budget(MACHINE, Share(0.8)) == 8 * GIB
    assert budget(MACHINE, 3 * GIB) == 3 * GIB
    assert budget(MACHINE, 10 * GIB) == 10 * GIB


def test_a_budget_above_the_machine_is_refused_with_where_its_limit_comes_from() -> None:
    with pytest.raises(
        PipelineError, match=r"64 GiB is more than this machine gives: 10 GiB \(/sys/fs/cgroup/memory.max\)"
    ) as caught:
        budget(MACHINE, 64 * GIB)
    assert caught.value.problems[0].loc == ("limits", "memory")


def test_workers_are_the_cores_unless_declared() -> None:
    assert workers(MACHINE, "auto") == 8
    assert workers(MACHINE, 100) == 100
