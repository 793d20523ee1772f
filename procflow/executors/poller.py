"""Poller: one epoll over the descriptors of the processes executor, with a handler for each.

Output pipes are handled before all else, because what a step printed was there before its outcome. This file knows
nothing of workers, and it waits only where it is given a deadline or where something is sure to come.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from procflow.executors.doze import Doze

__all__ = ["OUT", "Handler", "Poller"]

IN, OUT = select.EPOLLIN, select.EPOLLOUT

Handler = Callable[[int], object]


class Poller:
    """Descriptors and what to do about them. ``noticed`` is set when one that is only watched was readable."""

    def __init__(self) -> None:
        self.noticed = False
        self._epoll = select.epoll()
        self._doze = Doze(self._epoll.poll)
        self._handlers: dict[int, Handler] = {}
        self._outputs: set[int] = set()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.register(self._wake_fd, self._on_wake)

    def fileno(self) -> int:
        """The epoll's descriptor."""
        return self._epoll.fileno()

    def register(self, fd: int, handler: Handler, output: bool = False, events: int = IN) -> None:
        """Call ``handler`` with the epoll mask whenever ``fd`` is readable, or what ``events`` say; ``output`` comes first."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler
        if output:
            self._outputs.add(fd)

    def watch(self, fd: int) -> None:
        """Only note that ``fd`` is readable."""
        self.register(fd, self._on_watched)

    def unregister(self, fd: int) -> None:
        """Forget a descriptor, before it is closed; harmless when done before."""
        if self._handlers.pop(fd, None) is not None:
            self._outputs.discard(fd)
            self._epoll.unregister(fd)

    def __contains__(self, fd: int) -> bool:
        return fd in self._handlers

    def handle(self, timeout: float | None, free: bool = False) -> None:
        """Wait, then call the handlers of what is ready. A handler may register and unregister. ``free``: see ``Doze.wait``."""
        self._act(self._doze.wait(timeout, free))

    def _act(self, events: list[tuple[int, int]]) -> None:
        handlers = self._handlers
        if len(events) > 1:
            outputs = self._outputs
            events.sort(key=lambda event: event[0] not in outputs)
        for fd, mask in events:
            # Gone, or even given to another by an earlier handler: handlers take a false alarm.
            handler = handlers.get(fd)
            if handler is not None:
                handler(mask)

    def wake(self) -> None:
        """Make ``fileno`` readable until the next ``handle``: there is something that no descriptor tells of."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Close the epoll."""
        self._epoll.close()
        os.close(self._wake_fd)

    def _on_wake(self, mask: int) -> None:
        os.eventfd_read(self._wake_fd)

    def _on_watched(self, mask: int) -> None:
        self.noticed = True
