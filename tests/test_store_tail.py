"""The tail: what was received survives a kill between two commits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import marshal
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from procflow import secrets
from procflow.attempt import Failed, Failure, Skipped, Succeeded, Usage
from procflow.events import AttemptFinished, AttemptStarted, ItemsDone, RunFinished
from procflow.executors import wire
from procflow.executors.channel import packed
from procflow.ref import Inline, ListOf
from procflow.storing import store as store_module
from procflow.storing import worker_tail
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder, try_flock
from procflow.storing.store import RunRecord, Store
from procflow.storing.store_plain import plain_row
from procflow.storing.store_refs import encode_ref
from procflow.storing.store_rows import Rows
from procflow.storing.store_tail import PLAIN, Tail, read_tail, result_body, tail_path, tails
from procflow.storing.tail_record import record
from procflow.storing.worker_tail import FILE_BYTES, TURN_RECORDS, WorkerTail


def finished(key: int, path: str = "0", **keys: object) -> AttemptFinished:
    about = {"outputs": {"a": Inline(b"pickle", (b"buffer",))}, "metrics": {"loss": 0.5}, "cost": 2.0, **keys}
    return AttemptFinished(
        1.5,
        key,
        path,
        f"s{path}",
        "",
        1,
        "processes",
        "succeeded",
        1.0,
        Usage(0.5, 0.4, 77),
        **about,  # type: ignore[arg-type]
    )


def bodies_of(*events: Any) -> Any:
    """What a tail is told of these events."""
    rows = Rows("run", 1)
    for event in events:
        if isinstance(event, ItemsDone):
            rows.add(AttemptStarted(0.0, event.key, event.path, event.label, event.item, 1, "processes", "batch"))
        rows.add(event)
    return rows.received


def items(key: int) -> ItemsDone:
    return ItemsDone(1.2, key, "3", "m", "", range(4), Inline(b"chunk"))


def test_events_come_back_as_they_were(tmp_path: Path) -> None:
    tail = Tail(tmp_path, "run")
    events = [
        *(finished(1), items(2)),
        finished(3, pages=((Inline(b"p"), 9),), role="expand", indices=(1, 5), count=2),
        finished(4, metrics={}, outputs={"a": Inline(b"1"), "b": ListOf((Inline(b"2"), Inline(b"3")))}),
        finished(5, path="0.1", metrics={}, outputs={}, role="gate"),
    ]
    kinds = [body[0] for body in bodies_of(*events)]
    assert kinds == ["finished", "items", "finished", PLAIN, PLAIN], "rows only where they say it all"
    tail.note(bodies_of(events[0]))
    tail.note(bodies_of(*events[1:]))
    assert read_tail(tail.path) == events


def test_a_torn_record_is_dropped_and_those_before_it_hold(tmp_path: Path) -> None:
    tail = Tail(tmp_path, "run")
    for key in (1, 2, 3):
        tail.note(bodies_of(finished(key)))
    whole = tail.path.read_bytes()
    for cut in range(len(whole)):
        tail.path.write_bytes(whole[:cut])
        assert [e.key for e in read_tail(tail.path)] == [1, 2, 3][: cut * 3 // len(whole)]


@pytest.mark.parametrize("zeros", [1, 8, 4096])
def test_zeros_at_the_end_are_no_record(tmp_path: Path, zeros: int) -> None:
    """As a power loss leaves a file that had grown."""
    tail = Tail(tmp_path, "run")
    tail.note(bodies_of(finished(1)))
    with tail.path.open("ab") as file:
        file.write(bytes(zeros))
    assert [e.key for e in read_tail(tail.path)] == [1]


def test_a_flipped_byte_is_found_out(tmp_path: Path) -> None:
    tail = Tail(tmp_path, "run")
    tail.note(bodies_of(finished(1)))
    data = bytearray(tail.path.read_bytes())
    data[20] ^= 1
    tail.path.write_bytes(data)
    assert read_tail(tail.path) == []


@pytest.mark.parametrize("status", ["failed", "lost", "cancelled"])
def test_only_what_ended_well_is_kept(status: Any) -> None:
    bad = AttemptFinished(1.0, 1, "0", "a", "", 1, "processes", status, 0.5)
    assert bodies_of(AttemptStarted(0.0, 1, "0", "a", "", 1, "processes"), bad) == []
    assert len(bodies_of(AttemptFinished(1.0, 1, "0", "a", "", 1, "processes", "skipped", 0.5))) == 1


def test_what_was_noted_is_not_noted_again_and_what_was_committed_not_at_all(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path / "state")
    with Store.open(folder) as store:
        store.begin(RunRecord("r1", "p", lock="p"))
        for key in (1, 2, 3):
            store.record(finished(key))
            store.note()
            store.note()
        assert [event.key for event in read_tail(tail_path(folder.path, "r1"))] == [1, 2, 3]
        store.record(finished(4))
        store.commit()
        store.note()
        assert tail_path(folder.path, "r1").stat().st_size == 0


def test_tails_of_versions_before_are_read(tmp_path: Path) -> None:
    """They told each result in full, none by its row."""
    (tmp_path / "tails").mkdir(mode=0o700)
    event = finished(7, metrics={})
    tail_path(tmp_path, "run").write_bytes(record((result_body(event),)) + record(result_body(finished(8))))
    assert read_tail(tail_path(tmp_path, "run")) == [event, finished(8)]


def test_tails_of_version_3_are_read(tmp_path: Path) -> None:
    """They told results by rows of what was then two tables."""
    (tmp_path / "tails").mkdir(mode=0o700)
    event = finished(7, metrics={})
    _, data = plain_row(1, "run", ("s0", "s0", None, None, None), event, "a", None)
    body = ("row", marshal.dumps(marshal.loads(data)[:-1], 2), "a", encode_ref(event.outputs["a"]))
    tail_path(tmp_path, "run").write_bytes(record((body,)))
    assert read_tail(tail_path(tmp_path, "run")) == [event]


def killed_writer(folder: Path, run_id: str, commit_after: int, results: int) -> None:
    """A process that records results, commits once in between, and dies."""
    pid = os.fork()
    if pid == 0:
        store = Store.open(StateFolder.open(folder))
        store.begin(RunRecord(run_id, "p", lock="p"))
        for key in range(1, results + 1):
            store.record(AttemptStarted(0.0, key, str(key), f"s{key}", "", 1, "processes"))
            store.record(finished(key, str(key)))
            store.note()
            if key == commit_after:
                store.commit()
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("commit_after", [0, 2, 5])
def test_received_results_of_a_killed_run_become_rows_once(tmp_path: Path, commit_after: int) -> None:
    folder = tmp_path / "state"
    StateFolder.open(folder).new_run("r1")
    killed_writer(folder, "r1", commit_after, 5)
    assert tails(folder) == ["r1"]
    assert bool(tail_path(folder, "r1").stat().st_size) == (commit_after < 5)
    with Store.open(StateFolder.open(folder)) as store:
        assert store.recover("other") == 0, "a run of another pipeline may be alive"
        assert store.recover("p") == 5 - commit_after
        assert store.recover("p") == 0
    assert tails(folder) == []
    with History.open(StateFolder.open(folder)) as past:
        rows = [row for row in past.steps("r1") if row.status == "succeeded"]
    assert sorted(row.label for row in rows) == [f"s{i}" for i in range(1, 6)]


def test_a_tail_that_outlived_its_commit_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    StateFolder.open(folder).new_run("r1")
    killed_writer(folder, "r1", 0, 3)
    kept = tail_path(folder, "r1").read_bytes()
    for saved in (3, 0):
        with Store.open(StateFolder.open(folder)) as store:
            assert store.recover("p") == saved
        tail_path(folder, "r1").write_bytes(kept)


def test_a_run_that_ends_leaves_no_tail(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path / "state")
    folder.new_run("r1")
    with Store.open(folder) as store:
        store.begin(RunRecord("r1", "p", lock="p"))
        store.record(finished(1))
        store.note()
    assert not tail_path(folder.path, "r1").exists()


@pytest.mark.parametrize("size", [0, 100])
def test_what_a_kill_behind_the_last_commit_left_goes_with_the_next_run(size: int, tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path / "state")
    folder.new_run("r1")
    pid = os.fork()
    if pid == 0:
        store = Store.open(folder)
        store.begin(RunRecord("r1", "p", lock="p"))
        store.record(finished(1))
        store.note()
        store.record(RunFinished(2.0, "r1", "succeeded", 0, 0, 2.0, 1.0))
        store.commit()
        # As a worker does that went on to what was queued.
        tail_path(folder.path, "r1+1.a").write_bytes(bytes(size))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(list((folder.path / "tails").iterdir())) == 2
    with Store.open(folder) as store:
        assert store.recover("other") == 0
    assert list((folder.path / "tails").iterdir()) == []


def test_the_tail_of_a_run_that_goes_on_stays(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path / "state")
    folder.new_run("r1")
    with Store.open(folder) as live:
        live.begin(RunRecord("r1", "p", lock="p"))
        for note in (False, True):
            if note:
                live.record(finished(1))
                live.note()
            with Store.open(folder) as other:
                assert other.recover("other") == 0
            assert tail_path(folder.path, "r1").exists()


def test_a_tail_is_removed_only_while_no_run_can_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ended may be resumed by another process in this moment, and its new tail must stay."""
    folder = StateFolder.open(tmp_path / "state")
    folder.path.joinpath("tails").mkdir(mode=0o700)
    tail_path(folder.path, "r1").touch()
    free: list[bool] = []

    def remove(path: Path) -> None:
        fd = os.open(folder.writer_lock, os.O_RDWR)
        free.append(try_flock(fd, fcntl.LOCK_EX))
        os.close(fd)

    monkeypatch.setattr(store_module, "remove", remove)
    with Store.open(folder) as store:
        store.recover("p")
    assert free == [False]


