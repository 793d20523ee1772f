"""Progress for programs: one JSON object an event, on one line.

An observer of events (``handle(event)``), driven by the engine. It owns the shape of these objects; values and exceptions
never get into them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from procflow.attempt import Failure
from procflow.events import Event, ItemsDone, RunFinished, RunStarted, StepFinished
from procflow.showing.progress import Detail

__all__ = ["JsonProgress"]


class JsonProgress:
    """Writes one JSON object an event, on one line, ASCII only; values and exceptions stay out.

    Keys: ``time`` (UTC), ``event`` (``step_finished``), ``run_id``, then the event's own fields. With detail ``failures`` only
    failed steps and the end of a run that did not succeed are written, with ``summary`` also its end when it did.
    """

    def __init__(
        self, write: Callable[[str], None], *, detail: Detail = "steps", clock: Callable[[], float] = time.time
    ) -> None:
        self._write = write
        self._detail = detail
        self._clock = clock
        self._began = 0.0
        self._run_id = ""

    def begin(self, run: Any) -> None:
        """Say what endangers the run, before its first event."""
        for warning in run.prepared.warnings if self._detail != "failures" else ():
            time_text = datetime.fromtimestamp(self._clock(), timezone.utc).isoformat(timespec="milliseconds")
            self._write(json.dumps({"time": time_text, "event": "warning", "run_id": run.run_id, "message": warning}))

    def handle(self, event: Event) -> None:
        """Take one event, in order."""
        if isinstance(event, RunStarted):
            self._began = self._clock() - event.at
            self._run_id = event.run_id
        if not self._wanted(event):
            return
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
        time_text = datetime.fromtimestamp(self._began + event.at, timezone.utc).isoformat(timespec="milliseconds")
        record = {"time": time_text, "event": kind, "run_id": self._run_id}
        record |= {f.name: _plain(f.name, getattr(event, f.name)) for f in dataclasses.fields(event)}
        self._write(json.dumps(record, ensure_ascii=True, allow_nan=False))

    def _wanted(self, event: Event) -> bool:
        if self._detail == "steps":
            # Partial results are for the journal; their progress is told by StepProgress.
            return not isinstance(event, ItemsDone)
        if isinstance(event, RunFinished):
            return self._detail == "summary" or event.status != "succeeded"
        return isinstance(event, StepFinished) and event.status == "failed"


def _plain(name: str, value: Any) -> Any:
    """The value as JSON knows it; numbers that JSON can't say become null."""
    if name == "pages":
        return sum(count for _, count in value)
    if name == "outputs":
        return {key: ref.size_bytes for key, ref in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Failure):
        shown = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "exception"}
        return {key: _plain(key, part) for key, part in shown.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain("", part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain("", part) for part in value]
    return value if isinstance(value, (str, int, type(None))) else str(value)
