"""One run of the soak: a random pipeline, session after session with harm done to its processes, until it has succeeded.

``Soak`` owns the folder, the harm and the checks: nothing that was announced runs again, results are there once, steps
began no oftener than the harm explains, no process is left, and the end is that of a run to which nothing happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import ledger
import soak_pipelines
from forked import MARK, is_alive, marked, soon
from warm import Warm

from procflow import failpoints
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder
from procflow.values.objects import unpack

HERE = Path(__file__).parent
GONE_S = 15.0
"""Two seconds are promised; here the machine may be busy with other things."""
HARMED_SESSIONS = 8
"""So many sessions of a run are harmed at most; after that one has to get to the end in peace."""
LONGEST_S = 120.0
DAY_S = 86_400.0
BAD_ENDS = {-9, -1, -15, 1, 74, 129, 130, 143}
"""Exit codes that a session may have to which harm was done; a signal before the first line may come before its handler."""


def jumping_clock() -> None:
    """From here on this process's wall clock jumps by up to a day, forwards and back."""
    chance, real = random.Random(os.getpid()), time.time
    offset = [0.0]

    def jumped() -> float:
        if chance.random() < 0.05:
            offset[0] = chance.uniform(-DAY_S, DAY_S)
        return real() + offset[0]

    time.time = jumped
    time.time_ns = lambda: int(jumped() * 1e9)


