"""Gate: decides a block's ``when``. ``perform`` has judged the condition already, so nothing is left to do; no options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from procflow.call import StepCall

__all__ = ["run"]


def run(call: StepCall, values: Callable[[str], Any]) -> None:
    """Nothing: reaching this place is the answer."""
