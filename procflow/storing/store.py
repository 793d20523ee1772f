"""The store: the journal of runs, written by the parent alone.

``record`` only buffers; ``commit`` writes all that is buffered in one transaction, which is durable when it returns
(WAL, ``synchronous=FULL``). The engine announces nothing before its commit returned. After a commit that failed, the
buffer is whole: calling ``commit`` again is safe, and nothing that was committed before is touched. ``StepProgress``
is not journalled.

Two pipelines of one folder may run at once, so every transaction holds the folder's writer lock: at any instant at most one
connection writes or checkpoints. This file owns the writing side; ``history.py`` reads. It never unpickles a value.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator

from procflow.errors import StoreError
from procflow.failpoints import fp
from procflow.storing import cleaning, store_begin, store_learned, store_mark
from procflow.storing.journal import Buffer, Journal, MemoryStore, NullStore
from procflow.storing.own_files import open_own
from procflow.storing.state_folder import StateFolder, is_network_mount, try_flock
from procflow.storing.store_begin import ID_BITS, RunRecord, Taken, utc_now
from procflow.storing.store_many import insert_many
from procflow.storing.store_plain import INSERT_PLAIN, INSERT_PLAINS, insert
from procflow.storing.store_rows import Rows
from procflow.storing.store_schema import COLUMNS, connect_writer, create_database, told
from procflow.storing.store_seal import reseal, sealed
from procflow.storing.store_tail import Tail, read_tail, remove, tail_path, tails

__all__ = ["ID_BITS", "Journal", "MemoryStore", "NullStore", "RunRecord", "Store", "Taken", "utc_now"]

LOCK_WAIT_S = 30.0

_INSERT_FULL = insert(COLUMNS)
_INSERT_PAGE = "INSERT OR REPLACE INTO pages VALUES (?,?,?,?,?,?)"
_INSERT_CHUNK = "INSERT OR REPLACE INTO chunks VALUES (?,?,?,?,?,?)"
_INSERT_METRIC = "INSERT OR REPLACE INTO metrics VALUES (?,?,?,?,?)"
_UPDATE_RUN = """
UPDATE runs SET steps = coalesce(:steps, steps), status = coalesce(:status, status), reason = coalesce(:reason, reason),
    ended = coalesce(:ended, ended), exit_code = coalesce(:exit_code, exit_code), failures = coalesce(:failures, failures),
    tolerated = coalesce(:tolerated, tolerated), wall_s = coalesce(:wall_s, wall_s), work_s = coalesce(:work_s, work_s),
    succeeded = :succeeded, failed = :failed, lost = :lost, skipped = :skipped, cancelled = :cancelled,
    commits = :commits
