"""Skills and rest steps, against a server on this machine that also answers 429 and 500, slowly and garbled."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import servers

from procflow import Pipeline, PipelineError, Step, StepOutput, step
from procflow.compiler import compile_pipeline
from procflow.graph import TaskUnit
from procflow.launch import prepare
from procflow.result import RunResult
from procflow.skills import llm

pytest.importorskip("httpx2", reason="needs the extra http")


def use(skill: str, name: str = "s", **keys: Any) -> dict[str, Any]:
    return {"type": "skill", "name": name, "skill": skill, **keys}


def run(folder: Path, skills: Mapping[str, Any], *steps: Any, **keys: Any) -> RunResult:
    options = {k: keys.pop(k) for k in ("executor", "workers") if k in keys}
    return Pipeline("p", steps=steps, skills=skills, **keys).run(state_dir=folder / "state", **options)


def outputs(folder: Path, skills: Mapping[str, Any], *steps: Any, **keys: Any) -> dict[str, Any]:
    result = run(folder, skills, *steps, **keys)
    assert result.status == "succeeded", (result.reason, result.failures)
    return dict(result.outputs)


def failure(folder: Path, skills: Mapping[str, Any], *steps: Any, **keys: Any) -> str:
    result = run(folder, skills, *steps, **keys)
    assert result.status == "failed"
    return str(next(iter(result.failures))).partition(": error: ")[2]


def refused(skills: Mapping[str, Any], *steps: Any, **keys: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        compile_pipeline(Pipeline("p", steps=steps, skills=skills, **keys))
    return str(caught.value)


# -- functions -------------------------------------------------------------------------------------------------


def stats(numbers: list[float], scale: float = 1.0) -> dict[str, Any]:
    return {"total": sum(numbers) * scale, "count": len(numbers), "extra": 1}


def badly(numbers: Any) -> Any:
    return {"total": "many", "cuont": 1}


def costly(numbers: Any) -> StepOutput:
    step.metric("seen", len(numbers))
    return StepOutput({"total": 1}, cost=0.5)


STATS = {
    "kind": "python", "function": stats, "requires": {"numbers": "array"}, "produces": {"total": "number", "count": "integer"},
}  # fmt: skip


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_a_skill_publishes_what_it_produces(tmp_path: Path, executor: str) -> None:
    found = outputs(
        tmp_path, {"stats": STATS},
        Step("numbers", lambda: [1, 2, 3]), use("stats"), Step("check", lambda a, b: (a, b), inputs=["total", "count"]),
        use("stats", "again", output="whole", inputs={"numbers": "numbers"}, params={"scale": 2}),
        use("stats", "third", outputs=["count"], params={"numbers": [1, 2, 3, 4]}),
        executor=executor, workers=1,
    )  # fmt: skip
    assert found["check"] == (6.0, 3)
    assert found["whole"] == {"total": 12.0, "count": 3}
    assert (found["total"], found["count"]) == (6.0, 4)
    assert "extra" not in found


def test_costs_and_metrics_of_a_skill_are_kept(tmp_path: Path) -> None:
    skill = {"kind": "python", "function": costly, "requires": ["numbers"], "produces": ["total"]}
    result = run(tmp_path, {"s": skill}, use("s", params={"numbers": [1, 2]}), executor="inline")
    assert result.outputs["total"] == 1
    assert (result.steps["s"].cost, result.steps["s"].metrics) == (0.5, {"seen": 2.0})


def test_what_a_skill_needs_and_gives_is_checked_before_the_run() -> None:
    assert "there is no skill 'stat'; did you mean 'stats'?" in refused({"stats": STATS}, use("stat")).replace(
        " (did", "; did"
    ).replace("?)", "?")
    assert "{numbers}: no step that runs before this one publishes 'numbers'" in refused({"stats": STATS}, use("stats"))
    assert "skill 'stats' produces no 'totl' (did you mean 'total'?)" in refused(
        {"stats": STATS}, use("stats", params={"numbers": []}, outputs=["totl"])
    )
    reader = Step("r", len, inputs=["cuont"])
    assert "'cuont' (did you mean 'count'?)" in refused({"stats": STATS}, use("stats", params={"numbers": []}), reader)
    llm_skill = {**LLM, "requires": ["text"], "prompt": "{txt}"}
    assert "{txt} is not among requires (did you mean 'text'?)" in refused(
        {"s": llm_skill}, use("s", params={"text": "x"})
    )
    assert "'x' is not used" in refused({"s": LLM}, use("s", params={"text": "t", "x": 1}))
    with pytest.raises(PipelineError, match="a skill of kind rest needs url"):
        Pipeline("p", steps=[len], skills={"s": {"kind": "rest"}})
    with pytest.raises(PipelineError, match="unknown type 'strin'; did you mean 'string'"):
        Pipeline("p", steps=[len], skills={"s": {**STATS, "produces": {"a": "strin"}}})


def test_a_skill_in_a_graph_waits_for_what_it_requires(tmp_path: Path) -> None:
    found = outputs(
        tmp_path, {"stats": STATS}, use("stats"), Step("numbers", lambda: [5]), type="graph", executor="inline"
    )
    assert found["total"] == 5


def test_values_of_another_type_are_refused_before_and_after_the_call(tmp_path: Path) -> None:
    message = failure(tmp_path, {"s": STATS}, use("s", params={"numbers": "text"}), executor="inline")
    assert message == "InputError: skill 's' requires numbers: expected array, got str ('text')"
    bad = {**STATS, "function": badly}
    message = failure(tmp_path, {"s": bad}, use("s", params={"numbers": []}), executor="inline")
    assert message.startswith("AnswerError: skill 's' answered something else than it produces: ")
    assert "total: expected number, got str ('many')" in message
    assert "count is missing; did it mean 'cuont'?" in message
    nothing = {"kind": "python", "function": print, "produces": ["a"]}
    assert "answered nothing, not a mapping with a" in failure(tmp_path, {"s": nothing}, use("s"), executor="inline")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with skills."""
    (tmp_path / "pf_skills_pkg.py").write_text(
        "def double(number):\n    return {'twice': 2 * number}\ndouble.requires = {'number': 'integer'}\n"
        "double.produces = {'twice': 'integer'}\n"
        "HALF = {'kind': 'python', 'function': 'pf_skills_pkg:half', 'produces': ['half']}\n"
        "def half(number):\n    return {'half': number / 2}\nNEITHER = 3\n"
    )
    about = tmp_path / "pf_skills_pkg-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pf-skills-pkg\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[procflow.skills]\ndouble = pf_skills_pkg:double\nhalf = pf_skills_pkg:HALF\nneither = pf_skills_pkg:NEITHER\n"
        "broken = pf_skills_pkg:absent\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("pf_skills_pkg", None)


