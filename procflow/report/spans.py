"""Spans: a run told to OpenTelemetry, where an endpoint is configured (``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``..._TRACES_ENDPOINT``).

The run is a span, blocks and attempts are spans below it, with status, cause and what they used. The library is imported only
then (extra ``otel``); where it is missing, one line says so and the run goes on. Nothing here may slow or break a run: spans are
made of events that are durable already, sent by the library's own thread in batches from a bounded queue, dropped where a
collector can't keep up, and at the end a collector has ``CLOSE_S`` to take the rest. Where ``TRACEPARENT`` is set, the run is
a part of that trace.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from procflow.attempt import Failure
from procflow.events import AttemptFinished, BlockFinished, BlockStarted, Event, RunFinished, RunStarted, StepFinished
from procflow.plaintext import shortened

__all__ = ["Spans", "open_spans", "sending"]

CLOSE_S = 3.0
MOST_SPANS = 5000
"""So many attempts become spans; beyond, only those that did not end well."""
MOST_BAD = 1000
MOST_TEXT = 8000
_LIBRARY = "opentelemetry"


@contextmanager
def sending(environ: Mapping[str, str], warn: Callable[[str], None]) -> Iterator[tuple[Any, ...]]:
    """The observers that send a run to OpenTelemetry, open while it goes on; none where no endpoint is configured."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    spans = open_spans(environ, warn) if any(environ.get(name, "").strip() for name in names) else None
    try:
        yield () if spans is None else (spans,)
    finally:
        if spans is not None:
            spans.close()


