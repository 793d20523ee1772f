"""The journal: what its rows say, and what survives kills, full disks and damage."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from procflow import events as ev
from procflow.attempt import Failure, Usage
from procflow.errors import InternalError, StoreError
from procflow.ref import Inline, ListOf, MappingOf, Ordered, Ref
from procflow.storing import store as store_module
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import Journal, MemoryStore, NullStore, RunRecord, Store
from procflow.storing.store_plain import INSERT_PLAIN, INSERT_PLAINS, plain_row
from procflow.storing.store_prints import TOGETHER, Prints, read_digests, read_prints
from procflow.storing.store_refs import decode_ref, decode_refs, encode_ref, encode_refs, storable
from procflow.storing.store_schema import _TABLES
from procflow.storing.store_seal import SEALED_OF_REF, expression, install, seal, sql_seal

DEADLINE_S = 60
REF = Inline(b"\x80\x05K\x07.")
BAD = Failure("error", "ValueError", "bad row", "Traceback ...", "jobs.py:8", ("ValueError", "Exception"))
KILLED = Failure("crash", "WorkerLost", "killed by SIGSEGV", signal=11, peak_rss_bytes=5 << 20)


def started(key: int, path: str = "0", label: str = "a", item: str = "", number: int = 1, at: float = 1.0) -> ev.Event:
    return ev.AttemptStarted(at, key, path, label, item, number, "processes")


def finished(key: int, path: str = "0", label: str = "a", item: str = "", number: int = 1, **more: Any) -> ev.Event:
    known: dict[str, Any] = {"status": "succeeded", "started_at": 1.0, "usage": Usage(0.9, 0.8, 1000)} | more
    return ev.AttemptFinished(2.0, key, path, label, item, number, "processes", **known)


def block(path: str, label: str, kind: str, join: str = "all", item: str = "") -> ev.Event:
    return ev.BlockStarted(0.5, path, label, item, kind, 2, join)


def block_end(path: str, label: str, kind: str, status: Any = "succeeded", **more: Any) -> ev.Event:
    return ev.BlockFinished(3.0, path, label, more.pop("item", ""), kind, status, 2, 1, 1, 2.5, 4.0, 1.5, 0.25, **more)


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder.open(tmp_path / ".procflow")


@pytest.fixture
def store(folder: StateFolder) -> Iterator[Store]:
    opened = Store.open(folder)
    opened.begin(RunRecord("r1", "nightly"))
    yield opened
    with contextlib.suppress(StoreError):
        opened.close()


def rows(folder: StateFolder, table: str = "step_executions") -> list[dict[str, Any]]:
    """All rows of a table, by a connection that knows nothing of procflow."""
    with contextlib.closing(sqlite3.connect(f"{folder.db.as_uri()}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        found = [dict(row) for row in db.execute(f"SELECT * FROM {table}")]
        assert all(row.pop("seal") is not None for row in found)
        return found


def keep(store: Journal, *happened: ev.Event) -> None:
    for event in happened:
        store.record(event)
    store.commit()


@pytest.mark.parametrize("kind", ["Store", "MemoryStore", "NullStore"])
class TestJournal:
    """What every store does."""

    @pytest.fixture
    def journal(self, kind: str, folder: StateFolder) -> Iterator[Any]:
        made: Any = {"Store": lambda: Store.open(folder), "MemoryStore": MemoryStore, "NullStore": NullStore}[kind]()
        made.begin(RunRecord("r1", "nightly"))
        yield made
        made.close()

    def kept(self, journal: Any, folder: StateFolder) -> list[dict[str, Any]]:
        if isinstance(journal, MemoryStore):
            return list(journal.steps.values())
        return rows(folder) if isinstance(journal, Store) else []

    def test_a_commit_leaves_nothing_pending(self, journal: Journal) -> None:
        journal.record(started(1))
        journal.record(finished(1))
        journal.commit()
        assert journal.pending == 0
        assert journal.oldest_pending_s == 0.0
        journal.commit()

    def test_progress_alone_is_nothing_to_commit(self, journal: Journal) -> None:
        journal.record(ev.StepProgress(1.0, "0", "a", "", 1, 2))
        assert journal.pending == 0

    def test_what_is_not_committed_is_not_there(self, journal: Journal, folder: StateFolder, kind: str) -> None:
        journal.record(started(1))
        assert self.kept(journal, folder) == []
        assert journal.pending == (0 if kind == "NullStore" else 1)

    def test_closing_commits(self, journal: Journal, folder: StateFolder, kind: str) -> None:
        journal.record(started(1))
        journal.close()
        assert len(self.kept(journal, folder)) == (0 if kind == "NullStore" else 1)

    def test_both_keeping_stores_hold_the_same_rows(self, journal: Journal, folder: StateFolder, kind: str) -> None:
        story = [
            ev.RunStarted(0.0, "r1", "nightly", 2),
            block("0", "fetch", "parallel"),
            started(1, "0.0", "fetch/a"),
            finished(1, "0.0", "fetch/a", outputs={"a": REF}, metrics={"rows": 3.0}),
            finished(2, "0.1", "fetch/b", status="failed", failure=BAD),
            block_end("0", "fetch", "parallel", "failed", failure=BAD),
        ]
        keep(journal, *story)
        if kind == "NullStore":
            assert self.kept(journal, folder) == []
            return
        told = [{k: v for k, v in row.items() if k != "id"} for row in self.kept(journal, folder)]
        assert sorted(((r["path"], r["status"], r["output_ref"]) for r in told), key=str) == [
            ("0", "failed", None),
            ("0.0", "succeeded", "a"),
            ("0.1", "failed", ""),
        ]


def test_a_successful_attempt_is_one_row_with_all_it_used(store: Store, folder: StateFolder) -> None:
    keep(store, started(1), finished(1, outputs={"a": REF}, cost=0.5))
    (row,) = rows(folder)
    assert {name: value for name, value in row.items() if value is not None} == {
        "id": (1 << 32) + 1,
        "run_id": "r1",
        "key": 1,
        "path": "0",
        "label": "a",
        "name": "a",
        "item": "",
        "attempt": 1,
        "kind": "task",
        "role": "member",
        "status": "succeeded",
        "executor": "processes",
        "started": 1.0,
        "ended": 2.0,
        "wall_s": 0.9,
        "cpu_s": 0.8,
        "peak_rss_bytes": 1000,
        "cost": 0.5,
        "count": 1,
        "output_ref": "a",
        "refs": encode_ref(REF),
    }


def test_a_running_attempt_is_seen_and_its_end_replaces_its_row(store: Store, folder: StateFolder) -> None:
    keep(store, started(1, item="3/0-99"))
    (row,) = rows(folder)
    assert (row["status"], row["started"], row["ended"], row["log"]) == (
        "running",
        1.0,
        None,
        "logs/a/3__0-99.1.log",
    )
    keep(store, finished(1, item="3/0-99", count=100))
    (row,) = rows(folder)
    assert (row["status"], row["ended"], row["count"]) == ("succeeded", 2.0, 100)


def test_each_attempt_has_its_row(store: Store, folder: StateFolder) -> None:
    keep(store, started(1), finished(1, status="failed", failure=BAD, retry_in_s=1.5))
    keep(store, started(2, number=2), finished(2, number=2, status="lost", failure=KILLED, retry_in_s=2.0))
    keep(store, started(3, number=3), finished(3, number=3))
    assert [(r["attempt"], r["status"], r["cause"], r["retry_in_s"]) for r in rows(folder)] == [
        (1, "failed", "error", 1.5),
        (2, "lost", "crash", 2.0),
        (3, "succeeded", None, None),
    ]
    first, second, _ = rows(folder)
    assert first["message"] == "ValueError: bad row"
    assert json.loads(first["failure"])["user_place"] == "jobs.py:8"
    assert json.loads(second["failure"])["signal"] == 11
    (run,) = rows(folder, "runs")
    assert (run["status"], run["succeeded"], run["failed"], run["lost"]) == ("running", 1, 1, 1)


def test_the_reason_and_tolerance_of_a_step_go_to_its_last_attempt(store: Store, folder: StateFolder) -> None:
    keep(store, finished(1, status="failed", failure=BAD))
    keep(store, ev.StepFinished(2.0, "0", "a", "", "failed", 1, (), BAD, "no retries left", True))
    (row,) = rows(folder)
    assert (row["status"], row["reason"], row["tolerated"]) == ("failed", "no retries left", 1)


def test_a_step_that_never_started_has_a_row_with_its_reason(store: Store, folder: StateFolder) -> None:
    keep(store, ev.StepFinished(2.0, "1", "b", "", "skipped", 0, reason="a did not succeed"))
    (row,) = rows(folder)
    assert (row["kind"], row["status"], row["attempt"], row["reason"]) == ("task", "skipped", 0, "a did not succeed")


def test_an_item_that_failed_in_a_batch_has_its_own_row(store: Store, folder: StateFolder) -> None:
    keep(store, finished(1, item="0-99", count=99))
    keep(store, ev.StepFinished(2.0, "0", "a", "7", "failed", 2, (), BAD))
    batch, item = rows(folder)
    assert (batch["item"], batch["status"], batch["count"]) == ("0-99", "succeeded", 99)
    assert (item["item"], item["kind"], item["attempt"], item["cause"]) == ("7", "item", 2, "error")


def test_steps_know_their_block_their_branch_and_its_join(store: Store, folder: StateFolder) -> None:
    keep(
        store,
        *(block("0", "top", "sequence"), block("0.1", "top/par", "parallel", "any")),
        *(block("0.1.0", "top/par/left", "graph"), started(1, "0.1.0.2", "top/par/left/deep")),
        *(started(2, "0.1.1", "top/par/right"), started(3, "0.0", "top/first"), started(4, "1", "last")),
    )
    assert {r["label"]: (r["parent_step_id"], r["branch_name"], r["join_policy"]) for r in rows(folder)} == {
        "top": (None, None, "all"),
        "top/par": ("0", None, "any"),
        "top/par/left": ("0.1", "left", "all"),
        "top/par/left/deep": ("0.1.0", "left", "any"),
        "top/par/right": ("0.1", "right", "any"),
        "top/first": ("0", None, None),
        "last": (None, None, None),
    }


def test_tasks_that_bear_the_path_of_their_block_belong_to_it(store: Store, folder: StateFolder) -> None:
    gate, work = (started(1, "0", "m"), finished(1, "0", "m")), (started(2, "0", "m", "0-9"),)
    keep(store, *gate, block("0", "m", "map"), *work)
    assert [(r["kind"], r["item"], r["parent_step_id"]) for r in rows(folder)] == [
        ("task", "", None),
        ("map", "", None),
        ("task", "0-9", "0"),
    ]


def test_a_blocks_row_is_its_result_record_and_a_retry_has_another(store: Store, folder: StateFolder) -> None:
    keep(store, block("0", "p", "parallel"), block_end("0", "p", "parallel", "failed", failure=BAD, retry_in_s=1.0))
    keep(store, block("0", "p", "parallel"))
    assert [(r["attempt"], r["status"]) for r in rows(folder)] == [(1, "failed"), (2, "running")]
    keep(store, block_end("0", "p", "parallel", produced=("x", "y"), attempt=2))
    first, second = rows(folder)
    assert (first["retry_in_s"], first["cause"], first["failed_count"]) == (1.0, "error", 1)
    assert (second["kind"], second["attempt"], second["members"], second["count"]) == ("parallel", 2, 2, 1)
    assert (second["started"], second["ended"], second["wall_s"], second["work_s"]) == (0.5, 3.0, 2.5, 4.0)
    assert (second["saved_s"], second["cost"], second["output_ref"]) == (1.5, 0.25, "x,y")


def test_outputs_and_metrics_are_kept_with_their_place(store: Store, folder: StateFolder) -> None:
    chunk = Ordered(((range(100), REF),))
    keep(store, finished(1, outputs={"x": REF, "y": ListOf((REF, REF))}, metrics={"rows": 3, "odd": math.nan}))
    keep(store, finished(2, "1", "m", "0-99", outputs={"": chunk}))
    found = [(r["path"], r["item"], r["output_ref"], decode_refs(r["output_ref"], r["refs"])) for r in rows(folder)]
    assert found == [("0", "", "x,y", {"x": REF, "y": ListOf((REF, REF))}), ("1", "0-99", "", {"": chunk})]
    assert [(r["name"], r["value"]) for r in rows(folder, "metrics")] == [("rows", 3.0), ("odd", None)]


def test_the_run_row_tells_how_it_began_and_how_it_ended(folder: StateFolder) -> None:
    record = RunRecord(
        "r1", "nightly", "/x/nightly.yaml", "nightly.yaml", {"day": "2026-11-20", "odd": {1, 2}}, workers=4
    )
    with Store.open(folder) as store:
        store.begin(record)
        keep(store, ev.RunStarted(0.0, "r1", "nightly", 3), finished(1), finished(2, status="cancelled"))
        (run,) = rows(folder, "runs")
        assert (run["status"], run["ended"], run["exit_code"], run["steps"]) == ("running", None, None, 3)
        keep(store, ev.RunFinished(9.0, "r1", "partial", 3, 2, 9.0, 20.0, "tolerated"))
    (run,) = rows(folder, "runs")
    assert (run["status"], run["exit_code"], run["failures"], run["tolerated"]) == ("partial", 3, 3, 2)
    assert (run["wall_s"], run["work_s"], run["succeeded"], run["cancelled"]) == (9.0, 20.0, 1, 1)
    assert (run["file"], run["workers"], run["pid"]) == ("/x/nightly.yaml", 4, os.getpid())
    assert json.loads(run["params"]) == {"day": "2026-11-20", "odd": "{1, 2}"}
    assert run["started"].endswith("Z")
    assert run["ended"] >= run["started"]


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        ("succeeded", "", 0),
        ("failed", "", 1),
        ("partial", "", 3),
        ("timed_out", "", 4),
        ("cancelled", "SIGINT", 130),
        ("cancelled", "stopped by SIGTERM", 143),
    ],
)
def test_exit_codes_follow_the_status(store: Store, folder: StateFolder, status: Any, reason: str, code: int) -> None:
    keep(store, ev.RunFinished(1.0, "r1", status, 0, 0, 1.0, 1.0, reason))
    assert rows(folder, "runs")[0]["exit_code"] == code


def test_text_that_utf8_cant_hold_is_kept_readable(store: Store, folder: StateFolder) -> None:
    bad = Failure("error", "E", "file \udcff\x00 'quoted\"", "trace \ud800")
    keep(
        store, finished(1, status="failed", failure=bad), finished(2, outputs={"k\udc80": REF}, metrics={"m\ud800": 1})
    )
    failed, fine = rows(folder)
    assert failed["message"] == "E: file \\udcff\x00 'quoted\""
    assert json.loads(failed["failure"])["traceback"] == "trace \ud800"
    assert fine["output_ref"] == "k\\udc80"
    assert rows(folder, "metrics")[0]["name"] == "m\\ud800"


def test_a_huge_message_is_cut_in_the_middle(store: Store, folder: StateFolder) -> None:
    huge = Failure("error", "E", "<" + "x" * 5_000_000 + ">", "y" * 5_000_000)
    keep(store, finished(1, status="failed", failure=huge))
    (row,) = rows(folder)
    assert len(row["message"]) < 11_000
    assert row["message"].endswith(">")
    assert "characters left out" in row["message"]
    assert len(row["failure"]) < 250_000


def test_the_age_of_what_is_pending_is_known(folder: StateFolder) -> None:
    now = [100.0]
    with Store.open(folder, clock=lambda: now[0]) as store:
        store.begin(RunRecord("r1", "nightly"))
        assert store.oldest_pending_s == 0.0
        store.record(started(1))
        now[0] = 103.0
        store.record(finished(1))
        assert (store.pending, store.oldest_pending_s) == (2, 3.0)
        store.commit()
        assert (store.pending, store.oldest_pending_s) == (0, 0.0)


def test_memory_is_not_kept_for_what_ended_well(store: Store) -> None:
    for key in range(2000):
        store.record(started(key, item=str(key)))
        store.record(finished(key, item=str(key), outputs={"": REF}))
        if key % 100 == 0:
            store.commit()
    store.commit()
    assert store._rows is not None
    held = [v for v in vars(store._rows).values() if isinstance(v, (dict, list))]
    assert max(map(len, held)) < 20


plain_refs: st.SearchStrategy[Ref] = st.recursive(
    st.builds(Inline, st.binary(), st.lists(st.binary(), max_size=3).map(tuple)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda m: ListOf(tuple(m))),
        st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), inner), max_size=4).map(
            lambda m: MappingOf(tuple(m))
        ),
        st.tuples(st.integers(0, 100), st.integers(1, 50), inner).map(
            lambda t: Ordered(((range(t[0], t[0] + t[1]), t[2]), ((200, 205), t[2])))
        ),
    ),
    max_leaves=8,
)


@given(plain_refs)
def test_a_ref_comes_back_as_it_was(ref: Ref) -> None:
    assert decode_ref(encode_ref(ref)) == ref


@given(st.dictionaries(st.text(max_size=3), plain_refs, max_size=3))
def test_refs_come_back_by_their_names(outputs: dict[str, Ref]) -> None:
    stored = {storable(name): ref for name, ref in outputs.items()}
    back = decode_refs(*encode_refs(outputs))
    assert list(back.items()) == list(stored.items())


@given(plain_refs, st.data())
def test_a_damaged_ref_is_refused_never_misread(ref: Ref, data: st.DataObject) -> None:
    whole = encode_ref(ref)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for broken in (bytes(flipped), whole[:at]):
        with pytest.raises(StoreError):
            decode_ref(broken)


def test_a_pickle_with_code_in_it_is_never_run(tmp_path: Path) -> None:
    import zlib

    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "pwned"),))

    body = pickle.dumps(("inline", Trap(), ()), 4)
    with pytest.raises(StoreError, match="has no place in a ref"):
        decode_ref(b"R1" + zlib.crc32(body).to_bytes(4, "little") + body)
    assert not (tmp_path / "pwned").exists()


def test_a_resumed_run_keeps_its_rows_and_calls_the_unfinished_ones_lost(folder: StateFolder) -> None:
    first = Store.open(folder)
    first.begin(RunRecord("r1", "nightly", lock="nightly.yaml"))
    keep(first, finished(1), started(2, "1", "b"))
    first.close()
    second = Store.open(folder)
    second.begin(RunRecord("r1", "nightly", lock="nightly.yaml", workers=8))
    keep(second, started(1, "1", "b"), finished(1, "1", "b"))
    second.close()
    assert [(r["label"], r["status"], r["reason"]) for r in rows(folder)] == [
        ("a", "succeeded", None),
        ("b", "lost", "procflow itself was killed"),
        ("b", "succeeded", None),
    ]
    (run,) = rows(folder, "runs")
    assert (run["sessions"], run["workers"], run["succeeded"], run["lost"]) == (2, 8, 2, 1)


def test_a_new_run_buries_the_dead_ones_of_its_lock_and_no_others(folder: StateFolder) -> None:
    for run_id, lock in (("dead", "nightly.yaml"), ("other", "hourly.yaml"), ("free", None)):
        with Store.open(folder) as store:
            store.begin(RunRecord(run_id, "p", lock=lock))
            keep(store, started(1))
    with Store.open(folder) as store:
        store.begin(RunRecord("new", "p", lock="nightly.yaml"))
    assert {r["run_id"]: r["status"] for r in rows(folder, "runs")} == {
        "dead": "killed",
        "other": "running",
        "free": "running",
        "new": "running",
    }
    assert [r["status"] for r in rows(folder)] == ["lost", "running", "running"]


def test_two_runs_of_one_folder_write_side_by_side(folder: StateFolder) -> None:
    a, b = Store.open(folder), Store.open(folder)
    a.begin(RunRecord("ra", "a"))
    b.begin(RunRecord("rb", "b"))
    for key in range(50):
        keep(a, finished(key, outputs={"x": REF}))
        keep(b, finished(key, outputs={"x": REF}))
    a.close()
    b.close()
    found = rows(folder)
    assert len({r["id"] for r in found}) == len(found) == 100
    with History.open(folder) as past:
        assert [r.key for r in past.steps("ra")] == list(range(50))
        assert sum(1 for _ in past.outputs("rb")) == 50


WRITER = """
import sys
from procflow import events as ev
from procflow.attempt import Usage
from procflow.ref import Inline
from procflow.storing.state_folder import StateFolder
from procflow.storing.store import RunRecord, Store
store = Store.open(StateFolder.open(sys.argv[1]))
store.begin(RunRecord(sys.argv[2], "p", lock=sys.argv[2]))
key = 0
while True:
    for _ in range(1 + key % 7):
        key += 1
        store.record(ev.AttemptStarted(1.0, key, "0", "a", str(key), 1, "processes"))
        store.record(ev.AttemptFinished(2.0, key, "0", "a", str(key), 1, "processes", "succeeded", 1.0, Usage(),
                                        outputs={"": Inline(b"x" * (key % 3000))}))
    store.record(ev.AttemptStarted(1.0, -key, "0", "a", "open", 1, "processes"))
    store.commit()
    print(key, flush=True)
