"""Runs told to OpenTelemetry: what arrives at a collector, and that a bad collector costs a run nothing but a line."""

from __future__ import annotations

import gzip
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from procflow import events as ev
from procflow.attempt import Failure, Usage
from procflow.cli import cli
from procflow.report import spans as module
from procflow.report.spans import Spans, open_spans

pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk (extra otel)")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the OTLP exporter (extra otel)")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PIPELINE = """
name: nightly
steps:
  - {type: transform, name: fetch, function: "jobs:good", output: x}
  - {type: parallel, name: both, on_error: finish, steps: [
      {type: transform, name: a, function: "jobs:good"}, {type: transform, name: b, function: "jobs:bad"}]}
  - {type: transform, name: publish, function: "jobs:good"}
"""


class Collector(ThreadingHTTPServer):
    """A collector on this machine. ``status`` is what it answers; where it hangs, it answers when ``free`` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.status = 200
        self.free = threading.Event()
        self.free.set()
        self.spans: list[Any] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        self.server.free.wait(60)
        if self.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        request = ExportTraceServiceRequest()
        request.ParseFromString(data)
        if self.server.status == 200:
            self.server.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        try:
            self.send_response(self.server.status)
            self.end_headers()
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.free.set()
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_SDK_DISABLED",
        "TRACEPARENT",
    ):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "jobs.py").write_text("def good():\n    return 1\ndef bad():\n    raise KeyError('price')\n")
    (tmp_path / "n.yaml").write_text(PIPELINE)
    return tmp_path


def run(*more: str) -> Any:
    return CliRunner().invoke(cli, ["run", "n.yaml", "-q", "--executor", "inline", "--run-id", "r", *more])


def test_a_run_arrives_at_the_collector_as_one_trace(
    folder: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    assert run().exit_code == 1
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"run nightly", "fetch", "both", "both/a", "both/b"}
    root = spans["run nightly"]
    assert {span.trace_id.hex() for span in collector.spans} == {"0af7651916cd43dd8448eb211c80319c"}
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    assert spans["fetch"].parent_span_id == spans["both"].parent_span_id == root.span_id
    assert spans["both/a"].parent_span_id == spans["both/b"].parent_span_id == spans["both"].span_id
    assert [(name, spans[name].status.code) for name in ("fetch", "both/a", "both/b", "both", "run nightly")] == [
        ("fetch", 0), ("both/a", 0), ("both/b", 2), ("both", 2), ("run nightly", 2)
    ]  # fmt: skip
    (event,) = spans["both/b"].events
    told = {a.key: a.value.string_value for a in event.attributes}
    assert (event.name, told["exception.type"]) == ("exception", "KeyError")
    assert "in bad" in told["exception.stacktrace"]
    assert [e.name for e in root.events] == ["not run"]
    for span in collector.spans:
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
        assert abs(span.end_time_unix_nano / 1e9 - time.time()) < 300


def test_nothing_is_imported_or_sent_without_an_endpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_spans", lambda *_: pytest.fail("spans were opened"))
    assert run().exit_code == 1


def test_without_the_library_one_line_says_so_and_the_run_goes_on(
    folder: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.url)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert run().exit_code == 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == "procflow"]
    assert "pip install 'procflow[otel]'" in line
    assert collector.spans == []


@pytest.mark.parametrize("trouble", ["refuses", "fails", "hangs"])
def test_a_bad_collector_costs_a_line_and_a_bounded_wait(
    trouble: str, folder: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.6)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9" if trouble == "refuses" else collector.url)
    collector.status = 503
    if trouble == "hangs":
        collector.free.clear()
    begun = time.monotonic()
    assert run().exit_code == 1
    assert time.monotonic() - begun < 60
    (line,) = [record.getMessage() for record in caplog.records if record.name == "procflow"]
    assert line.startswith("not all spans were sent")


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, ""),
        ({"OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_what_the_environment_switches_off_is_not_sent(environ: dict[str, str], said: str) -> None:
    told: list[str] = []
    assert open_spans(environ, told.append) is None
    assert (said in told[0]) if said else told == []


# -- spans of events ---------------------------------------------------------------------------------------------------


@pytest.fixture
def kept() -> Iterator[tuple[Spans, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans = Spans(provider, lambda text: None, clock=lambda: 1000.0)
    yield spans, exporter
    spans.close()


def ended(key: int, path: str, label: str, item: str = "", **more: Any) -> ev.Event:
    known: dict[str, Any] = {"status": "succeeded", "started_at": 1.0, "usage": Usage(0.5, 0.25, 7)} | more
    return ev.AttemptFinished(2.0, key, path, label, item, 1, "processes", **known)


def test_items_lie_in_the_block_of_their_item(kept: tuple[Spans, InMemorySpanExporter]) -> None:
    spans, exporter = kept
    for event in (
        ev.RunStarted(0.0, "r", "p", 1),
        ev.BlockStarted(0.0, "0", "m", "", "map", 2, "all"),
        ev.BlockStarted(0.0, "0", "m", "3", "sequence", 1, "all"),
        ended(1, "0.0", "m/step", "3"),
        ended(2, "0.0", "m/step", "4"),
    ):
        spans.handle(event)
    attempts = {s.attributes["procflow.item"]: s for s in exporter.get_finished_spans()}
    blocks = {key: span.get_span_context().span_id for key, span in spans._open.items()}
    assert attempts["3"].parent.span_id == blocks["0", "3"]
    assert attempts["4"].parent.span_id == blocks["0", ""]
    assert (attempts["3"].start_time, attempts["3"].end_time) == (1001 * 10**9, 1002 * 10**9)
    assert attempts["3"].attributes["procflow.peak_rss_bytes"] == 7


def test_beyond_the_most_only_failures_become_spans(
    kept: tuple[Spans, InMemorySpanExporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SPANS", 5)
    spans, exporter = kept
    spans.handle(ev.RunStarted(0.0, "r", "p", 1))
    for key in range(20):
        spans.handle(ended(key, "0", "m", str(key)))
    spans.handle(ended(99, "0", "m", "99", status="failed", failure=Failure("error", "E", "x")))
    spans.handle(ev.RunFinished(3.0, "r", "succeeded", 0, 0, 3.0, 3.0))
    found = exporter.get_finished_spans()
    assert len(found) == 7
    assert found[-1].attributes["procflow.spans_left_out"] == 15


def test_a_run_that_is_cut_off_ends_its_spans(kept: tuple[Spans, InMemorySpanExporter]) -> None:
    spans, exporter = kept
    spans.handle(ev.RunStarted(0.0, "r", "p", 1))
    spans.handle(ev.BlockStarted(0.0, "0", "m", "", "map", 2, "all"))
    spans.close()
    assert {span.name for span in exporter.get_finished_spans()} == {"run p", "m"}
