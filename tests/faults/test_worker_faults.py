"""What a step does to its worker costs exactly its own attempts: 32 kinds of harm in four places each.

One run a kind: harm in the first, the middle and the last member of a block and in an item of a nested map, all at
once, with siblings between. The first harms at every attempt of two, the middle one at the first of two, the last one
has one attempt; an item that kills its worker runs once more, alone, before it is set aside.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fault_steps
import ledger
import pytest

from procflow import Map, Parallel, Pipeline, Step
from procflow import events as ev
from procflow.ref import Ref
from procflow.result import FailureRecord, RunResult
from procflow.storing.state_folder import VARIABLE
from procflow.values import objects

SLOTS = 4
TIMEOUT_S = 4.0
"""More than a new worker needs to begin on two processors that are full of other tests."""
PLACES = ("first", "middle", "last", "item")
GROUPS = [["a0", "a1"], ["b0", "x1", "b2"]]
SIBLINGS = ("beside", "between")


@dataclass(frozen=True)
class Harm:
    """What a kind of harm comes to: the failure's fields, or no failure at all (``cause`` empty)."""

    cause: str
    type: str = ""
    signal: int | None = None
    exit_code: int | None = None
    says: str = ""

    @property
    def crash(self) -> bool:
        return self.cause == "crash"


def died(signal: int | None = None, exit_code: int | None = None, says: str = "worker died") -> Harm:
    return Harm("crash", "WorkerDied", signal, exit_code, says)


def raised(type: str, says: str = "") -> Harm:
    return Harm("error", type, says=says)


def late(signal: int) -> Harm:
    return Harm("timeout", "Timeout", signal, says="longer than its timeout")


KINDS = {
    "segfault": died(11),
    "abort": died(6),
    "SIGKILL itself": died(9),
    "SIGBUS": died(7),
    "SIGFPE": died(8),
    "os._exit(0)": died(exit_code=0, says="without a result"),
    "os._exit(3)": died(exit_code=3),
    "exit(0) of libc": died(exit_code=0),
    "sys.exit": raised("SystemExit", "4"),
    "KeyboardInterrupt": raised("KeyboardInterrupt", "stop"),
    "GeneratorExit": raised("GeneratorExit", "stop"),
    "exception that can't be rebuilt": raised("steps_for_executors.TwoArguments", "one and two"),
    "exception without text": raised("fault_steps.NoText", "its __str__ raised RuntimeError"),
    "exception of 20 MB": raised("ValueError", "characters left out"),
    "cyclic causes": raised("ValueError", "first"),
    "generator for a result": raised("ResultError", "return list(...)"),
    "lock for a result": raised("PackError", "_thread.lock"),
    "result that exits when opened": died(exit_code=5),
    "result that crashes when opened": died(11),
    "result nested 100,000 deep": raised("PackError", "nested too deeply"),
    "fork, then death": died(9),
    "daemon, then death": died(9),
    "descriptors 3 to 256 closed": Harm(""),
    "noise on all descriptors": died(9, says="was replaced"),
    "SIGSTOP itself": late(15),
    "SIGTERM ignored": late(9),
    "GIL held": late(15),
    "two locks crosswise": late(15),
    "endless recursion": raised("RecursionError"),
    "MemoryError": raised("MemoryError"),
    "5 MB to stdout": Harm(""),
    "write into an input array": raised("ValueError", "read-only"),
}


def pipeline(kind: str) -> Pipeline:
    """The block with harm in four places; what members read is made before it."""
    harm = KINDS[kind]
    keys: dict[str, Any] = {"retry": {"retries": 1, "delay": 0}, "kill_grace": 0.1 if kind == "SIGTERM ignored" else 10}
    if harm.cause == "timeout":
        keys["timeout"] = TIMEOUT_S
    before, reads = [], []
    if "when opened" in kind:
        before, reads = [Step("value", fault_steps.poison, params={"kind": kind})], ["value"]
    elif kind == "write into an input array":
        before, reads = [Step("value", fault_steps.array)], ["value"]

    def harmful(place: str, when: str, **more: Any) -> Any:
        params = {"kind": kind, "place": place, "when": when}
        return Step(place, fault_steps.member, inputs={n: n for n in reads}, params=params, **{**keys, **more})

    return Pipeline(
        "faults",
        keep=reads,
        steps=[
            *before,
            Parallel(
                "block",
                harmful("first", "always"),
                Step("beside", fault_steps.sibling, params={"place": "beside"}),
                harmful("middle", "once"),
                Step("between", fault_steps.sibling, params={"place": "between"}),
                Map("outer", nested(kind, reads, keys), items=GROUPS, item_name="group"),
                harmful("last", "always", retry={"retries": 0}),
                on_error="finish",
            ),
        ],
    )


def in_steps(kind: str) -> bool:
    """Whether the item's work is a step of its own and not a call: where a clock, or a value, has to be the item's."""
    return KINDS[kind].cause == "timeout" or "when opened" in kind or kind == "write into an input array"


