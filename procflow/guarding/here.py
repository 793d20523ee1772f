"""Here: the mark on commands that this very process starts, for steps that run in it (executors threads and inline).

A worker's children inherit the run's token; this process can't bear it, or a sweep would end it. So a command that is
started here gets a token of its own, which ``sweep`` takes for the run's, while the reaper does not take the command for
an orphan, because somebody here waits for it. What a step's function starts by itself is marked only where this process
is there for one run alone (``procflow run``): a program that uses procflow may start others that are none of ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from procflow.guarding.sweep import HERE, TOKEN_NAME

__all__ = ["IN_PARENT", "TOKEN", "alone", "environment", "is_alone", "marked"]

TOKEN: ContextVar[str] = ContextVar("procflow_run_token", default="")
"""The token of the run whose step runs in this thread; empty in workers, whose environment has it."""
IN_PARENT = ("threads", "inline")
"""Executors whose steps run in this process."""
_alone = [False]


@contextmanager
def alone() -> Iterator[None]:
    """Within this, the process is there for the one run that begins in it."""
    _alone[0] = True
    try:
        yield
    finally:
        _alone[0] = False


def is_alone() -> bool:
    """Whether this process is there for one run."""
    return _alone[0]


@contextmanager
def marked(token: str) -> Iterator[None]:
    """Within this, whatever this process starts bears the token."""
    before = os.environ.get(TOKEN_NAME)
    os.environ[TOKEN_NAME] = token + HERE
    try:
        yield
    finally:
        if before is None:
            del os.environ[TOKEN_NAME]
        else:
            os.environ[TOKEN_NAME] = before


def environment(env: Mapping[str, str] | None) -> dict[str, str] | None:
    """The environment for a command that was to get ``env`` (None: that of this process)."""
    token = TOKEN.get()
    if not token:
        return None if env is None else dict(env)
    return {**(os.environ if env is None else env), TOKEN_NAME: token + HERE}
