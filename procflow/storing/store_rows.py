"""Events to rows: what the journal says about a run, before it is written.

``Rows`` collects the rows of one run since the last commit, keyed by id, so that an attempt which starts and ends
between two commits costs one insert. It holds nothing for an attempt that ended well: its memory is bounded by what
runs at once, by the steps declared, and by the attempts that failed and whose step has not settled yet. It never
touches a disk or a clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from procflow import events as ev
from procflow.attempt import Failure
from procflow.ref import Ref
from procflow.result import exit_code
from procflow.storing.attempt_log import log_path
from procflow.storing.store_refs import decode_ref, encode_ref, indices_text
from procflow.storing.store_schema import COLUMNS

__all__ = ["PLAIN_COLUMNS", "Row", "Rows", "decode_ref", "encode_ref", "failure_text", "storable"]

Row = tuple[Any, ...]
"""One row of ``step_executions``, in the order of ``COLUMNS`` or of ``PLAIN_COLUMNS``."""

PLAIN_COLUMNS = (
    *("id", "run_id", "key", "path", "label", "name", "item", "attempt", "kind", "role", "status"),
    "parent_step_id",
    *(
        "branch_name",
        "join_policy",
        "executor",
        "started",
        "ended",
        "wall_s",
        "cpu_s",
        "peak_rss_bytes",
        "cost",
        "count",
    ),
    *("output_ref", "log"),
)
"""The columns of an attempt that simply succeeded: Python's sqlite3 takes 0.3 us for each NULL, so those are left out."""

_AT = {name: i for i, name in enumerate(COLUMNS)}
_REASON, _TOLERATED, _STATUS, _RETRY = _AT["reason"], _AT["tolerated"], _AT["status"], _AT["retry_in_s"]
MAX_MESSAGE = 10_000
MAX_TRACEBACK = 200_000


def storable(text: str) -> str:
    """The text as SQLite and UTF-8 can hold it, of the class ``str`` itself: lone surrogates become ``\\udc80``."""
    text = str(text)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def failure_text(failure: Failure) -> str:
    """The failure as JSON, without its pickled exception, very long texts cut in the middle."""
    return json.dumps(
        {
            "cause": failure.cause,
            "type": failure.type,
            "message": _cut(failure.message, MAX_MESSAGE),
            "traceback": _cut(failure.traceback, MAX_TRACEBACK),
            "user_place": failure.user_place,
            "kinds": list(failure.kinds),
            "signal": failure.signal,
            "exit_code": failure.exit_code,
            "peak_rss_bytes": failure.peak_rss_bytes,
        }
    )


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


class _Place:
    """What never changes between the rows of one declared step."""

    __slots__ = ("branch", "join", "label", "name", "parent", "path")

    def __init__(self, path: str, label: str, name: str, parent: str | None, branch: str | None, join: str | None):
        self.path, self.label, self.name = path, label, name
        self.parent, self.branch, self.join = parent, branch, join


