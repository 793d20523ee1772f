"""What the compiler makes of pipelines, and what it says of wrong ones: every mistake once, at the key that is wrong."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import pytest

from procflow import api
from procflow.call import Lookup, Text
from procflow.compiler import compile_pipeline
from procflow.compiling.build import LoadedFile
from procflow.errors import PipelineError, dotted
from procflow.graph import MapUnit, ScopeUnit, TaskGraph, TaskUnit, Unit, blocks, walk
from procflow.loader import load_pipeline, load_text


def f(*values: Any, **named: Any) -> int:
    return 1


def step(name: str, **keys: Any) -> dict[str, Any]:
    return {"type": "transform", "name": name, "function": f, **keys}


def block(kind: str, name: str, *steps: Any, **keys: Any) -> dict[str, Any]:
    return {"type": kind, "name": name, "steps": list(steps), **keys}


def compiled(
    *steps: Any, given: dict[str, Any] | None = None, env: dict[str, str] | None = None, **keys: Any
) -> TaskGraph:
    return compile_pipeline(api.Pipeline("p", steps=steps, **keys), params=given, environ=env, run_id="r1")


def problems(*steps: Any, **keys: Any) -> list[tuple[str, str]]:
    """Place and message of each problem, the hint behind the message."""
    with pytest.raises(PipelineError) as caught:
        compiled(*steps, **keys)
    return [(dotted(p.loc), f"{p.message} ({p.hint})" if p.hint else p.message) for p in caught.value.problems]


def only(*steps: Any, **keys: Any) -> tuple[str, str]:
    found = problems(*steps, **keys)
    assert len(found) == 1, found
    return found[0]


def unit(graph: TaskGraph, label: str) -> Any:
    found = [
        u for u in walk(graph.root) if u.label == label and not (isinstance(u, TaskUnit) and u.call.kind in HIDDEN)
    ]
    assert found, label
    return found[0]


HIDDEN = ("gate", "expand")


def call(graph: TaskGraph, label: str) -> Any:
    made = unit(graph, label)
    return made.call if isinstance(made, TaskUnit) else made.body.call


# -- references ------------------------------------------------------------------------------------------------


def test_inputs_by_position_and_keyword_become_lookups_and_the_unit_reads_them() -> None:
    graph = compiled(
        step("a"), step("b"), step("c", inputs=["a", "${b.key.0}"]), step("d", inputs={"x": "a"}, params={"y": 2})
    )
    assert call(graph, "c").args == (Lookup("a"), Lookup("b", ("key", 0)))
    assert unit(graph, "c").reads == ("a", "b")
    assert dict(call(graph, "d").kwargs) == {"x": Lookup("a"), "y": 2}
    assert dict(call(graph, "d").params) == {"y": 2}


def test_a_reference_that_is_the_whole_text_keeps_its_type_and_others_become_text() -> None:
    graph = compiled(
        step("a"), step("b", params={"n": "${params.n}", "s": "n=${params.n}", "e": "${env.HOME}", "t": "${a}!"}),
        params={"n": 3}, env={"HOME": "/h"},
    )  # fmt: skip
    kwargs = call(graph, "b").kwargs
    assert (kwargs["n"], kwargs["s"], kwargs["e"], kwargs["t"]) == (3, "n=3", "/h", Text((Lookup("a"), "!")))


def test_params_as_a_whole_paths_into_them_and_facts_of_the_run_are_constants() -> None:
    graph = compiled(
        step("a", params={"all": "${params}", "deep": "${params.c.k.1}", "id": "${run.id}", "name": "${run.name}"}),
        params={"c": {"default": {"k": [1, 2]}}},
    )
    assert dict(call(graph, "a").kwargs) == {"all": {"c": {"k": [1, 2]}}, "deep": 2, "id": "r1", "name": "p"}


@pytest.mark.parametrize(
    ("reference", "lookup"),
    [
        ("${one.output}", Lookup("v")),
        ("${one.output.k.0}", Lookup("v", ("k", 0))),
        ("${two.output.b}", Lookup("b")),
        ("${two.output.a.0}", Lookup("a", (0,))),
        ("${any.output.zzz.0}", Lookup("zzz", (0,))),
        ("${par.output.m.k}", Lookup("m", ("k",))),
        ("${all.output}", Lookup("every")),
        ("${all.output.0}", Lookup("every", (0,))),
    ],
)
def test_a_steps_output_is_the_value_that_it_publishes(reference: str, lookup: Lookup) -> None:
    graph = compiled(
        step("one", output="v"), step("two", outputs=["a", "b"]), step("any", outputs="*"),
        block("parallel", "par", step("m"), step("n")),
        block("parallel", "all", step("x"), merge="collect_all", output="every"),
        step("use", inputs=[reference], when=f"{reference} == 1"),
    )  # fmt: skip
    assert call(graph, "use").args == (lookup,)
    assert call(graph, "use").when == f"{lookup} == 1"
    assert unit(graph, "use").reads == (lookup.name,)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("${rws}", "no step that runs before this one publishes 'rws' (did you mean 'rows'?)"),
        ("${make}", "'make' is a step, not a value (write ${rows})"),
        ("${two.output}", "step 'two' publishes several values: it has left, right (write ${two.output.left})"),
        ("${two.output.lft}", "step 'two' publishes no 'lft': it has left, right (did you mean 'left'?)"),
        ("${later}", "'later' has no value here: step 'later' makes it, and runs later"),
        ("${later.output}", "'later' has no value here: step 'later' makes it, and runs later"),
        ("${use}", "'use' has no value here: this step itself writes it"),
        ("${half_in}", "'half_in' has no value here: step 'half_in' makes it, and it never runs (when: false)"),
        ("${off.output}", "'off' has no value here: it is a step, and it is disabled (enabled: false)"),
        ("${gone}", "'gone' has no value here: step 'off' makes it, and it is disabled (enabled: false)"),
        ("${never}", "'never' has no value here: step 'never' makes it, and it never runs (when: false)"),
        (
            "${hollow_in}",
            "'hollow_in' has no value here: step 'hollow_in' makes it, and it is disabled (enabled: false)",
        ),
        ("${params.dy}", "there is no parameter 'dy' (did you mean 'day'?)"),
        ("${params.day.x}", "${params.day.x}: params.day is a str, which has no part 'x'"),
        ("${env.NOPE}", "there is no environment variable 'NOPE'"),
        ("${env}", "${env} alone means nothing (write ${env.NAME})"),
        ("${run.idd}", "there is no fact of the run 'idd' (did you mean 'id'?)"),
        ("${a b}", "'${a b}' is not a reference: only a name and a path such as ${name.key.0}"),
        ("${rows", "'${rows': ${ has no closing }; write $${ for a literal ${"),
    ],
)
def test_a_reference_to_nothing_says_why_at_the_element(reference: str, message: str) -> None:
    steps = (
        step("make", output="rows"), step("two", outputs=["left", "right"]), step("off", output="gone", enabled=False),
        step("never", when=False), block("sequence", "hollow", step("hollow_in", enabled=False)),
        step("use", inputs=["rows", reference]), step("later"),
        block("parallel", "half", step("ok"), step("half_in", when=False)),
    )  # fmt: skip
    assert only(*steps, params={"day": "monday"}, env={"HOME": "/"}) == ("steps[5].inputs[1]", message)


@pytest.mark.parametrize(
    ("bad", "loc"),
    [
        (step("s", inputs={"x": "zzz"}), "inputs.x"),
        (step("s", params={"a": {"b": ["${zzz}"]}}), "params.a.b[0]"),
        (step("s", when="zzz > 1"), "when"),
        ({"type": "shell", "name": "s", "command": ["echo", "-n", "${zzz}"]}, "command[2]"),
        ({"type": "shell", "name": "s", "command": "echo ${zzz}"}, "command"),
        ({"type": "shell", "name": "s", "command": "cat", "stdin": "${zzz}"}, "stdin"),
        ({"type": "shell", "name": "s", "command": "cat", "env": {"A": "${zzz}"}}, "env.A"),
        ({"type": "shell", "name": "s", "command": "cat", "cwd": "${zzz}"}, "cwd"),
        ({"type": "merge", "name": "s", "inputs": ["zzz"]}, "inputs[0]"),
        ({"type": "split", "name": "s", "inputs": ["zzz"], "into": 2}, "inputs[0]"),
        ({"type": "map", "name": "s", "items": "${zzz}", "function": f}, "items"),
        ({"type": "map", "name": "s", "items": [1, "${zzz}"], "function": f}, "items[1]"),
        ({"type": "map", "name": "s", "items": {"glob": "${zzz}/*"}, "function": f}, "items.glob"),
        ({"type": "map", "name": "s", "items": [1], "function": f, "inputs": ["zzz"]}, "inputs[0]"),
        ({"type": "map", "name": "s", "items": [1], "function": f, "when": "zzz"}, "when"),
        ({"type": "map", "name": "s", "items": [1], "steps": [step("t", inputs=["zzz"])]}, "steps[0].inputs[0]"),
        (
            block("parallel", "s", step("t"), block("graph", "u", step("v", inputs=["zzz"]))),
            "steps[1].steps[0].inputs[0]",
        ),
        (block("parallel", "s", step("t"), when="zzz"), "when"),
    ],
)
def test_a_problem_points_at_the_key_or_element(bad: dict[str, Any], loc: str) -> None:
    message = "no step that runs before this one publishes 'zzz'"
    assert only(step("first"), bad) == (f"steps[1].{loc}", message)


def test_every_mistake_is_told_at_once_and_only_once() -> None:
    found = problems(
        step("a", inputs=["x1"], when="x2 > (", depends_on=["x3"]),
        step("a"),
        block("parallel", "par", step("b", output="v"), step("c", output="v"), step("d", depends_on=["b"])),
        step("e", params={"p": "${params.x4}"}),
        show=["x5"], params={"need": {"required": True}, "use": "${need}"}, given={"x6": 1},
    )  # fmt: skip
    assert sorted(loc for loc, _ in found) == sorted(
        [
            "steps[0].inputs[0]", "steps[0].when", "steps[0].depends_on[0]", "steps[1].name",
            "steps[2].steps[1].output", "steps[2].steps[2].depends_on[0]", "steps[3].params.p", "show[0]",
            "params.need", "params", "params.use.default",
        ]
    )  # fmt: skip


def test_a_parameter_without_a_value_is_one_problem_however_often_it_is_read() -> None:
    steps = (step("a", params={"x": "${params.day}", "y": "on ${params.day.0}"}, when="params.day == 'x'"),)
    assert only(*steps, params={"day": {"required": True}}) == (
        "params.day", "parameter 'day' needs a value (give -p day=VALUE)",
    )  # fmt: skip
    assert call(compiled(*steps, params={"day": {"required": True}}, given={"day": ["sun"]}), "a").kwargs["x"] == [
        "sun"
    ]


def test_defaults_of_parameters_may_refer_to_environment_and_run() -> None:
    graph = compiled(
        step("a", params={"d": "${params.d}", "lit": "${params.lit}"}), env={"HOME": "/h"},
        params={"d": "${env.HOME}/${run.id}", "lit": "$${x}"},
    )  # fmt: skip
    assert dict(call(graph, "a").kwargs) == {"d": "/h/r1", "lit": "${x}"}


def test_given_parameters_are_taken_as_they_are() -> None:
    graph = compiled(step("a", params={"d": "${params.d}"}), params={"d": "x"}, given={"d": "${env.HOME}"})
    assert call(graph, "a").kwargs["d"] == "${env.HOME}"


def test_a_value_that_was_overwritten_is_not_the_output_of_its_first_writer() -> None:
    steps = (step("a", output="x"), step("b", output="x"), step("c", inputs=["${a.output}"]))
    assert only(*steps) == (
        "steps[2].inputs[0]",
        "the value 'x' of step 'a' has been overwritten by 'b' (give one of them another output)",
    )


@pytest.mark.parametrize("name", ["params", "env", "run", "index"])
def test_values_that_no_reference_could_name_are_refused_where_they_are_declared(name: str) -> None:
    inner = block("sequence", "s", step("a", outputs=["ok", name]))
    assert only(block("sequence", "t", inner)) == (
        "steps[0].steps[0].steps[0].outputs[1]",
        f"{name!r} can't be the name of a value: ${{{name}}} means something else (rename it)",
    )


# -- conditions ------------------------------------------------------------------------------------------------


def test_a_condition_reads_values_and_carries_only_the_facts_it_names() -> None:
    graph = compiled(
        step("a"), step("b", when="a.count > params.most and env.MODE == 'x' and run.id == 'r1'"),
        params={"most": 3, "other": 4}, env={"MODE": "x", "SECRET": "s"},
    )  # fmt: skip
    made = call(graph, "b")
    assert made.when == "a.count > params.most and env.MODE == 'x' and run.id == 'r1'"
    assert made.constants == {"params": {"most": 3}, "env": {"MODE": "x"}, "run": {"id": "r1"}}
    assert unit(graph, "b").reads == ("a",)


def test_a_blocks_condition_is_a_gate_that_reads_what_stands_before_the_block() -> None:
    graph = compiled(step("results"), block("parallel", "par", step("b"), when="results > 1"))
    par = unit(graph, "par")
    assert (par.gate.call.kind, par.gate.call.when, par.gate.reads) == ("gate", "results > 1", ("results",))
    assert unit(graph, "par/b").call.when is None


def test_when_true_is_no_condition_and_when_false_leaves_the_step_out() -> None:
    graph = compiled(
        step("a", when=True), step("b", when=False), block("sequence", "s", step("c", enabled=False)), step("d")
    )
    assert [m.name for m in graph.root.members] == ["a", "d"]
    assert [m.path for m in graph.root.members] == ["0", "3"]
    assert graph.root.members[1].after == (0,)
    assert call(graph, "a").when is None


# -- blocks ----------------------------------------------------------------------------------------------------


def test_members_of_a_parallel_block_do_not_see_each_other_but_what_follows_sees_all() -> None:
    par = block(
        "parallel", "par", step("a"), step("b", inputs=["a"]), block("sequence", "s", step("c", inputs=["${a.output}"]))
    )
    why = "'a' has no value here: step 'a' makes it in the same parallel block; use type: graph, or a step after the block"
    assert problems(par) == [("steps[0].steps[1].inputs[0]", why), ("steps[0].steps[2].steps[0].inputs[0]", why)]
    good = block("parallel", "par", step("a"), block("sequence", "s", step("c")))
    assert unit(compiled(good, step("z", inputs=["a", "c"])), "z").reads == ("a", "c")


def test_a_graph_orders_members_by_values_steps_and_depends_on_whatever_their_declared_order() -> None:
    graph = compiled(
        block(
            "graph", "g",
            step("d", inputs=["${b.output}"]), step("c", depends_on=["a"]), step("b", output="v", inputs=["a"]),
            step("a"), block("sequence", "s", step("x", output="q"), step("y", inputs=["q", "v"])),
        )
    )  # fmt: skip
    members = {m.name: m for m in unit(graph, "g").members}
    names = [m.name for m in unit(graph, "g").members]
    waits = {name: {names[i] for i in m.after} for name, m in members.items()}
    assert waits == {"d": {"b"}, "c": {"a"}, "b": {"a"}, "a": set(), "s": {"b"}}
    assert {names[i] for i in members["c"].strict} == {"a"}
    assert members["b"].strict == frozenset()


def test_two_branches_that_write_one_name_are_refused_unless_a_merge_takes_them_by_member() -> None:
    twice = (step("a", output="v"), block("sequence", "s", step("b"), step("c", outputs=["w", "v"])))
    hint = "or give the block merge: collect_all, first_success, best_quality or combine_outputs"
    assert only(block("parallel", "p", *twice)) == (
        "steps[0].steps[1].steps[1].outputs[1]", f"'a' and 's' both write 'v' and may run at once (rename one, {hint})",
    )  # fmt: skip
    assert only(block("graph", "p", *twice, merge="collect_all"))[0] == "steps[0].steps[1].steps[1].outputs[1]"
    assert (
        only(block("parallel", "p", *twice, merge="update", output="both"))[0]
        == "steps[0].steps[1].steps[1].outputs[1]"
    )
    for merge in ("collect_all", "first_success", "combine_outputs"):
        assert compiled(block("parallel", "p", *twice, merge=merge))
    assert compiled(block("sequence", "p", *twice))


@pytest.mark.parametrize(
    ("keys", "names", "strategy", "has_merger"),
    [
        ({}, ("a", "b"), "update", False),
        ({"output": "o"}, ("o",), "update", False),
        ({"merge": "update"}, ("a", "b"), "update", False),
        ({"merge": "collect_all"}, ("p", "p_errors"), "collect_all", False),
        ({"merge": "collect_all", "output": "o"}, ("o", "o_errors"), "collect_all", False),
        ({"merge": "first_success"}, ("p",), "first_success", False),
        ({"merge": "combine_outputs", "output": "o"}, ("o",), "task", True),
        ({"merge": "best_quality", "score": "k"}, ("p",), "task", True),
        ({"merge": "m:n"}, ("p",), "task", True),
    ],
)
@pytest.mark.parametrize("kind", ["sequence", "parallel", "graph"])
def test_what_a_block_publishes(
    kind: str, keys: dict[str, Any], names: tuple[str, ...], strategy: str, has_merger: bool
) -> None:
    graph = compiled(block(kind, "p", step("a"), step("b"), **keys), step("z", inputs=list(names)))
    made = unit(graph, "p")
    assert (made.writes, made.merge.strategy, made.merger is not None) == (names, strategy, has_merger)
    if has_merger:
        assert made.merger.reads == ()


def test_unknown_outputs_open_the_names_after_them_and_nothing_before() -> None:
    graph = compiled(step("a", outputs="*"), step("b", inputs=["anything"]))
    assert (unit(graph, "a").writes, call(graph, "a").outputs, unit(graph, "b").reads) == (None, "*", ("anything",))
    assert only(step("b", inputs=["anything"]), step("a", outputs="*"))[0] == "steps[0].inputs[0]"
    assert unit(compiled(block("parallel", "p", step("a", outputs="*"), step("b"))), "p").writes is None


def test_in_a_graph_whoever_reads_an_unknown_name_waits_for_those_that_may_write_it() -> None:
    graph = compiled(
        step("known"),
        block(
            "graph",
            "g",
            step("a", outputs="*", inputs=["known"]),
            step("b", outputs="*", inputs=["known"]),
            step("c", inputs=["what"]),
        ),
    )
    assert [m.after for m in unit(graph, "g").members] == [(), (), (0, 1)]


def test_a_block_passes_executor_and_priority_on_and_its_members_may_say_otherwise() -> None:
    graph = compiled(
        block(
            "parallel", "p", step("a"), step("b", executor="inline", priority=0),
            block("sequence", "s", step("c"), executor="processes", priority=7),
            executor="threads", priority=5, merge="combine_outputs",
        ),
        step("z"),
        defaults={"executor": "inline"},
    )  # fmt: skip
    found = {
        u.label: (u.executor, u.priority)
        for u in walk(graph.root)
        if isinstance(u, TaskUnit) and u.call.kind == "transform"
    }
    assert found == {"p/a": ("threads", 5), "p/b": ("inline", 0), "p/s/c": ("processes", 7), "z": ("inline", 0)}
    assert unit(graph, "p").merger.executor == "threads"
    assert graph.executors == {"threads", "inline", "processes"}


def test_the_executor_of_a_run_takes_the_place_of_the_default_and_of_no_step() -> None:
    pipeline = api.Pipeline("p", steps=[step("a"), step("b", executor="inline")], defaults={"executor": "processes"})
    graph = compile_pipeline(pipeline, executor="threads")
    assert [m.executor for m in graph.root.members] == ["threads", "inline"]


def test_defaults_reach_leaf_steps_and_the_functions_of_maps_but_no_blocks() -> None:
    defaults = {"timeout": "5m", "retries": 2, "cpus": 2, "memory": "1MB", "idle_timeout": "9s", "kill_grace": "3s"}
    graph = compiled(
        step("a"), step("b", timeout="1s", retries=0, cpus=1), block("sequence", "s", step("c")),
        {"type": "map", "name": "m", "items": [1], "function": f},
        {"type": "map", "name": "n", "items": [1], "steps": [step("d")]}, defaults=defaults,
    )  # fmt: skip
    for label in ("a", "s/c", "n/d"):
        u = unit(graph, label)
        assert (u.timeout_s, u.retry.retries, u.cpus, u.memory_bytes) == (300, 2, 2, 1_000_000)
        assert (u.idle_timeout_s, u.kill_grace_s) == (9, 3)
        assert u.inherited == {"timeout", "cpus", "memory", "idle_timeout", "kill_grace"}
    b = unit(graph, "b")
    assert (b.timeout_s, b.retry.retries, b.cpus, b.inherited) == (1, 0, 1, {"memory", "idle_timeout", "kill_grace"})
    assert unit(graph, "m").body.timeout_s == 300
    for label in ("s", "m", "n"):
        assert (unit(graph, label).timeout_s, unit(graph, label).retry.retries) == (None, 0)


def test_tolerate_alone_says_that_the_block_goes_on() -> None:
    graph = compiled(block("parallel", "p", step("a"), tolerate=1), tolerate="50%")
    assert (unit(graph, "p").on_error, graph.root.on_error) == ("continue", "continue")
    assert unit(compiled(block("parallel", "p", step("a"), on_error="finish")), "p").on_error == "finish"
    assert unit(compiled(step("a", on_error="continue")), "a").tolerated


def test_join_counts_the_steps_that_are_left() -> None:
    steps = (step("a"), step("b", enabled=False), step("c"))
    assert unit(compiled(block("parallel", "p", *steps, join=2)), "p").need == 2
    assert unit(compiled(block("parallel", "p", *steps, join="any")), "p").need == 1
    assert only(block("parallel", "p", *steps, join=3)) == (
        "steps[0].join", "3 of 2 steps that are not disabled can never succeed",
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["parallel", "map"])
def test_a_rate_on_a_block_is_shared_by_all_that_starts_inside(kind: str) -> None:
    keys = {"items": [1]} if kind == "map" else {}
    graph = compiled(block(kind, "p", step("a"), rate_limit="1/s", **keys))
    assert graph.rates["block:0"].per_s == 1
    assert unit(graph, "p/a").rates == ("block:0",)
    graph = compiled({"type": "map", "name": "m", "items": [1], "function": f, "rate_limit": "1/s"})
    assert unit(graph, "m").body.rate is not None


# -- maps ------------------------------------------------------------------------------------------------------


def test_a_map_with_a_function_reads_its_item_and_values_from_outside() -> None:
    graph = compiled(
        step("rows"), step("k"),
        {"type": "map", "name": "m", "items": "${rows}", "function": f, "inputs": ["k"], "as": "row",
         "params": {"i": "${index}", "x": "${row.x}"}},
    )  # fmt: skip
    made = unit(graph, "m")
    assert isinstance(made, MapUnit)
    assert isinstance(made.body, TaskUnit)
    assert (made.expand.call.args, made.expand.reads) == ((Lookup("rows"),), ("rows",))
    assert made.body.call.args == (Lookup("row"), Lookup("k"))
    assert (made.body.reads, made.body.call.item_name, made.item_name) == (("k",), "row", "row")
    assert (made.writes, made.merge.strategy, made.merge.output) == (("m",), "rows", "m")


def test_steps_of_a_map_see_item_index_and_the_steps_before_them_but_nobody_outside_sees_these() -> None:
    inner = [step("a", inputs=["item", "${index}"]), step("b", inputs=["a", "${item.k}"])]
    graph = compiled({"type": "map", "name": "m", "items": [1], "steps": inner})
    body = unit(graph, "m").body
    assert isinstance(body, ScopeUnit)
    assert [m.reads for m in body.members] == [("item", "index"), ("a", "item")]
    assert body.members[1].after == (0,)
    assert [m.label for m in body.members] == ["m/a", "m/b"]
    for reference in ("b", "item", "index"):
        assert (
            only({"type": "map", "name": "m", "items": [1], "steps": inner}, step("z", inputs=[reference]))[0]
            == "steps[1].inputs[0]"
        )


def test_nested_maps_name_their_items() -> None:
    inner = {"type": "map", "name": "in", "items": "${row.parts}", "as": "part", "function": f, "inputs": ["row"]}
    graph = compiled({"type": "map", "name": "out", "items": [1], "as": "row", "steps": [inner]})
    made = unit(graph, "out/in")
    assert (made.expand.reads, made.body.reads, made.body.call.args) == (
        ("row",),
        ("row",),
        (Lookup("part"), Lookup("row")),
    )


def test_items_that_are_text_or_take_a_reserved_name_are_refused() -> None:
    text = {"type": "map", "name": "m", "items": "rows", "function": f}
    assert only(step("rows"), text) == (
        "steps[1].items",
        "the items are 'rows', and no list (write ${rows} for a value of that name, or {glob: ...} for files)",
    )  # fmt: skip
    assert only({"type": "map", "name": "m", "items": [1], "as": "params", "function": f})[0] == "steps[0].as"
    assert (
        only({"type": "map", "name": "m", "items": "${params.n}", "function": f}, params={"n": 3})[0]
        == "steps[0].items"
    )


@pytest.mark.parametrize(
    ("items", "options", "args"),
    [
        ({"range": [1, 9, 2]}, {"range": (1, 9, 2)}, ()),
        ({"glob": "${params.d}/*.csv"}, {"glob": "data/*.csv"}, ()),
        ([1, "${params.d}"], {}, ([1, "data"],)),
        ("${params.l}", {}, ([5, 6],)),
    ],
)
def test_items_of_every_form(items: Any, options: dict[str, Any], args: tuple[Any, ...]) -> None:
    graph = compiled({"type": "map", "name": "m", "items": items, "function": f}, params={"d": "data", "l": [5, 6]})
    expand = unit(graph, "m").expand.call
    assert expand.options.items() >= options.items()
    assert expand.args == args


def test_the_clock_of_a_map_is_each_items_with_a_function_and_the_blocks_with_steps() -> None:
    one = {"type": "map", "name": "m", "items": [1], "timeout": "9s", "retries": 1}
    with_function = unit(compiled({**one, "function": f}), "m")
    assert (with_function.timeout_s, with_function.retry.retries) == (None, 0)
    assert (with_function.body.timeout_s, with_function.body.retry.retries) == (9, 1)
    with_steps = unit(compiled({**one, "steps": [step("a")]}), "m")
    assert (with_steps.timeout_s, with_steps.retry.retries) == (9, 1)


# -- leaves ----------------------------------------------------------------------------------------------------


def test_constants_in_a_shell_line_are_quoted_and_in_a_list_they_are_not() -> None:
    line = {"type": "shell", "name": "a", "command": "echo ${params.x} $${HOME}"}
    words = {"type": "shell", "name": "b", "command": ["echo", "${params.x}", "<${params.x}>"]}
    whole = {"type": "shell", "name": "c", "command": "${params.x}"}
    graph = compiled(line, words, whole, params={"x": "a b; rm -rf /"})
    assert call(graph, "a").options["command"] == "echo 'a b; rm -rf /' ${HOME}"
    assert call(graph, "b").options["command"] == ("echo", "a b; rm -rf /", "<a b; rm -rf />")
    assert call(graph, "c").options["command"] == "a b; rm -rf /"


def test_what_a_call_can_take_only_once_is_told() -> None:
    assert only(step("a"), step("b", inputs={"x": "a"}, params={"x": 1})) == (
        "steps[1].params.x", "'x' is an input too: a function takes it once (keep one of them)",
    )  # fmt: skip
    assert only(step("a"), {"type": "merge", "name": "m", "inputs": ["a", "a"]})[0] == "steps[1].inputs[1]"
    own = {"type": "split", "name": "s", "strategy": f, "inputs": ["a", "a"], "output": "o"}
    assert only(step("a"), own)[0] == "steps[1].inputs"
    assert (
        only(step("a"), {"type": "split", "name": "s", "inputs": ["a"], "into": 2, "outputs": "*"})[0]
        == "steps[1].outputs"
    )


def test_a_split_knows_how_many_parts_from_into_or_its_outputs() -> None:
    graph = compiled(
        step("a"),
        {"type": "split", "name": "s", "inputs": ["a"], "outputs": ["x", "y", "z"]},
        {"type": "split", "name": "t", "inputs": {"value": "a"}, "into": 4},
        {"type": "split", "name": "u", "inputs": ["a"], "strategy": "m:n"},
    )
    assert [call(graph, n).options["into"] for n in "stu"] == [3, 4, None]
    assert [call(graph, n).args for n in "stu"] == [(Lookup("a"),)] * 3


# -- files of pipeline steps -----------------------------------------------------------------------------------


def files(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def load(file: str, folder: str | None) -> LoadedFile:
    return load_pipeline(Path(folder or ".") / file)


def compiled_file(folder: Path, name: str = "top", **options: Any) -> TaskGraph:
    """The graph of a file; problems have their places, as after ``launch.prepare``."""
    loaded = load_pipeline(folder / f"{name}.yaml")
    try:
        return compile_pipeline(loaded.pipeline, folder=str(folder), load=load, **options)
    except PipelineError as error:
        raise PipelineError(loaded.source.locate(error.problems)) from None


def placed_problems(folder: Path, **options: Any) -> list[str]:
    with pytest.raises(PipelineError) as caught:
        compiled_file(folder, **options)
    return [str(p).replace(f"{folder}/", "") for p in caught.value.problems]


SUB = """\
name: sub
params: {n: {required: true}, k: 1}
limits: {timeout: 1m, resources: {db: 2}}
defaults: {timeout: 5s}
steps:
  - {type: transform, name: x, function: "m:f", inputs: [rows], params: {n: "${params.n}", who: "${run.name}"}}
  - {type: transform, name: y, function: "m:g", inputs: [x], resources: {db: 1}}
