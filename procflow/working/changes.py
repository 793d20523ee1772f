"""Changes: what an attempt changes of the pipeline's state, as refs beside its values.

A step's changes are outputs of their own (``@results``); those of a map's items lie beside their results in the chunk. The
file packs and hands on; which changes an attempt sees is the scheduler's, how they are joined ``state.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from procflow.call import StepCall
from procflow.ref import Ref, WithState
from procflow.state import MARK, State
from procflow.steps.fold import changes_of
from procflow.values import objects
from procflow.working import functions

__all__ = ["Made", "check", "pack_beside", "pack_chunk", "state_of"]

Made = Mapping[str, list[Any]]
"""Changes by key."""


_NONE_DECLARED = State({})
"""In a pipeline without state a change of it is a mistake, never lost in silence."""


def state_of(call: StepCall, values: Any) -> State | None:
    """What a step sees of the state, and where its changes go; None outside a run, where writing does nothing."""
    if not call.state:
        return None if call.kind == "pooled" else _NONE_DECLARED
    return State(call.state, lambda key: changes_of(key, values), partial(functions.resolve, folder=call.folder))


def pack_beside(outputs: dict[str, Ref], made: Made) -> dict[str, Ref]:
    """The outputs of a step and the changes that it made; all or none."""
    found = dict(outputs)
    try:
        for key, changes in made.items():
            found[MARK + key] = objects.pack(changes, f"step.state[{key!r}]")
    except BaseException:
        objects.forget(found.values())
        raise
    return found


def pack_chunk(results: list[Any], done: Sequence[int], made: Mapping[int, Made]) -> Ref:
    """The results of items, with what each of them changed of the state; all or none."""
    ref = objects.pack(results)
    by_key: dict[str, list[int]] = {}
    for index in done:
        for key in made.get(index, ()):
            by_key.setdefault(key, []).append(index)
    if not by_key:
        return ref
    packed: list[Ref] = [ref]
    try:
        for key, indices in by_key.items():
            packed.append(objects.pack([made[index][key] for index in indices], f"step.state[{key!r}]"))
    except BaseException:
        objects.forget(packed)
        raise
    parts = zip(by_key.items(), packed[1:], strict=True)
    return WithState(ref, tuple((key, tuple(indices), changes) for (key, indices), changes in parts))


def check(result: Any, made: Made) -> None:
    """Raise the ``PackError`` that packing the result of one item and its changes would raise."""
    objects.check(result)
    for key, changes in made.items():
        objects.check(changes, f"step.state[{key!r}]")
