"""Transient: where ``transient: true`` can't work, told before the run. Pure.

A transient value is gone once its readers are done, at the latest with the run. So somebody in the run must read it, and it
can't be one of the run's results.
"""

from __future__ import annotations

from collections.abc import Collection

from procflow.compiling.build import Build
from procflow.graph import MapUnit, ScopeUnit, TaskUnit, Unit, walk
from procflow.model import Block, Map, StepBase, Subpipeline

__all__ = ["check_kind", "check_values"]


def check_kind(build: Build, step: StepBase, loc: tuple[int | str, ...]) -> None:
    """Blocks publish what their steps publish; a map of steps and a file do too."""
    if step.transient and (isinstance(step, Subpipeline) or (isinstance(step, Block) and not _calls(step))):
        kind = getattr(step, "type", "block")
        build.note(f"transient has no meaning for a {kind} step", (*loc, "transient"), "write it on the steps inside")


def _calls(step: Block) -> bool:
    return isinstance(step, Map) and step.function is not None


def check_values(build: Build, root: ScopeUnit, results: Collection[str]) -> None:
    """``results`` are names that must have a value after the run."""
    if "transient" not in build.has:
        return
    read: set[str] = set()
    for unit in walk(root, hooks=True):
        if isinstance(unit, TaskUnit):
            read.update(unit.reads)
        elif isinstance(unit, ScopeUnit):
            read.update(unit.imports.values())
    _check_members(build, root, read, results, False)


def _is_transient(unit: Unit) -> bool:
    body = unit.body if isinstance(unit, MapUnit) else unit
    return isinstance(body, TaskUnit) and body.call.transient


def _check_members(
    build: Build, scope: ScopeUnit, read: Collection[str], results: Collection[str], merged: bool
) -> None:
    merged = merged or (scope.merger is not None and scope.merger.call.kind != "fold")
    for unit in scope.members:
        if _is_transient(unit):
            why = _refusal(unit, read, results, merged)
            if why:
                build.note(f"step {unit.name!r} can't be transient: {why}", (*unit.loc, "transient"))
        elif isinstance(unit, MapUnit) and isinstance(unit.body, ScopeUnit):
            last = unit.body.members[-1] if unit.body.members else None
            if last is not None and _is_transient(last):
                build.note(
                    f"step {last.name!r} can't be transient: its value is the item's result, which the map hands on",
                    (*last.loc, "transient"),
                )
            _check_members(build, unit.body, read, results, merged)
        elif isinstance(unit, ScopeUnit):
            _check_members(build, unit, read, results, merged)


def _refusal(unit: Unit, read: Collection[str], results: Collection[str], merged: bool) -> str:
    if isinstance(unit, MapUnit) and unit.merger is not None:
        return ""  # what is transient are the items' results, and the merger reads them
    if unit.writes is None:
        return "only the run can tell which values it publishes (outputs: '*')"
    kept = [name for name in unit.writes if name in results]
    if kept:
        return f"{kept[0]!r} is named under show or keep or read by a hook, and must be there after the run"
    unread = [name for name in unit.writes if name not in read]
    if unread and not merged:
        return f"no step reads {unread[0]!r}, so it is a result of the run, and would be gone with the run"
    return ""
