"""Workflow functions: what steps of workflows get (``StepInput``) and return (``StepOutput``), and what converted ones call.

A step is called with one ``StepInput`` and returns a ``StepOutput`` or just its content. Blocks make one output of those of their
steps. Nothing here knows of files or positions, and nothing heavy is imported: workers load this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from procflow.attempt import FailedMember
from procflow.dialects.runtime import ConvertedStepError

__all__ = [
    "SESSION", "SessionState", "StepInput", "StepOutput", "as_output", "attempted", "chosen", "iteration", "joined", "last_of",
    "looped", "routed", "selected", "step_input",
]  # fmt: skip

SESSION = "session_state"
"""The key of procflow's state under which a workflow's session state is kept."""


class SessionState(MutableMapping[str, Any]):
    """The state that the steps of a workflow share: ``state["x"]`` reads, ``state["x"] = 1`` writes.

    A step reads what the steps before it wrote, and its own changes. Changes of steps that ran beside each other are joined key by
    key in declared order: mappings in one another, of anything else the later one holds. Keys that the workflow declares
    with a reducer of their own are written by ``append``, ``add``, ``union`` and ``merge``, so that nothing is lost.
    """

    def _parts(self) -> tuple[Any, set[str]]:
        """procflow's state, and the keys that have a reducer of their own."""
        from procflow import step

        return step.state, {key for key in step.state if key != SESSION}

    def _session(self) -> Mapping[str, Any]:
        state, _ = self._parts()
        found: Mapping[str, Any] = state[SESSION] if SESSION in set(state) else {}
        return found

    def __getitem__(self, key: str) -> Any:
        state, own = self._parts()
        return state[key] if key in own else self._session()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        state, own = self._parts()
        if key in own:
            raise ConvertedStepError(f"{key!r} has a reducer: write it by append, add, union or merge")
        state.merge(SESSION, {key: value})

    def __delitem__(self, key: str) -> None:
        raise ConvertedStepError(f"{key!r} can't be taken out of the session state: steps beside this one may read it")

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*self._session(), *sorted(self._parts()[1])])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def append(self, key: str, value: Any) -> None:
        """One more member of a list."""
        self._parts()[0].append(key, value)

    def add(self, key: str, amount: Any) -> None:
        """Add an amount."""
        self._parts()[0].add(key, amount)

    def union(self, key: str, members: Any) -> None:
        """More members of a set."""
        self._parts()[0].union(key, members)

    def merge(self, key: str, value: Mapping[str, Any]) -> None:
        """More keys of a mapping."""
        self._parts()[0].merge(key, value)


@dataclass(frozen=True, repr=False)
class StepOutput:
    """What a step or a block is worth. ``steps`` are the outputs inside a block; ``stop`` ends the workflow after this step."""

    content: Any = None
    success: bool = True
    stop: bool = False
    error: str | None = None
    step_name: str = ""
    steps: tuple[StepOutput, ...] = ()

    def __repr__(self) -> str:
        told = [repr(self.content)]
        told += [
            f"{flag}={getattr(self, flag)!r}"
            for flag in ("success", "stop")
            if getattr(self, flag) != (flag == "success")
        ]
        told += [f"error={self.error!r}"] if self.error else []
        told += [f"steps: {', '.join(one.step_name for one in self.steps)}"] if self.steps else []
        return f"StepOutput({', '.join(told)})"

    def find(self, name: str) -> StepOutput | None:
        """This output or one inside it, by the step's name."""
        if _same(self.step_name, name):
            return self
        return next((found for one in reversed(self.steps) if (found := one.find(name)) is not None), None)


@dataclass(frozen=True)
class StepInput:
    """What a step gets: the workflow's ``input``, and the outputs of the steps before it by name, in order."""

    input: Any = None
    previous_step_outputs: Mapping[str, StepOutput] = field(default_factory=dict)
    previous_step_content: Any = None

    @property
    def workflow_session_state(self) -> SessionState:
        """What the steps share."""
        return SessionState()

    def get_step_output(self, name: str) -> StepOutput | None:
        """The output of a step before this one, inside blocks, too; None where there is none."""
        found = (one.find(name) for one in reversed(list(self.previous_step_outputs.values())))
        return next((output for output in found if output is not None), None)

    def get_step_content(self, name: str) -> Any:
        """The content of a step before this one; of a block the contents of its steps by name, None where there is none."""
        output = self.get_step_output(name)
        if output is None:
            return None
        return {one.step_name: one.content for one in output.steps} if output.steps else output.content

    def get_all_previous_content(self) -> str:
        """The contents of all steps before this one as one text."""
        shown = (one for one in self.previous_step_outputs.values() if one.content is not None)
        return "\n\n".join(f"=== {one.step_name} ===\n{one.content}" for one in shown)

    def get_last_step_content(self) -> Any:
        """The content of the step before this one."""
        return self.previous_step_content


