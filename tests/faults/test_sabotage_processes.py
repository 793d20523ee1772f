"""Bugs sown into workers, locks and channels, each found by a small check."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import fault_steps
import ledger
import pytest
from executor_contract import attempt, finish, open_fds
from forked import forked, is_alive, soon
from sabotage import run

from procflow import Step
from procflow import engine as engine_module
from procflow import events as ev
from procflow.attempt import Lost
from procflow.errors import LockHeld
from procflow.executors import channel, slot
from procflow.executors import processes as processes_module
from procflow.executors.ladder import Ladder
from procflow.executors.processes import ProcessExecutor
from procflow.guarding.reaper import Reaper
from procflow.storing.state_folder import RunLock, StateFolder
from procflow.values import objects
from procflow.working import worker as worker_module

# -- processes


def check_workers_die_with_the_parent(folder: Path) -> None:
    path = folder / "pid"
    steps = Step("sleeps", fault_steps.say_pid_and_sleep, params={"path": str(path)})
    with forked(lambda: run(folder, steps, executor="processes", workers=1).exit_code, folder) as child:
        assert soon(path.exists), child.errors
        child.send(9)
        child.wait()
        assert soon(lambda: not is_alive(int(path.read_text())), 2.0), "an orphan"


def test_a_worker_that_outlives_its_parent_is_found(proven: Any) -> None:
    def sabotage(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(worker_module, "main", fault_steps.main_without_death_signal)
        patch.setattr(Reaper, "_spawn", lambda self: None)

    proven(check_workers_die_with_the_parent, sabotage, "an orphan")


def check_a_kill_takes_the_whole_tree(folder: Path) -> None:
    path = folder / "daemon"
    with ProcessExecutor(1) as executor:
        executor.submit(attempt(1, "leave_a_daemon", str(path), "stay"))
        until = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < until
            executor.wait(time.monotonic() + 0.01)
        executor.kill(1, "cancelled", 0.0)
        assert isinstance(finish(executor)[-1], Lost)
        daemon = int(path.read_text())
        try:
            assert soon(lambda: not is_alive(daemon), 1.0), "its daemon lives on"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon, 9)


def test_a_kill_of_the_worker_alone_is_found(proven: Any) -> None:
    def sabotage(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(slot, "family", lambda pid, token: [])
        patch.setattr(slot, "kill_family", lambda pid, token: 0)
        patch.setattr(processes_module, "kill_family", lambda pid, token: 0)

    proven(check_a_kill_takes_the_whole_tree, sabotage, "its daemon lives on")


def check_a_stubborn_step_ends(folder: Path) -> None:
    with ProcessExecutor(1) as executor:
        executor.submit(attempt(1, "ignore_sigterm", str(folder / "on")))
        until = time.monotonic() + 20
        while not (folder / "on").exists():
            assert time.monotonic() < until
            executor.wait(time.monotonic() + 0.01)
        executor.kill(1, "timeout", 0.1)
        assert isinstance(finish(executor, seconds=2.0)[-1], Lost)


def test_a_ladder_that_stops_at_sigterm_is_found(proven: Any) -> None:
    run_ladder = Ladder.run

    def polite(self: Ladder) -> None:
        if not any(one.stage == "term" for one in self._slots):
            run_ladder(self)

    proven(check_a_stubborn_step_ends, lambda patch: patch.setattr(Ladder, "run", polite), "in 2.0 s")


def check_no_descriptor_is_left(folder: Path) -> None:
    with ProcessExecutor(1) as first:
        first.submit(attempt(1, "double", 1))
        finish(first)
    before = open_fds()
    with ProcessExecutor(1) as executor:
        executor.submit(attempt(1, "exit_now", 1))
        finish(executor)
    left = open_fds() - before
    for fd in left:
        with contextlib.suppress(OSError):
            os.close(int(fd))
    assert not left, f"descriptors are left: {left}"


def test_descriptors_of_dead_workers_that_stay_open_are_found(proven: Any) -> None:
    def leave_open(self: slot.Slot) -> None:
        # The check closes what is left by number: a mapping that closes its number as well would hit another's.
        self.line._memory.close()
        self.line.claim_fd = self.line.told_fd = -1

    proven(
        check_no_descriptor_is_left,
        lambda patch: patch.setattr(slot.Slot, "close", leave_open),
        "descriptors are left",
    )


# -- locks


def held_elsewhere(lock: RunLock, folder: Path) -> bool:
    """Whether another process is kept out."""

    def attempt_it() -> int:
        try:
            lock.acquire("second")
        except LockHeld:
            return 0
        return 1

    with forked(attempt_it, folder) as child:
        return child.wait() == 0


def check_one_run_at_a_time(folder: Path) -> None:
    state = StateFolder.open(folder / "state")
    first = state.lock("nightly")
    first.acquire("first")
    assert held_elsewhere(state.lock("nightly"), folder), "two runs overlap"
    first.release()
    # The file of a holder that was killed; its pid is that of some other process now.
    with contextlib.suppress(FileNotFoundError):
        first.path.unlink()
    first.path.write_text(json.dumps({"pid": 1, "run_id": "dead", "started": "", "host": ""}))
    first.path.chmod(0o600)
    try:
        state.lock("nightly").acquire("third")
    except LockHeld as error:
        raise AssertionError(f"nobody holds it: {error}") from error


def test_a_lock_that_is_not_taken_is_found(proven: Any) -> None:
    proven(
        check_one_run_at_a_time,
        lambda patch: patch.setattr(RunLock, "acquire", lambda self, run_id, wait_s=0: None),
        "two runs overlap",
    )


def test_a_lock_by_pid_file_is_found(proven: Any) -> None:
    def by_pid(self: RunLock, run_id: str, wait_s: float = 0.0) -> None:
        holder = self._read()
        if holder is not None and holder.pid != os.getpid() and is_alive(holder.pid):
            raise LockHeld(self._held_text(wait_s))
        self.path.write_text(json.dumps({"pid": os.getpid(), "run_id": run_id, "started": "", "host": ""}))

    proven(check_one_run_at_a_time, lambda patch: patch.setattr(RunLock, "acquire", by_pid), "nobody holds it")


# -- values


def check_a_flipped_bit_is_seen(folder: Path) -> None:
    data = bytearray(channel.frame(("value", bytes(1000))))
    data[-100] ^= 1
    reader, writer = os.pipe()
    try:
        os.write(writer, data)
        inbox = channel.Inbox()
        messages = inbox.read(reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert inbox.broken, "the flipped bit was not seen"
    assert not messages


def test_a_channel_without_checksums_is_found(proven: Any) -> None:
    proven(check_a_flipped_bit_is_seen, lambda patch: patch.setattr(channel, "crc32", lambda body: 0), "was not seen")


def check_the_parent_opens_nothing(folder: Path) -> None:
    result = run(
        folder,
        Step("made", fault_steps.guarded),
        Step("look", fault_steps.look_at, inputs={"value": "made"}),
        executor="processes",
        workers=1,
    )
    assert result.outputs["look"] == "Guarded"
    opened = [line.pid for line in ledger.read(folder / "ledger")]
    assert os.getpid() not in opened, "a value was opened here"
    assert len(opened) == 1


def test_a_parent_that_opens_values_is_found(proven: Any) -> None:
    record = engine_module.Engine._record

    def curious(self: Any, events: list[ev.Event]) -> None:
        for event in events:
            for ref in event.outputs.values() if isinstance(event, ev.AttemptFinished) else ():
                objects.unpack(ref)
        record(self, events)

    proven(
        check_the_parent_opens_nothing,
        lambda patch: patch.setattr(engine_module.Engine, "_record", curious),
        "opened here",
    )
