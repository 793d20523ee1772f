"""The pipelines that come with procflow do what they say, on real input and on input that can't be read."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
COMPARE = ROOT / "configs" / "compare.yaml"
DEADLINE_S = 120


def module(name: str) -> ModuleType:
    """A module beside the pipeline files, loaded from its path."""
    spec = importlib.util.spec_from_file_location(f"configs_{name}", ROOT / "configs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


quickstart = module("quickstart")
compare = module("compare")


def run(pipeline: Path, *arguments: str, state: Path) -> str:
    """What ``procflow run`` prints on stdout; its progress on stderr must go on to the end of the run."""
    command = [sys.executable, "-m", "procflow", "run", str(pipeline), "--state-dir", str(state), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"run \S+ succeeded: ", "".join(done.stderr.splitlines()[-2:])), done.stderr
    return done.stdout


def function(source: str) -> Any:
    return ast.parse(source).body[0]


# -- the functions, by hand


@pytest.mark.parametrize(
    ("source", "score"),
    [
        ("def f(): return 1", 1),
        ("def f(a):\n if a: return 1\n elif not a: return 2\n else: return 3", 3),
        ("def f(a):\n for b in a:\n  while b and a or b: b -= 1", 5),
        ("def f(a): return [b for b in a if b if b > 1]", 4),
        ("def f(a):\n try: a()\n except OSError: pass\n except ValueError: pass", 3),
        ("def f(a):\n match a:\n  case 1: return 1\n  case _: return 2", 3),
        ("def f(a):\n def g():\n  if a: return 1\n return g if a else f", 2),
        ("async def f(a):\n async for b in a: assert b", 3),
    ],
)
def test_complexity_counts_the_ways_a_function_can_branch(source: str, score: int) -> None:
    assert quickstart.complexity(function(source)) == score


def test_functions_are_named_by_the_classes_and_functions_around_them() -> None:
    tree = ast.parse("class A:\n def b(self):\n  def c(): pass\nif 1:\n async def d(): pass")
    assert [name for name, _ in quickstart.named_functions(tree)] == ["A.b", "A.b.c", "d"]


@pytest.mark.parametrize(
    ("module_name", "is_package", "source", "names"),
    [
        ("a.b", False, "import x.y, z", {"x.y", "z"}),
        ("a.b", False, "from . import c\nfrom .d import e\nfrom ..f import g", {"a", "a.d", "f"}),
        ("a.b", True, "from . import c\nfrom .d import e\nfrom ..f import g", {"a.b", "a.b.d", "a.f"}),
        ("a", False, "def f():\n from x import y", {"x"}),
    ],
)
def test_imports_are_full_names(module_name: str, is_package: bool, source: str, names: set[str]) -> None:
    assert quickstart.imported_modules(ast.parse(source), module_name, is_package) == names


def test_functions_that_differ_in_names_and_constants_have_one_shape() -> None:
    one = function("def f(a):\n 'Text.'\n for b in a: print(b, 1)\n return a")
    same = function("def g(x):\n for y in x: send(y, 'two')\n return x")
    other = function("def g(x):\n for y in x: send(y)\n return x")
    assert quickstart.shape(one) == quickstart.shape(same) != quickstart.shape(other)


@pytest.mark.parametrize(("file", "name"), [("a/b.py", "a.b"), ("a/__init__.py", "a"), ("__init__.py", "__init__")])
def test_a_module_is_named_by_its_file(file: str, name: str) -> None:
    assert quickstart.module_name(file) == name


def test_a_folder_without_sources_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="-p folder=PATH"):
        quickstart.list_sources(str(tmp_path))


def test_a_limit_takes_large_and_small_files_and_leaves_out_packages(tmp_path: Path) -> None:
    for size in range(10):
        (tmp_path / f"m{size}.py").write_text("#" * size)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("")
    found = quickstart.list_sources(str(tmp_path), limit=3)
    assert found["files"] == ["m9.py", "m6.py", "m3.py"]
    assert quickstart.list_sources(str(tmp_path))["files"] == [f"m{size}.py" for size in reversed(range(10))]


BAD_FILES = {
    "syntax.py": b"def (:\n",
    "null.py": b"a = 1\0\n",
    "coding.py": b"# coding: no-such-coding\n",
    "bytes.py": b"a = '\xff\xfe'\n",
    "deep.py": b"(" * 100_000,
    "nested.py": b"a = " + b"-" * 50_000 + b"1\n",
}


@pytest.mark.parametrize("name", [*BAD_FILES, "missing.py"])
def test_a_file_that_cannot_be_read_as_python_is_skipped(name: str, tmp_path: Path) -> None:
    if name in BAD_FILES:
        (tmp_path / name).write_bytes(BAD_FILES[name])
    assert quickstart.measure(name, str(tmp_path)) is None
    assert quickstart.fingerprint(name, str(tmp_path)) == []
    assert quickstart.index_words(["missing.py"], str(tmp_path)) == {"words": [], "kinds": {}}
    assert (quickstart.compress(name, str(tmp_path)) is None) == (name == "missing.py")


def test_the_comparison_refuses_answers_that_differ() -> None:
    row = {"answer": 1, "began": 0.0, "ended": 2.0}
    results = {f"{name}_{work}": [row] for name in compare.EXECUTORS for work in compare.WORK}
    assert "2.00 (1.0x)" in compare.compare(**results)
    with pytest.raises(ValueError, match="do not agree"):
        compare.compare(**{**results, "threads_python": [{**row, "answer": 2}]})


# -- the pipelines, as people run them


def test_the_quickstart_reports_the_same_on_every_executor(tmp_path: Path) -> None:
    texts = {
        name: run(QUICKSTART, "-p", "limit=40", "-p", "top=5", "--executor", name, *more, state=tmp_path / name)
        for name, more in {"processes": ("-j", "3"), "inline": (), "threads": ("-j", "2")}.items()
    }
    assert texts["processes"] == texts["inline"] == texts["threads"]
    text = texts["inline"]
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    assert re.match(rf"40 of the [\d,]+ files of the standard library of {version}\n", text)
    assert str(ROOT) not in text
    assert sys.prefix not in text
    for title in ("Most complex functions", "Most used identifiers", "Modules that shrink most", "Largest clones"):
        assert f"\n{title}\n" in text
    assert re.search(r"^ +[\d,]+ +[\d,]+  self$", text, re.MULTILINE)


def test_the_quickstart_counts_what_it_cannot_read(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for name, data in BAD_FILES.items():
        (sources / name).write_bytes(data)
    (sources / "good.py").write_text("def f(a):\n    return a\n")
    text = run(QUICKSTART, "-p", f"folder={sources}", "--executor", "inline", state=tmp_path / "state")
    assert text.startswith("The folder sources\n")
    assert "parsed       1 files, 6 skipped because they can't be read as Python" in text


def test_the_comparison_prints_a_line_for_each_kind_of_work(tmp_path: Path) -> None:
    text = run(COMPARE, "-p", "items=2", "-j", "2", state=tmp_path)
    heads, *lines = text.strip().splitlines()
    assert heads.split()[-3:] == ["inline", "threads", "processes"]
    assert [re.split(r"  +", line)[0] for line in lines] == list(compare.WORK.values())


# -- the readme


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_first_pipeline_of_the_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "primes.yaml").write_text(readme_blocks("yaml")[0])
    (tmp_path / "primes.py").write_text(readme_blocks("python")[0])
    assert run(tmp_path / "primes.yaml", "-p", "upto=200000", state=tmp_path / "state") == "17,984 primes\n"


def test_the_python_example_of_the_readme_runs(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(readme_blocks("python")[1])
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "332833500\n"), done.stderr


def test_the_readme_has_the_two_commands() -> None:
    assert [block.strip() for block in readme_blocks("sh")] == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python -m procflow run configs/quickstart.yaml",
        "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox",
    ]
