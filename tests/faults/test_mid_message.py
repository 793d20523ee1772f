"""A worker killed at any point of its talk with the parent costs its attempt at most, and is missed within a second.

Four phases, 25 kills each: idle; in the middle of a call (the parent holds the rest of it); running; in the middle of its
result (larger than the socket holds, begun, and nobody reads). Another worker runs through all of it untouched.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_steps
import ledger
import psutil
import pytest
from executor_contract import LONG_S, Log, attempt, finish, is_final, open_fds, step_call, value

from procflow import Pipeline, Step, failpoints
from procflow.attempt import Attempt, Lost, Outcome, Succeeded
from procflow.call import Lookup
from procflow.executors.processes import ProcessExecutor
from procflow.executors.slot import Slot
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder
from procflow.values import objects

ROUNDS, EACH = 5, 5
SEEN_S = 5.0
"""A tenth of a second is promised; here two processors may be full of other tests."""
SIBLING = 1
LARGE_MB = 8
SEED = int(os.environ.get("PROCFLOW_SEED", "20261120"))


class Talk:
    """An executor with two slots: a sibling that runs in one, and whoever is to be killed in the other."""

    def __init__(self, executor: ProcessExecutor, folder: Path) -> None:
        self.executor = executor
        self.folder = folder
        self.chance = random.Random(SEED)
        self.keys = SIBLING
        self.ended: dict[int, Outcome] = {}
        self.logs: list[Log] = []

    def submit(self, one: Attempt) -> int:
        self.executor.submit(one)
        if isinstance(one.log, Log):
            self.logs.append(one.log)
        return one.key

    def key(self) -> int:
        self.keys += 1
        return self.keys

    def hear(self, until: float) -> None:
        """Take what comes; every attempt ends once."""
        for outcome in self.executor.wait(until):
            if is_final(outcome):
                assert outcome.key not in self.ended, f"attempt {outcome.key} ended twice"
                self.ended[outcome.key] = outcome

    def until(self, condition: Callable[[], bool], seconds: float = LONG_S) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not so after {seconds} s"
            self.hear(time.monotonic() + 0.01)

    def end(self, key: int) -> Outcome:
        """The outcome of an attempt."""
        self.until(lambda: key in self.ended)
        return self.ended[key]

    def warm(self) -> Slot:
        """An idle worker."""
        assert value(self.end(self.submit(attempt(self.key(), "double", 2)))) == 4
        return self.executor._idle[-1]

    def kill(self, slot: Slot) -> None:
        """SIGKILL; the parent has missed the worker soon."""
        os.kill(slot.pid, signal.SIGKILL)
        ledger.count("kills of workers", 1)
        self.until(lambda: slot not in self.executor._all, SEEN_S)


def idle(talk: Talk) -> None:
    """Costs nothing."""
    slot = talk.warm()
    assert slot.attempt is None
    talk.kill(slot)
    assert value(talk.end(talk.submit(attempt(talk.key(), "double", 8)))) == 16


def receiving(talk: Talk) -> None:
    """It never began, so the attempt goes to another worker and costs nothing either."""
    slot = talk.warm()
    os.kill(slot.pid, signal.SIGSTOP)
    data = bytes(LARGE_MB << 20)
    call = step_call("echo", Lookup("x"))
    key = talk.submit(Attempt(talk.key(), call, values={"x": objects.pack(data)}))
    assert slot is talk.executor._running[key]
    for _ in range(talk.chance.randint(0, 2)):
        # It reads what the pipe holds, and a little more is sent.
        os.kill(slot.pid, signal.SIGCONT)
        assert select.select([], [slot.stream_fd], [], LONG_S)[1]
        os.kill(slot.pid, signal.SIGSTOP)
        slot.outbox.flush(slot.stream_fd)
    assert waiting(slot) > 0, "the call is not on its way any more"
    assert key not in talk.ended
    talk.kill(slot)
    assert value(talk.end(key)) == data


def waiting(slot: Slot) -> int:
    """Bytes that the parent could not send yet."""
    return sum(map(len, slot.outbox._waiting))


def running(talk: Talk) -> None:
    """Costs the attempt that runs."""
    on = talk.folder / f"on-{talk.keys}"
    key = talk.submit(attempt(talk.key(), "sleep_and_touch", str(on)))
    talk.until(on.exists)
    talk.kill(talk.executor._running[key])
    check_lost(talk.end(key))


def sending(talk: Talk) -> None:
    """Half a result is none."""
    talk.warm()
    key = talk.submit(attempt(talk.key(), "large", LARGE_MB))
    slot = talk.executor._running[key]
    # Readable, though nothing was read: it has begun, and the socket holds but a part of it.
    assert select.select([slot.channel_fd], [], [], LONG_S)[0]
    for _ in range(talk.chance.randint(0, 2)):
        talk.executor._read(slot)
    # A killed process leaves its send only when the socket is full: with a reader this quick it could send the rest.
    stop(slot.pid)
    assert key not in talk.ended
    assert slot.inbox._body is None or slot.inbox._filled < len(slot.inbox._body)
    assert slot.attempt is not None
    talk.kill(slot)
    check_lost(talk.end(key))


def stop(pid: int) -> None:
    """SIGSTOP, and wait until the process stands still."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + LONG_S
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < end, f"process {pid} does not stop"
        time.sleep(0.001)


