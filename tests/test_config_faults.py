"""Faults of configuration, F70 to F80 and F83, through ``procflow validate``: exit 2, file:line:column, cause, nothing run.

The loader, the model and the compiler are tested one by one elsewhere; here each fault of the catalogue goes the whole way.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow.cli import cli
from procflow.launch import prepare
from procflow.loader import load_text
from procflow.resuming.fingerprint import fingerprints
from procflow.resuming.needs import needs_of

PLACE = re.compile(r"(?P<file>[^:]+):(?P<line>\d+):(?P<column>\d+): (?P<message>.+)")
Validate = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Validate:
    """Runs ``procflow validate`` on a text; the exit code and the lines on stderr. Nothing of the user may be imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit('the module was imported')\ndef f(): pass\n")

    def run(text: str | bytes | None, *options: str, name: str = "p.yaml") -> tuple[int, list[str]]:
        if text is not None:
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(SystemExit) as end:
            cli.main(["validate", name, *options])
        shown = capsys.readouterr()
        assert "mine" not in sys.modules
        assert not (tmp_path / ".procflow").exists()
        assert isinstance(end.value.code, int)
        return end.value.code, [line for line in shown.err.split("\n") if line]

    return run


def problems(lines: list[str]) -> list[tuple[int, int, str]]:
    """Line, column and message of each problem; the last line counts them."""
    *told, count = lines
    found = [PLACE.fullmatch(line) for line in told]
    assert all(found), told
    assert count.startswith(f"{len(told)} problem")
    return [(int(m["line"]), int(m["column"]), m["message"]) for m in found if m is not None]


def refused(validate: Validate, text: str | bytes, *options: str, name: str = "p.yaml") -> list[tuple[int, int, str]]:
    """The problems of a file that is refused, found within a second of processor time."""
    before = time.process_time()
    code, lines = validate(text, *options, name=name)
    assert time.process_time() - before < 1.0
    assert code == 2
    return problems(lines)


STEP = "  - {name: a, function: 'mine:f'}\n"
HEAD = "name: p\nsteps:\n"


def test_a_good_file_passes_and_its_modules_are_not_imported(validate: Validate) -> None:
    assert validate(HEAD + STEP) == (0, [])


# -- F70 to F76: the text ----------------------------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


def test_f70_an_alias_bomb_is_refused(validate: Validate) -> None:
    ((line, column, message), *_) = refused(validate, f"{HEAD}{STEP}{BOMB}")
    assert line > 3
    assert column > 1
    assert "more than 100,000 values" in message


@pytest.mark.parametrize("depth", [100_000, 1_000_000])
def test_f71_deep_nesting_is_refused(validate: Validate, depth: int) -> None:
    ((line, _, message),) = refused(validate, f"name: p\nsteps: {'[' * depth}"[: 1 << 20])
    assert line == 2
    assert "deep" in message


@pytest.mark.parametrize("text", ["x: &a [*a]\n", "x: &a {k: *a}\n", "x: &a [[[*a]]]\n"])
def test_f72_an_alias_of_itself_is_refused(validate: Validate, text: str) -> None:
    found = refused(validate, f"{HEAD}{STEP}{text}")
    assert any(line == 4 and "*a" in message for line, _, message in found)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"name: p\nname: q\nsteps:\n{STEP}", 2),
        (HEAD + "  - {name: a, name: b, function: 'mine:f'}\n", 3),
        (HEAD + "  - name: a\n    function: 'mine:f'\n    params: {x: 1, y: 2, x: 3}\n", 5),
        (HEAD + "  - {name: a, function: 'mine:f', retry: {retries: 1, retries: 2}}\n", 3),
        (f"name: p\nlimits: {{workers: 1, 'workers': 2}}\nsteps:\n{STEP}", 2),
    ],
)
def test_f73_duplicate_keys_are_refused_at_every_level_with_both_places(
    validate: Validate, text: str, line: int
) -> None:
    ((at, _, message),) = refused(validate, text)
    assert at == line
    assert re.search(r"line \d+|first|twice|already", message)


KEYS = {
    "pipeline": ["description", "params", "limits", "defaults", "steps", "on_error", "show", "secrets"],
    "step": ["function", "inputs", "output", "depends_on", "executor", "timeout", "retries", "memory", "priority"],
    "limits": ["workers", "memory", "timeout", "resources", "retry_budget"],
    "retry": ["retries", "delay", "backoff", "max_delay", "jitter"],
}


