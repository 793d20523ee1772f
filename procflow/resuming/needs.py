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

from procflow.call import INDEX, NOTHING, nothing
from procflow.graph import MapUnit, ScopeUnit, TaskGraph, TaskUnit, Unit, in_order
from procflow.passive import passive
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

    def publish(self, published: Mapping[str, tuple[Key, ...]], also: Iterable[Key]) -> None:
        self.makers.update(published)
        self.open += also


@passive(frozen=True, slots=True)
class _Done:
    """A member that was walked: its key, the makers of what it publishes, and those that may publish any name."""

    key: Key
    published: Mapping[str, tuple[Key, ...]]
    open: tuple[Key, ...] = ()


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
        reads: Mapping[str, tuple[Key, ...]] = NOTHING
        if unit.reads or more or unit.call.state:
            state = {MARK: self.before} if unit.call.state else {}
            reads = {**{name: names.of(name) for name in unit.reads}, **(more or {}), **state}
        self.found[key] = Need(key, unit, depth, reads, strict, (), (), NOTHING)
        return key

    def scope(self, unit: ScopeUnit, names: _Names, strict: tuple[Key, ...], depth: int) -> _Done:
        """The tasks of a block, inner first."""
        if unit.gate is not None:
            self.task(unit.gate, "gate", names, strict, depth)
        inside: list[_Done] = []
        before = self.before
        if unit.isolated:
            self.before = ()
        if isinstance(unit, MapUnit):
            keys = self._map(unit, names, strict, depth)
            parts = keys[-1:]
        else:
            own = _Names(None if unit.isolated else names, {n: names.of(o) for n, o in unit.imports.items()})
            inside = self.members(unit, own, strict, depth)
            keys = parts = tuple(member.key for member in inside)
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

    def members(self, unit: ScopeUnit, names: _Names, strict: tuple[Key, ...], depth: int) -> list[_Done]:
        """The members of a block, each after those it waits for; in declared order in what is returned."""
        done: dict[int, _Done] = {}
        outer = self.before
        last: dict[int, tuple[Key, ...]] = {}
        publishes = unit.kind != "parallel"
        for index in in_order(unit):
            member = unit.members[index]
            if unit.state:
                after = sorted(member.after)
                self.before = tuple(dict.fromkeys(key for i in after for key in last[i])) if after else outer
            own = (*strict, *(done[i].key for i in sorted(member.strict))) if member.strict else strict
            if isinstance(member, TaskUnit):
                key = self.task(member, "member", names, own, depth)
                makers = (key,)
                published = dict.fromkeys(member.writes, makers) if member.writes is not None else NOTHING
                found = _Done(key, published, () if member.writes is not None else makers)
            else:
                assert isinstance(member, ScopeUnit)
                found = self.scope(member, names, own, depth)
            done[index] = found
            if unit.state:
                last[index] = self.before if isinstance(member, TaskUnit) and not member.call.state else (found.key,)
            if publishes:
                names.publish(found.published, found.open)
        self.before = outer
        return [done[i] for i in range(len(unit.members))]

    def _map(self, unit: MapUnit, names: _Names, strict: tuple[Key, ...], depth: int) -> tuple[Key, ...]:
        expand = self.task(unit.expand, "expand", names, strict, depth)
        inside = _Names(names, {unit.item_name: (expand,), INDEX: (expand,)})
        if isinstance(unit.body, TaskUnit):
            return (expand, self.task(unit.body, "batch", inside, strict, depth, {"": (expand,)}))
        assert isinstance(unit.body, ScopeUnit)
        members = self.members(unit.body, _Names(inside), strict, depth + 1)
        return (expand, *(member.key for member in members))


def _published(unit: ScopeUnit, result: Key, inside: list[_Done]) -> _Done:
    """A block that only hands on what its members published leads to the members, any other to itself."""
    known: dict[str, tuple[Key, ...]] = {}
    may: list[Key] = []
    if unit.merger is None and unit.merge.strategy == "update" and unit.merge.output is None:
        for member in inside:
            known.update(member.published)
            may += member.open
    if unit.writes is None:
        return _Done(result, known, (*may, result))
    own, also = (result,), tuple(may)
    return _Done(result, {name: known.get(name, own) + also for name in unit.writes})
