"""The journal's database: its tables, its version, and how a connection to it is opened and its errors are told.

This file owns the SQL text of the tables and the checks at open. A damaged, foreign or newer database is refused with its
path and is never changed, moved or deleted; an older one is migrated where that can be. It never writes rows.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from procflow.errors import StoreError
from procflow.storing import store_mark, store_migrate, store_prints, store_seal
from procflow.storing.own_files import open_own
from procflow.storing.state_folder import is_network_mount, try_flock

__all__ = ["COLUMNS", "SCHEMA_VERSION", "UNREADABLE", "connect_reader", "connect_writer", "create_database", "told"]

log = logging.getLogger("procflow")

SCHEMA_VERSION = 4
APPLICATION_ID = 0x70726366  # "prcf"
BUSY_MS = 10_000
UNREADABLE = (sqlite3.Error, UnicodeDecodeError)
"""What reading a journal may raise: SQLite's errors, and texts of a damaged one that Python can't decode."""
DAMAGED = ("not a database", "malformed", "corrupt", "could not decode", "user-defined function raised")
"""What SQLite says of a damaged one, or Python of texts in it; the one function of ours there makes seals."""
# A larger journal is not read through at every start; SQLite still checks each page that it uses.
CHECKED_BYTES = 8 << 20

_STEP_COLUMNS: tuple[tuple[str, str], ...] = (
    ("id", "INTEGER PRIMARY KEY"),  # runs.seq * 2**32 + n, so the rows of a run lie together and need no index
    ("run_id", "TEXT NOT NULL"),
    ("key", "INTEGER"),  # the attempt's key in its run; NULL for blocks and for rows without an attempt
    ("path", "TEXT NOT NULL"),
    ("label", "TEXT NOT NULL"),
    ("name", "TEXT NOT NULL"),
    ("item", "TEXT NOT NULL"),
    ("attempt", "INTEGER NOT NULL"),  # from 1; 0 where the step never started
    # task, item (a failed item of a batch), kept (done before this session), copied (from another run), or a block's kind
    ("kind", "TEXT NOT NULL"),
    ("role", "TEXT"),  # member, gate, expand, merger, batch; NULL for blocks
    ("status", "TEXT NOT NULL"),  # running, succeeded, skipped, failed, lost, cancelled
    ("cause", "TEXT"),
    ("reason", "TEXT"),
    ("message", "TEXT"),
    ("parent_step_id", "TEXT"),  # path of the enclosing block; NULL at the top
    ("branch_name", "TEXT"),  # member of the nearest parallel block
    ("join_policy", "TEXT"),  # of the block itself, or of the parallel block that the branch belongs to
    ("executor", "TEXT"),
    ("started", "REAL"),  # seconds since the run began
    ("ended", "REAL"),
    ("wall_s", "REAL"),
    ("cpu_s", "REAL"),
    ("peak_rss_bytes", "INTEGER"),
    ("cost", "REAL"),
    ("count", "INTEGER"),  # items finished; successful members for a block
    ("output_ref", "TEXT"),  # names published, with commas between
    # from the run's folder, as log_path says it (NULL: of an attempt that succeeded); it exists only where something was written
    ("log", "TEXT"),
    ("failure", "TEXT"),  # JSON: type, message, traceback, user_place, kinds, signal, exit_code, peak_rss_bytes
    ("tolerated", "INTEGER"),
    ("retry_in_s", "REAL"),  # pause before the next attempt; NULL where none follows
    ("members", "INTEGER"),  # these four only for blocks
    ("failed_count", "INTEGER"),
    ("work_s", "REAL"),
    ("saved_s", "REAL"),
    ("seal", "INTEGER"),
    # What output_ref names, as encode_refs says it. Last, so that no other value of a row lies behind a long one.
    ("refs", "BLOB"),
)
COLUMNS = tuple(name for name, _ in _STEP_COLUMNS if name != "seal")
"""The columns of ``step_executions``, in the order of a row that is not sealed yet."""

_TABLES = (
    """CREATE TABLE runs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL UNIQUE,
        pipeline TEXT NOT NULL,
        file TEXT,
        lock TEXT,
        params TEXT NOT NULL,
        options TEXT NOT NULL DEFAULT '{}',
        earlier TEXT,
        executor TEXT NOT NULL,
        workers INTEGER NOT NULL,
        status TEXT NOT NULL,
        reason TEXT,
        started TEXT NOT NULL,
        ended TEXT,
        exit_code INTEGER,
        pid INTEGER NOT NULL,
        host TEXT NOT NULL,
        procflow_version TEXT NOT NULL,
        python_version TEXT NOT NULL,
        sessions INTEGER NOT NULL DEFAULT 1,
        steps INTEGER,
        succeeded INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0,
        lost INTEGER NOT NULL DEFAULT 0,
        skipped INTEGER NOT NULL DEFAULT 0,
        cancelled INTEGER NOT NULL DEFAULT 0,
        failures INTEGER,
        tolerated INTEGER,
        wall_s REAL,
        work_s REAL,
        commits INTEGER NOT NULL DEFAULT 0,
        seal INTEGER
    )""",
    "CREATE TABLE step_executions (" + ", ".join(f"{name} {kind}" for name, kind in _STEP_COLUMNS) + ")",
    """CREATE TABLE pages (
        execution_id INTEGER NOT NULL,
        position INTEGER NOT NULL,
        run_id TEXT NOT NULL,
        count INTEGER NOT NULL,
        ref BLOB NOT NULL,
        seal INTEGER,
        PRIMARY KEY (execution_id, position)
    )""",
    # Values of a map's items. A running batch reports several times; no two chunks of an attempt begin with one item.
    """CREATE TABLE chunks (
        execution_id INTEGER NOT NULL,
        first INTEGER NOT NULL,
        run_id TEXT NOT NULL,
        indices TEXT NOT NULL,
        ref BLOB NOT NULL,
        seal INTEGER,
        PRIMARY KEY (execution_id, first)
    )""",
    """CREATE TABLE sessions (
        run_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        first_id INTEGER NOT NULL,
        started TEXT NOT NULL,
        pid INTEGER NOT NULL,
        procflow_version TEXT NOT NULL,
        python_version TEXT NOT NULL,
        ended TEXT,
        seal INTEGER,
        PRIMARY KEY (run_id, number)
    )""",
    """CREATE TABLE metrics (
        execution_id INTEGER NOT NULL,
        name TEXT NOT NULL,
        run_id TEXT NOT NULL,
        value REAL,
        seal INTEGER,
        PRIMARY KEY (execution_id, name)
    )""",
    # Last, as a migration makes it anew: recovery may look for tables where those of a new journal lie.
    store_prints.TABLE,
)


def told(path: Path, error: Exception, doing: str) -> StoreError:
    """The StoreError for what SQLite or the system said, with the path and what to do."""
    cause = str(error)
    low = cause.lower()
    hint = ""
    if "full" in low or "no space" in low or "quota" in low:
        hint = f"the disk is full{_free(path)}; free some space, then resume: what was recorded before is safe"
    elif isinstance(error, UnicodeDecodeError) or any(word in low for word in DAMAGED):
        hint = f"the journal is damaged; it was left as it is: {store_seal.way_out(path)}"
    elif "locked" in low or "busy" in low:
        hint = "another process kept it locked; is a run stopped, or a copy in progress?"
    elif "readonly" in low or "read-only" in low:
        hint = "make it writable, or name another folder with --state-dir"
    elif "unable to open" in low or "disk i/o" in low or "input/output" in low:
        hint = "was the state folder removed, or does its disk fail? What was recorded before is safe if it comes back"
    return StoreError(f"{path}: {doing}: {cause}" + (f" ({hint})" if hint else ""))


def _free(path: Path) -> str:
    """``: 12288 bytes are free on /var``, as far as that can be told."""
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return ""
    return f": {found.f_bavail * found.f_frsize} bytes and {found.f_favail} files are free below {path.parent}"


def connect_writer(path: Path, network: bool) -> sqlite3.Connection:
    """The one writing connection: WAL with full syncs, or a rollback journal on a network file system.

    The caller holds the writer lock. StoreError for a damaged, foreign or newer database.
    """
    mark = store_mark.read(path)
    try:
        db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_MS / 1000)
    except sqlite3.Error as error:
        raise told(path, error, "can't be opened") from error
    try:
        older = _check_header(db, path)
        if older is not None:
            log.warning("%s: brought up to date; it is kept as it was in %s", path, _migrated(db, path, older))
        db.execute(f"PRAGMA journal_mode={'TRUNCATE' if network else 'WAL'}").fetchone()
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA wal_autocheckpoint=2000")
        _check_pages(db, path)
        store_mark.check(db, path, mark)
    except UNREADABLE as error:
        db.close()
        raise told(path, error, "can't be opened") from error
    except StoreError:
        db.close()
        raise
    return db


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that can't write or checkpoint, and never makes the writer wait (in WAL mode).

    Three things that SQLite needs to write for are done here: a commit that a kill left half done (on network file
    systems) is undone, a journal of an older version is brought up to date, and on a file system that can't be written
    a journal that nobody writes is read as it is.
    """
    mark = store_mark.read(path)
    try:
        if path.stat().st_size == 0:
            raise _truncated(path)
        try:
            found = _reader(path, mark, "")
            if found is None:
                _as_writer(path, lambda: connect_writer(path, is_network_mount(path.parent)).close())
                found = _reader(path, mark, "")
            if found is None:
                raise StoreError(
                    f"{path}: is of an older version, and another process keeps it from being brought up to date"
                )
            return found
        except sqlite3.OperationalError:
            if _size(path, "-journal"):
                _as_writer(path, lambda: _undo_half_a_commit(path))
                found = _reader(path, mark, "")
            elif _size(path, "-wal") is None and not os.access(path.parent, os.W_OK):
                found = _reader(path, mark, "&immutable=1")
            else:
                raise
            if found is None:
                raise
            return found
    except (*UNREADABLE, OSError) as error:
        raise told(path, error, "can't be read") from error


