"""Trace: a run in the trace event format of Chrome, which Perfetto opens, written as it is read.

A worker is a track (``tid``) and a session of the run a group of tracks (``pid``). An attempt is a slice on its worker's track,
from when it was handed out to when its result was there, with its parts inside: ``start worker`` or ``send``, ``work``,
``receive``. Blocks are slices of tracks of their own, since several of one block may be open at once (``b`` and ``e`` events).
Memory, cores and running tasks are counters; kills and retries are instants. Slices of a track never overlap without one
being inside the other: where clocks disagree, the later one is cut. Times are microseconds on the run's axis.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from procflow.plaintext import shortened
from procflow.report.chains import give_lanes
from procflow.report.facts import Block, Facts, Try, read_facts
from procflow.storing.history import History, RunRow

__all__ = ["events", "write_trace"]

Event = dict[str, Any]
BLOCKS_TID = 0
LEAST_US = 1.0
MOST_COUNTS = 20_000
"""So many values of the counter of running tasks at most; beyond, it tells every n-th change."""


class Writes(Protocol):
    """What a trace is written to."""

    def write(self, text: str, /) -> int: ...


def write_trace(past: History, run: RunRow, file: Writes) -> None:
    """Write the trace of a run, event by event. OSError where the file can't be written, StoreError as for reports."""
    facts = read_facts(past, run)
    about = {"run": run.run_id, "pipeline": run.pipeline, "status": run.status, "started": run.started}
    head = json.dumps({"displayTimeUnit": "ms", "otherData": {**about, "missing": facts.missing}})
    file.write(head[:-1] + ', "traceEvents": [\n')
    lead = ""
    for event in events(facts):
        file.write(lead + json.dumps(event, separators=(",", ":")))
        lead = ",\n"
    file.write("\n]}\n")


def events(facts: Facts) -> Iterator[Event]:
    """All events: names of tracks first, then slices in the order in which attempts began, blocks, counters."""
    lanes = give_lanes(facts)
    tids = _tids(facts)
    yield from _names(facts, lanes, tids)
    ends: dict[tuple[int, int], float] = {}
    for each in facts.tries:
        track = tids[_track(each)]
        yield from _attempt(each, track, ends)
    for number, block in enumerate(facts.blocks):
        yield from _block(block, number)
    yield from _counters(facts)


def _track(each: Try) -> tuple[int, str, int]:
    """What a track stands for: a worker, or a lane where workers are not known."""
    return (each.session, each.executor if each.worker else "", each.worker or each.lane)


def _tids(facts: Facts) -> dict[tuple[int, str, int], tuple[int, int]]:
    """Group and track of each worker: known workers first, then lanes."""
    known = sorted({_track(each) for each in facts.tries}, key=lambda t: (t[0], not t[1], t[1], t[2]))
    tids: dict[tuple[int, str, int], tuple[int, int]] = {}
    counts: Counter[int] = Counter()
    for track in known:
        counts[track[0]] += 1
        tids[track] = (track[0] + 1, counts[track[0]])
    return tids


def _names(facts: Facts, lanes: list[str], tids: dict[tuple[int, str, int], tuple[int, int]]) -> Iterator[Event]:
    several = len(facts.sessions) > 1
    for place, session in enumerate(facts.sessions):
        name = shortened(facts.run.pipeline, 100) + (f", session {session.number}" if several else "")
        yield _meta("process_name", place + 1, 0, {"name": name})
        yield _meta("thread_name", place + 1, BLOCKS_TID, {"name": "run"})
    for (_, executor, number), (pid, tid) in tids.items():
        name = f"worker {number}" if executor else f"lane {lanes[number]}"
        yield _meta("thread_name", pid, tid, {"name": name})
        yield _meta("thread_sort_index", pid, tid, {"sort_index": tid})


