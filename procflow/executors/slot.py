"""Slot: one worker process with its channel, its output pipe, and the attempt that runs there.

A slot lives as long as its worker. This file starts the worker, sends to it, signals it and reaps it; it never decides
when: the layers of ``crew.py`` drive it and make the outcomes. Nothing here blocks. What waits behind the attempt that runs is
``line.py``'s.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Literal

from procflow.attempt import Attempt, Cause, Lost, Progressed, Usage
from procflow.executors import wire
from procflow.executors.channel import PACKET_BYTES, Inbox, Outbox, arrived_bytes, frame, packed
from procflow.executors.family import TOKEN_NAME, WORKER_TOKEN_NAME, family, group_of, kill_family, signal_all
from procflow.executors.footprint import Size
from procflow.executors.line import Line
from procflow.executors.payload import Payload
from procflow.failure import lost_failure
from procflow.machine import rss
from procflow.passive import passive
from procflow.working.grant import environment

__all__ = ["Death", "Slot", "Stage"]

OUTPUT_CHUNK = 1 << 16
OUTPUT_READS = 64
"""At a final outcome what the pipe holds is read, and no more: a child left behind may print for ever."""
TAIL_BYTES = 8192

Stage = Literal["", "spawn", "dump", "term", "silent", "kill"]
"""What a slot's clock is for. ``silent``: its worker closed the channel and should end. ``kill``: SIGKILL was sent."""


@passive(frozen=True, slots=True)
class Death:
    """How a worker ended. ``exit_code`` is negative for a signal, None where somebody else reaped it."""

    exit_code: int | None
    cpu_s: float
    peak_rss_bytes: int | None