"""


def test_a_file_as_a_step_sees_only_its_params_and_inputs(tmp_path: Path) -> None:
    files(tmp_path, sub=SUB)
    files(
        tmp_path,
        top="""\
name: top
defaults: {timeout: 9s}
steps:
  - {type: transform, name: a, function: "m:a"}
  - {type: pipeline, name: s, file: sub.yaml, inputs: {rows: a}, params: {n: 3}, timeout: 2m}
  - {type: transform, name: z, function: "m:z", inputs: ["${s.output.y}"]}
""",
    )
    graph = compiled_file(tmp_path)
    made = unit(graph, "s")
    assert (made.kind, made.isolated, made.imports, made.writes) == ("pipeline", True, {"rows": "a"}, ("s",))
    assert (made.timeout_s, made.merge.output, made.kept, graph.resources) == (60, "s", None, {"db": 2})
    assert dict(call(graph, "s/x").kwargs) == {"n": 3, "who": "sub"}
    assert [(m.path, m.timeout_s, m.after) for m in made.members] == [("1.0", 5, ()), ("1.1", 5, (0,))]
    assert call(graph, "z").args == (Lookup("s", ("y",)),)


def test_files_are_found_from_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    files(tmp_path, top="name: top\nsteps:\n  - {type: pipeline, name: s, file: inner/mid.yaml}\n")
    files(tmp_path / "inner", mid="name: mid\nsteps:\n  - {type: pipeline, name: t, file: low.yaml}\n")
    files(tmp_path / "inner", low="name: low\nsteps:\n  - {type: shell, name: u, command: pwd}\n")
    assert call(compiled_file(tmp_path), "s/t/u").folder == str(tmp_path / "inner")


def test_problems_inside_a_file_have_their_places_there_and_those_of_its_step_in_the_file_above(tmp_path: Path) -> None:
    files(tmp_path, sub=SUB.replace("inputs: [x]", "inputs: [xx]"))
    files(
        tmp_path,
        top="""\
