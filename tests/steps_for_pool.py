"""Functions and classes that the tests of ``ProcessPool`` send to workers: importable there, odd on purpose."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

READY = "no"


def double(value: Any) -> Any:
    return value * 2


def pid(_: object = None) -> int:
    return os.getpid()


def nap(seconds: float, value: object = None) -> object:
    time.sleep(seconds)
    return value


def die_by(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def leave(code: int) -> None:
    os._exit(code)


def fail(message: str) -> None:
    raise ValueError(message)


def stop(code: int) -> None:
    sys.exit(code)


def prepare(value: str) -> None:
    global READY
    READY = value


def ready(_: object = None) -> str:
    return READY


def fail_to_prepare() -> None:
    raise RuntimeError("no licence")


def fill_memory(megabytes: int) -> None:
    held = [b"x" * 1_000_000 for _ in range(megabytes)]
    time.sleep(60)
    del held


def wait_for(path: str, seconds: float = 60.0) -> str:
    """Run until a file is there, so that a test decides when."""
    until = time.monotonic() + seconds
    while not os.path.exists(path):
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.005)
    return path


def touch(path: str) -> None:
    with open(path, "x"):
        pass


def write_into(values: Any) -> float:
    values[0] = -1.0
    return float(values.sum())


class Odd:
    """Does ``action`` when it is pickled or when it is opened, in this process only if ``here``."""

    def __init__(self, when: str, action: str) -> None:
        self.when = when
        self.action = action

    def __reduce__(self) -> Any:
        if self.when == "pickle":
            _act(self.action)
        return (_opened, (self.action,)) if self.when == "open" else (Odd, (self.when, self.action))


def make_odd(when: str, action: str) -> Odd:
    return Odd(when, action)


def _opened(action: str) -> None:
    _act(action)


def _act(action: str) -> None:
    if action == "raise":
        raise MemoryError("odd")
    if action == "exit":
        sys.exit(3)
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


class Awkward(Exception):
    """Can be pickled, not rebuilt."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("awkward")


def raise_awkward() -> None:
    raise Awkward(1, 2)
