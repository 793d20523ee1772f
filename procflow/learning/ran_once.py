"""Ran once: what steps teach that ran once in each run, column by column, since a pipeline may have very many of them. Pure.

A column is made of the rows of some steps in one run. Steps that the same columns know are gone through together, so that
what is chosen for them, and what they share, is found once for all. The rest of what runs teach is ``known.py``'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from procflow.learning.lessons import Once

__all__ = ["Part", "middles", "parts_of", "rising", "together"]


class Part(NamedTuple):
    """Some steps in one run: ``at`` is the place of the run, ``fits`` how well they fit, all alike."""

    at: int
    executor: str
    fits: int
    labels: Sequence[str]
    once: Once
    rows: Mapping[str, int]
    """The row of each label; also of others."""

    def columns(self, labels: Sequence[str]) -> list[Sequence[int]]:
        """The columns after the labels, for these alone and in their order."""
        once, rows = self.once, self.rows
        if labels == once.labels:
            return list(once[1:])
        order = [rows[label] for label in labels]
        return [[column[row] for row in order] for column in once[1:]]


def parts_of(
    at: int,
    executor: str,
    once: Once,
    fits: int,
    among: Iterable[tuple[Collection[str], int]],
    without: Collection[str],
) -> Iterator[Part]:
    """The columns of a run, in parts that fit alike: steps that are ``among`` some do so by as much more; not those ``without``."""
    rows = dict(zip(once.labels, range(len(once.labels)), strict=True))
    labels = [label for label in once.labels if label not in without] if without else once.labels
    parts = [(labels, fits)]
    for some, more in among:
        if some:
            parts = [
                split
                for labels, fits in parts
                for split in (
                    ([label for label in labels if label in some], fits + more),
                    ([label for label in labels if label not in some], fits),
                )
            ]
    return (Part(at, executor, fits, labels, once, rows) for labels, fits in parts if labels)


def together(parts: Iterable[Part]) -> list[tuple[list[str], list[Part]]]:
    """The steps that are in the same parts, with those."""
    groups: list[tuple[list[str], list[Part]]] = []
    for part in parts:
        own = set(part.labels)
        groups = [
            split
            for labels, found in groups
            for split in (
                ([label for label in labels if label in own], [*found, part]),
                ([label for label in labels if label not in own], found),
            )
            if split[0]
        ]
        own.difference_update(*[labels for labels, found in groups if found[-1] is part])
        if own:
            groups.append(([label for label in part.labels if label in own], [part]))
    return groups


def rising(columns: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rows of some columns, each in rising order."""
    return list(map(sorted, zip(*columns, strict=True)))


def middles(rows: Sequence[Sequence[int]]) -> list[float]:
    """The median in seconds of each row of microseconds; rows rise and are of one length."""
    count = len(rows[0])
    half = count // 2
    if count % 2:
        return [row[half] / 1e6 for row in rows]
    return [(row[half - 1] / 1e6 + row[half] / 1e6) / 2 for row in rows]
