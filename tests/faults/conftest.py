"""What fault tests share: a folder in memory, and the counts that are printed at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The counts of the suite; all but the first two have to be 0."""
    if not any(ledger.COUNTS.values()):
        return
    terminalreporter.section("faults")
    for name, number in ledger.COUNTS.items():
        terminalreporter.line(f"{name}: {number}")
