"""Testing: the fakes that procflow's own tests run on, for users' tests too.

``FakeExecutor`` stands behind the same face as the real executors but owns time: ``wait`` jumps its clock to the next end or
deadline, so a pipeline with hours of timeouts is tested in milliseconds. By default it really calls the steps' functions, in
this process; a ``script`` may say instead how long an attempt takes, that it fails, dies or hangs.

    result = run_fake(pipeline, script={"fetch": Act(after_s=90), "parse": [Act(dies=9), Act()]})
    assert result.status == "succeeded"
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from procflow import model
from procflow.attempt import Attempt, Cause, Failed, Failure, Lost, Outcome, Skipped, Succeeded, Usage
from procflow.call import StepCall
from procflow.compiler import compile_pipeline
from procflow.engine import Engine, Observer
from procflow.errors import InternalError
from procflow.failure import lost_failure
from procflow.result import Recorder, RunResult
from procflow.scheduler import Scheduler
from procflow.storing.store import MemoryStore, RunRecord
from procflow.values.lazy_state import LazyState
from procflow.working.perform import perform

__all__ = ["Act", "FakeClock", "FakeExecutor", "Script", "run_fake"]


class FakeClock:
    """Seconds that pass only when told to; call it for the time."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@dataclass(frozen=True, slots=True)
class Act:
    """How one attempt goes.

    It takes ``after_s`` fake seconds. ``raises`` makes it fail with that exception, ``dies`` kills its worker with that signal,
    ``hangs`` lets it run until it is killed. Otherwise the step's own function is called, unless ``value`` is given.
    """

    after_s: float = 1.0
    raises: BaseException | None = None
    dies: int | None = None
    hangs: bool = False
    value: Any = ...


Script = Mapping[str, "Act | Sequence[Act]"] | Callable[[Attempt], Act]
"""Acts by step name (a sequence is used attempt by attempt, the last one again and again), or a function of the attempt."""


class FakeExecutor:
    """An executor that owns time; see ``executors.base.Executor`` for the face."""

    name = "fake"
    capabilities: frozenset[str] = frozenset({"kill", "memory", "threads"})

    def __init__(self, slots: int = 2, script: Script | None = None, clock: FakeClock | None = None) -> None:
        self.slots = slots
        self.clock = clock or FakeClock()
        self.started: list[str] = []
        """Names of the steps of all attempts, in the order of their start."""
        self.most_at_once = 0
        self._script = script or {}
        self._ends: list[tuple[float, int, int]] = []
        self._out: dict[int, Attempt] = {}
        self._outcomes: dict[int, Callable[[], Iterable[Outcome]]] = {}
        self._serial = 0

    def fileno(self) -> int:
        """None to offer: a fake is never awaited together with others."""
        return -1

    def deadline(self) -> float | None:
        """When ``wait`` has something to return; None when it has nothing."""
        return self._ends[0][0] if self._ends else None

    def watch(self, fd: int) -> None:
        """Signals do not reach fake time."""

    def unwatch(self, fd: int) -> None:
        """Signals do not reach fake time."""

    def check(self, call: StepCall) -> None:
        """Nothing has to be pickled."""

    def submit(self, attempt: Attempt) -> None:
        """Start the attempt in fake time."""
        if len(self._out) >= self.slots:
            raise InternalError(f"{len(self._out)} attempts are out on {self.slots} slots")
        self.started.append(attempt.call.name)
        self._out[attempt.key] = attempt
        self.most_at_once = max(self.most_at_once, len(self._out))
        act = self._act(attempt)
        if not act.hangs:
            self._finish_at(self.clock.now + act.after_s, attempt.key, lambda: _outcomes(attempt, act))

    def _act(self, attempt: Attempt) -> Act:
        if callable(self._script):
            return self._script(attempt)
        acts = self._script.get(attempt.call.name, Act())
        if isinstance(acts, Act):
            return acts
        return acts[min(attempt.number, len(acts)) - 1]

    def _finish_at(self, at: float, key: int, make: Callable[[], Iterable[Outcome]]) -> None:
        self._serial += 1
        self._outcomes[self._serial] = make
        heapq.heappush(self._ends, (at, self._serial, key))

    def kill(self, key: int, cause: Cause, grace_s: float) -> None:
        """The attempt is lost after ``grace_s`` fake seconds, or ends by itself before."""
        attempt = self._out.get(key)
        if attempt is not None:
            failure = lost_failure(cause=cause, signal=9)
            self._finish_at(self.clock.now + grace_s, key, lambda: [Lost(key, failure, Usage(wall_s=grace_s))])

    def wait(self, until: float | None) -> list[Outcome]:
        """Jump to the next end, or to ``until`` if that comes first."""
        while self._ends:
            at, serial, key = self._ends[0]
            if until is not None and at > until:
                self.clock.now = max(self.clock.now, until)
                return []
            heapq.heappop(self._ends)
            make = self._outcomes.pop(serial)
            if key not in self._out:
                continue
            self.clock.now = max(self.clock.now, at)
            del self._out[key]
            return list(make())
        if until is not None:
            self.clock.now = max(self.clock.now, until)
        return []

    @property
    def running(self) -> int:
        """How many attempts are out."""
        return len(self._out)

    def close(self) -> None:
        """Nothing is held."""


def _outcomes(attempt: Attempt, act: Act) -> list[Outcome]:
    """What the attempt reports, its final outcome last."""
    usage = Usage(wall_s=act.after_s)
    if act.dies is not None:
        return [Lost(attempt.key, lost_failure(cause="crash", signal=act.dies), usage)]
    if act.raises is not None:
        kinds = tuple(kind.__name__ for kind in type(act.raises).__mro__[:-2])
        return [Failed(attempt.key, Failure("error", kinds[0], str(act.raises), kinds=kinds), usage)]
    call = attempt.call
    sent: list[Outcome] = []
    if act.value is not ...:
        from procflow.values.objects import pack

        ref = pack(act.value)
        return [Succeeded(attempt.key, dict.fromkeys(call.outputs, ref), usage)]
    final = perform(
        call, attempt.values, items=attempt.items, number=attempt.number, run_id=attempt.run_id, key=attempt.key,
        report_each=attempt.report_each, send=sent.append,
    )  # fmt: skip
    return [*sent, _timed(final, usage)]


def _timed(final: Succeeded | Skipped | Failed, usage: Usage) -> Outcome:
    from dataclasses import replace

    return replace(final, usage=usage)


def run_fake(
    pipeline: model.Pipeline,
    *,
    script: Script | None = None,
    slots: int = 2,
    params: Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
    memory_bytes: int | None = None,
) -> RunResult:
    """Run a pipeline in fake time, on one fake executor that stands in for all; nothing is written to disk."""
    executor = FakeExecutor(slots, script)
    graph = compile_pipeline(pipeline, params=params, run_id="fake")
    names = graph.executors
    scheduler = Scheduler(
        graph, slots=dict.fromkeys(names, slots), memory_bytes=memory_bytes, run_id="fake"
    )  # fmt: skip
    recorder = Recorder(slots, graph)
    store = MemoryStore(executor.clock)
    store.begin(RunRecord("fake", pipeline.name))
    engine = Engine(
        scheduler, dict.fromkeys(names, executor), executor, store,
        observers=(recorder, *observers), clock=executor.clock,
    )  # fmt: skip
    engine.run()
    return recorder.result(scheduler.outputs, state=LazyState(*scheduler.state))
