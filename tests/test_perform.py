"""Perform: one attempt, whatever the step does, ends in one outcome."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow import step
from procflow.attempt import Failed, Items, Progressed, Skipped, Succeeded
from procflow.call import Lookup, StepCall, Text
from procflow.step import StepOutput
from procflow.values import objects
from procflow.values.objects import pack, unpack
from procflow.working import functions, pages
from procflow.working.perform import perform


def transform(function: Any, *args: Any, outputs: Any = ("out",), **given: Any) -> StepCall:
    return StepCall("transform", "0", "f", function=function, args=args, outputs=outputs, **given)


def succeeded(call: StepCall, values: dict[str, Any] | None = None, **given: Any) -> Succeeded:
    outcome = perform(call, {name: pack(value) for name, value in (values or {}).items()}, **given)
    assert isinstance(outcome, Succeeded), outcome
    return outcome


def failed(call: StepCall, values: dict[str, Any] | None = None, **given: Any) -> str:
    outcome = perform(call, {name: pack(value) for name, value in (values or {}).items()}, **given)
    assert isinstance(outcome, Failed), outcome
    return str(outcome.failure)


def outputs(outcome: Succeeded) -> dict[str, Any]:
    return {name: unpack(ref) for name, ref in outcome.outputs.items()}


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def test_arguments_are_filled_and_the_result_is_published() -> None:
    call = transform(
        echo, Lookup("a", ("k",)), Text(("x", Lookup("b"))), [1, Lookup("b")], kwargs={"c": {"d": Lookup("b")}}
    )
    outcome = succeeded(call, {"a": {"k": 5}, "b": 2}, key=9)
    assert outcome.key == 9
    assert outputs(outcome) == {"out": ((5, "x2", [1, 2]), {"c": {"d": 2}})}


def test_values_that_nobody_asks_for_are_not_opened() -> None:
    bomb = objects.Inline(b"this is no pickle")
    outcome = perform(transform(lambda: 1), {"bomb": bomb})
    assert isinstance(outcome, Succeeded)
    outcome = perform(transform(lambda x: 1, Lookup("bomb")), {"bomb": bomb})
    assert isinstance(outcome, Failed)
    assert "the value 'bomb' can't be opened" in outcome.failure.message


def test_a_value_is_opened_once_an_attempt() -> None:
    (first, second), _ = outputs(succeeded(transform(echo, Lookup("a"), Lookup("a")), {"a": [1]}))["out"]
    assert first is second


def test_a_missing_value_is_named_with_what_is_near() -> None:
    assert "there is no value 'row'; did you mean rows?" in failed(transform(echo, Lookup("row")), {"rows": 1})


def test_arrays_arrive_read_only_so_that_no_step_damages_anothers_input() -> None:
    def write(a: Any) -> None:
        a[0] = 1

    assert "read-only" in failed(transform(write, Lookup("a")), {"a": np.zeros(1000)})


def test_async_functions_run_and_generators_are_refused() -> None:
    async def work() -> int:
        return 4

    async def stream() -> Any:
        yield 1

    assert outputs(succeeded(transform(work))) == {"out": 4}
    assert "return list(...)" in failed(transform(lambda: (i for i in range(3))))
    assert "return list(...)" in failed(transform(stream))


def test_async_functions_run_where_an_event_loop_runs_already() -> None:
    import asyncio

    async def work() -> str:
        return step.run_id

    async def notebook() -> Succeeded:
        return succeeded(transform(work), run_id="r7")

    assert outputs(asyncio.run(notebook())) == {"out": "r7"}


# -- when ------------------------------------------------------------------------------------------------------


def test_a_false_condition_skips_before_anything_else() -> None:
    call = transform("no_such_module:f", when="n > 3 and params.go", constants={"params": {"go": True}})
    assert isinstance(perform(call, {"n": pack(3)}, key=4), Skipped)
    assert "no module 'no_such_module'" in failed(call, {"n": 4})


def test_a_condition_that_cannot_be_judged_fails_the_step() -> None:
    assert "can't compare" in failed(transform(echo, when="n > 3"), {"n": "x"})


def test_a_gate_is_its_condition() -> None:
    gate = StepCall("gate", "0", "g", when="n == 1")
    assert isinstance(perform(gate, {"n": pack(1)}), Succeeded)
    assert isinstance(perform(gate, {"n": pack(2)}), Skipped)


# -- outputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "value", "published"),
    [
        (("a",), {"a": 1}, {"a": {"a": 1}}),
        (("a", "b"), {"b": 2, "a": 1, "c": 3}, {"a": 1, "b": 2}),
        (("a", "b"), (1, 2), {"a": 1, "b": 2}),
        (("a", "b"), [1, 2], {"a": 1, "b": 2}),
        ("*", {"x": 1, "y-z": 2}, {"x": 1, "y-z": 2}),
        ("*", {}, {}),
        ((), object, {}),
        (("a",), StepOutput(3), {"a": 3}),
        (("a", "b"), StepOutput((3, 4)), {"a": 3, "b": 4}),
    ],
)
def test_results_are_published_as_declared(names: Any, value: Any, published: dict[str, Any]) -> None:
    assert outputs(succeeded(transform(lambda: value, outputs=names))) == published


@pytest.mark.parametrize(
    ("names", "value", "says"),
    [
        (("a", "b"), (1, 2, 3), "3 values for 2 outputs (a, b)"),
        (("rows", "b"), {"row": 1, "b": 2}, "no rows; it has row, b; did you mean row?"),
        (("a", "b"), None, "returned None"),
        (("a", "b"), "ab", "a value of type str"),
        (("a", "b"), np.zeros(2), "a value of type ndarray"),
        ("*", [1], "needs a mapping"),
        ("*", {1: 2}, "1 can't be the name of a value"),
        ("*", {"a b": 2}, "'a b' can't be the name"),
        (("a",), threading.Lock(), "result: cannot pickle '_thread.lock' object"),
        (("a", "b"), {"a": 1, "b": [threading.Lock()]}, "result['b'][0]: cannot pickle"),
    ],
)
def test_results_that_do_not_fit_fail_the_step(names: Any, value: Any, says: str) -> None:
    assert says in failed(transform(lambda: value, outputs=names))


# -- items -----------------------------------------------------------------------------------------------------


def body(function: Any, *args: Any, **given: Any) -> StepCall:
    return transform(function, *(args or (Lookup("item"),)), outputs=(), item_name="item", **given)


def items(values: list[Any], indices: range | tuple[int, ...] | None = None, first: int = 0) -> Items:
    return Items(pack(values), first, indices if indices is not None else range(first, first + len(values)))


def chunk(outcome: Succeeded | Progressed) -> Any:
    return unpack(outcome.chunk) if outcome.chunk is not None else None


def test_every_item_is_called_in_order_and_the_results_are_one_chunk() -> None:
    outcome = succeeded(body(lambda x: x * 2), items=items([1, 2, 3], first=10))
    assert (outcome.indices, chunk(outcome), outcome.failures) == (range(10, 13), [2, 4, 6], ())
    assert outcome.outputs == {}


def test_item_index_values_and_constants_reach_the_function() -> None:
    call = body(
        echo,
        Lookup("index"),
        Lookup("item", ("k",)),
        Lookup("v"),
        [1],
        kwargs={"t": Text((Lookup("item", ("k",)), "!"))},
    )
    outcome = succeeded(call, {"v": 7}, items=items([{"k": "a"}, {"k": "b"}], (6,), first=5))
    assert chunk(outcome) == [((6, "b", 7, [1]), {"t": "b!"})]
    assert outcome.indices == range(6, 7)


def test_a_container_argument_is_fresh_for_every_item() -> None:
    def change(item: int, seen: list[int]) -> list[int]:
        seen.append(item)
        return seen

    assert chunk(succeeded(body(change, Lookup("item"), []), items=items([1, 2]))) == [[1], [2]]


def test_a_failing_item_fails_alone() -> None:
    def work(x: int) -> int:
        if x == 2:
            sys.exit(3)
        return 10 // x

    outcome = succeeded(body(work), items=items([1, 0, 2, 5]))
    assert (outcome.indices, chunk(outcome)) == ((0, 3), [10, 2])
    assert [(index, failure.type) for index, failure in outcome.failures] == [
        (1, "ZeroDivisionError"),
        (2, "SystemExit"),
    ]


def test_when_all_items_fail_there_is_no_chunk() -> None:
    outcome = succeeded(body(lambda x: 1 / 0), items=items([1, 2]))
    assert (outcome.indices, outcome.chunk, len(outcome.failures)) == ((), None, 2)


def test_an_unpicklable_result_fails_its_item_alone() -> None:
    outcome = succeeded(body(lambda x: threading.Lock() if x == 1 else x), items=items([0, 1, 2]))
    assert (outcome.indices, chunk(outcome)) == ((0, 2), [0, 2])
    assert outcome.failures[0][0] == 1
    assert "cannot pickle" in outcome.failures[0][1].message


def test_no_items_are_a_success_with_nothing() -> None:
    outcome = succeeded(body(lambda x: x), items=items([], range(0)))
    assert (outcome.indices, outcome.chunk, outcome.failures) == ((), None, ())


def test_report_each_sends_every_item_but_the_last_which_comes_with_the_outcome() -> None:
    sent: list[Progressed] = []
    outcome = succeeded(body(lambda x: 1 // x), items=items([1, 0, 1]), report_each=True, send=sent.append, key=3)
    assert [(p.key, p.indices, chunk(p), [i for i, _ in p.failures]) for p in sent] == [
        (3, range(1), [1], []),
        (3, (), None, [1]),
    ]
    assert (outcome.indices, chunk(outcome)) == (range(2, 3), [1])


def test_partial_results_are_sent_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("procflow.working.perform.perf_counter", lambda: now[0])
    sent: list[Progressed] = []

    def slow(x: int) -> int:
        now[0] += 0.2
        return x

    outcome = succeeded(body(slow), items=items(list(range(7))), send=sent.append)
    assert [p.indices for p in sent] == [range(3), range(3, 6)]
    assert outcome.indices == range(6, 7)


@given(st.lists(st.sampled_from(["ok", "raise", "lock"]), max_size=12), st.booleans())
def test_every_item_is_told_exactly_once(kinds: list[str], each: bool) -> None:
    def work(kind: str) -> Any:
        if kind == "raise":
            raise ValueError
        return threading.Lock() if kind == "lock" else kind

    sent: list[Any] = []
    sent.append(succeeded(body(work), items=items(kinds), report_each=each, send=sent.append))
    good = [
        (i, value) for p in sent if p.chunk is not None for i, value in zip(p.indices, unpack(p.chunk), strict=True)
    ]
    bad = [i for p in sent for i, _ in p.failures]
    assert good == [(i, "ok") for i, kind in enumerate(kinds) if kind == "ok"]
    assert sorted(bad) == [i for i, kind in enumerate(kinds) if kind != "ok"]


def test_a_condition_over_the_item_is_judged_for_each_and_gives_none() -> None:
    outcome = succeeded(body(lambda x: x, when="item > 1 and index < 3"), items=items([1, 2, 3, 4]))
    assert chunk(outcome) == [None, 2, 3, None]


def test_costs_and_metrics_of_items_add_up() -> None:
    outcome = succeeded(body(lambda x: StepOutput(x, cost=0.5, metrics={"m": x})), items=items([1, 2]))
    assert (outcome.cost, outcome.metrics, chunk(outcome)) == (1.0, {"m": 2.0}, [1, 2])


class Counted:
    opened = 0

    def __init__(self, x: int) -> None:
        self.x = x

    def __setstate__(self, state: dict[str, Any]) -> None:
        Counted.opened += 1
        self.__dict__.update(state)


def test_a_page_is_not_opened_again_for_each_of_its_attempts() -> None:
    page = pack([Counted(i) for i in range(200)])
    Counted.opened = 0
    for i in range(200):
        copy = objects.Inline(page.data)  # type: ignore[attr-defined]
        outcome = succeeded(body(lambda item: item.x), items=Items(copy, 0, (i,)))
        assert chunk(outcome) == [i]
    assert Counted.opened == 200


def test_an_item_that_an_attempt_changed_is_whole_again_for_the_next() -> None:
    page = pack([[i] for i in range(5)])

    def change(item: list[int]) -> list[int]:
        item.append(99)
        return item

    for _ in range(4):
        for i in (1, 2):
            assert chunk(succeeded(body(change), items=Items(page, 0, (i,)))) == [[i, 99]]


def test_pages_kept_are_bounded() -> None:
    for n in range(20):
        pages.take(pack([n, [n]]), [0])
    assert len(pages._kept) <= pages.MAX_PAGES


def test_a_page_that_is_a_range_opens_to_numbers() -> None:
    outcome = succeeded(body(lambda x: x), items=Items(pack(range(100, 200, 10)), 20, (22, 25)))
    assert chunk(outcome) == [120, 150]


def test_a_page_that_is_too_short_or_cannot_be_opened_fails_the_attempt() -> None:
    assert "IndexError" in failed(body(lambda x: x), items=Items(pack([1]), 0, (5,)))
    assert "UnpicklingError" in failed(body(lambda x: x), items=Items(objects.Inline(b"junk"), 0, (0,)))


def test_other_kinds_run_for_items_too() -> None:
    call = StepCall(
        "shell", "0", "s", options={"command": Text(("echo ", Lookup("item"))), "parse": "text"}, item_name="item"
    )
    assert chunk(succeeded(call, items=items(["a b", "$(id)"]))) == ["a b", "$(id)"]


# -- functions by name -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(functions, "_added", set())
    monkeypatch.setattr(functions, "_resolved", {})
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def test_modules_beside_the_pipeline_are_found_and_the_folder_is_added_once(folder: Path) -> None:
    write(folder, "pf_mod_a.py", "class C:\n    @staticmethod\n    def f(): return 5\ndef g(): return 6\n")
    assert outputs(succeeded(transform("pf_mod_a:C.f", folder=str(folder)))) == {"out": 5}
    assert outputs(succeeded(transform("pf_mod_a:g", folder=str(folder)))) == {"out": 6}
    assert sys.path.count(str(folder)) == 1
    assert sys.path[0] == str(folder)


@pytest.mark.parametrize(
    ("text", "target", "says"),
    [
        ("def extract(): pass", "pf_m:extarct", "has no name 'extarct'; did you mean extract?"),
        ("", "pf_x:f", "there is no module 'pf_x'"),
        ("x = 3", "pf_m:x", "is of type int, which can't be called"),
        ("import no_such_thing_at_all", "pf_m:f", "importing pf_m failed: No module named 'no_such_thing_at_all'"),
        ("import sys; sys.exit(3)", "pf_m:f", "importing pf_m failed: SystemExit: 3"),
        ("def (", "pf_m:f", "importing pf_m failed: SyntaxError"),
        ("", "pf_m", "write module:name"),
    ],
)
def test_functions_that_are_not_there_are_told(folder: Path, text: str, target: str, says: str) -> None:
    write(folder, "pf_m.py", text)
    assert says in failed(transform(target, folder=str(folder)))


@pytest.mark.parametrize(
    ("text", "target", "says"),
    [
        ("def extract(): pass", "pf_n:extarct", "no name 'extarct'; did you mean extract?"),
        ("raise SystemExit('imported!')\ndef f(): pass", "pf_n:f", None),
        ("from os import path as p, sep", "pf_n:p", None),
        ("from os import *", "pf_n:anything", None),
        ("def __getattr__(name): pass", "pf_n:anything", None),
        ("globals()['f'] = print", "pf_n:f", None),
        ("def s():\n global f\n f = 1", "pf_n:f", None),
        ("try:\n    import x as f\nexcept ImportError:\n    f = None", "pf_n:f", None),
        ("if 1:\n    class A:\n        def f(self): pass", "pf_n:A.f", None),
        ("if 1:\n    class A:\n        def f(self): pass", "pf_n:f", "no name 'f'"),
        ("(a, [f]) = 1, [2]", "pf_n:f", None),
        ("def (", "pf_n:f", "pf_n.py:1: "),
        ("", "pf_nn:f", "there is no module 'pf_nn' in"),
        ("", "os.path:join", None),
        ("", "os.nothing:f", "there is no module 'os.nothing'"),
        ("", "json.decoder:JSONDecoder", None),
        ("", "time:sleep", None),
        ("", "xml.nosuch:f", "there is no module 'xml.nosuch'"),
    ],
)
def test_functions_are_looked_for_without_importing(folder: Path, text: str, target: str, says: str | None) -> None:
    write(folder, "pf_n.py", text)
    found = functions.find(target, str(folder))
    assert (says is None) == (found is None), found
    assert found is None or says in found  # type: ignore[operator]
    assert "pf_n" not in sys.modules


def test_packages_are_looked_into(folder: Path) -> None:
    (folder / "pf_pack").mkdir()
    write(folder, "pf_pack/__init__.py", "raise RuntimeError")
    write(folder, "pf_pack/inner.py", "def f(): pass")
    assert functions.find("pf_pack.inner:f", str(folder)) is None
    assert "has no name 'g'" in (functions.find("pf_pack.inner:g", str(folder)) or "")
    assert "no module 'pf_pack.other'" in (functions.find("pf_pack.other:f", str(folder)) or "")


# -- cost ------------------------------------------------------------------------------------------------------


def test_usage_is_measured() -> None:
    def burn() -> int:
        return sum(range(2_000_000))

    usage = succeeded(transform(burn)).usage
    assert usage.wall_s > 0
    assert usage.cpu_s > 0
    assert usage.peak_rss_bytes > 5_000_000


def test_workers_stay_light() -> None:
    heavy = ("pydantic", "click", "rich", "jinja2", "asyncio", "numpy", "cloudpickle", "procflow.model", "logging")
    program = (
        "import sys\n"
        "from procflow.working.perform import perform\n"
        "from procflow.call import StepCall\n"
        "for kind in ('transform', 'gate'): perform(StepCall(kind, '0', 'f', function='os:getpid', outputs=('f',)), {})\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True, text=True)
    assert done.stdout.strip() == "[]"


def _best_us(call: Callable[[], object], count: int) -> float:
    from time import perf_counter

    best = float("inf")
    for _ in range(7):
        start = perf_counter()
        for _ in range(count):
            call()
        best = min(best, perf_counter() - start)
    return best / count * 1e6


def test_an_empty_step_costs_microseconds() -> None:
    call = transform(lambda: None)
    # 8 us measured on a quiet machine; the bound leaves room for a noisy one.
    assert _best_us(lambda: perform(call, {}), 500) < 40


def test_an_empty_item_costs_less_than_a_few_microseconds() -> None:
    call, page = body(lambda x: x), pack(range(2000))
    assert _best_us(lambda: perform(call, {}, items=Items(page, 0, range(2000))), 1) / 2000 < 2
