"""Graphs of nodes and edges: what they become, that they run to the right values, and what is refused where."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from foreign import Foreign, own, plain_steps, timed
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow import PipelineError, load
from procflow.dialects.expressions import ExpressionError, read
from procflow.dialects.writing import yaml_text
from procflow.testing import Act, run_fake


def boom(*_: Any, **__: Any) -> None:
    raise ValueError("boom")


def node(key: str, kind: str | None = None, /, **data: Any) -> dict[str, Any]:
    return {"id": key, "data": data} | ({"type": kind} if kind else {})


def graph(nodes: list[dict[str, Any]], *edges: str, bind: dict[str, Any] | None = None) -> Foreign:
    """``"a>b"`` is an edge, ``"a.true>b"`` one from a handle."""
    made = []
    for edge in edges:
        source, target = edge.split(">")
        source, _, handle = source.partition(".")
        made.append({"source": source, "target": target} | ({"sourceHandle": handle} if handle else {}))
    return Foreign({"name": "g", "nodes": nodes, "edges": made}, bind)


LIST = node("list", "expression", expression="[3, 1, 2, 3]")


def test_a_diamond_runs_its_branches_at_once_and_joins_them_in_the_order_of_the_edges() -> None:
    found = graph(
        [
            node("1", value=6),
            node("2", "expression", expression="input * 7"),
            node("3", "expression", expression="input + 1"),
            node("4", "join"),
            node("5", "expression", expression="sum(input)"),
        ],
        "1>2",
        "1>3",
        "3>4",
        "2>4",
        "4>5",
    )
    outputs = found.outputs()
    assert outputs["_4"] == {"strategy": "all", "values": [7, 42], "count": 2}
    assert outputs["_5"] == 49
    assert found.plain["type"] == "graph"
    assert found.plain["show"] == ["_5"]


def test_it_takes_as_long_as_the_same_graph_in_our_own_language() -> None:
    seconds = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0, "e": 1.0}
    found = graph(
        [node("a", value=1), *(node(key, "expression", expression="input") for key in "bcd"), node("e", "join")],
        "a>b", "a>c", "c>d", "b>e", "d>e",
    )  # fmt: skip
    ours = own(
        """
        name: ours
        type: graph
        steps:
          - {name: a, function: builtins:dict}
          - {name: b, function: builtins:dict, depends_on: a}
          - {name: c, function: builtins:dict, depends_on: a}
          - {name: d, function: builtins:dict, depends_on: c}
          - {name: e, function: builtins:dict, depends_on: [b, d]}
        """
    )
    theirs = found.run(timed(seconds))
    assert theirs.metrics.wall_s == run_fake(ours, script=timed(seconds), slots=8).metrics.wall_s == 6.0


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"value": 1}, "number"),
        ({"text": "x"}, "text_input"),
        ({"op": "add"}, "operation"),
        ({"condition": "> 1", "true_path": "x"}, "condition"),
        ({"condition": "> 1"}, "filter"),
        ({"expression": "acc", "initial_value": 0}, "reduce"),
        ({"expression": "1"}, "expression"),
        ({"var_name": "x", "var_op": "get"}, "variable"),
        ({"field": "x"}, "extract"),
        ({"max_attempts": 2}, "retry"),
        ({"timeout": "5s", "timeout_action": "error"}, "timeout"),
        ({"timeout": "5s"}, ""),
        ({"value": 1, "url": "x"}, "number"),
    ],
)
def test_a_missing_type_is_told_by_the_data_first_hit(data: dict[str, Any], kind: str) -> None:
    from procflow.dialects.node_kinds import inferred

    assert inferred(data) == kind


def test_names_of_the_ui_are_the_engines() -> None:
    nodes = [LIST, node("m", "mapNode", expression="item * 2"), node("r", "reverseNode"), node("v", "barChartNode")]
    assert graph(nodes, "list>m", "m>r", "r>v").outputs()["v"] == [6, 4, 2, 6]


@pytest.mark.parametrize(
    ("tested", "value"),
    [
        (node("n", "filter", condition="item > 1"), {"filtered": [3, 2, 3], "input_count": 4, "output_count": 3}),
        (node("n", "filter", condition=">= 3"), {"filtered": [3, 3], "input_count": 4, "output_count": 2}),
        (node("n", "map", expression="item * index"), {"results": [0, 1, 4, 9], "input_count": 4, "output_count": 4}),
        (node("n", "reduce", expression="acc + item", initial_value=10), 19),
        (node("n", "slice", start=1, length=2), [1, 2]),
        (node("n", "slice", start=-3, end=-1), [1, 2]),
        (node("n", "sort", order="desc"), [3, 3, 2, 1]),
        (node("n", "find", condition="item < 3"), 1),
        (node("n", "find", condition="item > 9", return_index=True), -1),
        (node("n", "flat_map", expression="[item, item]"), [3, 3, 1, 1, 2, 2, 3, 3]),
        (node("n", "unique"), [3, 1, 2]),
        (node("n", "chunk", size=3), [[3, 1, 2], [3]]),
        (node("n", "reverse"), [3, 2, 1, 3]),
        (node("n", "partition", condition="item == 3"), {"passed": [3, 3], "failed": [1, 2]}),
        (node("n", "zip", arrays=[["a", "b"]]), [[3, "a"], [1, "b"]]),
        (
            node("n", "zip", arrays=[["a", "b", "c"]], fill_missing="-"),
            [[3, "a"], [1, "b"], [2, "c"], [3, "-"]],
        ),
        (node("n", "sample", count=2, method="last"), [2, 3]),
        (node("n", "range", start=1, end=3), {"range": [1, 2, 3], "count": 3, "start": 1, "end": 3, "step": 1}),
        (node("n", "compact"), [3, 1, 2, 3]),
    ],
)  # fmt: skip
def test_nodes_of_lists(tested: dict[str, Any], value: Any) -> None:
    assert graph([LIST, tested], "list>n").outputs()["n"] == value


def test_groups_fields_and_transposed_rows() -> None:
    rows = node("rows", "expression", expression="[{'k': 'a', 'v': 1}, {'k': 'b', 'v': 2}, {'k': 'a', 'v': 3}]")
    found = graph(
        [
            rows,
            node("sums", "group_by", field="k", aggregate="sum", value_field="v"),
            node("a", field="a"),
            node("pairs", "map", expression="[item.k, item.v]"),
            node("columns", "transpose"),
            node("first", "extract", fields=["a", "b"]),
        ],
        "rows>sums",
        "sums>a",
        "sums>first",
        "rows>pairs",
        "pairs>columns",
    ).outputs()
    assert found["sums"] == {"a": 4, "b": 2}
    assert found["a"] == {"field": "a", "value": 4}
    assert found["first"]["value"] == {"a": 4, "b": 2}
    assert found["columns"] == [["a", "b", "a"], [1, 2, 3]]


def test_a_sample_is_the_same_in_every_run() -> None:
    nodes = [node("r", "range", start=1, end=1000), node("s", "sample", count=5)]
    first = graph(nodes, "r>s").outputs()["s"]
    assert len(set(first)) == 5
    assert graph(nodes, "r>s").outputs()["s"] == first


@pytest.mark.parametrize(
    ("op", "value"), [("add", 8), ("subtract", 4), ("multiply", 12), ("divide", 3.0)]
)  # fmt: skip
def test_arithmetic(op: str, value: float) -> None:
    assert graph([node("a", value=6), node("b", value=2), node("o", op=op)], "a>o", "b>o").outputs()["o"] == value


def test_texts() -> None:
    nodes = [
        node("a", text="two Words"),
        node("b", text="x ${y}"),
        node("up", text_op="uppercase"),
        node("camel", text_op="camelcase"),
        node("both", text_op="concat", separator=", "),
        node("twice", text_op="repeat", repeat_n=2),
    ]
    found = graph(nodes, "a>up", "a>camel", "a>both", "b>both", "b>twice").outputs()
    assert found["up"] == "TWO WORDS"
    assert found["camel"] == "twoWords"
    assert found["both"] == "two Words, x ${y}"
    assert found["twice"] == "x ${y}x ${y}"


# -- branches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "ran"), [(5, {"yes", "after"}), (1, {"no"})])
def test_a_condition_takes_one_of_its_ways_and_skipping_goes_on(value: int, ran: set[str]) -> None:
    found = graph(
        [
            node("n", value=value),
            node("c", "condition", condition="> 3", true_path="big", false_path="small"),
            node("yes", "expression", expression="input * 10"),
            node("no", "expression", expression="input"),
            node("after", "expression", expression="input + 1"),
        ],
        "n>c",
        "c.big>yes",
        "c.false>no",
        "yes>after",
    )
    outputs = found.outputs()
    assert {"yes", "no", "after"} & outputs.keys() == ran
    assert outputs["c"]["path"] == ("true" if value > 3 else "false")
    if value > 3:
        assert outputs["after"] == 51


@pytest.mark.parametrize(("value", "way"), [(5, "many"), ("two", "pair"), (0, "other")])
def test_a_switch_takes_the_first_case_that_holds_and_what_joins_the_ways_gets_what_arrived(
    value: Any, way: str
) -> None:
    cases = [
        {"when": "two", "output_path": "pair"},
        {"when": "input == 5", "output_path": "many"},
        {"is_default": True, "output_path": "other"},
    ]
    nodes = [
        node("n", **{"value" if isinstance(value, int) else "text": value}),
        node("s", cases=cases),
        *(node(key, "expression", expression=f"'{key}'") for key in ("pair", "many", "other")),
        node("end", "join"),
    ]  # fmt: skip
    found = graph(nodes, "n>s", "s.pair>pair", "s.many>many", "s.other>other", "pair>end", "many>end", "other>end")
    outputs = found.outputs()
    assert outputs["s"]["output_path"] == way
    assert outputs["end"] == {"strategy": "all", "values": [way], "count": 1}


def test_what_several_ways_may_lead_to_is_skipped_when_none_is_taken() -> None:
    nodes = [
        node("n", value=1),
        node("c", "condition", condition="> 3"),
        node("d", "condition", condition="> 5"),
        node("x", "expression", expression="1"),
        node("y", "expression", expression="2"),
    ]
    result = graph(nodes, "n>c", "n>d", "c.true>x", "d.true>x", "x>y").run()
    assert result.status == "succeeded"
    assert result.steps["x"].status == result.steps["y"].status == "skipped"


Drawn = list[tuple[int | None, list[tuple[int, bool]]]]
"""For each node: the threshold of a condition, None for an expression; and from where edges come, by which way of a condition."""


@st.composite
def graphs(draw: st.DrawFn) -> Drawn:
    found: Drawn = []
    for i in range(draw(st.integers(2, 9))):
        sources = draw(st.lists(st.integers(0, i - 1), unique=True, max_size=3)) if i else []
        ways = [(source, draw(st.booleans())) for source in sources]
        found.append((draw(st.integers(0, 9)) if ways and draw(st.booleans()) else None, ways))
    return found


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_any_graph_runs_just_the_nodes_that_a_taken_edge_leads_to(drawn: Drawn) -> None:
    nodes, edges = [], []
    passed: dict[int, int] = {}
    ways_taken: dict[int, bool] = {}
    for i, (threshold, ways) in enumerate(drawn):
        nodes.append(
            node(f"n{i}", "expression", expression=str(i))
            if threshold is None
            else node(f"n{i}", "condition", condition=f"> {threshold}")
        )
        arrived = []
        for source, way in ways:
            is_condition = drawn[source][0] is not None
            edges.append(f"n{source}{('.' + str(way).lower()) if is_condition else ''}>n{i}")
            if source in passed and (not is_condition or ways_taken[source] == way):
                arrived.append(passed[source])
        if arrived or not ways:
            passed[i] = i if threshold is None else arrived[0]
            ways_taken[i] = threshold is not None and arrived[0] > threshold
    outputs = graph(nodes, *edges).outputs()
    names = [f"n{i}" for i in range(len(drawn))]
    found = {
        name: outputs[name]["value"] if isinstance(outputs[name], dict) else outputs[name]
        for name in names
        if name in outputs
    }
    assert found == {f"n{i}": value for i, value in passed.items()}


# -- control -----------------------------------------------------------------------------------------------------------


def test_a_retry_node_retries_what_is_before_it() -> None:
    retry = {"max_attempts": 3, "backoff_strategy": "constant", "initial_delay": "100ms"}
    found = graph([node("a", "flaky"), node("r", "retryNode", **retry)], "a>r", bind={"flaky": lambda: 7})
    assert plain_steps(found.plain)["a"]["retry"] == {
        "retries": 2, "delay": "0.1s", "backoff": 1, "max_delay": "30s", "jitter": False,
    }  # fmt: skip
    tries: list[str] = []

    def script(attempt: Any) -> Act:
        tries.append(attempt.call.name)
        return Act(raises=ValueError("bad")) if attempt.call.name == "a" and tries.count("a") < 3 else Act()

    result = found.run(script)
    assert result.outputs["r"] == 7
    assert tries.count("a") == 3


def test_a_clock_before_the_retry_is_that_of_an_attempt_and_one_behind_it_that_of_all() -> None:
    nodes = [node("a", "slow"), node("t", timeout="5s", timeout_action="error"), node("r", max_attempts=2)]
    found = graph(nodes, "a>t", "t>r", bind={"slow": boom})
    assert plain_steps(found.plain)["a"]["timeout"] == "5s"
    assert "a_within" not in plain_steps(found.plain)
    found = graph(nodes, "a>r", "r>t", bind={"slow": boom})
    assert plain_steps(found.plain)["a_within"]["timeout"] == "5s"
    assert "timeout" not in plain_steps(found.plain)["a"]
    assert found.run(timed({"a": 9})).status == "failed"
    assert found.run(timed({"a": 9})).steps["a_within"].status == "failed"


def test_try_catch_puts_its_fallback_in_place_of_a_failed_node_and_its_error_way_is_taken() -> None:
    nodes = [
        node("n", value=1),
        node("a", "risky"),
        node("t", "try_catch", fallback_value={"x": 0}, error_output_path="bad"),
        node("end", "extract", field="x"),
        node("told", "expression", expression="'failed'"),
    ]
    edges = ("n>a", "a>t", "t>end", "t.bad>told")
    result = graph(nodes, *edges, bind={"risky": boom}).run()
    assert result.status == "partial"
    assert result.outputs["end"]["value"] == 0
    assert result.outputs["told"] == "failed"
    outputs = graph(nodes, *edges, bind={"risky": lambda n: {"x": n}}).outputs()
    assert outputs["end"]["value"] == 1
    assert "told" not in outputs


def test_a_fallback_does_not_stand_in_for_a_node_that_was_skipped() -> None:
    nodes = [
        node("n", value=1),
        node("c", "condition", condition="> 3"),
        node("a", "risky"),
        node("t", "try_catch", fallback_value=0),
    ]
    result = graph(nodes, "n>c", "c.true>a", "a>t", bind={"risky": boom}).run()
    assert result.status == "succeeded"
    assert "t" not in result.outputs


def test_a_parallel_node_limits_what_runs_before_it() -> None:
    nodes = [*(node(f"a{i}", "work") for i in range(4)), node("p", "parallel", max_concurrency=2)]
    found = graph(nodes, *(f"a{i}>p" for i in range(4)), bind={"work": lambda: 1})
    assert found.run(timed({f"a{i}": 1.0 for i in range(4)})).metrics.wall_s == 2.0
    assert found.outputs()["p"] == {"results": [1, 1, 1, 1], "count": 4, "concurrency": 2}
    assert "at most 2 of the 4 nodes before it" in found.notes


@pytest.mark.parametrize("slow", ["a", "b"])
def test_a_race_ends_with_the_first_branch_and_stops_the_others(slow: str) -> None:
    nodes = [
        node("n", value=1),
        *(node(key, "work", tag=key) for key in ("a", "b", "b2")),
        node("j", "join", join_strategy="any"),
    ]
    found = graph(nodes, "n>a", "n>b", "b>b2", "a>j", "b2>j", bind={"work": lambda n, tag: tag})
    result = found.run(timed({slow: 9.0, "b2" if slow == "a" else "-": 1.0}))
    assert result.outputs["j"] == {"strategy": "any", "value": "b2" if slow == "a" else "a", "count": 1}
    assert result.metrics.wall_s < 9


def test_variables_are_read_from_the_node_that_sets_them() -> None:
    nodes = [
        node("n", value=4),
        node("set", var_name="x", var_op="set"),
        node("get", var_name="x", var_op="get"),
        node("e", "expression", expression="variables.x + node.n.value + node.get"),
    ]
    outputs = graph(nodes, "n>set").outputs()
    assert outputs["get"] == 4
    assert outputs["e"] == 12


def test_a_cache_gives_what_was_kept_and_nothing_of_what_is_too_old() -> None:
    nodes = [
        node("n", value=4),
        node("put", cache_op="set", cache_key="k", ttl="1h"),
        node("got", cache_op="get", cache_key="k"),
        node("none", cache_op="get", cache_key="other"),
    ]
    outputs = graph(nodes, "n>put", "put>got").outputs()
    assert outputs["got"] == 4
    assert outputs["none"] is None
    from procflow.dialects.node_functions import cache_get

    assert cache_get({"value": 1, "stored_at": 0.0}, ttl_s=5) is None


def test_a_delay_hands_on_what_arrived_after_its_pause() -> None:
    found = graph([node("n", value=4), node("d", duration="20ms")], "n>d")
    assert plain_steps(found.plain)["d"]["params"]["seconds"] == 0.02
    assert found.outputs()["d"] == 4


def test_an_http_node_is_a_request_of_ours() -> None:
    found = graph([node("n", value=1), node("h", url="http://x/y", method="post", body={"a": 1})], "n>h").plain
    assert plain_steps(found)["h"] == {
        "type": "rest", "name": "h", "url": "http://x/y", "method": "POST", "json": {"a": 1}, "depends_on": ["n"],
    }  # fmt: skip


def test_a_request_is_made_and_its_answer_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("httpx2", reason="requests are made by httpx2 (extra http)")

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"n": 20}')

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        nodes = [
            node("h", url=f"http://127.0.0.1:{server.server_port}/"),
            node("r", max_attempts=2),
            node("e", "expression", expression="input.n + 1"),
        ]
        result = graph(nodes, "h>r", "r>e").pipeline(tmp_path).run(executor="threads", state_dir=tmp_path)
        server.shutdown()
    assert result.outputs["e"] == 21


RACE = [
    node("n", value=3),
    node("slow", duration="10m"),
    node("quick", "expression", expression="input + 1"),
    node("first", "join", join_strategy="first"),
    node("way", cases=[{"when": "> 3", "output_path": "big"}, {"is_default": True, "output_path": "small"}]),
    node("x", "expression", expression="input * 2"),
    node("y", "expression", expression="input * 3"),
    node("zero", value=0),
    node("bad", op="divide"),
    node("within", timeout="1m", timeout_action="error"),
    node("caught", "try_catch", fallback_value=-1),
    node("all", "join"),
]
RACE_EDGES = (
    "n>slow", "n>quick", "slow>first", "quick>first", "first>way", "way.big>x", "way.small>y", "n>bad", "zero>bad", "bad>within",
    "within>caught", "x>all", "y>all", "caught>all",
)  # fmt: skip


def test_a_converted_graph_with_every_kind_of_control_runs_to_the_same(tmp_path: Path) -> None:
    found = graph(RACE, *RACE_EDGES)
    first = found.pipeline(tmp_path).run(workers=2, state_dir=tmp_path / "one", timeout="5m")
    (tmp_path / "own.yaml").write_text(yaml_text(found.plain))
    second = load(tmp_path / "own.yaml").run(workers=2, state_dir=tmp_path / "two", timeout="5m")
    for result in (first, second):
        assert result.status == "partial", result.reason
        assert result.outputs["all"] == {"strategy": "all", "values": [8, -1], "count": 2}
        assert result.outputs["first"] == {"strategy": "first", "value": 4, "count": 1}


# -- expressions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("input.a > 1 && !(input.b === 'x')", True),
        ("input['a'] + 1", 3),
        ("'n: ' + input.a", "n: 2"),
        ("max(1, input.a) if true else 0", 2),
        ("input.list[0].length", 1),
        ("'&& ||' == '&& ||' || false", True),
        ("node.some-1.value", 8),
    ],
)
def test_expressions_are_computed(text: str, value: Any) -> None:
    names = {"input": {"a": 2, "b": "y", "list": ["z"]}, "node": {"some-1": 8}}
    assert read(text).value(names) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "input.__class__", "(lambda: 1)()", "[x for x in input]", "9 ** 9 ** 9 ** 9", "'x' * 10 ** 9",
        "f'{input}'",
        "unknown + 1", "1 +", "", "input(1)", "'%99999999d' % 1", "print(1)", "x := 1",
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        read(text).value({"input": 1})


@given(st.text(alphabet="input.node()[]+-*/%<>=!&|'\" 019,ace", max_size=40))
def test_any_text_is_a_value_or_an_expression_error(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        read(text).value({"input": 3, "node": {}})


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "edges", "problem"),
    [
        ([node("a", "retri")], [], "nodes[0].type: unknown node type 'retri' (did you mean 'retry'?)"),
        ([node("a", "while_loop")], [], "nodes[0].type: procflow can't do nodes of type while_loop"),
        ([node("a")], [], "nodes[0].type: is missing, and the data does not tell it"),
        ([node("a", "number")], [], "nodes[0].data.value: is missing: a node of type number needs it"),
        ([node("a", value=1), node("a", value=2)], [], "nodes[1].id: the id 'a' is taken by nodes[0] in line"),
        ([node("a", value=1)], ["a>b"], "edges[0].target: there is no node 'b'"),
        ([node("a", value=1), node("b", "reverse")], ["a>b", "a>b"], "edges[1]: the same edge as edges[0]"),
        ([node("a", "reverse"), node("b", "reverse")], ["a>b", "b>a"], "nodes wait for each other in a circle: "),
        ([node("a", "reverse")], ["a>a"], "edges[0]: node 'a' leads to itself"),
        ([node("a", "reverse")], [], "nodes[0]: a node of type reverse needs 1 input, not 0"),
        ([node("a", value=1), node("b", "reverse")], ["a.true>b"], "edges[0].sourceHandle: node 'a' has no way out 'true'"),
        ([node("a", value=1, valeu=2)], [], "nodes[0].data.valeu: unknown key (did you mean 'value'?)"),
        ([node("a", value="x")], [], "nodes[0].data.value: a node of type number can't have this value"),
        ([node("a", value=1), node("b", "expression", expression="os.x")], [], "data.expression: 'os.x': 'os' is not known"),
        ([node("a", var_name="x", var_op="get")], [], "nodes[0].data.var_name: no node sets the variable 'x'"),
        (
            [node("n", value=1), node("a", var_name="x", var_op="set"), node("b", var_name="x", var_op="set")],
            ["n>a", "n>b"],
            "nodes[2]: var 'x' is set by node 'a', too, and neither comes first",
        ),
        ([node("n", value=1), node("r", max_attempts=2, backoff_strategy="linear")], ["n>r"], "procflow can't do linear pauses"),
        (
            [node("n", value=1), node("s", cases=[{"when": "> 1", "output_path": "x"}])],
            ["n>s"],
            "nodes[1].data.cases: a switch has exactly one default, as its last case",
        ),
        ([node("n", value=1), node("t", "timeout", timeout="soon")], ["n>t"], "nodes[1].data.timeout: expected a duration"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_once_with_dialect_path_and_place(nodes: Any, edges: list[str], problem: str) -> None:
    found = graph(nodes, *edges).problems()
    matching = [line for line in found if problem in line]
    assert len(matching) == 1, found
    assert matching[0].startswith("foreign.json:")
    assert ": nodes: " in matching[0]


def test_an_expression_that_names_its_own_node_is_a_circle_told_in_the_foreign_file(tmp_path: Path) -> None:
    nodes = [
        node("n", value=1),
        node("e", "expression", expression="node.f + 1"),
        node("f", "expression", expression="input"),
    ]
    with pytest.raises(PipelineError, match="circle") as caught:
        graph(nodes, "n>e", "e>f").pipeline(tmp_path).run(executor="inline", state_dir=tmp_path)
    assert "foreign.json:" in str(caught.value)
