"""For the tests of dialects: a foreign text as a pipeline, its problems, and functions that converted pipelines call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from procflow.api import Pipeline
from procflow.dialects import Reading
from procflow.dialects.translating import Translated, translate
from procflow.errors import PipelineError
from procflow.loader import _in_own_words, _validated, load_pipeline, load_text, read_tree
from procflow.model import Pipeline as Record
from procflow.result import RunResult
from procflow.testing import Act, Script, run_fake

__all__ = ["Foreign", "plain_steps"]

FOLDER = Path(__file__).parent


class Foreign:
    """A document of one dialect; plain data is written as JSON, text stays as it is."""

    def __init__(self, document: Any, bind: Mapping[str, Any] | None = None, dialect: str | None = None) -> None:
        self.text = document if isinstance(document, str) else json.dumps(document, indent=1)
        self.name = "foreign.yaml" if isinstance(document, str) else "foreign.json"
        self.reading = Reading(dialect, bind or {})

    def translated(self) -> Translated:
        tree, source = read_tree(self.text, self.name, FOLDER)
        found = translate(tree, source, self.reading)
        assert found is not None, "no dialect has this shape"
        return found

    @property
    def plain(self) -> dict[str, Any]:
        """The pipeline in procflow's language."""
        return self.translated().plain

    @property
    def notes(self) -> str:
        return "\n".join(self.translated().notes)

    def problems(self) -> list[str]:
        """What is wrong with it, a line each."""
        try:
            self.translated()
        except PipelineError as error:
            return [str(problem) for problem in error.problems]
        return []

    def record(self) -> Record:
        """The validated pipeline, with the places of its mistakes as ``load_pipeline`` tells them."""
        return _validated(*_in_own_words(*read_tree(self.text, self.name, FOLDER), self.reading), Record).pipeline

    def pipeline(self, folder: Path) -> Pipeline:
        """The pipeline as ``load`` gives it, from a file."""
        file = folder / self.name
        file.write_text(self.text)
        loaded = load_pipeline(file, reading=self.reading)
        return Pipeline._loaded(loaded.pipeline, loaded.source)

    def run(self, script: Script | None = None, slots: int = 8, **params: Any) -> RunResult:
        """Run it in fake time; helper steps of procflow's take none."""
        return run_fake(self.record(), script=script, slots=slots, params=params)

    def outputs(self, **params: Any) -> dict[str, Any]:
        result = self.run(**params)
        assert result.status == "succeeded", (result.reason, result.failures)
        return dict(result.outputs)


def own(text: str) -> Any:
    """A pipeline in procflow's own language."""
    return load_text(text, "own.yaml", FOLDER).pipeline


def timed(seconds: Mapping[str, float]) -> Any:
    """A script: steps named here take so long, all others none."""
    return lambda attempt: Act(after_s=seconds.get(attempt.call.name, 0.0))


def plain_steps(plain: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All steps of a pipeline by name, those inside blocks too."""
    found: dict[str, dict[str, Any]] = {}
    waiting = list(plain["steps"])
    while waiting:
        step = waiting.pop()
        found[step["name"]] = step
        waiting += step.get("steps", [])
    return found
