"""Attempt and its outcomes: what goes to an executor and what comes back.

An executor gives exactly one final outcome (``Succeeded``, ``Skipped``, ``Failed``, ``Lost``, or ``Returned`` for one
that was queued and never began) for every attempt it took, whatever the step did; ``Started`` and ``Progressed`` may
come before. All records are plain data: no live exception, no user object. Three kinds of bad end stay apart: the
step *failed* (it raised), the attempt was *lost* (its worker died or was killed), procflow itself broke
(``InternalError``, never an outcome).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Literal, Protocol

from procflow.call import StepCall, nothing
from procflow.passive import passive
from procflow.ref import Ref

__all__ = [
    "Attempt",
    "AttemptLog",
    "Cause",
    "Failed",
    "FailedMember",
    "Failure",
    "Items",
    "Lost",
    "Outcome",
    "Progressed",
    "Returned",
    "Skipped",
    "Started",
    "Succeeded",
    "Usage",
]

Cause = Literal["error", "timeout", "idle", "crash", "oom", "pressure", "cancelled", "spawn"]
"""Why an attempt ended badly. ``error``: the step raised. ``timeout``, ``idle``: its clock ran out. ``crash``: its
worker died by itself. ``oom``: over its own memory limit. ``pressure``: the run as a whole was short of memory.
``cancelled``: stopped because its block no longer needs it. ``spawn``: no worker.
"""


@passive(frozen=True, slots=True)
class Failure:
    """Why an attempt failed, as data.

    ``traceback`` is text with the user's frames only (procflow's own are cut), causes first. ``user_place`` is
    ``file:line`` of the deepest frame in the user's code. ``exception`` is the pickled exception where it could be
    pickled *and* rebuilt in the worker, else None; nobody but the Python API opens it. ``kinds`` are the names of
    the exception's classes, most specific first, without BaseException and object. ``item`` is a short repr of the
    map's item that raised; empty outside maps and where its worker died. ``retry_after_s`` is the pause that a service
    asked for.
    """

    cause: Cause
    type: str
    message: str
    traceback: str = ""
    user_place: str = ""
    kinds: tuple[str, ...] = ()
    signal: int | None = None
    exit_code: int | None = None
    peak_rss_bytes: int | None = None
    exception: bytes | None = None
    item: str = ""
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@passive(frozen=True, slots=True)
class FailedMember:
    """What a merge by ``module:name`` gets in place of the value of a member that failed.

    ``name`` is the member's, or the index of a map's item; ``type`` and ``message`` are those of its exception, as in
    ``Failure``. It counts as false, so that ``[row for row in rows if row]`` leaves it out.
    """

    name: str
    type: str
    message: str
    cause: Cause

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"{self.name} failed: {self.type}: {self.message}"


@passive(frozen=True, slots=True)
class Usage:
    """What an attempt used: seconds on the monotonic clock, CPU seconds of the worker, peak memory.

    ``alone_s`` is how long it would have taken by itself, where that is not ``wall_s``: threads that wait for the
    interpreter's lock take longer than their work. ``began`` is when the step's code began (``time.perf_counter``, which
    all processes of a Linux machine share), None where that is not known.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    alone_s: float | None = None
    began: float | None = None

    @property
    def work_s(self) -> float:
        """Seconds of work in it."""
        return self.wall_s if self.alone_s is None else self.alone_s


@passive(frozen=True, slots=True)
class Items:
    """The items of a map that one attempt works on, in order.

    ``page`` opens to a list; item ``i`` of the map is ``page[i - first]``. ``indices`` are the items to run.
    """

    page: Ref
    first: int
    indices: range | tuple[int, ...]

    @property
    def label(self) -> str:
        """``7`` for one item, ``0-99`` for a run of items, ``3,8,9`` otherwise."""
        i = self.indices
        if len(i) == 1:
            return str(i[0])
        if i[-1] - i[0] == len(i) - 1:
            return f"{i[0]}-{i[-1]}"
        return ",".join(map(str, i[:20])) + (",..." if len(i) > 20 else "")


