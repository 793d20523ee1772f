"""Merge: members' outputs into the values of a block, by moving refs only. Pure.

Always in declared order, never in finishing order. Merges that need to see content (``best_quality``, ``combine_outputs``, a
user's function) are tasks of their own and run in a worker, so that they can neither block nor kill the parent.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence

from procflow.attempt import Failure
from procflow.graph import MergeSpec
from procflow.ref import Inline, ListOf, MappingOf, Ref

__all__ = ["as_value", "collected", "merged"]

Published = Mapping[str, Ref]


def as_value(published: Published) -> Ref:
    """One ref for what a member published: its only value, or a mapping of several."""
    if len(published) == 1:
        return next(iter(published.values()))
    return MappingOf(tuple(published.items()))


def collected(members: Iterable[tuple[str, Published]]) -> MappingOf:
    """Member name to value, for merges by content; members that published nothing are left out."""
    return MappingOf(tuple((name, as_value(published)) for name, published in members if published))


def merged(
    spec: MergeSpec, members: Sequence[tuple[str, Published]], failures: Sequence[tuple[str, Failure]]
) -> dict[str, Ref]:
    """The values that a block publishes.

    ``members`` are the successes with what each published, ``failures`` the members that failed, both in declared order.
    """
    if spec.strategy == "collect_all":
        assert spec.output is not None
        errors = [{"step": name, "type": f.type, "message": f.message, "cause": f.cause} for name, f in failures]
        return {
            spec.output: ListOf(tuple(as_value(published) for _, published in members if published)),
            f"{spec.output}_errors": Inline(pickle.dumps(errors, protocol=5)),
        }
    if spec.strategy == "first_success":
        assert spec.output is not None
        return next(({spec.output: as_value(published)} for _, published in members if published), {})
    names: dict[str, Ref] = {}
    for _, published in members:
        names.update(published)
    return {spec.output: MappingOf(tuple(names.items()))} if spec.output is not None else names
