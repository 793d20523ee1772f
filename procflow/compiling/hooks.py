"""Hooks: what a pipeline or a step runs once it has ended: ``on_success``, ``on_failure``, ``on_finish``. Pure.

A hook is a list of leaf steps, compiled into a block of its own that stands beside the graph: nothing waits for it, its
outputs are for its own later steps alone, and a failure in it stops nothing. Besides parameters, environment and secrets it
sees ``${run.status}`` and other facts of what has ended (``FACTS``); the hooks of a pipeline also see its values.
"""

from __future__ import annotations

from dataclasses import replace

from procflow.call import Lookup
from procflow.compiling.build import Build, Setting
from procflow.compiling.names import Scope
from procflow.compiling.subpipelines import Members, MembersOf
from procflow.errors import Loc
from procflow.graph import HookEvent, Hooks, ScopeUnit, TaskUnit, Unit
from procflow.model import Block, Pipeline, StepBase, Subpipeline

__all__ = ["FACTS", "hooks_of"]

FACTS = ("status", "reason", "step", "failures", "failure_count", "wall_s")
"""What ``${run....}`` means in a hook, besides ``id`` and ``name``."""
EVENTS: tuple[HookEvent, ...] = ("on_success", "on_failure", "on_finish")
TIMEOUT_S = 60.0
"""A hook step without a timeout of its own is stopped after this time, where its executor can."""


def hooks_of(
    build: Build, setting: Setting, declared: Pipeline | StepBase, scope: Scope, path: str, label: str, loc: Loc,
    members_of: MembersOf,
) -> Hooks:  # fmt: skip
    """The hooks of a pipeline or of a step that stands at ``loc``; ``scope`` is what they see."""
    found: list[tuple[HookEvent, ScopeUnit]] = []
    for event in EVENTS:
        steps = getattr(declared, event)
        if not steps:
            continue
        at: Loc = (*loc, event)
        known = len(build.problems)
        for i, step in enumerate(steps):
            if isinstance(step, (Block, Subpipeline)):
                kind = getattr(step, "type", "block")
                build.note(f"a hook is a single step, not a {kind}", (*at, i), "list its steps one by one")
            elif step.transient:
                build.note("transient has no meaning for a hook: no step reads its value", (*at, i, "transient"))
            elif step.cache:
                build.note("cache has no meaning for a hook: it tells how this run has ended", (*at, i, "cache"))
            elif any(getattr(step, inner) for inner in EVENTS):
                build.note("a hook has no hooks of its own", (*at, i))
        if len(build.problems) > known:
            continue
        facts = {**scope.facts.run, **{fact: Lookup("run", (fact,)) for fact in FACTS}}
        inside = Scope(replace(scope.facts, run=facts), scope.outer, scope.viewer, dict(scope.names), dict(scope.steps))
        inside.openers = set(scope.openers)
        where, named = f"{path}.{event}" if path else event, f"{label}/{event}" if label else event
        block = Members(steps, "sequence", where, named, at)
        defaults = setting.defaults.model_copy(update={"cache": None})
        alone = replace(setting, depth=setting.depth + 1, defaults=defaults, state={}, rates=())
        units = members_of(build, alone, block, inside)
        found.append((event, ScopeUnit(
            index=0, name=event, path=where, label=named, loc=at, kind="sequence", members=tuple(map(_bounded, units)),
            on_error="continue", writes=None,
        )))  # fmt: skip
    return tuple(found)


def _bounded(unit: Unit) -> Unit:
    """A hook that knows what has ended, and does not hang for ever."""
    assert isinstance(unit, TaskUnit)
    timeout_s = TIMEOUT_S if unit.timeout_s is None and unit.executor == "processes" else unit.timeout_s
    return replace(unit, reads=tuple(dict.fromkeys((*unit.reads, "run"))), timeout_s=timeout_s)
