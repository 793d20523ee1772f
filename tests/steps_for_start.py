"""Steps that tell what their worker has loaded; this file imports nothing that could be looked for."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

DEADLINE_S = 60


def loaded() -> dict[str, bool]:
    """Modules of this process: whether their code has run."""
    return {name: type(module).__name__ != "Late" for name, module in sys.modules.items()}


def used() -> dict[str, Any]:
    """What a step finds that uses what was late."""
    import inspect
    import multiprocessing

    import loky  # type: ignore[import-untyped]
    from loky import get_reusable_executor
    from loky.backend import reduction
    from loky.backend.resource_tracker import ensure_running

    return {
        "collector": (gc.isenabled(), gc.get_freeze_count() > 0),
        "signature": str(inspect.signature(os.getpid)),
        "version": loky.__version__,
        "callables": [callable(f) for f in (get_reusable_executor, reduction.dump, ensure_running)],
        "names": {"getsource", "isclass"} <= set(dir(inspect)),
        "late": [name for name, module in sys.modules.items() if type(module).__name__ == "Late"],
        "method": multiprocessing.get_start_method(),
        "process": type(multiprocessing.current_process()).__name__,
    }


def in_processes_started_by(method: str | None) -> list[int]:
    """A step that has its work done by processes of its own."""
    import multiprocessing

    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map_async(abs, [-1, -2, -3]).get(DEADLINE_S)


def in_a_process_of_its_own() -> int:
    """A step that uses loky's own pool."""
    import loky

    with loky.ProcessPoolExecutor(1) as executor:
        return int(executor.submit(abs, -3).result(DEADLINE_S))
