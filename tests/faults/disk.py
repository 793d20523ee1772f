"""A disk that remembers: every write, sync, truncation and removal that SQLite makes, in order, and faults on demand.

It puts itself between SQLite and its files: a copy of the default VFS becomes the default one, and the methods of every file
that it opens are replaced by ours, which note what is done and pass it on. That needs no other library than the libsqlite3
that this Python uses. Images of the disk at any instant are then made by playing the notes back: as a kill leaves
it (all writes so far), or as a power loss does (writes after the last sync may be missing or torn).
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECTOR = 512
OK, IOERR_WRITE, IOERR_FSYNC, FULL = 0, 778, 1034, 13

_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_METHODS = (
    *(("xClose", (_P,)), ("xRead", (_P, _P, _I, _L)), ("xWrite", (_P, _P, _I, _L)), ("xTruncate", (_P, _L))),
    *(("xSync", (_P, _I)), ("xFileSize", (_P, _P)), ("xLock", (_P, _I)), ("xUnlock", (_P, _I))),
    *(("xCheckReservedLock", (_P, _P)), ("xFileControl", (_P, _I, _P)), ("xSectorSize", (_P,))),
    *(("xDeviceCharacteristics", (_P,)), ("xShmMap", (_P, _I, _I, _I, _P)), ("xShmLock", (_P, _I, _I, _I))),
    *(("xShmBarrier", (_P,)), ("xShmUnmap", (_P, _I)), ("xFetch", (_P, _L, _I, _P)), ("xUnfetch", (_P, _L, _P))),
)


class _IoMethods(ctypes.Structure):
    """``sqlite3_io_methods`` of version 3."""

    _fields_ = (("iVersion", _I), *((name, _P) for name, _ in _METHODS))


class _File(ctypes.Structure):
    """``sqlite3_file``."""

    _fields_ = (("methods", ctypes.POINTER(_IoMethods)),)


class _Vfs(ctypes.Structure):
    """``sqlite3_vfs`` of version 3."""

    _fields_ = (
        *(("iVersion", _I), ("szOsFile", _I), ("mxPathname", _I), ("pNext", _P), ("zName", ctypes.c_char_p)),
        *(("pAppData", _P), ("xOpen", _P), ("xDelete", _P), ("rest", _P * 14)),
    )


# The name is a plain pointer: SQLite keeps it, so the text has to stay where it is.
_OPEN = ctypes.CFUNCTYPE(_I, _P, _P, _P, _I, _P)
_DELETE = ctypes.CFUNCTYPE(_I, _P, ctypes.c_char_p, _I)
_CALLS: dict[str, Any] = {name: ctypes.CFUNCTYPE(_I, *arguments) for name, arguments in _METHODS}


def library() -> ctypes.CDLL | None:
    """The libsqlite3 that the sqlite3 module uses; None where it is not a library of its own."""
    sqlite3.connect(":memory:").close()
    found = re.search(r"\S*/libsqlite3\.so\S*", Path("/proc/self/maps").read_text())
    return ctypes.CDLL(found[0]) if found else None


@dataclass(frozen=True)
class Op:
    """One thing done to a file: write, truncate, sync, delete, rename (``data`` is the new path) or mark."""

    what: str
    path: str
    at: int = 0
    data: bytes = b""


Image = dict[str, bytes]
"""Files by path."""


class Disk:
    """Notes of what was done, in ``ops``. ``fault`` may answer a write or a sync with an error code of SQLite."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.fault: Callable[[Op], int] = lambda op: OK
        self._names: dict[int, str] = {}
        self._methods: dict[int, _IoMethods] = {}
        self._alive: list[Any] = []

    def mark(self, text: str) -> None:
        """Note something that is not done to a file, such as what was announced."""
        self.ops.append(Op("mark", text))

    def _do(self, op: Op) -> int:
        code = self.fault(op)
        if code == OK:
            self.ops.append(op)
        return code

    # Between SQLite and its files

    @contextmanager
    def installed(self) -> Iterator[Disk]:
        """Within this, connections that are opened go through here, and so do renames and removals by Python."""
        lib = library()
        assert lib is not None
        lib.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        real = lib.sqlite3_vfs_find(None)
        own = _Vfs()
        ctypes.memmove(ctypes.byref(own), real, ctypes.sizeof(_Vfs))
        own.zName = b"remembers"
        real_open, real_delete = _OPEN(real.contents.xOpen), _DELETE(real.contents.xDelete)

        def x_open(vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
            code: int = real_open(vfs, name, file, flags, out)
            if code == OK and name is not None:
                self._names[file] = os.fsdecode(ctypes.string_at(name))
                record = _File.from_address(file)
                if record.methods:
                    record.methods = ctypes.pointer(self._ours(record.methods))
            return code

        def x_delete(vfs: int, name: bytes, sync: int) -> int:
            path = os.fsdecode(name)
            if os.path.exists(path):
                self.ops.append(Op("delete", path))
            return int(real_delete(vfs, name, sync))

        calls = _OPEN(x_open), _DELETE(x_delete)
        self._alive += [own, calls]
        own.xOpen, own.xDelete = (ctypes.cast(call, _P).value for call in calls)
        before = os.replace, os.unlink, os.pwrite
        try:
            lib.sqlite3_vfs_register(ctypes.byref(own), 1)
            os.replace = self._replace  # type: ignore[assignment]
            os.unlink = self._unlink  # type: ignore[assignment]
            os.pwrite = self._pwrite
            self._real = before
            yield self
        finally:
            os.replace, os.unlink, os.pwrite = before  # type: ignore[assignment]
            lib.sqlite3_vfs_unregister(ctypes.byref(own))
            lib.sqlite3_vfs_register(real, 1)

    def _replace(self, source: Any, target: Any, **more: Any) -> None:
        self._real[0](source, target, **more)
        self.ops.append(Op("rename", os.fspath(source), 0, os.fsencode(target)))

    def _unlink(self, path: Any, **more: Any) -> None:
        self._real[1](path, **more)
        self.ops.append(Op("delete", os.fspath(path)))

    def _pwrite(self, fd: int, data: bytes, at: int) -> int:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.basename(path).startswith("procflow."):
            self.ops.append(Op("write", path, at, bytes(data)))
        return int(self._real[2](fd, data, at))

    def _ours(self, real: Any) -> _IoMethods:
        address = ctypes.addressof(real.contents)
        if address in self._methods:
            return self._methods[address]
        own = _IoMethods()
        ctypes.memmove(ctypes.byref(own), real, ctypes.sizeof(_IoMethods))
        names = self._names
        write, truncate, sync, close = (
            _CALLS[name](getattr(own, name)) for name in ("xWrite", "xTruncate", "xSync", "xClose")
        )

        def x_write(file: int, data: int, size: int, at: int) -> int:
            code = self._do(Op("write", names[file], at, ctypes.string_at(data, size)))
            return code or int(write(file, data, size, at))

        def x_truncate(file: int, size: int) -> int:
            code = self._do(Op("truncate", names[file], size))
            return code or int(truncate(file, size))

        def x_sync(file: int, flags: int) -> int:
            code = self._do(Op("sync", names[file]))
            return code or int(sync(file, flags))

        def x_close(file: int) -> int:
            names.pop(file, None)
            return int(close(file))

        for name, call in (("xWrite", x_write), ("xTruncate", x_truncate), ("xSync", x_sync), ("xClose", x_close)):
            made = _CALLS[name](call)
            self._alive.append(made)
            setattr(own, name, ctypes.cast(made, _P).value)
        self._methods[address] = own
        return own


# Playing the notes back


def played(files: dict[str, bytearray], op: Op) -> None:
    """Do ``op`` to ``files``."""
    if op.what == "write":
        kept = files.setdefault(op.path, bytearray())
        if len(kept) < op.at:
            kept.extend(bytes(op.at - len(kept)))
        kept[op.at : op.at + len(op.data)] = op.data
    elif op.what == "truncate":
        del files.setdefault(op.path, bytearray())[op.at :]
    elif op.what == "delete":
        files.pop(op.path, None)
    elif op.what == "rename":
        files[os.fsdecode(op.data)] = files.pop(op.path, bytearray())


def after_kill(ops: Sequence[Op]) -> Iterator[tuple[int, Image]]:
    """What a kill leaves after each thing that was done: its place in ``ops`` and the files."""
    files: dict[str, bytearray] = {}
    for place, op in enumerate(ops):
        if op.what in ("mark", "sync"):
            continue
        played(files, op)
        yield place, {path: bytes(data) for path, data in files.items()}


@dataclass
class _Unsynced:
    """A file as it is for sure, and what was done to it since its last sync."""

    sure: bytearray = field(default_factory=bytearray)
    since: list[Op] = field(default_factory=list)


def after_power_loss(ops: Sequence[Op], chance: random.Random, each: int) -> Iterator[tuple[int, Image]]:
    """What a power loss may leave: at each sync and at some writes between, ``each`` images.

    Whatever was not synced is kept, dropped, or torn by sectors, at random and file by file; torn sectors may hold
    rubbish. Removals and renames are taken as done, since the code under test syncs the folder where that matters.
    """
    files: dict[str, _Unsynced] = {}
    for place, op in enumerate(ops):
        if op.what == "mark":
            continue
        if op.what in ("sync", "delete") or chance.random() < 0.1:
            for _ in range(each):
                yield place, {path: _torn(one, chance) for path, one in files.items()}
        if op.what == "sync":
            one = files.setdefault(op.path, _Unsynced())
            for earlier in one.since:
                played({op.path: one.sure}, earlier)
            one.since.clear()
        elif op.what == "delete":
            files.pop(op.path, None)
        elif op.what == "rename":
            files[os.fsdecode(op.data)] = files.pop(op.path, _Unsynced())
        else:
            files.setdefault(op.path, _Unsynced()).since.append(op)


def _torn(one: _Unsynced, chance: random.Random) -> bytes:
    data = bytearray(one.sure)
    keep = chance.choice((0.0, 0.2, 0.5, 0.9, 1.0))
    for op in one.since:
        if op.what == "truncate":
            if chance.random() < keep:
                played({op.path: data}, op)
            continue
        for at in range(0, len(op.data), SECTOR):
            luck = chance.random()
            piece = op.data[at : at + SECTOR]
            if luck > keep:
                continue
            if keep < 1.0 and chance.random() < 0.05:
                piece = chance.randbytes(len(piece))
            played({op.path: data}, Op("write", op.path, op.at + at, piece))
    return bytes(data)


def lay_down(image: Image, folder: Path, at: Path) -> None:
    """Write an image of the files of ``folder`` into the folder ``at``, which then holds nothing else of a journal."""
    for old in at.glob("procflow.*"):
        old.unlink()
    for path, data in image.items():
        place = at / Path(path).relative_to(folder)
        place.write_bytes(data)
        place.chmod(0o600)
