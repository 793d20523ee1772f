"""ProcessPool where things go wrong: deaths, limits, kills of the program, forks, the interpreter's end."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from procflow.pool import ProcessPool, TaskLost, TaskOutOfMemory, TaskTimedOut
from tests import steps_for_pool as steps

GUARD_S = 60.0
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool(2) as made:
        yield made


def until(true: Callable[[], object]) -> None:
    limit = time.monotonic() + GUARD_S
    while not true():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# deaths and limits


def test_a_task_that_dies_costs_its_own_future_and_says_how(pool: ProcessPool, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    other = pool.submit(steps.wait_for, gate)
    later = [pool.submit(steps.double, i) for i in range(5)]
    killed = pool.submit(steps.die_by, signal.SIGSEGV).exception(GUARD_S)
    left = pool.submit(steps.leave, 9).exception(GUARD_S)
    steps.touch(gate)
    assert other.result(GUARD_S) == gate
    assert [future.result(GUARD_S) for future in later] == [0, 2, 4, 6, 8]
    assert isinstance(killed, TaskLost)
    assert (killed.signal, killed.worker_exit_code, killed.cause) == (signal.SIGSEGV, None, "crash")
    assert str(killed).startswith("die_by: worker died: SIGSEGV")
    assert killed.peak_rss_bytes
    assert isinstance(left, TaskLost)
    assert (left.signal, left.worker_exit_code) == (None, 9)


def test_a_hundred_deaths_leave_a_pool_that_works(pool: ProcessPool) -> None:
    todo = [pool.submit(steps.leave, 1) if i % 2 else pool.submit(steps.double, i) for i in range(40)]
    errors = [future.exception(GUARD_S) for future in todo]
    assert [type(error) for error in errors] == [type(None), TaskLost] * 20


def test_a_timeout_stops_its_task_and_no_other(pool: ProcessPool) -> None:
    strict = pool.options(timeout=0.2, grace=1)
    error = strict.submit(steps.nap, 60).exception(GUARD_S)
    assert isinstance(error, TaskTimedOut)
    assert isinstance(error, TimeoutError)
    assert "timeout 0.2 s" in str(error)
    assert strict.submit(steps.double, 1).result(GUARD_S) == 2
    assert pool.submit(steps.nap, 0.3, "slept").result(GUARD_S) == "slept"


def test_a_timeout_counts_from_the_start_of_the_task_not_from_its_submission(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    with ProcessPool(1) as pool:
        first = pool.submit(steps.wait_for, gate)
        second = pool.options(timeout="400ms").submit(steps.nap, 0.01, "in time")
        time.sleep(0.5)
        steps.touch(gate)
        assert first.result(GUARD_S) == gate
        assert second.result(GUARD_S) == "in time"


@pytest.mark.parametrize("warm", [False, True])
def test_a_task_over_its_memory_is_stopped(warm: bool) -> None:
    with ProcessPool(1) as pool:
        if warm:
            pool.submit(steps.double, 1).result(GUARD_S)
        error = pool.options(memory="100MB").submit(steps.fill_memory, 300).exception(GUARD_S)
        assert isinstance(error, TaskOutOfMemory)
        assert isinstance(error, MemoryError)
        assert "limit 95 MiB" in str(error)
        assert pool.submit(steps.double, 1).result(GUARD_S) == 2


def test_endings_can_be_pickled(pool: ProcessPool) -> None:
    error = pool.options(timeout=0.05, grace=0).submit(steps.nap, 60).exception(GUARD_S)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.cause) == (TaskTimedOut, str(error), "timeout")


def test_wrong_limits_are_refused_when_they_are_given(pool: ProcessPool) -> None:
    with pytest.raises(ValueError, match="timeout: 'soon' is not a duration"):
        pool.options(timeout="soon")
    with pytest.raises(ValueError, match="memory: '500' is not a size"):
        pool.options(memory="500")
    with pytest.raises(ValueError, match="cpus: must be greater than 0"):
        pool.options(cpus=0)


def test_abort_stops_what_runs_and_cancels_what_is_pending_and_the_pool_goes_on() -> None:
    with ProcessPool(1) as pool:
        running = pool.submit(steps.nap, 60)
        until(running.running)
        pending = pool.submit(steps.double, 1)
        pool.abort()
        error = running.exception(GUARD_S)
        assert isinstance(error, TaskLost)
        assert error.cause == "cancelled"
        assert pending.cancelled()
        assert pool.submit(steps.double, 2).result(GUARD_S) == 4


def test_what_is_submitted_after_an_abort_is_not_stopped_by_it() -> None:
    with ProcessPool(2) as pool:
        for _ in range(20):
            stopped = pool.submit(steps.nap, 60)
            until(stopped.running)
            pool.abort()
            assert pool.submit(steps.double, 2).result(GUARD_S) == 4
            assert isinstance(stopped.exception(GUARD_S), TaskLost)


# arrays


def test_arrays_arrive_by_mapping_and_writing_into_one_changes_it_nowhere_else(pool: ProcessPool) -> None:
    numpy = pytest.importorskip("numpy")
    values = numpy.ones(1_000_000)
    assert list(pool.map(steps.write_into, [values, values])) == [999_998.0, 999_998.0]
    assert values[0] == 1.0
    back = pool.submit(steps.double, values).result(GUARD_S)
    again = pool.submit(steps.double, values).result(GUARD_S)
    back[:] = 7.0
    assert (again == 2.0).all()


def test_no_file_of_a_value_is_left_behind() -> None:
    with ProcessPool(2) as pool:
        assert [len(part) for part in pool.map(steps.double, [b"x" * 500_000] * 6)] == [1_000_000] * 6
        assert pool._driver is not None
        folder = Path(pool._driver._folder.path)
        assert folder.stat().st_mode & 0o777 == 0o700
        error = pool.submit(steps.die_by, signal.SIGKILL).exception(GUARD_S)
        assert isinstance(error, TaskLost)
        until(lambda: [path for path in folder.iterdir() if path.name != "free"] == [])
    assert not folder.exists()


# the program around it


def run(code: str, folder: Path, **options: object) -> subprocess.Popen[str]:
    script = folder / "program.py"
    script.write_text("from procflow import ProcessPool\nimport os, signal, sys, time\n" + textwrap.dedent(code))
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_script_without_a_guard_and_without_shutdown_finishes_its_pending_work(tmp_path: Path) -> None:
    program = run(
        """
        pool = ProcessPool(2)
        def work(number):
            time.sleep(0.05)
            open(f"done{number}", "w").close()
        for number in range(6):
            pool.submit(work, number)
        """,
        tmp_path,
    )
    _, errors = program.communicate(timeout=GUARD_S)
    assert (program.returncode, errors) == (0, "")
    assert sorted(path.name for path in tmp_path.glob("done*")) == [f"done{i}" for i in range(6)]


def test_after_ctrl_c_the_program_ends_and_no_task_runs_on(tmp_path: Path) -> None:
    program = run(
        """
        with ProcessPool(1) as pool:
            print(pool.submit(os.getpid).result(), flush=True)
            todo = [pool.submit(time.sleep, 100) for _ in range(3)]
            while not todo[0].running():
                time.sleep(0.01)
            print("runs", flush=True)
            todo[0].result()
        """,
        tmp_path,
    )
    assert program.stdout is not None
    worker = int(program.stdout.readline())
    assert program.stdout.readline() == "runs\n"
    program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=GUARD_S)
    assert program.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert not alive(worker)


def test_no_process_and_no_file_outlives_a_program_that_is_killed(tmp_path: Path) -> None:
    program = run(
        """
        import subprocess
        pool = ProcessPool(2)
        pool.submit(len, b"x" * 1_000_000).result()
        def spawn():
            daemon = subprocess.Popen(["sleep", "100"], start_new_session=True)
            print(os.getpid(), daemon.pid, flush=True)
            time.sleep(100)
        todo = [pool.submit(spawn) for _ in range(2)]
        print(pool._driver._folder.path, flush=True)
        time.sleep(100)
        """,
        tmp_path,
    )
    assert program.stdout is not None
    lines = [program.stdout.readline().split() for _ in range(3)]
    folder = next(Path(line[0]) for line in lines if len(line) == 1)
    pids = [int(pid) for line in lines if len(line) == 2 for pid in line]
    assert len(pids) == 4
    assert folder.exists()
    program.kill()
    program.wait(GUARD_S)
    until(lambda: not any(alive(pid) for pid in pids))
    until(lambda: not folder.exists())
    program.communicate(timeout=GUARD_S)


def test_a_forked_child_can_not_use_the_pool_and_does_it_no_harm(tmp_path: Path) -> None:
    program = run(
        """
        import warnings

        pool = ProcessPool(2)
        pool.submit(pow, 2, 3).result()
        # Python 3.12 and later warn of a fork where threads run, which is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if not child:
            try:
                pool.submit(pow, 2, 3)
            except RuntimeError as error:
                print(error, flush=True)
            with ProcessPool(1) as own:
                print(own.submit(pow, 2, 4).result(), flush=True)
            pool.shutdown()
            del pool
            sys.exit(0)
        os.waitpid(child, 0)
        print(pool.submit(pow, 2, 5).result(), flush=True)
        """,
        tmp_path,
    )
    out, errors = program.communicate(timeout=GUARD_S)
    assert (program.returncode, errors) == (0, "")
    lines = out.splitlines()
    assert "belongs to the process that this one was forked from" in lines[0]
    assert lines[1:] == ["16", "32"]


def test_the_standard_pools_of_a_program_are_not_disturbed(tmp_path: Path) -> None:
    program = run(
        """
        from concurrent.futures import ProcessPoolExecutor
        import multiprocessing
        with ProcessPool(2) as pool:
            print(pool.submit(pow, 2, 3).result())
        for turn in range(3):
            pool = ProcessPool(1)
            print(pool.submit(pow, 2, 4).result())
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as other:
                print(other.submit(pow, 2, 5).result())
        """,
        tmp_path,
    )
    out, _ = program.communicate(timeout=GUARD_S)
    assert program.returncode == 0
    assert out.split() == ["8", *["16", "32"] * 3]
