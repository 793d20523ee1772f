"""Storage that fails: full disks, failing disks, damage, removal, other versions, other owners (F54 to F61)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import disk
import ledger
import night
import pytest
from driver import Driver, Order

from procflow.errors import StoreError
from procflow.events import AttemptFinished
from procflow.storing import store as store_module
from procflow.storing.history import History, OutputRow, StepRow
from procflow.storing.journal_results import Results
from procflow.storing.recovery import recover
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import Store
from procflow.storing.store_prints import read_prints
from procflow.storing.store_refs import decode_refs, encode_ref
from procflow.storing.store_schema import SCHEMA_VERSION
from procflow.storing.store_seal import TABLES, install, reseal, sealed

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60
SHAPE = 0.2
SEED = int(os.environ.get("PROCFLOW_SEED", "20261120"))
FLIPS = int(os.environ.get("PROCFLOW_FLIPS", "100"))

has_library = pytest.mark.skipif(disk.library() is None, reason="this Python has SQLite built in, not as a library")


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as started:
        yield started


class Places:
    """A state folder with its ledger, and sessions of one run in it."""

    def __init__(self, driver: Driver, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._driver, self.folder, self.state = driver, folder, folder / "state"

    def session(self, **more: Any) -> dict[str, Any]:
        names = {name: str(self.folder / name) for name in ("state", "ledger", "said", "answer")}
        status, answer = self._driver.session(Order(**names, **{"shape": SHAPE, "eager": True, **more}))
        assert status == 0, answer
        return answer

    def recorded(self) -> bool:
        with History.open(StateFolder(self.state)) as past:
            return bool(past.runs())


@pytest.fixture(scope="module")
def wanted(driver: Driver, memory: Path) -> dict[str, Any]:
    """What an undisturbed run answers."""
    return Places(driver, memory / "undisturbed").session()


# -- F54: full and failing disks


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("again", ["", "+"], ids=["once", "from then on"])
@pytest.mark.parametrize("where", ["journal.commit.begun", "journal.commit.outputs", "journal.commit.full"])
def test_a_run_whose_journal_cant_be_written_stops_and_goes_on_later(
    driver: Driver, memory: Path, wanted: dict[str, Any], where: str, again: str, error: str
) -> None:
    passes = wanted["passed"][where]
    for n in sorted({1, 2, passes // 2, passes}):
        places = Places(driver, memory / f"{where}-{again}-{error}-{n}")
        told = places.session(failpoints=f"{where}=raise:OSError:{error}@{n}{again}")
        assert (told["error"], told["code"]) == ("StoreError", 74)
        assert str(places.state / "procflow.db") in told["message"]
        assert os.strerror(getattr(__import__("errno"), error)) in told["message"]
        assert "procflow resume night goes on with this run" in told["message"]
        assert told["passed"].get("engine.submit", 0) <= wanted["passed"]["engine.submit"]
        done = places.session(resume=True)
        assert (done["status"], done["outputs"]) == ("succeeded", wanted["outputs"])
        # The one attempt that ran, perhaps a whole batch of items, is what was not recorded.
        lines = ledger.read(places.folder / "ledger")
        ledger.check_law(lines, night.keys(SHAPE), kills=1, slots=1)


class _Announced:
    """What a run in this process announced, and when it began to fail."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, ...]] = set()

    def handle(self, event: Any) -> None:
        if isinstance(event, AttemptFinished) and event.status in ("succeeded", "skipped"):
            self.seen.add((event.path, event.item, str(event.number)))


class _Fault:
    """Answers the n-th write or sync with an error, or all from then on."""

    def __init__(self, kind: str, code: int, n: int, persistent: bool) -> None:
        self._kind, self._code, self._n, self._persistent = kind, code, n, persistent
        self._count = 0

    def __call__(self, op: disk.Op) -> int:
        if op.what != self._kind:
            return disk.OK
        self._count += 1
        hit = self._count >= self._n if self._persistent else self._count == self._n
        return self._code if hit else disk.OK