def _meta(name: str, pid: int, tid: int, args: dict[str, Any]) -> Event:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": args}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def _attempt(each: Try, track: tuple[int, int], ends: dict[tuple[int, int], float]) -> Iterator[Event]:
    pid, tid = track
    # A slice begins when the one before it is over, whatever the clocks say.
    start = max(_us(each.start), ends.get(track, 0.0))
    end = max(_us(each.end), start + LEAST_US)
    ends[track] = end
    item = f" {shortened(each.item, 60)}" if each.item else ""
    args: dict[str, Any] = {"step": shortened(each.name, 200), "path": each.path, "status": each.status}
    more = {
        "item": shortened(each.item, 200), "attempt": each.number, "cause": each.cause, "cpu_s": each.cpu_s or None,
        "peak_rss_bytes": each.peak_bytes or None, "items": each.count if each.item else None,
    }  # fmt: skip
    args |= {key: value for key, value in more.items() if value}
    name = shortened(each.name.rpartition("/")[2], 100) + item
    slice_ = {
        "name": name,
        "cat": each.status,
        "ph": "X",
        "ts": start,
        "dur": round(end - start, 1),
        "pid": pid,
        "tid": tid,
    }
    colour = {"failed": "terrible", "lost": "bad", "cancelled": "grey"}.get(each.status)
    yield slice_ | ({"cname": colour} if colour else {}) | {"args": args}
    yield from _parts(each, start, end, pid, tid)
    if each.wasted and each.status != "failed":
        said = "worker died" if each.cause == "crash" else f"killed: {each.cause or each.status}"
        yield _instant(said, end, pid, tid)
    if each.retried:
        yield _instant(f"retry after {each.cause or each.status}", end, pid, tid)


def _parts(each: Try, start: float, end: float, pid: int, tid: int) -> Iterator[Event]:
    """What lies inside a slice, cut to its borders."""
    if each.began < 0:
        return
    origin = _us(each.start)
    places = [start]
    for at in (_us(each.sent), _us(each.began), _us(each.began + each.wall_s) if each.wall_s else end - origin):
        places.append(min(end, max(places[-1], origin + at)))
    places.append(end)
    for name, at, until in zip(("start", "send", "work", "receive"), places, places[1:], strict=False):
        if until - at >= LEAST_US:
            yield {
                "name": name,
                "cat": "part",
                "ph": "X",
                "ts": at,
                "dur": round(until - at, 1),
                "pid": pid,
                "tid": tid,
            }


def _instant(name: str, at: float, pid: int, tid: int) -> Event:
    return {"name": name, "cat": "event", "ph": "i", "s": "t", "ts": at, "pid": pid, "tid": tid}


def _block(block: Block, number: int) -> Iterator[Event]:
    item = f" {shortened(block.item, 60)}" if block.item else ""
    name = shortened(block.label or "pipeline", 100) + item
    shared = {"name": name, "cat": "block", "id": number + 1, "pid": block.session + 1, "tid": BLOCKS_TID}
    start = _us(block.start)
    yield {**shared, "ph": "b", "ts": start, "args": {"kind": block.kind, "status": block.status, "path": block.path}}
    yield {**shared, "ph": "e", "ts": max(start, _us(block.end))}


def _counters(facts: Facts) -> Iterator[Event]:
    for place, session in enumerate(facts.sessions):
        pid = place + 1
        was: tuple[float, float] | None = None
        for at, rss_bytes, cpu_s in session.sampled.samples if session.sampled is not None else ():
            ts = _us(session.offset + at)
            yield {"name": "memory", "ph": "C", "ts": ts, "pid": pid, "tid": 0, "args": {"bytes": rss_bytes}}
            if cpu_s is None:
                continue
            if was is not None and at - was[0] > 0.1:
                cores = round(max(0.0, cpu_s - was[1]) / (at - was[0]), 2)
                yield {"name": "cores", "ph": "C", "ts": ts, "pid": pid, "tid": 0, "args": {"in use": cores}}
            if was is None or at - was[0] > 0.1:
                was = (at, cpu_s)
        yield from _running(facts, place)


def _running(facts: Facts, place: int) -> Iterator[Event]:
    changes = sorted(
        change for each in facts.tries if each.session == place for change in ((each.start, 1), (each.end, -1))
    )
    every = -(-len(changes) // MOST_COUNTS)
    count = 0
    for number, (at, change) in enumerate(changes):
        count += change
        if number % every == 0 or number == len(changes) - 1:
            yield {
                "name": "running tasks",
                "ph": "C",
                "ts": _us(at),
                "pid": place + 1,
                "tid": 0,
                "args": {"tasks": count},
            }
