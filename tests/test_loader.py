"""The loader: every mistake at its line and column, YAML 1.2, and hostile files refused early and cheaply."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from procflow.errors import PipelineError, Place, Problem
from procflow.loader import MAX_FILE_BYTES, load_pipeline, load_text
from procflow.model import Map, Parallel, Pipeline

FUZZ = int(os.environ.get("PROCFLOW_FUZZ", "0")) or 40
STEP = "steps: [{function: 'm:f'}]\n"
MINIMAL = f"name: p\n{STEP}"


def loaded(text: str, name: str = "p.yaml") -> Pipeline:
    return load_text(text, name, ".").pipeline


def problems(text: str, name: str = "p.yaml") -> tuple[Problem, ...]:
    with pytest.raises(PipelineError) as caught:
        load_text(text, name, ".")
    for problem in caught.value.problems:
        assert problem.place is not None
        assert problem.place.file == name
    return caught.value.problems


def only(text: str, name: str = "p.yaml") -> Problem:
    (problem,) = problems(text, name)
    return problem


def at(problem: Problem) -> tuple[int, int]:
    assert problem.place is not None
    return problem.place.line, problem.place.column


def params(text: str, name: str = "p.yaml") -> dict[str, Any]:
    """The parameters declared by lines of YAML."""
    lines = "".join(f"  {line}\n" for line in text.splitlines())
    return {key: param.default for key, param in loaded(f"name: p\nparams:\n{lines}{STEP}", name).params.items()}


# -- places ------------------------------------------------------------------------------------------------------------

TEN_MISTAKES = """\
name: nightly features
parms: {day: x}
limits: {workers: 0, memory: 500}
defaults: {retries: three}
steps:
  - type: paralel
    name: fetch
  - type: transform
    functoin: a:b
    timeout: soon
  - type: map
    items: ${files}
    function: nightly:extract
    on_error: contineu
  - type: sequence
    steps:
      - {type: merge, inputs: [a, "b c"]}
    name: x
    name: y
