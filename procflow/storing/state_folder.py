"""The state folder on disk: ``.procflow/`` beside the pipeline, its layout, its ids and its locks.

    .procflow/            0700, owned by who runs procflow
      .gitignore          holds ``*``
      procflow.db         the journal (``store.py`` writes it, ``history.py`` reads it)
      writer.lock         held for the length of one commit: two pipelines of one folder may run together, yet at any
                          instant one connection at most writes or checkpoints (SQLite before 3.51.3 needs that)
      locks/<name>        one kernel lock for each pipeline *file name*: runs of one file never overlap, other files of the
                          folder run beside it. The name alone counts, so two files of one name in a shared folder
                          exclude each other, which is the safe side.
      runs/<run_id>/      what one run leaves: ``logs/``, objects, reports

This file owns the checks that make the folder safe to read pickles from: it belongs to us, nobody else can write it,
nothing in it is a symbolic link. It never opens the database and never deletes anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from procflow.errors import LockHeld, StoreError
from procflow.failpoints import fp
from procflow.passive import passive
from procflow.storing.own_files import check_own, check_own_folder, open_own
from procflow.units import duration_text

__all__ = [
    "Holder",
    "RunLock",
    "StateFolder",
    "fresh_run_id",
    "is_network_mount",
    "is_safe_id",
    "locate",
    "lock_name",
    "safe_id",
]

FOLDER = ".procflow"
VARIABLE = "PROCFLOW_STATE_DIR"
_SAFE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_ENTRIES = ("procflow.db", "procflow.db-wal", "procflow.db-shm", "procflow.db-journal", "writer.lock", "locks", "runs")
# A reader that asks whether a run lives takes the lock in shared mode for some microseconds; a start must not
# mistake that for another run.
_PROBE_GRACE_S = 0.05


def is_safe_id(text: str) -> bool:
    """Whether the text may become one component of a path: 1 to 128 of ``A-Za-z0-9_.-``, no dot in front."""
    return _SAFE.fullmatch(text) is not None


def safe_id(text: str, what: str) -> str:
    """The text itself; StoreError where it may not become a file name. ``what`` names it in the message."""
    if not is_safe_id(text):
        raise StoreError(
            f"{what} {text[:200]!r} can't be a file name: use 1 to 128 of letters, digits, '_', '-' and '.', no dot first"
        )
    return text


def locate(option: str | os.PathLike[str] | None = None, pipeline_file: str | os.PathLike[str] | None = None) -> Path:
    """Where the state folder is: the option, else ``PROCFLOW_STATE_DIR``, else beside the file, else in the current folder."""
    given = option if option is not None else os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    beside = Path(pipeline_file).absolute().parent if pipeline_file is not None else Path.cwd()
    return beside / FOLDER


def lock_name(pipeline_file: str | os.PathLike[str] | None, pipeline: str) -> str:
    """The name of a pipeline's lock: its file's name, or the pipeline's own where it has no file."""
    name = os.path.basename(os.fspath(pipeline_file)) if pipeline_file is not None else pipeline
    if is_safe_id(name):
        return name
    # Names outside the grammar stay apart by their bytes, spelled in hexadecimal.
    import hashlib

    kept = re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:64].lstrip("_") or "pipeline"
    return f"{kept}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


