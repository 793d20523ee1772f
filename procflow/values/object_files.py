"""Object files: large values as files of a run's object folder, mapped by whoever reads them.

    <folder>/<id>            a value
    <folder>/tmp-<id>        a value that is being written
    <folder>/free/<bytes>-<id>  a file that nobody needs any more, kept for a while to be written again

A worker writes a value straight from its buffers, readers map it: no copy, and arrays are read-only. Writing a file
whose memory the kernel has handed out before is many times faster than writing a new one, so a few files that were freed
are kept to be used again, but never one that somebody still maps: a step may have put an array of an old input into a
global, and must not see it change.

Durability: SIGKILL of anyone loses nothing that was written. Nothing is synced on the way, which would cost more than all
else of a value: after a power loss a file may be gone or torn, which its digest shows, and then that step alone runs again.
This file never decides how long a value lives, and never unpickles; reading is ``object_views.py``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import signal
import stat
from collections import deque
from collections.abc import Iterable, Sequence

from procflow.errors import ProcflowError, StoreError
from procflow.ref import Stored
from procflow.units import size_text
from procflow.values.object_views import aligned, map_file, total_bytes

__all__ = ["NotStored", "ObjectFolder", "folder", "make_folder", "remove", "use"]

FREE_MIN_BYTES = 1 << 20
"""Smaller files are made anew as quickly."""
FREE_FILES = 8
FREE_BYTES = 1 << 30
FREE_SLACK = 1.25
"""A free file is taken for a value of its size down to this part of it."""
WRITE_BYTES = 1 << 30

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
_FREE = "free"
_TMP = "tmp-"

Buffer = bytes | memoryview


class NotStored(ProcflowError):
    """A value can't be written, mostly because the disk is full; the message names its size and the folder."""


class ObjectFolder:
    """The object folder of a run, in this process; ``path`` is absolute and exists.

    Any number of processes may write; ``free`` and ``clean`` are the parent's alone.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._free = os.path.join(path, _FREE)
        self._kept: deque[tuple[str, int]] = deque()
        self._tells_mappings: bool | None = None

    # -- what a worker does ------------------------------------------------------------------------------------

    def write(self, data: bytes, buffers: Sequence[memoryview] = ()) -> Stored:
        """Store a pickle and its out-of-band buffers (contiguous bytes); ``NotStored`` where that fails, all or nothing."""
        import xxhash

        parts: list[Buffer] = [data, *buffers]
        lengths = tuple(len(part) for part in parts)
        total = total_bytes(lengths)
        name = secrets.token_hex(12)
        path, temporary = os.path.join(self.path, name), os.path.join(self.path, _TMP + name)
        digest = xxhash.xxh3_128()
        fd: int | None = None
        try:
            fd = self._claim(total, temporary)
            if fd is None:
                fd = self._fresh(temporary, total)
            at = 0
            for part in parts:
                _write(fd, part, at)
                digest.update(part)
                at = aligned(at + len(part))
            os.ftruncate(fd, total)
            os.rename(temporary, path)
        except BaseException as error:
            for left in (temporary, path):
                with contextlib.suppress(OSError):
                    os.unlink(left)
            if isinstance(error, OSError):
                raise NotStored(_not_stored(self.path, total, error)) from error
            raise
        finally:
            if fd is not None:
                os.close(fd)
        return Stored(path, lengths, digest.digest())

    def _fresh(self, temporary: str, total: int) -> int:
        """A new file with its room on the disk; where the disk is full, free files make room first."""
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            try:
                _allocate(fd, total)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._empty_free():
                    raise
                _allocate(fd, total)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _claim(self, total: int, temporary: str) -> int | None:
        """A free file of about this size, now under the name ``temporary``; None where there is none to be had."""
        if total < FREE_MIN_BYTES:
            return None
        sizes = sorted((size, name) for name, size in self._free_files() if total <= size <= total * FREE_SLACK)
        for _, name in sizes:
            try:
                os.rename(os.path.join(self._free, name), temporary)
            except FileNotFoundError:
                continue  # another worker was quicker
            fd = self._alone(temporary)
            if fd is not None:
                return fd
            os.unlink(temporary)
        return None

    def _alone(self, path: str) -> int | None:
        """The file opened for writing, if nobody else has it open or mapped; its name is known to nobody else."""
        if self._tells_mappings is None:
            self._tells_mappings = self._probe()
        if not self._tells_mappings:
            return None
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | _FLAGS)
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid() and _sole(fd):
                return fd
        except OSError:
            pass
        if fd >= 0:
            os.close(fd)
        return None

    def _probe(self) -> bool:
        """Whether a lease is refused here while a file is mapped; on stacked or remote file systems it may not be."""
        path = os.path.join(self.path, f"{_TMP}{secrets.token_hex(12)}")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
            try:
                os.write(fd, b"procflow")
                reader = os.open(path, os.O_RDONLY | _FLAGS)
                try:
                    mapped = map_file(reader, 8)
                finally:
                    os.close(reader)
                refused = not _sole(fd)
                del mapped
                return refused and _sole(fd)
            finally:
                os.unlink(path)
                os.close(fd)
        except OSError:
            return False

    # -- what the parent does ----------------------------------------------------------------------------------

    def free(self, stored: Stored) -> None:
        """Nobody needs the value any more: keep its file to be written again, or remove it. Never raises.

        A file of another folder (a run that this one builds on) is left alone; one that is gone is no error.
        """
        if os.path.dirname(stored.path) != self.path:
            return
        total = total_bytes(stored.lengths)
        if not FREE_MIN_BYTES <= total <= FREE_BYTES:
            _remove(stored.path)
            return
        name = f"{total}-{os.path.basename(stored.path)}"
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._free, 0o700)
            os.rename(stored.path, os.path.join(self._free, name))
        except OSError:
            _remove(stored.path)
            return
        self._kept.append((name, total))
        self._bound()

    def _bound(self) -> None:
        """Remove the oldest free files over the bounds; those that were claimed meanwhile don't count."""
        there = dict(self._free_files())
        kept = self._kept = deque((name, size) for name, size in self._kept if name in there)
        while len(kept) > FREE_FILES or sum(size for _, size in kept) > FREE_BYTES:
            _remove(os.path.join(self._free, kept.popleft()[0]))

    def clean(self, needed: Iterable[str]) -> None:
        """Remove all that is not among the ``needed`` paths: what killed attempts left, and free files. Never raises.

        To be called only while nobody writes.
        """
        keep = {os.path.basename(path) for path in needed if os.path.dirname(path) == self.path}
        self._empty_free()
        with contextlib.suppress(OSError):
            os.rmdir(self._free)
        with contextlib.suppress(OSError):
            for name in os.listdir(self.path):
                if name not in keep:
                    _remove(os.path.join(self.path, name))

    @property
    def used(self) -> bool:
        """Whether anything lies in the folder."""
        try:
            with os.scandir(self.path) as entries:
                return next(entries, None) is not None
        except OSError:
            return False

    # -- both --------------------------------------------------------------------------------------------------

    def _free_files(self) -> list[tuple[str, int]]:
        try:
            names = os.listdir(self._free)
        except OSError:
            return []
        return [(name, int(size)) for name in names if (size := name.partition("-")[0]).isdigit()]

    def _empty_free(self) -> bool:
        """Remove all free files; whether there were any."""
        found = self._free_files()
        for name, _ in found:
            _remove(os.path.join(self._free, name))
        self._kept.clear()
        return bool(found)


