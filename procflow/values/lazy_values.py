"""Lazy values: what a run came to, by name, opened only when somebody asks. It decides nothing about what is kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from procflow.errors import ProcflowError
from procflow.ref import Ref

__all__ = ["LazyValues", "ValueDropped"]


class ValueDropped(ProcflowError, KeyError):
    """A value of the run was removed once every step that reads it was done; the message says how to keep it."""

    def __str__(self) -> str:
        return str(self.args[0])


class LazyValues(Mapping[str, Any]):
    """Values by name, each opened from its ref at its first access and kept; those in ``dropped`` are not there any more."""

    def __init__(
        self,
        refs: Mapping[str, Ref],
        open_ref: Callable[[Ref], Any] | None = None,
        dropped: Collection[str] = (),
    ) -> None:
        self._refs = dict(refs)
        self._dropped = dropped
        self._open = open_ref
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            if name in self._dropped:
                raise ValueDropped(
                    f"{name!r} was large and was removed once all steps that read it were done; the pipeline keeps it if it "
                    f"says keep: [{name}]"
                )
            ref = self._refs[name]
            if self._open is None:
                from procflow.values.objects import unpack

                self._open = unpack
            self._values[name] = self._open(ref)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __contains__(self, name: object) -> bool:
        return name in self._refs

    def refs(self) -> Mapping[str, Ref]:
        """The refs themselves."""
        return dict(self._refs)

    def __repr__(self) -> str:
        return f"<values {', '.join(self._refs) or 'none'}>"
