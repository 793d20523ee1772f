"""ProcessPool against what the standard library expects of an executor."""

from __future__ import annotations

import concurrent.futures as futures
import gc
import logging
import os
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import procflow
from procflow.pool import PoolBroken, ProcessPool, TaskFailed, TaskLost
from tests import steps_for_pool as steps

GUARD_S = 60.0
"""Longest wait for anything; a test that meets it has failed."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    """One pool for tests that don't harm it; some of them kill workers."""
    with ProcessPool(2) as made:
        yield made


class Gate:
    """Keeps workers busy until it is opened."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "gate")

    def open(self) -> None:
        steps.touch(self.path)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


# submit


def test_it_is_a_standard_executor_and_a_public_name() -> None:
    assert issubclass(ProcessPool, futures.Executor)
    assert procflow.ProcessPool is ProcessPool
    assert procflow.TaskLost is TaskLost


def test_positional_and_keyword_arguments_arrive(pool: ProcessPool) -> None:
    assert pool.submit(pow, 2, exp=5).result(GUARD_S) == 32
    assert pool.submit(dict, fn=1, self=2).result(GUARD_S) == {"fn": 1, "self": 2}


def test_lambdas_closures_and_local_classes_arrive(pool: ProcessPool) -> None:
    base = 10

    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

    made = pool.submit(lambda value: Local(base + value), 5).result(GUARD_S)
    assert isinstance(made, Local)
    assert made.value == 15


def test_work_runs_in_other_processes(pool: ProcessPool) -> None:
    assert os.getpid() not in set(pool.map(steps.pid, range(4)))


def test_workers_are_started_as_they_are_needed() -> None:
    with ProcessPool(4) as pool:
        pids = {pool.submit(steps.pid).result(GUARD_S) for _ in range(5)}
    assert len(pids) == 1


def test_an_exception_comes_back_with_its_traceback_in_the_worker(pool: ProcessPool) -> None:
    error = pool.submit(steps.fail, "bad row").exception(GUARD_S)
    assert type(error) is ValueError
    assert error.args == ("bad row",)
    assert "in fail" in str(error.__cause__)


def test_system_exit_is_an_exception_like_any_other(pool: ProcessPool) -> None:
    with pytest.raises(SystemExit):
        pool.submit(steps.stop, 3).result(GUARD_S)


def test_an_exception_that_can_not_be_rebuilt_is_told_in_words(pool: ProcessPool) -> None:
    error = pool.submit(steps.raise_awkward).exception(GUARD_S)
    assert isinstance(error, TaskFailed)
    assert "Awkward: awkward" in str(error)


def test_what_is_logged_in_a_task_arrives_in_the_loggers_here(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), ProcessPool(1) as pool:
        pool.submit(logging.getLogger("shop").info, "sold %d", 3).result(GUARD_S)
    assert ("shop", logging.INFO, "sold 3") in caplog.record_tuples


def test_what_is_printed_in_a_task_is_printed_where_this_process_prints(capfd: pytest.CaptureFixture[str]) -> None:
    with ProcessPool(1) as pool:
        pool.submit(print, "hello").result(GUARD_S)
    assert capfd.readouterr().out == "hello\n"


def test_wrong_arguments_of_the_pool_are_refused() -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            ProcessPool(wrong)
    with pytest.raises(TypeError, match="max_workers must be a whole number"):
        ProcessPool(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="initializer must be a callable"):
        ProcessPool(1, initializer=3)  # type: ignore[arg-type]


def test_a_pool_can_not_be_pickled(pool: ProcessPool) -> None:
    with pytest.raises(TypeError, match="a ProcessPool can't be pickled"):
        pickle.dumps(pool)
    assert isinstance(pool.submit(steps.double, pool).exception(GUARD_S), pickle.PicklingError)


# wait, as_completed


def test_wait_for_the_first_completed(pool: ProcessPool, gate: Gate) -> None:
    slow, quick = pool.submit(steps.wait_for, gate.path), pool.submit(steps.double, 21)
    done, rest = futures.wait([slow, quick], GUARD_S, return_when=futures.FIRST_COMPLETED)
    assert (done, rest) == ({quick}, {slow})
    gate.open()
    assert futures.wait([slow, quick], GUARD_S).not_done == set()


def test_wait_for_the_first_exception(pool: ProcessPool, gate: Gate) -> None:
    slow, bad = pool.submit(steps.wait_for, gate.path), pool.submit(steps.fail, "now")
    done, rest = futures.wait([slow, bad], GUARD_S, return_when=futures.FIRST_EXCEPTION)
    assert (done, rest) == ({bad}, {slow})
    gate.open()
    assert slow.result(GUARD_S) == gate.path


def test_wait_for_all_and_its_timeout(pool: ProcessPool, gate: Gate) -> None:
    slow, quick = pool.submit(steps.wait_for, gate.path), pool.submit(steps.double, 2)
    assert quick.result(GUARD_S) == 4
    assert futures.wait([slow, quick], 0.05).not_done == {slow}
    with pytest.raises(futures.TimeoutError):
        slow.result(0.05)
    gate.open()
    assert futures.wait([slow, quick], GUARD_S).done == {slow, quick}


def test_as_completed_yields_each_future_once(pool: ProcessPool, gate: Gate) -> None:
    slow = pool.submit(steps.wait_for, gate.path)
    others = [pool.submit(steps.double, i) for i in range(5)]
    order = []
    for future in futures.as_completed([slow, *others, others[0]], GUARD_S):
        order.append(future)
        if len(order) == 5:
            gate.open()
    assert order[-1] is slow
    assert set(order) == {slow, *others}


# map


def test_map_keeps_the_order(pool: ProcessPool) -> None:
    naps = [0.05, 0.0, 0.02, 0.0]
    assert list(pool.map(steps.nap, naps, range(4))) == [0, 1, 2, 3]


@pytest.mark.parametrize("chunksize", [1, 2, 7, 100, None])
def test_map_gives_the_same_whatever_the_chunks(pool: ProcessPool, chunksize: int | None) -> None:
    assert list(pool.map(pow, range(20), range(20), chunksize=chunksize)) == list(map(pow, range(20), range(20)))
    assert list(pool.map(lambda value: -value, range(20), chunksize=chunksize)) == [-value for value in range(20)]
    assert list(pool.map(steps.double, [], chunksize=chunksize)) == []


def test_map_stops_at_the_first_exception(pool: ProcessPool) -> None:
    results = pool.map(divmod, [1, 1, 1], [2, 0, 2])
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_has_a_timeout_and_cancels_what_is_pending(gate: Gate) -> None:
    with ProcessPool(1) as pool:
        results = pool.map(steps.wait_for, [gate.path] * 10, timeout=0.1)
        with pytest.raises(futures.TimeoutError):
            next(results)
        gate.open()
        assert pool.submit(steps.double, 1).result(GUARD_S) == 2


def test_a_chunk_size_below_one_is_refused(pool: ProcessPool) -> None:
    with pytest.raises(ValueError, match="chunksize must be greater than 0"):
        pool.map(abs, [1], chunksize=0)


def test_results_of_map_are_not_kept(pool: ProcessPool) -> None:
    for chunksize in (1, 3):
        for made in pool.map(steps.make_odd, ["never"] * 6, ["none"] * 6, chunksize=chunksize):
            seen = weakref.ref(made)
            del made
            assert seen() is None


# cancel, shutdown


def test_a_pending_future_can_be_cancelled_and_a_running_one_can_not(gate: Gate) -> None:
    with ProcessPool(1) as pool:
        running = pool.submit(steps.wait_for, gate.path)
        _until(running.running)
        pending = pool.submit(steps.double, 1)
        later = pool.submit(steps.double, 2)
        assert not running.cancel()
        assert pending.cancel()
        gate.open()
        assert later.result(GUARD_S) == 4
        assert futures.wait([running, pending, later], GUARD_S).not_done == set()
        with pytest.raises(futures.CancelledError):
            pending.result(GUARD_S)


def test_after_shutdown_nothing_more_is_taken_and_all_is_done() -> None:
    pool = ProcessPool(2)
    todo = [pool.submit(steps.double, i) for i in range(20)]
    pool.shutdown()
    assert [future.result(0) for future in todo] == [2 * i for i in range(20)]
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(steps.double, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.map(steps.double, [1])
    pool.shutdown()


def test_a_pool_that_was_never_used_can_be_shut_down() -> None:
    pool = ProcessPool()
    pool.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(steps.double, 1)


def test_shutdown_without_waiting_returns_while_tasks_run(gate: Gate) -> None:
    pool = ProcessPool(1)
    todo = [pool.submit(steps.wait_for, gate.path), pool.submit(steps.double, 4)]
    pool.shutdown(wait=False)
    assert not todo[0].done()
    gate.open()
    assert [future.result(GUARD_S) for future in todo] == [gate.path, 8]


def test_shutdown_can_cancel_what_is_pending(gate: Gate) -> None:
    pool = ProcessPool(1)
    running = pool.submit(steps.wait_for, gate.path)
    _until(running.running)
    pending = [pool.submit(steps.double, i) for i in range(10)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in pending)
    gate.open()
    pool.shutdown()
    assert running.result(0) == gate.path


def test_the_workers_are_gone_after_shutdown() -> None:
    with ProcessPool(2) as pool:
        pids = set(pool.map(steps.pid, range(8)))
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_pool_that_nobody_holds_any_more_ends_once_its_tasks_are_done(gate: Gate) -> None:
    pool = ProcessPool(1)
    worker = pool.submit(steps.pid).result(GUARD_S)
    todo = pool.submit(steps.wait_for, gate.path)
    del pool
    gc.collect()
    gate.open()
    assert todo.result(GUARD_S) == gate.path
    _until(lambda: not os.path.exists(f"/proc/{worker}"))


def test_a_callback_may_submit_and_may_shut_down() -> None:
    pool = ProcessPool(1)
    later: futures.Future[Any] = futures.Future()

    def again(done: futures.Future[Any]) -> None:
        inner = pool.submit(steps.double, done.result())
        inner.add_done_callback(lambda last: later.set_result(last.result()))
        inner.add_done_callback(lambda _: pool.shutdown(wait=True))

    pool.submit(steps.double, 5).add_done_callback(again)
    assert later.result(GUARD_S) == 20
    pool.shutdown()


def test_a_callback_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with ProcessPool(1) as pool:
        for problem in (ValueError, SystemExit):

            def broken(_: object, problem: type[BaseException] = problem) -> None:
                raise problem("callback")

            pool.submit(steps.double, 1).add_done_callback(broken)
        assert pool.submit(steps.double, 2).result(GUARD_S) == 4


def test_several_threads_submit_at_once(pool: ProcessPool) -> None:
    results: dict[int, list[int]] = {}

    def client(number: int) -> None:
        results[number] = list(pool.map(steps.double, range(number, number + 50)))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD_S)
    assert results == {i: [2 * n for n in range(i, i + 50)] for i in range(8)}


def test_threads_that_submit_while_another_shuts_down_get_a_result_or_a_refusal() -> None:
    for _ in range(5):
        pool = ProcessPool(1)
        pool.submit(steps.double, 0).result(GUARD_S)
        taken: list[futures.Future[Any]] = []
        refused = threading.Event()

        def client(pool: ProcessPool = pool, taken: list[Any] = taken, refused: threading.Event = refused) -> None:
            try:
                while True:
                    taken.append(pool.submit(steps.double, 1))
            except RuntimeError:
                refused.set()

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        _until(lambda taken=taken: len(taken) > 20)  # type: ignore[misc]
        pool.shutdown()
        for thread in threads:
            thread.join(GUARD_S)
        assert refused.is_set()
        ended = [future.exception(GUARD_S) for future in taken]
        assert {type(error) for error in ended} <= {type(None), RuntimeError}


# initializer


def test_the_initializer_runs_once_in_each_worker_before_its_first_task() -> None:
    with ProcessPool(2, initializer=steps.prepare, initargs=("yes",)) as pool:
        assert set(pool.map(steps.ready, range(10))) == {"yes"}


def test_an_initializer_may_be_a_closure() -> None:
    value = "closed over"
    with ProcessPool(1, initializer=lambda: steps.prepare(value)) as pool:
        assert pool.submit(steps.ready).result(GUARD_S) == value


@pytest.mark.parametrize(
    ("initializer", "args", "why"),
    [(steps.fail_to_prepare, (), "no licence"), (steps.leave, (7,), "exit code 7")],
)
def test_an_initializer_that_fails_breaks_the_pool(initializer: Any, args: tuple[Any, ...], why: str) -> None:
    with ProcessPool(2, initializer=initializer, initargs=args) as pool:
        todo = [pool.submit(steps.double, i) for i in range(5)]
        for future in todo:
            error = future.exception(GUARD_S)
            assert isinstance(error, PoolBroken)
            assert isinstance(error, futures.BrokenExecutor)
            assert why in str(error)
        with pytest.raises(futures.BrokenExecutor, match=why):
            pool.submit(steps.double, 1)


def test_an_initializer_that_can_not_be_pickled_is_refused_at_once() -> None:
    with pytest.raises(pickle.PicklingError, match="lock"):
        ProcessPool(1, initializer=steps.prepare, initargs=(threading.Lock(),))


# what can't be pickled, and deadlock cases


def test_an_argument_or_result_that_can_not_be_pickled_fails_its_future_and_names_it(pool: ProcessPool) -> None:
    error = pool.submit(steps.double, {"a": [threading.Lock()]}).exception(GUARD_S)
    assert isinstance(error, pickle.PicklingError)
    assert "task[1][0]['a'][0]" in str(error)
    error = pool.submit(threading.Lock).exception(GUARD_S)
    assert isinstance(error, pickle.PicklingError)
    assert "lock" in str(error)


@pytest.mark.parametrize("action", ["raise", "exit", "die"])
@pytest.mark.parametrize("when", ["argument opened", "result pickled", "result opened"])
def test_whatever_happens_at_pickling_costs_one_future(pool: ProcessPool, when: str, action: str) -> None:
    if (when, action) == ("result opened", "die"):
        pytest.skip("that would kill this process")
    if when == "argument opened":
        future = pool.submit(steps.double, steps.Odd("open", action))
    else:
        future = pool.submit(steps.make_odd, "open" if when == "result opened" else "pickle", action)
    other = pool.submit(steps.double, 4)
    error = future.exception(GUARD_S)
    expected = {
        "raise": (MemoryError, pickle.PicklingError),
        "exit": (SystemExit, pickle.PicklingError),
        "die": TaskLost,
    }
    assert isinstance(error, expected[action])  # type: ignore[arg-type]
    assert other.result(GUARD_S) == 8


@pytest.mark.parametrize("action", ["raise", "exit"])
def test_an_argument_that_fails_while_it_is_pickled_fails_its_future(pool: ProcessPool, action: str) -> None:
    error = pool.submit(steps.double, steps.Odd("pickle", action)).exception(GUARD_S)
    assert isinstance(error, (pickle.PicklingError, MemoryError, SystemExit))
    assert pool.submit(steps.double, 4).result(GUARD_S) == 8


def test_many_more_tasks_than_workers_with_large_arguments_and_results(pool: ProcessPool) -> None:
    data = b"x" * 300_000
    todo = [pool.submit(steps.double, data) for _ in range(60)]
    assert all(future.result(GUARD_S) == data * 2 for future in todo)


def _until(true: Any) -> None:
    until = time.monotonic() + GUARD_S
    while not true():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.002)
