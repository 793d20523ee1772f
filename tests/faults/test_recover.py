"""``procflow recover``: of a damaged journal it saves rows that were once written, keeps the damaged one, and the run goes on."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import night
import pytest
from driver import Driver, Order

from procflow.cli import cli
from procflow.errors import LockHeld, StoreError
from procflow.storing.history import History
from procflow.storing.recovery import recover
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import Store
from procflow.storing.store_seal import TABLES

SEED = int(os.environ.get("PROCFLOW_SEED", "20261120"))
SHAPE = 0.4
FLIPS, CUTS = 60, 25


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as started:
        yield started


class Killed:
    """A state folder whose run was killed, as often as wanted from the same beginning."""

    def __init__(self, driver: Driver, folder: Path) -> None:
        self._driver, self._origin, self.folder = driver, folder / "origin", folder / "damaged"
        self._names = lambda where: {name: str(where / name) for name in ("state", "ledger", "said", "answer")}
        self._origin.mkdir(parents=True)
        order = Order(**self._names(self._origin), eager=True, shape=SHAPE, failpoints="engine.announce=kill@25")
        assert driver.session(order)[0] == -signal.SIGKILL
        self.rows = rows_of(self._origin / "state" / "procflow.db")
        done = Order(**self._names(self.fresh()), shape=SHAPE, resume=True)
        self.wanted = driver.session(done)[1]["outputs"]

    def fresh(self) -> Path:
        """The folder as the kill left it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._origin, self.folder)
        return self.folder

    @property
    def state(self) -> StateFolder:
        return StateFolder(self.folder / "state")

    def go_on(self) -> None:
        """A resume gets to the end of an undisturbed run; where the run itself is lost there is nothing to go on with."""
        with History.open(self.state) as past:
            known = [row.run_id for row in past.runs()]
        order = Order(**self._names(self.folder), shape=SHAPE, resume=bool(known), run_id="night" if known else "other")
        status, answer = self._driver.session(order)
        assert status == 0
        assert (answer.get("status"), answer.get("outputs")) == ("succeeded", self.wanted), answer

    def check_saved(self, flips: bool = True) -> None:
        """All that was saved was once written, and the new journal is one for readers and writers."""
        with contextlib.closing(Store.open(self.state)):
            pass
        saved = rows_of(self.state.db)
        for table in TABLES:
            if table != "runs":
                assert saved[table] <= self.rows[table]
        self.go_on()


def rows_of(db: Path) -> dict[str, set[Any]]:
    with contextlib.closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
        return {table: set(connection.execute(f"SELECT * FROM {table}")) for table in TABLES}


@pytest.fixture(scope="module")
def killed(driver: Driver, memory: Path) -> Killed:
    return Killed(driver, memory / "recover")


