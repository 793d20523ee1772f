"""Steps for test_suggest.py."""

from __future__ import annotations

import time
from typing import Any


def work(*values: Any, seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return len(values)
