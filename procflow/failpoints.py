"""Failpoints: named places where a fault can be made to happen, and the checked-in list of their names.

``fp("journal.commit.before")`` does nothing but look at one variable unless something was armed. This file owns the names
and the grammar; what a fault does (a signal, an error, a pause) is in ``failpoint_actions.py``, which is loaded only
where the environment has ``PROCFLOW_FAILPOINTS``. Tests hold the code to this list: a name that is not in it is refused,
one that no run comes by is a failure. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["NAMES", "VARIABLE", "Failpoint", "arm", "fp", "parse"]

VARIABLE = "PROCFLOW_FAILPOINTS"

NAMES: dict[str, str] = {
    "run.lock.taken": "the run's lock is held, nothing is written yet",
    "run.folder.made": "the run's folder is there, the journal does not know it",
    "run.finish": "everything is durable and told, nothing is closed",
    "journal.open.before": "the writer lock is held, the database was not looked at",
    "journal.open.after": "the database is open and checked",
    "journal.begin.before": "before the transaction that records a run or a session",
    "journal.begin.full": "all its statements are done, it is not committed",
    "journal.begin.after": "a run or a session is durable",
    "journal.record": "an event goes to the buffer",
    "journal.commit.before": "something is pending, no transaction is open",
    "journal.commit.begun": "BEGIN IMMEDIATE is done",
    "journal.commit.steps": "rows of attempts and blocks are written, not committed",
    "journal.commit.outputs": "rows of results are written, not committed",
    "journal.commit.full": "all statements of the transaction are done, it is not committed",
    "journal.commit.after": "the transaction is durable, nobody was told",
    "journal.close.before": "all is committed, the database is still open",
    "journal.close.after": "the database is closed, its last checkpoint done",
    "engine.submit": "an attempt is about to be handed to an executor",
    "engine.received": "outcomes arrived that neither the scheduler nor the journal knows",
    "engine.announce": "records are durable, observers are about to hear of them",
    "pool.spawn.before": "a worker is about to be started",
    "pool.spawn.after": "a worker was started, it has not said hello",
    "pool.received": "an outcome was read whole from a worker's channel",
    "log.open": "the file of an attempt's log is about to be opened",
    "log.write": "output is about to be written to an attempt's log",
}
"""Every failpoint with the state in which it is passed."""

ACTIONS = ("kill", "stop", "exit", "raise", "delay")


@dataclass(frozen=True, slots=True)
class Failpoint:
    """One armed fault: at the ``first`` pass of ``name``, and at every later one if ``persistent``."""

    name: str
    action: str
    argument: str = ""
    first: int = 1
    persistent: bool = False

    def hits(self, passed: int) -> bool:
        """Whether the ``passed``-th pass, counted from 1, is one where the fault happens."""
        return passed >= self.first if self.persistent else passed == self.first


def parse(text: str) -> list[Failpoint]:
    """Failpoints of ``name=action[@n[+]][,...]``; ValueError names what is wrong.

    Actions are ``kill`` (SIGKILL), ``stop`` (SIGSTOP), ``exit``, ``raise:OSError:ENOSPC`` and ``delay:50ms``. ``@3`` is the
    third pass alone, ``@3+`` the third and all later ones. The name ``*`` counts the passes of all names together.
    """
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, rest = part.partition("=")
        what, at, place = rest.partition("@")
        action, _, argument = what.partition(":")
        persistent = place.endswith("+")
        number = place.removesuffix("+") if at else "1"
        if not equals or not (name in NAMES or name == "*"):
            raise ValueError(f"failpoint {part!r}: there is no failpoint {name!r}")
        if action not in ACTIONS:
            raise ValueError(f"failpoint {part!r}: action {action!r} is not one of {', '.join(ACTIONS)}")
        if bool(argument) != (action in ("raise", "delay")):
            raise ValueError(f"failpoint {part!r}: raise and delay have an argument, the others none")
        if not number.isdecimal() or int(number) < 1:
            raise ValueError(f"failpoint {part!r}: write @1, @2 ... or @1+ behind the action")
        found.append(Failpoint(name, action, argument, int(number), persistent))
    return found


_on_pass: Callable[[str], None] | None = None


def arm(on_pass: Callable[[str], None] | None) -> None:
    """From now on call this with the name of every failpoint that is passed; None for nothing."""
    global _on_pass
    _on_pass = on_pass


def fp(name: str) -> None:
    """Pass a failpoint."""
    if _on_pass is not None:
        _on_pass(name)
