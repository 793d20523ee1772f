"""The face that every executor shows to the engine loop.

An executor runs attempts and reports outcomes; it decides nothing. Retries, back-off, timeouts, limits, merging
and history live in the parent, so they are the same on every executor. Each executor is driven from one thread:
the engine's. ``fileno()`` becomes readable when ``wait`` would return something, so that several executors and the
signal wakeup descriptor can be awaited together.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from procflow.attempt import Attempt, Cause, Outcome
from procflow.call import StepCall

__all__ = ["CAPABILITIES", "Capability", "Executor", "MemoryUse", "Metered", "Queueing"]

Capability = Literal["kill", "memory", "threads"]
CAPABILITIES: dict[str, str] = {
    "kill": "stop a running step (timeouts, on_error: stop, join: any)",
    "memory": "hold a step to its memory limit",
    "threads": "give a step its own number of BLAS threads",
}
"""What an executor may be able to do, in words for messages. A pipeline that asks for more is refused."""


class MemoryUse(NamedTuple):
    """What an executor's attempts hold now: bytes by key, and of all its workers together, idle ones too.

    ``room_bytes`` is the least that any attempt has left to its own limit.
    """

    rss_bytes: dict[int, int]
    total_bytes: int
    room_bytes: float


class Metered(Protocol):
    """What an executor with the capability ``memory`` can do beyond ``Executor``."""

    def memory(self, budget_bytes: int | None) -> MemoryUse:
        """Look at what is held now; ``budget_bytes`` is what all attempts of the run may hold together."""
        raise NotImplementedError

    def shed(self) -> None:
        """Let go of memory that no attempt needs: idle workers end."""


class Queueing(Protocol):
    """What an executor can do beyond ``Executor`` that takes attempts ahead of time."""

    depth: int
    """How many attempts may wait behind each that runs."""

    def queue(self, attempt: Attempt) -> None:
        """Take the attempt, to be run behind one that runs now.

        It ends like any other, or is given back by ``Returned`` where it has not begun: because its worker died, the one
        before it takes long, or it is to be killed. ``Started`` says that it began, unless it ended in the same moment. The
        core that the one before it held is its own.
        """
        raise NotImplementedError


class Executor(Protocol):
    """Where attempts run.

    Invariants, checked by ``tests/executor_contract.py``: every attempt taken by ``submit`` yields exactly one final
    outcome; an attempt's death, hang or bad pickle touches no other attempt; no call blocks without a deadline.
    """

    name: str
    slots: int
    capabilities: frozenset[str]

    @property
    def running(self) -> int:
        """How many attempts were taken and have not yet ended."""
        raise NotImplementedError

    def fileno(self) -> int:
        """A descriptor that is readable when ``wait`` has something to do or to return at once."""

    def deadline(self) -> float | None:
        """When ``wait`` must be called even though ``fileno`` is not readable (``time.monotonic``), because a clock
        runs there: a kill on its way, a worker that does not start. None where none does.
        """

    def watch(self, fd: int) -> None:
        """From now on ``wait`` also returns, perhaps with nothing, when ``fd`` is readable; the caller empties it."""

    def unwatch(self, fd: int) -> None:
        """Undo ``watch``, before the descriptor is closed."""

    def check(self, call: StepCall) -> None:
        """Raise the ``ExecutorError`` that ``submit`` would raise for this call; to be asked before the run."""

    def submit(self, attempt: Attempt) -> None:
        """Start the attempt. The caller keeps at most ``slots`` attempts out at any time.

        Raises ``ExecutorError`` naming step and argument where the call can't be pickled.
        """

    def kill(self, key: int, cause: Cause, grace_s: float) -> None:
        """Stop one attempt: ask, wait ``grace_s``, then kill its whole process tree; answers with ``Lost``.

        Returns at once. Harmless for a key that is already done. Without the capability ``kill`` the attempt runs on
        to its end and its real outcome is reported.
        """

    def wait(self, until: float | None) -> list[Outcome]:
        """Outcomes in order of arrival, at least one unless ``until`` (``time.monotonic``) came first.

        None waits for the next outcome; with nothing running it returns at once. Raises ``ExecutorError`` when
        workers can't be started any more.
        """

    def close(self) -> None:
        """Stop every worker, bounded in time; nothing of the run is left behind. Idempotent."""