def test_installed_packages_bring_skills(tmp_path: Path, package: Path) -> None:
    steps = [use("double", params={"number": 4}), use("half", "h", params={"number": "${twice}"})]
    found = outputs(tmp_path, {}, *steps, executor="inline")
    assert (found["twice"], found["half"]) == (8, 4.0)
    for name, words in (
        ("neither", "is of type int, neither a function nor a mapping"),
        ("broken", "loading pf_skills_pkg:absent failed"),
        ("dubble", "there is no skill 'dubble' (did you mean 'double'?)"),
    ):
        with pytest.raises(PipelineError) as caught:
            prepare(Pipeline("p", steps=[use(name)]))
        assert words in str(caught.value)


# -- language models -------------------------------------------------------------------------------------------

LLM: dict[str, Any] = {
    "kind": "llm", "base_url": "http://x/v1", "model": "small", "system": "You are {{terse}}.",
    "prompt": 'Rate {text} as {"a": 1}.',
    "produces": {"summary": "string", "score": "number"},
}  # fmt: skip


def chat(content: Any, tokens: tuple[int, int] = (1000, 500), **message: Any) -> dict[str, Any]:
    content = content if isinstance(content, str) or content is None else json.dumps(content)
    finish = message.pop("finish", "stop")
    return {
        "choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]},
    }


