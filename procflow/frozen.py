"""Frozen: the dataclasses that a run makes by the ten thousand, frozen for the type checker alone.

A frozen dataclass sets each of its fields through ``object.__setattr__``, which costs eight times as much as a plain class with
slots: a dozen records of one step come to 8 us. So whoever writes to such a record is stopped by mypy, which takes this
for ``dataclasses.dataclass``, and not as the program runs. They compare and hash by their fields, as frozen ones do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass as plain
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["dataclass"]

T = TypeVar("T")

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool, slots: bool, eq: bool = True) -> Callable[[type[T]], type[T]]:
        """As the one of the standard library, without the check of every assignment."""
        wanted: dict[str, Any] = {"slots": slots, "eq": eq, "unsafe_hash": frozen and eq}
        return plain(**wanted)
