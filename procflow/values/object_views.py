"""Object views: the files of large values as read-only memory, and whether they still hold what was written.

A file holds a value's pickle, then its out-of-band buffers, each part at a multiple of 64 bytes. Readers map it and
share one copy; arrays made of it can't be written to. This file never writes, never removes and never unpickles.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import weakref
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from procflow.errors import ProcflowError, StoreError
from procflow.ref import Stored

__all__ = ["Gone", "aligned", "map_file", "open_stored", "total_bytes", "verify"]

ALIGN = 64
MAPPED_BYTES = 1 << 20
"""Smaller files are read: that takes no longer, and the number of mappings of a process is bounded."""
READ_BYTES = 8 << 20


class Gone(ProcflowError):
    """The file of a value is missing, or not what was written; the message names it."""


def aligned(at: int) -> int:
    """Where the part after one that ends at ``at`` begins."""
    return -(-at // ALIGN) * ALIGN


def total_bytes(lengths: Iterable[int]) -> int:
    """Bytes of the file: all parts but the last are filled up."""
    end = at = 0
    for length in lengths:
        end = at + length
        at = aligned(end)
    return end


def open_stored(stored: Stored, private: bool = False) -> tuple[memoryview, list[memoryview]]:
    """The pickle and its buffers as read-only views of the mapped file, which stays mapped as long as any of them.

    With ``private`` they can be written to: what is written is copied page by page and seen by nobody else. ``Gone`` where
    the file is missing or of another length, StoreError where it is not ours alone.
    """
    total = total_bytes(stored.lengths)
    fd = _open_own(stored, total)
    try:
        whole = map_file(fd, total, private) if total >= MAPPED_BYTES else None
        if whole is None:
            whole = _read(fd, total, stored.path)
            whole = whole if private else whole.toreadonly()
    finally:
        os.close(fd)
    views = []
    at = 0
    for length in stored.lengths:
        views.append(whole[at : at + length])
        at = aligned(at + length)
    return views[0], views[1:]


def verify(stored: Stored) -> str:
    """What is wrong with the file of a value; empty where it holds what was written. Reads all of it."""
    import xxhash

    try:
        fd = _open_own(stored, total_bytes(stored.lengths))
    except (Gone, StoreError) as error:
        return str(error)
    digest = xxhash.xxh3_128()
    block = memoryview(bytearray(min(READ_BYTES, max(stored.lengths, default=0))))
    try:
        at = 0
        for length in stored.lengths:
            done = 0
            while done < length:
                count = os.preadv(fd, [block[: length - done]], at + done)
                if not count:
                    return f"{stored.path}: it became shorter while it was read"
                digest.update(block[:count])
                done += count
            at = aligned(at + length)
    except OSError as error:
        return f"{stored.path}: can't be read: {error.strerror}"
    finally:
        os.close(fd)
    return "" if digest.digest() == stored.digest else f"{stored.path}: its content is not what was written (digest)"


def _open_own(stored: Stored, total: int) -> int:
    path = stored.path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY)
    except FileNotFoundError:
        raise Gone(
            f"{path}: the file of this value is gone; procflow removes large values once every step that reads them is "
            "done (keep: [name] keeps one); a resume makes it anew"
        ) from None
    except OSError as error:
        raise StoreError(f"{path}: can't be opened: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022 or found.st_nlink > 1:
            own_files: Any = import_module("procflow.storing.own_files")
            own_files.check_own(path, found)
        if not stat.S_ISREG(found.st_mode) or found.st_size != total:
            raise Gone(
                f"{path}: is damaged: {found.st_size} bytes are there, {total} were written; a resume makes it anew"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


_libc: Any = None


def map_file(fd: int, length: int, private: bool = False) -> memoryview | None:
    """A read-only view of a file, unmapped when nobody holds it any more; None where the kernel refuses.

    With ``private`` it can be written to, and what is written never reaches the file.

    Not by the module ``mmap``, which keeps a descriptor a mapping: a list of a thousand arrays would use them up.
    """
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
        _libc.mmap.restype = ctypes.c_void_p
        _libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
        _libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    access, kind = (mmap.PROT_READ, mmap.MAP_SHARED)
    if private:
        access, kind = (mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE)
    address = _libc.mmap(None, length, access, kind, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    memory = (ctypes.c_char * length).from_address(address)
    # Never at exit: arrays may still be looked at then, and the mapping ends with the process anyway.
    weakref.finalize(memory, _libc.munmap, address, length).atexit = False
    view = memoryview(memory).cast("B")
    return view if private else view.toreadonly()


def _read(fd: int, length: int, path: str) -> memoryview:
    block = memoryview(bytearray(length))
    done = 0
    while done < length:
        count = os.preadv(fd, [block[done:]], done)
        if not count:
            raise Gone(f"{path}: it became shorter while it was read")
        done += count
    return block
