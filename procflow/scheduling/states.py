"""States of tasks and blocks, and the table of allowed moves. Pure.

Everything that decides which state may follow which stands in this file. A move that is not in ``TRANSITIONS`` is a bug
and raises ``InternalError`` with the story of the unit.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["FINAL", "NEXT", "STATES", "TRANSITIONS", "State"]

State = Literal["waiting", "ready", "queued", "running", "retrying", "succeeded", "failed", "skipped", "cancelled"]

STATES: dict[State, str] = {
    "waiting": "members before it have not settled",
    "ready": "may start; waits for a slot, its block's limit, memory or its rate",
    "queued": "handed to a worker that is still busy with another task; has not begun and holds no core",
    "running": "a task: an attempt is out; a block: it is open",
    "retrying": "failed, and waits outside any slot for its next attempt",
    "succeeded": "done, its outputs have values",
    "failed": "done badly, with no attempt left",
    "skipped": "never ran: its condition was false, or what it needs is missing",
    "cancelled": "its block ended before it, or stopped it",
}

FINAL: frozenset[State] = frozenset({"succeeded", "failed", "skipped", "cancelled"})

TRANSITIONS: dict[tuple[State, State], str] = {
    ("waiting", "ready"): "the last member before it settled",
    ("waiting", "skipped"): "a member it depends on did not succeed",
    ("waiting", "cancelled"): "its block ended",
    ("ready", "running"): "admitted",
    ("ready", "queued"): "handed out ahead, behind a task that will soon be over",
    ("queued", "running"): "the one before it ended, so it began",
    ("queued", "succeeded"): "it began and returned before anybody had heard that it began",
    ("queued", "failed"): "the same, but it failed",
    ("queued", "skipped"): "the same, but its condition was false",
    ("queued", "retrying"): "the same, but it failed with attempts left",
    ("queued", "ready"): "given back: its worker died, or the one before it takes long",
    ("queued", "cancelled"): "given back: its block ended, or its items start anew in another batch",
    ("ready", "succeeded"): "it succeeded in an earlier session, and its result is kept",
    ("ready", "skipped"): "a value it reads was never produced",
    ("ready", "failed"): "a value it reads was promised and never came",
    ("ready", "cancelled"): "its block ended",
    ("running", "succeeded"): "the attempt returned; the block's members are done and merged",
    ("running", "failed"): "no attempt left",
    ("running", "skipped"): "its condition was false",
    ("running", "retrying"): "failed with attempts left",
    ("running", "ready"): "stopped because memory was short; it runs again without a charge",
    ("running", "cancelled"): "its block stopped it",
    ("retrying", "ready"): "its pause is over",
    ("retrying", "cancelled"): "its block ended",
    ("retrying", "failed"): "its block's clock ran out during the pause",
    ("failed", "waiting"): "its block runs again",
    ("skipped", "waiting"): "its block runs again",
    ("cancelled", "waiting"): "its block runs again",
}

NEXT: dict[State, frozenset[State]] = {
    state: frozenset(to for before, to in TRANSITIONS if before == state) for state in STATES
}
"""The same by state, as it is looked up: without a pair made for each move."""
