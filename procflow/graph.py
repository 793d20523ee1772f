"""TaskGraph: what the compiler makes of a pipeline and the scheduler runs.

A tree of units. A ``TaskUnit`` is a leaf (one call); a ``ScopeUnit`` is a block with members; a ``MapUnit`` is a
block whose members appear at run time, one per item. Order is between members of one scope only: ``after`` counts,
and a member starts when its count is down to zero. Everything here is passive and frozen: run-time state is the
scheduler's.

Names are looked up at run time from the innermost scope outwards. In a sequence or graph a member's outputs are
there for later members at once; in a parallel block they are kept apart until the block's merge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from graphlib import TopologicalSorter
from typing import Literal, Protocol

from procflow.call import Reducer, StepCall, nothing
from procflow.errors import Loc, Place
from procflow.passive import passive
from procflow.units import Rate, Share

__all__ = [
    "HookEvent", "Hooks", "MapUnit", "MergeSpec", "Places", "RetrySpec", "ScopeUnit", "TaskGraph", "TaskUnit", "Unit",
    "in_order", "walk",
]  # fmt: skip

HookEvent = Literal["on_success", "on_failure", "on_finish"]
Hooks = tuple[tuple[HookEvent, "ScopeUnit"], ...]
"""Blocks that run once something has ended, each with what it waits for."""
ScopeKind = Literal["sequence", "parallel", "graph", "map", "pipeline"]


@passive(frozen=True, slots=True)
class RetrySpec:
    """Extra attempts and the pause before each; ``on`` holds causes and names of exception classes."""

    retries: int = 0
    delay_s: float = 1.0
    backoff: float = 2.0
    max_delay_s: float = 300.0
    jitter: bool = True
    on: frozenset[str] = frozenset({"error", "timeout", "crash", "oom"})


@passive(frozen=True, slots=True)
class MergeSpec:
    """How a block's results become values.

    ``strategy`` is one of ``update``, ``collect_all``, ``first_success`` (moves refs only), ``rows`` (a map's
    list), or ``task``: the scope's ``merger`` task does it by content. ``output`` is the name of the merged value,
    None to publish members' own names.
    """

    strategy: Literal["update", "collect_all", "first_success", "rows", "task"] = "update"
    output: str | None = None


@passive(frozen=True, slots=True, kw_only=True)
class Unit:
    """A member of a scope.

    ``index`` is its declared position among the members. ``path`` is the declared position in the pipeline
    (``0.2``), ``label`` the names on the way (``fetch/fetch_sales``). ``after`` are members that must settle first;
    those also in ``strict`` (``depends_on``) must succeed, or this unit is skipped. ``reads`` are names that must
    have a value when the unit starts, or it is skipped. ``writes`` are the names it publishes, None when only the
    run can tell. ``rank`` is the longest remaining path from here to the end of the run, in expected seconds. ``hooks``
    run once it has ended.
    """

    index: int
    name: str
    path: str
    label: str
    loc: Loc = ()
    after: tuple[int, ...] = ()
    strict: frozenset[int] = frozenset()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] | None = ()
    rank: float = 1.0
    priority: int = 0
    retry: RetrySpec = RetrySpec()
    timeout_s: float | None = None
    tolerated: bool = False
    rate: Rate | None = None
    hooks: Hooks = ()


@passive(frozen=True, slots=True, kw_only=True)
class TaskUnit(Unit):
    """A compiled leaf: one call that one worker runs.

    ``tolerated`` is ``on_error: continue``: its failure is recorded and its block goes on. ``inherited`` are the
    keys that the step took from the defaults of its file. ``learned_bytes`` is what it is expected to hold at most: it is
    reserved where no ``memory_bytes`` are declared, and never a limit. ``timeout_share`` (``timeout: 300%``) is of the
    median that was learned; ``timeout_s`` is what that comes to once it is known. ``rates`` are those of the graph that its
    starts are counted against, besides its own ``rate``.
    """

    call: StepCall
    executor: str
    cpus: int = 1
    memory_bytes: int | None = None
    resources: Mapping[str, float] = field(default_factory=nothing)
    idle_timeout_s: float | None = None
    kill_grace_s: float = 2.0
    grace_declared: bool = False
    inherited: frozenset[str] = frozenset()
    learned_bytes: int | None = None
    timeout_share: float | None = None
    rates: tuple[str, ...] = ()


@passive(frozen=True, slots=True, kw_only=True)
class ScopeUnit(Unit):
    """A block. ``gate`` (a task) decides a block's ``when``; ``merger`` (a task) merges by content after the join.

    ``need`` is the number of successes that end the block early, None for all. ``isolated`` scopes (``type:
    pipeline``) see no outer value but those in ``imports`` (inner name to outer name). ``kept`` are the names that
    a pipeline step publishes. ``state`` are the keys of the state that the members share.
    """

    kind: ScopeKind
    members: tuple[Unit, ...] = ()
    max_parallelism: int | None = None
    on_error: Literal["stop", "finish", "continue"] = "stop"
    tolerate: int | Share | None = None
    need: int | None = None
    merge: MergeSpec = MergeSpec()
    gate: TaskUnit | None = None
    merger: TaskUnit | None = None
    isolated: bool = False
    imports: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] | Literal["*"] | None = None
    state: Mapping[str, Reducer] = field(default_factory=dict)


@passive(frozen=True, slots=True, kw_only=True)
class MapUnit(ScopeUnit):
    """A map. ``expand`` turns its items into pages; ``body`` is one task (run in batches) or a scope per item.

    ``batch`` fixes the number of items a task, None lets the scheduler measure. ``reduce`` folds results while others still
    come; the ``merger`` is then the last fold.
    """

    expand: TaskUnit
    body: Unit
    item_name: str
    batch: int | None = None
    reduce: TaskUnit | None = None


class Places(Protocol):
    """Gives the position in a file of a path in its tree."""

    def place(self, loc: Loc) -> Place | None:
        """The position of the value at ``loc``, or of its nearest ancestor."""


@passive(frozen=True, slots=True)
class TaskGraph:
    """A compiled pipeline. ``root`` is its top scope; ``resources`` the amounts of named resources.

    ``retry_share`` bounds the retries of the run as a whole, as a share of the attempts that are over. ``files``
    are the files of ``type: pipeline`` steps by the path at which they hang in the tree: ``loc`` of a unit inside
    begins with it. ``keep`` are values whose files stay, ``cached`` the labels of steps whose results the next run
    uses. ``rates`` are shared by name: ``block:0.1`` by all that starts in a block, ``rate:NAME`` by all that asks a source.
    ``secrets`` are the environment variables that hold secrets; ``params`` leaves out those that hold one.
    """

    name: str
    root: ScopeUnit
    params: Mapping[str, object] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    executors: frozenset[str] = frozenset({"processes"})
    files: Mapping[Loc, Places] = field(default_factory=dict)
    retry_share: float = 0.5
    secrets: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()
    rates: Mapping[str, Rate] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()


def in_order(scope: ScopeUnit) -> Sequence[int]:
    """The indices of a block's members, each after those it waits for; as declared where that will do."""
    if all(before < member.index for member in scope.members if member.after for before in member.after):
        return range(len(scope.members))
    return tuple(TopologicalSorter({member.index: member.after for member in scope.members}).static_order())


def walk(unit: Unit, hooks: bool = False) -> Iterator[Unit]:
    """The unit and all below it, outer first, in declared order, with or without hooks; no recursion on wide blocks."""
    stack: list[Unit] = [unit]
    while stack:
        current = stack.pop()
        yield current
        if hooks and current.hooks:
            stack += [hook for _, hook in reversed(current.hooks)]
        if isinstance(current, TaskUnit):
            continue
        if isinstance(current, MapUnit):
            stack += [u for u in (current.merger, current.body, current.expand, current.gate) if u is not None]
        elif isinstance(current, ScopeUnit):
            if not hooks and current.gate is None and {TaskUnit}.issuperset(map(type, current.members)):
                # Nothing is below them: a wide block is handed out as it stands.
                yield from current.members
                stack += [current.merger] if current.merger is not None else ()
                continue
            stack += [u for u in (current.merger, *reversed(current.members), current.gate) if u is not None]