"""


def write_until_killed(folder: StateFolder, run_id: str, commits: int) -> int:
    """SIGKILL a writer after so many commits; the number of attempts that it called durable."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder.path), run_id], stdout=subprocess.PIPE, text=True, env=env
    )
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(commits)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    return max(int(line) for line in said if line.endswith("\n"))


def test_what_a_killed_writer_committed_is_there(folder: StateFolder) -> None:
    for kill, commits in enumerate((1, 3, 40, 200)):
        run_id = f"r{kill}"
        durable = write_until_killed(folder, run_id, commits)
        with History.open(folder) as past:
            items = [r.item for r in past.steps(run_id) if r.status == "succeeded"]
            refs = [o.ref.size_bytes for o in past.outputs(run_id)]
            assert past.run(run_id).status == "killed"
        # The commit that the kill met may be there or not, whole.
        assert len(items) >= durable
        assert items == [str(k) for k in range(1, len(items) + 1)]
        assert refs == [k % 3000 for k in range(1, len(items) + 1)]
        with contextlib.closing(sqlite3.connect(folder.db)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_reader_sees_whole_commits_while_the_writer_writes(store: Store, folder: StateFolder) -> None:
    stop, seen, wrong = threading.Event(), [], []

    def read() -> None:
        try:
            while not stop.is_set():
                with History.open(folder) as past:
                    count = sum(1 for _ in past.steps("r1"))
                    if count % 3 or (seen and count < seen[-1]):
                        wrong.append(count)
                    seen.append(count)
        except Exception as error:
            wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for key in range(0, 600, 3):
            keep(store, finished(key), finished(key + 1), finished(key + 2))
    finally:
        stop.set()
        reader.join(DEADLINE_S)
    assert wrong == []
    assert seen


def test_a_reader_cant_write(store: Store, folder: StateFolder) -> None:
    keep(store, finished(1))
    with History.open(folder) as past:
        assert past._db is not None
        for sql in ("DELETE FROM runs", "CREATE TABLE t(x)", "PRAGMA user_version=9"):
            with pytest.raises(sqlite3.OperationalError):
                past._db.execute(sql)
    assert len(rows(folder)) == 1


def test_a_full_disk_is_told_and_harms_nothing(store: Store, folder: StateFolder) -> None:
    keep(store, *[finished(k) for k in range(100)])
    assert store._db is not None
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages + 1}")
    for key in range(100, 200):
        store.record(finished(key, outputs={"x": Inline(b"x" * 10_000)}))
    for _ in range(2):
        with pytest.raises(StoreError, match=r"procflow\.db: .*full.*free some space, then resume") as e:
            store.commit()
        assert e.value.exit_code == 74
        assert store.pending == 100
        assert len(rows(folder)) == 100
    store._db.execute("PRAGMA max_page_count=1000000")
    store.commit()
    assert len(rows(folder)) == 200
    assert sum(len(r["refs"] or b"") for r in rows(folder)) > 1_000_000


