"""Values of Agent Builder pipelines: which keys have a value at one point, surely or not, and under which name here.

``Pool`` knows the whole document: what is required from outside, which keys anything reads, which names are taken. ``Known``
is what has a value at one point; it is copied into branches and joined after them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from procflow.call import INDEX
from procflow.compiling.surface import ROOTS
from procflow.dialects.foreign import Made, Part
from procflow.grammar import is_name

__all__ = ["Known", "Pool", "Presence"]


@dataclass(frozen=True, slots=True)
class Presence:
    """A key that has a value, surely where ``flag`` is empty; else the value ``flag`` says whether its step ran.

    ``name`` is the value's name here, where it is not the key.
    """

    name: str
    flag: str = ""


@dataclass(slots=True)
class Known:
    """What has a value at one point. ``hidden`` are keys of siblings, with who writes them."""

    values: dict[str, Presence] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    is_open: bool = False

    def copy(self) -> Known:
        """The same for a branch."""
        return Known(dict(self.values), dict(self.hidden), dict(self.renamed), self.is_open)

    def become(self, other: Known) -> None:
        """Know what the other knows."""
        self.values, self.is_open = other.values, other.is_open

    def write(self, key: str) -> str:
        """A step that surely runs writes the key; the name under which it is published."""
        name = self.renamed.get(key, key)
        self.values[key] = Presence(name)
        self.hidden.pop(key, None)
        return name

    def value_of(self, key: str) -> str:
        """The name under which the key's value is published."""
        return self.values[key].name if key in self.values else key

    def hide(self, writes: list[set[str]], own: int, members: list[Part]) -> None:
        """What the siblings of a member write can't be seen by it, unless it was there before."""
        for i, keys in enumerate(writes):
            for key in keys:
                if i != own and key not in self.values:
                    self.hidden[key] = members[i].path

    def add(self, inside: Known, before: Known, wins: set[str], earlier: list[set[str]], member: Part) -> None:
        """Take over what a member of a parallel step wrote and no later one writes."""
        self.is_open = self.is_open or inside.is_open
        for key in wins:
            found = inside.values.get(key)
            if found is None or found == before.values.get(key):
                continue
            if found.flag and any(key in keys for keys in earlier):
                member.fail(
                    f"an earlier member writes {key!r}, too, and this one may be skipped",
                    "give one of them another output",
                )
            self.values[key] = found


class Pool:
    """The values of one document."""

    def __init__(self, root: Part, steps: Any) -> None:
        self.required: dict[str, Part] = {}
        self._root = root
        self._absent: dict[str, Part] = {}
        self._read = {*_reads(steps), *_texts(root["produces"].value)}
        self._taken = {*self._read, *self.writes({"type": "parallel", "steps": steps}), *ROOTS, INDEX}
        self._steps: set[str] = set()
        for part in root["requires"].members():
            key = part.text(required=True)
            if key and not is_name(key):
                part.fail(f"{key!r} can't name a parameter", "write letters, digits, _ and -")
            elif key:
                self.required[key] = part

    def params(self) -> dict[str, Any]:
        """What the pipeline is given from outside, as parameters."""
        needed: dict[str, Any] = {key: Made(part, required=True) for key, part in self.required.items()}
        for key, part in self._absent.items():
            needed[key] = Made(part, default=None, help="no step makes it")
        return needed

    def step_name(self, name: str) -> str:
        """A name that no other step has."""
        return self._free(name, self._steps)

    def value_name(self, name: str) -> str:
        """A name that no other step and no value has."""
        return self._free(name, self._steps, self._taken)

    def _free(self, name: str, own: set[str], others: set[str] | None = None) -> str:
        free, count = name, 1
        while free.casefold() in {used.casefold() for used in (*own, *(others or ()))}:
            count += 1
            free = f"{name}_{count}"
        own.add(free)
        return free

    def read(self, key: str, known: Known, part: Part) -> str:
        """A reference to the value of a key."""
        if key in known.values:
            return f"${{{known.values[key].name}}}"
        if key in known.hidden:
            part.fail(
                f"{key!r} is made by {known.hidden[key]}, which runs at the same time",
                "members of a parallel step can't see each other's values; put this step after it",
            )
        elif key in self.required:
            return f"${{params.{key}}}"
        elif known.is_open:
            return f"${{{key}}}"
        elif not is_name(key):
            part.fail(f"{key!r} is no key of the pipeline's values", "write letters, digits, _ and -")
        elif key not in self._absent:
            self._absent[key] = part
            part.note(f"no step before makes {key!r}; it is None, unless -p {key}=... gives it")
        return f"${{params.{key}}}"

    def missing(
        self, known: Known, inside: Known, runs: str, without: Known | None = None, result: Known | None = None
    ) -> dict[str, Any]:
        """Values to publish where a branch did not run, for keys that it writes and anything reads.

        ``known`` is what there was before. ``without`` is what the other branch of a conditional knows, ``result`` learns
        what holds after both; without them ``known`` does.
        """
        values: dict[str, Any] = {}
        after = result if result is not None else known
        before = dict(known.values)
        after.is_open = after.is_open or inside.is_open
        for key, found in inside.values.items():
            if found == before.get(key) and (without is None or without.values.get(key) == found):
                continue
            other = without.values.get(key) if without is not None else None
            if found == before.get(key):
                continue
            if other is not None and other != before.get(key):
                # Written by both branches. Where this one may have left it out, the other one has not.
                if found.flag and other.flag:
                    self._root.fail(
                        f"both branches of a conditional may or may not make {key!r}", "name one of them otherwise"
                    )
                if found.flag:
                    values[found.flag] = True
                after.values[key] = found if found.flag else other
                continue
            if key in before:
                after.values[key] = before[key] if before[key].name == found.name else found
            elif key in self.required:
                values[found.name] = f"${{params.{key}}}"
                after.values[key] = Presence(found.name)
            elif key in self._read:
                values[found.name] = None
                if found.flag:
                    values[found.flag] = False
                after.values[key] = Presence(found.name, found.flag or runs)
            else:
                after.values[key] = Presence(found.name, found.flag or runs)
        return values

    def only_in(self, before: Known, branch: Known, other: Known) -> bool:
        """Whether the branch writes a key that is read, and that neither the other nor a step before has."""
        return any(
            key in self._read and key not in before.values and key not in other.values and key not in self.required
            for key in branch.values
        )

    def writes(self, step: Any) -> set[str]:
        """Keys that a declared step and all inside it write; those of skills can't be told."""
        if not isinstance(step, dict):
            return set()
        kind = step.get("type")
        if kind == "parallel":
            members = step.get("steps")
            return set().union(*(self.writes(member) for member in members)) if isinstance(members, list) else set()
        if kind == "conditional":
            return self.writes(step.get("then_step")) | self.writes(step.get("else_step"))
        if kind == "skill":
            return set()
        output = step.get("output") or ("merged" if kind == "merge" else "result")
        return set(_texts([output] if isinstance(output, str) else output))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        yield from (member for member in value if isinstance(member, str))


def _reads(value: Any) -> Iterator[str]:
    """Keys that anything in declared steps may read: inputs, fields, and names in braces."""
    if isinstance(value, list):
        for member in value:
            yield from _reads(member)
    elif isinstance(value, Mapping):
        yield from _texts(value.get("inputs"))
        if isinstance(value.get("field"), str):
            yield value["field"].partition(".")[0]
        for key, member in value.items():
            if key in ("query", "filter"):
                text = repr(member)
                yield from (part.partition("}")[0].partition(".")[0].strip() for part in text.split("{")[1:])
            else:
                yield from _reads(member)