@has_library
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [disk.FULL, disk.IOERR_WRITE, disk.IOERR_FSYNC], ids=["full", "write", "fsync"])
def test_every_write_of_sqlite_may_fail(memory: Path, wanted: dict[str, Any], code: int, persistent: bool) -> None:
    """The n-th write (or sync) of SQLite itself fails; what was announced stays, and the next session gets to the end."""
    kind = "sync" if code == disk.IOERR_FSYNC else "write"
    chance = random.Random(SEED)
    failed = 0
    for n in [1, 2, 3, *sorted(chance.sample(range(4, 14 if kind == "sync" else 200), 9))]:
        state = memory / f"write-{code}-{persistent}-{n}"
        announced, trouble = _Announced(), None
        with disk.Disk().installed() as failing:
            failing.fault = _Fault(kind, code, n, persistent)
            try:
                assert night.session(str(state), "night", False, announced, SHAPE).ok
            except StoreError as error:
                trouble = error
        if trouble is None:
            continue
        failed += 1
        assert trouble.exit_code == 74
        assert str(state) in str(trouble)
        recorded = False
        with contextlib.suppress(StoreError), History.open(StateFolder(state)) as past:
            recorded = bool(past.runs())
            steps = list(past.steps("night")) if recorded else []
            present = {
                (row.path, row.item, str(row.attempt)) for row in steps if row.status in ("succeeded", "skipped")
            }
            ledger.check_lost(announced.seen, present)
        assert recorded or not announced.seen
        result = night.session(str(state), "night" if recorded else "again", recorded, _Announced(), SHAPE)
        assert {name: result.outputs[name] for name in result.outputs} == wanted["outputs"]
    assert failed >= 5


FULL = """
set -e
mount -t tmpfs -o size=512k tmpfs "$1"
code=0
"$2" -m procflow run "$3/p.yaml" --state-dir "$1/state" --run-id night -j 2 2> "$3/err" || code=$?
echo "run $code"
mount -o remount,size=64m "$1"
code=0
"$2" -m procflow resume night --state-dir "$1/state" 2>> "$3/err2" || code=$?
echo "resume $code"
"""


