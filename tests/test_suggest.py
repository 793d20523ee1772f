"""plan --suggest: which steps of a sequence are independent, what a graph saves, and the file with a graph in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from procflow.cli import cli
from procflow.loader import load_text
from procflow.showing.rewrite import CannotRewrite, rewritten
from procflow.showing.suggest import Suggestion, suggestions, with_graphs

TEN = """\
# nightly: ten steps
name: ten
steps:   # in order
  - {name: load, function: "suggest_steps:work"}
  # four of a kind
  - name: a
    function: "suggest_steps:work"   # slow
    inputs: [load]
    params: {seconds: 0.25}
  - name: b
    inputs: [load]
    params: {seconds: 0.25}
    function: suggest_steps:work
  - {name: c, function: "suggest_steps:work", inputs: [load], params: {seconds: 0.25}}
  - {name: d, function: "suggest_steps:work", inputs: [load], params: {seconds: 0.25}}
  - {name: join, function: "suggest_steps:work", inputs: [a, b, c, d]}
  - type: shell
    name: note
    command: "true"   # nobody knows what it does
  - {name: e, function: "suggest_steps:work", inputs: [join]}
  - {name: f, function: "suggest_steps:work", inputs: [e]}
  - {name: end, function: "suggest_steps:work", inputs: [f, note]}
