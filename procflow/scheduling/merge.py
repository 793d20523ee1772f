"""Merge: members' outputs into the values of a block, by moving refs only. Pure.

Always in declared order, never in finishing order. Merges that need to see content (``best_quality``, ``combine_outputs``, a
user's function) are tasks of their own and run in a worker, so that they can neither block nor kill the parent.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence

from procflow.attempt import FailedMember, Failure
from procflow.graph import MergeSpec
from procflow.ref import Inline, ListOf, MappingOf, Ordered, Ref

__all__ = ["as_value", "collected", "marked", "merged"]

MAX_MESSAGE = 1000

Published = Mapping[str, Ref]


def as_value(published: Published) -> Ref:
    """One ref for what a member published: its only value, or a mapping of several."""
    if len(published) == 1:
        return next(iter(published.values()))
    return MappingOf(tuple(published.items()))


def collected(members: Iterable[tuple[str, Published | Failure]]) -> MappingOf:
    """Member name to value, for merges by content; members that published nothing are left out.

    A failure in place of what a member published becomes a ``FailedMember``.
    """
    return MappingOf(tuple((name, _member(name, given)) for name, given in members if given))


def _member(name: str, given: Published | Failure) -> Ref:
    return _pickled(_marker(name, given)) if isinstance(given, Failure) else as_value(given)


def _pickled(value: object) -> Inline:
    return Inline(pickle.dumps(value, protocol=5))


def marked(rows: Ordered, failures: Mapping[int, Failure]) -> Ordered:
    """The results of a map with a ``FailedMember`` in the place of each item that failed."""
    if not failures:
        return rows
    indices = tuple(sorted(failures))
    markers = _pickled([_marker(str(i), failures[i]) for i in indices])
    return Ordered((*rows.chunks, (indices, markers)))


def _marker(name: str, failure: Failure) -> FailedMember:
    return FailedMember(name, failure.type, failure.message[:MAX_MESSAGE], failure.cause)


def merged(spec: MergeSpec, made: Sequence[Published], failures: Sequence[tuple[str, Failure]]) -> dict[str, Ref]:
    """The values that a block publishes.

    ``made`` is what each success published, ``failures`` are the members that failed, both in declared order.
    """
    if spec.strategy == "collect_all":
        assert spec.output is not None
        errors = [{"step": name, "type": f.type, "message": f.message, "cause": f.cause} for name, f in failures]
        return {
            spec.output: ListOf(tuple(as_value(published) for published in made if published)),
            f"{spec.output}_errors": _pickled(errors),
        }
    if spec.strategy == "first_success":
        assert spec.output is not None
        return next(({spec.output: as_value(published)} for published in made if published), {})
    names: dict[str, Ref] = {}
    for published in made:
        names.update(published)
    return {spec.output: MappingOf(tuple(names.items()))} if spec.output is not None else names
