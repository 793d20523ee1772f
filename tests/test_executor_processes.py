"""The processes executor keeps the contract, and a worker's death, hang or noise costs exactly one attempt."""

from __future__ import annotations

import json
import operator
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from executor_contract import (
    FOLDER,
    LONG_S,
    ExecutorContract,
    Log,
    attempt,
    finish,
    is_final,
    open_fds,
    run,
    step_call,
    value,
)

from procflow.attempt import Attempt, Failed, Items, Lost, Outcome, Started, Succeeded
from procflow.call import Lookup, StepCall
from procflow.errors import ExecutorError
from procflow.executors import ladder, processes
from procflow.executors.channel import Outbox
from procflow.executors.footprint import Footprint, Size
from procflow.executors.processes import ProcessExecutor
from procflow.executors.slot import Slot
from procflow.values import objects


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def soon(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def arrived(slot: Slot) -> bool:
    """The worker has sent something; a short message comes whole."""
    return bool(select.select([slot.channel_fd], [], [], LONG_S)[0])


def wait_until(executor: ProcessExecutor, condition: Callable[[], bool]) -> None:
    """Drive the executor until something is so; no final outcome may come."""
    until = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < until
        assert not any(map(is_final, executor.wait(time.monotonic() + 0.01)))


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def log_of(one: Attempt) -> str:
    assert isinstance(one.log, Log)
    assert one.log.closed == 1
    return one.log.data.decode("utf-8", "replace")


def lost(outcome: Outcome) -> Lost:
    assert isinstance(outcome, Lost), outcome
    return outcome


@pytest.fixture(scope="module")
def shared() -> Iterator[ProcessExecutor]:
    with ProcessExecutor(2) as executor:
        yield executor


@pytest.fixture
def executor(shared: ProcessExecutor) -> ProcessExecutor:
    """Two slots, both with a worker that is ready, whatever the tests before did to them."""
    assert shared.running == 0
    shared.submit(attempt(-1, "pid"))
    shared.submit(attempt(-2, "pid"))
    finish(shared, 2)
    return shared


class TestProcessExecutor(ExecutorContract):
    def make_executor(self, slots: int) -> ProcessExecutor:
        return ProcessExecutor(slots)

    @pytest.fixture
    def executor(self, shared: ProcessExecutor) -> ProcessExecutor:  # type: ignore[override]
        return shared


def pids(executor: ProcessExecutor) -> set[int]:
    return {slot.pid for slot in executor._all}


# Deaths


@pytest.mark.parametrize(
    ("function", "argument", "number", "code"),
    [
        ("die_by", signal.SIGKILL, signal.SIGKILL, None),
        ("die_by", signal.SIGABRT, signal.SIGABRT, None),
        ("segfault", None, signal.SIGSEGV, None),
        ("exit_now", 0, None, 0),
        ("exit_now", 3, None, 3),
        ("libc_exit", 0, None, 0),
    ],
)
def test_a_workers_death_costs_its_attempt_and_no_sibling(
    executor: ProcessExecutor, tmp_path: Path, function: str, argument: int | None, number: int | None, code: int | None
) -> None:
    executor.submit(attempt(1, "wait_for", str(tmp_path / "go")))
    sibling = executor.pids()[1]
    executor.submit(attempt(2, function, *([] if argument is None else [int(argument)])))
    outcome = lost(finish(executor)[-1])
    assert outcome.key == 2
    assert (outcome.failure.cause, outcome.failure.signal, outcome.failure.exit_code) == ("crash", number, code)
    assert executor.pids() == {1: sibling}
    (tmp_path / "go").touch()
    assert value(finish(executor)[-1]) == "found"
    assert value(run(executor, attempt(3, "double", 2))[3]) == 4


def test_a_segfault_leaves_the_python_stack_in_the_log(executor: ProcessExecutor) -> None:
    one = attempt(1, "segfault")
    run(executor, one)
    assert "Segmentation fault" in log_of(one)
    assert "in segfault" in log_of(one)


def test_a_death_is_seen_at_once_though_a_forked_child_holds_every_pipe(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    executor.submit(attempt(1, "fork_and_die", str(tmp_path / "child")))
    assert soon(lambda: (tmp_path / "child").exists())
    began = time.monotonic()
    outcome = lost(finish(executor)[-1])
    assert time.monotonic() - began < 5, "the child sleeps for a minute"
    assert outcome.failure.signal == signal.SIGKILL
    assert soon(lambda: gone(int((tmp_path / "child").read_text())))


def test_a_forked_child_that_returns_from_the_step_says_nothing(executor: ProcessExecutor, tmp_path: Path) -> None:
    assert value(run(executor, attempt(1, "fork_and_return", str(tmp_path / "child")))[1]) == "parent"
    assert value(run(executor, attempt(2, "double", 1))[2]) == 2


def test_a_double_forked_daemon_dies_with_its_worker(executor: ProcessExecutor, tmp_path: Path) -> None:
    path = tmp_path / "daemon"
    lost(run(executor, attempt(1, "leave_a_daemon", str(path), "die"))[1])
    assert soon(lambda: gone(int(path.read_text())))


def test_killing_an_attempt_kills_its_daemon(executor: ProcessExecutor, tmp_path: Path) -> None:
    path = tmp_path / "daemon"
    executor.submit(attempt(1, "leave_a_daemon", str(path), "stay"))
    wait_until(executor, path.exists)
    executor.kill(1, "cancelled", 0.0)
    lost(finish(executor)[-1])
    assert soon(lambda: gone(int(path.read_text())))


def test_peak_memory_and_time_of_a_lost_attempt_are_told(executor: ProcessExecutor, tmp_path: Path) -> None:
    outcome = lost(run(executor, attempt(1, "die_by", int(signal.SIGKILL)))[1])
    assert outcome.usage.wall_s > 0
    executor.submit(attempt(2, "hold_the_gil", str(tmp_path / "on")))
    wait_until(executor, (tmp_path / "on").exists)
    worker = psutil.Process(executor._running[2].pid)
    used = sum(worker.cpu_times()[:2])
    wait_until(executor, lambda: sum(worker.cpu_times()[:2]) > used + 0.1)
    executor.kill(2, "timeout", 0.0)
    outcome = lost(finish(executor)[-1])
    assert outcome.usage.peak_rss_bytes > 5_000_000
    assert 0.05 < outcome.usage.cpu_s < 5


def test_the_item_that_killed_its_worker_is_named_where_it_is_known(executor: ProcessExecutor) -> None:
    call = step_call("exit_now", Lookup("item"), item_name="item")
    executor.submit(Attempt(1, call, items=Items(objects.pack([7]), 12, range(12, 13))))
    assert lost(finish(executor)[-1]).culprit == 12


# The four phases in which a worker can be killed


def test_a_worker_killed_while_idle_costs_nothing(executor: ProcessExecutor) -> None:
    for pid in pids(executor):
        os.kill(pid, signal.SIGKILL)
    ended = run(executor, attempt(1, "double", 1), attempt(2, "double", 2))
    assert [value(ended[1]), value(ended[2])] == [2, 4]


def test_a_worker_killed_while_it_receives_never_began_so_the_attempt_goes_to_another(
    executor: ProcessExecutor,
) -> None:
    executor.submit(Attempt(1, step_call("echo", Lookup("x")), values={"x": objects.pack(3)}))
    finish(executor)
    (slot,) = executor._idle[-1:]
    os.kill(slot.pid, signal.SIGSTOP)
    big = objects.pack(bytes(8 << 20))
    began = time.monotonic()
    executor.submit(Attempt(2, step_call("echo", Lookup("x")), values={"x": big}))
    assert time.monotonic() - began < 1
    assert executor.wait(time.monotonic() + 0.05) == []
    os.kill(slot.pid, signal.SIGKILL)
    outcomes = finish(executor)
    assert len(value(outcomes[-1])) == 8 << 20
    assert slot.pid not in pids(executor)


def test_a_worker_killed_while_it_sends_a_large_result_costs_its_attempt(executor: ProcessExecutor) -> None:
    executor.submit(attempt(1, "large", 64))
    slot = executor._running[1]
    assert arrived(slot)
    # A killed process leaves its send only when the socket is full, and a quick reader keeps it from being so.
    os.kill(slot.pid, signal.SIGSTOP)
    assert soon(lambda: psutil.Process(slot.pid).status() == psutil.STATUS_STOPPED, LONG_S)
    os.kill(slot.pid, signal.SIGKILL)
    outcome = lost(finish(executor)[-1])
    assert outcome.failure.signal == signal.SIGKILL
    assert value(run(executor, attempt(2, "double", 1))[2]) == 2


def test_a_result_that_arrived_whole_counts_though_its_worker_is_dead(executor: ProcessExecutor) -> None:
    executor.submit(attempt(1, "double", 4))
    slot = executor._running[1]
    assert arrived(slot)
    os.kill(slot.pid, signal.SIGKILL)
    assert value(finish(executor)[-1]) == 8
    assert value(run(executor, attempt(2, "double", 1))[2]) == 2


def test_large_values_and_results_pass_whole(executor: ProcessExecutor) -> None:
    data = os.urandom(20 << 20)
    call = step_call("echo", Lookup("x"))
    executor.submit(Attempt(1, call, values={"x": objects.pack(data)}))
    assert value(finish(executor)[-1]) == data


def test_a_worker_that_does_not_read_never_blocks_the_parent(executor: ProcessExecutor) -> None:
    (slot,) = executor._idle[-1:]
    os.kill(slot.pid, signal.SIGSTOP)
    began = time.monotonic()
    executor.submit(Attempt(1, step_call("echo", Lookup("x")), values={"x": objects.pack(bytes(16 << 20))}))
    executor.submit(attempt(2, "double", 1))
    assert value(finish(executor)[-1]) == 2
    assert time.monotonic() - began < 5
    os.kill(slot.pid, signal.SIGCONT)
    assert len(value(finish(executor)[-1])) == 16 << 20


# Killing


def test_a_c_loop_that_holds_the_gil_is_killed_on_time_with_its_stack_in_the_log(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    one = attempt(1, "hold_the_gil", str(tmp_path / "on"))
    executor.submit(one)
    wait_until(executor, (tmp_path / "on").exists)
    began = time.monotonic()
    executor.kill(1, "timeout", 0.2)
    assert time.monotonic() - began < 2, "it only begins to kill"
    outcome = lost(finish(executor)[-1])
    assert time.monotonic() - began < 1.2
    assert outcome.failure.cause == "timeout"
    assert "in hold_the_gil" in log_of(one)


def test_sigterm_ignored_and_all_signals_blocked_is_killed_after_the_grace(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    executor.submit(attempt(1, "ignore_sigterm", str(tmp_path / "on")))
    wait_until(executor, (tmp_path / "on").exists)
    began = time.monotonic()
    executor.kill(1, "timeout", 0.3)
    outcome = lost(finish(executor)[-1])
    assert 0.3 <= time.monotonic() - began < 1.3
    assert outcome.failure.cause == "timeout"


def test_a_step_is_asked_first_and_what_it_makes_of_that_is_no_success(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    executor.submit(attempt(1, "take_sigterm_for_an_end", str(tmp_path / "on")))
    wait_until(executor, (tmp_path / "on").exists)
    began = time.monotonic()
    executor.kill(1, "cancelled", 10.0)
    assert lost(finish(executor)[-1]).failure.cause == "cancelled"
    assert time.monotonic() - began < 3


def test_a_stopped_process_is_killed_on_time(executor: ProcessExecutor, tmp_path: Path) -> None:
    executor.submit(attempt(1, "stop_itself", str(tmp_path / "on")))
    wait_until(executor, (tmp_path / "on").exists)
    wait_until(executor, lambda: psutil.Process(executor.pids()[1]).status() == psutil.STATUS_STOPPED)
    began = time.monotonic()
    executor.kill(1, "timeout", 0.2)
    assert lost(finish(executor)[-1]).failure.cause == "timeout"
    assert time.monotonic() - began < 1.2


def test_a_kill_touches_no_sibling_and_its_slot_works_again_soon(executor: ProcessExecutor, tmp_path: Path) -> None:
    executor.submit(attempt(1, "wait_for", str(tmp_path / "go")))
    sibling = executor.pids()[1]
    executor.submit(attempt(2, "sleep", 60))
    executor.kill(2, "cancelled", 1.0)
    lost(finish(executor)[-1])
    ended = finish_one(executor, attempt(3, "pid"))
    assert ended != sibling
    assert executor.pids() == {1: sibling}
    (tmp_path / "go").touch()
    assert value(finish(executor)[-1]) == "found"


def finish_one(executor: ProcessExecutor, one: Attempt) -> object:
    executor.submit(one)
    outcomes = finish(executor)
    assert isinstance(outcomes[0], Started), "a worker had to be started for it"
    return value(outcomes[-1])


def test_a_second_kill_shortens_the_grace(executor: ProcessExecutor, tmp_path: Path) -> None:
    executor.submit(attempt(1, "ignore_sigterm", str(tmp_path / "on")))
    wait_until(executor, (tmp_path / "on").exists)
    began = time.monotonic()
    executor.kill(1, "cancelled", 30.0)
    executor.kill(1, "cancelled", 0.0)
    lost(finish(executor)[-1])
    assert time.monotonic() - began < 3


def test_what_was_done_before_the_kill_counts(executor: ProcessExecutor) -> None:
    executor.submit(attempt(1, "double", 5))
    assert arrived(executor._running[1])
    executor.kill(1, "timeout", 1.0)
    assert value(finish(executor)[-1]) == 10
    assert value(run(executor, attempt(2, "double", 1))[2]) == 2


def test_an_attempt_killed_before_its_worker_is_ready_is_lost_with_the_cause_given() -> None:
    with ProcessExecutor(1) as executor:
        executor.submit(attempt(1, "double", 5))
        executor.kill(1, "cancelled", 1.0)
        assert lost(finish(executor)[-1]).failure.cause == "cancelled"
        assert value(run(executor, attempt(2, "double", 5))[2]) == 10


def test_a_worker_that_cannot_die_is_given_up_and_the_run_goes_on(
    executor: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "DEATH_S", 0.2)
    executor.submit(attempt(1, "sleep", 60))
    slot = executor._running[1]
    with monkeypatch.context() as patch:
        # As a process in uninterruptible sleep: signals change nothing.
        patch.setattr(type(slot), "kill", lambda self: None)
        patch.setattr(type(slot), "terminate", lambda self: None)
        patch.setattr(type(slot), "signal", lambda self, number: None)
        executor.kill(1, "timeout", 0.0)
        outcome = lost(finish(executor)[-1])
    assert f"pid {slot.pid}" in outcome.failure.message
    os.kill(slot.pid, signal.SIGKILL)
    assert value(run(executor, attempt(2, "double", 1))[2]) == 2
    assert soon(lambda: executor.wait(time.monotonic() + 0.01) == [] and slot.pid not in pids(executor))


# What steps do to descriptors


def test_a_step_that_closes_descriptors_3_to_256_harms_nothing(executor: ProcessExecutor) -> None:
    assert value(run(executor, attempt(1, "close_fds"))[1]) == "closed"
    ended = run(executor, *(attempt(k, "shout", "x") for k in range(2, 6)))
    assert [value(ended[k]) for k in range(2, 6)] == ["x"] * 4


def test_a_step_that_closes_even_the_channel_is_lost_and_its_worker_replaced(executor: ProcessExecutor) -> None:
    lost(run(executor, attempt(1, "close_all_fds"))[1])
    assert value(run(executor, attempt(2, "double", 1))[2]) == 2


def test_noise_on_all_descriptors_costs_that_attempt_and_replaces_the_worker(executor: ProcessExecutor) -> None:
    outcome = lost(run(executor, attempt(1, "noise"))[1])
    assert "no message" in outcome.failure.message
    ended = run(executor, *(attempt(k, "double", k) for k in range(2, 6)))
    assert [value(ended[k]) for k in range(2, 6)] == [4, 6, 8, 10]


def test_the_next_attempt_finds_stdout_folder_and_signals_as_they_were(executor: ProcessExecutor) -> None:
    for key in (1, 2):
        run(executor, attempt(key, "replace_stdout"), attempt(key + 10, "replace_stdout"))
    ours = [attempt(k, "shout", f"word{k}") for k in (3, 4)]
    run(executor, *ours)
    assert ["out word" in log_of(one) and "err word" in log_of(one) for one in ours] == [True, True]
    assert value(run(executor, attempt(5, "surroundings"))[5])[3] == os.getcwd()


def test_eight_megabytes_of_output_arrive_whole_and_block_nobody(executor: ProcessExecutor) -> None:
    one = attempt(1, "print_much", 8)
    run(executor, one)
    assert len(log_of(one)) == 8 << 20


def test_standard_input_is_empty(executor: ProcessExecutor) -> None:
    assert value(run(executor, attempt(1, "read_stdin"))[1]) == ""


# What a worker is


def test_workers_lead_a_session_and_are_the_first_to_go_when_memory_is_short(executor: ProcessExecutor) -> None:
    session, pid, score, folder = value(run(executor, attempt(1, "surroundings"))[1])
    assert session == pid
    assert score == 800
    assert folder == os.getcwd()


def test_workers_import_nothing_heavy(executor: ProcessExecutor) -> None:
    assert value(run(executor, attempt(1, "heavy_modules"))[1]) == []


def test_the_run_token_is_in_the_environment(executor: ProcessExecutor) -> None:
    assert value(run(executor, attempt(1, "environment", "PROCFLOW_RUN_TOKEN"))[1]) == executor.token


def test_blas_threads_follow_the_cpus_of_the_attempt() -> None:
    with ProcessExecutor(1) as executor:
        seen = [
            value(run(executor, attempt(key, "blas_threads", cpus=cpus))[key]) for key, cpus in ((1, 1), (2, 2), (3, 1))
        ]
        assert len(pids(executor)) == 1
    assert [set(threads) for threads in seen] == [{1}, {2}, {1}]


def test_workers_start_only_as_attempts_need_them() -> None:
    before = children()
    with ProcessExecutor(8) as executor:
        assert children() == before
        seen = {value(run(executor, attempt(1, "pid"))[1]) for _ in range(5)}
        assert len(seen) == 1
        assert len(children() - before) == 1


def test_a_function_is_sent_once_to_a_worker_whatever_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    send = Outbox.send

    def recording(self: Outbox, fd: int, data: bytes) -> bool:
        sent.append(data)
        return send(self, fd, data)

    monkeypatch.setattr(Outbox, "send", recording)
    with ProcessExecutor(1) as executor:
        calls = [step_call(lambda x: x + 1, 1)]
        calls += [step_call(calls[0].function, k) for k in range(3)]
        for key, call in enumerate(calls, 1):
            executor.submit(Attempt(key, call))
            assert value(finish(executor)[-1]) == call.args[0] + 1
        data = {executor._payloads.of(call).data for call in calls}
    assert len(data) == 1
    assert [data.pop() in frames for frames in sent] == [True]


def test_more_calls_than_a_worker_remembers_all_run() -> None:
    with ProcessExecutor(1) as executor:
        calls = [step_call(partial(operator.mul, k), 2) for k in range(600)]
        order = [*range(600), *range(600)]
        for key, k in enumerate(order):
            executor.submit(Attempt(key, calls[k]))
            assert value(finish(executor)[-1]) == 2 * k


def test_a_closure_of_the_parent_runs_in_a_worker(executor: ProcessExecutor) -> None:
    factor = 3

    def triple(x: int) -> int:
        return x * factor

    assert value(run(executor, attempt(1, triple, 5))[1]) == 15


def test_a_call_that_cannot_be_pickled_names_step_argument_and_type(executor: ProcessExecutor) -> None:
    call = StepCall("transform", "0.2", "fetch", "steps_for_executors:echo", ({"rows": [1, threading.Lock()]},))
    with pytest.raises(ExecutorError) as told:
        executor.check(call)
    assert "step 0.2 (fetch)" in str(told.value)
    assert "args[0]['rows'][1]" in str(told.value)
    assert "_thread.lock" in str(told.value)
    with pytest.raises(ExecutorError):
        executor.submit(Attempt(1, call))
    assert executor.running == 0


def test_a_payload_that_cannot_be_opened_fails_its_step_only(executor: ProcessExecutor) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return (__import__, ("no_such_module_anywhere",))

    outcome = run(executor, attempt(1, "echo", Bomb()))[1]
    assert isinstance(outcome, Failed)
    assert "no_such_module_anywhere" in outcome.failure.message
    assert value(run(executor, attempt(2, "double", 1))[2]) == 2


# Workers that don't start


def test_three_workers_that_do_not_start_end_the_run_with_what_they_printed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; print('broken host', file=sys.stderr); sys.exit(9)")
    with ProcessExecutor(2, env={"PYTHONPATH": str(tmp_path)}) as executor:
        executor.submit(attempt(1, "double", 1))
        with pytest.raises(ExecutorError, match="3 in a row"):
            finish(executor)
        with pytest.raises(ExecutorError, match="broken host"):
            executor.wait(time.monotonic() + 1)


UPGRADED = """
import os, sys, time
from pathlib import Path
import procflow
from procflow import Parallel, Pipeline, ProcflowError, Step
file = Path(procflow.__file__).parent / "working" / "worker.py"
def upgrade():
    text = file.read_text()
    file.unlink()
    file.write_text(text.replace("def main(", "def another("))
    os._exit(1)
try:
    Pipeline("p", steps=[Step("first", upgrade, retries=1)]).run(executor="processes", workers=1, state_dir="state")
except ProcflowError as error:
    print(error)
"""


def test_a_run_whose_procflow_was_upgraded_meanwhile_says_so(tmp_path: Path) -> None:
    package = Path(processes.__file__).parents[1]
    shutil.copytree(package, tmp_path / "procflow", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", UPGRADED], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "3 in a row ended before they were ready" in done.stdout, done.stderr
    assert f"procflow's own files have changed since this run began ({tmp_path}" in done.stdout
    assert "then resume the run" in done.stdout


def test_a_worker_that_does_not_start_is_charged_to_no_attempt(tmp_path: Path) -> None:
    mark = tmp_path / "first"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nif not os.path.exists({str(mark)!r}):\n    open({str(mark)!r}, 'w')\n    os._exit(1)\n"
    )
    with ProcessExecutor(1, env={"PYTHONPATH": str(tmp_path)}) as executor:
        executor.submit(attempt(1, "double", 4))
        assert value(finish(executor)[-1]) == 8
    assert mark.exists()


def test_a_worker_that_is_not_ready_in_time_is_replaced(tmp_path: Path) -> None:
    mark = tmp_path / "first"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\nif not os.path.exists({str(mark)!r}):\n    open({str(mark)!r}, 'w')\n    time.sleep(60)\n"
    )
    with ProcessExecutor(1, env={"PYTHONPATH": str(tmp_path)}, spawn_timeout_s=2.0) as executor:
        executor.submit(attempt(1, "double", 4))
        assert value(finish(executor)[-1]) == 8


def test_a_worker_whose_memory_cannot_be_watched_is_ended_and_another_started(monkeypatch: pytest.MonkeyPatch) -> None:
    before, tried = children(), 0
    size = Footprint.size

    def refused_once(self: Footprint, pid: int) -> Size:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise OSError(24, "Too many open files")
        return size(self, pid)

    ProcessExecutor(1).close()
    fds = open_fds()
    monkeypatch.setattr(Footprint, "size", refused_once)
    with ProcessExecutor(1) as executor:
        executor.submit(attempt(1, "double", 4))
        assert len(children() - before) == 0, "what could not be watched is gone"
        assert value(finish(executor)[-1]) == 8
    assert tried == 2
    assert open_fds() == fds
    assert children() == before


# Close


def test_a_close_that_fails_lets_go_of_every_descriptor_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ProcessExecutor(1).close()
    fds = open_fds()
    executor = ProcessExecutor(2)
    run(executor, *(attempt(k, "double", k) for k in range(6)))
    pids = executor.workers()
    with monkeypatch.context() as broken:
        broken.setattr(processes, "kill_family", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            executor.close()
    assert open_fds() == fds
    assert all(gone(pid) for pid in pids)
    executor.close()


def test_close_ends_busy_and_idle_workers_and_leaves_nothing(tmp_path: Path) -> None:
    before = children()
    executor = ProcessExecutor(3)
    executor.submit(attempt(1, "leave_a_daemon", str(tmp_path / "daemon"), "stay"))
    executor.submit(attempt(2, "ignore_sigterm", str(tmp_path / "on")))
    executor.submit(attempt(3, "double", 1))
    finish(executor)
    wait_until(executor, lambda: (tmp_path / "daemon").exists() and (tmp_path / "on").exists())
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < LONG_S
    assert children() == before
    assert gone(int((tmp_path / "daemon").read_text()))


def test_close_of_idle_workers_is_quick_and_leaves_no_descriptor() -> None:
    ProcessExecutor(1).close()
    fds = open_fds()
    executor = ProcessExecutor(2)
    run(executor, *(attempt(k, "double", k) for k in range(6)))
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 5
    assert open_fds() == fds


def test_deaths_leave_no_descriptor_and_no_zombie(executor: ProcessExecutor) -> None:
    run(executor, attempt(1, "double", 1))
    fds = len(open_fds())
    for key in range(2, 8):
        lost(run(executor, attempt(key, "exit_now", 1))[key])
    run(executor, attempt(8, "double", 1), attempt(9, "double", 1))
    assert len(open_fds()) <= fds
    assert not [c for c in psutil.Process().children() if c.status() == psutil.STATUS_ZOMBIE]


def test_shared_memory_of_a_killed_step_is_cleaned_up(executor: ProcessExecutor, tmp_path: Path) -> None:
    path = tmp_path / "name"
    executor.submit(attempt(1, "touch_and_share_memory", str(path)))
    wait_until(executor, lambda: path.exists() and path.read_text() != "")
    block = Path("/dev/shm") / path.read_text()
    assert block.exists()
    executor.kill(1, "cancelled", 0.0)
    lost(finish(executor)[-1])
    assert soon(lambda: not block.exists())


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import json, os, sys, time\n"
        "from executor_contract import attempt, finish\n"
        "from procflow.executors.processes import ProcessExecutor\n"
        "executor = ProcessExecutor(2)\n"
        "executor.submit(attempt(1, 'sleep', 60)); executor.submit(attempt(2, 'double', 1)); finish(executor)\n"
        "print(json.dumps([slot.pid for slot in executor._all]), flush=True)\n"
        "time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([FOLDER, str(Path(FOLDER).parent)])}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=env)
    try:
        assert parent.stdout is not None
        workers = json.loads(parent.stdout.readline())
        assert len(workers) == 2
        parent.kill()
        parent.wait(LONG_S)
        assert soon(lambda: all(map(gone, workers)), 2.0)
    finally:
        parent.kill()
        parent.wait(LONG_S)
        parent.stdout.close()


def test_more_attempts_than_slots_are_refused() -> None:
    with ProcessExecutor(1) as executor:
        executor.submit(attempt(1, "double", 1))
        with pytest.raises(ExecutorError, match="more than 1 attempts"):
            executor.submit(attempt(2, "double", 1))
        assert isinstance(finish(executor)[-1], Succeeded)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_killed_whenever_each_attempt_ends_once_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    kinds = [("double", 2), ("large", 3), ("sleep", 0.02), ("shout", "x"), ("print_much", 1), ("exit_now", 1)]
    before, fds = children(), open_fds()
    waiting = [attempt(key, *chance.choice(kinds)) for key in range(150)]
    out: dict[int, Attempt] = {}
    ended: dict[int, Outcome] = {}
    with ProcessExecutor(3) as executor:
        while waiting or out:
            while waiting and len(out) < 3:
                one = waiting.pop()
                out[one.key] = one
                executor.submit(one)
            ready = [slot.pid for slot in executor._all if slot.ready]
            dice = chance.random()
            if dice < 0.08 and ready:
                os.kill(chance.choice(ready), chance.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM]))
            elif dice < 0.14:
                executor.kill(chance.choice(list(out)), chance.choice(["timeout", "cancelled"]), 0.02)
            for outcome in finish(executor):
                if is_final(outcome):
                    assert outcome.key not in ended
                    ended[outcome.key] = outcome
                    one = out.pop(outcome.key)
                    text = log_of(one)
                    if isinstance(outcome, Succeeded) and value(outcome) == 1:
                        assert text.count("x" * 1023 + "\n") == 1024
    assert len(ended) == 150
    assert not any(isinstance(outcome, Failed) for outcome in ended.values())
    assert children() == before
    assert open_fds() == fds
