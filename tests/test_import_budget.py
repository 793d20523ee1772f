"""What is loaded when: a worker and ``--help`` must be quick, so heavy modules wait until something needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = {
    "pydantic",
    "click",
    "rich",
    "jinja2",
    "yaml",
    "psutil",
    "loky",
    "xxhash",
    "threadpoolctl",
    "cloudpickle",
    "numpy",
}
SLOW_STDLIB = {"asyncio", "sqlite3", "multiprocessing", "concurrent", "email", "http", "urllib", "unittest", "ssl"}
DEADLINE_S = 60


def loaded_by(code: str) -> set[str]:
    """Roots of the modules that ``code`` loads in a new interpreter, without those that every interpreter loads."""
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nprint('\\n', *(set(sys.modules) - before), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.rpartition("\n\n")[2].split()}


def command(*arguments: str) -> str:
    """Code that runs the command line and goes on after its exit."""
    return (
        "import runpy\n"
        f"sys.argv = ['procflow', *{list(arguments)!r}]\n"
        "try:\n    runpy.run_module('procflow', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
    )


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        pytest.param("import procflow", LIBRARIES | SLOW_STDLIB, id="import procflow"),
        pytest.param(
            "from procflow import step, StepOutput, PipelineError", LIBRARIES | SLOW_STDLIB, id="inside a step"
        ),
        pytest.param(command("--version"), (LIBRARIES | SLOW_STDLIB) - {"click"}, id="--version"),
        pytest.param(command("--help"), (LIBRARIES | SLOW_STDLIB) - {"click"}, id="--help"),
        pytest.param("import procflow.working.worker", {"pydantic", "click", "rich", "jinja2", "numpy"}, id="a worker"),
    ],
)
def test_only_light_modules_are_loaded(code: str, forbidden: set[str]) -> None:
    assert loaded_by(code) & forbidden == set()


def test_a_heavy_module_would_be_seen() -> None:
    assert "pydantic" in loaded_by("import procflow.model")


def test_a_run_that_begins_anew_loads_nothing_of_resuming_but_fingerprints(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def nothing():\n    pass\n")
    text = "name: one\nsteps: [{type: transform, name: nothing, function: 'one:nothing'}]\n"
    (tmp_path / "one.yaml").write_text(text)
    run = command("run", str(tmp_path / "one.yaml"), "--quiet", "--state-dir", str(tmp_path / "state"))
    names = ("procflow.storing.journal_kept", "procflow.resuming.kept_files", "asyncio")
    script = run + f"loaded = [n for n in {names!r} if n in sys.modules]\nassert not loaded, loaded\n"
    loaded_by(script)


HEAVY_PARENT = """
import loky, joblib, tempfile
from procflow import Pipeline, Step
def seen():
    import sys
    return sorted({"joblib", "numpy", "asyncio"} & set(sys.modules))
with tempfile.TemporaryDirectory() as folder:
    result = Pipeline("one", steps=[Step("s", seen)]).run(workers=1, state_dir=folder)
assert result.outputs["s"] == [], result.outputs["s"]
"""


def test_a_worker_loads_nothing_of_what_its_parent_has_loaded() -> None:
    """joblib puts its own copy of loky's process where loky's is looked up by name."""
    pytest.importorskip("joblib")
    assert "joblib" in loaded_by(HEAVY_PARENT)


MODEL = "import pydantic\nclass Theirs(pydantic.BaseModel):\n    x: int\n"
LOOKED = "from pydantic.plugin import _loader\nassert _loader._plugins is not None, 'plugins were not looked for'\n"


def test_loading_a_file_looks_for_no_plugins_of_pydantic(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("name: one\nsteps: [{type: transform, name: a, function: 'os:getpid'}]\n")
    load = f"from procflow.loader import load_pipeline\nload_pipeline({str(tmp_path / 'one.yaml')!r})\n"
    without = "from pydantic.plugin import _loader\nassert _loader._plugins is None\n"
    loaded_by(load + without + MODEL + "Theirs(x=1)\n" + LOOKED)


def test_a_file_that_is_refused_leaves_others_their_plugins(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: one\nsteps: [{type: transform, name: a}]\n")
    load = f"from procflow.loader import load_pipeline\ntry:\n    load_pipeline({str(tmp_path / 'bad.yaml')!r})\n"
    load += "except Exception as error:\n    assert 'function' in str(error), error\nelse:\n    raise AssertionError\n"
    loaded_by(load + MODEL + "Theirs(x=1)\n" + LOOKED)
