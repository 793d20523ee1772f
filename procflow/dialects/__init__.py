"""Dialects: files in the formats of other systems, read as pipelines of procflow's own.

    foreign file ─ reader ─> tree with positions ─ dialect ─> tree in procflow's language ─ model ─> Pipeline ─> as ever

A dialect is one module here with two functions, and one line in ``DIALECTS``:

- ``matches(document) -> bool``: whether a document (plain data, a mapping) has the shape of this dialect. It must not match
  procflow's own files, nor guess: look for keys that no other format has.
- ``translate(work: Translation) -> Made | None``: the pipeline in procflow's language. It reads ``work.root`` (a ``Part``:
  a value that knows its place), makes mappings with ``Made(part, key=value, ...)``, so that whatever the ordinary loader or
  compiler finds wrong later is told at the place in the foreign file, and notes what it can't do with ``part.fail(...)``.
  Problems are collected: go on after one, and return what there is. ``work.bound(part, name, ...)`` gives the user's function
  for a name that the format leaves to its own registry. ``part.note(...)`` says what is tolerated or understood in one
  way of several; ``procflow convert`` prints it. ``foreign.py`` has all of it.

Functions that a converted file needs at run time (operators, shapes of results) are in ``runtime.py``; constructs of
procflow are used wherever they mean the same. What a dialect asks and procflow can't do is refused with dialect, path and
field, never ignored. Nothing outside this room knows a dialect; this file never reads a file and imports a dialect only
when a document is not procflow's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from procflow.passive import passive

if TYPE_CHECKING:
    from types import ModuleType

    from procflow.dialects.translating import Translated
    from procflow.loading.source import Source, Tree

__all__ = ["DIALECTS", "Dialect", "Reading", "detect", "is_own", "translated"]


@passive(frozen=True, slots=True)
class Dialect:
    """A format of another system. ``name`` is what ``--dialect`` takes, ``module`` the file in this room."""

    name: str
    title: str
    module: str

    def load(self) -> ModuleType:
        """The module with ``matches`` and ``translate``."""
        return importlib.import_module(f"procflow.dialects.{self.module}")


DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect("agent-builder", "data pipelines of Agent Builder skills", "agent_builder"),
        Dialect("step-ids", "workflows of steps by id, with start_step and next_step", "step_ids"),
        Dialect("parallel-group", "content pipelines with parallel_group", "parallel_group"),
        Dialect("workflow", "workflows of steps, substeps, Parallel, Loop, Condition and Router", "workflow"),
        Dialect("nodes", "graphs of nodes and edges", "nodes"),
    )
}
"""By name, in the order in which shapes are tried."""


@passive(frozen=True, slots=True)
class Reading:
    """How a file is to be read. ``dialect`` is None to go by the file's shape.

    ``bind`` are functions by the names a dialect uses (``module:name``, a callable, or a mapping with ``function`` and keys of a
    step), ``file`` is a YAML or JSON file of them; ``bind`` comes first, installed packages last.
    """

    dialect: str | None = None
    bind: Mapping[str, Any] = field(default_factory=dict)
    file: str | None = None
    exact: bool = False
    """Whether a name in ``bind`` that nothing asks for is an error: on a command line it is a typing error."""

    def __bool__(self) -> bool:
        return bool(self.dialect or self.bind or self.file)

    def kept(self) -> dict[str, Any]:
        """The same as plain data, for the journal; bindings that are not text are left out."""
        texts = {name: bound for name, bound in self.bind.items() if isinstance(bound, (str, dict))}
        return {"dialect": self.dialect, "bind": texts, "file": self.file}

    @classmethod
    def of(cls, kept: Mapping[str, Any] | None) -> Reading | None:
        """What ``kept`` told the journal; None for a file that was read as it stands."""
        return cls(kept["dialect"], kept["bind"], kept["file"]) if kept else None


_OWN_KEYS = frozenset({
    "name", "description", "type", "params", "secrets", "limits",
    "defaults", "sources", "skills", "state", "hooks", "on_error",
    "on_success", "on_failure", "on_finish", "tolerate", "show", "keep",
    "steps", "cache", "requires", "version",
})  # fmt: skip
_FOREIGN_KEYS = frozenset({
    "run_if", "skip_if", "then_step", "else_step", "credential_ref",
    "db_config_file", "skill_ref", "model", "input_from", "merge_strategy",
    "parallel_steps", "parallel_config", "next_step", "substeps", "step_type",
})  # fmt: skip
"""Keys of steps that procflow's own language has not."""
_FOREIGN_TYPES = frozenset({
    "conditional", "parallel_group", "split_input", "merge_results",
    "batch_process", "Parallel", "Condition", "Loop", "Router", "Steps",
    "Step",
})  # fmt: skip


def is_own(document: Mapping[str, Any]) -> bool:
    """Whether a document can only be meant in procflow's own language, mistakes included; quick."""
    if document.get("type") == "data_pipeline":
        return False
    if not isinstance(document.get("steps"), list) or not document.keys() <= _OWN_KEYS - {"requires", "version"}:
        return False
    return not any(
        _FOREIGN_KEYS & step.keys() or (isinstance(step.get("type"), str) and step["type"] in _FOREIGN_TYPES)
        for step in _steps_of(document)
    )


def _steps_of(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    waiting: list[Any] = [document.get("steps")]
    while waiting:
        for step in waiting.pop() or ():
            if isinstance(step, dict):
                yield step
                if isinstance(step.get("steps"), list):
                    waiting.append(step["steps"])


def detect(document: Mapping[str, Any]) -> list[Dialect]:
    """The dialects whose shape a document has; none for procflow's own."""
    if is_own(document):
        return []
    return [dialect for dialect in DIALECTS.values() if dialect.load().matches(document)]


def translated(tree: Tree, source: Source, reading: Reading | None = None) -> Translated | None:
    """A document of another system as a tree in procflow's language; None where it is procflow's own.

    Raises ``PipelineError`` for a forced dialect that is unknown, for a shape that two dialects have, and for all that the
    dialect can't take over.
    """
    from procflow.dialects.translating import translate

    return translate(tree, source, reading or Reading())
