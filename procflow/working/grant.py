"""Grant: how many cores a step may use, made known to whatever in it starts threads or processes of its own.

Libraries that are loaded later read the environment, as do processes that the step starts; those loaded already are told.
Nothing is bound to certain cores: on a machine that others use as well, the kernel finds a free core better than a fixed
choice would. Imports nothing that the step has not imported itself, but for ``threadpoolctl`` where a BLAS is loaded.
"""

from __future__ import annotations

import os
import sys

__all__ = ["BLAS_NAMES", "environment", "grant", "tell_children"]

BLAS_NAMES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Environment variables that BLAS and OpenMP libraries read when they are loaded."""

POOL_NAMES = ("LOKY_MAX_CPU_COUNT", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
"""The same for pools: loky and joblib (and procflow in a step), Polars, other Rust libraries."""

PYTHON_NAME = "PYTHON_CPU_COUNT"
"""Python reads it from 3.13 on, when it starts: for processes that a step starts, not for a worker, whose grant changes."""

NUMBA_NAME = "NUMBA_NUM_THREADS"
"""numba raises an error where this changes after its threads were started."""

TOLD = {"pyarrow": "set_cpu_count", "cv2": "setNumThreads", "torch": "set_num_threads", "numexpr": "set_num_threads"}
"""Libraries with pools that no BLAS call reaches, and the function of each that takes a number of threads."""

BLAS_LIBRARIES = (b"openblas", b"libmkl", b"libgomp", b"libiomp", b"libomp", b"libblis")


def environment(cpus: int) -> dict[str, str]:
    """The variables that say how many cores there are, for a worker that is started."""
    return dict.fromkeys((*BLAS_NAMES, *POOL_NAMES, NUMBA_NAME), str(cpus))


def grant(cpus: int) -> None:
    """From now on ``cpus`` cores in this process, whatever it was started with."""
    loaded = sys.modules
    wanted = environment(cpus)
    tell_children(cpus)
    if "numba" in loaded:
        del wanted[NUMBA_NAME]
        _numba(cpus)
    os.environ.update(wanted)
    for name, setter in TOLD.items():
        function = getattr(loaded.get(name), setter, None)
        if callable(function):
            function(cpus)
    if _has_blas():
        import threadpoolctl  # type: ignore[import-untyped]

        threadpoolctl.threadpool_limits(limits=cpus)


def tell_children(cpus: int) -> None:
    """What is of use only to Python processes that are started from here."""
    os.environ[PYTHON_NAME] = str(cpus)


def _numba(cpus: int) -> None:
    """numba can use fewer threads than it was loaded with, never more."""
    numba = sys.modules["numba"]
    most = getattr(getattr(numba, "config", None), "NUMBA_NUM_THREADS", 0)
    setter = getattr(numba, "set_num_threads", None)
    if callable(setter) and most:
        setter(min(cpus, most))


def _has_blas() -> bool:
    if "numpy" in sys.modules:
        return True
    try:
        with open("/proc/self/maps", "rb") as file:
            maps = file.read()
    except OSError:
        return False
    return any(library in maps for library in BLAS_LIBRARIES)
