"""Step records: what each declared step of a run came to, made only for those that somebody looks at.

A step that simply succeeded at its first attempt, as nearly all do where there are many, is a tuple until it is asked for.
This file hears of no event and decides nothing: ``result.Recorder`` writes, readers see a mapping of records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from procflow.call import nothing
from procflow.passive import passive

__all__ = ["Began", "BlockRecord", "Entry", "Once", "StepRecord", "StepRecords", "record_of"]


@passive(frozen=True, slots=True)
class BlockRecord:
    """The result record of a block; times in seconds."""

    kind: str
    status: str
    members: int
    successful_count: int
    failed_count: int
    wall_s: float
    work_s: float
    saved_s: float
    cost: float
    produced: tuple[str, ...] = ()


@dataclass(slots=True)
class StepRecord:
    """What one declared step came to, all its items and attempts together.

    ``status`` is ``running`` until the step ends. ``attempts`` counts tries, ``lost`` those whose worker died; ``wall_s`` is
    the sum of attempts' times, ``final_s`` of those that no other attempt followed. ``count`` is the number of items (1 for a
    plain step) that ended well, ``failures`` of those that did not. ``metrics`` holds the last value of each. A block's record
    also counts the hidden tasks that decide its ``when``, list its items or merge its results.
    """

    label: str
    path: str
    kind: str = "task"
    status: str = "running"
    attempts: int = 0
    lost: int = 0
    wall_s: float = 0.0
    work_s: float = 0.0
    final_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0
    cost: float = 0.0
    count: int = 0
    failures: int = 0
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=nothing)
    block: BlockRecord | None = None


Began = str
"""Of a step whose first attempt began, and of which no more is known: its path."""
Once = tuple[str, float, float, float, int, float, int]
"""Of a step whose first attempt ended well, and of which no more is known: path, ``wall_s``, ``work_s``, ``cpu_s``,
``peak_rss_bytes``, ``cost`` and ``count``."""
Entry = StepRecord | Once | Began


def record_of(label: str, entry: Entry) -> StepRecord:
    """The record that an entry stands for."""
    if isinstance(entry, StepRecord):
        return entry
    if isinstance(entry, str):
        return StepRecord(label, entry, attempts=1)
    path, wall_s, work_s, cpu_s, peak_rss_bytes, cost, count = entry
    return StepRecord(
        label, path, "task", "succeeded", 1, 0, wall_s, work_s, wall_s, cpu_s, peak_rss_bytes, cost, count
    )


class StepRecords(Mapping[str, StepRecord]):
    """Records by label; one that was looked at stays the same object."""

    __slots__ = ("_entries",)

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, label: str) -> StepRecord:
        entry = self._entries[label]
        if not isinstance(entry, StepRecord):
            entry = self._entries[label] = record_of(label, entry)
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, label: object) -> bool:
        return label in self._entries

    def __repr__(self) -> str:
        return repr(dict(self))
