"""Learned: what the history of a state folder teaches a pipeline that is about to run, or is only looked at.

It reads the last runs' lessons (``store_learned``) and gathers them (``learning.known``) for this graph, its parameters
and what its tasks are made of. It never writes, and never fails: a history that can't be used is told in the
``Knowledge``, and the run goes on without.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from procflow.errors import StoreError
from procflow.graph import TaskGraph, TaskUnit, walk
from procflow.learning.known import Knowledge, gather
from procflow.learning.lessons import Place
from procflow.learning.teaching import places, taught
from procflow.resuming.canonical import digest
from procflow.storing.history import History
from procflow.storing.state_folder import StateFolder
from procflow.storing.store_learned import RunLessons

if TYPE_CHECKING:
    from procflow.launch import Prepared
    from procflow.resuming.fingerprint import Fingerprint
    from procflow.resuming.needs import Key

__all__ = ["learned", "made_of", "taught_by"]


def taught_by(
    folder: StateFolder, prepared: Prepared, lock: str, prints: Mapping[Key, Fingerprint], whole: str
) -> Prepared:
    """A pipeline that is about to run, with what earlier runs taught; what people should know of it is in its warnings."""
    knowledge = learned(folder, prepared.graph, lock, prints, whole)
    graph, told = taught(prepared.graph, knowledge, slots=prepared.workers, memory_bytes=prepared.memory_bytes)
    return replace(prepared, graph=graph, warnings=(*prepared.warnings, *told))


def learned(
    folder: StateFolder,
    graph: TaskGraph,
    lock: str | None,
    prints: Mapping[Key, Fingerprint] | None = None,
    whole: str | None = None,
) -> Knowledge:
    """What earlier runs teach this one; ``lock`` is the name of its lock, ``prints`` say what its tasks are made of.

    ``whole`` is ``made_of`` all of them, where that is known.
    """
    prints = prints or {}
    try:
        with History.open(folder) as history:
            past = history.learned(graph.name, lock, made_of(prints) if whole is None else whole)
    except (StoreError, OSError) as error:
        return Knowledge(unusable=(str(error),))
    if not past.runs:
        return Knowledge(unusable=tuple(past.unusable))
    where = places(graph.root)
    return gather(
        past.runs,
        params=_as_recorded(graph.params),
        same=[_same(run, prints) for run in past.runs],
        executors={where[id(u)]: u.executor for u in walk(graph.root) if isinstance(u, TaskUnit)},
        unusable=past.unusable,
    )


def made_of(prints: Mapping[Key, Fingerprint]) -> str:
    """One digest of what all tasks are made of; empty for no tasks."""
    if not prints:
        return ""
    texts = [*chain.from_iterable(prints), *[print_.digest for print_ in prints.values()]]
    return digest("\0".join(texts).encode("utf-8", "surrogatepass"))


def _same(run: RunLessons, prints: Mapping[Key, Fingerprint]) -> Collection[Place]:
    """The tasks that are made of the same now as in that run."""
    if run.prints is None:
        return prints
    was = run.prints.get
    return {key for key, print_ in prints.items() if (old := was(key)) and print_.digest.startswith(old)}


def _as_recorded(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters as the journal holds them."""
    try:
        found: dict[str, Any] = json.loads(
            json.dumps({str(k): v for k, v in params.items()}, default=repr, skipkeys=True)
        )
    except (TypeError, ValueError):
        return {}
    return found
