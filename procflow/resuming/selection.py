"""Selection: ``--from``, ``--only`` and ``--skip``: which steps run, whatever was done before. Pure.

Steps that are not to run keep the results of the earlier run; where there is none they are skipped, and so is what reads
them. They are cut loose in the graph (they read nothing and depend on nothing), because what they read may be made anew
and they stay all the same. A step is named by its label (``fetch/sales``), by the last part of it where that is unique,
or by its path (``0.2``).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from procflow.call import StepCall
from procflow.errors import ProcflowError
from procflow.events import Role
from procflow.graph import MapUnit, ScopeUnit, TaskGraph, TaskUnit, Unit, walk
from procflow.passive import passive
from procflow.ref import Ref
from procflow.scheduling.kept import Kept, KeptTask

if TYPE_CHECKING:
    from procflow.storing.journal_kept import JournalKept

__all__ = [
    "Chosen",
    "OnlyCached",
    "Selection",
    "UnknownStep",
    "check_results",
    "choose",
    "find_step",
    "loosened",
    "under",
]

AnyUnit = TypeVar("AnyUnit", bound=Unit)


class UnknownStep(ProcflowError):
    """No step, or more than one, has this name; or its earlier results are missing."""

    exit_code = 2


@passive(frozen=True, slots=True)
class Selection:
    """Names of steps as the user wrote them."""

    start: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.start is not None or bool(self.only or self.skip)


@passive(frozen=True, slots=True)
class Chosen:
    """Labels of the steps that run whatever was done before, and of those that do not run whatever happens.

    The others are ``--skip``'s rest, which runs as in any run, or blocks that hold some of both.
    """

    runs: frozenset[str]
    held: frozenset[str]
    start: str | None = None
    skipped: frozenset[str] = frozenset()


def find_step(graph: TaskGraph, name: str) -> str:
    """The label of the step that is meant; ``UnknownStep`` says which are near."""
    labels = {unit.label: unit.path for unit in walk(graph.root) if unit.label}
    if name in labels:
        return name
    by_path = [label for label, path in labels.items() if path == name]
    if by_path:
        return by_path[0]
    ends = [label for label in labels if label.rpartition("/")[2] == name]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UnknownStep(f"step {name!r} may be {', '.join(ends[:8])}; write the whole label")
    words = {label.rpartition("/")[2]: label for label in labels} | {label: label for label in labels}
    near = list(dict.fromkeys(words[word] for word in get_close_matches(name, list(words), 3)))
    hint = f"did you mean {' or '.join(near)}?" if near else f"steps are {', '.join(list(labels)[:20])}"
    raise UnknownStep(f"{graph.name} has no step {name!r}; {hint}")


def choose(graph: TaskGraph, selection: Selection) -> Chosen:
    """What a selection means for a pipeline; ``UnknownStep`` for a name that is wrong."""
    skipped = [find_step(graph, name) for name in selection.skip]
    only = [find_step(graph, name) for name in selection.only]
    start = find_step(graph, selection.start) if selection.start is not None else None
    labels = {unit.label for unit in walk(graph.root) if unit.label}
    left_out = _below(labels, skipped)
    runs = _below(labels, only)
    if start is not None:
        later = _from(graph.root, start, labels)
        runs = runs & later if only else later
    if not only and start is None:
        runs = labels - left_out - _around(left_out)
        return Chosen(frozenset(runs), frozenset(left_out), skipped=frozenset(left_out))
    runs -= left_out
    held = labels - runs - _around(runs)
    return Chosen(frozenset(runs), frozenset(held), start, frozenset(left_out))


def loosened(graph: TaskGraph, chosen: Chosen) -> TaskGraph:
    """The graph in which the steps that are not to run read nothing and depend on nothing."""
    return replace(graph, root=_loose(graph.root, chosen.held, chosen.held | _around(chosen.held)))


def under(judged: JournalKept, chosen: Chosen, same_run: bool) -> Kept:
    """The kept results under a selection; in another session of the same run its own results count."""
    return _Selected(judged, chosen, same_run)


def check_results(judged: JournalKept, chosen: Chosen) -> None:
    """``UnknownStep`` where ``--from`` leaves out a step that has no result."""
    if chosen.start is None:
        return
    for key, verdict in judged.verdicts().items():
        if key[0] not in chosen.held or key[0] in chosen.skipped or verdict.kept:
            continue
        is_map = key[1] == "block" and isinstance(judged.needs[key].unit, MapUnit)
        if is_map and (key[0], "batch") in judged.needs and judged.is_whole(key[0], "", as_then=True):
            continue  # What failed in it was tolerated, and is missing again.
        if (key[1] == "member" or is_map) and not _left_out_then(judged, key[0]):
            raise UnknownStep(
                f"--from {chosen.start}: {key[0]} comes before it and has no result in run {judged.results.run_id} "
                f"({verdict.why}); start from there, or leave it out with --skip {key[0]}"
            )


def _left_out_then(judged: JournalKept, label: str) -> bool:
    """A block around the step had a condition that was false."""
    gates = [
        judged.good((block, "gate"), "") for block in (label, *_around([label])) if (block, "gate") in judged.needs
    ]
    return any(gate is not None and gate.skipped for gate in gates)


def _around(labels: Iterable[str]) -> set[str]:
    """The blocks around steps."""
    found: set[str] = set()
    for label in labels:
        block = label.rpartition("/")[0]
        while block and block not in found:
            found.add(block)
            block = block.rpartition("/")[0]
    return found


def _inside(label: str, block: str) -> bool:
    return label.startswith(f"{block}/")


def _below(labels: Iterable[str], chosen: Sequence[str]) -> set[str]:
    """The steps themselves and all inside them."""
    return {label for label in labels for one in chosen if label == one or _inside(label, one)}


def _from(scope: ScopeUnit, start: str, labels: set[str]) -> set[str]:
    """The step, all inside it, and everything that comes after it in its block and in the blocks around it."""
    members = scope.body.members if isinstance(scope, MapUnit) and isinstance(scope.body, ScopeUnit) else scope.members
    at = next(m for m in members if m.label == start or _inside(start, m.label))
    found = _below(labels, [at.label]) if at.label == start or isinstance(at, TaskUnit) else set()
    if not found:
        assert isinstance(at, ScopeUnit)
        found = _from(at, start, labels)
    behind: dict[int, list[int]] = {}
    for member in members:
        for before in member.after:
            behind.setdefault(before, []).append(member.index)
    later: set[int] = set()
    waiting = list(behind.get(at.index, ()))
    while waiting:
        index = waiting.pop()
        if index not in later:
            later.add(index)
            waiting += behind.get(index, ())
    return found | _below(labels, [members[i].label for i in sorted(later)])


# -- the graph ---------------------------------------------------------------------------------------------------------


def _loose(unit: AnyUnit, held: frozenset[str], around: frozenset[str]) -> AnyUnit:
    """The unit with every step in ``held`` cut loose; a map among them gets a gate, in case its results are not whole."""
    if unit.label and unit.label not in around:
        return unit
    if isinstance(unit, TaskUnit):
        return replace(unit, reads=(), strict=frozenset(), rate=None) if unit.label in held else unit
    assert isinstance(unit, ScopeUnit)
    changes: dict[str, Any] = {"members": tuple(_loose(member, held, around) for member in unit.members)}
    if unit.label:
        changes["strict"] = frozenset()
    names = ("gate", "merger", "expand", "body") if isinstance(unit, MapUnit) else ("gate", "merger")
    for name in names:
        part = getattr(unit, name)
        if part is not None:
            changes[name] = _loose(part, held, around)
    if isinstance(unit, MapUnit) and unit.label in held and isinstance(unit.body, TaskUnit):
        changes["body"] = _absent(changes["body"])
    if isinstance(unit, MapUnit) and unit.label in held and unit.gate is None:
        seat: dict[str, Any] = {
            "index": unit.index,
            "name": unit.name,
            "path": unit.path,
            "label": unit.label,
            "loc": unit.loc,
        }
        call = StepCall("gate", unit.path, unit.name, when="true")
        changes["gate"] = TaskUnit(**seat, call=call, executor=unit.expand.executor)
    return replace(unit, **changes)


def _absent(body: TaskUnit) -> TaskUnit:
    """What stands for the items of a map that have no result: they fail once more, and nothing of the user's runs."""
    call = StepCall(
        "transform", body.path, body.name, "procflow.steps.absent:failed_before", item_name=body.call.item_name
    )
    return replace(body, call=call, retry=type(body.retry)(), timeout_s=None, idle_timeout_s=None, cpus=1)


