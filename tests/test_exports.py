"""The public names of the package: adding or removing one is a decision, not an accident."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import procflow

PUBLIC = {
    # to build and run pipelines
    *("Pipeline", "Step", "Shell", "Merge", "Split", "Subpipeline", "Sequence", "Parallel", "Graph", "Map", "load"),
    # what a run gives
    *("RunResult", "FailedMember"),
    # merges by type
    "register_combiner",
    # inside a step
    *("step", "StepOutput"),
    # the workers without a pipeline
    *("ProcessPool", "TaskLost"),
    # what can go wrong
    *("ProcflowError", "PipelineError", "RunFailed", "StoreError", "LockHeld", "ExecutorError", "InternalError"),
}


def test_the_public_names_are_these() -> None:
    assert set(procflow.__all__) == PUBLIC
    assert list(procflow.__all__) == sorted(procflow.__all__, key=lambda name: (not name[0].isupper(), name))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(procflow, name)
    assert inspect.getdoc(value)
    assert inspect.ismodule(value) or value.__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'procflow' has no attribute 'Pipelin'"):
        procflow.Pipelin  # noqa: B018


def test_type_checkers_see_the_same_names_as_programs() -> None:
    tree = ast.parse(Path(procflow.__file__).read_text())
    block = next(part for part in tree.body if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING")
    seen = {alias.asname or alias.name for part in block.body for alias in part.names}  # type: ignore[attr-defined]
    assert seen == PUBLIC


def test_names_are_listed_for_completion() -> None:
    assert set(dir(procflow)) >= {*PUBLIC, "__version__"}


def test_the_version_has_three_numbers() -> None:
    assert [part.isdigit() for part in procflow.__version__.split(".")[:3]] == [True] * 3
