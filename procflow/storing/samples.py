"""Samples: what the journal does not say about a run, for reports and traces, in two small files of the run's folder.

    samples.jsonl   a line for the beginning of each session (machine, limits, packages), then at most one a second:
                    memory and CPU of the run over time, and which worker each attempt went to
    graph.json      what the pipeline looked like when the run began

Nothing depends on them: a run goes on without them where they can't be written, and a report says what is missing. Both are
bounded, however long the run. Samples are ``[at, rss_bytes, cpu_s]``, where ``cpu_s`` is what the whole run has used so far.
Attempts are four 32-bit numbers each in base64, since there may be many thousands a second: key, worker, and when it was sent
and its code began, in units of 10 us since it was handed out (-1 where unknown).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from array import array
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from procflow.errors import StoreError
from procflow.events import AttemptFinished, Event, RunFinished
from procflow.machine import rss
from procflow.scheduling.actions import Measured
from procflow.secrets import masked
from procflow.showing.shape import Part, part_of, plain_of, shape_from
from procflow.storing.own_files import open_own
from procflow.storing.store_begin import utc_now

__all__ = ["GRAPH", "NAME", "Sampled", "Samples", "encoded", "packages", "read_graph", "read_samples", "sampled"]

NAME, GRAPH = "samples.jsonl", "graph.json"
WRITE_S = 1.0
GAP_S = 0.2
DOUBLED = 1000
"""After so many samples they are taken half as often."""
CPU_SHARE = 0.01
"""Looking up the CPU time of all processes takes at most this share of the time."""
MOST_BYTES = 16 << 20
"""So large the file may become by attempts; samples of memory go on."""
MOST_PACKAGES = 400
UNITS = 1e5
"""Units of time in a second."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


class Meter(Protocol):
    """What takes samples of memory; see ``engine.Meter``."""

    due: float

    def expect(self, memory_bytes: int | None) -> None: ...

    def measure(self) -> Measured: ...


