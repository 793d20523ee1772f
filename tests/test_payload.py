"""Payloads: calls that do the same are sent once, and each still publishes under its own names."""

from __future__ import annotations

from dataclasses import replace

from executor_contract import FOLDER, finish

from procflow.attempt import Attempt, Succeeded
from procflow.call import StepCall
from procflow.executors.payload import Payloads
from procflow.executors.processes import ProcessExecutor
from procflow.values import objects


def seven() -> int:
    return 7


def eight() -> int:
    return 8


def call(name: str, function: object = seven) -> StepCall:
    return StepCall("transform", f"0.{name}", name, function, outputs=(name,), folder=FOLDER)  # type: ignore[arg-type]


def test_calls_of_one_function_without_arguments_are_one_payload() -> None:
    payloads = Payloads()
    assert payloads.of(call("a")) is payloads.of(call("b"))
    assert payloads.of(call("a", "m:f")) is payloads.of(call("b", "".join(("m:", "f"))))


def test_calls_that_differ_in_what_they_do_are_not() -> None:
    payloads = Payloads()
    first = call("a")
    others = [
        call("a", eight),
        call("a", "m:f"),
        replace(first, args=(1,)),
        replace(first, kwargs={"x": 1}),
        replace(first, options={"x": 1}),
        replace(first, when="${x}"),
        replace(first, constants={"x": 1}),
        replace(first, params={"x": 1}),
        replace(first, folder="/elsewhere"),
        replace(first, item_name="row"),
        replace(first, transient=True),
        replace(first, kind="shell"),
    ]
    made = [payloads.of(one) for one in (first, *others)]
    assert len({id(payload) for payload in made}) == len(made)
    assert len({(payload.digest, payload.rest, payload.folder) for payload in made}) == len(made)


def test_each_call_publishes_under_its_own_names() -> None:
    with ProcessExecutor(1) as executor:
        for key, outputs in enumerate((("a",), ("b",), ()), 1):
            executor.submit(Attempt(key, replace(call("a", "test_payload:seven"), outputs=outputs)))
            outcome = finish(executor)[-1]
            assert isinstance(outcome, Succeeded)
            assert {name: objects.unpack(ref) for name, ref in outcome.outputs.items()} == dict.fromkeys(outputs, 7)