_folders: dict[str, ObjectFolder] = {}


def folder(path: str) -> ObjectFolder:
    """The folder at ``path`` for those who write to it; the same object each time."""
    found = _folders.get(path)
    if found is None:
        found = _folders[path] = ObjectFolder(path)
    return found


def use(own: ObjectFolder) -> None:
    """From here on ``folder`` gives this one for its path."""
    if not isinstance(_folders.get(own.path), type(own)):
        _folders[own.path] = own


def make_folder(path: str) -> ObjectFolder:
    """The folder at ``path`` for the parent, made (0700) where it is missing; StoreError where it can't be had."""
    # Workers have no need of these.
    from pathlib import Path

    from procflow.storing.own_files import check_own_folder

    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        check_own_folder(Path(path))
    except OSError as error:
        raise StoreError(f"{path}: can't be made: {error.strerror or error}") from error
    return folder(path)


def remove(stored: Stored) -> None:
    """Remove the file of a value that nobody was told of."""
    _remove(stored.path)


def _allocate(fd: int, total: int) -> None:
    try:
        os.posix_fallocate(fd, 0, total)
    except OSError as error:
        # Not to be had on this file system: the writes will tell.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _write(fd: int, part: Buffer, at: int) -> None:
    view = memoryview(part)
    while view:
        count = os.pwrite(fd, view[:WRITE_BYTES], at)
        view = view[count:]
        at += count


def _sole(fd: int) -> bool:
    """Whether this is the only open description of the file; the kernel grants a write lease to no other."""
    try:
        # Whoever opens it in this moment makes the kernel signal us; SIGIO, the default, would end the process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _not_stored(folder: str, total: int, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "; free some space, or name another folder with --state-dir" if full else ""
    return f"a value of {size_text(total)} can't be stored in {folder}: {error.strerror or error}{hint}"


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
