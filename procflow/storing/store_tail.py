"""Tail: results that were received and are not yet in a transaction, safe from the death of this process.

A transaction with its fsync costs too much for every result of a fast step, so the journal commits in groups. A kill
between two commits must not cost more than what was running. Therefore each result is appended to a small file,
``tails/<run id>``, by one write, before its worker gets anything new to do; after the commit the file is emptied. When
the next session finds a tail, its records become rows before anything else happens.

The page cache survives the process, so the tail is never synced: against power loss there is the transaction. Records
carry length and checksum, bodies are ``marshal`` of plain data; a torn last record is dropped. Only what ended well is
worth keeping: everything else runs again anyway. Workers keep files of the same kind beside it (``worker_tail.py``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from procflow.attempt import Usage
from procflow.events import AttemptFinished, ItemsDone
from procflow.ref import Ref, from_plain
from procflow.storing.own_files import open_own
from procflow.storing.store_plain import result_of
from procflow.storing.store_refs import decode_ref, decode_refs
from procflow.storing.tail_record import Body, bodies, record
from procflow.storing.worker_tail import TOLD, finished

__all__ = ["PLAIN", "Tail", "event_of", "items_body", "read_tail", "remove", "result_body", "tail_path", "tails"]

FOLDER = "tails"
PLAIN = "plain"
"""What the body of a result begins with that is as its row says: the row's own bytes follow, and its refs."""
_ROW = "row"
"""The same of versions before 4: behind the row's bytes come name and ref of each output."""


class Tail:
    """The tail of one run."""

    def __init__(self, state_folder: Path, run_id: str) -> None:
        folder = state_folder / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        self.path = folder / run_id
        self._fd = open_own(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._written = False

    def note(self, bodies: list[Body]) -> None:
        """Write these results; from here on a kill can't lose them. Raises OSError."""
        data = record(bodies)
        done = os.write(self._fd, data)
        while done < len(data):
            done += os.write(self._fd, data[done:])
        self._written = True

    def clear(self) -> None:
        """All of it is in a transaction now."""
        if self._written:
            os.ftruncate(self._fd, 0)
            self._written = False

    def close(self) -> None:
        """Let go; the file goes too if it is empty. Idempotent."""
        if self._fd < 0:
            return
        empty = not self._written
        fd, self._fd = self._fd, -1
        os.close(fd)
        if empty:
            remove(self.path)


def result_body(e: AttemptFinished) -> Body:
    """A result in full."""
    usage = e.usage
    return (
        "finished",
        (e.at, e.key, e.path, e.label, e.item, e.number, e.executor, e.status, e.started_at),
        (usage.wall_s, usage.cpu_s, usage.peak_rss_bytes),
        tuple([(name, ref.plain()) for name, ref in e.outputs.items()]),
        tuple(e.metrics.items()),
        (e.cost, e.count, e.role),
        _plain_indices(e.indices),
        tuple([(ref.plain(), count) for ref, count in e.pages]),
    )


def items_body(e: ItemsDone) -> Body:
    """Items of a batch that goes on."""
    return ("items", (e.at, e.key, e.path, e.label, e.item), _plain_indices(e.indices), e.chunk.plain())


def _plain_indices(indices: range | tuple[int, ...]) -> tuple[int, ...]:
    # No item index is negative, so -1 marks a range.
    return (-1, indices.start, indices.stop) if isinstance(indices, range) else tuple(indices)


def _indices(plain: tuple[int, ...]) -> range | tuple[int, ...]:
    return range(plain[1], plain[2]) if plain and plain[0] == -1 else plain


def read_tail(path: Path) -> list[AttemptFinished | ItemsDone]:
    """The events of a tail and of those that workers kept beside it, each once, in order, up to a torn record."""
    events: dict[tuple[Any, ...], AttemptFinished | ItemsDone] = {}
    for one in (path, *beside(path)):
        with contextlib.suppress(FileNotFoundError):
            for event in _events(bodies(one.read_bytes())):
                finished = type(event) is AttemptFinished
                events.setdefault((event.key,) if finished else (event.key, event.indices), event)
    return list(events.values())


def beside(path: Path) -> list[Path]:
    """The files that workers have left beside a tail."""
    try:
        return sorted(other for other in path.parent.iterdir() if other.name.startswith(f"{path.name}+"))
    except FileNotFoundError:
        return []


def remove(path: Path) -> None:
    """Remove a tail with all that lies beside it."""
    for one in (path, *beside(path)):
        with contextlib.suppress(OSError):
            one.unlink()


def _events(found: Iterable[Any]) -> Iterator[AttemptFinished | ItemsDone]:
    for body in found:
        # One result, or all those of a turn.
        yield from map(event_of, (body,) if isinstance(body[0], str) else body)


def event_of(body: Body) -> AttemptFinished | ItemsDone:
    """The event that a body says."""
    if body[0] == PLAIN:
        return result_of(body[1], lambda names: decode_refs(names, body[2]))
    if body[0] == _ROW:
        return result_of(body[1], lambda names: _pairs(body[2:]))
    if body[0] == TOLD:
        body = finished(body)
    if body[0] == "items":
        _, (at, key, path, label, item), indices, chunk = body
        return ItemsDone(at, key, path, label, item, _indices(indices), from_plain(chunk))
    (
        _,
        (at, key, path, label, item, number, executor, status, started_at),
        usage,
        outputs,
        metrics,
        rest,
        indices,
        pages,
    ) = body
    cost, count, role = rest
    return AttemptFinished(
        *(at, key, path, label, item, number, executor, status, started_at),
        Usage(*usage),
        outputs={name: from_plain(ref) for name, ref in outputs},
        metrics=dict(metrics),
        cost=cost,
        count=count,
        role=role,
        indices=_indices(indices),
        pages=tuple((from_plain(ref), size) for ref, size in pages),
    )


def _pairs(published: Sequence[Any]) -> dict[str, Ref]:
    return {name: decode_ref(ref) for name, ref in zip(published[::2], published[1::2], strict=True)}


def tail_path(state_folder: Path, run_id: str) -> Path:
    """Where a run's tail is."""
    return state_folder / FOLDER / run_id


def tails(state_folder: Path) -> list[str]:
    """Ids of runs that left a tail, and of those that go on."""
    try:
        return sorted({name.partition("+")[0] for name in os.listdir(state_folder / FOLDER)})
    except FileNotFoundError:
        return []
