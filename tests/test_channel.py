"""Frames arrive whole and in order however they are cut, and garbage is never taken for a message."""

from __future__ import annotations

import itertools
import marshal
import os
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow import ref
from procflow.attempt import Attempt, Failed, Failure, Items, Progressed, Skipped, Succeeded, Usage
from procflow.call import StepCall
from procflow.executors import wire
from procflow.executors.channel import CHUNK_BYTES, HEADER, MAGIC, Inbox, Outbox, WorkerEnd, arrived_bytes, frame

quick = settings(deadline=None)
"""The machine may be busy with other tests; a slow example is no failure."""

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
messages = st.lists(st.lists(plain, min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    theirs, ours = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def arrive(data: bytes, cuts: list[int]) -> tuple[list[Any], Inbox]:
    """What an inbox makes of data that comes in pieces."""
    inbox, got = Inbox(), []
    reader, writer = os.pipe()
    try:
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            piece = data[start:end]
            while piece and not inbox.broken:
                piece = piece[os.write(writer, piece[:CHUNK_BYTES]) :]
                got += inbox.read(reader)
                while _readable(reader) and not inbox.broken:
                    got += inbox.read(reader)
    finally:
        os.close(reader)
        os.close(writer)
    return got, inbox


def resumed(stream: bytes, cuts: list[int]) -> list[Any]:
    """What arrives where the reader goes on behind whatever it can't understand."""
    ours, theirs = socket.socketpair()
    inbox = Inbox()
    got: list[Any] = []
    with ours, theirs:
        edges = sorted({0, *cuts, len(stream)})
        for start, end in itertools.pairwise(edges):
            theirs.sendall(stream[start:end])
            while _readable(ours.fileno()):
                got += inbox.read(ours.fileno())
                while inbox.broken:
                    got += inbox.resume()
    return got


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@quick
@given(messages, st.data())
def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut(sent: list[Any], data: st.DataObject) -> None:
    stream = b"".join(map(frame, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    got, inbox = arrive(stream, cuts)
    assert got == sent
    assert not inbox.broken


@quick
@given(messages, st.data())
def test_a_changed_bit_never_passes_for_a_message(sent: list[Any], data: st.DataObject) -> None:
    stream = bytearray(b"".join(map(frame, sent)))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= 1 << data.draw(st.integers(0, 7))
    got, inbox = arrive(bytes(stream), [])
    assert got == sent[: len(got)]
    assert len(got) < len(sent)
    assert inbox.broken


@quick
@given(st.binary(min_size=4).filter(lambda noise: noise[:4] != MAGIC))
def test_noise_is_seen_with_its_first_bytes(noise: bytes) -> None:
    _, inbox = arrive(noise, [])
    assert inbox.broken


@quick
@given(messages, messages, st.binary(min_size=4).filter(lambda noise: MAGIC[:1] not in noise), st.data())
def test_behind_noise_every_message_is_found_again(
    before: list[Any], behind: list[Any], noise: bytes, data: st.DataObject
) -> None:
    stream = b"".join(map(frame, before)) + noise + b"".join(map(frame, behind))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=4))
    assert resumed(stream, cuts) == [*before, *behind]


@quick
@given(messages, st.binary(max_size=20), st.booleans())
def test_what_a_head_without_a_body_swallowed_is_found_again(behind: list[Any], body: bytes, large: bool) -> None:
    frames = b"".join(map(frame, behind))
    tail = frame((b"x" * (CHUNK_BYTES if large else 0),))
    # A good head that asks for less than follows: what it takes for its body is the beginning of other messages.
    crc, length = 0xBAD, len(body) + len(frames) + len(tail)
    head = HEADER.pack(MAGIC, crc, length, (crc ^ length ^ length >> 32) & 0xFFFFFFFF)
    got = resumed(head + body + frames + tail, [])
    assert got[: len(behind)] == behind
    assert len(got) == len(behind) + 1


@quick
@given(messages, messages, st.data())
def test_behind_a_damaged_message_the_next_is_found(first: list[Any], behind: list[Any], data: st.DataObject) -> None:
    damaged = bytearray(frame(first[0]))
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    assert resumed(bytes(damaged) + b"".join(map(frame, behind)), []) == behind


@quick
@given(messages, st.data())
def test_a_body_that_stops_too_early_breaks_the_channel(sent: list[Any], data: st.DataObject) -> None:
    whole = marshal.dumps(sent[0])
    body = whole[: data.draw(st.integers(0, len(whole) - 1))]
    crc = crc32(body)
    got, inbox = arrive(HEADER.pack(MAGIC, crc, len(body), crc ^ len(body)) + body, [])
    assert inbox.broken
    assert got == []


@pytest.mark.parametrize("size", [CHUNK_BYTES - 100, CHUNK_BYTES, CHUNK_BYTES + 1, 3 << 20])
def test_large_messages_pass_a_reader_that_is_slow(pair: tuple[int, int], size: int) -> None:
    ours, theirs = pair
    sent = (1, os.urandom(size), "end")
    outbox, inbox, got = Outbox(), Inbox(), []
    outbox.send(ours, frame(sent))
    outbox.send(ours, frame((2,)))
    while len(got) < 2:
        outbox.flush(ours)
        got += inbox.read(theirs)
    assert got == [sent, (2,)]
    assert outbox.empty


def test_the_parent_never_blocks_on_a_worker_that_does_not_read(pair: tuple[int, int]) -> None:
    outbox = Outbox()
    assert not outbox.send(pair[0], frame((bytes(8 << 20),)))
    assert not outbox.send(pair[0], frame((1,)))
    assert not outbox.flush(pair[0])


def test_the_end_of_the_stream_is_told(pair: tuple[int, int]) -> None:
    os.close(os.dup(pair[1]))
    first, second = socket.socketpair()
    second.close()
    inbox = Inbox()
    assert inbox.read(first.fileno()) == []
    assert inbox.closed
    first.close()


def test_what_was_sent_and_not_read_is_seen(pair: tuple[int, int]) -> None:
    outbox, inbox = Outbox(), Inbox()
    assert arrived_bytes(pair[1]) == 0
    for _ in range(2):
        assert outbox.send(pair[0], frame((1, 2)))
    assert arrived_bytes(pair[1]) == 2 * len(frame((1, 2)))
    assert len(inbox.read(pair[1])) == 2
    assert arrived_bytes(pair[1]) == 0


def test_threads_of_a_step_may_send_at_the_same_time() -> None:
    first, second = socket.socketpair()
    end = WorkerEnd(second.detach())
    threads = [threading.Thread(target=lambda n=n: [end.send((n, k, "x" * 5000)) for k in range(50)]) for n in range(4)]
    for thread in threads:
        thread.start()
    inbox, got = Inbox(), []
    while len(got) < 200:
        assert select.select([first], [], [], 10)[0]
        got += inbox.read(first.fileno())
    assert not inbox.broken
    for n in range(4):
        assert [m[1] for m in got if m[0] == n] == list(range(50))
    for thread in threads:
        thread.join(10)
    first.close()
    os.close(end.fd)
    # Else a child that a later test forks would close that descriptor, whoever has it then.
    end.fd = -1


def test_values_that_only_look_plain_are_made_plain() -> None:
    class Name(str):
        pass

    class Level(int):
        pass

    got, _ = arrive(
        frame((Name("x"), {Name("k"): Level(3)}, [1.5, None, True], numpy.int64(4), numpy.float32(0.5))), []
    )
    assert got == [("x", {"k": 3}, (1.5, None, True), 4, 0.5)]
    assert [type(part) for part in got[0]] == [str, dict, tuple, int, float]


# Attempts and outcomes as messages

refs = st.recursive(
    st.builds(ref.Inline, st.binary(max_size=20), st.lists(st.binary(max_size=9), max_size=2).map(tuple)),
    lambda inner: st.builds(ref.ListOf, st.lists(inner, max_size=3).map(tuple)),
    max_leaves=4,
)
indices = st.builds(range, st.integers(0, 50), st.integers(0, 60)) | st.lists(
    st.integers(0, 99), unique=True, max_size=5
).map(lambda i: tuple(sorted(i)))
failure = st.builds(
    Failure,
    st.sampled_from(("error", "timeout", "oom")),
    st.text(max_size=9),
    st.text(max_size=9),
    kinds=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    exit_code=st.none() | st.integers(-64, 255),
    exception=st.none() | st.binary(max_size=9),
    item=st.text(max_size=5),
)
usage = st.builds(Usage, st.floats(0, 9), st.floats(0, 9), st.integers(0, 1 << 40))
number = st.floats(0, 1e6)
failures = st.lists(st.tuples(st.integers(0, 99), failure), max_size=2).map(tuple)
outcomes = st.one_of(
    st.builds(
        Succeeded,
        st.integers(0, 1 << 40),
        st.dictionaries(st.text(max_size=5), refs, max_size=3),
        usage,
        indices,
        st.none() | refs,
        failures,
        st.lists(st.tuples(refs, st.integers(0, 99)), max_size=2).map(tuple),
        st.dictionaries(st.text(max_size=5), number, max_size=2),
        number,
    ),
    st.builds(Failed, st.integers(0, 99), failure, usage),
    st.builds(Skipped, st.integers(0, 99), usage),
    st.builds(Progressed, st.integers(0, 99), indices, st.none() | refs, failures, st.none() | number),
)


@quick
@given(outcomes)
def test_every_outcome_survives_the_wire(outcome: Any) -> None:
    (message,), _ = arrive(frame(wire.plain_outcome(outcome)), [])
    back = wire.outcome_from(message)
    assert type(back) is type(outcome)
    # An empty range is as good as no indices at all.
    if isinstance(outcome, (Succeeded, Progressed)) and not outcome.indices:
        assert isinstance(back, (Succeeded, Progressed))
        assert list(back.indices) == []
        outcome, back = replace(outcome, indices=()), replace(back, indices=())
    assert back == outcome


@quick
@given(st.dictionaries(st.text(max_size=5), refs, max_size=3), indices, refs)
def test_an_attempt_survives_the_wire(values: dict[str, ref.Ref], which: Any, page: ref.Ref) -> None:
    call = StepCall("transform", "0", "a", "m:f")
    attempt = Attempt(7, call, 3, values, Items(page, 5, which), ("x", "y"), 2, None, True, "run")
    (message,), _ = arrive(frame(wire.plain_run(attempt, b"d")), [])
    assert wire.values_from(message[3]) == values
    assert wire.items_from(message[4]) == Items(page, 5, which)
    assert message[0] == wire.RUN
    assert message[5:] == (3, "run", True, 2, ("x", "y"), b"", (), (), False, False)


def test_what_nobody_reads_any_more_stays_unread() -> None:
    theirs, ours = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    outbox = Outbox()
    assert outbox.send(ours, b"some")
    os.close(theirs)
    # What lay there before the reader's end still does.
    assert arrived_bytes(ours) == 4
    assert outbox.send(ours, b"more"), "there is no use in waiting"
    assert not outbox.empty
    os.close(ours)
