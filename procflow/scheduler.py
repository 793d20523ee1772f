"""Scheduler: a pure state machine that decides everything in a run.

    handle(outcome, now) -> list[Action]

Outcomes of attempts, ticks and a wish to stop go in; submissions, kills and records come out. It never reads a
clock, draws a random number, waits, logs or touches the world, so the same input gives the same decisions, in the
real run as in tests and simulations. State changes only here, and only by moves that stand in
``states.TRANSITIONS``.

How a member of a block lives: it waits until ``unmet`` is zero, becomes ready, and starts when its block has a
place and the budget has room. When it settles, its block counts it, publishes what it wrote, lets those behind it
go, and closes once nothing is left; closing merges and settles the block in its own block. Settling is a queue, not
a recursion, because chains may be a hundred thousand long. A timer that no longer means anything is dropped when it
comes up.

Its rules are in layers, by subject, in ``procflow/scheduling/``; this file is the face. Which items form a batch stands
in ``mapping.py``, the choice of the next task in ``ready.py``, the pause before a retry in ``retries.py``.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from procflow.attempt import Failed, Lost, Outcome, Progressed, Returned, Skipped, Started, Succeeded
from procflow.call import Reducer
from procflow.events import (
    RunStarted,
)
from procflow.graph import TaskUnit, walk
from procflow.ref import Ref
from procflow.scheduling import states_seen
from procflow.scheduling.actions import Action, Measured, StopAsked, Tick
from procflow.scheduling.ending import Endings

__all__ = ["Scheduler"]

Input = Outcome | Tick | StopAsked | Measured
_ENDS = (Succeeded, Skipped, Failed, Lost)
_SIGNS = (Started, Progressed, Returned)


class Scheduler(Endings):
    """The decisions of one run.

    ``slots`` are the cores of each executor, ``memory_bytes`` the budget for memory (None: no limit), ``kept`` the
    results of an earlier session, ``transient`` what attempts are told of the folder for transient values, ``depth`` how
    many attempts an executor may hold behind each that runs. ``start`` is called once, then ``handle`` until
    ``finished``; ``next_deadline`` says when to come back without an outcome.
    """

    __slots__ = ()

    def start(self, now: float) -> list[Action]:
        """Open the run; returns the first actions."""
        self.began = self._now = now
        self._at = 0.0
        steps = list(map(type, walk(self.graph.root))).count(TaskUnit)
        self._record(RunStarted(0.0, self.run_id, self.graph.name, steps))
        self._move(self.root, "ready")
        self._open(self.root)
        return self._turn()

    def handle(self, outcome: Input, now: float) -> list[Action]:
        """Take one outcome; returns what to do now. An outcome of an attempt that is already over is dropped and counted."""
        return self.handle_all((outcome,), now)

    def handle_all(self, outcomes: Iterable[Input], now: float) -> list[Action]:
        """Take what arrived together, in order; returns what to do now."""
        self._now = now
        self._at = now - self.began
        for outcome in outcomes:
            if isinstance(outcome, _ENDS):
                self._ended(outcome)
            elif isinstance(outcome, _SIGNS):
                self._hear_sign(outcome)
            else:
                self._hear_else(outcome)
            if self._settling:
                self._drain()
        return self._turn()

    def _hear_sign(self, sign: Started | Returned | Progressed) -> None:
        """An attempt that was queued begins or is given back; one that runs is alive."""
        task = self.running.get(sign.key)
        if task is None:
            task = self.queued.pop(sign.key, None)
            if task is None:
                self.late += 1
                return
            if isinstance(sign, Returned):
                self._came_back(task)
                return
            self._turn_came(task)
        if isinstance(sign, Started):
            self._set_clocks(task)
        else:
            assert isinstance(sign, Progressed), "what has begun can't be given back"
            self._progressed(task, sign)

    def _hear_else(self, heard: Tick | StopAsked | Measured) -> None:
        """What does not come from an executor."""
        if isinstance(heard, Measured):
            self._measured(heard)
        elif isinstance(heard, StopAsked):
            if heard.hurry:
                self._hurry()
            else:
                self._stop(heard.reason)

    def next_deadline(self) -> float | None:
        """When ``handle(Tick())`` must be called at the latest; None when only outcomes matter."""
        timers = self._timers
        wake = self.ready.wake_at
        if not timers:
            return wake
        return timers[0][0] if wake is None else min(timers[0][0], wake)

    def _turn(self) -> list[Action]:
        """Due timers, settled units, then as many starts as there is room for."""
        while self._timers and self._timers[0][0] <= self._now:
            _, _, kind, run, token = heapq.heappop(self._timers)
            getattr(self, f"_{kind}_due")(run, token)
            self._drain()
        self._drain()
        if not self.finished:
            self._admit()
            if self.depth and not self.finished:
                self._queue_ahead()
        return self._take_actions()

    @property
    def state(self) -> tuple[Mapping[str, Reducer], Mapping[str, Ref], Mapping[str, list[Ref]]]:
        """The declared keys of the state, those that are folded, and the changes so far of all."""
        root = self.root
        made = states_seen.made_in(root) if root.unit.state and not self.folded else ()
        return root.unit.state, self.folded, states_seen.by_key(made)

    @property
    def outputs(self) -> Mapping[str, Ref]:
        """The values of the top block so far, without those that were let go."""
        values = self.root.values
        return {name: values[name] for name in values if name not in self.dropped} if self.dropped else values
