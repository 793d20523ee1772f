"""Memory: steps over their limit are stopped, the run stays within its budget, a leak costs nothing but a worker."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from executor_contract import LONG_S, Log, finish, is_final, value
from executor_contract import run as run_attempts
from steps_for_memory import HOLD_IN_CHILD, MIB, blas_threads, grow, grow_in_child, hold, leak, linger, pid

from procflow import Map, Parallel, Pipeline, Step
from procflow.attempt import Attempt, Lost, Outcome
from procflow.call import StepCall
from procflow.compiler import compile_pipeline
from procflow.engine import Engine
from procflow.events import AttemptFinished, AttemptStarted, Event, RunFinished, StepFinished
from procflow.executors.base import MemoryUse
from procflow.executors.footprint import LEAK_BYTES, Footprint
from procflow.executors.processes import ProcessExecutor
from procflow.machine import cgroup, resources, rss
from procflow.machine.memory import LONGEST_S, SHORTEST_S, MemoryWatch
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Measured
from procflow.showing.progress import LineProgress
from procflow.storing.store import MemoryStore, RunRecord

GIB = 1 << 30
RATE = 4 * 10**9
"""Bytes a second: more than one core can touch."""


def attempt(
    key: int, function: Callable[..., Any], *args: Any, memory_bytes: int | None = None, cpus: int = 1
) -> Attempt:
    call = StepCall("transform", "0", function.__name__, f"steps_for_memory:{function.__name__}", args, {}, ("out",),
                    folder=str(Path(__file__).parent))  # fmt: skip
    return Attempt(key, call, memory_bytes=memory_bytes, cpus=cpus, log=Log())


def events_of(
    pipeline: Pipeline, executor: ProcessExecutor, budget_bytes: int, watch: Callable[..., Any] = MemoryWatch
) -> list[Event]:
    """All events of a run on this executor, with the real loop and a journal in memory."""
    graph = compile_pipeline(pipeline, params={}, run_id="m")
    scheduler = Scheduler(graph, slots={"processes": executor.slots}, memory_bytes=budget_bytes, run_id="m")
    store = MemoryStore()
    store.begin(RunRecord("m", pipeline.name))
    memory = watch([executor], budget_bytes)
    engine = Engine(scheduler, {"processes": executor}, executor, store, memory=memory)
    until = time.monotonic() + 60.0
    events: list[Event] = []
    for group in engine.turns():
        assert time.monotonic() < until, events[-5:]
        events += group
    return events


def ended(events: list[Event], label: str = "") -> list[AttemptFinished]:
    return [e for e in events if isinstance(e, AttemptFinished) and (not label or e.label == label)]


def status(events: list[Event]) -> str:
    assert isinstance(events[-1], RunFinished)
    return events[-1].status


@pytest.fixture(params=["lists", "scan"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's lists of children and without."""
    monkeypatch.setattr(rss, "HAS_CHILDREN", request.param == "lists")


