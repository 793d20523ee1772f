"""Migration: a journal of an older procflow is brought up to date in place, where the newer one only adds to it.

Each version has the SQL that makes the next one of it. All of it is one transaction, and before it a copy is put beside
the journal, under a name with its version. What a version changed otherwise can't be migrated and is refused by
``store_schema.py``, which calls this under the writer lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import datetime, timezone
from pathlib import Path

from procflow.storing.store_seal import TABLES, reseal

__all__ = ["STEPS", "can_migrate", "migrate"]

STEPS: dict[int, tuple[str, ...]] = {
    2: (
        "ALTER TABLE runs ADD COLUMN commits INTEGER NOT NULL DEFAULT 0",
        *(f"ALTER TABLE {table} ADD COLUMN seal INTEGER" for table in TABLES),
    ),
}
"""What makes version n + 1 of version n. Rows are sealed anew afterwards."""


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
            for sql in STEPS[one]:
                db.execute(sql)
        for table in TABLES:
            reseal(db, table, "1", ())
        db.execute(f"PRAGMA user_version={wanted:d}")
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        copy.unlink(missing_ok=True)
        raise
    return copy
