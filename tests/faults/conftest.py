"""What fault tests share: a folder in memory, and the counts that are printed at the end."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The executor's tests have steps that do harm, and the words to drive an executor.
sys.path.insert(0, str(Path(__file__).parents[1]))

import images
import ledger
import pytest


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory: a kill does not depend on the disk, and thousands of syncs would."""
    with tempfile.TemporaryDirectory(prefix="procflow-faults-", dir=images.shared_memory()) as name:
        yield Path(name)


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
