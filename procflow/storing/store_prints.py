"""Fingerprints in the journal: what each task of a run was made from, so that a resume knows what has changed since.

    run_id, number | prints: [[label...], [role...], [digest...], [since...]] | parts: [{part: digest...}...]
                   | pieces: {digest of the part code: {piece: digest...}...}

A row has the columns of up to ``TOGETHER`` tasks as JSON, under one seal: a pipeline may have a hundred thousand of them, and
all are read and written together. ``parts`` are apart, since only what has changed asks for them; ``pieces`` of all are in the
first row, once for each code. This file owns the table; what a fingerprint is made of is ``resuming/fingerprint.py``'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from procflow.storing.store_seal import expression, sealed

if TYPE_CHECKING:
    from procflow.resuming.fingerprint import Fingerprint
    from procflow.resuming.needs import Key

__all__ = ["TABLE", "Prints", "read_digests", "read_prints", "repack", "write_prints"]

TABLE = """CREATE TABLE fingerprints (
    run_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    prints TEXT NOT NULL,
    parts TEXT NOT NULL,
    pieces TEXT NOT NULL,
    seal INTEGER,
    PRIMARY KEY (run_id, number)
)"""
TOGETHER = 64
"""Tasks in a row: what one flipped bit can cost."""
PIECE = "code: "
"""Before the names of pieces among the parts, in version 3."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Prints(NamedTuple):
    """What tasks are made from, in columns; ``parts`` are JSON, ``pieces`` is that of all by the short digest of their code.

    Results of executions before ``sinces`` were made from something else; None is the session that begins.
    """

    labels: Sequence[str] = ()
    roles: Sequence[str] = ()
    digests: Sequence[str] = ()
    sinces: Sequence[int | None] = ()
    parts: Sequence[str] = ()
    pieces: str = "{}"

    @staticmethod
    def of(found: Mapping[Key, Fingerprint], sinces: Sequence[int | None] | None = None) -> Prints:
        """Those of a pipeline; without ``sinces`` all results were made from just this."""
        if not found:
            return Prints()
        labels, roles = zip(*found, strict=True)
        prints = found.values()
        by_text = {p.pieces: p for p in prints if p.pieces}
        pieces = ",".join([f'"{p.parts["code"]}":{text}' for text, p in by_text.items()])
        digests, parts = [p.digest for p in prints], [p.text for p in prints]
        return Prints(labels, roles, digests, sinces or [0] * len(labels), parts, f"{{{pieces}}}")


def write_prints(db: Connection, run_id: str, prints: Prints, first: int) -> None:
    """Write those of a run in place of what it had; ``first`` is the first execution of the session that begins."""
    db.execute("DELETE FROM fingerprints WHERE run_id = ?", (run_id,))
    sinces = [first if since is None else since for since in prints.sinces]
    columns = (prints.labels, prints.roles, prints.digests, sinces)
    groups = [slice(at, at + TOGETHER) for at in range(0, len(sinces), TOGETHER)]
    rows = [
        (
            *(run_id, number, _encode([column[group] for column in columns]), f"[{','.join(prints.parts[group])}]"),
            "{}" if number else prints.pieces,
        )
        for number, group in enumerate(groups)
    ]
    db.executemany("INSERT INTO fingerprints VALUES (?,?,?,?,?,?)", sealed(rows))


def read_prints(db: Connection, run_id: str) -> Iterator[tuple[Any, ...]]:
    """Label, role, digest, since, parts and pieces of each task; the caller has checked the seals."""
    known: dict[str, dict[str, str]] = {}
    sql = "SELECT prints, parts, pieces FROM fingerprints WHERE run_id = ? ORDER BY number"
    for columns, parts, more in db.execute(sql, (run_id,)):
        known.update(json.loads(more))
        for *told, part in zip(*json.loads(columns), json.loads(parts), strict=True):
            yield (*told, part, known.get(part.get("code"), {}))


def read_digests(db: Connection, run_id: str) -> dict[Key, str]:
    """The digests by label and role, without those that are damaged."""
    whole = expression(db, "fingerprints")
    found: dict[Key, str] = {}
    for (columns,) in db.execute(f"SELECT prints FROM fingerprints WHERE run_id = ? AND seal IS {whole}", (run_id,)):
        labels, roles, digests, _ = json.loads(columns)
        found.update(zip(zip(labels, roles, strict=True), digests, strict=True))
    return found


def repack(db: Connection) -> None:
    """Make the table of one that has a row a task, as journals up to version 3 had it, in the caller's transaction.

    Rows that are damaged are left out: their tasks run again. There the pieces were among the parts of each task.
    """
    whole = expression(db, "fingerprints")
    sql = f"SELECT run_id, label, role, digest, since, parts FROM fingerprints WHERE seal IS {whole} ORDER BY rowid"
    found: dict[str, list[tuple[Any, ...]]] = {}
    pieces: dict[str, dict[str, dict[str, str]]] = {}
    for run_id, *values, parts in db.execute(sql):
        told: dict[str, str] = json.loads(parts)
        own = {name[len(PIECE) :]: told.pop(name) for name in list(told) if name.startswith(PIECE)}
        if own:
            pieces.setdefault(run_id, {})[told["code"]] = own
        found.setdefault(run_id, []).append((*values, _encode(told)))
    db.execute("DROP TABLE fingerprints")
    db.execute(TABLE)
    for run_id, rows in found.items():
        columns: tuple[Any, ...] = (*zip(*rows, strict=True), _encode(pieces.get(run_id, {})))
        write_prints(db, run_id, Prints(*columns), 0)
