"""Salvage: the rows of a damaged journal that can still be believed, read from a copy of it.

SQLite reads what it can: each table is walked by row ids, and where a page can't be read the walk goes on behind it. A
file that was cut off is filled up, and a beginning that is lost is taken from a fresh journal, whose tables lie at the same
pages. Every row bears a checksum, so what comes out is what was once written, or nothing. This file never changes the
journal that it reads, and decides nothing about runs: that is ``recovery.py``'s.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from procflow.errors import StoreError
from procflow.storing import store_schema
from procflow.storing.store_migrate import OUTPUTS, can_migrate, migrate
from procflow.storing.store_refs import decode_ref, decode_refs
from procflow.storing.store_schema import APPLICATION_ID, SCHEMA_VERSION, UNREADABLE
from procflow.storing.store_seal import REFS, SEALED_OF_REF, TABLES, install, seal

__all__ = ["LESSONS", "Salvaged", "salvage"]

Row = dict[str, Any]
LESSONS = "learned"
"""A table that not every journal has."""
_FARTHEST = 1 << 62


@dataclass(slots=True)
class Salvaged:
    """Rows by table, with their seals, in the order of their row ids; ``damage`` says what was found wrong, a line each.

    ``bad`` counts, by table, rows whose checksum is wrong and places that can't be read.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)


def salvage(journal: Path, work: Path) -> Salvaged:
    """What can be read of ``journal`` and its log; ``work`` is an empty folder of ours for the copy.

    StoreError where it is no journal of procflow, or of a newer one.
    """
    found = Salvaged()
    copy = _copy(journal, work, found)
    try:
        with contextlib.closing(_open(copy, work, found)) as db:
            _look(db, found)
            for table in (*TABLES, LESSONS):
                _read_table(db, table, found)
    except UNREADABLE as error:
        found.damage.append(str(error))
    for table in (*TABLES, LESSONS):
        found.rows.setdefault(table, [])
    return found


