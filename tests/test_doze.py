"""Waiting looks before it sleeps, where a core is free and looking has been worth it."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from forked import LONG_S

from procflow.attempt import Attempt, Succeeded
from procflow.call import StepCall
from procflow.executors.doze import LOOK_S, MOST_MISSES, SHORT_S, Doze
from procflow.executors.processes import ProcessExecutor

TICK_S = LOOK_S / 20
WAKING_S = LOOK_S / 2


class Peer:
    """Something that arrives ``in_s`` after each wait began; the clock goes on with each look, and jumps with each sleep."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.arrives: float | None = None
        self.looks = self.sleeps = 0

    def clock(self) -> float:
        return self.now

    def poll(self, timeout: float | None) -> list[Any]:
        assert self.arrives is not None
        if timeout == 0:
            self.looks += 1
            self.now += TICK_S
            return ["it"] if self.now >= self.arrives else []
        self.sleeps += 1
        self.now = max(self.now, self.arrives) + WAKING_S
        return ["it"]


class Waits:
    def __init__(self) -> None:
        self.peer = Peer()
        self.doze = Doze(self.peer.poll, self.peer.clock)

    def wait(self, in_s: float, free: bool = True, timeout: float | None = None) -> bool:
        """Whether it had to sleep."""
        self.peer.arrives = self.peer.now + in_s
        before = self.peer.sleeps
        assert self.doze.wait(timeout, free) == ["it"]
        return self.peer.sleeps > before


@pytest.fixture
def waits() -> Waits:
    return Waits()


def test_after_a_short_wait_what_comes_soon_is_met_without_sleep(waits: Waits) -> None:
    assert waits.wait(LOOK_S / 2), "nothing is known yet"
    assert not any(waits.wait(LOOK_S / 2) for _ in range(50))


def test_where_no_core_is_free_it_never_looks(waits: Waits) -> None:
    assert all(waits.wait(LOOK_S / 2, free=False) for _ in range(50))
    assert waits.peer.looks == 0


def test_long_waits_are_slept_through_from_the_beginning(waits: Waits) -> None:
    assert all(waits.wait(2 * SHORT_S) for _ in range(50))
    assert waits.peer.looks == 0


def test_looking_that_finds_nothing_is_left_out_more_and_more_and_comes_back(waits: Waits) -> None:
    looked = []
    for _ in range(200):
        before = waits.peer.looks
        assert waits.wait(1.5 * LOOK_S)
        looked.append(waits.peer.looks > before)
    assert 0 < sum(looked[:50]) <= 2 * MOST_MISSES
    assert 0 < sum(looked[100:]) <= 100 / 2**MOST_MISSES + 1
    slept = [waits.wait(LOOK_S / 2) for _ in range(2**MOST_MISSES * (MOST_MISSES + 1) + 50)]
    assert not any(slept[-50:])


def test_a_look_in_advance_is_no_wait(waits: Waits) -> None:
    waits.peer.arrives = waits.peer.now
    assert waits.doze.wait(0, free=True) == ["it"]
    assert waits.peer.looks == 1


@pytest.mark.parametrize(("cores", "at_once", "free"), [(1, 1, False), (2, 1, True), (2, 2, False), (3, 2, True)])
def test_a_core_is_free_where_fewer_attempts_run_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, at_once: int, free: bool
) -> None:
    seen: list[bool] = []
    real = Doze.wait

    def noted(self: Doze, timeout: float | None, free: bool) -> list[Any]:
        seen.append(free)
        return real(self, timeout, free)

    monkeypatch.setattr(Doze, "wait", noted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    call = StepCall("transform", "0", "a", function=int, outputs=("value",))
    with ProcessExecutor(2) as pool:
        for key in range(1, at_once + 1):
            pool.submit(Attempt(key, call))
        done, until = 0, time.monotonic() + LONG_S
        while done < at_once:
            assert time.monotonic() < until
            done += sum(isinstance(outcome, Succeeded) for outcome in pool.wait(until))
    assert seen[0] == free, "while all of them run"
