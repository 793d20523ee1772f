"""Own files: files and folders that are safe to write to and to read pickles from, because only we can have made them.

They belong to the user who runs procflow, nobody else may write them, they are no symbolic link, and a file has no
second name (hard link), through which what is written would land elsewhere. This file checks and opens; it never
creates a folder, never changes a mode and never removes anything.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from procflow.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_own", "check_own_folder", "open_own"]


def check_own(path: Path | str, found: os.stat_result) -> None:
    """StoreError, with what to do, where ``found`` (of ``lstat`` or ``fstat``) is not ours alone."""
    if stat.S_ISLNK(found.st_mode):
        raise StoreError(f"{path}: is a symbolic link; procflow uses none: remove it")
    if found.st_uid != os.geteuid():
        raise StoreError(
            f"{path}: belongs to user {found.st_uid}, not to you (user {os.geteuid()}); procflow reads pickles from it, "
            "so it must be yours: run as its owner, chown it, or name another folder with --state-dir"
        )
    if found.st_mode & 0o022:
        raise StoreError(
            f"{path}: others may write it (mode {stat.S_IMODE(found.st_mode):04o}), and procflow reads pickles from it; "
            f"if you trust what is in it: chmod -R go-w {path}"
        )
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        raise StoreError(
            f"{path}: has {found.st_nlink} names (hard links), so what is written to it would change another file, too; "
            "put a copy in its place"
        )


def check_own_folder(path: Path) -> None:
    """StoreError where ``path`` is there and is no folder of ours; OSError where that can't be told."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    check_own(path, found)
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{path}: is no folder; move it away")


def open_own(path: Path | str, flags: int) -> int:
    """A descriptor of a plain file of ours, made (0600) with ``O_CREAT``. StoreError where it is a trap, else OSError."""
    # A pipe in its place would make the open wait for ever.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    try:
        found = os.fstat(fd)
        check_own(path, found)
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path}: is no plain file; move it away")
    except BaseException:
        os.close(fd)
        raise
    return fd
