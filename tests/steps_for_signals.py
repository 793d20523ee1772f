"""Steps that the tests of signals, locks and the reaper run. Workers import this module by name, so it is light."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

DAEMON = """
import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
open({0!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""


def quick() -> int:
    return 1


def start_daemon(folder: str) -> int:
    """A process that forked twice and leads no session that anybody knows; its pid."""
    path = Path(folder, "daemon")
    path.unlink(missing_ok=True)
    subprocess.run(["python3", "-S", "-c", DAEMON.format(str(path))], check=True, stdin=subprocess.DEVNULL)
    until = time.monotonic() + 10
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.005)
    return int(path.read_text())


def polite(folder: str) -> None:
    """Leaves a daemon, takes a minute, and tidies up when it is told to end."""

    def tidy(number: int, frame: object) -> None:
        time.sleep(0.1)
        Path(folder, "tidied").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, tidy)
    start_daemon(folder)
    _at_work(folder)


def stubborn(folder: str) -> None:
    """Leaves a daemon, takes a minute, and does not listen."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_daemon(folder)
    _at_work(folder)


def detached(folder: str) -> None:
    """A worker that has lost its death signal."""
    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
    polite(folder)


def polite_item(item: int, folder: str) -> int:
    if item == 0:
        polite(folder)
    time.sleep(0.01)
    return item


def stubborn_item(item: int, folder: str) -> int:
    if item == 0:
        stubborn(folder)
    time.sleep(0.01)
    return item


def _at_work(folder: str) -> None:
    path = Path(folder, f"working-{os.getpid()}")
    path.touch()
    time.sleep(60)


def environment() -> dict[str, str]:
    """Of a child of this step."""
    text = subprocess.run(["env", "-0"], capture_output=True, check=True, text=True).stdout
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if entry)


def nap(folder: str, seconds: float) -> None:
    Path(folder, f"working-{os.getpid()}").touch()
    time.sleep(seconds)


def start_and_wait(folder: str) -> None:
    """Starts a process that outlives its parent by itself, tells its pid, and waits for it."""
    process = subprocess.Popen(["setsid", "sleep", "614"], stdin=subprocess.DEVNULL)
    (Path(folder) / "new").write_text(str(process.pid))
    (Path(folder) / "new").rename(Path(folder) / "started")
    process.wait()
