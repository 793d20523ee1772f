"""The packets of one worker: what it has not claimed can be taken back, and what it prints goes to the right attempt."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow.attempt import Attempt
from procflow.call import StepCall
from procflow.executors.channel import PACKET_BYTES, PLACES, WorkerEnd, packed
from procflow.executors.line import FIRST, Line
from procflow.executors.payload import Payload

CALL = StepCall("transform", "0", "a", "m:f")
PAYLOAD = Payload(CALL, b"", b"", b"rest")


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def put(line: Line, *keys: int) -> None:
    for key in keys:
        line.waiting.append((Attempt(key, CALL), PAYLOAD))
        line.send([packed((2, key))])
        line.sent += 1


def worker_of(line: Line) -> WorkerEnd:
    return WorkerEnd(-1, os.dup(line.claim_fd), line.packets_fd)


def test_what_the_worker_has_not_claimed_is_taken_back_and_what_it_claimed_is_not(line: Line) -> None:
    worker = worker_of(line)
    put(line, 1, 2, 3)
    assert worker.claim() == (2, 1)
    assert [attempt.key for attempt in line.take_back()] == [2, 3]
    assert line.take_back() == []
    assert [attempt.key for attempt, _ in line.waiting] == [1]
    assert line.sent == 1
    worker._forsake()


def test_what_is_sent_behind_what_was_taken_back_is_what_the_worker_claims(line: Line) -> None:
    worker = worker_of(line)
    for round in range(3 * PLACES):
        put(line, *range(100 * round, 100 * round + 5))
        assert worker.claim() == (2, 100 * round)
        line.waiting.popleft()
        line.sent -= 1
        assert len(line.take_back()) == 4
    worker._forsake()


def test_what_was_to_run_first_is_not_taken_back_and_it_is_known_whether_it_began(line: Line) -> None:
    worker = worker_of(line)
    for claims in (True, False):
        line.send([packed((2, 1))])
        put(line, 2, 3)
        if claims:
            assert worker.claim() == (2, 1)
        assert [attempt.key for attempt in line.take_back()] == [2, 3]
        assert line.first_unclaimed() is not claims
    worker._forsake()


def test_a_line_that_is_hung_up_ends_the_worker_and_gives_nothing_back(line: Line) -> None:
    worker = worker_of(line)
    line.hang_up()
    assert worker.claim() is None
    assert line.take_back() == []
    worker._forsake()


def test_a_full_line_of_the_largest_packets_is_claimed_in_order(line: Line) -> None:
    worker = worker_of(line)
    packets = [packed((2, key, bytes(PACKET_BYTES - 20))) for key in range(line.room + 1)]
    line.send(packets)
    assert [worker.claim()[1] for _ in packets] == list(range(PLACES))  # type: ignore[index]
    worker._forsake()


def test_a_worker_can_write_neither_packets_nor_claims(line: Line) -> None:
    for fd in (line.claim_fd, line.packets_fd):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, bytes(8))


def test_what_was_not_sent_is_dropped_with_what_is_taken_back(line: Line) -> None:
    put(line, 1)
    line.waiting.append((Attempt(2, CALL), PAYLOAD))
    assert line.unsent
    assert line.find(2) is not None
    assert line.find(3) is None
    assert [attempt.key for attempt in line.take_back()] == [1, 2]
    assert not line.waiting


def heard(line: Line, pieces: list[bytes]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for piece in pieces:
        for key, part in line.parted(piece):
            found[key] = found.get(key, b"") + part
    rest = line.remainder()
    last = line._writer
    found[last] = found.get(last, b"") + rest
    return {key: part for key, part in found.items() if part}


printed = st.lists(st.binary(max_size=40) | st.just(FIRST) | st.just(b"a" + FIRST * 3 + b"b"), min_size=1, max_size=6)


@given(printed, st.lists(st.integers(1, 30), max_size=40))
def test_output_is_parted_by_its_marks_however_it_is_cut(texts: list[bytes], sizes: list[int]) -> None:
    line = Line()
    stream = b"".join((line.mark + key.to_bytes(8, "little") if key else b"") + t for key, t in enumerate(texts))
    pieces, at = [], 0
    for size in sizes:
        pieces.append(stream[at : at + size])
        at += size
    pieces.append(stream[at:])
    assert heard(line, pieces) == {key: text for key, text in enumerate(texts) if text}
    line.close()


def test_an_attempt_sent_without_a_mark_prints_under_its_own_name(line: Line) -> None:
    list(line.parted(line.mark + (7).to_bytes(8, "little") + b"seven"))
    line.head_sent()
    assert list(line.parted(b"mine")) == [(0, b"mine")]
