"""How a worker starts: loky's own start runs it, and what only loky's pool needs is loaded when a step asks for it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from procflow.pool import ProcessPool
from procflow.working.start import LATE, Late, put_off
from tests import steps_for_start

DEADLINE_S = 60
HEAVY = {
    "psutil", "cloudpickle", "inspect", "ast", "dis", "json", "uuid", "platform", "datetime", "pathlib", "urllib.parse",
    "ipaddress", "difflib", "shlex", "unittest", "asyncio", "sqlite3", "procflow.units", "procflow.resuming.syntax",
}  # fmt: skip
"""What a worker that has run a step by its module's name has not loaded."""


@pytest.fixture
def pool() -> Any:
    with ProcessPool(1) as made:
        yield made


def test_a_worker_has_loaded_nothing_that_only_lokys_pool_needs(pool: ProcessPool) -> None:
    found = pool.submit(steps_for_start.loaded).result(DEADLINE_S)
    # From Python 3.13 on ``dataclasses`` asks ``inspect`` about every class.
    known = {"inspect", "ast", "dis"} if sys.version_info >= (3, 13) else set()
    assert {name for name in HEAVY if found.get(name)} <= known
    assert {name for name in ("loky", *LATE) if found[name]} <= known
    assert found["loky.backend.spawn"]
    assert found["logging"]


def test_a_step_finds_late_modules_as_they_always_are(pool: ProcessPool) -> None:
    import loky

    assert pool.submit(steps_for_start.used).result(DEADLINE_S) == {
        "collector": (True, True),
        "signature": "()",
        "version": loky.__version__,
        "callables": [True, True, True],
        "names": True,
        "late": [],
        "method": multiprocessing.get_context().get_start_method(),
        "process": "LokyProcess",
    }


@pytest.mark.parametrize("method", [None, "fork", "spawn", "forkserver", "loky"])
def test_a_step_may_start_processes_in_any_way_that_a_script_may(pool: ProcessPool, method: str | None) -> None:
    assert pool.submit(steps_for_start.in_processes_started_by, method).result(DEADLINE_S) == [1, 2, 3]


def test_a_step_may_use_lokys_own_pool(pool: ProcessPool) -> None:
    assert pool.submit(steps_for_start.in_a_process_of_its_own).result(DEADLINE_S) == 3


def test_files_beside_the_pipeline_do_not_stand_in_for_what_a_worker_imports(tmp_path: Path) -> None:
    for name in ("random", "selectors", "tempfile", "start", "functions"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    (tmp_path / "good.yaml").write_text("name: p\nsteps: [{type: transform, name: a, function: 'os:getpid'}]\n")
    safe = "import sys; sys.path.remove(''); from procflow.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", safe, "run", "good.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def late(tmp_path: Path, name: str, text: str) -> Any:
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    put_off(spec_from_file_location(name, file))
    return sys.modules[name]


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("procflow_late_one", "procflow_late_other"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("forget")
def test_a_late_modules_code_runs_once_however_many_threads_ask(tmp_path: Path) -> None:
    text = "import time\ncount = globals().get('count', 0) + 1\ntime.sleep(0.05)\nvalue = object()\n"
    module = late(tmp_path, "procflow_late_one", text)
    assert type(module) is Late
    assert module.__file__.endswith("procflow_late_one.py")
    assert type(module) is Late
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(module.value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(found) == 4
    assert set(map(id, found)) == {id(module.value)}
    assert module.count == 1
    assert type(module) is type(sys)


@pytest.mark.usefixtures("forget")
def test_a_late_module_that_fails_says_so_each_time_and_a_circle_ends(tmp_path: Path) -> None:
    module = late(tmp_path, "procflow_late_one", "raise ImportError('not today')")
    for _ in range(2):
        with pytest.raises(ImportError, match="not today"):
            _ = module.value
    circle = late(tmp_path, "procflow_late_other", "import procflow_late_other as me\nme.value\n")
    with pytest.raises(AttributeError, match="partially initialized"):
        _ = circle.value
    with pytest.raises(AttributeError, match="nothing"):
        _ = late(tmp_path, "procflow_late_third", "").nothing
    del sys.modules["procflow_late_third"]


def test_what_is_loaded_or_missing_is_left_as_it_is() -> None:
    before = sys.modules["os"]
    put_off(os.__spec__)
    put_off(None)
    assert sys.modules["os"] is before
    assert type(before) is type(sys)
