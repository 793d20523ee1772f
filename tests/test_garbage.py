"""The collector is quiet during a run and as it was afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from procflow.working.garbage import RECORDS_ONLY, THRESHOLD, few_collections


def test_thresholds_hold_inside_and_come_back() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    seen = []

    def fail() -> None:
        with few_collections():
            seen.append(gc.get_threshold())
            with few_collections(RECORDS_ONLY):
                seen.append(gc.get_threshold())
            seen.append(gc.get_threshold())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [THRESHOLD, RECORDS_ONLY, THRESHOLD]
    assert (gc.get_threshold(), gc.get_freeze_count()) == before


def test_a_process_without_the_collector_is_left_alone() -> None:
    gc.disable()
    try:
        before = gc.get_threshold()
        with few_collections():
            assert gc.get_threshold() == before
    finally:
        gc.enable()


def test_what_a_command_brings_with_it_is_never_collected_and_what_steps_make_is() -> None:
    script = (
        "import gc, sys, weakref\n"
        "from procflow.working.garbage import few_collections, quick_command\n"
        "class Ring: pass\n"
        "with quick_command():\n"
        "    brought = gc.get_freeze_count()\n"
        "    with few_collections():\n"
        "        ring = Ring(); ring.ring = ring; seen = weakref.ref(ring); del ring\n"
        "        from procflow.call import StepCall\n"
        "        from procflow.working.perform import perform\n"
        "        perform(StepCall('transform', 'p', 'a', 'os:getpid'), {})\n"
        "    gc.collect()\n"
        "    print(brought > 1000, gc.get_freeze_count() >= brought, seen() is None)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True"] * 3
