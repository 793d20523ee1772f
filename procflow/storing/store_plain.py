"""Plain rows: what the journal says of attempts that simply succeeded, with their seals, as they go to SQLite.

Nearly all that a long run writes is of this kind, so it is made in one pass, while the event is at hand, and with no step
between: a row is a list, its seal is that of the list, and the list is what SQLite takes. Any other row is ``store_rows``'s.
Numbers are floats, as a seal wants them; SQLite makes whole ones of those whose column is INTEGER.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from marshal import dumps, loads
from typing import Any
from zlib import crc32

from procflow.attempt import Usage
from procflow.events import AttemptFinished
from procflow.ref import Ref
from procflow.storing.attempt_log import log_path
from procflow.storing.store_many import AT_ONCE
from procflow.storing.store_seal import SEALED_OF_REF, seal

__all__ = ["INSERT_PLAIN", "INSERT_PLAINS", "PLAIN_COLUMNS", "Place", "insert", "plain_row", "result_of"]

Place = tuple[str, str, "str | None", "str | None", "str | None"]
"""What never changes between the rows of one declared step: label, name, parent, branch and join; texts of the class ``str``."""

PLAIN_COLUMNS = (
    *("id", "run_id", "key", "path", "label", "name", "item", "attempt", "kind", "role", "status"),
    *("parent_step_id", "branch_name", "join_policy", "executor", "started", "ended", "wall_s", "cpu_s"),
    *("peak_rss_bytes", "cost", "count", "output_ref", "refs"),
)
"""The columns of such an attempt, in the order of its row: Python's sqlite3 takes 0.3 us for each NULL, so others are left out.

So is what ``log_of`` knows.
"""


def insert(columns: Iterable[str]) -> str:
    """The SQL that writes rows of these columns of ``step_executions``, with their seals behind them."""
    names = (*columns, "seal")
    return f"INSERT OR REPLACE INTO step_executions ({','.join(names)}) VALUES ({','.join('?' * len(names))})"


INSERT_PLAIN = insert(PLAIN_COLUMNS)
INSERT_PLAINS = INSERT_PLAIN + f",({','.join('?' * (len(PLAIN_COLUMNS) + 1))})" * (AT_ONCE - 1)


def plain_row(
    row_id: int, run_id: str, place: Place, e: AttemptFinished, names: str, refs: bytes | None
) -> tuple[list[Any], bytes]:
    """The sealed row of an attempt that succeeded and published ``refs``; and, but for these, as bytes that ``result_of`` reads."""
    label, name, parent, branch, join = place
    usage = e.usage
    # Without -0.0, which SQLite does not give back.
    started, ended, cost = e.started_at + 0.0, e.at + 0.0, e.cost + 0.0
    wall_s, cpu_s = usage.wall_s + 0.0, usage.cpu_s + 0.0
    row = [
        row_id + 0.0, run_id, e.key + 0.0, e.path, label, name, e.item, e.number + 0.0, "task", e.role, "succeeded", parent,
        branch, join, e.executor, started, ended, wall_s, cpu_s, usage.peak_rss_bytes + 0.0, cost, e.count + 0.0,
        names, refs and refs[:SEALED_OF_REF],
    ]  # fmt: skip
    data = dumps(row, 2)
    total = started + ended + wall_s + cpu_s + cost
    # What SQLite will hold as NULL is left out of a seal.
    if total != total:
        row.append(seal(*row))
    elif parent is None or branch is None or join is None or refs is None:
        row.append(crc32(dumps([value for value in row if value is not None], 2)))
    else:
        row.append(crc32(data))
    row[0], row[-2] = row_id, refs
    return row, data


def log_of(label: str, name: str, item: str, attempt: int, kind: str, role: str | None, status: str) -> str | None:
    """Where the log of an attempt lies whose row does not say it, as that of one that succeeded."""
    return log_path(label, item, attempt) if kind == "task" and status == "succeeded" else None


def result_of(data: bytes, outputs: Callable[[str], Mapping[str, Ref]]) -> AttemptFinished:
    """The event that a row was made of; ``outputs`` gives what it published under these names.

    Not for one with metrics, with pages or with items: they are in no column.
    """
    # Versions before 4 knew no column behind output_ref.
    row = dict(zip(PLAIN_COLUMNS, loads(data), strict=False))
    return AttemptFinished(
        *(row["ended"], int(row["key"]), row["path"], row["label"], row["item"], int(row["attempt"]), row["executor"]),
        *(row["status"], row["started"], Usage(row["wall_s"], row["cpu_s"], int(row["peak_rss_bytes"]))),
        outputs=outputs(row["output_ref"]),
        cost=row["cost"],
        count=int(row["count"]),
        role=row["role"],
    )