def _reader(path: Path, mark: tuple[int, int] | None, options: str) -> sqlite3.Connection | None:
    """None for a journal of an older version that can be migrated."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro{options}", uri=True, isolation_level=None, timeout=2.0)
    try:
        db.execute("PRAGMA query_only=1")
        if _check_header(db, path) is not None:
            db.close()
            return None
        store_mark.check(db, path, mark)
    except BaseException:
        db.close()
        raise
    return db


def _as_writer(path: Path, do: Callable[[], None]) -> None:
    """Do what only a writer may, unless there is one."""
    fd = open_own(path.with_name("writer.lock"), os.O_RDWR | os.O_CREAT)
    try:
        if try_flock(fd, fcntl.LOCK_EX):
            do()
    finally:
        os.close(fd)


def _undo_half_a_commit(path: Path) -> None:
    """SQLite does it at the first look of a connection that may write; the writer is dead."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=2.0)
    with contextlib.closing(db):
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _migrated(db: sqlite3.Connection, path: Path, version: int) -> Path:
    try:
        return store_migrate.migrate(db, path, version, SCHEMA_VERSION)
    except (sqlite3.Error, OSError) as error:
        raise told(path, error, f"journal version {version} can't be brought up to date") from error


def create_database(path: Path, network: bool) -> None:
    """Make the database where there is none, whole or not at all; the caller holds the writer lock.

    It is built beside its place and renamed, so an empty file in its place is damage and never a beginning.
    """
    if path.exists():
        if path.stat().st_size == 0:
            raise _truncated(path)
        return
    if path.with_name(path.name + ".recovered").exists():
        raise StoreError(
            f"{path}: is missing: a recovery was interrupted; procflow recover --state-dir {path.parent} ends it"
        )
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            for table in _TABLES:
                db.execute(table)
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            db.execute("COMMIT")
            if not network:
                # Here, since the change in place would for an instant leave what readers can't open.
                db.execute("PRAGMA journal_mode=WAL").fetchone()
        # Side files of a database that was removed would be read into the new one, or speak against it.
        for suffix in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        store_mark.path_of(path).unlink(missing_ok=True)
        os.replace(new, path)
        _sync_folder(path.parent)
    except (sqlite3.Error, OSError) as error:
        raise told(path, error, "can't be made") from error


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _truncated(path: Path) -> StoreError:
    return StoreError(f"{path}: is empty, so the journal was cut off; it was left as it is: {store_seal.way_out(path)}")


