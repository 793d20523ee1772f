"""What all tests share: the mark of the long ones, and the counts of the fault suite, which are printed at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "faults"))

import ledger
import pytest
import servers
from hypothesis import settings

# Machines are shared: how long an example takes says nothing.
settings.register_profile("procflow", deadline=None, print_blob=True)
settings.load_profile("procflow")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real PostgreSQL server, started by the first test that needs it."""
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """The URL of a real Valkey server, started by the first test that needs it."""
    with servers.valkey() as url:
        yield url


@pytest.fixture
def web() -> Iterator[servers.Web]:
    """An HTTP server of the test's own."""
    with servers.web() as server:
        yield server


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long ones run only where ``-m soak`` asks for them."""
    if "soak" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("soak") is not None:
                item.add_marker(pytest.mark.skip(reason="runs for minutes or hours: ask for it with -m soak"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where tests are spread over processes, each hands its counts to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = dict(ledger.COUNTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """Take the counts of such a process."""
    ledger.COUNTS.update(getattr(node, "workeroutput", {}).get("faults", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The counts of the suite; those in capitals, and the violations of the law, have to be 0."""
    if not any(ledger.COUNTS.values()):
        return
    terminalreporter.section("faults")
    for name, number in ledger.COUNTS.items():
        terminalreporter.line(f"{name}: {number}")
