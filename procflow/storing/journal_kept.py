"""Kept results out of the journal: which of a run's results still hold for a pipeline as it is now, and why not others.

A result holds if its task is made from the same as then (fingerprint), all that it builds on is so too, and it began
after the last good execution of everything it builds on. The last rule carries over from one session to the next what
the scheduler knows only while it runs: that something upstream was made anew. ``verdicts`` tells it per step.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from procflow.events import Role
from procflow.graph import MapUnit, ScopeUnit
from procflow.ref import Element, ListOf, Ref, WithState
from procflow.resuming.fingerprint import Fingerprint, changed_pieces, changes
from procflow.resuming.kept_files import Lost, find_lost
from procflow.resuming.needs import Key, Need
from procflow.scheduling.kept import KeptTask
from procflow.state import MARK
from procflow.storing.journal_results import Good, Indices, Results, above
from procflow.storing.store_begin import Taken
from procflow.storing.store_prints import Prints

__all__ = ["JournalKept", "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a resume does with a task: ``why`` it runs again, empty where its result is kept.

    ``done`` and ``total`` count the items of a map, or a step's items inside one; None where they do not apply or nobody
    knows.
    """

    key: Key
    path: str
    why: str = ""
    done: int | None = None
    total: int | None = None

    @property
    def kept(self) -> bool:
        return not self.why


