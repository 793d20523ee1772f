"""Attempt logs: where bytes go, what the cap keeps, and that nothing ever raises."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow.attempt import AttemptLog
from procflow.storing.attempt_log import LINE_BYTES, FileLog, LogFolder, LogLine, log_path, plain_text


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_silent_attempt_leaves_nothing(tmp_path: Path) -> None:
    log: AttemptLog = LogFolder(tmp_path).open("fetch/sales", "", 1)
    log.write(b"")
    log.close()
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_stored_as_they_came(tmp_path: Path) -> None:
    raw = bytes(range(256)) * 3
    log = LogFolder(tmp_path).open("fetch/sales", "3/0-99", 2)
    for i in range(0, len(raw), 100):
        log.write(raw[i : i + 100])
    log.close()
    assert files(tmp_path) == ["logs/fetch__sales/3__0-99.2.log"]
    assert log.path.read_bytes() == raw
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(log.path.parent.stat().st_mode) == 0o700


def test_records_are_lines_with_time_level_and_logger(tmp_path: Path) -> None:
    log = LogFolder(tmp_path).open("a", "", 1)
    log.record(20, "nightly", "read 3 files")
    log.record(35, "root", "odd \ud800")
    log.close()
    first, second = log.path.read_text().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO nightly: read 3 files", first)
    assert second.endswith(r" LEVEL35 root: odd \ud800")


@pytest.mark.parametrize(
    "text",
    [
        "../../x",
        "a\0b",
        "/etc/passwd",
        "é",
        "x" * 400,
        "a b",
        ".hidden",
        "..",
        "",
        "a\nb",
        "0,1,2,...",
        "fetch/../../x",
    ],
)
def test_a_label_or_item_never_leaves_its_folder(tmp_path: Path, text: str) -> None:
    log = LogFolder(tmp_path / "run").open(text or "x", text, 1)
    (tmp_path / "run").mkdir()
    log.write(b"x")
    log.close()
    (found,) = files(tmp_path)
    assert re.fullmatch(r"run/logs/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,120}/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,120}", found)


@given(st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=2, max_size=2, unique=True))
def test_two_attempts_share_a_file_only_where_slashes_are_underscores(pair: list[tuple[str, str]]) -> None:
    (a, i), (b, j) = pair
    if log_path(a, i, 1) == log_path(b, j, 1):
        assert (a.replace("/", "__"), i.replace("/", "__")) == (b.replace("/", "__"), j.replace("/", "__"))


def capped(tmp_path: Path, parts: list[bytes], cap: int) -> bytes:
    shutil.rmtree(tmp_path / "logs", ignore_errors=True)
    log = LogFolder(tmp_path, cap_bytes=cap).open("a", "", 1)
    for part in parts:
        log.write(part)
        assert not part or log.path.stat().st_size <= cap
    log.close()
    return log.path.read_bytes() if log.path.exists() else b""


@settings(deadline=None)
@given(parts=st.lists(st.binary(max_size=70), max_size=12), cap=st.integers(2, 64))
def test_the_cap_keeps_head_and_tail_and_counts_the_rest(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], cap: int
) -> None:
    whole = b"".join(parts)
    kept = capped(tmp_path_factory.getbasetemp(), parts, cap)
    if len(whole) <= cap:
        assert kept == whole
        return
    head, tail = cap // 2, cap - cap // 2
    note = f"\n[procflow: {len(whole) - cap} bytes dropped here, above the cap of {cap}]\n".encode()
    assert kept == whole[:head] + note + whole[-tail:]


def test_a_second_session_appends_to_the_log_of_the_first(tmp_path: Path) -> None:
    for text in (b"first\n", b"second\n"):
        log = LogFolder(tmp_path, cap_bytes=10).open("a", "", 1)
        log.write(text)
        log.close()
    assert log.path.read_bytes() == b"first\nsecond\n"
    log = LogFolder(tmp_path, cap_bytes=4).open("a", "", 1)
    log.write(b"0123456789")
    log.close()
    assert log.path.read_bytes().startswith(b"first\nsecond\n01\n[procflow: 6 bytes dropped")
    assert log.path.read_bytes().endswith(b"]\n89")


def test_a_full_disk_drops_output_and_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LogFolder(tmp_path)
    log = folder.open("a", "", 1)
    log.write(b"kept")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    log.write(b"lost")
    monkeypatch.undo()
    log.write(b"also lost")
    log.record(20, "x", "y")
    log.close()
    assert log.path.read_bytes() == b"kept"
    assert folder.dropped_bytes >= len(b"lost" + b"also lost")
    assert folder.trouble is not None
    assert "No space left" in folder.trouble
    assert str(log.path) in folder.trouble


def test_a_run_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path / "gone")
    log = folder.open("a", "", 1)
    log.write(b"x")
    log.record(20, "x", "y")
    log.close()
    assert not (tmp_path / "gone").exists()
    assert folder.trouble is not None


def test_a_symbolic_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "logs" / "a").mkdir(parents=True)
    (tmp_path / "logs" / "a" / "1.log").symlink_to(tmp_path / "canary")
    folder = LogFolder(tmp_path)
    folder.open("a", "", 1).write(b"x")
    assert not (tmp_path / "canary").exists()
    assert folder.trouble is not None


def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    folder = LogFolder(tmp_path)
    for i in range(20):
        log = folder.open("a", str(i), 1)
        log.write(b"x")
        log.close()
    assert set(os.listdir("/proc/self/fd")) == before


def heard(tmp_path: Path, cap: int = 1 << 20) -> tuple[FileLog, list[LogLine]]:
    lines: list[LogLine] = []
    return LogFolder(tmp_path, cap_bytes=cap, on_line=lines.append).open("a", "7", 2), lines


def test_lines_are_told_whole_and_safe_to_show(tmp_path: Path) -> None:
    log, lines = heard(tmp_path)
    log.write(b"one\ntw")
    log.write(b"o\r\n\x1b[31mred\x1b[0m \x1b]0;title\x07\x08\xff\xe2\x80\xae\n")
    log.record(30, "x", "careful\nsecond")
    log.write(b"last without end")
    log.close()
    assert [(line.level, line.text) for line in lines] == [
        (None, "one"),
        (None, "two"),
        (None, "red \\x08\\xff\\u202e"),
        (30, "careful"),
        (30, "second"),
        (None, "last without end"),
    ]
    assert (lines[0].label, lines[0].item, lines[0].number) == ("a", "7", 2)


def test_a_line_without_end_is_told_in_pieces(tmp_path: Path) -> None:
    log, lines = heard(tmp_path)
    for _ in range(10):
        log.write(b"x" * 5000)
        assert len(log._partial) <= LINE_BYTES
    log.close()
    assert sum(len(line.text) for line in lines) == 50_000
    assert max(len(line.text) for line in lines) <= LINE_BYTES


def test_a_flood_is_not_told_beyond_the_head(tmp_path: Path) -> None:
    log, lines = heard(tmp_path, cap=1000)
    for i in range(1000):
        log.write(b"line %d\n" % i)
    log.close()
    assert 10 < len(lines) < 120


def test_a_callback_that_raises_is_not_asked_again(tmp_path: Path) -> None:
    asked = []

    def broken(line: LogLine) -> None:
        asked.append(line)
        raise ValueError("no terminal")

    folder = LogFolder(tmp_path, on_line=broken)
    log = folder.open("a", "", 1)
    log.write(b"1\n2\n")
    log.close()
    assert len(asked) == 1
    assert "no terminal" in (folder.trouble or "")
    assert log.path.read_bytes() == b"1\n2\n"


@given(st.binary())
def test_told_text_can_drive_no_terminal(data: bytes) -> None:
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", plain_text(data))


def test_an_attempt_that_says_nothing_costs_next_to_nothing(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path)
    best = min(timed(folder) for _ in range(5))
    assert best / 1000 < 20e-6  # a system call or a path would show; bench_store.py has the figure


def timed(folder: LogFolder) -> float:
    begun = time.perf_counter()
    for _ in range(1000):
        folder.open("a", "1", 1).close()
    return time.perf_counter() - begun
