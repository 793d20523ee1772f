"""The object files that a run's results are made of, as the journal tells. Reads only; it opens and removes no file."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import NamedTuple

from procflow.ref import Stored, stored_in
from procflow.storing.state_folder import StateFolder
from procflow.storing.store_begin import ids_of
from procflow.storing.store_refs import decode_ref, decode_refs
from procflow.storing.store_schema import UNREADABLE, connect_reader, told

__all__ = ["StoredResult", "files_by_execution", "files_of_run"]

_MARK = b"stored"
"""What the bytes of a ref hold if a file is in it (``Ref.plain``); they may hold it by chance, too."""


class StoredResult(NamedTuple):
    """A file that a result is in: of an output its ``name``, of a chunk its first item, of a page its position.

    ``kind`` is one of these words.
    """

    kind: str
    name: str
    place: int
    stored: Stored


def files_by_execution(db: sqlite3.Connection, run_id: str) -> dict[int, list[StoredResult]]:
    """The files of every result of a run."""
    files: dict[int, list[StoredResult]] = {}
    found = db.execute("SELECT seq FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if found is None:
        return files
    bounds = (*ids_of(found[0]), _MARK)
    sql = "SELECT id, output_ref, refs FROM step_executions WHERE id BETWEEN ? AND ? AND instr(refs, ?) ORDER BY id"
    for execution_id, names, data in db.execute(sql, bounds):
        own = files.setdefault(execution_id, [])
        for name, ref in decode_refs(names, data).items():
            own += [StoredResult("output", name, 0, stored) for stored in stored_in(ref)]
    in_files = "execution_id BETWEEN ? AND ? AND instr(ref, ?) ORDER BY execution_id"
    for kind, rows in (
        ("page", db.execute(f"SELECT execution_id, position, ref FROM pages WHERE {in_files}", bounds)),
        ("chunk", db.execute(f"SELECT execution_id, first, ref FROM chunks WHERE {in_files}", bounds)),
    ):
        for execution_id, place, data in rows:
            own = files.setdefault(execution_id, [])
            own += [StoredResult(kind, "", place, stored) for stored in stored_in(decode_ref(data))]
    return {execution_id: own for execution_id, own in files.items() if own}


def files_of_run(folder: StateFolder, run_id: str) -> set[str]:
    """The paths of the files that the results of a run are in. StoreError where the journal can't be read."""
    try:
        with contextlib.closing(connect_reader(folder.db)) as db:
            return {one.stored.path for files in files_by_execution(db, run_id).values() for one in files}
    except UNREADABLE as error:
        raise told(folder.db, error, "can't be read") from error
