"""Steps of random pipelines: each writes to the ledger, then computes, sleeps, allocates, starts a daemon, or fails once.

They need nothing but procflow and the ledger, since they are imported from the folder of a pipeline file.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from typing import Any

import ledger

from procflow import step


def digest(*values: Any) -> str:
    """The same for the same values."""
    found = hashlib.sha256()
    for value in values:
        found.update(value if isinstance(value, bytes) else repr(value).encode())
    return found.hexdigest()[:20]


def work(*values: Any, key: str, how: str = "plain", pause_s: float = 0.0) -> Any:
    """What ``how`` says, then a digest of all that was read; for ``large`` some hundred KiB made of it."""
    ledger.write(key, "start")
    print(f"{key} is at work")
    calm = bool(os.environ.get("SOAK_CALM"))
    time.sleep(0 if calm else pause_s)
    if calm:
        how = "large" if how == "large" else "plain"
    if how == "fails" and step.attempt == 1:
        raise ValueError(f"{key} fails at its first attempt")
    if how == "daemon":
        subprocess.Popen(["setsid", "sleep", "600"], stdin=subprocess.DEVNULL)
    if how == "forks" and os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    if how == "hungry":
        held = bytearray(b"x") * HUNGRY_BYTES
        time.sleep(0.4)
        del held
    found = digest(key, *values)
    ledger.write(key, "end")
    return found.encode() * LARGE_TIMES if how == "large" else found


HUNGRY_BYTES = 120 << 20
LARGE_TIMES = 8_000


def rows(*values: Any, key: str, count: int) -> list[str]:
    """The items of a map."""
    ledger.write(key, "start")
    found = [f"{key}-{i}-{digest(*values)[:4]}" for i in range(count)]
    ledger.write(key, "end")
    return found


def each(item: str, key: str, pause_s: float = 0.0) -> str:
    """One item of a map."""
    return str(work(item, key=f"{key}/{item.split('-')[1]}", pause_s=pause_s))