def test_a_run_that_is_forgotten_leaves_no_tail(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path / "state")
    folder.new_run("r1")
    killed_writer(folder.path, "r1", 0, 2)
    with Store.open(folder) as store:
        store.forget(["r1"])
    assert tails(folder.path) == []


ABOUT = ("0.1", "steps/a", "3/17", 2, "processes", "member", 100.0)
OUTCOMES: list[Any] = [
    Succeeded(7, {"a": Inline(b"1", (b"buffer",))}, Usage(0.5, 0.25, 4096, None, 3.0)),
    Skipped(7, Usage(0.5)),
    Succeeded(7, usage=Usage(0.5), indices=range(4, 9), chunk=Inline(b"c")),
    Succeeded(7, {"a": Inline(b"1")}, metrics={"rows": 3.0}, cost=0.5),
    Succeeded(7, pages=((Inline(b"p"), 9),)),
]


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_what_a_worker_kept_is_read_as_the_parent_would_have_noted_it(tmp_path: Path, outcome: Any) -> None:
    (tmp_path / "tails").mkdir(mode=0o700)
    path = tail_path(tmp_path, "run")
    message = wire.plain_outcome(outcome)
    batch = outcome.indices if type(outcome) is Succeeded else ()
    about = (*ABOUT[:5], "batch" if batch else "member", ABOUT[6])
    WorkerTail(f"{path}+1").keep(about, message, packed(message))
    # As versions before kept it, with what the attempt is about packed by itself.
    with_packed = worker_tail.finished(("told", 101.0, packed(about), packed(message)))
    assert with_packed == worker_tail.finished(("told", 101.0, about, packed(message)))
    (event,) = read_tail(path)
    assert isinstance(event, AttemptFinished)
    assert (event.key, event.path, event.label, event.item, event.number, event.executor) == (7, *ABOUT[:5])
    assert event.status == ("skipped" if type(outcome) is Skipped else "succeeded")
    assert event.at - event.started_at == pytest.approx(outcome.usage.wall_s)
    assert event.usage.cpu_s == outcome.usage.cpu_s
    if type(outcome) is Succeeded:
        assert event.outputs == (outcome.outputs or ({"": outcome.chunk} if outcome.chunk else {}))
        assert (event.metrics, event.cost, event.pages) == (outcome.metrics, outcome.cost, outcome.pages)
        assert (event.indices, event.count) == (batch, len(batch) or 1)


