"""Values: what a closing block publishes, by moving refs. Pure."""

from __future__ import annotations

from procflow.attempt import (
    Failure,
)
from procflow.graph import MergeSpec
from procflow.ref import Element, Ref
from procflow.scheduling import mapping, merge
from procflow.scheduling.runs import MapRun, ScopeRun

__all__ = ["first_failure", "for_merger", "published"]


def first_failure(scope: ScopeRun) -> Failure:
    """The failure of the first failed member in declared order."""
    if isinstance(scope, MapRun) and scope.failures:
        return scope.failures[min(scope.failures)]
    for run in scope.members:
        if run.state == "failed" and run.failure is not None and not run.unit.tolerated:
            return run.failure
    return Failure("error", "NotEnough", scope.reason or "not enough members succeeded")


def for_merger(scope: ScopeRun) -> Ref:
    """What a merge by content gets: a mapping of members, or the list of a map's results.

    A function of the user's is told of members and items that failed (``FailedMember``); strategies by name work on
    the successes alone.
    """
    merger = scope.unit.merger
    own = merger is not None and merger.call.function is not None
    if isinstance(scope, MapRun):
        rows = mapping.results(scope)
        return merge.marked(rows, scope.failures) if own else rows
    if not own:
        return merge.collected((m.unit.name, m.published) for m in scope.members if m.state == "succeeded")
    known = Failure("error", "Failed", "")
    return merge.collected(
        (m.unit.name, m.published if m.state == "succeeded" else m.failure or known)
        for m in scope.members
        if m.state in ("succeeded", "failed")
    )


def published(scope: ScopeRun) -> dict[str, Ref]:
    """The block's values, by moving refs."""
    unit = scope.unit
    if isinstance(scope, MapRun):
        return _rows(scope, unit.merge)
    made = [m.published for m in scope.members if m.state == "succeeded"]
    failed = scope.members if scope.failed else ()
    failures = [(m.unit.name, m.failure) for m in failed if m.state == "failed" and m.failure is not None]
    names = merge.merged(unit.merge, made, failures)
    if isinstance(unit.kept, tuple):
        return {name: names[name] for name in unit.kept if name in names}
    return names


def _rows(scope: MapRun, spec: MergeSpec) -> dict[str, Ref]:
    rows = mapping.results(scope)
    assert spec.output is not None
    if spec.strategy == "collect_all":
        return {spec.output: rows, f"{spec.output}_errors": mapping.errors(scope.failures)}
    if spec.strategy == "first_success":
        return {spec.output: Element(rows, 0)} if scope.successes else {}
    return {spec.output: rows}
