"""Images of the state folder: recorded runs, and what must hold for every image of their disk."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ledger
import night
from disk import Disk, Image, Op, lay_down

from procflow import engine as engine_module
from procflow import events as ev
from procflow.launch import launch
from procflow.storing import store as store_module
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import Store


@dataclass(frozen=True)
class Recorded:
    """A state folder and all that was done to its journal, with marks of what was announced."""

    folder: Path
    ops: list[Op]

    def announced(self, place: int) -> set[str]:
        """What was announced before ``ops[place]``."""
        return {op.path for op in self.ops[:place] if op.what == "mark"}


class _Marks:
    """An observer that notes in the disk's own order what was announced."""

    def __init__(self, disk: Disk, run_id: str) -> None:
        self._disk, self._run_id = disk, run_id

    def handle(self, event: ev.Event) -> None:
        if isinstance(event, ev.AttemptFinished) and event.status in ("succeeded", "skipped"):
            self._disk.mark(f"{self._run_id} {event.path} {event.item} {event.number}")
        elif isinstance(event, ev.RunFinished):
            self._disk.mark(f"{self._run_id} over")


@contextlib.contextmanager
def eager(checkpoint_pages: int) -> Iterator[None]:
    """Every turn of the loop commits and announces, the log is written back every few pages: more instants to see."""
    times, connect = (engine_module.COMMIT_S, engine_module.COMMIT_MOST_S), store_module.connect_writer

    def connect_eagerly(path: Path, network: bool) -> sqlite3.Connection:
        db = connect(path, network)
        db.execute(f"PRAGMA wal_autocheckpoint={checkpoint_pages:d}")
        return db

    engine_module.COMMIT_S = engine_module.COMMIT_MOST_S = 0.0
    store_module.connect_writer = connect_eagerly
    try:
        yield
    finally:
        engine_module.COMMIT_S, engine_module.COMMIT_MOST_S = times
        store_module.connect_writer = connect


def record(state: Path, runs: int, checkpoint_pages: int = 25) -> Recorded:
    """Run the night so often in one folder, on a disk that remembers."""
    disk = Disk()
    with disk.installed(), eager(checkpoint_pages):
        for number in range(runs):
            run_id = f"n{number}"
            marks = _Marks(disk, run_id)
            result = launch(
                night.night(), state_dir=state, executor="inline", workers=1, run_id=run_id, observers=(marks,)
            )
            assert result.ok
    return Recorded(state, disk.ops)


class Examined:
    """Looks at one image after the other in a folder of its own; only images that differ cost anything."""

    def __init__(self, recorded: Recorded, at: Path) -> None:
        self._recorded = recorded
        self._at = StateFolder.open(at)
        self._place, self._announced = 0, set[str]()

    def look(self, place: int, image: Image) -> None:
        """Everything announced is there once, the journal opens for readers and for the next session, and is whole."""
        ops = self._recorded.ops
        if place < self._place:
            self._place, self._announced = 0, set()
        self._announced |= {op.path for op in ops[self._place : place] if op.what == "mark"}
        self._place = place
        own = {path: data for path, data in image.items() if Path(path).parent == self._recorded.folder}
        lay_down(own, self._recorded.folder, self._at.path)
        seen = self._present()
        ledger.check_lost({(one,) for one in self._announced}, {(one,) for one in seen})
        with Store.open(self._at) as store:
            assert store._db is not None
            assert store._db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert self._present() == seen

    def _present(self) -> set[str]:
        found: list[str] = []
        with History.open(self._at) as past:
            for run in past.runs():
                if run.exit_code is not None:
                    found.append(f"{run.run_id} over")
                for row in past.steps(run.run_id):
                    if row.kind == "task" and row.status in ("succeeded", "skipped"):
                        found.append(f"{row.run_id} {row.path} {row.item} {row.attempt}")
                results = [(run.run_id, o.path, o.item, o.name) for o in past.outputs(run.run_id)]
                ledger.check_once(results)
        ledger.check_once((one,) for one in found)
        return set(found)


def shared_memory() -> Path | None:
    """A folder in memory for what is written thousands of times, where there is one."""
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
