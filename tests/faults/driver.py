"""A driver: one warm process that forks a child for each session of a run, so that a kill costs a hundredth of a second.

``Driver.session`` asks it to run (or resume) the night with failpoints armed, and tells how the child ended. The driver
itself never opens a database, since SQLite's connections must not be carried across a fork; every child opens its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEADLINE_S = 30


@dataclass(frozen=True)
class Order:
    """One session: ``failpoints`` as in ``PROCFLOW_FAILPOINTS``, ``eager`` to commit at every turn of the loop."""

    state: str
    ledger: str
    said: str
    run_id: str = "night"
    resume: bool = False
    failpoints: str = ""
    eager: bool = False
    shape: float = 1.0
    executor: str = "inline"
    answer: str = ""


class Driver:
    """Starts the process; use it in a ``with``."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE.parents[1]), str(HERE)))}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate(timeout=DEADLINE_S)

    def session(self, order: Order) -> tuple[int, dict[str, Any]]:
        """How it ended, as an exit code or a negative signal number, and what the child answered if it came so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            os.unlink(order.answer)
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], DEADLINE_S)
        assert ready, f"a session did not end in {DEADLINE_S} s: {order}"
        status = int(self._process.stdout.readline())
        answer = Path(order.answer)
        return status, json.loads(answer.read_text()) if answer.exists() else {}


def perform(order: Order) -> None:
    """In the child: one session of the run. Its answer tells the outcome, or the error."""
    import ledger
    import night

    from procflow import engine, failpoints
    from procflow.errors import ProcflowError
    from procflow.failpoint_actions import Failpoints

    os.environ[ledger.VARIABLE] = order.ledger
    if order.eager:
        engine.COMMIT_S = engine.COMMIT_MOST_S = 0.0
    passes = Failpoints(order.failpoints)
    failpoints.arm(passes)
    try:
        result = night.session(
            order.state, order.run_id, order.resume, night.Said(order.said), order.shape, order.executor
        )
    except ProcflowError as error:
        told = {"error": type(error).__name__, "message": str(error), "code": error.exit_code}
    else:
        # By the parent's own hand: values of steps that were kept have to open as well.
        outputs = {name: result.outputs[name] for name in result.outputs}
        told = {"status": result.status, "outputs": outputs, "code": result.exit_code}
    failpoints.arm(None)
    told["passed"] = dict(passes.passed)
    Path(order.answer).write_text(json.dumps(told))


def main() -> None:
    """Serve orders, a line of JSON each, until stdin ends."""
    import tempfile

    import images
    import night

    from procflow.testing import run_fake

    # Everything is imported by a run that nobody looks at, in a child too: the parent stays free of connections.
    with tempfile.TemporaryDirectory(dir=images.shared_memory()) as warm:
        _import(night, warm)
    # What is built at first use (models, patterns) is built here, by a run in fake time that opens no database.
    with contextlib.redirect_stdout(None):
        run_fake(night.night(0.1))
    for line in sys.stdin:
        order = Order(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                perform(order)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(status, flush=True)


def _import(night: Any, warm: str) -> None:
    import importlib

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        before = set(sys.modules)
        try:
            night.session(os.path.join(warm, "state"), "warm", False, night.Said(os.path.join(warm, "said")), 0.1)
            os.write(writer, json.dumps(sorted(set(sys.modules) - before)).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as names:
        text = names.read()
    os.waitpid(pid, 0)
    for name in json.loads(text or "[]"):
        if not name.startswith("__"):
            importlib.import_module(name)


if __name__ == "__main__":
    main()
