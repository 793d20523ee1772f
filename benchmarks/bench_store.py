"""What does the journal cost per attempt, commit and sync included, and what does a silent attempt's log cost?"""

from __future__ import annotations

import os
import sqlite3
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from procflow import events as ev
from procflow.attempt import Usage
from procflow.ref import Inline
from procflow.storing.attempt_log import LogFolder
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store

ATTEMPTS = 10_000
TARGET_US = 5.0
"""Microseconds an event; an attempt has two."""


def attempts(first: int) -> list[ev.Event]:
    """Starts and ends of small steps, each with one small result."""
    ref, usage = Inline(b"x" * 100), Usage(0.01, 0.01, 50 << 20)
    made: list[ev.Event] = []
    for key in range(first, first + ATTEMPTS):
        made.append(ev.AttemptStarted(0.1, key, "0.1", "fetch/a", "", 1, "processes"))
        made.append(
            ev.AttemptFinished(
                0.2, key, "0.1", "fetch/a", "", 1, "processes", "succeeded", 0.1, usage, outputs={"a": ref}
            )
        )
    return made


@pytest.mark.parametrize("batch", [20, 200, 2000])
def test_an_attempt_in_the_journal(benchmark: Any, tmp_path: Path, batch: int) -> None:
    """``batch`` attempts a commit: 20 is what two workers do with steps of some milliseconds, 2000 a flood of empty ones."""
    store = Store.open(StateFolder.open(tmp_path / ".procflow"))
    store.begin(RunRecord("r1", "bench"))
    first = iter(range(0, 1 << 40, ATTEMPTS))

    def journal(events: list[ev.Event]) -> None:
        for i in range(0, len(events), 2 * batch):
            for event in events[i : i + 2 * batch]:
                store.record(event)
            store.commit()

    report(benchmark, journal, lambda: ((attempts(next(first)),), {}), 2 * ATTEMPTS, "event")
    store.close()


def test_plain_inserts_for_comparison(benchmark: Any, tmp_path: Path) -> None:
    """The floor: sqlite3 alone, one narrow row an attempt, 2000 a commit, the same durability."""
    db = sqlite3.connect(tmp_path / "plain.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, status TEXT, wall_s REAL, ref BLOB)")

    def insert() -> None:
        for _ in range(ATTEMPTS // 2000):
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO t(status, wall_s, ref) VALUES (?,?,?)", [("succeeded", 0.1, b"x" * 100)] * 2000)
            db.execute("COMMIT")

    report(benchmark, insert, lambda: ((), {}), 2 * ATTEMPTS, "event")
    db.close()


def test_a_sync_for_comparison(benchmark: Any, tmp_path: Path) -> None:
    """What one commit must wait for: 8 KiB synced to this disk."""
    with open(tmp_path / "plain", "wb", buffering=0) as file:

        def sync() -> None:
            for _ in range(50):
                file.write(b"x" * 8192)
                os.fdatasync(file.fileno())

        report(benchmark, sync, lambda: ((), {}), 50, "sync")


def test_the_log_of_a_silent_attempt(benchmark: Any, tmp_path: Path) -> None:
    folder = LogFolder(tmp_path)

    def silent() -> None:
        for _ in range(ATTEMPTS):
            folder.open("fetch/a", "7", 1).close()

    report(benchmark, silent, lambda: ((), {}), ATTEMPTS, "attempt")


def report(benchmark: Any, work: Callable[..., None], setup: Callable[[], Any], count: int, unit: str) -> None:
    """Run it some rounds and print microseconds for each: wall, and processor time, which a busy disk does not change."""
    used: list[float] = []

    def timed(*arguments: Any) -> None:
        begun = time.process_time()
        work(*arguments)
        used.append(time.process_time() - begun)

    benchmark.pedantic(timed, setup=setup, rounds=5, warmup_rounds=1)
    if benchmark.stats is None:  # --benchmark-disable
        return
    wall_us = benchmark.stats.stats.median / count * 1e6
    cpu_us = statistics.median(used) / count * 1e6
    benchmark.extra_info.update({f"wall_us_per_{unit}": round(wall_us, 2), f"cpu_us_per_{unit}": round(cpu_us, 2)})
    print(
        f"\n{benchmark.name}: {cpu_us:.2f} us processor, {wall_us:.2f} us wall an {unit} (target {TARGET_US:g} an event)"
    )
