"""Absent: an item of a map that failed in the run whose results are used, where the map itself is not to run.

``--from`` and its like keep a map as it was, gaps included: what is not there fails at once, and the map's own policy tolerates it
as it did then. Used by name, in workers only; it never runs anything of the user's.
"""

from __future__ import annotations

from procflow.errors import ProcflowError

__all__ = ["FailedBefore", "failed_before"]


class FailedBefore(ProcflowError):
    """The item has no result, and is not to run now."""


def failed_before() -> None:
    """Always raises."""
    raise FailedBefore("it failed in the run whose results are used, and its map is not to run now")
