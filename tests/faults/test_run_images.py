"""A kill or a power loss at any write of a run, its tail and the files of its values among them.

After a kill everything is there that was announced, and everything that was received, out of the tail; each value is whole.
After a power loss what was announced is there, a torn tail adds nothing false, a torn value is never taken for a whole
one, and a resume gets to the same end.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import disk
import ledger
import night
import pytest
from disk import Op
from wide_disk import WideDisk, lay_down_all

from procflow import events as ev
from procflow.ref import Ref, stored_in
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder, lock_name
from procflow.storing.store import Store
from procflow.storing.store_tail import Tail, event_of
from procflow.values import objects
from procflow.values.object_views import Gone, verify

EACH = int(os.environ.get("PROCFLOW_POWER_LOSSES", "4"))
SEED = int(os.environ.get("PROCFLOW_SEED", "20261120"))
SHAPE = 0.3
RESUMED = 30

pytestmark = pytest.mark.skipif(disk.library() is None, reason="this Python has SQLite built in, not as a library")


@dataclass(frozen=True)
class Recorded:
    """A state folder, what was done to it with marks of what was received and announced, and what it ended with."""

    folder: Path
    ops: list[Op]
    outputs: dict[str, Any]
    values: dict[tuple[str, str, str], Any]

    def marked(self, kind: str, place: int) -> set[str]:
        """What was ``received`` or ``announced`` before ``ops[place]``."""
        return {op.path.partition(" ")[2] for op in self.ops[:place] if op.what == "mark" and op.path.startswith(kind)}

    def let_go(self, place: int) -> set[str]:
        """Files of values that nobody needed any more before ``ops[place]``."""
        return {op.path for op in self.ops[:place] if op.what in ("rename", "delete") and "/objects/" in op.path}


def of_attempt(event: ev.AttemptFinished) -> str:
    return f"{event.path} {event.item} {event.number}"


class _Announced:
    def __init__(self, noted: WideDisk) -> None:
        self._noted = noted

    def handle(self, event: ev.Event) -> None:
        if isinstance(event, ev.AttemptFinished) and event.status in ("succeeded", "skipped"):
            self._noted.mark(f"announced {of_attempt(event)}")


@pytest.fixture(scope="module")
def truth(memory: Path) -> dict[tuple[str, str, str], Any]:
    """What every step of the run returns."""
    night.session(str(memory / "truth"), "n", False, _Nobody(), SHAPE)
    return {place: objects.unpack(ref) for place, ref in results(memory / "truth")}


@pytest.fixture(scope="module", params=["small values", "values in files"])
def recorded(request: Any, memory: Path, truth: dict[tuple[str, str, str], Any]) -> Iterator[Recorded]:
    """A run whose commits come only where they must, so that its tail has something to say."""
    folder = memory / request.param.replace(" ", "-")
    noted = WideDisk(folder)
    patch = pytest.MonkeyPatch()
    note = Tail.note

    def our_note(self: Tail, bodies: list[Any]) -> None:
        note(self, bodies)
        for event in map(event_of, bodies):
            if isinstance(event, ev.AttemptFinished):
                noted.mark(f"received {of_attempt(event)}")

    patch.setattr(Tail, "note", our_note)
    if request.param == "values in files":
        patch.setattr(objects, "INLINE_MAX", 40)
    with patch.context():
        with noted.installed():
            result = night.session(str(folder), "n", False, _Announced(noted), SHAPE)
        assert result.ok
        outputs = {name: result.outputs[name] for name in result.outputs}
    yield Recorded(folder, noted.ops, outputs, truth)
    patch.undo()


def results(folder: Path) -> list[tuple[tuple[str, str, str], Ref]]:
    with History.open(StateFolder(folder)) as past:
        return [((o.path, o.item, o.name), o.ref) for o in past.outputs("n")]


def present(folder: Path) -> set[str]:
    """What the journal holds once the next session has begun to look."""
    state = StateFolder(folder)
    with Store.open(state) as store:
        store.recover(lock_name(None, "night"))
    with History.open(state) as past:
        known = [row for run in past.runs() for row in past.steps(run.run_id)]
    found = [
        f"{row.path} {row.item} {row.attempt}"
        for row in known
        if row.kind == "task" and row.status in ("succeeded", "skipped")
    ]
    ledger.check_once((one,) for one in found)
    return set(found)


def test_after_a_kill_all_that_was_received_is_there_and_every_value_is_whole(recorded: Recorded) -> None:
    looked = 0
    for place, image in disk.after_kill(recorded.ops):
        if str(recorded.folder / "procflow.db") not in image:
            assert not recorded.marked("received", place)
            continue
        lay_down_all(image, recorded.folder)
        there = present(recorded.folder)
        wanted = recorded.marked("received", place) | recorded.marked("announced", place)
        ledger.check_lost({(one,) for one in wanted}, {(one,) for one in there})
        for at, ref in results(recorded.folder):
            try:
                assert objects.unpack(ref) == recorded.values[at]
            except Gone:
                assert {one.path for one in stored_in(ref)} & recorded.let_go(place + 1)
        looked += 1
    ledger.count("images", looked)
    assert looked > 100


def test_after_a_power_loss_nothing_torn_is_believed(recorded: Recorded) -> None:
    end = len(recorded.ops)
    everything = recorded.marked("received", end) | recorded.marked("announced", end)
    torn = looked = 0
    for place, image in disk.after_power_loss(recorded.ops, random.Random(SEED), EACH):
        if str(recorded.folder / "procflow.db") not in image:
            continue
        lay_down_all(image, recorded.folder)
        there = present(recorded.folder)
        wanted = recorded.marked("announced", place)
        ledger.check_lost({(one,) for one in wanted}, {(one,) for one in there})
        assert there <= everything
        for at, ref in results(recorded.folder):
            # As a resume looks at each file that it is about to use.
            if any(map(verify, stored_in(ref))):
                torn += 1
            else:
                assert objects.unpack(ref) == recorded.values[at]
        looked += 1
    ledger.count("images", looked)
    assert looked > 100
    assert bool(torn) == any("/objects/" in op.path for op in recorded.ops)


def test_after_a_power_loss_a_resume_gets_to_the_same_end(recorded: Recorded) -> None:
    chance = random.Random(SEED)
    found = [
        image
        for place, image in disk.after_power_loss(recorded.ops, chance, 1)
        if str(recorded.folder / "procflow.db") in image and recorded.marked("received", place)
    ]
    resumed = 0
    for image in chance.sample(found, min(RESUMED, len(found))):
        lay_down_all(image, recorded.folder)
        with History.open(StateFolder(recorded.folder)) as past:
            known = past.runs()
        if not known or known[0].status in ("succeeded", "partial"):
            continue
        result = night.session(str(recorded.folder), "n", True, _Nobody(), SHAPE)
        assert result.ok
        assert {name: result.outputs[name] for name in result.outputs} == recorded.outputs
        resumed += 1
    ledger.count("images that were resumed", resumed)
    assert resumed > RESUMED // 4


class _Nobody:
    def handle(self, event: ev.Event) -> None:
        pass