def test_a_full_file_system_ends_the_run_with_74_and_room_lets_it_go_on(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        ledger.count("skipped: no user namespaces", 1)
        pytest.skip("user namespaces are off, so no small file system can be made")
    (tmp_path / "small").mkdir()
    (tmp_path / "m.py").write_text("import os\ndef fill(item):\n    return os.urandom(20_000)\n")
    (tmp_path / "p.yaml").write_text(
        "name: p\nsteps:\n" + "".join(
            f"  - {{type: transform, name: s{i}, function: 'm:fill', params: {{item: {i}}}}}\n" for i in range(60)
        )
    )  # fmt: skip
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", FULL, "sh", str(tmp_path / "small"), sys.executable, str(tmp_path)],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said = (tmp_path / "err").read_text()
    assert done.stdout.split() == ["run", "74", "resume", "0"], done.stdout + done.stderr + said
    assert f"{tmp_path}/small/state" in said
    assert "free some space" in said
    assert "bytes" in said
    assert "Traceback" not in said


# -- F55: damage


def whole_story(folder: StateFolder) -> Any:
    """All that readers and a resume get out of a journal."""
    with History.open(folder) as past:
        runs = past.runs()
        told = [(run, list(past.steps(run.run_id)), list(past.outputs(run.run_id))) for run in runs]
    results = Results.read(folder, "night")
    try:
        refs = [results.outputs(good.id) for by_item in results.good.values() for good in by_item.values()]
        chunks = [list(results.chunks_of(i)) for by in results.chunks.values() for ids in by.values() for i in ids]
        return told, results.prints, results.good, results.blocks, results.ended, results.attempts, refs, chunks
    finally:
        results.close()


@pytest.fixture(scope="module")
def journal(driver: Driver, memory: Path) -> tuple[StateFolder, bytes, Any]:
    """A folder with the journal of one run that was killed before its end and closed cleanly since, and what it tells."""
    places = Places(driver, memory / "journal")
    assert places.session(failpoints="journal.commit.full=raise:OSError:EIO@12")["code"] == 74
    folder = StateFolder(places.state)
    Store.open(folder).close()
    return folder, folder.db.read_bytes(), whole_story(folder)


def look(folder: StateFolder, whole: bytes, broken: bytes, right: Any) -> bool:
    """Whether a damaged journal is refused; where it is not, it tells all that was written and nothing else."""
    for side in ("-wal", "-shm"):
        folder.db.with_name(folder.db.name + side).unlink(missing_ok=True)
    folder.db.write_bytes(broken)
    told: Any = None
    try:
        # In the order in which a resume does it.
        told = whole_story(folder)
        Store.open(folder).close()
    except StoreError as error:
        told = error
    finally:
        folder.db.write_bytes(whole)
    if isinstance(told, StoreError):
        assert str(folder.db) in str(told)
        return True
    assert told == right, "a damaged journal was believed"
    return False


def test_a_flipped_bit_anywhere_in_the_journal_is_refused_or_changes_nothing(
    journal: tuple[StateFolder, bytes, Any],
) -> None:
    folder, whole, right = journal
    chance = random.Random(SEED)
    refused = 0
    for _ in range(FLIPS):
        at, bit = chance.randrange(len(whole)), chance.randrange(8)
        broken = bytearray(whole)
        broken[at] ^= 1 << bit
        try:
            refused += look(folder, whole, bytes(broken), right)
        except Exception as error:
            raise AssertionError(
                f"PROCFLOW_SEED={SEED}: bit {bit} of byte {at}: {type(error).__name__}: {error}"
            ) from error
    assert refused > FLIPS // 20


def test_overwritten_sectors_are_refused_or_change_nothing(journal: tuple[StateFolder, bytes, Any]) -> None:
    folder, whole, right = journal
    chance = random.Random(SEED)
    refused = 0
    for _ in range(40):
        at = chance.randrange(0, len(whole), 512)
        broken = whole[:at] + chance.choice((bytes(512), chance.randbytes(512))) + whole[at + 512 :]
        refused += look(folder, whole, broken, right)
    assert refused > 10


def test_a_journal_that_was_cut_off_anywhere_is_refused(journal: tuple[StateFolder, bytes, Any]) -> None:
    folder, whole, right = journal
    chance = random.Random(SEED)
    for size in [0, 1, 99, 4096, len(whole) - 4096, len(whole) - 1, *chance.sample(range(len(whole)), 44)]:
        assert look(folder, whole, whole[:size], right), f"cut at {size}"


# -- F56: side files


@pytest.fixture
def killed(driver: Driver, memory: Path, request: pytest.FixtureRequest) -> StateFolder:
    """A folder whose run was killed with its newest commits in the log only."""
    places = Places(driver, memory / request.node.name)
    names = {name: str(places.folder / name) for name in ("state", "ledger", "said", "answer")}
    status, _ = driver.session(Order(**names, eager=True, shape=SHAPE, failpoints="engine.announce=kill@12"))
    assert status == -signal.SIGKILL
    assert (places.state / "procflow.db-wal").stat().st_size > 0
    return StateFolder(places.state)


def test_a_log_that_was_removed_is_noticed(killed: StateFolder) -> None:
    killed.db.with_name("procflow.db-wal").unlink()
    for open_it in (History.open, Store.open, lambda f: Results.read(f, "night")):
        with pytest.raises(StoreError, match=r"commits that were made are missing .*procflow\.db-wal was removed"):
            open_it(killed)


def test_an_old_copy_that_was_put_back_is_noticed(killed: StateFolder, driver: Driver) -> None:
    old = killed.db.read_bytes(), killed.db.with_name("procflow.db-wal").read_bytes()
    names = {name: str(killed.path.parent / name) for name in ("state", "ledger", "said", "answer")}
    status, answer = driver.session(Order(**names, resume=True, shape=SHAPE))
    assert (status, answer["status"]) == (0, "succeeded")
    killed.db.write_bytes(old[0])
    killed.db.with_name("procflow.db-wal").write_bytes(old[1])
    with pytest.raises(StoreError, match="an old copy was put back"):
        Store.open(killed)


def test_an_old_copy_is_taken_once_it_is_recovered_as_the_message_says(killed: StateFolder) -> None:
    killed.db.with_name("procflow.db-wal").unlink()
    with pytest.raises(StoreError) as told:
        Store.open(killed)
    assert str(told.value).endswith(f"procflow recover --state-dir {killed.path}")
    assert "commits are missing" in " ".join(recover(killed).damage)
    Store.open(killed).close()


def test_a_copy_of_the_whole_folder_is_as_good_as_the_folder(killed: StateFolder, tmp_path: Path) -> None:
    shutil.copytree(killed.path, tmp_path / "copy")
    copy = StateFolder.open(tmp_path / "copy")
    with History.open(killed) as there, History.open(copy) as here:
        assert [s.id for s in here.steps("night")] == [s.id for s in there.steps("night")] != []
    Store.open(copy).close()


@pytest.mark.parametrize("torn", [b"", b"\0" * 51, b"%020d %020d 00000000\n" % (1, 10**9), b"rubbish"])
def test_a_torn_mark_is_no_harm(killed: StateFolder, torn: bytes) -> None:
    killed.db.with_name("procflow.mark").write_bytes(torn)
    Store.open(killed).close()


# -- F58: other versions


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 1, 0])
def test_a_journal_of_another_version_is_refused_and_kept(killed: StateFolder, version: int) -> None:
    with contextlib.closing(sqlite3.connect(killed.db)) as db:
        db.execute(f"PRAGMA user_version={version}")
    before = killed.db.read_bytes()
    for open_it in (History.open, Store.open):
        with pytest.raises(StoreError, match=rf"journal version {version}.*name another folder with --state-dir"):
            open_it(killed)
    assert killed.db.read_bytes() == before


