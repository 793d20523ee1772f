"""What the author of a step sees: ``from procflow import step``.

``step.progress(3, 10)``, ``step.metric("rows", 17)``, ``step.cost(0.02)``, ``step.heartbeat()``, ``step.log.info(...)``,
``step.state["results"]``, ``step.state.append("results", x)``, ``step.params``, ``step.run_id``, ``step.attempt``,
``step.item``. Outside a run all of it is
harmless, so a function can be tested alone. Import the module and read its attributes (``step.params``, not ``from
procflow.step import params``): they are those of the attempt that runs now. This file never talks to a pipe:
``perform`` gives it a function that does.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from procflow.attempt import Progressed
from procflow.state import State

if TYPE_CHECKING:
    import logging

    log: logging.Logger
    params: dict[str, Any]
    run_id: str
    attempt: int
    item: str
    state: State

__all__ = [
    "Running",
    "StepOutput",
    "attempt",
    "cost",
    "heartbeat",
    "item",
    "log",
    "metric",
    "params",
    "progress",
    "run_id",
    "state",
]

MIN_INTERVAL_S = 0.1
"""Signs of life closer together than this are dropped: a step may call ``progress`` in its innermost loop."""

MAX_METRICS = 1000


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step may return to give its value together with a cost and named metrics."""

    value: Any
    cost: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


class Running:
    """The attempt that runs now, as its step sees it; made by ``perform``, one an attempt."""

    __slots__ = (
        "attempt",
        "cost",
        "index",
        "key",
        "labels",
        "metrics",
        "params",
        "reported_at",
        "run_id",
        "send",
        "state",
    )

    def __init__(
        self,
        key: int = 0,
        run_id: str = "",
        attempt: int = 1,
        send: Callable[[Progressed], None] | None = None,
        params: Callable[[], dict[str, Any]] = dict,
        labels: tuple[str, ...] = (),
        state: State | None = None,
    ) -> None:
        self.key = key
        self.run_id = run_id
        self.attempt = attempt
        self.send = send
        self.params = params
        self.labels = labels
        self.state = State() if state is None else state
        self.index: int | None = None
        self.cost = 0.0
        self.metrics: dict[str, float] = {}
        self.reported_at = -math.inf

    def report(self, progressed: Progressed) -> None:
        """Send one record; from any thread of the step, one at a time."""
        if self.send is not None:
            with _sending:
                self.send(progressed)


# Reentrant, because a signal handler of the step may report while a report is being sent.
_sending = threading.RLock()
_current: ContextVar[Running | None] = ContextVar("procflow_step", default=None)
# Attempts that run in this process. A thread that a step starts has no context of its own; where only one attempt
# runs, as in a worker process, that is the one.
_active: list[Running] = []
_nothing = Running()


def _enter(running: Running) -> Any:
    _active.append(running)
    return _current.set(running)


def _leave(running: Running, token: Any) -> None:
    _current.reset(token)
    _active.remove(running)


def _now() -> Running:
    running = _current.get()
    if running is None:
        active = _active[:2]
        return active[0] if len(active) == 1 else _nothing
    return running


def progress(done: float, total: float | None = None) -> None:
    """Say how far the step is: ``done`` of ``total`` in any unit. Also counts as a sign of life; cheap to call often."""
    running = _now()
    done = _number("progress", done)
    total = None if total is None else _number("progress", total)
    if running.send is None:
        return
    at = monotonic()
    if at - running.reported_at < MIN_INTERVAL_S and done != total:
        return
    running.reported_at = at
    running.report(Progressed(running.key, done=done, total=total))


def heartbeat() -> None:
    """Say that the step is alive, for ``idle_timeout``; cheap to call often."""
    running = _now()
    if running.send is None:
        return
    at = monotonic()
    if at - running.reported_at >= MIN_INTERVAL_S:
        running.reported_at = at
        running.report(Progressed(running.key))


def metric(name: str, value: float) -> None:
    """Record a number under a name, shown in the run's report; the last one counts."""
    running = _now()
    if not isinstance(name, str) or not name:
        raise TypeError(f"step.metric takes a name and a number, not {name!r}")
    number = _number(f"step.metric({name!r})", value)
    if running is _nothing:
        return
    if name not in running.metrics and len(running.metrics) >= MAX_METRICS:
        raise ValueError(f"step.metric: more than {MAX_METRICS} names in one attempt; use fewer names")
    running.metrics[name] = number


def cost(amount: float) -> None:
    """Add to what the step cost, in the currency of your choice."""
    number = _number("step.cost", amount)
    if number < 0:
        raise ValueError(f"step.cost takes an amount of at least 0, not {amount!r}")
    running = _now()
    if running is not _nothing:
        running.cost += number


def _number(where: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{where} takes a number, not {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{where} takes a finite number, not {value!r}")
    return number


def _item(running: Running) -> str:
    own = () if running.index is None else (str(running.index),)
    return "/".join((*running.labels, *own))


def __getattr__(name: str) -> Any:
    if name == "params":
        return _now().params()
    if name == "run_id":
        return _now().run_id
    if name == "state":
        return _now().state
    if name == "attempt":
        return _now().attempt
    if name == "item":
        return _item(_now())
    if name == "log":
        import logging

        return logging.getLogger("procflow.step")
    raise AttributeError(f"module 'procflow.step' has no attribute {name!r}")
