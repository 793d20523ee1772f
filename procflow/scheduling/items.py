"""Items: the rules of a map's items, in batches or as open iterations. Pure.

Which items form a batch stands in ``mapping.py``.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

from procflow.attempt import (
    Failure,
    Progressed,
    Succeeded,
)
from procflow.call import INDEX
from procflow.errors import InternalError
from procflow.events import (
    ItemsDone,
    StepFinished,
    StepProgress,
)
from procflow.graph import ScopeUnit, TaskUnit
from procflow.ref import Element, Inline, Ref
from procflow.scheduling import mapping, merge, states_seen
from procflow.scheduling.folding import Fold, Folding, is_crowded
from procflow.scheduling.runs import MapRun, ScopeRun, TaskRun, instantiate

__all__ = ["ItemRules"]


class ItemRules(Folding):
    """The rules of what happens to items."""

    __slots__ = ()

    def _begin_items(self, run: MapRun) -> None:
        """The items are known (or the map runs again): start what may start."""
        self._announce(run, run.size)
        if run.unit.reduce is not None and run.fold is None:
            run.fold = Fold()
        if run.attempt > 1:
            mapping.start_over(run)
        elif self.kept is not None:
            self._keep_items(run, self.kept)
        run.failed = 0
        self._feed(run)
        self._maybe_close(run)

    def _feed(self, run: MapRun) -> None:
        """Keep one batch waiting for its start, or a bounded number of iterations open."""
        if run.ending is not None or run.state != "running" or is_crowded(run):
            return
        body = run.unit.body
        if isinstance(body, TaskUnit):
            if run.head is None and mapping.has_work(run):
                run.head = TaskRun(body, run, self._next_seq(), "batch")
                run.head.reserve(run.memory_bytes or body.memory_bytes)
                run.head.alone, run.pressed = run.pressed, False
                self._make_ready(run.head, run.after)
            return
        assert isinstance(body, ScopeUnit)
        limit = run.unit.max_parallelism or max(4, 2 * sum(self.slots.values()))
        while run.active < limit and mapping.has_work(run) and run.ending is None and not is_crowded(run):
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
            self._move(task, "cancelled")
            return False
        # An item that runs again has a log of its own, so its attempts are numbered on.
        task.number = max(sum(scope.charges.get(i, {}).values()) + scope.losses.get(i, 0) for i in task.items.indices)
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
            self._record(ItemsDone(self._at, task.key, unit.path, unit.label, run.item, outcome.indices, outcome.chunk))
        for index, failure in outcome.failures:
            self._item_failed(run, index, failure)
        self._record(
            StepProgress(self._at, unit.path, unit.label, run.item, run.successes + len(run.failures), run.size)
        )
        if run.changed is not None:
            self._clash(run, states_seen.conflict_of_items(run, unit.state))
        if run.unit.need is not None and run.successes >= run.unit.need:
            self._end_early(run, "enough", f"{run.successes} items succeeded")

    def _batch_ended_well(self, task: TaskRun, run: MapRun, outcome: Succeeded) -> None:
        assert task.items is not None
        self._attempt_finished(task, outcome.usage, outcome, "succeeded", count=len(outcome.indices))
        self._move(task, "succeeded")
        mapping.measure(run, len(task.items.indices), outcome.usage.wall_s or self._now - task.started_at)
        self._absorb(task, run, outcome)
        self._fold(run)
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
        if run.fold is not None and unit.on_error == "continue":
            run.fold.settle((index,))
        self._count_own(run, 1)
        self._step_failed(StepFinished(self._at, unit.path, unit.label, label, "failed", attempts, (), failure))
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
                only = range(index, index + 1)
                mapping.done(run, only, mapping.one(ref))
                if iteration.changes:
                    mapping.changed(
                        run, ((key, only, mapping.one(ref)) for key, ref in states_seen.all_of(iteration.changes))
                    )
                    self._clash(run, states_seen.conflict_of_items(run, run.unit.state))
                run.kept = run.kept and iteration.kept
                if run.unit.need is not None and run.successes >= run.unit.need:
                    self._end_early(run, "enough", f"{run.successes} items succeeded")
            elif iteration.state == "failed":
                failure = iteration.failure
                assert failure is not None
                run.failures[index] = failure
                run.failed += 1
                if run.fold is not None and run.unit.on_error == "continue":
                    run.fold.settle((index,))
                # Its steps were counted as they failed; if the map runs again they are forgotten with the iteration.
                run.own_failures += _failed_below(iteration)
                self._judge(run, f"item {index}")
            unit = run.unit
            self._record(
                StepProgress(self._at, unit.path, unit.label, run.item, run.successes + len(run.failures), run.size)
            )
        self._fold(run)
        self._feed(run)
        self._maybe_close(run)

    def _clash(self, scope: ScopeRun, conflict: Failure | None) -> None:
        """Two at once replaced a key of the state: no order of them is right, so the block fails."""
        if conflict is not None and scope.conflict is None and scope.ending is None:
            scope.conflict = scope.failure = conflict
            self._count_own(scope, 1)
            where = (scope.unit.path, scope.unit.label, scope.item)
            self._step_failed(StepFinished(self._at, *where, "failed", 0, (), conflict, conflict.message))
            self._end_early(scope, "failed", conflict.message)


def _failed_below(scope: ScopeRun) -> int:
    """Failed steps of a block and the blocks in it."""
    count = scope.own_failures
    for run in scope.members:
        if isinstance(run, ScopeRun):
            count += _failed_below(run)
        elif run.state == "failed":
            count += 1
    return count