"""
TEN_PLACES = [
    (1, 7, '"nightly features" is not a name'),
    (2, 1, "unknown key \"parms\" (did you mean 'params'?)"),
    (3, 19, "limits.workers: expected auto, or a number of workers from 1 to 4096"),
    (3, 30, "write 500MB or 500GiB"),
    (4, 21, 'defaults.retries: expected a whole number, got "three"'),
    (6, 11, "unknown step type \"paralel\" (did you mean 'parallel'?)"),
    (9, 5, "unknown key \"functoin\" (did you mean 'function'?)"),
    (10, 14, "timeout: 'soon' is not a duration"),
    (14, 15, "did you mean 'continue'?"),
    (17, 35, "inputs[1]: 'b c' is not a name"),
    (19, 5, 'duplicate key "name": first in line 18, column 5, again in line 19, column 5'),
]


def test_every_mistake_of_a_file_is_listed_in_file_order_with_line_and_column() -> None:
    found = problems(TEN_MISTAKES)
    assert [at(p) for p in found] == [(line, column) for line, column, _ in TEN_PLACES]
    for problem, (line, column, words) in zip(found, TEN_PLACES, strict=True):
        assert words in str(problem)
        assert str(problem).startswith(f"p.yaml:{line}:{column}: ")


def test_the_same_mistakes_in_json_have_places_too() -> None:
    lines = (
        '{"name": "a b",',
        ' "steps": [{"function": "m:f", "retires": 1},',
        '   {"type": "shell", "command": [], "name": "x", "name": "y"}]}',
    )
    assert [(at(p), p.message) for p in problems("\n".join(lines), "p.json")] == [
        ((1, 10), 'name: "a b" is not a name'),
        ((2, 32), 'unknown key "retires"'),
        ((3, 33), "command: expected a list of arguments, or a line for the shell"),
        ((3, 50), 'duplicate key "name": first in line 3, column 37, again in line 3, column 50'),
    ]


def test_columns_count_characters_not_bytes() -> None:
    found = problems("name: p\ndescription: 'üé💡'   \nsteps: [{description: 'éé💡', function: 'm:f', cpus: 0}]\n")
    assert [at(p) for p in found] == [(3, 53)]


def test_an_alias_is_placed_where_it_is_used_and_its_inside_where_it_was_written() -> None:
    text = "name: p\nparams:\n  x: &bad {retries: many}\nsteps:\n"
    text += "  - {function: 'm:f', retry: *bad}\n  - {function: 'm:f', name: *bad}\n"
    assert [(at(p), p.loc) for p in problems(text)] == [
        ((3, 21), ("steps", 0, "retry", "retries")),
        ((6, 29), ("steps", 1, "name")),
    ]


def test_the_source_tells_places_of_values_keys_and_nearest_ancestors() -> None:
    source = load_text("name: p\nsteps:\n  - function: m:f\n    inputs: [a,\n      b]\n", "p.yaml", "/tmp/x").source
    assert source.place(("steps", 0, "inputs", 1)) == Place("p.yaml", 5, 7)
    assert source.place(("steps", 0, "inputs", 9, "x")) == Place("p.yaml", 4, 13)
    assert source.key_place(("steps", 0, "inputs")) == Place("p.yaml", 4, 5)
    assert source.key_place(("steps", 0, "inputs", 1)) == Place("p.yaml", 5, 7)
    assert source.key_place(("steps", 7, "inputs")) == Place("p.yaml", 3, 3)
    assert source.place(()) == Place("p.yaml", 1, 1)
    assert (source.folder, source.path) == (Path("/tmp/x"), None)
    elsewhere = Problem("there", ("steps",), place=Place("other.yaml", 9, 9))
    located = source.locate([Problem("here", ("steps", 0, "output")), elsewhere])
    assert [p.place for p in located] == [Place("p.yaml", 3, 5), elsewhere.place]


def test_a_file_gives_its_absolute_path_and_folder_and_the_name_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.yaml").write_text(MINIMAL)
    monkeypatch.chdir(tmp_path)
    source = load_pipeline("p.yaml").source
    assert (source.name, source.path, source.folder) == ("p.yaml", tmp_path / "p.yaml", tmp_path)


def test_a_subclass_of_pipeline_is_made_when_asked_for(tmp_path: Path) -> None:
    class Mine(Pipeline):
        pass

    (tmp_path / "p.json").write_text('{"name": "p", "steps": [{"function": "m:f"}]}')
    assert type(load_pipeline(tmp_path / "p.json", Mine).pipeline) is Mine


def test_the_example_of_the_language_loads() -> None:
    text = """
name: nightly-features
params: {day: "2026-11-20", corpus: {default: data, help: folder of text files}}
limits: {workers: auto, memory: 80%, timeout: 2h, resources: {db: 4}}
defaults: {timeout: 30m, retries: 1}
steps:
  - type: parallel
    name: fetch
    max_parallelism: 2
    timeout: 10m
    steps:
      - {type: transform, name: list_files, function: "nightly:list_files", params: {folder: "${params.corpus}"}, output: files}
      - {type: shell, name: stamp, command: [date, +%s], parse: text}
  - type: map
    name: features
    items: ${files}
    function: nightly:extract
    memory: 500MB
    tolerate: 1%
    output: rows
  - {type: transform, name: report, function: "nightly:report", inputs: [files, rows], output: summary}
