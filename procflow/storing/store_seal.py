"""Seals: a checksum in every row of the journal, so that a row whose bits were flipped is refused, never believed.

SQLite notices when the structure of its file is damaged, not when a number or a letter in a row has changed. Every
table has a column ``seal``: a CRC-32 of all other values of the row. Rows that Python writes one by one are sealed in
Python (those of which there are most in ``store_plain``); rows that SQL changes or copies are sealed by the SQL function
``seal`` right behind it, in the same transaction.
This file never decides what is to be done with a journal that is damaged: it raises StoreError.
"""

from __future__ import annotations

import marshal
import sqlite3
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from procflow.errors import StoreError

__all__ = [
    "OF_EXECUTIONS",
    "REFS",
    "SEALED_OF_REF",
    "TABLES",
    "check_run",
    "damaged",
    "expression",
    "install",
    "reseal",
    "seal",
    "sealed",
    "sql_seal",
    "way_out",
]

OF_EXECUTIONS = ("pages", "chunks", "metrics")
OF_RUNS = ("runs", "fingerprints", "sessions")
TABLES = ("step_executions", *OF_EXECUTIONS, *OF_RUNS)

_KEPT = frozenset({str, bytes})
SEALED_OF_REF = 6
"""A ref bears the checksum of its own body in its first bytes; that is checked when it is read."""
REFS = ("ref", "refs")
"""The columns that hold refs; each is the last of its table."""


def seal(*values: Any) -> int:
    """The checksum of a row's values in the order of its columns.

    As SQLite gives them back: NULLs and NaN are left out, 1 is the same as 1.0, and -0.0 the same as 0.0.
    """
    return _seal(values)


def _seal(values: Iterable[Any]) -> int:
    kept = _KEPT
    try:
        plain = [v if v.__class__ in kept else v + 0.0 for v in values if v is not None and v == v]
        # Version 2 of this format is fixed: no references, no interned strings.
        return zlib.crc32(marshal.dumps(plain, 2))
    except (TypeError, ValueError):
        # Subclasses of str and float, such as NumPy has them; its own ``str`` of a text leaves out NULs at the end.
        plain = [str.__str__(v) if isinstance(v, str) else float(v) + 0.0 for v in values if v is not None and v == v]
        return zlib.crc32(marshal.dumps(plain, 2))


def sealed(rows: Iterable[tuple[Any, ...]], ref: bool = False) -> list[tuple[Any, ...]]:
    """Rows with their seals behind them; with ``ref`` the last column is one (or None), of which only the head is sealed."""
    if ref:
        return [(*row, _seal((*row[:-1], row[-1] and row[-1][:SEALED_OF_REF]))) for row in rows]
    return [(*row, _seal(row)) for row in rows]


def install(db: sqlite3.Connection) -> None:
    """Make the SQL function ``seal`` known to a connection."""
    db.create_function("seal", -1, seal, deterministic=True)


@lru_cache(maxsize=64)
def sql_seal(columns: tuple[str, ...]) -> str:
    """The SQL that makes the seal of these columns."""
    parts = [f"substr({column}, 1, {SEALED_OF_REF})" if column in REFS else column for column in columns]
    return f"seal({', '.join(parts)})"


def expression(db: sqlite3.Connection, table: str) -> str:
    """The SQL that makes the seal of a row of ``table``."""
    columns = tuple(row[1] for row in db.execute(f"PRAGMA table_info({table})"))
    return sql_seal(tuple(c for c in columns if c != "seal"))


def reseal(db: sqlite3.Connection, table: str, where: str, values: tuple[Any, ...]) -> None:
    """Seal the rows of ``table`` that SQL has changed; ``where`` is a condition with ``values`` for its marks."""
    db.execute(f"UPDATE {table} SET seal = {expression(db, table)} WHERE {where}", values)


def check_run(db: sqlite3.Connection, path: Path, run_id: str, ids: tuple[int, int]) -> None:
    """StoreError unless every row of a run is as it was written, and none of its attempts that succeeded is missing."""
    for table in TABLES:
        if table in OF_RUNS:
            where, values = "run_id = ?", (run_id,)
        else:
            key = "id" if table == "step_executions" else "execution_id"
            where, values = f"{key} BETWEEN ? AND ?", ids  # type: ignore[assignment]
        sql = f"SELECT count(*) FROM {table} WHERE {where} AND seal IS NOT {expression(db, table)}"
        (bad,) = db.execute(sql, values).fetchone()
        if bad:
            raise damaged(path, f"{bad} of the rows of run {run_id} in {table}")
    (counted,) = db.execute("SELECT succeeded FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    (found,) = db.execute(
        "SELECT count(*) FROM step_executions WHERE id BETWEEN ? AND ? AND kind = 'task' AND status = 'succeeded'", ids
    ).fetchone()
    if counted != found:
        raise damaged(path, f"of {counted} attempts of run {run_id} that succeeded, {found} are there")


def way_out(path: Path) -> str:
    """What to do about a damaged journal."""
    return f"procflow recover --state-dir {path.parent} saves what can be read, or put back a copy"


def damaged(path: Path, what: str) -> StoreError:
    """The error for a journal whose content is not what was written."""
    return StoreError(
        f"{path}: the journal is damaged ({what}: the checksum is wrong); it was left as it is: {way_out(path)}"
    )
