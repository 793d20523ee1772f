"""How long does the command line take, as a whole process?"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.table import DEADLINE_S, Contender, Round, measure, table

ROOT = Path(__file__).parents[1]
TARGET = "procflow --help 120 ms, a run of one step 350 ms"

ONE_STEP = "name: one\nsteps:\n  - {type: transform, name: nothing, function: 'one:nothing'}\n"


def _process(*arguments: str) -> Contender:
    @contextmanager
    def contender() -> Iterator[Round]:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "one.yaml").write_text(ONE_STEP)
            Path(folder, "one.py").write_text("def nothing():\n    pass\n")
            # As where it is installed: modules are compiled once, in the round that is not counted.
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)

            def call() -> None:
                subprocess.run(
                    [sys.executable, *arguments],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=DEADLINE_S,
                    check=True,
                )

            yield call

    return contender


CONTENDERS: dict[str, Contender] = {
    "python -c pass": _process("-c", "pass"),
    "procflow --help": _process("-m", "procflow", "--help"),
    "procflow validate": _process("-m", "procflow", "validate", "one.yaml"),
    "procflow run, inline": _process("-m", "procflow", "run", "one.yaml", "--executor", "inline"),
    "procflow run, a worker": _process("-m", "procflow", "run", "one.yaml"),
}


@pytest.mark.parametrize("name", CONTENDERS)
def test_time_of_a_whole_process(benchmark: Any, name: str) -> None:
    benchmark.group = "command line"
    with CONTENDERS[name]() as call:
        benchmark.pedantic(call, rounds=10, warmup_rounds=2)


if __name__ == "__main__":
    print(table("whole process", measure(CONTENDERS, rounds=15, warm_up=2), unit="ms", target=TARGET))
