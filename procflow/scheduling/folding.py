"""Folding: the rules of ``reduce``: a map's results are folded in item order while it runs, so that they never are all there.

The fold runs in a worker, as a merger of the map that comes again and again: it takes the value so far and the results that
follow on it without a gap, and gives the next value so far; results that were folded are let go of. The last one, once all
items are done, gives the map's value. Items that failed and are tolerated leave no gap. While more than ``MOST_BYTES`` of
results wait for one that is missing or for the fold, no more items start. A resume folds again what is recorded. Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from procflow.ref import Ordered, Ref, Stored, stored_in
from procflow.scheduling.attempts import Attempts
from procflow.scheduling.runs import Indices, MapRun, TaskRun
from procflow.state import SO_FAR, WAITING

__all__ = ["Fold", "Folding", "is_crowded"]

LEAST_ITEMS = 1000
LEAST_BYTES = 1 << 20
"""A fold begins with so many results or bytes: each costs a round trip."""
MOST_BYTES = 32 << 20
REF_BYTES = 300
"""What a result costs in this process whose value is in a file."""


class Fold:
    """How far the results of one map are folded.

    All items before ``frontier`` are done or have failed; ``settled`` are intervals of others behind it. ``taken`` are the
    chunks that the fold at work reads, ``files`` those of chunks that are folded: a resume may want them until the map ends.
    """

    __slots__ = ("bytes", "files", "frontier", "items", "settled", "so_far", "taken")

    def __init__(self) -> None:
        self.so_far: Ref | None = None
        self.frontier = 0
        self.settled: list[tuple[int, int]] = []
        self.taken: list[tuple[Indices, Ref]] | None = None
        self.files: list[Stored] = []
        self.bytes = 0
        self.items = 0

    def add(self, indices: Indices, chunk: Ref) -> None:
        """Results are there."""
        self.bytes += cost_bytes(chunk)
        self.items += len(indices)
        self.settle(indices)

    def settle(self, indices: Indices) -> None:
        """Nothing more comes of these items."""
        parts = [(indices.start, indices.stop)] if isinstance(indices, range) else [(i, i + 1) for i in indices]
        for part in parts:
            heapq.heappush(self.settled, part)
        while self.settled and self.settled[0][0] <= self.frontier:
            self.frontier = max(self.frontier, heapq.heappop(self.settled)[1])

    def next(self, chunks: list[tuple[Indices, Ref]]) -> list[tuple[Indices, Ref]]:
        """The chunks that follow on what is folded without a gap; none with an item behind one that is missing."""
        limit = self.frontier
        while True:
            across = [indices[0] for indices, _ in chunks if indices[0] < limit <= indices[-1]]
            if not across:
                return sorted((chunk for chunk in chunks if chunk[0][-1] < limit), key=lambda chunk: chunk[0][0])
            limit = min(across)


def cost_bytes(chunk: Ref) -> int:
    """What a result costs in this process."""
    return chunk.size_bytes if next(stored_in(chunk), None) is None else REF_BYTES


class Folding(Attempts):
    """The rules of folds."""

    __slots__ = ()

    def _fold(self, run: MapRun) -> None:
        """Begin a fold if enough waits for one."""
        fold, unit = run.fold, run.unit
        if fold is None or unit.reduce is None or run.hidden is not None or run.ending is not None or run.done:
            return
        if fold.items < LEAST_ITEMS and fold.bytes < LEAST_BYTES:
            return
        taken = fold.next(run.chunks)
        if taken and (sum(len(indices) for indices, _ in taken) >= LEAST_ITEMS or fold.bytes >= LEAST_BYTES):
            fold.taken = taken
            self._hide(unit.reduce, run, "merger")

    def _fold_values(self, task: TaskRun) -> dict[str, Ref]:
        """What a fold reads: the value so far, if there is one, and the results that come next."""
        run = task.scope
        assert isinstance(run, MapRun)
        fold = run.fold
        assert fold is not None
        waiting = fold.taken if task.unit is run.unit.reduce and fold.taken is not None else run.chunks
        found: dict[str, Ref] = {WAITING: Ordered(tuple(sorted(waiting, key=lambda chunk: chunk[0][0])))}
        if fold.so_far is not None:
            found[SO_FAR] = fold.so_far
        return found

    def _folded(self, run: MapRun, outputs: Mapping[str, Ref]) -> None:
        """A fold on the way is done: its results are not needed any more."""
        fold = run.fold
        assert fold is not None
        assert fold.taken is not None
        done = {id(chunk) for _, chunk in fold.taken}
        for indices, chunk in fold.taken:
            fold.bytes -= cost_bytes(chunk)
            fold.items -= len(indices)
            fold.files += stored_in(chunk)
        run.chunks = [chunk for chunk in run.chunks if id(chunk[1]) not in done]
        fold.taken = None
        before, fold.so_far = fold.so_far, outputs[SO_FAR]
        if before is not None:
            self._release(stored_in(before))
        self._feed(run)
        self._fold(run)
        self._maybe_close(run)


def is_crowded(run: MapRun) -> bool:
    """So many results wait for their fold that no more items may start, but for the one that it waits for."""
    fold = run.fold
    if fold is None or fold.bytes <= MOST_BYTES:
        return False
    if run.hidden is not None:
        return True
    return run.active > 0 and (run.again[0] if run.again else run.cursor) > fold.frontier
