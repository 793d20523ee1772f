"""Mapping: which items of a map form the next batch, and what is known of each. Pure.

Batches are contiguous items of one page, or items that run again. Their size follows the measured time of an item,
aims at ``BATCH_S`` and shrinks towards the end so that no worker is left with a long tail. Items run in the order
of the batch, so when a worker dies the culprit is among those not yet reported; where that is more than one, each
runs alone next.
"""

from __future__ import annotations

import heapq
import pickle
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from procflow.attempt import Failure, Items
from procflow.ref import Inline, ListOf, Ordered, Ref, WithState
from procflow.scheduling.runs import MapRun

__all__ = [
    "add_pages",
    "again",
    "changed",
    "done",
    "has_work",
    "measure",
    "remaining",
    "results",
    "size_of_batch",
    "start_over",
    "take",
]

BATCH_S = 0.2
"""Aimed length of a batch, in seconds."""
GROWTH = 4
"""Most times a batch may be larger than all items measured so far: one odd item must not decide."""

Indices = range | tuple[int, ...]


def add_pages(run: MapRun, pages: Sequence[tuple[Ref, int]]) -> None:
    """The map's items are known."""
    for ref, count in pages:
        if count:
            run.pages.append((run.size, count, ref))
            run.size += count
    run.expanded = True


def has_work(run: MapRun) -> bool:
    """There are items that could start now."""
    return bool(run.again) or run.cursor < run.size


def size_of_batch(run: MapRun, slots: int) -> int:
    """How many items the next batch takes."""
    if run.unit.batch is not None:
        return run.unit.batch
    if not run.measured:
        return 1
    wanted = int(BATCH_S / run.item_s) if run.item_s > 0 else run.size
    share = max(1, (run.size - run.cursor) // (2 * slots))
    return max(1, min(wanted, run.measured * GROWTH, share))


def take(run: MapRun, size: int) -> Items | None:
    """The next batch of at most ``size`` items; items that run again come first."""
    if run.again:
        return _take_again(run, size)
    if run.cursor >= run.size:
        return None
    first, count, ref = run.pages[run.page]
    stop = min(run.cursor + size, first + count)
    items = Items(ref, first, range(run.cursor, stop))
    run.cursor = stop
    if stop == first + count:
        run.page += 1
    return items


def _take_again(run: MapRun, size: int) -> Items:
    index = heapq.heappop(run.again)
    first, count, ref = run.pages[bisect_right(run.pages, index, key=lambda page: page[0]) - 1]
    chosen = [index]
    if index not in run.alone:
        while run.again and len(chosen) < size and run.again[0] < first + count and run.again[0] not in run.alone:
            chosen.append(heapq.heappop(run.again))
    return Items(ref, first, _indices(chosen))


def _indices(chosen: list[int]) -> Indices:
    if chosen[-1] - chosen[0] == len(chosen) - 1:
        return range(chosen[0], chosen[-1] + 1)
    return tuple(chosen)


def again(run: MapRun, indices: Sequence[int]) -> None:
    """The items may start once more."""
    for index in indices:
        heapq.heappush(run.again, index)


def start_over(run: MapRun) -> None:
    """The map runs again: every item that has no value yet may start; all of them where some are folded already."""
    if run.fold is not None and run.fold.so_far is not None:
        run.chunks, run.changed, run.successes, run.fold = [], None, 0, type(run.fold)()
    finished = {index for indices, _ in run.chunks for index in indices}
    run.again = [index for index in range(run.size) if index not in finished]
    run.cursor = run.size
    run.failures.clear()
    run.charges.clear()


def done(run: MapRun, indices: Indices, chunk: Ref | None) -> None:
    """The items ended well; ``chunk`` opens to the list of their values."""
    if type(chunk) is WithState:
        changed(run, chunk.state)
        chunk = chunk.value
    if indices and chunk is not None and run.fold is not None:
        run.fold.add(indices, chunk)
    if indices and chunk is not None:
        run.chunks.append((indices, chunk))
        run.successes += len(indices)
        if run.alone:
            run.alone.difference_update(indices)


def changed(run: MapRun, changes: Iterable[tuple[str, Indices, Ref]]) -> None:
    """Items changed keys of the state; each ref opens to a list with the changes of each item."""
    if run.changed is None:
        run.changed = {}
    for key, indices, ref in changes:
        run.changed.setdefault(key, []).append((indices, ref))


def measure(run: MapRun, count: int, wall_s: float) -> None:
    """``count`` items took ``wall_s`` together; later measurements weigh more, because items drift."""
    if count:
        weight = min(1.0, count / (run.measured + count)) if run.measured < 1000 else 0.2
        run.item_s += (wall_s / count - run.item_s) * max(weight, 0.05)
        run.measured += count


def remaining(items: Items, reported: set[int]) -> list[int]:
    """Items of a batch that no report has named yet, in order."""
    return [i for i in items.indices if i not in reported]


def results(run: MapRun) -> Ordered:
    """All values in item order, failed items left out."""
    return Ordered(tuple(sorted(run.chunks, key=lambda chunk: chunk[0][0])))


def one(ref: Ref) -> ListOf:
    """A chunk of one value."""
    return ListOf((ref,))


def errors(failures: dict[int, Failure]) -> Inline:
    """Failed items as a list of plain records, for ``collect_all``."""
    rows = [{"item": i, "type": f.type, "message": f.message, "cause": f.cause} for i, f in sorted(failures.items())]
    return Inline(pickle.dumps(rows, protocol=5))
