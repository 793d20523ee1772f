"""What is refused before a run: missing functions, more than the machine has, what an executor can't do."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from procflow import Parallel, Pipeline, Step, api
from procflow.call import StepCall
from procflow.compiler import compile_pipeline
from procflow.compiling.build import LoadedFile
from procflow.errors import PipelineError, dotted
from procflow.executors.payload import Payload, Payloads
from procflow.launch import prepare
from procflow.loader import load_pipeline
from procflow.preflight import check


def f(*values: Any, **named: Any) -> int:
    return 1


def checked(
    *steps: Any, slots: int = 2, memory_bytes: int = 10**9, executor: str | None = None, **keys: Any
) -> list[tuple[str, str]]:
    graph = compile_pipeline(api.Pipeline("p", steps=steps, **keys), folder=keys.pop("folder", None), executor=executor)
    return [
        (dotted(p.loc), f"{p.message} ({p.hint})" if p.hint else p.message)
        for p in check(graph, slots=slots, memory_bytes=memory_bytes)
    ]


def in_folder(folder: Path, *steps: Any) -> list[tuple[str, str]]:
    graph = compile_pipeline(api.Pipeline("p", steps=steps), folder=str(folder))
    return [(dotted(p.loc), p.message) for p in check(graph, slots=2, memory_bytes=10**9)]


# -- functions -------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with a module that tells when it is imported."""
    code = "raise SystemExit('imported')\ndef extract(item): ...\nclass Tool:\n    def use(self): ...\nscore_it = 1\n"
    (tmp_path / "nightly_work.py").write_text(code)
    return tmp_path


def test_functions_that_are_there_are_found_without_importing_them(beside: Path) -> None:
    steps = [
        api.Step("a", "nightly_work:extract"), api.Map("m", "nightly_work:extract", items=[1]),
        api.Split("s", "a", strategy="nightly_work:extract"), api.Merge("n", ["a"], merge="nightly_work:extract"),
        api.Merge("o", ["a"], merge="best_quality", score="nightly_work:score_it"), api.Step("c", "nightly_work:Tool.use"),
        api.Step("lib", "json:dumps"), api.Step("c_code", "math:sqrt"), api.Step("built_in", "sys:exit"),
    ]  # fmt: skip
    assert in_folder(beside, *steps) == []
    assert "nightly_work" not in sys.modules


@pytest.mark.parametrize(
    ("step", "loc"),
    [
        (api.Step("a", "nightly_work:extrakt"), "steps[0].function"),
        (api.Map("a", "nightly_work:extrakt", items=[1]), "steps[0].function"),
        (api.Parallel("a", f, merge="nightly_work:extrakt"), "steps[0].merge"),
        (api.Map("a", f, items=[1], merge="nightly_work:extrakt"), "steps[0].merge"),
        (api.Parallel("a", f, merge="best_quality", score="nightly_work:extrakt"), "steps[0].score"),
        (api.Sequence("a", f, api.Merge("m", ["f"], merge="nightly_work:extrakt")), "steps[0].steps[1].merge"),
        (api.Sequence("a", f, api.Split("m", "f", strategy="nightly_work:extrakt")), "steps[0].steps[1].strategy"),
    ],
)
def test_a_misspelt_function_is_told_at_the_key_that_names_it(beside: Path, step: Any, loc: str) -> None:
    where = beside / "nightly_work.py"
    assert in_folder(beside, step) == [
        (loc, f"nightly_work:extrakt: {where} has no name 'extrakt'; did you mean extract?")
    ]


