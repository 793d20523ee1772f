"""The benchmarks run without anybody watching: what fails or hangs costs its own row, and every row says how sure it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = str(Path(__file__).parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)

from benchmarks import __main__ as whole  # noqa: E402
from benchmarks.peers import PEERS, missing, round_trips  # noqa: E402
from benchmarks.picture import svg  # noqa: E402
from benchmarks.proof import QUESTIONS, Row, failed  # noqa: E402
from benchmarks.table import Round, measure, spread  # noqa: E402

FAST = Row("a trip", "us", 50e-6, 60e-6, {"slow": 9e-5, "quick": 4e-5, "quicker": 3e-5}, noise={"": 0.1, "quick": 0.02})


def fine() -> object:
    @contextmanager
    def contender() -> Iterator[Round]:
        yield lambda: None

    return contender()


def faulty(enters: bool) -> object:
    @contextmanager
    def contender() -> Iterator[Round]:
        if not enters:
            raise OSError("no cluster")
        yield lambda: 1 / 0

    return contender()


def test_a_row_says_who_is_ahead_and_how_noisy_it_was() -> None:
    cells = whole.cells(FAST)
    assert cells[:6] == ["a trip", "≤ 60 us", "50 us ±10%", "yes", "quicker, quick", "0.6x"]
    assert cells[6] == "quicker 30 us, quick 40 us ±2%, slow 90 us"


def test_more_is_better_where_a_row_says_at_least() -> None:
    row = Row("share", "%", 0.95, 0.97, {"a": 0.99, "b": 0.9}, at_least=True)
    assert (row.reached, row.ahead) == (False, ["a"])
    assert whole.cells(row)[4:] == ["a", "0.96x", "a 99 %, b 90 %"]


def test_who_is_even_is_not_ahead() -> None:
    assert Row("makespan", "x", 1.0002, 1.03, {"b-level": 1.0, "fifo": 0.99}).ahead == ["fifo"]


def test_a_row_without_a_figure_is_not_reached_and_shows_in_every_form() -> None:
    row = failed("arrays", "MemoryError: a | b")
    assert not row.reached
    assert "FAILED" in whole.plain([FAST, row])[2]
    lines = whole.markdown([FAST, row])
    assert {line.count("|") for line in lines[:4]} == {len(whole.HEADS) + 1}
    assert "arrays" not in svg([FAST, row], "title")


def test_spread_is_half_of_what_lies_between_the_quartiles() -> None:
    assert spread([1.0]) == 0.0
    assert spread([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(0.1)


def test_a_peer_that_fails_is_left_out_with_the_reason() -> None:
    dropped: dict[str, str] = {}
    contenders = {"ours": fine, "broken": lambda: faulty(True), "absent": lambda: faulty(False), "good": fine}
    times = measure(contenders, 3, dropped=dropped)  # type: ignore[arg-type]
    assert {name: len(values) for name, values in times.items()} == {"ours": 3, "good": 3}
    assert dropped == {"broken": "ZeroDivisionError: division by zero", "absent": "OSError: no cluster"}


@pytest.mark.parametrize("enters", [True, False])
def test_ours_is_never_left_out(enters: bool) -> None:
    with pytest.raises((ZeroDivisionError, OSError)):
        measure({"ours": lambda: faulty(enters), "good": fine}, 1, dropped={})  # type: ignore[dict-item]


def test_peers_are_measured_where_they_are_installed_and_named_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import peers

    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "ray" else object())
    assert missing() == ["ray"]
    assert set(round_trips(print, 1)) == {"stdlib pool", *PEERS} - {"ray", "joblib"}


def test_a_question_that_fails_or_hangs_costs_its_own_row() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    (wrong,) = whole.answered("no_such_question", True, 60.0)
    assert "there is no question no_such_question" in wrong.failed
    (late,) = whole.answered("growth", True, 0.2)
    assert late.failed.startswith("no answer in")
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_the_rest_is_answered_when_one_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "answered", lambda name, quick, s: [failed(name, "x")] if name == "items" else [FAST])
    assert [row.what for row in whole.ask(["items", "arrays"], True)] == ["items", "a trip"]
    monkeypatch.setattr(whole, "WHOLE_S", 0.0)
    assert [row.failed for row in whole.ask(["arrays"], True)] == ["no time was left"]


def test_a_question_is_asked_in_earnest_and_told_in_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(whole, "machine", lambda: "a machine")
    told, drawn = tmp_path / "rows.json", tmp_path / "rows.svg"
    assert whole.main(["--quick", "--markdown", "--json", str(told), "--svg", str(drawn), "makespan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| what | target |")
    assert "| yes |" in lines[2]
    found = json.loads(told.read_text())
    assert found["machine"] == "a machine"
    assert found["rows"][0]["reached"] is True
    assert "b-level" in drawn.read_text()


def test_a_failed_question_shows_in_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "machine", lambda: "a machine")
    monkeypatch.setattr(whole, "answered", lambda name, quick, s: [failed(name, "x")])
    assert whole.main(["--quick", "items"]) == 1


def test_every_figure_of_the_design_has_its_question() -> None:
    assert list(QUESTIONS) == [
        *("round_trip", "throughput", "items", "arrays", "cpu_bound", "makespan"),
        *("recovery", "command_line", "growth", "large_value"),
    ]
