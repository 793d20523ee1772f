"""Cgroup: the limits that Linux control groups put on this process, v1, v2 and both together.

Reads ``/proc/self/cgroup``, ``/proc/self/mountinfo`` and the limit files of the own group and of all its ancestors,
because a limit often stands far above. Everything is read below ``root``. A file that is missing, empty or odd counts
as no limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from procflow.passive import passive

__all__ = [
    "Group",
    "Limit",
    "cpu_limit",
    "groups",
    "kills_together",
    "memory_headroom",
    "memory_limit",
    "oom_kills",
    "oom_source",
]

_NONE = 1 << 60
"""Numbers from here on mean no limit: v1 writes 2^63 less a page."""


@passive(frozen=True, slots=True)
class Limit:
    """An amount (cores or bytes) and the file that says so."""

    amount: float
    source: str


@passive(frozen=True, slots=True)
class Group:
    """One group on the way from this process's own to the top of its hierarchy.

    ``folder`` is where its files are, ``shown`` the same without ``root``. ``version`` is 1 or 2; ``controllers`` are
    those of a v1 hierarchy.
    """

    folder: Path
    shown: str
    version: int
    controllers: frozenset[str] = frozenset()

    def text(self, file: str) -> str:
        """The text of one of its files, stripped; empty where there is none to read."""
        try:
            return (self.folder / file).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def number(self, file: str) -> int | None:
        """A limit in bytes or microseconds; None for ``max``, nothing, or a number that means no limit."""
        text = self.text(file)
        return value if (value := _count(text)) is not None and 0 < value < _NONE else None


def groups(root: Path) -> list[Group]:
    """All groups that bind this process, each hierarchy from its own group outwards."""
    paths = dict(_own_paths(root))
    found: list[Group] = []
    for version, controllers, mounted_root, mount in _mounts(root):
        key = "" if version == 2 else next((c for c in paths if c and controllers >= set(c.split(","))), None)
        path = paths.get(key) if key is not None else None
        if path is None:
            continue
        for part in _upwards(path, mounted_root):
            shown = f"{mount.rstrip('/')}/{part}".rstrip("/")
            found.append(Group(root / shown.lstrip("/"), shown, version, controllers))
    return found


def memory_limit(found: list[Group]) -> Limit | None:
    """The smallest memory limit of the groups, in bytes."""
    limits = [
        Limit(amount, f"{group.shown}/{file}")
        for group in found
        for file in _memory_files(group)
        if (amount := group.number(file)) is not None
    ]
    return min(limits, key=lambda limit: limit.amount, default=None)


def memory_headroom(found: list[Group]) -> int | None:
    """Bytes that the tightest group still allows; page cache that can be dropped counts as free. None without limits."""
    rooms = []
    for group in found:
        amounts = [amount for file in _memory_files(group) if (amount := group.number(file)) is not None]
        if amounts:
            is_v2 = group.version == 2
            used = group.text("memory.current" if is_v2 else "memory.usage_in_bytes")
            cache = re.search(
                rf"^{'' if is_v2 else 'total_'}inactive_file ([0-9]{{1,19}})$", group.text("memory.stat"), re.MULTILINE
            )
            in_use = (_count(used) or 0) - (int(cache[1]) if cache is not None else 0)
            rooms.append(max(0, min(amounts) - max(0, in_use)))
    return min(rooms, default=None)


def cpu_limit(found: list[Group]) -> Limit | None:
    """The smallest CPU quota of the groups, in cores (1.5 is one and a half)."""
    limits = []
    for group in found:
        if group.version == 2:
            quota, _, period = group.text("cpu.max").partition(" ")
            file = "cpu.max"
        elif "cpu" in group.controllers:
            quota, period = group.text("cpu.cfs_quota_us"), group.text("cpu.cfs_period_us")
            file = "cpu.cfs_quota_us"
        else:
            continue
        share, of = _count(quota), _count(period or "100000")
        if share and of:
            limits.append(Limit(share / of, f"{group.shown}/{file}"))
    return min(limits, key=lambda limit: limit.amount, default=None)


def oom_kills(found: list[Group], root: Path) -> int:
    """How many processes the kernel has killed for want of memory in this process's own group (and, v2, below it).

    Without a group that counts, all of the machine.
    """
    group, file = _counter(found)
    text = group.text(file) if group is not None else "\n".join(_lines(root / "proc/vmstat"))
    count = re.search(r"^oom_kill ([0-9]{1,18})$", text, re.MULTILINE)
    return int(count[1]) if count is not None else 0


def oom_source(found: list[Group]) -> str:
    """The file that ``oom_kills`` reads."""
    group, file = _counter(found)
    return f"{group.shown}/{file}" if group is not None else "/proc/vmstat"


def kills_together(found: list[Group]) -> str:
    """The file that tells the kernel to kill a whole group, this process with it, where memory runs out; else empty."""
    sources = (f"{g.shown}/memory.oom.group" for g in found if g.version == 2 and g.text("memory.oom.group") == "1")
    return next(sources, "")


def _counter(found: list[Group]) -> tuple[Group | None, str]:
    """The first group that counts the kernel's kills, and the file it does so in."""
    for group in found:
        file = "memory.events" if group.version == 2 else "memory.oom_control"
        if (group.version == 2 or "memory" in group.controllers) and "oom_kill " in group.text(file):
            return group, file
    return None, ""


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _memory_files(group: Group) -> tuple[str, ...]:
    if group.version == 2:
        return ("memory.max", "memory.high")
    return ("memory.limit_in_bytes",) if "memory" in group.controllers else ()


def _own_paths(root: Path) -> Iterator[tuple[str, str]]:
    """The own group of each hierarchy: controllers (empty for v2) and path."""
    for line in _lines(root / "proc/self/cgroup"):
        parts = line.split(":", 2)
        if len(parts) == 3:
            yield parts[1], parts[2]


def _mounts(root: Path) -> Iterator[tuple[int, frozenset[str], str, str]]:
    """Mounted hierarchies: version, controllers, the group that is mounted, and where."""
    for line in _lines(root / "proc/self/mountinfo"):
        left, dash, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if not dash or len(fields) < 5 or not kind[0].startswith("cgroup"):
            continue
        mounted_root, mount = (_unescaped(text) for text in fields[3:5])
        if kind[0] == "cgroup2":
            yield 2, frozenset(), mounted_root, mount
        elif kind[0] == "cgroup":
            yield 1, frozenset(kind[-1].split(",")), mounted_root, mount


def _upwards(path: str, mounted_root: str) -> Iterator[str]:
    """Folders below the mount, from the group at ``path`` up to the mount itself."""
    parts = [p for p in path.split("/") if p]
    top = [p for p in mounted_root.split("/") if p]
    inside = parts[len(top) :] if parts[: len(top)] == top else []
    if ".." in inside:  # the group lies outside this namespace: only the mounted top can be seen
        inside = []
    for length in range(len(inside), -1, -1):
        yield "/".join(inside[:length])


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
