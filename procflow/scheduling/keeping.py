"""Keeping: results of an earlier session, and when they still hold. Pure.

A kept result is used only if every value that the task reads was kept too, and every step it depends on.
"""

from __future__ import annotations

from procflow.graph import TaskUnit
from procflow.scheduling import mapping, states_seen
from procflow.scheduling.kept import Kept
from procflow.scheduling.releasing import Releasing
from procflow.scheduling.runs import MapRun, ScopeRun, TaskRun

__all__ = ["Keeping"]


class Keeping(Releasing):
    """The rules of what is not run again."""

    __slots__ = ()

    def _keep(self, task: TaskRun, kept: Kept) -> bool:
        """Use the task's earlier result, unless something it builds on is made anew."""
        scope = task.scope
        found = kept.task(task.unit.path, task.item, task.role) if task.role != "batch" else None
        if found is None or not self._unchanged(task, scope):
            return False
        if task.unit.call.kind == "reduce" and not set(task.unit.call.outputs) <= found.outputs.keys():
            return False  # a fold on the way
        for ref in [*found.outputs.values(), *(page for page, _ in found.pages)]:
            self._kept_refs[id(ref)] = ref
        task.kept = True
        task.declined = found.skipped
        self._move(task, "skipped" if found.skipped else "succeeded")
        if task.role == "member":
            task.published, task.changes = states_seen.parted(found.outputs)
            self._step_finished(task, "skipped" if found.skipped else "succeeded")
            self._settling.append(task)
            return True
        scope.hidden = None
        if found.skipped:
            scope.declined = True
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
        if task.unit.call.state and not self._knows(states_seen.seen_by(task, task.role)):
            return False
        return all(id(scope.lookup(name)) in self._kept_refs for name in task.unit.reads)

    def _knows(self, changes: states_seen.Changes) -> bool:
        """All these changes of the state come from an earlier session."""
        return all(id(ref) in self._kept_refs for _, ref in changes)

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
        if body.call.state and not self._knows(run.base):
            return
        for indices, chunk in kept.items(run.unit.path, run.item):
            mapping.done(run, indices, chunk)
        if run.chunks:
            mapping.start_over(run)
        run.kept = run.successes == run.size
