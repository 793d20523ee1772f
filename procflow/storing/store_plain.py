"""Plain rows: what the journal says of attempts that simply succeeded, with their seals, as they go to SQLite.

Nearly all that a long run writes is of this kind, so it is made in one pass, while the event is at hand, and with no step
between: a row is a list, its seal is that of the list, and the list is what SQLite takes. Any other row is ``store_rows``'s.
Numbers are floats, as a seal wants them; SQLite makes whole ones of those whose column is INTEGER.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from marshal import dumps, loads
from sqlite3 import Connection
from typing import Any
from zlib import crc32

from procflow.attempt import Usage
from procflow.events import AttemptFinished
from procflow.ref import Ref
from procflow.storing.attempt_log import log_path
from procflow.storing.store_many import AT_ONCE, insert_many
from procflow.storing.store_refs import decode_ref, encode_ref
from procflow.storing.store_seal import SEALED_OF_REF, seal

__all__ = [
    "INSERT_PLAIN",
    "PLAIN_COLUMNS",
    "Place",
    "insert",
    "output_row",
    "plain_row",
    "result_of",
    "storable",
]

Place = tuple[str, str, "str | None", "str | None", "str | None"]
"""What never changes between the rows of one declared step: label, name, parent, branch and join; texts of the class ``str``."""

PLAIN_COLUMNS = (
    *("id", "run_id", "key", "path", "label", "name", "item", "attempt", "kind", "role", "status"),
    *("parent_step_id", "branch_name", "join_policy", "executor", "started", "ended", "wall_s", "cpu_s"),
    *("peak_rss_bytes", "cost", "count", "output_ref"),
)
"""The columns of such an attempt, in the order of its row: Python's sqlite3 takes 0.3 us for each NULL, so others are left out.

So is what ``log_of`` knows.
"""


def insert(columns: Iterable[str]) -> str:
    """The SQL that writes rows of these columns of ``step_executions``, with their seals behind them."""
    names = (*columns, "seal")
    return f"INSERT OR REPLACE INTO step_executions ({','.join(names)}) VALUES ({','.join('?' * len(names))})"


INSERT_PLAIN = insert(PLAIN_COLUMNS)
_INSERT_OUTPUT = "INSERT OR REPLACE INTO outputs VALUES (?,?,?,?,?,?,?)"
_INSERT_OUTPUTS = _INSERT_OUTPUT + ",(?,?,?,?,?,?,?)" * (AT_ONCE - 1)


def insert_outputs(db: Connection, rows: list[list[Any]]) -> None:
    """Write rows of ``outputs``."""
    insert_many(db, _INSERT_OUTPUT, _INSERT_OUTPUTS, rows)


def storable(text: str) -> str:
    """The text as SQLite and UTF-8 can hold it, of the class ``str`` itself: lone surrogates become ``\\udc80``."""
    if type(text) is not str:
        text = str(text)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain_row(row_id: int, run_id: str, place: Place, e: AttemptFinished) -> tuple[list[Any], bytes]:
    """The sealed row of an attempt that succeeded; and itself as the bytes that ``result_of`` reads."""
    label, name, parent, branch, join = place
    usage = e.usage
    # Without -0.0, which SQLite does not give back.
    started, ended, cost = e.started_at + 0.0, e.at + 0.0, e.cost + 0.0
    wall_s, cpu_s = usage.wall_s + 0.0, usage.cpu_s + 0.0
    row = [
        row_id + 0.0, run_id, e.key + 0.0, e.path, label, name, e.item, e.number + 0.0, "task", e.role, "succeeded", parent,
        branch, join, e.executor, started, ended, wall_s, cpu_s, usage.peak_rss_bytes + 0.0, cost, e.count + 0.0,
        storable(",".join(e.outputs)),
    ]  # fmt: skip
    data = dumps(row, 2)
    total = started + ended + wall_s + cpu_s + cost
    if parent is None or branch is None or join is None or total != total:
        # What SQLite will hold as NULL is left out of a seal.
        row.append(seal(*row))
    else:
        row.append(crc32(data))
    row[0] = row_id
    return row, data


def log_of(label: str, name: str, item: str, attempt: int, kind: str, role: str | None, status: str) -> str | None:
    """Where the log of an attempt lies whose row does not say it, as that of one that succeeded."""
    return log_path(label, item, attempt) if kind == "task" and status == "succeeded" else None


def result_of(data: bytes, published: Sequence[Any]) -> AttemptFinished:
    """The event that a row was made of; ``published`` are names and refs in turn, as the rows of ``outputs`` hold them.

    Not for one with metrics, with pages or with items: they are in no column.
    """
    row = dict(zip(PLAIN_COLUMNS, loads(data), strict=True))
    return AttemptFinished(
        *(row["ended"], int(row["key"]), row["path"], row["label"], row["item"], int(row["attempt"]), row["executor"]),
        *(row["status"], row["started"], Usage(row["wall_s"], row["cpu_s"], int(row["peak_rss_bytes"]))),
        outputs={name: decode_ref(ref) for name, ref in zip(published[::2], published[1::2], strict=True)},
        cost=row["cost"],
        count=int(row["count"]),
        role=row["role"],
    )


def output_row(row_id: int, run_id: str, e: AttemptFinished, name: str, ref: Ref) -> list[Any]:
    """The sealed row of a value that an attempt published."""
    data = encode_ref(ref)
    row: list[Any] = [row_id + 0.0, storable(name), run_id, e.path, e.item, data[:SEALED_OF_REF]]
    row.append(crc32(dumps(row, 2)))
    row[0], row[5] = row_id, data
    return row
