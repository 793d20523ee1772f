"""A warm server: one process with procflow imported that forks a child for each command line, so that it starts at once.

``Warm.start(words, cwd, ...)`` gives the pid of a process that is what ``python -m procflow <words>`` would be, in a session
of its own, some 300 ms earlier. The server has one thread and opens no database; each child opens its own. One command
at a time.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
DEADLINE_S = 60


class Warm:
    """Starts the server; use it in a ``with``."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE), str(HERE / "faults")))}
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "warm.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0
        )
        self._left = b""
        assert self._line() == "warm"

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.communicate(timeout=DEADLINE_S)

    def start(
        self, words: Sequence[str], cwd: Path, env: Mapping[str, str], out: Path, err: Path, prelude: str = ""
    ) -> int:
        """Begin a command with these files as stdout and stderr; its pid. ``env`` is added to the server's.

        ``prelude`` is a function (``module:name``) that the child calls before anything else. Failpoints count, too.
        """
        order = {"words": list(words), "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        order["prelude"] = prelude
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        return int(self._line())

    def ended(self, timeout_s: float = 0.0) -> int | None:
        """How the command ended, as an exit code or a negative signal number; None if it has not within that time."""
        return int(self._line()) if self._left or self._readable(timeout_s) else None

    def wait(self) -> int:
        """The same, of a command that has to end in time."""
        return int(self._line())

    def _readable(self, timeout_s: float) -> bool:
        assert self._server.stdout is not None
        return bool(select.select([self._server.stdout], [], [], timeout_s)[0])

    def _line(self) -> str:
        assert self._server.stdout is not None
        while b"\n" not in self._left:
            assert self._readable(DEADLINE_S), f"a command did not end in {DEADLINE_S} s"
            data = os.read(self._server.stdout.fileno(), 4096)
            assert data, "the warm server is gone"
            self._left += data
        line, _, self._left = self._left.partition(b"\n")
        return line.decode()


def serve() -> None:
    """The server: reads orders, forks, tells the pid, then the end."""
    warm_up()
    # What is not a command yet can't be interrupted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("warm", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            be_command(order)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def be_command(order: dict[str, object]) -> None:
    """In the child: from here on what ``python -m procflow`` is. Never returns."""
    code = 70
    try:
        os.setsid()
        os.chdir(str(order["cwd"]))
        added = order["env"]
        assert isinstance(added, dict)
        os.environ.update(added)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for target, path in ((1, order["out"]), (2, order["err"])):
            os.dup2(os.open(str(path), flags, 0o600), target)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        sys.path[0] = ""
        from procflow import failpoints
        from procflow.cli import cli

        if os.environ.get(failpoints.VARIABLE):
            from procflow.failpoint_actions import arm_from_environment

            arm_from_environment()
        if order["prelude"]:
            module, _, name = str(order["prelude"]).partition(":")
            getattr(importlib.import_module(module), name)()
        words = order["words"]
        assert isinstance(words, list)
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            cli.main(words, prog_name="procflow")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def warm_up() -> None:
    """Import what commands import, as a child found out, and build what is built at first use; no connection stays open."""
    import tempfile

    from procflow import Pipeline, Step
    from procflow.testing import run_fake

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        before = set(sys.modules)
        with contextlib.suppress(BaseException), tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            Path("p.yaml").write_text(
                "name: p\nsteps:\n  - {name: a, function: 'textwrap:dedent', params: {text: a}}\n"
            )
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            from procflow.cli import cli

            for words in (["run", "p.yaml", "-j", "1", "--run-id", "n"], ["resume"], ["show"], ["history"]):
                with contextlib.suppress(SystemExit):
                    cli.main(words)
            os.write(writer, json.dumps(sorted(set(sys.modules) - before)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as names:
        found = json.loads(names.read() or "[]")
    os.waitpid(pid, 0)
    for name in found:
        # Some modules exist only inside others; what can't be had before is imported when it is needed.
        with contextlib.suppress(ImportError):
            if not name.startswith("__"):
                importlib.import_module(name)
    with contextlib.redirect_stdout(None):
        run_fake(Pipeline("warm", steps=[Step("a", "textwrap:dedent", params={"text": "a"})]))


if __name__ == "__main__":
    serve()