"""


def found(text: str) -> list[Suggestion]:
    return suggestions(load_text(text, "p.yaml", str(Path(__file__).parent)).pipeline)


def steps(*lines: str, head: str = "") -> str:
    return f"name: p\n{head}steps:\n" + "".join(f"  - {line}\n" for line in lines)


def step(name: str, *reads: str, **more: str) -> str:
    inputs = f", inputs: [{', '.join(reads)}]" if reads else ""
    keys = "".join(f", {key}: {value}" for key, value in more.items())
    return f"{{name: {name}, function: 'suggest_steps:work'{inputs}{keys}}}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suggest_steps.py").write_text((Path(__file__).parent / "suggest_steps.py").read_text())
    return tmp_path


@pytest.fixture
def called() -> Callable[..., Any]:
    return lambda *args: CliRunner().invoke(cli, list(args))


def test_a_ten_step_sequence_with_four_independent_steps_is_named_with_the_time_saved_from_history(
    folder: Path, called: Any
) -> None:
    (folder / "p.yaml").write_text(TEN)
    command = ("plan", "p.yaml", "--suggest", "--executor", "threads", "-j", "4")
    assert "it has not run yet" in called(*command).output
    assert called("run", "p.yaml", "--executor", "threads", "-j", "4", "-q").exit_code == 0
    data = json.loads(called(*command, "--json").output)
    [own] = data["suggestions"]
    assert own["independent"] == [["a", "b", "c", "d"]]
    assert own["keep_place"] == ["note"]
    # Four of a quarter of a second, one after the other and at once.
    assert 0.5 < data["saved_s"] < data["sequence_s"]
    assert data["times"] == "learned from 1 run, with 4 workers"
    text = called(*command).output
    assert "independent   a, b, c, d" in text
    assert "saves" in text


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_apply_writes_the_graph_and_keeps_all_else(folder: Path, called: Any, end: str) -> None:
    path = folder / "p.yaml"
    path.write_bytes(TEN.replace("\n", end).encode())
    path.chmod(0o640)
    result = called("plan", "p.yaml", "--suggest", "--apply")
    assert result.exit_code == 0, result.output
    expected = TEN.replace("steps:   # in order", "type: graph\nsteps:   # in order")
    expected = expected.replace("    name: note\n", "    depends_on: [join]\n    name: note\n")
    expected = expected.replace("{name: e,", "{depends_on: [note], name: e,")
    assert path.read_bytes() == expected.replace("\n", end).encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(folder).count("p.yaml") == 1
    assert called("run", "p.yaml", "--executor", "inline", "-q").exit_code == 0
    assert "no sequence of several steps" in called("plan", "p.yaml", "--suggest").output


def test_sequences_inside_blocks_are_looked_at_and_written_too(folder: Path, called: Any) -> None:
    text = steps(
        step("one"),
        "{type: sequence, name: s, steps: ["
        + ", ".join([step("x", "one"), step("y", "one"), step("z", "x", "y")])
        + "]}",
    )
    outer, inner = found(text)
    assert outer.refused
    assert (inner.label, inner.groups) == ("s", (("x", "y"),))
    (folder / "p.yaml").write_text(text)
    assert called("plan", "p.yaml", "--suggest", "--apply").exit_code == 0
    assert "{type: graph, name: s, steps:" in (folder / "p.yaml").read_text()


def test_json_is_written_as_json(folder: Path, called: Any) -> None:
    tree = {
        "name": "p",
        "steps": [
            {"name": "a", "function": "suggest_steps:work"}, {"name": "b", "function": "suggest_steps:work"},
            {"type": "shell", "name": "c", "command": "true"},
            {"name": "d", "function": "suggest_steps:work", "inputs": ["a", "b"]},
        ],
    }  # fmt: skip
    (folder / "p.json").write_text(json.dumps(tree, indent=2))
    result = called("plan", "p.json", "--suggest", "--apply")
    assert result.exit_code == 0, result.output
    new = json.loads((folder / "p.json").read_text())
    assert new["type"] == "graph"
    assert [each.get("depends_on") for each in new["steps"]] == [None, None, ["a", "b"], ["c"]]


def test_depends_on_that_is_there_is_kept_and_completed() -> None:
    text = steps(
        step("a"), step("b"), "{type: shell, name: s, command: 'true', depends_on: a}", step("c", "a", depends_on="[b]"),
        step("d", "b"), step("e", "c", "d"),
    )  # fmt: skip
    [own] = found(text)
    assert own.groups == (("a", "b"), ("c", "d"))
    new = rewritten(text, [own])
    assert "depends_on: [a, b]}" in new
    assert "depends_on: [b, s]" in new
    pipeline = load_text(new, "p.yaml", ".").pipeline
    assert pipeline == with_graphs(load_text(text, "p.yaml", ".").pipeline, [own])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (steps(step("a"), step("b", "a")), "each of its steps waits for the one before it"),
        (steps(step("a", output="x"), step("b", output="x")), "both write 'x'"),
        (steps(step("a"), step("b"), head="state: {n: add}\n"), "share a state"),
        (steps(step("a", outputs='"*"'), step("b")), "only the run can tell"),
    ],
)
def test_what_an_order_means_is_left_alone(text: str, why: str) -> None:
    [own] = found(text)
    assert why in own.refused


def test_a_step_that_neither_reads_nor_is_read_keeps_its_place() -> None:
    [own] = found(
        steps(step("setup"), step("a", "x"), step("b", "x"), step("end", "a", "b"), head="params: {x: 1}\n").replace(
            "inputs: [x]", "params: {x: 1}"
        )
    )
    assert own.placed == ("setup",)
    assert own.groups == (("a", "b"),)
    assert own.added == {1: ("setup",), 2: ("setup",)}


def test_a_step_that_stands_twice_through_an_alias_is_not_changed() -> None:
    text = steps(
        step("a"), step("b"), "{type: sequence, name: s, steps: &two [" + step("x") + ", " + step("y") + ", "
        + step("z", "x", "y") + "]}", "{type: sequence, name: t, output: tt, steps: *two}",
    )  # fmt: skip
    new = [each for each in found(text) if each.label == "s" and not each.refused]
    assert new
    # The blocks are written each; what they share is not touched.
    assert rewritten(text, new).count("type: graph") == 1
    shared = text.replace("{type: sequence, name: s,", "&s {type: sequence, name: s,") + "  - *s\n"
    with pytest.raises(CannotRewrite, match="several places"):
        rewritten(shared, new)


def test_apply_alone_is_refused(folder: Path, called: Any) -> None:
    (folder / "p.yaml").write_text(TEN)
    assert called("plan", "p.yaml", "--apply").exit_code == 2
    assert (folder / "p.yaml").read_text() == TEN
