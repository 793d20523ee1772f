"""What must hold in a scheduler after every turn, and a random world to drive it.

The rules look at the scheduler's state from outside and share no code with it.
"""

from __future__ import annotations

import random
from collections import Counter

from procflow.attempt import Failed, Failure, Lost, Outcome, Progressed, Returned, Skipped, Started, Succeeded
from procflow.events import AttemptFinished, AttemptStarted, Event, RunFinished, StepFinished
from procflow.graph import TaskUnit
from procflow.ref import Inline, Ref, Stored, stored_in
from procflow.scheduler import Scheduler
from procflow.scheduling.actions import Action, Kill, Measured, Release, Stall, StopAsked, Submit, Tick
from procflow.scheduling.runs import MapRun, ScopeRun, TaskRun
from procflow.scheduling.states import FINAL, TRANSITIONS

REF = Inline(b"x")
DEPTH = 2
"""How many attempts may be queued behind each that runs, in the world of these rules."""


def paths(*refs: Ref | None) -> set[str]:
    """The files that values are made of."""
    return {stored.path for ref in refs if ref is not None for stored in stored_in(ref)}


def scopes_of(scheduler: Scheduler) -> list[ScopeRun]:
    found: list[ScopeRun] = []
    stack: list[ScopeRun] = [scheduler.root]
    while stack:
        scope = stack.pop()
        found.append(scope)
        stack += [m for m in scope.members if isinstance(m, ScopeRun)]
        if isinstance(scope, MapRun):
            stack += scope.live.values()
    return found


def check(scheduler: Scheduler, cpus: dict[str, int], memory_bytes: int | None, resources: dict[str, float]) -> None:
    """Every rule; an AssertionError names the one that is broken."""
    used_cpus: Counter[str] = Counter()
    used_resources: Counter[str] = Counter()
    used_memory = 0
    for key, task in scheduler.running.items():
        assert task.key == key
        assert task.state == "running"
        used_cpus[task.unit.executor] += task.unit.cpus
        used_memory += task.reserved_bytes or 0
        used_resources.update(task.unit.resources)
    for key, task in scheduler.queued.items():
        assert task.key == key
        assert task.state == "queued"
        assert key not in scheduler.running
        assert (task.clock, task.idle_clock) == (None, None), "the clocks of a queued task stand"
        unit = task.unit
        assert (unit.cpus, unit.resources, unit.rate, task.memory_bytes) == (1, {}, None, None)
        used_memory += task.reserved_bytes or 0
        assert task.scope is not None
        assert task.scope.unit.max_parallelism is None
    budget = scheduler.ready.budget
    for name, total in cpus.items():
        assert budget.cpus[name] + used_cpus[name] == total, "cores are neither lost nor made"
        assert budget.cpus[name] >= 0
    if memory_bytes is not None:
        assert budget.memory_bytes == memory_bytes - used_memory
        assert budget.memory_bytes >= 0, "reservations never pass the memory budget"
    for name, amount in resources.items():
        assert abs(budget.resources[name] + used_resources[name] - amount) < 1e-6
        assert budget.resources[name] >= -1e-6
    for scope in scopes_of(scheduler):
        _check_scope(scheduler, scope)


def _check_scope(scheduler: Scheduler, scope: ScopeRun) -> None:
    unit = scope.unit
    out = [*scheduler.running.values(), *scheduler.queued.values()]
    mine = [t for t in out if t.scope is scope and t.role in ("member", "batch")]
    held = [m for m in scope.members if isinstance(m, ScopeRun) and m.holds]
    if isinstance(scope, MapRun):
        held += [i for i in scope.live.values() if i.holds]
        assert scope.successes + len(scope.failures) <= scope.size
    assert scope.active == len(mine) + len(held), f"{unit.label}: places are neither lost nor made"
    if unit.max_parallelism is not None:
        assert scope.active <= unit.max_parallelism
    if scope.state == "running" and scope.members and not isinstance(scope, MapRun):
        left = sum(1 for m in scope.members if m.state not in FINAL)
        assert scope.unsettled == left
    if scope.state in FINAL:
        assert all(m.state in FINAL for m in scope.members)
        assert not mine, f"{unit.label} is over and something of it still runs"
    for member in scope.members:
        if member.state == "waiting" and scope.state == "running" and scope.ending is None:
            before = [scope.members[i] for i in member.unit.after]
            assert member.unmet == sum(1 for m in before if m.state not in FINAL)
            assert member.unmet > 0, f"{member.unit.label} waits for nothing"
        if member.state in ("ready", "queued", "running") and isinstance(member, TaskRun):
            assert all(scope.members[i].state in FINAL for i in member.unit.after)
            assert all(scope.members[i].state == "succeeded" for i in member.unit.strict)
        if unit.kind == "parallel":
            assert not scope.values, "members of a parallel block are kept apart"


