"""Agent Builder: skills whose action is a data pipeline (YAML, JSON, or the head of a Markdown file).

A pipeline there is one pool of named values that each step reads and adds to. What the skill ``requires`` becomes a parameter, what
a step writes a value. A key that nobody writes is None there, so it becomes a parameter with that default. Meanings:

- ``run_if``, ``skip_if`` and ``conditional`` become a step that decides and a ``when`` on what depends on it. Where a step
  left out would have written a value that others read, a small step publishes None in its place, as a missing key is there;
- members of a ``parallel`` step that write the same key: the last in the list wins, whoever ends last. A member that reads what
  its sibling writes would get None there, and is refused;
- the first failure of a parallel step stops its siblings; the action's ``timeout`` and ``retry`` hold (upstream reads neither);
- ``{key}`` in a query is a bound value, never pasted text; ``credential_ref`` names a source whose URL is in the environment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from procflow.dialects.agent_builder_queries import Queries
from procflow.dialects.agent_builder_values import Known, Pool
from procflow.dialects.foreign import Made, Part, Translation, escaped, name_of, near
from procflow.dialects.runtime import OPERATORS
from procflow.grammar import is_name

__all__ = ["matches", "translate"]

_TYPES = ("query", "transform", "merge", "skill", "parallel", "conditional")
_STEP_KEYS = ("type", "name", "description", "inputs", "output", "run_if", "skip_if")
_KEYS = {
    "query": ("source", "query", "collection", "filter", "credential_ref", "db_config_file"),
    "transform": ("function",),
    "merge": (),
    "skill": ("skill",),
    "parallel": ("steps",),
    "conditional": ("condition", "then_step", "else_step"),
}
_MARKS = {"run_if", "skip_if", "then_step", "else_step", "credential_ref"}
_SKILL_KEYS = (
    "name",
    "description",
    "requires",
    "produces",
    "optional_produces",
    "executor",
    "action",
    "hitl_enabled",
)
_ACTION_KEYS = ("type", "steps", "source", "credential_ref", "db_config_file", "timeout", "retry")
_RUNTIME = "procflow.dialects.runtime"


def matches(document: Mapping[str, Any]) -> bool:
    """A skill with an action that is a data pipeline, that action alone, or steps with conditions of this kind."""
    action = document.get("action")
    if isinstance(action, dict):
        return action.get("type") == "data_pipeline"
    if document.get("type") == "data_pipeline":
        return True
    return isinstance(document.get("steps"), list) and _has_marks(document["steps"])


def _has_marks(value: Any) -> bool:
    steps = value if isinstance(value, list) else [value]
    return any(
        isinstance(step, dict)
        and (bool(_MARKS & step.keys()) or step.get("type") == "conditional" or _has_marks(step.get("steps", [])))
        for step in steps
    )


def translate(work: Translation) -> Made | None:
    """The pipeline."""
    return _Skill(work).pipeline()


class _Skill:
    def __init__(self, work: Translation) -> None:
        self.work = work
        root = work.root
        self.root = root
        action = root["action"]
        self.action = root if action.value is None else action
        self.pool = Pool(root, self.action["steps"].value)
        self.queries = Queries(self.action, self.pool)

    def pipeline(self) -> Made | None:
        root, action = self.root, self.action
        refused = dict.fromkeys(
            ("llm_model", "prompt", "system_prompt", "rest"), "only the steps of a data pipeline are run"
        )
        if action is not root:
            root.only(_SKILL_KEYS, refused)
            action.only(
                _ACTION_KEYS,
                dict.fromkeys(("function", "module", "query", "script_path", "url"), "a key of another action"),
            )
            root["executor"].choice(("action",), "action")
            action["type"].choice(("data_pipeline",), required=True)
        else:
            root.only({*_SKILL_KEYS, *_ACTION_KEYS} - {"action"}, refused)
        if root["hitl_enabled"].flag():
            root["hitl_enabled"].fail("procflow runs without people in the loop", "take it out to run unattended")
        made = Made(root).set("name", name_of(root["name"].text(), "data_pipeline"), root["name"])
        made.put("description", root["description"].text(), root["description"])
        made["params"], made["sources"] = {}, {}
        self._clocks(made)
        known = Known()
        made["steps"] = self._steps(action["steps"].members(1, "a list of steps"), known, "")
        made["steps"] += self._promises(made, known)
        made["params"] = self.pool.params()
        made["sources"] = self.queries.sources
        return Made(root).take(made, without_empty=True)

    def _clocks(self, made: Made) -> None:
        timeout, retry = self.action["timeout"], self.action["retry"]
        if timeout.value is not None:
            made.set("limits", Made(timeout).put("timeout", timeout.seconds(), timeout), timeout)
            timeout.note("the other system reads no timeout here; procflow holds the whole run to it")
        retries = retry.whole(0)
        if retries:
            made.set("defaults", Made(retry).put("retries", retries, retry), retry)
            retry.note("the other system reads no retry here; procflow runs a failed step again so often")

    def _promises(self, made: Made, known: Known) -> list[Made]:
        """``produces``: shown at the end, and checked where a step that makes one may be skipped."""
        listed = self.root["produces"]
        unsure: dict[str, str] = {}
        shown = []
        for part in listed.members():
            key = part.text(required=True)
            if not key or not (key in known.values or known.is_open):
                if key:
                    part.fail(f"no step makes {key!r}", near(key, known.values))
                continue
            shown.append(known.value_of(key))
            presence = known.values.get(key)
            if presence is not None and presence.flag:
                unsure[key] = f"${{{presence.flag}}}"
        for part in self.root["optional_produces"].members():
            key = part.text(required=True)
            if key in known.values and not known.values[key].flag and known.value_of(key) not in shown:
                shown.append(known.value_of(key))
        made.put("show", shown, listed)
        if not unsure:
            return []
        step = Made(listed, type="transform", name=self.pool.step_name("check_produces"))
        step["function"] = f"{_RUNTIME}:required"
        return [step.set("inputs", unsure, listed)]

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _steps(self, parts: list[Part], known: Known, index: str) -> list[Made]:
        """The steps of a list, one after the other."""
        found: list[Made] = []
        for i, part in enumerate(parts):
            found += self._step(part, known, f"{index}{i}")
        return found

    def _step(self, part: Part, known: Known, index: str) -> list[Made]:
        """One step as the steps of procflow's that it takes, in order; ``known`` learns what it writes."""
        if not part.mapping(required=True):
            return []
        kind = part["type"].choice(_TYPES, required=True)
        if not kind:
            return []
        part.only(
            (*_STEP_KEYS, *_KEYS[kind]),
            {"max_workers": "the other system has no such key; procflow's is max_parallelism"},
        )
        title = part["name"].text()
        name = self.pool.step_name(name_of(title, f"step_{index}"))
        gate = self._gate(part, known, name)
        inner = known.copy()
        members = list(getattr(self, f"_{kind}")(part, inner, name, index))
        for step in members[-1:]:
            about = [title if title and name_of(title) != name else "", part["description"].text()]
            step.put("description", "; ".join(text for text in about if text), part["name"])
        if gate is None:
            known.become(inner)
            return members
        runs = gate["name"]
        return [
            gate,
            self._when(members, f"${{{runs}}}", part, name),
            *self._left_out(known, inner, runs, part, f"not ${{{runs}}}"),
        ]

    def _when(self, members: list[Made], when: str, part: Part, name: str) -> Made:
        if len(members) == 1 and "when" not in members[0]:
            return members[0].set("when", when, part)
        return Made(part, type="sequence", name=self.pool.step_name(f"{name}_steps"), when=when, steps=members)

    def _left_out(self, known: Known, inner: Known, runs: str, part: Part, when: str) -> list[Made]:
        """A step that publishes None for what is not written when ``runs`` is false, if anyone reads it."""
        values = self.pool.missing(known, inner, runs)
        if not values:
            return []
        return [self._constants(part, f"{runs}_not", values, when)]

    def _constants(self, part: Part, name: str, values: dict[str, Any], when: str) -> Made:
        step = Made(part, type="transform", name=self.pool.step_name(name), when=when)
        if len(values) == 1:
            (key, value), = values.items()  # fmt: skip
            step.update(function=f"{_RUNTIME}:constant", params={"value": value}, output=key)
        else:
            step.update(function=f"{_RUNTIME}:constants", params=dict(values), outputs=list(values))
        return step

    # -- conditions ----------------------------------------------------------------------------------------------------

    def _gate(self, part: Part, known: Known, name: str) -> Made | None:
        """The step that decides ``run_if`` or ``skip_if``; None where the step always runs."""
        key = "run_if" if "run_if" in part else "skip_if"
        if key == "run_if" and "skip_if" in part:
            part["skip_if"].note("beside run_if only that counts; left out")
        condition = part[key]
        if key not in part or not condition.mapping():
            return None
        if "field" not in condition or "operator" not in condition:
            condition.note("has no field or no operator, so the step always runs")
            return None
        return self._decision(condition, known, f"{name}_runs", "holds" if key == "run_if" else "fails")

    def _decision(self, condition: Part, known: Known, name: str, function: str) -> Made:
        """A step whose value is whether a condition holds (``holds``) or not (``fails``)."""
        condition.only(("field", "operator", "value"))
        field = condition["field"].text(required=True)
        operator = condition["operator"].choice(tuple(OPERATORS), required=True)
        key, _, path = field.partition(".")
        step = Made(condition, type="transform", name=self.pool.value_name(name), function=f"{_RUNTIME}:{function}")
        step.set("inputs", {"found": self.pool.read(key, known, condition["field"])}, condition["field"])
        params = Made(condition, operator=operator)
        if condition["value"].is_there:
            params.set("value", escaped(condition["value"].value), condition["value"])
        return step.set("params", params.put("path", path))

    # -- kinds ---------------------------------------------------------------------------------------------------------

    def _transform(self, part: Part, known: Known, name: str, index: str) -> Iterator[Made]:
        function = part["function"]
        target = function.text(required=True)
        step = Made(part, type="transform", name=name)
        if ":" in target:
            step.set("function", target, function)
        elif target:
            step.update(self.work.bound(function, target))
            step.origins["function"] = function
        inputs = {key: self.pool.read(key, known, each) for key, each in self._inputs(part)}
        yield self._written(step.put("inputs", inputs, part["inputs"]), part, known, "result")

    def _merge(self, part: Part, known: Known, name: str, index: str) -> Iterator[Made]:
        listed = part["inputs"].members(2, "at least two keys")
        step = Made(part, type="transform", name=name, function=f"{_RUNTIME}:nested")
        inputs, there = {}, {}
        for key, each in self._inputs(part):
            if not (key in known.values or key in self.pool.required or known.is_open):
                each.note(f"no step before makes {key!r}; left out of the merge")
                continue
            inputs[key] = self.pool.read(key, known, each)
            presence = known.values.get(key)
            if presence is not None and presence.flag:
                there[key] = f"${{{presence.flag}}}"
        if there:
            step["function"] = f"{_RUNTIME}:present"
        step.put("inputs", inputs, part["inputs"])
        if there:
            step["params"] = {"there": there}
        if listed and not inputs:
            part["inputs"].fail("no step before makes any of these keys")
        yield self._written(step, part, known, "merged")

    def _skill(self, part: Part, known: Known, name: str, index: str) -> Iterator[Made]:
        skill = part["skill"]
        step = Made(part, type="transform", name=name)
        if skill.text(required=True):
            step.update(self.work.bound(skill, skill.value, what="skill"))
            step.origins["function"] = skill
        if part["output"].is_there:
            part["output"].fail("a skill publishes the keys it returns", "take output out", on_key=True)
        inputs = {}
        for key, each in self._inputs(part):
            if key in known.values or key in self.pool.required or known.is_open:
                inputs[key] = self.pool.read(key, known, each)
            else:
                each.note(f"no step before makes {key!r}; left out")
        known.is_open = True
        yield step.put("inputs", inputs, part["inputs"]).set("outputs", "*", skill)

    def _query(self, part: Part, known: Known, name: str, index: str) -> Iterator[Made]:
        step = self.queries.step(part, known, name)
        yield self._written(step, part, known, "result")

    def _parallel(self, part: Part, known: Known, name: str, index: str) -> Iterator[Made]:
        for key in ("inputs", "output"):
            if key in part:
                part[key].fail("a parallel step has none: its members read and write", on_key=True)
        listed = part["steps"].members(1, "a list of steps")
        writes = [self.pool.writes(member.value) for member in listed]
        union = known.copy()
        members = []
        for i, member in enumerate(listed):
            inside = known.copy()
            later = {key for other in writes[i + 1 :] for key in other}
            for key in writes[i] & later:
                inside.renamed[key] = self.pool.value_name(f"{key}_{i}")
                member.note(f"a later member writes {key!r}, too, and wins")
            inside.hide(writes, i, listed)
            steps = self._step(member, inside, f"{index}_{i}")
            own = self.pool.step_name(f"{name}_{i}") if len(steps) != 1 else ""
            members += steps if len(steps) == 1 else [Made(member, type="sequence", name=own, steps=steps)]
            union.add(inside, known, writes[i] - later, writes[:i], member)
        known.become(union)
        yield Made(part, type="parallel", name=name).put("steps", members, part["steps"])

    def _conditional(self, part: Part, known: Known, name: str, index: str) -> Iterator[Made]:
        for key in ("inputs", "output"):
            if key in part:
                part[key].fail("a conditional step has none: its branches read and write", on_key=True)
        condition = part["condition"]
        if not condition.mapping(required=True):
            return
        decision = self._decision(condition, known, f"{name}_holds", "holds")
        yield decision
        flag = decision["name"]
        branches: list[tuple[Part, Known, str, str]] = []
        for key, word, when in (("then_step", "then", f"${{{flag}}}"), ("else_step", "else", f"not ${{{flag}}}")):
            inside = known.copy()
            branch = part[key]
            if branch.value is not None:
                if isinstance(branch.value, list):
                    branch.fail(
                        "is one step, not a list", "put the steps into a file of their own, or into type: parallel"
                    )
                    continue
                steps = self._step(branch, inside, f"{index}_{word}")
                if steps:
                    yield self._when(steps, when, branch, f"{name}_{word}")
            branches.append((branch, inside, flag, when))
        if len(branches) == 2:
            yield from self._after(known, branches, part, name)

    def _after(
        self, known: Known, branches: list[tuple[Part, Known, str, str]], part: Part, name: str
    ) -> Iterator[Made]:
        """What has a value after a conditional, and fillers for what only one branch writes."""
        (_, then, flag, holds), (_, other, _, fails) = branches
        otherwise = ""
        if self.pool.only_in(known, other, then):
            otherwise = self.pool.value_name(f"{name}_fails")
            negated = Made(part, type="transform", name=otherwise, function=f"{_RUNTIME}:negated")
            yield negated.set("inputs", [flag])
        before = known.copy()
        for inside, without, runs, when in ((then, other, flag, fails), (other, then, otherwise, holds)):
            values = self.pool.missing(before, inside, runs, without, known)
            if values:
                yield self._constants(part, f"{name}_none", values, when)

    # -- keys ----------------------------------------------------------------------------------------------------------

    def _inputs(self, part: Part) -> Iterator[tuple[str, Part]]:
        for each in part["inputs"].members():
            key = each.text(required=True)
            if key and not is_name(key):
                each.fail(
                    f"{key!r} is no key of the pipeline's values", "inputs name whole values: letters, digits, _ and -"
                )
            elif key:
                yield key, each

    def _written(self, step: Made, part: Part, known: Known, default: str) -> Made:
        """The step with the values it publishes."""
        output = part["output"]
        keys = (
            [each.text(required=True) for each in output.members()]
            if isinstance(output.value, list)
            else [output.text(default)]
        )
        for key in keys:
            if not is_name(key):
                output.fail(f"{key!r} can't name a value", "write letters, digits, _ and -")
        names = [known.write(key) for key in keys]
        if isinstance(output.value, list) and len(names) != 1:
            return step.set("outputs", names, output)
        return step.set("output", names[0] if names else default, output)