def _check_header(db: sqlite3.Connection, path: Path) -> int | None:
    """The journal's version where it is an older one that can be migrated."""
    store_seal.install(db)
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise StoreError(f"{path}: is not a procflow journal; move it away, or name another folder with --state-dir")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path}: was written by a newer procflow (journal version {version}, this one knows {SCHEMA_VERSION}); "
            "upgrade procflow, or name another folder with --state-dir"
        )
    if version == SCHEMA_VERSION:
        return None
    if not store_migrate.can_migrate(version, SCHEMA_VERSION):
        raise StoreError(
            f"{path}: journal version {version} is not one that this procflow can read; "
            "move it away to start a new one, or name another folder with --state-dir"
        )
    return int(version)


def _check_pages(db: sqlite3.Connection, path: Path) -> None:
    """Whole pages, and in a journal that is not too large their structure; SQLite misses whole pages that are gone."""
    size = path.stat().st_size
    # A page may be half written where power failed during a checkpoint; then the log still has it.
    if size % db.execute("PRAGMA page_size").fetchone()[0] and not _size(path, "-wal"):
        raise StoreError(f"{path}: the journal was cut off; it was left as it is: {store_seal.way_out(path)}")
    if size > CHECKED_BYTES:
        return
    found = db.execute("PRAGMA integrity_check(3)").fetchall()
    if found != [("ok",)]:
        said = "; ".join(str(row[0]) for row in found)
        raise StoreError(f"{path}: the journal is damaged ({said}); it was left as it is: {store_seal.way_out(path)}")


def _size(path: Path, suffix: str) -> int | None:
    """Bytes of a side file; None where it is not there."""
    try:
        return path.with_name(path.name + suffix).stat().st_size
    except OSError:
        return None