"""
    pipeline = loaded(text)
    assert isinstance(pipeline.steps[0], Parallel)
    assert isinstance(pipeline.steps[1], Map)
    assert pipeline.steps[1].memory == 500_000_000
    assert pipeline.params["corpus"].default == "data"


def test_loading_imports_nothing_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "usersown.py").write_text("raise SystemExit('imported')")
    (tmp_path / "p.yaml").write_text("name: p\nsteps: [{function: 'usersown:f'}]\n")
    load_pipeline(tmp_path / "p.yaml")
    assert "usersown" not in sys.modules


# -- scalars -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("off", "off"), ("1:30", "1:30"), ("12:30:45", "12:30:45"), ("010", 10),
        ("0o10", 8), ("0x1F", 31), ("0b1", "0b1"), ("1_000", "1_000"), ("1e3", 1000.0), ("-1.5E-3", -0.0015), (".5", 0.5),
        ("5.", 5.0),
        ("+5", 5), ("-0", 0), ("2026-11-20", "2026-11-20"), ("2026-11-20T10:00:00Z", "2026-11-20T10:00:00Z"), ("true", True),
        ("TRUE", True), ("tRUE", "tRUE"), ("False", False), ("null", None), ("~", None), ("", None), ("nUll", "nUll"), ("'5'", "5"),
        ('"true"', "true"), (".inf", float("inf")), ("-.INF", float("-inf")), ("inf", "inf"), ("nan", "nan"), ("1e", "1e"),
        ("+", "+"),
        (".", "."), ("-", "-"), ("=", "="), ("${x}", "${x}"), ("m:f", "m:f"), ("10/s", "10/s"), ("80%", "80%"), ("1.2.3", "1.2.3"),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(written: str, value: object) -> None:
    read = params(f"x: {written}" if written != "-" else "x: [-]")["x"]
    read = read[0] if written == "-" else read
    assert read == value
    assert type(read) is type(value)


def test_blocks_of_text_and_quotes_stay_text() -> None:
    assert params("x: |\n  5\n  no\ny: >-\n  10\nz: '<<'") == {"x": "5\nno\n", "y": "10", "z": "<<"}


@pytest.mark.parametrize("name", ["p.yaml", "p.json"])
@pytest.mark.parametrize("number", ["9" * 100_000, "-" + "9" * 101, "1e999", "1." + "0" * 200])
def test_numbers_beyond_reason_are_refused_at_their_place(name: str, number: str) -> None:
    text = f'{{"name": "p", "params": {{"x": {number}}},\n"steps": [{{"function": "m:f"}}]}}'
    started = time.process_time()
    problem = only(text, name)
    assert time.process_time() - started < 1
    assert at(problem) == (1, 31)
    assert "quotes" in problem.hint
    assert len(str(problem)) < 300


# -- structure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", (1, 1), "empty"),
        ("# only a comment\n", (1, 1), "empty"),
        ("---\n...\n", (2, 1), "a pipeline is a mapping"),
        ("- a\n", (1, 1), "a pipeline is a mapping"),
        ("text", (1, 1), "a pipeline is a mapping"),
        ("42", (1, 1), "a pipeline is a mapping"),
        (MINIMAL + "---\nname: q\n", (3, 1), "second document"),
        ("%YAML 1.1\n---\n" + MINIMAL, (1, 1), "YAML 1.1"),
        ("%TAG ! tag:x,2000:\n---\n" + MINIMAL, (1, 1), "tags"),
        ("name: p\nname: q\n" + STEP, (2, 1), "first in line 1, column 1"),
        ("name: p\nsteps: [{function: 'm:f', params: {a: {b: 1, b: 2}}}]\n", (2, 46), "duplicate"),
        ("name: p\nparams: {1: a}\n" + STEP, (2, 10), "the key 1 is not text"),
        ("name: p\nparams: {true: a}\n" + STEP, (2, 10), "the key true is not text"),
        ("name: p\nparams: {~: a}\n" + STEP, (2, 10), "the key ~ is not text"),
        ("name: p\nparams: {[a]: b}\n" + STEP, (2, 10), "a key must be text"),
        ("name: p\n? {a: b}\n: c\n" + STEP, (2, 3), "a key must be text"),
        ("name: p\nparams: {x: &a {y: 1}, z: {<<: *a}}\n" + STEP, (2, 28), "merge keys"),
        ("name: p\nparams: {x: *nope}\n" + STEP, (2, 13), "unknown alias *nope"),
        ("name: p\nparams: {x: &a [*a]}\n" + STEP, (2, 17), "inside the value that it names"),
        ("name: p\nparams: {x: &a {y: {z: *a}}}\n" + STEP, (2, 24), "inside the value that it names"),
        ("name: !!python/object/apply:os.system ['true']\n" + STEP, (1, 7), "!!python/object/apply:os.system is not allowed"),
        ("name: !!str p\n" + STEP, (1, 7), "tag !!str"),
        ("name: ! p\n" + STEP, (1, 7), "tag !"),
        ("name: p\nsteps: !mine [{function: 'm:f'}]\n", (2, 8), "tag !mine"),
        ("name: p\nsteps: !!set {function}\n", (2, 8), "tag !!set"),
        ("name: p\n\tsteps: []\n", (2, 1), "spaces, not tabs"),
        ("name: @p\n" + STEP, (1, 7), "quotes around text that begins with @"),
        ("name: p\nsteps: [{items: ${rows}, type: map}]\n", (2, 18), 'quotes around "${...}"'),
        ("name: p\nsteps: [\n", (3, 1), "not valid YAML"),
        ("name: p\ndescription: a: b\n", (2, 15), "quotes around text that holds a colon"),
        ("name: p\x00\n" + STEP, (1, 8), "NUL"),
        ("name: p\ndescription: a\x07b\n" + STEP, (2, 15), "U+0007"),
        ("name: p\ndescription: \ud800\n" + STEP, (2, 14), "U+D800"),
    ],
)  # fmt: skip
def test_what_a_pipeline_file_may_not_hold_is_refused_at_its_place(
    text: str, place: tuple[int, int], words: str
) -> None:
    problem = problems(text)[0]
    assert at(problem) == place
    assert words in str(problem)


def test_a_tag_never_runs_anything(tmp_path: Path) -> None:
    target = tmp_path / "made"
    only(f"name: p\nparams: {{x: !!python/object/apply:os.mkdir ['{target}']}}\n{STEP}")
    assert not target.exists()


def test_small_mistakes_of_the_text_do_not_hide_those_of_the_pipeline() -> None:
    found = problems("name: !!str p\nbogus: 1\nparams: {a: 1, a: 2}\nsteps: [{type: nope}]\n")
    assert [at(p)[0] for p in found] == [1, 2, 3, 4]


def test_anchors_and_aliases_within_bounds_are_values() -> None:
    assert params("a: &x [1, 2]\nb: *x\nc: {y: *x}") == {"a": [1, 2], "b": [1, 2], "c": {"y": [1, 2]}}
    assert params("a: &k key\nb: {*k : 1}") == {"a": "key", "b": {"key": 1}}


def test_a_byte_order_mark_and_other_line_ends_are_read_away(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_bytes(b"\xef\xbb\xbfname: p\r\nsteps:\r\n- function: m:f\r\n  cpus: 0\r\n")
    with pytest.raises(PipelineError) as caught:
        load_pipeline(tmp_path / "p.yaml")
    assert [at(p) for p in caught.value.problems] == [(4, 9)]
    assert params("x: |\r\n  a\r\n  b\r\n") == {"x": "a\nb\n"}


def test_a_file_with_a_thousand_mistakes_lists_the_first_and_counts_the_rest() -> None:
    keys = "".join(f"functoin{i}: 1\n" for i in range(20_000))
    started = time.process_time()
    found = problems(f"{keys}{MINIMAL}")
    assert time.process_time() - started < 3
    assert len(found) == 101
    assert found[-1].message.startswith("and 19,900 more")


# -- bombs -------------------------------------------------------------------------------------------------------------


def bomb(width: int, levels: int) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def chain(links: int, depth: int) -> str:
    lines = [f"a0: &a0 {'[' * depth}{']' * depth}"]
    return "\n".join(lines + [f"a{i}: &a{i} {'[' * depth}*a{i - 1}{']' * depth}" for i in range(1, links)])


BOMBS = [
    pytest.param(bomb(9, 10), "more than", id="nine to the tenth"),
    pytest.param("x: &a [" + "1, " * 2000 + "1]\ny: [" + "*a, " * 60 + "1]", "100,000 values", id="sixty long lists"),
    pytest.param("x: &a 1\ny: [" + "*a, " * 101 + "1]", "100 aliases", id="many aliases"),
    pytest.param(chain(90, 40), "nested more than 64 deep", id="a chain of deep lists"),
    pytest.param("x: " + "[" * 100_000, "nested more than 64 deep", id="hundred thousand brackets"),
    pytest.param("x: " + "{a: " * 100_000, "nested more than 64 deep", id="hundred thousand braces"),
    pytest.param("- " * 100_000, "nested more than 64 deep", id="hundred thousand dashes"),
    pytest.param("? " * 100_000, "must be text", id="hundred thousand questions"),
    pytest.param("x: [" + "1," * 200_000 + "]", "100,000 values", id="a long list"),
    pytest.param("&a " * 50_000, "YAML", id="many anchors"),
    pytest.param("x: '" + "a" * 900_000, "YAML", id="an open quote"),
    pytest.param("[" * 1_000_000, "nested more than 64 deep", id="a million brackets"),
]


@pytest.mark.parametrize(("text", "words"), BOMBS)
def test_a_bomb_is_refused_in_no_time(text: str, words: str) -> None:
    started = time.process_time()
    found = problems(text)
    assert time.process_time() - started < 3, "a noisy machine is allowed for: the longest takes half a second"
    assert any(words in str(p) for p in found)


@pytest.mark.parametrize(("text", "words"), [b for b in BOMBS if b.id != "a long list"])
def test_a_bomb_is_refused_with_little_memory(text: str, words: str) -> None:
    tracemalloc.start()
    try:
        assert any(words in str(p) for p in problems(text))
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["[" * 1_000_000, '{"a":' * 200_000, "[" + "1," * 200_000 + "1]", '"' * 100_001, "[" + "{}," * 120_000]
)
def test_a_json_bomb_is_refused(text: str) -> None:
    started = time.process_time()
    problems(text, "p.json")
    assert time.process_time() - started < 3


def test_the_bounds_themselves_are_allowed() -> None:
    assert params("x: " + "[" * 62 + "]" * 62)["x"] is not None
    assert len(params("x: [" + "1," * 99_000 + "]")["x"]) == 99_000
    assert len(params("x: &a 1\ny: [" + "*a, " * 100 + "1]")["y"]) == 101
    assert "nested" in problems("x: " + "[" * 64 + "]" * 64)[0].message


# -- JSON --------------------------------------------------------------------------------------------------------------

JSON_STEP = '"steps":[{"function":"m:f"}]'


@pytest.mark.parametrize(
    "written",
    [
        "1",
        "-0",
        "1.5e3",
        '"\\u00e9\\n\\/\\ud83d\\ude00"',
        "[]",
        "{}",
        "[1, [2, {}], null, true, false]",
        '{"a": {"b": []}}',
        '"no"',
        '"\\\\"',
    ],
)
def test_json_is_read_as_the_standard_library_reads_it(written: str) -> None:
    text = f'{{"name":"p","params":{{"x":{{"default":{written}}}}},{JSON_STEP}}}'
    assert loaded(text, "p.json").params["x"].default == json.loads(written)
    assert loaded(json.dumps(json.loads(text), indent="\t"), "P.JSON").params["x"].default == json.loads(written)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", (1, 1), "empty"), ("  \n ", (1, 1), "empty"), ("{", (1, 2), "key in double quotes"), ('{"a"', (1, 5), "expected :"),
        ('{"a": }', (1, 7), "expected a value"), ('{"a": 1,}', (1, 9), "comma"), ("[1, 2", (1, 6), "expected ,"),
        ("[1 2]", (1, 4), "expected ,"), ("[,]", (1, 2), "expected a value"), ("{'a': 1}", (1, 2), "double quotes"),
        ('{"a": NaN}', (1, 7), "expected a value"), ('{"a": 01}', (1, 8), "expected ,"), ('{"a": nul}', (1, 7), "expected a value"),
        ('{"a": "x\ny"}', (1, 9), "control character"), ('{"a": "\\q"}', (1, 8), "escape"),
        ('{"a": "\\ud800"}', (1, 7), "surrogate"),
        ('{"a": "\\u0000"}', (1, 7), "NUL"), ("// note\n{}", (1, 1), "expected a value"), ("{} {}", (1, 4), "more text"),
        ("[1]\n[2]", (2, 1), "more text"), ("[1]", (1, 1), "a pipeline is a mapping"), ("null", (1, 1), "a pipeline is a mapping"),
        ("[1}", (1, 3), "expected , or ]"), ('{"a": [}', (1, 8), "expected a value"),
        ('{"a"\n: "b" "c"}', (2, 7), "expected , or }"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_at_its_place(text: str, place: tuple[int, int], words: str) -> None:
    problem = problems(text, "p.json")[0]
    assert at(problem) == place
    assert words.lower() in problem.message.lower()


# -- files -------------------------------------------------------------------------------------------------------------


def refused(path: Path | str) -> Problem:
    started = time.process_time()
    with pytest.raises(PipelineError) as caught:
        load_pipeline(path)
    assert time.process_time() - started < 5
    (problem,) = caught.value.problems
    assert problem.place is not None
    assert problem.place.file == str(path)
    return problem


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "nightly.yaml").write_text(MINIMAL)
    assert "did you mean 'nightly.yaml'" in str(refused(tmp_path / "nigthly.yaml"))
    assert "no such file" in str(refused(tmp_path / "nowhere" / "p.yaml"))
    assert "no such file" in str(refused(tmp_path / "zzz"))


def test_a_folder_a_pipe_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "folder" in refused(tmp_path).message
    assert "plain file" in refused(tmp_path / "pipe.yaml").message
    assert "plain file" in refused("/dev/zero").message


def test_a_file_that_is_no_text_is_refused_at_the_byte(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes("name: p\ndescription: é\n".encode("latin-1"))
    assert at(refused(file)) == (2, 14)
    file.write_bytes(MINIMAL.encode("utf-16"))
    assert "UTF-8" in refused(file).hint
    file.write_bytes(b"\x7fELF\x02\x01\x01\x00")
    assert "printed" in refused(file).message


def test_a_file_above_a_mebibyte_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert "too many" in refused(file).message
    assert "too many" in problems("#" * (MAX_FILE_BYTES + 1))[0].message
    file.write_bytes(MINIMAL.encode() + b"#" * (MAX_FILE_BYTES - len(MINIMAL)))
    assert load_pipeline(file).pipeline.name == "p"


def test_a_file_that_may_not_be_read_and_a_path_that_can_not_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert "can't be read" in refused(tmp_path / "loop.yaml").message
    assert "can't be read" in refused(tmp_path / ("x" * 300)).message
    assert "NUL" in refused("a\0b").message


# -- fuzz --------------------------------------------------------------------------------------------------------------

MANY_WORDS = "a b rows ${rows} ${a.b.0} m:f 5m 500MB 80% any all stop continue update best_quality no 010 1e3 * & << {} [] ~ true"
WORDS = st.sampled_from(MANY_WORDS.split())
NAMES = st.sampled_from(["a", "b", "c", "rows"])
VALUES = st.recursive(
    st.one_of(WORDS, st.integers(-5, 10**30), st.floats(), st.booleans(), st.none(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
LEAF = st.one_of(
    st.fixed_dictionaries(
        {"function": st.just("m:f")}, optional={"name": NAMES, "inputs": st.lists(NAMES), "timeout": st.just("5m")}
    ),
    st.fixed_dictionaries(
        {"type": st.just("shell"), "command": st.lists(WORDS, min_size=1)}, optional={"env": st.just({"A": "b"})}
    ),
    st.fixed_dictionaries({"type": st.just("merge"), "inputs": st.lists(NAMES, min_size=1)}),
)
STEPS = st.recursive(
    LEAF,
    lambda inner: (
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(["sequence", "parallel", "graph"]),
                "steps": st.lists(inner, min_size=1, max_size=3),
            },
            optional={
                "name": NAMES,
                "on_error": st.sampled_from(["stop", "continue"]),
                "retry": st.just({"retries": 1, "delay": "1s"}),
            },
        )
        | st.fixed_dictionaries(
            {"type": st.just("map"), "items": st.just("${rows}"), "steps": st.lists(inner, min_size=1, max_size=2)}
        )
    ),
    max_leaves=6,
)
PIPELINES = st.fixed_dictionaries(
    {"name": NAMES, "steps": st.lists(STEPS, min_size=1, max_size=3)},
    optional={
        "params": st.dictionaries(NAMES, WORDS),
        "limits": st.just({"workers": 2, "memory": "80%"}),
        "show": NAMES,
    },
)
MANY_KEYS = (
    "type name steps inputs outputs output items params merge join tolerate retry retries on_error cpus memory when as"
)
KEYS = st.sampled_from(MANY_KEYS.split())
checked = settings(max_examples=FUZZ, deadline=None, suppress_health_check=list(HealthCheck))


class Quoted(yaml.SafeDumper):
    """Writes text in quotes, because PyYAML leaves them out where YAML 1.1 would not need them."""


Quoted.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def load_or_refuse(text: str, name: str) -> Pipeline | None:
    """The pipeline, or None where it was refused in the way that every file may be refused."""
    started, found = time.process_time(), None
    pipeline = None
    try:
        pipeline = load_text(text, name, ".").pipeline
    except PipelineError as error:
        found = error.problems
    assert time.process_time() - started < 5
    if found is None:
        return pipeline
    most_lines = 1 + len(re.findall("\r\n|[\n\r\x85\u2028\u2029]", text))
    places = [(p.place.line, p.place.column) for p in found if p.place is not None]
    assert len(places) == len(found) > 0
    assert places == sorted(places)
    assert all(1 <= line <= most_lines + 1 and column >= 1 for line, column in places)
    assert all(p.message and len(str(p)) < 1000 for p in found)
    return None


@given(tree=PIPELINES)
@checked
def test_every_valid_pipeline_loads_from_yaml_and_json_alike(tree: dict[str, Any]) -> None:
    from_yaml = load_or_refuse(yaml.dump(tree, Dumper=Quoted, sort_keys=False), "p.yaml")
    from_json = load_or_refuse(json.dumps(tree), "p.json")
    assert from_yaml is not None
    assert from_yaml == from_json


@given(tree=PIPELINES, data=st.data())
@checked
def test_a_mutated_pipeline_loads_or_is_refused_with_places(tree: dict[str, Any], data: st.DataObject) -> None:
    tree = copy.deepcopy(tree)  # parts of the strategy are shared between examples
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(tree, data)
    flow = data.draw(st.booleans())
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=flow, allow_unicode=True)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + data.draw(st.sampled_from([*"{}[]:,&*!|>'\"%@`#\t\n\r\0-? ", "<<: ", "!!str ", "\ud800", "${"]))
            + text[at:]
        )
    load_or_refuse(text, "p.yaml")
    load_or_refuse(json.dumps(tree), "p.json")


def mutate(tree: Any, data: st.DataObject) -> None:
    """Change, add or remove something anywhere in the tree."""
    places: list[dict[str, Any] | list[Any]] = []
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (dict, list)):
            places.append(part)
            waiting += part.values() if isinstance(part, dict) else part
    into = data.draw(st.sampled_from(range(len(places))).map(places.__getitem__))
    if isinstance(into, list):
        into.insert(data.draw(st.integers(0, len(into))), data.draw(VALUES))
    elif into and data.draw(st.booleans()):
        del into[data.draw(st.sampled_from(sorted(into)))]
    else:
        into[data.draw(KEYS)] = data.draw(VALUES)


@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))))
@checked
def test_any_bytes_in_a_file_load_or_are_refused_with_places(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("raw.yaml", "raw.json"):
        (folder / name).write_bytes(data)
        with pytest.raises(PipelineError) as caught:
            load_pipeline(folder / name)
        assert all(p.place is not None for p in caught.value.problems)


@given(text=st.text(alphabet="{}[]:,&*!|>'\"%@`#-? \n\tab1<~", max_size=60))
@checked
def test_any_punctuation_is_refused_with_places(text: str) -> None:
    assert load_or_refuse(text, "p.yaml") is None
    assert load_or_refuse(text, "p.json") is None
