"""Kept: what an earlier session of a run (or the run that is retried) has done already. Pure.

The scheduler asks before it starts a task. Whoever answers has already left out every step whose fingerprint changed;
the scheduler itself leaves out those that read a value which is made anew, or depend on a step that runs again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Protocol

from procflow.events import Role
from procflow.passive import passive
from procflow.ref import Ref

__all__ = ["Kept", "KeptTask"]


@passive(frozen=True, slots=True)
class KeptTask:
    """A task that ended well: what it published, the items it found (an expand), or that its condition was false."""

    outputs: Mapping[str, Ref] = field(default_factory=dict)
    pages: tuple[tuple[Ref, int], ...] = ()
    skipped: bool = False


class Kept(Protocol):
    """Results of an earlier session. ``path`` is the declared position, ``item`` the items of enclosing maps (``3/17``)."""

    def task(self, path: str, item: str, role: Role) -> KeptTask | None:
        """The result of a task, None where it has to run."""

    def items(self, path: str, item: str) -> Sequence[tuple[range | tuple[int, ...], Ref]]:
        """Chunks of values of a map's items that are done, for maps that call a function."""

    def attempts(self, path: str, item: str) -> int:
        """How many attempts were made before, so that numbers and log names go on."""

    def consumed_s(self, path: str, item: str) -> float:
        """Seconds of its timeout that a block has used up."""
