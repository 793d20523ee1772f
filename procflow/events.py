"""Events: one frozen record per thing that happens in a run.

The scheduler makes them, the engine stamps and stores them, and store, progress and reports all read the same
records. ``at`` is seconds since the run began, on the monotonic clock. ``path`` is the declared position (``0.2``),
``label`` the names on the way (``fetch/fetch_sales``), ``item`` the items of enclosing maps and its own (``3/17``;
empty outside maps).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from procflow.attempt import Failure, Usage
from procflow.passive import passive
from procflow.ref import Ref

__all__ = [
    "AttemptFinished",
    "AttemptStarted",
    "BlockFinished",
    "BlockStarted",
    "Event",
    "ItemsDone",
    "Role",
    "RunFinished",
    "RunStarted",
    "Status",
    "StepFinished",
    "StepProgress",
]

Status = Literal["succeeded", "failed", "skipped", "cancelled"]
"""How a step, a block or an attempt ended. A run may also be ``partial`` (tolerated failures) or ``timed_out``."""
Role = Literal["member", "gate", "expand", "merger", "batch"]
"""What a task is for: a declared step; a block's condition, a map's items, a block's merge; some items of a map."""
RunStatus = Literal["succeeded", "partial", "failed", "timed_out", "cancelled"]


@passive(frozen=True, slots=True)
class RunStarted:
    at: float
    run_id: str
    pipeline: str
    steps: int


@passive(frozen=True, slots=True)
class AttemptStarted:
    """An attempt was handed to an executor. ``key`` joins it with its end; ``role`` says what the task is for.

    ``memory_bytes`` is what was reserved for it, if anything was.
    """

    at: float
    key: int
    path: str
    label: str
    item: str
    number: int
    executor: str
    role: Role = "member"
    memory_bytes: int | None = None


@passive(frozen=True, slots=True)
class AttemptFinished:
    """An attempt ended. ``status`` is lost where its worker died or was killed; another attempt follows in ``retry_in_s``.

    ``outputs`` are the refs it published. For items of a map: one chunk under the name ``""`` with the values of
    ``indices``, and ``count`` items finished. ``pages`` are the items that an expand found.
    """

    at: float
    key: int
    path: str
    label: str
    item: str
    number: int
    executor: str
    status: Literal["succeeded", "skipped", "failed", "lost", "cancelled"]
    started_at: float
    usage: Usage = Usage()
    failure: Failure | None = None
    outputs: Mapping[str, Ref] = field(default_factory=dict)
    retry_in_s: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    cost: float = 0.0
    count: int = 1
    role: Role = "member"
    indices: range | tuple[int, ...] = ()
    pages: tuple[tuple[Ref, int], ...] = ()


@passive(frozen=True, slots=True)
class ItemsDone:
    """Items of a batch that still runs ended well; ``chunk`` opens to the list of their values."""

    at: float
    key: int
    path: str
    label: str
    item: str
    indices: range | tuple[int, ...]
    chunk: Ref


@passive(frozen=True, slots=True)
class StepProgress:
    """``step.progress(done, total)``, or items done in a map."""

    at: float
    path: str
    label: str
    item: str
    done: float
    total: float | None


@passive(frozen=True, slots=True)
class StepFinished:
    """A leaf step reached its final state. ``reason`` says why it was skipped or cancelled.

    ``kept`` steps succeeded in an earlier session of the run (or in the run it retries) and were not run. For an
    item of a map it is sent only where the item did not succeed.
    """

    at: float
    path: str
    label: str
    item: str
    status: Status
    attempts: int
    produced: tuple[str, ...] = ()
    failure: Failure | None = None
    reason: str = ""
    tolerated: bool = False
    kept: bool = False


@passive(frozen=True, slots=True)
class BlockStarted:
    """A block opened. ``members`` is their number; a map's is known only once its items are."""

    at: float
    path: str
    label: str
    item: str
    kind: str
    members: int
    join: str


@passive(frozen=True, slots=True)
class BlockFinished:
    """A block reached its end: its result record.

    ``work_s`` is the sum of its tasks' times, ``saved_s`` what running them together saved (never negative). ``kept`` says
    that all of it was done in an earlier session of the run, or in the run it builds on.
    """

    at: float
    path: str
    label: str
    item: str
    kind: str
    status: Status
    members: int
    successful_count: int
    failed_count: int
    wall_s: float
    work_s: float
    saved_s: float
    cost: float
    produced: tuple[str, ...] = ()
    failure: Failure | None = None
    reason: str = ""
    attempt: int = 1
    retry_in_s: float | None = None
    kept: bool = False


@passive(frozen=True, slots=True)
class RunFinished:
    """The run is over. ``failures`` counts steps and items that failed, ``tolerated`` those among them that were allowed."""

    at: float
    run_id: str
    status: RunStatus
    failures: int
    tolerated: int
    wall_s: float
    work_s: float
    reason: str = ""


Event = (
    RunStarted
    | AttemptStarted
    | AttemptFinished
    | ItemsDone
    | StepProgress
    | StepFinished
    | BlockStarted
    | BlockFinished
    | RunFinished
)
