"""Pipelines drawn as a tree, as Mermaid and DOT, and as SVG."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import combinations
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from procflow.api import Graph, Map, Parallel, Pipeline, Sequence, Shell, Step
from procflow.cli import cli
from procflow.compiler import compile_pipeline
from procflow.graph import TaskGraph
from procflow.showing.diagram import dot, mermaid, text
from procflow.showing.drawing import svg
from procflow.showing.layout import lay_out
from procflow.showing.shape import Outcome, Part, part_of


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


# -- with outcomes, as a tree, and as SVG ------------------------------------------------------------------------------

OUTCOMES = {
    "0": Outcome("succeeded", attempts=2, seconds=1.5),
    "1": Outcome("failed", seconds=3.0),
    "1.0": Outcome("failed", "timeout", 1, 2.0),
    "1.1.0": Outcome("kept"),
    "2": Outcome("cancelled"),
}


def tree(outcomes: dict[str, Outcome] | None = None) -> list[str]:
    """The lines of a tree, each run of blanks between columns as two."""
    lines = text(sample(), outcomes).splitlines()
    arrows = {line.index("←") for line in lines if "←" in line}
    assert len(arrows) == 1  # what steps wait for stands in a column
    return [re.sub(r"(?<=\w) {2,}", "  ", line) for line in lines]


def test_a_tree_says_what_waits_for_what_and_what_runs() -> None:
    assert tree() == [
        "demo: 5 steps",
        f"├─ setup  {__name__}:work",
        "├─ fetch  ← setup  parallel of 2 steps, at most 2 at once",
        f"│  ├─ a  {__name__}:work",
        "│  └─ b  sequence of 2 steps",
        f"│     ├─ c  {__name__}:work",
        f"│     └─ d  ← c  {__name__}:work",
        f"└─ each  ← fetch  map over 2 items: {__name__}:work",
    ]


def test_a_tree_of_a_run_says_how_it_went() -> None:
    lines = tree(OUTCOMES)
    assert lines[1:4] == [
        "├─ ✓ setup  1.5 s · 2 attempts",
        "├─ ✗ fetch  ← setup  failed · 3.0 s",
        "│  ├─ ✗ a  timed out · 2.0 s",
    ]
    assert lines[5:] == ["│     ├─ ↺ c  kept", "│     └─ · d  ← c  did not start", "└─ ◼ each  ← fetch  not run"]


def test_mermaid_and_dot_of_a_run_are_coloured() -> None:
    drawn = mermaid(sample(), OUTCOMES)
    assert "  class s0 succeeded" in drawn
    assert "  class b1,s2,b3 failed" not in drawn
    assert re.search(r"  class b1,s2 failed\b", drawn)
    assert "classDef failed fill:#fde0e1,stroke:#c9252d" in drawn
    assert 's0["setup<br/>✓ 1.5 s · 2 attempts"]' in drawn
    assert 's2 [label="a\\n✗ timed out · 2.0 s", style=filled, fillcolor="#fde0e1", color="#c9252d"];' in dot(
        sample(), OUTCOMES
    )


def boxes(drawn: str) -> ElementTree.Element:
    """The drawing, which must be XML."""
    return ElementTree.fromstring(drawn)


SVG = "{http://www.w3.org/2000/svg}"


def test_an_svg_has_a_box_a_step_an_arrow_an_edge_and_its_own_colours() -> None:
    root = boxes(svg(part_of(sample())))
    kinds = [rect.get("class") for rect in root.iter(f"{SVG}rect")]
    assert kinds.count("b") == 5 + 1  # the map has a second one behind it
    assert kinds.count("o") == 2
    assert sum(path.get("class") == "a" for path in root.iter(f"{SVG}path")) == 3
    style = root.find(f"{SVG}style")
    assert style is not None
    assert "prefers-color-scheme:dark" in (style.text or "")
    texts = ["".join(t.itertext()) for t in root.iter(f"{SVG}text")]
    assert "setup" in texts


def test_an_svg_of_a_run_has_signs_and_classes_of_outcomes() -> None:
    drawn = svg(part_of(sample()), OUTCOMES)
    texts = ["".join(t.itertext()) for t in boxes(drawn).iter(f"{SVG}text")]
    assert "✓ setup" in texts
    assert "timed out · 2.0 s" in texts
    assert 'class="b b-failed"' in drawn
    assert 'class="k k-kept"' in drawn


def test_members_of_a_layer_do_not_overlap_and_arrows_go_down() -> None:
    names = [f"s{i}" for i in range(12)]
    steps = [
        Step(n, work, depends_on=[names[j] for j in (i // 2, i // 3) if j < i][:2] if i else [])
        for i, n in enumerate(names)
    ]
    box = lay_out(part_of(graph_of(Graph(*steps, name="g"))))
    inner = box.boxes[0]
    for one, other in combinations(inner.boxes, 2):
        assert (
            one.x + one.w <= other.x
            or other.x + other.w <= one.x
            or one.y + one.h <= other.y
            or other.y + other.h <= one.y
        )
        assert one.x >= 0
        assert one.x + one.w <= inner.w
    for arrow in inner.arrows:
        heights = [y for _, y in arrow.points]
        assert heights == sorted(heights)


def test_many_members_are_tiles_and_deep_blocks_are_folded() -> None:
    wide = svg(part_of(graph_of(*(Step(f"s{i}", work) for i in range(5000)))), {"17": Outcome("failed", seconds=1.0)})
    assert len(wide) < 60_000
    assert "1 failed" in wide
    block: Any = Step("leaf", work)
    for depth in range(30):
        block = Sequence(f"b{depth}", block, Step(f"beside{depth}", work))
    assert 0 < len(list(boxes(svg(part_of(graph_of(block)))).iter(f"{SVG}rect"))) < 60


def test_an_svg_with_hostile_names_is_whole_and_holds_no_markup_of_theirs() -> None:
    shape = Part("", "", HOSTILE, "graph", HOSTILE, (), 2)
    shape.members = [
        Part("0", HOSTILE, HOSTILE * 1000, "map", HOSTILE),
        Part("1", "x\ufffe\x00", "\ud800", HOSTILE, "\u202e", (0, 7, 1)),
    ]
    root = boxes(svg(shape, {"0": Outcome("failed")}))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "style", "rect", "defs", "marker", "path", "g", "text", "tspan",
    }  # fmt: skip


def test_the_command_draws_files_and_runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "n.yaml").write_text(
        "name: n\nsteps:\n  - {type: shell, name: one, command: [echo, hi]}\n  - {type: shell, name: two, command: ['false']}\n"
    )
    invoke = CliRunner().invoke
    assert invoke(cli, ["run", "n.yaml", "-q", "--executor", "inline"]).exit_code == 1
    assert invoke(cli, ["graph", "n.yaml", "--format", "text"]).stdout.splitlines()[1].split() == [
        "├─",
        "one",
        "echo",
        "hi",
    ]
    told = invoke(cli, ["graph", "--run", "last", "--format", "text"]).stdout
    assert "✓ one" in told
    assert "✗ two" in told
    assert invoke(cli, ["graph", "--run", "last", "--format", "svg", "-o", "x.svg"]).exit_code == 0
    assert boxes((tmp_path / "x.svg").read_text()) is not None
    for form in ("mermaid", "dot"):
        assert "two" in invoke(cli, ["graph", "n.yaml", "--run", "last", "--format", form]).stdout
    assert "name the FILE" in invoke(cli, ["graph"]).stderr
    (tmp_path / "o.yaml").write_text((tmp_path / "n.yaml").read_text())
    assert "not of o.yaml" in invoke(cli, ["graph", "o.yaml", "--run", "last"]).stderr
    for found in (tmp_path / ".procflow" / "runs").glob("*/graph.json"):
        found.unlink()
    done = invoke(cli, ["graph", "--run", "last", "--format", "text"])
    assert "as it is now" in done.stderr
    assert "✗ two" in done.stdout
