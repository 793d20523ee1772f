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

The file is longer than 400 lines because it is the one place where decisions are made. The rules of a map's items
stand in ``mapping.py``, the choice of the next task in ``ready.py``, the pause before a retry in ``retries.py``.
"""

from __future__ import annotations

import heapq
import pickle
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from procflow import mapping, merge, retries
from procflow.actions import Action, Kill, Measured, Record, StopAsked, Submit, Tick
from procflow.attempt import (
    Cause,
    Failed,
    Failure,
    Lost,
    Outcome,
    Progressed,
    Skipped,
    Started,
    Succeeded,
    Usage,
)
from procflow.call import INDEX
from procflow.errors import InternalError
from procflow.events import (
    AttemptFinished,
    AttemptStarted,
    BlockFinished,
    BlockStarted,
    Event,
    ItemsDone,
    RunFinished,
    RunStarted,
    RunStatus,
    Status,
    StepFinished,
    StepProgress,
)
from procflow.graph import MergeSpec, ScopeUnit, TaskGraph, TaskUnit, Unit, walk
from procflow.kept import Kept
from procflow.ready import Budget, Ready
from procflow.ref import Element, Inline, Ref
from procflow.runs import MapRun, Role, ScopeRun, TaskRun, UnitRun, instantiate
from procflow.states import TRANSITIONS, State
from procflow.units import size_text

__all__ = ["Scheduler"]

HOLD_SHARE = 0.90
"""Above this share of the memory budget nothing more is started."""
PRESSURE_SHARE = 0.95
"""Above this share the youngest attempt is stopped and run again alone."""
CRASH_WINDOW_S = 60.0
"""So many workers may die in this time, with no success between, before the run stops: ``max(5, 2 x slots)``."""
RETRIES_MIN = 10
"""Retries that a run always allows, whatever share of its attempts they are."""
STORY = 400
"""Moves kept for the story of an internal error."""

Input = Outcome | Tick | StopAsked | Measured


class Scheduler:
    """The decisions of one run.

    ``slots`` are the cores of each executor, ``memory_bytes`` the budget for memory (None: no limit), ``kept`` the
    results of an earlier session. ``start`` is called once, then ``handle`` until ``finished``; ``next_deadline``
    says when to come back without an outcome.
    """

    def __init__(
        self,
        graph: TaskGraph,
        *,
        slots: Mapping[str, int],
        memory_bytes: int | None = None,
        run_id: str = "run",
        kept: Kept | None = None,
    ) -> None:
        self.graph = graph
        self.run_id = run_id
        self.slots = dict(slots)
        self.memory_bytes = memory_bytes
        self.kept = kept
        self.ready = Ready(Budget(slots, memory_bytes, graph.resources))
        self.root = ScopeRun(graph.root, None, 0, ())
        self.running: dict[int, TaskRun] = {}
        self.finished = False
        self.status: RunStatus = "succeeded"
        self.failures = 0
        self.tolerated = 0
        self.late = 0
        self.records = 0
        self.attempts_over = 0
        self.retries = 0
        self._crashes: deque[float] = deque()
        self._kept_refs: dict[int, Ref] = {}
        self._actions: list[Action] = []
        self._settling: deque[TaskRun | ScopeRun] = deque()
        self._timers: list[tuple[float, int, str, Any, Any]] = []
        self._key = 0
        self._seq = 0
        self._story: deque[tuple[str, str, str, str]] = deque(maxlen=STORY)
        self._began = 0.0
        self._now = 0.0
        self._followers: dict[int, dict[int, list[int]]] = {}

    # -- the face ----------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Open the run; returns the first actions."""
        self._began = self._now = now
        steps = sum(1 for unit in walk(self.graph.root) if isinstance(unit, TaskUnit))
        self._record(RunStarted(0.0, self.run_id, self.graph.name, steps))
        self._move(self.root, "ready")
        self._open(self.root)
        return self._turn()

    def handle(self, outcome: Input, now: float) -> list[Action]:
        """Take one outcome; returns what to do now. An outcome of an attempt that is already over is dropped and counted."""
        self._now = now
        if isinstance(outcome, Tick):
            pass
        elif isinstance(outcome, StopAsked):
            self._stop(outcome.reason)
        elif isinstance(outcome, Measured):
            self._measured(outcome)
        else:
            task = self.running.get(outcome.key)
            if task is None:
                self.late += 1
                return []
            if isinstance(outcome, Started):
                self._set_clocks(task)
            elif isinstance(outcome, Progressed):
                self._progressed(task, outcome)
            else:
                self._ended(task, outcome)
        return self._turn()

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
        actions, self._actions = self._actions, []
        return actions

    # -- small parts -------------------------------------------------------------------------------------------

    def _record(self, event: Event) -> None:
        self.records += 1
        self._actions.append(Record(event))

    def _at(self) -> float:
        return self._now - self._began

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _timer(self, at: float, kind: str, run: UnitRun, token: Any) -> None:
        heapq.heappush(self._timers, (at, self._next_seq(), kind, run, token))

    def _move(self, run: UnitRun, to: State) -> None:
        """Change a state, by the table only."""
        if (run.state, to) not in TRANSITIONS:
            name = run.unit.label or "the run"
            story = [f"{s[0]} [{s[1]}] {s[2]} -> {s[3]}" for s in self._story if s[0] == name]
            raise InternalError(f"{name} [{run.item}] can't go from {run.state} to {to}", story)
        self._story.append((run.unit.label or "the run", run.item, run.state, to))
        run.state = to

    # -- starting ----------------------------------------------------------------------------------------------

    def _hide(self, unit: TaskUnit, scope: ScopeRun, role: Role) -> None:
        """Start a gate, expand or merger of a block."""
        scope.hidden = TaskRun(unit, scope, self._next_seq(), scope.labels, role)
        self._make_ready(scope.hidden, self.records)

    def _make_ready(self, run: TaskRun | ScopeRun, after: int) -> None:
        """The run waits for nothing but its start."""
        self._move(run, "ready")
        run.after = after
        if isinstance(run, TaskRun):
            if self.kept is None or not self._keep(run, self.kept):
                self.ready.push(run)
            return
        assert run.scope is not None
        if run.scope.full:
            run.scope.park(run)
        else:
            self._enter(run)

    def _enter(self, run: ScopeRun) -> None:
        """Open a block in a place of its own block."""
        if run.scope is not None:
            run.scope.active += 1
            run.holds = True
        self._open(run)

    def _leave(self, scope: ScopeRun) -> None:
        """A place in the block is free; the most urgent member that waits for one may start."""
        scope.active -= 1
        waiting = None if scope.full else scope.unpark()
        if isinstance(waiting, TaskRun):
            self.ready.push(waiting)
        elif waiting is not None:
            self._enter(waiting)

    def _admit(self) -> None:
        """Start ready tasks while something fits."""
        while True:
            task = self.ready.pop(self._now)
            if task is None:
                return
            scope = task.scope
            assert scope is not None
            if task.role in ("member", "batch"):
                if scope.full:
                    self.ready.untake(task, started=False)
                    scope.park(task)
                    continue
                scope.active += 1
            self._start(task, scope)
            if self._settling:
                self._drain()
                if self.finished:
                    return

    def _start(self, task: TaskRun, scope: ScopeRun) -> None:
        """Submit the task's next attempt, unless it has no items left or a value it needs does not exist."""
        unit = task.unit
        if task.role == "batch" and not self._fill(task, scope):
            return
        values: dict[str, Ref] = {}
        for name in unit.reads:
            ref = scope.lookup(name)
            if ref is None:
                self._starve(task, scope, name)
                return
            values[name] = ref
        if task.role == "merger":
            values["results"] = _for_merger(scope)
        if task.number == 0 and self.kept is not None:
            task.number = self.kept.attempts(unit.path, task.item_label)
        self._key += 1
        task.key = self._key
        task.number += 1
        task.peak_bytes = 0
        task.started_at = self._now
        self._move(task, "running")
        self.running[task.key] = task
        self._set_clocks(task)
        each = task.items is not None and (unit.timeout_s is not None or unit.idle_timeout_s is not None)
        self._actions.append(Submit(task.key, unit, task.number, task.after, values, task.items, task.labels, each))
        self._record(
            AttemptStarted(self._at(), task.key, unit.path, unit.label, task.item_label, task.number, unit.executor)
        )

    def _starve(self, task: TaskRun, scope: ScopeRun, name: str) -> None:
        """Skip what reads a value that was never produced."""
        reason = f"{name!r} has no value: the step that writes it did not run or did not succeed"
        self._give_back(task, scope, started=False)
        if task.role == "member":
            self._settle(task, "skipped", reason)
            return
        self._move(task, "skipped")
        scope.hidden = None
        self._settle(scope, "skipped", reason)

    def _set_clocks(self, task: TaskRun) -> None:
        """The attempt's clocks begin (again) now; a timer that comes too early for them is set anew."""
        unit = task.unit
        if unit.timeout_s is not None:
            if task.clock is None:
                self._timer(self._now + unit.timeout_s, "attempt", task, task.key)
            task.clock = self._now + unit.timeout_s
        if unit.idle_timeout_s is not None:
            if task.idle_clock is None:
                self._timer(self._now + unit.idle_timeout_s, "idle", task, task.key)
            task.idle_clock = self._now + unit.idle_timeout_s

    def _give_back(self, task: TaskRun, scope: ScopeRun, started: bool = True) -> None:
        """The task holds its place and its share of the budget no longer."""
        self.ready.untake(task, started)
        if task.role in ("member", "batch"):
            self._leave(scope)

    # -- results of an earlier session -------------------------------------------------------------------------

    def _keep(self, task: TaskRun, kept: Kept) -> bool:
        """Use the task's earlier result, unless something it builds on is made anew."""
        scope = task.scope
        assert scope is not None
        found = kept.task(task.unit.path, task.item, task.role) if task.role != "batch" else None
        if found is None or not self._unchanged(task, scope):
            return False
        for ref in [*found.outputs.values(), *(page for page, _ in found.pages)]:
            self._kept_refs[id(ref)] = ref
        task.kept = True
        self._move(task, "skipped" if found.skipped else "succeeded")
        if task.role == "member":
            task.published = dict(found.outputs)
            self._step_finished(task, "skipped" if found.skipped else "succeeded")
            self._settling.append(task)
            return True
        scope.hidden = None
        if found.skipped:
            self._settle(scope, "skipped", "its condition is false")
        else:
            scope.kept = True
            self._hidden_done(task, scope, found.outputs, found.pages)
        return True

    def _unchanged(self, task: TaskRun, scope: ScopeRun) -> bool:
        """All that the task builds on was kept too."""
        if scope.tainted:
            return False
        if task.role == "member" and not all(scope.members[i].kept for i in task.unit.strict):
            return False
        if task.role == "merger" and not self._all_kept(scope):
            return False
        return all(id(scope.lookup(name)) in self._kept_refs for name in task.unit.reads)

    def _all_kept(self, scope: ScopeRun) -> bool:
        """Every value of the block comes from an earlier session."""
        if isinstance(scope, MapRun):
            return scope.kept
        return all(m.kept for m in scope.members if m.state == "succeeded")

    def _is_tainted(self, scope: ScopeRun) -> bool:
        outer = scope.scope
        if outer is None:
            return False
        strict = () if isinstance(outer, MapRun) else scope.unit.strict
        return outer.tainted or not all(outer.members[i].kept for i in strict)

    def _keep_items(self, run: MapRun, kept: Kept) -> None:
        """Take the items of a map that are done already; a map is kept only if all of them are."""
        body = run.unit.body
        if not run.kept or not isinstance(body, TaskUnit):
            return
        run.kept = False
        if run.tainted or not all(id(run.lookup(name)) in self._kept_refs for name in body.reads):
            return
        for indices, chunk in kept.items(run.unit.path, run.item):
            mapping.done(run, indices, chunk)
        if run.chunks:
            mapping.start_over(run)
        run.kept = run.successes == run.size

    # -- memory ------------------------------------------------------------------------------------------------

    def _measured(self, sample: Measured) -> None:
        """Stop what is over its own limit; when the run as a whole is short, stop starting, then stop the youngest."""
        for key, rss_bytes in sample.rss_bytes.items():
            task = self.running.get(key)
            if task is None:
                continue
            task.peak_bytes = max(task.peak_bytes, rss_bytes)
            if task.doomed is None and task.memory_bytes is not None and rss_bytes > task.memory_bytes:
                self._doom(task, "oom")
        if self.memory_bytes is None:
            return
        share = sample.total_bytes / self.memory_bytes
        self.ready.held = share > HOLD_SHARE
        if share <= PRESSURE_SHARE or any(t.doomed for t in self.running.values()):
            return
        running = [t for t in self.running.values() if t.key in sample.rss_bytes]
        if len(running) > 1:
            self._doom(max(running, key=lambda t: (t.started_at, t.key)), "pressure")
        elif running and share > 1.0:
            self._doom(running[0], "oom")

    def _again_alone(self, task: TaskRun, scope: ScopeRun, failure: Failure, outcome: Outcome) -> None:
        """An attempt that was stopped for the run's sake runs again with the machine to itself, without a charge."""
        usage = outcome.usage if isinstance(outcome, (Succeeded, Skipped, Failed, Lost)) else Usage()
        self._finish_attempt(task, usage, "lost", failure=failure, retry_in_s=0.0, count=0)
        if task.role == "batch":
            assert isinstance(scope, MapRun)
            self._move(task, "failed")
            assert task.items is not None
            if scope.ending is None:
                mapping.again(scope, mapping.remaining(task.items, task.reported or set()))
                scope.pressed = True
            self._feed(scope)
            self._maybe_close(scope)
            return
        task.alone = True
        self._move(task, "ready")
        if scope.ending is None:
            self.ready.push(task)
        else:
            self._settle_hidden_or_member(task, scope, "cancelled", scope.reason)

    def _more_memory(self, task: TaskRun, peak_bytes: int | None) -> bool:
        """Reserve more for the next attempt of a task that ran out of memory; False where the run has no room for it."""
        reserved = task.memory_bytes or 0
        wanted = max(2 * reserved, int((peak_bytes or 0) * 1.25))
        if self.memory_bytes is not None:
            if reserved >= self.memory_bytes:
                return False
            wanted = min(wanted, self.memory_bytes)
        if isinstance(task.scope, MapRun) and task.role == "batch":
            task.scope.memory_bytes = max(wanted, task.scope.memory_bytes or 0)
        else:
            task.memory_bytes = wanted
        return True

    # -- blocks ------------------------------------------------------------------------------------------------

    def _open(self, scope: ScopeRun) -> None:
        """The block begins, or begins again: members that succeeded keep their results."""
        unit = scope.unit
        self._move(scope, "running")
        scope.ending = None
        scope.failure = None
        scope.attempt += 1
        if scope.attempt == 1:
            scope.opened_at = self._now
            if self.kept is not None:
                scope.tainted = self._is_tainted(scope)
            for name, outer in unit.imports.items():
                ref = scope.scope.lookup(outer) if scope.scope is not None else None
                if ref is not None:
                    scope.values[name] = ref
        if unit.timeout_s is not None and scope.clock is None:
            used = self.kept.consumed_s(unit.path, scope.item) if self.kept is not None else 0.0
            scope.clock = self._now + max(0.0, unit.timeout_s - used)
            self._timer(scope.clock, "scope", scope, scope.clock)
        if unit.gate is not None and not scope.gated:
            self._hide(unit.gate, scope, "gate")
        else:
            self._begin(scope, scope.after)

    def _begin(self, scope: ScopeRun, after: int) -> None:
        """Let the first members go; ``after`` is what must be durable before they do."""
        scope.gated = True
        self._count_own(scope, -scope.own_failures)
        if isinstance(scope, MapRun):
            scope.after = after
            if scope.expanded:
                self._begin_items(scope)
            else:
                self._hide(scope.unit.expand, scope, "expand")
            return
        self._announce(scope, len(scope.unit.members))
        if scope.members:
            self._renew(scope)
        else:
            self._instantiate(scope)
        waiting = [m for m in scope.members if m.state == "waiting"]
        scope.unsettled = len(waiting)
        if not waiting:
            self._maybe_close(scope)
        for run in waiting:
            if run.unmet == 0 and run.state == "waiting":
                self._make_ready(run, after)

    def _count_own(self, scope: ScopeRun, more: int) -> None:
        """Failures that are no member's; they are taken back when the block runs again."""
        scope.own_failures += more
        self.failures += more

    def _instantiate(self, scope: ScopeRun) -> None:
        for unit in scope.unit.members:
            seq = self._next_seq()
            if isinstance(unit, TaskUnit):
                scope.members.append(TaskRun(unit, scope, seq, scope.labels))
            else:
                assert isinstance(unit, ScopeUnit)
                scope.members.append(instantiate(unit, scope, seq, scope.labels))

    def _renew(self, scope: ScopeRun) -> None:
        """A block runs again: what did not succeed waits anew."""
        for run in scope.members:
            if run.state == "succeeded":
                continue
            if run.state == "failed" and isinstance(run, TaskRun):
                self.failures -= 1
                run.charges = None
            if isinstance(run, ScopeRun):
                run.clock = None
            self._move(run, "waiting")
            run.reason = ""
            run.failure = None
            run.unmet = sum(1 for i in run.unit.after if scope.members[i].state != "succeeded")
        scope.failed = scope.forgiven = 0
        scope.successes = sum(1 for m in scope.members if m.state == "succeeded")

    def _announce(self, scope: ScopeRun, members: int) -> None:
        if scope is self.root or isinstance(scope.scope, MapRun):
            return
        unit = scope.unit
        join = "all" if unit.need is None else str(unit.need)
        self._record(BlockStarted(self._at(), unit.path, unit.label, scope.item, unit.kind, members, join))

    def _cancel(self, scope: ScopeRun, reason: str) -> None:
        """Everything below that has not settled is stopped; iterative, because blocks may be wide."""
        stack: list[ScopeRun] = [scope]
        while stack:
            current = stack.pop()
            if current.ending is None:
                current.ending = "cancelled"
                current.reason = reason
            if current.hidden is not None and current.hidden.state in ("ready", "retrying"):
                self._move(current.hidden, "cancelled")
                current.hidden = None
            below: list[TaskRun | ScopeRun] = list(current.members)
            if isinstance(current, MapRun):
                self._forget_items(current)
                below += current.live.values()
            for run in below:
                if run.state in ("waiting", "ready", "retrying"):
                    self._settle(run, "cancelled", reason)
                elif run.state == "running" and isinstance(run, ScopeRun):
                    stack.append(run)
            if current is not scope:
                self._maybe_close(current)
        for task in [t for t in self.running.values() if t.doomed is None and _inside(t, scope)]:
            self._doom(task, "cancelled")

    def _doom(self, task: TaskRun, cause: Cause) -> None:
        """Ask the executor to stop an attempt; the verdict stands from here on."""
        task.doomed = cause
        self._actions.append(Kill(task.key, task.unit.executor, cause, task.unit.kill_grace_s))

    def _end_early(self, scope: ScopeRun, ending: Any, reason: str) -> None:
        """The block's end is decided before all members are done."""
        if scope.ending is not None:
            return
        scope.ending = ending
        scope.reason = reason
        self._cancel(scope, reason)
        self._maybe_close(scope)

    def _stop(self, reason: str) -> None:
        if self.root.state == "running":
            self._end_early(self.root, "cancelled", reason)

    # -- outcomes ----------------------------------------------------------------------------------------------

    def _progressed(self, task: TaskRun, outcome: Progressed) -> None:
        unit = task.unit
        if unit.idle_timeout_s is not None:
            task.idle_clock = self._now + unit.idle_timeout_s
        if outcome.done is not None:
            self._record(StepProgress(self._at(), unit.path, unit.label, task.item_label, outcome.done, outcome.total))
        if task.role == "batch" and (outcome.indices or outcome.failures) and task.doomed is None:
            assert isinstance(task.scope, MapRun)
            self._absorb(task, task.scope, outcome)
            self._set_clocks(task)

    def _ended(self, task: TaskRun, outcome: Succeeded | Skipped | Failed | Lost) -> None:
        """The attempt is over: free its place, then act by what the task is for."""
        scope = task.scope
        assert scope is not None
        del self.running[task.key]
        self._give_back(task, scope)
        task.clock = task.idle_clock = None
        scope.work_s += outcome.usage.wall_s or self._now - task.started_at
        self.attempts_over += 1
        doomed, task.doomed = task.doomed, None
        if doomed == "cancelled":
            self._finish_attempt(task, outcome.usage, "cancelled", count=0)
            self._settle_hidden_or_member(task, scope, "cancelled", scope.reason)
        elif doomed == "pressure":
            self._again_alone(task, scope, _stopped(task, doomed, outcome), outcome)
        elif doomed is not None:
            self._ended_badly(task, scope, _stopped(task, doomed, outcome), outcome, lost=True)
        elif isinstance(outcome, Succeeded):
            scope.cost += outcome.cost
            self._ended_well(task, scope, outcome)
        elif isinstance(outcome, Skipped):
            self._finish_attempt(task, outcome.usage, "skipped")
            self._settle_hidden_or_member(task, scope, "skipped", "its condition is false")
        else:
            self._ended_badly(task, scope, outcome.failure, outcome, lost=isinstance(outcome, Lost))

    def _ended_well(self, task: TaskRun, scope: ScopeRun, outcome: Succeeded) -> None:
        self._crashes.clear()
        if task.role == "batch":
            assert isinstance(scope, MapRun)
            self._batch_ended_well(task, scope, outcome)
            return
        if task.role == "member":
            task.published = dict(outcome.outputs)
        self._finish_attempt(task, outcome.usage, "succeeded", outcome=outcome)
        if task.role == "member":
            self._settle(task, "succeeded")
            return
        self._move(task, "succeeded")
        scope.hidden = None
        self._hidden_done(task, scope, outcome.outputs, outcome.pages)

    def _hidden_done(
        self, task: TaskRun, scope: ScopeRun, outputs: Mapping[str, Ref], pages: Sequence[tuple[Ref, int]]
    ) -> None:
        """A block's gate, merger or expand has done its part."""
        if task.role == "gate":
            self._begin(scope, self.records)
        elif task.role == "merger":
            scope.published = dict(outputs)
            self._settle(scope, "succeeded")
        else:
            assert isinstance(scope, MapRun)
            mapping.add_pages(scope, pages)
            scope.after = self.records
            self._begin_items(scope)

    def _ended_badly(
        self, task: TaskRun, scope: ScopeRun, failure: Failure, outcome: Succeeded | Skipped | Failed | Lost, lost: bool
    ) -> None:
        """A failed or lost attempt: another one after a pause, or the end of the task."""
        status = "lost" if lost else "failed"
        if failure.cause in ("crash", "spawn"):
            self._crashed(failure)
        if task.role == "batch":
            assert isinstance(scope, MapRun)
            self._finish_attempt(task, outcome.usage, status, failure=failure, count=0)
            self._batch_ended_badly(task, scope, failure, lost, getattr(outcome, "culprit", None))
            return
        task.failure = failure
        if task.charges is None:
            task.charges = {}
        pause = self._pause(task.unit, failure, task.charges, task.item)
        if pause is not None and failure.cause == "oom" and not self._more_memory(task, failure.peak_rss_bytes):
            pause = None
        self._finish_attempt(task, outcome.usage, status, failure=failure, retry_in_s=pause)
        if pause is None or scope.ending is not None:
            self._settle_hidden_or_member(task, scope, "failed", "")
            return
        self._move(task, "retrying")
        self._timer(self._now + pause, "retry", task, task.number)

    def _pause(self, unit: Unit, failure: Failure, charges: dict[str, int], item: str) -> float | None:
        """The pause before another attempt; None where the step, or the run as a whole, has no retry left."""
        pause = retries.pause(unit.retry, failure, charges, f"{self.run_id}:{unit.label}:{item}")
        if pause is None:
            return None
        if self.retries >= max(RETRIES_MIN, self.graph.retry_share * self.attempts_over):
            return None
        self.retries += 1
        return pause

    def _crashed(self, failure: Failure) -> None:
        """Workers that die one after the other mean a bad host or a bad import, not bad steps: stop early and say so."""
        crashes = self._crashes
        crashes.append(self._now)
        while crashes[0] < self._now - CRASH_WINDOW_S:
            crashes.popleft()
        if len(crashes) > max(5, 2 * sum(self.slots.values())) and self.root.ending is None:
            reason = (
                f"{len(crashes)} workers died within {CRASH_WINDOW_S:g} s and no step succeeded between ({failure})"
            )
            self.root.failure = failure
            self._end_early(self.root, "failed", f"the run stops early: {reason}")

    def _settle_hidden_or_member(self, task: TaskRun, scope: ScopeRun, state: Status, reason: str) -> None:
        """A member settles itself; what happens to a gate, expand or merger happens to its block."""
        if task.role == "member":
            self._settle(task, state, reason)
            return
        self._move(task, state)
        if task.role == "batch":
            self._maybe_close(scope)
            return
        scope.hidden = None
        if state == "skipped":
            self._settle(scope, "skipped", reason)
        elif state == "failed":
            scope.failure = task.failure
            self._count_own(scope, 1)
            self._end_early(scope, "failed", f"its {task.role} failed")
        self._maybe_close(scope)

    def _finish_attempt(
        self, task: TaskRun, usage: Usage, status: Any, *, failure: Failure | None = None,
        outcome: Succeeded | None = None, retry_in_s: float | None = None, count: int = 1,
    ) -> None:  # fmt: skip
        unit = task.unit
        outputs: Mapping[str, Ref] = {}
        metrics: Mapping[str, float] = {}
        cost = 0.0
        if outcome is not None:
            metrics, cost = outcome.metrics, outcome.cost
            outputs = outcome.outputs
            if task.role == "batch" and outcome.chunk is not None:
                outputs = {"": outcome.chunk}
        if not usage.wall_s:
            usage = Usage(self._now - task.started_at, usage.cpu_s, usage.peak_rss_bytes)
        self._record(
            AttemptFinished(
                self._at(), task.key, unit.path, unit.label, task.item_label, task.number, unit.executor, status,
                task.started_at - self._began, usage, failure, outputs, retry_in_s, metrics, cost, count, task.role,
                outcome.indices if outcome is not None else (), outcome.pages if outcome is not None else (),
            )
        )  # fmt: skip

    # -- items of maps -----------------------------------------------------------------------------------------

    def _begin_items(self, run: MapRun) -> None:
        """The items are known (or the map runs again): start what may start."""
        self._announce(run, run.size)
        if run.attempt > 1:
            mapping.start_over(run)
        elif self.kept is not None:
            self._keep_items(run, self.kept)
        run.failed = 0
        self._feed(run)
        self._maybe_close(run)

    def _feed(self, run: MapRun) -> None:
        """Keep one batch waiting for its start, or a bounded number of iterations open."""
        if run.ending is not None or run.state != "running":
            return
        body = run.unit.body
        if isinstance(body, TaskUnit):
            if run.head is None and mapping.has_work(run):
                run.head = TaskRun(body, run, self._next_seq(), run.labels, "batch")
                run.head.memory_bytes = run.memory_bytes or body.memory_bytes
                run.head.alone, run.pressed = run.pressed, False
                self._make_ready(run.head, run.after)
            return
        assert isinstance(body, ScopeUnit)
        limit = run.unit.max_parallelism or max(4, 2 * sum(self.slots.values()))
        while run.active < limit and mapping.has_work(run) and run.ending is None:
            items = mapping.take(run, 1)
            assert items is not None
            index = items.indices[0]
            scope = instantiate(body, run, self._next_seq(), (*run.labels, str(index)))
            own: dict[str, Ref] = {
                run.unit.item_name: Element(items.page, index - items.first),
                INDEX: Inline(pickle.dumps(index, protocol=5)),
            }
            if id(items.page) in self._kept_refs:
                self._kept_refs.update((id(ref), ref) for ref in own.values())
            scope.values.update(own)
            run.live[index] = scope
            self._make_ready(scope, run.after)

    def _fill(self, task: TaskRun, scope: ScopeRun) -> bool:
        """Give a batch its items as it starts, and let the next batch wait."""
        assert isinstance(scope, MapRun)
        scope.head = None
        size = mapping.size_of_batch(scope, self.slots[task.unit.executor])
        task.items = mapping.take(scope, size)
        if task.items is None:
            self._give_back(task, scope, started=False)
            self._move(task, "cancelled")
            return False
        self._feed(scope)
        return True

    def _forget_items(self, run: MapRun) -> None:
        """Nothing of the map starts any more."""
        run.again.clear()
        run.cursor = run.size
        if run.head is not None:
            if run.head.state == "ready":
                self._move(run.head, "cancelled")
            run.head = None

    def _absorb(self, task: TaskRun, run: MapRun, outcome: Progressed | Succeeded) -> None:
        """Take the items that a running or finished batch reports."""
        if task.reported is None:
            task.reported = set()
        task.reported.update(outcome.indices)
        task.reported.update(index for index, _ in outcome.failures)
        mapping.done(run, outcome.indices, outcome.chunk)
        unit = run.unit
        if isinstance(outcome, Progressed) and outcome.chunk is not None:
            self._record(
                ItemsDone(self._at(), task.key, unit.path, unit.label, run.item, outcome.indices, outcome.chunk)
            )
        for index, failure in outcome.failures:
            self._item_failed(run, index, failure)
        self._record(
            StepProgress(self._at(), unit.path, unit.label, run.item, run.successes + len(run.failures), run.size)
        )
        if run.unit.need is not None and run.successes >= run.unit.need:
            self._end_early(run, "enough", f"{run.successes} items succeeded")

    def _batch_ended_well(self, task: TaskRun, run: MapRun, outcome: Succeeded) -> None:
        assert task.items is not None
        self._finish_attempt(task, outcome.usage, "succeeded", outcome=outcome, count=len(outcome.indices))
        self._move(task, "succeeded")
        mapping.measure(run, len(task.items.indices), outcome.usage.wall_s or self._now - task.started_at)
        self._absorb(task, run, outcome)
        rest = mapping.remaining(task.items, task.reported or set())
        if rest:
            raise InternalError(f"{run.unit.label}: the executor reported no result for items {rest[:5]}")
        self._feed(run)
        self._maybe_close(run)

    def _batch_ended_badly(self, task: TaskRun, run: MapRun, failure: Failure, lost: bool, culprit: int | None) -> None:
        """The batch broke off: its culprit is charged, the other items start again; with many suspects each runs alone."""
        assert task.items is not None
        self._move(task, "failed")
        rest = mapping.remaining(task.items, task.reported or set())
        if run.ending is None and rest:
            if culprit is None and lost and (len(rest) == 1 or run.unit.body.timeout_s is not None):
                culprit = rest[0]
            if not lost:
                for index in rest:
                    self._item_failed(run, index, failure)
            else:
                self._batch_lost(task, run, failure, rest, culprit if culprit in rest else None)
        self._feed(run)
        self._maybe_close(run)

    def _batch_lost(self, task: TaskRun, run: MapRun, failure: Failure, rest: list[int], culprit: int | None) -> None:
        """The batch lost its worker: innocent items start again; an item that does it twice is set aside."""
        suspects = rest if culprit is None else [culprit]
        mapping.again(run, [i for i in rest if i not in suspects])
        if failure.cause != "crash":
            if failure.cause == "oom":
                self._more_memory(task, failure.peak_rss_bytes)
            if culprit is None:
                run.alone.update(rest)
                mapping.again(run, rest)
            else:
                self._item_failed(run, culprit, failure)
            return
        for index in suspects:
            run.losses[index] = run.losses.get(index, 0) + 1
        if culprit is not None and run.losses[culprit] > 1:
            message = f"set aside: {failure.message}, {run.losses[culprit]} times in a row"
            self._item_over(run, culprit, replace(failure, type="Quarantined", message=message), run.losses[culprit])
            return
        run.alone.update(suspects)
        mapping.again(run, suspects)

    def _item_failed(self, run: MapRun, index: int, failure: Failure) -> None:
        """Another attempt of the item after a pause, or its end."""
        if run.ending is not None:
            return
        charges = run.charges.setdefault(index, {})
        unit = run.unit
        label = "/".join((*run.labels, str(index)))
        pause = self._pause(unit.body, failure, charges, label)
        if pause is not None:
            self._timer(self._now + pause, "item", run, index)
            return
        del run.charges[index]
        self._item_over(run, index, failure, sum(charges.values()))

    def _item_over(self, run: MapRun, index: int, failure: Failure, attempts: int) -> None:
        """The item failed for good."""
        unit = run.unit
        label = "/".join((*run.labels, str(index)))
        run.failures[index] = failure
        run.failed += 1
        self._count_own(run, 1)
        self._record(StepFinished(self._at(), unit.path, unit.label, label, "failed", attempts, (), failure, "", False))
        self._judge(run, f"item {index}")

    def _item_due(self, run: MapRun, index: int) -> None:
        if run.state == "running" and run.ending is None:
            mapping.again(run, [index])
            self._feed(run)

    def _iteration_settled(self, run: MapRun, iteration: ScopeRun) -> None:
        """An item's steps are done; the value of the last one is the item's result."""
        index = int(iteration.labels[-1])
        del run.live[index]
        if run.ending is None:
            if iteration.state in ("succeeded", "skipped"):
                last = iteration.members[-1].published if iteration.members else {}
                ref: Ref = merge.as_value(last) if last else Inline(pickle.dumps(None, protocol=5))
                mapping.done(run, range(index, index + 1), mapping.one(ref))
                run.kept = run.kept and iteration.kept
                if run.unit.need is not None and run.successes >= run.unit.need:
                    self._end_early(run, "enough", f"{run.successes} items succeeded")
            elif iteration.state == "failed":
                failure = iteration.failure
                assert failure is not None
                run.failures[index] = failure
                run.failed += 1
                # Its steps were counted as they failed; if the map runs again they are forgotten with the iteration.
                run.own_failures += _failed_below(iteration)
                self._judge(run, f"item {index}")
            unit = run.unit
            self._record(
                StepProgress(self._at(), unit.path, unit.label, run.item, run.successes + len(run.failures), run.size)
            )
        self._feed(run)
        self._maybe_close(run)

    # -- timers ------------------------------------------------------------------------------------------------

    def _attempt_due(self, task: TaskRun, key: int) -> None:
        if task.key == key and task.state == "running" and task.doomed is None and task.clock is not None:
            if task.clock <= self._now:
                self._doom(task, "timeout")
            else:
                self._timer(task.clock, "attempt", task, key)

    def _idle_due(self, task: TaskRun, key: int) -> None:
        if task.key == key and task.state == "running" and task.doomed is None and task.idle_clock is not None:
            if task.idle_clock <= self._now:
                self._doom(task, "idle")
            else:
                self._timer(task.idle_clock, "idle", task, key)

    def _scope_due(self, scope: ScopeRun, clock: float) -> None:
        if scope.clock != clock or scope.state not in ("running", "retrying") or scope.ending is not None:
            return
        what = "the run" if scope is self.root else "the block"
        message = f"{what} took longer than its timeout of {scope.unit.timeout_s:g} s"
        scope.failure = Failure("timeout", "Timeout", message)
        if scope.state == "retrying":
            self._settle(scope, "failed", message)
        else:
            self._end_early(scope, "timeout", message)

    def _retry_due(self, run: TaskRun | ScopeRun, token: int) -> None:
        if run.state == "retrying" and token == (run.number if isinstance(run, TaskRun) else run.attempt):
            self._make_ready(run, self.records)

    # -- settling ----------------------------------------------------------------------------------------------

    def _settle(self, run: TaskRun | ScopeRun, state: Status, reason: str = "") -> None:
        """The run has reached a final state; its block hears of it from the queue."""
        self._move(run, state)
        run.reason = reason or run.reason
        if isinstance(run, TaskRun):
            if state == "failed":
                self.failures += 1
            self._step_finished(run, state)
        else:
            if self.kept is not None and state == "succeeded":
                run.kept = self._all_kept(run)
                if run.kept:
                    self._kept_refs.update((id(ref), ref) for ref in run.published.values())
            self._block_finished(run, state, None)
        self._settling.append(run)

    def _step_finished(self, run: TaskRun, state: Status) -> None:
        unit = run.unit
        self._record(
            StepFinished(
                self._at(), unit.path, unit.label, run.item, state, run.number, tuple(run.published),
                run.failure if state == "failed" else None, run.reason, state == "failed" and unit.tolerated, run.kept,
            )
        )  # fmt: skip

    def _block_finished(self, scope: ScopeRun, status: Status, retry_in_s: float | None) -> None:
        if scope.scope is None:
            return
        if retry_in_s is None:
            scope.scope.work_s += scope.work_s
            scope.scope.cost += scope.cost
        if isinstance(scope.scope, MapRun):
            return
        unit = scope.unit
        wall = self._now - scope.opened_at if scope.attempt else 0.0
        self._record(
            BlockFinished(
                self._at(), unit.path, unit.label, scope.item, unit.kind, status, scope.total, scope.successes, scope.failed,
                wall, scope.work_s, max(0.0, scope.work_s - wall), scope.cost, tuple(scope.published),
                scope.failure if status == "failed" else None, scope.reason, scope.attempt, retry_in_s,
            )
        )  # fmt: skip

    def _drain(self) -> None:
        """Tell blocks of their settled members, until nothing changes."""
        settling = self._settling
        while settling:
            run = settling.popleft()
            if isinstance(run, ScopeRun) and run.holds and run.scope is not None:
                run.holds = False
                self._leave(run.scope)
            if run.scope is None:
                self._run_over()
            elif isinstance(run.scope, MapRun):
                assert isinstance(run, ScopeRun)
                self._iteration_settled(run.scope, run)
            else:
                self._member_settled(run.scope, run)

    def _member_settled(self, scope: ScopeRun, run: TaskRun | ScopeRun) -> None:
        """Count the member, publish its values, and let those behind it go."""
        scope.unsettled -= 1
        if run.state == "succeeded":
            scope.successes += 1
            if scope.unit.kind != "parallel":
                scope.values.update(run.published)
        elif run.state == "failed":
            scope.failed += 1
            scope.forgiven += run.unit.tolerated
        if scope.ending is None:
            if run.state == "failed" and not run.unit.tolerated:
                self._judge(scope, run.unit.name)
            elif scope.unit.need is not None and scope.successes >= scope.unit.need:
                self._end_early(scope, "enough", f"{scope.successes} members succeeded")
        if scope.ending is None:
            self._release_behind(scope, run)
        self._maybe_close(scope)

    def _judge(self, scope: ScopeRun, who: str) -> None:
        """A member failed for good: does the block go on?"""
        unit = scope.unit
        if unit.need is not None:
            left = scope.total - scope.failed
            if left < unit.need:
                self._end_early(
                    scope, "failed", f"{scope.failed} of {scope.total} failed, and {unit.need} must succeed"
                )
        elif unit.on_error == "stop" or (unit.on_error == "finish" and unit.kind == "sequence"):
            self._end_early(scope, "failed", f"{who} failed")
        elif unit.on_error == "continue" and scope.failed - scope.forgiven > scope.tolerance():
            self._end_early(
                scope, "failed", f"{scope.failed} of {scope.total} failed, more than tolerated ({unit.tolerate})"
            )

    def _release_behind(self, scope: ScopeRun, run: TaskRun | ScopeRun) -> None:
        """Members that wait for this one: count down; skip those that needed it to succeed."""
        for behind in self._behind(scope.unit).get(run.unit.index, ()):
            follower = scope.members[behind]
            if follower.state != "waiting":
                continue
            if run.state != "succeeded" and run.unit.index in follower.unit.strict:
                ended = "was skipped" if run.state == "skipped" else run.state
                self._settle(follower, "skipped", f"it depends on {run.unit.name!r}, which {ended}")
                continue
            follower.unmet -= 1
            if follower.unmet == 0:
                self._make_ready(follower, self.records)

    def _behind(self, unit: ScopeUnit) -> dict[int, list[int]]:
        """For each member, those that wait for it; worked out once a block."""
        known = self._followers.get(id(unit))
        if known is None:
            known = {}
            for member in unit.members:
                for before in member.after:
                    known.setdefault(before, []).append(member.index)
            self._followers[id(unit)] = known
        return known

    # -- the end of blocks -------------------------------------------------------------------------------------

    def _maybe_close(self, scope: ScopeRun) -> None:
        """Close the block if nothing below is left: merge and settle it, or let it fail."""
        if scope.state != "running" or scope.hidden is not None or not scope.done:
            return
        if not scope.gated and scope.ending is None:
            return
        if scope.ending == "cancelled":
            self._settle(scope, "cancelled", scope.reason)
        elif self._good(scope):
            self._succeed(scope)
        else:
            self._fail(scope)

    def _good(self, scope: ScopeRun) -> bool:
        unit = scope.unit
        if scope.ending in ("failed", "timeout"):
            return False
        if unit.need is not None:
            return scope.successes >= unit.need or (scope.total == 0 and isinstance(scope, MapRun))
        return scope.failed - scope.forgiven <= scope.tolerance()

    def _succeed(self, scope: ScopeRun) -> None:
        unit = scope.unit
        if scope.members and all(m.state == "skipped" for m in scope.members):
            self._settle(scope, "skipped", "all its members were skipped")
        elif unit.merger is not None:
            self._hide(unit.merger, scope, "merger")
        else:
            scope.published = _published(scope)
            self._settle(scope, "succeeded")

    def _fail(self, scope: ScopeRun) -> None:
        """The block failed: its members run again after a pause, or it is over."""
        if scope.failure is None:
            scope.failure = _first_failure(scope)
        if not scope.reason:
            scope.reason = f"{scope.failed} of {scope.total} failed"
        spec = scope.unit.retry
        if scope.ending != "timeout" and scope.attempt <= spec.retries and scope.scope is not None:
            charges = {retries.counted_as(scope.failure): scope.attempt - 1}
            pause = retries.pause(spec, scope.failure, charges, f"{self.run_id}:{scope.unit.label}:{scope.item}")
            if pause is not None:
                self._block_finished(scope, "failed", pause)
                self._move(scope, "retrying")
                self._timer(self._now + pause, "retry", scope, scope.attempt)
                scope.reason = ""
                scope.ending = None
                if scope.holds:
                    scope.holds = False
                    self._leave(scope.scope)
                return
        self._settle(scope, "failed", scope.reason)

    def _run_over(self) -> None:
        """The top block has settled."""
        self.finished = True
        root = self.root
        if root.state in ("succeeded", "skipped"):
            self.status = "partial" if self.failures else "succeeded"
            self.tolerated = self.failures
        elif root.state == "failed":
            self.status = "timed_out" if root.ending == "timeout" else "failed"
        else:
            self.status = "cancelled"
        at = self._at()
        self._record(
            RunFinished(at, self.run_id, self.status, self.failures, self.tolerated, at, root.work_s, root.reason)
        )

    def story(self) -> list[str]:
        """The last moves, for the report of an internal error."""
        return [f"{label} [{item}] {before} -> {after}" for label, item, before, after in self._story][-20:]

    @property
    def outputs(self) -> Mapping[str, Ref]:
        """The values of the top block so far."""
        return self.root.values


