"""What signals do to a run, at every moment of it: exit code, grace, a whole journal, and nothing left alive."""

from __future__ import annotations

import os
import pty
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ledger
import pytest
from forked import LONG_S, Forked, forked, marked, soon

from procflow import Map, Pipeline, Step
from procflow.engine import Engine
from procflow.errors import InternalError
from procflow.events import AttemptStarted, Event, RunFinished, StepFinished
from procflow.guarding import watch
from procflow.guarding.signals import HANDLED, Signals, exit_code_of
from procflow.guarding.watch import Watch
from procflow.scheduler import Scheduler

MODULE = "steps_for_signals"
PHASES = ("begin", "spawn", "step", "between", "map", "end")
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGKILL: -9}


def pipeline(phase: str, folder: Path, manner: str) -> Pipeline:
    """One that comes by the phase. Where a run has to be killed, its steps would take half a minute to end."""
    keys: dict[str, Any] = {"kill_grace": "30s" if manner == "stubborn" else "5s", "params": {"folder": str(folder)}}
    first = Step("first", f"{MODULE}:quick")
    long = Step("long", f"{MODULE}:{manner}", **keys)
    if phase == "map":
        return Pipeline("p", steps=[Map("many", f"{MODULE}:{manner}_item", items=range(40), **keys)])
    return Pipeline("p", steps=[first] if phase == "end" else [first, long] if phase == "between" else [long])


WHEN = {"spawn": AttemptStarted, "between": StepFinished, "end": RunFinished}


class Pausing:
    """An observer that stops the run's loop at a phase, until it is let go."""

    def __init__(self, phase: str, folder: Path) -> None:
        self.phase = phase
        self.folder = folder

    def begin(self, run: object) -> None:
        if self.phase == "begin":
            self.pause()

    def handle(self, event: Event) -> None:
        if type(event) is WHEN.get(self.phase):
            self.phase = ""
            self.pause()

    def pause(self) -> None:
        (self.folder / "here").touch()
        assert soon((self.folder / "go").exists)


def run_of(phase: str, folder: Path, manner: str = "polite", **options: Any) -> int:
    made = pipeline(phase, folder, manner)
    return made.run(workers=2, state_dir=folder / "s", observers=[Pausing(phase, folder)], **options).exit_code


def reached(child: Forked, phase: str) -> None:
    folder = child.folder
    if phase in ("step", "map"):
        assert soon(lambda: list(folder.glob("working-*"))), child.errors
    else:
        assert soon((folder / "here").exists), child.errors


