"""Worker: the main function of a worker process: read an attempt, run it, send its outcome, tidy up, again.

One attempt at a time, in the main thread. The step is given its own descriptors 0, 1 and 2; the channel to the parent
lies on a private high descriptor. This file never decides about retries, time or memory, and it imports only what
is light: pydantic, click, rich and Jinja2 must never be loaded here.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import gc
import logging
import os
import pickle
import resource
import signal
import sys
import time

# Without the enums that ``signal`` makes of each answer: it is asked after every attempt.
from _signal import SIG_BLOCK, SIGINT, SIGTERM, getsignal, pthread_sigmask  # type: ignore[import-not-found]
from collections.abc import Callable
from multiprocessing import set_start_method
from typing import Any, TextIO

from procflow.attempt import Failed, Progressed, Skipped, Succeeded
from procflow.call import StepCall
from procflow.executors import wire
from procflow.executors.channel import WorkerEnd
from procflow.failure import failure_from
from procflow.machine.peak import Peak
from procflow.storing.worker_tail import WorkerTail
from procflow.values import objects
from procflow.working.garbage import spared
from procflow.working.grant import grant, tell_children
from procflow.working.perform import perform

__all__ = ["main"]

HIGH_FD = 700
OOM_SCORE = b"800"
CHANNEL_LOST = 83
"""Exit code of a worker whose channel was closed by the step."""
PR_SET_PDEATHSIG = 1
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM)


def main(
    channel_fd: int,
    stream_fd: int,
    claim_fd: int,
    packets_fd: int,
    parent_pid: int,
    cpus: int,
    log_level: int,
    folder: str | None = None,
    results: str | None = None,
    mark: bytes = b"",
) -> None:
    """Serve the parent until it closes the channel. Called in a fresh process whose stdout is the output pipe.

    ``folder`` is where large values are stored; without one they go through the channel. ``results`` is where a result is
    kept before an attempt begins that was queued behind it, ``mark`` what is written to the output pipe then.
    """
    _belong_to(parent_pid)
    # What a step starts, it starts as any script does: loky's own way is known to loky's children alone.
    set_start_method(None, force=True)
    tell_children(cpus)
    spared()
    # start.py has put it off.
    gc.enable()
    objects.FOLDER.set(folder)
    surroundings = Surroundings()
    channel = WorkerEnd(_high(channel_fd), _high(claim_fd), packets_fd, _high(stream_fd))
    for fd in (channel_fd, stream_fd, claim_fd, packets_fd):
        os.close(fd)
    _capture_logging(channel, log_level)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    channel.send((wire.HELLO, os.getpid(), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024))
    try:
        _serve(channel, surroundings, cpus, results, mark)
    except OSError:
        # In a forked child, or where the step closed the channel: nobody listens any more.
        surroundings.flush()
        os._exit(CHANNEL_LOST if channel.alive else 0)


def _belong_to(parent_pid: int) -> None:
    """Die with the parent, lead a session, be the kernel's first choice when memory is short."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, OOM_SCORE)
        os.close(fd)
    except OSError:
        # Not Linux, or forbidden here: only the kernel's choice is less good.
        return


def _serve(channel: WorkerEnd, surroundings: Surroundings, cpus: int, results: str | None, mark: bytes) -> None:
    def report(progress: Progressed) -> None:
        channel.send(wire.plain_outcome(progress))

    calls = Calls(channel)
    peak = Peak()
    tail = WorkerTail(results) if results is not None else None
    last: tuple[tuple[Any, ...], wire.Message, bytes] | None = None
    free = False
    while (message := channel.claim(free)) is not None:
        if message[0] == wire.LARGE:
            message = calls.read(wire.RUN)
        _, key, _, _, _, _, _, _, wanted, _, _, _, about, behind, free = message
        if behind:
            # The parent may not have noted the last outcome: its own death must not cost more than what runs.
            if tail is not None and last is not None:
                tail.keep(*last)
            if mark:
                surroundings.mark(mark, key)
        if wanted != cpus:
            cpus = wanted
            grant(cpus)
        outcome = _run(report, calls, peak, message)
        surroundings.flush()
        if not channel.alive:
            os._exit(0)
        try:
            message = wire.plain_outcome(outcome)
        except Exception as error:
            message = wire.plain_outcome(Failed(key, failure_from(error)))
        last = (about, message, channel.send(message))
        # While the parent is busy with the outcome.
        surroundings.restore()
        peak.reset()


class Calls:
    """The calls and functions that the parent has sent. It forgets in the same order, so it knows what is still here."""

    def __init__(self, channel: WorkerEnd) -> None:
        self._channel = channel
        self._sent: dict[bytes, Any] = {}
        self._made: dict[tuple[bytes, bytes], StepCall] = {}

    def find(self, digest: bytes, rest: bytes) -> StepCall:
        """The call of an attempt; raises whatever unpickling it raises."""
        made = self._made.get((digest, rest))
        if made is None:
            if digest and digest not in self._sent:
                while self.read(wire.PAYLOAD)[1] != digest:
                    continue
            sent = self._sent[digest] if digest else None
            if type(sent) is tuple:
                sent = self._sent[digest] = _open(*sent)
            made = sent
            if rest:
                parts = pickle.loads(rest)
                made = StepCall(*(*parts[:3], sent, *parts[4:]) if digest else parts)
            if not isinstance(made, StepCall):
                raise TypeError(f"the parent sent a {type(made).__name__}, not a call")
            if len(self._made) >= wire.KNOWN_CALLS:
                self._made.clear()
            self._made[digest, rest] = made
        return made

    def read(self, kind: int) -> wire.Message:
        """The next message of this kind on the channel; payloads on the way are remembered."""
        while (message := self._channel.receive()) is not None:
            if message[0] == wire.PAYLOAD:
                _, digest, folder, data = message
                self._sent[digest] = (folder, data)
                if len(self._sent) > wire.KNOWN_CALLS:
                    del self._sent[next(iter(self._sent))]
            if message[0] == kind:
                return message
        raise OSError("the channel was closed")