class Samples:
    """Writes both files of one session; stands before a meter, which it asks, and listens to events.

    ``about`` is told at the head of the session, ``due`` is when the next sample should be taken. ``clock`` is the engine's.
    Never raises.
    """

    def __init__(
        self,
        folder: Path,
        meter: Meter,
        executors: Iterable[Any] = (),
        *,
        shape: Part | None = None,
        about: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter = meter
        self.due = meter.due
        self._clock = clock
        self._pools = [executor for executor in executors if hasattr(executor, "served")]
        self._fd = -1
        self._size = 0
        self._base = self._written = clock()
        self._skew = time.perf_counter() - self._base
        self._gap_s, self._taken = GAP_S, 0
        self._next = self._cpu_due = float("-inf")
        self._cpu_s: float | None = None
        self._samples: list[tuple[float, int, float | None]] = []
        self._peak = self._rss_bytes = 0
        # Of the attempts that ended since the last line, four numbers each.
        self._attempts: list[int] = []
        # Workers by pid, counted from 1; 0 is none.
        self._workers: dict[int, int] = {0: 0}
        with contextlib.suppress(OSError, StoreError):
            self._open(folder, shape, about or {})

    def _open(self, folder: Path, shape: Part | None, about: Mapping[str, Any]) -> None:
        if shape is not None:
            _write_whole(folder / GRAPH, masked(json.dumps(plain_of(shape))).encode())
        self._fd = open_own(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._size = os.fstat(self._fd).st_size
        # A line that a kill has torn ends here.
        self._write({"session": utc_now(), **about}, b"\n" if self._size else b"")

    # -- a meter for the engine --

    def expect(self, memory_bytes: int | None) -> None:
        """An attempt with this limit starts."""
        self._meter.expect(memory_bytes)
        self.due = self._meter.due

    def measure(self) -> Measured:
        """Take a sample, and keep it."""
        found = self._meter.measure()
        self.due = self._meter.due
        if self._fd >= 0:
            try:
                self._note(found.total_bytes)
            except Exception:
                self.close()  # whatever is wrong here must not end a night's work
        return found

    def begin(self) -> None:
        """The engine starts now: times count from here."""
        self._base = self._written = self._clock()
        self._skew = time.perf_counter() - self._base

    def _note(self, total_bytes: int) -> None:
        now = self._clock()
        self._peak = max(self._peak, total_bytes)
        if now >= self._next:
            self._take(now)
            if now - self._written >= WRITE_S:
                self._flush(now)

    def _take(self, now: float) -> None:
        cpu_s = None
        if now >= self._cpu_due:
            cpu_s, cost_s = self._cpu(), self._clock() - now
            self._cpu_due = now + cost_s / CPU_SHARE
        self._rss_bytes, self._peak = self._peak or self._rss_bytes, 0
        self._samples.append((round(now - self._base, 3), self._rss_bytes, cpu_s))
        self._taken += 1
        if self._taken % DOUBLED == 0:
            self._gap_s *= 2
        self._next = now + self._gap_s

    def _cpu(self) -> float:
        """CPU seconds of this run so far: of this process, of its workers and of what those started."""
        times = os.times()
        total = times.user + times.system + times.children_user + times.children_system
        total += sum(_cpu_of(pid) for pool in self._pools for pid in _families(pool.workers()))
        if self._cpu_s is None:
            self._cpu_s = total
        return round(max(0.0, total - self._cpu_s), 3)

    # -- an observer --

    def handle(self, event: Event) -> None:
        """Take one event."""
        self.handle_all((event,))

    def handle_all(self, events: Iterable[Event]) -> None:
        """Take events, in order."""
        if self._fd < 0:
            return
        if self._size < MOST_BYTES:
            self._ended([event for event in events if isinstance(event, AttemptFinished)])
        for event in events:
            if type(event) is RunFinished:
                now = self._clock()
                self._cpu_due = now
                self._take(now)
                self._flush(now)

    def _ended(self, ended: list[AttemptFinished]) -> None:
        served = [(0, 0.0)] * len(ended)
        for pool in self._pools:
            pop = pool.served.pop
            served = [pop(event.key, known) for event, known in zip(ended, served, strict=True)]
        workers, base, skew, numbers = self._workers, self._base, self._skew, self._attempts
        for event, (pid, sent) in zip(ended, served, strict=True):
            start, began = event.started_at + base, event.usage.began
            worker = workers.setdefault(pid, len(workers))
            after = -1 if began is None else int((began - skew - start) * UNITS)
            waited = int((sent - start) * UNITS) if worker else 0
            numbers += (event.key, worker, waited if waited > 0 else 0, after if after > 0 or began is None else 0)

    def _flush(self, now: float) -> None:
        self._written = now
        line: dict[str, Any] = {}
        if self._samples:
            line["samples"], self._samples = self._samples, []
        if self._attempts:
            line["attempts"], self._attempts = encoded(self._attempts), []
        if line:
            self._write(line)

    def _write(self, line: dict[str, Any], before: bytes = b"") -> None:
        try:
            data = before + json.dumps(line, separators=(",", ":")).encode() + b"\n"
            self._size += len(data)
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            self.close()

    def close(self) -> None:
        """Let the file go; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def encoded(numbers: list[int]) -> str:
    """Whole numbers as a line holds them: 32 bits each, those beyond as the largest."""
    try:
        data = array("i", numbers)
    except OverflowError:
        data = array("i", [min(number, 0x7FFFFFFF) for number in numbers])
    if sys.byteorder == "big":
        data.byteswap()
    return b64encode(data).decode("ascii")


def _write_whole(path: Path, data: bytes) -> None:
    fd = open_own(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.ftruncate(fd, 0)
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def _families(pids: Iterable[int]) -> Iterator[int]:
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += rss.children_of(pid)


def _cpu_of(pid: int) -> float:
    """CPU seconds of a process and of those of its children that it has waited for."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            # The name of a program may hold blanks and brackets; what follows the last bracket is regular.
            fields = file.read().rpartition(b")")[2].split(None, 15)
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) * _TICK_S if len(fields) > 14 else 0.0


@contextlib.contextmanager
def sampled(
    prepared: Any, folder: Path, meter: Meter, executors: Iterable[Any], clock: Callable[[], float]
) -> Iterator[Samples]:
    """Samples of a run that was prepared (``launch.Prepared``), open while it goes on."""
    about = about_machine(prepared.machine, prepared.memory_bytes, prepared.workers)
    samples = Samples(folder, meter, executors, shape=part_of(prepared.graph), about=about, clock=clock)
    try:
        yield samples
    finally:
        samples.close()


def packages() -> list[str]:
    """``name version`` of what is installed where this Python looks, by the names of folders: takes a millisecond."""
    found: set[str] = set()
    for place in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(place or "."):
                if name.endswith((".dist-info", ".egg-info")):
                    project, _, version = name.rpartition(".")[0].partition("-")
                    found.add(f"{project} {version.partition('-')[0]}".strip())
    return sorted(found, key=str.lower)[:MOST_PACKAGES]


def about_machine(machine: Any, memory_bytes: int, workers: int) -> dict[str, Any]:
    """What a session's head says: ``machine`` is a ``Machine``, ``memory_bytes`` the budget of the run."""
    system = os.uname()
    return {
        "cpus": machine.cpus,
        "memory_bytes": machine.memory_bytes,
        "budget_bytes": memory_bytes,
        "workers": workers,
        "platform": f"{system.sysname} {system.release} {system.machine}",
        "python": platform.python_version(),
        "packages": packages(),
    }


@dataclass(slots=True)
class Sampled:
    """What was sampled of one session: its head, ``samples`` (at, rss_bytes, cpu_s or None), and by attempt's key the worker
    (0 where there is none) with the seconds from its start until it was sent and until its code began (-1: unknown)."""

    about: dict[str, Any] = field(default_factory=dict)
    samples: list[tuple[float, int, float | None]] = field(default_factory=list)
    attempts: dict[int, tuple[int, float, float]] = field(default_factory=dict)


def read_samples(folder: Path) -> list[Sampled]:
    """What was sampled, a record a session; lines that are torn or make no sense are left out. Never raises."""
    sessions: list[Sampled] = []
    with contextlib.suppress(OSError), open(folder / NAME, "rb") as file:
        for data in file:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                _take_in(sessions, json.loads(data))
    return sessions


def _take_in(sessions: list[Sampled], line: dict[str, Any]) -> None:
    if "session" in line:
        sessions.append(Sampled(line))
    if not sessions:
        return
    for at, rss_bytes, cpu_s in line.get("samples", ()):
        sessions[-1].samples.append((float(at), int(rss_bytes), None if cpu_s is None else float(cpu_s)))
    data = array("i", b64decode(line.get("attempts", "")))
    if sys.byteorder == "big":
        data.byteswap()
    numbers = iter(data)
    for key, worker, sent, began in zip(numbers, numbers, numbers, numbers, strict=False):
        sessions[-1].attempts[key] = (worker, sent / UNITS, began / UNITS if began >= 0 else -1.0)


def read_graph(folder: Path) -> Part | None:
    """The pipeline's shape as the run began; None where that was not kept or can't be read."""
    try:
        return shape_from(json.loads((folder / GRAPH).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