def run_row(folder: Path) -> tuple[str, int | None]:
    """Status and exit code of the only run, from a journal that is whole."""
    with closing(sqlite3.connect(folder / "s" / "procflow.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = db.execute("SELECT status, exit_code FROM runs").fetchall()
    assert len(rows) == 1
    status, code = rows[0]
    return status, code


@pytest.mark.parametrize("times", ["once", "twice"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", list(CODES), ids=lambda n: n.name)
def test_a_signal_ends_a_run_at_any_moment_and_leaves_nothing(
    number: signal.Signals, phase: str, times: str, tmp_path: Path
) -> None:
    manner = "polite" if times == "once" else "stubborn"
    ledger.count("signal cases", 1)
    with forked(lambda: run_of(phase, tmp_path, manner), tmp_path) as child:
        reached(child, phase)
        child.send(number)
        if number is signal.SIGKILL:
            if times == "twice":
                for pid in reapers(child):
                    os.kill(pid, signal.SIGKILL)
            assert child.wait(10.0) == -9
            workers = [int(path.name.rpartition("-")[2]) for path in tmp_path.glob("working-*")]
            assert soon(lambda: not [pid for pid in marked(child.mark) if pid in workers], 5.0)
            if times == "twice":
                sweep_at_the_next_start(tmp_path)
        else:
            assert soon(lambda: f"{number.name}: stopping" in child.errors)
            if times == "twice":
                child.send(number)
                assert soon(lambda: f"{number.name}: killing" in child.errors)
            (tmp_path / "go").touch()
            assert child.wait() == (0 if phase == "end" else CODES[number]), child.errors
            assert run_row(tmp_path)[0] == ("succeeded" if phase == "end" else "cancelled")
            if phase in ("step", "map"):
                assert (tmp_path / "tidied").exists() == (times == "once"), "the step was given its grace, or not"
        assert child.left() == []
        assert "Traceback" not in child.errors
    assert run_row(tmp_path)[0] in ("running", "cancelled", "succeeded")


def told(child: Forked) -> str:
    """All that is known of a run that ended otherwise than it should."""
    with closing(sqlite3.connect(child.folder / "s" / "procflow.db")) as db:
        db.row_factory = sqlite3.Row
        rows = [dict(row) for table in ("runs", "step_executions") for row in db.execute(f"SELECT * FROM {table}")]
    logs = [path.read_text() for path in (child.folder / "s").glob("runs/*/logs/**/*") if path.is_file()]
    return f"{child.code}\n{child.errors}\n{rows}\n{logs}"


def reapers(child: Forked) -> list[int]:
    found = []
    for pid in marked(child.mark):
        try:
            if b"sweep.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def sweep_at_the_next_start(folder: Path) -> None:
    """What the start of another run of this pipeline does first."""
    from procflow.guarding.lease import Lease
    from procflow.storing.state_folder import StateFolder

    lease = Lease(StateFolder.open(folder / "s"), "p")
    lease.take("0" * 16)
    lease.release(clean=True)


@pytest.mark.parametrize("gap_s", [0, 0.005, 0.05, 0.5])
def test_a_second_signal_at_any_distance_kills_a_step_that_would_not_end(gap_s: float, tmp_path: Path) -> None:
    with forked(lambda: run_of("step", tmp_path, "stubborn"), tmp_path) as child:
        reached(child, "step")
        child.send(signal.SIGTERM)
        time.sleep(gap_s)
        # Another number, since a signal that is still pending swallows its like.
        child.send(signal.SIGINT)
        child.wait(20.0)
        assert (child.code in (143, 130), *run_row(tmp_path)) == (True, "cancelled", child.code), told(child)
        assert child.left() == []


def test_a_third_signal_ends_procflow_at_once(tmp_path: Path) -> None:
    with forked(lambda: run_of("between", tmp_path, "stubborn"), tmp_path) as child:
        reached(child, "between")
        for said in ("stopping", "killing"):
            child.send(signal.SIGTERM)
            assert soon(lambda said=said: said in child.errors)
        child.send(signal.SIGINT)
        assert child.wait(10.0) == 130
        assert child.left() == []
        assert run_row(tmp_path)[0] == "running"


def test_the_messages_say_what_this_signal_does_and_what_the_next_would_do(tmp_path: Path) -> None:
    with forked(lambda: run_of("step", tmp_path, "stubborn"), tmp_path) as child:
        reached(child, "step")
        child.send(signal.SIGHUP)
        assert soon(lambda: "stopping" in child.errors)
        child.send(signal.SIGHUP)
        child.wait()
        first, second, _ = child.errors.splitlines()
    assert first.startswith("procflow: SIGHUP: stopping")
    assert "A second signal kills" in first
    assert second.startswith("procflow: SIGHUP: killing")
    assert "third signal ends procflow" in second


def test_under_nohup_a_hangup_does_nothing(tmp_path: Path) -> None:
    def run() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return run_of("between", tmp_path / "x")

    (tmp_path / "x").mkdir()
    with forked(run, tmp_path) as child:
        assert soon((tmp_path / "x" / "here").exists)
        child.send(signal.SIGHUP)
        child.send(signal.SIGTERM)
        (tmp_path / "x" / "go").touch()
        assert child.wait() == 143
        assert "SIGHUP" not in child.errors


# The program that uses procflow as a library


def test_handlers_and_wakeup_descriptor_are_given_back(tmp_path: Path) -> None:
    def own(number: int, frame: object) -> None:
        raise AssertionError

    before = {number: signal.signal(number, own) for number in HANDLED}
    try:
        with Signals() as signals:
            assert [signal.getsignal(number) for number in HANDLED] != [own] * 3
            assert signals.fileno() >= 0
        assert [signal.getsignal(number) for number in HANDLED] == [own] * 3
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_in_another_thread_no_handler_is_set(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    during: list[Any] = []

    def look() -> None:
        with Signals() as signals:
            during.extend(signal.getsignal(number) for number in HANDLED)
            assert signals.fileno() == -1
            signals.drain()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(LONG_S)
    assert during == before


def test_a_signal_before_the_engine_is_there_is_told_later() -> None:
    told: list[str] = []
    with Signals(say=lambda text: None) as signals:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        signals.attach(told.append, lambda: told.append("hurry"))
    assert told == ["SIGHUP", "hurry"]


def test_handlers_that_interrupt_each_other_stop_once_and_hurry_once() -> None:
    """The second signal comes while the first one's handler is at any of its lines."""
    for line in range(1, 30):
        told: list[str] = []
        signals = Signals(say=lambda text: None)
        signals.attach(told.append, partial(told.append, "hurry"))
        left = [line]

        def trace(frame: Any, event: str, argument: Any, left: list[int] = left, signals: Signals = signals) -> Any:
            if frame.f_code.co_name == "_on_signal" and event == "line":
                left[0] -= 1
                if left[0] == 0:
                    signals._on_signal(signal.SIGINT, None)
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            signals._on_signal(signal.SIGTERM, None)
        finally:
            sys.settrace(before)
        if left[0] > 0:
            assert line > 5
            break
        assert len(told) == 2
        assert told.count("hurry") == 1


def test_the_descriptor_is_readable_after_a_signal_until_it_is_drained() -> None:
    import select

    with Signals(say=lambda text: None) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([signals.fileno()], [], [], 5.0)[0]
        signals.drain()
        assert not select.select([signals.fileno()], [], [], 0)[0]


@pytest.mark.parametrize(("reason", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("closed", 130)])
def test_the_exit_code_is_128_and_the_signal(reason: str, code: int) -> None:
    assert exit_code_of(reason) == code


# A process that stood still


class Late:
    """A waiter whose sleeps last as long as it is told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[tuple[float, list[Any]]] = []
        self.asked: list[float | None] = []

    def wait(self, until: float | None) -> list[Any]:
        self.asked.append(until)
        self.now, outcomes = self.sleeps.pop(0) if self.sleeps else (until or self.now, [])
        return outcomes

    def watch(self, fd: int) -> None: ...

    def unwatch(self, fd: int) -> None: ...


@pytest.fixture
def late() -> Iterator[tuple[Late, Watch]]:
    waiter = Late()
    with Watch(waiter, Signals(), clock=lambda: waiter.now) as watching:
        yield waiter, watching


def test_after_a_gap_outcomes_come_in_before_time_goes_on(late: tuple[Late, Watch]) -> None:
    waiter, watching = late
    waiter.sleeps = [(160.0, []), (160.1, ["outcome"])]
    assert watching.wait(102.0) == ["outcome"]
    assert watching.clock() == 100.0, "the deadline at 102 has not come"
    assert waiter.asked == [102.0, 161.0]
    assert watching.wait(102.0) == []
    assert watching.clock() == 161.0
    assert waiter.asked[2:] == [161.0]


def test_a_gap_outside_of_the_wait_counts_too(late: tuple[Late, Watch]) -> None:
    waiter, watching = late
    waiter.now = 150.0
    assert watching.clock() == 100.0
    waiter.now = 151.5
    assert watching.clock() == 151.5


def test_a_long_sleep_that_was_meant_is_no_gap(late: tuple[Late, Watch]) -> None:
    waiter, watching = late
    assert watching.wait(4000.0) == []
    assert watching.clock() == 4000.0
    waiter.sleeps = [(9000.0, ["outcome"])]
    assert watching.wait(None) == ["outcome"]
    assert watching.clock() == 9000.0
    assert waiter.asked == [4000.0, None]


@pytest.mark.parametrize("hold_s", [1.0, 0.0])
def test_a_step_that_stood_still_with_the_parent_is_asked_once_more_before_its_time_is_up(
    hold_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "GAP_S", 0.3)
    monkeypatch.setattr(watch, "HOLD_S", hold_s)

    def run() -> int:
        # Long enough for a worker to begin on a machine that has other things to do.
        nap = Step("nap", f"{MODULE}:nap", params={"folder": str(tmp_path), "seconds": 0.5}, timeout=4.0)
        return Pipeline("p", steps=[nap]).run(workers=1, state_dir=tmp_path / "s").exit_code

    with forked(run, tmp_path) as child:
        reached(child, "step")
        (working,) = tmp_path.glob("working-*")
        worker = int(working.name.rpartition("-")[2])
        for pid in (child.pid, worker):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(4.6)
        child.send(signal.SIGCONT)
        # Frozen together, they do not wake together.
        time.sleep(0.3)
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
        assert child.wait() == (0 if hold_s else 1), child.errors


# procflow's own bugs


@pytest.mark.parametrize("error", [MemoryError, RecursionError, RuntimeError, InternalError])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_bug_in_the_parent_aborts_without_a_commit_of_half_a_decision(
    error: type[Exception], call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, commits = [0], [0]
    handle, commit = Scheduler.handle, Engine._settle_debt

    def broken(self: Scheduler, outcome: Any, now: float) -> Any:
        calls[0] += 1
        actions = handle(self, outcome, now)
        if calls[0] == call:
            for action in actions:
                if hasattr(action, "event"):
                    engine_of[0]._record(action.event)
            raise error("a bug")
        return actions

    engine_of: list[Engine] = []

    def counted(self: Engine) -> None:
        commits[0] += 1
        commit(self)
        (tmp_path / "committed").write_text(str(self._recorded))

    turns = Engine.turns

    def noted(self: Engine) -> Any:
        engine_of.append(self)
        return turns(self)

    monkeypatch.setattr(Scheduler, "handle", broken)
    monkeypatch.setattr(Engine, "_settle_debt", counted)
    monkeypatch.setattr(Engine, "turns", noted)

    def run() -> int:
        from procflow.cli import cli

        file = tmp_path / "p.yaml"
        file.write_text(
            "name: p\nsteps:\n"
            "  - {type: shell, name: a, command: 'true'}\n"
            "  - {type: shell, name: b, command: 'setsid sleep 100 & sleep 100'}\n"
        )
        cli.main(["run", str(file), "--state-dir", str(tmp_path / "s")])

    with forked(run, tmp_path) as child:
        assert child.wait() == 70, child.errors
        assert error.__name__ in child.errors
        assert child.left() == []
    assert run_row(tmp_path) == ("running", None)


# The command line, end to end


def nightly(folder: Path, command: str) -> Path:
    file = folder / "nightly.yaml"
    file.write_text(f"name: nightly\nsteps:\n  - {{type: shell, name: work, command: {command!r}}}\n")
    return file


def test_ctrl_c_reaches_the_parent_alone(tmp_path: Path) -> None:
    file = nightly(
        tmp_path, "trap 'echo hit > hit' INT; trap 'echo told > told; exit 1' TERM; : > here; sleep 30 & wait"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-m", "procflow", "run", str(file)])
    try:
        assert soon(lambda: _read(terminal) is None or (tmp_path / "here").exists())
        os.write(terminal, b"\x03")
        ended: list[int] = []

        def over() -> bool:
            _read(terminal)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended.append(os.waitstatus_to_exitcode(status))
            return bool(found)

        assert soon(over)
    finally:
        os.close(terminal)
    assert ended == [130]
    assert (tmp_path / "told").exists()
    assert not (tmp_path / "hit").exists()


def _read(terminal: int) -> bytes | None:
    """What is there to be read, so that the process behind the terminal never waits."""
    os.set_blocking(terminal, False)
    try:
        return os.read(terminal, 65536)
    except BlockingIOError:
        return b""
    except OSError:
        return None


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    file = nightly(tmp_path, "sleep 0.3; echo done > done")
    process = subprocess.Popen(
        [sys.executable, "-m", "procflow", "run", str(file)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    assert b"started" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(LONG_S) == 0
    assert (tmp_path / "done").exists()
