"""combine_outputs with types of the user's own; costs and metrics on their way to results, journal and show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import combine_steps as c
import pytest
from click.testing import CliRunner

from procflow import Map, Parallel, Pipeline, PipelineError, Step, register_combiner
from procflow.cli import cli
from procflow.compiler import compile_pipeline
from procflow.loader import load_text
from procflow.preflight import check
from procflow.result import RunResult
from procflow.steps import combine

THREE = ["inline", "threads", "processes"]


def run(tmp_path: Path, *steps: Any, executor: str = "inline", **keys: Any) -> RunResult:
    return Pipeline("t", steps=steps, **keys).run(executor=executor, workers=2, state_dir=tmp_path / "state")


def both(function: Any) -> Any:
    members = [Step(f"s{n}", function, params={"n": n}) for n in (1, 2)]
    return Parallel("p", *members, merge="combine_outputs", output="all")


@pytest.fixture
def registry() -> Any:
    before = dict(combine._registered)
    yield
    combine._registered.clear()
    combine._registered.update(before)


@pytest.mark.parametrize("executor", THREE)
@pytest.mark.parametrize(
    ("combiners", "function", "wanted"),
    [
        ({"Bag": "combine_steps:all_in_one"}, c.bag, "Bag(members=[1, 2])"),
        ({"combine_steps.Bag": "combine_steps:all_in_one"}, c.sack, "Bag(members=[1, 2])"),
        ({"combine_steps:Bag": "combine_steps:all_in_one"}, c.sack, "Bag(members=[1, 2])"),
        ({"combine_steps:has_weight": "combine_steps:heavy"}, c.crate, "{'inside': Crate(weight=3), 'n': 3}"),
        # A rule of one's own wins over those for built-in types.
        ({"str": "combine_steps:longest"}, c.loud, "'xx'"),
    ],
)
def test_types_named_in_the_file_are_combined_in_every_executor(
    tmp_path: Path, executor: str, combiners: dict[str, str], function: Any, wanted: str
) -> None:
    result = run(tmp_path, both(function), Step("told", c.told, inputs=["all"]), executor=executor, combiners=combiners)
    assert result.status == "succeeded", result.failures
    assert result.outputs["told"] == wanted


@pytest.mark.parametrize("executor", THREE)
def test_what_was_registered_in_python_is_known_to_workers(tmp_path: Path, executor: str, registry: Any) -> None:
    register_combiner(c.Bag, lambda bags: c.Bag([len(bags)]))
    register_combiner(c.has_weight, c.heavy)
    result = run(tmp_path, both(c.sack), Step("told", c.told, inputs=["all"]), executor=executor)
    assert result.outputs["told"] == "Bag(members=[2])"
    result = run(tmp_path, both(c.crate), Step("told", c.told, inputs=["all"]), executor=executor)
    assert result.outputs["told"] == "{'inside': Crate(weight=3), 'n': 3}"


@pytest.mark.parametrize("executor", ["processes"])
def test_a_merge_step_and_a_map_know_them_too(tmp_path: Path, executor: str) -> None:
    from procflow import Merge

    keys = {"combiners": {"Bag": "combine_steps:all_in_one"}}
    steps = [
        Map("m", c.bag, items=[1, 2, 3], merge="combine_outputs"), Step("b", c.bag, params={"n": 4}),
        Merge("all", inputs=["m", "b"], merge="combine_outputs"), Step("told", c.told, inputs=["all"]),
    ]  # fmt: skip
    assert run(tmp_path, *steps, executor=executor, **keys).outputs["told"] == "Bag(members=[1, 2, 3, 4])"


def test_an_installed_package_brings_combiners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "bags-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bags\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[procflow.combiners]\ncombine_steps.Bag = combine_steps:all_in_one\n")
    monkeypatch.syspath_prepend(tmp_path)
    combine._installed.cache_clear()
    try:
        assert combine.combine([c.Sack([1]), c.Sack([2])]) == c.Bag([1, 2])
    finally:
        combine._installed.cache_clear()


def test_a_type_that_nobody_knows_is_told_with_what_to_write(tmp_path: Path) -> None:
    result = run(tmp_path, both(c.bag))
    assert result.status == "failed"
    assert "combiners: {Bag: module:name}" in str(result.failures[0])


def test_wrong_combiners_are_told_before_the_run_with_their_place() -> None:
    text = "name: p\ncombiners: {Bag: nofunction, 'a b': 'm:f'}\nsteps: [{function: 'm:f'}]\n"
    with pytest.raises(PipelineError) as caught:
        load_text(text, "p.yaml", ".")
    told = "\n".join(map(str, caught.value.problems))
    assert "p.yaml:2:" in told
    assert "a combiner is a function" in told
    assert "names no type" in told
    graph = compile_pipeline(Pipeline("t", steps=[both(c.bag)], combiners={"Bag": "combine_steps:nothing"}))
    assert any("nothing" in str(problem) for problem in check(graph, slots=2, memory_bytes=1 << 30))


# -- costs and metrics -------------------------------------------------------------------------------------------------


def test_combiners_that_no_merge_asks_for_are_checked_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "name: p\ncombiners:\n  Bag: combine_steps:nowhere\nsteps:\n  - {type: shell, name: a, command: [echo]}\n"
    )
    for command in ("validate", "run"):
        done = CliRunner().invoke(cli, [command, str(file)])
        assert done.exit_code == 2
        assert "p.yaml:3:8" in done.output
        assert "nowhere" in done.output


@pytest.mark.parametrize("executor", THREE)
def test_costs_and_metrics_reach_result_journal_and_show(tmp_path: Path, executor: str) -> None:
    block = Parallel("p", *(Step(f"s{n}", c.costly, params={"n": n}) for n in (1, 2)))
    result = run(tmp_path, block, Map("m", c.costly, items=[3, 4]), executor=executor)
    assert result.outputs["s1"] == 1
    assert result.steps["p/s2"].cost == 2.5
    assert result.steps["p/s2"].metrics == {"seen": 2, "rows": 20}
    assert result.steps["p"].block is not None
    assert result.steps["p"].block.cost == 4
    assert result.steps["m"].block is not None
    assert result.steps["m"].block.cost == 8
    assert result.metrics.cost == 12
    shown = CliRunner().invoke(cli, ["show", "--state-dir", str(tmp_path / "state")]).output
    assert "cost      12  (p/s1 1.5, p/s2 2.5, m 8)" in shown
    assert "metric    p/s2.rows = 20" in shown
    data = json.loads(
        CliRunner().invoke(cli, ["show", "--format", "json", "--state-dir", str(tmp_path / "state")]).output
    )
    assert {"label": "p/s1", "item": "", "attempt": 1, "name": "rows", "value": 10} in data["metrics"]
    assert [row["cost"] for row in data["step_executions"] if row["label"] == "p" and row["members"]] == [4]


@pytest.mark.parametrize("executor", THREE)
def test_splits_and_the_best_of_several_are_the_same_everywhere(tmp_path: Path, executor: str) -> None:
    from procflow import Split

    graded = [Step(f"g{n}", c.graded, params={"n": n}) for n in (1, 2, 3)]
    result = run(
        tmp_path, Step("ten", c.ten), Split("both", ["ten"], strategy="duplicate", into=2),
        Split("turns", ["ten"], strategy="round_robin", outputs=["even", "odd"]), Split("parts", ["ten"], into=3),
        Split("own", ["ten"], strategy="combine_steps:in_two", params={"at": 7}, outputs=["head", "tail"]),
        Parallel("by_key", *graded, merge="best_quality", score="score"),
        Parallel("by_function", *graded, merge="best_quality", score="combine_steps:score_of"), executor=executor,
    )  # fmt: skip
    assert result.status == "succeeded", result.failures
    found, ten = result.outputs, list(range(10))
    assert found["both"] == [ten, ten]
    assert (found["even"], found["odd"]) == (ten[::2], ten[1::2])
    assert found["parts"] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert (found["head"], found["tail"]) == (ten[:7], ten[7:])
    assert (found["by_key"]["n"], found["by_function"]["n"]) == (2, 3)