def test_a_misspelt_reducer_is_told_where_it_is_declared_also_in_another_file(beside: Path) -> None:
    step = (
        "steps: [{type: shell, name: a, command: ls}, {type: transform, name: b, function: 'nightly_work:extract'}]\n"
    )
    (beside / "sub.yaml").write_text("name: sub\nstate: {seen: 'nightly_work:extrakt'}\n" + step)
    (beside / "top.yaml").write_text(
        "name: top\nstate: {n: {reducer: 'nowhere_to_be:found'}}\nsteps: [{type: pipeline, name: s, file: sub.yaml}]\n"
    )

    def load(file: str, folder: str | None) -> LoadedFile:
        return load_pipeline(Path(folder or ".") / file)

    graph = compile_pipeline(load_pipeline(beside / "top.yaml").pipeline, folder=str(beside), load=load)
    missing, misspelt = sorted(check(graph, slots=2, memory_bytes=10**9), key=lambda problem: len(problem.loc))
    assert missing.loc == ("state", "n")
    assert "there is no module 'nowhere_to_be'" in missing.message
    assert str(misspelt.place).endswith("sub.yaml:2:15")
    assert "did you mean extract?" in misspelt.message


def test_a_missing_module_is_told_with_what_is_near(beside: Path) -> None:
    ((loc, message),) = in_folder(beside, api.Step("a", "nightly_wrk:extract"))
    assert loc == "steps[0].function"
    assert "there is no module 'nightly_wrk'" in message
    assert "did you mean nightly_work?" in message


def test_a_module_is_read_once_however_many_steps_name_it(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from procflow import preflight

    asked = []
    monkeypatch.setattr(preflight, "find", lambda name, folder: asked.append(name))
    assert in_folder(beside, *(api.Step(f"s{i}", "nightly_work:extract") for i in range(50))) == []
    assert asked == ["nightly_work:extract"]


# -- the machine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "loc", "message"),
    [
        (
            {"cpus": 3}, "steps[0].cpus",
            "step 'a' asks for 3 cpus, and the run has 2 workers (lower cpus, or raise limits.workers (-j))",
        ),
        (
            {"cpus": 2, "executor": "inline"}, "steps[0].cpus",
            "step 'a' asks for 2 cpus, and executor inline has 1 (run it with executor: processes)",
        ),
        (
            {"memory": "2GB"}, "steps[0].memory",
            "step 'a' asks for 1.9 GiB, and the run may use 954 MiB (lower memory, or raise limits.memory (--memory))",
        ),
        (
            {"resources": {"db": 1}}, "steps[0].resources.db",
            "there is no resource 'db' (declare it: limits: {resources: {db: 1}})",
        ),
        ({"resources": {"gpu": 3}}, "steps[0].resources.gpu", "step 'a' asks for 3 of 'gpu', and there are 2"),
    ],
)  # fmt: skip
def test_a_step_that_could_never_start_is_refused(keys: dict[str, Any], loc: str, message: str) -> None:
    assert checked(api.Step("a", f, **keys), limits={"resources": {"gpu": 2}}) == [(loc, message)]


def test_a_default_that_no_step_can_have_is_told_once_where_it_stands() -> None:
    steps = [api.Step("a", f), api.Step("b", f), api.Step("c", f, cpus=9), api.Map("m", f, items=[1])]
    found = checked(*steps, defaults={"cpus": 8, "memory": "4GB"})
    assert [loc for loc, _ in found] == ["defaults.cpus", "defaults.memory", "steps[2].cpus"]


# -- executors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["threads", "inline"])
def test_a_timeout_is_refused_where_nothing_can_stop_a_step(executor: str) -> None:
    steps = [
        api.Step("a", f), api.Step("b", f, timeout="1s"), api.Step("c", f, idle_timeout="2s"),
        api.Step("d", f, executor="processes", timeout="1s"), api.Map("m", f, items=[1]),
        api.Parallel("p", f, timeout="1m"),
        api.Parallel("q", api.Step("g", f, executor="processes"), timeout="1m", executor="processes"),
    ]  # fmt: skip
    found = checked(*steps, executor=executor, defaults={"timeout": "5m"}, limits={"timeout": "1h"})
    assert [loc for loc, _ in found] == [
        "limits.timeout", "defaults.timeout", "steps[1].timeout", "steps[2].idle_timeout", "steps[5].timeout",
    ]  # fmt: skip
    assert found[1][1] == (
        f"each step (defaults) has a timeout of 5m 00s, and executor {executor} can't stop a running step"
        " (timeouts, on_error: stop, join: any) (run it with executor: processes, or leave out timeout)"
    )
    assert checked(*steps, defaults={"timeout": "5m"}, limits={"timeout": "1h"}) == []


