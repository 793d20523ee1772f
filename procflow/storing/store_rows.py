"""Events to rows: what the journal says about a run, before it is written.

``Rows`` collects the rows of one run since the last commit, keyed by id, so that an attempt which starts and ends
between two commits costs one insert. It holds nothing for an attempt that ended well: its memory is bounded by what
runs at once, by the steps declared, and by the attempts that failed and whose step has not settled yet. It never
touches a disk or a clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from procflow import events as ev
from procflow.attempt import Failure
from procflow.ref import Ref
from procflow.result import exit_code
from procflow.storing.attempt_log import log_path
from procflow.storing.store_plain import Place, plain_row
from procflow.storing.store_refs import decode_ref, encode_ref, encode_refs, indices_text, storable
from procflow.storing.store_schema import COLUMNS
from procflow.storing.store_tail import PLAIN, items_body, result_body
from procflow.storing.tail_record import Body

__all__ = ["Row", "Rows", "decode_ref", "encode_ref", "failure_text", "storable"]

Row = tuple[Any, ...]
"""One row of ``step_executions``, in the order of ``COLUMNS``."""

_AT = {name: i for i, name in enumerate(COLUMNS)}
_REASON, _TOLERATED, _STATUS, _RETRY = _AT["reason"], _AT["tolerated"], _AT["status"], _AT["retry_in_s"]
MAX_MESSAGE = 10_000
MAX_TRACEBACK = 200_000


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


class Rows:
    """The uncommitted rows of one run. ``first_id`` is the first free id of its range."""

    def __init__(self, run_id: str, first_id: int) -> None:
        self.run_id = run_id
        # Attempts that began and have not ended: the row's id, and the event until that is committed.
        self._open: dict[int, tuple[int, ev.AttemptStarted | None]] = {}
        # Sealed rows of attempts that simply succeeded, in the order of ``PLAIN_COLUMNS``.
        self.plain: list[list[Any]] = []
        # What ended well since the tail was told, as its records hold it.
        self.received: list[Body] = []
        self._full: dict[int, Row] = {}
        self.pages: list[tuple[int, int, str, int, bytes]] = []
        self.chunks: list[tuple[int, int, str, str, bytes]] = []
        self.metrics: list[tuple[int, str, str, float]] = []
        self.run: dict[str, Any] = {}
        self.counts = dict.fromkeys(("succeeded", "failed", "lost", "skipped", "cancelled"), 0)
        self._next_id = first_id
        # Of tasks whose blocks began in a session that was killed.
        self._places: dict[str, Place] = {}
        self._blocks: dict[str, ev.BlockStarted] = {}
        self._around: dict[str, tuple[int, str | None]] = {}
        self._open_blocks: dict[tuple[str, str], tuple[int, float]] = {}
        self._block_tries: dict[tuple[str, str], int] = {}
        # Rows of attempts that ended badly, until their step says whether that was tolerated.
        self._unsettled: dict[tuple[str, str], Row] = {}
        self.takes: dict[type, Callable[[Any], None]] = {
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
        take = self.takes.get(type(event))
        if take is None:
            return False
        take(event)
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
            self._open[event.key] = (row_id, None)
            name = event.label.rpartition("/")[2]
            self._places.setdefault(event.path, (event.label, name, parent, branch, join))
        elif event.key not in self._open and isinstance(event, ev.ItemsDone):
            started = ev.AttemptStarted(event.at, event.key, event.path, event.label, event.item, 1, "", "batch")
            self._attempt_started(started)
        return self.add(event)

    def clear(self) -> None:
        """Forget what was committed."""
        self._open = {key: (row_id, None) for key, (row_id, _) in self._open.items()}
        self._full = {}
        self.plain, self.received = [], []
        self.pages, self.chunks, self.metrics = [], [], []
        self.run = {}

    def full(self) -> list[Row]:
        """The rows of ``step_executions`` to write, but those of attempts that simply succeeded."""
        running = [self._started_row(row_id, event) for row_id, event in self._open.values() if event is not None]
        return running + list(self._full.values())

    def _new_id(self) -> int:
        number = self._next_id
        self._next_id = number + 1
        return number

    def _place(self, path: str, label: str) -> Place:
        """The place of a task. A map's tasks, and those that gate or merge a block, carry the path of their block."""
        if path in self._places:
            return self._places[path]
        return self._find_place(path, label, path in self._blocks)

    def _find_place(self, path: str, label: str, of_block: bool = False) -> Place:
        parent, label = path.rpartition(".")[0], str(label)
        around = self._around.get(parent)
        if around is None:
            around = self._around[parent] = self._find_parallel(parent)
        depth, join = around
        name = branch = label.rpartition("/")[2]
        if depth < label.count("/"):
            branch = label.split("/")[depth]
        return label, name, path if of_block else parent or None, branch if depth >= 0 else None, join

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
        self._open[e.key] = (row_id, e)

    def _started_row(self, row_id: int, e: ev.AttemptStarted) -> Row:
        _, name, *place = self._place(e.path, e.label)
        return (
            *(row_id, self.run_id, e.key, e.path, e.label, name, e.item, e.number, "task", e.role, "running"),
            *(None, None, None, *place, e.executor, e.at, None),
            *(None, None, None, None, None, None, log_path(e.label, e.item, e.number)),
            *(None, None, None, None, None, None, None, None),
        )

    def _attempt_finished(self, e: ev.AttemptFinished) -> None:
        opened = self._open.pop(e.key, None)
        row_id = opened[0] if opened is not None else self._new_id()
        path, status = e.path, e.status
        self.counts[status] += 1
        if e.pages:
            self.pages += [(row_id, i, self.run_id, count, encode_ref(page)) for i, (page, count) in enumerate(e.pages)]
        if e.metrics:
            self.metrics += [(row_id, storable(name), self.run_id, float(value)) for name, value in e.metrics.items()]
        if e.role == "batch" and e.indices:
            names, refs = "", None
            for chunk in e.outputs.values():
                self._add_chunk(row_id, e.indices, chunk)
        else:
            names, refs = encode_refs(e.outputs)
        if status != "succeeded" or e.failure is not None:
            row = self._bad_row(row_id, e, names, refs)
            self._full[row_id] = row
            self._unsettled[path, e.item] = row
            if status in ("succeeded", "skipped"):
                self.received.append(result_body(e))
            return
        if self._unsettled:
            self._unsettled.pop((path, e.item), None)
        plain, data = plain_row(row_id, self.run_id, self._place(path, e.label), e, names, refs)
        self.plain.append(plain)
        if e.pages or e.metrics or e.indices:
            self.received.append(result_body(e))
        else:
            self.received.append((PLAIN, data, refs))

    def _bad_row(self, row_id: int, e: ev.AttemptFinished, names: str, refs: bytes | None) -> Row:
        usage, failure = e.usage, e.failure
        _, name, *place = self._place(e.path, e.label)
        return (
            *(row_id, self.run_id, e.key, e.path, e.label, name, e.item, e.number, "task", e.role, e.status),
            *(failure.cause if failure else None, None, _message(failure), *place),
            *(e.executor, e.started_at, e.at, usage.wall_s, usage.cpu_s, usage.peak_rss_bytes, e.cost, e.count),
            *(names, log_path(e.label, e.item, e.number), failure_text(failure) if failure else None),
            *(None, e.retry_in_s, None, None, None, None, refs),
        )

    def _add_chunk(self, row_id: int, indices: range | tuple[int, ...], chunk: Ref) -> None:
        self.chunks.append((row_id, indices[0], self.run_id, indices_text(indices), encode_ref(chunk)))

    def _items_done(self, e: ev.ItemsDone) -> None:
        if e.indices:
            self._add_chunk(self._open[e.key][0], e.indices, e.chunk)
        self.received.append(items_body(e))

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
        _, name, *place = self._place(e.path, e.label)
        failure = e.failure
        row_id = self._new_id()
        self._full[row_id] = (
            *(row_id, self.run_id, None, e.path, e.label, name, e.item, e.attempts),
            *(
                "item" if e.attempts else "task",
                "batch" if e.attempts else "member",
                e.status,
                failure.cause if failure else None,
                storable(e.reason) or None,
            ),
            *(_message(failure), *place),
            *(None, None, e.at, None, None, failure.peak_rss_bytes if failure else None, None, None, None),
            *(
                log_path(e.label, e.item, e.attempts) if e.attempts else None,
                failure_text(failure) if failure else None,
            ),
            *(int(e.tolerated), None, None, None, None, None, None),
        )

    def _kept(self, e: ev.StepFinished) -> None:
        """A row that says only that the step was done before; its result lies with the attempt that made it."""
        _, name, parent, branch, join = self._place(e.path, e.label)
        row_id = self._new_id()
        known: dict[str, Any] = {
            "id": row_id, "run_id": self.run_id, "path": e.path, "label": e.label, "name": name, "item": e.item,
            "attempt": 0, "kind": "kept", "role": "member", "status": e.status, "ended": e.at,
            "parent_step_id": parent, "branch_name": branch, "join_policy": join,
            "output_ref": storable(",".join(e.produced)), "reason": storable(e.reason) or None,
        }  # fmt: skip
        self._full[row_id] = tuple(known.get(column) for column in COLUMNS)

    def _block_started(self, e: ev.BlockStarted) -> None:
        if e.path not in self._blocks:
            self._blocks[e.path] = e
            self._around.clear()
        _, name, parent, branch, _ = self._find_place(e.path, e.label)
        row_id, where = self._new_id(), (e.path, e.item)
        self._open_blocks[where] = (row_id, e.at)
        attempt = self._block_tries.get(where, 0) + 1
        self._full[row_id] = (
            *(row_id, self.run_id, None, e.path, e.label, name, e.item, attempt, e.kind, None, "running"),
            *(None, None, None, parent, branch, e.join, None, e.at, None),
            *(None, None, None, None, None, None, None, None, None, None, e.members, None, None, None, None),
        )

    def _block_finished(self, e: ev.BlockFinished) -> None:
        _, name, parent, branch, _ = self._find_place(e.path, e.label)
        where = (e.path, e.item)
        row_id, started = self._open_blocks.pop(where, (0, e.at - e.wall_s))
        row_id = row_id or self._new_id()
        if e.retry_in_s is not None:
            self._block_tries[where] = e.attempt
        else:
            self._block_tries.pop(where, None)
        join = self._blocks[e.path].join if e.path in self._blocks else None
        failure = e.failure
        self._full[row_id] = (
            *(row_id, self.run_id, None, e.path, e.label, name, e.item, e.attempt, e.kind, None, e.status),
            *(failure.cause if failure else None, storable(e.reason) or None),
            *(_message(failure), parent, branch, join, None),
            *(started, e.at, e.wall_s, None, failure.peak_rss_bytes if failure else None, e.cost),
            *(
                e.successful_count,
                storable(",".join(e.produced)) or None,
                None,
                failure_text(failure) if failure else None,
            ),
            *(None, e.retry_in_s, e.members, e.failed_count, e.work_s, e.saved_s, None),
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


def _message(failure: Failure | None) -> str | None:
    return storable(_cut(str(failure), MAX_MESSAGE)) if failure is not None else None
