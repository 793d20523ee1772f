"""Scopes: the rules of blocks: how they open, count, end early, close and run again. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from procflow.attempt import (
    Failure,
)
from procflow.events import (
    BlockFinished,
    BlockStarted,
    Status,
)
from procflow.graph import ScopeUnit, TaskUnit
from procflow.ref import Ref
from procflow.scheduling import retries, states_seen, values
from procflow.scheduling.items import ItemRules
from procflow.scheduling.runs import MapRun, ScopeRun, TaskRun, instantiate

__all__ = ["Scopes"]


class Scopes(ItemRules):
    """The rules of blocks."""

    __slots__ = ()

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
            if unit.state:
                scope.base = states_seen.seen_by(scope)
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
        scope.followers = self._behind(scope.unit)
        if scope.members:
            self._renew(scope)
        else:
            self._instantiate(scope)
        waiting = [m for m in scope.members if m.state == "waiting"]
        scope.unsettled = len(waiting)
        if not waiting:
            self._maybe_close(scope)
        self._make_all_ready([run for run in waiting if not run.unmet], after)

    def _count_own(self, scope: ScopeRun, more: int) -> None:
        """Failures that are no member's; they are taken back when the block runs again."""
        scope.own_failures += more
        self.failures += more

    def _instantiate(self, scope: ScopeRun) -> None:
        members = scope.members
        for seq, unit in enumerate(scope.unit.members, self._seq + 1):
            if isinstance(unit, TaskUnit):
                members.append(TaskRun(unit, scope, seq))
            else:
                assert isinstance(unit, ScopeUnit)
                members.append(instantiate(unit, scope, seq, scope.labels))
        self._seq += len(members)

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
            run.declined = False
            run.reason = ""
            run.failure = None
            run.unmet = sum(1 for i in run.unit.after if scope.members[i].state != "succeeded")
        scope.failed = scope.forgiven = 0
        scope.successes = sum(1 for m in scope.members if m.state == "succeeded")

    def _announce(self, scope: ScopeRun, members: int) -> None:
        if scope.scope is None or isinstance(scope.scope, MapRun):
            return
        unit = scope.unit
        join = "all" if unit.need is None else str(unit.need)
        self._record(BlockStarted(self._at, unit.path, unit.label, scope.item, unit.kind, members, join))

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
        # To stop an attempt takes milliseconds, in which what waits behind others would begin and be lost as well.
        out = [*self.queued.values(), *self.running.values()]
        for task in [t for t in out if t.doomed is None and _inside(t, scope)]:
            self._doom(task, "cancelled")

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

    def _scope_due(self, scope: ScopeRun, clock: float) -> None:
        if scope.clock != clock or scope.state not in ("running", "retrying") or scope.ending is not None:
            return
        what = "the run" if scope is self.root else "the block" if scope.scope is not None else "the hook"
        message = f"{what} took longer than its timeout of {scope.unit.timeout_s:g} s"
        scope.failure = Failure("timeout", "Timeout", message)
        if scope.state == "retrying":
            self._settle(scope, "failed", message)
        else:
            self._end_early(scope, "timeout", message)

    def _retry_due(self, run: TaskRun | ScopeRun, token: int) -> None:
        if run.state == "retrying" and token == (run.number if isinstance(run, TaskRun) else run.attempt):
            self._make_ready(run, self.records)

    def _settle(self, run: TaskRun | ScopeRun, state: Status, reason: str = "") -> None:
        """The run has reached a final state; its block hears of it from the queue."""
        if isinstance(run, TaskRun):
            self._settle_task(run, state, reason)
            return
        self._move(run, state)
        if reason:
            run.reason = reason
        if run.unit.state and state == "succeeded":
            run.changes = () if run.unit.isolated else (*states_seen.made_in(run), *run.changes)
        if self.kept is not None and state == "succeeded":
            run.kept = self._all_kept(run)
            if run.kept:
                self._kept_refs.update((id(ref), ref) for ref in run.published.values())
                self._kept_refs.update((id(ref), ref) for _, ref in run.changes)
        self._block_finished(run, state, None)
        if run.unit.hooks and run is not self.root:
            self._hook(run, state)
        self._settling.append(run)

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
        kept = self.kept is not None and status == "succeeded" and scope.kept and scope.total > 0
        self._record(
            BlockFinished(
                self._at, unit.path, unit.label, scope.item, unit.kind, status, scope.total, scope.successes, scope.failed,
                wall, scope.work_s, max(0.0, scope.work_s - wall), scope.cost, tuple(scope.published),
                scope.failure if status == "failed" else None, scope.reason or ("done before" if kept else ""),
                scope.attempt, retry_in_s, kept,
            )
        )  # fmt: skip

    def _drain(self) -> None:
        """Tell blocks of their settled members, until nothing changes."""
        settling = self._settling
        while settling:
            run = settling.popleft()
            if isinstance(run, TaskRun):
                self._task_settled(run)
                continue
            self._let_go_of(run)
            scope = run.scope
            if scope is None:
                self._top_over(run)
                continue
            if run.holds:
                run.holds = False
                self._leave(scope)
            if isinstance(scope, MapRun):
                self._iteration_settled(scope, run)
            else:
                self._member_settled(scope, run)

    def _task_settled(self, task: TaskRun) -> None:
        """Tell its block of a member that is a task."""
        scope = task.scope
        task.clean = task.state == "succeeded" or task.declined
        if scope is self.root:
            self._values_of_top(task)
        self._member_settled(scope, task)

    def _member_settled(self, scope: ScopeRun, run: TaskRun | ScopeRun) -> None:
        """Count the member, publish its values, and let those behind it go."""
        unit = scope.unit
        scope.unsettled -= 1
        if run.state == "succeeded":
            scope.successes += 1
            if unit.kind != "parallel":
                scope.values.update(self._visible(scope, run))
            if run.changes:
                self._clash(scope, states_seen.conflict_of(scope, run))
        elif run.state == "failed":
            scope.failed += 1
            scope.forgiven += run.unit.tolerated
            if scope.ending is None and not run.unit.tolerated:
                self._judge(scope, run.unit.name)
        if unit.need is not None and scope.successes >= unit.need and scope.ending is None:
            self._end_early(scope, "enough", f"{scope.successes} members succeeded")
        if scope.followers and scope.ending is None:
            self._release_behind(scope, run)
        if not scope.unsettled:
            self._maybe_close(scope)

    def _visible(self, scope: ScopeRun, run: TaskRun | ScopeRun) -> Mapping[str, Ref]:
        """What later members see of the member's outputs.

        Nothing orders a reader of an outer value after a member of a graph whose names only the run can tell; so such
        a member can't hide outer values, or the result would depend on who is first.
        """
        if scope.unit.kind != "graph" or run.unit.writes is not None or scope.scope is None:
            return run.published
        return {name: ref for name, ref in run.published.items() if scope.scope.lookup(name) is None}

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
        for behind in scope.followers.get(run.unit.index, ()):
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

    def _behind(self, unit: ScopeUnit) -> Mapping[int, list[int]]:
        """For each member, those that wait for it; worked out once a block."""
        known = self._followers.get(id(unit))
        if known is None:
            known = {}
            for member in unit.members:
                for before in member.after:
                    known.setdefault(before, []).append(member.index)
            self._followers[id(unit)] = known
        return known

    def _maybe_close(self, scope: ScopeRun) -> None:
        """Close the block if nothing below is left: merge and settle it, or let it fail."""
        if scope.state != "running" or scope.hidden is not None or not scope.done:
            return
        if not scope.gated and scope.ending is None:
            return
        if scope.ending == "cancelled":
            self._settle(scope, "cancelled", scope.reason)
        elif scope.ending is None and scope.members and all(m.state == "skipped" for m in scope.members):
            self._settle(scope, "skipped", "all its members were skipped")
        elif self._good(scope):
            self._succeed(scope)
        else:
            self._fail(scope)

    def _good(self, scope: ScopeRun) -> bool:
        unit = scope.unit
        if scope.ending in ("failed", "timeout") or scope.conflict is not None:
            return False
        if unit.need is not None:
            return scope.successes >= unit.need or (scope.total == 0 and isinstance(scope, MapRun))
        return scope.failed - scope.forgiven <= scope.tolerance()

    def _succeed(self, scope: ScopeRun) -> None:
        unit = scope.unit
        if unit.merger is not None and not scope.successes and unit.merger.call.function is None:
            # Nothing to merge: a map has an empty list, a block has no value.
            empty = isinstance(scope, MapRun) and unit.merge.output is not None
            scope.published = {unit.merge.output: values.for_merger(scope)} if empty and unit.merge.output else {}
            self._settle(scope, "succeeded")
        elif unit.merger is not None:
            self._hide(unit.merger, scope, "merger")
        else:
            scope.published = values.published(scope)
            self._settle(scope, "succeeded")

    def _fail(self, scope: ScopeRun) -> None:
        """The block failed: its members run again after a pause, or it is over."""
        if scope.conflict is not None:
            self._settle(scope, "failed", scope.reason)
            return
        if scope.failure is None:
            scope.failure = values.first_failure(scope)
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


def _inside(task: TaskRun, scope: ScopeRun) -> bool:
    """The task runs somewhere below the block."""
    current: ScopeRun | None = task.scope
    while current is not None:
        if current is scope:
            return True
        current = current.scope
    return False
