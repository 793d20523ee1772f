"""Plain: the tasks of steps that call a function and refer to nothing, all those of a block in one pass. Pure.

Such a step has nothing to bind and nothing to look up: its task is the next one's but for where it stands, what it calls and
with which constants. A pipeline may have a hundred thousand of them, so they don't go through what is made for one step at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from procflow.call import NOTHING, StepCall
from procflow.compiling.build import Build, Setting
from procflow.compiling.subpipelines import Members
from procflow.compiling.surface import Shown
from procflow.compiling.tasks import maker
from procflow.graph import TaskUnit, Unit
from procflow.passive import alike

__all__ = ["plain_tasks"]

_NONE: frozenset[int] = frozenset()


def plain_tasks(
    build: Build,
    setting: Setting,
    block: Members,
    shown: Shown,
    place: Mapping[int, int],
    after: Mapping[int, Set[int]],
) -> dict[int, Unit]:
    """The tasks of a block's plain members by declared position; none where ``defaults`` keep results, since that names each.

    ``place`` are the indices of the kept members, ``after`` those that each waits for.
    """
    names, faces, steps, saying = shown.names, shown.faces, shown.plain, shown.saying
    kept = [i for i in faces if i in steps]
    if not kept or setting.defaults.cache:
        return {}
    executor = setting.executor
    build.executors.add(executor)
    call = alike(
        StepCall("transform", "", "", folder=setting.folder, state=setting.state or NOTHING),
        "path", "name", "function", "outputs", "kwargs", "params",
    )  # fmt: skip
    path, label, loc = f"{block.path}." if block.path else "", f"{block.label}/" if block.label else "", block.loc
    bare: Callable[..., TaskUnit] | None = None
    found: dict[int, Unit] = {}
    for i in kept:
        step, at, name, before, writes = steps[i], f"{path}{i}", names[i], after[i], faces[i].writes
        if i not in saying:
            task, params, priority = bare or maker(build, setting, step), NOTHING, setting.priority
            bare = task
        else:
            task = maker(build, setting, step)
            params = dict(step.params) if step.params else NOTHING
            priority = step.priority if "priority" in step.model_fields_set else setting.priority
        found[i] = task(
            place[i], name, at, label + name, (*loc, i), tuple(sorted([place[j] for j in before])) if before else (),
            _NONE, priority, (), writes, call(at, name, step.function, writes, params, params), executor,
        )  # fmt: skip
    return found