class JournalKept:
    """The results of ``results`` for the pipeline of ``needs``, whose tasks are made from ``prints``.

    ``same_run`` says that the run itself goes on: then attempts and clocks go on too. The results of the labels in
    ``ignore`` are used whatever they were made from, those in ``anew`` run whatever was done. ``keep`` are values that stay,
    ``hooks`` the labels of steps of hooks by path: they always run, and their attempts go on as well.
    """

    def __init__(
        self,
        needs: Mapping[Key, Need],
        prints: Mapping[Key, Fingerprint],
        results: Results,
        *,
        same_run: bool,
        ignore: Container[str] = (),
        anew: Container[str] = (),
        keep: Container[str] = (),
        hooks: Mapping[str, str] | None = None,
    ) -> None:
        self.needs = needs
        self.results = results
        self._prints = prints
        self._same_run = same_run
        self._ignore = ignore
        self._anew = anew
        self._keep = keep
        self._hooks = hooks or {}
        self.lost = Lost()
        self.keys_by_path = {(need.unit.path, key[1]): key for key, need in needs.items()}
        self._floors: dict[tuple[Key, str], int] = {}
        self.changed = {key: why for key in needs if (why := self._change(key))}
        self.stale: set[Key] = set()
        for key, need in needs.items():
            if key in self.changed or any(before in self.stale for before in need.keys):
                self.stale.add(key)
        find_lost(self, results.files)

    def _change(self, key: Key) -> str:
        """What is different in what a task is made from; empty where nothing is."""
        old, new = self.results.prints.get(key), self._prints[key]
        if key[0] in self._ignore:
            return ""
        if old is None:
            return "is new"
        if new.opaque:
            return f"holds a value of type {new.opaque[0]}, which can't be compared"
        if old.digest == new.digest:
            return ""
        pieces = changed_pieces(old.pieces, new.pieces)
        more = f" and {len(pieces) - 5} more" if len(pieces) > 5 else ""
        told = f" ({', '.join(pieces[:5])}{more})" if pieces else ""
        return f"{' and '.join(changes(old.parts, new.parts))} changed{told}"

    # -- what the scheduler asks -------------------------------------------------------------------------------

    def task(self, path: str, item: str, role: Role) -> KeptTask | None:
        """The result of a task, None where it has to run."""
        key = self.keys_by_path.get((path, role))
        good = self.good(key, item) if key is not None else None
        if good is None:
            return None
        return KeptTask(self.results.outputs(good.id), self.results.pages(good.id), good.skipped)

    def items(self, path: str, item: str) -> Sequence[tuple[Indices, Ref]]:
        """Chunks of values of a map's items that are done."""
        key = self.keys_by_path.get((path, "batch"))
        found: list[tuple[Indices, Ref]] = []
        seen: set[int] = set()
        for execution_id in self.batches(key, item) if key is not None else ():
            for indices, chunk in self.results.chunks_of(execution_id):
                if (execution_id, indices[0]) in self.lost.chunks:
                    continue
                if seen.isdisjoint(indices):
                    found.append((indices, chunk))
                else:
                    new = [(i, place) for place, i in enumerate(indices) if i not in seen]
                    if new:
                        found.append((tuple(i for i, _ in new), _picked(chunk, new)))
                seen.update(indices)
        return found

    def attempts(self, path: str, item: str) -> int:
        """How many attempts were made before."""
        if not self._same_run:
            return 0
        label = self.labels.get(path, self._hooks.get(path))
        return self.results.attempts.get((label, item), 0) if label is not None else 0

    def consumed_s(self, path: str, item: str) -> float:
        """Seconds of its timeout that a block has used up."""
        label = "" if not path else self.labels.get(path)
        return self.results.consumed_s(label, item) if self._same_run and label is not None else 0.0

    @cached_property
    def labels(self) -> dict[str, str]:
        """Labels by path."""
        return {path: key[0] for (path, _), key in self.keys_by_path.items()}

    # -- what holds --------------------------------------------------------------------------------------------

    def good(self, key: Key, item: str) -> Good | None:
        """The execution whose result holds for a task."""
        found = self.results.good.get(key, {}).get(item)
        if found is None or key in self.stale or self.lost.touches(key, item):
            return None
        return found if found.id > self._floor(key, item) else None

    def batches(self, key: Key, item: str) -> list[int]:
        """The executions whose items hold, for a map that calls a function."""
        found = self.results.chunks.get(key[0], {}).get(item, [])
        if not found or key in self.stale or self.lost.touches(key, item):
            return []
        floor = self._floor(key, item)
        return [execution_id for execution_id in found if execution_id > floor]

    def is_whole(self, label: str, item: str, *, as_then: bool = False) -> bool:
        """Whether a map has a result for every item it found; True for other blocks.

        ``as_then``: but for those whose failure it tolerated.
        """
        if (label, "expand") not in self.needs:
            return True
        expand = self.good((label, "expand"), item)
        if expand is None:
            return False
        if (label, "batch") not in self.needs:
            return True
        gaps = self.results.gaps.get((label, item), 0) if as_then else 0
        return self._count_done((label, "batch"), item) + gaps == self.results.count_pages(expand.id)

    def _count_done(self, key: Key, item: str) -> int:
        """How many items of a map that calls a function have a value; each counts once."""
        parts = [
            (indices[0], indices[-1] + 1, indices)
            for execution_id in self.batches(key, item)
            for indices in self.results.indices_of(execution_id)
            if (execution_id, indices[0]) not in self.lost.chunks
        ]
        parts.sort(key=lambda part: part[:2])
        if all(before[1] <= after[0] for before, after in pairwise(parts)):
            return sum(len(indices) for _, _, indices in parts)
        return len({i for _, _, indices in parts for i in indices})

    def runs_anew(self, label: str) -> bool:
        """Whether the step is to run whatever was done."""
        return label in self._anew

    def stays(self, name: str) -> bool:
        """Whether the pipeline says to keep the value."""
        return name in self._keep

    def _floor(self, key: Key, item: str) -> int:
        """Only executions after this one hold: the last of what the task builds on, and of what it was made from."""
        if key[0] in self._ignore:
            return 0
        floor = self._since(key)
        for before in self.needs[key].keys:
            floor = max(floor, self._latest(before, item))
        return floor

    def _since(self, key: Key) -> int:
        known = self.results.prints.get(key)
        return max(0, known.since - 1) if known is not None and key[0] not in self._ignore else 0

    def _latest(self, key: Key, item: str) -> int:
        """The last good execution of a task or in a block, as seen from an item: those in inner maps count all together."""
        need = self.needs[key]
        where = above(item, need.depth)
        if key[1] != "block":
            return max(self.results.latest.get(key, {}).get(where, 0), self._since(key))
        known = self._floors.get((key, where))
        if known is None:
            known = self._since(key)
            for member in need.members:
                known = max(known, self._latest(member, where))
            self._floors[key, where] = known
        return known

    # -- for the journal of the session that begins --------------------------------------------------------------

    def prints(self) -> Prints:
        """What the tasks are made from now, and since when."""
        if not self._same_run:
            return Prints.of(self._prints)
        known, changed = self.results.prints, self.changed
        since = {key: old.since for key, old in known.items() if key not in changed}
        return Prints.of(self._prints, [since.get(key, None if key in changed else 0) for key in self._prints])

    def taken(self, without: Container[str] = ()) -> list[Taken]:
        """The results that a new run takes over, but for some labels."""
        found: list[Taken] = []
        for key, need in self.needs.items():
            if key[0] in without:
                continue
            path = need.unit.path
            for item in self.results.good.get(key, ()):
                good = self.good(key, item)
                if good is not None:
                    found.append(Taken(good.id, path))
            for item in self.results.chunks.get(key[0], ()) if key[1] == "batch" else ():
                found += (Taken(execution_id, path) for execution_id in self.batches(key, item))
        return sorted(found, key=lambda taken: taken.execution_id)

    # -- for people --------------------------------------------------------------------------------------------

    def verdicts(self) -> dict[Key, Verdict]:
        """What happens to every task and block, in an order in which causes come first."""
        found: dict[Key, Verdict] = {}
        for key, need in self.needs.items():
            found[key] = self._verdict(key, need, found)
        return found

    def _verdict(self, key: Key, need: Need, known: Mapping[Key, Verdict]) -> Verdict:
        path = need.unit.path
        if key[1] == "block":
            return self._block_verdict(key, need, known)
        why = self.changed.get(key, "") or self._because(need, known)
        if key[1] == "batch":
            done = 0 if why else self._count_done(key, "") if not need.depth else None
            expand = self.good((key[0], "expand"), "") if not need.depth else None
            total = self.results.count_pages(expand.id) if expand is not None else None
            why = why or ("" if need.depth or (total is not None and done == total) else self._never(key))
            return Verdict(key, path, why, done, total)
        if need.depth:
            items = self.results.good.get(key, {})
            return Verdict(key, path, why, 0 if why else sum(1 for item in items if self.good(key, item)))
        return Verdict(key, path, why or ("" if self.good(key, "") is not None else self._never(key)))

    def _block_verdict(self, key: Key, need: Need, known: Mapping[Key, Verdict]) -> Verdict:
        assert isinstance(need.unit, ScopeUnit)
        why = self.changed.get(key, "")
        for member in need.members:
            if not why and known[member].why:
                why = known[member].why
        if not why and isinstance(need.unit, MapUnit) and not need.depth and not self.results.blocks.get((key[0], "")):
            why = "not all its items are done"
        return Verdict(key, need.unit.path, why)

    def _because(self, need: Need, known: Mapping[Key, Verdict]) -> str:
        """The first cause among what a task builds on."""
        for name, makers in need.reads.items():
            for maker in makers:
                if known[maker].why and self.needs[maker].depth <= need.depth and not self._same_item(maker, need):
                    what = (
                        f"reads {name!r}, a value of {maker[0]}" if name and name != "results" else f"needs {maker[0]}"
                    )
                    what = f"sees the state that {maker[0]} may change" if name == MARK else what
                    return f"{what}, which runs again"
        for before in need.strict:
            if known[before].why and not self._same_item(before, need):
                return f"depends on {before[0]}, which runs again"
        return ""

    def _same_item(self, before: Key, need: Need) -> bool:
        """Within the items of one map it depends on the item, unless it holds for all."""
        return self.needs[before].depth > 0 and need.depth > 0 and before not in self.stale

    def _never(self, key: Key) -> str:
        """Why a task whose fingerprint is the same has no result."""
        if key in self.lost.why:
            return f"its value is lost: {self.lost.why[key]}"
        ended = self.results.ended.get(key)
        if key[1] == "batch" and self.results.chunks.get(key[0]):
            return "not all its items are done" if self.batches(key, "") else "something it builds on was made anew"
        if key in self.results.good and ended == "succeeded":
            return "something it builds on was made anew"
        return {
            None: "never ran", "failed": "failed", "lost": "was cut off", "cancelled": "was stopped",
        }.get(ended, "never ran")  # fmt: skip


def _picked(chunk: Ref, new: Sequence[tuple[int, int]]) -> Ref:
    """Some items of a chunk, each with its index and its place, and what they changed of the pipeline's state."""
    if not isinstance(chunk, WithState):
        return ListOf(tuple(Element(chunk, place) for _, place in new))
    wanted = {index for index, _ in new}
    state = []
    for key, indices, ref in chunk.state:
        own = [(index, place) for place, index in enumerate(indices) if index in wanted]
        if own:
            state.append(
                (key, tuple(index for index, _ in own), ListOf(tuple(Element(ref, place) for _, place in own)))
            )
    return WithState(ListOf(tuple(Element(chunk.value, place) for _, place in new)), tuple(state))