WHERE seq = :seq
"""
_SESSION = "(run_id, number) = (SELECT run_id, sessions FROM runs WHERE seq = ?)"
_UPDATED = ("steps", "status", "reason", "ended", "exit_code", "failures", "tolerated", "wall_s", "work_s")


class Store(Buffer):
    """The journal in ``procflow.db``; make one with ``Store.open``. One thread, one process, one run at a time."""

    def __init__(
        self, folder: StateFolder, db: sqlite3.Connection, lock_fd: int, mark_fd: int, clock: Callable[[], float]
    ) -> None:
        super().__init__(clock)
        self._folder = folder
        self._db: sqlite3.Connection | None = db
        self._lock_fd, self._mark_fd = lock_fd, mark_fd
        found = folder.db.stat()
        self._identity = (found.st_dev, found.st_ino)
        self._seq = self._commits = 0
        self._made_of = ""
        # Whether the transaction that is open counts as a commit of the run, which goes to the mark.
        self._counts = False
        self._tail: Tail | None = None

    @classmethod
    def open(cls, folder: StateFolder, clock: Callable[[], float] = time.monotonic) -> Store:
        """Open the folder's journal for writing, making it where there is none.

        StoreError where it is damaged (it is left as it is), of a newer procflow, not writable, or locked for too long.
        """
        try:
            fd = open_own(folder.writer_lock, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise told(folder.writer_lock, error, "can't be opened") from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            with _writer_lock(fd, folder):
                fp("journal.open.before")
                network = is_network_mount(folder.path)
                create_database(folder.db, network)
                db = connect_writer(folder.db, network)
                undo.callback(db.close)
            fp("journal.open.after")
            try:
                mark_fd = store_mark.open_mark(folder.db)
            except OSError as error:
                raise told(store_mark.path_of(folder.db), error, "can't be opened") from error
            undo.callback(os.close, mark_fd)
            opened = cls(folder, db, fd, mark_fd, clock)
            undo.pop_all()
        return opened

    def begin(self, run: RunRecord) -> None:
        """Record a run's beginning; durable when it returns.

        A run id that is there is a run resumed: its rows stay, and what its last session left running becomes
        ``lost``. The same goes for other runs of this lock that never ended: the caller holds that lock, so they are
        dead.
        """
        with self._transaction("the run can't be recorded") as db:
            fp("journal.begin.before")
            self._seq, first, counts = store_begin.begin(db, run, self._folder.db)
            (made,) = db.execute("SELECT commits FROM runs WHERE seq = ?", (self._seq,)).fetchone()
            self._commits, self._counts = made - 1, True
            fp("journal.begin.full")
        fp("journal.begin.after")
        self._made_of = run.made_of
        self._rows = Rows(run.run_id, first)
        self._rows.counts.update(counts)
        try:
            self._tail = Tail(self._folder.path, run.run_id)
        except OSError as error:
            raise told(self._folder.path, error, "the run's tail can't be made") from error

    def recover(self, lock: str | None) -> int:
        """Turn what killed runs of this lock had received and not yet committed into rows; how many results that saved.

        The caller holds the lock, so these runs are dead.
        """
        return sum(self._recover(run_id, lock) for run_id in tails(self._folder.path))

    def _recover(self, run_id: str, lock: str | None) -> int:
        path = tail_path(self._folder.path, run_id)
        with self._transaction("what a killed run had received can't be recorded") as db:
            found = store_begin.unfinished(db, run_id)
            if found is None:
                # It ended, or is forgotten. Under the writer lock: a run that is resumed now makes its tail behind it.
                remove(path)
                return 0
        if found.lock != lock:
            return 0
        saved = 0
        self._seq, self._commits = found.seq, found.commits
        self._rows = Rows(run_id, found.next_id)
        self._rows.counts.update(found.counts)
        for event in read_tail(path):
            if self._rows.take_up(event, found.attempts.get(event.key)):
                self._pending += 1
                saved += 1
        self.commit()
        self._rows = None
        remove(path)
        return saved

    def note(self) -> None:
        """Make the results recorded so far safe from the death of this process, by one write; the commit comes later."""
        rows, tail = self._rows, self._tail
        if rows is None or not rows.received or tail is None:
            return
        try:
            tail.note(rows.received)
        except OSError as error:
            raise told(tail.path, error, "a result can't be kept") from error
        rows.received = []

    def abandon(self, keep_received: bool = False) -> None:
        """Forget what is buffered, and what was received as well unless that is to be kept for the next session."""
        super().abandon()
        if self._tail is not None and not keep_received:
            self._tail.clear()

    def commit(self) -> None:
        """One transaction with all that is buffered; durable when it returns.

        StoreError names the path and the cause (full disk, I/O, a lock, a folder that is gone) and leaves the buffer whole.
        """
        rows = self._rows
        if rows is None or not self._pending:
            return
        fp("journal.commit.before")
        with self._transaction("what happened can't be recorded") as db:
            fp("journal.commit.begun")
            db.executemany(_INSERT_FULL, sealed(rows.full(), ref=True))
            insert_many(db, INSERT_PLAIN, INSERT_PLAINS, rows.plain)
            fp("journal.commit.steps")
            for sql, batch in (
                (_INSERT_PAGE, rows.pages),
                (_INSERT_CHUNK, rows.chunks),
                (_INSERT_METRIC, rows.metrics),
            ):
                if batch:
                    db.executemany(sql, sealed(batch, ref=batch is not rows.metrics))
            fp("journal.commit.outputs")
            self._update_run(db, rows)
            fp("journal.commit.full")
        fp("journal.commit.after")
        self._committed()
        if self._tail is not None:
            self._tail.clear()

    def forget(self, run_ids: Iterable[str]) -> None:
        """Take runs out of the journal, in one transaction; the caller knows that nobody needs them."""
        run_ids = list(run_ids)
        with self._transaction("the runs can't be removed") as db:
            cleaning.forget(db, run_ids)
        for run_id in run_ids:
            remove(tail_path(self._folder.path, run_id))

    def close(self) -> None:
        """Commit what is left and close; idempotent. StoreError where that commit fails; it is closed all the same."""
        if self._db is None:
            return
        try:
            self.commit()
        finally:
            db, self._db = self._db, None
            if self._tail is not None:
                self._tail.close()
            # Closing the last connection checkpoints, so it takes the writer lock as well.
            try:
                fp("journal.close.before")
                with contextlib.suppress(StoreError), _writer_lock(self._lock_fd, self._folder):
                    db.close()
                fp("journal.close.after")
            finally:
                with contextlib.suppress(sqlite3.Error):
                    db.close()
                os.close(self._lock_fd)
                os.close(self._mark_fd)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _update_run(self, db: sqlite3.Connection, rows: Rows) -> None:
        values = dict.fromkeys(_UPDATED) | rows.run | rows.counts
        if values["status"] is not None:
            values["ended"] = utc_now()
        db.execute(_UPDATE_RUN, values | {"seq": self._seq, "commits": self._commits + 1})
        self._counts = True
        reseal(db, "runs", "seq = ?", (self._seq,))
        if values["status"] is not None:
            db.execute(f"UPDATE sessions SET ended = ? WHERE {_SESSION}", (values["status"], self._seq))
            reseal(db, "sessions", _SESSION, (self._seq,))
            store_learned.write(db, self._seq, self._made_of)

    @contextlib.contextmanager
    def _transaction(self, doing: str) -> Iterator[sqlite3.Connection]:
        """BEGIN IMMEDIATE to COMMIT under the writer lock; rolled back and told as StoreError on any error."""
        db = self._db
        if db is None:
            raise StoreError(f"{self._folder.db}: {doing}: the store is closed")
        try:
            with _writer_lock(self._lock_fd, self._folder):
                self._counts = False
                try:
                    db.execute("BEGIN IMMEDIATE")
                    yield db
                    db.execute("COMMIT")
                    if self._counts:
                        store_mark.write(self._mark_fd, self._seq, self._commits + 1)
                        self._commits += 1
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        db.execute("ROLLBACK")
                    raise
            self._check_place(doing)
        except sqlite3.Error as error:
            raise told(self._folder.db, error, doing) from error
        except (OSError, OverflowError, UnicodeError) as error:
            raise told(self._folder.db, error, doing) from error

    def _check_place(self, doing: str) -> None:
        """Writing to a file that was removed succeeds, so its place is looked at after every commit."""
        try:
            found = self._folder.db.stat()
        except OSError as error:
            raise told(
                self._folder.db, error, f"{doing}: the journal was removed while the run was going on"
            ) from error
        if (found.st_dev, found.st_ino) != self._identity:
            raise StoreError(
                f"{self._folder.db}: {doing}: the journal was replaced by another file while the run was going on"
            )


@contextlib.contextmanager
def _writer_lock(fd: int, folder: StateFolder) -> Iterator[None]:
    """Hold the folder's writer lock; StoreError when another run keeps it for ``LOCK_WAIT_S``."""
    if not try_flock(fd, fcntl.LOCK_EX):
        wait_s, pause_s = LOCK_WAIT_S, 0.0002
        deadline = time.monotonic() + wait_s
        while not try_flock(fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{folder.writer_lock}: another run of this folder has been writing for {wait_s:g} s; is it stopped?"
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.02)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