@pytest.mark.parametrize("executor", ["threads", "inline"])
def test_a_kill_grace_is_refused_where_nothing_can_stop_a_step(executor: str) -> None:
    steps = [
        api.Step("a", f), api.Step("b", f, kill_grace="9s"), api.Step("c", f, executor="processes", kill_grace="1s"),
        api.Parallel("p", f, when="true"),
    ]  # fmt: skip
    assert [loc for loc, _ in checked(*steps, executor=executor)] == ["steps[1].kill_grace"]
    found = checked(*steps, executor=executor, defaults={"kill_grace": "3s"})
    assert [loc for loc, _ in found] == ["defaults.kill_grace", "steps[1].kill_grace"]
    assert found[0][1].startswith(f"each step (defaults) has a kill_grace of 3.0 s, and executor {executor} can't stop")
    assert checked(*steps, defaults={"kill_grace": "3s"}) == []


def test_what_the_defaults_of_another_file_ask_for_is_told_in_that_file(tmp_path: Path) -> None:
    (tmp_path / "sub.yaml").write_text(
        "name: sub\ndefaults:\n  timeout: 1s\nsteps:\n  - {type: shell, name: a, command: ls}\n"
        '  - {type: transform, name: b, function: "nowhere_to_be:found"}\n'
    )
    top = (
        "name: top\ndefaults: {timeout: 5s}\nsteps:\n  - {type: pipeline, name: s, file: sub.yaml, executor: threads}\n"
    )
    (tmp_path / "top.yaml").write_text(top)

    def load(file: str, folder: str | None) -> LoadedFile:
        return load_pipeline(Path(folder or ".") / file)

    loaded = load_pipeline(tmp_path / "top.yaml")
    graph = compile_pipeline(loaded.pipeline, folder=str(tmp_path), load=load)
    found = [str(p.place).replace(f"{tmp_path}/", "") for p in check(graph, slots=2, memory_bytes=10**9)]
    assert found == ["sub.yaml:3:12", "sub.yaml:6:42"]


def test_what_can_not_reach_a_worker_is_told_with_its_step() -> None:
    lock = threading.Lock()
    steps = [
        api.Step("a", lambda: lock),
        api.Step("b", f, params={"x": [lock]}),
        api.Step("c", "json:dumps", params={"x": lock}),
    ]
    found = checked(*steps)
    assert [loc for loc, _ in found] == ["steps[0]", "steps[1]", "steps[2]"]
    assert all("lock" in message for _, message in found)
    assert checked(*steps, executor="threads") == []


# -- everything, from a file -----------------------------------------------------------------------------------

TEN = """\
name: ten
params: {day: {required: true}}
limits: {workers: 2, resources: {db: 1}}
show: [reprot]
steps:
  - {type: transform, name: load, function: "work:load", params: {d: "${params.dya}"}, output: rows}
  - type: parallel
    name: fetch
    steps:
      - {type: transform, name: a, function: "work:a", inputs: [rows, rosw], output: v}
      - {type: transform, name: b, function: "work:b", inputs: [a], output: v}
      - {type: transform, name: c, function: "work:c", depends_on: [a]}
  - type: graph
    name: knot
    steps:
      - {type: transform, name: x, function: "work:x", inputs: [y]}
      - {type: transform, name: y, function: "work:y", when: "x > 1"}
  - {type: shell, name: load, command: ["echo", "${env.NO_SUCH_VARIABLE}"]}
  - {type: transform, name: report, function: "work:report", inputs: ["${rows"]}
"""


def problems_of(path: Path, **options: Any) -> list[str]:
    def prepared() -> None:
        pipeline = api.load(path)
        prepare(pipeline, source=pipeline._source, **options)

    with pytest.raises(PipelineError) as caught:
        prepared()
    return [str(p).replace(f"{path}:", "").split(" (")[0] for p in caught.value.problems]


