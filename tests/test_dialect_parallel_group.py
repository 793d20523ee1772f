"""Content pipelines: the shapes of a group, strategies, splitting and merging, the way of data, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from foreign import Foreign, own, plain_steps, timed

from procflow.dialects import runtime
from procflow.testing import run_fake


def speak(data: Any, model: str = "", **given: Any) -> dict[str, Any]:
    return {"of": data, "model": model, **given}


def boom(data: Any, **given: Any) -> None:
    raise ValueError("boom")


def double(items: list[int], **given: Any) -> list[int]:
    return [2 * item for item in items]


def quality(value: dict[str, Any]) -> int:
    return int(value["rate"])


BIND = {
    "text_to_speech": speak,
    "text_to_speech/broken": boom,
    "prompt_generation": speak,
    "custom": speak,
    "double": double,
    "text_to_image": speak,
    "best_quality": quality,
}


def step(kind: str = "custom", model: str | None = "m", **keys: Any) -> dict[str, Any]:
    return {"type": kind, **({"model": model} if model is not None else {}), **keys}


def content(*steps: Any, **keys: Any) -> Foreign:
    return Foreign({"name": "c", "prompt": "hi", "steps": [*steps], **keys}, BIND, "parallel-group")


def members(*models: str) -> list[dict[str, Any]]:
    return [step("text_to_speech", model, name=model, params={"rate": i}) for i, model in enumerate(models)]


def shapes(strategy: str, *models: str) -> list[dict[str, Any]]:
    """One group, written in the four ways."""
    platform = [
        {"step_type": "text_to_speech", "name": m, "config": {"model": m, "rate": i}} for i, m in enumerate(models)
    ]
    return [
        step(
            "parallel_group",
            "parallel",
            name="g",
            params={"max_workers": 2, "merge_strategy": strategy, "parallel_steps": members(*models)},
        ),
        step("parallel_group", None, name="g", max_workers=2, merge_strategy=strategy, steps=members(*models)),
        step("parallel_group", None, name="g", max_workers=2, merge_strategy=strategy.upper(), steps=members(*models)),
        {
            "step_type": "parallel_group",
            "name": "g",
            "parallel_config": {"merge_strategy": strategy, "max_workers": 2},
            "steps": platform,
        },
    ]


def result(model: str, rate: int) -> dict[str, Any]:
    return {"of": "hi", "model": model, "rate": rate}


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", range(4))
def test_the_four_shapes_of_a_group_mean_one_thing(shape: int) -> None:
    found = content(shapes("best_quality", "a", "b", "c")[shape])
    block = plain_steps(found.plain)["g"]
    assert (block["type"], block["max_parallelism"], block["merge"], block["output"]) == (
        "parallel",
        2,
        "best_quality",
        "g",
    )
    assert found.outputs()["g"] == result("c", 2)


@pytest.mark.parametrize(
    ("strategy", "value"),
    [
        ("first_success", result("a", 0)),
        ("first_only", result("a", 0)),
        ("latest_only", result("b", 1)),
        ("best_quality", result("b", 1)),
    ],
)
def test_a_strategy_chooses_by_the_order_of_the_file_after_all_have_ended(strategy: str, value: Any) -> None:
    for slow in ("a", "b"):
        found = content(shapes(strategy, "a", "b")[1])
        assert found.run(timed({slow: 5})).outputs["g"] == value


@pytest.mark.parametrize("strategy", ["first_success", "latest_only", "collect_all"])
def test_a_group_succeeds_if_one_of_its_members_does(strategy: str) -> None:
    found = content(shapes(strategy, "broken", "b", "broken_too")[1])
    outcome = found.run(timed({"b": 5}))
    assert outcome.status == "partial"
    value = outcome.outputs["g"]
    if strategy == "collect_all":
        facts = {"step_type": "text_to_speech"}
        assert value == [
            {"step_index": 1, **facts, "model": "b", "result": result("b", 1)},
            {"step_index": 2, **facts, "model": "broken_too", "result": result("broken_too", 2)},
        ]
    assert content(shapes(strategy, "broken")[1]).run().status == "failed"


def test_with_fail_fast_the_first_failure_stops_the_group() -> None:
    group = {**shapes("collect_all", "broken", "slow")[1], "fail_fast": True}
    outcome = content(group).run(timed({"broken": 1, "slow": 50}))
    assert outcome.status == "failed"
    assert outcome.metrics.wall_s < 50


def test_merge_outputs_combines_by_type() -> None:
    group = step(
        "parallel_group", None, name="g", merge_strategy="merge_outputs", steps=[step("double"), step("double")]
    )
    assert content(group, prompt=[1, 2]).outputs()["g"] == [2, 4, 2, 4]


def test_a_score_may_stand_beside_best_quality() -> None:
    group = {**shapes("best_quality", "a", "b")[1], "score": "rate"}
    assert plain_steps(content(group).plain)["g"]["score"] == "rate"
    assert content(group).outputs()["g"] == result("b", 1)


def test_groups_nest_and_inner_results_are_one_member() -> None:
    inner = {**shapes("collect_all", "a", "b")[1], "name": "inner"}
    outer = step("parallel_group", None, name="outer", merge_strategy="first_success", steps=[inner, step(name="x")])
    assert [row["model"] for row in content(outer).outputs()["outer"]] == ["a", "b"]


def test_it_takes_as_long_as_the_same_pipeline_in_our_own_language() -> None:
    seconds = {"first": 1.0, "a": 3.0, "b": 5.0, "last": 1.0}
    found = content(step(name="first"), shapes("first_success", "a", "b")[1], step(name="last"))
    ours = own(
        """
        name: ours
        steps:
          - {name: first, function: builtins:dict}
          - {type: parallel, steps: [{name: a, function: builtins:dict}, {name: b, function: builtins:dict}]}
          - {name: last, function: builtins:dict}
        """
    )
    assert (
        found.run(timed(seconds)).metrics.wall_s == run_fake(ours, script=timed(seconds), slots=8).metrics.wall_s == 7.0
    )


# -- the way of the data -----------------------------------------------------------------------------------------------


def test_each_step_takes_what_the_one_before_it_made() -> None:
    found = content(step(name="a"), step(name="b"), step(name="c", input_from="a"))
    outputs = found.outputs()
    assert outputs["b"]["of"] == outputs["a"]
    assert outputs["c"]["of"] == outputs["a"]
    assert found.plain["show"] == ["c"]


def test_a_disabled_step_is_left_out_and_the_data_goes_past_it() -> None:
    found = content(step(name="a"), step(name="b", enabled=False), step(name="c"))
    assert found.outputs()["c"]["of"] == found.outputs()["a"]
    assert "steps[1]: disabled" in found.notes


def test_a_prompt_is_made_beside_the_data() -> None:
    found = content(
        step("prompt_generation", name="p"),
        step(name="a", params={"hint": "as {{generated_prompt}}, of {{input}}"}),
    )
    assert found.outputs()["a"]["of"] == "hi"
    assert found.outputs()["a"]["hint"].endswith("of hi")


def test_templates_name_steps_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {
        "x": "{{step_a.output.model}}",
        "y": "{{ env.HOME_OF_TEST }}",
        "z": "${left} alone",
        "d": {"k": ["{{input}}"]},
    }
    plain = content(step(name="a"), step(name="b", params=params)).plain
    assert plain["steps"][1]["params"] == {
        "model": "m",
        "x": "${a.model}",
        "y": "${env.HOME_OF_TEST}",
        "z": "$${left} alone",
        "d": {"k": ["${a}"]},
    }


def test_a_folder_for_outputs_is_a_parameter_that_functions_get() -> None:
    found = content(step(name="a", output_filename="x.png"), settings={"output_dir": "out"})
    assert found.outputs()["a"] == {"of": "hi", "model": "m", "output_filename": "x.png", "output_dir": "out"}
    assert found.outputs(output_dir="other")["a"]["output_dir"] == "other"


def test_for_each_is_a_map() -> None:
    found = content(step("double", name="a"), step(name="b", for_each="{{step_a.output}}"), prompt=[1, 2])
    assert [row["of"] for row in found.outputs()["b"]] == [2, 4]


def test_an_image_is_what_the_first_step_takes() -> None:
    found = Foreign(
        {"name": "c", "prompt": "x", "input_image": "a.png", "steps": [step("image_to_image")]},
        {"image_to_image": speak},
    )
    assert found.outputs()["image_to_image"]["of"] == "a.png"
    assert "prompt: the first step takes input_image; left out" in found.notes


def test_without_an_input_it_is_a_parameter_to_give() -> None:
    found = Foreign({"name": "c", "steps": [step("text_to_image")]}, BIND)
    assert found.outputs(input="yes")["text_to_image"]["of"] == "yes"


# -- splitting and merging ---------------------------------------------------------------------------------------------


def test_a_split_before_a_group_gives_each_member_a_part_and_a_merge_joins_them() -> None:
    group = step("parallel_group", None, steps=[step("double"), step("double")])
    found = content(step("split_input", None), group, step("merge_results", None, name="all"), prompt=[1, 2, 3])
    assert found.outputs()["all"] == [2, 4, 6]
    assert plain_steps(found.plain)["split_input"]["into"] == 2


def test_a_split_elsewhere_gives_the_list_of_parts() -> None:
    found = content(step("split_input", None, strategy="ROUND_ROBIN", into=2), step(name="a"), prompt=[1, 2, 3])
    assert found.outputs()["a"]["of"] == [[1, 3], [2]]


@pytest.mark.parametrize(
    ("strategy", "value"),
    [
        ("collect_all", [{"v": 1}, {"v": 3}]),
        ("first_success", {"v": 1}),
        ("latest_only", {"v": 3}),
        ("merge_outputs", {"v": 4}),
    ],
)
def test_results_are_merged_by_the_strategies_of_groups(strategy: str, value: Any) -> None:
    rows = [{"v": 1}, {"v": 3}]
    records = [{"step_index": i, "step_type": "x", "model": None, "result": row} for i, row in enumerate(rows)]
    found = content(step("merge_results", None, name="all", merge_strategy=strategy), prompt=rows)
    assert found.outputs()["all"] == value
    assert found.outputs(input=records)["all"] == value


def test_the_best_of_results_is_by_score() -> None:
    found = content(
        step("merge_results", None, name="all", merge_strategy="best_quality"), prompt=[{"rate": 1}, {"rate": 9}]
    )
    assert found.outputs()["all"] == {"rate": 9}
    with pytest.raises(runtime.ConvertedStepError, match="results to merge are a list, not a value of type str"):
        runtime.merged("text", "collect_all")


@pytest.mark.parametrize(
    ("strategy", "value"), [("merge_outputs", [2, 4, 6, 8, 10]), ("collect_all", [[2, 4], [6, 8], [10]])]
)
def test_batches_are_cut_mapped_and_merged(strategy: str, value: Any) -> None:
    batch = step(
        "batch_process", None, name="b", batch_size=2, max_workers=2, merge_strategy=strategy, step=step("double")
    )
    found = content(batch, prompt=[1, 2, 3, 4, 5])
    assert found.outputs()["b"] == value
    assert found.outputs(input=[])["b"] == []


def test_a_batch_may_go_through_several_steps() -> None:
    batch = step(
        "batch_process", None, name="b", batch_size=2, steps=[step("double", name="x"), step("double", name="y")]
    )
    assert content(batch, prompt=[1, 2, 3]).outputs()["b"] == [4, 8, 12]


def test_batches_keep_the_type_of_what_is_cut() -> None:
    assert runtime.batches("abcde", 2) == ["ab", "cd", "e"]
    assert runtime.batches({"a": 1, "b": 2, "c": 3}, 2) == [{"a": 1, "b": 2}, {"c": 3}]


# -- settings and what is refused --------------------------------------------------------------------------------------


def test_settings_become_limits_and_unknown_keys_are_noted() -> None:
    found = content(
        step(),
        settings={"max_workers": 2, "timeout": 60, "log_level": "INFO"},
        save_intermediates=True,
        estimates={"x": 1},
    )
    assert found.plain["limits"] == {"workers": 2, "timeout": "60s"}
    assert found.plain["keep"] == ["custom"]
    assert "estimates: not a key of this format" in found.notes
    assert "settings.log_level: procflow has its own way" in found.notes


def test_one_by_one_holds_for_groups() -> None:
    found = content(shapes("first_success", "a", "b")[1], config={"parallel": False})
    assert plain_steps(found.plain)["g"]["max_parallelism"] == 1


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"steps": [step(model=None)]}, "steps[0].model: is missing"),
        (
            {"steps": [step(name="a"), step(name="a")]},
            "steps[1].name: 'a' names a step already, and both would write its output (the other is steps[0]: rename one)",
        ),
        (
            {"steps": [shapes("first_success", "a")[1], shapes("first_success", "b")[1]]},
            "steps[1].name: 'g' names a step already",
        ),
        (
            {"steps": [{**shapes("collect_all", "a")[1], "merge_strategy": "BEST"}]},
            'steps[0].merge_strategy: "BEST" is not known',
        ),
        ({"steps": [step("parallel_group", None, steps=[])]}, "steps[0].steps: has 0 of at least 1 members"),
        (
            {"steps": [step("parallel_group", "veo", steps=[step()])]},
            "steps[0].model: the model of a group is parallel",
        ),
        (
            {"steps": [step("text_to_image"), step("text_to_speech")]},
            "steps[1].type: text_to_speech takes text, and the step before gives an image",
        ),
        ({"steps": [step(retry_cout=1)]}, "steps[0].retry_cout: unknown key (did you mean 'retry_count'?)"),
        ({"steps": [step(input_from="x")]}, "steps[0].input_from: no step before is named 'x'"),
        ({"steps": [step(params={"x": "{{random}}"})]}, "steps[0].params.x: {{random}} would give another result"),
        ({"steps": [step(params={"x": "{{user.name}}"})]}, "steps[0].params.x: {{user.name}} means nothing here"),
        ({"steps": [step(params={"model": "n"})]}, "steps[0].params.model: the step names another model"),
        ({"steps": [step("split_input", None, into=2, retry_count=3)]}, "steps[0].retry_count: unknown key"),
        ({"steps": [step("split_input", None)]}, "steps[0]: into how many parts?"),
        (
            {"steps": [step("split_input", None, into=3), step("parallel_group", None, steps=[step(), step()])]},
            "steps[1].steps: 2 members share 3 parts",
        ),
        ({"steps": [step()], "settings": {"max_cost": 3}}, "settings.max_cost: procflow can't do this"),
    ],
)
def test_what_is_wrong_is_told_with_dialect_path_and_place(document: Any, problem: str) -> None:
    found = Foreign({"name": "c", "prompt": "hi", **document}, BIND, "parallel-group").problems()
    matching = [line for line in found if problem in line]
    assert len(matching) == 1, found
    assert matching[0].startswith("foreign.json:")
    assert ": parallel-group: steps[" in matching[0] or ": parallel-group: settings" in matching[0]


def test_members_of_a_group_cannot_see_each_other() -> None:
    group = step("parallel_group", None, steps=[step(name="a"), step(name="b", params={"x": "{{step_a.output}}"})])
    assert "{{step_a.output}} means nothing here" in content(group).problems()[0]
