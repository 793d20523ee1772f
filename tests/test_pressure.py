"""Pressure of the machine: how it is read, and how many attempts may run under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_learning import f, graph_of

from procflow.api import Parallel, Pipeline, Step
from procflow.attempt import Succeeded
from procflow.errors import PipelineError
from procflow.machine.pressure import Pressure
from procflow.ref import Inline
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Measured, Stall, Submit
from procflow.scheduling.easing import Easing


def machine(root: Path, memory_s: float, cpu_s: float, waits_s: dict[int, float]) -> None:
    """What the kernel would say: seconds in which something waited, and how long each worker has waited for a core."""
    (root / "proc/pressure").mkdir(parents=True, exist_ok=True)
    for name, seconds in (("memory", memory_s), ("cpu", cpu_s)):
        text = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={seconds * 1e6:.0f}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
        (root / "proc/pressure" / name).write_text(text)
    for pid, seconds in waits_s.items():
        (root / f"proc/{pid}").mkdir(exist_ok=True)
        (root / f"proc/{pid}/schedstat").write_text(f"123 {seconds * 1e9:.0f} 7\n")


def test_pressure_is_the_share_of_the_time_since_the_last_reading(tmp_path: Path) -> None:
    pressure = Pressure(2, tmp_path)
    machine(tmp_path, 1.0, 10.0, {11: 5.0, 12: 0.0, 13: 1.0})
    assert pressure.read([11, 12, 13], 100.0) is None
    assert pressure.read([11, 12, 13], 100.5) is None
    machine(tmp_path, 2.0, 13.0, {11: 7.0, 12: 1.0, 13: 4.0})
    assert pressure.read([11, 12, 13], 104.0) == Stall(0.25, 0.5, 2)


def test_waits_of_our_own_count_only_while_the_machine_is_crowded(tmp_path: Path) -> None:
    pressure = Pressure(1, tmp_path)
    machine(tmp_path, 0.0, 0.0, {11: 0.0, 12: 0.0})
    pressure.read([11, 12], 100.0)
    machine(tmp_path, 0.0, 0.1, {11: 4.0, 12: 4.0})
    assert pressure.read([11, 12], 104.0) == Stall(0.0, 0.0, 1)


def test_without_the_kernels_files_there_is_no_pressure(tmp_path: Path) -> None:
    pressure = Pressure(1, tmp_path)
    assert pressure.read([1, 2], 100.0) is None
    assert pressure.read([1, 2], 104.0) == Stall(0.0, 0.0, 1)
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/pressure/memory").write_bytes(b"\xff\x00 some total=what")
    assert pressure.read([1, 2], 108.0) == Stall(0.0, 0.0, 1)


def test_the_control_group_speaks_for_itself(tmp_path: Path) -> None:
    machine(tmp_path, 50.0, 0.0, {})
    own = tmp_path / "sys/fs/cgroup/batch"
    own.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/cgroup").write_text("0::/batch\n")
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    (own / "memory.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    pressure = Pressure(1, tmp_path)
    pressure.read([], 100.0)
    machine(tmp_path, 54.0, 0.0, {})
    (own / "memory.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n")
    assert pressure.read([], 104.0) == Stall(0.25, 0.0, 1)


def test_this_machine_can_be_read() -> None:
    pressure = Pressure(1)
    assert pressure.read([], 1.0) is None
    assert pressure.read([], 3.0) is not None


SHORT = Stall(memory=0.9, cores=2)
CROWDED = Stall(cpu=0.9, cores=2)
FINE = Stall(cores=2)


def test_one_fewer_may_run_at_a_time_and_then_one_more() -> None:
    easing = Easing()
    seen: list[Any] = [easing.take(SHORT, 4, 4, float(now)) for now in range(9)]
    assert seen == [3, 3, 2, 2, 1, 1, 1, 1, 1]
    seen = [easing.take(FINE, 1, 4, float(now)) for now in range(9, 22)]
    assert seen == [2, 2, 2, 2, 3, 3, 3, 3, None, None, None, None, None]
    assert easing.least == 1


def test_for_want_of_cores_never_fewer_run_than_there_are_cores() -> None:
    easing = Easing()
    assert [easing.take(CROWDED, 8, 8, float(now * 2)) for now in range(9)][-1] == 2
    assert Easing().take(CROWDED, 2, 2, 0.0) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 9), st.floats(0, 9))), st.integers(1, 8))
def test_at_least_one_may_always_run(samples: list[tuple[float, float, int, float]], slots: int) -> None:
    easing, now = Easing(), 0.0
    for memory, cpu, running, span_s in samples:
        now += span_s
        most = easing.take(Stall(memory, cpu, 2), running, slots, now)
        assert most is None or most >= 1


def test_under_lasting_pressure_a_run_goes_on_one_by_one_and_ends() -> None:
    graph = graph_of(Parallel("p", *(Step(f"s{i}", f) for i in range(12))))
    scheduler = Scheduler(graph, slots={"processes": 4}, memory_bytes=10**9)
    actions, now, order = scheduler.start(0.0), 0.0, []
    while not scheduler.finished:
        order.append(len(scheduler.running))
        now += 2.0
        scheduler.handle(Measured({}, 0, SHORT), now)
        key, task = next(iter(scheduler.running.items()))
        actions = scheduler.handle(Succeeded(key, {task.unit.name: Inline(b"")}), now)
    assert not [a for a in actions if isinstance(a, Submit)]
    assert (scheduler.status, order[0], order[-1]) == ("succeeded", 4, 1)
    assert scheduler.easing.least == 1


def test_limits_say_whether_pressure_counts() -> None:
    assert Pipeline("p", steps=[Step("a", f)]).limits.pressure == "auto"
    assert Pipeline("p", steps=[Step("a", f)], limits={"pressure": "off"}).limits.pressure == "off"
    with pytest.raises(PipelineError, match="pressure"):
        Pipeline("p", steps=[Step("a", f)], limits={"pressure": "low"})
