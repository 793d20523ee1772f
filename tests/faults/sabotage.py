"""How a bug is sown and found: ``prove`` runs a check without the bug and then with it. Tests of it are ``test_sabotage_*``.

Every test shows that its check passes on the code as it is and fails with the bug, for the reason that it names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fault_steps
import ledger
import pytest

from procflow import Pipeline
from procflow.result import RunResult

Check = Callable[[Path], None]
Sabotage = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def proven(memory: Path, request: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Check, Sabotage, str], None]:
    """Runs a check without a bug, then with one, which it must find for the reason that ``says`` matches.

    What it counts then is no violation of the suite.
    """
    folder = memory / request.node.name
    monkeypatch.setenv(fault_steps.PARENT, str(os.getpid()))

    def prove(check: Check, sabotage: Sabotage, says: str) -> None:
        before: dict[str, int] = {}
        for name in ("sound", "sown"):
            own = folder / name
            own.mkdir(parents=True)
            with monkeypatch.context() as patch:
                patch.setenv(ledger.VARIABLE, str(own / "ledger"))
                patch.setenv(fault_steps.FOLDER, str(own))
                if name == "sound":
                    check(own)
                    before = dict(ledger.COUNTS)
                    continue
                sabotage(patch)
                with pytest.raises(AssertionError, match=says):
                    check(own)
        ledger.COUNTS.clear()
        ledger.COUNTS.update(before)
        ledger.count("sown bugs found", 1)

    return prove


def run(folder: Path, *steps: Any, **options: Any) -> RunResult:
    return Pipeline("sabotage", steps=steps).run(state_dir=folder / "state", **options)


def starts(folder: Path) -> dict[str, int]:
    return dict(ledger.starts(ledger.read(folder / "ledger")))