def as_version_3(db: sqlite3.Connection) -> None:
    """Make of the journal what the version with a row for each fingerprint and a table of results wrote."""
    install(db)
    runs = {run_id: list(read_prints(db, run_id)) for (run_id,) in db.execute("SELECT run_id FROM runs")}
    db.execute("DROP TABLE fingerprints")
    db.execute(
        "CREATE TABLE fingerprints (run_id TEXT NOT NULL, label TEXT NOT NULL, role TEXT NOT NULL, path TEXT NOT NULL,"
        " digest TEXT NOT NULL, parts TEXT NOT NULL, since INTEGER NOT NULL, seal INTEGER, PRIMARY KEY (run_id, label, role))"
    )
    for run_id, prints in runs.items():
        told = [(*print_, parts | {f"code: {n}": p for n, p in pieces.items()}) for *print_, parts, pieces in prints]
        rows = [
            (run_id, label, role, "0", digest, json.dumps(parts), since) for label, role, digest, since, parts in told
        ]
        db.executemany("INSERT INTO fingerprints VALUES (?,?,?,?,?,?,?,?)", sealed(rows))
    db.execute(
        "CREATE TABLE outputs (execution_id INTEGER NOT NULL, name TEXT NOT NULL, run_id TEXT NOT NULL,"
        " path TEXT NOT NULL, item TEXT NOT NULL, ref BLOB NOT NULL, seal INTEGER, PRIMARY KEY (execution_id, name))"
    )
    sql = "SELECT output_ref, refs, id, run_id, path, item FROM step_executions WHERE refs IS NOT NULL ORDER BY id"
    for names, refs, row_id, *place in db.execute(sql).fetchall():
        for name, ref in decode_refs(names, refs).items():
            db.execute("INSERT INTO outputs VALUES (?,?,?,?,?,?,NULL)", (row_id, name, *place, encode_ref(ref)))
    db.execute("ALTER TABLE step_executions DROP COLUMN refs")
    for table in ("step_executions", "outputs"):
        reseal(db, table, "1", ())
    db.execute("PRAGMA user_version=3")
    db.commit()


def as_version_2(db: sqlite3.Connection) -> None:
    """Make of the journal what the version before seals and marks wrote."""
    as_version_3(db)
    db.execute("ALTER TABLE runs DROP COLUMN commits")
    for table in (*TABLES, "outputs"):
        db.execute(f"ALTER TABLE {table} DROP COLUMN seal")
    db.execute("PRAGMA user_version=2")


def known_prints(folder: StateFolder) -> Any:
    results = Results.read(folder, "night")
    results.close()
    return results.prints


def told(folder: StateFolder) -> tuple[list[StepRow], list[OutputRow]]:
    with History.open(folder) as past:
        return list(past.steps("night")), list(past.outputs("night"))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("first", [History.open, Store.open], ids=["reader", "writer"])
def test_a_journal_of_an_older_version_is_brought_up_to_date_and_kept_as_it_was(
    killed: StateFolder, driver: Driver, first: Any, version: int
) -> None:
    prints = known_prints(killed)
    before = steps, outputs = told(killed)
    assert outputs
    with contextlib.closing(sqlite3.connect(killed.db)) as db:
        {2: as_version_2, 3: as_version_3}[version](db)
    if version == 2:
        killed.db.with_name("procflow.mark").unlink()
    first(killed).close()
    assert told(killed) == before
    assert known_prints(killed) == prints
    (copy,) = killed.path.glob(f"procflow.db.version{version}-*")
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
        assert db.execute("SELECT count(*) FROM step_executions").fetchone() == (len(steps),)
        assert db.execute("SELECT count(*) FROM outputs").fetchone() == (len(outputs),)
    names = {name: str(killed.path.parent / name) for name in ("state", "ledger", "said", "answer")}
    status, answer = driver.session(Order(**names, resume=True, shape=SHAPE))
    assert (status, answer["status"]) == (0, "succeeded")


