"""Passive: the decorator of records that nobody changes and that a run makes by the ten thousand.

To the type checker it is ``dataclass``, so ``frozen=True`` holds there. At run time the guard is left out: a frozen dataclass
sets each field through ``object.__setattr__``, which makes a record of thirty fields four times as dear. Owns no record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["passive"]

if TYPE_CHECKING:
    from dataclasses import dataclass as passive
else:
    from dataclasses import dataclass

    def passive(*, frozen=True, **options):
        """``dataclass(frozen=True, ...)`` for the type checker, with the same equality and hash but no guard at run time."""
        return dataclass(unsafe_hash=frozen, **options)
