"""Queueing: short tasks are handed out ahead, so that no worker waits for the parent between two of them. Pure.

Where all cores of an executor are taken and its tasks have measured short, the most urgent ones are handed to it all
the same, to be queued behind those that run. A queued task has not begun: it holds a place in its block and the
memory that was learned of it, but no core; its clocks stand, nothing is recorded of it. It begins when the executor
says so (``Started``), or its end says that it did: then it takes the core that the one before it gave back in the
same turn. If its worker dies, or the one before it takes long, it is given back (``Returned``): it is ready as
before, and no attempt was made.

Only tasks that declare nothing but one core are queued, only behind attempts that began a moment ago, never past a
more urgent task that waits for more, and no more of them than take ``ready.QUEUED_S`` together.
"""

from __future__ import annotations

from procflow.scheduling import mapping
from procflow.scheduling.runs import MapRun, TaskRun
from procflow.scheduling.starting import Starting

__all__ = ["Queueing"]

YOUNG_S = 0.005
"""Nothing is queued behind an attempt that has run for so long."""


class Queueing(Starting):
    """The rules of what is handed out ahead."""

    __slots__ = ()

    def _queue_ahead(self) -> None:
        """Hand out what may wait behind the attempts that run."""
        for executor, depth in self.depth.items():
            if self.ready.budget.cpus[executor] >= 1:
                continue
            since = self._now - YOUNG_S
            lanes = sum(
                1
                for task in self.running.values()
                if task.started_at >= since and task.unit.executor == executor and task.doomed is None
            )
            if not lanes:
                continue
            queued = len(self.queued)
            if len(self.depth) > 1:
                queued = sum(1 for task in self.queued.values() if task.unit.executor == executor)
            for task in self.ready.behind(executor, depth, lanes, queued):
                scope = task.scope
                if scope.unit.max_parallelism is not None or task.role not in ("member", "batch"):
                    # Its block counts what runs.
                    self.ready.leave(task)
                    self.ready.push(task)
                    break
                scope.active += 1
                self._start(task, scope, True)
                if self._settling:
                    self._drain()
                    if self.finished:
                        return

    def _turn_came(self, task: TaskRun) -> None:
        """A queued task has begun."""
        self.ready.hand_over(task)
        self._began_now(task)

    def _came_and_went(self, task: TaskRun) -> None:
        """A queued task has begun and is over: the core that it took and gave back since was nobody else's."""
        self._tell_begin(task)
        if task.reserved_bytes is not None:
            self.ready.leave(task)
        # No limit of its block's: nothing is queued there.
        task.scope.active -= 1

    def _came_back(self, task: TaskRun) -> None:
        """The queued task never began: it is ready again, or no longer wanted."""
        scope = task.scope
        task.doomed = None
        task.number -= 1
        self.ready.leave(task)
        self._leave(scope)
        if task.role == "batch":
            assert isinstance(scope, MapRun)
            assert task.items is not None
            self._move(task, "cancelled")
            if scope.ending is None:
                mapping.again(scope, task.items.indices)
            self._feed(scope)
            self._maybe_close(scope)
        elif scope.ending is not None:
            self._settle_hidden_or_member(task, scope, "cancelled", scope.reason)
        else:
            self._move(task, "ready")
            self.ready.push(task)
