"""Power loss at any instant: what was synced is there, what was not is there, gone or torn, sector by sector."""

from __future__ import annotations

import os
import random
import sqlite3
from pathlib import Path

import disk
import images
import ledger
import pytest

EACH = int(os.environ.get("PROCFLOW_POWER_LOSSES", "4"))
SEED = int(os.environ.get("PROCFLOW_SEED", "20261120"))

pytestmark = pytest.mark.skipif(disk.library() is None, reason="this Python has SQLite built in, not as a library")


def test_after_a_power_loss_the_journal_opens_and_holds_all_that_was_announced(memory: Path) -> None:
    recorded = images.record(memory / "recorded", 2, checkpoint_pages=20)
    examined = images.Examined(recorded, memory / "image")
    looked = 0
    for place, image in disk.after_power_loss(recorded.ops, random.Random(SEED), EACH):
        if str(recorded.folder / "procflow.db") not in image:
            assert not recorded.announced(place), "something was announced before there was a journal"
            continue
        try:
            examined.look(place, image)
        except Exception as error:
            raise AssertionError(f"PROCFLOW_SEED={SEED}, operation {place}, image {looked}: {error}") from error
        looked += 1
    ledger.count("images", looked)
    assert looked >= 100 * EACH


def test_a_journal_that_does_not_sync_is_found_out(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test: with ``synchronous=OFF`` a power loss must be seen to lose something."""
    from procflow.storing import store as store_module

    connect = store_module.connect_writer

    def careless(path: Path, network: bool) -> sqlite3.Connection:
        db = connect(path, network)
        db.execute("PRAGMA synchronous=OFF")
        return db

    monkeypatch.setattr(store_module, "connect_writer", careless)
    recorded = images.record(memory / "careless", 1)
    assert "sync" not in {op.what for op in recorded.ops if op.path.endswith("-wal")}
    before = dict(ledger.COUNTS)
    examined = images.Examined(recorded, memory / "careless-image")
    caught = 0
    for place, image in disk.after_power_loss(recorded.ops, random.Random(SEED), 1):
        if str(recorded.folder / "procflow.db") in image and recorded.announced(place):
            try:
                examined.look(place, image)
            except Exception:
                caught += 1
    ledger.COUNTS.update({name: before[name] - number for name, number in ledger.COUNTS.items()})
    assert caught > 0