def _run(
    report: Callable[[Progressed], None], calls: Calls, peak: Peak, message: wire.Message
) -> Succeeded | Skipped | Failed:
    _, key, digest, values, items, number, run_id, report_each, _, labels, rest, outputs, _, _, _ = message
    began = time.monotonic()
    try:
        return perform(
            calls.find(digest, rest).publishing(outputs),
            wire.values_from(values) if values else {},
            items=wire.items_from(items),
            number=number,
            run_id=run_id,
            key=key,
            report_each=report_each,
            send=report,
            labels=labels,
            peak=peak,
        )
    except BaseException as error:
        # perform catches what the step raises; what comes here is a call that can't be unpickled.
        from procflow.attempt import Usage

        return Failed(key, failure_from(error), Usage(time.monotonic() - began))


def _open(folder: str | None, data: bytes) -> Any:
    if folder is not None and folder not in sys.path:
        sys.path.insert(0, folder)
    return pickle.loads(data)


def _high(fd: int) -> int:
    """A private copy of a descriptor, out of the way of code that closes or writes to low ones."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = HIGH_FD if soft == resource.RLIM_INFINITY or soft > HIGH_FD + 16 else max(16, soft - 24)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)


class Surroundings:
    """What the worker is given at its start and what every attempt finds: standard files, folder, signals."""

    def __init__(self) -> None:
        self._fds = tuple(_high(fd) for fd in (0, 1, 2))
        self._folder = os.getcwd()
        self._folder_fd = _high_folder()
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.enable(file=self._fds[2], all_threads=True)
        faulthandler.register(signal.SIGUSR1, file=self._fds[2], all_threads=True, chain=False)
        self._mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # multiprocessing has put stdin on a descriptor that a step may take for its own.
        self._stdin = self._text(0)
        self._stdout = self._text(1)
        self._stderr = self._text(2)
        sys.stdin, sys.stdout, sys.stderr = self._stdin, self._stdout, self._stderr

    def _text(self, fd: int) -> TextIO:
        if fd == 0:
            return open(0, encoding="utf-8", errors="backslashreplace", closefd=False)
        return open(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)

    def mark(self, mark: bytes, key: int) -> None:
        """Say in the output pipe that what comes now is printed by the attempt with this key."""
        os.write(self._fds[1], mark + key.to_bytes(8, "little"))

    def flush(self) -> None:
        """Put what Python still buffers into the pipe."""
        out, err = self._stdout, self._stderr
        for file in (out, err) if sys.stdout is out and sys.stderr is err else (sys.stdout, sys.stderr, out, err):
            try:
                file.flush()
            except Exception:
                # Closed, or whatever the step has put there: what it held is the step's own loss.
                continue

    def restore(self) -> None:
        """Undo what the step did to the standard files, the folder, signals and their mask."""
        own = self._fds
        try:
            os.dup2(own[0], 0)
            os.dup2(own[1], 1)
            os.dup2(own[2], 2)
            os.fchdir(self._folder_fd)
        except OSError:
            self._restore_late()
        if self._stdin.closed:
            self._stdin = self._text(0)
        if self._stdout.closed:
            self._stdout = self._text(1)
        if self._stderr.closed:
            self._stderr = self._text(2)
        sys.stdin, sys.stdout, sys.stderr = self._stdin, self._stdout, self._stderr
        if getsignal(SIGTERM) != signal.SIG_DFL:
            signal.signal(SIGTERM, signal.SIG_DFL)
        if getsignal(SIGINT) != signal.SIG_IGN:
            signal.signal(SIGINT, signal.SIG_IGN)
        if pthread_sigmask(SIG_BLOCK, ()):
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _restore_late(self) -> None:
        # The step closed even the private descriptors: without an output pipe there is nothing to be restored but
        # the folder.
        try:
            os.chdir(self._folder)
        except OSError:
            return


def _high_folder() -> int:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _high(fd)
    finally:
        os.close(fd)


class _Records(logging.Handler):
    """Sends every record of ``logging`` to the parent."""

    def __init__(self, channel: WorkerEnd) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._channel.send((wire.RECORD, record.levelno, record.name, self.format(record)))
        except OSError:
            # In a forked child, or the channel is gone: the output pipe still leads to the attempt's log.
            sys.stderr.write(f"{record.levelname} {record.name}: {record.getMessage()}\n")
        except Exception:
            self.handleError(record)


def _capture_logging(channel: WorkerEnd, level: int) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_Records(channel))
    root.setLevel(level)