class OnlyCached:
    """Kept results of some steps alone: those ``anew`` run whatever was done, and so does all that builds on them."""

    def __init__(self, judged: JournalKept, anew: Container[str]) -> None:
        self._judged = judged
        self._anew = anew

    def task(self, path: str, item: str, role: Role) -> KeptTask | None:
        """As ``Kept``."""
        return None if self._judged.labels.get(path) in self._anew else self._judged.task(path, item, role)

    def items(self, path: str, item: str) -> Sequence[tuple[range | tuple[int, ...], Ref]]:
        """As ``Kept``."""
        return () if self._judged.labels.get(path) in self._anew else self._judged.items(path, item)

    def attempts(self, path: str, item: str) -> int:
        """As ``Kept``: it is another run."""
        return 0

    def consumed_s(self, path: str, item: str) -> float:
        """As ``Kept``: it is another run."""
        return 0.0


class _Selected:
    """Kept results under a selection."""

    def __init__(self, judged: JournalKept, chosen: Chosen, same_run: bool) -> None:
        self._judged = judged
        self._chosen = chosen
        self._same_run = same_run

    def task(self, path: str, item: str, role: Role) -> KeptTask | None:
        """As ``Kept``; what is held is skipped where it has no result."""
        label = self._judged.labels.get(path)
        if label in self._chosen.runs and not self._same_run:
            return None
        found = self._judged.task(path, item, role)
        if label not in self._chosen.held:
            return found
        if role == "gate" and (found is None or not found.skipped):
            return KeptTask(skipped=not self._judged.is_whole(label, item, as_then=True))
        return found or KeptTask(skipped=True)

    def items(self, path: str, item: str) -> Sequence[tuple[range | tuple[int, ...], Ref]]:
        """As ``Kept``."""
        forced = self._judged.labels.get(path) in self._chosen.runs and not self._same_run
        return () if forced else self._judged.items(path, item)

    def attempts(self, path: str, item: str) -> int:
        """As ``Kept``."""
        return self._judged.attempts(path, item)

    def consumed_s(self, path: str, item: str) -> float:
        """As ``Kept``."""
        return self._judged.consumed_s(path, item)
