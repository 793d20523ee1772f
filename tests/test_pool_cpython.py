"""CPython's own tests of executors, run on a ProcessPool where this interpreter has them installed."""

from __future__ import annotations

import importlib
import unittest
from typing import Any

import pytest

from procflow.pool import ProcessPool

PACKAGE = "test.test_concurrent_futures"
LONG = {"test_map_timeout", "test_timeout", "test_max_workers_too_large"}
"""They sleep for seconds, or are about Windows; the first two have quick ones of their own in ``test_pool.py``."""


def _mixin(module: str, name: str) -> Any:
    """A class of theirs: in a package of modules since Python 3.12, in one module before."""
    for place in (f"{PACKAGE}.{module}", PACKAGE):
        try:
            return getattr(importlib.import_module(place), name)
        except (ImportError, AttributeError):
            continue
    return type(f"No{name}", (), {})


MIXINS: list[Any] = [
    _mixin("executor", "ExecutorTest"),
    _mixin("test_wait", "WaitTests"),
    _mixin("test_as_completed", "AsCompletedTests"),
]


class _OnPool(unittest.TestCase):
    worker_count = 2
    executor_type = ProcessPool

    def setUp(self) -> None:
        self.executor = ProcessPool(self.worker_count)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)


TestStandard: Any = type("TestStandard", (*MIXINS, _OnPool), dict.fromkeys(LONG))

if not any(name.startswith("test_") for mixin in MIXINS for name in vars(mixin)):

    @pytest.mark.skip(reason=f"this interpreter has no {PACKAGE}")
    def test_the_standard_librarys_tests_are_installed() -> None: ...
