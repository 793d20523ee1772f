"""Bugs sown into the journal and into what is said of it, each found by a small check.

A journal that does not sync is in ``test_power_loss.py``, because only a power loss shows it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import fault_steps
import ledger
import night
from forked import forked
from sabotage import run

from procflow import Step, failpoints
from procflow import engine as engine_module
from procflow import events as ev
from procflow.errors import StoreError
from procflow.failpoint_actions import Failpoints
from procflow.storing import history as history_module
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder
from procflow.storing.store_rows import Rows
from procflow.storing.store_tail import Tail

# -- the journal and what is said of it


def check_announced_is_durable(folder: Path) -> None:
    """Whoever hears of a result finds it in the journal at once."""
    missing: list[str] = []

    class Looks:
        def handle(self, event: ev.Event) -> None:
            if isinstance(event, ev.AttemptFinished) and event.status == "succeeded":
                with History.open(StateFolder(folder / "state")) as past:
                    there = {row.path for row in past.steps("night") if row.status == "succeeded"}
                if event.path not in there:
                    missing.append(event.path)

    night.session(str(folder / "state"), "night", False, Looks(), 0.1)
    assert not missing, f"announced and not there: {missing}"


def test_what_is_announced_before_it_is_committed_is_found(proven: Any) -> None:
    def early(self: Any) -> list[ev.Event]:
        events, self._waiting = self._waiting, []
        for observer in self._observers:
            for event in events:
                observer.handle(event)
        self._settle_debt()
        self._commit_at = None
        return events

    proven(
        check_announced_is_durable,
        lambda patch: patch.setattr(engine_module.Engine, "_commit", early),
        "announced and not there",
    )


def night_killed(folder: Path, points: str) -> None:
    """One session that is killed, and one that goes on to the end; commits come only where they must."""

    def session(resume: bool, armed: str) -> int:
        engine_module.COMMIT_S = 10.0
        failpoints.arm(Failpoints(armed))
        said = night.Said(str(folder / "said"))
        return night.session(str(folder / "state"), "night", resume, said).exit_code

    with forked(lambda: session(False, points), folder) as first:
        assert first.wait() == -9, first.errors
    with forked(lambda: session(True, ""), folder) as second:
        assert second.wait() == 0, second.errors


def check_a_kill_costs_one_task(folder: Path) -> None:
    """By then six members of the block, which wait for nothing of each other, have ended."""
    night_killed(folder, f"engine.submit=kill@{night.CHAIN + 7}")
    ledger.check_law(ledger.read(folder / "ledger"), night.keys(), kills=1, slots=1)


def test_results_that_are_not_noted_before_the_next_start_are_missed_after_a_kill(proven: Any) -> None:
    proven(
        check_a_kill_costs_one_task,
        lambda patch: patch.setattr(Tail, "note", lambda self, bodies: None),
        "began again without a fault",
    )


def check_results_are_there_once(folder: Path) -> None:
    """A kill between a commit and the clearing of the tail leaves results in both."""
    for n in range(night.CHAIN, night.CHAIN + 4):
        own = folder / str(n)
        own.mkdir()
        night_killed(own, f"journal.commit.after=kill@{n}")
        with History.open(StateFolder(own / "state")) as past:
            rows = [row for row in past.steps("night") if row.kind == "task" and row.status == "succeeded"]
            results = [(o.path, o.item, o.name) for o in past.outputs("night")]
        ledger.check_once((row.path, row.item or "", row.role or "", str(row.attempt)) for row in rows)
        ledger.check_once(results)


def test_results_that_are_taken_up_twice_are_found(proven: Any) -> None:
    take_up = Rows.take_up
    proven(
        check_results_are_there_once,
        lambda patch: patch.setattr(Rows, "take_up", lambda self, event, known: take_up(self, event, None)),
        "more than once",
    )


def check_a_changed_row_is_refused(folder: Path) -> None:
    assert run(folder, Step("one", fault_steps.after, params={"seconds": 0.0}), executor="inline").ok
    with contextlib.closing(sqlite3.connect(folder / "state" / "procflow.db")) as db:
        assert db.execute("UPDATE step_executions SET output_ref = 'two' WHERE refs IS NOT NULL").rowcount == 1
        db.commit()
    with History.open(StateFolder(folder / "state")) as past:
        refused = False
        try:
            list(past.outputs(past.run().run_id))
        except StoreError:
            refused = True
    assert refused, "a damaged row was believed"


def test_a_seal_that_nobody_looks_at_is_found(proven: Any) -> None:
    sabotage = lambda patch: patch.setattr(history_module, "expression", lambda db, table: "seal")  # noqa: E731
    proven(check_a_changed_row_is_refused, sabotage, "was believed")