@pytest.fixture
def model(web: servers.Web, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A skill whose service is the test's server."""
    monkeypatch.setenv("PF_LLM_KEY", "sk-canary-4711")
    llm._in_words.clear()
    return {
        **LLM, "base_url": f"{web.url}/v1", "api_key": "${env.PF_LLM_KEY}", "options": {"temperature": 0},
        "prices": {"input": 2.0, "output": 10.0},
    }  # fmt: skip


CHAT = "POST /v1/chat/completions"
GOOD = {"summary": "fine", "score": 0.5}
TEXT = use("s", params={"text": "{score} ${env.HOME}"})


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_a_model_is_asked_by_schema_and_its_answer_published(
    tmp_path: Path, web: servers.Web, model: dict[str, Any], executor: str
) -> None:
    web.answer(CHAT, chat(GOOD))
    result = run(tmp_path, {"rate": model}, use("rate", params={"text": "{score} it's"}), executor=executor)
    assert dict(result.outputs) == GOOD
    (asked,) = web.asked
    assert asked["headers"]["authorization"] == "Bearer sk-canary-4711"
    body = asked["body"]
    assert body["messages"] == [
        {"role": "system", "content": "You are {terse}."}, {"role": "user", "content": 'Rate {score} it\'s as {"a": 1}.'},
    ]  # fmt: skip
    assert (body["model"], body["temperature"]) == ("small", 0)
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"] == {"summary": {"type": "string"}, "score": {"type": "number"}}
    record = result.steps["s"]
    assert record.metrics == {"input_tokens": 1000, "output_tokens": 500}
    assert record.cost == pytest.approx(0.007)


def test_a_skill_without_outputs_answers_with_text(tmp_path: Path, web: servers.Web, model: dict[str, Any]) -> None:
    del model["produces"]
    web.answer(CHAT, chat("just text"))
    assert outputs(tmp_path, {"m": model}, use("m", params={"text": "x"}))["text"] == "just text"
    assert "response_format" not in web.asked[0]["body"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_service_is_asked_again_after_the_pause_it_asks_for(
    tmp_path: Path, web: servers.Web, model: dict[str, Any], status: int
) -> None:
    web.answer(CHAT, {"error": "busy"}, status=status, Retry_After="0.4")
    web.answer(CHAT, chat(GOOD))
    result = run(tmp_path, {"m": model}, use("m", params={"text": "x"}, retry={"retries": 2, "delay": 0}))
    assert (result.status, result.steps["s"].attempts) == ("succeeded", 2)
    first, second = web.asked
    assert second["at"] - first["at"] >= 0.4


def test_models_are_tried_again_unless_the_file_says_how_often(
    tmp_path: Path, web: servers.Web, model: dict[str, Any]
) -> None:
    def retries(**keys: Any) -> tuple[int, frozenset[str]]:
        graph = compile_pipeline(Pipeline("p", steps=[use("m", params={"text": "x"}, **keys)], skills={"m": LLM}))
        unit = graph.root.members[0]
        assert isinstance(unit, TaskUnit)
        return unit.retry.retries, unit.retry.on

    assert retries() == (4, frozenset({"ServiceBusy"}))
    assert retries(retries=0)[0] == 0
    assert retries(retries=1) == (1, frozenset({"error", "timeout", "crash", "oom"}))
    web.answer(CHAT, {"error": "slow down, sk-canary-4711"}, status=429)
    message = failure(tmp_path, {"m": model}, use("m", params={"text": "x"}, retries=0))
    assert message.startswith(f"ServiceBusy: skill 'm' (small at {web.url}/v1/chat/completions) answered 429: ")
    assert "slow down, ***" in message


def test_a_service_without_schemas_is_asked_in_words(tmp_path: Path, web: servers.Web, model: dict[str, Any]) -> None:
    web.answer(CHAT, {"error": {"message": "unknown parameter: response_format"}}, status=400)
    web.answer(CHAT, chat('Sure!\n```json\n{"summary": "a } b", "score": 1, "more": 2}\n```\nBye.'))
    web.answer(CHAT, chat('The answer: {"summary": "second", "score": 2} as asked.'))
    steps = [use("m", "a", params={"text": "x"}), use("m", "b", output="b", params={"text": "x"})]
    found = outputs(tmp_path, {"m": model}, *steps, executor="threads")
    assert (found["summary"], found["score"]) == ("a } b", 1)
    assert found["b"] == {"summary": "second", "score": 2}
    asked = [request["body"] for request in web.asked]
    assert ["response_format" in body for body in asked] == [True, False, False]
    assert "JSON Schema" in asked[1]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"summary": 3, "score": 1}, "summary: expected string, got int (3)"),
        ({"summry": "x", "score": 1}, "summary is missing; did it mean 'summry'?"),
        ("I can't do that.", 'answered no JSON object: "I can\'t do that."'),
        ("[1, 2]", "answered no JSON object"),
        ('{"summary": "cut', "answered no JSON object"),
        ("", "answered nothing"),
        (None, "answered nothing"),
    ],
)
def test_another_answer_than_the_schema_is_told(
    tmp_path: Path, web: servers.Web, model: dict[str, Any], content: Any, words: str
) -> None:
    web.answer(CHAT, chat(content))
    result = run(tmp_path, {"m": model}, use("m", params={"text": "x"}), executor="threads")
    message = str(next(iter(result.failures)))
    assert "AnswerError: skill 'm'" in message
    assert words in message
    assert result.steps["s"].attempts == 1


