"""Dialects as a whole: which file is whose, bindings, the commands, and that a converted file runs to the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from foreign import Foreign
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow import PipelineError, load
from procflow.cli import cli
from procflow.dialects import DIALECTS, Reading, detect, is_own
from procflow.dialects.writing import yaml_text
from procflow.testing import Act

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "configs" / "dialects"
DEADLINE_S = 120

STEPS: dict[str, Any] = {"start_step": "a", "steps": {"a": {"agent_name": "x"}}}
CONTENT: dict[str, Any] = {"name": "c", "steps": [{"type": "text_to_image", "model": "m"}]}
SKILL: dict[str, Any] = {
    "name": "s",
    "action": {"type": "data_pipeline", "steps": [{"type": "transform", "function": "f"}]},
}
OWN: dict[str, Any] = {"name": "o", "steps": [{"type": "parallel", "steps": [{"name": "a", "function": "m:f"}]}]}


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "procflow", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments), "procflow")
    said = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, said.out, said.err


# -- whose file it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "names"),
    [
        (STEPS, ["step-ids"]),
        (CONTENT, ["parallel-group"]),
        ({"pipeline_name": "c", "steps": [{"step_type": "x"}]}, ["parallel-group"]),
        ({"nodes": [{"id": "a", "data": {"value": 1}}], "edges": []}, ["nodes"]),
        ({"workflow": {"steps": [{"name": "a", "substeps": []}]}}, ["workflow"]),
        ({"name": "w", "steps": [{"type": "Parallel", "name": "p", "steps": []}]}, ["workflow"]),
        (SKILL, ["agent-builder"]),
        (SKILL["action"], ["agent-builder"]),
        (
            {"name": "s", "steps": [{"type": "parallel", "steps": [{"type": "query", "credential_ref": "x"}]}]},
            ["agent-builder"],
        ),
        (OWN, []),
        ({"name": "o", "steps": [{"type": "paralel"}]}, []),
        ({"name": "o", "stepps": []}, []),
    ],
)
def test_a_file_is_known_by_its_shape(document: dict[str, Any], names: list[str]) -> None:
    assert [dialect.name for dialect in detect(document)] == names


def test_no_pipeline_of_ours_is_taken_for_another_systems() -> None:
    for file in (ROOT / "configs").glob("*.yaml"):
        assert is_own(yaml.safe_load(file.read_text()))


def test_a_shape_of_two_dialects_must_be_named() -> None:
    both = {"name": "x", "steps": [{"type": "text_to_image", "model": "m"}, {"type": "conditional", "then_step": {}}]}
    assert "this may be agent-builder and parallel-group" in Foreign(both).problems()[0]


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_says_what_it_does_and_refuses_an_empty_document(name: str) -> None:
    module = DIALECTS[name].load()
    assert module.__doc__
    assert not module.matches({})
    assert Foreign({"x": 1}, {}, name).problems()


def test_a_mistake_that_the_loader_finds_is_told_in_the_foreign_file(tmp_path: Path) -> None:
    document = (
        '{"start_step": "a",\n "steps": {"a": {"agent_name": "x",\n  "input_mapping": {"a b": "${workflow.input.y}"}}}}'
    )
    found = Foreign(document, {"x": "m:f"})
    file = "foreign.yaml:3:28: step-ids: steps.a.input_mapping.a b: "
    with pytest.raises(PipelineError, match="can't be the keyword of an input") as caught:
        found.pipeline(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/{file}")


# -- bindings ----------------------------------------------------------------------------------------------------------


def test_all_unbound_names_are_one_problem_with_their_places() -> None:
    steps = {
        "a": {"agent_name": "x", "next_step": "b"},
        "b": {"agent_name": "y", "next_step": "c"},
        "c": {"agent_name": "x"},
    }
    problems = Foreign({"start_step": "a", "steps": steps}, {"z": "m:f"}).problems()
    assert len(problems) == 1
    assert (
        "2 names are bound to no function of yours: agent 'x' (line 5: steps.a.agent_name; line 13: steps.c.agent_name); "
        in problems[0]
    )
    assert "agent 'y' (line 9: steps.b.agent_name)" in problems[0]
    assert "write --bind x=module:function for each, or a mapping of them in a file for --bindings" in problems[0]


@pytest.mark.parametrize(
    ("bound", "problem"),
    [
        ("f", "a binding is module:function"),
        ({"functin": "a:b"}, "a binding is module:function"),
        ({"function": "a:b", "tries": 2}, "tries can't stand in a binding"),
        (3, "a binding is module:function"),
    ],
)
def test_what_is_no_binding_is_refused(bound: Any, problem: str) -> None:
    assert f"binding 'x': {problem}" in Foreign(STEPS, {"x": bound}).problems()[0]


def test_bindings_of_a_file_come_after_those_given_and_before_installed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bindings.yaml"
    file.write_text("x: of_file:f\ny: {function: of_file:g, retries: 3}\n")
    installed = tmp_path / "some-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: some\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[procflow.bindings]\nx = installed:f\ny = installed:g\nz = installed:h\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    steps = {name: {"agent_name": name, "next_step": after} for name, after in (("x", "y"), ("y", "z"), ("z", None))}
    found = Foreign({"start_step": "x", "steps": steps})
    found.reading = Reading(None, {"x": "given:f"}, str(file))
    assert [step["function"] for step in found.plain["steps"]] == ["given:f", "of_file:g", "installed:h"]
    assert found.plain["steps"][1]["retries"] == 3


def test_a_wrong_bindings_file_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "bindings.yaml"
    found = Foreign(STEPS)
    found.reading = Reading(None, {}, str(file))
    assert "No such file" in found.problems()[0]
    file.write_text("x: a:b\ny: c\n")
    assert found.problems()[0].startswith(f"{file}:2:4: binding 'y'")


def test_functions_may_be_given_from_python(tmp_path: Path) -> None:
    file = tmp_path / "w.json"
    file.write_text(
        json.dumps(
            {"start_step": "a", "steps": {"a": {"agent_name": "x", "input_mapping": {"n": "${workflow.input.n}"}}}}
        )
    )
    pipeline = load(file, bindings={"x": lambda n: n * 2})
    assert pipeline.run(executor="inline", n=4).outputs["a"] == 8
    with pytest.raises(PipelineError, match="there is no dialect 'step-id'"):
        load(file, dialect="step-id")


# -- writing -----------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufeff"), max_size=40),
)
words = st.sampled_from(
    [
        "no",
        "on",
        "~",
        "null",
        "1e3",
        "0o7",
        "0x1F",
        "010",
        "1:30",
        "2026-11-21",
        "-",
        ".5",
        "+1",
        "<<",
        "=",
        "a: b",
        "# x",
        "${x}",
        "",
        " x ",
        "x\ny\n",
        "x \n y",
        "'",
        '"',
        "{",
        "[",
        "&a",
        "*a",
        "!t",
        "%",
        "@",
        "`",
        "yes",
        "1_000",
        ".inf",
        "é",
    ]
)
trees = st.recursive(
    st.one_of(scalars, words),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(words, st.text("abc", min_size=1)), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=8), trees, max_size=5))
def test_what_is_written_reads_back_as_it_was(tree: dict[str, Any]) -> None:
    yaml_text({"name": "x", "steps": [{"params": tree}]})  # it raises where it does not


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    """A folder with a workflow whose second step fails until there is a file ``go``."""
    steps = {
        "a": {"agent_name": "x", "next_step": "b"},
        "b": {"agent_name": "y", "input_mapping": {"v": "${a.output.v}"}},
    }
    (tmp_path / "w.json").write_text(json.dumps({"start_step": "a", "steps": steps}))
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "def x():\n    with open('ran', 'a') as f: f.write('x')\n    return {'v': 1}\n"
        "def y(v):\n    if not Path('go').exists(): raise ValueError('not yet')\n    return v + 1\n"
    )
    return tmp_path


def test_the_commands_take_files_of_other_systems_and_resume_remembers_how(
    workflow: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bind = ("--bind", "x=mine:x", "--bind", "y=mine:y")
    monkeypatch.chdir(workflow)
    assert told(capsys, "validate", "w.json", *bind)[1] == "w.json: ok, 2 steps\n"
    assert "s0 --> s1" in told(capsys, "graph", "w.json", *bind)[1]
    assert told(capsys, "plan", "w.json", "--dialect", "step-ids", *bind)[0] == 0
    assert command("run", "w.json", "-q", *bind, cwd=workflow).returncode == 1
    (workflow / "go").touch()
    resumed = command("resume", cwd=workflow)
    assert resumed.returncode == 0, resumed.stderr
    assert (workflow / "ran").read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("validate", "w.json"), "2 names are bound to no function of yours"),
        (
            ("validate", "w.json", "--bind", "x=mine:x", "--bind", "y=mine:y", "--bind", "xx=mine:x"),
            "--bind xx: nothing in the file asks for it",
        ),
        (("validate", "w.json", "--bind", "x"), "--bind x: write --bind name=module:function"),
        (("validate", "w.json", "--bind", "x=mine:x", "--bind", "x=mine:y"), "--bind x: given twice"),
        (
            ("validate", "w.json", "--bind", "x=mine:xx", "--bind", "y=mine:y"),
            "w.json:1:51: step-ids: steps.a.agent_name: mine:xx: ",
        ),
        (
            ("validate", "own.yaml", "--bind", "x=mine:x"),
            "--bind is for files of other systems, and own.yaml is procflow's own",
        ),
        (("convert", "own.yaml"), "own.yaml:1:1: this is procflow's own language already"),
        (
            ("convert", "w.json", "--bind", "x=mine:x", "--bind", "y=mine:y", "-o", "w.json"),
            "w.json is the file to convert",
        ),
        (("validate", "w.json", "--dialect", "node"), "'node' is not one of"),
    ],
)
def test_what_can_not_be_is_a_usage_error(
    workflow: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (workflow / "own.yaml").write_text("name: own\nsteps: [{function: 'm:f'}]\n")
    monkeypatch.chdir(workflow)
    code, _, said = told(capsys, *arguments)
    assert code == 2
    assert message in said


# -- junk --------------------------------------------------------------------------------------------------------------

JUNK = [
    None, True, 0, -1, 1.5, "", "x", "a b", "${x}", "{{x}}", "${a.output}", "${loop.item}", "params", "item", 10**30,
    [], {}, [1], ["x"], [[]],
    [None], {"x": 1}, {"steps": []},
]  # fmt: skip
KEYS = [
    "steps",
    "type",
    "name",
    "output",
    "run_if",
    "inputs",
    "params",
    "next_step",
    "loop_config",
    "id",
    "enabled",
    "x",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, member in members for found in ((*path, key), *places(member, (*path, key)))]


def spoiled(document: Any, data: st.DataObject) -> Any:
    """The document with a value replaced, removed or added."""
    made = json.loads(json.dumps(document))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(made) or [()]))
        at = made
        for key in path[:-1]:
            at = at[key]
        what = data.draw(st.sampled_from(["put", "put", "remove", "add"]))
        junk = json.loads(json.dumps(data.draw(st.sampled_from(JUNK))))
        if path and what == "put":
            at[path[-1]] = junk
        elif path and what == "remove":
            del at[path[-1]]
        elif isinstance(at, dict):
            at[data.draw(st.sampled_from(KEYS))] = junk
        elif isinstance(at, list):
            at.append(junk)
    return made


REAL = {
    "step-ids": json.loads((EXAMPLES / "suppliers.json").read_text()),
    "parallel-group": yaml.safe_load((EXAMPLES / "variants.yaml").read_text()),
    "agent-builder": yaml.safe_load((EXAMPLES / "sales.md").read_text().split("---")[1]),
}
BOUND = [yaml.safe_load(file.read_text()) for file in EXAMPLES.glob("*.bindings.yaml")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(REAL)), st.data())
def test_a_spoiled_document_is_read_or_refused_with_places(name: str, data: st.DataObject) -> None:
    found = Foreign(spoiled(REAL[name], data), {key: to for each in BOUND for key, to in each.items()}, name)
    refusal = None
    try:
        assert found.record().steps
        yaml_text(found.plain)
    except PipelineError as error:
        refusal = error
    assert refusal is None or all(problem.place is not None for problem in refusal.problems), refusal


# -- examples ----------------------------------------------------------------------------------------------------------


def outputs(
    file: Path, params: dict[str, Any], names: list[str], state: Path, **how: Any
) -> tuple[str, dict[str, Any]]:
    result = load(file, **how).run(workers=2, state_dir=state, **params)
    return result.status, {name: result.outputs[name] for name in names}


def example(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], params: dict[str, Any], shown: list[str], status: str
) -> dict[str, Any]:
    """What an example gives; its converted file must give the same."""
    file = next(EXAMPLES.glob(f"{name}.[myj]*"))
    bindings = yaml.safe_load((EXAMPLES / f"{name}.bindings.yaml").read_text())
    for module in EXAMPLES.glob("*.py"):
        (tmp_path / module.name).write_text(module.read_text())
    (tmp_path / "data").symlink_to(EXAMPLES / "data")
    own = str(tmp_path / f"{name}_own.yaml")
    code, _, said = told(capsys, "convert", str(file), "--bindings", str(EXAMPLES / f"{name}.bindings.yaml"), "-o", own)
    assert code == 0, said
    (tmp_path / file.name).write_text(file.read_text())
    found = outputs(tmp_path / file.name, params, shown, tmp_path / "one", bindings=bindings)
    assert found == outputs(Path(own), params, shown, tmp_path / "two")
    assert found[0] == status
    return found[1]


def test_sales_are_fetched_at_once_and_reviewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sqlalchemy", reason="the warehouse is asked through SQLAlchemy (extra sql)")
    monkeypatch.setenv("WAREHOUSE_URL", f"sqlite:///{tmp_path}/warehouse.db")
    found = example("sales", tmp_path, capsys, {"day": "2026-03-01"}, ["report", "gathered", "net"], "succeeded")
    sold = {}
    for row in found["gathered"]["sales"]:
        sold[row["region"]] = sold.get(row["region"], 0) + row["amount"]
    back = {"north": 498, "west": 178 + 249, "south": 59 + 89, "east": 78}
    assert found["net"] == {region: amount - back[region] for region, amount in sold.items()}
    assert found["report"].splitlines()[0] == "region        net    target  reached"
    assert found["report"].splitlines()[-1] == "3 returned pieces were damaged"


def test_two_of_three_price_lists_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = example(
        "suppliers", tmp_path, capsys, {}, ["step-quotes", "step-lines", "step-total", "step-approve"], "partial"
    )
    assert list(found["step-quotes"]) == ["north", "south"]
    best = {line["article"]: line["supplier"] for line in found["step-lines"]["iterations"]}
    assert best == {"bolt": "north", "valve": "south", "gasket": "north", "pump": "south"}
    amount = round(400 * 0.42 + 12 * 36.90 + 60 * 1.95 + 2 * 399.00, 2)
    assert found["step-total"] == {"amount": amount}
    assert found["step-approve"].splitlines()[0] == f"Please approve {amount} for Harbour Works"


def test_the_best_of_three_pictures_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = example(
        "variants", tmp_path, capsys, {"output_dir": "pictures"}, ["picture", "enlarged", "looks"], "succeeded"
    )
    assert found["picture"]["model"] == "mandelbrot"
    assert (found["enlarged"]["width"], found["enlarged"]["height"]) == (192, 144)
    assert [row["model"] for row in found["looks"]] == ["histogram", "gradients", "png"]
    assert found["looks"][2]["result"] == "pictures/variants.png"
    assert (tmp_path / "pictures" / "variants.png").read_bytes().startswith(b"\x89PNG")


def test_a_diamond_of_nodes_joins_two_views_and_does_without_what_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = example("weather", tmp_path, capsys, {}, ["means", "top", "anyway", "report", "warning"], "partial")
    assert {station: round(mean, 2) for station, mean in found["means"].items()} == {
        "harbour": 18.0, "hill": 15.0, "airport": 24.75, "roof": 21.67,
    }  # fmt: skip
    assert [row["celsius"] for row in found["top"]] == [31.5, 28.0, 27.0]
    assert found["anyway"] == {"value": {"text": "no forecast today"}, "caught": True, "path": "error"}
    assert found["report"]["page"].splitlines()[-1] == "no forecast today"
    assert found["warning"] == "heat warning: airport at 14:00"


def test_three_sources_are_read_at_once_and_counted_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = example("loans", tmp_path, capsys, {}, ["branches", "totals", "reminder"], "succeeded")
    assert [(one.step_name, len(one.content)) for one in found["branches"].steps] == [
        ("centre", 3), ("harbour", 3), ("hill", 3),
    ]  # fmt: skip
    assert found["totals"].content == {
        "titles": {"Dune": 3, "Emma": 3, "Ulysses": 2, "Middlemarch": 1},
        "late": ["Cem", "Eli", "Gil"],
        "loans": 9,
        "sources": ["centre", "harbour", "hill"],
    }
    assert found["reminder"].content == "Please bring back your books: Cem, Eli, Gil"


def test_the_record_of_the_block_tells_the_time_that_three_sources_at_once_save() -> None:
    found = Foreign(
        (EXAMPLES / "loans.yaml").read_text(), yaml.safe_load((EXAMPLES / "loans.bindings.yaml").read_text())
    )
    loads = {"centre": 4.0, "harbour": 3.0, "hill": 2.0}
    script = {name: Act(after_s=loads.get(name, 0.0), value=[]) for name in (*loads, "totals")}
    result = found.run(lambda attempt: script.get(attempt.call.name) or Act(after_s=0.0))
    block = result.steps["branches"].block
    assert (block.wall_s, block.work_s, block.saved_s) == (4.0, 9.0, 5.0)


@pytest.mark.parametrize(
    ("name", "code"), [("suppliers.json", 3), ("variants.yaml", 0), ("weather.json", 3), ("loans.yaml", 0)]
)
def test_the_examples_run_by_the_commands_of_their_readme(name: str, code: int, tmp_path: Path) -> None:
    bindings = EXAMPLES / f"{name.partition('.')[0]}.bindings.yaml"
    params = ("-p", f"output_dir={tmp_path}") if name == "variants.yaml" else ()
    done = command(
        "run", str(EXAMPLES / name), "--bindings", str(bindings), "--state-dir", str(tmp_path), *params, cwd=tmp_path
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
