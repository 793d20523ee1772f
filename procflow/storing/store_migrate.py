"""Migration: a journal of an older procflow is brought up to date in place, where the newer one only adds to it.

Each version has what makes the next one of it. All of it is one transaction, and before it a copy is put beside
the journal, under a name with its version. What a version changed otherwise can't be migrated and is refused by
``store_schema.py``, which calls this under the writer lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from procflow.storing.store_prints import repack
from procflow.storing.store_seal import TABLES, reseal

__all__ = ["STEPS", "can_migrate", "migrate"]


def _seal_all(db: sqlite3.Connection) -> None:
    """Version 2 had no seals."""
    db.execute("ALTER TABLE runs ADD COLUMN commits INTEGER NOT NULL DEFAULT 0")
    for table in TABLES:
        db.execute(f"ALTER TABLE {table} ADD COLUMN seal INTEGER")
        reseal(db, table, "1", ())


STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {2: _seal_all, 3: repack}
"""What makes version n + 1 of version n, in a transaction. A row that has a seal keeps it, or damage would be hidden."""


def can_migrate(version: int, wanted: int) -> bool:
    """Whether every step on the way is known."""
    return version < wanted and all(one in STEPS for one in range(version, wanted))


def migrate(db: sqlite3.Connection, path: Path, version: int, wanted: int) -> Path:
    """Bring the journal to version ``wanted``; where its copy is. Raises sqlite3.Error and OSError, and changes nothing then."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    copy = path.with_name(f"{path.name}.version{version}-{stamp}")
    os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(copy)) as target:
            db.backup(target)
        db.execute("BEGIN IMMEDIATE")
        for one in range(version, wanted):
            STEPS[one](db)
        db.execute(f"PRAGMA user_version={wanted:d}")
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        copy.unlink(missing_ok=True)
        raise
    return copy
