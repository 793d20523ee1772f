"""The journal against a dictionary: random events, commits, crashes and reopenings, by hypothesis.

The model knows what was recorded and what was committed. After a crash (the folder as it lies there, copied, nothing closed)
everything committed is there as it was, nothing is there that was never recorded, what ran is lost, ids are used once.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import images
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from procflow import events as ev
from procflow.attempt import Failure, Usage
from procflow.errors import StoreError
from procflow.ref import Inline, Ref
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store
from procflow.storing.store_refs import decode_refs

BAD = Failure("error", "ValueError", "bad \udcff row", "Traceback ...", "jobs.py:8", ("ValueError",))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(0, 10**6)


@dataclass
class Model:
    """What a run has recorded: attempts by key, with how they ended, and what they published."""

    status: dict[int, str] = field(default_factory=dict)
    outputs: dict[tuple[int, str], Ref] = field(default_factory=dict)
    cost: dict[int, float] = field(default_factory=dict)

    def copy(self) -> Model:
        return Model(dict(self.status), dict(self.outputs), dict(self.cost))


class JournalMachine(RuleBasedStateMachine):
    """One run in one folder."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="procflow-machine-", dir=images.shared_memory()))
        self.folders = self.keys = self.sessions = 0
        self.recorded, self.committed = Model(), Model()
        self.running: list[int] = []
        self.noted = set[int]()

    @initialize()
    def begin(self) -> None:
        self.folder = StateFolder.open(self.root / "0")
        self._open()

    def _open(self) -> None:
        self.store = Store.open(self.folder)
        self.store.recover("p.yaml")
        self.store.begin(RunRecord("r", "p", lock="p.yaml"))
        self.sessions += 1
        self.running = []
        self.noted = set[int]()
        for key, status in self.committed.status.items():
            if status == "running":
                self.committed.status[key] = "lost"
        self.recorded = self.committed.copy()

    @rule(item=texts)
    def start(self, item: str) -> None:
        self.keys += 1
        self.store.record(ev.AttemptStarted(1.0, self.keys, "0", "a", item, 1, "processes"))
        self.recorded.status[self.keys] = "running"
        self.running.append(self.keys)

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        status=st.sampled_from(["succeeded", "failed", "lost", "skipped", "cancelled"]),
        names=st.dictionaries(texts, st.binary(max_size=20), max_size=3),
        cost=numbers,
    )
    def finish(self, data: st.DataObject, status: Any, names: dict[str, bytes], cost: float) -> None:
        key = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        outputs: dict[str, Ref] = {n: Inline(b) for n, b in names.items()} if status == "succeeded" else {}
        failure = BAD if status in ("failed", "lost") else None
        self.store.record(
            ev.AttemptFinished(
                2.0,
                key,
                "0",
                "a",
                str(key),
                1,
                "processes",
                status,
                1.0,
                Usage(0.5, 0.4, 10),
                failure,
                outputs,
                cost=cost,
            )
        )
        self.recorded.status[key] = status
        self.recorded.cost[key] = cost
        for name, ref in outputs.items():
            self.recorded.outputs[key, name] = ref

    @rule()
    def commit(self) -> None:
        self.store.commit()
        self.committed = self.recorded.copy()

    @rule()
    def note(self) -> None:
        """Results are safe from a kill, before any transaction."""
        self.store.note()
        self.noted |= {key for key, status in self.recorded.status.items() if status in ("succeeded", "skipped")}

    @rule()
    def fail_to_commit(self) -> None:
        """A commit that fails changes nothing and may be done again."""
        if not self.store.pending:
            return
        assert self.store._db is not None
        pages = self.store._db.execute("PRAGMA page_count").fetchone()[0]
        self.store._db.execute(f"PRAGMA max_page_count={pages}")
        try:
            self.store.commit()
        except StoreError:
            pass
        else:
            self.committed = self.recorded.copy()
        self.store._db.execute("PRAGMA max_page_count=1000000")

    @rule()
    def crash(self) -> None:
        """The folder as it is now, without anything being closed or committed, is all that is left."""
        before = self.committed.copy(), self.recorded.copy()
        self.folders += 1
        left = self.root / str(self.folders)
        shutil.copytree(self.folder.path, left)
        self.store.abandon()
        self.store.close()
        self.folder = StateFolder(left)
        self._check(*before)
        noted = self.noted
        with Store.open(self.folder) as store:
            store.recover("p.yaml")
        self._check(*before)
        self._take_over(before[1])
        assert {key: self.committed.status.get(key) for key in noted} == {key: before[1].status[key] for key in noted}
        wanted = {place: ref for place, ref in before[1].outputs.items() if place[0] in noted}
        assert wanted.items() <= self.committed.outputs.items()
        self._open()

    @rule()
    def close(self) -> None:
        """A clean end commits what is left."""
        self.store.close()
        self.committed = self.recorded.copy()
        self._check(self.committed, self.recorded)
        self._open()

    def _present(self) -> Model:
        found = Model()
        with History.open(self.folder) as past:
            for row in past.steps("r"):
                assert row.key is not None
                assert row.key not in found.status, "an attempt is there twice"
                found.status[row.key] = row.status
                if row.cost is not None:
                    found.cost[row.key] = row.cost
            assert past._db is not None
            for key, names, refs in past._db.execute("SELECT key, output_ref, refs FROM step_executions ORDER BY id"):
                found.outputs |= {(key, name): ref for name, ref in decode_refs(names, refs).items()}
            assert [output.ref for output in past.outputs("r")] == list(found.outputs.values())
        return found

    def _check(self, committed: Model, recorded: Model) -> None:
        """Committed is the least that is there, recorded the most."""
        found = self._present()
        for key, status in committed.status.items():
            assert found.status.get(key) in (status, recorded.status[key])
        assert set(found.status) <= set(recorded.status)
        for key, status in found.status.items():
            assert status in (committed.status.get(key), recorded.status[key])
        assert committed.outputs.items() <= found.outputs.items() <= recorded.outputs.items()
        assert {key: found.cost[key] for key in committed.cost} == committed.cost

    def _take_over(self, recorded: Model) -> None:
        """From here on, what is there counts."""
        self.committed = self._present()
        self.committed.cost = {key: cost for key, cost in recorded.cost.items() if key in self.committed.cost}

    @invariant()
    def readers_see_what_was_committed(self) -> None:
        if self.sessions:
            self._check(self.committed, self.recorded)

    def teardown(self) -> None:
        if self.sessions:
            self.store.close()
            with contextlib.closing(sqlite3.connect(self.folder.db)) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        shutil.rmtree(self.root, ignore_errors=True)


JournalMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestJournalMachine = JournalMachine.TestCase


@pytest.mark.soak
def test_thousands_of_stories() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        JournalMachine, settings=settings(max_examples=5000, stateful_step_count=80, deadline=None)
    )