def _inside(task: TaskRun, scope: ScopeRun) -> bool:
    """The task runs somewhere below the block."""
    current = task.scope
    while current is not None:
        if current is scope:
            return True
        current = current.scope
    return False


def _failed_below(scope: ScopeRun) -> int:
    """Failed steps of a block and the blocks in it."""
    count = scope.own_failures
    for run in scope.members:
        if isinstance(run, ScopeRun):
            count += _failed_below(run)
        elif run.state == "failed":
            count += 1
    return count


def _stopped(task: TaskRun, cause: Cause, outcome: Outcome) -> Failure:
    """What a task that was stopped is told of, whatever it did as it was being stopped."""
    unit = task.unit
    if cause == "idle":
        kind, message = "Timeout", f"gave no sign of life (step.heartbeat, step.progress) for {unit.idle_timeout_s:g} s"
    elif cause == "timeout":
        kind, message = "Timeout", f"took longer than its timeout of {unit.timeout_s:g} s"
    elif cause == "pressure":
        kind, message = "MemoryPressure", "stopped because the run as a whole was short of memory; it runs again alone"
    elif task.memory_bytes is not None:
        kind = "OutOfMemory"
        message = f"used {size_text(task.peak_bytes)}, over its memory limit of {size_text(task.memory_bytes)}"
    else:
        kind, message = "OutOfMemory", f"used {size_text(task.peak_bytes)}, more than the run may use"
    if isinstance(outcome, Lost):
        peak = max(task.peak_bytes, outcome.failure.peak_rss_bytes or 0) or None
        return replace(outcome.failure, cause=cause, type=kind, message=message, peak_rss_bytes=peak)
    return Failure(cause, kind, f"{message}; it ended while it was being stopped, so its result was dropped")


