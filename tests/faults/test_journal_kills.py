"""SIGKILL of the run itself at failpoint n = 1, 2, 3 ...: what was announced is there, and the run goes on to the same end.

``PROCFLOW_KILLS`` sets how many points are tried (they are spread evenly over all that a run passes).
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import ledger
import night
import pytest
from driver import Driver, Order

from procflow import failpoints
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder

KILLS = int(os.environ.get("PROCFLOW_KILLS", "600"))
SEED = int(os.environ.get("PROCFLOW_SEED", "20261120"))
SHAPE = 0.65
PARTS = 6
"""Tests that the kills are spread over, for as many processors."""
PACKAGE = Path(failpoints.__file__).parent


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as started:
        yield started


class Killed:
    """One run in a folder of its own, through as many sessions as it takes."""

    def __init__(self, driver: Driver, folder: Path, eager: bool = True) -> None:
        folder.mkdir(parents=True)
        self._driver, self._folder, self._eager = driver, folder, eager
        self.kills = self.sessions = 0

    def session(self, failpoints: str = "") -> tuple[int, dict[str, Any]]:
        names = {name: str(self._folder / name) for name in ("state", "ledger", "said", "answer")}
        # A kill before the run was recorded leaves nothing to go on with, but perhaps its folder.
        recorded = self._recorded()
        self.sessions += 1
        order = Order(
            **names, run_id=recorded or f"night-{self.sessions}", resume=recorded is not None,
            failpoints=failpoints, eager=self._eager, shape=SHAPE,
        )  # fmt: skip
        status, answer = self._driver.session(order)
        if status == -signal.SIGKILL:
            self.kills += 1
            ledger.count("kill points", 1)
            self.look()
        return status, answer

    def _recorded(self) -> str | None:
        with History.open(StateFolder(self._folder / "state")) as past:
            runs = past.runs()
        return runs[0].run_id if runs else None

    def look(self) -> None:
        """What was announced is there, once; the journal is whole; a run that is dead says so."""
        said = (self._folder / "said").read_text().splitlines() if (self._folder / "said").exists() else []
        announced = {tuple(line.split()[1:]) for line in said if line.startswith("done ")}
        state = self._folder / "state"
        if not (state / "procflow.db").exists():
            assert not announced
            return
        with History.open(StateFolder(state)) as past:
            runs = past.runs()
            steps = list(past.steps(runs[0].run_id)) if runs else []
            results = [(o.path, o.item, o.name) for o in past.outputs(runs[0].run_id)] if runs else []
        assert len(runs) <= 1
        good = [row for row in steps if row.kind == "task" and row.status in ("succeeded", "skipped")]
        done = [(row.path, row.item or "-", row.role or "", str(row.attempt)) for row in good]
        ledger.check_lost(announced, done)
        ledger.check_once((path, item, role) for path, item, role, _ in done)
        ledger.check_once(results)
        with closing(sqlite3.connect(f"file:{state / 'procflow.db'}?mode=ro", uri=True)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def check_end(self, answer: dict[str, Any], wanted: dict[str, Any]) -> None:
        """The run ended as an undisturbed one, and each kill cost one task at most."""
        if answer.get("error") == "NothingToDo":
            with History.open(StateFolder(self._folder / "state")) as past:
                assert past.run().status == "succeeded"
        else:
            assert (answer.get("status"), answer.get("outputs")) == ("succeeded", wanted), answer
        self.look()
        ledger.check_law(ledger.read(self._folder / "ledger"), night.keys(SHAPE), kills=self.kills, slots=1)


@pytest.fixture(scope="module")
def undisturbed(driver: Driver, memory: Path) -> dict[str, Any]:
    """What a run answers that nobody kills, with the passes of every failpoint."""
    run = Killed(driver, memory / "undisturbed")
    status, answer = run.session()
    assert status == 0
    run.check_end(answer, answer["outputs"])
    return answer


def spread(total: int, wanted: int) -> list[int]:
    """``wanted`` numbers of 1 to ``total``, evenly; all of them where there are not more."""
    if wanted >= total:
        return list(range(1, total + 1))
    return sorted({1 + number * total // wanted for number in range(wanted)})


def kill_everywhere(driver: Driver, memory: Path, undisturbed: dict[str, Any], wanted: int, part: int, of: int) -> int:
    total = undisturbed["passed"]["*"]
    made = 0
    for n in spread(total, wanted)[part::of]:
        run = Killed(driver, memory / f"kill-{n}")
        status, _ = run.session(f"*=kill@{n}")
        assert status == -signal.SIGKILL, f"failpoint pass {n} of {total} did not come"
        made += 1
        status, answer = run.session()
        assert status == 0, f"*=kill@{n}: {answer}"
        run.check_end(answer, undisturbed["outputs"])
        shutil.rmtree(memory / f"kill-{n}")
    return made


@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_killed_at_any_failpoint_loses_nothing_and_ends_as_if_undisturbed(
    driver: Driver, memory: Path, undisturbed: dict[str, Any], part: int
) -> None:
    assert kill_everywhere(driver, memory, undisturbed, KILLS, part, PARTS) >= min(KILLS, 600) // PARTS


@pytest.mark.parametrize("part", range(PARTS))
def test_a_run_killed_again_and_again_while_it_resumes_gets_to_the_same_end(
    driver: Driver, memory: Path, undisturbed: dict[str, Any], part: int
) -> None:
    for chain in range(part, max(12, KILLS // 10), PARTS):
        chance = random.Random(f"{SEED}:{chain}")
        ledger.count("chains", 1)
        run = Killed(driver, memory / f"chain-{chain}", eager=bool(chain % 2))
        for _ in range(5):
            # A session that goes on has less to pass than one from the beginning.
            at = chance.randint(1, undisturbed["passed"]["*"] // 3)
            status, answer = run.session(f"*=kill@{at}")
            if status == 0:
                break
            assert status == -signal.SIGKILL, f"PROCFLOW_SEED={SEED}, chain {chain}, kill@{at}: {answer}"
        else:
            status, answer = run.session()
        assert status == 0
        run.check_end(answer, undisturbed["outputs"])


@pytest.mark.soak
def test_thousands_of_kills(driver: Driver, memory: Path, undisturbed: dict[str, Any]) -> None:
    kill_everywhere(driver, memory / "soak", undisturbed, 100_000, 0, 1)


# -- the list of failpoints


def used() -> dict[str, list[str]]:
    """Names given to ``fp`` anywhere in the package, with their places."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for part in ast.walk(ast.parse(path.read_text())):
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "fp":
                (argument,) = part.args
                assert isinstance(argument, ast.Constant), f"{path}:{part.lineno}: the name must be written out"
                found.setdefault(str(argument.value), []).append(f"{path.name}:{part.lineno}")
    return found