FULL = """
import resource, sys
from procflow.errors import InternalError, StoreError
from tests.test_store import *
folder = StateFolder.open(sys.argv[1])
store = Store.open(folder)
store.begin(RunRecord("r1", "p"))
keep(store, *[finished(k) for k in range(50)])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
durable = 50
try:
    while True:
        for key in range(durable, durable + 50):
            store.record(finished(key, outputs={"x": Inline(b"x" * 2000)}))
        store.commit()
        durable += 50
except StoreError as error:
    assert folder.db.name in str(error), error
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert len(rows(folder)) == durable, (len(rows(folder)), durable)
store.commit()
store.close()
assert len(rows(folder)) == durable + 50
"""


def test_a_file_system_that_refuses_to_write_harms_nothing(folder: StateFolder) -> None:
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder.path)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_state_folder_that_is_removed_is_noticed_and_not_made_anew(store: Store, folder: StateFolder) -> None:
    keep(store, finished(1))
    shutil.rmtree(folder.path)
    store.record(finished(2))
    with pytest.raises(StoreError, match=r"removed while the run was going on|can't be recorded"):
        store.commit()
    with pytest.raises(StoreError):
        store.close()
    assert not folder.path.exists()


def test_a_journal_that_is_replaced_is_noticed(store: Store, folder: StateFolder) -> None:
    keep(store, finished(1))
    shutil.copy(folder.db, folder.path / "copy")
    os.replace(folder.path / "copy", folder.db)
    store.record(finished(2))
    with pytest.raises(StoreError, match="replaced by another file"):
        store.commit()


