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
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from procflow.errors import StoreError
from procflow.storing.store_prints import repack
from procflow.storing.store_refs import decode_ref, encode_refs
from procflow.storing.store_seal import TABLES, expression, reseal

__all__ = ["OUTPUTS", "STEPS", "can_migrate", "migrate"]

OUTPUTS = "outputs"
"""The table that held, before version 4, a row for each value that an attempt published."""


def _seal_all(db: sqlite3.Connection) -> None:
    """Version 2 had no seals."""
    db.execute("ALTER TABLE runs ADD COLUMN commits INTEGER NOT NULL DEFAULT 0")
    for table in (*TABLES, OUTPUTS):
        db.execute(f"ALTER TABLE {table} ADD COLUMN seal INTEGER")
        reseal(db, table, "1", ())


def _fold(db: sqlite3.Connection) -> None:
    """Version 3 had a row for each fingerprint, and results in a table of their own."""
    repack(db)
    db.execute("ALTER TABLE step_executions ADD COLUMN refs BLOB")
    whole = expression(db, OUTPUTS)
    found = db.execute(
        f"SELECT execution_id, name, ref FROM outputs WHERE seal IS {whole} ORDER BY execution_id, rowid"
    )
    names = f"SELECT output_ref FROM step_executions WHERE id = ? AND seal IS {expression(db, 'step_executions')}"
    for row_id, rows in groupby(found, itemgetter(0)):
        row = db.execute(names, (row_id,)).fetchone()
        refs = _refs(row[0], [(name, ref) for _, name, ref in rows]) if row is not None else None
        db.execute("UPDATE step_executions SET refs = ? WHERE id = ?", (refs, row_id))
    reseal(db, "step_executions", "refs IS NOT NULL", ())
    # Where results are missing or damaged the row has no seal that is right.
    missing = "kind IN ('task', 'copied') AND refs IS NULL AND output_ref <> ''"
    bad = f"SELECT execution_id FROM outputs WHERE seal IS NOT {whole}"
    db.execute(f"UPDATE step_executions SET seal = NULL WHERE ({missing}) OR id IN ({bad})")
    db.execute("DROP TABLE outputs")


def _refs(names: str | None, outputs: list[tuple[str, bytes]]) -> bytes | None:
    """Rows of ``outputs`` of one attempt as its ``refs``; None where they are not all of ``names``, or damaged."""
    if ",".join(name for name, _ in outputs) != (names or ""):
        return None
    try:
        # One ref is the same bytes in both.
        return outputs[0][1] if len(outputs) == 1 else encode_refs({name: decode_ref(ref) for name, ref in outputs})[1]
    except StoreError:
        return None


STEPS: dict[int, Callable[[sqlite3.Connection], None]] = {2: _seal_all, 3: _fold}
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
    # The tables lie then where those of a new journal do, which a recovery may need to know.
    with contextlib.suppress(sqlite3.Error):
        db.execute("VACUUM")
    return copy
