"""What counts as a change of a step, and what does not."""

from __future__ import annotations

import enum
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow import Map, Merge, Parallel, Pipeline, Step
from procflow.compiler import compile_pipeline
from procflow.errors import PipelineError
from procflow.launch import prepare
from procflow.loader import load_pipeline
from procflow.model import Pipeline as Model
from procflow.resuming import canonical, fingerprint
from procflow.resuming.canonical import Canonical, framed
from procflow.resuming.code_print import CodePrints
from procflow.resuming.fingerprint import RUN_ID, Fingerprint, changed_pieces, changes, fingerprints
from procflow.resuming.needs import Key, needs_of
from procflow.storing.store_prints import Prints

CODE = '''
"""Steps."""
import math
import helper
from helper import scale
LIMIT = 10
UNUSED = 1

def clean(row):
    """Doc."""
    return inner(row) + LIMIT

def inner(row):
    return scale(row)

def other(row):
    return UNUSED

class Shape:
    size = LIMIT

def shaped(row):
    return Shape().size
'''
HELPER = "from deep import FACTOR\ndef scale(x):\n    return x * FACTOR\ndef loose(x):\n    return x\n"
DEEP = "FACTOR = 2\n"
FILE = """
name: p
params: {day: monday}
steps:
  - {type: transform, name: clean, function: "jobs:clean", params: {row: 1, opts: {a: 1, b: [x, y]}}}
  - {type: transform, name: other, function: "jobs:other", inputs: [clean]}
  - {type: shell, name: echo, command: [echo, "${params.day}"], parse: text}
"""


