"""Leaves: the StepCall of each kind of leaf step. Pure.

One function a kind; what each kind expects in ``options`` is documented in ``procflow/steps/``. References are bound
already by ``bind``, so what is left in a call are constants and lookups of values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from procflow.call import Lookup, StepCall
from procflow.errors import Loc
from procflow.model import AnyStep, Map, Merge, Shell, Split, Transform
from procflow.names import input_tree

__all__ = ["call_of"]

Bind = Callable[[Any, Loc], Any]


def call_of(
    step: AnyStep, name: str, path: str, bind: Bind, loc: Loc, folder: str | None,
    outputs: tuple[str, ...] | None, when: str | None, constants: Mapping[str, Any],
) -> StepCall:  # fmt: skip
    """The call of a leaf step (or of a map's function), with references bound."""
    shared: dict[str, Any] = {
        "path": path, "name": name, "outputs": "*" if outputs is None else outputs, "when": when, "constants": constants,
        "folder": folder,
    }  # fmt: skip
    if isinstance(step, Transform):
        return _function(step.function, step, bind, loc, shared)
    if isinstance(step, Map):
        call = _function(
            step.function, step, bind, loc, {**shared, "item_name": step.item_name}, Lookup(step.item_name)
        )
        return call
    if isinstance(step, Shell):
        return _shell(step, bind, loc, shared)
    if isinstance(step, Merge):
        return _merge(step, bind, loc, shared)
    assert isinstance(step, Split)
    return _split(step, bind, loc, shared)


def _arguments(step: AnyStep, bind: Bind, loc: Loc) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Positional arguments, keyword arguments (with the params among them), and the params alone."""
    tree = bind(input_tree(step.inputs), (*loc, "inputs"))
    params = bind(step.params, (*loc, "params")) or {}
    if isinstance(tree, dict):
        return (), {**tree, **params}, params
    return tuple(tree or ()), dict(params), params


def _function(function: Any, step: AnyStep, bind: Bind, loc: Loc, shared: dict[str, Any], *first: Any) -> StepCall:
    args, kwargs, params = _arguments(step, bind, loc)
    return StepCall("transform", function=function, args=(*first, *args), kwargs=kwargs, params=params, **shared)


def _shell(step: Shell, bind: Bind, loc: Loc, shared: dict[str, Any]) -> StepCall:
    options = {
        "command": bind(step.command, (*loc, "command")),
        "env": bind(step.env, (*loc, "env")) or {},
        "cwd": bind(step.cwd, (*loc, "cwd")) or shared["folder"],
        "stdin": bind(step.stdin, (*loc, "stdin")),
        "parse": step.parse,
        "ok_codes": step.ok_codes,
    }
    return StepCall("shell", options=options, **shared)


def _merge(step: Merge, bind: Bind, loc: Loc, shared: dict[str, Any]) -> StepCall:
    tree = bind(input_tree(step.inputs), (*loc, "inputs"))
    if not isinstance(tree, dict):
        tree = {str(name): lookup for name, lookup in zip(step.inputs, tree or (), strict=False)}
    named = step.merge if isinstance(step.merge, str) and ":" not in step.merge else None
    options: dict[str, Any] = {"strategy": named or "custom"}
    if named:
        options["score"] = step.score
    return StepCall("merge", function=None if named else step.merge, args=(tree,), options=options, **shared)


def _split(step: Split, bind: Bind, loc: Loc, shared: dict[str, Any]) -> StepCall:
    args, kwargs, params = _arguments(step, bind, loc)
    named: Literal["duplicate", "round_robin", "chunks"] | None = (
        step.strategy if step.strategy in ("duplicate", "round_robin", "chunks") else None
    )
    into = step.into or (len(shared["outputs"]) if shared["outputs"] != "*" else None)
    options = {"strategy": named or "custom", "into": into}
    function = None if named else step.strategy
    return StepCall("split", function=function, args=args, kwargs=kwargs, options=options, params=params, **shared)
