"""Launch: starts one worker as a loky process with its own session, channel and output pipe.

loky's own launch lets the child share the parent's stdin, stdout and stderr until its first line of Python runs, and
hands its start-up data through a pipe that can block. Here the three are set before exec, so that whatever a broken
interpreter prints is captured, and the data lies in an anonymous file. Nothing here waits for the worker; reaping
is ``slot.py``'s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from io import BytesIO
from multiprocessing import process
from multiprocessing.context import set_spawning_popen
from typing import Any

import loky  # type: ignore[import-untyped]
from loky.backend import reduction  # type: ignore[import-untyped]
from loky.backend.popen_loky_posix import Popen as LokyPopen  # type: ignore[import-untyped]

# Not by the context "loky": where joblib was imported, that is joblib's own copy of it, and every worker would import joblib.
from loky.backend.process import LokyProcess  # type: ignore[import-untyped]

from procflow.working import start

__all__ = ["WorkerProcess", "upgraded"]


def _stamps() -> dict[str, tuple[int, int, int]]:
    """What the files of procflow that are loaded here look like on disk now; zeros for one that is gone."""
    stamps = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and (name == "procflow" or name.startswith("procflow.")):
            try:
                found = os.stat(path)
                stamps[path] = (found.st_ino, found.st_size, found.st_mtime_ns)
            except OSError:
                stamps[path] = (0, 0, 0)
    return stamps


_LOADED = _stamps()
"""As the first worker is about to start: ``slot.py`` imports this last."""


def upgraded() -> str:
    """That procflow's own files are not those that this process has loaded, as a sentence; empty where they are."""
    now = _stamps()
    changed = sorted(path for path, stamp in _LOADED.items() if now.get(path) != stamp)
    if not changed:
        return ""
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return (
        f"procflow's own files have changed since this run began ({changed[0]}{more}), so new workers can't work with it: "
        "it was upgraded or edited meanwhile; let that come to its end, then resume the run"
    )


class WorkerPopen(LokyPopen):  # type: ignore[misc]
    """How a ``WorkerProcess`` is started; it never waits, the executor reaps."""

    def _launch(self, process_obj: WorkerProcess) -> None:
        data = BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(_preparation(process_obj.name), data)
            reduction.dump(LokyProcess(None, process_obj._target, process_obj.name, process_obj._args), data)
        finally:
            set_spawning_popen(None)
        fd = _anonymous_file(data.getvalue())
        try:
            command = [sys.executable, start.__file__, os.path.dirname(loky.__file__)]
            command += ["--process-name", process_obj.name, "--pipe", str(fd)]
            self.child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=process_obj.output_fd,
                stderr=process_obj.output_fd,
                pass_fds=(fd, *process_obj.inherit),
                env={**os.environ, **process_obj.env},
                start_new_session=True,
            )
        finally:
            os.close(fd)
        self.pid = self.child.pid
        self.sentinel = -1

    def poll(self, flag: int = 0) -> int | None:
        """The exit code where the executor has reaped the process."""
        code: int | None = self.returncode
        return code

    def wait(self, timeout: float | None = None) -> int | None:
        """As ``poll``: the interpreter's exit hooks must not wait for a worker."""
        return self.poll()

    def reaped(self, code: int) -> None:
        """Note the exit code that ``os.wait4`` gave."""
        self.returncode = code
        self.child.returncode = code


class WorkerProcess(LokyProcess):  # type: ignore[misc]
    """A loky process in a session of its own, with /dev/null as stdin and one descriptor as stdout and stderr.

    ``output_fd`` None leaves it those of this process.
    """

    def __init__(
        self,
        target: Callable[..., None],
        args: tuple[Any, ...],
        name: str,
        env: Mapping[str, str],
        output_fd: int | None,
        inherit: tuple[int, ...] = (),
    ) -> None:
        super().__init__(target=target, args=args, name=name, env=dict(env))
        self.output_fd = output_fd
        self.inherit = inherit

    @staticmethod
    def _Popen(process_obj: WorkerProcess) -> WorkerPopen:
        return WorkerPopen(process_obj)


def _preparation(name: str) -> dict[str, Any]:
    # What loky's child needs of its parent, without the two resource trackers that loky would start and share: where a
    # step needs one, its worker starts its own, which then cleans up as soon as that worker is gone.
    folder: str = process.ORIGINAL_DIR  # type: ignore[attr-defined]
    return {
        "log_to_stderr": False,
        "authkey": bytes(process.current_process().authkey),
        "name": name,
        "sys_path": [p or folder for p in sys.path],
        "sys_argv": sys.argv,
        "orig_dir": folder,
        "dir": os.getcwd(),
    }


def _anonymous_file(data: bytes) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("procflow-start")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
