"""Leaves: the StepCall of each kind of leaf step. Pure.

One function a kind; what each kind expects in ``options`` is documented in ``procflow/steps/``. What is left in a call
are constants and lookups of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from procflow.call import NOTHING, Lookup, StepCall
from procflow.compiling.build import Binder
from procflow.compiling.surface import input_tree
from procflow.compiling.template import shell_word
from procflow.model import AnyStep, Map, Merge, Shell, Split, Transform

__all__ = ["Common", "call_of", "merge_options"]


class Common(TypedDict):
    """What every call has; these are fields of ``StepCall``."""

    path: str
    name: str
    outputs: tuple[str, ...] | Literal["*"]
    when: str | None
    constants: Mapping[str, Any]
    folder: str | None


def call_of(step: AnyStep, common: Common, bind: Binder) -> StepCall:
    """The call of a leaf step, or of a map's function."""
    if isinstance(step, Transform):
        args, kwargs, params = _arguments(step, bind)
        return StepCall(
            "transform", common["path"], common["name"], step.function, args, kwargs, common["outputs"], NOTHING,
            common["when"], common["constants"], params, common["folder"], None, NOTHING,
        )  # fmt: skip
    if isinstance(step, Map):
        args, kwargs, params = _arguments(step, bind)
        return StepCall(
            "transform", function=step.function, args=(Lookup(step.item_name), *args), kwargs=kwargs, params=params,
            item_name=step.item_name, **common,
        )  # fmt: skip
    if isinstance(step, Shell):
        return _shell(step, common, bind)
    if isinstance(step, Merge):
        return _merge(step, common, bind)
    assert isinstance(step, Split)
    return _split(step, common, bind)


def _arguments(step: AnyStep, bind: Binder) -> tuple[tuple[Any, ...], Mapping[str, Any], Mapping[str, Any]]:
    """Positional arguments, keyword arguments (with the params among them), and the params alone."""
    if not step.inputs and not step.params:
        return (), NOTHING, NOTHING
    tree = bind(input_tree(step.inputs), "inputs")
    params = (bind(step.params, "params") or {}) if step.params else NOTHING
    if not isinstance(tree, dict):
        return tuple(tree or ()), dict(params) if params else NOTHING, params
    for key in tree.keys() & params.keys():
        bind.note(f"{key!r} is an input too: a function takes it once", "params", key, hint="keep one of them")
    return (), {**tree, **params}, params


def _shell(step: Shell, common: Common, bind: Binder) -> StepCall:
    options = {
        # In a line for the shell a constant stands as one quoted word, as values do.
        "command": bind(step.command, "command", text=shell_word if isinstance(step.command, str) else str),
        "env": bind(step.env, "env") or {},
        "cwd": bind(step.cwd, "cwd") or common["folder"],
        "stdin": bind(step.stdin, "stdin"),
        "parse": step.parse,
        "ok_codes": step.ok_codes,
    }
    return StepCall("shell", options=options, **common)


def merge_options(strategy: Any, score: Any) -> tuple[Any, dict[str, Any]]:
    """The function of a merge (None for a named strategy) and its options."""
    if isinstance(strategy, str) and ":" not in strategy:
        return None, {"strategy": strategy, "score": score}
    return strategy, {"strategy": "custom"}


def _merge(step: Merge, common: Common, bind: Binder) -> StepCall:
    tree = bind(input_tree(step.inputs), "inputs")
    bind.refuse_secrets(tree, "inputs")
    if not isinstance(tree, dict):
        for i, name in enumerate(step.inputs):
            if name in tuple(step.inputs)[:i]:
                bind.note(f"{name!r} is listed twice", "inputs", i, hint="each value is merged once")
        tree = {str(name): lookup for name, lookup in zip(step.inputs, tree or (), strict=False)}
    function, options = merge_options(step.merge or "update", step.score)
    return StepCall("merge", function=function, args=(tree,), options=options, **common)


def _split(step: Split, common: Common, bind: Binder) -> StepCall:
    args, kwargs, params = _arguments(step, bind)
    if isinstance(step.inputs, dict):
        value = args = tuple(kwargs[key] for key in step.inputs if key in kwargs)
        kwargs = {key: tree for key, tree in kwargs.items() if key not in step.inputs}
    else:
        value = args
    bind.refuse_secrets(value, "inputs")
    if len(value) != 1:
        bind.note("a split divides one value", "inputs", hint="name one; a function takes more under params: ${name}")
    if step.outputs == "*":
        bind.note("a split publishes its parts in order, so each needs a name", "outputs", hint="list the names")
    named = step.strategy if isinstance(step.strategy, str) and ":" not in step.strategy else None
    into = step.into or (len(step.outputs) if isinstance(step.outputs, tuple) else None)
    options = {"strategy": named or "custom", "into": into}
    function = None if named else step.strategy
    return StepCall("split", function=function, args=args, kwargs=kwargs, options=options, params=params, **common)