class Slot:
    """One worker and the attempt that it runs, if any."""

    __slots__ = (
        "attempt",
        "base_cpu_s",
        "base_rss_bytes",
        "began",
        "cause",
        "channel_fd",
        "done_cpu_s",
        "doubted",
        "due",
        "grace_s",
        "inbox",
        "known",
        "line",
        "outbox",
        "output_fd",
        "payload",
        "peak_rss_bytes",
        "pid",
        "pidfd",
        "process",
        "ready",
        "reported",
        "size",
        "stage",
        "stream_fd",
        "streamed",
        "tail",
        "token",
        "trouble",
    )

    def __init__(
        self,
        name: str,
        token: str,
        run_token: str,
        env: Mapping[str, str],
        cpus: int,
        log_level: int,
        inherit: tuple[int, ...] = (),
        size: Callable[[int], Size] = Size,
        objects: str | None = None,
        own_output: bool = True,
        results: str | None = None,
    ) -> None:
        """Start a worker; OSError where the system refuses. ``size`` makes what tells its memory, from its pid.

        ``objects`` is the folder that it stores large values in. Without ``own_output`` it prints where this process does.
        ``results`` is the file that it keeps results in which the parent may not have noted.
        """
        self.token = f"{WORKER_TOKEN_NAME}={token}"
        self.inbox, self.outbox = Inbox(), Outbox()
        self.known: dict[bytes, None] = {}
        self.line = Line()
        self.streamed = self.ready = False
        self.attempt: Attempt | None = None
        self.payload: Payload | None = None
        self.stage: Stage = ""
        self.due = self.grace_s = 0.0
        self.cause: Cause | None = None
        self.tail = b""
        self.trouble = ""
        self.doubted: int | None = None
        self.reported: set[int] = set()
        self.began = time.monotonic()
        self.base_cpu_s = self.done_cpu_s = 0.0
        self.base_rss_bytes = self.peak_rss_bytes = 0
        self.channel_fd = self.stream_fd = self.output_fd = self.pidfd = -1
        own = {WORKER_TOKEN_NAME: token, TOKEN_NAME: run_token}
        env = {**env, **environment(cpus), **own}
        try:
            self._start(name, env, cpus, log_level, inherit, objects, own_output, results)
            self.size = size(self.pid)
        except BaseException:
            self._undo()
            raise

    def _start(
        self,
        name: str,
        env: Mapping[str, str],
        cpus: int,
        log_level: int,
        inherit: tuple[int, ...],
        objects: str | None,
        own_output: bool,
        results: str | None,
    ) -> None:
        from procflow.working import worker  # isort: skip
        from procflow.executors.launch import WorkerProcess

        theirs: list[int] = []
        try:
            for pipe, ours in (("channel_fd", 0), ("output_fd", 0), ("stream_fd", 1)):
                ends = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(ends[ours], False)
                setattr(self, pipe, ends[ours])
                theirs.append(ends[1 - ours])
            told, printed, heard = theirs
            fds = (told, heard, self.line.claim_fd, self.line.packets_fd)
            mark = self.line.mark if own_output else b""
            args = (*fds, os.getpid(), cpus, log_level, objects, results, mark)
            output_fd = printed if own_output else None
            self.process = WorkerProcess(worker.main, args, name, env, output_fd, (*inherit, *fds))
            self.process.start()
            self.pid: int = self.process.pid
            self.pidfd = os.pidfd_open(self.pid)
        finally:
            # These stay open in the child only: with a copy here, its death would never be seen.
            for fd in theirs:
                os.close(fd)
            self.line.started()

    def _undo(self) -> None:
        # The process may run already, and nobody will hear of its end.
        self.close()
        pid = getattr(self, "pid", None)
        if pid is None:
            return
        signal_all([pid], signal.SIGKILL)
        for _ in range(200):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.process._popen.reaped(os.waitstatus_to_exitcode(status))
                return
            time.sleep(0.005)

    def send_attempt(self, behind: bool = False, free: bool = False) -> bool:
        """Send the attempt, and its function if this worker does not know it; True where all of it is on its way.

        ``behind``: it follows another whose outcome has come but may not be noted yet. ``free``: a core is.
        """
        attempt, payload = self.attempt, self.payload
        assert attempt is not None
        assert payload is not None
        digest, known, stream = payload.digest, self.known, b""
        if digest and digest not in known:
            known[digest] = None
            if len(known) > wire.KNOWN_CALLS:
                del known[next(iter(known))]
            stream = frame((wire.PAYLOAD, digest, payload.folder, payload.data))
        message = wire.plain_run(attempt, digest, payload.rest, behind, free)
        packet = packed(message)
        if len(packet) > PACKET_BYTES:
            stream += frame(message)
            packet = packed((wire.LARGE, attempt.key))
        self.begin()
        if not self.peak_rss_bytes:
            # So that a death before the first sample has a figure, too.
            self.note_peak()
        self.streamed = bool(stream)
        if not behind:
            self.line.head_sent()
        sent = self.outbox.send(self.stream_fd, stream) if stream else True
        self.line.send((packet,))
        return sent

    def begin(self) -> None:
        """The attempt begins now, as far as the parent can tell."""
        assert self.attempt is not None
        self.size.begin(self.attempt)
        self.streamed = False
        self.began = time.monotonic()

    def send_ahead(self) -> None:
        """Send on what waits in line, as far as the worker knows it and there is room."""
        line, known = self.line, self.known
        packets: list[bytes] = []
        for attempt, payload in islice(line.waiting, line.sent, line.sent + line.room):
            if payload.digest and payload.digest not in known:
                break
            packet = packed(wire.plain_run(attempt, payload.digest, payload.rest, True))
            if len(packet) > PACKET_BYTES:
                break
            packets.append(packet)
        if packets:
            line.send(packets)
            line.sent += len(packets)

    def record(self, message: wire.Message) -> None:
        """Give a record of ``logging`` to the attempt's log."""
        if self.attempt is not None and (log := self.attempt.its_log()) is not None:
            log.record(message[1], message[2], message[3])

    def note(self, progress: Progressed) -> None:
        """Remember which items are done, where that is reported item by item."""
        if self.attempt is not None and self.attempt.report_each:
            self.reported.update(progress.indices, (index for index, _ in progress.failures))

    def read_output(self) -> bool | None:
        """Give one piece of the worker's output to the attempt's log; None where that was all, False at the end."""
        try:
            data = os.read(self.output_fd, OUTPUT_CHUNK)
        except BlockingIOError:
            return None
        if not data:
            return False
        if not self.ready:
            self.tail = (self.tail + data)[-TAIL_BYTES:]
            return len(data) == OUTPUT_CHUNK or None
        for key, part in self.line.parted(data):
            attempt = self.attempt
            if key and (attempt is None or attempt.key != key):
                attempt = self.line.find(key)
            if attempt is not None and (log := attempt.its_log()) is not None:
                log.write(part)
        return len(data) == OUTPUT_CHUNK or None

    def drain_output(self) -> None:
        """Give all that the output pipe holds to the attempt's log."""
        for _ in range(OUTPUT_READS):
            if not self.read_output():
                break
        rest = self.line.remainder()
        if rest and self.attempt is not None and (log := self.attempt.its_log()) is not None:
            log.write(rest)

    def signal(self, number: int) -> None:
        """Signal the worker alone."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except OSError:
            return

    def signal_group(self, number: int) -> None:
        """Signal the worker's process group."""
        try:
            os.killpg(self.pid, number)
        except OSError:
            return

    def terminate(self) -> None:
        """SIGTERM to the worker's group and to those of its family that left the group."""
        away = [pid for pid in family(self.pid, self.token) if group_of(pid) != self.pid]
        self.note_peak()
        self.signal_group(signal.SIGTERM)
        signal_all(away, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the worker and its family, as far as it can be seen now; the rest after its death."""
        members = family(self.pid, self.token)
        self.note_peak()
        if self.size.group is not None:
            self.size.group.kill()
        self.signal(signal.SIGKILL)
        signal_all(members, signal.SIGKILL)

    def note_peak(self) -> None:
        """Remember the worker's peak memory while it can be read."""
        try:
            with open(f"/proc/{self.pid}/status", "rb", buffering=0) as file:
                status = file.read()
        except OSError:
            return
        self.peak_rss_bytes = max(self.peak_rss_bytes, rss.peak_in(status))

    @property
    def dead(self) -> bool:
        """Whether the worker has ended, reaped or not."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def reap(self) -> Death:
        """End what is left of a dead worker's family, collect its exit code, close its descriptors."""
        # Before the worker is reaped, so that its pid still names its session and no other.
        kill_family(self.pid, self.token)
        code: int | None = None
        cpu_s, peak = 0.0, max(self.peak_rss_bytes, self.size.peak_bytes) or None
        try:
            _, status, usage = os.wait4(self.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status)
            cpu_s = max(0.0, usage.ru_utime + usage.ru_stime - self.base_cpu_s - self.done_cpu_s)
            # The kernel starts this figure at the parent's own peak: only growth says something about the worker.
            if usage.ru_maxrss * 1024 > self.base_rss_bytes:
                peak = max(peak or 0, usage.ru_maxrss * 1024 - self.size.tree.shared_bytes)
        except ChildProcessError:
            pass
        self.process._popen.reaped(code if code is not None else -1)
        self.close()
        return Death(code, cpu_s, peak)

    @property
    def unread(self) -> bool:
        """The worker has not read all that was sent to it beside the packets."""
        return not self.outbox.empty or arrived_bytes(self.stream_fd) > 0

    def hang_up(self) -> None:
        """Close the channel: an idle worker ends at the end of its line. Harmless when done before."""
        self.line.hang_up()
        self._close("channel_fd", "stream_fd")

    def close(self) -> None:
        """Close the descriptors; harmless when done before."""
        if hasattr(self, "size"):
            self.size.close()
        self.line.close()
        self._close("channel_fd", "stream_fd", "output_fd", "pidfd")

    def _close(self, *names: str) -> None:
        for name in names:
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def lost(self, death: Death | None) -> Lost:
        """The outcome of an attempt whose worker is gone, or can't be got rid of (None)."""
        attempt = self.attempt
        assert attempt is not None
        usage = Usage(time.monotonic() - self.began)
        code = peak = None
        if death is not None:
            code, peak = death.exit_code, death.peak_rss_bytes
            usage = Usage(usage.wall_s, death.cpu_s, peak or 0)
        failure = lost_failure(
            self.cause or "crash",
            exit_code=code,
            peak_rss_bytes=peak,
            memory_bytes=attempt.memory_bytes,
            detail=self.trouble,
        )
        return Lost(attempt.key, failure, usage, self._culprit())

    def last_words(self, death: Death) -> str:
        """How a worker ended that never was ready, and what it printed."""
        code = death.exit_code
        ending = "" if code is None else f" by signal {-code}" if code < 0 else f" with exit code {code}"
        words = self.tail.decode("utf-8", "backslashreplace").strip()
        return f"the last one ended{ending} and printed" + (f":\n{words}" if words else " nothing")

    def _culprit(self) -> int | None:
        # The item that the attempt was at, where that can be known.
        items = self.attempt.items if self.attempt is not None else None
        if items is None:
            return None
        if len(items.indices) == 1:
            return items.indices[0]
        if self.attempt is not None and self.attempt.report_each:
            return next((i for i in items.indices if i not in self.reported), None)
        return None
