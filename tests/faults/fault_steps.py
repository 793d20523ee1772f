"""Every way in which a step may hurt its worker, as one function that is told the kind; workers import this module.

A step writes to the ledger before it does harm. ``place`` names the task in the ledger; "always" does harm at every
attempt, "once" only at the first.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import ledger
import steps_for_executors as steps

from procflow import step

PARENT = "FAULT_PARENT"
FOLDER = "FAULT_FOLDER"


def sibling(place: str, value: Any = None) -> str:
    """A member that does no harm."""
    ledger.write(place, "start")
    ledger.write(place, "end")
    return f"{place} is fine"


def member(kind: str, place: str, when: str, value: Any = None) -> Any:
    """A member that does harm."""
    if not isinstance(value, Opened):
        ledger.write(place, "start")
    if when == "once" and step.attempt > 1:
        ledger.write(place, "end")
        return f"{place} is fine"
    return HARM[kind](value)


def item(item: str, kind: str) -> Any:
    """An item of a map, of which those with an ``x`` do harm."""
    return member(kind, f"inner/{item}", "always") if "x" in item else sibling(f"inner/{item}")


def item_step(item: str, kind: str, value: Any = None) -> Any:
    """The same as the only step of an item."""
    return member(kind, f"inner/{item}", "always", value) if "x" in item else sibling(f"inner/{item}")


def consume(item: str, value: Any, place: str, when: str) -> str:
    """Reads a result that may be poison."""
    return sibling(f"inner/{item}") if "x" not in item else "was opened"


def array() -> Any:
    import numpy

    return numpy.arange(10_000.0)


# -- values that hurt whoever opens them


class Opened:
    """What poison opens to, where it opens."""


class Poison:
    """A result that does harm to the process that unpickles it; which must never be the parent."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return _open, (self.how,)


def _open(how: str) -> Opened:
    if os.getpid() == int(os.environ[PARENT]):
        raise AssertionError("the parent opened a user's value")
    ledger.write(step.params["place"], "start")
    if step.params.get("when") == "once" and step.attempt > 1:
        return Opened()
    if how == "exits":
        os._exit(5)
    faulthandler._sigsegv()  # type: ignore[attr-defined]
    raise AssertionError("not reached")


def poison(kind: str) -> Poison:
    return Poison("exits" if "exits" in kind else "crashes")


def item_poison(item: str, kind: str) -> Any:
    return poison(kind) if "x" in item else item


# -- harm


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text today")


def _raise(error: BaseException) -> Callable[[Any], Any]:
    def harm(value: Any) -> Any:
        raise error

    return harm


def _large_message(value: Any) -> None:
    raise ValueError("x" * 20_000_000)


def _cyclic(value: Any) -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def _deep(value: Any) -> Any:
    found: Any = []
    for _ in range(100_000):
        found = [found]
    return found


def _path(name: str) -> str:
    return os.path.join(os.environ[FOLDER], f"{name}-{os.getpid()}-{time.monotonic_ns()}")


def _two_locks(value: Any) -> None:
    first, second = threading.Lock(), threading.Lock()
    both = threading.Barrier(2)

    def cross() -> None:
        with second:
            both.wait(10)
            with first:
                pass

    threading.Thread(target=cross, daemon=True).start()
    with first:
        both.wait(10)
        with second:
            pass


def _recurse(value: Any) -> None:
    _recurse(value)


def _out_of_memory(value: Any) -> Any:
    return bytearray(1 << 60)


def _write_into(value: Any) -> None:
    value[0] = 1.0


def _print_much(value: Any) -> str:
    steps.print_much(5)
    return "printed"


def _die_by(number: int) -> Callable[[Any], Any]:
    return lambda value: steps.die_by(number)


HARM: dict[str, Callable[[Any], Any]] = {
    "segfault": lambda value: steps.segfault(),
    "abort": lambda value: os.abort(),
    "SIGKILL itself": _die_by(signal.SIGKILL),
    "SIGBUS": _die_by(signal.SIGBUS),
    "SIGFPE": _die_by(signal.SIGFPE),
    "os._exit(0)": lambda value: steps.exit_now(0),
    "os._exit(3)": lambda value: steps.exit_now(3),
    "exit(0) of libc": lambda value: ctypes.CDLL(None).exit(0),
    "sys.exit": lambda value: sys.exit(4),
    "KeyboardInterrupt": _raise(KeyboardInterrupt("stop")),
    "GeneratorExit": _raise(GeneratorExit("stop")),
    "exception that can't be rebuilt": lambda value: steps.fail_unpicklably(),
    "exception without text": _raise(NoText()),
    "exception of 20 MB": _large_message,
    "cyclic causes": _cyclic,
    "generator for a result": lambda value: (n for n in range(3)),
    "lock for a result": lambda value: [threading.Lock()],
    "result that exits when opened": lambda value: value,
    "result that crashes when opened": lambda value: value,
    "result nested 100,000 deep": _deep,
    "fork, then death": lambda value: steps.fork_and_die(_path("child")),
    "daemon, then death": lambda value: steps.leave_a_daemon(_path("daemon"), "die"),
    "descriptors 3 to 256 closed": lambda value: steps.close_fds(),
    "noise on all descriptors": lambda value: steps.noise(),
    "SIGSTOP itself": lambda value: steps.stop_itself(_path("on")),
    "SIGTERM ignored": lambda value: steps.ignore_sigterm(_path("on")),
    "GIL held": lambda value: steps.hold_the_gil(_path("on")),
    "two locks crosswise": _two_locks,
    "endless recursion": _recurse,
    "MemoryError": _out_of_memory,
    "5 MB to stdout": _print_much,
    "write into an input array": _write_into,
}


# -- for tests of the tests


def patient(seconds: float) -> str:
    """Gives a sign of life now and then, so that the parent looks at its clocks."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        step.heartbeat()
        time.sleep(0.05)
    return "done"


def say_pid_and_sleep(path: str) -> None:
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)
    time.sleep(60)


def main_without_death_signal(*args: Any) -> None:
    """The worker's main function, with a worker that does not ask to die with its parent."""
    from procflow.working import worker

    # Any other order that changes nothing: this one asks whether the process may be dumped.
    worker.PR_SET_PDEATHSIG = 3
    worker.main(*args)


class Guarded:
    """A result that writes to the ledger where it is opened."""

    def __reduce__(self) -> Any:
        return _opened_by, ()


def _opened_by() -> Guarded:
    ledger.write("opened", "start")
    return Guarded()


def guarded() -> Guarded:
    return Guarded()


def look_at(value: Guarded) -> str:
    return type(value).__name__


def begin_and_fail() -> None:
    ledger.write("failing", "start")
    raise ValueError("again")


def begin_and_exit(place: str) -> None:
    ledger.write(place, "start")
    os._exit(3)


def after(seconds: float) -> float:
    time.sleep(seconds)
    return seconds
