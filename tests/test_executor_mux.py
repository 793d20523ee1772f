"""Several executors behind one face keep the contract too."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from executor_contract import Attempt, ExecutorContract, attempt, finish, is_final, run, step_call, value

from procflow.attempt import Lost
from procflow.errors import ExecutorError
from procflow.executors.inline import InlineExecutor
from procflow.executors.mux import Mux
from procflow.executors.processes import ProcessExecutor
from procflow.executors.threads import ThreadExecutor


class TestMux(ExecutorContract):
    def make_executor(self, slots: int) -> Mux:
        # The contract keeps at most ``slots`` attempts out on all together, so one slot each is what fits any order.
        return Mux(
            {"threads": ThreadExecutor(slots), "processes": ProcessExecutor(slots)},
            lambda attempt: "processes" if attempt.key % 2 else "threads",
        )

    @pytest.fixture
    def executor(self) -> Iterator[Mux]:  # type: ignore[override]
        with self.make_executor(2) as mux:
            mux.slots = 2
            yield mux


@pytest.fixture
def mux() -> Iterator[Mux]:
    with Mux({"processes": ProcessExecutor(2), "threads": ThreadExecutor(1), "inline": InlineExecutor()}) as mux:
        yield mux


def test_attempts_go_where_they_are_told(mux: Mux) -> None:
    for key, name in enumerate(("processes", "threads", "inline")):
        mux.submit(attempt(key, "pid"), name)
    ended = {o.key: o for o in finish(mux, 3) if is_final(o)}
    assert value(ended[0]) != os.getpid()
    assert value(ended[1]) == value(ended[2]) == os.getpid()


def test_an_attempt_given_to_an_executor_itself_is_waited_for(mux: Mux) -> None:
    mux.executors["threads"].submit(attempt(1, "sleep", 0.05))
    assert mux.running == 1
    outcomes = mux.wait(None)
    assert value(outcomes[-1]) == "slept"


def test_slots_add_up_and_only_what_all_can_do_is_claimed(mux: Mux) -> None:
    assert mux.slots == 4
    assert mux.capabilities == frozenset()
    with ProcessExecutor(1) as alone:
        assert Mux({"processes": alone}).capabilities == {"kill", "memory", "threads"}


def test_a_kill_finds_its_executor_and_its_clock_runs(mux: Mux, tmp_path: Path) -> None:
    on = tmp_path / "on"
    mux.submit(attempt(1, "ignore_sigterm", str(on)), "processes")
    until = time.monotonic() + 20
    while not on.exists():
        assert time.monotonic() < until
        mux.wait(time.monotonic() + 0.01)
    began = time.monotonic()
    mux.kill(1, "timeout", 0.2)
    outcome = finish(mux)[-1]
    assert isinstance(outcome, Lost)
    assert (outcome.failure.cause, outcome.failure.signal) == ("timeout", signal.SIGKILL)
    assert time.monotonic() - began < 5


def test_an_executor_that_is_not_there_is_named(mux: Mux) -> None:
    with pytest.raises(ExecutorError, match=r"'dask'.*processes, threads, inline"):
        mux.submit(attempt(1, "double", 1), "dask")
    with pytest.raises(ExecutorError, match="no executor is named"):
        mux.submit(attempt(1, "double", 1))


def test_a_call_that_one_of_them_cannot_take_is_told_before_the_run(mux: Mux) -> None:
    with pytest.raises(ExecutorError, match="lock"):
        mux.check(step_call("echo", threading.Lock()))


def test_all_are_closed_though_one_fails_to(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ThreadExecutor(1), ThreadExecutor(1)
    mux = Mux({"first": first, "second": second})
    run(mux.executors["second"], Attempt(1, step_call("double", 1)))
    close = first.close

    def fail() -> None:
        close()
        raise OSError("no")

    monkeypatch.setattr(first, "close", fail)
    with pytest.raises(OSError, match="no"):
        mux.close()
    with pytest.raises(ExecutorError, match="closed"):
        second.submit(attempt(2, "double", 1))
    mux.close()
