"""Step ids: workflows with ``steps`` by id, a ``start_step``, and chains by ``next_step`` (JSON or YAML).

The chain becomes the pipeline's sequence; ``parallel``, ``loop`` and ``fork_join`` become blocks whose members are other entries of
``steps`` (their own ``next_step`` is not followed). Agents are functions that the user binds; they are called with the fields of
``input_mapping`` by keyword. Meanings:

- a parallel step or fork lets its members finish when one fails, and then fails; a fork succeeds with the branches that its
  ``join_policy`` asks for, after all have ended, so that its result never depends on who was first;
- a loop is a map; ``on_error`` collect and continue both let the other items finish and then fail;
- a condition that can't be told is False. ``a contains b`` is refused: the other system takes it the wrong way round;
- a step on no chain and in no block never runs, which is noted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from procflow.call import INDEX
from procflow.compiling.surface import ROOTS
from procflow.dialects import step_references as refs
from procflow.dialects.foreign import Made, Part, Translation, name_of, near
from procflow.grammar import is_name

__all__ = ["matches", "translate"]

_TYPES = ("agent", "parallel", "conditional", "loop", "fork_join")
_UNABLE = ("sub_workflow", "wait_for_event", "validate")
_ROOT_KEYS = ("workflow_id", "name", "version", "description", "start_step", "steps")
_STEP_KEYS = ("id", "type", "next_step", "name", "description")
_KEYS = {
    "agent": ("agent_name", "input_mapping"),
    "parallel": ("parallel_steps", "max_parallelism"),
    "conditional": ("condition", "if_true_step", "if_false_step"),
    "loop": ("loop_config",),
    "fork_join": ("fork_join_config",),
}


def matches(document: Mapping[str, Any]) -> bool:
    """Steps by id, of which one says which is next."""
    steps = document.get("steps")
    if not isinstance(steps, dict):
        return False
    return "start_step" in document or any(
        isinstance(step, dict) and {"next_step", "agent_name"} & step.keys() for step in steps.values()
    )


def translate(work: Translation) -> Made | None:
    """The pipeline."""
    return _Workflow(work).pipeline()


class _Workflow:
    def __init__(self, work: Translation) -> None:
        self.work = work
        self.root = work.root
        self.steps = {key: part for key, part in work.root["steps"].items() if isinstance(part.value, dict)}
        self.own = {key: f"{key}_" if key in (*ROOTS, INDEX, "loop", "workflow") else key for key in self.steps}
        self.reader = refs.References(self.steps, self.own)
        self.done: set[str] = set()
        self.valued: set[str] = set()
        """Steps whose value has to be one: that of the block around them is made of theirs."""

    def pipeline(self) -> Made | None:
        root = self.root
        root.only(_ROOT_KEYS)
        root["steps"].mapping(required=True)
        self._check_steps()
        if self.work.problems:
            return None
        chain = self._chain()
        made = Made(root)
        title = root["name"].text() or root["workflow_id"].text()
        made.put("name", name_of(title, "workflow"), root["name"])
        about = [title if title != made["name"] else "", self._version(), root["description"].text()]
        made.put("description", "; ".join(text for text in about if text))
        made["params"] = {}
        made["steps"] = [step for key in chain for step in self._step(key, ())]
        if chain and self._has_value(chain[-1]):
            made["show"] = [self.own[chain[-1]]]
        made["params"] = {name: Made(part, required=True) for name, part in self.reader.inputs.items()}
        if not made["params"]:
            del made["params"]
        for key, part in self.steps.items():
            if key not in self.done:
                part.note("no step leads here, so it never runs; left out")
        return made

    def _has_value(self, key: str) -> bool:
        kind = self.steps[key]["type"].text("agent")
        return kind in ("agent", "loop", "fork_join") or (kind == "parallel" and self.reader.is_read(key))

    def _version(self) -> str:
        version = self.root["version"].value
        return f"version {version}" if isinstance(version, (str, int, float)) and not isinstance(version, bool) else ""

    # -- checks before anything is made --------------------------------------------------------------------------------

    def _check_steps(self) -> None:
        for key, part in self.root["steps"].items():
            if not is_name(key):
                part.fail("this id can't be the name of a step", "write letters, digits, _ and -", on_key=True)
            if not part.mapping(required=True):
                continue
            own_id = part["id"]
            if own_id.is_there and own_id.value != key:
                own_id.fail(f"the id differs from its key, {key!r}", "make them the same")
            kind = self._kind(part)
            if kind:
                part.only((*_STEP_KEYS, *_KEYS[kind]), _others(kind), why="has no meaning for this type of step")

    def _kind(self, part: Part) -> str:
        kind = part["type"].text("agent")
        if kind in _UNABLE:
            part["type"].fail(f"procflow can't do {kind}", "the other system has no such step either; take it out")
        elif kind not in _TYPES:
            part["type"].fail(f"unknown step type {kind!r}", near(kind, _TYPES) or f"expected {', '.join(_TYPES)}")
        return kind if kind in _TYPES else ""

    def _chain(self) -> list[str]:
        """Ids from the start along ``next_step``."""
        start = self.root["start_step"]
        at: str | None = self._id(start) if start.text(required=True) else None
        chain: list[str] = []
        while at is not None:
            chain.append(at)
            following = self.steps[at]["next_step"]
            if not following.text():
                break
            found = self._id(following)
            if found in chain:
                ring = " -> ".join([*chain[chain.index(found) :], found])
                following.fail(
                    f"steps follow each other in a circle: {ring}", "let one of them end the chain: next_step: null"
                )
                break
            at = found
        return chain

    def _id(self, part: Part, around: tuple[str, ...] = ()) -> str | None:
        """The id that a part names; None, and a problem, where there is no such step or it holds this one."""
        key = part.text(required=True)
        if not key:
            return None
        if key not in self.steps:
            part.fail(f"there is no step {key!r}", near(key, self.steps) or "name a key of steps")
            return None
        if key in around:
            ring = " -> ".join([*around[around.index(key) :], key])
            part.fail(f"steps hold each other in a circle: {ring}", "take one of them out")
            return None
        return key

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _step(self, key: str, around: tuple[str, ...]) -> list[Made]:
        """The steps in procflow's language for one entry, in order."""
        part, self_and_around = self.steps[key], (*around, key)
        self.done.add(key)
        kind = part["type"].text("agent")
        if around and part["next_step"].text() and part["next_step"].value != self.steps[around[-1]]["next_step"].value:
            part["next_step"].note(f"not followed: {key} runs as a part of {around[-1]}")
        made = Made(part, name=self.own[key])
        title = part["name"].text()
        made.put("description", "; ".join(t for t in (title if title != key else "", part["description"].text()) if t))
        return list(getattr(self, f"_{kind}")(made, part, self_and_around))

    def _agent(self, made: Made, part: Part, around: tuple[str, ...]) -> Iterator[Made]:
        agent = part["agent_name"]
        name = agent.text(required=True)
        step = Made(part, type="transform")
        step.update(made)
        step.update(
            self.work.bound(agent, name, what="agent") if name else {"function": "procflow.dialects.runtime:nothing"}
        )
        step.origins["function"] = agent
        mapping = part["input_mapping"]
        if mapping.mapping():
            inputs, params = Made(mapping), Made(mapping)
            for field, source in mapping.items():
                whole, value = self.reader.value(source)
                (inputs if whole else params).set(field, value, source)
            step.put("inputs", inputs, mapping).put("params", params, mapping)
        yield step

    def _members(self, parts: list[Part], around: tuple[str, ...]) -> list[Made]:
        """One step of procflow's for each named entry; an entry that needs several becomes a sequence."""
        found, seen = [], set[str]()
        for part in parts:
            key = self._id(part, around)
            if key is None:
                continue
            if key in seen:
                part.fail(f"{key!r} is listed twice", "each step stands once in a block")
                continue
            seen.add(key)
            steps = self._step(key, around)
            found.append(steps[0] if len(steps) == 1 else self._sequence(key, steps))
        return found

    def _sequence(self, key: str, steps: list[Made]) -> Made:
        made = Made(self.steps[key], type="sequence", name=self._free(f"{self.own[key]}_steps"))
        if key in self.valued:
            made.update(merge="procflow.dialects.runtime:last", output=self.own[key])
        return made.put("steps", steps)

    def _free(self, name: str) -> str:
        while name in self.steps:
            name += "_"
        return name

    def _parallel(self, made: Made, part: Part, around: tuple[str, ...]) -> Iterator[Made]:
        listed = part["parallel_steps"]
        step = Made(part, type="parallel")
        step.update(made)
        step.put("max_parallelism", part["max_parallelism"].whole(least=1), part["max_parallelism"])
        step["on_error"] = "finish"  # the others are let finish, then the block fails
        if self.reader.is_read(around[-1]) or around[-1] in self.valued:
            step["output"] = made["name"]
            keys = [str(member.value) for member in listed]
            self.reader.hold(around[-1], keys)
            self.valued.update(keys)
        step.put("steps", self._members(listed.members(2, "at least two ids of steps"), around), listed)
        yield step

    def _conditional(self, made: Made, part: Part, around: tuple[str, ...]) -> Iterator[Made]:
        name, condition = made["name"], part["condition"]
        if not condition.mapping(required=True):
            return
        condition.only(("expression",), {"operator": "only expression is read: write the comparison there"})
        branches = [
            (part[key], negation)
            for key, negation in (("if_true_step", ""), ("if_false_step", "not "))
            if part[key].text()
        ]
        if not branches:
            part.fail("a conditional needs if_true_step or if_false_step")
        expression, values = self.reader.condition(condition["expression"])
        judge = Made(part, type="transform")
        judge.update(made)
        judge["function"] = "procflow.dialects.runtime:judged"
        judge.put("params", {"expression": expression, "values": values}, condition["expression"])
        yield judge
        for branch, negation in branches:
            for member in self._members([branch], around):
                member["when"] = f"{negation}${{{name}}}"
                member.origins["when"] = branch
                yield member

    def _loop(self, made: Made, part: Part, around: tuple[str, ...]) -> Iterator[Made]:
        config, name = part["loop_config"], made["name"]
        if not config.mapping(required=True):
            return
        config.only(("collection", "loop_body", "execution_mode", "max_parallelism", "max_iterations", "on_error"))
        collection, most = config["collection"], config["max_iterations"].whole(least=1)
        mode = config["execution_mode"].choice(("sequential", "parallel"), "sequential")
        on_error = config["on_error"].choice(("stop", "continue", "collect"), "stop")
        items, body = self.reader.items(collection), config["loop_body"]
        told = most is not None or self.reader.counts
        self.valued.update(str(last.value) for last in list(body)[-1:])
        with self.reader.loop(told):
            members = self._members(body.members(1, "at least one id of a step"), around)
        step = Made(part, type="map")
        step.update(made)
        if told:
            # Each item with its index and the total beside it.
            prepare = Made(part, type="transform", name=self._free(f"{name}_items"))
            prepare["function"] = "procflow.dialects.runtime:loop_items"
            prepare.put("params", {"items": items, **({"most": most} if most is not None else {})}, collection)
            yield prepare
            step["items"], step["as"] = f"${{{prepare['name']}}}", "loop"
        else:
            step["items"] = items
        step.origins["items"] = collection
        if most is not None:
            config["max_iterations"].note("of more items the rest is left out, and the log of that step says so")
        if mode == "sequential":
            if config["max_parallelism"].whole(least=1) not in (None, 1):
                config["max_parallelism"].fail(
                    "a sequential loop runs one item at a time", "write execution_mode: parallel"
                )
            step.put("max_parallelism", 1, config["execution_mode"])
        else:
            step.put("max_parallelism", config["max_parallelism"].whole(least=1), config["max_parallelism"])
        step.put("on_error", "stop" if on_error == "stop" else "finish", config["on_error"])
        step["merge"] = "procflow.dialects.runtime:loop_output"
        step["output"] = name
        step.put("steps", members, body)
        yield step

    def _fork_join(self, made: Made, part: Part, around: tuple[str, ...]) -> Iterator[Made]:
        config = part["fork_join_config"]
        if not config.mapping(required=True):
            return
        config.only(("branches", "join_policy", "n_required", "branch_timeout_seconds"))
        branches = config["branches"]
        if not branches.mapping(required=True):
            return
        if len(branches.value) < 2:
            branches.fail("a fork has at least two branches")
        step = Made(part, type="parallel")
        step.update(made)
        step.update(self._policy(config, len(branches.value)))
        step.origins["on_error"] = step.origins["tolerate"] = config["join_policy"]
        step["output"] = made["name"]
        common = config["branch_timeout_seconds"]
        step.put("steps", [self._branch(key, branch, common, around) for key, branch in branches.items()], branches)
        yield step

    def _policy(self, config: Part, count: int) -> dict[str, Any]:
        """How many branches may fail. All are let finish: the result must not depend on who was first."""
        policy = config["join_policy"].choice(("all", "any", "majority", "n_of_m"), "all", any_case=True)
        needed = config["n_required"]
        if policy == "n_of_m":
            most = needed.whole(least=1, required=True)
            if most is not None and most > count:
                needed.fail(f"{most} of {count} branches can never succeed")
            need = most or count
        else:
            if needed.value is not None:
                needed.fail(f"goes with join_policy: n_of_m, not with {policy}")
            need = {"all": count, "any": 1, "majority": count // 2 + 1}[policy]
        return {"on_error": "finish"} if need == count else {"on_error": "continue", "tolerate": max(0, count - need)}

    def _branch(self, key: str, branch: Part, common: Part, around: tuple[str, ...]) -> Made:
        if not is_name(key):
            branch.fail("this can't be the name of a branch", "write letters, digits, _ and -", on_key=True)
        made = Made(branch, type="sequence", name=key)
        if not branch.mapping(required=True):
            return made
        branch.only(("steps", "timeout_seconds"))
        clock = branch["timeout_seconds"] if branch["timeout_seconds"].value is not None else common
        made.put("timeout", clock.seconds(), clock)
        listed = branch["steps"].members(1, "at least one id of a step")
        members = self._members(listed, around)
        # The branch is worth what its last step is worth, under the branch's name.
        if len(members) == 1 and members[0]["type"] == "transform":
            members[0]["output"] = key
        else:
            made["merge"] = "procflow.dialects.runtime:last"
            made["output"] = key
        if listed:
            self.reader.hold(around[-1], [str(listed[-1].value)], key)
        return made.put("steps", members, branch["steps"])


def _others(kind: str) -> dict[str, str]:
    """Keys of other types of steps, which this one can't have."""
    return {key: f"a key of type: {other}" for other, keys in _KEYS.items() if other != kind for key in keys}
