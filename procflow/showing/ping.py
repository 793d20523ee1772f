"""Ping: tells a monitor on the web that a run started and how it ended, as healthchecks and its kin take it.

    POST URL/start     as the run starts
    POST URL           it succeeded (exit code 0)
    POST URL/fail      it did not; the body says what failed

A monitor that is down costs a line and never the run: each ping has a deadline, that of the start is sent on the side, that of
the end is tried three times. The URL is a secret (who knows it can ping): it is never printed or stored.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from procflow.events import BlockFinished, Event, RunFinished, StepFinished
from procflow.showing.aftermath import Aftermath

__all__ = ["Ping"]

TIMEOUT_S = 10.0
TRIES = 3
BODY_BYTES = 90_000
"""Monitors keep about 100 kB."""


class Ping:
    """An observer; ``finish`` it with the exit code, whether a run began or not. ValueError for what is no web address."""

    def __init__(self, url: str, warn: Callable[[str], None], timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write the address of a monitor, such as https://hc-ping.com/<id>")
        self._parts = parts
        self._warn = warn
        self._timeout_s = timeout_s
        self._aftermath = Aftermath()
        self._run_id = ""
        self._status = ""
        self._thread: threading.Thread | None = None

    def begin(self, run: Any) -> None:
        """Learn of the run that begins, and say so."""
        self._run_id = run.run_id
        self.start()

    def handle(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, StepFinished):
            self._aftermath.note_step(event)
        elif isinstance(event, BlockFinished):
            self._aftermath.note_block(event)
        elif isinstance(event, RunFinished):
            if event.status == "partial":
                self._aftermath.tolerate_all()
            self._status = f"{event.status}{f': {event.reason}' if event.reason else ''}"

    def start(self) -> None:
        """Say that a run starts, without waiting for the answer."""
        self._thread = threading.Thread(target=self._send, args=("/start", "", 1), name="procflow ping", daemon=True)
        self._thread.start()

    def finish(self, code: int, text: str = "") -> None:
        """Say how it ended; returns after the answer or at the deadline."""
        if self._thread is not None:
            # The order counts: a start that comes after the end would wait for an end for ever.
            self._thread.join(self._timeout_s)
        lines = [f"exit code {code}", *([f"run {self._run_id} {self._status}"] if self._run_id else []), text]
        if self._run_id:
            lines += self._aftermath.lines(self._run_id, command="procflow", state_dir=None, find_log=None)
        self._send("" if code == 0 else "/fail", "\n".join(line for line in lines if line), TRIES)

    def _send(self, ending: str, body: str, tries: int) -> None:
        problem = ""
        for number in range(tries):
            if number:
                time.sleep(number)
            problem = self._post(ending, body)
            if not problem:
                return
        self._warn(f"warning: the monitor at {self._parts.hostname} could not be told: {problem}")

    def _post(self, ending: str, body: str) -> str:
        """What went wrong, if anything."""
        from urllib.error import HTTPError
        from urllib.request import Request, urlopen

        url = urlunsplit(self._parts._replace(path=self._parts.path.rstrip("/") + ending))
        data = body.encode("utf-8", "backslashreplace")[:BODY_BYTES]
        try:
            request = Request(url, data, {"User-Agent": "procflow", "Content-Type": "text/plain; charset=utf-8"})
            with urlopen(request, timeout=self._timeout_s) as answer:
                answer.read(1)
        except HTTPError as error:
            return f"it answered {error.code}"
        except Exception as error:
            # Its text may hold the address.
            reason = getattr(error, "reason", error)
            return type(reason).__name__ if not isinstance(reason, str) else reason.replace(self._parts.path, "/...")
        return ""
