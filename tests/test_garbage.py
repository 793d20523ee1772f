"""The collector is quiet during a run and as it was afterwards."""

from __future__ import annotations

import gc

import pytest

from procflow.working.garbage import THRESHOLD, few_collections


def test_thresholds_hold_inside_and_come_back() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    seen = []

    def fail() -> None:
        with few_collections():
            seen.append(gc.get_threshold())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [THRESHOLD]
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_process_without_the_collector_is_left_alone() -> None:
    gc.disable()
    try:
        before = gc.get_threshold()
        with few_collections():
            assert gc.get_threshold() == before
    finally:
        gc.enable()
