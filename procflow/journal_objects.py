"""The object files that a run's results are made of, as the journal tells. Reads only; it opens and removes no file."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from procflow.ref import Stored, stored_in
from procflow.state_folder import StateFolder
from procflow.store_begin import ids_of
from procflow.store_refs import decode_ref
from procflow.store_schema import UNREADABLE, connect_reader, told

__all__ = ["files_by_execution", "files_of_run"]

_TABLES = ("outputs", "pages", "chunks")
_MARK = b"stored"
"""What the bytes of a ref hold if a file is in it (``Ref.plain``); they may hold it by chance, too."""


def files_by_execution(db: sqlite3.Connection, run_id: str) -> Iterator[tuple[int, str, int, Stored]]:
    """Execution, table, place in it (a chunk's first item, a page's position) and file of every stored result of a run."""
    found = db.execute("SELECT seq FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if found is None:
        return
    places = {"outputs": "0", "pages": "position", "chunks": "first"}
    for table in _TABLES:
        sql = f"SELECT execution_id, {places[table]}, ref FROM {table} WHERE execution_id BETWEEN ? AND ? AND instr(ref, ?)"
        for execution_id, place, data in db.execute(sql, (*ids_of(found[0]), _MARK)):
            for stored in stored_in(decode_ref(data)):
                yield execution_id, table, place, stored


def files_of_run(folder: StateFolder, run_id: str) -> set[str]:
    """The paths of the files that the results of a run are in. StoreError where the journal can't be read."""
    try:
        with contextlib.closing(connect_reader(folder.db)) as db:
            return {stored.path for _, _, _, stored in files_by_execution(db, run_id)}
    except UNREADABLE as error:
        raise told(folder.db, error, "can't be read") from error