def nested(kind: str, reads: list[str], keys: dict[str, Any]) -> Any:
    """The inner map, which tolerates one item that fails."""
    more: dict[str, Any] = {"items": "group", "on_error": "continue", "tolerate": 1}
    params = {"kind": kind}
    keys = {**keys, "retry": {"retries": 0}}
    if "when opened" in kind:
        where = {"place": "inner/x1", "when": "always"}
        make = Step("made", fault_steps.item_poison, inputs=["item"], params=params)
        take = Step("work", fault_steps.consume, inputs={"item": "item", "value": "made"}, params=where, **keys)
        return Map("inner", make, take, **more)
    if in_steps(kind):
        inputs = {n: n for n in ("item", *reads)}
        return Map("inner", Step("work", fault_steps.item_step, inputs=inputs, params=params, **keys), **more)
    return Map("inner", fault_steps.item, params=params, batch=1, **more)


class Seen:
    """An observer that opens what members and items gave, but never what may be poison."""

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self.value: Ref | None = None

    def handle(self, event: ev.Event) -> None:
        if isinstance(event, ev.AttemptFinished) and event.label == "value":
            self.value = event.outputs["value"]
        if isinstance(event, ev.AttemptFinished) and event.status == "succeeded" and event.label.startswith("block/"):
            for ref in event.outputs.values() if not event.label.endswith("/made") else ():
                value = objects.unpack(ref)
                self.texts.update(one for one in (value if isinstance(value, list) else [value]) if type(one) is str)


@pytest.fixture(scope="module")
def warm(memory: Path) -> None:
    """What a first run starts for good (multiprocessing's resource tracker) is there before anything is counted."""
    Pipeline("warm", steps=[Step("sibling", fault_steps.sibling, params={"place": "warm"})]).run(
        state_dir=memory / "warm", workers=1
    )


@pytest.fixture
def folder(memory: Path, warm: None, monkeypatch: pytest.MonkeyPatch, request: Any) -> Path:
    path = memory / f"kind-{list(KINDS).index(request.node.callspec.params['kind'])}"
    path.mkdir()
    monkeypatch.setenv(ledger.VARIABLE, str(path / "ledger"))
    monkeypatch.setenv(fault_steps.FOLDER, str(path))
    monkeypatch.setenv(fault_steps.PARENT, str(os.getpid()))
    monkeypatch.delenv(VARIABLE, raising=False)
    return path


def found(result: RunResult, place: str) -> FailureRecord | None:
    """The failure of a place."""
    labels = {"item": lambda f: f.label.startswith("block/outer/inner")}
    right = labels.get(place, lambda f: f.label == f"block/{place}")
    failures = [f for f in result.failures if right(f)]
    assert len(failures) <= 1, failures
    return failures[0] if failures else None


def wanted(place: str, kind: str) -> tuple[int, bool]:
    """Attempts that are made in a place, and whether it fails in the end."""
    harm = KINDS[kind]
    if not harm.cause:
        return 1, False
    if place == "item":
        return (2 if harm.crash and not in_steps(kind) else 1), True
    return (1 if place == "last" else 2), place != "middle"


def check_place(result: RunResult, place: str, kind: str, lines: list[ledger.Line]) -> None:
    attempts, fails = wanted(place, kind)
    key = "inner/x1" if place == "item" else place
    assert [line.attempt for line in lines if line.key == key and line.what == "start"] == [*range(1, attempts + 1)]
    record = found(result, place)
    assert (record is not None) == fails, (place, record)
    if record is None:
        return
    harm, failure = KINDS[kind], record.failure
    type_ = "Quarantined" if attempts == 2 and place == "item" else harm.type
    got = (failure.cause, failure.type, failure.signal, failure.exit_code)
    wanted_signal = harm.signal
    if kind == "noise on all descriptors" and failure.signal is None:
        # What was queued behind had begun, so it was lost before its worker was ended.
        wanted_signal = None
    assert got == (harm.cause, type_, wanted_signal, harm.exit_code), (place, failure)
    assert harm.says in failure.message
    assert len(failure.message) < 11_000
    assert record.attempts == attempts


@pytest.mark.parametrize("kind", KINDS)
def test_harm_costs_its_own_attempts_only(kind: str, folder: Path) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    seen = Seen()
    result = pipeline(kind).run(executor="processes", workers=SLOTS, state_dir=folder / "state", observers=[seen])
    assert len(os.listdir("/proc/self/fd")) == fds
    ledger.check_no_orphans(str(folder / "ledger"))
    lines = ledger.read(folder / "ledger")
    items = [f"inner/{name}" for group in GROUPS for name in group]
    extra = {("inner/x1" if place == "item" else place): wanted(place, kind)[0] - 1 for place in PLACES}
    ledger.check_law(lines, [*PLACES[:3], *SIBLINGS, *items], faults=extra)
    assert result.status == ("failed" if KINDS[kind].cause else "succeeded")
    for place in PLACES:
        check_place(result, place, kind, lines)
        ledger.count("worker faults", 1)
    fine = {*SIBLINGS, *items, *(["middle"] if KINDS[kind].cause and "when opened" not in kind else [])} - {"inner/x1"}
    assert seen.texts >= {f"{name} is fine" for name in fine}
    assert {line.key for line in lines if line.what == "end"} >= fine
    if kind == "write into an input array":
        assert seen.value is not None
        assert (objects.unpack(seen.value) == fault_steps.array()).all()
