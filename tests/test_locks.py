"""Two runs of one pipeline never overlap, no lock goes stale, and no start comes before the last run's workers are gone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import ledger
import pytest
from forked import LONG_S, Forked, forked, is_alive, marked, soon

from procflow import Pipeline, Step
from procflow.errors import LockHeld
from procflow.events import AttemptStarted, Event
from procflow.guarding import sweep
from procflow.guarding.lease import Lease
from procflow.guarding.reaper import new_token
from procflow.storing.history import History
from procflow.storing.state_folder import RunLock, StateFolder, lock_name

MODULE = "steps_for_signals"
CONTENDERS, ROUNDS = 8, 30


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder.open(tmp_path / "s")


# Contenders


class Line:
    """A pipe with lines of JSON; processes that share its end may all write."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._data = b""

    def tell(self, **what: Any) -> None:
        os.write(self.writer, json.dumps(what).encode() + b"\n")

    def next(self) -> dict[str, Any]:
        os.set_blocking(self.reader, False)

        def more() -> bool:
            with suppress(BlockingIOError):
                self._data += os.read(self.reader, 1 << 16)
            return b"\n" in self._data

        assert soon(more)
        line, _, self._data = self._data.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Barrier:
    """Lets all processes go at one moment, round after round, and tells the winner when to let go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, name: str) -> None:
        (self.folder / name).touch()

    def wait(self, name: str) -> None:
        until = time.monotonic() + LONG_S
        while not (self.folder / name).exists():
            assert time.monotonic() < until
            time.sleep(0.0005)


def contend(folder: StateFolder, number: int, barrier: Barrier, line: Line) -> int:
    """Start so many times; the winner holds lock and lease until it is told to let go."""
    rng = random.Random(number)
    for turn in range(ROUNDS):
        barrier.wait(f"start-{turn}")
        time.sleep(rng.random() * 0.002)
        begun = time.monotonic()
        lock, lease = folder.lock("nightly.yaml"), Lease(folder, "nightly.yaml")
        run_id = f"run-{turn}-{number}"
        try:
            lock.acquire(run_id)
            lease.take(f"{turn:08x}{number:08x}")
        except LockHeld as error:
            text, code = str(error), error.exit_code
            line.tell(turn=turn, run=None, code=code, text=text, took_s=time.monotonic() - begun)
        else:
            line.tell(turn=turn, run=run_id, pid=os.getpid())
            barrier.wait(f"end-{turn}")
            lease.release(clean=True)
            lock.release()
    return 0


def test_of_eight_starts_at_once_exactly_one_runs_in_each_of_thirty_rounds(folder: StateFolder, tmp_path: Path) -> None:
    barrier, line = Barrier(tmp_path), Line()
    with ExitStack() as stack:
        stack.callback(line.close)
        children = [
            stack.enter_context(forked(lambda n=n: contend(folder, n, barrier, line), tmp_path))
            for n in range(CONTENDERS)
        ]
        starts = 0
        for turn in range(ROUNDS):
            barrier.open(f"start-{turn}")
            told = [line.next() for _ in range(CONTENDERS)]
            starts += len(told)
            (winner,) = [one for one in told if one["run"]]
            assert {one["turn"] for one in told} == {turn}
            for loser in told:
                if loser is winner:
                    continue
                assert loser["code"] == 75
                assert loser["took_s"] < 1.0
                assert f"pid {winner['pid']}, run {winner['run']}, started 20" in loser["text"]
            barrier.open(f"end-{turn}")
        assert starts == 240
        ledger.count("overlapping starts", starts)
        assert [child.wait() for child in children] == [0] * CONTENDERS


class HoldUntil:
    """An observer that keeps a run going until a file exists."""

    def __init__(self, path: Path, line: Line) -> None:
        self.path = path
        self.line = line

    def handle(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            self.line.tell(code=0)
            assert soon(self.path.exists)


def test_of_eight_whole_runs_at_once_exactly_one_runs(tmp_path: Path) -> None:
    line, barrier = Line(), Barrier(tmp_path)

    def start() -> int:
        pipeline = Pipeline("p", steps=[Step("s", f"{MODULE}:quick")])
        barrier.wait("start")
        try:
            hold = HoldUntil(tmp_path / "end", line)
            return pipeline.run(executor="inline", state_dir=tmp_path / "s", observers=[hold]).exit_code
        except LockHeld as error:
            line.tell(code=error.exit_code)
            return error.exit_code

    with ExitStack() as stack:
        stack.callback(line.close)
        children = [stack.enter_context(forked(start, tmp_path)) for _ in range(CONTENDERS)]
        barrier.open("start")
        assert sorted(line.next()["code"] for _ in children) == [0] + [75] * 7
        barrier.open("end")
        assert sorted(child.wait() for child in children) == [0] + [75] * 7
    with closing(sqlite3.connect(tmp_path / "s" / "procflow.db")) as db:
        assert db.execute("SELECT count(*), min(status) FROM runs").fetchone() == (1, "succeeded")


# A killed holder


def hold(folder: StateFolder, line: Line) -> int:
    lock, lease = folder.lock("p"), Lease(folder, "p")
    lock.acquire("held")
    lease.take(new_token())
    line.tell(held=True)
    time.sleep(60)
    return 0


def test_a_start_right_after_the_holder_was_killed_goes_through_a_hundred_times(
    folder: StateFolder, tmp_path: Path
) -> None:
    line = Line()
    for _ in range(100):
        with forked(lambda: hold(folder, line), tmp_path) as child:
            line.next()
            lock, lease = folder.lock("p"), Lease(folder, "p")
            assert lock.holder() is not None
            child.send(signal.SIGKILL)
            child.wait()
            assert lock.holder() is None
            lock.acquire("next")
            assert lease.take(new_token(), 0.0) == 0
            lease.release(clean=True)
            lock.release()
    line.close()


def test_a_start_in_the_instant_of_the_kill_goes_through_too(folder: StateFolder, tmp_path: Path) -> None:
    line = Line()
    for _ in range(20):
        with forked(lambda: hold(folder, line), tmp_path) as child:
            line.next()
            child.send(signal.SIGKILL)
            lock = folder.lock("p")
            lock.acquire("next", 1.0)
            lock.release()
    line.close()


def test_a_fork_of_the_holder_does_not_keep_a_lock_that_was_given_back(folder: StateFolder, tmp_path: Path) -> None:
    lock, lease = folder.lock("p"), Lease(folder, "p")
    lock.acquire("first")
    lease.take(new_token())
    with forked(lambda: int(time.sleep(60) or 0), tmp_path):
        lease.release(clean=True)
        lock.release()
        lock.acquire("second")
        assert lease.take(new_token(), 0.0) == 0
        lease.release(clean=True)
        lock.release()


# Workers that live on


@pytest.fixture
def straggler(folder: StateFolder) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """What a killed run has left: a process with its lease and its token, and the token in the lease."""
    token = new_token()
    lease = Lease(folder, "p")
    lease.take(token)
    process = subprocess.Popen(
        ["sleep", "600"],
        stdin=subprocess.DEVNULL,
        pass_fds=(lease.fileno(),),
        env={**os.environ, **sweep.environment(token)},
    )
    lease.release(clean=False)
    yield process, token
    process.kill()
    process.wait(LONG_S)


def test_a_straggler_is_killed_by_its_token_before_a_start(
    folder: StateFolder, straggler: tuple[subprocess.Popen[bytes], str]
) -> None:
    process, _ = straggler
    lease = Lease(folder, "p")
    assert lease.holders() == [process.pid]
    assert lease.take(new_token()) == 1
    assert not is_alive(process.pid)
    lease.release(clean=True)


def test_a_straggler_that_can_not_be_killed_makes_the_start_fail_and_is_named(
    folder: StateFolder, straggler: tuple[subprocess.Popen[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, _ = straggler
    monkeypatch.setattr(sweep, "_kill", lambda pid: None)
    lease = Lease(folder, "p")
    begun = time.monotonic()
    with pytest.raises(LockHeld, match=rf"still alive after 0.2 s .*processes {process.pid};") as raised:
        lease.take(new_token(), 0.2)
    assert time.monotonic() - begun < 2.0
    assert raised.value.exit_code == 75
    assert process.poll() is None
    process.kill()
    process.wait(LONG_S)
    lease.take(new_token(), 0.2)
    lease.release(clean=True)


def test_a_process_without_the_token_that_has_the_lease_is_not_killed_but_named(folder: StateFolder) -> None:
    lease = Lease(folder, "p")
    lease.take(new_token())
    with subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, pass_fds=(lease.fileno(),)) as process:
        lease.release(clean=False)
        with pytest.raises(LockHeld, match=f"processes {process.pid};"):
            Lease(folder, "p").take(new_token(), 0.1)
        assert process.poll() is None
        process.kill()


def test_pipelines_of_one_folder_have_leases_of_their_own(
    folder: StateFolder, straggler: tuple[subprocess.Popen[bytes], str]
) -> None:
    other = Lease(folder, "q")
    assert other.take(new_token(), 0.0) == 0
    other.release(clean=True)
    assert straggler[0].poll() is None


def test_after_a_clean_end_a_start_looks_for_nothing(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease(folder, "p")
    lease.take(new_token())
    lease.release(clean=True)
    monkeypatch.setattr(sweep, "bearers", lambda token: pytest.fail("/proc was searched"))
    lease.take(new_token())
    lease.release(clean=True)


@pytest.mark.parametrize("content", [b"", b"x" * 16, b"../../etc", b"\xff" * 4096])
def test_a_lease_with_anything_in_it_can_be_taken(folder: StateFolder, content: bytes) -> None:
    lease = Lease(folder, "p")
    lease.path.touch(mode=0o600)
    lease.path.write_bytes(content)
    assert lease.take("0" * 16, 0.0) == 0
    assert lease.path.read_bytes() == b"0" * 16
    lease.release(clean=True)
    assert lease.path.read_bytes() == b""


def test_a_lease_costs_no_descriptor(folder: StateFolder) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        lease = Lease(folder, "p")
        lease.take(new_token())
        lease.release(clean=True)
        lease.release(clean=True)
    assert set(os.listdir("/proc/self/fd")) == before


def reapers(child: Forked) -> list[int]:
    found = []
    for pid in marked(child.mark):
        with suppress(OSError):
            if b"sweep.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_no_step_of_the_next_run_starts_while_a_worker_of_a_killed_one_lives(tmp_path: Path) -> None:
    def first() -> int:
        step = Step("s", f"{MODULE}:detached", params={"folder": str(tmp_path)})
        return Pipeline("p", steps=[step]).run(workers=1, state_dir=tmp_path / "s").exit_code

    with forked(first, tmp_path) as child:
        assert soon(lambda: list(tmp_path.glob("working-*")))
        (path,) = tmp_path.glob("working-*")
        worker = int(path.name.rpartition("-")[2])
        child.send(signal.SIGSTOP)
        for pid in reapers(child):
            os.kill(pid, signal.SIGKILL)
        child.send(signal.SIGKILL)
        child.wait()
        assert is_alive(worker), "it has lost its death signal, and nobody is there to end it"

        def second() -> int:
            result = Pipeline("p", steps=[Step("look", lambda: os.path.exists(f"/proc/{worker}/environ"))]).run(
                executor="inline", state_dir=tmp_path / "s"
            )
            return int(is_alive(worker)) + result.exit_code

        with forked(second, tmp_path) as other:
            assert other.wait() == 0, other.errors
        assert child.left() == []


# The command line


@pytest.fixture
def nightly(tmp_path: Path) -> Path:
    (tmp_path / "nightly.yaml").write_text("name: n\nsteps:\n  - {type: shell, name: s, command: 'echo x >> ran'}\n")
    return tmp_path


def call(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "procflow", "run", "nightly.yaml", "-q", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(sweep.__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_line_runs_it_once_skips_it_or_waits(nightly: Path) -> None:
    lock: RunLock = StateFolder.open(nightly / ".procflow").lock(lock_name(nightly / "nightly.yaml", "n"))
    lock.acquire("the-first")
    calls = {name: call(nightly, "--if-running", name) for name in ("fail", "skip", "wait=100ms", "wait")}
    told = {}
    for name in ("fail", "skip", "wait=100ms"):
        told[name] = calls[name].communicate(timeout=LONG_S)
    assert {name: calls[name].returncode for name in told} == {"fail": 75, "skip": 0, "wait=100ms": 75}
    assert calls["wait"].poll() is None
    assert not (nightly / "ran").exists()
    for _, errors in told.values():
        assert re.search(rf"pid {os.getpid()}, run the-first, started 20\d\d-", errors), errors
    assert told["skip"][1].startswith("skipped: ")
    lock.release()
    assert calls["wait"].communicate(timeout=LONG_S) == ("", "")
    assert calls["wait"].returncode == 0
    assert (nightly / "ran").read_text() == "x\n"


# Readers


def test_readers_neither_wait_for_the_writer_nor_make_it_wait(tmp_path: Path) -> None:
    """Readers that never let go of their view of the journal, and others that look again and again."""
    state = tmp_path / "s"
    pipeline = Pipeline("p", steps=[Step(f"s{n}", f"{MODULE}:quick") for n in range(40)])
    pipeline.run(executor="inline", state_dir=state)

    def look() -> int:
        seen = 0
        with History.open(StateFolder.open(state, create=False)) as history:
            while not (tmp_path / "end").exists():
                begun = time.monotonic()
                runs = history.runs()
                assert len(runs) >= seen, "what was there stays"
                seen = len(runs)
                assert time.monotonic() - begun < 1.0
                (tmp_path / f"looking-{os.getpid()}").touch()
        return 0

    with ExitStack() as stack:
        stack.callback(lambda: (tmp_path / "end").touch())
        old = stack.enter_context(closing(sqlite3.connect(f"file:{state}/procflow.db?mode=ro", uri=True)))
        old.execute("BEGIN")
        count = old.execute("SELECT count(*) FROM runs").fetchone()
        children = [stack.enter_context(forked(look, tmp_path)) for _ in range(4)]
        assert soon(lambda: len(list(tmp_path.glob("looking-*"))) == 4)
        begun = time.monotonic()
        for _ in range(5):
            assert pipeline.run(executor="inline", state_dir=state).exit_code == 0
        assert time.monotonic() - begun < LONG_S
        assert old.execute("SELECT count(*) FROM runs").fetchone() == count == (1,)
        (tmp_path / "end").touch()
        assert [child.wait() for child in children] == [0] * 4, [child.errors for child in children]


def test_a_look_at_the_lock_never_makes_a_start_fail(folder: StateFolder, tmp_path: Path) -> None:
    """Readers that ask whether a run lives hold its lock for some microseconds."""

    def look() -> int:
        lock = folder.lock("p")
        while not (tmp_path / "end").exists():
            lock.holder()
        return 0

    with forked(look, tmp_path) as child, forked(look, tmp_path) as other:
        lock = folder.lock("p")
        for _ in range(200):
            lock.acquire("r")
            lock.release()
        (tmp_path / "end").touch()
        assert (child.wait(), other.wait()) == (0, 0)
