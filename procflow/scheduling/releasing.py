"""Releasing: when the files of a value are no longer needed. Pure.

A value of the top block is let go when its last reader is done; what a block's members published is let go when the
block ends, but for what it hands on; so are the items of a map. *Done* is meant as a resume would need it: a reader
that failed, was cancelled or never ran keeps what it reads. Values that no step reads are results of the run and stay,
as do those that the pipeline says to ``show`` or ``keep``.

Two readings of "reads" are needed, since a name is looked up from the inside out and a member inside may or may not
have published it: whoever *may* read a value keeps it, and only what somebody *surely* reads is not a result.
"""

from __future__ import annotations

from collections.abc import Iterable

from procflow.attempt import Outcome, Progressed, Succeeded
from procflow.call import INDEX
from procflow.graph import MapUnit, ScopeUnit, TaskUnit, Unit
from procflow.ref import Inline, Ref, Stored, stored_in
from procflow.scheduling.actions import Release
from procflow.scheduling.runs import MapRun, ScopeRun, TaskRun
from procflow.scheduling.turn import Turn

__all__ = ["Reads", "Releasing", "may_read", "surely_reads"]


class Releasing(Turn):
    """The rules of what is let go, and when."""

    __slots__ = ()

    def _let_go_of(self, run: ScopeRun) -> None:
        """A block has settled: note whether it is done with what it reads, and let go what only it needed."""
        scope = run.scope
        run.clean = _is_clean(run)
        if scope is None:
            return
        if run.clean and run.state == "succeeded":
            self._release_inside(run)
        elif not run.clean and isinstance(scope, MapRun):
            scope.unclean = True
        if scope is self.root:
            self._values_of_top(run)

    def _values_of_top(self, run: TaskRun | ScopeRun) -> None:
        """A member of the top block has settled: keep account of its values, and of those that it has read."""
        if run.state == "succeeded" and run.published:
            self._note_values(run)
        if run.clean and self._waiting_for:
            self._reader_done(run)

    def _release_inside(self, scope: ScopeRun) -> None:
        """What the block's members published and the block does not hand on; a map's items."""
        made = [ref for member in scope.members for ref in member.published.values() if type(ref) is not Inline]
        if isinstance(scope, MapRun):
            made += (ref for _, _, ref in scope.pages)
            made += (ref for _, ref in scope.chunks)
            if scope.fold is not None:
                made += [*scope.fold.files, *([scope.fold.so_far] if scope.fold.so_far is not None else ())]
        found = _files(made)
        if not found:
            return
        # Of an iteration the map takes the value of the last step only.
        last = scope.members[-1] if isinstance(scope.scope, MapRun) and scope.members else scope
        for path in _files(last.published.values()):
            found.pop(path, None)
        self._release(found.values())

    # -- values of the top block

    def _note_values(self, run: TaskRun | ScopeRun) -> None:
        """Work out who the values that a member of the top block published wait for."""
        for name in self._files_of.keys() & run.published.keys():
            # Written once more: nobody counted who still reads the old value.
            self._unneeded.pop(name, None)
        for name, ref in [(name, ref) for name, ref in run.published.items() if type(ref) is not Inline]:
            files = _files([ref]) if name not in self._files_of else None
            if not files:
                continue
            self._files_of[name] = files
            for path in files:
                self._names_with.setdefault(path, set()).add(name)
            readers = self._readers_of(name, run.unit.index)
            if readers and name not in self.graph.keep:
                self._unneeded[name] = readers
                for index in readers:
                    self._waiting_for.setdefault(index, set()).add(name)

    def _readers_of(self, name: str, writer: int) -> set[int]:
        """Members of the top block that may still read the value; none where it is a result of the run."""
        if self._reads is None:
            self._reads = Reads(self.graph.root)
        if not self._reads.passes_on(name, writer):
            return set()
        members = self.root.members
        return {i for i in self._reads.may.get(name, ()) if i != writer and not members[i].clean}

    def _reader_done(self, run: TaskRun | ScopeRun) -> None:
        """A member of the top block is done with all that it reads."""
        found: dict[str, Stored] = {}
        for name in sorted(self._waiting_for.pop(run.unit.index, ())):
            readers = self._unneeded.get(name)
            if readers is None:
                continue
            readers.discard(run.unit.index)
            if readers:
                continue
            del self._unneeded[name]
            self.dropped.add(name)
            for path, stored in self._files_of[name].items():
                names = self._names_with[path]
                names.discard(name)
                if not names:
                    found[path] = stored
        self._release(found.values())

    # -- all

    def _drop(self, outcome: Outcome) -> None:
        """Nobody will use what the outcome holds: its attempt was being stopped."""
        refs: list[Ref] = []
        if isinstance(outcome, Succeeded):
            refs += [*outcome.outputs.values(), *(page for page, _ in outcome.pages)]
        if isinstance(outcome, (Succeeded, Progressed)) and outcome.chunk is not None:
            refs.append(outcome.chunk)
        self._release(_files(refs).values())

    def _release(self, files: Iterable[Stored]) -> None:
        found = tuple(files)
        if found:
            self._order(Release(found))


