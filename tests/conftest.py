"""What all tests share: the mark of the long ones, and the counts of the fault suite, which are printed at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "faults"))

import ledger
import pytest


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
