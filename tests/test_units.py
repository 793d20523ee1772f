"""Durations, sizes, shares and rates: what is read, and what is refused with words on what to write."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow import units
from procflow.units import Rate, Share

HUGE = 10**400


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400), ("250ms", 0.25), ("1h30m", 5400), ("1h 30m 5s", 5405),
        (" 2h ", 7200), ("1.5h", 5400), ("2 h", 7200), (30, 30), (0.5, 0.5), ("366d", 366 * 86400),
    ],
)  # fmt: skip
def test_a_duration_is_read_in_seconds(written: object, seconds: float) -> None:
    assert units.duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    [
        0, -1, "0s", "-5s", True, False, None, math.nan, math.inf, -math.inf, HUGE, -HUGE, "", "soon", "90", "30m2h", "1s1s",
        "5 minutes", "1h30", "1e3s", "367d", "9" * 400 + "s", "٣s", "s", [], {}, "1..5s", "5s\n5s",
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused_in_few_words(written: object) -> None:
    with pytest.raises(ValueError, match=r"duration|unit|year") as caught:
        units.duration(written)
    assert len(str(caught.value)) < 200


def test_a_duration_without_a_unit_in_quotes_is_told_what_to_write() -> None:
    with pytest.raises(ValueError, match="write 90s"):
        units.duration("90")


def test_a_pause_may_be_nothing_but_not_negative() -> None:
    assert units.pause(0) == units.pause("0s") == 0
    with pytest.raises(ValueError, match="negative"):
        units.pause(-1)


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("500MB", 500_000_000), ("4GiB", 4 << 30), ("4G", 4 << 30), ("1k", 1024), ("12B", 12), ("10 GB", 10**10),
        ("1.5KB", 1500), ("4 gib", 4 << 30), ("500mb", 500_000_000), ("1024TiB", 1 << 50),
    ],
)  # fmt: skip
def test_a_size_is_read_in_bytes(written: str, count: int) -> None:
    assert units.size(written) == count


@pytest.mark.parametrize(
    "written",
    [
        "500", 500, 0, -1, 1.5, True, None, math.nan, math.inf, HUGE, "", "MB", "-5MB", "0MB", "0.5B", "1025TiB", "1e3MB", "5 XB",
        "9" * 400 + "GB", "1,000MB", "10%", [], "5MB5MB",
    ],
)  # fmt: skip
def test_what_is_no_size_is_refused_in_few_words(written: object) -> None:
    with pytest.raises(ValueError, match=r"size|unit|range") as caught:
        units.size(written)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("written", [500, "500"])
def test_a_bare_number_for_a_size_is_told_what_to_write(written: object) -> None:
    with pytest.raises(ValueError, match="write 500MB or 500GiB"):
        units.size(written)


@pytest.mark.parametrize(("written", "fraction"), [("80%", 0.8), ("100%", 1), ("0.5%", 0.005), (" 7 % ", 0.07)])
def test_a_share_is_read_as_a_fraction(written: str, fraction: float) -> None:
    assert units.share(written).fraction == pytest.approx(fraction)


@pytest.mark.parametrize("written", ["0%", "101%", "-5%", "80", 0.8, 80, None, True, "%", "nan%", "9" * 400 + "%"])
def test_what_is_no_share_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="%"):
        units.share(written)


def test_a_share_prints_as_it_is_written() -> None:
    assert str(Share(0.8)) == "80%"
    assert str(units.share("2.5%")) == "2.5%"


@pytest.mark.parametrize(
    ("written", "read"),
    [("10/s", Rate(10, 1)), ("100/5m", Rate(100, 300)), ("3/h", Rate(3, 3600)), ("1 / 500ms", Rate(1, 0.5))],
)
def test_a_rate_is_read_as_a_count_and_seconds(written: str, read: Rate) -> None:
    assert units.rate(written) == read


@pytest.mark.parametrize(
    "written", ["0/s", "1/0s", "-1/s", "10", 10, "10/", "/s", None, True, "1/400d", "9" * 60 + "/s", "x/s"]
)
def test_what_is_no_rate_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match=r"rate|range"):
        units.rate(written)


@pytest.mark.parametrize("read", [units.duration, units.pause, units.size, units.share, units.rate])
@given(written=st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.binary()))
def test_whatever_is_written_gives_a_value_or_a_short_value_error(read: object, written: object) -> None:
    assert callable(read)
    message = ""
    try:
        read(written)
    except ValueError as error:
        message = str(error)
    assert len(message) < 200


@given(st.floats(min_value=0.001, max_value=366 * 86400 - 1))
def test_a_duration_in_seconds_keeps_its_value(seconds: float) -> None:
    assert units.duration(seconds) == seconds
    assert units.duration(f"{seconds:.3f}s") == pytest.approx(seconds, abs=0.001)


@given(st.integers(min_value=1, max_value=1 << 50))
def test_a_size_in_bytes_keeps_its_value(count: int) -> None:
    assert units.size(f"{count}B") == count


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0005, "0.50 ms"), (0.085, "85 ms"), (3.04, "3.0 s"), (12.1, "12.1 s"), (222, "3m 42s"), (3720, "1h 02m")],
)
def test_durations_are_short_for_people(seconds: float, text: str) -> None:
    assert units.duration_text(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (1536, "1.5 KiB"), (310 << 20, "310 MiB"), (4 << 30, "4.0 GiB")]
)
def test_sizes_are_short_for_people(count: int, text: str) -> None:
    assert units.size_text(count) == text