def _copy(journal: Path, work: Path, found: Salvaged) -> Path:
    """The journal and its log as they are, the journal filled up to whole pages."""
    copy = work / journal.name
    for suffix in ("", "-wal", "-journal"):
        source = journal.with_name(journal.name + suffix)
        if source.exists():
            shutil.copyfile(source, copy.with_name(copy.name + suffix))
    if not copy.exists():
        copy.touch()
    size, page = copy.stat().st_size, _page_bytes(work)
    with copy.open("r+b") as file:
        head = file.read(100)
        pages = int.from_bytes(head[28:32], "big") if head[:16] == b"SQLite format 3\0" else 0
        whole = max(-(-size // page), pages if pages < 1 << 20 else 0) * page
        if size != whole or size == 0:
            found.damage.append(f"it was cut off at {size} bytes" if size else "it is empty")
            file.truncate(whole)
    return copy


def _open(copy: Path, work: Path, found: Salvaged) -> sqlite3.Connection:
    """A connection to the copy, whose beginning is that of a fresh journal where its own can't be read.

    One of an older version is brought up to date first.
    """
    db = _connect(copy)
    try:
        names = {
            row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql IS NOT NULL")
        }
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if OUTPUTS in names and application == APPLICATION_ID and can_migrate(version, SCHEMA_VERSION):
            version = _migrated(db, copy, version)
        said = _columns(db)
    except UNREADABLE:
        names = set()
        application = version = 0
        said = {}
    if set(TABLES) <= names and application == APPLICATION_ID and version == SCHEMA_VERSION:
        with contextlib.closing(sqlite3.connect(_fresh(work))) as fresh:
            if said == _columns(fresh):
                return db
    db.close()
    if names and not names & set(TABLES):
        raise StoreError(f"{copy.name}: is not a procflow journal: it holds the tables {', '.join(sorted(names)[:5])}")
    if set(TABLES) <= names and application == APPLICATION_ID and version > SCHEMA_VERSION:
        raise StoreError(
            f"{copy.name}: was written by a newer procflow (journal version {version}, this one knows {SCHEMA_VERSION}); "
            "upgrade procflow to recover it"
        )
    found.damage.append("its beginning can't be read")
    _transplant(copy, work)
    return _connect(copy)


def _migrated(db: sqlite3.Connection, copy: Path, version: int) -> int:
    """The version that it has then; what is damaged stays so."""
    install(db)
    try:
        migrate(db, copy, version, SCHEMA_VERSION)
    except sqlite3.Error as error:
        raise StoreError(
            f"{copy.name}: journal version {version} can't be brought up to date, for {error}; it was left as it is: "
            "recover it with the procflow that wrote it"
        ) from error
    return SCHEMA_VERSION


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None)
    # A text that is damaged has a wrong checksum, too.
    db.text_factory = lambda data: data.decode("utf-8", "replace")
    return db


def _columns(db: sqlite3.Connection) -> dict[str, set[tuple[str, str]]]:
    """Names and types of the columns by table: a bit that is flipped in their text is in no row, so no seal tells."""
    return {table: {row[1:3] for row in db.execute(f"PRAGMA table_info({table})")} for table in TABLES}


def _page_bytes(work: Path) -> int:
    with contextlib.closing(sqlite3.connect(_fresh(work))) as db:
        return int(db.execute("PRAGMA page_size").fetchone()[0])


def _fresh(work: Path) -> Path:
    path = work / "fresh.db"
    store_schema.create_database(path, network=True)
    return path


def _transplant(copy: Path, work: Path) -> None:
    """Put the pages of a fresh journal that say where its tables are in place of the copy's own."""
    with contextlib.closing(sqlite3.connect(_fresh(work))) as db:
        page = int(db.execute("PRAGMA page_size").fetchone()[0])
        roots = {int(row[0]) for row in db.execute("SELECT rootpage FROM sqlite_master WHERE rootpage > 0")}
    fresh = _fresh(work).read_bytes()
    with copy.open("r+b") as file:
        for number in range(1, len(fresh) // page + 1):
            if number not in roots:
                file.seek((number - 1) * page)
                file.write(fresh[(number - 1) * page : number * page])
        pages = max(copy.stat().st_size, len(fresh)) // page
        file.truncate(pages * page)
        file.seek(28)
        file.write(pages.to_bytes(4, "big"))


def _look(db: sqlite3.Connection, found: Salvaged) -> None:
    """What SQLite itself finds wrong."""
    try:
        said = [str(row[0]) for row in db.execute("PRAGMA integrity_check(5)")]
    except UNREADABLE as error:
        said = [str(error)]
    if said != ["ok"]:
        found.damage += [line for text in said for line in text.splitlines()][:5]


def _read_table(db: sqlite3.Connection, table: str, found: Salvaged) -> None:
    kept = found.rows.setdefault(table, [])
    bad = 0
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    if not columns:
        return
    for values in _walk(db, table):
        row = dict(zip(columns, values, strict=True)) if values is not None else None
        if row is not None and _is_whole(row):
            kept.append(row)
        else:
            bad += 1
    found.bad[table] = bad


def _is_whole(row: Row) -> bool:
    """Its checksum is right, and so are those of the refs in it."""
    if row["seal"] != seal(*_sealed_values(row)):
        return False
    try:
        if "ref" in row:
            decode_ref(row["ref"])
        elif "refs" in row:
            decode_refs(row["output_ref"], row["refs"])
    except (StoreError, TypeError):
        return False
    return True


def _sealed_values(row: Row) -> list[Any]:
    return [value[:SEALED_OF_REF] if name in REFS and value else value for name, value in row.items() if name != "seal"]


def _walk(db: sqlite3.Connection, table: str) -> Iterator[tuple[Any, ...] | None]:
    """Rows in the order of their ids; None for each place that can't be read."""
    at = -1
    while True:
        try:
            for rowid, *values in _from(db, table, at, "*"):
                if rowid <= at:
                    raise sqlite3.DatabaseError("row ids out of order")
                at = rowid
                yield tuple(values)
            return
        except UNREADABLE:
            yield None
        further = _behind(db, table, at)
        if further is None:
            return
        at = further


def _from(db: sqlite3.Connection, table: str, at: int, what: str, end: str = "") -> sqlite3.Cursor:
    return db.execute(f"SELECT rowid, {what} FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY rowid{end}", (at,))


def _behind(db: sqlite3.Connection, table: str, at: int) -> int | None:
    """The least id after which a row can be read; None where there is none. Two looks a power of two."""

    def readable(offset: int) -> bool:
        try:
            _from(db, table, at + offset, "*", " LIMIT 1").fetchone()
        except UNREADABLE:
            return False
        return True

    step = 1
    while not readable(step):
        step *= 2
        if step > _FARTHEST - max(at, 0):
            return None
    low, high = step // 2, step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if readable(middle) else (middle, high)
    return at + high
