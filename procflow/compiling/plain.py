"""Plain: the tasks of steps that say nothing but their name and what they call, all those of a block in one pass. Pure.

Such a step has nothing to bind, nothing to look up and no limits of its own: its task is the next one's but for where it stands
and what it calls. A pipeline may have a hundred thousand of them, so they don't go through what is made for one step at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from procflow.call import NOTHING, StepCall
from procflow.compiling.build import Build, Setting
from procflow.compiling.subpipelines import Members
from procflow.compiling.surface import Shown
from procflow.compiling.tasks import maker
from procflow.graph import Unit
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
    names, faces, steps = shown.names, shown.faces, shown.plain
    kept = [i for i in faces if i in steps]
    if not kept or setting.defaults.cache:
        return {}
    executor, priority = setting.executor, setting.priority
    build.executors.add(executor)
    task = maker(build, setting, steps[kept[0]])
    call = alike(
        StepCall("transform", "", "", folder=setting.folder, state=setting.state or NOTHING),
        "path", "name", "function", "outputs",
    )  # fmt: skip
    path, label, loc = f"{block.path}." if block.path else "", f"{block.label}/" if block.label else "", block.loc
    found: dict[int, Unit] = {}
    for i in kept:
        at, name, before, writes = f"{path}{i}", names[i], after[i], faces[i].writes
        found[i] = task(
            place[i], name, at, label + name, (*loc, i), tuple(sorted([place[j] for j in before])) if before else (),
            _NONE, priority, (), writes, call(at, name, steps[i].function, writes), executor,
        )  # fmt: skip
    return found
