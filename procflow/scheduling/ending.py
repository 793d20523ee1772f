"""Ending: the rules of the end of a run, and of hooks: what runs once a step, or the run itself, has ended. Pure.

The hooks of a step are blocks without a block around them: they begin when the step has settled for good and run beside the
rest; the run waits for them. Those of the run begin when its top block and all other hooks are over, first ``on_success``
or ``on_failure``, then ``on_finish``. What a hook does never changes how its step ended. A failed hook counts as a failure,
which the run tolerates: a run that succeeded but for a hook is ``partial``. After a stop hooks get ``STOPPED_S``; a stop while
those of the run go on ends them, which counts as a failure too; after being told to hurry none begins.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace

from procflow.events import RunFinished, RunStatus, Status, StepFinished
from procflow.graph import ScopeUnit
from procflow.ref import Inline, Ref
from procflow.scheduling.runs import ScopeRun, TaskRun
from procflow.scheduling.scopes import Scopes

__all__ = ["STOPPED_S", "Endings"]

STOPPED_S = 10.0
"""So long may hooks take after a stop, all of one list together."""
MOST_FAILURES = 20
"""Failures that a hook is told of, a line each."""
MOST_TEXT = 1000


class Endings(Scopes):
    """The rules of how a run comes to its end."""

    __slots__ = ()

    def _hook(self, run: TaskRun | ScopeRun, state: Status) -> None:
        """A step has settled for good: begin its hooks."""
        if state not in ("succeeded", "failed") or run.kept:
            return
        failure = run.failure
        if state == "failed" and failure is None:
            text = run.reason
        else:
            text = str(failure) if failure is not None and state == "failed" else ""
        about: dict[str, object] = {"status": state, "reason": run.reason or text, "step": run.unit.label}
        about["failures"] = text[:MOST_TEXT]
        if run.item:
            about["failures"] = f"item {run.item}: {text}"[:MOST_TEXT] if text else ""
        about |= {"failure_count": int(state == "failed"), "wall_s": self._took_s(run)}
        values = run.values if isinstance(run, ScopeRun) and run.unit.kind == "pipeline" else {}
        for event, unit in run.unit.hooks:
            if event == "on_finish" or event == ("on_success" if state == "succeeded" else "on_failure"):
                self._open_hook(unit, values, about, run.labels)

    def _took_s(self, run: TaskRun | ScopeRun) -> float:
        since = run.opened_at if isinstance(run, ScopeRun) else run.started_at
        return self._now - since if since else 0.0

    def _open_hook(
        self, unit: ScopeUnit, values: Mapping[str, Ref], about: Mapping[str, object], labels: tuple[str, ...] = ()
    ) -> None:
        """Begin one list of hooks."""
        if self._hurried:
            return
        if self.root.ending == "cancelled":
            unit = replace(unit, timeout_s=STOPPED_S)
        hook = ScopeRun(unit, None, self._next_seq(), labels)
        facts = {"id": self.run_id, "name": self.graph.name, **about}
        hook.values = {**values, "run": Inline(pickle.dumps(facts, protocol=5))}
        self.hooks.append(hook)
        self._move(hook, "ready")
        self._open(hook)

    def _top_over(self, run: ScopeRun) -> None:
        """The top block has settled, or a hook."""
        if run is self.root:
            self._judge_run()
            own = [event for event, _ in self.root.unit.hooks]
            well = "on_success" if self.status in ("succeeded", "partial") else "on_failure"
            self._due = [event for event in (well, "on_finish") if event in own]
        elif run in self.hooks:
            self.hooks.remove(run)
        if self._over_at is None or self.hooks:
            return
        while self._due and not self._hurried:
            event = self._due.pop(0)
            known = {name: ref for name, ref in self.root.values.items() if name not in self.dropped}
            for name, unit in self.root.unit.hooks:
                if name == event:
                    self._open_hook(unit, known, self._about_run())
            if self.hooks:
                return
        self._finish_run()

    def _judge_run(self) -> None:
        """How the run ended, hooks aside."""
        root = self.root
        if root.state in ("succeeded", "skipped"):
            self.status = "partial" if self.failures else "succeeded"
        elif root.state == "failed":
            self.status = "timed_out" if root.ending == "timeout" else "failed"
        else:
            self.status = "cancelled"
        self._over_at = self._at

    def _about_run(self) -> dict[str, object]:
        told = "\n".join(self._first_failures)
        more = self.failures - len(self._first_failures)
        return {
            "status": self.status, "reason": self.root.reason, "step": "", "failure_count": self.failures,
            "failures": told + (f"\nand {more} more" if more > 0 and told else ""), "wall_s": self._over_at,
        }  # fmt: skip

    def _finish_run(self) -> None:
        root = self.root
        self.finished = True
        status: RunStatus = self.status
        if status in ("succeeded", "partial"):
            self.failures += bool(self._cut)
            self.status = status = "partial" if self.failures else "succeeded"
            self.tolerated = self.failures
        assert self._over_at is not None
        self._record(
            RunFinished(
                self._at,
                self.run_id,
                status,
                self.failures,
                self.tolerated,
                self._over_at,
                root.work_s,
                root.reason or self._cut,
            )
        )

    def _step_failed(self, event: StepFinished) -> None:
        """Record that a step or an item failed for good; the first of them are kept for the hooks of the run."""
        self._record(event)
        if self._tells_hooks and event.failure is not None and len(self._first_failures) < MOST_FAILURES:
            item = f" item {event.item}" if event.item else ""
            self._first_failures.append(f"{event.label}{item}: {event.failure}"[:MOST_TEXT])

    def _stop(self, reason: str) -> None:
        """The run is to end. Hooks that run get a clock; once the steps are over, a stop ends the hooks themselves."""
        super()._stop(reason)
        if self._over_at is not None:
            if self.hooks or self._due:
                self._cut = self._cut or f"hooks were cut short: {reason}"
            self._stop_hooks(reason)
            return
        for hook in self.hooks:
            hook.unit = replace(hook.unit, timeout_s=STOPPED_S)
            hook.clock = self._now + STOPPED_S
            self._timer(hook.clock, "scope", hook, hook.clock)

    def _stop_hooks(self, reason: str) -> None:
        self._due = []
        for hook in list(self.hooks):
            if hook.state == "running":
                self._end_early(hook, "cancelled", reason)

    def _hurry(self) -> None:
        """Nothing is waited for any more: no hook begins, those that run are stopped."""
        self._hurried = True
        self._stop_hooks("told to hurry")
