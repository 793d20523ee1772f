"""Executors: where attempts run. ``base`` is the face, one file per backend, imported only when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from procflow.errors import ExecutorError

if TYPE_CHECKING:
    from procflow.executors.base import Executor

__all__ = ["NAMES", "capabilities_of", "open_executor", "open_waiter"]

NAMES = ("processes", "threads", "inline")


def _class(name: str) -> Any:
    if name == "processes":
        from procflow.executors.processes import ProcessExecutor

        return ProcessExecutor
    if name == "threads":
        from procflow.executors.threads import ThreadExecutor

        return ThreadExecutor
    if name == "inline":
        from procflow.executors.inline import InlineExecutor

        return InlineExecutor
    raise ExecutorError(f"there is no executor {name!r}; there are {', '.join(NAMES)}")


def capabilities_of(name: str) -> frozenset[str]:
    """What the executor can do (see ``base.CAPABILITIES``), without opening it."""
    found: frozenset[str] = frozenset(_class(name).capabilities)
    return found


def open_executor(
    name: str,
    slots: int,
    *,
    run_id: str = "",
    token: str | None = None,
    inherit: Sequence[int] = (),
    objects: str | None = None,
    results: str | None = None,
) -> Executor:
    """An executor by name, with so many slots (inline always has one).

    ``token`` marks the processes of the run, ``inherit`` are descriptors that all its workers get. ``objects`` is the folder
    that large values are stored in, ``results`` the path beside which workers keep results that the parent may not have noted.
    """
    if name == "inline":
        made: Executor = _class(name)(objects=objects, token=token)
    elif name == "processes":
        made = _class(name)(slots, run_id=run_id, token=token, inherit=inherit, objects=objects, results=results)
    else:
        made = _class(name)(slots, run_id=run_id, objects=objects, token=token)
    return made


def open_waiter(executors: Mapping[str, Executor]) -> Any:
    """What an engine waits on: the executor itself where there is one, else all of them behind one face."""
    if len(executors) == 1:
        return next(iter(executors.values()))
    from procflow.executors.mux import Mux

    return Mux(executors)
