"""Attempts: what the end of an attempt means for its task. Pure.

Retries, lost workers, memory and the clocks of single attempts; what it means for the block is ``scopes.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from procflow.attempt import (
    Cause,
    Failed,
    Failure,
    Lost,
    Outcome,
    Progressed,
    Skipped,
    Succeeded,
    Usage,
)
from procflow.events import (
    AttemptFinished,
    Status,
    StepFinished,
    StepProgress,
)
from procflow.graph import Unit
from procflow.ref import Ref
from procflow.scheduling import mapping, retries, states_seen
from procflow.scheduling.actions import Kill, Measured
from procflow.scheduling.queueing import Queueing
from procflow.scheduling.runs import MapRun, ScopeRun, TaskRun
from procflow.units import size_text

__all__ = ["Attempts"]

HOLD_SHARE = 0.90
"""Above this share of the memory budget nothing more is started."""
PRESSURE_SHARE = 0.95
"""Above this share the youngest attempt is stopped and run again alone."""
CRASH_WINDOW_S = 60.0
"""So many workers may die in this time, with no success between, before the run stops: ``max(5, 2 x slots)``."""
RETRIES_MIN = 10
"""Retries that a run always allows, whatever share of its attempts they are."""


_NOTHING_MADE = Succeeded(0)


class Attempts(Queueing):
    """The rules of outcomes."""

    __slots__ = ()

    def _progressed(self, task: TaskRun, outcome: Progressed) -> None:
        unit = task.unit
        if unit.idle_timeout_s is not None:
            task.idle_clock = self._now + unit.idle_timeout_s
        if outcome.done is not None:
            self._record(StepProgress(self._at, unit.path, unit.label, task.item_label, outcome.done, outcome.total))
        if task.doomed is not None:
            self._drop(outcome)
        elif task.role == "batch" and (outcome.indices or outcome.failures):
            assert isinstance(task.scope, MapRun)
            self._absorb(task, task.scope, outcome)
            self._set_clocks(task)

    def _ended(self, outcome: Succeeded | Skipped | Failed | Lost) -> None:
        """An attempt is over, its place is free: act by what its task is for. A queued one may end without a sign that it began."""
        task = self.queued.pop(outcome.key, None)
        if task is not None:
            self._came_and_went(task)
        else:
            task = self.running.pop(outcome.key, None)
            if task is None:
                self.late += 1
                return
            self._give_back(task, task.scope)
            task.clock = task.idle_clock = None
        scope, usage = task.scope, outcome.usage
        scope.work_s += (usage.wall_s if usage.alone_s is None else usage.alone_s) or self._now - task.started_at
        self.attempts_over += 1
        if task.doomed is not None:
            self._ended_doomed(task, scope, task.doomed, outcome)
        elif isinstance(outcome, Succeeded):
            if outcome.cost:
                scope.cost += outcome.cost
            self._ended_well(task, scope, outcome)
        elif isinstance(outcome, Skipped):
            self._ended_without(task, outcome.usage, "skipped")
            task.declined = True
            self._settle_hidden_or_member(task, scope, "skipped", "its condition is false")
        else:
            self._ended_badly(task, scope, outcome.failure, outcome, lost=isinstance(outcome, Lost))

    def _ended_doomed(
        self, task: TaskRun, scope: ScopeRun, cause: Cause, outcome: Succeeded | Skipped | Failed | Lost
    ) -> None:
        """The attempt was being stopped; whatever it did meanwhile does not count."""
        task.doomed = None
        self._drop(outcome)
        if cause == "cancelled":
            self._ended_without(task, outcome.usage, "cancelled", count=0)
            self._settle_hidden_or_member(task, scope, "cancelled", scope.reason)
        elif cause == "pressure":
            self._again_alone(task, scope, _stopped(task, cause, outcome), outcome)
        else:
            self._ended_badly(task, scope, _stopped(task, cause, outcome), outcome, lost=True)

    def _ended_well(self, task: TaskRun, scope: ScopeRun, outcome: Succeeded) -> None:
        if self._crashes:
            self._crashes.clear()
        if self.depth:
            shape = task.shape or self.ready.shape_of(task)
            shape.took(outcome.usage.wall_s)
        if task.role == "member":
            if task.unit.call.state:
                task.published, task.changes = states_seen.parted(outcome.outputs)
            else:
                task.published = outcome.outputs
            self._attempt_finished(task, outcome.usage, outcome, "succeeded")
            self._task_over(task, "succeeded")
            # At once: nothing else is settling while an outcome is heard.
            self._task_settled(task)
            return
        if task.role == "batch":
            assert isinstance(scope, MapRun)
            self._batch_ended_well(task, scope, outcome)
            return
        self._attempt_finished(task, outcome.usage, outcome, "succeeded")
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
            if task.unit.call.kind == "reduce" and isinstance(scope, MapRun) and task.unit is scope.unit.reduce:
                self._folded(scope, outputs)
                return
            if task.unit.call.kind == "fold":
                self.folded = {name[1:]: ref for name, ref in outputs.items()}
            else:
                scope.published, scope.changes = states_seen.parted(outputs)
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
            self._ended_without(task, outcome.usage, status, failure, count=0)
            self._batch_ended_badly(task, scope, failure, lost, getattr(outcome, "culprit", None))
            return
        task.failure = failure
        if task.charges is None:
            task.charges = {}
        pause = self._pause(task.unit, failure, task.charges, task.item)
        if pause is not None and failure.cause == "oom" and not self._more_memory(task, failure.peak_rss_bytes):
            pause = None
        self._ended_without(task, outcome.usage, status, failure, retry_in_s=pause)
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
            scope.declined = True
            self._settle(scope, "skipped", reason)
        elif state == "failed":
            scope.failure = task.failure
            self._count_own(scope, 1)
            task.reason = f"the {task.role} of the block failed"
            self._step_finished(task, "failed")
            self._end_early(scope, "failed", f"its {task.role} failed")
        self._maybe_close(scope)

    def _settle_task(self, task: TaskRun, state: Status, reason: str = "") -> None:
        """A member that is a task has reached a final state; its block hears of it from the queue."""
        if reason:
            task.reason = reason
        if state == "failed":
            self.failures += 1
        self._task_over(task, state)
        self._settling.append(task)

    def _task_over(self, task: TaskRun, state: Status) -> None:
        """Note and record the final state of a member that is a task."""
        self._move(task, state)
        self._step_finished(task, state)
        if task.unit.hooks:
            self._hook(task, state)

    def _step_finished(self, run: TaskRun, state: Status) -> None:
        unit, failed = run.unit, state == "failed"
        event = StepFinished(
            self._at, unit.path, unit.label, run.scope.item, state, run.number, tuple(run.published),
            run.failure if failed else None, run.reason, failed and unit.tolerated, run.kept,
        )  # fmt: skip
        if failed:
            self._step_failed(event)
        else:
            self._actions.append(event)

    def _attempt_finished(
        self, task: TaskRun, usage: Usage, made: Succeeded, status: Any, failure: Failure | None = None,
        retry_in_s: float | None = None, count: int = 1,
    ) -> None:  # fmt: skip
        """Record the end of an attempt and what it ``made``."""
        unit = task.unit
        if not usage.wall_s:
            usage = Usage(self._now - task.started_at, usage.cpu_s, usage.peak_rss_bytes)
        self._actions.append(
            AttemptFinished(
                self._at, task.key, unit.path, unit.label, task.item_label if task.items else task.scope.item,
                task.number, unit.executor, status, task.started_at - self.began, usage, failure,
                made.outputs if made.chunk is None else {"": made.chunk}, retry_in_s, made.metrics, made.cost, count,
                task.role, made.indices, made.pages,
            )
        )  # fmt: skip

    def _ended_without(
        self, task: TaskRun, usage: Usage, status: Any, failure: Failure | None = None, *,
        retry_in_s: float | None = None, count: int = 1,
    ) -> None:  # fmt: skip
        """Record the end of an attempt that made nothing."""
        self._attempt_finished(task, usage, _NOTHING_MADE, status, failure, retry_in_s, count)

    def _doom(self, task: TaskRun, cause: Cause) -> None:
        """Ask the executor to stop an attempt; the verdict stands from here on."""
        task.doomed = cause
        self._order(Kill(task.key, task.unit.executor, cause, task.unit.kill_grace_s))

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

    def _measured(self, sample: Measured) -> None:
        """Stop what is over its own limit; when the run as a whole is short, stop starting, then stop the youngest."""
        if sample.stall is not None:
            slots = sum(self.slots.values())
            self.ready.most = self.easing.take(sample.stall, len(self.running), slots, self._now)
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
        self._ended_without(task, usage, "lost", failure, retry_in_s=0.0, count=0)
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
            task.reserve(wanted)
        return True


def _stopped(task: TaskRun, cause: Cause, outcome: Outcome) -> Failure:
    """What a task that was stopped is told of, whatever it did as it was being stopped."""
    unit = task.unit
    if cause == "idle":
        kind, message = "Timeout", f"gave no sign of life (step.heartbeat, step.progress) for {unit.idle_timeout_s:g} s"
    elif cause == "timeout":
        kind, message = "Timeout", f"took longer than its timeout of {unit.timeout_s:g} s"
        if unit.timeout_share is not None:
            message += f" ({unit.timeout_share * 100:g}% of what earlier runs took)"
    elif cause == "pressure":
        kind, message = "MemoryPressure", "stopped because the run as a whole was short of memory; it runs again alone"
    elif task.memory_bytes is not None and task.peak_bytes > task.memory_bytes:
        kind = "OutOfMemory"
        message = f"used {size_text(task.peak_bytes)}, over its memory limit of {size_text(task.memory_bytes)}"
    else:
        kind, message = "OutOfMemory", f"used {size_text(task.peak_bytes)}, more than the run may use"
    if isinstance(outcome, Lost):
        peak = max(task.peak_bytes, outcome.failure.peak_rss_bytes or 0) or None
        return replace(outcome.failure, cause=cause, type=kind, message=message, peak_rss_bytes=peak)
    return Failure(cause, kind, f"{message}; it ended while it was being stopped, so its result was dropped")
