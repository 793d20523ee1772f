"""Secrets are used and never shown: not on disk, not in argv, not on the terminal, in none of their usual forms."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procflow import Map, Parallel, Pipeline, PipelineError, Shell, Step, secrets
from procflow.attempt import Failed, Failure, Lost, Progressed, Succeeded
from procflow.call import Lookup, StepCall, Text
from procflow.compiler import compile_pipeline
from procflow.failure import failure_from, item_text
from procflow.graph import TaskUnit, walk
from procflow.launch import prepare
from procflow.loader import load_text
from procflow.resuming.fingerprint import fingerprints
from procflow.resuming.needs import needs_of
from procflow.secrets import MASK, MaskedWaiter, Masker, known, masked_outcome
from procflow.storing.attempt_log import LogFolder, LogLine
from procflow.working.perform import perform

CANARY = "cAnaRy/7f3+9 b!e2'd4\"c6_a8~b0=#\\"
assert len(CANARY.encode()) == 32
DEADLINE_S = 60


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("CANARY", CANARY)
    monkeypatch.chdir(tmp_path)
    return CANARY


def traces(secret: str) -> list[bytes]:
    """Texts that give the secret away."""
    data = secret.encode()
    forms = [
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        data.hex(),
    ]
    forms += [base64.b64encode(data).decode(), base64.b64encode(b"user:" + data).decode()[8:-4]]
    return [form.encode() for form in forms]


def leaks(data: bytes, secret: str = CANARY) -> list[bytes]:
    return [form for form in traces(secret) if form in data]


def files_with(folder: Path, secret: str = CANARY) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert paths
    return [str(path) for path in paths if leaks(path.read_bytes(), secret)]


# -- the whole way -----------------------------------------------------------------------------------------------------

STEPS = """
import base64, json, logging, os, sys, urllib.parse
from pathlib import Path
from procflow import step

def show(token, url):
    assert token == os.environ["CANARY"] and url == f"https://u:{token}@host/x", "the step gets the real thing"
    print("plain", token, "and", url)
    print(json.dumps({"token": token}), repr(token))
    print(base64.b64encode(token.encode()).decode(), base64.b64encode(b"user:" + token.encode()).decode())
    print(urllib.parse.quote(token, safe=""), token.encode().hex(), flush=True)
    for char in token:
        os.write(1, char.encode())
    os.write(1, b"\\n")
    print("half of it", token[:20], file=sys.stderr)
    logging.getLogger("step").warning("logged %s", token)
    step.log.info("and %s", token)
    step.metric("size", 1.0)
    return len(token)

class Odd(Exception):
    def __init__(self, token, text):
        super().__init__(text)
        self.token = token

def fail(token):
    try:
        raise KeyError(token)
    except KeyError as error:
        raise Odd(token, f"can't use {token}" + "x" * 12000 + token) from error

def cut(token):
    raise ValueError("y" * (5000 - 16) + token + "z" * 9000)

def item(number, token):
    if number % 2:
        raise ValueError(f"{number}: {token}")
    return number

def spy(token):
    found = []
    for pid in Path("/proc").iterdir():
        if pid.name.isdigit():
            try:
                if token.encode() in (pid / "cmdline").read_bytes():
                    found.append(pid.name)
            except OSError:
                pass
    return found
"""
PIPELINE = """
name: canary
secrets: {token: "${env.CANARY}"}
params: {plain: {default: "${env.CANARY}"}, free: {default: none}}
limits: {workers: 2}
on_error: continue
show: [where]
steps:
  - name: show
    function: "steps:show"
    params: {token: "${secrets.token}", url: "https://u:${secrets.token}@host/x"}
    when: ${secrets.token} != 'no' and ${params.plain} == ${secrets.token}
  - {name: fail, function: "steps:fail", params: {token: "${params.plain}"}, on_error: continue}
  - {name: cut, function: "steps:cut", params: {token: "${env.CANARY}"}, on_error: continue}
  - type: map
    name: items
    items: {range: [6]}
    function: "steps:item"
    params: {token: "${secrets.token}"}
    tolerate: 50%
    merge: collect_all
  - type: shell
    name: command
    command: 'echo "$T"; head -c 3990 /dev/zero | tr "\\0" x >&2; echo "$T" >&2; exit 3'
    env: {T: "${secrets.token}"}
    on_error: continue
  - {type: shell, name: parsed, command: 'cat', stdin: "${secrets.token}", parse: json, on_error: continue}
  - {name: where, function: "steps:spy", params: {token: "${secrets.token}"}, output: where}
