"""Metrics files and monitors: what they are told of a run, and that none of them can harm it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from procflow.cli import cli
from procflow.errors import StoreError
from procflow.result import exit_code
from procflow.showing.metrics_file import MetricsFile, _metric
from procflow.showing.ping import Ping

WELL = {"type": "shell", "name": "well", "command": "true"}
BAD = {"type": "shell", "name": "bad", "command": "echo what went wrong >&2; exit 3"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("PROCFLOW_STATE_DIR", "PROCFLOW_PING_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(*steps: dict[str, Any], **more: Any) -> None:
    Path("p.yaml").write_text(json.dumps({"name": "p1", "steps": list(steps), **more}))


def run(*options: str) -> Result:
    return CliRunner().invoke(cli, ["run", "p.yaml", "--executor", "inline", *options])


def metrics(path: str = "m.prom") -> dict[str, float]:
    """All samples, by name and labels; every line must be of the text format."""
    found = {}
    for line in Path(path).read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r'([a-z_]+\{(?:[a-z]+="(?:[^"\\]|\\.)*",?)*\}) ([0-9.]+)', line)
            assert match, line
            assert match[1] not in found
            found[match[1]] = float(match[2])
    return found


def test_metrics_of_a_run_that_went_well(folder: Path) -> None:
    write(WELL)
    assert run("--metrics-file", "m.prom").exit_code == 0
    told = metrics()
    of = '{pipeline="p1"}'
    assert told[f"procflow_run_running{of}"] == 0
    assert told[f"procflow_run_exit_code{of}"] == 0
    assert told['procflow_run_status{pipeline="p1",status="succeeded"}'] == 1
    assert told['procflow_run_steps{pipeline="p1",status="succeeded"}'] == 1
    assert told['procflow_step_attempts{pipeline="p1",step="well"}'] == 1
    assert told[f"procflow_run_last_success_timestamp_seconds{of}"] >= told[f"procflow_run_start_timestamp_seconds{of}"]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".m")] == []


def test_the_last_success_outlives_a_failure(folder: Path) -> None:
    write(WELL)
    run("--metrics-file", "m.prom")
    of = '{pipeline="p1"}'
    before = metrics()[f"procflow_run_last_success_timestamp_seconds{of}"]
    write(BAD)
    assert run("--metrics-file", "m.prom").exit_code == 1
    told = metrics()
    assert told[f"procflow_run_exit_code{of}"] == 1
    assert told['procflow_run_status{pipeline="p1",status="failed"}'] == 1
    assert told[f"procflow_run_failures{of}"] == 1
    assert told[f"procflow_run_last_success_timestamp_seconds{of}"] == before


def test_metrics_that_cannot_be_written_are_refused_before_the_run(folder: Path) -> None:
    write({**WELL, "command": "touch ran"})
    result = run("--metrics-file", "gone/m.prom")
    assert result.exit_code == 74
    assert "--metrics-file gone/m.prom: No such file or directory" in result.stderr
    assert not Path("ran").exists()
    with pytest.raises(StoreError):
        MetricsFile(str(folder / "gone" / "m"), exit_code)


def test_metrics_that_can_no_longer_be_written_cost_a_warning(folder: Path) -> None:
    Path("out").mkdir()
    write({**WELL, "command": "rm -r out"})
    result = run("--metrics-file", "out/m.prom")
    assert result.exit_code == 0
    assert "warning: metrics file out/m.prom: No such file or directory" in result.stderr


def test_prometheus_parses_the_metrics(folder: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    write(WELL, {"type": "shell", "name": "x" * 60, "command": "true"})
    run("--metrics-file", "m.prom")
    families = {family.name for family in parser.text_string_to_metric_families(Path("m.prom").read_text())}
    assert {"procflow_run_status", "procflow_step_cpu_seconds"} <= families


class Monitor:
    """A monitor on this machine; ``answers`` are status codes in order, then 200."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.answers: list[int] = []
        monitor = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                monitor.heard.append((self.path, body))
                self.send_response(monitor.answers.pop(0) if monitor.answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/ping/s3cret"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    made = Monitor()
    yield made
    made.server.shutdown()
    made.thread.join(30)
    made.server.server_close()


def test_a_monitor_hears_of_the_start_and_of_the_success(folder: Path, monitor: Monitor) -> None:
    write(WELL)
    assert run("--ping", monitor.url).exit_code == 0
    assert [path for path, _ in monitor.heard] == ["/ping/s3cret/start", "/ping/s3cret"]


def test_a_monitor_hears_what_failed(folder: Path, monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    write(BAD)
    monkeypatch.setenv("PROCFLOW_PING_URL", monitor.url)
    assert run().exit_code == 1
    assert [path for path, _ in monitor.heard] == ["/ping/s3cret/start", "/ping/s3cret/fail"]
    body = monitor.heard[1][1]
    assert body.startswith("exit code 1\nrun ")
    assert "FAILED step 0 (bad)" in body
    assert "procflow resume" in body


def test_a_monitor_hears_of_a_file_that_is_refused(folder: Path, monitor: Monitor) -> None:
    write({"type": "shell", "name": "a", "command": "true", "retires": 2})
    assert run("--ping", monitor.url).exit_code == 2
    ((path, body),) = monitor.heard
    assert path == "/ping/s3cret/fail"
    assert "exit code 2" in body
    assert "retires" in body


def test_the_end_is_told_again_where_the_monitor_stumbles(folder: Path, monitor: Monitor) -> None:
    write(WELL)
    monitor.answers = [200, 503, 200]
    result = run("--ping", monitor.url)
    assert result.exit_code == 0
    assert [path for path, _ in monitor.heard] == ["/ping/s3cret/start", "/ping/s3cret", "/ping/s3cret"]
    assert "warning" not in result.stderr


def test_a_monitor_that_is_gone_costs_a_line_and_keeps_its_secret(folder: Path, monitor: Monitor) -> None:
    monitor.server.socket.close()
    told: list[str] = []
    ping = Ping(monitor.url, told.append, timeout_s=5)
    ping.finish(0)
    assert len(told) == 1
    assert told[0].startswith("warning: the monitor at 127.0.0.1 could not be told: ")
    assert "s3cret" not in told[0]


@pytest.mark.parametrize("url", ["ftp://x/y", "hc-ping.com/abc", "http://", "file:///etc/passwd"])
def test_what_is_no_web_address_is_refused(folder: Path, url: str) -> None:
    write(WELL)
    result = run("--ping", url)
    assert result.exit_code == 2
    assert "write the address of a monitor" in result.stderr


def test_a_label_can_not_end_its_text() -> None:
    (_, _, line) = _metric("m", "A test.", [({"step": 'a"} 1\nb\\'}, 2)])
    assert line == 'm{step="a\\"} 1\\nb\\\\"} 2'
