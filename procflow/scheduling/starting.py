"""Starting: from ready to running, within places, budget and values. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import cast

from procflow.attempt import Failure
from procflow.events import (
    AttemptStarted,
)
from procflow.graph import TaskUnit
from procflow.ref import Ref
from procflow.scheduling import states_seen, values
from procflow.scheduling.actions import Submit
from procflow.scheduling.keeping import Keeping
from procflow.scheduling.runs import Role, ScopeRun, TaskRun

__all__ = ["Starting"]

_PLACED = ("member", "batch")
"""Tasks that take a place of their block."""


class Starting(Keeping):
    """The rules of what starts, and with what."""

    __slots__ = ()

    def _hide(self, unit: TaskUnit, scope: ScopeRun, role: Role) -> None:
        """Start a gate, expand or merger of a block."""
        scope.hidden = TaskRun(unit, scope, self._next_seq(), role)
        self._make_ready(scope.hidden, self.records)

    def _make_all_ready(self, runs: Iterable[TaskRun | ScopeRun], after: int) -> None:
        """Those that waited for nothing but their block, in order; tasks side by side at one go."""
        for kind, group in groupby(runs, type):
            if kind is TaskRun and self.kept is None:
                tasks = cast("list[TaskRun]", list(group))
                self._move_all(tasks, "waiting", "ready")
                for task in tasks:
                    task.after = after
                self.ready.push(*tasks)
                continue
            for run in group:
                if run.state == "waiting":
                    self._make_ready(run, after)

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
        if not scope.parked or scope.full:
            return
        waiting = scope.unpark()
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
            if task.role in _PLACED:
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

    def _start(self, task: TaskRun, scope: ScopeRun, behind: bool = False) -> None:
        """Submit the task's next attempt, unless it has no items left or a value it needs does not exist.

        ``behind``: to be queued behind another; it begins later.
        """
        unit, role = task.unit, task.role
        call = unit.call
        if role == "batch" and not self._fill(task, scope):
            self._never_mind(task, scope, behind)
            return
        read: dict[str, Ref] = {}
        for name in unit.reads:
            ref = scope.lookup(name)
            if ref is None:
                self._never_mind(task, scope, behind)
                self._starve(task, scope, name)
                return
            read[name] = ref
        if call.transient and self.transient is not None:
            read["@transient"] = self.transient
        if call.state:
            read.update(states_seen.snapshot(task))
        if role == "merger":
            if call.kind == "reduce":
                read.update(self._fold_values(task))
            elif call.kind != "fold":
                read["results"] = values.for_merger(scope)
        if self.kept is not None and task.number == 0:
            task.number = self.kept.attempts(unit.path, task.item_label)
        self._key = task.key = self._key + 1
        task.number += 1
        self._order(Submit(task, read, behind, self.run_id, self.began))
        if behind:
            self._move(task, "queued")
            self.queued[task.key] = task
        else:
            self._began_now(task)

    def _began_now(self, task: TaskRun) -> None:
        """The task's attempt begins."""
        self.running[task.key] = task
        if task.unit.timeout_s is not None or task.unit.idle_timeout_s is not None:
            self._set_clocks(task)
        self._move(task, "running")
        self._tell_begin(task)

    def _tell_begin(self, task: TaskRun) -> None:
        unit = task.unit
        task.peak_bytes = 0
        task.started_at = self._now
        self._actions.append(
            AttemptStarted(
                self._at, task.key, unit.path, unit.label, task.item_label if task.items else task.scope.item,
                task.number, unit.executor, task.role, task.memory_bytes,
            )
        )  # fmt: skip

    def _starve(self, task: TaskRun, scope: ScopeRun, name: str) -> None:
        """A value is missing: skip the task where the step that writes it did not succeed, else it was never there."""
        if _may_come_from(scope, name):
            reason = f"{name!r} has no value: the step that writes it did not run or did not succeed"
            if task.role == "member":
                self._settle(task, "skipped", reason)
            else:
                self._move(task, "skipped")
                scope.hidden = None
                self._settle(scope, "skipped", reason)
            return
        message = f"no step published {name!r}, though all that could have done so succeeded"
        task.failure = Failure("error", "MissingValue", message)
        if task.role != "batch":
            self._settle_hidden_or_member(task, scope, "failed", "")
            return
        self._move(task, "failed")
        scope.failure = task.failure
        self._count_own(scope, 1)
        self._step_finished(task, "failed")
        self._end_early(scope, "failed", message)

    def _never_mind(self, task: TaskRun, scope: ScopeRun, behind: bool) -> None:
        """The task does not start after all."""
        if behind:
            self.ready.leave(task)
            self._leave(scope)
        else:
            self._give_back(task, scope, started=False)

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
        if task.role in _PLACED:
            self._leave(scope)


def _may_come_from(scope: ScopeRun, name: str) -> bool:
    """Some step that writes the name, or names that only the run can tell, did not succeed."""
    outer: ScopeRun | None = scope
    while outer is not None:
        if any(_is_missed(run, name) for run in outer.members):
            return True
        outer = None if outer.unit.isolated else outer.scope
    return False


def _is_missed(run: TaskRun | ScopeRun, name: str) -> bool:
    writes = run.unit.writes
    if writes is not None and name not in writes:
        return False
    if run.state != "succeeded":
        return True
    return isinstance(run, ScopeRun) and any(_is_missed(member, name) for member in run.members)
