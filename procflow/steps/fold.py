"""Fold: the pipeline's state at the end of a run, made of all changes in their order.

``StepCall.state`` are its keys. The result is one value a key, in the order of ``outputs``; a change that can't be joined
fails this task with the key, the reducer and both types, and so the run. No options.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from procflow.call import StepCall
from procflow.state import MARK, fold, leaves
from procflow.working import functions

__all__ = ["changes_of", "run"]


def run(call: StepCall, values: Callable[[str], Any]) -> Any:
    """The value of each key as a tuple; of a single one, the value itself."""
    resolve = partial(functions.resolve, folder=call.folder)
    found = tuple(fold(key, spec, leaves(changes_of(key, values)), resolve) for key, spec in call.state.items())
    return found[0] if len(found) == 1 else found


def changes_of(key: str, values: Any) -> Any:
    """All changes of a key that the attempt sees, in lists; ``values`` is the attempt's ``Values``."""
    name = MARK + key
    return values(name) if name in values.refs else []
