"""Skill: a named capability with declared inputs and outputs: a function, an HTTP call, or a language model.

``kwargs`` are the values that it is given, by name. ``options``: ``skill`` (its name), ``kind``, ``requires`` and ``produces``
(types by name), ``whole`` (the step publishes the answer under one name), and what the kind asks for: ``parts`` and ``values``
(a URL cut at its places), ``headers``, ``json``; or ``base_url``, ``model``, ``prompt`` and so on; ``limits`` (timeout_s).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from procflow import step
from procflow.call import StepCall
from procflow.compiling.template import fill
from procflow.skills.answers import check_inputs, fitting
from procflow.steps.transform import call_function
from procflow.working import functions

__all__ = ["run"]


def run(call: StepCall, values: Callable[[str], Any]) -> Any:
    """What the skill produces, as a mapping; the value alone where the step publishes one name of it."""
    options = call.options
    given = {name: fill(tree, values) for name, tree in call.kwargs.items()}
    what = f"skill {options['skill']!r}"
    check_inputs(what, options["requires"], given)
    kind = options["kind"]
    cost, metrics = 0.0, {}
    if kind == "python":
        assert call.function is not None
        answer = call_function(functions.resolve(call.function, call.folder), **given)
        if type(answer) is step.StepOutput:
            answer, cost, metrics = answer.value, answer.cost, dict(answer.metrics)
    elif kind == "rest":
        answer = _rest(what, options, values)
    else:
        from procflow.skills import llm

        answer = llm.run(options["skill"], fill(dict(options), values), options["limits"].get("timeout_s"))
    produced: Any = fitting(what, options["produces"], answer)
    if not options["whole"] and isinstance(call.outputs, tuple) and len(call.outputs) == 1:
        produced = fitting(what, dict.fromkeys(call.outputs, "any"), produced)[call.outputs[0]]
    return step.StepOutput(produced, cost, metrics) if cost or metrics else produced


def _rest(what: str, options: Mapping[str, Any], values: Callable[[str], Any]) -> Any:
    from procflow.sources.opened import shown_url
    from procflow.sources.web import accepted, address, send

    url = address(options["parts"], [fill(tree, values) for tree in options["values"]], values)
    body = fill(options.get("json"), values)
    method = options.get("method") or ("GET" if body is None else "POST")
    what = f"{what} ({method} {shown_url(url)})"
    reply = send(
        method, url, what=what, headers=fill(options.get("headers"), values), json=body,
        timeout_s=options["limits"].get("timeout_s"),
    )  # fmt: skip
    accepted(reply, what, options.get("ok_codes"))
    return reply.json(what) if reply.body.strip() else {}
