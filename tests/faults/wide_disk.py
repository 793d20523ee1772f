"""A disk that remembers the whole of a run: the journal, and also its tail and the files of its values.

On top of ``disk.Disk`` it notes what Python itself writes, cuts, syncs and renames in ``tails/`` and ``objects/``. Refs hold the
paths of their files, so images are laid down in the place where the run was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from disk import Disk, Image, Op


class WideDisk(Disk):
    """A ``Disk`` for one state folder. Files of values are never synced."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root = str(root)

    def _wide(self, path: str) -> bool:
        return path.startswith(self._root) and ("/tails/" in path or "/objects/" in path)

    def _path(self, fd: int) -> str:
        path = os.readlink(f"/proc/self/fd/{fd}")
        return path if self._wide(path) else ""

    @contextmanager
    def installed(self) -> Iterator[WideDisk]:
        """As ``Disk.installed``, with the calls of tails and values."""
        write, cut, sync, rename = os.write, os.ftruncate, os.fsync, os.rename

        def our_write(fd: int, data: Any) -> int:
            path = self._path(fd)
            at = os.fstat(fd).st_size if path else 0
            done = write(fd, data)
            if path:
                self.ops.append(Op("write", path, at, bytes(data)[:done]))
            return done

        def our_cut(fd: int, size: int) -> None:
            cut(fd, size)
            if path := self._path(fd):
                self.ops.append(Op("truncate", path, size))

        def our_sync(fd: int) -> None:
            sync(fd)
            if path := self._path(fd):
                self.ops.append(Op("sync", path))

        def our_rename(source: Any, target: Any, **more: Any) -> None:
            rename(source, target, **more)
            if self._wide(os.fspath(source)):
                self.ops.append(Op("rename", os.fspath(source), 0, os.fsencode(target)))

        with super().installed():
            os.write, os.ftruncate, os.fsync, os.rename = our_write, our_cut, our_sync, our_rename  # type: ignore[assignment]
            try:
                yield self
            finally:
                os.write, os.ftruncate, os.fsync, os.rename = write, cut, sync, rename

    def _pwrite(self, fd: int, data: Any, at: int) -> int:
        if not (path := self._path(fd)):
            return super()._pwrite(fd, data, at)
        done = int(self._real[2](fd, data, at))
        self.ops.append(Op("write", path, at, bytes(data)[:done]))
        return done


def lay_down_all(image: Image, folder: Path) -> None:
    """Make the state folder hold the files of an image, and no other journal, tail or value."""
    for old in [*folder.glob("procflow.*"), *folder.glob("tails/*"), *folder.glob("runs/*/objects/**/*")]:
        if old.is_file():
            old.unlink()
    for path, data in image.items():
        place = Path(path)
        if place.is_relative_to(folder):
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            place.write_bytes(data)
            place.chmod(0o600)
