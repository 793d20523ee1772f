"""Needs: which task of a pipeline builds on which, by the names of values and by ``depends_on``. Pure.

    "fetch/sales" ──sales──> "features" expand ──items──> "features" batch ──> "features" block ──rows──> "report"

Every task has a key, its label and its role; a block has one too (role ``block``), which stands for all its members
together. Readers of a value need the task that makes it; where a block hands on what its members published, that is the
member. A resume and ``--from`` work on this, since it says what is out of date when one step runs again. What the run
alone can tell (``outputs: "*"``) counts as possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from typing import Union

from procflow.call import INDEX, NOTHING, nothing
from procflow.graph import MapUnit, ScopeUnit, TaskGraph, TaskUnit, Unit, in_order
from procflow.passive import alike, passive
from procflow.state import MARK

__all__ = ["Key", "Need", "needs_of"]

Key = tuple[str, str]
"""Label and role of a task; role ``block`` for a block."""


@passive(frozen=True, slots=True)
class Need:
    """A task or a block, and what it builds on.

    ``reads`` are the makers of each value by name, ``strict`` are those that must have succeeded (its own and those of
    the blocks around it), ``members`` what a block is made of, ``parts`` those of them that its value is made of. ``depth``
    is the number of maps around it. ``values`` are the makers of what a block publishes, ``open`` those in it that may
    publish any name.
    """

    key: Key
    unit: Unit
    depth: int
    reads: Mapping[str, tuple[Key, ...]] = field(default_factory=nothing)
    strict: tuple[Key, ...] = ()
    members: tuple[Key, ...] = ()
    parts: tuple[Key, ...] = ()
    values: Mapping[str, tuple[Key, ...]] = field(default_factory=nothing)
    open: tuple[Key, ...] = ()

    @property
    def keys(self) -> Iterator[Key]:
        """All that it builds on."""
        for makers in self.reads.values():
            yield from makers
        yield from self.strict
        yield from self.members


def needs_of(graph: TaskGraph) -> dict[Key, Need]:
    """Every task and block of a pipeline, each after all that it builds on."""
    walk = _Walk()
    walk.scope(graph.root, _Names(), (), 0)
    return walk.found


class _Names:
    """Who makes a value, as seen from one block; ``open`` are those that may publish any name."""

    __slots__ = ("makers", "open", "outer")

    def __init__(self, outer: _Names | None = None, makers: Mapping[str, tuple[Key, ...]] | None = None) -> None:
        self.makers = dict(makers or {})
        self.open: list[Key] = []
        self.outer = outer

    def of(self, name: str) -> tuple[Key, ...]:
        found: list[Key] = []
        names: _Names | None = self
        while names is not None:
            found += names.open
            if name in names.makers:
                found += names.makers[name]
                break
            names = names.outer
        return tuple(dict.fromkeys(found))

    def publish(self, members: Iterable[Unit], walked: Iterable[Walked]) -> None:
        for unit, one in zip(members, walked, strict=True):
            if isinstance(one, _Done):
                self.makers.update(one.published)
                self.open += one.open
            elif unit.writes is None:
                self.open.append(one)
            else:
                for name in unit.writes:
                    self.makers[name] = (one,)


@passive(frozen=True, slots=True)
class _Done:
    """A block that was walked: its key, the makers of what it publishes, and those that may publish any name."""

    key: Key
    published: Mapping[str, tuple[Key, ...]]
    open: tuple[Key, ...] = ()


Walked = Union[_Done, Key]
"""A member that was walked; of a task there is no more to say than its key."""


def _key(walked: Walked) -> Key:
    return walked.key if isinstance(walked, _Done) else walked


class _Walk:
    """Recursive over the depth of blocks only."""

    def __init__(self) -> None:
        self.found: dict[Key, Need] = {}
        self.before: tuple[Key, ...] = ()
        """Who may have changed the state that a task here sees, last."""

    def task(
        self, unit: TaskUnit, role: str, names: _Names, strict: tuple[Key, ...], depth: int,
        more: Mapping[str, tuple[Key, ...]] | None = None,
    ) -> Key:  # fmt: skip
        key = (unit.label, role)
        state = {MARK: self.before} if unit.call.state else {}
        reads = {**{name: names.of(name) for name in unit.reads}, **(more or {}), **state}
        self.found[key] = Need(key, unit, depth, reads or NOTHING, strict)
        return key

    def scope(self, unit: ScopeUnit, names: _Names, strict: tuple[Key, ...], depth: int) -> _Done:
        """The tasks of a block, inner first."""
        if unit.gate is not None:
            self.task(unit.gate, "gate", names, strict, depth)
        inside: list[Walked] = []
        before = self.before
        if unit.isolated:
            self.before = ()
        if isinstance(unit, MapUnit):
            keys = self._map(unit, names, strict, depth)
            parts = keys[-1:]
        else:
            own = _Names(None if unit.isolated else names, {n: names.of(o) for n, o in unit.imports.items()})
            inside = self.members(unit, own, strict, depth)
            keys = parts = tuple(map(_key, inside))
        block = (unit.label, "block")
        self.found[block] = Need(block, unit, depth, members=keys, parts=parts)
        result = block
        self.before = before
        if unit.merger is not None:
            result = self.task(unit.merger, "merger", names, strict, depth, {"results": (block,)})
        done = _published(unit, result, inside)
        self.found[block] = replace(
            self.found[block], values=done.published, open=tuple(k for k in done.open if k != block)
        )
        return done

    def members(self, unit: ScopeUnit, names: _Names, strict: tuple[Key, ...], depth: int) -> list[Walked]:
        """The members of a block, each after those it waits for; in declared order in what is returned."""
        done: dict[int, Walked] = {}
        outer = self.before
        # What reads nothing needs what its neighbour needs, and a block may have a hundred thousand such members.
        reading_nothing = alike(Need(("", ""), unit, depth, NOTHING, strict), "key", "unit")
        last: dict[int, tuple[Key, ...]] = {}
        publishes = unit.kind != "parallel"
        for index in in_order(unit):
            member = unit.members[index]
            if unit.state:
                after = sorted(member.after)
                self.before = tuple(dict.fromkeys(key for i in after for key in last[i])) if after else outer
            own = (*strict, *(_key(done[i]) for i in sorted(member.strict))) if member.strict else strict
            if not isinstance(member, TaskUnit):
                assert isinstance(member, ScopeUnit)
                done[index] = self.scope(member, names, own, depth)
            elif member.reads or member.strict or member.call.state:
                done[index] = self.task(member, "member", names, own, depth)
            else:
                done[index] = key = (member.label, "member")
                self.found[key] = reading_nothing(key, member)
            if unit.state:
                changes = not isinstance(member, TaskUnit) or member.call.state
                last[index] = (_key(done[index]),) if changes else self.before
            if publishes:
                names.publish((member,), (done[index],))
        self.before = outer
        return [done[i] for i in range(len(unit.members))]

    def _map(self, unit: MapUnit, names: _Names, strict: tuple[Key, ...], depth: int) -> tuple[Key, ...]:
        expand = self.task(unit.expand, "expand", names, strict, depth)
        inside = _Names(names, {unit.item_name: (expand,), INDEX: (expand,)})
        if isinstance(unit.body, TaskUnit):
            return (expand, self.task(unit.body, "batch", inside, strict, depth, {"": (expand,)}))
        assert isinstance(unit.body, ScopeUnit)
        members = self.members(unit.body, _Names(inside), strict, depth + 1)
        return (expand, *map(_key, members))


def _published(unit: ScopeUnit, result: Key, inside: list[Walked]) -> _Done:
    """A block that only hands on what its members published leads to the members, any other to itself."""
    known = _Names()
    if inside and unit.merger is None and unit.merge.strategy == "update" and unit.merge.output is None:
        known.publish(unit.members, inside)
    if unit.writes is None:
        return _Done(result, known.makers, (*known.open, result))
    own, also = (result,), tuple(known.open)
    return _Done(result, {name: known.makers.get(name, own) + also for name in unit.writes})
