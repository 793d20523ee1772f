"""Plans as text and data, from pipelines that the compiler took."""

from __future__ import annotations

import json
from typing import Any

from procflow.api import Graph, Map, Merge, Parallel, Pipeline, Sequence, Shell, Split, Step
from procflow.compiler import compile_pipeline
from procflow.graph import TaskGraph
from procflow.showing.plan import leaf_count, outline, plan_data, plan_lines


def double(*values: Any, **named: Any) -> int:
    return 2


def graph_of(*steps: Any, **keys: Any) -> TaskGraph:
    return compile_pipeline(Pipeline("demo", steps=steps, **keys))


def line_of(graph: TaskGraph, path: str) -> str:
    found = [line for line in plan_lines(graph) if line.split(" ", 1)[0] == path]
    assert len(found) == 1, found
    return found[0]


def test_a_plan_lists_steps_in_order_indented_by_block_with_what_each_waits_for() -> None:
    graph = graph_of(
        Step("setup", double, outputs=["rows", "names"]),
        Parallel("fetch", Step("a", double), Step("b", double, inputs=["rows"]), max_parallelism=1),
        Map("each", double, items="rows", batch=10),
    )
    assert plan_lines(graph, [("workers", "2 (auto)"), ("memory", "1 GiB")]) == [
        "demo: 4 steps",
        "  workers  2 (auto)",
        "  memory   1 GiB",
        "",
        f"0    setup  {__name__}:double; writes rows, names; on processes",
        "1    fetch  parallel of 2 steps, at most 1 at once; after setup; writes a, b",
        f"1.0    a    {__name__}:double; writes a; on processes",
        f"1.1    b    {__name__}:double; reads rows; writes b; on processes",
        f"2    each   map over ${{rows}}: {__name__}:double, 10 items a task; after fetch; reads rows; writes each; on processes",
    ]


def test_limits_and_rules_of_a_step_are_told() -> None:
    step = Step(
        "a", double, timeout="90s", retries=2, cpus=2, memory="1GiB", resources={"db": 1}, priority=5, rate_limit="10/s",
        idle_timeout="5s", on_error="continue", executor="threads",
    )  # fmt: skip
    line = line_of(graph_of(step, limits={"resources": {"db": 2}}), "0")
    told = line.split("; ")
    assert told[2:] == [
        "on threads", "timeout 1m 30s", "retries 2", "priority 5", "rate limit 10 in 1.0 s", "cpus 2", "memory 1.0 GiB",
        "idle timeout 5.0 s", "resources db=1", "on error continue",
    ]  # fmt: skip


def test_rules_of_a_block_are_told() -> None:
    block = Parallel(
        "p", Step("a", double), Step("b", double), merge="collect_all", on_error="continue", tolerate="50%"
    )
    line = line_of(graph_of(Step("n", double), block), "1")
    assert "on error continue; tolerate 50%; merge collect_all" in line
    some = Parallel("p", Step("a", double), Step("b", double), join="any", when="${n} > 1")
    assert "join any; when ${n} > 1" in line_of(graph_of(Step("n", double), some), "1")


def test_limits_of_a_maps_function_are_those_of_the_map() -> None:
    line = line_of(graph_of(Map("m", double, items=[1, 2, 3], timeout="5s", retries=3, memory="1GiB")), "0")
    assert "map over 3 items" in line
    assert "timeout 5.0 s; retries 3; memory 1.0 GiB" in line


def test_every_kind_of_step_says_what_it_runs() -> None:
    graph = graph_of(
        Step("rows", double),
        Shell("list", ["ls", "a b", "${rows}"]),
        Merge("both", inputs=["rows", "list"], merge="collect_all"),
        Split("parts", "rows", into=2, strategy="round_robin"),
        Map("files", double, items={"glob": "*.csv"}),
        Map("numbers", double, items={"range": [1, 5]}),
        Sequence("last", lambda: 1),
    )
    assert "ls 'a b' '${rows}'" in line_of(graph, "1")
    assert "merge by collect_all" in line_of(graph, "2")
    assert "split by round_robin" in line_of(graph, "3")
    assert "map over files *.csv" in line_of(graph, "4")
    assert "map over range(1, 5)" in line_of(graph, "5")
    assert "<lambda>" in line_of(graph, "6.0")


def test_members_of_a_graph_name_those_they_wait_for() -> None:
    graph = graph_of(
        Graph(Step("a", double), Step("b", double, inputs=["a"]), Step("c", double, depends_on=["a", "b"]), name="g")
    )
    assert "after a; reads a" in line_of(graph, "0.1")
    assert "after a, b" in line_of(graph, "0.2")


def test_steps_of_a_map_are_its_members_and_hidden_tasks_are_no_steps() -> None:
    graph = graph_of(
        Map(
            "m",
            Step("x", double, inputs=["item"]),
            Step("y", double),
            items=[1],
            merge="combine_outputs",
            when="1 == 1",
        )
    )
    assert [(depth, unit.path, unit.name) for depth, unit, _ in outline(graph.root)] == [
        (0, "0", "m"),
        (1, "0.0", "x"),
        (1, "0.1", "y"),
    ]
    assert leaf_count(graph) == 2


def test_deeply_nested_and_wide_pipelines_are_planned() -> None:
    step: Any = Step("leaf", double)
    for i in range(40):
        step = Sequence(f"s{i}", step)
    assert leaf_count(graph_of(step)) == 1
    assert len(plan_lines(graph_of(Parallel("p", *[Step(f"s{i}", double) for i in range(500)])))) == 503


def test_text_of_users_can_not_forge_lines() -> None:
    lines = plan_lines(graph_of(Shell("a", "echo 'a\nb\x1b[2J'")), [("params", "x=\n\x1b")])
    assert all(line.isprintable() for line in lines)


def test_a_plan_as_data_survives_json_and_has_the_same_steps() -> None:
    graph = graph_of(
        Step("rows", double), Map("each", double, items="rows", timeout="5s"), Step("any", double, outputs="*")
    )
    data = json.loads(json.dumps(plan_data(graph, {"workers": 2})))
    assert data["pipeline"] == "demo"
    assert data["workers"] == 2
    assert [step["label"] for step in data["steps"]] == ["rows", "each", "any"]
    assert data["steps"][1] == {
        "path": "1", "label": "each", "kind": "map", "runs": f"map over ${{rows}}: {__name__}:double", "after": ["rows"],
        "reads": ["rows"], "writes": ["each"], "executor": "processes", "limits": {"timeout": "5.0 s"},
    }  # fmt: skip
    assert data["steps"][2]["writes"] is None