class Project:
    """A pipeline file with its modules."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("jobs.py", CODE), ("helper.py", HELPER), ("deep.py", DEEP), ("p.yaml", FILE)):
            (folder / name).write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        (self.folder / name).write_text(text.replace(old, new))

    def prints(self, **options: Any) -> dict[Key, Fingerprint]:
        loaded = load_pipeline(self.folder / "p.yaml", Model)
        prepared = prepare(loaded.pipeline, source=loaded.source, **options)
        return dict(fingerprints(needs_of(prepared.graph), prepared.run_id).by_key)

    def changed(self, before: dict[Key, Fingerprint], **options: Any) -> dict[str, list[str]]:
        after = self.prints(**options)
        assert before.keys() == after.keys()
        return {
            key[0]: changes(before[key].parts, after[key].parts)
            for key in before
            if before[key].digest != after[key].digest
        }


@pytest.mark.parametrize("most_telling", [0, 2000])
def test_fingerprints_are_those_of_earlier_versions(monkeypatch: pytest.MonkeyPatch, most_telling: int) -> None:
    monkeypatch.setattr(fingerprint, "MOST_TELLING", most_telling)
    steps = [
        Parallel(
            Step("a", "json:dumps", params={"obj": [1, 2.5, None, True, "é", b"x", {"k": (1,)}]}),
            Step("b", "json:dumps", outputs=["x", "y"]),
            name="block",
        ),
        Step("c", "json:loads", inputs=["a"], when="x == 1"),
    ]
    found = fingerprints(needs_of(compile_pipeline(Pipeline("p", steps=steps)))).by_key
    assert {label or "(all)": print_.digest for (label, _), print_ in found.items()} == {
        "block/a": "xxh3_128:273374d4e29b7f8b7f5b73e6a81fabc0",
        "block/b": "xxh3_128:f191efc644db7402e7cdb5ce27f8924c",
        "block": "xxh3_128:4368d6cc219cdc4915a2b3fbbad08705",
        "c": "xxh3_128:d22bd0aab54c66fa811060fcb8978cc0",
        "(all)": "xxh3_128:ebed5dcb52edb52d0a18b9fc713ae45d",
    }
    assert dict(found["c", "member"].parts) == {
        "kind": "35bbe52b44d7dd7f", "code": "635c0f63840f89fa", "inputs": "e8f49c24fa5e1c59", "when": "8e0918234d187227"
    }  # fmt: skip


@given(st.lists(st.text() | st.text(st.characters(max_codepoint=127)), max_size=4), st.sampled_from([list, tuple]))
def test_texts_together_are_told_as_one_by_one(texts: list[str], kind: type[Any]) -> None:
    tag = kind.__name__.encode()
    assert Canonical().of(kind(texts)) == framed(tag, *map(Canonical().of, texts))
    for text in filter(None, texts):
        canonical = Canonical(watch=text)
        canonical.of(kind(texts))
        assert canonical.seen


@pytest.mark.parametrize("most_telling", [0, 2000])
def test_steps_that_share_something_are_told_as_each_alone(monkeypatch: pytest.MonkeyPatch, most_telling: int) -> None:
    monkeypatch.setattr(fingerprint, "MOST_TELLING", most_telling)
    iterator = iter([1])
    opaque = [lambda: iterator] * 2
    steps = [
        *(Step(name, "json:dumps") for name in ("a", "b")),
        *(Step(name, os.getcwd) for name in ("c", "d")),
        *(Step(name, function) for name, function in zip("ef", opaque, strict=True)),
        *(Step(name, "json:dumps", params={"obj": 1}) for name in ("g", "h")),
        *(Step(name, "json:dumps", when="1 == 1") for name in ("i", "j")),
        *(Step(name, "json:dumps", outputs=[f"x{name}", name]) for name in ("k", "l")),
        Step("m", "json:loads"),
    ]
    together = fingerprints(needs_of(compile_pipeline(Pipeline("p", steps=[Parallel(*steps, name="x")])))).by_key
    for step in steps:
        block = Parallel(step, name="x")
        alone = fingerprints(needs_of(compile_pipeline(Pipeline("p", steps=[block])))).by_key
        key = (f"x/{step.name}", "member")
        if step.name in ("e", "f"):
            assert together[key].opaque == alone[key].opaque == ("list_iterator",)
        else:
            assert together[key] == alone[key]
    assert len({found.digest for found in together.values()}) == len(together)


@given(st.lists(st.tuples(st.text() | st.text(st.characters(max_codepoint=127)), st.sampled_from(["m", "", "é"]))))
def test_pairs_together_and_a_part_are_told_as_one_by_one(pairs: list[tuple[str, str]]) -> None:
    of = Canonical().of
    assert Canonical().of_pairs(pairs) == of(tuple(pairs)) == framed(b"tuple", *map(of, pairs))
    for value in (*pairs, tuple(pairs), "*", (), *((text,) for text, _ in pairs)):
        assert Canonical().part(value) == framed(b"", of(value))[1:-1]
    for text in (text for text, _ in pairs if text):
        for tell in (lambda c: c.of_pairs(pairs), lambda c, text=text: c.part((text,))):
            canonical = Canonical(watch=text)
            tell(canonical)
            assert canonical.seen


def test_texts_of_a_class_of_their_own_are_told_apart_from_texts() -> None:
    class Name(str):
        pass

    assert Canonical().of(("a", Name("b"))) != Canonical().of(("a", "b"))


def test_what_lies_too_deep_is_never_the_same() -> None:
    value: Any = ("a", "b")
    for _ in range(canonical.MOST_DEEP):
        value = [value]
    assert Canonical().of(value) == Canonical().of(value)
    found = Canonical()
    found.of([value])
    assert found.opaque == ["tuple"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("jobs.py", "return inner(row) + LIMIT", "return inner(row) - LIMIT"),
        ("jobs.py", "LIMIT = 10", "LIMIT = 11"),
        ("jobs.py", "return scale(row)", "return scale(row) + 1"),
        ("helper.py", "return x * FACTOR", "return x + FACTOR"),
        ("deep.py", "FACTOR = 2", "FACTOR = 3"),
        ("jobs.py", "from helper import scale", "from helper import loose as scale"),
        ("jobs.py", "LIMIT = 10", "LIMIT = 10\nmath.seed = 3\nprint('acts')"),
    ],
)
def test_a_change_of_what_a_function_uses_changes_its_code(project: Project, file: str, old: str, new: str) -> None:
    before = project.prints()
    project.edit(file, old, new)
    assert project.changed(before)["clean"] == ["code"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("jobs.py", "return inner(row) + LIMIT", "# a remark\n    return (inner(row)  +\n        LIMIT)"),
        ("jobs.py", '"""Doc."""', '"""Quite another text."""'),
        ("jobs.py", '"""Steps."""', '"""More steps."""'),
        ("jobs.py", "UNUSED = 1", "UNUSED = 2"),
        ("jobs.py", "import math", "import math, json"),
        ("jobs.py", "class Shape:", "if __name__ == '__main__':\n    print(1)\n\nclass Shape:"),
        ("helper.py", "def loose", "# more\ndef loose"),
    ],
)
def test_layout_comments_and_unused_code_do_not_count(project: Project, file: str, old: str, new: str) -> None:
    before = project.prints()
    project.edit(file, old, new)
    assert "clean" not in project.changed(before)


def test_a_class_that_a_function_uses_counts_with_what_it_uses(project: Project) -> None:
    project.edit("p.yaml", "jobs:clean", "jobs:shaped")
    before = project.prints()
    project.edit("jobs.py", "LIMIT = 10", "LIMIT = 12")
    assert project.changed(before)["clean"] == ["code"]


def test_a_module_imported_inside_a_function_or_by_name_counts(project: Project) -> None:
    project.edit("jobs.py", "return UNUSED", "import importlib\n    return importlib.import_module('deep').FACTOR")
    before = project.prints()
    project.edit("deep.py", "2", "5")
    assert project.changed(before)["other"] == ["code"]


def test_modules_that_import_each_other_are_no_endless_loop(project: Project) -> None:
    project.edit("deep.py", "FACTOR = 2", "import jobs\nFACTOR = 2")
    before = project.prints()
    project.edit("jobs.py", "def other(row):", "def other(row, more=1):")
    # The module is imported whole by one that the function needs, so all of it counts.
    assert {"clean", "other"} <= project.changed(before).keys()


def test_a_package_counts_with_its_relative_imports(project: Project) -> None:
    package = project.folder / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "steps.py").write_text("from .base import step\ndef run(row):\n    return step(row)\n")
    (package / "base.py").write_text("def step(row):\n    return row\n")
    project.edit("p.yaml", "jobs:clean", "pack.steps:run")
    before = project.prints()
    (package / "base.py").write_text("def step(row):\n    return [row]\n")
    assert project.changed(before) == {"clean": ["code"]}


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("row: 1", "row: 2", {"clean": ["params"]}),
        ("row: 1", "row: 1.0", {"clean": ["params"]}),
        ("b: [x, y]", "b: [y, x]", {"clean": ["params"]}),
        ("inputs: [clean]", "inputs: {row: clean}", {"other": ["inputs"]}),
        ("parse: text", "parse: lines", {"echo": ["options"]}),
        ("name: echo,", "name: echo, when: 'true', ", {"echo": ["when"]}),
        ("jobs:other", "jobs:inner", {"other": ["code"]}),
        ("parse: text", "parse: text, output: said", {"echo": ["kind"]}),
    ],
)
def test_what_changes_is_named(project: Project, old: str, new: str, what: dict[str, list[str]]) -> None:
    before = project.prints()
    project.edit("p.yaml", old, new)
    assert project.changed(before) == what


@pytest.mark.parametrize(
    "new",
    [
        "timeout: 5m, ", "retries: 3, ", "priority: 7, ", "description: hello, ", "cpus: 1, memory: 1MB, ",
        "kill_grace: 1s, ", "rate_limit: 10/s, ", "executor: threads, ", "on_error: continue, ",
    ],
)  # fmt: skip
def test_how_a_step_is_run_does_not_count(project: Project, new: str) -> None:
    before = project.prints()
    project.edit("p.yaml", 'function: "jobs:clean", ', f'function: "jobs:clean", {new}')
    assert project.changed(before) == {}


def test_the_order_of_keys_and_the_place_of_the_project_do_not_count(project: Project, tmp_path: Path) -> None:
    before = project.prints()
    project.edit("p.yaml", "{a: 1, b: [x, y]}", "{b: [x, y], a: 1}")
    assert project.changed(before) == {}
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    moved = Project(elsewhere)
    assert {k: p.digest for k, p in moved.prints().items()} == {k: p.digest for k, p in before.items()}


def test_a_parameter_counts_where_it_is_used(project: Project) -> None:
    before = project.prints()
    assert project.changed(before, params={"day": "tuesday"}) == {"echo": ["options"]}


def test_the_id_of_the_run_does_not_count_and_other_text_like_it_does(project: Project) -> None:
    project.edit("p.yaml", "${params.day}", "out-${run.id}.csv")
    loaded = load_pipeline(project.folder / "p.yaml", Model)
    found = []
    for run_id in ("r1", "r2"):
        prepared = prepare(loaded.pipeline, source=loaded.source, run_id=run_id)
        assert fingerprints(needs_of(prepared.graph), run_id).mentions_run_id
        assert prepared.compile_as is not None
        found.append(fingerprints(needs_of(prepared.compile_as(RUN_ID))).by_key["echo", "member"].digest)
    assert found[0] == found[1]
    assert "".join(found).startswith("xxh3_128:")


def test_a_step_before_that_is_renamed_or_a_member_that_is_added_is_seen() -> None:
    def graph(name: str, members: int) -> dict[Key, Fingerprint]:
        steps = [Step(f"{name}{i}", "os:getcwd") for i in range(members)]
        both = Parallel("both", *steps, merge="collect_all", output="all")
        best = Parallel("best", *steps, merge="combine_outputs", output="sum")
        pipeline = Pipeline("p", steps=[both, best, Merge("end", inputs=["all"])])
        return dict(fingerprints(needs_of(compile_pipeline(pipeline))).by_key)

    two, three = graph("s", 2), graph("s", 3)
    assert two["both", "block"].digest != three["both", "block"].digest
    assert two["best", "block"].digest != three["best", "block"].digest
    assert two["both/s0", "member"].digest == three["both/s0", "member"].digest


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_files(project: Project) -> Project:
    (project.folder / "data").mkdir()
    (project.folder / "data/a.csv").write_text("one")
    project.edit("p.yaml", "name: clean,", "name: clean, files: ['data/*.csv', '${params.day}.txt'],")
    return project


def test_declared_files_count_by_time_size_and_inode(with_files: Project) -> None:
    before = with_files.prints()
    file = with_files.folder / "data/a.csv"
    assert with_files.changed(before) == {}
    state = file.stat()
    file.write_text("two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert with_files.changed(before) == {}  # written in place with its time put back: that is what content is for
    other = file.with_name("b")
    other.write_text("two")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.rename(file)
    assert with_files.changed(before) == {"clean": ["files"]}
    os.utime(file, ns=(1, 1))
    assert with_files.changed(before) == {"clean": ["files"]}


@pytest.mark.parametrize("name", ["data/b.csv", "monday.txt"])
def test_declared_files_that_come_or_go_count(with_files: Project, name: str) -> None:
    before = with_files.prints()
    (with_files.folder / name).write_text("x")
    assert with_files.changed(before) == {"clean": ["files"]}
    (with_files.folder / name).unlink()
    assert with_files.changed(before) == {}
    (with_files.folder / "data/c.txt").write_text("x")
    assert with_files.changed(before) == {}


def test_declared_files_may_count_by_content_alone(with_files: Project) -> None:
    with_files.edit(
        "p.yaml", "files: ['data/*.csv', '${params.day}.txt']", "files: {paths: 'data/*.csv', hash: content}"
    )
    before = with_files.prints()
    file = with_files.folder / "data/a.csv"
    state = file.stat()
    file.write_text("one")
    os.utime(file, ns=(1, 1))
    assert with_files.changed(before) == {}
    file.write_text("two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert with_files.changed(before) == {"clean": ["files"]}


@pytest.mark.parametrize("files", ["[]", "{paths: []}", "3", "{paths: a, hash: md5}", "['']", "'${clean}'"])
def test_wrong_files_are_refused(project: Project, files: str) -> None:
    project.edit("p.yaml", "name: other,", f"name: other, files: {files},")
    with pytest.raises(PipelineError, match=r"p\.yaml:\d+:\d+: .*files"):
        project.prints()


# -- callables --------------------------------------------------------------------------------------------------------


def printed(function: Any) -> str:
    canonical = Canonical(CodePrints().callable)
    found = canonical.digest(function)
    assert canonical.opaque == []
    return found


def adder(number: Any) -> Callable[[int], Any]:
    def add(x: int, by: int = 1) -> Any:
        return x + by + len(str(number))

    return add


class Scaler:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return x * self.factor

    def scale(self, x: int) -> int:
        return x * self.factor


def test_closures_count_by_their_values() -> None:
    assert printed(adder(3)) == printed(adder(3)) != printed(adder(4))
    assert printed(adder({"a": {1, 2}})) == printed(adder({"a": {2, 1}}))


def test_defaults_partials_methods_and_instances_count_by_what_they_hold() -> None:
    first, second = adder(1), adder(1)
    second.__defaults__ = (2,)  # type: ignore[attr-defined]
    assert printed(first) != printed(second)
    assert printed(partial(first, by=1)) == printed(partial(first, by=1)) != printed(partial(first, by=2))
    assert printed(Scaler(2)) == printed(Scaler(2)) != printed(Scaler(3))
    assert printed(Scaler(2).scale) == printed(Scaler(2).scale) != printed(Scaler(3).scale)


def test_a_function_that_closes_over_itself_has_a_print() -> None:
    def again(n: int) -> int:
        return again(n - 1) if n else 0

    assert printed(again) == printed(again)


def test_two_lambdas_of_one_line_are_told_apart() -> None:
    one, two = (lambda x: x + 1), (lambda x: x + 2)
    assert printed(one) != printed(two)
    assert printed(one) == printed(one)


def test_functions_without_a_file_count_by_bytecode_and_the_globals_they_name() -> None:
    def made(source: str, **names: Any) -> Any:
        exec(source, names)
        return names["f"]

    text = "def f(x):\n    return x + k"
    assert printed(made(text, k=1)) == printed(made(text, k=1)) != printed(made(text, k=2))
    assert printed(made(text, k=1)) != printed(made("def f(x):\n    return x - k", k=1))


def test_a_value_that_can_not_be_looked_into_never_equals_anything() -> None:
    canonical = Canonical(CodePrints().callable)
    generator = iter([1, 2])
    assert canonical.digest(generator) != canonical.digest(generator)
    assert canonical.opaque == ["list_iterator", "list_iterator"]


# -- values -----------------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Point:
    x: int
    y: Any = None


VALUES = [
    None, True, 1, 1.0, -0.0, 0.0, "1", b"1", "", [], (), {}, set(), [1], (1,), [[1]], [1, 2], [2, 1], ["12"], ["1", "2"],
    {"a": 1}, {"a": 2}, {1: "a"}, {1}, frozenset({1, 2}), Color.RED, Color.BLUE, Point(1), Point(2), Point(1, [3]),
    Path("a"), range(3), slice(3), 1j, float("inf"), list(range(60)), tuple(range(60)), [float(i) for i in range(60)],
]  # fmt: skip


def test_different_values_have_different_digests() -> None:
    canonical = Canonical(CodePrints().callable)
    digests = [canonical.digest(value) for value in VALUES]
    assert len(set(digests)) == len(VALUES)
    assert [canonical.digest(value) for value in VALUES] == digests


@given(st.recursive(st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.booleans(),
       lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)),
       st.randoms(use_true_random=False))  # fmt: skip
def test_the_order_of_mappings_never_counts(value: Any, chance: random.Random) -> None:
    def shuffled(tree: Any) -> Any:
        if isinstance(tree, dict):
            pairs = [(key, shuffled(member)) for key, member in tree.items()]
            chance.shuffle(pairs)
            return dict(pairs)
        return [shuffled(member) for member in tree] if isinstance(tree, list) else tree

    assert Canonical().digest(shuffled(value)) == Canonical().digest(value)


def test_values_that_hold_themselves_have_a_digest() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    canonical = Canonical()
    assert canonical.digest(loop) == canonical.digest(loop)
    canonical.digest(deep)
    assert canonical.opaque  # too deep to be compared, and said so


def test_arrays_count_by_type_shape_and_content() -> None:
    numpy = pytest.importorskip("numpy")
    canonical = Canonical()
    base = numpy.arange(6)
    others = [base.astype("float64"), base.reshape(2, 3), base + 1]
    assert canonical.digest(base) == canonical.digest(base.copy())
    assert len({canonical.digest(value) for value in (base, *others)}) == 4
    assert canonical.opaque == []


# -- who builds on whom -----------------------------------------------------------------------------------------------


def test_needs_lead_through_blocks_to_the_member_that_makes_a_value() -> None:
    pipeline = Pipeline("p", steps=[
        Parallel("fetch", Step("a", "os:getcwd"), Step("b", "os:getcwd")),
        Step("reads_a", "os:fspath", inputs=["a"]),
        Map("m", "os:fspath", items="b", output="rows"),
        Map("n", Step("x", "os:fspath", inputs=["item"]), Step("y", "os:fspath", inputs=["x"]), items="rows", output="more"),
        Step("end", "os:fspath", inputs=["more"], depends_on=["reads_a"]),
    ])  # fmt: skip
    needs = needs_of(compile_pipeline(pipeline))
    assert needs["reads_a", "member"].reads == {"a": (("fetch/a", "member"),)}
    assert needs["m", "expand"].reads == {"b": (("fetch/b", "member"),)}
    assert needs["m", "batch"].reads == {"": (("m", "expand"),)}
    assert needs["n", "expand"].reads == {"rows": (("m", "block"),)}
    assert needs["n/y", "member"].reads == {"x": (("n/x", "member"),)}
    assert needs["n/x", "member"].depth == 1
    assert needs["end", "member"].reads == {"more": (("n", "block"),)}
    assert needs["end", "member"].strict == (("reads_a", "member"),)
    keys = list(needs)
    for key, need in needs.items():
        assert all(keys.index(before) < keys.index(key) for before in need.keys)


def test_what_only_the_run_can_tell_counts_as_possible() -> None:
    pipeline = Pipeline("p", steps=[
        Step("early", "os:getcwd", output="x"), Step("open", "os:getcwd", outputs="*"),
        Step("end", "os:fspath", inputs=["x"]),
    ])  # fmt: skip
    makers = needs_of(compile_pipeline(pipeline))["end", "member"].reads["x"]
    assert set(makers) == {("early", "member"), ("open", "member")}


def test_pieces_of_the_code_are_kept_for_so_many_functions_and_do_not_count(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.prints()
    old = json.loads(before["clean", "member"].pieces)
    assert {"clean", "inner", "LIMIT", "module helper", "module deep"} <= old.keys()
    project.edit("jobs.py", "LIMIT = 10", "LIMIT = 11")
    assert changed_pieces(old, project.prints()["clean", "member"].pieces) == ["LIMIT"]
    assert changed_pieces({}, project.prints()["clean", "member"].pieces) == []
    project.edit("jobs.py", "LIMIT = 11", "LIMIT = 10")
    monkeypatch.setattr(fingerprint, "MOST_TELLING", 1)
    fewer = project.prints()
    assert [bool(fewer[name, "member"].pieces) for name in ("clean", "other", "echo")] == [True, False, False]
    assert {key: found.digest for key, found in fewer.items()} == {key: found.digest for key, found in before.items()}
    told = Prints.of(before)
    assert json.loads(told.pieces)[before["clean", "member"].parts["code"]] == old
