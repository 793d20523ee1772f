"""Attempts queued behind others in a worker: they begin in order, cost nothing where they don't, and print to their own logs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from executor_contract import LONG_S, Log, attempt, finish, is_final, step_call, value

from procflow.attempt import Attempt, Failed, Lost, Outcome, Returned, Skipped, Started, Succeeded
from procflow.executors import lines, processes, wire
from procflow.executors.channel import Inbox
from procflow.executors.ladder import Ladder
from procflow.executors.processes import ProcessExecutor
from procflow.executors.slot import Slot
from procflow.values import objects


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessExecutor]:
    """One warm worker; what waits is given back only when the test wants it."""
    monkeypatch.setattr(lines, "YOUNG_S", 10 * LONG_S)
    with ProcessExecutor(1) as started:
        started.submit(attempt(1000, "double", 1))
        finish(started)
        yield started


def lost(outcome: Outcome) -> Lost:
    assert isinstance(outcome, Lost), outcome
    return outcome


def log_of(one: Attempt) -> Log:
    assert isinstance(one.log, Log)
    return one.log


def mark(folder: Path, key: int) -> Attempt:
    return attempt(key, "touch", str(folder / f"began-{key}"))


def began(folder: Path) -> set[int]:
    return {int(path.name.removeprefix("began-")) for path in folder.glob("began-*")}


def until(executor: ProcessExecutor, condition: Callable[[], bool]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        outcomes += executor.wait(time.monotonic() + 0.01)
    return outcomes


def hold(executor: ProcessExecutor, folder: Path) -> Callable[[], None]:
    """An attempt with the key 1 runs until the function is called."""
    go = folder / "go"
    executor.submit(attempt(1, "touch_and_wait", str(folder / "began-1"), str(go)))
    until(executor, lambda: 1 in began(folder))
    return go.touch


def queue(executor: ProcessExecutor, one: Attempt) -> None:
    """Queue an attempt and send it at once, not with others as the loop waits."""
    executor.queue(one)
    executor._send_queued()


def ends(outcomes: list[Outcome]) -> dict[int, type]:
    finals = [outcome for outcome in outcomes if is_final(outcome)]
    assert len({outcome.key for outcome in finals}) == len(finals), "every attempt ends once"
    return {outcome.key: type(outcome) for outcome in finals}


def test_queued_attempts_run_in_order_and_each_prints_to_its_own_log(executor: ProcessExecutor) -> None:
    attempts = [attempt(key, "shout", f"word-{key}") for key in range(1, 9)]
    executor.submit(attempts[0])
    for one in attempts[1:]:
        queue(executor, one)
    assert executor.running == 8
    outcomes = finish(executor, 8)
    finals = [outcome for outcome in outcomes if is_final(outcome)]
    assert [outcome.key for outcome in finals] == list(range(1, 9))
    for one, outcome in zip(attempts, finals, strict=True):
        word = value(outcome)
        log = log_of(one)
        assert sorted(log.data.decode().split("\n")) == ["", f"err {word}", f"out {word}"]
        assert [record[2] for record in log.records] == [f"logged {word}"]
        assert log.closed == 1
    assert executor.running == 0


def test_a_queued_attempt_begins_when_the_one_before_it_has_ended(executor: ProcessExecutor, tmp_path: Path) -> None:
    release = hold(executor, tmp_path)
    queue(executor, attempt(2, "sleep", 0.5))
    assert executor.wait(time.monotonic() + 0.1) == []
    release()
    outcomes = finish(executor)
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Started]
    assert outcomes[1].key == 2
    (second,) = finish(executor)
    assert isinstance(second, Succeeded)
    assert second.usage.wall_s < 5


def test_what_waits_behind_a_long_attempt_is_given_back_and_never_begins(
    executor: ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "YOUNG_S", 0.02)
    release = hold(executor, tmp_path)
    waiting = [mark(tmp_path, key) for key in (2, 3)]
    for one in waiting:
        queue(executor, one)
    assert ends(finish(executor, 2)) == {2: Returned, 3: Returned}
    assert [log_of(one).closed for one in waiting] == [1, 1]
    release()
    assert ends(finish(executor)) == {1: Succeeded}
    assert value(finish_one(executor, attempt(4, "double", 4))) == 8
    assert began(tmp_path) == {1}


def finish_one(executor: ProcessExecutor, one: Attempt) -> Outcome:
    executor.submit(one)
    return finish(executor)[-1]


def test_a_worker_that_is_killed_costs_what_runs_and_gives_back_what_waits(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    hold(executor, tmp_path)
    waiting = [mark(tmp_path, key) for key in (2, 3, 4)]
    for one in waiting:
        queue(executor, one)
    os.kill(executor._running[1].pid, signal.SIGKILL)
    outcomes = finish(executor, 4)
    assert ends(outcomes) == {1: Lost, 2: Returned, 3: Returned, 4: Returned}
    assert [log_of(one).closed for one in waiting] == [1, 1, 1]
    assert began(tmp_path) == {1}
    assert executor.running == 0


def test_an_attempt_that_kills_its_worker_costs_no_other(executor: ProcessExecutor, tmp_path: Path) -> None:
    executor.submit(mark(tmp_path, 1))
    queue(executor, mark(tmp_path, 2))
    queue(executor, attempt(3, "die_by", int(signal.SIGKILL)))
    queue(executor, mark(tmp_path, 4))
    outcomes = finish(executor, 4)
    assert ends(outcomes) == {1: Succeeded, 2: Succeeded, 3: Lost, 4: Returned}
    assert lost(next(o for o in outcomes if isinstance(o, Lost))).failure.signal == signal.SIGKILL
    assert began(tmp_path) == {1, 2}


def test_a_queued_attempt_that_is_to_be_killed_is_given_back(executor: ProcessExecutor, tmp_path: Path) -> None:
    release = hold(executor, tmp_path)
    queue(executor, mark(tmp_path, 2))
    queue(executor, mark(tmp_path, 3))
    executor.kill(3, "cancelled", 1.0)
    assert ends(finish(executor, 2)) == {2: Returned, 3: Returned}
    executor.kill(3, "cancelled", 1.0)
    release()
    assert ends(finish(executor)) == {1: Succeeded}
    assert began(tmp_path) == {1}


def test_killing_what_runs_gives_back_what_waits(executor: ProcessExecutor, tmp_path: Path) -> None:
    hold(executor, tmp_path)
    queue(executor, mark(tmp_path, 2))
    executor.kill(1, "timeout", 0.2)
    outcomes = finish(executor, 2)
    assert ends(outcomes) == {1: Lost, 2: Returned}
    assert lost(next(o for o in outcomes if isinstance(o, Lost))).failure.cause == "timeout"
    assert began(tmp_path) == {1}


def test_a_kill_of_an_attempt_that_has_begun_meanwhile_stops_it(executor: ProcessExecutor, tmp_path: Path) -> None:
    executor.submit(mark(tmp_path, 1))
    queue(executor, attempt(2, "touch_and_wait", str(tmp_path / "began-2"), str(tmp_path / "never")))
    # Nobody listens, so as far as the parent knows the second one still waits.
    end = time.monotonic() + LONG_S
    while 2 not in began(tmp_path):
        assert time.monotonic() < end
        time.sleep(0.005)
    executor.kill(2, "cancelled", 0.5)
    assert ends(finish(executor, 2)) == {1: Succeeded, 2: Lost}


def test_what_waits_in_a_stopped_worker_is_taken_back_and_the_first_of_it_stays(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    (slot,) = executor._idle
    os.kill(slot.pid, signal.SIGSTOP)
    first = mark(tmp_path, 1)
    executor.submit(first)
    queue(executor, mark(tmp_path, 2))
    queue(executor, mark(tmp_path, 3))
    executor.kill(2, "cancelled", 1.0)
    assert ends(finish(executor, 2)) == {2: Returned, 3: Returned}
    assert executor.wait(time.monotonic() + 0.1) == []
    os.kill(slot.pid, signal.SIGCONT)
    assert ends(finish(executor)) == {1: Succeeded}
    assert began(tmp_path) == {1}
    assert log_of(first).closed == 1


def test_what_is_too_large_or_unknown_to_the_worker_follows_when_its_turn_comes(executor: ProcessExecutor) -> None:
    factor = 3
    data = bytes(1 << 20)
    executor.submit(attempt(1, "double", 1))
    queue(executor, attempt(2, lambda x: x * factor, 2))
    queue(executor, Attempt(3, step_call("echo", objects_lookup()), values={"x": objects.pack(data)}, log=Log()))
    queue(executor, attempt(4, "double", 4))
    found = {outcome.key: value(outcome) for outcome in finish(executor, 4) if isinstance(outcome, Succeeded)}
    assert found == {1: 2, 2: 6, 3: data, 4: 8}


def objects_lookup() -> Any:
    from procflow.call import Lookup

    return Lookup("x")


def test_attempts_that_fail_or_leave_things_behind_hurt_no_other(executor: ProcessExecutor) -> None:
    names = ["fail", "replace_stdout", "double", "close_fds", "double"]
    arguments: list[tuple[Any, ...]] = [("no",), (), (1,), (), (2,)]
    attempts = [attempt(key, name, *args) for key, (name, args) in enumerate(zip(names, arguments, strict=True), 1)]
    executor.submit(attempts[0])
    for one in attempts[1:]:
        queue(executor, one)
    assert list(ends(finish(executor, 5)).values()) == [Failed, Succeeded, Succeeded, Succeeded, Succeeded]


def test_closing_leaves_what_waits_unbegun_and_closes_its_logs(tmp_path: Path) -> None:
    with ProcessExecutor(1) as executor:
        hold(executor, tmp_path)
        waiting = [mark(tmp_path, key) for key in (2, 3)]
        for one in waiting:
            queue(executor, one)
    assert [log_of(one).closed for one in waiting] == [1, 1]
    assert began(tmp_path) == {1}


def test_the_line_of_a_worker_that_starts_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "YOUNG_S", 10 * LONG_S)
    with ProcessExecutor(1) as executor:
        executor.submit(attempt(1, "double", 1))
        queue(executor, attempt(2, "double", 2))
        assert ends(finish(executor, 2)) == {1: Succeeded, 2: Succeeded}


def test_taking_back_while_the_worker_claims_keeps_order_and_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Looked at all the time, so that claims are read away while the worker reads them.
    monkeypatch.setattr(lines, "YOUNG_S", 0.0)
    with ProcessExecutor(1) as executor:
        executor.submit(attempt(1000, "double", 1))
        finish(executor)
        key = 0
        for _ in range(150):
            keys = range(key + 1, key + 6)
            key += 5
            executor.submit(attempt(keys[0], "double", keys[0]))
            for one in keys[1:]:
                queue(executor, attempt(one, "double", one))
            outcomes = finish(executor, 5)
            found = ends(outcomes)
            assert set(found) == set(keys)
            assert set(found.values()) <= {Succeeded, Returned}
            assert all(value(o) == 2 * o.key for o in outcomes if isinstance(o, Succeeded))
        assert executor.running == 0


def test_a_kill_of_what_the_worker_has_not_claimed_yet_takes_back_all_behind_it(
    executor: ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    begin = Ladder.begin

    def noted(self: Ladder, slot: Slot, *how: Any) -> None:
        told.append(len(slot.line.waiting))
        begin(self, slot, *how)

    monkeypatch.setattr(Ladder, "begin", noted)
    monkeypatch.setattr(processes, "CLAIM_S", LONG_S)
    (worker,) = executor.workers()
    os.kill(worker, signal.SIGSTOP)
    os.waitid(os.P_PID, worker, os.WSTOPPED)
    executor.submit(attempt(1, "touch_and_wait", str(tmp_path / "began-1"), str(tmp_path / "go")))
    for key in (2, 3):
        queue(executor, mark(tmp_path, key))
    executor.kill(1, "cancelled", LONG_S)
    os.kill(worker, signal.SIGCONT)
    outcomes = finish(executor, 3)
    assert ends(outcomes) == {1: Lost, 2: Returned, 3: Returned}
    assert told == [0], "nothing waits behind an attempt that is told to stop"
    assert began(tmp_path) <= {1}
    assert executor.running == 0


def test_what_was_queued_behind_a_noisy_attempt_and_has_begun_is_not_lost_with_it(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    (worker,) = executor.workers()
    executor.submit(attempt(1, "noise"))
    queue(executor, mark(tmp_path, 2))
    queue(executor, attempt(3, "touch_and_wait", str(tmp_path / "began-3"), str(tmp_path / "go")))
    queue(executor, mark(tmp_path, 4))
    end = time.monotonic() + LONG_S
    while began(tmp_path) != {2, 3}:
        # Nobody reads meanwhile, so the noise is found when the third attempt runs.
        assert time.monotonic() < end
        time.sleep(0.001)
    outcomes = until(executor, lambda: not executor._poller.noticed and len(executor._queued) == 0)
    (tmp_path / "go").touch()
    outcomes += finish(executor, 4 - len(ends(outcomes)))
    assert ends(outcomes) == {1: Lost, 4: Returned, 2: Succeeded, 3: Succeeded}
    assert [type(o) for o in outcomes if o.key == 3] == [Started, Succeeded]
    noisy = next(outcome for outcome in outcomes if outcome.key == 1)
    assert "was replaced" in lost(noisy).failure.message
    executor.submit(attempt(5, "double", 5))
    assert value(finish(executor)[-1]) == 10
    assert worker not in executor.workers()
    assert executor.running == 0


def test_attempts_whose_outcomes_noise_hides_are_lost_and_nobody_waits_for_them(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    executor.submit(attempt(1, "garble"))
    for key in (2, 3):
        queue(executor, mark(tmp_path, key))
    end = time.monotonic() + LONG_S
    while began(tmp_path) != {2, 3}:
        # Nobody reads meanwhile, so all three are over when the noise is found.
        assert time.monotonic() < end
        time.sleep(0.001)
    assert ends(finish(executor, 3)) == {1: Lost, 2: Lost, 3: Lost}
    assert value(finish_one(executor, attempt(4, "double", 4))) == 8
    assert executor.running == 0


def test_what_a_noisy_attempt_printed_is_in_its_own_log(executor: ProcessExecutor, tmp_path: Path) -> None:
    noisy = attempt(1, "print_and_noise", "heard")
    executor.submit(noisy)
    queue(executor, mark(tmp_path, 2))
    end = time.monotonic() + LONG_S
    while began(tmp_path) != {2}:
        assert time.monotonic() < end
        time.sleep(0.001)
    # The channel alone is read, as where the noise came first.
    executor._read(executor._running[1])
    assert b"heard" in log_of(noisy).data
    assert ends(finish(executor, 2)) == {1: Lost, 2: Succeeded}


def test_a_kill_does_not_wait_for_the_end_of_what_a_worker_keeps_sending(
    executor: ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(executor, tmp_path)
    reads = 0

    def endless(self: Inbox, fd: int) -> list[Any]:
        nonlocal reads
        reads += 1
        assert reads < 1000, "the loop stands still"
        return [(wire.RECORD, 20, "step", "again")]

    with monkeypatch.context() as while_it_sends:
        while_it_sends.setattr(Inbox, "read", endless)
        executor.kill(1, "timeout", 0.1)
    assert reads
    assert ends(finish(executor)) == {1: Lost}


def test_what_was_queued_is_sent_as_soon_as_somebody_waits(executor: ProcessExecutor, tmp_path: Path) -> None:
    """Also where another waits for several executors: the deadline is over at once."""
    release = hold(executor, tmp_path)
    executor.queue(mark(tmp_path, 2))
    (slot,) = executor._running.values()
    assert slot.line.unsent
    assert executor.deadline() == 0.0
    assert executor.wait(time.monotonic()) == []
    assert not slot.line.unsent
    assert executor.deadline() != 0.0
    release()
    assert ends(finish(executor, 2)) == {1: Succeeded, 2: Succeeded}


def test_what_ended_meanwhile_is_told_in_order_whatever_each_ended_as(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    release = hold(executor, tmp_path)
    attempts = [
        *(attempt(key, "double", key) for key in (2, 3)),
        attempt(4, "fail", "on purpose"),
        attempt(5, "shout", "heard"),
        attempt(6, "double", 6, when="1 > 2"),
        mark(tmp_path, 7),
    ]
    for one in attempts:
        queue(executor, one)
    release()
    end = time.monotonic() + LONG_S
    while began(tmp_path) != {1, 7}:
        assert time.monotonic() < end
        time.sleep(0.001)
    # All but the last have ended by now, and nothing was read.
    outcomes = finish(executor, 7)
    assert [(outcome.key, type(outcome)) for outcome in outcomes if is_final(outcome)] == [
        (1, Succeeded), (2, Succeeded), (3, Succeeded), (4, Failed), (5, Succeeded), (6, Skipped), (7, Succeeded)
    ]  # fmt: skip
    assert {outcome.key for outcome in outcomes if isinstance(outcome, Started)} <= {7}
    assert [log_of(one).closed for one in attempts] == [1] * len(attempts)
    assert b"heard" in log_of(attempts[3]).data
    assert [one.key for one in attempts if log_of(one).data] == [5]
    assert executor.running == 0


def test_only_an_attempt_that_prints_has_its_log_opened(executor: ProcessExecutor) -> None:
    opened: list[int] = []

    def open_log(one: Attempt) -> Log:
        opened.append(one.key)
        return Log()

    attempts = [attempt(1, "double", 1), attempt(2, "shout", "heard"), attempt(3, "double", 3)]
    for one in attempts:
        one.log, one.open_log = None, open_log
    executor.submit(attempts[0])
    for one in attempts[1:]:
        executor.queue(one)
    assert ends(finish(executor, 3)) == {1: Succeeded, 2: Succeeded, 3: Succeeded}
    assert opened == [2]
    assert log_of(attempts[1]).closed == 1


@pytest.mark.parametrize("lengths", [[0], [3, 0, 1], [2, 2], [5, 0, 0, 4]])
def test_the_shortest_line_grows_first(lengths: list[int]) -> None:
    slots: list[Any] = [SimpleNamespace(line=SimpleNamespace(waiting=[None] * length)) for length in lengths]
    for slot in islice(lines._shortest(slots), 12):
        assert len(slot.line.waiting) == min(len(other.line.waiting) for other in slots)
        slot.line.waiting.append(None)
    assert list(lines._shortest([])) == []