name: top
steps:
  - type: pipeline
    name: s
    file: sub.yaml
    params: {m: 3}
    inputs: [nothing]
    outputs: [x, q]
""",
    )
    assert placed_problems(tmp_path) == [
        "sub.yaml:6:58: no step that runs before this one publishes 'rows'",
        "sub.yaml:7:58: no step that runs before this one publishes 'xx' (did you mean 'x'?)",
        "top.yaml:6:13: parameter 'n' of sub.yaml needs a value (params: {n: ...})",
        "top.yaml:6:17: there is no parameter 'm' of sub.yaml (declared: n, k)",
        "top.yaml:7:14: no step that runs before this one publishes 'nothing'",
        "top.yaml:8:18: sub.yaml publishes no 'q'",
    ]


def test_what_the_loader_says_of_an_inner_file_is_told_with_the_rest(tmp_path: Path) -> None:
    files(tmp_path, sub="name: sub\nstepz: []\n")
    files(
        tmp_path,
        top="""\
name: top
steps:
  - {type: pipeline, name: s, file: sub.yaml}
  - {type: shell, name: t, command: "${nope}"}
""",
    )
    found = placed_problems(tmp_path)
    assert [line.split(": ")[0] for line in found] == ["sub.yaml:2:1", "top.yaml:4:37"]


def test_a_file_that_runs_itself_is_refused_with_the_way_around(tmp_path: Path) -> None:
    files(tmp_path, top="name: top\nsteps:\n  - {type: pipeline, name: a, file: mid.yaml}\n")
    files(tmp_path, mid="name: mid\nsteps:\n  - {type: pipeline, name: b, file: top.yaml}\n")
    found = placed_problems(tmp_path)
    assert len(found) == 1
    assert "runs itself without end" in found[0]


def test_one_file_may_be_run_many_times(tmp_path: Path) -> None:
    files(tmp_path, sub="name: sub\nsteps:\n  - {type: shell, name: u, command: pwd}\n")
    steps = "".join(f"  - {{type: pipeline, name: s{i}, file: sub.yaml}}\n" for i in range(20))
    files(tmp_path, top=f"name: top\nsteps:\n{steps}")
    assert len([u for u in walk(compiled_file(tmp_path).root) if isinstance(u, TaskUnit)]) == 20


def test_what_must_be_known_before_the_run_can_not_be_a_value(tmp_path: Path) -> None:
    files(tmp_path, sub="name: sub\nparams: {n: 1}\nsteps:\n  - {type: shell, name: u, command: pwd}\n")
    files(
        tmp_path,
        top="""\
