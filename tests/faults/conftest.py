"""What fault tests share: a folder in memory, and how a sown bug is proven to be found."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
from sabotage import proven

__all__ = ["memory", "proven"]


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory: a kill does not depend on the disk, and thousands of syncs would."""
    with tempfile.TemporaryDirectory(prefix="procflow-faults-", dir=images.shared_memory()) as name:
        yield Path(name)
