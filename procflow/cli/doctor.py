"""``procflow doctor``: what this machine gives to a run, and what of it would bite at night.

Measures and reads, changes nothing. Each finding is a line: ok, note or WARNING, what was found, and what to do.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from procflow import __version__
from procflow.cli.output import out
from procflow.cli.reading import state_option
from procflow.plaintext import clean
from procflow.units import duration_text, size_text

__all__ = ["Finding", "doctor", "findings"]

LIBRARIES = ("loky", "cloudpickle", "yaml", "psutil", "pydantic", "click", "rich", "jinja2", "xxhash", "threadpoolctl")
OPTIONAL = ("numpy", "pandas", "polars", "pyarrow", "sqlalchemy", "psycopg", "duckdb", "pymongo", "redis", "httpx2")
LOW_FILES = 1024
LOW_DISK_BYTES = 1 << 30
SLOW_SYNC_S = 0.05


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``level`` is ok, note or warning; ``advice`` says what to do, where there is something."""

    topic: str
    level: str
    text: str
    advice: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The findings as a JSON list.")
@state_option
def doctor(as_json: bool, state_dir: str | None) -> int:
    """Look at this machine as a run would: cores, memory, limits, disk, libraries; and say what would bite at night.

    The exit code is 1 where there is a warning.
    """
    found = list(findings(state_dir))
    if as_json:
        out(json.dumps([asdict(one) for one in found], indent=2))
    else:
        wide = max(len(one.topic) for one in found)
        for one in found:
            mark = {"ok": "ok     ", "note": "note   ", "warning": "WARNING"}[one.level]
            out(f"{mark}  {one.topic.ljust(wide)}  {clean(one.text)}")
            if one.advice:
                out(f"{' ' * (11 + wide)}{clean(one.advice)}")
        worst = sum(one.level == "warning" for one in found)
        out(f"{worst} to look at" if worst else "nothing here would bite at night")
    return int(any(one.level == "warning" for one in found))


def findings(state_dir: str | None = None) -> Iterator[Finding]:
    """All findings, in a fixed order; a check that itself fails is a finding."""
    for topic, check in (
        ("python", _python), ("cores", _cores), ("memory", _memory), ("swap", _swap), ("pressure", _pressure),
        ("cgroup", _cgroup), ("open files", _files), ("processes", _processes), ("shared memory", _shared),
        ("state folder", lambda: _state(state_dir)), ("disk sync", lambda: _sync(state_dir)), ("blas", _blas),
        ("kernel", _kernel), ("libraries", _libraries), ("extras", _extras),
    ):  # fmt: skip
        run: Callable[[], Finding] = check
        try:
            yield run()
        except Exception as error:
            yield Finding(topic, "note", f"could not be looked at: {type(error).__name__}: {error}")


def _python() -> Finding:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    build = "" if gil else ", free-threaded: threads use all cores, too"
    python = f"Python {platform.python_version()} ({platform.python_implementation()}){build}"
    return Finding("python", "ok", f"procflow {__version__}, {python}, {sys.executable}")


def _cores() -> Finding:
    from procflow.machine.resources import probe

    machine = probe()
    total = os.cpu_count() or 1
    load = os.getloadavg()[0]
    text = f"{machine.cpus} usable of {total} ({machine.cpus_source}), load {load:.1f}"
    if load > 0.5 * machine.cpus:
        return Finding("cores", "note", text, "others use them now: a run will take longer than on an idle machine")
    return Finding("cores", "ok", text)


def _memory() -> Finding:
    from procflow.machine.resources import probe

    machine = probe()
    text = (
        f"{size_text(machine.memory_bytes)} ({machine.memory_source}), {size_text(machine.available_bytes)} free now; "
        f"the budget of a run is {size_text(0.8 * machine.memory_bytes)} unless limits.memory says otherwise"
    )
    if machine.available_bytes < 0.5 * machine.memory_bytes:
        return Finding(
            "memory", "warning", text, "less than half is free: set limits.memory below what is free at night"
        )
    return Finding("memory", "ok", text)


def _swap() -> Finding:
    import psutil

    swap = psutil.swap_memory()
    if swap.total and swap.percent > 20:
        text = f"{size_text(swap.used)} of {size_text(swap.total)} in use"
        return Finding("swap", "warning", text, "steps that swap run a hundred times slower; lower limits.memory")
    return Finding("swap", "ok", f"{size_text(swap.total)}" if swap.total else "none")


def _pressure() -> Finding:
    path = Path("/proc/pressure/memory")
    if not path.exists():
        return Finding(
            "pressure", "note", "the kernel does not tell pressure (PSI)", "nothing to do: other signs are used"
        )
    return Finding("pressure", "ok", f"memory: {path.read_text().splitlines()[0]}")


