"""The pipeline's state: the same on every executor and number of workers, whatever finishes first."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import state_steps as s

from procflow import Graph, Map, Parallel, Pipeline, PipelineError, Sequence, Step, load, step
from procflow.call import Reducer
from procflow.loader import load_text
from procflow.result import RunResult
from procflow.state import State, StateError, fold, leaves
from procflow.testing import Act, run_fake

EVERYWHERE = [("inline", 1), ("threads", 2), ("processes", 1), ("processes", 2), ("processes", 8)]
THREE = ["inline", "threads", "processes"]
ALL = {"results": "append", "totals": "add", "seen": "union", "tree": "merge"}


def run(tmp_path: Path, *steps: Any, executor: str = "inline", workers: int = 2, **keys: Any) -> RunResult:
    pipeline = Pipeline("t", steps=steps, **keys)
    return pipeline.run(executor=executor, workers=workers, state_dir=tmp_path / "state")


def fake(*steps: Any, script: Any = None, slots: int = 4, **keys: Any) -> RunResult:
    return run_fake(Pipeline("t", steps=steps, **keys), script=script or {}, slots=slots)


# -- the same everywhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("executor", "workers"), EVERYWHERE)
def test_a_hundred_parallel_appends_and_adds_give_the_same_state(tmp_path: Path, executor: str, workers: int) -> None:
    steps = [Step(f"w{i}", s.write, params={"key": i}) for i in range(100)]
    result = run(
        tmp_path, Parallel("wide", *steps), Step("after", s.read), executor=executor, workers=workers, state=ALL
    )
    assert result.status == "succeeded", result.failures
    assert result.state["results"] == list(range(100))
    assert result.state["totals"] == 4950
    assert result.state["seen"] == set(range(7))
    assert result.state["tree"] == {"by": {str(i): i for i in range(100)}, "last": 99}
    assert result.outputs["after"] == dict(result.state)


@pytest.mark.parametrize(("executor", "workers"), EVERYWHERE)
def test_items_of_a_map_change_the_state_in_item_order(tmp_path: Path, executor: str, workers: int) -> None:
    result = run(
        tmp_path, Map("m", s.write, items=range(200)), Map("f", s.add_fraction, items=range(50)), Step("after", s.read),
        executor=executor, workers=workers, state=ALL,
    )  # fmt: skip
    assert result.status == "succeeded", result.failures
    total = sum(range(200))
    for i in range(50):
        # One by one from the left: the size of a batch must not change a sum of fractions.
        total = total + 0.1 * i
    assert result.state["results"] == list(range(200))
    assert result.state["totals"] == total == result.outputs["after"]["totals"]


@pytest.mark.parametrize("executor", THREE)
def test_large_changes_go_through_files(tmp_path: Path, executor: str) -> None:
    result = run(tmp_path, Map("m", s.big, items=range(5)), executor=executor, state={"results": "append"})
    assert [value[:1] for value in result.state["results"]] == [bytes([i]) for i in range(5)]


# -- what a step sees --------------------------------------------------------------------------------------------------


def test_a_parallel_sibling_that_has_ended_is_not_seen() -> None:
    result = fake(
        Parallel("p", Step("quick", s.write, params={"key": 1}), Step("slow", s.read)), Step("after", s.read),
        slots=1, state=ALL,
    )  # fmt: skip
    assert result.outputs["slow"]["results"] == []
    assert result.outputs["after"]["results"] == [1]


def test_a_graph_member_sees_what_it_waits_for_and_nothing_else() -> None:
    graph = Graph(
        "g",
        Step("last", s.read, depends_on=["b", "a"]),
        Step("a", s.write, params={"key": 1}),
        Step("b", s.write, params={"key": 2}, depends_on="c"),
        Step("c", s.write, params={"key": 3}),
        Step("alone", s.read, priority=-1),
    )
    result = fake(graph, state=ALL, slots=1)
    # Each behind those it waits for, else as declared.
    assert result.outputs["last"]["results"] == [1, 3, 2]
    assert result.outputs["alone"]["results"] == []
    assert result.state["results"] == [1, 3, 2]


def test_the_order_is_declared_whatever_ends_first() -> None:
    steps = [Step(f"w{i}", s.write, params={"key": i}) for i in range(5)]
    late = {f"w{i}": Act(after_s=10 - i) for i in range(5)}
    assert fake(Parallel("p", *steps), state=ALL, script=late, slots=5).state["results"] == [0, 1, 2, 3, 4]


def test_steps_for_each_item_see_their_own_item_only() -> None:
    body = Map("m", Step("w", s.write, inputs=["item"]), Step("r", s.read), items=range(3))
    result = fake(Step("first", s.write, params={"key": 9}), body, state=ALL)
    assert [row["results"] for row in result.outputs["m"]] == [[9, 0], [9, 1], [9, 2]]
    assert result.state["results"] == [9, 0, 1, 2]


def test_a_merge_by_function_sees_what_the_members_wrote() -> None:
    result = fake(
        Parallel("p", Step("a", s.write, params={"key": 1}), Step("b", s.write), merge=s.merged, output="n"),
        state=ALL,
    )
    assert result.state["results"] == [1, 0, ["merge saw", 2]]


def test_a_snapshot_can_be_copied_and_not_changed() -> None:
    state = State({"results": Reducer("append")}, lambda key: [[(1,)], [(2,), (3,)]])
    seen = state["results"]
    with pytest.raises(TypeError, match="snapshot of the state"):
        seen.append(4)
    assert pickle.loads(pickle.dumps(seen)) == [1, 2, 3] == list(seen)
    assert type(pickle.loads(pickle.dumps(seen))) is list
    state.append("results", 4)
    assert state["results"] == [1, 2, 3]


def test_outside_a_run_writing_does_nothing() -> None:
    assert s.write(3) == 3
    assert step.state.get("results", []) == []
    assert not step.state.take()


# -- what counts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", THREE)
def test_only_the_attempt_that_succeeded_counts(tmp_path: Path, executor: str) -> None:
    bad = Step("bad", s.once_bad, params={"marker": str(tmp_path / "m")}, retry={"retries": 1, "delay": 0})
    result = run(tmp_path, bad, executor=executor, state=ALL)
    assert result.status == "succeeded"
    assert result.state["results"] == [5]


@pytest.mark.parametrize("executor", THREE)
def test_items_that_failed_leave_nothing(tmp_path: Path, executor: str) -> None:
    odd = Map("m", s.odd_fails, items=range(10), on_error="continue")
    result = run(tmp_path, odd, Step("r", s.read), executor=executor, state=ALL)
    assert result.status == "partial"
    assert result.state["results"] == [0, 2, 4, 6, 8] == result.outputs["r"]["results"]


def test_an_item_whose_change_cannot_be_sent_fails_alone(tmp_path: Path) -> None:
    items = Map("m", s.unpicklable, items=range(6), on_error="continue", batch=6)
    result = run(tmp_path, items, executor="processes", state=ALL)
    assert result.state["results"] == [0, 1, 2, 4, 5]
    assert "step.state['results']" in result.failures[0].failure.message


def test_a_run_that_failed_tells_what_was_written_so_far(tmp_path: Path) -> None:
    bad = Step("bad", s.once_bad, params={"marker": str(tmp_path / "m")})
    result = run(tmp_path, Step("a", s.write, params={"key": 4}), bad, state=ALL)
    assert result.status == "failed"
    assert result.state["results"] == [4]


def test_an_initial_value_comes_first_and_a_reducer_of_ones_own_folds() -> None:
    state = {
        "word": {"reducer": s.longest, "initial": "ab"}, "results": {"reducer": "append", "initial": [7]},
        "totals": {"reducer": "add", "initial": 10}, "seen": {"reducer": "union", "initial": [1]}, "none": "replace",
        "tree": "merge",
    }  # fmt: skip
    steps = [Step(f"w{i}", s.say, params={"word": "x" * i}) for i in (1, 3, 2)]
    result = fake(Parallel("p", *steps), Step("w", s.write, params={"key": 5}), state=state)
    assert dict(result.state) == {
        "word": "xxx", "results": [7, 5], "totals": 15, "seen": {1, 5}, "none": None, "tree": {"by": {"5": 5}, "last": 5}
    }  # fmt: skip


def test_a_state_that_cannot_be_joined_fails_the_run_with_key_and_types() -> None:
    result = fake(
        Step("a", s.text_and_number, params={"what": 1}), Step("b", s.text_and_number, params={"what": "x"}), state=ALL
    )
    assert result.status == "failed"
    assert "state 'totals' (add): int and str can't be joined" in str(result.failures[0])


# -- conflicts ---------------------------------------------------------------------------------------------------------

CONFIG = {"config": "replace"}


@pytest.mark.parametrize("executor", THREE)
def test_two_parallel_steps_that_replace_a_key_are_an_error_that_names_both(tmp_path: Path, executor: str) -> None:
    block = Parallel("p", Step("one", s.replace), Step("between", s.write), Step("two", s.replace, params={"value": 2}))
    result = run(tmp_path, block, executor=executor, state=CONFIG | ALL)
    assert result.status == "failed"
    assert "'one' and 'two' of 'p' both replaced the state 'config'" in str(result.failures[0])


def test_blocks_at_once_clash_too_and_on_error_continue_does_not_hide_it() -> None:
    block = Parallel(
        "p",
        Sequence("left", Step("a", s.replace)),
        Sequence("right", Step("b", s.replace)),
        on_error="continue",
        retries=2,
    )
    result = fake(block, Step("after", s.read), state=CONFIG)
    assert result.status == "failed"
    assert "'left' and 'right' of 'p'" in str(result.failures[0])


def test_graph_members_that_wait_for_each_other_may_replace() -> None:
    good = Graph("g", Step("b", s.replace, params={"value": 2}, depends_on="a"), Step("a", s.replace))
    assert fake(good, state=CONFIG).state["config"] == 2
    bad = Graph("g", Step("a", s.replace), Step("b", s.replace), Step("c", s.read, depends_on=["a", "b"]))
    result = fake(bad, state=CONFIG)
    assert result.status == "failed"
    assert "c" not in result.outputs


@pytest.mark.parametrize("body", [{}, {"steps": [Step("x", s.replace, inputs=["item"])]}])
def test_two_items_that_replace_a_key_are_an_error(body: dict[str, Any]) -> None:
    result = fake(Map("m", *([] if body else [s.replace]), items=range(3), **body), state=CONFIG)
    assert result.status == "failed"
    assert "items 0 and 1 of 'm' both replaced the state 'config'" in str(result.failures[0])


def test_one_item_may_replace() -> None:
    assert fake(Map("m", s.replace, items=[8]), state=CONFIG).state["config"] == 8


# -- resume ------------------------------------------------------------------------------------------------------------


def test_a_resume_in_the_middle_gives_the_same_state(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    steps = [
        Map("m", s.write, items=range(30)),
        Parallel(
            "p", Step("w", s.write, params={"key": 40}), Step("bad", s.once_bad, params={"marker": str(marker), "key": 41}),
            on_error="finish",
        ),
        Step("after", s.read),
    ]  # fmt: skip
    pipeline = Pipeline("t", steps=steps, state=ALL)
    first = pipeline.run(executor="processes", workers=2, state_dir=tmp_path / "state")
    assert first.status == "failed"
    again = pipeline.resume(state_dir=tmp_path / "state")
    assert again.status == "succeeded"
    assert again.state["results"] == [*range(30), 40, 41] == again.outputs["after"]["results"]
    assert again.steps["m"].attempts == 0 == again.steps["p/w"].attempts
    assert again.steps["p/bad"].attempts == 1


def test_a_step_that_changed_makes_those_that_may_see_its_changes_run_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def pipeline(key: int) -> Pipeline:
        bad = Step("bad", s.once_bad, params={"marker": str(marker)})
        beside = Parallel("p", Step("x", s.write, params={"key": key}), Step("y", s.read))
        return Pipeline("t", steps=[beside, Step("seen", s.read), bad], state=ALL)

    assert pipeline(1).run(executor="inline", state_dir=tmp_path / "state").status == "failed"
    again = pipeline(2).resume(state_dir=tmp_path / "state")
    assert again.outputs["seen"]["results"] == [2]
    assert again.steps["p/y"].attempts == 0
    assert again.state["results"] == [2, 5]


# -- bad input ---------------------------------------------------------------------------------------------------------


def problems(text: str) -> str:
    with pytest.raises(PipelineError) as caught:
        load_text(text, "p.yaml", ".")
    return "\n".join(map(str, caught.value.problems))


def test_a_misspelt_reducer_is_told_with_its_place() -> None:
    text = "name: p\nstate:\n  results: apend\n  totals: {reducer: append, initial: 3}\nsteps: [{function: 'm:f'}]\n"
    told = problems(text)
    assert "p.yaml:3:12: state.results: unknown reducer 'apend'; did you mean 'append'?" in told.replace("  ", " ")
    assert "p.yaml:4:" in told
    assert "begins with a list, not int" in told


def test_a_step_that_names_an_unknown_key_or_the_wrong_verb_is_told_what_to_write() -> None:
    state = State(ALL_SPECS)
    with pytest.raises(StateError, match="did you mean 'results'"):
        state.append("result", 1)
    with pytest.raises(StateError, match=r"step\.state\.add\('totals', amount\)"):
        state.append("totals", 1)
    with pytest.raises(TypeError, match="for one text"):
        state.union("seen", "abc")


ALL_SPECS = {key: Reducer(name) for key, name in ALL.items()}


def test_update_writes_one_change_of_each_key() -> None:
    state = State({**ALL_SPECS, "config": Reducer("replace")})
    state.update({"results": 1, "totals": 2}, seen=[3], config=None)
    state.update(totals=5)
    assert state.take() == {"results": [(1,)], "totals": [(7,)], "seen": [({3},)], "config": [(None,)]}
    assert state.take() == {}


def test_lists_in_lists_are_changes_in_order_and_deep_ones_need_no_stack() -> None:
    assert list(leaves([[(1,)], [], [[(2,), ([3],)]]])) == [(1,), (2,), ([3],)]
    deep: Any = [(0,)]
    for _ in range(100_000):
        deep = [deep]
    assert fold("x", Reducer("add"), leaves(deep), lambda f: f) == 0


def test_a_file_used_as_a_step_has_a_state_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "in.yaml").write_text(
        "name: inner\nstate: {results: append, totals: add, seen: union, tree: merge}\nsteps:\n"
        "  - {name: w, function: 'state_steps:write', params: {key: 3}}\n  - {name: r, function: 'state_steps:read'}\n"
    )
    (tmp_path / "out.yaml").write_text(
        "name: outer\nstate: {results: append, totals: add, seen: union, tree: merge}\nsteps:\n"
        "  - {name: w, function: 'state_steps:write', params: {key: 1}}\n"
        "  - {name: sub, type: pipeline, file: in.yaml, outputs: [r]}\n"
    )
    result = load(tmp_path / "out.yaml").run(executor="inline", state_dir=tmp_path / "state")
    assert result.status == "succeeded", result.failures
    assert result.outputs["r"]["results"] == [3]
    assert result.state["results"] == [1]


def test_a_change_of_a_state_that_nobody_declared_is_an_error_and_a_default_can_be_read(tmp_path: Path) -> None:
    def write() -> None:
        step.state.append("lost", 1)

    def read() -> int:
        return int(step.state.get("lost", 7))

    assert Pipeline("p", steps=[Step("read", read)]).run(executor="inline", state_dir=tmp_path).outputs["read"] == 7
    result = Pipeline("q", steps=[Step("write", write)]).run(executor="inline", state_dir=tmp_path)
    assert result.status == "failed"
    assert "the pipeline has no state 'lost'" in str(result.failures[0].failure)