def _same(name: str, other: str) -> bool:
    return name == other or re.sub(r"[^A-Za-z0-9_-]", "_", name) == re.sub(r"[^A-Za-z0-9_-]", "_", other)


def as_output(value: Any, name: str = "") -> StepOutput:
    """What a step returned as an output with its name; a failed member of a block as an unsuccessful one."""
    if isinstance(value, StepOutput):
        return replace(value, step_name=name) if name else value
    if isinstance(value, FailedMember):
        told = f"{value.type}: {value.message}"
        return StepOutput(f"Step {name} failed: {told}", False, False, told, name)
    return StepOutput(value, step_name=name)


# -- what converted workflows call ---------------------------------------------------------------------------------------


def step_input(
    input: Any = None, base: StepInput | None = None, previous: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The input of a step, ``given``, and whether it is to run at all, ``go``: not after one that asked to stop."""
    start = base if base is not None else StepInput(input)
    outputs = [as_output(value, name) for name, value in (previous or {}).items()]
    content = start.previous_step_content
    for output in outputs:
        if output.content is not None or not output.success:
            content = output.content
    known = {**start.previous_step_outputs, **{output.step_name: output for output in outputs}}
    given = StepInput(start.input, known, content)
    return {"go": not any(output.stop for output in outputs), "given": given}


def _outputs(members: Mapping[str, Any]) -> tuple[StepOutput, ...]:
    """The outputs of the steps, without the inputs that were made for them."""
    made = ((name, value) for name, value in members.items() if not isinstance(value, dict) or not _is_input(value))
    return tuple(as_output(value, name) for name, value in made)


def _is_input(value: dict[str, Any]) -> bool:
    return value.keys() == {"go", "given"} and isinstance(value["given"], StepInput)


def last_of(members: Mapping[str, Any]) -> StepOutput:
    """Steps one after the other as one output: the content of the last; a merge."""
    outputs = _outputs(members)
    return StepOutput(
        outputs[-1].content if outputs else None,
        all(output.success for output in outputs),
        any(output.stop for output in outputs),
        next((output.error for output in outputs if output.error), None),
        steps=outputs,
    )


def looped(members: Mapping[str, Any]) -> StepOutput:
    """The turns of a loop as one output; a merge."""
    return last_of({name: value for name, value in members.items() if re.fullmatch(r"turn_\d+", name)})


def routed(members: Mapping[str, Any]) -> StepOutput:
    """The choices that were selected as one output; a merge. The first two members say which they are."""
    return last_of(dict(list(members.items())[2:]))


def chosen(members: Mapping[str, Any]) -> StepOutput:
    """The branch that was taken, as one output, without content where none was; a merge."""
    taken = [as_output(members[name]) for name in ("then", "otherwise") if name in members]
    return taken[0] if taken else StepOutput()


def joined(members: Mapping[str, Any]) -> StepOutput:
    """Steps that ran beside each other as one output, in declared order; a merge."""
    outputs = _outputs(members)
    parts = [f"### {'SUCCESS' if one.success else 'FAILURE'}: {one.step_name}\n{one.content}" for one in outputs]
    return StepOutput(
        "\n\n".join(["## Parallel Execution Results", *parts]),
        all(output.success for output in outputs),
        any(output.stop for output in outputs),
        next((output.error for output in outputs if output.error), None),
        steps=outputs,
    )


def attempted(members: Mapping[str, Any]) -> StepOutput:
    """The one step inside, failed or not; a merge."""
    return replace(_outputs(members)[0], step_name="")


def iteration(output: StepOutput) -> dict[str, Any]:
    """What one turn of a loop made, for its end condition, and whether it asked to stop."""
    return {"outputs": list(output.steps), "stop": output.stop}


def selected(value: Any, known: Sequence[str], several: bool = False) -> list[str]:
    """Names of the steps that a selector chose: a name, a step, or a list of these. Raises ``ConvertedStepError``."""
    chosen = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    names = [one if isinstance(one, str) else str(getattr(one, "name", one)) for one in chosen]
    found = [next((own for own in known if _same(own, name)), "") for name in names]
    if "" in found:
        raise ConvertedStepError(f"there is no choice {names[found.index('')]!r}; there are {', '.join(known)}")
    if len(found) > 1 and not several:
        raise ConvertedStepError(f"{len(found)} choices were selected: write allow_multiple_selections: true")
    return found