def _cgroup() -> Finding:
    from procflow.machine import cgroup
    from procflow.machine.resources import warnings

    told = warnings()
    if told:
        return Finding("cgroup", "warning", told[0])
    found = cgroup.groups(Path("/"))
    limit = cgroup.memory_limit(found)
    if limit is None:
        return Finding("cgroup", "ok", f"no memory limit in {len(found)} groups")
    return Finding("cgroup", "ok", f"memory limit {size_text(limit.amount)} ({limit.source})")


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} (may be raised to {hard:,})"
    if 0 <= soft < LOW_FILES:
        return Finding("open files", "warning", shown, "each worker needs about 9: ulimit -n 4096")
    return Finding("open files", "ok", shown)


def _processes() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and soft < 200 and os.geteuid() != 0:
        return Finding(
            "processes", "warning", f"{soft} for this user", "steps that start processes will fail: ulimit -u"
        )
    return Finding("processes", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} for this user")


def _shared() -> Finding:
    if not os.path.isdir("/dev/shm"):
        return Finding("shared memory", "note", "there is no /dev/shm", "values with transient: true are refused here")
    usage = shutil.disk_usage("/dev/shm")
    text = f"/dev/shm {size_text(usage.total)}, {size_text(usage.free)} free"
    if usage.total < 256 << 20:
        return Finding(
            "shared memory",
            "note",
            text,
            "small for values with transient: true; docker run --shm-size=2g",
        )
    return Finding("shared memory", "ok", text)


def _folder(state_dir: str | None) -> Path:
    from procflow.storing.state_folder import locate

    place = locate(state_dir)
    while not place.is_dir():
        place = place.parent
    return place


def _state(state_dir: str | None) -> Finding:
    from procflow.errors import StoreError
    from procflow.storing.state_folder import StateFolder, is_network_mount, locate

    if os.path.lexists(locate(state_dir)):
        try:
            StateFolder.open(locate(state_dir), create=False)
        except StoreError as error:
            return Finding("state folder", "warning", str(error))
    place = _folder(state_dir)
    usage = shutil.disk_usage(place)
    text = f"{locate(state_dir)}: {size_text(usage.free)} of {size_text(usage.total)} free"
    if not os.access(place, os.W_OK):
        return Finding("state folder", "warning", f"{text}; not writable", "name another one with --state-dir")
    if is_network_mount(place):
        return Finding(
            "state folder",
            "note",
            f"{text}; on a network file system",
            "slower there; a local disk is better",
        )
    if usage.free < LOW_DISK_BYTES:
        return Finding("state folder", "warning", text, "procflow clean frees what old runs hold")
    return Finding("state folder", "ok", text)


def _sync(state_dir: str | None) -> Finding:
    import tempfile

    with tempfile.TemporaryFile(dir=_folder(state_dir)) as file:
        times = []
        for _ in range(5):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    took = sorted(times)[2]
    text = f"a sync takes {duration_text(took)}"
    if took > SLOW_SYNC_S:
        return Finding(
            "disk sync", "note", text, "each step of a chain waits for one; many small steps are better one map"
        )
    return Finding("disk sync", "ok", text)


def _blas() -> Finding:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    set_here = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    text = "threads of BLAS and OpenMP follow the cpus of each step"
    return Finding("blas", "ok", f"{text}; set here for this process: {', '.join(set_here)}" if set_here else text)


def _kernel() -> Finding:
    lacking = []
    if not hasattr(os, "pidfd_open"):
        lacking.append("pidfd (the end of a worker is noticed later)")
    else:
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError:
            lacking.append("pidfd (the end of a worker is noticed later)")
    if not os.path.isdir("/proc/self"):
        lacking.append("/proc (no memory is measured)")
    text = f"{platform.system()} {platform.release()}"
    if lacking:
        return Finding("kernel", "warning", f"{text} without {', '.join(lacking)}")
    return Finding("kernel", "ok", text)


def _version(name: str) -> str | None:
    from importlib import metadata

    package = {"yaml": "PyYAML"}.get(name, name)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _libraries() -> Finding:
    known = {name: _version(name) for name in LIBRARIES}
    gone = [name for name, version in known.items() if version is None]
    text = ", ".join(f"{name} {version}" for name, version in known.items() if version)
    if gone:
        return Finding("libraries", "warning", f"not installed: {', '.join(gone)}", "pip install procflow again")
    return Finding("libraries", "ok", text)


def _extras() -> Finding:
    known = {name: version for name in OPTIONAL if (version := _version(name))}
    return Finding(
        "extras", "ok", ", ".join(f"{name} {version}" for name, version in known.items()) or "none installed"
    )
