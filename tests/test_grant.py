"""Cores inside a step: what nested pools see, and that maps and branches share the same slots."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from procflow.api import Map, Parallel, Pipeline, Step
from procflow.working import grant


def cores(*_: Any) -> dict[str, Any]:
    import joblib
    import loky  # type: ignore[import-untyped]

    names = ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT", "POLARS_MAX_THREADS")
    seen = {name: os.environ.get(name) for name in names}
    return {"pid": os.getpid(), "joblib": joblib.cpu_count(), "loky": loky.cpu_count(), **seen}


def test_nested_pools_see_their_grant_in_new_workers_and_in_those_already_started(tmp_path: Path) -> None:
    pytest.importorskip("joblib", reason="joblib is an extra")
    steps = [Step("one", cores), Step("four", cores, cpus=4), Step("again", cores)]
    outputs = Pipeline("p", steps=steps).run(workers=4, state_dir=tmp_path / "s").outputs
    assert outputs["one"]["pid"] == outputs["four"]["pid"] == outputs["again"]["pid"]
    for name, granted in (("one", 1), ("four", 4), ("again", 1)):
        seen = outputs[name]
        assert seen["OMP_NUM_THREADS"] == seen["LOKY_MAX_CPU_COUNT"] == seen["POLARS_MAX_THREADS"] == str(granted)
        # Never more than the machine has.
        assert seen["joblib"] == seen["loky"] == min(granted, os.cpu_count() or 1)


def whose(*_: Any) -> int:
    return os.getpid()


def test_maps_and_branches_share_the_same_workers(tmp_path: Path) -> None:
    branches = [Step(f"s{i}", whose) for i in range(6)]
    maps = [Map(f"m{i}", whose, items={"range": [12]}, batch=1) for i in range(2)]
    outputs = Pipeline("p", steps=[Parallel("all", *branches, *maps)]).run(workers=2, state_dir=tmp_path / "s").outputs
    pids = {outputs[f"s{i}"] for i in range(6)} | {pid for i in range(2) for pid in outputs[f"m{i}"]}
    assert 1 <= len(pids) <= 2


def test_libraries_that_are_loaded_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []
    for name, setter in grant.TOLD.items():
        module = SimpleNamespace(**{setter: lambda n, name=name: told.append((name, n))})
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    config = SimpleNamespace(NUMBA_NUM_THREADS=2)
    numba = SimpleNamespace(config=config, set_num_threads=lambda n: told.append(("numba", n)))
    monkeypatch.setitem(sys.modules, "numba", numba)  # type: ignore[arg-type]
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"NUMBA_NUM_THREADS": "2"})
    monkeypatch.setattr(grant, "_has_blas", lambda: False)
    grant.grant(3)
    # numba would raise an error at its next compilation if the variable changed.
    assert sorted(told) == sorted([("numba", 2), *((name, 3) for name in grant.TOLD)])
    assert (os.environ["NUMBA_NUM_THREADS"], os.environ["RAYON_NUM_THREADS"]) == ("2", "3")
