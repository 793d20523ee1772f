"""References of workflows of steps by id: ``${workflow.input.x}``, ``${step.output.y}``, ``${loop.item}``; conditions.

Each becomes a reference of procflow's. Where a step is held by a block that publishes one value (a fork, or a parallel step that is
read as a whole), its output is a key of that value. Two-part references and indexes in brackets, which files in the wild
have, are taken for what they can only mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from procflow.compiling import condition
from procflow.dialects.foreign import Part, escaped, near
from procflow.loading.source import clip

__all__ = ["References"]

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_LOOP = ("item", "index", "total", "is_first", "is_last")
_PATH = re.compile(r"[\w-]+(?:\.[\w-]+|\[\d+\])*")
# In a condition: a string, a reference in ${}, or a bare one, which JSONPath begins with "$.".
_IN_CONDITION = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\$\{(?P<ref>[^}]*)\}|(?:\$\.)?(?P<bare>(?:step-[\w-]+|workflow|loop)(?:\.[\w-]+|\[\d+\])+)""",
    re.DOTALL,
)


class References:
    """Reads the references of one workflow; ``inputs`` are the parameters that it turns out to need."""

    def __init__(self, steps: Mapping[str, Part], own: Mapping[str, str]) -> None:
        self.steps = steps
        self.own = own
        self.inputs: dict[str, Part] = {}
        self._held: dict[str, tuple[str, str]] = {}
        self._read = set[str]()
        self._loops: list[bool] = []
        texts = repr([part.value for part in steps.values()])
        self.counts = re.search(r"\bloop\.(?:total|is_first|is_last)\b", texts) is not None
        """Whether any loop asks for more than the item and its index."""
        for part in steps.values():
            self._read.update(_steps_read(part.value))

    def is_read(self, key: str) -> bool:
        """Whether any step reads the output of this one."""
        return key in self._read

    def hold(self, block: str, keys: list[str], under: str | None = None) -> None:
        """From here on the outputs of the steps ``keys`` are members of the value of ``block``."""
        for key in keys:
            self._held[key] = (block, under or self.own.get(key, key))

    @contextmanager
    def loop(self, told: bool) -> Iterator[None]:
        """Inside a loop; ``told`` says that its items are those of ``runtime.loop_items``."""
        self._loops.append(told)
        try:
            yield
        finally:
            self._loops.pop()

    def value(self, part: Part) -> tuple[bool, Any]:
        """A value with references in procflow's words, and whether it is one reference and nothing else."""
        value = part.value
        if not isinstance(value, str):
            return False, self._tree(part)
        found = _REFERENCE.fullmatch(value.strip())
        if found is not None:
            return True, self._reference(found[1], part)
        return False, self._text(value, part)

    def _tree(self, part: Part) -> Any:
        if isinstance(part.value, dict):
            return {key: self.value(member)[1] for key, member in part.items()}
        return [self.value(member)[1] for member in part] if isinstance(part.value, list) else part.value

    def _text(self, text: str, part: Part) -> str:
        at, made = 0, ""
        for found in _REFERENCE.finditer(text):
            made += f"{escaped(text[at : found.start()])}{self._reference(found[1], part)}"
            at = found.end()
        return f"{made}{escaped(text[at:])}"

    def items(self, part: Part) -> Any:
        """The collection of a loop: one reference, or a list."""
        if isinstance(part.value, list):
            return self._tree(part)
        whole, value = self.value(part)
        if part.value is None:
            part.fail("is missing", "write ${step-id.output.field} or a list")
        elif not whole:
            part.fail("a loop goes over one reference, or a list", "write ${step-id.output.field}")
        return value

    def _reference(self, inner: str, part: Part) -> str:
        return "${" + ".".join(self._lookup(inner, part)) + "}"

    def _lookup(self, inner: str, part: Part) -> list[str]:
        """Name and path in procflow's values; a problem for what has no clear meaning."""
        inner = inner.strip().removeprefix("$.")
        if _PATH.fullmatch(inner) is None:
            part.fail(
                f"{clip('${' + inner + '}')} is not a reference", "write ${workflow.input.x} or ${step-id.output.y}"
            )
            return ["params"]
        root, *path = re.sub(r"\[(\d+)\]", r".\1", inner).split(".")
        is_step = root in self.steps and path[:1] == ["output"]
        if root == "workflow" and not is_step:
            return self._input(inner, path, part)
        if root == "loop" and not is_step:
            return self._of_loop(inner, path, part)
        if root not in self.steps:
            part.fail(f"${{{inner}}}: there is no step {root!r}", near(root, self.steps) or "name a key of steps")
            return ["params"]
        if path[:1] != ["output"]:
            part.fail(f"${{{inner}}} says no output", f"write ${{{root}.output{''.join('.' + p for p in path)}}}")
        return self._output(root, path[1:], part)

    def _output(self, key: str, path: list[str], part: Part) -> list[str]:
        if self.steps[key]["type"].value == "conditional":
            part.fail(
                f"a conditional has no output of its own, and ${{{key}.output}} asks for it",
                "name the step of its branch",
            )
        block, member = self._held.get(key, ("", ""))
        if not block:
            return [self.own[key], *path]
        return [*self._output(block, [], part), member, *path]

    def _input(self, inner: str, path: list[str], part: Part) -> list[str]:
        if path[:1] != ["input"]:
            part.fail(f"${{{inner}}} is not known", "only ${workflow.input.x} is")
        if len(path) > 1:
            self.inputs.setdefault(path[1], part)
        return ["params", *path[1:]]

    def _of_loop(self, inner: str, path: list[str], part: Part) -> list[str]:
        if not self._loops:
            part.fail(f"${{{inner}}} stands outside of a loop", "only the steps of loop_body read it")
        elif not path or path[0] not in _LOOP:
            part.fail(f"${{{inner}}} is not known", f"write ${{loop.{'|'.join(_LOOP)}}}")
        return ["loop", *path] if not self._loops or self._loops[-1] else path

    # -- conditions ----------------------------------------------------------------------------------------------------

    def condition(self, part: Part) -> tuple[str, dict[str, str]]:
        """An expression over short names, and what each stands for: whole values, so that a missing key is judged, too."""
        text = part.text(required=True)
        if not text:
            return "", {}
        values: dict[str, str] = {}

        def named(found: re.Match[str]) -> str:
            if found["string"] is not None:
                return str(found["string"])
            name, *path = self._lookup(found["ref"] or found["bare"], part)
            if name in ("params", "loop") and path:
                name, path = f"{name}.{path[0]}", path[1:]
            short = next((s for s, of in values.items() if of == f"${{{name}}}"), None)
            if short is None:
                short = re.sub(r"\W", "_", name.rpartition(".")[2])
                while short in values:
                    short += "_"
                values[short] = f"${{{name}}}"
            return ".".join([short, *path])

        expression = _IN_CONDITION.sub(named, text)
        if re.search(r"\bcontains\b", re.sub(r"'[^']*'|\"[^\"]*\"", "", expression)):
            part.fail(
                "contains is taken the wrong way round by the other system",
                "write which is meant: 'x' in ${step-id.output.y}",
            )
            return "", {}
        try:
            unknown = condition.parse(expression).names - values.keys()
        except condition.ConditionError as error:
            part.fail(str(error))
            return "", {}
        if unknown:
            part.fail(
                f"{', '.join(sorted(unknown))} means nothing here",
                "write ${step-id.output.field} or ${workflow.input.field}",
            )
        return expression, values


def _steps_read(value: Any) -> Iterator[str]:
    """Ids whose output is read as a whole or in part, anywhere inside a declared step."""
    if isinstance(value, dict):
        for member in value.values():
            yield from _steps_read(member)
    elif isinstance(value, list):
        for member in value:
            yield from _steps_read(member)
    elif isinstance(value, str):
        for found in re.finditer(r"([\w-]+)\.output\b", value):
            yield found[1]