def open_spans(environ: Mapping[str, str], warn: Callable[[str], None]) -> Spans | None:
    """An observer that sends spans; None where they are switched off or can't be sent, which ``warn`` is told."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol.strip() != "http/protobuf":
        warn(f"no spans are sent: procflow speaks OTLP as http/protobuf, not {shortened(protocol, 40)}")
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        warn(
            f"no spans are sent: an OTLP endpoint is configured, but {error.name} is missing; pip install 'procflow[otel]'"
        )
        return None
    try:
        name = environ.get("OTEL_SERVICE_NAME") or "procflow"
        # At the end of the process nothing is waited for but what ``close`` waits for.
        provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except Exception as error:
        warn(f"no spans are sent: {type(error).__name__}: {shortened(error)}")
        return None
    return Spans(provider, warn, environ.get("TRACEPARENT"))


class Spans:
    """Turns events into spans of ``provider``; ``parent`` is a W3C traceparent that the run belongs to."""

    def __init__(
        self,
        provider: Any,
        warn: Callable[[str], None],
        parent: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._provider = provider
        self._warn = warn
        self._parent = parent
        self._clock = clock
        self._tracer = provider.get_tracer("procflow")
        self._began = 0.0
        self._run: Any = None
        self._open: dict[tuple[str, str], Any] = {}
        self._made = self._bad = self._left_out = 0
        self._trouble = _Trouble()
        logger = logging.getLogger(_LIBRARY)
        self._before = logger.propagate
        # What the library has to say is told once, at the end, and not with every batch.
        logger.propagate = False
        logger.addHandler(self._trouble)
        self._handlers: dict[type, Callable[[Any], None]] = {
            RunStarted: self._run_started,
            AttemptFinished: self._attempt_finished,
            StepFinished: self._step_finished,
            BlockStarted: self._block_started,
            BlockFinished: self._block_finished,
            RunFinished: self._run_finished,
        }

    def handle(self, event: Event) -> None:
        """Take one event."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def close(self) -> None:
        """Send what is left, for ``CLOSE_S`` at most, and let go; says once what could not be sent."""
        for span in (*self._open.values(), self._run):
            if span is not None and span.is_recording():
                span.end()
        self._open, self._run = {}, None
        ending = threading.Thread(target=self._provider.shutdown, name="procflow-spans", daemon=True)
        ending.start()
        ending.join(CLOSE_S / 3)
        if not self._trouble.first:
            # A collector that refuses is not waited for any longer.
            ending.join(CLOSE_S * 2 / 3)
        logger = logging.getLogger(_LIBRARY)
        logger.removeHandler(self._trouble)
        logger.propagate = self._before
        if ending.is_alive():
            # Its thread may speak up later, when nobody can do anything about it.
            logger.addHandler(logging.NullHandler())
            logger.propagate = False
        if ending.is_alive() or self._trouble.first:
            late = f"the collector did not take them within {CLOSE_S:g} s"
            self._warn(f"not all spans were sent: {shortened(self._trouble.first or late)}")

    def _at(self, seconds: float) -> int:
        return int((self._began + seconds) * 1e9)

    def _run_started(self, e: RunStarted) -> None:
        self._began = self._clock() - e.at
        self._run = self._tracer.start_span(
            f"run {shortened(e.pipeline, 100)}",
            context=self._outside(),
            start_time=self._at(e.at),
            attributes={
                "procflow.run_id": e.run_id,
                "procflow.pipeline": shortened(e.pipeline),
                "procflow.steps": e.steps,
            },
        )

    def _outside(self) -> Any:
        if not self._parent:
            return None
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        return TraceContextTextMapPropagator().extract({"traceparent": self._parent})

    def _below(self, path: str, item: str) -> Any:
        """The context of the innermost block that is open around a place."""
        from opentelemetry.trace import set_span_in_context

        parts, items = path.split("."), item.split("/") if item else []
        for depth in range(len(parts), 0, -1):
            for most in range(len(items), -1, -1):
                span = self._open.get((".".join(parts[:depth]), "/".join(items[:most])))
                if span is not None:
                    return set_span_in_context(span)
        return set_span_in_context(self._run) if self._run is not None else None

    def _attempt_finished(self, e: AttemptFinished) -> None:
        bad = e.status in ("failed", "lost")
        if self._made >= MOST_SPANS and not (bad and self._bad < MOST_BAD):
            self._left_out += 1
            return
        self._made += 1
        self._bad += bad
        attributes: dict[str, Any] = {
            "procflow.step": shortened(e.label), "procflow.path": e.path, "procflow.attempt": e.number, "procflow.role": e.role,
            "procflow.executor": e.executor, "procflow.status": e.status, "procflow.wall_s": e.usage.wall_s,
            "procflow.cpu_s": e.usage.cpu_s, "procflow.peak_rss_bytes": e.usage.peak_rss_bytes,
        }  # fmt: skip
        if e.item:
            attributes |= {"procflow.item": shortened(e.item), "procflow.items": e.count}
        if e.cost:
            attributes["procflow.cost"] = e.cost
        span = self._tracer.start_span(
            shortened(e.label, 200),
            context=self._below(e.path, e.item),
            start_time=self._at(e.started_at),
            attributes=attributes,
        )
        self._judge(span, e.status, e.failure, e.at)
        span.end(self._at(e.at))

    def _step_finished(self, e: StepFinished) -> None:
        """Steps that never started have no attempt, and are told as an event of their block."""
        if e.attempts or e.item or e.status not in ("skipped", "cancelled"):
            return
        span = self._open.get((e.path.rpartition(".")[0], ""), self._run)
        if span is not None:
            span.add_event(
                "not run", {"procflow.step": shortened(e.label), "procflow.reason": shortened(e.reason)}, self._at(e.at)
            )

    def _block_started(self, e: BlockStarted) -> None:
        if self._made >= MOST_SPANS:
            self._left_out += 1
            return
        self._made += 1
        attributes = {
            "procflow.step": shortened(e.label), "procflow.path": e.path, "procflow.kind": e.kind, "procflow.members": e.members,
        }  # fmt: skip
        if e.item:
            attributes["procflow.item"] = shortened(e.item)
        self._open[e.path, e.item] = self._tracer.start_span(
            shortened(e.label or "pipeline", 200),
            context=self._below(e.path, e.item),
            start_time=self._at(e.at),
            attributes=attributes,
        )

    def _block_finished(self, e: BlockFinished) -> None:
        span = self._open.pop((e.path, e.item), None)
        if span is None:
            return
        span.set_attributes(
            {
                "procflow.status": e.status,
                "procflow.successful_count": e.successful_count,
                "procflow.failed_count": e.failed_count,
            }
        )
        self._judge(span, e.status, e.failure, e.at)
        span.end(self._at(e.at))

    def _run_finished(self, e: RunFinished) -> None:
        if self._run is None:
            return
        self._run.set_attributes(
            {
                "procflow.status": e.status,
                "procflow.failures": e.failures,
                "procflow.tolerated": e.tolerated,
                "procflow.work_s": e.work_s,
            }
        )
        if self._left_out:
            self._run.set_attribute("procflow.spans_left_out", self._left_out)
        if e.status not in ("succeeded", "partial"):
            self._error(self._run, e.reason or e.status)
        self._run.end(self._at(e.at))

    def _judge(self, span: Any, status: str, failure: Failure | None, at: float) -> None:
        if status not in ("failed", "lost"):
            return
        self._error(span, str(failure) if failure is not None else status)
        if failure is not None:
            span.set_attribute("procflow.cause", failure.cause)
            told = {
                "exception.type": shortened(failure.type),
                "exception.message": failure.message[:MOST_TEXT],
                "exception.stacktrace": failure.traceback[-MOST_TEXT:],
            }
            span.add_event("exception", told, self._at(at))

    @staticmethod
    def _error(span: Any, text: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        span.set_status(Status(StatusCode.ERROR, shortened(text)))


class _Trouble(logging.Handler):
    """Remembers the first thing that the library complained of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        if not self.first:
            self.first = record.getMessage()