class Rows:
    """The uncommitted rows of one run. ``first_id`` is the first free id of its range."""

    def __init__(self, run_id: str, first_id: int) -> None:
        self.run_id = run_id
        self._started: dict[int, ev.AttemptStarted] = {}
        self._plain: list[Row] = []
        self._full: dict[int, Row] = {}
        self.outputs: list[tuple[int, str, str, str, str, bytes]] = []
        self.pages: list[tuple[int, int, str, int, bytes]] = []
        self.chunks: list[tuple[int, int, str, str, bytes]] = []
        self.metrics: list[tuple[int, str, str, float]] = []
        self.run: dict[str, Any] = {}
        self.counts = dict.fromkeys(("succeeded", "failed", "lost", "skipped", "cancelled"), 0)
        self._next_id = first_id
        self._places: dict[str, _Place] = {}
        self._blocks: dict[str, ev.BlockStarted] = {}
        self._around: dict[str, tuple[int, str | None]] = {}
        self._open: dict[int, int] = {}
        self._open_blocks: dict[tuple[str, str], tuple[int, float]] = {}
        self._block_tries: dict[tuple[str, str], int] = {}
        # Rows of attempts that ended badly, until their step says whether that was tolerated.
        self._unsettled: dict[tuple[str, str], Row] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.AttemptStarted: self._attempt_started,
            ev.AttemptFinished: self._attempt_finished,
            ev.ItemsDone: self._items_done,
            ev.StepFinished: self._step_finished,
            ev.BlockStarted: self._block_started,
            ev.BlockFinished: self._block_finished,
            ev.RunStarted: self._run_started,
            ev.RunFinished: self._run_finished,
        }

    def add(self, event: ev.Event) -> bool:
        """Turn an event into rows; False for one that the journal has no row for (``StepProgress``)."""
        handler = self._handlers.get(type(event))
        if handler is None:
            return False
        handler(event)
        return True

    def take_up(
        self,
        event: ev.AttemptFinished | ev.ItemsDone,
        known: tuple[int, str, str | None, str | None, str | None] | None,
    ) -> bool:
        """Add a result of a session that was killed; ``known`` is the committed row of its attempt.

        False where the row says already that it ended.
        """
        if known is not None:
            row_id, status, parent, branch, join = known
            if status != "running":
                return False
            self._open[event.key] = row_id
            name = event.label.rsplit("/", 1)[-1]
            self._places.setdefault(event.path, _Place(event.path, event.label, name, parent, branch, join))
        elif event.key not in self._open and isinstance(event, ev.ItemsDone):
            started = ev.AttemptStarted(event.at, event.key, event.path, event.label, event.item, 1, "", "batch")
            self._attempt_started(started)
        return self.add(event)

    def clear(self) -> None:
        """Forget what was committed."""
        self._started = {}
        self._plain = []
        self._full = {}
        self.outputs, self.pages, self.chunks = [], [], []
        self.metrics = []
        self.run = {}

    def batches(self) -> list[tuple[tuple[str, ...], list[Row]]]:
        """The rows of ``step_executions`` to write: columns, and rows of just those columns."""
        full = [self._started_row(row_id, event) for row_id, event in self._started.items()]
        full += self._full.values()
        return [(columns, rows) for columns, rows in ((COLUMNS, full), (PLAIN_COLUMNS, self._plain)) if rows]

    def _new_id(self) -> int:
        number = self._next_id
        self._next_id = number + 1
        return number

    def _place(self, path: str, label: str) -> _Place:
        """The place of a task. A map's tasks, and those that gate or merge a block, carry the path of their block."""
        found = self._places.get(path)
        if found is None:
            found = self._find_place(path, label)
            if path in self._blocks:
                found.parent = path
            self._places[path] = found
        return found

    def _find_place(self, path: str, label: str) -> _Place:
        parent, names = path.rpartition(".")[0], label.split("/")
        around = self._around.get(parent)
        if around is None:
            around = self._around[parent] = self._find_parallel(parent)
        depth, join = around
        branch = names[min(depth, len(names) - 1)] if depth >= 0 else None
        return _Place(path, label, names[-1], parent or None, branch, join)

    def _find_parallel(self, path: str) -> tuple[int, str | None]:
        """Depth and join of the nearest parallel block from here outwards; -1 where there is none.

        Blocks open before their members, so their kinds are known.
        """
        while True:
            block = self._blocks.get(path)
            if block is not None and block.kind == "parallel":
                return path.count(".") + 1 if path else 0, block.join
            if not path:
                return -1, None
            path = path.rpartition(".")[0]

    def _attempt_started(self, e: ev.AttemptStarted) -> None:
        row_id = self._next_id
        self._next_id = row_id + 1
        self._open[e.key] = row_id
        self._started[row_id] = e

    def _started_row(self, row_id: int, e: ev.AttemptStarted) -> Row:
        place = self._place(e.path, e.label)
        return (
            *(row_id, self.run_id, e.key, e.path, e.label, place.name, e.item, e.number, "task", e.role, "running"),
            *(None, None, None, place.parent, place.branch, place.join, e.executor, e.at, None),
            *(None, None, None, None, None, None, log_path(e.label, e.item, e.number)),
            *(None, None, None, None, None, None, None),
        )

    def _attempt_finished(self, e: ev.AttemptFinished) -> None:
        row_id = self._open.pop(e.key, 0) or self._new_id()
        self._started.pop(row_id, None)
        path, item, status, usage = e.path, e.item, e.status, e.usage
        if e.outputs:
            self._add_outputs(row_id, e)
        for position, (page, count) in enumerate(e.pages):
            self.pages.append((row_id, position, self.run_id, count, encode_ref(page)))
        if e.metrics:
            self.metrics += [(row_id, storable(name), self.run_id, float(value)) for name, value in e.metrics.items()]
        self.counts[status] += 1
        if status != "succeeded" or e.failure is not None:
            row = self._bad_row(row_id, e)
            self._full[row_id] = row
            self._unsettled[path, item] = row
            return
        if self._unsettled:
            self._unsettled.pop((path, item), None)
        place = self._places.get(path) or self._place(path, e.label)
        number = e.number
        self._plain.append(
            (
                row_id,
                self.run_id,
                e.key,
                path,
                place.label,
                place.name,
                item,
                number,
                "task",
                e.role,
                status,
                place.parent,
                place.branch,
                place.join,
                e.executor,
                e.started_at,
                e.at,
                usage.wall_s,
                usage.cpu_s,
                usage.peak_rss_bytes,
                e.cost,
                e.count,
                _names(e.outputs),
                log_path(place.label, item, number),
            )
        )

    def _bad_row(self, row_id: int, e: ev.AttemptFinished) -> Row:
        place, usage, failure = self._place(e.path, e.label), e.usage, e.failure
        return (
            *(row_id, self.run_id, e.key, e.path, e.label, place.name, e.item, e.number, "task", e.role, e.status),
            *(failure.cause if failure else None, None, _message(failure), place.parent, place.branch, place.join),
            *(e.executor, e.started_at, e.at, usage.wall_s, usage.cpu_s, usage.peak_rss_bytes, e.cost, e.count),
            *(_names(e.outputs), log_path(e.label, e.item, e.number), failure_text(failure) if failure else None),
            *(None, e.retry_in_s, None, None, None, None),
        )

    def _add_outputs(self, row_id: int, e: ev.AttemptFinished) -> None:
        for name, ref in e.outputs.items():
            if e.role == "batch" and e.indices:
                self._add_chunk(row_id, e.indices, ref)
            else:
                self.outputs.append((row_id, storable(name), self.run_id, e.path, e.item, encode_ref(ref)))

    def _add_chunk(self, row_id: int, indices: range | tuple[int, ...], chunk: Ref) -> None:
        self.chunks.append((row_id, indices[0], self.run_id, indices_text(indices), encode_ref(chunk)))

    def _items_done(self, e: ev.ItemsDone) -> None:
        if e.indices:
            self._add_chunk(self._open[e.key], e.indices, e.chunk)

    def _step_finished(self, e: ev.StepFinished) -> None:
        """A bad end adds its reason to the last attempt's row; where no attempt has that place it gets its own row."""
        if e.kept:
            self._kept(e)
            return
        if e.status == "succeeded":
            return
        last = self._unsettled.pop((e.path, e.item), None)
        if last is not None:
            row = list(last)
            row[_REASON], row[_TOLERATED], row[_RETRY] = storable(e.reason) or None, int(e.tolerated), None
            self._full[row[0]] = tuple(row)
            return
        place = self._place(e.path, e.label)
        failure = e.failure
        row_id = self._new_id()
        self._full[row_id] = (
            *(row_id, self.run_id, None, e.path, e.label, place.name, e.item, e.attempts),
            *(
                "item" if e.attempts else "task",
                "batch" if e.attempts else "member",
                e.status,
                failure.cause if failure else None,
                storable(e.reason) or None,
            ),
            *(_message(failure), place.parent, place.branch, place.join),
            *(None, None, e.at, None, None, failure.peak_rss_bytes if failure else None, None, None, None),
            *(
                log_path(e.label, e.item, e.attempts) if e.attempts else None,
                failure_text(failure) if failure else None,
            ),
            *(int(e.tolerated), None, None, None, None, None),
        )

    def _kept(self, e: ev.StepFinished) -> None:
        """A row that says only that the step was done before; its result lies with the attempt that made it."""
        place, row_id = self._place(e.path, e.label), self._new_id()
        known: dict[str, Any] = {
            "id": row_id, "run_id": self.run_id, "path": e.path, "label": e.label, "name": place.name, "item": e.item,
            "attempt": 0, "kind": "kept", "role": "member", "status": e.status, "ended": e.at,
            "parent_step_id": place.parent, "branch_name": place.branch, "join_policy": place.join,
            "output_ref": storable(",".join(e.produced)), "reason": storable(e.reason) or None,
        }  # fmt: skip
        self._full[row_id] = tuple(known.get(column) for column in COLUMNS)

    def _block_started(self, e: ev.BlockStarted) -> None:
        if e.path not in self._blocks:
            self._blocks[e.path] = e
            self._around.clear()
            self._places.pop(e.path, None)  # of its gate, which ran before the block was known
        place = self._find_place(e.path, e.label)
        row_id, where = self._new_id(), (e.path, e.item)
        self._open_blocks[where] = (row_id, e.at)
        attempt = self._block_tries.get(where, 0) + 1
        self._full[row_id] = (
            *(row_id, self.run_id, None, e.path, e.label, place.name, e.item, attempt, e.kind, None, "running"),
            *(None, None, None, place.parent, place.branch, e.join, None, e.at, None),
            *(None, None, None, None, None, None, None, None, None, None, e.members, None, None, None),
        )

    def _block_finished(self, e: ev.BlockFinished) -> None:
        place, where = self._find_place(e.path, e.label), (e.path, e.item)
        row_id, started = self._open_blocks.pop(where, (0, e.at - e.wall_s))
        row_id = row_id or self._new_id()
        if e.retry_in_s is not None:
            self._block_tries[where] = e.attempt
        else:
            self._block_tries.pop(where, None)
        join = self._blocks[e.path].join if e.path in self._blocks else None
        failure = e.failure
        self._full[row_id] = (
            *(row_id, self.run_id, None, e.path, e.label, place.name, e.item, e.attempt, e.kind, None, e.status),
            *(failure.cause if failure else None, storable(e.reason) or None),
            *(_message(failure), place.parent, place.branch, join, None),
            *(started, e.at, e.wall_s, None, failure.peak_rss_bytes if failure else None, e.cost),
            *(
                e.successful_count,
                storable(",".join(e.produced)) or None,
                None,
                failure_text(failure) if failure else None,
            ),
            *(None, e.retry_in_s, e.members, e.failed_count, e.work_s, e.saved_s),
        )

    def _run_started(self, e: ev.RunStarted) -> None:
        self.run["steps"] = e.steps

    def _run_finished(self, e: ev.RunFinished) -> None:
        self.run.update(
            status=e.status,
            reason=storable(e.reason) or None,
            exit_code=exit_code(e.status, e.reason),
            failures=e.failures,
            tolerated=e.tolerated,
            wall_s=e.wall_s,
            work_s=e.work_s,
        )


def _names(outputs: Mapping[str, Ref]) -> str:
    return storable(",".join(outputs)) if outputs else ""


def _message(failure: Failure | None) -> str | None:
    return storable(_cut(str(failure), MAX_MESSAGE)) if failure is not None else None