def _is_clean(run: ScopeRun) -> bool:
    """A resume does not run anything in the block again, so nothing that it reads is needed for that."""
    if run.state == "skipped":
        return run.declined or (run.total > 0 and all(member.clean for member in run.members))
    if run.state != "succeeded":
        return False
    if isinstance(run, MapRun):
        return run.successes == run.size and not run.unclean
    return all(member.clean for member in run.members)


def _files(refs: Iterable[Ref]) -> dict[str, Stored]:
    """The files of values by path, in order."""
    return {stored.path: stored for ref in refs if type(ref) is not Inline for stored in stored_in(ref)}


class Reads:
    """Which members of a block read which names."""

    __slots__ = ("may", "surely", "written")

    def __init__(self, scope: ScopeUnit) -> None:
        self.may: dict[str, set[int]] = {}
        self.surely: dict[str, set[int]] = {}
        self.written: dict[str, int] = {}
        for index, member in enumerate(scope.members):
            for name in may_read(member):
                self.may.setdefault(name, set()).add(index)
            for name in surely_reads(member):
                self.surely.setdefault(name, set()).add(index)
            for name in member.writes or ():
                self.written[name] = self.written.get(name, 0) + 1

    def passes_on(self, name: str, writer: int) -> bool:
        """Whether the value of a member is for other members, and theirs alone."""
        return bool(self.surely.get(name, set()) - {writer}) and self.written.get(name, 1) == 1


def may_read(unit: Unit) -> set[str]:
    """Names that the unit or anything in it may look up in the block around it."""
    if isinstance(unit, TaskUnit):
        return set(unit.reads)
    assert isinstance(unit, ScopeUnit)
    found = set().union(*(hidden.reads for hidden in (unit.gate, unit.merger) if hidden is not None))
    if unit.isolated:
        return found | set(unit.imports.values())
    if isinstance(unit, MapUnit):
        return found | set(unit.expand.reads) | may_read(unit.body)
    return found.union(*(may_read(member) for member in unit.members))


def surely_reads(unit: Unit) -> set[str]:
    """Names that the unit or something in it looks up, and that nothing in it could have published instead."""
    if isinstance(unit, TaskUnit):
        return set(unit.reads)
    assert isinstance(unit, ScopeUnit)
    found = set().union(*(hidden.reads for hidden in (unit.gate, unit.merger) if hidden is not None))
    if unit.isolated:
        return found | set(unit.imports.values())
    if isinstance(unit, MapUnit):
        return found | set(unit.expand.reads) | (surely_reads(unit.body) - {unit.item_name, INDEX})
    own: set[str] = set()
    for member in unit.members:
        if member.writes is None:
            return found
        own.update(member.writes)
    return found | (set[str]().union(*(surely_reads(member) for member in unit.members)) - own)
