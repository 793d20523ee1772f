"""Pipelines drawn as Mermaid and DOT."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest

from procflow.api import Graph, Map, Parallel, Pipeline, Sequence, Shell, Step
from procflow.compiler import compile_pipeline
from procflow.graph import TaskGraph
from procflow.showing.diagram import dot, mermaid


def work(*values: Any) -> int:
    return 1


def graph_of(*steps: Any, name: str = "demo") -> TaskGraph:
    return compile_pipeline(Pipeline(name, steps=steps))


def sample() -> TaskGraph:
    return graph_of(
        Step("setup", work),
        Parallel("fetch", Step("a", work), Sequence("b", Step("c", work), Step("d", work)), max_parallelism=2),
        Map("each", work, items=[1, 2]),
    )


def test_mermaid_has_blocks_as_subgraphs_and_the_order_of_members_as_edges() -> None:
    assert mermaid(sample()).splitlines() == [
        "flowchart TD",
        f'  s0["setup<br/>{__name__}:work"]',
        '  subgraph b1["fetch: parallel of 2 steps, at most 2 at once"]',
        f'    s2["a<br/>{__name__}:work"]',
        '    subgraph b3["b: sequence of 2 steps"]',
        f'      s4["c<br/>{__name__}:work"]',
        f'      s5["d<br/>{__name__}:work"]',
        "    end",
        "  end",
        f'  s6[["each<br/>map over 2 items: {__name__}:work"]]',
        "  s0 --> b1",
        "  b1 --> s6",
        "  s4 --> s5",
    ]


def test_dot_has_blocks_as_clusters_and_edges_that_end_at_their_borders() -> None:
    lines = dot(sample()).splitlines()
    assert lines[0] == 'digraph "demo" {'
    assert lines[-1] == "}"
    assert "  subgraph cluster_b1 {" in lines
    assert "    subgraph cluster_b3 {" in lines
    assert "  s0 -> s2 [lhead=cluster_b1];" in lines
    assert "  s5 -> s6 [ltail=cluster_b1];" in lines
    assert "  s4 -> s5;" in lines


def test_a_graph_is_drawn_with_its_own_edges_only() -> None:
    graph = graph_of(
        Graph(
            Step("a", work),
            Step("b", work),
            Step("c", work, inputs=["a", "b"]),
            Step("d", work, inputs=["a"]),
            name="g",
        )
    )
    edges = [line.strip() for line in mermaid(graph).splitlines() if "-->" in line]
    assert edges == ["s1 --> s3", "s2 --> s3", "s1 --> s4"]


HOSTILE = 'x"] --> y<script>alert(1)</script> #quot; `a` \\" & end\nsubgraph z\x1b'


def test_mermaid_labels_can_neither_close_a_node_nor_hold_markup() -> None:
    lines = mermaid(graph_of(Shell("evil", HOSTILE))).splitlines()
    assert len(lines) == 2
    label = re.fullmatch(r'  s0\["(.*)"\]', lines[1])
    assert label is not None
    text = label[1].replace("<br/>", "", 1)
    assert not set('"<>`\\\x1b\n') & set(text)
    assert "#lt;script#gt;" in text


def test_dot_labels_are_quoted() -> None:
    lines = dot(graph_of(Shell("evil", HOSTILE))).splitlines()
    assert len(lines) == 5
    label = re.fullmatch(r'  s0 \[label="((?:[^"\\]|\\.)*)"\];', lines[3])
    assert label is not None


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_reads_what_is_drawn() -> None:
    done = subprocess.run(
        ["dot", "-Tsvg"], input=dot(sample()), text=True, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("draw", [mermaid, dot])
def test_nested_forty_deep_and_three_hundred_wide_is_drawn(draw: Any) -> None:
    step: Any = Step("leaf", work)
    for i in range(40):
        step = Sequence(f"s{i}", step)
    wide = Parallel("wide", *[Step(f"w{i}", work) for i in range(300)])
    assert draw(graph_of(step, wide)).count("leaf") == 1