def test_the_code_uses_just_the_failpoints_of_the_list() -> None:
    assert set(used()) == set(failpoints.NAMES)


def test_every_failpoint_is_passed_by_a_small_run(driver: Driver, memory: Path, undisturbed: dict[str, Any]) -> None:
    passed = {name for name, times in undisturbed["passed"].items() if times}
    order = Order(
        **{name: str(memory / f"small-{name}") for name in ("state", "ledger", "said", "answer")},
        executor="processes",
        shape=0.1,
    )
    status, answer = driver.session(order)
    assert status == 0
    passed |= set(answer["passed"])
    assert passed - {"*"} == set(failpoints.NAMES)


@pytest.mark.parametrize(
    "text",
    ["nowhere=kill", "run.finish", "run.finish=melt", "run.finish=kill@0", "run.finish=kill@x", "run.finish=delay",
     "run.finish=kill:9"],
)  # fmt: skip
def test_a_failpoint_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="failpoint"):
        failpoints.parse(text)


def test_the_grammar_of_failpoints() -> None:
    found = failpoints.parse("run.finish=kill@3, *=raise:OSError:ENOSPC@2+,log.write=delay:50ms")
    assert [(f.name, f.action, f.argument, f.first, f.persistent) for f in found] == [
        ("run.finish", "kill", "", 3, False),
        ("*", "raise", "OSError:ENOSPC", 2, True),
        ("log.write", "delay", "50ms", 1, False),
    ]
    assert [found[0].hits(n) for n in (1, 2, 3, 4)] == [False, False, True, False]
    assert [found[1].hits(n) for n in (1, 2, 3, 4)] == [False, True, True, True]