@pytest.mark.parametrize(("home", "key"), [(home, key) for home, keys in KEYS.items() for key in keys])
def test_f74_a_misspelt_key_is_refused_with_the_nearest_one(validate: Validate, home: str, key: str) -> None:
    wrong = key[:-2] + key[-1] + key[-2] if key[-1] != key[-2] else key[:-1]
    text = {
        "pipeline": f"name: p\n{wrong}: x\nsteps:\n{STEP}",
        "step": f"{HEAD}  - {{name: a, function: 'mine:f', {wrong}: x}}\n",
        "limits": f"name: p\nlimits: {{{wrong}: x}}\nsteps:\n{STEP}",
        "retry": f"{HEAD}  - {{name: a, function: 'mine:f', retry: {{retries: 1, {wrong}: x}}}}\n",
    }[home]
    found = refused(validate, text)
    assert any(f"unknown key \"{wrong}\" (did you mean '{key}'?)" in message for _, _, message in found), found


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("enabled: no", 'expected true or false, got "no" (YAML 1.2 reads yes, no, on and off as text)'),
        ("enabled: 'true'", "expected true or false"),
        ("retries: 1.5", "whole number"),
        ("retries: 1e3", "whole number"),
        ("retries: '3'", "whole number"),
        ("timeout: 12:30:45", "'12:30:45' is not a duration; write 90s, 15m or 2h"),
        ("timeout: 2026-11-20", "is not a duration"),
        ("name: 1", "expected text, got 1 (put quotes around it)"),
        ("name: true", "expected text, got true"),
        ("description: 3.10", "put quotes around it"),
        ("output: null", ""),
        ("retries: 010", ""),
        ("description: 2026-11-20", ""),
    ],
)
def test_f75_scalars_are_what_they_look_like_and_others_are_refused(
    validate: Validate, written: str, words: str
) -> None:
    name = "" if written.startswith("name") else "name: a, "
    text = f"{HEAD}  - {{{name}function: 'mine:f', {written}}}\n"
    if not words:
        assert validate(text)[0] == 0
        return
    ((line, column, message),) = refused(validate, text)
    assert (line, column) == (3, text.split("\n")[2].index(written) + written.index(": ") + 3)
    assert words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{HEAD}{STEP}x: !!python/object/apply:os.system ['touch pwned']\n", "tag"),
        (f"{HEAD}{STEP}x: !!python/name:os.system\n", "tag"),
        (f"{HEAD}{STEP}---\n{HEAD}{STEP}", "document"),
        (f"{HEAD}{STEP}x: a\0b\n", "NUL"),
        (f"{HEAD}{STEP}# caf\xe9\n".encode("latin-1"), "0xe9 is not UTF-8 (save the file as UTF-8)"),
        (f"{HEAD}{STEP}".encode("utf-16"), "UTF-16"),
        ("", "a pipeline is a mapping"),
        ("# nothing\n", "a pipeline is a mapping"),
        ("- a\n", "a pipeline is a mapping"),
        ("just text\n", "a pipeline is a mapping"),
        (b"\x80\x81", "is not UTF-8"),
        (f"{HEAD}{STEP}{'#' * (1 << 20)}", "too many for a pipeline file"),
    ],
)
def test_f76_what_no_pipeline_is_made_of_is_refused_and_never_run(
    validate: Validate, text: str | bytes, words: str
) -> None:
    found = refused(validate, text)
    assert any(words in message for _, _, message in found), found
    assert not Path("pwned").exists()


@pytest.mark.parametrize("encode", [lambda t: b"\xef\xbb\xbf" + t, lambda t: t.replace(b"\n", b"\r\n")])
def test_f76_a_byte_order_mark_and_line_ends_of_windows_are_read_away(
    validate: Validate, encode: Callable[[bytes], bytes]
) -> None:
    assert validate(encode(f"{HEAD}{STEP}".encode())) == (0, [])


