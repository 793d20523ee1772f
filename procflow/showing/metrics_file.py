"""Metrics file: a run in the Prometheus text format, for the textfile collector of a node exporter.

An observer. The file is written whole beside its place and moved there, so a scraper never reads half of it: once as the run
starts, once as it ends. What a file of an earlier run said of the last success stays until there is a newer one.
It owns names and format of the metrics; what a run came to it only counts.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procflow.errors import StoreError
from procflow.events import AttemptFinished, BlockFinished, Event, RunFinished, RunStarted, StepFinished
from procflow.showing.aftermath import of_hook

__all__ = ["MetricsFile"]

MAX_STEPS = 500
"""Steps with metrics of their own; of more, those that used most CPU time."""
_LAST_SUCCESS = "procflow_run_last_success_timestamp_seconds"


@dataclass(slots=True)
class _Step:
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    attempts: int = 0
    failed: int = 0


class MetricsFile:
    """Keeps the metrics of one run in ``path``. StoreError, before the run, where it can't be written.

    ``code_of`` gives the exit code of a status and its reason; ``clock`` seconds since the epoch.
    """

    def __init__(self, path: str, code_of: Callable[[str, str], int], clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self.problem = ""
        self._code_of = code_of
        self._clock = clock
        self._began = 0.0
        self._run: Any = None
        self._steps: dict[str, _Step] = {}
        self._ended: Counter[str] = Counter()
        self._attempts: Counter[str] = Counter()
        self._items = 0
        self._peak_bytes = 0
        self._last_success = _earlier_success(self.path)
        try:
            self._beside().touch()
            self._beside().unlink()
        except OSError as error:
            raise StoreError(
                f"--metrics-file {self.path}: {error.strerror}; name a file in a folder that is there and that you may write"
            ) from None

    def begin(self, run: Any) -> None:
        """Learn of the run that begins."""
        self._run = run

    def handle(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, RunStarted):
            self._began = self._clock() - event.at
            self._write(None)
        elif isinstance(event, AttemptFinished):
            self._attempt(event)
        elif isinstance(event, StepFinished):
            if of_hook(event.path):
                pass
            elif not event.item:
                self._ended["kept" if event.kept else event.status] += 1
            elif event.status == "failed":
                self._steps.setdefault(event.label, _Step()).failed += 1
        elif isinstance(event, BlockFinished):
            if event.kind == "map" and event.retry_in_s is None:
                self._items += event.members
                if not event.item:
                    self._ended["kept" if event.kept else event.status] += 1
        elif isinstance(event, RunFinished):
            self._write(event)

    def _attempt(self, event: AttemptFinished) -> None:
        self._attempts[event.status] += 1
        step = self._steps.setdefault(event.label, _Step())
        step.attempts += 1
        step.wall_s += event.usage.wall_s
        step.cpu_s += event.usage.cpu_s
        step.peak_bytes = max(step.peak_bytes, event.usage.peak_rss_bytes)
        last = self._run.meter.last if self._run is not None else None
        if last is not None:
            self._peak_bytes = max(self._peak_bytes, last.total_bytes)

    def _beside(self) -> Path:
        # The collector reads *.prom: this one it must not see.
        return self.path.with_name(f".{self.path.name}.{os.getpid()}")

    def _write(self, end: RunFinished | None) -> None:
        text = "".join(f"{line}\n" for line in self._lines(end))
        try:
            self._beside().write_text(text, "utf-8")
            # Read by a collector that runs as another user.
            self._beside().chmod(0o644)
            os.replace(self._beside(), self.path)
        except OSError as error:
            self.problem = f"metrics file {self.path}: {error.strerror}"
            with suppress(OSError):
                self._beside().unlink()

    def _lines(self, end: RunFinished | None) -> Iterator[str]:
        prepared = self._run.prepared
        of = {"pipeline": prepared.pipeline.name}
        yield from _metric("procflow_run_running", "Whether the run goes on.", [(of, 0 if end else 1)])
        yield from _metric("procflow_run_start_timestamp_seconds", "When the run began.", [(of, self._began)])
        yield from _metric("procflow_run_workers", "Workers of the run.", [(of, prepared.workers)])
        yield from _metric(
            "procflow_run_memory_limit_bytes", "Memory budget of all steps.", [(of, prepared.memory_bytes)]
        )
        if end is not None:
            yield from self._ending(of, end)
        if self._last_success is not None:
            yield from _metric(_LAST_SUCCESS, "When a run last succeeded.", [(of, self._last_success)])

    def _ending(self, of: dict[str, str], end: RunFinished) -> Iterator[str]:
        code = self._code_of(end.status, end.reason)
        now = self._began + end.at
        if code == 0:
            self._last_success = now
        yield from _metric("procflow_run_end_timestamp_seconds", "When the run ended.", [(of, now)])
        yield from _metric("procflow_run_exit_code", "Exit code of the run.", [(of, code)])
        states = ("succeeded", "partial", "failed", "timed_out", "cancelled")
        told = [({**of, "status": state}, int(state == end.status)) for state in states]
        yield from _metric("procflow_run_status", "1 for how the run ended.", told)
        yield from _metric("procflow_run_duration_seconds", "Wall time of the run.", [(of, end.wall_s)])
        yield from _metric("procflow_run_work_seconds", "Sum of the times of its tasks.", [(of, end.work_s)])
        yield from _metric("procflow_run_failures", "Steps and items that failed.", [(of, end.failures)])
        yield from _metric("procflow_run_failures_tolerated", "Failures that were allowed.", [(of, end.tolerated)])
        yield from _metric("procflow_run_items", "Items of its maps.", [(of, self._items)])
        yield from _metric("procflow_run_peak_memory_bytes", "Most memory seen in use.", [(of, self._peak_bytes)])
        steps = [({**of, "status": state}, count) for state, count in sorted(self._ended.items())]
        yield from _metric("procflow_run_steps", "Steps by how they ended.", steps)
        attempts = [({**of, "status": state}, count) for state, count in sorted(self._attempts.items())]
        yield from _metric("procflow_run_attempts", "Attempts by how they ended.", attempts)
        yield from self._step_lines(of)

    def _step_lines(self, of: dict[str, str]) -> Iterator[str]:
        most = sorted(self._steps.items(), key=lambda each: -each[1].cpu_s)[:MAX_STEPS]
        shown = [({**of, "step": label}, step) for label, step in sorted(most)]
        for name, text, field in (
            ("seconds", "Time of its attempts.", "wall_s"),
            ("cpu_seconds", "CPU time of its attempts.", "cpu_s"),
            ("peak_memory_bytes", "Most memory of an attempt.", "peak_bytes"),
            ("attempts", "Attempts of the step.", "attempts"),
            ("failed_items", "Items of a map that failed.", "failed"),
        ):
            yield from _metric(
                f"procflow_step_{name}", text, [(labels, getattr(step, field)) for labels, step in shown]
            )


def _metric(name: str, text: str, values: Sequence[tuple[dict[str, str], float]]) -> Iterator[str]:
    if values:
        yield f"# HELP {name} {text}"
        yield f"# TYPE {name} gauge"
    for labels, value in values:
        inside = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        yield f"{name}{{{inside}}} {value if isinstance(value, int) else f'{value:.6f}'}"


def _escaped(label: str) -> str:
    whole = label.encode("utf-8", "backslashreplace").decode()
    return whole.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _earlier_success(path: Path) -> float | None:
    """What the file that is there says of the last success."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(rf"^{_LAST_SUCCESS}\{{.*\}} ([0-9.]+)$", text, re.MULTILINE)
    return float(found[1]) if found else None