def in_one_file(folder: Path) -> Path:
    """Write the log back, so that all of the journal is in its database."""
    db = folder / "state" / "procflow.db"
    with contextlib.closing(sqlite3.connect(db)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return db


def test_a_whole_journal_is_left_as_it_is(killed: Killed) -> None:
    killed.fresh()
    before = killed.state.db.read_bytes()
    found = recover(killed.state)
    assert (found.damage, found.aside, [run.run_id for run in found.runs]) == ([], None, ["night"])
    assert killed.state.db.read_bytes() == before
    killed.go_on()


@pytest.mark.parametrize("part", range(4))
def test_whatever_bytes_are_wrong_the_rest_is_saved_and_the_run_gets_to_the_same_end(killed: Killed, part: int) -> None:
    chance = random.Random(f"{SEED}:{part}")
    saved = 0
    for number in range(FLIPS // 4):
        db = in_one_file(killed.fresh())
        data = bytearray(db.read_bytes())
        for _ in range(chance.choice((1, 1, 3, 20))):
            at, size = chance.randrange(len(data)), chance.choice((1, 1, 16, 512, 4096))
            data[at : at + size] = chance.randbytes(len(data[at : at + size]))
        db.write_bytes(data)
        try:
            found = recover(killed.state)
            if found.aside is not None:
                assert found.aside.read_bytes() == bytes(data), "the damaged one was not kept as it was"
                saved += bool(found.runs)
            killed.check_saved()
        except Exception as error:
            raise AssertionError(f"PROCFLOW_SEED={SEED}, part {part}, number {number}: {error!r}") from error
    assert saved, "some damage leaves the run"


def test_wherever_it_was_cut_off_the_beginning_is_saved(killed: Killed) -> None:
    chance = random.Random(SEED)
    whole = in_one_file(killed.fresh()).stat().st_size
    for size in [0, 1, 99, 100, 4095, 4096, *(chance.randrange(whole) for _ in range(CUTS))]:
        db = in_one_file(killed.fresh())
        os.truncate(db, size)
        found = recover(killed.state)
        assert found.damage
        assert found.aside is not None
        assert found.aside.stat().st_size == size
        killed.check_saved()


def test_with_its_first_page_lost_all_is_saved_that_is_elsewhere(killed: Killed) -> None:
    db = in_one_file(killed.fresh())
    data = bytearray(db.read_bytes())
    data[:4096] = bytes(4096)
    db.write_bytes(data)
    found = recover(killed.state)
    assert "its beginning can't be read" in found.damage
    (run,) = found.runs
    assert (run.run_id, run.lost) == ("night", 0)
    assert run.attempts > 20
    saved = rows_of(killed.state.db)
    assert {table: saved[table] for table in TABLES} == killed.rows
    killed.check_saved()


@pytest.mark.parametrize(
    "wrong", [b"run_id T\xffXT NOT NULL UNIQUE", b"run_id TEXU NOT NULL UNIQUE", b"run_ie TEXT NOT NULL UNIQUE"]
)
def test_a_wrong_letter_in_what_the_tables_are_is_damage(killed: Killed, wrong: bytes) -> None:
    db = in_one_file(killed.fresh())
    data, right = db.read_bytes(), b"run_id TEXT NOT NULL UNIQUE"
    assert data.count(right) == 1
    db.write_bytes(data.replace(right, wrong))
    found = recover(killed.state)
    assert "its beginning can't be read" in found.damage
    assert found.runs[0].lost == 0
    killed.check_saved()


@pytest.mark.parametrize("suffix", ["-wal", ""])
def test_a_lost_log_costs_its_commits_and_nothing_else(killed: Killed, suffix: str) -> None:
    log = killed.fresh() / "state" / f"procflow.db{suffix}"
    if suffix:
        log.unlink()
    else:
        # The log alone is left: what it holds of the tables counts.
        log.write_bytes(b"")
    with pytest.raises(StoreError, match="procflow recover --state-dir"):
        Store.open(killed.state)
    found = recover(killed.state)
    assert found.damage
    killed.check_saved()


def test_a_result_of_which_a_part_is_gone_is_made_again_and_not_used(killed: Killed) -> None:
    db = in_one_file(killed.fresh())
    with contextlib.closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("UPDATE step_executions SET refs = NULL WHERE output_ref = 'c1'")
        connection.execute("UPDATE pages SET count = count + 1")
    found = recover(killed.state)
    assert any("pages" in line for line in found.damage)
    (run,) = found.runs
    assert run.lost == 2 + night.OUTER - 2, "the chain's second step, and the items of two maps"
    killed.check_saved()


def test_a_killed_recovery_is_ended_by_the_next(killed: Killed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill before each of its renames: nothing is lost, and no run begins on an empty journal meanwhile."""

    class Killing(BaseException):
        pass

    moves = 0
    while True:
        moves += 1
        db = in_one_file(killed.fresh())
        os.truncate(db, db.stat().st_size // 2)
        damaged, left = db.read_bytes(), [moves]

        def counted(real: Callable[..., None], left: list[int] = left) -> Callable[..., None]:
            def move(*args: Any, **more: Any) -> None:
                left[0] -= 1
                if not left[0]:
                    raise Killing
                real(*args, **more)

            return move

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", counted(os.rename))
            patch.setattr(os, "replace", counted(os.replace))
            try:
                recover(killed.state)
            except Killing:
                with pytest.raises(StoreError, match="procflow recover"):
                    Store.open(killed.state)
            else:
                break
        recover(killed.state)
        kept = [path.read_bytes() for path in killed.state.path.glob("procflow.db.damaged-*[0-9Z]")]
        assert damaged in kept
        killed.check_saved()
    assert moves >= 4


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    folder = StateFolder.open(tmp_path / "state")
    with pytest.raises(StoreError, match="no journal"):
        recover(folder)
    with contextlib.closing(sqlite3.connect(folder.db)) as db, db:
        db.execute("CREATE TABLE theirs (a)")
    folder.db.chmod(0o600)
    with pytest.raises(StoreError, match="not a procflow journal: it holds the tables theirs"):
        recover(folder)
    assert [path.name for path in folder.path.iterdir() if "recover" in path.name or "damaged" in path.name] == []


def test_that_no_run_could_be_saved_is_said(killed: Killed, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(in_one_file(killed.fresh()), 0)
    with pytest.raises(SystemExit):
        cli.main(["recover", "--state-dir", str(killed.state.path)])
    assert "no run could be saved" in capsys.readouterr().out


def test_nothing_is_recovered_while_a_run_goes_on(killed: Killed) -> None:
    killed.fresh()
    lock = killed.state.lock("night")
    lock.acquire("night-2")
    try:
        with pytest.raises(LockHeld, match=r"night-2 is going on"):
            recover(killed.state)
    finally:
        lock.release()


def test_the_command_says_what_it_found_and_how_to_go_on(killed: Killed, capsys: pytest.CaptureFixture[str]) -> None:
    def command(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([*words, "--state-dir", str(killed.state.path)])
        shown = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, shown.out, shown.err

    db = in_one_file(killed.fresh())
    assert command("recover")[:2] == (0, f"{db}: the journal is whole: 1 run, nothing to do\n")
    with db.open("r+b") as file:
        file.truncate(db.stat().st_size - 5000)
    code, _, said = command("resume")
    assert code == 74
    assert f"procflow recover --state-dir {db.parent}" in said
    before = db.read_bytes()
    code, said, _ = command("recover", "--plan")
    assert (code, db.read_bytes()) == (0, before)
    assert "would be saved: run night of night (running): " in said
    code, said, hint = command("recover")
    assert code == 0
    assert "the journal is damaged\n" in said
    assert "saved: run night of night (running): " in said
    assert f"the damaged journal is kept as {db}.damaged-" in said
    assert f"procflow resume night --state-dir {db.parent}" in hint
    assert command("history")[0] == 0
    killed.go_on()
