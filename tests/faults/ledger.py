"""The ledger: what steps really did, written by themselves, and the law that it has to keep.

A step appends ``key attempt pid start`` and ``... end``, each by one ``write`` with O_APPEND, so lines of many processes and
of killed ones stay whole. ``check_law`` compares the lines with the faults that were made. The counts of all tests are
in ``COUNTS``; ``conftest.py`` prints them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from procflow import step

VARIABLE = "FAULT_LEDGER"
COUNTS: Counter[str] = Counter({"kill points": 0, "images": 0, "LOST": 0, "DUP": 0, "ORPHANS": 0, "law violations": 0})


@dataclass(frozen=True)
class Line:
    """One line of the ledger."""

    key: str
    attempt: int
    pid: int
    what: str


def write(key: str, what: str) -> None:
    """Append a line about the attempt that runs; nothing where no ledger is named."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{key} {step.attempt} {os.getpid()} {what}\n".encode())
    finally:
        os.close(fd)


def read(path: Path) -> list[Line]:
    """All lines; none where no step has begun."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else []:
        key, attempt, pid, what = text.split()
        found.append(Line(key, int(attempt), int(pid), what))
    return found


def starts(lines: Iterable[Line]) -> Counter[str]:
    """How often each key began."""
    return Counter(line.key for line in lines if line.what == "start")


def count(name: str, number: int) -> None:
    """Add to a count of the summary."""
    COUNTS[name] += number


def check_law(
    lines: Iterable[Line],
    keys: Iterable[str],
    *,
    faults: Mapping[str, int] | None = None,
    kills: int = 0,
    slots: int = 1,
) -> None:
    """STARTS = N + retries, each retry owed to a fault made on that very key; a kill of the parent costs at most one
    task a slot.

    Keys ``map/item`` are items of a map and a task may be a batch of them, so the item that began most often counts.
    """
    began, wanted, faults = starts(lines), set(keys), dict(faults or {})
    wrong = []
    if strange := set(began) - wanted:
        wrong.append(f"keys that nobody declared: {sorted(strange)}")
    if idle := wanted - set(began):
        wrong.append(f"never began: {sorted(idle)}")
    again = {key: began[key] - 1 - faults.get(key, 0) for key in began}
    if short := {key: number for key, number in again.items() if number < 0}:
        wrong.append(f"began less often than faults were made: {short}")
    cost: Counter[str] = Counter()
    for key, number in again.items():
        place = key.partition("/")[0]
        cost[place] = max(cost[place], number)
    if cost.total() > kills * slots:
        wrong.append(f"began again without a fault ({kills} kills on {slots} slots): {+cost}")
    count("law violations", len(wrong))
    assert not wrong, "; ".join(wrong)


def check_lost(announced: Iterable[tuple[str, ...]], present: Iterable[tuple[str, ...]]) -> None:
    """LOST = announced - present = 0."""
    lost = set(announced) - set(present)
    count("LOST", len(lost))
    assert not lost, f"announced and not there: {sorted(lost)}"


def check_once(results: Iterable[tuple[str, ...]]) -> None:
    """DUP = results of one key beyond the first = 0."""
    many = {key: number - 1 for key, number in Counter(results).items() if number > 1}
    count("DUP", sum(many.values()))
    assert not many, f"results that are there more than once: {many}"


def check_no_orphans(token: str) -> None:
    """ORPHANS = processes that bear the token in their environment = 0."""
    orphans = bearers(token)
    count("ORPHANS", len(orphans))
    assert not orphans, f"processes of the run are left: {orphans}"


def bearers(token: str) -> list[int]:
    """Processes other than this one with the token in their environment."""
    found, needle = [], token.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if needle in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
