"""Rates: how many starts a step, a block and a source allow in a time, in fake time."""

from __future__ import annotations

from typing import Any

import pytest

from procflow import Graph, Map, Parallel, Pipeline, PipelineError, Sequence, Step
from procflow.compiler import compile_pipeline
from procflow.events import AttemptStarted
from procflow.loader import load_text
from procflow.testing import Act, run_fake


def f(*args: Any) -> int:
    return 1


class Starts:
    """When attempts started, by label and item."""

    def __init__(self) -> None:
        self.at: list[tuple[float, str]] = []

    def handle(self, event: Any) -> None:
        if isinstance(event, AttemptStarted) and event.role in ("member", "batch"):
            self.at.append((event.at, event.label.rpartition("/")[2]))


def starts(*steps: Any, slots: int = 8, script: Any = None, **keys: Any) -> list[tuple[float, str]]:
    seen = Starts()
    result = run_fake(Pipeline("t", steps=steps, **keys), slots=slots, script=script or {}, observers=[seen])
    assert result.status == "succeeded", result.failures
    return seen.at


def most_in(at: list[tuple[float, str]], seconds: float) -> int:
    """The most starts in any window of so many seconds."""
    times = [when for when, _ in at]
    return max(sum(begin <= when < begin + seconds - 1e-9 for when in times) for begin in times)


def test_a_block_counts_all_that_starts_inside_however_deep() -> None:
    inner = Sequence("s", Step("c", f), Parallel("p", Step("d", f), Step("e", f)))
    at = starts(Parallel("block", Step("a", f), Step("b", f), inner, rate_limit="2/10s"), Step("after", f))
    assert [when for when, _ in at] == [0, 0, 10, 10, 20, 21]
    assert at[-1][1] == "after"


def test_items_of_a_map_count_one_by_one() -> None:
    at = starts(Map("m", f, items=range(7), rate_limit="3/s"))
    assert len(at) == 7
    assert most_in(at, 1) == 3


def test_a_map_in_a_block_with_a_rate_counts_items_too() -> None:
    block = Graph(
        "g", Map("m", f, items=range(4)), Map("n", Step("x", f), Step("y", f), items=range(2)), rate_limit="2/s"
    )
    at = starts(block)
    assert len(at) == 8
    assert most_in(at, 1) == 2


def test_all_rates_around_a_step_hold() -> None:
    inner = Parallel("in", *(Step(f"i{n}", f) for n in range(4)), rate_limit="1/2s")
    outer = Parallel("out", inner, *(Step(f"o{n}", f) for n in range(4)), rate_limit="3/2s")
    at = starts(outer)
    assert most_in(at, 2) == 3
    assert most_in([start for start in at if start[1].startswith("i")], 2) == 1


def test_retries_are_starts() -> None:
    script = {"a": [Act(raises=ValueError("x")), Act(value=1)]}
    at = starts(Step("a", f, retry={"retries": 1, "delay": 0}, rate_limit="1/30s"), script=script)
    assert [when for when, _ in at] == [0, 30]


def test_a_source_has_a_rate_that_all_its_queries_share() -> None:
    query = "{{type: query, name: {0}, source: {1}, query: 'SELECT 1', output: {0}}}"
    text = (
        "name: p\nsources:\n  db: {url: 'sqlite:///x.db', rate_limit: 2/s}\n  other: 'sqlite:///y.db'\n"
        "steps:\n  - type: parallel\n    steps:\n"
        + "".join(
            f"      - {query.format(name, source)}\n" for name, source in (("a", "db"), ("b", "db"), ("c", "other"))
        )
    )
    graph = compile_pipeline(load_text(text, "p.yaml", ".").pipeline)
    assert {name: (rate.count, rate.per_s) for name, rate in graph.rates.items()} == {"rate:db": (2, 1)}
    block = graph.root.members[0]
    assert [getattr(unit, "rates", None) for unit in getattr(block, "members", ())] == [("rate:db",), ("rate:db",), ()]


def test_batches_under_a_rate_are_refused_with_their_place() -> None:
    steps = [Parallel("p", Map("m", f, items=[1], batch=10), rate_limit="1/s")]
    with pytest.raises(PipelineError, match="a rate_limit counts items"):
        compile_pipeline(Pipeline("t", steps=steps))