def test_a_migration_makes_no_damage_look_whole(killed: StateFolder) -> None:
    prints = known_prints(killed)
    key = next(iter(prints))
    with contextlib.closing(sqlite3.connect(killed.db)) as db:
        as_version_3(db)
        db.execute("UPDATE fingerprints SET digest = digest || 'x' WHERE label = ? AND role = ?", key)
        db.commit()
    Store.open(killed).close()
    assert known_prints(killed) == {other: known for other, known in prints.items() if other != key}
    next(killed.path.glob("procflow.db.version3-*")).unlink()
    with contextlib.closing(sqlite3.connect(killed.db)) as db:
        as_version_3(db)
        db.execute("UPDATE step_executions SET path = path || 'x' WHERE label <> ''")
        db.commit()
    Store.open(killed).close()
    with pytest.raises(StoreError, match="rows of run night in step_executions: the checksum is wrong"):
        known_prints(killed)


def test_a_migration_that_fails_changes_nothing(killed: StateFolder) -> None:
    with contextlib.closing(sqlite3.connect(killed.db)) as db:
        db.execute("PRAGMA user_version=2")
        rows = db.execute("SELECT * FROM step_executions").fetchall()
    with pytest.raises(StoreError, match="journal version 2 can't be brought up to date: duplicate column"):
        Store.open(killed)
    with contextlib.closing(sqlite3.connect(killed.db)) as db:
        assert db.execute("SELECT * FROM step_executions").fetchall() == rows
    assert list(killed.path.glob("procflow.db.version2-*")) == []


def of_tables(db: sqlite3.Connection) -> list[tuple[str, int]]:
    sql = "SELECT name, rootpage FROM sqlite_master WHERE tbl_name NOT IN ('learned', 'sqlite_sequence')"
    return sorted(db.execute(sql).fetchall())


def test_tables_lie_then_where_those_of_a_new_journal_do(killed: StateFolder, tmp_path: Path) -> None:
    """Where the beginning of a journal is lost, recovery looks for its tables there."""
    with contextlib.closing(sqlite3.connect(killed.db)) as db:
        as_version_3(db)
    Store.open(killed).close()
    new = StateFolder.open(tmp_path / "new")
    Store.open(new).close()
    with contextlib.closing(sqlite3.connect(killed.db)) as db, contextlib.closing(sqlite3.connect(new.db)) as other:
        assert of_tables(db) == of_tables(other)


DAMAGE = {
    "a result that is gone": "DELETE FROM outputs WHERE rowid = 3",
    "a result of another name": "UPDATE outputs SET name = 'other' WHERE rowid = 3",
    "bits in a row": "UPDATE step_executions SET cost = 7 WHERE id = (SELECT execution_id FROM outputs WHERE rowid = 3)",
}


