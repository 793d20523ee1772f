"""Here: the mark on commands that this very process starts, for steps that run in it (executors threads and inline).

A worker's children inherit the run's token; this process can't bear it, or a sweep would end it. So a command that is
started here gets a token of its own, which ``sweep`` takes for the run's, while the reaper does not take the command for
an orphan, because somebody here waits for it. What a step's function starts by itself here is not marked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar

from procflow.guarding.sweep import HERE, TOKEN_NAME

__all__ = ["TOKEN", "environment"]

TOKEN: ContextVar[str] = ContextVar("procflow_run_token", default="")
"""The token of the run whose step runs in this thread; empty in workers, whose environment has it."""


def environment(env: Mapping[str, str] | None) -> dict[str, str] | None:
    """The environment for a command that was to get ``env`` (None: that of this process)."""
    token = TOKEN.get()
    if not token:
        return None if env is None else dict(env)
    return {**(os.environ if env is None else env), TOKEN_NAME: token + HERE}
