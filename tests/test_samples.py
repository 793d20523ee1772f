"""What a run keeps for reports besides its journal: samples, workers of attempts, and its shape."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from procflow import events as ev
from procflow.api import Graph, Map, Parallel, Pipeline, Sequence, Step
from procflow.attempt import Usage
from procflow.cli import cli
from procflow.compiler import compile_pipeline
from procflow.scheduling.actions import Measured
from procflow.showing.shape import Outcome, Part, part_of, plain_of, shape_from, status_of
from procflow.storing import samples as module
from procflow.storing.samples import NAME, Samples, packages, read_graph, read_samples


class Meter:
    """Memory that grows by 1,000 bytes a look."""

    due = 1.0

    def __init__(self) -> None:
        self.total = 0
        self.expected: list[int | None] = []

    def expect(self, memory_bytes: int | None) -> None:
        self.expected.append(memory_bytes)
        self.due = 0.5

    def measure(self) -> Measured:
        self.total += 1000
        self.due += 0.1
        return Measured({}, self.total)


class Pool:
    """An executor as far as samples look at it."""

    def __init__(self) -> None:
        self.served: dict[int, tuple[int, float]] = {}

    def workers(self) -> set[int]:
        return {os.getpid()}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def ended(key: int, start: float, began: float | None = None) -> ev.Event:
    return ev.AttemptFinished(9.0, key, "0", "a", "", 1, "processes", "succeeded", start, Usage(1.0, began=began))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(folder: Path, clock: Clock, pool: Pool | None = None, **more: Any) -> Samples:
    samples = Samples(folder, Meter(), [pool] if pool else [], clock=clock, **more)
    samples.begin()
    return samples


def work(*values: Any) -> int:
    return 1


def test_samples_are_written_once_a_second_at_most(tmp_path: Path, clock: Clock) -> None:
    samples = opened(tmp_path, clock, about={"cpus": 2})
    sizes = set()
    for _ in range(40):
        clock.now += 0.1
        samples.measure()
        sizes.add((tmp_path / NAME).stat().st_size)
    assert 4 <= len(sizes) <= 5  # the head, and a line in each of four seconds
    samples.handle(ev.RunFinished(4.0, "r", "succeeded", 0, 0, 4.0, 4.0))
    samples.close()
    (found,) = read_samples(tmp_path)
    assert found.about["cpus"] == 2
    times = [at for at, _, _ in found.samples]
    assert times == sorted(times)
    assert all(0.19 < b - a < 0.31 for a, b in pairwise(times[:-1]))
    assert max(rss for _, rss, _ in found.samples) == 40_000
    assert any(cpu is not None for _, _, cpu in found.samples)


def test_the_meter_behind_is_asked_and_told(tmp_path: Path, clock: Clock) -> None:
    samples = opened(tmp_path, clock)
    assert samples.due == 1.0
    samples.expect(5)
    assert samples.due == 0.5
    assert samples.measure().total_bytes == 1000
    assert samples.due == 0.6


def test_attempts_are_told_with_their_worker_and_when_their_code_began(tmp_path: Path, clock: Clock) -> None:
    pool = Pool()
    samples = opened(tmp_path, clock, pool)
    skew = samples._skew
    pool.served = {1: (4711, 102.25), 2: (4712, 101.0), 3: (4711, 103.0)}
    samples.handle(ended(1, 2.0, began=102.5 + skew))
    samples.handle(ended(2, 1.0))
    samples.handle(ended(3, 4.0, began=103.0 + skew))
    samples.handle(ended(4, 4.0))
    samples.handle(ev.RunFinished(9.0, "r", "succeeded", 0, 0, 4.0, 4.0))
    (found,) = read_samples(tmp_path)
    assert found.attempts[1] == (1, pytest.approx(0.25), pytest.approx(0.5))
    assert found.attempts[2] == (2, 0.0, -1.0)
    assert found.attempts[3] == (1, 0.0, 0.0)  # never before the attempt was handed out
    assert found.attempts[4] == (0, 0.0, -1.0)
    assert pool.served == {}


def test_a_long_run_takes_samples_less_often(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DOUBLED", 10)
    samples = opened(tmp_path, clock)
    for _ in range(3000):
        clock.now += 0.2
        samples.measure()
    samples.close()
    (found,) = read_samples(tmp_path)
    assert 30 < len(found.samples) < 130


def test_a_file_that_is_too_large_takes_no_more_attempts(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 2000)
    samples = opened(tmp_path, clock)
    for key in range(1, 2000):
        samples.handle(ended(key, 1.0))
        clock.now += 0.5
        samples.measure()
    samples.close()
    (found,) = read_samples(tmp_path)
    assert 10 < len(found.attempts) < 200
    assert len(found.samples) > 900


def test_a_session_goes_on_behind_a_torn_line(tmp_path: Path, clock: Clock) -> None:
    opened(tmp_path, clock).close()
    with open(tmp_path / NAME, "a") as file:
        file.write('{"samples":[[1.0,')
    samples = opened(tmp_path, clock)
    clock.now += 2
    samples.measure()
    samples.close()
    first, second = read_samples(tmp_path)
    assert (first.samples, len(second.samples)) == ([], 1)


def test_a_folder_that_cant_be_written_costs_nothing_but_the_samples(tmp_path: Path, clock: Clock) -> None:
    samples = opened(tmp_path / "gone", clock, shape=Part("", "", "p", "sequence", ""))
    assert samples.measure().total_bytes == 1000
    samples.handle(ended(1, 0.0))
    samples.handle(ev.RunFinished(9.0, "r", "succeeded", 0, 0, 4.0, 4.0))
    samples.close()
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    opened(tmp_path, clock).close()
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_fails_later_ends_the_samples_quietly(tmp_path: Path, clock: Clock) -> None:
    samples = opened(tmp_path, clock)
    os.close(samples._fd)
    for _ in range(5):
        clock.now += 1.0
        samples.measure()
    samples.handle(ended(1, 0.0))


def test_packages_are_told_with_their_versions() -> None:
    found = packages()
    assert any(name.startswith("click ") for name in found)
    assert found == sorted(found, key=str.lower)


# -- shape -------------------------------------------------------------------------------------------------------------


def sample() -> Part:
    steps = [
        Step("setup", work),
        Parallel("fetch", Step("a", work), Sequence("b", Step("c", work), Step("d", work))),
        Map("each", work, items=[1, 2]),
        Graph(Step("x", work), Step("y", work, inputs=["x"]), name="g"),
    ]
    return part_of(compile_pipeline(Pipeline("demo", steps=steps)))


def test_a_shape_comes_back_from_plain_data_as_it_was() -> None:
    shape = sample()
    again = shape_from(json.loads(json.dumps(plain_of(shape))))
    assert list(map(vars_of, again.walk())) == list(map(vars_of, shape.walk()))
    assert [p.label for p in again.walk()][1:] == [
        "setup",
        "fetch",
        "fetch/a",
        "fetch/b",
        "fetch/b/c",
        "fetch/b/d",
        "each",
        "g",
        "g/x",
        "g/y",
    ]
    assert next(p for p in again.walk() if p.label == "g/y").after == (0,)


def vars_of(part: Part) -> tuple[Any, ...]:
    return (part.path, part.label, part.name, part.kind, part.runs, part.after, part.size, len(part.members))


def test_a_shape_is_bounded_and_outer_steps_come_first() -> None:
    wide = compile_pipeline(
        Pipeline("p", steps=[Parallel("w", *(Step(f"s{i}", work) for i in range(50))), Step("last", work)])
    )
    shape = part_of(wide, most=10)
    assert [p.label for p in shape.members] == ["w", "last"]
    assert (shape.members[0].size, len(shape.members[0].members)) == (50, 8)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[1]],
        [[-1, "", "", "p", "s", "", [], 0], [7, "0", "a", "a", "s", "", [], 0]],
        [[-1, "", "", "p", "s", "", 3, 0]],
    ],
)
def test_rows_that_are_no_shape_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        shape_from(rows)


def test_a_part_ended_as_its_own_record_says_else_as_the_worst_in_it() -> None:
    shape = sample()
    fetch = shape.members[1]
    outcomes = {"1.0": Outcome("succeeded"), "1.1.0": Outcome("failed")}
    assert status_of(outcomes, fetch) == "failed"
    assert status_of({**outcomes, "1": Outcome("succeeded")}, fetch) == "succeeded"
    assert status_of(outcomes, shape.members[0]) == ""


def test_a_real_run_keeps_workers_samples_and_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN_FOR_TEST", "geheim-4711")
    (tmp_path / "n.yaml").write_text(
        "name: n\nsecrets: {token: '${env.TOKEN_FOR_TEST}'}\nsteps:\n"
        "  - {type: shell, name: one, command: [echo, 'geheim-4711']}\n"
        "  - {type: shell, name: two, command: [sleep, '0.3']}\n"
    )
    assert CliRunner().invoke(cli, ["run", "n.yaml", "-q", "--run-id", "r"]).exit_code == 0
    folder = tmp_path / ".procflow" / "runs" / "r"
    (found,) = read_samples(folder)
    assert {worker for worker, _, _ in found.attempts.values()} == {1}
    assert all(0 <= sent <= began for _, sent, began in found.attempts.values())
    assert len(found.samples) >= 2
    assert found.about["workers"] >= 1
    shape = read_graph(folder)
    assert shape is not None
    assert [part.name for part in shape.members] == ["one", "two"]
    assert "geheim" not in (folder / "graph.json").read_text() + (folder / NAME).read_text()
    assert (folder / NAME).stat().st_mode & 0o077 == 0
