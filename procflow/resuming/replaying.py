"""Replaying: one attempt of an earlier run once more, in this process, from the values it was given then.

    earlier run ─ kept results ─ scheduler (nothing runs but what finds the items) ─> Scene ─ perform ─> outcome

The real scheduler plays the run through until it would hand out the attempt that is wanted, so its values are looked up as
they always are. Nothing is recorded: neither the journal nor the run's folder changes. What a step does to the
world outside it does again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from procflow import failure
from procflow.attempt import Failed, Items, Skipped, Succeeded
from procflow.call import StepCall
from procflow.errors import ProcflowError
from procflow.graph import MapUnit, TaskGraph, TaskUnit, Unit, walk
from procflow.ref import Ref
from procflow.resuming.continuing import Session
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Action, Submit, Tick
from procflow.working.perform import perform

if TYPE_CHECKING:
    from procflow.scheduling.scopes import Scopes

__all__ = ["CannotReplay", "Scene", "debugging", "find_scene", "play"]

SLOTS = 1_000_000
"""As many attempts as there may be are handed out, so that none has to end before the wanted one is."""


class CannotReplay(ProcflowError):
    """The attempt can't be had again; the message says why and what to do."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Scene:
    """All that an attempt was given."""

    call: StepCall
    values: Mapping[str, Ref]
    items: Items | None
    labels: tuple[str, ...]
    number: int
    run_id: str


def find_scene(session: Session, label: str, item: str) -> Scene:
    """The attempt of a step (and an item of the maps around it, ``3/17``) of the run that the session builds on."""
    graph = session.prepared.graph
    wanted = _wanted(graph, label, item)
    judged = session.judged
    assert judged is not None
    scheduler = Scheduler(
        graph,
        slots=dict.fromkeys(graph.executors, SLOTS),
        memory_bytes=None,
        run_id=judged.results.run_id,
        kept=session.kept,
    )
    found = _Search(scheduler, wanted).run()
    if found is None:
        raise CannotReplay(
            f"{label}{f'[{item}]' if item else ''} can't be replayed: what it reads was not saved by run "
            f"{judged.results.run_id}, because a step before it has no result there"
        )
    submit, items = found
    number = max(1, judged.attempts(submit.unit.path, item))
    return Scene(submit.unit.call, submit.values, items, submit.labels, number, judged.results.run_id)


@dataclass(frozen=True, slots=True)
class _Wanted:
    path: str
    labels: tuple[str, ...]
    index: int | None
    """Of the item, where the step is a map that calls a function."""
    on_the_way: frozenset[str]
    """Paths of the blocks around it: what finds their items and judges their conditions is run."""


def _wanted(graph: TaskGraph, label: str, item: str) -> _Wanted:
    chain = _chain_to(graph.root, label)
    unit = chain[-1]
    parts = tuple(item.split("/")) if item else ()
    maps = [one.label for one in chain if isinstance(one, MapUnit)]
    calls = isinstance(unit, MapUnit) and isinstance(unit.body, TaskUnit)
    if not isinstance(unit, TaskUnit) and not calls:
        inside = [one.label for one in walk(unit) if isinstance(one, TaskUnit) and one.label.startswith(f"{label}/")]
        raise CannotReplay(f"{label} is a block; replay one of its steps: {', '.join(dict.fromkeys(inside[:8]))}")
    if len(parts) != len(maps) or not all(part.isascii() and part.isdecimal() for part in parts):
        if not maps:
            raise CannotReplay(f"{label} is in no map, so it has no item {item!r}")
        shape = "/".join("I" for _ in maps)
        raise CannotReplay(f"{label} is of a map: name the item, such as {label}[{shape.replace('I', '0')}]")
    on_the_way = frozenset(one.path for one in chain if not isinstance(one, TaskUnit))
    index = int(parts[-1]) if calls else None
    return _Wanted(unit.path, parts[:-1] if calls else parts, index, on_the_way)


def _chain_to(root: Unit, label: str) -> list[Unit]:
    """The step of a label with the blocks around it, outermost first."""
    blocks = [unit for unit in walk(root) if unit.label and label.startswith(f"{unit.label}/")]
    own = [unit for unit in walk(root) if unit.label == label]
    # A map comes before the hidden tasks that bear its label.
    return [*{unit.path: unit for unit in reversed(blocks)}.values()][::-1] + own[:1]


class _Search:
    """Plays the run through until the wanted attempt is handed out."""

    def __init__(self, scheduler: Scheduler, wanted: _Wanted) -> None:
        self._scheduler: Scopes = scheduler
        self._begin = scheduler.start
        self._handle = scheduler.handle
        self._deadline = scheduler.next_deadline
        self._wanted = wanted
        self._pages: tuple[tuple[Ref, int], ...] = ()
        self._now = 0.0

    def run(self) -> tuple[Submit, Items | None] | None:
        """The attempt and its item; None where the run ends without it."""
        waiting = deque(self._begin(self._now))
        while True:
            while waiting:
                action = waiting.popleft()
                if isinstance(action, Submit):
                    found = self._match(action)
                    if found is not None:
                        return found
                    waiting += self._pass_by(action)
            deadline = self._deadline()
            if self._scheduler.finished or deadline is None:
                return None
            self._now = max(self._now, deadline)
            waiting += self._handle(Tick(), self._now)

    def _match(self, submit: Submit) -> tuple[Submit, Items | None] | None:
        wanted = self._wanted
        if submit.unit.path != wanted.path or submit.labels != wanted.labels:
            return None
        if wanted.index is not None and submit.items is None:
            # A hidden task of the map: it bears the map's path.
            return None
        if wanted.index is None:
            return submit, None
        first = 0
        for page, count in self._pages:
            if wanted.index < first + count:
                return submit, Items(page, first, range(wanted.index, wanted.index + 1))
            first += count
        raise CannotReplay(f"{submit.unit.label} has {first:,} items, so there is no item {wanted.index}")

    def _pass_by(self, submit: Submit) -> list[Action]:
        """Anything else ends without having run, but for what finds items and judges conditions on the way."""
        needed = submit.unit.path in self._wanted.on_the_way and submit.unit.call.kind in ("expand", "gate")
        if not needed:
            return self._handle(Skipped(submit.key), self._now)
        outcome = perform(submit.unit.call, submit.values, key=submit.key, labels=submit.labels)
        if isinstance(outcome, Failed):
            raise CannotReplay(f"{submit.unit.label}: its items or its condition can't be had again: {outcome.failure}")
        if isinstance(outcome, Succeeded) and submit.unit.path == self._wanted.path:
            self._pages = outcome.pages
        return self._handle(outcome, self._now)


def play(scene: Scene) -> Succeeded | Skipped | Failed:
    """Run the attempt here and now: no timeout, no memory limit, output straight to this process's own."""
    return perform(
        scene.call,
        scene.values,
        items=scene.items,
        number=scene.number,
        run_id=scene.run_id,
        report_each=False,
        labels=scene.labels,
    )


@contextmanager
def debugging(stop: Callable[[BaseException, FrameType | None], None]) -> Iterator[None]:
    """While open, ``stop`` gets each exception of a step, with the deepest frame of it that is the user's own code."""
    before = failure.on_exception
    failure.on_exception = lambda exc: stop(exc, failure.user_frame(exc))
    try:
        yield
    finally:
        failure.on_exception = before