def test_a_worker_keeps_no_failure_and_nothing_that_nobody_asked_for(tmp_path: Path) -> None:
    tail = WorkerTail(str(tmp_path / "run+1"))
    failed = wire.plain_outcome(Failed(7, Failure("error", "E", "")))
    tail.keep(ABOUT, failed, packed(failed))
    done = wire.plain_outcome(Succeeded(7))
    tail.keep((), done, packed(done))
    assert list(tmp_path.iterdir()) == []


def kept(tail: WorkerTail, key: int, size: int = 10) -> None:
    message = wire.plain_outcome(Succeeded(key, {"a": Inline(bytes(size))}))
    tail.keep(ABOUT, message, packed(message))


@pytest.mark.parametrize("size", [10, 5_000])
def test_the_last_results_of_a_worker_are_always_kept_and_none_twice(tmp_path: Path, size: int) -> None:
    path = tail_path(tmp_path, "run")
    path.parent.mkdir(mode=0o700)
    tail = WorkerTail(f"{path}+1")
    for key in range(1, 300):
        # Of any size, so that what is written lies across what was.
        kept(tail, key, size * (key % 7))
        found = [event.key for event in read_tail(path)] if key % 50 in (0, 14, 15) else None
        if found is not None:
            assert set(range(max(1, key - TURN_RECORDS + 1), key + 1)) <= set(found) <= set(range(1, key + 1))
            assert len(found) == len(set(found)) <= 2 * TURN_RECORDS