def test_a_function_is_tried_once_however_many_steps_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    of = Payloads.of

    def noted(self: Payloads, call: StepCall) -> Payload:
        tried.append(call.name)
        return of(self, call)

    monkeypatch.setattr(Payloads, "of", noted)
    lock = threading.Lock()
    steps = [
        Parallel(*(Step(f"s{i}", len) for i in range(3)), name="many"),
        Step("own", len, params={"obj": b"in no file"}),
        Step("bad", lambda: lock),
        Step("bad_too", lambda: lock),
    ]
    graph = compile_pipeline(Pipeline("p", steps=steps))
    told = check(graph, slots=2, memory_bytes=10**9)
    assert tried == ["s0", "own", "bad", "bad_too"]
    assert [problem.loc for problem in told] == [("steps", 2), ("steps", 3)]


def test_many_mistakes_in_one_file_are_listed_together_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "ten.yaml"
    path.write_text(TEN)
    assert problems_of(path) == [
        "2:15: parameter 'day' needs a value",
        "4:8: show: no step publishes 'reprot'",
        "6:70: there is no parameter 'dya'",
        "10:71: no step that runs before this one publishes 'rosw'",
        "11:65: 'a' has no value here: step 'a' makes it in the same parallel block; use type: graph, or a step after the"
        " block",
        "11:77: 'a' and 'b' both write 'v' and may run at once",
        "12:69: members of a parallel block run at once",
        "16:65: steps wait for each other in a circle: x -> y -> x",
        "18:25: two steps of one block are named 'load'",
        "18:49: there is no environment variable 'NO_SUCH_VARIABLE'",
        "19:71: '${rows': ${ has no closing }; write $${ for a literal ${",
    ]


def test_mistakes_of_single_steps_are_told_first_because_names_can_only_be_checked_in_whole_steps(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ten.yaml"
    path.write_text(TEN.replace("type: graph", "type: graf").replace("output: rows", "output: rows, retries: -1"))
    assert [line.split(":")[0] for line in problems_of(path)] == ["6", "13"]


def test_functions_and_the_machine_are_checked_once_names_are_right(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text("def load(d): ...\n")
    path = tmp_path / "p.yaml"
    path.write_text("""\
name: p
limits: {workers: 2}
defaults: {timeout: 1s}
steps:
  - {type: transform, name: a, function: "work:laod"}
  - {type: transform, name: b, function: "wrok:load"}
  - {type: transform, name: c, function: "work:load", cpus: 3, resources: {db: 1}}
  - {type: transform, name: d, function: "work:load", executor: threads}
""")
    found = problems_of(path)
    assert [line.split(": ")[0] for line in found] == ["3:21", "5:42", "6:42", "7:61", "7:80"]


def test_a_file_that_is_not_there_is_told_at_the_step_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    (tmp_path / "load.yaml").write_text("name: x\nsteps: []\n")
    path.write_text("name: p\nsteps:\n  - {type: pipeline, name: a, file: laod.yaml}\n")
    with pytest.raises(PipelineError) as caught:
        prepare(api.load(path), source=api.load(path)._source)
    assert [str(p) for p in caught.value.problems] == [
        f"{path}:3:37: laod.yaml: no such file (did you mean 'load.yaml'?)"
    ]


def test_a_memory_limit_is_refused_where_nothing_can_hold_a_step_to_it() -> None:
    pipeline = api.Pipeline("p", steps=[api.Step("a", len, params={"obj": []}, memory="1GB")])
    for executor in ("threads", "inline"):
        (problem,) = check(compile_pipeline(pipeline, executor=executor), slots=2, memory_bytes=8 << 30)
        assert "memory limit of 954 MiB" in problem.message
        assert problem.loc == ("steps", 0, "memory")
    assert not check(compile_pipeline(pipeline), slots=2, memory_bytes=8 << 30)
