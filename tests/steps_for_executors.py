"""Steps that the executor tests run, good and bad. Workers import this module by name."""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from procflow import step


def double(x: int) -> int:
    return 2 * x


def echo(value: Any) -> Any:
    return value


def pid() -> int:
    return os.getpid()


def shout(word: str) -> str:
    print(f"out {word}")
    print(f"err {word}", file=sys.stderr)
    logging.getLogger("tests.shout").info("logged %s", word)
    return word


def fail(message: str) -> None:
    raise ValueError(message)


def raise_base(name: str) -> None:
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[name](
        "stop"
    )


class TwoArguments(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def fail_unpicklably() -> None:
    raise TwoArguments("one", "two")


def unpicklable() -> Any:
    return threading.Lock()


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def sleep_and_touch(path: str) -> None:
    Path(path).touch()
    time.sleep(60)


def wait_for(path: str) -> str:
    """Until the file exists, 20 s at most."""
    for _ in range(2000):
        if os.path.exists(path):
            return "found"
        time.sleep(0.01)
    raise TimeoutError(path)


def odd_fails(item: int) -> int:
    if item % 2:
        raise ValueError(f"odd {item}")
    return item * 10


def report_progress(total: int) -> int:
    for done in range(total):
        step.progress(done + 1, total)
    return total


# Ways to die, to hang, and to hurt others


def die_by(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def segfault() -> None:
    faulthandler._sigsegv()  # type: ignore[attr-defined]


def exit_now(code: int) -> None:
    os._exit(code)


def libc_exit(code: int) -> None:
    ctypes.CDLL(None).exit(code)


def hold_the_gil(path: str) -> None:
    Path(path).touch()
    sum(itertools.repeat(1, 10**12))


def ignore_sigterm(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    Path(path).touch()
    while True:
        time.sleep(1)


def take_sigterm_for_an_end(path: str) -> str:
    def stop(number: int, frame: object) -> None:
        raise InterruptedError("asked to stop")

    signal.signal(signal.SIGTERM, stop)
    Path(path).touch()
    try:
        time.sleep(60)
    except InterruptedError:
        return "half done"
    return "done"


def stop_itself(path: str) -> None:
    Path(path).touch()
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


def fork_and_die(path: str) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    Path(path).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def fork_and_return(path: str) -> str:
    """The child comes back from the step too, as careless code lets it."""
    if os.fork() == 0:
        Path(path).touch()
        return "child"
    wait_for(path)
    return "parent"


def leave_a_daemon(path: str, then: str) -> None:
    """A grandchild in a session of its own that has outlived its parent; then wait or die."""
    script = (
        "import os, time\n"
        f"open({path + '.tmp'!r}, 'w').write(str(os.getpid()))\n"
        f"os.rename({path + '.tmp'!r}, {path!r})\n"
        "time.sleep(60)\n"
    )
    starter = (
        "import os,subprocess,sys\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    subprocess.Popen([sys.executable, '-c', {script!r}])\n"
        "    os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", starter], check=True)
    wait_for(path)
    if then == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def close_fds() -> str:
    os.closerange(3, 256)
    return "closed"


def close_all_fds() -> str:
    os.closerange(0, 4096)
    return "closed"


def replace_stdout() -> str:
    os.close(1)
    os.close(2)
    sys.stdout.close()
    sys.stderr = None  # type: ignore[assignment]
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return "replaced"


def noise() -> str:
    for fd in range(3, 2048):
        try:
            os.write(fd, b"some noise that is no frame")
        except OSError:
            continue
    return "noisy"


def print_and_noise(word: str) -> str:
    print(word, flush=True)
    return noise()


def garble() -> None:
    """From now on this worker sends nothing that can be understood."""
    import gc

    from procflow.executors.channel import WorkerEnd

    for channel in [found for found in gc.get_objects() if type(found) is WorkerEnd]:
        channel.send = lambda message, fd=channel.fd: os.write(fd, b"an outcome that nobody understands")  # type: ignore[method-assign]


def print_much(megabytes: int) -> int:
    line = b"x" * 1023 + b"\n"
    for _ in range(megabytes * 1024):
        os.write(1, line)
    return megabytes


def read_stdin() -> str:
    return sys.stdin.read() + os.read(0, 10).decode()


def blas_threads() -> list[int]:
    import numpy
    import threadpoolctl

    numpy.dot(numpy.ones((4, 4)), numpy.ones((4, 4)))
    return [info["num_threads"] for info in threadpoolctl.threadpool_info()]


def environment(name: str) -> str | None:
    return os.environ.get(name)


def large(megabytes: int) -> bytes:
    return bytes(megabytes << 20)


def heavy_modules() -> list[str]:
    return sorted(
        {"pydantic", "click", "rich", "jinja2", "asyncio", "numpy", "multiprocessing.managers"} & set(sys.modules)
    )


def surroundings() -> tuple[int, int, int, str]:
    return (os.getsid(0), os.getpid(), int(Path("/proc/self/oom_score_adj").read_text()), os.getcwd())


def touch_and_share_memory(path: str) -> None:
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(create=True, size=1 << 16)
    Path(path).write_text(block.name)
    time.sleep(60)


def touch(path: str) -> None:
    Path(path).touch()


def touch_and_wait(path: str, go: str) -> None:
    Path(path).touch()
    wait_for(go)
