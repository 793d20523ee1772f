"""A worker that is started before there is an attempt for it: the first attempt takes it, and nothing of it is left behind."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from executor_contract import LONG_S, attempt, finish, open_fds, value

from procflow import Pipeline, Step, StoreError
from procflow.attempt import Lost, Outcome, Started, Succeeded
from procflow.executors.processes import ProcessExecutor
from procflow.storing.store import Store


def one_worker(executor: ProcessExecutor) -> int:
    (pid,) = executor.workers()
    return pid


def serve(executor: ProcessExecutor, until: float = LONG_S) -> list[Outcome]:
    """Outcomes that come while nothing is expected."""
    return executor.wait(time.monotonic() + until)


def test_the_first_attempt_runs_in_the_worker_that_was_there_before() -> None:
    with ProcessExecutor(2) as executor:
        executor.warm()
        first = one_worker(executor)
        executor.submit(attempt(1, "pid"))
        assert value(finish(executor)[-1]) == first
        assert executor.workers() == {first}


def test_an_attempt_finds_it_ready_when_it_comes_later() -> None:
    with ProcessExecutor(1) as executor:
        executor.warm()
        first = one_worker(executor)
        while not executor._idle[0].ready:
            assert serve(executor, 0.01) == []
        executor.submit(attempt(1, "pid"))
        assert value(finish(executor)[-1]) == first


def test_it_is_one_at_most_and_none_where_workers_are_already() -> None:
    with ProcessExecutor(2) as executor:
        executor.warm()
        executor.warm()
        one_worker(executor)
    with ProcessExecutor(2) as executor:
        executor.submit(attempt(1, "pid"))
        executor.warm()
        one_worker(executor)
        finish(executor)


def test_closing_does_not_wait_until_it_has_started() -> None:
    fds = open_fds()
    executor = ProcessExecutor(1)
    executor.warm()
    pid = one_worker(executor)
    executor.close()
    assert not psutil.pid_exists(pid)
    assert open_fds() == fds


def test_an_attempt_with_a_small_limit_takes_it_as_well() -> None:
    with ProcessExecutor(1) as executor:
        executor.warm()
        first = one_worker(executor)
        executor.submit(replace(attempt(1, "pid"), memory_bytes=40 << 20))
        assert value(finish(executor)[-1]) == first


def test_its_death_before_the_first_attempt_costs_nothing() -> None:
    with ProcessExecutor(1) as executor:
        executor.warm()
        os.kill(one_worker(executor), 9)
        until = time.monotonic() + LONG_S
        while executor.workers():
            assert time.monotonic() < until
            assert serve(executor, 0.01) == []
        executor.submit(attempt(1, "double", 4))
        assert value(finish(executor)[-1]) == 8


def test_its_death_with_the_first_attempt_waiting_costs_nothing_either() -> None:
    with ProcessExecutor(1) as executor:
        executor.warm()
        os.kill(one_worker(executor), 9)
        executor.submit(attempt(1, "double", 4))
        outcomes = finish(executor)
        assert [type(one) for one in outcomes] == [Started, Succeeded]
        assert value(outcomes[-1]) == 8


def test_an_attempt_that_waits_for_it_can_be_stopped() -> None:
    with ProcessExecutor(1) as executor:
        executor.warm()
        executor.submit(attempt(1, "pid"))
        executor.kill(1, "cancelled", 0.0)
        assert isinstance(finish(executor)[-1], Lost)


def test_shedding_ends_it_though_it_is_not_ready() -> None:
    with ProcessExecutor(1) as executor:
        executor.warm()
        executor.shed()
        executor.submit(attempt(1, "double", 4))
        assert value(finish(executor)[-1]) == 8


def test_where_it_can_not_be_started_the_first_attempt_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = ProcessExecutor._start, []

    def start(self: ProcessExecutor, cpus: int) -> object:
        if not refused:
            refused.append(cpus)
            raise OSError("no more processes")
        return real(self, cpus)

    monkeypatch.setattr(ProcessExecutor, "_start", start)
    with ProcessExecutor(1) as executor:
        executor.warm()
        assert executor.workers() == set()
        executor.submit(attempt(1, "double", 4))
        assert value(finish(executor)[-1]) == 8
    assert refused == [1]


def double(x: int) -> int:
    return 2 * x


def test_a_run_that_breaks_before_its_first_step_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(psutil.Process().children(recursive=True))
    children: list[psutil.Process] = []
    seen: list[psutil.Process] = []

    def broken(self: Store, lock: str) -> None:
        # The reaper's stand-in is the reaper's child, there or not yet.
        children.extend(set(psutil.Process().children()) - before)
        seen.extend(set(psutil.Process().children(recursive=True)) - before)
        raise StoreError("the journal is gone")

    monkeypatch.setattr(Store, "recover", broken)
    with pytest.raises(StoreError, match="gone"):
        Pipeline("p", steps=[Step("a", double, params={"x": 1})]).run(workers=2, state_dir=tmp_path)
    assert len(children) == 2, "the reaper and one worker"
    assert not any(process.is_running() for process in seen)


def test_a_faulty_pipeline_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(ProcessExecutor, "_start", lambda self, cpus: started.append(cpus))
    with pytest.raises(Exception, match="nowhere"):
        Pipeline("p", steps=[Step("a", double, inputs=["nowhere"])]).run(workers=2, state_dir=tmp_path)
    assert started == []