class World:
    """Random outcomes for whatever the scheduler submits; keeps a log of everything that happened."""

    def __init__(
        self,
        scheduler: Scheduler,
        seed: int,
        cpus: dict[str, int],
        memory_bytes: int | None,
        resources: dict[str, float],
    ) -> None:
        self.scheduler = scheduler
        self.random = random.Random(seed)
        self.crowded = seed % 5 == 1
        self.limits = (cpus, memory_bytes, resources)
        self.now = 100.0
        self.out: dict[int, Submit] = {}
        self.line: dict[int, list[int]] = {}
        self.queued: dict[int, Submit] = {}
        self.dead: list[int] = []
        self.just_over: set[int | None] = set()
        self.doomed: dict[int, Kill] = {}
        self.log: list[str] = []
        self.records: list[Event] = []
        self.submitted: Counter[tuple[str, str]] = Counter()
        self.left: dict[int, list[int]] = {}
        self.made: set[str] = set()
        self.released: set[str] = set()

    def value(self) -> Ref:
        """A small value, or a file of its own."""
        if self.random.random() < 0.5:
            return REF
        path = f"/objects/{len(self.made)}"
        self.made.add(path)
        return Stored(path, (1,), b"d")

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            self.log.append(repr(action))
            if isinstance(action, Submit):
                assert action.key not in {*self.out, *self.queued}, "keys are unique"
                assert action.after <= len(self.records), "a task builds on records that were made before"
                assert not self._held(action) & self.released, "what was released is never given to a task"
                if action.behind:
                    self._queue(action)
                else:
                    self.out[action.key] = action
                    self.line[action.key] = []
                if action.items is not None:
                    assert len(set(action.items.indices)) == len(action.items.indices) > 0
                    self.left[action.key] = list(action.items.indices)
            elif isinstance(action, Kill):
                assert action.key not in self.doomed, "nothing is killed twice"
                if action.key not in self.just_over:
                    assert action.key in self.out or action.key in self.queued, "only what is out is killed"
                    self.doomed[action.key] = action
            elif isinstance(action, Release):
                self._release(action)
            else:
                self.records.append(action)
        check(self.scheduler, *self.limits)

    def _queue(self, action: Submit) -> None:
        """Queue the attempt behind one that runs on its executor."""
        executor = action.unit.executor
        heads = [key for key, head in self.out.items() if head.unit.executor == executor]
        free = self.limits[0][executor] - sum(self.out[key].unit.cpus for key in heads)
        assert not free, "nothing is queued while a core is free"
        head = min(heads, key=lambda key: (len(self.line[key]), key))
        self.line[head].append(action.key)
        self.queued[action.key] = action
        assert len(self.queued) <= DEPTH * len(heads)

    def _back(self, key: int) -> list[Outcome]:
        """All that is queued behind the attempt is given back."""
        back, self.line[key] = self.line[key], []
        for one in back:
            del self.queued[one]
            self.left.pop(one, None)
            self.doomed.pop(one, None)
            self.dead.append(one)
        return [Returned(one) for one in back]

    @staticmethod
    def _held(submit: Submit) -> set[str]:
        return paths(*submit.values.values(), submit.items.page if submit.items is not None else None)

    def _release(self, action: Release) -> None:
        names = [stored.path for stored in action.files]
        assert names
        assert len(set(names)) == len(names)
        assert not self.released & set(names), "nothing is released twice"
        assert set(names) <= self.made
        for key, submit in [*self.out.items(), *self.queued.items()]:
            assert key in self.doomed or not self._held(submit) & set(names), "no task that runs loses what it reads"
        self.released.update(names)

    def start(self) -> None:
        self.take(self.scheduler.start(self.now))

    def send(self, *outcomes: object) -> None:
        self.log.append(f"{self.now:.3f} <- {', '.join(map(repr, outcomes))}")
        # What is told together may be over before the scheduler hears why it is not wanted.
        self.just_over = {getattr(outcome, "key", None) for outcome in outcomes} - {*self.out, *self.queued}
        self.take(self.scheduler.handle_all(outcomes, self.now))  # type: ignore[arg-type]

    def step(self, kindly: bool = False) -> None:
        """One random thing happens; ``kindly`` only lets things end well."""
        deadline = self.scheduler.next_deadline()
        roll = self.random.random()
        if not self.out and deadline is None:
            raise AssertionError("nothing runs and nothing is due: the run hangs\n" + "\n".join(self.scheduler.story()))
        if deadline is not None and (not self.out or (roll < 0.15 and not kindly)):
            self.now = max(self.now, deadline)
            self.send(Tick())
            return
        # Some of what happens comes so soon that tasks count as short.
        self.now += self.random.random() * self.random.choice([0.002, 2])
        key = self.random.choice(sorted(self.out))
        lines = [one for one in sorted(self.out) if self.line[one]]
        if lines and not kindly and roll < 0.3:
            self.send(*self._back(self.random.choice(lines)))
            return
        for ahead in [one for one in self.line[key] if one in self.doomed][:1]:
            # What is queued and no longer wanted is taken back with all that waits there.
            assert ahead in self.queued
            self.send(*self._back(key))
            return
        if not kindly and roll > 0.97 and self.dead:
            self.send(Failed(self.random.choice(self.dead), Failure("error", "Late", "late")))
            return
        if not kindly and roll > 0.93:
            self._measure()
            return
        if not kindly and roll > 0.85:
            kind = self.random.randrange(3)
            self.send([Started(key), Progressed(key, done=1.0, total=2.0)][kind] if kind < 2 else self._partial(key))
            return
        self._end(key, self._final(key, kindly))

    def _measure(self) -> None:
        """A random sample of memory: some over their limits, sometimes the run as a whole short."""
        rss = {key: self.random.choice([10**8, 2 * 10**9, 4 * 10**9]) for key in self.out}
        stall = None
        if self.crowded:
            stall = Stall(self.random.choice([0.0, 0.5]), self.random.choice([0.0, 0.9]), 2)
        self.send(Measured(rss, self.random.choice([10**9, sum(rss.values()), 3_900_000_000]), stall))

    def _partial(self, key: int) -> Outcome:
        left = self.left.get(key)
        if not left or len(left) < 2:
            return Progressed(key)
        part = [left.pop(0) for _ in range(self.random.randrange(1, len(left)))]
        good = tuple(i for i in part if self.random.random() < 0.8)
        failed = tuple((i, Failure("error", "Oops", "x")) for i in part if i not in good)
        return Progressed(key, good, self.value() if good else None, failed)

    def _end(self, key: int, outcome: Outcome) -> None:
        """The attempt ends; the next in its line begins, or is given back, or both are over before anybody looked."""
        outcomes: list[object] = [outcome]
        line = self._over(key)
        if isinstance(outcome, Lost):
            self.line[key] = line
            outcomes += self._back(key)
            del self.line[key]
        while line and not isinstance(outcome, Lost):
            following, line = line[0], line[1:]
            self.out[following] = self.queued.pop(following)
            self.line[following] = line
            if self.random.random() < 0.6:
                outcomes.append(Started(following))
                break
            outcome = self._final(following, kindly=False)
            if isinstance(outcome, Lost):
                outcomes.append(Started(following))
                break
            outcomes.append(outcome)
            line = self._over(following)
        self.send(*outcomes)

    def _over(self, key: int) -> list[int]:
        """Forget an attempt that ended; those queued behind it."""
        del self.out[key]
        self.doomed.pop(key, None)
        self.dead.append(key)
        return self.line.pop(key)

    def _final(self, key: int, kindly: bool) -> Outcome:
        submit = self.out[key]
        roll = 0.0 if kindly else self.random.random()
        if key in self.doomed and roll < 0.8 and not kindly:
            return Lost(key, Failure(self.doomed[key].cause, "Killed", "killed"))
        call = submit.unit.call
        if roll < 0.7:
            if call.kind == "expand":
                pages = tuple((self.value(), self.random.randrange(0, 5)) for _ in range(self.random.randrange(0, 4)))
                return Succeeded(key, pages=pages)
            if submit.items is not None:
                left = self.left[key]
                good = tuple(i for i in left if kindly or self.random.random() < 0.85)
                failed = tuple((i, Failure("error", "Oops", "x")) for i in left if i not in good)
                return Succeeded(key, indices=good, chunk=self.value() if good else None, failures=failed)
            names = ("free",) if call.outputs == "*" else call.outputs
            return Succeeded(key, {name: self.value() for name in names})
        if roll < 0.78 and (call.when is not None or call.kind == "gate"):
            return Skipped(key)
        if roll < 0.9:
            return Failed(key, Failure("error", "Oops", "x", kinds=("Oops", "Exception")))
        return Lost(key, Failure("crash", "WorkerDied", "SIGKILL", signal=9))

    def finish(self, bound: int) -> None:
        """From here on all goes well: the run must end within ``bound`` things."""
        for _ in range(bound):
            if self.scheduler.finished:
                return
            self.step(kindly=True)
        raise AssertionError(f"the run does not end; it waits for {self.scheduler.next_deadline()}, out {self.out}")

    def check_end(self) -> None:
        """What must hold once the run is over."""
        scheduler = self.scheduler
        assert not self.out
        assert not scheduler.running
        assert not scheduler.queued
        assert scheduler.root.state in FINAL
        events = self.records
        assert isinstance(events[-1], RunFinished)
        started = [e.key for e in events if isinstance(e, AttemptStarted)]
        ended = [e.key for e in events if isinstance(e, AttemptFinished)]
        assert len(set(started)) == len(started)
        assert sorted(started) == sorted(ended), "every attempt ends exactly once"
        assert not paths(*scheduler.outputs.values()) & self.released, "what the run came to is there"
        failed = [e for e in events if isinstance(e, StepFinished) and e.status == "failed"]
        if scheduler.status == "succeeded":
            assert scheduler.failures == 0
        if scheduler.failures and scheduler.status != "cancelled":
            assert failed or any(isinstance(e, AttemptFinished) and e.failure for e in events)
            assert scheduler.status != "succeeded", "nothing that failed is a plain success"


def moves(scheduler: Scheduler) -> set[tuple[str, str]]:
    """Moves that the scheduler made, all of them in the table."""
    made = {(before, after) for _, before, after in scheduler._story}
    assert made <= set(TRANSITIONS)
    return made


__all__ = ["StopAsked", "TaskUnit", "World", "check", "moves"]