class AttemptLog(Protocol):
    """Where an attempt's output goes; executors write, the store implements it. Never blocks, never raises."""

    def write(self, data: bytes) -> None:
        """Append raw output of the step (stdout and stderr, in order of arrival)."""

    def record(self, level: int, logger: str, message: str) -> None:
        """Append one record of Python's ``logging``; ``level`` as there (20 is INFO)."""

    def close(self) -> None:
        """No more output will come."""


@passive(frozen=False, slots=True, eq=False)
class Attempt:
    """One try of a task, ready to run.

    ``key`` is unique in the run and is what outcomes and ``kill`` name. ``number`` counts from 1. ``values`` holds a
    ref for every name that the call reads. ``items`` is set for the body of a map. ``labels`` names the items of
    enclosing maps, outermost first. ``report_each`` asks for a ``Progressed`` after every item, not only now and then.
    ``about`` is what a worker must know to keep a result by itself (``storing/worker_tail.py``): path, label, item, number,
    executor, role, and when the run began on the monotonic clock; empty where nobody needs that. ``open_log`` makes the log
    when there is something to be written; most attempts print nothing.
    """

    key: int
    call: StepCall
    number: int = 1
    values: Mapping[str, Ref] = field(default_factory=dict)
    items: Items | None = None
    labels: tuple[str, ...] = ()
    cpus: int = 1
    memory_bytes: int | None = None
    report_each: bool = False
    run_id: str = ""
    log: AttemptLog | None = None
    about: tuple[Any, ...] = ()
    open_log: Callable[[Attempt], AttemptLog] | None = None

    def its_log(self) -> AttemptLog | None:
        """The log to write to, made now if it is the first time; None where nobody keeps one."""
        if self.log is None and self.open_log is not None:
            self.log = self.open_log(self)
        return self.log

    def close_log(self) -> None:
        """No more output will come."""
        if self.log is not None:
            self.log.close()

    @property
    def item_label(self) -> str:
        """``3/0-99``: items of enclosing maps and of this one; empty outside maps."""
        if self.items is None:
            return "/".join(self.labels) if self.labels else ""
        return "/".join((*self.labels, self.items.label))


@passive(frozen=True, slots=True)
class Started:
    """The attempt's code begins now: sent only where a worker had to be started first, or where the attempt was queued
    behind another, so that clocks are fair. One that was queued may also end without it.
    """

    key: int


@passive(frozen=True, slots=True)
class Returned:
    """The attempt was queued behind another and never began: it is given back, and nothing of it was run."""

    key: int


@passive(frozen=True, slots=True)
class Progressed:
    """A sign of life from a running attempt.

    For a map: ``indices`` are items that ended well since the last report, ``chunk`` opens to the list of their
    values, ``failures`` are items that raised. ``done`` and ``total`` come from ``step.progress``; a bare heartbeat
    has nothing.
    """

    key: int
    indices: range | tuple[int, ...] = ()
    chunk: Ref | None = None
    failures: tuple[tuple[int, Failure], ...] = ()
    done: float | None = None
    total: float | None = None


@passive(frozen=True, slots=True)
class Succeeded:
    """The step returned. ``outputs`` are the published values; for a map's items see ``Progressed``.

    ``pages`` is what an ``expand`` call returns: refs of lists of items, each with its length.
    """

    key: int
    outputs: Mapping[str, Ref] = field(default_factory=nothing)
    usage: Usage = Usage()
    indices: range | tuple[int, ...] = ()
    chunk: Ref | None = None
    failures: tuple[tuple[int, Failure], ...] = ()
    pages: tuple[tuple[Ref, int], ...] = ()
    metrics: Mapping[str, float] = field(default_factory=nothing)
    cost: float = 0.0


@passive(frozen=True, slots=True)
class Skipped:
    """The step's ``when`` was false, so nothing was run."""

    key: int
    usage: Usage = Usage()


@passive(frozen=True, slots=True)
class Failed:
    """The step raised, or what it returned could not be taken; its worker lives on."""

    key: int
    failure: Failure
    usage: Usage = Usage()


@passive(frozen=True, slots=True)
class Lost:
    """The attempt's worker is gone: it died (cause ``crash``) or was killed on request (the cause given to ``kill``).

    ``culprit`` is the index of the item that was running, where known.
    """

    key: int
    failure: Failure
    usage: Usage = Usage()
    culprit: int | None = None


Outcome = Started | Returned | Progressed | Succeeded | Skipped | Failed | Lost
