"""Values: what a closing block publishes, by moving refs. Pure."""

from __future__ import annotations

from procflow import mapping, merge
from procflow.attempt import (
    Failure,
)
from procflow.graph import MergeSpec
from procflow.ref import Element, Ref
from procflow.runs import MapRun, ScopeRun

__all__ = ["first_failure", "for_merger", "published"]


def first_failure(scope: ScopeRun) -> Failure:
    """The failure of the first failed member in declared order."""
    if isinstance(scope, MapRun) and scope.failures:
        return scope.failures[min(scope.failures)]
    for run in scope.members:
        if run.state == "failed" and run.failure is not None and not run.unit.tolerated:
            return run.failure
    return Failure("error", "NotEnough", scope.reason or "not enough members succeeded")


def _pairs(scope: ScopeRun) -> list[tuple[str, dict[str, Ref]]]:
    return [(m.unit.name, m.published) for m in scope.members if m.state == "succeeded"]


def for_merger(scope: ScopeRun) -> Ref:
    """What a merge by content gets: a mapping of members, or the list of a map's results."""
    return mapping.results(scope) if isinstance(scope, MapRun) else merge.collected(_pairs(scope))


def published(scope: ScopeRun) -> dict[str, Ref]:
    """The block's values, by moving refs."""
    unit = scope.unit
    if isinstance(scope, MapRun):
        return _rows(scope, unit.merge)
    failures = [(m.unit.name, m.failure) for m in scope.members if m.state == "failed" and m.failure is not None]
    names = merge.merged(unit.merge, _pairs(scope), failures)
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
