"""Guard: what keeps the processes of a run from outliving it, as one thing to open and close.

    open:   lease (nothing of the last run lives)  ->  reaper process  ->  executors, whose workers bear token and lease
    close:  executors  ->  sweep by token, reaper sent home  ->  lease given back

A run that starts no processes takes the lease and no reaper. It decides nothing about steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from procflow.executors import open_executor
from procflow.guarding import here
from procflow.guarding.lease import Lease
from procflow.guarding.reaper import Reaper, new_token
from procflow.guarding.signals import say
from procflow.storing.state_folder import StateFolder

if TYPE_CHECKING:
    from procflow.executors.base import Executor

__all__ = ["Guard"]


class Guard:
    """Use it in a ``with``, under the run lock ``name``. ``token`` marks the run's processes; ``reaper`` may be None."""

    def __init__(self, folder: StateFolder, name: str) -> None:
        self.token = new_token()
        self._state = folder.path
        self.reaper: Reaper | None = None
        self._lease = Lease(folder, name)
        self._executors: dict[str, Executor] = {}
        self._marked = ExitStack()

    def __enter__(self) -> Guard:
        """LockHeld where something of the last run lives on."""
        self._lease.take(self.token)
        return self

    def open(
        self, names: Iterable[str], slots: int, run_id: str, objects: str | None = None, commands: bool = False
    ) -> dict[str, Executor]:
        """The executors by name; ``ExecutorError`` where one can't be had here.

        ``objects`` is their folder for large values. ``commands`` says that some steps are commands.
        """
        from procflow.storing.store_tail import tail_path

        results = str(tail_path(self._state, run_id))
        for name in names:
            self._executors[name] = open_executor(
                *(name, slots),
                run_id=run_id,
                token=self.token,
                inherit=(self._lease.fileno(),),
                objects=objects,
                results=results,
            )
        mine = here.is_alone() and any(name in self._executors for name in here.IN_PARENT)
        if mine:
            self._marked.enter_context(here.marked(self.token))
        processes: Any = self._executors.get("processes")
        if processes is not None:
            self.reaper = Reaper(self.token, processes.workers, say)
        elif commands or mine:
            # Somebody here waits for each of them; nobody is adopted.
            self.reaper = Reaper(self.token, say=say, adopt=False)
        if self.reaper is not None:
            self.reaper.start()
        return self._executors

    def warm(self) -> None:
        """Start a worker now, where there will be any, so that it is ready when the first step is."""
        processes: Any = self._executors.get("processes")
        if processes is not None:
            processes.warm()

    def cool(self) -> None:
        """Nothing more is to run: idle workers may begin to end, while the run is written up."""
        processes: Any = self._executors.get("processes")
        if processes is not None:
            processes.shed()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with ExitStack() as stack:
            stack.callback(self._end)
            stack.callback(self._marked.close)
            for executor in self._executors.values():
                stack.callback(executor.close)

    def _end(self) -> None:
        left = self.reaper.finish() if self.reaper is not None else []
        self._lease.release(clean=not left)