def test_an_answer_out_of_schema_is_asked_for_again_where_the_step_says_so(
    tmp_path: Path, web: servers.Web, model: dict[str, Any]
) -> None:
    web.answer(CHAT, chat({"summary": 1}))
    web.answer(CHAT, chat(GOOD))
    again = use("m", params={"text": "x"}, retry={"retries": 1, "delay": 0, "on": "AnswerError"})
    assert outputs(tmp_path, {"m": model}, again)["summary"] == "fine"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"body": "<html>garbled"}, "the answer is not JSON"),
        ({"body": {"choices": []}}, "this is no chat completion"),
        ({"body": chat("x", finish="length")}, "the answer was cut off; raise max_tokens under options"),
        ({"body": chat(None, refusal="I won't")}, "refused: I won't"),
        ({"body": {"error": "bad key sk-canary-4711"}, "status": 401}, 'answered 401: \'{"error": "bad key ***"}\''),
        ({"body": chat(GOOD), "pause_s": 30}, "gave no answer within 0.3 s"),
        ({"body": chat(GOOD), "drip_s": 0.05}, "did not send its whole answer within 0.3 s"),
    ],
)
def test_a_service_that_misbehaves_is_one_clear_error(
    tmp_path: Path, web: servers.Web, model: dict[str, Any], answer: dict[str, Any], words: str
) -> None:
    web.answer(CHAT, **answer)
    skill = {**model, "timeout": 0.3 if "0.3 s" in words else 60}
    message = failure(tmp_path, {"m": skill}, use("m", params={"text": "x"}), executor="threads")
    assert "skill 'm' (small at http" in message
    assert words in message
    assert "canary" not in message


def test_the_key_of_a_service_is_kept_nowhere(tmp_path: Path, web: servers.Web, model: dict[str, Any]) -> None:
    web.answer(CHAT, {"error": "sk-canary-4711"}, status=400)
    for executor in ("threads", "processes"):
        failure(tmp_path, {"m": model}, use("m", params={"text": "x"}), executor=executor)
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert texts
    assert not any(b"canary" in text for text in texts)


def test_a_declared_schema_is_held(tmp_path: Path, web: servers.Web, model: dict[str, Any]) -> None:
    pytest.importorskip("jsonschema", reason="needs the extra http")
    model["produces"] = {"score": {"type": "integer", "minimum": 1, "maximum": 5}}
    web.answer(CHAT, chat({"score": 7}))
    message = failure(tmp_path, {"m": model}, use("m", params={"text": "x"}))
    assert "score: 7 is greater than the maximum of 5" in message
    assert web.asked[0]["body"]["response_format"]["json_schema"]["schema"]["properties"] == model["produces"]


# -- HTTP ------------------------------------------------------------------------------------------------------


def test_a_rest_skill_sends_what_it_requires(tmp_path: Path, web: servers.Web) -> None:
    web.answer("PUT /rows/a%2Fb", {"id": 7, "state": "ok", "more": 1})
    skill = {
        "kind": "rest", "url": f"{web.url}/rows/{{key}}", "method": "PUT", "headers": {"X-Run": "${run.id}", "X-Key": "{key}"},
        "json": {"rows": "{rows}", "note": "for {key}: {{key}}", "day": "${params.day}"},
        "requires": {"rows": "array", "key": "string"}, "produces": {"id": "integer", "state": "string"},
    }  # fmt: skip
    found = outputs(
        tmp_path, {"put": skill}, Step("rows", lambda: [{"a": 1}]), use("put", params={"key": "a/b"}),
        params={"day": "{rows}"},
    )  # fmt: skip
    assert (found["id"], found["state"]) == (7, "ok")
    (asked,) = web.asked
    assert asked["body"] == {"rows": [{"a": 1}], "note": "for a/b: {key}", "day": "{rows}"}
    assert asked["headers"]["x-key"] == "a/b"
    assert asked["headers"]["x-run"]


