"""Lazy state: the pipeline's state as a run left it, by key, opened only when somebody asks.

A run that came to its end has folded it, in a worker; of one that failed or was stopped, the changes that counted so far
are folded here, at the first access. It decides nothing about which changes count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from procflow.call import Reducer
from procflow.ref import ListOf, Ref
from procflow.state import fold, leaves

__all__ = ["LazyState"]


class LazyState(Mapping[str, Any]):
    """Values of the state by key; ``folded`` are the refs of those that are folded, ``changes`` those of the others."""

    def __init__(
        self,
        specs: Mapping[str, Reducer] | None = None,
        folded: Mapping[str, Ref] | None = None,
        changes: Mapping[str, list[Ref]] | None = None,
        open_ref: Callable[[Ref], Any] | None = None,
        folder: str | None = None,
    ) -> None:
        self._specs = dict(specs or {})
        self._folded = dict(folded or {})
        self._changes = dict(changes or {})
        self._open = open_ref
        self._folder = folder
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            self._values[key] = self._value(key, self._specs[key])
        return self._values[key]

    def _value(self, key: str, spec: Reducer) -> Any:
        from procflow.values.objects import unpack
        from procflow.working.functions import resolve

        opened = self._open or unpack
        if key in self._folded:
            return opened(self._folded[key])
        changes = leaves(opened(ListOf(tuple(self._changes.get(key, ())))))
        return fold(key, spec, changes, lambda function: resolve(function, self._folder))

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __repr__(self) -> str:
        return f"<state {', '.join(self._specs) or 'none'}>"
