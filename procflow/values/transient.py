"""Transient values: large values in shared memory instead of the run's folder, for steps that say ``transient: true``.

They lie in ``/dev/shm/procflow-<token>-values`` as object files like any others, so readers map them without a copy. Nothing is
written to a disk, so a resume runs the step again where its value is needed. A value goes at once when its last reader is
done; the folder goes with the run, by its own end, its reaper, or the next run's look at what the last one left
(``guarding/sweep.py`` knows it by the token). A value for which there is no room goes to the run's folder as if it were not
transient, and the step's log says so. This file never decides how long a value lives.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence

from procflow.graph import TaskGraph
from procflow.guarding.sweep import SHM, prefix
from procflow.ref import Inline, Ref, Stored
from procflow.units import size_text
from procflow.values import object_files, objects
from procflow.values.object_views import total_bytes

__all__ = [
    "NAME",
    "SpillingFolder",
    "enter",
    "folder_of",
    "freeing",
    "leave",
    "leaves_something",
    "made_for",
    "unusable",
]

NAME = "@transient"
"""The value under which an attempt finds the folder."""
SPARE = 0.9
"""Values never fill more than this share of what is free: it is memory, and others need some."""


def folder_of(token: str) -> str:
    """Where the transient values of a run lie."""
    return os.path.join(SHM, f"{prefix(token)}-values")


def unusable() -> str:
    """Why there is no shared memory here; empty where there is."""
    if not os.path.isdir(SHM):
        return f"there is no {SHM} on this system"
    return "" if os.access(SHM, os.W_OK | os.X_OK) else f"{SHM} can't be written to"


def leaves_something(graph: TaskGraph) -> bool:
    """Whether a run of it may leave something to be swept, even one without workers: commands, and shared memory."""
    return not graph.has.isdisjoint(("command", "transient"))


def made_for(graph: TaskGraph, token: str) -> Ref | None:
    """Make the folder of a run; what its attempts are told, None where no value goes there."""
    if "transient" not in graph.has:
        return None
    path = folder_of(token)
    object_files.make_folder(path)
    return Inline(objects.dumps(path))


def freeing(kept: object_files.ObjectFolder, token: str) -> Callable[[Stored], None]:
    """A function that lets a value go, wherever it lies. Memory is given back at once, not kept to be written again."""
    own = folder_of(token)

    def free(stored: Stored) -> None:
        if os.path.dirname(stored.path) != own:
            kept.free(stored)
            return
        with contextlib.suppress(OSError):
            os.unlink(stored.path)

    return free


class SpillingFolder(object_files.ObjectFolder):
    """The folder in shared memory; what has no room there goes to ``spill``, None where there is no such folder."""

    def __init__(self, path: str, spill: str | None) -> None:
        super().__init__(path)
        self._spill = spill

    def write(self, data: bytes, buffers: Sequence[memoryview] = ()) -> Stored:
        """As ``ObjectFolder.write``."""
        total = total_bytes([len(data), *(len(part) for part in buffers)])
        free = os.statvfs(self.path)
        room = int(free.f_bavail * free.f_frsize * SPARE)
        if total <= room or self._spill is None:
            try:
                return super().write(data, buffers)
            except object_files.NotStored:
                if self._spill is None:
                    raise
        logging.getLogger("procflow").warning(
            "a transient value of %s has no room in shared memory (%s may be used): it goes to the run's folder",
            size_text(total), size_text(room),
        )  # fmt: skip
        return object_files.folder(self._spill).write(data, buffers)


def enter(values: Mapping[str, Ref]) -> object:
    """From here on this attempt stores its values in shared memory; give the answer to ``leave``."""
    ref = values.get(NAME)
    if ref is None:
        return None
    path = str(objects.unpack(ref))
    object_files.use(SpillingFolder(path, objects.FOLDER.get()))
    return objects.FOLDER.set(path)


def leave(token: object) -> None:
    """Store where values were stored before."""
    if token is not None:
        objects.FOLDER.reset(token)  # type: ignore[arg-type]