@passive(frozen=True, slots=True)
class StateFolder:
    """A state folder that was checked; make one with ``StateFolder.open``."""

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str], create: bool = True) -> StateFolder:
        """The folder at ``path``, made (0700) where it is missing and ``create`` is true.

        With ``create`` it must also be writable. StoreError names the path and what to do.
        """
        folder = cls(Path(path).absolute())
        if create:
            folder._make()
        folder._check()
        if create:
            folder._furnish()
        return folder

    @property
    def db(self) -> Path:
        """The journal's database."""
        return self.path / "procflow.db"

    @property
    def writer_lock(self) -> Path:
        """The file whose lock a commit holds."""
        return self.path / "writer.lock"

    def run(self, run_id: str) -> Path:
        """The folder of one run (it may not exist). StoreError for an id that can't be a file name."""
        return self.path / "runs" / safe_id(run_id, "run id")

    def open_run(self, run_id: str) -> Path:
        """The folder of a run that is there, to write to or to read values from; StoreError where it is not ours alone."""
        path = self.run(run_id)
        for folder in (path, path / "logs"):
            found = _lstat(folder)
            if found is not None:
                check_own_folder(folder)
            elif folder is path:
                raise StoreError(f"{path}: the folder of this run is gone")
        return path

    def logs(self, run_id: str) -> Path:
        """The folder of a run's logs (it may not exist)."""
        return self.run(run_id) / "logs"

    def new_run(self, run_id: str | None = None, now: float | None = None) -> str:
        """Make the folder of a new run and return its id, ``YYYYMMDD-HHMMSS-xxx`` in local time unless one is given.

        ``now`` is seconds since the epoch. StoreError where the given id is taken or the folder can't be made.
        """
        for _ in range(100):
            name = run_id if run_id is not None else _new_id(time.time() if now is None else now)
            target = self.run(name)
            try:
                target.mkdir(mode=0o700)
            except FileExistsError:
                if run_id is not None:
                    raise StoreError(f"{target}: there is a run of this id already; choose another id") from None
                continue
            except OSError as error:
                raise _unusable(target, "can't be made", error) from error
            fp("run.folder.made")
            return name
        raise StoreError(f"{self.path / 'runs'}: no free run id was found in 100 tries; is the clock standing still?")

    def lock(self, name: str) -> RunLock:
        """The lock of the pipeline ``name`` (see ``lock_name``); nothing is taken yet."""
        return RunLock(self.path / "locks" / safe_id(name, "lock name"))

    def _make(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            pass  # a file or a dangling link: told by _check
        except OSError as error:
            raise _unusable(self.path, "can't be made", error) from error

    def _check(self) -> None:
        found = _lstat(self.path)
        if found is None:
            raise StoreError(
                f"{self.path}: there is no state folder; run a pipeline first, or name its folder with --state-dir"
            )
        if stat.S_ISLNK(found.st_mode):
            raise StoreError(
                f"{self.path}: is a symbolic link, which anyone who can write beside it could have planted; "
                "name its target with --state-dir"
            )
        if not stat.S_ISDIR(found.st_mode):
            raise StoreError(f"{self.path}: is a file, not a folder; move it away, or name another with --state-dir")
        check_own(self.path, found)
        for name in _ENTRIES:
            entry = _lstat(self.path / name)
            if entry is not None:
                check_own(self.path / name, entry)

    def _furnish(self) -> None:
        """Privacy, the two subfolders and the .gitignore; every step may have been done by an earlier run."""
        try:
            if stat.S_IMODE(self.path.stat().st_mode) != 0o700:
                self.path.chmod(0o700)
            for name in ("runs", "locks"):
                with contextlib.suppress(FileExistsError):
                    (self.path / name).mkdir(mode=0o700)
            with contextlib.suppress(FileExistsError):
                fd = os.open(self.path / ".gitignore", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.write(fd, b"*\n")
                finally:
                    os.close(fd)
        except OSError as error:
            raise _unusable(self.path, "can't be written", error) from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise StoreError(
                f"{self.path}: can't be written; make it writable, or name another folder with --state-dir"
            )


def fresh_run_id() -> str:
    """An id for a run that begins now; whether it is free is found out by ``StateFolder.new_run``."""
    return _new_id(time.time())


def _new_id(now: float) -> str:
    tail = "".join(secrets.choice(_BASE32) for _ in range(3))
    return time.strftime("%Y%m%d-%H%M%S-", time.localtime(now)) + tail


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, "can't be read", error) from error


def _unusable(path: Path, what: str, error: OSError) -> StoreError:
    hint = {
        errno.ENOSPC: "free some space on this disk",
        errno.EDQUOT: "free some of your quota on this disk",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "check the permissions of it and of the folders above",
    }.get(error.errno or 0, "")
    text = f"{path}: {what}: {error.strerror or error}"
    return StoreError(f"{text} ({hint}; or name another folder with --state-dir)" if hint else text)


_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|lustre|gpfs|beegfs\w*|glusterfs|fuse\.(sshfs|glusterfs|s3fs|rclone)"
)


def is_network_mount(path: Path, mounts: str | None = None) -> bool:
    """Whether a path lies on a network file system; ``mounts`` is the text of ``/proc/self/mountinfo``. False where unknown."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return False
    real, best, kind = os.path.realpath(path), "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if len(fields) < 5 or not tail:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, tail[0]
    return _NETWORK.fullmatch(kind) is not None


@passive(frozen=True, slots=True)
class Holder:
    """Who holds a run lock; ``started`` is UTC ISO text."""

    pid: int
    run_id: str
    started: str
    host: str


class RunLock:
    """A kernel lock that dies with its holder: no age, no pid test, no ``unlock`` command.

    The file stays when the lock is released, since a file that is unlinked and made anew can be locked twice.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.path = path
        self._clock = clock
        self._sleep = sleep
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self, run_id: str, wait_s: float = 0.0) -> None:
        """Take the lock, waiting up to ``wait_s`` seconds; LockHeld names the holder's pid, run and start."""
        if self._fd is not None:
            return
        try:
            fd = open_own(self.path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise _unusable(self.path, "can't be opened", error) from error
        try:
            self._take(fd, wait_s)
            started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            text = json.dumps({"pid": os.getpid(), "run_id": run_id, "started": started, "host": socket.gethostname()})
            os.ftruncate(fd, 0)
            os.pwrite(fd, text.encode(), 0)
        except OSError as error:
            os.close(fd)
            raise _unusable(self.path, "can't be locked", error) from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        fp("run.lock.taken")

    def _take(self, fd: int, wait_s: float) -> None:
        begun = self._clock()
        pause_s = 0.005
        while not try_flock(fd, fcntl.LOCK_EX):
            waited = self._clock() - begun
            left = max(wait_s, _PROBE_GRACE_S) - waited
            if left <= 0:
                raise LockHeld(self._held_text(wait_s))
            self._sleep(min(pause_s, left))
            pause_s = min(pause_s * 1.5, 0.25)

    def _held_text(self, wait_s: float) -> str:
        holder = self._read()
        who = f"pid {holder.pid}, run {holder.run_id}, started {holder.started}" if holder else "another process"
        if holder and holder.host != socket.gethostname():
            who += f" on {holder.host}"
        waited = f" after waiting {duration_text(wait_s)}" if wait_s > 0 else ""
        return f"{self.path.name} is running already{waited}: {who} holds {self.path}"

    def holder(self) -> Holder | None:
        """Who holds the lock now, None when nobody does; never waits, never creates the file."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            free = try_flock(fd, fcntl.LOCK_SH)
        except OSError:
            return None
        finally:
            os.close(fd)
        return None if free else self._read() or Holder(0, "", "", "")

    def _read(self) -> Holder | None:
        try:
            found = json.loads(self.path.read_bytes()[:4096])
            return Holder(int(found["pid"]), str(found["run_id"]), str(found["started"]), str(found["host"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def release(self) -> None:
        """Let the lock go; harmless when it isn't held."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        # Unlock by name: closing alone would leave it with a child that was forked without exec.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def try_flock(fd: int, how: int) -> bool:
    """Take a lock without waiting; False when somebody else has it."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True