def _first_failure(scope: ScopeRun) -> Failure:
    """The failure of the first failed member in declared order."""
    if isinstance(scope, MapRun) and scope.failures:
        return scope.failures[min(scope.failures)]
    for run in scope.members:
        if run.state == "failed" and run.failure is not None and not run.unit.tolerated:
            return run.failure
    return Failure("error", "NotEnough", scope.reason or "not enough members succeeded")


def _pairs(scope: ScopeRun) -> list[tuple[str, dict[str, Ref]]]:
    return [(m.unit.name, m.published) for m in scope.members if m.state == "succeeded"]


def _for_merger(scope: ScopeRun) -> Ref:
    """What a merge by content gets: a mapping of members, or the list of a map's results."""
    return mapping.results(scope) if isinstance(scope, MapRun) else merge.collected(_pairs(scope))


def _published(scope: ScopeRun) -> dict[str, Ref]:
    """The block's values, by moving refs."""
    unit = scope.unit
    if isinstance(scope, MapRun):
        return _published_rows(scope, unit.merge)
    failures = [(m.unit.name, m.failure) for m in scope.members if m.state == "failed" and m.failure is not None]
    names = merge.merged(unit.merge, _pairs(scope), failures)
    if isinstance(unit.kept, tuple):
        return {name: names[name] for name in unit.kept if name in names}
    return names


def _published_rows(scope: MapRun, spec: MergeSpec) -> dict[str, Ref]:
    rows = mapping.results(scope)
    assert spec.output is not None
    if spec.strategy == "collect_all":
        return {spec.output: rows, f"{spec.output}_errors": mapping.errors(scope.failures)}
    if spec.strategy == "first_success":
        return {spec.output: Element(rows, 0)} if scope.successes else {}
    return {spec.output: rows}