"""


@pytest.mark.parametrize("executor", ["processes", "threads"])
def test_a_canary_is_found_nowhere_after_a_run_that_prints_logs_raises_and_passes_it_on(
    tmp_path: Path, executor: str
) -> None:
    pipeline, steps = PIPELINE, STEPS
    if executor == "threads":
        # What is written straight to the descriptors of this very process is not captured there, so not masked.
        pipeline = PIPELINE.replace('echo "$T";', "").replace('echo "$T" >&2;', "")
        steps = STEPS.replace("os.write(1, ", "len(")
    (tmp_path / "steps.py").write_text(steps)
    (tmp_path / "canary.yaml").write_text(pipeline)
    command = [sys.executable, "-m", "procflow", "run", "canary.yaml", "--executor", executor, "-p", f"free={CANARY}"]
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "CANARY": CANARY, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert done.returncode == 3, shown.decode()
    assert leaks(shown) == []
    assert files_with(tmp_path / ".procflow") == []
    # The parent's own argv had it (-p), and nobody else's.
    (pid,) = json.loads(done.stdout.decode().replace("'", '"'))
    assert pid.isdigit()
    log = (tmp_path / ".procflow" / "runs").glob("*/logs/show/1.log")
    text = next(log).read_text()
    assert "plain *** and https://u:***@host/x" in text
    assert "logged ***" in text
    assert f"{CANARY[:20]}" in text, "half of a secret is not the secret"
    (failures,) = (tmp_path / ".procflow").glob("runs/*/failures.jsonl")
    records = [json.loads(line) for line in failures.read_text().splitlines()]
    assert {(r["label"], r["item"]) for r in records} >= {("fail", ""), ("cut", ""), ("items", "1"), ("command", "")}
    assert [r["message"] for r in records if r["item"] == "3"] == ["3: ***"]
    for record in records:
        assert CANARY[:12] not in json.dumps(record), "no cut leaves a part of it"


def test_a_returned_secret_is_a_value_like_others_and_that_is_said() -> None:
    assert "one that *returns* a secret" in (secrets.__doc__ or "")
    assert "values are kept on disk as they are" in " ".join((secrets.__doc__ or "").split())


def test_what_markers_and_collected_errors_hold_is_masked_too(canary: str, tmp_path: Path) -> None:
    def bad(token: str) -> None:
        raise ValueError(f"no {token}")

    def told(results: dict[str, Any]) -> list[str]:
        return [str(member) for member in results.values()]

    token = {"token": "${secrets.t}"}
    blocks = [
        Parallel("own", Step("a", bad, params=token), on_error="continue", merge=told, output="markers"),
        Parallel("all", Step("b", bad, params=token), on_error="continue", merge="collect_all", output="rest"),
    ]
    done = Pipeline("p", steps=blocks, secrets={"t": "${env.CANARY}"}).run(executor="inline")
    assert done.outputs["markers"] == ["a failed: ValueError: no ***"]
    assert [row["message"] for row in done.outputs["rest_errors"]] == ["no ***"]
    assert [str(f.failure) for f in done.failures] == ["ValueError: no ***"] * 2
    assert [f.exception for f in done.failures] == [None, None], "the exception itself holds it"
    assert files_with(tmp_path / ".procflow") == []


def test_events_and_log_lines_are_masked_for_every_observer(canary: str) -> None:
    class Watch:
        def __init__(self) -> None:
            self.seen: list[bytes] = []

        def handle(self, event: Any) -> None:
            self.seen.append(pickle.dumps(event))

        def line(self, line: LogLine) -> None:
            self.seen.append(line.text.encode())

    def noisy(token: str) -> None:
        print("it is", token)
        raise OSError(5, token, token)

    watch = Watch()
    steps = [Step("noisy", noisy, params={"token": "${secrets.t}"}), Step("last", len, params={"obj": ""})]
    pipeline = Pipeline("p", steps=steps, secrets={"t": "${env.CANARY}"})
    with pipeline.stream(executor="inline", observers=[watch]) as stream:
        events = list(stream)
    assert b"it is ***" in watch.seen
    assert leaks(b"\n".join(watch.seen)) == []
    assert leaks(pickle.dumps(events)) == []


def test_what_a_worker_printed_that_never_was_ready_is_masked(canary: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'loky' in ' '.join(sys.orig_argv):\n    print(os.environ['CANARY'], flush=True); os._exit(3)\n"
    )
    code = (
        "from procflow import Pipeline, Step\n"
        "p = Pipeline('p', steps=[Step('a', 'os:getpid')], secrets={'t': '${env.CANARY}'})\n"
        "p.run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=DEADLINE_S, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )  # fmt: skip
    assert done.returncode == 1
    assert b"printed" in done.stderr
    assert b"***" in done.stderr
    assert leaks(done.stderr + done.stdout) == []


def test_two_runs_at_once_in_one_process_both_know_their_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONE", "first-secret")
    monkeypatch.setenv("TWO", "second-secret")
    gate = threading.Barrier(2, timeout=DEADLINE_S)

    def say(token: str) -> str:
        gate.wait()
        print(token)
        return token[:5]

    found: dict[str, str] = {}

    def run(name: str) -> None:
        step = Step("say", say, params={"token": "${secrets.t}"})
        pipeline = Pipeline(f"p-{name}", steps=[step], secrets={"t": f"${{env.{name}}}"})
        found[name] = pipeline.run(executor="inline", state_dir=tmp_path / name).outputs["say"]

    threads = [threading.Thread(target=run, args=(name,)) for name in ("ONE", "TWO")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert found == {"ONE": "first", "TWO": "secon"}
    assert files_with(tmp_path, "first-secret") == files_with(tmp_path, "second-secret") == []
    assert secrets.masker() is None
    assert secrets.VARIABLE not in os.environ


# -- declared ----------------------------------------------------------------------------------------------------------

DECLARED = "name: p\nsecrets: {{t: '${{env.CANARY}}'}}\n{rest}"


def refused(text: str, environ: dict[str, str] | None = None) -> list[str]:
    loaded = load_text(text, "p.yaml", ".")
    with pytest.raises(PipelineError) as caught:
        compile_pipeline(loaded.pipeline, environ=environ if environ is not None else {"CANARY": CANARY})
    return [str(problem) for problem in loaded.source.locate(list(caught.value.problems))]


@pytest.mark.parametrize(
    "written",
    ["s3cr3t-value", "'${env.A}${env.B}'", "'${params.x}'", "42", "[a]", "'${env.A.b}'", "'x${env.A}'", "null"],
)
def test_a_constant_is_no_secret_and_is_not_repeated_in_the_message(written: str) -> None:
    with pytest.raises(PipelineError) as caught:
        load_text(f"name: p\nsecrets:\n  t: {written}\nsteps: [{{name: a, function: 'os:getpid'}}]", "p.yaml", ".")
    (problem,) = map(str, caught.value.problems)
    assert problem.startswith("p.yaml:3:")
    assert "write ${env.NAME}, and keep the value out of the file" in problem
    assert "s3cr3t" not in problem


@pytest.mark.parametrize("written", ["s3cr3t-value", "[s3cr3t-value]"])
def test_secrets_that_are_no_mapping_are_refused_without_repeating_them(written: str) -> None:
    with pytest.raises(PipelineError) as caught:
        load_text(f"name: p\nsecrets: {written}\nsteps: [{{name: a, function: 'os:getpid'}}]", "p.yaml", ".")
    assert "expected a mapping of names to ${env.NAME}" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "is not set (set it where"),
        ("", "is empty, so"),
        ("abc", "has fewer than 4"),
        ("  x   ", "has fewer than 4"),
    ],
)
def test_a_secret_that_is_missing_or_too_short_to_be_masked_is_refused(value: str | None, why: str) -> None:
    text = DECLARED.format(rest="steps: [{name: a, function: 'os:getpid'}]")
    environ = {} if value is None else {"CANARY": value}
    (problem,) = refused(text, environ)
    assert problem.startswith("p.yaml:2:14: secret 't': the environment variable CANARY")
    assert why in problem


@pytest.mark.parametrize(
    ("step", "key"),
    [
        ("{type: shell, name: a, command: 'curl ${secrets.t}'}", "command"),
        ("{type: shell, name: a, command: [curl, '${secrets.t}']}", "command"),
        ("{type: shell, name: a, command: [curl, 'x-${env.CANARY}']}", "command"),
        ("{type: shell, name: a, command: ls, cwd: '${secrets.t}'}", "cwd"),
        ("{type: map, name: a, items: '${secrets.t}', function: 'os:getpid'}", "items"),
        ("{type: map, name: a, items: {glob: '${secrets.t}'}, function: 'os:getpid'}", "items"),
        ("{type: merge, name: a, inputs: {x: '${secrets.t}'}}", "inputs"),
        ("{type: split, name: a, inputs: ['${secrets.t}'], into: 2}", "inputs"),
        ("{type: pipeline, name: a, file: '${secrets.t}.yaml'}", "file"),
    ],
)
def test_a_secret_is_refused_where_it_would_be_shown_or_kept(step: str, key: str) -> None:
    problems = refused(DECLARED.format(rest=f"steps: [{step}]"))
    assert any(f"a secret can't stand in {key}" in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("${secrets.token}", "there is no secret 'token' (declare it: secrets: {token: ${env.NAME}})"),
        ("${secrets.T}", "there is no secret 'T' (did you mean 't'?)"),
        ("${secrets}", "${secrets} alone means nothing (write ${secrets.NAME})"),
        ("${secrets.t.x}", "${secrets.t.x}: a secret is text, which has no parts"),
    ],
)
def test_a_reference_to_no_secret_says_why(reference: str, message: str) -> None:
    step = f"{{name: a, function: 'os:getpid', params: {{x: '{reference}'}}}}"
    text = DECLARED.format(rest=f"steps: [{step}]").replace("{t:", "{t: '${env.CANARY}', tt:")
    problems = refused(text)
    assert any(problem.endswith(message) for problem in problems) or "T" in reference, problems


def test_no_value_may_be_named_secrets() -> None:
    assert any("'secrets' can't be the name of a value" in p for p in refused(
        DECLARED.format(rest="steps: [{name: secrets, function: 'os:getpid'}]")
    ))  # fmt: skip


def test_a_mapping_that_holds_a_secret_does_not_go_into_a_text(canary: str, tmp_path: Path) -> None:
    (tmp_path / "in.yaml").write_text(
        "name: inner\nparams: {conf: {required: true}}\n"
        "steps: [{name: b, function: 'os:getpid', params: {x: 'conf ${params.conf}', y: '${params.conf.k}'}}]"
    )
    step = "{type: pipeline, name: a, file: in.yaml, params: {conf: {k: '${secrets.t}'}}}"
    (tmp_path / "p.yaml").write_text(DECLARED.format(rest=f"steps: [{step}]"))
    from procflow.loader import load_pipeline

    loaded = load_pipeline(tmp_path / "p.yaml")
    with pytest.raises(PipelineError, match="a list or mapping with a secret in it can't stand inside a text"):
        prepare(loaded.pipeline, source=loaded.source)


def test_a_file_in_a_file_has_secrets_of_its_own_and_those_it_is_given(canary: str, tmp_path: Path) -> None:
    os.environ["INNER"] = "inner-secret-value"
    try:
        (tmp_path / "in.yaml").write_text(
            "name: inner\nsecrets: {own: '${env.INNER}'}\nparams: {given: {required: true}, text: {required: true}}\n"
            "steps: [{name: b, function: 'mod_s:sizes', output: sizes,\n"
            "         params: {a: '${secrets.own}', b: '${params.given}', c: '<${params.text}>', d: '${env.CANARY}'}}]"
        )
        (tmp_path / "mod_s.py").write_text(
            "def sizes(a, b, c, d):\n    print(a, b, c, d)\n    return [len(a), len(b), len(c), len(d)]\n"
        )
        params = "{given: '${secrets.t}', text: 'x ${secrets.t}'}"
        step = f"{{type: pipeline, name: a, file: in.yaml, params: {params}, outputs: [sizes]}}"
        (tmp_path / "p.yaml").write_text(DECLARED.format(rest=f"steps: [{step}]"))
        from procflow import load

        done = load(tmp_path / "p.yaml").run(executor="inline")
        assert done.ok, done.failures
        assert done.outputs["sizes"] == [18, 32, 36, 32]
        (log,) = (tmp_path / ".procflow").glob("runs/*/logs/a__b/1.log")
        assert log.read_text() == "*** *** <x ***> ***\n"
        state = tmp_path / ".procflow"
        assert files_with(state) == files_with(state, "inner-secret-value") == []
    finally:
        del os.environ["INNER"]


# -- calls and fingerprints --------------------------------------------------------------------------------------------


def pipeline_with(**params: str) -> Pipeline:
    steps = [Step("a", "os:getpid", params=params, when="${secrets.t} != 'x'")]
    return Pipeline("p", steps=steps, secrets={"t": "${env.CANARY}"})


def test_a_compiled_call_names_the_variable_and_holds_no_value() -> None:
    graph = compile_pipeline(pipeline_with(x="${secrets.t}", y="a ${secrets.t} b"), environ={"CANARY": CANARY})
    (unit,) = [unit for unit in walk(graph.root) if isinstance(unit, TaskUnit)]
    assert unit.call.kwargs["x"] == Lookup("secrets", ("CANARY",))
    assert unit.call.kwargs["y"] == Text(("a ", Lookup("secrets", ("CANARY",)), " b"))
    assert unit.call.when == "${secrets.CANARY} != 'x'"
    assert unit.reads == ()
    assert leaks(pickle.dumps(unit.call)) == []
    assert graph.secrets == {"CANARY"}


def test_fingerprints_know_the_name_of_a_secret_and_not_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def prints(value: str, variable: str = "CANARY") -> list[str]:
        monkeypatch.setenv("CANARY", value)
        monkeypatch.setenv("OTHER", value)
        pipeline = Pipeline(
            "p", steps=[Step("a", "os:getpid", params={"x": "${secrets.t}"})], secrets={"t": f"${{env.{variable}}}"}
        )
        return [found.digest for found in fingerprints(needs_of(prepare(pipeline).graph)).by_key.values()]

    assert prints("one-value") == prints("other-value")
    assert prints("one-value") != prints("one-value", "OTHER")


def test_a_call_is_filled_from_the_secrets_of_the_process_it_runs_in() -> None:
    call = StepCall(
        "transform", "0", "a", len, args=(Text(("<", Lookup("secrets", ("CANARY",)), ">")),), outputs=("n",),
        when="${params.p} == 'value-of-it'", constants={"params": {"p": Lookup("secrets", ("CANARY",))}},
    )  # fmt: skip
    with known({"CANARY": "value-of-it"}):
        outcome = perform(call, {})
    assert isinstance(outcome, Succeeded)
    assert pickle.loads(outcome.outputs["n"].data) == 13  # type: ignore[attr-defined]
    outcome = perform(call, {})
    assert isinstance(outcome, Failed), "the secret is known no more"
    assert "CANARY" in outcome.failure.message


# -- masking -----------------------------------------------------------------------------------------------------------

TEXTS = st.text(min_size=4, max_size=24).filter(lambda s: len(s.strip()) >= 4 and "*" not in s and "\0" not in s)


@pytest.mark.parametrize(
    "form",
    [
        lambda s: s,
        lambda s: repr(s),
        lambda s: ascii(s),
        lambda s: repr(s.encode()),
        lambda s: json.dumps({"k": s}),
        lambda s: json.dumps([s], ensure_ascii=False),
        lambda s: quote(s),
        lambda s: quote(s, safe=""),
        lambda s: quote_plus(s),
        lambda s: quote(s, safe="").lower() if s.isascii() and s.lower() == s else quote(s, safe=""),
        lambda s: base64.b64encode(s.encode()).decode(),
        lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
        lambda s: base64.b64encode(b"u:" + s.encode()).decode(),
        lambda s: base64.b64encode(b"usr:" + s.encode() + b"tail").decode(),
        lambda s: s.encode().hex(),
        lambda s: s.encode().hex().upper(),
        lambda s: f"before{s}after",
    ],
)
@given(secret=TEXTS)
@settings(max_examples=60, deadline=None)
def test_a_secret_is_masked_in_every_form(form: Callable[[str], str], secret: str) -> None:
    text = form(secret)
    safe = Masker([secret]).text(text)
    assert MASK in safe
    assert secret not in safe
    assert len(safe) <= len(text)


def test_lines_of_a_secret_with_several_lines_are_masked_one_by_one() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
    masker = Masker([key])
    assert masker.text(key.replace("\n", "\n    ")).split() == [MASK] * 4
    assert masker.text(key.replace("\n", "\r\n")).split() == [MASK] * 4


def test_texts_without_a_secret_stay_as_they_are() -> None:
    masker = Masker([CANARY])
    text = "nothing here\n" * 10
    assert masker.text(text) is text
    data = os.urandom(1000)
    assert masker.data(data) is data


def test_secrets_that_overlap_leave_nothing_of_either() -> None:
    assert Masker(["abcdef", "defghi"]).text("<abcdefghi>") == "<***>"
    assert Masker(["abcd", "abcdefgh"]).text("<abcdefgh>") == "<***>"


def chunks(draw: Callable[[Any], Any], text: bytes) -> Iterator[bytes]:
    cuts = [0, *sorted(draw(st.lists(st.integers(0, len(text)), max_size=8))), len(text)]
    return (text[a:b] for a, b in pairwise(cuts))


@given(secret_list=st.lists(st.text("abc", min_size=4, max_size=9), min_size=1, max_size=3), data=st.data())
@settings(max_examples=300, deadline=None)
def test_chunks_cut_anywhere_are_masked_like_the_whole(secret_list: list[str], data: st.DataObject) -> None:
    masker = Masker(secret_list)
    pieces = data.draw(st.lists(st.one_of(st.sampled_from(secret_list), st.text("abc ", max_size=6)), max_size=8))
    text = "".join(pieces).encode() + b"\n"
    stream = masker.stream()
    out = b"".join(stream.feed(chunk) for chunk in chunks(data.draw, text)) + stream.end()
    assert out == masker.data(text)
    assert not any(secret.encode() in out for secret in secret_list)


@pytest.mark.parametrize("at", range(1, 32))
def test_a_secret_split_at_every_offset_is_masked_in_a_log(at: int, tmp_path: Path) -> None:
    logs = LogFolder(tmp_path, mask=Masker([CANARY]))
    log = logs.open("a", "", 1)
    data = f"before {CANARY} after\n".encode()
    log.write(data[: 7 + at])
    log.record(30, "logger", f"between {CANARY}")
    log.write(data[7 + at :])
    log.close()
    text = log.path.read_text()
    assert leaks(text.encode()) == []
    assert text.count(MASK) == 2
    assert text.endswith("*** after\n")


def test_output_is_held_back_only_where_it_may_be_the_beginning_of_a_secret(tmp_path: Path) -> None:
    stream = Masker(["secret-one"]).stream()
    assert stream.feed(b"no problem\n") == b"no problem\n"
    assert stream.feed(b"it is secr") == b"it is "
    assert stream.feed(b"ecy\n") == b"secrecy\n"
    assert stream.feed(b"secret-on") == b""
    assert stream.end() == MASK.encode(), "nearly all of a secret at the end of a killed step"


def test_endless_repetition_is_not_held_back() -> None:
    stream = Masker(["aaaaaaaa"]).stream()
    written = b"".join(stream.feed(b"a" * 1000) for _ in range(50))
    assert written + stream.end() == MASK.encode()


def test_failures_and_outcomes_are_masked_whatever_carries_them() -> None:
    masker = Masker([CANARY])
    error = ValueError(f"it is {CANARY}")
    failure = failure_from(error)
    safe = masker.failure(failure)
    assert safe.message == "it is ***"
    assert safe.exception is None
    assert leaks(pickle.dumps(safe)) == []
    plain = failure_from(ValueError("nothing"))
    assert masker.failure(plain) is plain
    outcomes = [
        Failed(1, failure), Lost(1, failure), Progressed(1, failures=((3, failure),)),
        Succeeded(1, failures=((3, failure),), metrics={CANARY: 1.0}),
    ]  # fmt: skip
    for outcome in outcomes:
        assert leaks(pickle.dumps(masked_outcome(outcome, masker))) == []
    waiter = MaskedWaiter(lambda until: [*outcomes], masker)
    assert leaks(pickle.dumps(waiter.wait(None))) == []
    quiet = Succeeded(2)
    assert masked_outcome(quiet, masker) is quiet


def test_what_is_cut_short_is_masked_before() -> None:
    with known({"CANARY": CANARY}) as masker:
        assert masker is not None
        for before in range(4970, 5005):
            assert CANARY[:8] not in failure_from(ValueError("x" * before + CANARY + "y" * 20000)).message
        for before in range(0, 200, 7):
            shown = item_text({"key": "x" * before + CANARY})
            assert CANARY[:8] not in shown
            assert CANARY[-8:] not in shown
        tail = (b"x" * 100 + CANARY.encode() + b"y" * 3990)[-4000:]
        assert masker.cut(tail) == b"***" + b"y" * 3990


def test_parameters_are_masked_in_whatever_they_are_written() -> None:
    class Odd:
        def __repr__(self) -> str:
            return f"Odd({CANARY!r})"

    odd = object()
    tree = {"a": [CANARY, 1, None, True, 2.5], CANARY: {"b": (f"x{CANARY}",)}, "o": Odd(), "p": odd}
    assert Masker([CANARY]).tree(tree) == {
        "a": ["***", 1, None, True, 2.5], "***": {"b": ["x***"]}, "o": "Odd('***')", "p": odd,
    }  # fmt: skip


def test_a_process_below_masks_what_the_one_above_says(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from procflow import secrets; print(sorted(secrets.values())); print(secrets.masked('x value-of-it'))"
    monkeypatch.setenv("CANARY", "value-of-it")
    with known({"CANARY": "value-of-it"}):
        assert os.environ[secrets.VARIABLE] == "CANARY", "names, never values"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
    assert done.stdout.splitlines() == ["['CANARY']", "x ***"]


def test_failures_without_secrets_cost_nothing_more() -> None:
    assert secrets.masked("x" * 10) == "x" * 10
    assert Failure("error", "T", "m") == Failure("error", "T", "m", item="")
    assert Map("m", len, items=["a"]).items == ["a"]
    assert Shell("s", "true").command == "true"