def test_a_journal_that_somebody_else_locks_is_waited_for_and_told(
    store: Store, folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store._db is not None
    store._db.execute("PRAGMA busy_timeout=20")
    store.record(finished(1))
    with contextlib.closing(sqlite3.connect(folder.db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked.*another process kept it locked"):
            store.commit()
        other.execute("ROLLBACK")
    store.commit()
    monkeypatch.setattr(store_module, "LOCK_WAIT_S", 0.02)
    store.record(finished(2))
    with folder.writer_lock.open() as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another run of this folder has been writing for"):
            store.commit()
    store.commit()
    assert len(rows(folder)) == 2


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    store.close()
    store.record(finished(1))
    with pytest.raises(StoreError, match="the store is closed"):
        store.commit()


def test_an_event_before_the_run_is_refused(folder: StateFolder) -> None:
    with Store.open(folder) as store, pytest.raises(InternalError, match="before the run began"):
        store.record(started(1))


def test_no_child_inherits_the_journal(store: Store, folder: StateFolder) -> None:
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(folder.path) in os.readlink(fd):
                assert not os.get_inheritable(int(fd.name))


def test_the_journal_is_durable_and_in_wal_mode(store: Store) -> None:
    assert store._db is not None
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_on_a_network_file_system_the_journal_needs_no_shared_memory(
    folder: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "is_network_mount", lambda _: True)
    with Store.open(folder) as store:
        store.begin(RunRecord("r1", "p"))
        keep(store, finished(1))
        assert sorted(p.name for p in folder.path.glob("procflow.db*")) == ["procflow.db", "procflow.db-journal"]
        assert len(rows(folder)) == 1


def written(folder: StateFolder) -> Path:
    with Store.open(folder) as store:
        store.begin(RunRecord("r1", "p"))
        keep(store, *[finished(k, outputs={"x": Inline(b"x" * 500)}) for k in range(200)])
    return folder.db


def test_a_newer_journal_is_refused_and_kept(folder: StateFolder) -> None:
    path = written(folder)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")
    before = path.read_bytes()
    for open_it in (Store.open, History.open):
        with pytest.raises(StoreError, match=r"newer procflow \(journal version 99.*upgrade"):
            open_it(folder)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"not a database at all", b"SQLite format 3\0" + b"\0" * 200, os.urandom(9000)]
)
def test_a_file_that_is_no_journal_is_refused_and_kept(folder: StateFolder, content: bytes) -> None:
    folder.db.write_bytes(content)
    folder.db.chmod(0o600)
    for open_it in (Store.open, History.open):
        with pytest.raises(StoreError, match=r"procflow\.db"):
            open_it(folder)
    assert folder.db.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_kept(folder: StateFolder) -> None:
    with contextlib.closing(sqlite3.connect(folder.db)) as db:
        db.execute("CREATE TABLE theirs(x)")
    before = folder.db.read_bytes()
    with pytest.raises(StoreError, match="not a procflow journal"):
        Store.open(folder)
    assert folder.db.read_bytes() == before


def read_all(folder: StateFolder) -> Any:
    with History.open(folder) as past:
        return past.run("r1"), list(past.steps("r1")), list(past.outputs("r1"))


def test_a_journal_that_was_cut_off_is_refused_wherever_it_was_cut(folder: StateFolder) -> None:
    path = written(folder)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 4096 * 3), 100, 5000, len(whole) - 1, len(whole) - 4096):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError, match=r"procflow\.db"):
            Store.open(folder)
        assert path.read_bytes() == whole[:size]


