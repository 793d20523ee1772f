"""Live: a run on a terminal. A table of what runs, drawn a few times a second; what has ended scrolls up above it.

    engine ── events ──> rows (under a lock) ──> display thread ── bytes ──> terminal

Only the display thread writes while a run goes on, so a terminal that is stopped (Ctrl-S), slow or gone never holds the
run up; one that is gone is left alone. It never decides anything, and a fault in drawing ends the display, not the run.
Used on terminals only: elsewhere ``progress`` writes plain lines.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from io import TextIOBase
from typing import IO, Any, cast

from rich.console import Console
from rich.segment import Segment, Segments
from rich.text import Text

from procflow.events import Event, RunFinished, RunStarted
from procflow.showing.live_gauges import LiveGauges
from procflow.showing.live_rows import LiveRows
from procflow.showing.live_table import done_line, picture
from procflow.showing.progress import LineProgress

__all__ = ["LiveProgress", "suits"]

INTERVAL_S = 0.2
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
LAST_S = 2.0
"""A terminal that takes nothing gets so long at the end of a run."""
PENDING = 1000
"""Lines kept for a terminal that is stopped; of more, the oldest are left out, and it is said how many."""


def suits(stream: Any = None) -> bool:
    """Can a table be drawn on this stream: a terminal that can move its cursor?"""
    stream = sys.stderr if stream is None else stream
    try:
        return bool(stream.isatty()) and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except (AttributeError, ValueError):
        return False


class _Outlet(TextIOBase):
    """Bytes to a terminal, never blocking: what it does not take now waits here. Silent for good once writing failed.

    It opens the terminal once more, because what is set on the descriptor of stderr is set for the shell as well.
    """

    def __init__(self, stream: Any) -> None:
        self._encoding: str = stream.encoding or "ascii"
        self._pending = b""
        self._own = -1
        self._fd: int = stream.fileno()
        with suppress(OSError):
            self._own = self._fd = os.open(
                os.ttyname(self._fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            )
        self.gone = False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, text: str) -> int:
        self._pending += text.encode(self._encoding, "backslashreplace")
        self.push()
        return len(text)

    def push(self, longest_s: float = 0.0) -> bool:
        """Send what waits; False where the terminal has not taken all of it after this long."""
        deadline = time.monotonic() + longest_s
        while self._pending and not self.gone:
            try:
                self._pending = self._pending[os.write(self._fd, self._pending) :]
            except BlockingIOError:
                left_s = deadline - time.monotonic()
                if left_s <= 0 or not select.select([], [self._fd], [], left_s)[1]:
                    return False
            except OSError:
                self.gone = True
        return True

    def close(self) -> None:
        if self._own >= 0:
            with suppress(OSError):
                os.close(self._own)
            self._own = self._fd = -1
            self.gone = True


class LiveProgress:
    """An observer that draws; ``close`` it in any case, it gives the terminal back as it was.

    ``command`` is how this process was called, for the commands that messages suggest.
    """

    def __init__(
        self, *, command: str = "python -m procflow", stream: Any = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._outlet = _Outlet(sys.stderr if stream is None else stream)
        # The size is asked for at each drawing, so that a terminal may be resized at any time.
        self._console = Console(
            file=cast("IO[str]", self._outlet), force_terminal=True, highlight=False, markup=False, emoji=False
        )
        self._ascii = not self._outlet.encoding.lower().replace("-", "").startswith("utf")
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: deque[Text] = deque(maxlen=PENDING)
        self._queued = self._written = 0
        self._last: list[str] = []
        self._inner = LineProgress(self._keep, detail="summary", command=command)
        self._rows: LiveRows | None = None
        self._gauges: LiveGauges | None = None
        self._epoch = 0.0
        self._state = ""
        self._lengths: list[int] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, run: Any) -> None:
        """Learn of the run that begins; from now on the terminal is ours."""
        self._rows = LiveRows(run.prepared.graph)
        self._gauges = LiveGauges(run)
        self._inner.begin(run)
        self._flush_kept()

    def handle(self, event: Event) -> None:
        """Take one event, in order."""
        rows = self._rows
        if rows is None:
            return
        with self._lock:
            self._inner.handle(event)
            for done in rows.take(event):
                self._queue(done_line(done, ascii_only=self._ascii))
        if isinstance(event, RunStarted):
            self._epoch = self._clock() - event.at
            self._thread = threading.Thread(target=self._draw, name="procflow live table", daemon=True)
            self._thread.start()
        elif isinstance(event, RunFinished):
            self._flush_kept()
            self.close()

    def say(self, text: str) -> None:
        """A line from a signal handler; it takes no lock that could be held where the signal came."""
        self._lines.append(Text(text, style="bold yellow"))
        self._queued += 1
        self._state = "stopping" if not self._state else "killing"

    def close(self) -> None:
        """Stop drawing and give the terminal back; waits a moment for one that takes nothing."""
        thread, self._thread = self._thread, None
        self._ended.set()
        if thread is None:
            self._outlet.close()
        elif thread is not threading.current_thread():
            thread.join(3 * LAST_S)

    @property
    def gone(self) -> bool:
        """Can the terminal no longer be written to?"""
        return self._outlet.gone

    def _keep(self, line: str) -> None:
        self._last.append(line)

    def _flush_kept(self) -> None:
        for line in self._last:
            self._queue(Text(line))
        self._last.clear()

    def _queue(self, line: Text) -> None:
        self._lines.append(line)
        self._queued += 1

    # -- the display thread --------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        outlet = self._outlet
        try:
            outlet.write(HIDE_CURSOR)
            while not self._ended.wait(INTERVAL_S) and not outlet.gone:
                # A terminal that stands still gets nothing new until it has taken what it was sent.
                if outlet.push():
                    outlet.write(self._frame(self._picture()))
            if outlet.push(LAST_S):
                outlet.write(self._frame(None))
        except Exception as error:
            # A display is a comfort: its fault is told, once, and the run goes on without it.
            outlet.write(f"\r\nprocflow: the live table ended: {type(error).__name__}: {error}\r\n")
        finally:
            outlet.write(SHOW_CURSOR)
            outlet.push(LAST_S)
            outlet.close()

    def _frame(self, drawn: Any) -> str:
        """What to send: the old table away, new lines, the new table. One text, so that nothing flickers."""
        console = self._console
        width = max(1, console.size.width)
        # Where the terminal was made narrower meanwhile, it has wrapped the lines that stood there.
        up = sum(max(1, -(-length // width)) for length in self._lengths)
        erase = f"\r\x1b[{up}A\x1b[J" if up else ""
        table = console.render_lines(drawn, pad=False) if drawn is not None else []
        self._lengths = [Segment.get_line_length(line) for line in table]
        with console.capture() as capture:
            for line in self._new_lines():
                console.print(line, soft_wrap=True)
            for segments in table:
                console.print(Segments([*segments, Segment.line()]), end="", soft_wrap=True)
        return erase + capture.get()

    def _new_lines(self) -> list[Text]:
        lines: list[Text] = []
        while self._lines:
            lines.append(self._lines.popleft())
        self._written += len(lines)
        lost = self._queued - len(self._lines) - self._written
        if lost > 0:
            self._written += lost
            lines.insert(0, Text(f"... {lost:,} lines were left out while the terminal stood still", style="dim"))
        return lines

    def _picture(self) -> Any:
        assert self._rows is not None
        assert self._gauges is not None
        now = self._clock() - self._epoch
        gauges = self._gauges.read(now, self._state)
        width, height = self._console.size
        with self._lock:
            drawn = picture(self._rows, now, gauges, width, height, ascii_only=self._ascii)
        return drawn