@dataclass
class Session:
    """A command that runs, and the harm that waits for it: what to do at how many lines of the ledger."""

    pid: int
    mark: str
    lines: Callable[[], int]
    harm: list[tuple[int, str]] = field(default_factory=list)
    stopped: list[tuple[float, int]] = field(default_factory=list)
    """When to let which stopped process go on."""

    def workers(self) -> list[int]:
        """Its worker processes."""
        return [pid for pid in self._children() if pid not in self.reapers()]

    def reapers(self) -> list[int]:
        """Its reaper and the one that stands in for it, if it has them."""
        first = [pid for pid in self._children() if b"sweep.py" in _read(f"/proc/{pid}/cmdline")]
        return first + [second for pid in first for second in _children(pid)]

    def _children(self) -> list[int]:
        return _children(self.pid)

    def act(self, chance: random.Random) -> None:
        """Do the harm whose time has come, and undo what was only for a moment."""
        now = time.monotonic()
        for until, pid in [one for one in self.stopped if one[0] <= now]:
            self.stopped.remove((until, pid))
            _send(pid, signal.SIGCONT)
        if self.harm and self.lines() >= self.harm[0][0]:
            self.do(self.harm.pop(0)[1], chance)

    def do(self, what: str, chance: random.Random) -> None:
        """One harm."""
        if what in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"):
            ledger.count(f"soak: {what} to the parent", 1)
            time.sleep(chance.uniform(0, 0.02))
            _send(self.pid, signal.Signals[what])
        elif what == "stop parent":
            ledger.count("soak: parents stopped for a moment", 1)
            _send(self.pid, signal.SIGSTOP)
            self.stopped.append((time.monotonic() + chance.uniform(0.05, 0.5), self.pid))
        elif found := self.reapers() if what == "kill reaper" else self.workers():
            pid = chance.choice(found)
            if what == "stop worker":
                ledger.count("soak: workers stopped for a moment", 1)
                _send(pid, signal.SIGSTOP)
                self.stopped.append((time.monotonic() + chance.uniform(0.05, 0.5), pid))
            else:
                ledger.count(f"soak: {what}", 1)
                _send(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    return [int(child) for child in _read(f"/proc/{pid}/task/{pid}/children").split()]


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


class Soak:
    """Runs in one folder, one after the other. ``seed`` and the number of a run say what happens to it."""

    def __init__(self, folder: Path, warm: Warm, seed: str) -> None:
        self.folder, self._warm, self._seed = folder, warm, seed
        self._runs = 0
        folder.mkdir(parents=True)
        for name in ("soak_steps.py", "ledger.py"):
            shutil.copy(HERE / name, folder / name)

    def one(self) -> None:
        """One pipeline, run to its end."""
        self._runs += 1
        name = f"{self._seed}:{self._runs}"
        run = _Run(self.folder, self._warm, name, self._runs)
        try:
            run.to_the_end()
        except AssertionError as error:
            story = "\n".join(run.story)
            raise AssertionError(f"soak run {name!r}: {error}\n{story}") from error
        ledger.count("soak: runs", 1)


class _Run:
    def __init__(self, folder: Path, warm: Warm, name: str, number: int) -> None:
        self.folder, self.warm = folder, warm
        self.chance = random.Random(name)
        self.made = soak_pipelines.pipeline(name)
        self.file = folder / "soak.json"
        self.file.write_text(json.dumps(self.made.tree))
        self.ledger = folder / f"ledger-{number}"
        self.mark = secrets.token_hex(8)
        self.run_id, self.number = "", number
        self.sessions = self.kills = self.worker_kills = 0
        self.slots = self.chance.randint(1, 3)
        self.announced: set[str] = set()
        self.said = ""
        self.story: list[str] = []

    def to_the_end(self) -> None:
        wanted = self._expected()
        code, out = self._session(harmed=True)
        while code != 0:
            out = ""
            code, out = self._session(harmed=self.sessions < HARMED_SESSIONS)
        assert out in (wanted, ""), f"{out!r} is not {wanted!r}"
        self._check_law(wanted)
        self.ledger.unlink()

    def _expected(self) -> str:
        """What it prints when nothing happens to it, in one process."""
        state = self.folder / "expected"
        env = {ledger.VARIABLE: "", "SOAK_CALM": "1"}
        words = ["run", self.file.name, "--executor", "inline", "-j", "1", "-q", "--state-dir", str(state)]
        out, err = self.folder / "out", self.folder / "err"
        self.warm.start(words, self.folder, env, out, err)
        assert self.warm.wait() == 0, err.read_text()
        shutil.rmtree(state)
        return out.read_text()

    def _session(self, harmed: bool) -> tuple[int, str]:
        self.sessions += 1
        ledger.count("soak: sessions", 1)
        recorded = self._look()
        if recorded:
            words = ["resume", self.run_id, "-j", str(self.slots)]
        else:
            self.run_id = f"run-{self.number}-{self.sessions}"
            words = ["run", self.file.name, "--run-id", self.run_id, "-j", str(self.slots)]
        before = len(ledger.read(self.ledger))
        env = {ledger.VARIABLE: str(self.ledger), MARK: self.mark, failpoints.VARIABLE: "", "SOAK_CALM": ""}
        harm, prelude = self._harm(env) if harmed else ([], "")
        out, err = self.folder / "out", self.folder / "err"
        pid = self.warm.start(words, self.folder, env, out, err, prelude)
        session = Session(pid, self.mark, lambda: len(_read(str(self.ledger)).splitlines()) - before, harm)
        planned = list(harm)
        until = time.monotonic() + LONGEST_S
        while (code := self.warm.ended(0.003)) is None:
            session.act(self.chance)
            assert time.monotonic() < until, f"still running: {err.read_text()}"
        self.said = err.read_text()
        done = planned[: len(planned) - len(session.harm)]
        # Cut off: what ran then is in no journal, be it for a signal or for a full disk.
        self.kills += code < 0 or code == 74
        self.worker_kills += sum(what == "kill worker" for _, what in done)
        text = f"session {self.sessions} ({words[0]}, {done}, {env[failpoints.VARIABLE]}{prelude}) ended with {code}"
        self.story.append(text)
        assert code in (BAD_ENDS if harmed else set()) | {0}, f"{text}: {self.said}"
        self._check(before, text)
        return code, out.read_text()

    def _harm(self, env: dict[str, str]) -> tuple[list[tuple[int, str]], str]:
        """What is done to a session and when; some of it by its environment."""
        prelude = ""
        lines = 2 * len(self.made.keys)
        some = self.chance.choices(
            ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "kill worker", "kill reaper", "stop parent", "stop worker"),
            (6, 1, 1, 1, 5, 3, 1, 1),
            k=self.chance.choice((1, 1, 2, 3)),
        )
        if self.chance.random() < 0.2:
            ledger.count("soak: clocks that jumped", 1)
            prelude = "soak:jumping_clock"
        if self.chance.random() < 0.15:
            ledger.count("soak: full disks", 1)
            place = self.chance.choice(("journal.commit.begun", "journal.commit.full", "log.write", "log.open"))
            lasting = self.chance.choice(("", "+"))
            env[failpoints.VARIABLE] = f"{place}=raise:OSError:ENOSPC@{self.chance.randint(1, 12)}{lasting}"
        return sorted((self.chance.randrange(lines), what) for what in some), prelude

    def _look(self) -> bool:
        """Whether the journal knows the run; what it holds is whole, and each result is there once."""
        state = self.folder / ".procflow"
        if not (state / "procflow.db").exists():
            return False
        with History.open(StateFolder(state)) as past:
            known = self.run_id in [row.run_id for row in past.runs(limit=3)]
            if known:
                ledger.check_once((o.path, o.item, o.name) for o in past.outputs(self.run_id))
        with closing(sqlite3.connect(f"file:{state / 'procflow.db'}?mode=ro", uri=True)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return known

    def _check(self, before: int, text: str) -> None:
        """Nothing that was announced has run again since, and nothing is left alive."""
        again = set(ledger.starts(ledger.read(self.ledger)[before:])) & self.announced
        ledger.count("LOST", len(again))
        assert not again, f"{text}: announced as done, and ran again: {sorted(again)}: {self.said}"
        told = re.findall(r"Pipeline step [\d.]+ \((?:\w+/)*(\w+)\): succeeded", self.said)
        self.announced |= set(told) & self.made.members
        soon(lambda: not self._left(), GONE_S)
        left = [f"{pid} {_read(f'/proc/{pid}/cmdline')!r}" for pid in self._left()]
        ledger.count("ORPHANS", len(left))
        assert not left, f"{text}: still alive: {left}"

    def _left(self) -> list[int]:
        return [pid for pid in marked(self.mark) if is_alive(pid)]

    def _check_law(self, wanted: str) -> None:
        """Its end is as wanted; every start beyond the first is owed to an attempt that ended badly, or to a kill."""
        with History.open(StateFolder(self.folder / ".procflow")) as past:
            assert past.run(self.run_id).status == "succeeded"
            rows = [row for row in past.steps(self.run_id) if row.kind == "task"]
            (end,) = [o.ref for o in past.outputs(self.run_id) if o.name == "end"]
        assert unpack(end) == wanted.strip()
        bad = [row for row in rows if row.status in ("failed", "lost", "cancelled")]
        ledger.count("soak: attempts stopped for memory", sum(row.cause in ("oom", "pressure") for row in bad))
        crashed = [row for row in bad if row.cause == "crash" and "procflow itself" not in (row.reason or "")]
        short = len(crashed) - self.worker_kills
        ledger.count("law violations", max(0, short))
        assert short <= 0, f"{len(crashed)} attempts crashed of {self.worker_kills} workers that were killed"
        failed = {row.name for row in bad if row.status == "failed"} - self.made.fails
        assert not failed, f"failed, and should not have: {failed}"
        self.story += [f"{row.label} {row.item} {row.attempt} {row.status} {row.cause} {row.reason}" for row in bad]
        ledger.check_law(ledger.read(self.ledger), self.made.keys, kills=len(bad) + self.kills * self.slots, slots=1)
