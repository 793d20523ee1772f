"""Agent Builder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def matches(document: Mapping[str, Any]) -> bool:
    return False
