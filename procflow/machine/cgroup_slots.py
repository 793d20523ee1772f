"""Cgroup slots: a control group of its own for each worker, where this process may make some (a delegated v2 subtree).

    systemd-run --user --scope -p Delegate=yes procflow run ...

Then the kernel holds an attempt to its memory limit at once, not only when it is next looked at, counts what it
killed, and ends a whole worker tree in one go. Without such a subtree nothing is done and nothing is said: the
samples of ``footprint`` serve alone. A process that is in a group with children must not hold memory itself, so this
process moves into a group beside its workers, and back at the end. Every failure here only means one safeguard less;
nothing is raised.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from procflow.machine import cgroup
from procflow.machine.cgroup import Group

__all__ = ["WorkerGroup", "WorkerGroups", "delegated"]

PREFIX = "procflow-"
REMOVE_TRIES = 20


def delegated(root: Path = Path("/")) -> Group | None:
    """This process's own v2 group where groups may be made below it and memory can be limited there, else None.

    A group that merely could be written to, because we are root, is not ours: systemd marks what it gives away.
    """
    own = next((group for group in cgroup.groups(root) if group.version == 2), None)
    if own is None or "memory" not in own.text("cgroup.controllers").split() or not own.text("cgroup.type"):
        # Without a type it is the root of the hierarchy, which nobody gives away.
        return None
    files = (own.folder, own.folder / "cgroup.procs", own.folder / "cgroup.subtree_control")
    if not all(os.access(file, os.W_OK) for file in files):
        return None
    return own if os.geteuid() != 0 or _is_top(root) or _is_marked(own.folder) else None


def _is_top(root: Path) -> bool:
    """Our group is the top of what can be seen: a container's own."""
    try:
        return "0::/" in (root / "proc/self/cgroup").read_text().split("\n")
    except OSError:
        return False


def _is_marked(folder: Path) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(folder, name) == b"1":
                return True
        except OSError:
            continue
    return False


class WorkerGroup:
    """One worker's group."""

    def __init__(self, folder: Path, shown: str) -> None:
        self.folder = folder
        self.shown = shown
        self._limit: int | None = None

    def limit(self, memory_bytes: int | None) -> None:
        """From now on the kernel keeps the group within ``memory_bytes``; None lifts the limit."""
        if memory_bytes != self._limit:
            self._limit = memory_bytes
            # Swapping instead would make the limit mean nothing, and the night long.
            _write(self.folder / "memory.swap.max", "max" if memory_bytes is None else "0")
            _write(self.folder / "memory.max", "max" if memory_bytes is None else str(memory_bytes))

    def oom_kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        return _events(_read(self.folder / "memory.events"), "oom_kill")

    def kill(self) -> None:
        """SIGKILL to every process of the group at once."""
        _write(self.folder / "cgroup.kill", "1")

    def remove(self) -> None:
        """End what is left and remove the group; what is still dying is removed with all groups, at the end."""
        if _events(_read(self.folder / "cgroup.events"), "populated"):
            self.kill()
        _rmdir(self.folder, 1)


class WorkerGroups:
    """The groups of all workers below ``own``, with this process in one beside them."""

    def __init__(self, own: Group) -> None:
        self._own = own
        self._main = own.folder / f"{PREFIX}{os.getpid()}.main"
        self._made: list[WorkerGroup] = []

    @classmethod
    def open(cls, root: Path = Path("/")) -> WorkerGroups | None:
        """Prepare the subtree; None where there is none, or others live in it."""
        own = delegated(root)
        if own is None:
            return None
        groups = cls(own)
        _sweep(own.folder)
        if groups._enter():
            return groups
        groups.close()
        return None

    def _enter(self) -> bool:
        return (
            _mkdir(self._main)
            and _write(self._main / "cgroup.procs", str(os.getpid()))
            and _write(self._own.folder / "cgroup.subtree_control", "+memory")
        )

    def new(self, pid: int) -> WorkerGroup | None:
        """A group with the worker ``pid`` in it; None where that was not possible."""
        name = f"{PREFIX}{os.getpid()}.{pid}"
        group = WorkerGroup(self._own.folder / name, f"{self._own.shown}/{name}")
        if not _mkdir(group.folder):
            return None
        if not _write(group.folder / "cgroup.procs", str(pid)):
            _rmdir(group.folder, 1)
            return None
        # A worker that lost a child to the kernel is of no use: all of it or nothing.
        _write(group.folder / "memory.oom.group", "1")
        self._made.append(group)
        return group

    def close(self) -> None:
        """Remove all groups and go back to where this process came from. Idempotent."""
        for group in self._made:
            group.remove()
            _rmdir(group.folder, REMOVE_TRIES)
        self._made.clear()
        _write(self._own.folder / "cgroup.subtree_control", "-memory")
        _write(self._own.folder / "cgroup.procs", str(os.getpid()))
        _rmdir(self._main, REMOVE_TRIES)


def _sweep(folder: Path) -> None:
    """Remove empty groups that a killed run has left."""
    try:
        left = [entry.path for entry in os.scandir(folder) if re.fullmatch(rf"{PREFIX}\d+\.\w+", entry.name)]
    except OSError:
        return
    for path in left:
        _rmdir(Path(path), 1)


def _events(text: str, name: str) -> int:
    found = re.search(rf"^{name} ([0-9]{{1,18}})$", text, re.MULTILINE)
    return int(found[1]) if found is not None else 0


def _mkdir(folder: Path) -> bool:
    try:
        os.mkdir(folder)
    except OSError:
        return False
    return True


def _rmdir(folder: Path, tries: int) -> None:
    for trial in range(tries):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            return
        except OSError:
            # Its last process is still on its way out.
            if trial + 1 < tries:
                time.sleep(0.005)
        else:
            return


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _write(file: Path, text: str) -> bool:
    try:
        fd = os.open(file, os.O_WRONLY | os.O_TRUNC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