def test_a_flipped_byte_is_refused_or_harmless_in_every_recorded_result(folder: StateFolder) -> None:
    path = written(folder)
    whole, right = path.read_bytes(), {o.item: o.ref for o in read_all(folder)[2]}
    chance = random.Random(7)
    refused = 0
    for _ in range(60):
        broken = bytearray(whole)
        broken[chance.randrange(100, len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        try:
            Store.open(folder).close()
            assert all(ref == right[""] for ref in (o.ref for o in read_all(folder)[2]))
        except StoreError:
            refused += 1
    assert refused > 5


def test_side_files_of_a_removed_journal_do_not_leak_into_a_new_one(folder: StateFolder) -> None:
    write_until_killed(folder, "old", 5)
    assert (folder.path / "procflow.db-wal").stat().st_size > 0
    folder.db.unlink()
    with Store.open(folder) as store:
        store.begin(RunRecord("new", "p"))
    assert [r["run_id"] for r in rows(folder, "runs")] == ["new"]


odd_numbers = st.one_of(
    st.floats(), st.integers(-(2**63), 2**63 - 1), st.sampled_from([-0.0, math.inf, -math.inf, True, np.float64(0.5)])
)


@example([0.0, 1, 2.0], "\0")
@given(st.lists(odd_numbers, min_size=3, max_size=3), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_seal_holds_for_whatever_sqlite_gives_back(numbers: list[Any], text: str) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        install(db)
        db.execute("CREATE TABLE t(a REAL, b INTEGER, c REAL, d TEXT, e TEXT)")
        row = (numbers[0], numbers[1], numbers[2], np.str_(text), None)
        db.execute("INSERT INTO t VALUES (?,?,?,?,?)", row)
        sql = sql_seal(("a", "b", "c", "d", "e"))
        assert db.execute(f"SELECT {sql} FROM t").fetchone() == (seal(*row),)
        assert seal(*db.execute("SELECT * FROM t").fetchone()) == seal(*row)


whole_numbers = st.integers(0, 2**53)
places = st.tuples(texts := st.text(max_size=5), texts, *[st.none() | texts] * 3)
numbers = st.floats() | st.sampled_from([-0.0, math.inf, -math.inf, 0])


@st.composite
def ended_well(draw: st.DrawFn) -> tuple[int, Any, ev.AttemptFinished]:
    seconds = [draw(numbers) for _ in range(5)]
    outputs = draw(
        st.dictionaries(st.text(max_size=3) | st.just(np.str_("n")), st.builds(Inline, st.binary()), max_size=3)
    )
    event = ev.AttemptFinished(
        *(
            seconds[0],
            draw(whole_numbers),
            draw(texts),
            "",
            draw(texts),
            draw(st.integers(1, 9)),
            "threads",
            "succeeded",
        ),
        *(seconds[1], Usage(seconds[2], seconds[3], draw(whole_numbers)), None, outputs),
        cost=seconds[4],
        count=draw(whole_numbers),
        role=draw(st.sampled_from(["member", "gate", "batch"])),
    )
    return draw(whole_numbers), draw(places), event


@given(ended_well())
def test_rows_of_attempts_that_succeeded_are_sealed_as_any_row_is(one: tuple[int, Any, ev.AttemptFinished]) -> None:
    row_id, place, event = one
    row, _ = plain_row(row_id, "r", place, event, *encode_refs(event.outputs))
    assert row[-1] == seal(*row[:-2], row[-2] and row[-2][:SEALED_OF_REF])
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        install(db)
        for table in _TABLES:
            db.execute(table)
        db.executemany(INSERT_PLAIN, [row])
        wrong = f"SELECT count(*) FROM step_executions WHERE seal IS NOT {expression(db, 'step_executions')}"
        assert db.execute(wrong).fetchone() == (0,)
        names, refs = db.execute("SELECT output_ref, refs FROM step_executions").fetchone()
        assert decode_refs(names, refs) == {storable(name): ref for name, ref in event.outputs.items()}
        kinds = "typeof(id), typeof(key), typeof(attempt), typeof(peak_rss_bytes), typeof(count)"
        assert set(db.execute(f"SELECT {kinds} FROM step_executions").fetchone()) == {"integer"}


def test_a_statement_for_many_rows_takes_no_more_values_than_every_sqlite_does() -> None:
    assert INSERT_PLAINS.count("?") <= 999


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_rows_are_all_written_however_many(store: Store, folder: StateFolder, count: int) -> None:
    keep(store, *[finished(key, outputs={"x": Inline(b"%d" % key)}) for key in range(count)])
    assert [decode_ref(row["refs"]) for row in rows(folder)] == [Inline(b"%d" % key) for key in range(count)]


def test_the_log_of_an_attempt_that_succeeded_follows_from_its_name(store: Store, folder: StateFolder) -> None:
    keep(store, finished(1, item="3/0-99", number=2), finished(2, status="failed", failure=BAD))
    assert [row["log"] for row in rows(folder)] == [None, "logs/a/1.log"]
    with History.open(folder) as past:
        assert [row.log for row in past.steps("r1")] == ["logs/a/3__0-99.2.log", "logs/a/1.log"]


def test_a_text_that_cant_be_decoded_is_told_as_damage(folder: StateFolder) -> None:
    with Store.open(folder) as store:
        store.begin(RunRecord("r", "p"))
    with contextlib.closing(sqlite3.connect(folder.db)) as db, db:
        db.execute("UPDATE runs SET pipeline = CAST(x'70ff' AS TEXT)")
    with History.open(folder) as past, pytest.raises(StoreError, match=r"damaged.*procflow recover --state-dir"):
        past.runs()


PIECES = '{"c": {"\\u00e9": "1"}}'


def test_rows_of_fingerprints_are_sealed_as_any_row_is(folder: StateFolder) -> None:
    count = TOGETHER + 1
    labels, digests = ["é", *(f"s{i}" for i in range(1, count))], [f"xx:{i}" for i in range(count)]
    prints = Prints(labels, ["block"] * count, digests, [None] + [7] * (count - 1), ['{"code": "c"}'] * count, PIECES)
    with Store.open(folder) as store:
        store.begin(RunRecord("r", "p", prints=prints))
    first = (1 << 32) + 1
    since = [first, *[7] * (count - 1)]
    with contextlib.closing(sqlite3.connect(folder.db)) as db:
        install(db)
        sql = f"SELECT number, seal IS {expression(db, 'fingerprints')} FROM fingerprints"
        assert db.execute(sql).fetchall() == [(0, 1), (1, 1)]
        told = list(read_prints(db, "r"))
        every = [["block"] * count, digests, since, [{"code": "c"}] * count, [{"é": "1"}] * count]
        assert told == [*zip(labels, *every, strict=True)]
        assert read_digests(db, "r") == {(label, "block"): f"xx:{i}" for i, label in enumerate(labels)}
        db.execute("UPDATE fingerprints SET prints = 'damaged' WHERE number = 0")
        assert read_digests(db, "r") == {(labels[-1], "block"): digests[-1]}
        db.execute("DELETE FROM fingerprints WHERE number = 0")
        assert list(read_prints(db, "r")) == [(labels[-1], "block", digests[-1], 7, {"code": "c"}, {})]


def test_names_of_outputs_are_plain_text_whatever_they_were() -> None:
    assert type(storable(np.str_("n"))) is str


def test_seals_differ_where_rows_do() -> None:
    rows = [("a", 1), ("a", 2), ("b", 1), ("a", None), ("a", "1"), ("a1", None), ("", "a1"), (b"a", 1), ("a", 0.5)]
    assert len({seal(*row) for row in rows}) == len(rows)