def check_lost(outcome: Outcome) -> None:
    assert isinstance(outcome, Lost), outcome
    assert (outcome.failure.cause, outcome.failure.signal) == ("crash", signal.SIGKILL)


@pytest.fixture
def executor() -> Iterator[ProcessExecutor]:
    # The first executor of a process starts multiprocessing's resource tracker, which stays.
    with ProcessExecutor(1) as first:
        first.submit(attempt(1, "double", 1))
        finish(first)
    before = open_fds()
    with ProcessExecutor(2) as started:
        yield started
    assert open_fds() == before


@pytest.mark.slow
@pytest.mark.parametrize("phase", [idle, receiving, running, sending])
def test_a_worker_killed_in_any_phase_costs_its_attempt_at_most(
    phase: Callable[[Talk], Any], executor: ProcessExecutor, tmp_path: Path
) -> None:
    talk = Talk(executor, tmp_path)
    for number in range(ROUNDS):
        go = tmp_path / f"go-{number}"
        sibling = talk.submit(attempt(talk.key(), "wait_for", str(go)))
        talk.until(lambda key=sibling: executor._running[key].ready)  # type: ignore[misc]
        pid = executor.pids()[sibling]
        for _ in range(EACH):
            phase(talk)
            assert executor.pids() == {sibling: pid}
        go.touch()
        assert value(talk.end(sibling)) == "found"
    assert executor.running == 0
    assert all(isinstance(outcome, (Succeeded, Lost)) for outcome in talk.ended.values())
    assert all(log.closed == 1 for log in talk.logs)


# -- F08: its result was received whole


def test_a_worker_killed_once_its_result_is_received_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the receipt and the commit; what was received counts, and so does what comes from the next worker."""
    monkeypatch.setenv(ledger.VARIABLE, str(tmp_path / "ledger"))
    names = [f"s{i}" for i in range(6)]
    killed: list[int] = []

    def kill_the_sender(name: str) -> None:
        if name == "pool.received":
            pid = ledger.read(tmp_path / "ledger")[-1].pid
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            ledger.count("kills of workers", 1)

    steps = [Step(name, fault_steps.sibling, params={"place": name}) for name in names]
    failpoints.arm(kill_the_sender)
    try:
        result = Pipeline("p", steps=steps).run(executor="processes", workers=1, state_dir=tmp_path / "state")
    finally:
        failpoints.arm(None)
    assert result.status == "succeeded"
    assert len(set(killed)) == len(names)
    assert [result.outputs[name] for name in names] == [f"{name} is fine" for name in names]
    ledger.check_law(ledger.read(tmp_path / "ledger"), names)
    with History.open(StateFolder(tmp_path / "state")) as past:
        assert {row.status for row in past.steps(result.run_id)} <= {"succeeded"}