def test_a_rest_skill_that_is_down_or_answers_otherwise_is_told(tmp_path: Path, web: servers.Web) -> None:
    web.answer("GET /x", [1, 2])
    skills = {
        "x": {"kind": "rest", "url": f"{web.url}/x", "produces": ["a"]},
        "down": {"kind": "rest", "url": "http://127.0.0.1:9/"},
    }
    assert "answered a value of type list ([1, 2]), not a mapping with a" in failure(tmp_path, skills, use("x"))
    message = failure(tmp_path, skills, use("down", outputs="*"))
    assert message.startswith("SourceDown: skill 'down' (GET http://127.0.0.1:9/) can't be reached: ")


def rest(name: str, url: str, **keys: Any) -> dict[str, Any]:
    return {"type": "rest", "name": name, "url": url, **keys}


def test_a_rest_step_asks_and_tells(tmp_path: Path, web: servers.Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PF_HOOK", "hook/secret-4711")
    web.answer("GET /a", {"n": 1, "next": f"{web.url}/b"}, X_Next="2")
    web.answer("GET /b", "plain", Content_Type="text/plain")
    web.answer("POST /hook/secret-4711", "", status=204)
    web.answer("GET /gone", {"was": 1}, status=410)
    found = outputs(
        tmp_path, {},
        rest("a", f"{web.url}/a?q={{q}}&n=${{params.n}}", params={"q": "x y&z", }),
        rest("b", "${a.next}", **{"as": "text"}),
        rest("hook", f"{web.url}/${{secrets.hook}}",
             json={"text": "Run ${run.id}: {a.n} rows {{x}}", "rows": "${a}", "n": "{a.n}"}),
        rest("gone", f"{web.url}/gone", ok_codes=[410], **{"as": "response"}),
        rest("raw", f"{web.url}/b", **{"as": "bytes"}),
        params={"n": 3}, secrets={"hook": "${env.PF_HOOK}"},
    )  # fmt: skip
    assert found["a"]["n"] == 1
    assert (found["b"], found["hook"], found["raw"]) == ("plain", None, b"plain")
    assert (found["gone"]["status"], found["gone"]["body"]) == (410, {"was": 1})
    assert web.asked[0]["query"] == "q=x%20y%26z&n=3"
    (hook,) = (asked for asked in web.asked if asked["path"].startswith("/hook"))
    assert hook["body"]["text"].endswith(": 1 rows {x}")
    assert (hook["body"]["rows"]["n"], hook["body"]["n"]) == (1, 1)
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"secret-4711" in text for text in texts)


def test_what_can_not_be_sent_is_refused(tmp_path: Path, web: servers.Web) -> None:
    for keys, words in (
        ({"headers": {"X-A": "{v}"}, "params": {"v": "a\r\nX-Evil: 1"}}, "the header X-A would hold a line end"),
        ({"json": {"a": "{v}"}, "inputs": {"v": "thing"}}, "what is to be sent can't be JSON: a value of type object"),
        ({"url": f"{web.url}/{{v}}", "params": {"v": [1]}}, "a value in the URL is text or a number, not list"),
        ({"url": "nowhere/x"}, "the URL can't be used"),
    ):
        given = rest("r", f"{web.url}/x") | keys
        assert words in failure(tmp_path, {}, Step("thing", object), given, executor="inline")
    assert web.asked == []


def test_a_rest_step_with_a_timeout_is_stopped(tmp_path: Path, web: servers.Web) -> None:
    web.answer("GET /slow", {}, pause_s=60)
    result = run(tmp_path, {}, rest("slow", f"{web.url}/slow", timeout=1, kill_grace=0))
    assert result.status == "failed"
    assert "timeout" in str(next(iter(result.failures)))
