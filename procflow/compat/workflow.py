"""Workflows in Python: ``Workflow``, ``Step``, ``Parallel`` and so on, run by procflow.

    from procflow.compat.workflow import Parallel, Step, StepInput, StepOutput, Workflow

    def research(step_input: StepInput) -> StepOutput:
        return StepOutput(content=f"about {step_input.input}")

    flow = Workflow("paper", steps=[Parallel(Step("web", research), Step("books", research), name="sources"), Step("write", write)])
    print(flow.run("llamas").content)

The objects only say what is to run: they are written out as a document of the dialect ``workflow`` with their functions bound to
it, and the pipeline that comes of it runs on any executor. This file adds no meaning of its own. Modules of steps import it in
workers, too, so it loads nothing heavy before a workflow is built.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from procflow.dialects.workflow_functions import SESSION, SessionState, StepInput, StepOutput, as_output
from procflow.errors import PipelineError, Problem

if TYPE_CHECKING:
    from procflow.api import Pipeline
    from procflow.events import Event
    from procflow.result import RunResult

__all__ = [
    "Condition", "Loop", "Parallel", "Router", "SessionState", "Step", "StepInput", "StepOutput", "Steps", "Workflow",
    "WorkflowOutput",
]  # fmt: skip

Function = Callable[..., Any]


class _Names:
    """Names under which the functions of a workflow are bound."""

    def __init__(self) -> None:
        self.bound: dict[str, Any] = {}

    def of(self, function: Any) -> str:
        """The name for a function, or for ``module:name``."""
        if not callable(function) and not (isinstance(function, str) and function.count(":") == 1):
            raise PipelineError([Problem(f"{function!r:.80} is not a function", (), "give a function, or module:name")])
        base = getattr(function, "__name__", "") or str(function)
        name, number = base, 1
        while name in self.bound:
            number += 1
            name = f"{base}_{number}"
        self.bound[name] = _with_state(function) if callable(function) else function
        return name


def _with_state(function: Function) -> Function:
    """The function of one ``StepInput``; one that also takes ``session_state`` gets it."""
    try:
        takes_state = SESSION in inspect.signature(function).parameters
    except (TypeError, ValueError):
        takes_state = False
    return partial(function, **{SESSION: SessionState()}) if takes_state else function


class _Element:
    """Something with a name that can stand in a workflow."""

    name: str | None

    def _written(self, names: _Names) -> dict[str, Any]:
        raise NotImplementedError


def _element(one: Any) -> _Element:
    if isinstance(one, _Element):
        return one
    if callable(one):
        return Step(getattr(one, "__name__", "step"), executor=one)
    raise PipelineError(
        [Problem(f"{one!r:.80} is not a step", (), "write Step(name, executor=function), or a function")]
    )


def _all(steps: Sequence[Any], names: _Names) -> list[dict[str, Any]]:
    return [_element(one)._written(names) for one in steps]


@dataclass
class Step(_Element):
    """One call of ``executor`` with a ``StepInput``. It is tried again ``max_retries`` times.

    With ``skip_on_failure`` the workflow goes on without its content when it has failed for good.
    """

    name: str
    executor: Function | str | None = None
    description: str = ""
    max_retries: int = 3
    skip_on_failure: bool = False
    timeout_seconds: float | None = None

    def _written(self, names: _Names) -> dict[str, Any]:
        keys: dict[str, Any] = {"type": "Step", "name": self.name, "executor_ref": names.of(self.executor)}
        keys |= {
            "description": self.description,
            "max_retries": self.max_retries,
            "skip_on_failure": self.skip_on_failure,
        }
        return keys if self.timeout_seconds is None else {**keys, "timeout_seconds": self.timeout_seconds}


class _Block(_Element):
    def __init__(self, *steps: Any, name: str | None = None, description: str = "") -> None:
        listed = list(steps)
        if listed and isinstance(listed[0], str):
            if name is not None:
                raise PipelineError([Problem(f"two names, {listed[0]!r} and {name!r}", ("name",), "keep one")])
            name = listed.pop(0)
        self.name = name
        self.description = description
        self.steps: list[Any] = [
            one for member in listed for one in (member if isinstance(member, (list, tuple)) else [member])
        ]

    def _written(self, names: _Names) -> dict[str, Any]:
        named = {"name": self.name} if self.name else {}
        return {"type": type(self).__name__, **named, "description": self.description, "steps": _all(self.steps, names)}


class Parallel(_Block):
    """Steps beside each other: ``Parallel(a, b, name="x")`` or ``Parallel("x", a, b)``. Each gets the same input.

    One that fails becomes an output without success; the others go on. ``max_parallelism`` limits how many run at once.
    """

    def __init__(
        self, *steps: Any, name: str | None = None, description: str = "", max_parallelism: int | None = None
    ) -> None:
        super().__init__(*steps, name=name, description=description)
        self.max_parallelism = max_parallelism

    def _written(self, names: _Names) -> dict[str, Any]:
        limit = {} if self.max_parallelism is None else {"max_parallelism": self.max_parallelism}
        return {**super()._written(names), **limit}


class Steps(_Block):
    """Steps one after the other: ``Steps("x", [a, b])``."""

    def __init__(self, *steps_: Any, name: str | None = None, description: str = "", steps: Sequence[Any] = ()) -> None:
        super().__init__(*steps_, *steps, name=name, description=description)


class Loop(_Block):
    """Steps again and again, until ``end_condition`` holds for the outputs of a turn, at most ``max_iterations`` times.

    With ``forward_iteration_output`` a turn gets what the one before it made.
    """

    def __init__(
        self,
        *steps_: Any,
        name: str | None = None,
        description: str = "",
        steps: Sequence[Any] = (),
        max_iterations: int = 3,
        end_condition: Function | str | None = None,
        forward_iteration_output: bool = False,
    ) -> None:
        super().__init__(*steps_, *steps, name=name, description=description)
        self.max_iterations = max_iterations
        self.end_condition = end_condition
        self.forward_iteration_output = forward_iteration_output

    def _written(self, names: _Names) -> dict[str, Any]:
        ends = {} if self.end_condition is None else {"end_condition": names.of(self.end_condition)}
        forward = self.forward_iteration_output
        return {
            **super()._written(names),
            "max_iterations": self.max_iterations,
            "forward_iteration_output": forward,
            **ends,
        }


class Condition(_Block):
    """Steps that run where ``evaluator`` (a function of the ``StepInput``, or a bool) says so, else ``else_steps``."""

    def __init__(
        self,
        *steps_: Any,
        evaluator: Function | str | bool,
        name: str | None = None,
        description: str = "",
        steps: Sequence[Any] = (),
        else_steps: Sequence[Any] = (),
    ) -> None:
        super().__init__(*steps_, *steps, name=name, description=description)
        self.evaluator = evaluator
        self.else_steps = list(else_steps)

    def _written(self, names: _Names) -> dict[str, Any]:
        judge = self.evaluator if isinstance(self.evaluator, bool) else names.of(self.evaluator)
        otherwise = {"else_steps": _all(self.else_steps, names)} if self.else_steps else {}
        return {**super()._written(names), "evaluator": judge, **otherwise}


class Router(_Block):
    """Those of ``choices`` that ``selector`` names: it gets the ``StepInput`` and returns a name, a step, or a list of these."""

    def __init__(
        self,
        *choices_: Any,
        selector: Function | str,
        name: str | None = None,
        description: str = "",
        choices: Sequence[Any] = (),
        allow_multiple_selections: bool = True,
    ) -> None:
        super().__init__(*choices_, *choices, name=name, description=description)
        self.selector = selector
        self.allow_multiple_selections = allow_multiple_selections

    def _written(self, names: _Names) -> dict[str, Any]:
        written = super()._written(names)
        choices = written.pop("steps")
        several = self.allow_multiple_selections
        return {
            **written,
            "choices": choices,
            "selector": names.of(self.selector),
            "allow_multiple_selections": several,
        }


@dataclass(frozen=True)
class WorkflowOutput:
    """How a workflow went: ``content`` of its last step that ran, ``step_outputs`` of all top steps that did, ``session_state``.

    ``result`` is procflow's own record of the run; ``status`` is its status, partial where a failure was tolerated.
    """

    content: Any
    success: bool
    status: str
    step_outputs: dict[str, StepOutput]
    session_state: dict[str, Any]
    result: RunResult = field(repr=False)


class Workflow:
    """Steps in order, with a state that they share.

    ``session_state`` is that state in the beginning; changes are merged in declared order. Keys in ``reducers``
    (``{"found": "append"}``) are written by ``append``, ``add``, ``union`` or ``merge`` of
    ``step_input.workflow_session_state``. Raises ``PipelineError``, here, for what can't be run.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[Any] = (),
        *,
        description: str = "",
        session_state: Mapping[str, Any] | None = None,
        reducers: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.steps = list(steps)
        names = _Names()
        self._document: dict[str, Any] = {"name": name, "description": description, "steps": _all(self.steps, names)}
        self._document |= {SESSION: dict(session_state or {}), "reducers": dict(reducers or {})}
        self._bound = names.bound
        self.pipeline = self._pipeline()

    def to_dict(self) -> dict[str, Any]:
        """The workflow as plain data, functions by name: a document of the dialect ``workflow``."""
        return {"workflow": self._document}

    def _pipeline(self) -> Pipeline:
        from procflow.api import Pipeline
        from procflow.dialects import Reading, translated
        from procflow.loader import read_tree

        try:
            text = json.dumps(self.to_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            told = f"workflow {self.name!r}: the session state is plain data (texts, numbers, lists, mappings): {error}"
            raise PipelineError([Problem(told, (SESSION,), "pass other objects as input")]) from None
        tree, source = read_tree(text, f"workflow {self.name}", Path.cwd())
        found = translated(tree, source, Reading("workflow", self._bound))
        assert found is not None
        keys = dict(found.plain)
        return Pipeline(keys.pop("name"), **keys)

    @overload
    def run(self, input: Any = None, *, stream: Literal[False] = False, **options: Any) -> WorkflowOutput: ...
    @overload
    def run(self, input: Any = None, *, stream: Literal[True], **options: Any) -> Iterator[Event | WorkflowOutput]: ...
    def run(self, input: Any = None, *, stream: bool = False, **options: Any) -> Any:
        """Run it; with ``stream`` an iterator of procflow's events as they happen, and at last the ``WorkflowOutput``.

        ``options`` are those of ``Pipeline.run``: ``executor``, ``workers``, ``memory``, ``timeout``, ``state_dir``.
        """
        if stream:
            return self._stream(input, options)
        return self._output(self.pipeline.run(input=input, **options))

    def _stream(self, input: Any, options: Mapping[str, Any]) -> Iterator[Event | WorkflowOutput]:
        with self.pipeline.stream(input=input, **options) as events:
            yield from events
            yield self._output(events.result)

    def _output(self, result: RunResult) -> WorkflowOutput:
        tops = [str(step.name) for step in self.pipeline.steps[1::2]]  # before each stands the one that makes its input
        written = [one.get("name", top) for one, top in zip(self._document["steps"], tops, strict=True)]
        outputs = {
            name: as_output(result.outputs[top], name)
            for name, top in zip(written, tops, strict=True)
            if top in result.outputs
        }
        last = list(outputs.values())[-1:]
        state = {key: value for key, value in result.state.items() if key != SESSION}
        return WorkflowOutput(
            last[0].content if last else None,
            result.status in ("succeeded", "partial") and all(output.success for output in outputs.values()),
            result.status,
            outputs,
            {**result.state.get(SESSION, {}), **state},
            result,
        )
