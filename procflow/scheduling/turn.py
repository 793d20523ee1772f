"""Turn: what every part of the scheduler stands on: its state, records, timers, and moves by the table. Pure.

The scheduler is one class in layers, each in a file of its own, so that its rules can be read by subject:

    turn <- releasing <- keeping <- starting <- queueing <- attempts <- folding <- items <- scopes <- ending <- scheduler

A layer calls those to its left; what it needs of those to its right is declared at the end of ``Turn``.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from procflow.attempt import (
    Failure,
    Progressed,
    Succeeded,
)
from procflow.errors import InternalError
from procflow.events import (
    Event,
    RunStatus,
    Status,
    StepFinished,
)
from procflow.graph import TaskGraph
from procflow.ref import Ref, Stored
from procflow.scheduling.actions import Action, Kill, Release, Submit
from procflow.scheduling.easing import Easing
from procflow.scheduling.kept import Kept
from procflow.scheduling.ready import Budget, Ready
from procflow.scheduling.runs import MapRun, ScopeRun, TaskRun, UnitRun
from procflow.scheduling.states import NEXT, State

if TYPE_CHECKING:
    from procflow.scheduling.releasing import Reads

__all__ = ["Ending", "Turn"]

STORY = 400
"""Moves kept for the story of an internal error."""

Ending = Literal["enough", "failed", "timeout", "cancelled"]
"""Why a block ends before all its members do."""


class Turn:
    """The state of a run's decisions and the small parts that change it."""

    # More attributes than objects can share the names of: without slots each access is a search of its own.
    __slots__ = (
        "_actions", "_at", "_crashes", "_cut", "_due", "_files_of", "_first_failures", "_followers", "_hurried",
        "_kept_refs", "_key", "_names_with", "_now", "_orders", "_over_at", "_reads", "_recorded",
        "_seq", "_settling", "_story", "_tells_hooks", "_timers", "_unneeded", "_waiting_for", "attempts_over",
        "began", "depth", "dropped", "easing", "failures", "finished", "folded", "graph", "hooks", "kept", "late",
        "memory_bytes", "queued", "ready", "retries", "root", "run_id", "running", "slots", "status", "tolerated",
        "transient",
    )  # fmt: skip

    def __init__(
        self,
        graph: TaskGraph,
        *,
        slots: Mapping[str, int],
        memory_bytes: int | None = None,
        run_id: str = "run",
        kept: Kept | None = None,
        depth: Mapping[str, int] | None = None,
        transient: Ref | None = None,
    ) -> None:
        self.graph = graph
        self.run_id = run_id
        self.slots = dict(slots)
        self.memory_bytes = memory_bytes
        self.kept = kept
        self.transient = transient
        self.ready = Ready(Budget(slots, memory_bytes, graph.resources), graph.rates)
        self.easing = Easing()
        self.root = ScopeRun(graph.root, None, 0, ())
        self.running: dict[int, TaskRun] = {}
        self.queued: dict[int, TaskRun] = {}
        """Handed out ahead and not begun; see ``queueing.py``."""
        self.depth = {name: most for name, most in (depth or {}).items() if most}
        """How many attempts may wait behind one that runs, for each executor that can hold any."""
        self.finished = False
        self.status: RunStatus = "succeeded"
        self.failures = 0
        self.tolerated = 0
        self.late = 0
        self.attempts_over = 0
        self.retries = 0
        self.hooks: list[ScopeRun] = []
        """Hooks that run now."""
        self._due: list[str] = []
        self._hurried = False
        self._cut = ""
        self._over_at: float | None = None
        self._first_failures: list[str] = []
        self._tells_hooks = bool(graph.root.hooks)
        self.folded: dict[str, Ref] = {}
        """The state at the end of the run, once it has been folded."""
        self._crashes: deque[float] = deque()
        self._kept_refs: dict[int, Ref] = {}
        self.dropped: set[str] = set()
        """Values of the top block whose files were let go."""
        self._files_of: dict[str, dict[str, Stored]] = {}
        self._names_with: dict[str, set[str]] = {}
        self._unneeded: dict[str, set[int]] = {}
        self._waiting_for: dict[int, set[str]] = {}
        self._reads: Reads | None = None
        self._actions: list[Action] = []
        self._recorded = 0
        self._orders = 0
        """Actions of this turn that are no events."""
        self._settling: deque[TaskRun | ScopeRun] = deque()
        self._timers: list[tuple[float, int, str, Any, Any]] = []
        self._key = 0
        self._seq = 0
        self._story: deque[tuple[TaskRun | ScopeRun, State, State]] = deque(maxlen=STORY)
        self.began = 0.0
        """When the run began, on the clock that the scheduler is given."""
        self._now = 0.0
        self._at = 0.0
        """Seconds since then, for what is recorded in this turn."""
        self._followers: dict[int, dict[int, list[int]]] = {}

    def _record(self, event: Event) -> None:
        """Add an event to the actions of this turn; what comes by the thousand is added to them without this call."""
        self._actions.append(event)

    def _order(self, order: Submit | Kill | Release) -> None:
        """Add what the engine is to do to the actions of this turn."""
        self._orders += 1
        self._actions.append(order)

    @property
    def records(self) -> int:
        """How many events were made so far."""
        return self._recorded + len(self._actions) - self._orders

    def _take_actions(self) -> list[Action]:
        """What is to be done, in order; those of the next turn are collected anew."""
        actions = self._actions
        self._recorded, self._orders = self.records, 0
        self._actions = []
        return actions

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _timer(self, at: float, kind: str, run: UnitRun, token: Any) -> None:
        heapq.heappush(self._timers, (at, self._next_seq(), kind, run, token))

    def _move(self, run: TaskRun | ScopeRun, to: State) -> None:
        """Change a state, by the table only."""
        before = run.state
        if to not in NEXT[before]:
            story = [_told(*move) for move in self._story if move[0].unit.label == run.unit.label]
            raise InternalError(f"{_name(run)} can't go from {before} to {to}", story)
        self._story.append((run, before, to))
        run.state = to

    def _move_all(self, runs: Sequence[TaskRun], before: State, to: State) -> None:
        """Change the state of many that are all in the same one, as members of a block are that begins."""
        if to not in NEXT[before]:
            raise InternalError(f"{_name(runs[0])} and those beside it can't go from {before} to {to}", self.story())
        for run in runs:
            run.state = to
        self._story.extend((run, before, to) for run in runs[-STORY:])

    def story(self) -> list[str]:
        """The last moves, for the report of an internal error."""
        return [_told(*move) for move in self._story][-20:]

    # What the layers above give to those below; the scheduler has them all.

    def _make_ready(self, run: TaskRun | ScopeRun, after: int) -> None:
        """The run waits for nothing but its start."""
        raise NotImplementedError

    def _open(self, scope: ScopeRun) -> None:
        """The block begins, or begins again."""
        raise NotImplementedError

    def _begin(self, scope: ScopeRun, after: int) -> None:
        """Let the block's first members go."""
        raise NotImplementedError

    def _begin_items(self, run: MapRun) -> None:
        """The items of a map are known."""
        raise NotImplementedError

    def _feed(self, run: MapRun) -> None:
        """Keep items of a map waiting for their start."""
        raise NotImplementedError

    def _fill(self, task: TaskRun, scope: ScopeRun) -> bool:
        """Give a batch its items as it starts."""
        raise NotImplementedError

    def _folded(self, run: MapRun, outputs: Mapping[str, Ref]) -> None:
        """Some results of a map were folded while others still come."""
        raise NotImplementedError

    def _fold_values(self, task: TaskRun) -> Mapping[str, Ref]:
        """What a fold reads."""
        raise NotImplementedError

    def _absorb(self, task: TaskRun, run: MapRun, outcome: Progressed | Succeeded) -> None:
        """Take the items that a batch reports."""
        raise NotImplementedError

    def _batch_ended_well(self, task: TaskRun, run: MapRun, outcome: Succeeded) -> None:
        """A batch is done."""
        raise NotImplementedError

    def _batch_ended_badly(self, task: TaskRun, run: MapRun, failure: Failure, lost: bool, culprit: int | None) -> None:
        """A batch broke off."""
        raise NotImplementedError

    def _hidden_done(
        self, task: TaskRun, scope: ScopeRun, outputs: Mapping[str, Ref], pages: Sequence[tuple[Ref, int]]
    ) -> None:
        """A block's gate, merger or expand has done its part."""
        raise NotImplementedError

    def _settle(self, run: TaskRun | ScopeRun, state: Status, reason: str = "") -> None:
        """The run has reached a final state."""
        raise NotImplementedError

    def _settle_hidden_or_member(self, task: TaskRun, scope: ScopeRun, state: Status, reason: str) -> None:
        """A member settles itself; what happens to a hidden task happens to its block."""
        raise NotImplementedError

    def _task_settled(self, task: TaskRun) -> None:
        """Tell its block of a member that is a task."""
        raise NotImplementedError

    def _step_finished(self, run: TaskRun, state: Status) -> None:
        """Record the end of a step."""
        raise NotImplementedError

    def _drain(self) -> None:
        """Tell blocks of their settled members."""
        raise NotImplementedError

    def _judge(self, scope: ScopeRun, who: str) -> None:
        """A member failed for good: does the block go on?"""
        raise NotImplementedError

    def _end_early(self, scope: ScopeRun, ending: Ending, reason: str) -> None:
        """The block's end is decided before all members are done."""
        raise NotImplementedError

    def _hook(self, run: TaskRun | ScopeRun, state: Status) -> None:
        """A step has settled for good: begin its hooks."""
        raise NotImplementedError

    def _step_failed(self, event: StepFinished) -> None:
        """Record that a step or an item failed for good."""
        raise NotImplementedError

    def _top_over(self, run: ScopeRun) -> None:
        """The top block has settled, or a hook."""
        raise NotImplementedError

    def _maybe_close(self, scope: ScopeRun) -> None:
        """Close the block if nothing below is left."""
        raise NotImplementedError

    def _announce(self, scope: ScopeRun, members: int) -> None:
        """Record that the block begins."""
        raise NotImplementedError

    def _count_own(self, scope: ScopeRun, more: int) -> None:
        """Count failures that are no member's."""
        raise NotImplementedError


def _name(run: TaskRun | ScopeRun) -> str:
    return f"{run.unit.label or 'the run'} [{run.item}]"


def _told(run: TaskRun | ScopeRun, before: State, after: State) -> str:
    return f"{_name(run)} {before} -> {after}"