@pytest.mark.parametrize("first", [Store.open, recover], ids=["migrated", "recovered"])
@pytest.mark.parametrize("sql", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_is_damaged_in_an_older_journal_is_so_afterwards_and_costs_one_result(
    killed: StateFolder, sql: str, first: Any
) -> None:
    steps, outputs = told(killed)
    with contextlib.closing(sqlite3.connect(killed.db)) as db, db:
        as_version_3(db)
        assert db.execute(sql).rowcount == 1
    if first is Store.open:
        Store.open(killed).close()
        with pytest.raises(StoreError, match="rows of run night in step_executions: the checksum is wrong"):
            known_prints(killed)
    (run,) = recover(killed).runs
    assert run.lost == 1
    Store.open(killed).close()
    left_steps, left = told(killed)
    assert left == [output for n, output in enumerate(outputs) if n != 2]
    assert len(left_steps) == len(steps) - 1
    known_prints(killed)


def test_an_older_journal_that_is_whole_is_so_for_recovery(killed: StateFolder) -> None:
    with contextlib.closing(sqlite3.connect(killed.db)) as db:
        as_version_3(db)
    found = recover(killed)
    assert (found.damage, found.aside) == ([], None)
    assert {run.lost for run in found.runs} == {0}


def test_an_older_journal_that_can_not_be_read_is_left_to_the_procflow_that_wrote_it(killed: StateFolder) -> None:
    with contextlib.closing(sqlite3.connect(killed.db)) as db, db:
        as_version_3(db)
        db.execute("ALTER TABLE outputs RENAME COLUMN ref TO rof")
    with pytest.raises(
        StoreError, match=r"journal version 3 can't be brought up to date, .*the procflow that wrote it"
    ):
        recover(killed)


# -- F59: network file systems


def test_readers_finish_what_a_kill_on_a_network_file_system_left_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the journal has a rollback journal; a kill inside a commit leaves it, and readers see the commit undone."""
    monkeypatch.setattr(store_module, "is_network_mount", lambda path: True)
    folder = StateFolder.open(tmp_path / "state")
    with disk.Disk().installed() as remembers:
        night.session(str(folder.path), "night", False, _Announced(), 0.1)
    opened = 0
    image = tmp_path / "image"
    at = StateFolder.open(image)
    at.writer_lock.touch(0o600)
    for _, files in disk.after_kill(remembers.ops):
        if str(folder.db) in files:
            disk.lay_down(files, folder.path, image)
            with History.open(at) as past:
                assert [run.run_id for run in past.runs()] in ([], ["night"])
            opened += 1
    assert opened > 50


# -- F60: folders that can't be written, or are somebody else's


def procflow(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "procflow", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FAULT_TOKEN": str(cwd)},
    )  # fmt: skip


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "m.py").write_text("def f():\n    open('ran', 'w').close()\n")
    (tmp_path / "p.yaml").write_text("name: p\nsteps: [{type: transform, name: a, function: 'm:f'}]\n")
    return tmp_path


def test_a_folder_of_somebody_else_is_refused_before_the_first_step(pipeline: Path) -> None:
    if os.geteuid() != 0:
        ledger.count("skipped: not root", 1)
        pytest.skip("only root can give a folder away")
    state = pipeline / ".procflow"
    state.mkdir(mode=0o700)
    os.chown(state, 12345, 12345)
    done = procflow("run", "p.yaml", cwd=pipeline)
    assert done.returncode == 74
    assert f"{state}: belongs to user 12345" in done.stderr
    assert not (pipeline / "ran").exists()
    for command in ("plan", "validate"):
        assert procflow(command, "p.yaml", cwd=pipeline).returncode == 0, command


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 99
cd "$1"
for command in run plan validate history; do
    case $command in history) set -- "$1" "$2" ;; esac
    if [ $command = history ]; then "$2" -m procflow history; else "$2" -m procflow $command p.yaml; fi >&2
    echo "$command $?"
done
"""


@pytest.mark.parametrize("ran_before", [False, True], ids=["fresh", "with a journal"])
def test_on_a_read_only_file_system_only_looking_works(pipeline: Path, ran_before: bool) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        ledger.count("skipped: no user namespaces", 1)
        pytest.skip("user namespaces are off, so nothing can be mounted read-only")
    if ran_before:
        assert procflow("run", "p.yaml", cwd=pipeline).returncode == 0
        (pipeline / "ran").unlink()
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", READ_ONLY, "sh", str(pipeline), sys.executable],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    codes = dict(line.split() for line in done.stdout.splitlines())
    assert codes == {"run": "74", "plan": "0", "validate": "0", "history": "0" if ran_before else "74"}, done.stderr
    assert f"{pipeline}/.procflow" in done.stderr
    assert not (pipeline / "ran").exists()


# -- F61: a folder that goes away


def test_a_state_folder_that_is_removed_stops_the_run_and_is_not_made_anew(pipeline: Path) -> None:
    (pipeline / "m.py").write_text(
        "import os, shutil, time\n"
        "def remove():\n"
        "    while os.path.exists('.procflow'):\n"
        "        shutil.rmtree('.procflow', ignore_errors=True)\n"
        "def late():\n    open('late', 'w').close()\n"
        "def busy():\n    print('x' * 10_000, flush=True)\n    time.sleep(30)\n"
    )
    (pipeline / "p.yaml").write_text(
        "name: p\nsteps:\n"
        "  - {type: parallel, name: both, steps: [{type: transform, name: a, function: 'm:remove'}, "
        "{type: transform, name: b, function: 'm:busy'}]}\n"
        "  - {type: transform, name: c, function: 'm:late'}\n"
    )
    done = procflow("run", "p.yaml", "-j", "2", cwd=pipeline)
    assert done.returncode == 74, done.stderr
    assert "removed while the run was going on" in done.stderr
    assert not (pipeline / ".procflow").exists()
    assert not (pipeline / "late").exists()
    ledger.check_no_orphans(f"FAULT_TOKEN={pipeline}")