def test_a_result_larger_than_the_file_has_room_for_is_kept_with_those_before_it(tmp_path: Path) -> None:
    path = tail_path(tmp_path, "run")
    path.parent.mkdir(mode=0o700)
    tail = WorkerTail(f"{path}+1")
    for key, size in enumerate((10, FILE_BYTES, 10, 5 * FILE_BYTES, 10), 1):
        kept(tail, key, size)
    assert [event.key for event in read_tail(path)] == [1, 2, 3, 4, 5]


def test_a_step_that_writes_to_all_descriptors_does_not_spoil_what_its_worker_keeps(tmp_path: Path) -> None:
    path = tail_path(tmp_path, "run")
    path.parent.mkdir(mode=0o700)
    tail = WorkerTail(f"{path}+1")
    kept(tail, 1)
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith(str(path)):
                os.write(int(fd), b"some noise")
    kept(tail, 2)
    assert [event.key for event in read_tail(path)] == [1, 2]


def test_a_full_disk_costs_what_would_have_been_kept_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tail_path(tmp_path, "run")
    path.parent.mkdir(mode=0o700)
    tail = WorkerTail(f"{path}+1")

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as while_it_is_full:
        while_it_is_full.setattr(os, "posix_fallocate", full)
        kept(tail, 1)
    assert read_tail(path) == []
    kept(tail, 2)
    assert [event.key for event in read_tail(path)] == [2]


def test_secrets_in_names_of_metrics_are_masked_in_what_a_worker_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tails").mkdir(mode=0o700)
    path = tail_path(tmp_path, "run")
    monkeypatch.setenv("TOKEN_OF_A_TEST", "hush-hush-123456")
    message = wire.plain_outcome(Succeeded(7, metrics={"hush-hush-123456": 1.0}))
    with secrets.known({"TOKEN_OF_A_TEST": "hush-hush-123456"}):
        WorkerTail(f"{path}+1").keep(ABOUT, message, packed(message))
    assert b"hush-hush" not in Path(f"{path}+1.a").read_bytes()
    assert len(read_tail(path)) == 1


def test_results_are_taken_up_though_a_salvaged_journal_has_lost_the_session(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path / "state")
    folder.new_run("r1")
    killed_writer(folder.path, "r1", 2, 5)
    with closing(sqlite3.connect(folder.db)) as db, db:
        db.execute("DELETE FROM sessions")
    with Store.open(folder) as store:
        assert store.recover("p") == 3
    assert tails(folder.path) == []
