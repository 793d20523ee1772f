"""procflow: a multiprocessing batch engine for CPU-heavy pipeline steps.

The public names below are loaded on first use, because workers import this package too and must stay light.

    words   errors  units  ref  call  attempt  events  model          what is said
    core    template  condition  graph  compiler  scheduler  merge    pure decisions
    edges   loader  objects  steps/  step  executors/  store  ...      the world
    loop    engine                                                     one loop that joins them
    top     api  cli/  testing                                         what people call
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procflow import step
    from procflow.api import Graph, Map, Merge, Parallel, Pipeline, Sequence, Shell, Split, Step, Subpipeline, load
    from procflow.attempt import FailedMember
    from procflow.errors import (
        ExecutorError,
        InternalError,
        LockHeld,
        PipelineError,
        ProcflowError,
        RunFailed,
        StoreError,
    )
    from procflow.pool import ProcessPool, TaskLost
    from procflow.result import RunResult
    from procflow.step import StepOutput
    from procflow.steps.combine import register_combiner

__version__ = "0.1.0"

_HOMES = {
    "api": "Graph Map Merge Parallel Pipeline Sequence Shell Split Step Subpipeline load",
    "attempt": "FailedMember",
    "errors": "ExecutorError InternalError LockHeld PipelineError ProcflowError RunFailed StoreError",
    "pool": "ProcessPool TaskLost",
    "result": "RunResult",
    "step": "StepOutput",
    "steps.combine": "register_combiner",
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "ExecutorError",
    "FailedMember",
    "Graph",
    "InternalError",
    "LockHeld",
    "Map",
    "Merge",
    "Parallel",
    "Pipeline",
    "PipelineError",
    "ProcessPool",
    "ProcflowError",
    "RunFailed",
    "RunResult",
    "Sequence",
    "Shell",
    "Split",
    "Step",
    "StepOutput",
    "StoreError",
    "Subpipeline",
    "TaskLost",
    "load",
    "register_combiner",
    "step",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name == "step":
        return importlib.import_module("procflow.step")
    home = _WHERE.get(name)
    if home is None:
        raise AttributeError(f"module 'procflow' has no attribute {name!r}")
    return getattr(importlib.import_module(f"procflow.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


if "PROCFLOW_FAILPOINTS" in os.environ:
    # Here, because workers import this package too. Only fault tests set it.
    from procflow.failpoint_actions import arm_from_environment

    arm_from_environment()