def test_f76_a_folder_a_pipe_and_nothing_at_all_are_refused_without_waiting(validate: Validate, tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name, words in {
        "folder.yaml": "this is a folder", "pipe.yaml": "not a plain file", "loop.yaml": "can't be read",
        "pipes.yaml": "did you mean 'pipe.yaml'?",
    }.items():  # fmt: skip
        code, lines = validate(None, name=name)
        assert code == 2
        ((line, column, message),) = problems(lines)
        assert (line, column) == (1, 1)
        assert words in message


# -- F77, F78: order and names of values -------------------------------------------------------------------------------


def a_graph(edges: dict[str, list[str]]) -> str:
    lines = [f"  - {{name: {name}, function: 'mine:f', depends_on: [{', '.join(on)}]}}" for name, on in edges.items()]
    return "name: p\ntype: graph\nsteps:\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("seed", range(25))
def test_f77_circles_are_found_exactly_where_there_are_some_and_told_as_they_are(validate: Validate, seed: int) -> None:
    chance = random.Random(seed)
    names = [f"s{i}" for i in range(chance.randint(2, 9))]
    density = chance.uniform(0.05, 0.5)
    edges = {n: [m for m in names if m != n and chance.random() < density] for n in names}
    try:
        TopologicalSorter(edges).prepare()
        circular = False
    except CycleError:
        circular = True
    code, lines = validate(a_graph(edges))
    assert code == (2 if circular else 0)
    if circular:
        told = [re.search(r"in a circle: (.+?) \(", message) for _, _, message in problems(lines)]
        assert any(told)
        for found in told:
            assert found is not None
            ring = found[1].split(" -> ")
            assert ring[0] == ring[-1]
            assert len(set(ring)) == len(ring) - 1, "no step twice: the shortest way round"
            assert all(after in edges[step] for step, after in pairwise(ring))


@pytest.mark.parametrize(
    ("steps", "line", "words"),
    [
        ("{name: a, function: 'mine:f', depends_on: [a]}", 4, "step 'a' depends on itself"),
        ("{name: a, function: 'mine:f', depends_on: [b]}", 4, "there is no step 'b' in this block"),
        ("{name: a, function: 'mine:f', inputs: [row]}", 4, "no step that runs before this one publishes 'row'"),
        ("{name: a, function: 'mine:f', params: {x: '${params.d}'}}", 4, "there is no parameter 'd'"),
        ("{name: a, function: 'mine:f', when: '${b} >'}", 4, ""),
        ("{name: a, function: 'mine:g'}", 4, "has no name 'g'"),
        ("{name: a, function: 'mines:f'}", 4, "there is no module 'mines'"),
        ("{name: a, function: 'mine:f', resources: {db: 1}}", 4, "there is no resource 'db'"),
        ("{type: pipeline, name: a, file: none.yaml}", 4, "no such file"),
    ],
)
def test_f77_references_to_nothing_are_refused_where_they_stand(
    validate: Validate, steps: str, line: int, words: str
) -> None:
    found = refused(validate, f"name: p\ntype: graph\nsteps:\n  - {steps}\n")
    assert found[0][0] == line
    assert any(words in message for _, _, message in found), found


@pytest.mark.parametrize("kind", ["graph", "parallel"])
@pytest.mark.parametrize(
    "pair", [("output: x", "output: x"), ("outputs: [x, y]", "outputs: [z, y]"), ("output: b", "")]
)
def test_f78_two_branches_that_write_one_value_are_refused(
    validate: Validate, kind: str, pair: tuple[str, str]
) -> None:
    first, second = (f", {keys}" if keys else "" for keys in pair)
    text = (
        f"{HEAD}  - type: {kind}\n    name: both\n    steps:\n"
        f"      - {{name: a, function: 'mine:f'{first}}}\n      - {{name: b, function: 'mine:f'{second}}}\n"
    )
    ((line, _, message),) = refused(validate, text)
    assert line in (6, 7)
    assert re.search(r"'[ab]' and '[ab]' both write '\w' and may run at once", message)


# -- F79, F80: amounts and names ---------------------------------------------------------------------------------------

AMOUNTS: dict[str, tuple[list[str], list[str]]] = {
    "limits.workers": (
        ["1", "4", "auto"],
        ["0", "-1", "true", "1.5", ".nan", ".inf", "1e30", "'4'", "unlimited", "4097"],
    ),
    "limits.memory": (
        ["10 GB", "10GB", "80%", "100%"],
        ["0", "-1GB", "10", "true", ".nan", "1e30", "101%", "0%", "10GX"],
    ),
    "limits.timeout": (
        ["90", "90s", "2h", "0.5"],
        ["0", "-1s", "true", ".nan", ".inf", "1e30", "90x", "''", "9999999h"],
    ),
    "limits.retry_budget": (["1%", "50%", "100%"], ["0", "0%", "-1%", "101%", "0.5", "true", ".nan", "half"]),
    "cpus": (["1", "2"], ["0", "-1", "true", "1.5", ".nan", ".inf", "1e30", "'1'", "4097"]),
    "memory": (["1MB", "1 MiB"], ["0", "-1MB", "1000", "true", ".nan", ".inf", "1e30", "50%", "9999999TB"]),
    "timeout": (["1", "1s", "1m30s"], ["0", "0s", "-1", "true", ".nan", ".inf", "1e30", "1 year"]),
    "kill_grace": (["0", "0s", "5s"], ["-1", "true", ".nan", ".inf", "1e30"]),
    "retries": (["0", "1000"], ["-1", "true", "1.5", ".nan", ".inf", "1e30", "1001", "'1'"]),
    "priority": (["-5", "0", "5"], ["1.5", "true", ".nan", ".inf", "1e30", "'1'"]),
    "rate_limit": (["10/s", "1/5m"], ["0/s", "-1/s", "10", "true", ".nan", "inf/s", "10/0s", "1e30/s"]),
}
GOOD = [(key, value) for key, (good, _) in AMOUNTS.items() for value in good]
BAD = [(key, value) for key, (_, bad) in AMOUNTS.items() for value in bad]


def with_amount(key: str, value: str) -> str:
    home, _, name = key.rpartition(".")
    if home:
        return f"name: p\nlimits: {{{name}: {value}}}\nsteps:\n{STEP}"
    return f"name: p\nlimits: {{workers: 4}}\nsteps:\n  - {{name: a, function: 'mine:f', {name}: {value}}}\n"


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_f79_amounts_within_their_bounds_are_taken(validate: Validate, key: str, value: str) -> None:
    assert validate(with_amount(key, value)) == (0, [])


@pytest.mark.parametrize(("key", "value"), BAD)
def test_f79_amounts_outside_their_bounds_are_refused_at_their_place(validate: Validate, key: str, value: str) -> None:
    text = with_amount(key, value)
    ((line, column, message),) = refused(validate, text)
    written = text.split("\n")[line - 1]
    assert written[column - 1 :].startswith(value)
    assert key.rpartition(".")[2] in message


def test_f79_more_than_the_machine_has_is_refused(validate: Validate) -> None:
    found = refused(
        validate,
        "name: p\nlimits: {workers: 2, memory: 1GB, resources: {db: 1}}\nsteps:\n"
        "  - {name: a, function: 'mine:f', cpus: 3}\n  - {name: b, function: 'mine:f', memory: 2GB}\n"
        "  - {name: c, function: 'mine:f', resources: {db: 2}}\n",
    )
    assert [line for line, _, _ in found] == [4, 5, 6]
    assert [re.split(", and |; ", message)[0] for _, _, message in found] == [
        "step 'a' asks for 3 cpus", "step 'b' asks for 1.9 GiB", "step 'c' asks for 2 of 'db'",
    ]  # fmt: skip


NAMES = [
    "a/b",
    "..",
    "../x",
    "a b",
    "a.b",
    "1a",
    "-a",
    "é",
    "\u0430",
    "a" * 129,
    "a\nb",
    "",
    "${x}",
    "a\u202eb",
    "a:b",
    "*",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["pipeline", "step", "output", "param", "resource", "secret"])
def test_f80_names_outside_the_grammar_are_refused(validate: Validate, name: str, where: str) -> None:
    quoted = json.dumps(name)
    text = {
        "pipeline": f"name: {quoted}\nsteps:\n{STEP}",
        "step": f"{HEAD}  - {{name: {quoted}, function: 'mine:f'}}\n",
        "output": f"{HEAD}  - {{name: a, function: 'mine:f', output: {quoted}}}\n",
        "param": f"name: p\nparams: {{{quoted}: 1}}\nsteps:\n{STEP}",
        "resource": f"name: p\nlimits: {{resources: {{{quoted}: 1}}}}\nsteps:\n{STEP}",
        "secret": f"name: p\nsecrets: {{{quoted}: '${{env.HOME}}'}}\nsteps:\n{STEP}",
    }[where]
    found = refused(validate, text)
    assert any("is not a name" in message for _, _, message in found), found
    assert all(message.isprintable() for _, _, message in found)


@pytest.mark.parametrize("twin", ["a", "A"])
def test_f80_two_steps_whose_names_differ_in_case_only_are_refused(validate: Validate, twin: str) -> None:
    found = refused(validate, f"{HEAD}{STEP}  - {{name: {twin}, function: 'mine:f', output: other}}\n")
    assert [(line, column) for line, column, _ in found] == [(4, 12)]
    assert f"two steps of one block are named '{twin}'" in found[0][2]


@pytest.mark.parametrize("name", ["params", "env", "run", "secrets", "index"])
def test_f80_reserved_names_are_refused_as_values(validate: Validate, name: str) -> None:
    ((line, _, message),) = refused(validate, f"{HEAD}  - {{name: a, function: 'mine:f', output: {name}}}\n")
    assert line == 3
    assert f"'{name}' can't be the name of a value" in message


# -- all of them -------------------------------------------------------------------------------------------------------


def test_twenty_mistakes_are_told_in_one_pass_in_file_order(validate: Validate) -> None:
    steps = "".join(f"  - {{name: s{i}, function: 'mine:f', retries: -{i + 1}, timeoutt: 1}}\n" for i in range(20))
    found = refused(validate, HEAD + steps)
    assert len(found) == 40
    assert found == sorted(found)


def test_mistakes_can_be_had_as_json(validate: Validate, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"name: p\nnmae: q\nsteps:\n{STEP}")
    with pytest.raises(SystemExit) as end:
        cli.main(["validate", "p.yaml", "--json"])
    assert end.value.code == 2
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert [(p["line"], p["column"]) for p in told["problems"]] == [(2, 1)]


# -- F83: what does not change a pipeline ------------------------------------------------------------------------------

TREE: dict[str, Any] = {
    "name": "p",
    "params": {"day": "2026-11-20", "size": {"default": 3, "help": "how many"}},
    "limits": {"workers": 2, "resources": {"db": 4}},
    "steps": [
        {"name": "rows", "function": "json:loads", "params": {"a": 1, "b": {"x": [1, 2], "y": "${params.day}"}}},
        {"type": "parallel", "name": "both", "steps": [
            {"name": "one", "function": "json:dumps", "inputs": {"obj": "rows"}, "params": {"indent": "${params.size}"}},
            {"type": "shell", "name": "two", "command": "echo ${rows}", "env": {"B": "2", "A": "1"}, "parse": "text"},
        ]},
        {"type": "map", "name": "each", "items": {"range": [10]}, "function": "json:dumps", "when": "${params.size} > 2"},
    ],
}  # fmt: skip


def prints(text: str) -> dict[Any, str]:
    loaded = load_text(text, "p.yaml", ".")
    graph = prepare(loaded.pipeline, source=loaded.source).graph
    return {key: found.digest for key, found in fingerprints(needs_of(graph)).by_key.items()}


def shuffled(tree: Any, chance: random.Random) -> Any:
    if isinstance(tree, dict):
        keys = list(tree)
        chance.shuffle(keys)
        return {key: shuffled(tree[key], chance) for key in keys}
    return [shuffled(member, chance) for member in tree] if isinstance(tree, list) else tree


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_f83_order_of_keys_comments_style_and_limits_keep_every_fingerprint(seed: int) -> None:
    chance = random.Random(seed)
    tree = shuffled(TREE, chance)
    tree["limits"] = {"workers": chance.choice([1, 2, "auto"]), "timeout": "5m", "resources": {"db": 9}}
    tree["description"] = "in other words"
    for step in tree["steps"]:
        step["description"], step["retries"], step["priority"] = "text", 3, chance.randint(-5, 5)
        if step["name"] == "rows":
            step["timeout"] = "1h"
    flow = chance.random() < 0.5
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=flow, width=10_000)
    lines = [line + (f"  # note {chance.random()}" if chance.random() < 0.3 else "") for line in text.split("\n")]
    commented = "# a note\n\n" + "\n".join(lines)
    assert yaml.safe_load(commented) == tree
    assert prints(commented) == prints(yaml.safe_dump(TREE, sort_keys=False))


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("a: 1", "a: 2", {"rows"}), ("echo ${rows}", "echo -n ${rows}", {"both/two"}), ("B: '2'", "B: '3'", {"both/two"}),
        ("default: 3", "default: 4", {"both/one", "each"}), ("2026-11-20", "2026-11-21", {"rows"}),
        ("json:loads", "json:load", {"rows"}),
    ],
)  # fmt: skip
def test_f83_what_a_step_is_made_of_changes_its_fingerprint_and_no_other(
    before: str, after: str, changed: set[str]
) -> None:
    text = yaml.safe_dump(TREE, sort_keys=False)
    assert text.count(before) == 1
    old, new = prints(text), prints(text.replace(before, after))
    assert {key[0] for key in old if old[key] != new[key]} == changed
