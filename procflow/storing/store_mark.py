"""The mark: which commit of the journal was the last, kept beside it, so that a journal that went back is noticed.

SQLite keeps the newest commits in ``procflow.db-wal``. If that file is removed, or an old copy of the database is put
back, what is left looks whole, and a resume would run again what is done. So each commit has a number in the row of its
run, and after it is durable the number goes to ``procflow.mark``. A journal that is behind its mark is refused. The mark
is not synced: after a power loss it may be old or torn, which is no harm, but it is never ahead of the journal.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from pathlib import Path

from procflow.errors import StoreError
from procflow.storing.own_files import open_own

__all__ = ["check", "open_mark", "path_of", "read", "write"]

NAME = "procflow.mark"


def path_of(db: Path) -> Path:
    """The mark of a database."""
    return db.with_name(NAME)


def open_mark(db: Path) -> int:
    """A descriptor to write it with. OSError where that can't be."""
    return open_own(path_of(db), os.O_RDWR | os.O_CREAT)


def write(fd: int, seq: int, commits: int) -> None:
    """The run ``seq`` has made ``commits`` commits, and no other has made one since."""
    body = b"%020d %020d" % (seq, commits)
    os.pwrite(fd, b"%s %08x\n" % (body, zlib.crc32(body)), 0)


def read(db: Path) -> tuple[int, int] | None:
    """The run and its commits; None where there is no mark, or a torn one. To be read before the database is opened."""
    try:
        fd = open_own(path_of(db), os.O_RDONLY)
    except OSError:
        return None
    try:
        body, _, checksum = os.read(fd, 128).rpartition(b" ")
    except OSError:
        return None
    finally:
        os.close(fd)
    try:
        seq, commits = body.split(b" ")
        return (int(seq), int(commits)) if int(checksum, 16) == zlib.crc32(body) else None
    except ValueError:
        return None


def check(db: sqlite3.Connection, path: Path, mark: tuple[int, int] | None) -> None:
    """StoreError where the journal is older than its mark, which was read before."""
    if mark is None:
        return
    seq, commits = mark
    row = db.execute("SELECT commits FROM runs WHERE seq = ?", (seq,)).fetchone()
    if row is None or row[0] < commits:
        here = row[0] if row is not None else 0
        raise StoreError(
            f"{path}: commits that were made are missing (run number {seq} made {commits}, here are {here}): "
            f"its log {path.name}-wal was removed, or an old copy was put back; put back what belongs to it, or, to go "
            f"on with what is there: procflow recover --state-dir {path.parent}"
        )
