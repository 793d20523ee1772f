"""A kill between any two writes of the journal: every state that it can leave is opened and looked through."""

from __future__ import annotations

import os
from pathlib import Path

import disk
import images
import ledger
import pytest

RUNS = int(os.environ.get("PROCFLOW_IMAGE_RUNS", "3"))

pytestmark = pytest.mark.skipif(disk.library() is None, reason="this Python has SQLite built in, not as a library")


def test_what_a_kill_leaves_after_any_write_opens_and_holds_all_that_was_announced(memory: Path) -> None:
    recorded = images.record(memory / "recorded", RUNS)
    examined = images.Examined(recorded, memory / "image")
    looked = 0
    for place, image in disk.after_kill(recorded.ops):
        if str(recorded.folder / "procflow.db") not in image:
            assert not recorded.announced(place), "something was announced before there was a journal"
            continue
        examined.look(place, image)
        looked += 1
    ledger.count("images", looked)
    assert looked >= 250 * RUNS


def test_the_disk_remembers_what_is_on_it(memory: Path) -> None:
    recorded = images.record(memory / "true", 1)
    *_, (_, last) = disk.after_kill(recorded.ops)
    assert {path: Path(path).read_bytes() for path in last} == last
    assert {op.what for op in recorded.ops} >= {"write", "sync", "truncate", "rename", "delete", "mark"}


def test_nothing_is_announced_before_it_is_durable(memory: Path) -> None:
    recorded = images.record(memory / "order", 1)
    dirty = {"wal": False}
    for op in recorded.ops:
        if op.path.endswith("-wal") and op.what in ("write", "sync"):
            dirty["wal"] = op.what == "write"
        elif op.what == "mark":
            assert not dirty["wal"], f"{op.path} was announced before the log was synced"
