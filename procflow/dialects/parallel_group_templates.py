"""Templates of content pipelines: ``{{input}}``, ``{{env.X}}``, ``{{step_NAME.output}}`` as references of procflow's.

Anything else between two braces is refused, and so is ``{{random}}``: a run that is resumed must give the same.
"""

from __future__ import annotations

import re
from typing import Any

from procflow.dialects.foreign import Part, escaped, name_of, near

__all__ = ["Templates"]

_TEMPLATE = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")


class Templates:
    """Reads the templates of one document. ``known`` are references by the names of the steps before."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def value(self, part: Part, data: str | None) -> Any:
        """A value with its templates filled; ``data`` is what ``{{input}}`` means."""
        value = part.value
        if isinstance(value, dict):
            return {escaped(key): self.value(member, data) for key, member in part.items()}
        if isinstance(value, list):
            return [self.value(member, data) for member in part]
        if not isinstance(value, str) or "{{" not in value:
            return escaped(value)
        at, made = 0, ""
        for found in _TEMPLATE.finditer(value):
            made += f"{escaped(value[at : found.start()])}{self._reference(found[1], part, data)}"
            at = found.end()
        return f"{made}{escaped(value[at:])}"

    def _reference(self, inner: str, part: Part, data: str | None) -> str:
        root, _, rest = inner.partition(".")
        if inner == "input" and data is not None:
            return data
        if root == "env" and rest:
            return f"${{env.{rest}}}"
        if inner == "timestamp":
            part.note("{{timestamp}} is the run's id, which begins with date and time")
            return "${run.id}"
        if inner == "random":
            part.fail(
                "{{random}} would give another result in a run that is resumed", "write a value, or make one in a step"
            )
            return ""
        if inner in self.known and inner == "generated_prompt":
            return self.known[inner]
        step, dot, path = inner.removeprefix("step_").partition(".output")
        name = name_of(step, "")
        if dot and inner.startswith("step_") and name in self.known:
            return f"{self.known[name][:-1]}{path}}}"
        hint = (
            near(step, self.known) if dot else "known are {{input}}, {{env.X}}, {{timestamp}} and {{step_NAME.output}}"
        )
        part.fail(f"{{{{{inner}}}}} means nothing here", hint or "name a step that runs before this one")
        return ""
