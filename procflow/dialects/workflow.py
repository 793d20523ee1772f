"""Workflow: ``workflow:`` documents with ``steps`` and ``substeps``, and workflows of ``Step``, ``Parallel``, ``Steps``, ``Loop``,
``Condition`` and ``Router`` as they are written out as JSON.

Agents, teams, executors, end conditions, evaluators and selectors are functions that the user binds. A step's function gets one
``StepInput`` (``procflow.compat.workflow``), made by a small step before it. Meanings:

- every branch of a ``Parallel`` gets the same input; one that fails becomes an unsuccessful output, its siblings go on;
- outputs are joined, and changes of the session state merged, in declared order, whoever ends last;
- a ``Loop`` has at most ``max_iterations`` turns, each of which runs if the end condition did not hold after the one before;
- choices of a ``Router`` that are selected run in declared order, each with the input of the router;
- after an output with ``stop`` nothing more runs; a step is tried again ``max_retries`` times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from procflow.compiling.surface import ROOTS
from procflow.dialects.foreign import Made, Part, Translation, name_of, near
from procflow.dialects.workflow_functions import SESSION
from procflow.state import REDUCERS

__all__ = ["matches", "translate"]

_FUNCTIONS = "procflow.dialects.workflow_functions"
_KINDS = ("Step", "Parallel", "Steps", "Loop", "Condition", "Router")
_ALIASES = {
    "sequence": "Steps",
    "sequential": "Steps",
    "agent": "Step",
    "team": "Step",
    "function": "Step",
    "task": "Step",
}
_EXECUTORS = ("executor_ref", "executor", "function", "agent_id", "agent", "team_id", "team", "workflow_id")
_COMMON = ("type", "name", "description", "step_id", "id")
_KEYS: dict[str, tuple[str, ...]] = {
    "Step": (
        *_EXECUTORS,
        "max_retries",
        "skip_on_failure",
        "num_history_runs",
        "strict_input_validation",
        "timeout_seconds",
    ),
    "Parallel": ("steps", "substeps", "parallel", "max_parallelism"),
    "Steps": ("steps", "substeps", "parallel"),
    "Loop": ("steps", "substeps", "max_iterations", "end_condition", "end_condition_type", "forward_iteration_output"),
    "Condition": ("steps", "substeps", "evaluator", "evaluator_type", "else_steps"),
    "Router": ("choices", "steps", "substeps", "selector", "selector_type", "allow_multiple_selections"),
}
_UNABLE = {
    "human_review": "procflow runs without people in the loop",
    "requires_user_input": "procflow runs without people in the loop",
    "requires_confirmation": "procflow runs without people in the loop",
    "add_workflow_history": "steps get the outputs of this run only",
    "user_input_schema": "procflow runs without people in the loop",
}
_IDLE = ("confirmation_message", "user_input_message", "on_reject", "on_error", "hitl_max_retries")
"""Keys that only say how a question to people is asked."""
_ROOT_KEYS = (
    "name",
    "id",
    "workflow_id",
    "description",
    "steps",
    "substeps",
    SESSION,
    "reducers",
    "version",
    "num_history_runs",
)
_ROOT_UNABLE = {
    "input_schema": "check the input in the first step",
    "add_workflow_history_to_steps": "steps get the outputs of this run only",
    "dependencies": "pass them as input, or read them in the function",
}
_ROOT_LEFT = ("stream", "stream_events", "stream_executor_events", "store_events", "store_executor_outputs", "events_to_skip",
              "debug_mode", "telemetry", "cache_session", "type", "metadata", "user_id", "session_id")  # fmt: skip
MOST_TURNS = 100


def matches(document: Mapping[str, Any]) -> bool:
    """``workflow:`` with steps, or steps of which one is of a type that only this format has."""
    inner = document.get("workflow")
    if isinstance(inner, dict):
        return isinstance(inner.get("steps", inner.get("substeps")), list)
    steps = document.get("steps")
    return isinstance(steps, list) and any(
        isinstance(step, dict) and (step.get("type") in _KINDS or "substeps" in step) for step in steps
    )


def translate(work: Translation) -> Made | None:
    """The pipeline."""
    return _Workflow(work).pipeline()


class _Workflow:
    def __init__(self, work: Translation) -> None:
        self.work = work
        inner = work.root["workflow"]
        self.root = inner if isinstance(inner.value, dict) else work.root
        if self.root is inner:
            work.root.only(("workflow", "name", "description", "version", SESSION, "reducers"))

    def pipeline(self) -> Made | None:
        root, outer = self.root, self.work.root
        left = [key for key in _ROOT_LEFT if key in root]
        unable = {key: hint for key, hint in _ROOT_UNABLE.items() if root[key].value not in (None, False, [], {})}
        root.only((*_ROOT_KEYS, *left, *(key for key in _ROOT_UNABLE if key not in unable)), unable)
        for key in left:
            if key not in ("type", "metadata"):
                root[key].note("of no meaning here; left out")
        made = Made(root)
        title = root["name"].text() or outer["name"].text() or root["id"].text()
        made.put("name", name_of(title, "workflow"), root["name"])
        about = [title if title != made["name"] else "", root["description"].text() or outer["description"].text()]
        made.put("description", "; ".join(text for text in about if text))
        made["params"] = {"input": {"default": None}}
        made.put("state", self._state(root if SESSION in root or "reducers" in root else outer))
        steps = self._chain(self._listed(root), None)
        made["show"] = [steps[-1]["name"]] if steps else []
        made.set("steps", steps, root["steps"])
        return made

    def _state(self, root: Part) -> Made:
        session, reducers = root[SESSION], root["reducers"]
        made, initial = Made(session), {}
        if session.mapping():
            initial = dict(session.value)
        for key, part in reducers.items():
            word = part.text(required=True)
            if word and word not in REDUCERS and ":" not in word:
                part.fail(f"unknown reducer {word!r}", near(word, REDUCERS) or f"expected {', '.join(REDUCERS)}")
            declared = {"reducer": word}
            if key in initial:
                declared["initial"] = initial.pop(key)
            made.set(key, declared, part)
        made.set(SESSION, {"reducer": "merge", **({"initial": initial} if initial else {})}, session)
        return made

    # -- elements --------------------------------------------------------------------------------------------------------

    def _listed(self, part: Part, key: str = "steps") -> list[Part]:
        listed = part[key] if part[key].value is not None or part["substeps"].value is None else part["substeps"]
        return [one for one in listed.members(1, "a list of steps") if one.mapping(required=True)]

    def _chain(self, parts: list[Part], base: str | None) -> list[Made]:
        """Steps one after the other, each but the first of a block with a small step before it that makes its input."""
        found: list[Made] = []
        names: dict[str, Part] = {}
        before: tuple[str, str] | None = None
        for index, part in enumerate(parts):
            name = self._name(part, index, names)
            when, given = "", base
            if given is None or before is not None:
                maker = self._input(part, f"{name}-input", given, before)
                found.append(maker)
                when, given = f"${{{maker['name']}.go}}", f"${{{maker['name']}.given}}"
            element = self._element(part, name, given)
            found.append(element.put("when", when, part))
            before = (self._title(part, name), name)
            base = given
        return found

    def _input(self, part: Part, name: str, base: str | None, before: tuple[str, str] | None) -> Made:
        params: dict[str, Any] = {"base": base} if base is not None else {"input": "${params.input}"}
        if before is not None:
            params["previous"] = {before[0]: f"${{{before[1]}}}"}
        return Made(part, type="transform", name=name, function=f"{_FUNCTIONS}:step_input", params=params)

    def _title(self, part: Part, name: str) -> str:
        return part["name"].text() or name

    def _name(self, part: Part, index: int, names: dict[str, Part]) -> str:
        text = part["name"].text() or part["step_id"].text() or part["id"].text()
        name = name_of(text, f"step_{index + 1}")
        if name in (*ROOTS, "index", "item"):
            name += "_"
        if name in names:
            first = names[name]
            at = part["name"] if part["name"].is_there else part
            at.fail(f"the name {text!r} is taken by {first.path} in line {first.spot.line}", "give it another name")
        names[name] = part
        return name

    def _kind(self, part: Part) -> str:
        written = part["type"].text()
        if not written:
            if any(part[key].value is not None for key in ("steps", "substeps")):
                is_parallel = part["parallel"].flag()
                if not is_parallel:
                    part.note("no type: its steps run one after the other")
                return "Parallel" if is_parallel else "Steps"
            return "Step"
        for kind in _KINDS:
            if written.lower() == kind.lower():
                return kind
        if written.lower() in _ALIASES:
            return _ALIASES[written.lower()]
        part["type"].fail(f"unknown type {written!r}", near(written, _KINDS) or f"expected {', '.join(_KINDS)}")
        return ""

    def _element(self, part: Part, name: str, given: str) -> Made:
        """One step of procflow's, which reads its ``StepInput`` from ``given``."""
        kind = self._kind(part)
        made = Made(part, type="sequence", name=name)
        title = part["name"].text()
        made.put("description", "; ".join(t for t in (title if title != name else "", part["description"].text()) if t))
        if not kind:
            return made
        unable = {key: hint for key, hint in _UNABLE.items() if _asks(part[key].value)}
        others = {
            key: f"a key of type: {other}" for other, keys in _KEYS.items() for key in keys if key not in _KEYS[kind]
        }
        idle = [*_IDLE, *(key for key in _UNABLE if key not in unable)]
        part.only((*_COMMON, *_KEYS[kind], *idle), {**others, **unable}, why="procflow can't do this here")
        found: Made = getattr(self, f"_{kind.lower()}")(made, part, given)
        return found

    def _call(self, step: Made, part: Part, given: str, what: str) -> Made:
        name = part.text(required=True)
        if name:
            step.update(self.work.bound(part, name, what=what))
        else:
            step["function"] = "procflow.dialects.runtime:nothing"
        step.origins["function"] = part
        step["inputs"] = [given]
        return step

    def _step(self, made: Made, part: Part, given: str) -> Made:
        executors = [key for key in _EXECUTORS if part[key].value is not None]
        if len(executors) != 1:
            told = " and ".join(executors) + " exclude each other" if executors else "needs an executor"
            part.fail(told, f"write one of {', '.join(_EXECUTORS)}")
            return made
        made["type"] = "transform"
        self._call(made, part[executors[0]], given, executors[0].removesuffix("_id").removesuffix("_ref"))
        if part["strict_input_validation"].flag():
            part["strict_input_validation"].fail("procflow knows no schema of this input", "check it in the function")
        retries = part["max_retries"].whole(0)
        if retries and "retries" not in made and "retry" not in made:
            made.set("retry", {"retries": retries, "delay": "0s"}, part["max_retries"])
        made.put("timeout", part["timeout_seconds"].seconds(), part["timeout_seconds"])
        if not part["skip_on_failure"].flag():
            return made
        block = Made(part, type="parallel", name=made["name"], on_error="continue", merge=f"{_FUNCTIONS}:attempted")
        block["output"] = made["name"]
        block["steps"] = [made]
        return block

    def _block(self, made: Made, kind: str, merge: str, steps: list[Made]) -> Made:
        made["type"] = kind
        made.update(merge=f"{_FUNCTIONS}:{merge}", output=made["name"], steps=steps)
        return made

    def _parallel(self, made: Made, part: Part, given: str) -> Made:
        names: dict[str, Part] = {}
        members = [self._element(one, self._name(one, i, names), given) for i, one in enumerate(self._listed(part))]
        made.put("max_parallelism", part["max_parallelism"].whole(least=1), part["max_parallelism"])
        made["on_error"] = "continue"
        return self._block(made, "parallel", "joined", members)

    def _steps(self, made: Made, part: Part, given: str) -> Made:
        return self._block(made, "sequence", "last_of", self._chain(self._listed(part), given))

    def _loop(self, made: Made, part: Part, given: str) -> Made:
        most = part["max_iterations"].whole(3, 1) or 3
        if most > MOST_TURNS:
            part["max_iterations"].fail(
                f"{most} turns: at most {MOST_TURNS} are written out", "use a map for many items"
            )
            return made
        ends = self._function(part, "end_condition", required=False)
        forward, steps, base = part["forward_iteration_output"].flag(), list[Made](), given
        for turn in range(1, most + 1):
            name = f"turn_{turn}"
            block = Made(part, type="sequence", name=name)
            if turn > 1:
                conditions = [f"not ${{turn_{turn - 1}-check.stop}}"]
                if ends is not None:
                    conditions.append(f"not ${{turn_{turn - 1}-end}}")
                block.set("when", " and ".join(conditions), part["end_condition"])
                if forward:
                    steps.append(self._input(part, f"{name}-input", base, (f"turn_{turn - 1}", f"turn_{turn - 1}")))
                    base = f"${{{name}-input.given}}"
            steps.append(self._block(block, "sequence", "last_of", self._chain(self._listed(part), base)))
            if turn == most:
                break
            check = Made(part, type="transform", name=f"{name}-check", function=f"{_FUNCTIONS}:iteration")
            steps.append(check.set("inputs", [name]))
            if ends is not None:
                end = Made(part, type="transform", name=f"{name}-end")
                steps.append(self._call(end, ends, f"${{{name}-check.outputs}}", "end condition"))
        return self._block(made, "sequence", "looped", steps)

    def _function(self, part: Part, key: str, required: bool = True) -> Part | None:
        """The part that names a function; a problem for a condition in another system's language."""
        kind = part[f"{key}_type"]
        if kind.choice(("function", "bool", "cel"), "function") == "cel":
            part[key].fail(
                "procflow can't read CEL", f"write the name of a function, and bind it: {key}_type: function"
            )
            return None
        if part[key].value is None and not required:
            return None
        return part[key]

    def _condition(self, made: Made, part: Part, given: str) -> Made:
        evaluator, judge = part["evaluator"], Made(part, type="transform", name=f"{made['name']}-judge")
        if isinstance(evaluator.value, bool):
            judge.update(function="procflow.dialects.runtime:constant", params={"value": evaluator.value})
        elif (named := self._function(part, "evaluator")) is not None:
            self._call(judge, named, given, "evaluator")
        steps = [judge]
        for key, flag in (("steps", ""), ("else_steps", "not ")):
            if key == "else_steps" and not part[key].value:
                continue
            listed = (
                self._listed(part) if key == "steps" else [one for one in part[key].members(1) if one.mapping(True)]
            )
            branch = Made(
                part[key] if part[key].is_there else part, type="sequence", name="then" if not flag else "otherwise"
            )
            branch["when"] = f"{flag}${{{judge['name']}}}"
            steps.append(self._block(branch, "sequence", "last_of", self._chain(listed, given)))
        return self._block(made, "sequence", "chosen", steps)

    def _router(self, made: Made, part: Part, given: str) -> Made:
        choices = self._listed(part, "choices" if part["choices"].value is not None else "steps")
        names: dict[str, Part] = {}
        members = [self._element(one, self._name(one, i, names), given) for i, one in enumerate(choices)]
        select = Made(part, type="transform", name=f"{made['name']}-select")
        named = self._function(part, "selector")
        if named is None:
            return made
        self._call(select, named, given, "selector")
        chosen = Made(part, type="transform", name=f"{made['name']}-names", function=f"{_FUNCTIONS}:selected")
        chosen["params"] = {
            "value": f"${{{select['name']}}}",
            "known": list(names),
            "several": part["allow_multiple_selections"].flag(),
        }
        for member in members:
            member.set("when", f"{member['name']!r} in ${{{chosen['name']}}}", part["selector"])
        return self._block(made, "sequence", "routed", [select, chosen, *members])


def _asks(value: Any) -> bool:
    """Whether a setting asks for something: a mapping with something switched on, or a list."""
    return any(one is True for one in value.values()) if isinstance(value, dict) else bool(value)
