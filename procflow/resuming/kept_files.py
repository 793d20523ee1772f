"""Kept files: which results have to be made again because the file that holds them is gone or damaged.

A file that was removed once all its readers were done is not missed as long as these readers are kept, too; a file that
somebody will read must be there, and hold what was written. So one lost file may cost more: its step runs again, then
all that builds on it, and they may read values whose files were removed. ``find_lost`` goes on until nothing is added.
Every file that is needed is read once and compared with its digest. This file opens no value and removes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from procflow.graph import MapUnit, ScopeUnit
from procflow.resuming.needs import Key, Need
from procflow.scheduling.releasing import Reads
from procflow.storing.journal_objects import StoredResult
from procflow.storing.journal_results import Good, Results, above
from procflow.values.object_views import verify

__all__ = ["Lost", "find_lost"]


@dataclass(slots=True)
class Lost:
    """What does not hold any more: tasks and what builds on them, by the items they stand in; single chunks of maps.

    ``why`` says of a task what is wrong with its file.
    """

    touched: dict[Key, set[str]] = field(default_factory=dict)
    chunks: set[tuple[int, int]] = field(default_factory=set)
    why: dict[Key, str] = field(default_factory=dict)

    def touches(self, key: Key, item: str) -> bool:
        """Whether the task has to run again for this item."""
        places = self.touched.get(key)
        if places is None:
            return False
        depth = item.count("/") + 1 if item else 0
        return any(above(item, d) in places for d in range(depth + 1))

    def touches_below(self, key: Key, item: str) -> bool:
        """Whether the task has to run again for this item or any in it."""
        return self.touches(key, item) or any(_is_in(place, item) for place in self.touched.get(key, ()))


class Judge(Protocol):
    """What is known without a look at files, and changes as ``lost`` grows; ``JournalKept`` is one."""

    needs: Mapping[Key, Need]
    results: Results
    stale: set[Key]
    lost: Lost

    def good(self, key: Key, item: str) -> Good | None:
        """The execution whose result holds."""

    def batches(self, key: Key, item: str) -> list[int]:
        """The executions whose items hold."""

    def is_whole(self, label: str, item: str) -> bool:
        """Whether a map has all its items."""

    def runs_anew(self, label: str) -> bool:
        """Whether the step is to run whatever was done."""

    def stays(self, name: str) -> bool:
        """Whether the pipeline says to keep the value."""


def find_lost(judge: Judge, stored: Mapping[int, list[StoredResult]]) -> None:
    """Fill ``judge.lost``; ``stored`` are the files of the results by execution."""
    if stored:
        _Search(judge, stored).run()


class _Search:
    def __init__(self, judge: Judge, stored: Mapping[int, list[StoredResult]]) -> None:
        self.judge = judge
        self.needs = judge.needs
        self.stored = stored
        self._wrong: dict[str, str] = {}
        self.builds_on: dict[Key, list[Key]] = {}
        self.passes: dict[Key, list[Key]] = {}
        for key, need in self.needs.items():
            for before in dict.fromkeys(need.keys):
                self.builds_on.setdefault(before, []).append(key)
            for part in need.parts:
                self.passes.setdefault(part, []).append(key)
        root = self.needs["", "block"]
        assert isinstance(root.unit, ScopeUnit)
        self.values, self.open = root.values, root.open
        self.reads = Reads(root.unit)

    def run(self) -> None:
        """Again and again, since what runs again reads more."""
        results = list(self._results())
        news = True
        while news:
            news = False
            for key, item, execution_id in results:
                news = self._is_news(key, item, execution_id) or news

    def _results(self) -> Iterator[tuple[Key, str, int]]:
        """Every execution with files whose result may be kept: its task, item and id."""
        results = self.judge.results
        for key, by_item in results.good.items():
            for item, good in by_item.items():
                if good.id in self.stored and key in self.needs:
                    yield key, item, good.id
        for label, executions in results.chunks.items():
            key = (label, "batch")
            for item, ids in executions.items():
                for execution_id in ids:
                    if execution_id in self.stored and key in self.needs:
                        yield key, item, execution_id

    def _is_news(self, key: Key, item: str, execution_id: int) -> bool:
        """Look at one execution; True where something of it is found to be lost."""
        judge, lost = self.judge, self.judge.lost
        if key[1] == "batch":
            if execution_id not in judge.batches(key, item):
                return False
        elif judge.good(key, item) is None:
            return False
        news = False
        for one in self.stored[execution_id]:
            chunk = (execution_id, one.place)
            if (one.kind == "chunk" and chunk in lost.chunks) or not self.is_needed(key, item, one.name):
                continue
            wrong = self._is_wrong(one)
            if not wrong:
                continue
            news = True
            lost.why.setdefault(key, wrong)
            if one.kind != "chunk":
                self._touch(key, item)
                return True
            lost.chunks.add(chunk)
            for after in self.builds_on.get(key, ()):
                self._touch(after, above(item, self.needs[after].depth))
        return news

    def _is_wrong(self, one: StoredResult) -> str:
        path = one.stored.path
        if path not in self._wrong:
            self._wrong[path] = verify(one.stored)
        return self._wrong[path]

    def _touch(self, key: Key, item: str) -> None:
        """The task runs again, and with it all that builds on it."""
        waiting = [(key, item)]
        while waiting:
            one, place = waiting.pop()
            places = self.judge.lost.touched.setdefault(one, set())
            if place in places:
                continue
            places.add(place)
            waiting += [(after, above(place, self.needs[after].depth)) for after in self.builds_on.get(one, ())]

    # -- is it needed?

    def is_needed(self, key: Key, item: str, name: str) -> bool:
        """Whether a value of the task is a result of the run, or read by anything that is not kept."""
        if self._is_result(key, name):
            return True
        for after in self.builds_on.get(key, ()):
            need = self.needs[after]
            read = need.reads if not name else {name: need.reads.get(name, ())}
            if any(key in makers for makers in read.values()) and not self._is_kept(after, item, self.needs[key].depth):
                return True
        return any(
            self.is_needed(block, above(item, self.needs[block].depth), "") for block in self.passes.get(key, ())
        )

    def _is_result(self, key: Key, name: str) -> bool:
        """Whether the value stays at the end of the run."""
        names = [name] if name else [n for n, makers in self.values.items() if key in makers]
        for one in names:
            if key in self.values.get(one, ()) or key in self.open:
                writer = self._top(key)
                if self.judge.stays(one) or not self.reads.passes_on(one, writer):
                    return True
        return False

    def _top(self, key: Key) -> int:
        """The member of the top block that the task stands in."""
        root = self.needs["", "block"].unit
        assert isinstance(root, ScopeUnit)
        first = key[0].partition("/")[0]
        return next(member.index for member in root.members if member.label == first)

    def _is_kept(self, reader: Key, item: str, depth: int) -> bool:
        """Whether a reader of a value is done for good, as seen from an item at ``depth``."""
        judge = self.judge
        label, role = reader
        if judge.runs_anew(label) or reader in judge.stale:
            return False
        need = self.needs[reader]
        if self._left_out(label, item):
            return True
        if need.depth > depth:
            around = self._map_around(label, depth)
            return judge.results.blocks.get((around, item), False) and not judge.lost.touches_below(reader, item)
        where = above(item, need.depth)
        if role == "batch":
            return judge.is_whole(label, where) and not judge.lost.touches(reader, where)
        return judge.good(reader, where) is not None

    def _left_out(self, label: str, item: str) -> bool:
        """The reader, or a block around it, had a condition that was false."""
        parts = label.split("/")
        for i in range(1, len(parts) + 1):
            gate = ("/".join(parts[:i]), "gate")
            if gate in self.needs:
                good = self.judge.good(gate, above(item, self.needs[gate].depth))
                if good is not None and good.skipped:
                    return True
        return False

    def _map_around(self, label: str, depth: int) -> str:
        """The map around a task that stands at this depth itself."""
        parts = label.split("/")
        for i in range(1, len(parts)):
            block = self.needs.get(("/".join(parts[:i]), "block"))
            if block is not None and isinstance(block.unit, MapUnit) and block.depth == depth:
                return block.key[0]
        raise AssertionError(f"{label} stands in no map at depth {depth}")


def _is_in(place: str, item: str) -> bool:
    return not item or place.startswith(f"{item}/")
