"""The peers that are installed, each as a contender for one question. Those that are not installed are left out."""

from __future__ import annotations

import concurrent.futures
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from benchmarks.table import DEADLINE_S, Contender, Round

WORKERS = 2
Open = Callable[[int], AbstractContextManager[Callable[[], Any]]]


PEERS = {"joblib": "joblib", "loky": "loky", "mpire": "mpire", "pebble": "pebble", "dask": "distributed", "ray": "ray"}
"""Every peer beside the standard library, with the module that tells whether it is installed."""


def missing() -> list[str]:
    """The peers that are not installed."""
    return [name for name, module in PEERS.items() if importlib.util.find_spec(module) is None]


def installed(**contenders: Contender) -> dict[str, Contender]:
    """Those whose library is there, with names for people."""
    return {
        name.replace("_", " "): contender
        for name, contender in contenders.items()
        if name not in PEERS or importlib.util.find_spec(PEERS[name]) is not None
    }


@contextmanager
def _mpire() -> Iterator[Any]:
    from mpire import WorkerPool

    with WorkerPool(n_jobs=WORKERS, keep_alive=True) as pool:
        yield pool


@contextmanager
def _pebble() -> Iterator[Any]:
    from pebble import ProcessPool

    with ProcessPool(max_workers=WORKERS) as pool:
        yield pool


@contextmanager
def opened_dask() -> Iterator[Any]:
    """A client of a cluster of processes on this machine."""
    import logging

    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.ERROR)
    options: dict[str, Any] = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client


@contextmanager
def opened_ray() -> Iterator[Any]:
    """The module, started on this machine."""
    import ray

    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _stdlib() -> Iterator[Any]:
    with concurrent.futures.ProcessPoolExecutor(WORKERS) as pool:
        yield pool


@contextmanager
def _loky() -> Iterator[Any]:
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS, timeout=DEADLINE_S) as pool:
        yield pool


def round_trips(task: Callable[[], Any], trips: int) -> dict[str, Contender]:
    """Each: hand in one task, wait for its answer, ``trips`` times."""

    def futures(opened: Callable[[], Any], submit: Callable[[Any], Callable[[], Any]]) -> Contender:
        @contextmanager
        def contender() -> Iterator[Round]:
            with opened() as pool:
                hand_in = submit(pool)
                yield lambda: [hand_in().result(DEADLINE_S) for _ in range(trips)]

        return contender

    @contextmanager
    def mpire() -> Iterator[Round]:
        with _mpire() as pool:
            yield lambda: [pool.apply_async(task).get(DEADLINE_S) for _ in range(trips)]

    @contextmanager
    def ray() -> Iterator[Round]:
        with opened_ray() as module:
            remote = module.remote(task)
            yield lambda: [module.get(remote.remote()) for _ in range(trips)]

    return installed(
        stdlib_pool=futures(_stdlib, lambda pool: lambda: pool.submit(task)),
        loky=futures(_loky, lambda pool: lambda: pool.submit(task)),
        pebble=futures(_pebble, lambda pool: lambda: pool.schedule(task)),
        mpire=mpire,
        dask=futures(opened_dask, lambda client: lambda: client.submit(task, pure=False)),
        ray=ray,
    )


def many_tasks(task: Callable[[int], Any], tasks: int) -> dict[str, Contender]:
    """Each: so many tasks, one by one, until all are answered."""

    @contextmanager
    def stdlib() -> Iterator[Round]:
        with _stdlib() as pool:
            yield lambda: list(pool.map(task, range(tasks), timeout=DEADLINE_S))

    @contextmanager
    def loky() -> Iterator[Round]:
        with _loky() as pool:
            yield lambda: list(pool.map(task, range(tasks), timeout=DEADLINE_S))

    @contextmanager
    def joblib() -> Iterator[Round]:
        from joblib import Parallel, delayed

        with Parallel(n_jobs=WORKERS, batch_size=1) as jobs:
            yield lambda: jobs(delayed(task)(i) for i in range(tasks))

    @contextmanager
    def mpire() -> Iterator[Round]:
        with _mpire() as pool:
            yield lambda: pool.map(task, range(tasks), chunk_size=1)

    @contextmanager
    def pebble() -> Iterator[Round]:
        with _pebble() as pool:
            yield lambda: list(pool.map(task, range(tasks), chunksize=1, timeout=DEADLINE_S).result())

    @contextmanager
    def dask() -> Iterator[Round]:
        with opened_dask() as client:
            yield lambda: client.gather(client.map(task, range(tasks), pure=False))

    @contextmanager
    def ray() -> Iterator[Round]:
        with opened_ray() as module:
            remote = module.remote(task)
            yield lambda: module.get([remote.remote(i) for i in range(tasks)])

    return installed(stdlib_pool=stdlib, loky=loky, joblib=joblib, mpire=mpire, pebble=pebble, dask=dask, ray=ray)