name: top
steps:
  - {type: shell, name: a, command: pwd}
  - {type: pipeline, name: s, file: sub.yaml, params: {n: "${a}"}}
  - {type: pipeline, name: t, file: "${a}"}
  - {type: pipeline, name: u, file: sub.yaml, inputs: ["${a.b}"]}
""",
    )
    assert [line.split(" (")[0] for line in placed_problems(tmp_path)] == [
        "top.yaml:4:59: a parameter of a file must be known before the run, and ${a} is a value",
        "top.yaml:5:37: the file of a pipeline step must be known before the run, and ${a} is a value",
        "top.yaml:6:56: an input of a pipeline step is a whole value",
    ]


def test_a_file_can_not_be_loaded_where_nothing_can_load() -> None:
    assert only(api.Subpipeline("s", "x.yaml"))[0] == "steps[0].file"


# -- show, depth, size -----------------------------------------------------------------------------------------


def test_show_names_values_of_the_run() -> None:
    assert compiled(step("a"), show="a")
    assert only(step("a", output="x"), show=["a"]) == ("show[0]", "show: 'a' is a step, not a value (write x)")
    assert only(step("rows"), show=["rws"]) == ("show[0]", "show: no step publishes 'rws' (did you mean 'rows'?)")
    assert only(step("a"), step("b", enabled=False), show=["b"])[1].endswith("it is disabled (enabled: false)")


def nested(depth: int) -> Any:
    inner: Any = api.Step("leaf", f)
    for i in range(depth):
        inner = api.Sequence(f"b{i}", inner)
    return inner


def test_blocks_nest_to_a_bound_and_deeper_ones_are_refused() -> None:
    assert compiled(nested(64))
    assert "nested more than 64 deep" in only(nested(65))[1]


def test_a_deep_file_keeps_to_the_bound_too() -> None:
    text = "name: p\nsteps:\n  - {type: shell, name: a, command: ls}\n"
    inner = load_text(text, "x.yaml", "/")
    graph = compile_pipeline(
        api.Pipeline("p", steps=[api.Sequence("s", api.Subpipeline("t", "x"))]), load=lambda *_: inner
    )
    assert [u.label for u in walk(graph.root)] == ["", "s", "s/t", "s/t/a"]
    deep = nested(63)
    for _ in range(1):
        deep = api.Sequence("more", deep, api.Subpipeline("t", "x"))
    assert compile_pipeline(api.Pipeline("p", steps=[deep]), load=lambda *_: inner)


def seconds(pipeline: Any) -> float:
    # Collections take time in proportion to all that other tests have left.
    gc.collect()
    gc.disable()
    try:
        start = time.process_time()
        compile_pipeline(pipeline)
        return time.process_time() - start
    finally:
        gc.enable()


def wide(kind: str, count: int) -> Any:
    if kind == "sequence":
        return api.Pipeline("p", steps=[step(f"s{i}", inputs=[f"s{i - 1}"] if i else []) for i in range(count)])
    if kind == "backwards":
        steps = [step(f"s{i}", inputs=[f"s{i + 1}"] if i < count - 1 else []) for i in range(count)]
        return api.Pipeline("p", type="graph", steps=steps)
    if kind == "fan":
        middle = [step(f"m{i}", inputs=["a"]) for i in range(count)]
        return api.Pipeline(
            "p", type="graph", steps=[step("a"), *middle, step("z", inputs=[f"m{i}" for i in range(count)])]
        )
    return api.Pipeline(
        "p", steps=[block("parallel", "q", block("parallel", "p", *(step(f"m{i}") for i in range(count))))]
    )


@pytest.mark.parametrize("kind", ["sequence", "backwards", "fan", "parallel"])
def test_compiling_takes_time_in_proportion_to_the_steps(kind: str) -> None:
    small, large = seconds(wide(kind, 1000)), seconds(wide(kind, 10_000))
    # 100 times as long would be quadratic.
    assert large < 40 * max(small, 0.01)


@pytest.mark.slow
def test_a_sequence_of_thirty_thousand_steps_compiles_without_recursion() -> None:
    graph = compile_pipeline(wide("sequence", 30_000))
    assert graph.root.members[-1].after == (29_998,)
    assert graph.root.members[0].rank == 30_000


def test_many_wrong_references_are_told_quickly() -> None:
    start = time.process_time()
    assert len(problems(*(step(f"s{i}", inputs=[f"t{i}"]) for i in range(500)))) == 500
    assert time.process_time() - start < 20


def test_units_know_their_place() -> None:
    graph = compiled(step("a"), block("parallel", "p", step("b"), step("c")))
    places: list[Unit] = [u for u in walk(graph.root) if u.path]
    assert [(u.path, u.label, u.index, dotted(u.loc)) for u in places] == [
        ("0", "a", 0, "steps[0]"), ("1", "p", 1, "steps[1]"), ("1.0", "p/b", 0, "steps[1].steps[0]"),
        ("1.1", "p/c", 1, "steps[1].steps[1]"),
    ]  # fmt: skip


def test_units_come_outer_first_as_declared_and_hooks_after_what_is_inside() -> None:
    hook = {"on_finish": [step("h")]}
    graph = compiled(
        step("a", **hook),
        block("parallel", "b", step("c"), step("d"), **hook),
        block("map", "m", step("e"), items=[1]),
        **hook,
    )
    places = [unit.label for unit in walk(graph.root)]
    assert places == ["", "a", "b", "b/c", "b/d", "m", "m", "m", "m/e"]
    places = [unit.label for unit in walk(graph.root, hooks=True)]
    assert places == [
        "", "a", "a/on_finish", "a/on_finish/h", "b", "b/c", "b/d", "b/on_finish", "b/on_finish/h",
        "m", "m", "m", "m/e", "on_finish", "on_finish/h",
    ]  # fmt: skip
    assert [(block.label, block.kind) for block in blocks(graph.root)] == [
        ("", "sequence"), ("b", "parallel"), ("m", "map"), ("m", "sequence"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "has"),
    [
        ({"retries": 3}, set()), ({"timeout": "30s"}, set()),
        ({"timeout": "300%"}, {"timeout share"}),
        ({"timeout": "300%", "resources": {"gpu": 1}}, {"timeout share"}),
        ({"transient": True}, {"transient"}),
        ({"type": "map", "items": [1], "transient": True}, {"transient"}),
    ],
)  # fmt: skip
def test_a_graph_knows_what_rare_things_it_has(said: dict[str, Any], has: set[str]) -> None:
    steps = step("first"), {**step("x"), **said}, step("reader", inputs=["x"])
    assert compiled(*steps, limits={"resources": {"gpu": 1}}).has == has


def test_a_default_timeout_may_be_a_share_and_a_hook_may_run_a_command() -> None:
    hook = {"name": "h", "type": "shell", "command": "true"}
    assert compiled(step("x", on_finish=[hook]), defaults={"timeout": "300%"}).has == {"command", "timeout share"}
    assert compiled(hook).has == {"command"}
