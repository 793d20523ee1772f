"""Tests of the tests: bugs are sown into procflow one by one, and a small check of the suite has to find each.

Every test shows that its check passes on the code as it is and fails with the bug. A journal that does not sync is in
``test_power_loss.py``, because only a power loss shows it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fault_steps
import ledger
import night
import pytest
from executor_contract import attempt, finish, open_fds
from forked import forked, is_alive, soon

from procflow import Map, Parallel, Pipeline, Step, failpoints
from procflow import engine as engine_module
from procflow import events as ev
from procflow.attempt import Lost
from procflow.errors import LockHeld, StoreError
from procflow.executors import channel, slot
from procflow.executors import processes as processes_module
from procflow.executors.ladder import Ladder
from procflow.executors.processes import ProcessExecutor
from procflow.failpoint_actions import Failpoints
from procflow.guarding.reaper import Reaper
from procflow.guarding.watch import Watch
from procflow.result import RunResult
from procflow.scheduling import attempts, items, mapping, values
from procflow.storing import history as history_module
from procflow.storing.history import History
from procflow.storing.state_folder import RunLock, StateFolder
from procflow.storing.store_rows import Rows
from procflow.storing.store_tail import Tail
from procflow.values import objects
from procflow.working import worker as worker_module

Check = Callable[[Path], None]
Sabotage = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def proven(memory: Path, request: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Check, Sabotage, str], None]:
    """Runs a check without a bug, then with one, which it must find for the reason that ``says`` matches.

    What it counts then is no violation of the suite.
    """
    folder = memory / request.node.name
    monkeypatch.setenv(fault_steps.PARENT, str(os.getpid()))

    def prove(check: Check, sabotage: Sabotage, says: str) -> None:
        before: dict[str, int] = {}
        for name in ("sound", "sown"):
            own = folder / name
            own.mkdir(parents=True)
            with monkeypatch.context() as patch:
                patch.setenv(ledger.VARIABLE, str(own / "ledger"))
                patch.setenv(fault_steps.FOLDER, str(own))
                if name == "sound":
                    check(own)
                    before = dict(ledger.COUNTS)
                    continue
                sabotage(patch)
                with pytest.raises(AssertionError, match=says):
                    check(own)
        ledger.COUNTS.clear()
        ledger.COUNTS.update(before)
        ledger.count("sown bugs found", 1)

    return prove


def run(folder: Path, *steps: Any, **options: Any) -> RunResult:
    return Pipeline("sabotage", steps=steps).run(state_dir=folder / "state", **options)


def starts(folder: Path) -> dict[str, int]:
    return dict(ledger.starts(ledger.read(folder / "ledger")))


# -- the journal and what is said of it


def check_announced_is_durable(folder: Path) -> None:
    """Whoever hears of a result finds it in the journal at once."""
    missing: list[str] = []

    class Looks:
        def handle(self, event: ev.Event) -> None:
            if isinstance(event, ev.AttemptFinished) and event.status == "succeeded":
                with History.open(StateFolder(folder / "state")) as past:
                    there = {row.path for row in past.steps("night") if row.status == "succeeded"}
                if event.path not in there:
                    missing.append(event.path)

    night.session(str(folder / "state"), "night", False, Looks(), 0.1)
    assert not missing, f"announced and not there: {missing}"


def test_what_is_announced_before_it_is_committed_is_found(proven: Any) -> None:
    def early(self: Any) -> list[ev.Event]:
        events, self._waiting = self._waiting, []
        for observer in self._observers:
            for event in events:
                observer.handle(event)
        self._settle_debt()
        self._commit_at = None
        return events

    proven(
        check_announced_is_durable,
        lambda patch: patch.setattr(engine_module.Engine, "_commit", early),
        "announced and not there",
    )


def night_killed(folder: Path, points: str) -> None:
    """One session that is killed, and one that goes on to the end; commits come only where they must."""

    def session(resume: bool, armed: str) -> int:
        engine_module.COMMIT_S = 10.0
        failpoints.arm(Failpoints(armed))
        said = night.Said(str(folder / "said"))
        return night.session(str(folder / "state"), "night", resume, said).exit_code

    with forked(lambda: session(False, points), folder) as first:
        assert first.wait() == -9, first.errors
    with forked(lambda: session(True, ""), folder) as second:
        assert second.wait() == 0, second.errors


def check_a_kill_costs_one_task(folder: Path) -> None:
    """By then six members of the block, which wait for nothing of each other, have ended."""
    night_killed(folder, f"engine.submit=kill@{night.CHAIN + 7}")
    ledger.check_law(ledger.read(folder / "ledger"), night.keys(), kills=1, slots=1)


def test_results_that_are_not_noted_before_the_next_start_are_missed_after_a_kill(proven: Any) -> None:
    proven(
        check_a_kill_costs_one_task,
        lambda patch: patch.setattr(Tail, "note", lambda self: None),
        "began again without a fault",
    )


def check_results_are_there_once(folder: Path) -> None:
    """A kill between a commit and the clearing of the tail leaves results in both."""
    for n in range(night.CHAIN, night.CHAIN + 4):
        own = folder / str(n)
        own.mkdir()
        night_killed(own, f"journal.commit.after=kill@{n}")
        with History.open(StateFolder(own / "state")) as past:
            rows = [row for row in past.steps("night") if row.kind == "task" and row.status == "succeeded"]
            results = [(o.path, o.item, o.name) for o in past.outputs("night")]
        ledger.check_once((row.path, row.item or "", row.role or "", str(row.attempt)) for row in rows)
        ledger.check_once(results)


def test_results_that_are_taken_up_twice_are_found(proven: Any) -> None:
    take_up = Rows.take_up
    proven(
        check_results_are_there_once,
        lambda patch: patch.setattr(Rows, "take_up", lambda self, event, known: take_up(self, event, None)),
        "more than once",
    )


def check_a_changed_row_is_refused(folder: Path) -> None:
    assert run(folder, Step("one", fault_steps.after, params={"seconds": 0.0}), executor="inline").ok
    with contextlib.closing(sqlite3.connect(folder / "state" / "procflow.db")) as db:
        assert db.execute("UPDATE outputs SET name = 'two'").rowcount == 1
        db.commit()
    with History.open(StateFolder(folder / "state")) as past:
        refused = False
        try:
            list(past.outputs(past.run().run_id))
        except StoreError:
            refused = True
    assert refused, "a damaged row was believed"


def test_a_seal_that_nobody_looks_at_is_found(proven: Any) -> None:
    sabotage = lambda patch: patch.setattr(history_module, "expression", lambda db, table: "seal")  # noqa: E731
    proven(check_a_changed_row_is_refused, sabotage, "was believed")


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
    proven(
        check_no_descriptor_is_left,
        lambda patch: patch.setattr(slot.Slot, "close", lambda self: None),
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


# -- decisions


def check_a_jump_of_the_clock_stops_nothing(folder: Path) -> None:
    wall, begun = time.time, time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: wall() + (3600 if time.monotonic() > begun + 0.5 else 0))
        result = run(
            folder, Step("s", fault_steps.patient, params={"seconds": 1.0}, timeout=60), executor="processes", workers=1
        )
    assert result.status == "succeeded"


def test_timeouts_by_the_wall_clock_are_found(proven: Any) -> None:
    shift = time.time() - time.monotonic()
    proven(
        check_a_jump_of_the_clock_stops_nothing,
        lambda patch: patch.setattr(Watch, "clock", lambda self: time.time() - shift),
        "'failed' == 'succeeded'",
    )


def check_results_come_in_declared_order(folder: Path) -> None:
    block = Parallel(
        "block",
        Step("slow", fault_steps.after, params={"seconds": 0.2}),
        Step("quick", fault_steps.after, params={"seconds": 0.0}),
        merge="collect_all",
        output="all",
    )
    result = run(folder, block, executor="threads", workers=2)
    assert list(result.outputs["all"]) == [0.2, 0.0]


def test_a_merge_in_the_order_of_completion_is_found(proven: Any) -> None:
    pairs = values._pairs
    # The slow one, declared first, ends last.
    proven(
        check_results_come_in_declared_order,
        lambda patch: patch.setattr(values, "_pairs", lambda scope: pairs(scope)[::-1]),
        "0.0, 0.2",
    )


def check_a_deadly_item_is_set_aside(folder: Path) -> None:
    body = Map(
        "m", fault_steps.item, items=["a0", "x1", "a2"], params={"kind": "os._exit(3)"}, batch=1,
        on_error="continue", tolerate=1,
    )  # fmt: skip
    run(folder, body, executor="processes", workers=2)
    ledger.check_law(
        ledger.read(folder / "ledger"), ["inner/a0", "inner/x1", "inner/a2"], faults={"inner/x1": 1}, slots=2
    )


def test_an_item_that_kills_workers_for_ever_is_found(proven: Any) -> None:
    def forgiving(self: Any, task: Any, found: Any, failure: Any, rest: list[int], culprit: int | None) -> None:
        found.alone.update(rest)
        mapping.again(found, rest)

    proven(
        check_a_deadly_item_is_set_aside,
        lambda patch: patch.setattr(items.ItemRules, "_batch_lost", forgiving),
        "began again without a fault",
    )


def check_retries_are_bounded(folder: Path) -> None:
    run(folder, Step("s", fault_steps.begin_and_fail, retry={"retries": 100, "delay": 0}), executor="inline")
    assert starts(folder) == {"failing": 1 + 10}


def test_a_run_without_a_retry_budget_is_found(proven: Any) -> None:
    proven(check_retries_are_bounded, lambda patch: patch.setattr(attempts, "RETRIES_MIN", 1000), "101")


def check_dying_workers_end_the_run(folder: Path) -> None:
    members = [Step(f"s{i}", fault_steps.begin_and_exit, params={"place": f"s{i}"}) for i in range(12)]
    result = run(folder, Parallel("block", *members, on_error="finish"), executor="processes", workers=2)
    assert "stops early" in result.reason
    assert len(starts(folder)) <= 8


def test_a_run_that_goes_on_while_all_workers_die_is_found(proven: Any) -> None:
    proven(
        check_dying_workers_end_the_run,
        lambda patch: patch.setattr(attempts.Attempts, "_crashed", lambda self, failure: None),
        "stops early",
    )


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

    def curious(self: Any, event: ev.Event) -> None:
        for ref in event.outputs.values() if isinstance(event, ev.AttemptFinished) else ():
            objects.unpack(ref)
        record(self, event)

    proven(
        check_the_parent_opens_nothing,
        lambda patch: patch.setattr(engine_module.Engine, "_record", curious),
        "opened here",
    )