@pytest.fixture
def child() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a Python process and waits until it has printed a line."""
    made: list[subprocess.Popen[bytes]] = []

    def start(code: str, *args: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
        made.append(process := subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    yield start
    for process in made:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


# What is read


def test_what_is_mapped_is_not_counted_and_what_is_held_is(tmp_path: Path) -> None:
    before = rss.own_bytes()
    file = tmp_path / "big"
    file.write_bytes(bytes(64 * MIB))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        assert rss.own_bytes() - before < 16 * MIB
    held = bytearray(64 * MIB)
    assert 56 * MIB < rss.own_bytes() - before < 80 * MIB
    del held


@pytest.mark.usefixtures("ways")
def test_a_tree_has_the_children_of_threads_and_their_children(child: Callable[..., subprocess.Popen[bytes]]) -> None:
    code = """
        import subprocess, sys, threading, time
        inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]])"
        def start(): subprocess.run([sys.executable, "-c", inner, *sys.argv[1:]])
        threading.Thread(target=start, daemon=True).start()
        time.sleep(60)
    """
    process = child(code, 64 * MIB, HOLD_IN_CHILD)
    tree = rss.Tree(process.pid)
    try:
        assert tree.own() < 40 * MIB
        assert tree.read() > tree.own() + 64 * MIB
    finally:
        tree.close()


def test_what_forked_children_share_is_counted_once_where_it_matters(
    child: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = child("""
        import os, time
        held = bytearray(64 << 20)
        for _ in range(4):
            if os.fork() == 0:
                time.sleep(60)
        print(flush=True)
        time.sleep(60)
    """)
    tree = rss.Tree(process.pid)
    try:
        until = time.monotonic() + 5.0
        while (total := tree.read()) < 5 * 64 * MIB:
            assert time.monotonic() < until
        exact = tree.read(alarm_bytes=128 * MIB)
        assert 64 * MIB < exact < 128 * MIB < total
        assert tree.read(alarm_bytes=GIB) > 5 * 64 * MIB
    finally:
        tree.close()


def test_a_process_that_is_gone_holds_nothing(child: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = child("print(flush=True); import time; time.sleep(60)")
    tree = rss.Tree(process.pid)
    assert tree.read() > MIB
    process.kill()
    process.wait()
    assert tree.read() == 0 == rss.private_bytes(process.pid)
    tree.close()
    tree.close()


def test_more_children_are_seen_than_fit_into_one_piece(child: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = child("""
        import os, signal
        for _ in range(1100):
            if os.fork() == 0:
                signal.pause()
        print(flush=True)
        signal.pause()
    """)
    tree = rss.Tree(process.pid)
    assert len(rss.children_of(process.pid)) == 1100 == len(tree._below(()))
    tree.close()


# When it is looked at


class Metered:
    """An executor that says what it is told to."""

    capabilities = frozenset({"memory"})

    def __init__(self) -> None:
        self.use = MemoryUse({}, 0, float("inf"))
        self.sheds = 0

    def memory(self, budget_bytes: int | None) -> MemoryUse:
        return self.use

    def shed(self) -> None:
        self.sheds += 1


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.step_s = 0.0

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


def watched(budget_bytes: int | None, own: Iterator[int] | None = None) -> tuple[MemoryWatch, Metered, Clock, Clock]:
    executor, clock, cpu = Metered(), Clock(), Clock()
    sizes = own if own is not None else iter([0] * 99)
    return (
        MemoryWatch([executor], budget_bytes, clock=clock, cpu_clock=cpu, own_bytes=lambda: next(sizes)),
        executor,
        clock,
        cpu,
    )


@pytest.mark.parametrize(
    ("room", "total", "pause_s"),
    [
        (float("inf"), 0, LONGEST_S),
        (GIB, 0, LONGEST_S),
        (400_000_000, 0, 0.1),
        (10 * MIB, 0, SHORTEST_S),
        (-5, 0, SHORTEST_S),
        (float("inf"), 8 * 10**9 - 10 * MIB, SHORTEST_S),
        (float("inf"), 8 * 10**9 - 1_200_000_000, 0.1),
    ],
)
def test_a_look_comes_before_a_step_could_pass_a_limit(room: float, total: int, pause_s: float) -> None:
    memory, executor, clock, _ = watched(8 * 10**9)
    executor.use = MemoryUse({1: 1, 2: 2, 3: 3}, total, room)
    assert memory.measure() == Measured({1: 1, 2: 2, 3: 3}, total)
    assert memory.due - clock.now == pytest.approx(pause_s)


def test_nobody_looks_where_there_is_neither_budget_nor_limit() -> None:
    memory, executor, clock, _ = watched(None)
    assert memory.due == float("inf")
    memory.expect(None)
    assert memory.due == float("inf")
    memory.expect(100 * MIB)
    assert memory.due == clock.now + SHORTEST_S
    executor.use = MemoryUse({1: MIB}, MIB, float("inf"))
    memory.measure()
    assert memory.due == float("inf")


def test_a_step_with_a_small_limit_brings_the_next_look_forward() -> None:
    memory, _, clock, _ = watched(8 * 10**9)
    memory.measure()
    assert memory.due == pytest.approx(clock.now + LONGEST_S)
    memory.expect(10**9)
    assert memory.due == pytest.approx(clock.now + LONGEST_S)
    memory.expect(100 * MIB)
    assert memory.due == pytest.approx(clock.now + SHORTEST_S)


def test_looking_takes_a_bounded_share_of_the_time() -> None:
    memory, _, clock, cpu = watched(8 * 10**9)
    cpu.step_s = 0.02
    memory.measure()
    assert memory.due == pytest.approx(clock.now + 1.0)


def test_what_the_parent_had_before_the_run_is_not_the_runs() -> None:
    memory, executor, _, _ = watched(8 * 10**9, iter([3 * GIB, 3 * GIB + 7, 2 * GIB]))
    executor.use = MemoryUse({}, 100, float("inf"))
    assert memory.measure().total_bytes == 107
    assert memory.measure().total_bytes == 100


def test_idle_workers_go_before_steps_do() -> None:
    memory, executor, _, _ = watched(1000)
    executor.use = MemoryUse({}, 850, float("inf"))
    memory.measure()
    assert executor.sheds == 0
    executor.use = MemoryUse({}, 851, float("inf"))
    memory.measure()
    assert executor.sheds == 1


# Limits of steps


def test_a_burst_is_stopped_no_later_than_a_look_and_a_kill_take() -> None:
    looks: list[float] = []

    class Noted(MemoryWatch):
        def measure(self) -> Measured:
            sample = super().measure()
            looks.append(time.monotonic())
            return sample

    with ProcessExecutor(1) as executor:
        run_attempts(executor, attempt(1, pid))
        began = time.monotonic()
        events = events_of(
            Pipeline("p", steps=[Step("burst", partial(grow, 4096), memory="100MB")]), executor, 16 * GIB, Noted
        )
        assert status(events) == "failed"
    end = ended(events)[0]
    assert end.failure is not None
    assert end.status == "lost"
    assert (end.failure.cause, end.number, end.label) == ("oom", 1, "burst")
    assert "over its memory limit of 95 MiB" in str(end.failure)
    peak = end.failure.peak_rss_bytes
    assert peak is not None
    assert end.usage.peak_rss_bytes > 100_000_000
    # From the last look that saw it within its limit to its death.
    died = began + end.at + 0.05
    last_good = max((at for at in looks[:-1] if at < died), default=began)
    gap_s = max(b - a for a, b in zip([began, *looks], [*looks, died], strict=True))
    assert peak < 100_000_000 + RATE * (gap_s + died - last_good)
    assert peak < 3 * GIB


def test_memory_of_a_child_counts_and_the_child_dies_too() -> None:
    with ProcessExecutor(1) as executor:
        pipeline = Pipeline("p", steps=[Map("m", grow_in_child, items=[300], memory="150MB", tolerate=1)])
        events = events_of(pipeline, executor, 8 * GIB)
        assert not [p for p in rss.children_of(os.getpid()) if rss.private_bytes(p) > 150_000_000]
    failed = [e for e in events if isinstance(e, StepFinished) and e.status == "failed"]
    assert [(e.item, e.failure.cause if e.failure else "") for e in failed] == [("0", "oom")]
    assert status(events) == "partial"


def test_an_attempt_over_its_limit_runs_again_with_more_and_reservations_stay_within_the_budget() -> None:
    budget_bytes = 500_000_000
    retry = {"retries": 6, "delay": "0s"}
    steps = [Step(f"s{i}", partial(hold, 100, 0.2), memory="10MiB", retry=retry) for i in range(4)]
    pipeline = Pipeline("p", steps=[Parallel("liars", *steps)], limits={"retry_budget": "100%"})
    with ProcessExecutor(4) as executor:
        events = events_of(pipeline, executor, budget_bytes)
    assert status(events) == "succeeded"
    assert {e.failure.cause for e in ended(events) if e.failure is not None} == {"oom"}
    held: dict[int, int] = {}
    for event in events:
        if isinstance(event, AttemptStarted):
            assert event.memory_bytes is not None
            held[event.key] = event.memory_bytes
            assert sum(held.values()) <= budget_bytes
        elif isinstance(event, AttemptFinished):
            del held[event.key]
    assert not held


# The run as a whole


def test_under_pressure_the_youngest_runs_again_alone_and_all_succeed() -> None:
    budget_bytes = 900 * MIB
    pipeline = Pipeline("p", steps=[Parallel("liars", *(Step(f"s{i}", partial(hold, 200, 0.2)) for i in range(8)))])
    with ProcessExecutor(8) as executor:
        events = events_of(pipeline, executor, budget_bytes)
    assert status(events) == "succeeded"
    lost = [e for e in ended(events) if e.status == "lost"]
    assert lost
    assert {e.failure.cause for e in lost if e.failure is not None} == {"pressure"}
    assert len(ended(events)) == 8 + len(lost)
    # Those that were stopped had the machine to themselves when they ran again.
    running: set[str] = set()
    for event in events:
        if isinstance(event, AttemptStarted):
            running.add(event.label)
            assert event.number == 1 or running == {event.label}
        elif isinstance(event, AttemptFinished):
            running.discard(event.label)
    # No step has a retry, so none was charged.
    assert all(e.number <= 3 for e in ended(events))


def test_idle_workers_are_let_go_and_started_again() -> None:
    with ProcessExecutor(2) as executor:
        first = {value(o) for o in run_attempts(executor, attempt(1, hold, 1, 0.1), attempt(2, hold, 1, 0.1)).values()}
        assert first == {MIB}
        assert len(executor.workers()) == 2
        executor.shed()
        until = time.monotonic() + LONG_S
        while executor.workers():
            assert time.monotonic() < until
            executor.wait(time.monotonic() + 0.01)
        assert value(run_attempts(executor, attempt(3, hold, 1))[3]) == MIB
        assert len(executor.workers()) == 1


def test_an_idle_worker_that_hangs_at_its_end_is_killed() -> None:
    with ProcessExecutor(1) as executor:
        worker = value(run_attempts(executor, attempt(1, linger))[1])
        executor.shed()
        until = time.monotonic() + 6.0
        while worker in executor.workers():
            assert time.monotonic() < until
            executor.wait(time.monotonic() + 0.05)


# Peaks


def test_the_peak_of_an_attempt_is_its_own_even_between_samples() -> None:
    with ProcessExecutor(1) as executor:
        outcomes = run_attempts(executor, *(attempt(i, hold, size) for i, size in enumerate([1, 160, 1, 80, 1])))
    peaks = [outcomes[i].usage.peak_rss_bytes // MIB for i in range(5)]  # type: ignore[union-attr]
    assert 160 <= peaks[1] < 200
    assert 80 <= peaks[3] < 120
    assert max(peaks[0], peaks[2], peaks[4]) < 60
    assert min(peaks) > 1


def test_a_peak_in_a_child_is_sampled() -> None:
    with ProcessExecutor(1) as executor:
        one = attempt(1, grow_in_child, 100, memory_bytes=GIB)
        executor.submit(one)
        until = time.monotonic() + LONG_S
        while executor.memory(None).rss_bytes.get(1, 0) < 100 * MIB:
            assert time.monotonic() < until
            assert not any(map(is_final, executor.wait(time.monotonic() + 0.01)))
        executor.kill(1, "cancelled", 0.0)
        (lost,) = [o for o in finish(executor) if is_final(o)]
    assert isinstance(lost, Lost)
    assert lost.usage.peak_rss_bytes >= 100 * MIB


# Workers that grow


def test_a_worker_that_leaks_is_replaced_between_steps() -> None:
    with ProcessExecutor(1) as executor:
        pipeline = Pipeline("p", steps=[Step(f"s{i}", partial(leak, 20, 0.02)) for i in range(50)])
        events = events_of(pipeline, executor, GIB)
        assert executor._spawned > 2
    assert status(events) == "succeeded"
    assert [e.number for e in ended(events)] == [1] * 50
    assert max(e.usage.peak_rss_bytes for e in ended(events)) < GIB


def test_what_is_loaded_at_a_first_run_is_no_leak() -> None:
    with ProcessExecutor(1) as executor:
        workers = []
        for key, size in enumerate([400, 1, 1]):
            workers.append(value(run_attempts(executor, attempt(key, leak, size))[key]))
            executor.memory(GIB)
        assert len(set(workers)) == 1
        workers.append(value(run_attempts(executor, attempt(8, leak, LEAK_BYTES // MIB + 20))[8]))
        executor.memory(GIB)
        workers.append(value(run_attempts(executor, attempt(9, pid))[9]))
        assert workers[3] == workers[0] != workers[4]


def test_what_earlier_steps_left_does_not_use_up_the_limit_of_the_next() -> None:
    with ProcessExecutor(1) as executor:
        workers = [value(run_attempts(executor, attempt(key, leak, 60))[key]) for key in range(2)]
        roomy = value(run_attempts(executor, attempt(3, pid, memory_bytes=400 * MIB))[3])
        tight = value(run_attempts(executor, attempt(4, pid, memory_bytes=200 * MIB))[4])
    assert workers[0] == workers[1] == roomy != tight


# The kernel's own killer


def killed(executor: ProcessExecutor) -> Lost:
    """The outcome of an attempt whose worker somebody else kills."""
    executor.submit(attempt(1, hold, 100, 30.0))
    until = time.monotonic() + LONG_S
    while executor.memory(None).rss_bytes.get(1, 0) < 100 * MIB:
        assert time.monotonic() < until
        executor.wait(time.monotonic() + 0.02)
    os.kill(executor.pids()[1], signal.SIGKILL)
    outcome: Outcome = next(o for o in finish(executor) if is_final(o))
    assert isinstance(outcome, Lost)
    return outcome


class Counted(Footprint):
    """A footprint whose kernel counts one more kill each time it is asked."""

    def _count(self, now: float) -> None:
        super()._count(now)
        counter = self._root / "sys/fs/cgroup/a/memory.events"
        kills = int(counter.read_text().split()[-1])
        counter.write_text(f"low 0\noom_kill {kills + self.more}\n")

    more = 1


@pytest.mark.parametrize(("more", "cause"), [(1, "oom"), (0, "crash")])
def test_a_kill_that_the_kernel_counts_is_out_of_memory(tmp_path: Path, more: int, cause: str) -> None:
    for path, text in {
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": "30 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/a/memory.events": "low 0\noom_kill 7\n",
    }.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with ProcessExecutor(1) as executor:
        executor._footprint = footprint = Counted(tmp_path)
        footprint.more = more
        lost = killed(executor)
    assert lost.failure.cause == cause
    assert lost.failure.signal == signal.SIGKILL
    assert ("/sys/fs/cgroup/a/memory.events" in lost.failure.message) == bool(more)
    assert (lost.failure.type == "OutOfMemory") == bool(more)


def test_the_kernels_killer_takes_the_worker_and_is_named(tmp_path: Path) -> None:
    own = next((g for g in cgroup.groups(Path("/")) if g.version == 1 and "memory" in g.controllers), None)
    if own is None or not os.access(own.folder, os.W_OK) or os.geteuid() != 0:
        pytest.skip("no memory cgroup (v1) that this process may make a group in")
    group = own.folder / f"procflow-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(150 * MIB))
    except OSError as error:
        pytest.skip(f"no group with a limit can be made: {error}")
    script = textwrap.dedent("""
        import os, sys
        open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
        from test_memory import attempt, hold, run_attempts, ProcessExecutor
        with ProcessExecutor(1) as executor:
            outcome = run_attempts(executor, attempt(1, hold, 400, 30.0))[1]
        print(outcome.failure.cause, outcome.failure)
    """)
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(rss.__file__).parents[2])])
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(group)],
            env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=LONG_S, check=False,
        )  # fmt: skip
    finally:
        until = time.monotonic() + 5.0
        while group.exists() and time.monotonic() < until:
            try:
                group.rmdir()
            except OSError:
                time.sleep(0.01)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("oom OutOfMemory: "), done.stdout
    assert f"{group.name}/memory.oom_control" in done.stdout


@pytest.mark.parametrize("flag", ["0", "1"])
def test_a_run_warns_where_the_kernel_would_kill_all_of_it_at_once(tmp_path: Path, flag: str) -> None:
    for path, text in {
        "proc/self/cgroup": "0::/pod/box\n",
        "proc/self/mountinfo": "30 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/pod/memory.oom.group": f"{flag}\n",
        "sys/fs/cgroup/pod/box/memory.oom.group": "0\n",
    }.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    told = resources.warnings(tmp_path)
    lines: list[str] = []
    graph = compile_pipeline(Pipeline("p", steps=[Step("a", pid)]), params={}, run_id="m")
    prepared = SimpleNamespace(graph=graph, workers=1, warnings=told)
    folder = SimpleNamespace(run=lambda run_id: tmp_path, path=tmp_path)
    LineProgress(lines.append).begin(SimpleNamespace(prepared=prepared, folder=folder, run_id="m"))
    if flag == "0":
        assert told == ()
        assert lines == []
    else:
        assert len(lines) == 1
        assert lines[0].startswith("warning: when memory runs out, the kernel kills all")
        assert "/sys/fs/cgroup/pod/memory.oom.group is 1" in lines[0]


# Threads


def test_blas_uses_as_many_threads_as_the_step_has_cpus() -> None:
    with ProcessExecutor(2) as executor:
        wide = value(run_attempts(executor, attempt(1, blas_threads, cpus=2))[1])
        executor.submit(attempt(2, blas_threads, 0.2))
        executor.submit(attempt(3, blas_threads, 0.2))
        narrow = [value(o) for o in finish(executor, 2) if is_final(o)]
        again = value(run_attempts(executor, attempt(4, blas_threads, cpus=2))[4])
    assert wide == again == (2, "2")
    assert narrow == [(1, "1"), (1, "1")]
