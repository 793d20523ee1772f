"""Payload: a step's call pickled, once for all steps that do the same; and what to say where that fails.

A plain function is pickled by itself, named by its digest and sent once a worker; what else a small call is made of goes with
each attempt. A call with large constants, or whose function has a state of its own, is pickled and sent as a whole, once.
Path and name stay here and the outputs travel by themselves, so calls of one function without arguments are one payload.

This file pickles calls and remembers them. It never unpickles anything and never sends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from procflow.call import StepCall
from procflow.errors import ExecutorError
from procflow.values import objects

__all__ = ["Payload", "Payloads"]

KEPT = 1024
REST_BYTES = 1024
"""What goes with each attempt is no larger."""


@dataclass(slots=True)
class Payload:
    """``data`` is the pickle of the call's function, or of the whole call where ``rest`` is empty, and ``digest`` its name.

    ``rest`` is the pickle of the call without its function. Neither has the call's path, name or outputs. Where there is nothing
    to be sent before, ``digest`` is empty.
    """

    call: StepCall
    digest: bytes
    data: bytes
    rest: bytes = b""

    @property
    def folder(self) -> str | None:
        """The folder that the call's modules lie in."""
        return self.call.folder


class Payloads:
    """The payloads of the calls last used: by the identity of the call, or of its function where there is nothing else."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, Payload] = OrderedDict()
        self._functions: OrderedDict[int, tuple[object, bytes, bytes]] = OrderedDict()

    def of(self, call: StepCall) -> Payload:
        """The call's payload; ExecutorError naming step, argument and type where it can't be pickled."""
        # The payload keeps its call alive, so no id can have gone to another.
        name: Any = id(call)
        if not (call.args or call.kwargs or call.options or call.constants or call.params or call.state):
            function = call.function
            shown = function if type(function) is str else id(function)
            name = (shown, call.kind, call.when, call.folder, call.item_name, call.transient)
        kept = self._kept
        payload = kept.get(name)
        if payload is None:
            try:
                payload = kept[name] = self._made(call)
            except Exception as error:
                raise ExecutorError(_story(call, error)) from error
            if len(kept) > KEPT:
                kept.popitem(last=False)
        return payload

    def _made(self, call: StepCall) -> Payload:
        function = call.function
        shared = type(function) is FunctionType
        if shared or function is None or type(function) is str:
            rest = _pickle(call.nameless(None if shared else function))
            if len(rest) <= REST_BYTES:
                digest, data = self._function(function) if shared else (b"", b"")
                return Payload(call, digest, data, rest)
        data = _pickle(StepCall(*call.nameless(function)))
        return Payload(call, _digest(data), data)

    def _function(self, function: object) -> tuple[bytes, bytes]:
        """Digest and pickle of a function, which is kept alive so that its id can't go to another."""
        kept = self._functions
        found = kept.get(id(function))
        if found is None:
            data = _pickle(function)
            found = kept[id(function)] = function, _digest(data), data
            if len(kept) > KEPT:
                kept.popitem(last=False)
        return found[1], found[2]


def _digest(data: bytes) -> bytes:
    import xxhash

    return xxhash.xxh3_128_digest(data)


def _pickle(value: object) -> bytes:
    # Plain pickle is ten times faster where a function can be imported; cloudpickle takes the rest.
    return objects.dumps(value)


def _story(call: StepCall, error: Exception) -> str:
    for where, value in _leaves(call):
        try:
            _pickle(value)
        except Exception as inner:
            return (
                f"step {call.path} ({call.name}): {where} can't be sent to a worker: {_kind(value)} can't be pickled "
                f"({type(inner).__name__}: {inner}); pass what it is made from, or run the step with executor: threads"
            )
    return (
        f"step {call.path} ({call.name}): the call can't be sent to a worker ({type(error).__name__}: {error}); "
        "run the step with executor: threads"
    )


def _kind(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _leaves(call: StepCall) -> Iterator[tuple[str, object]]:
    yield "function", call.function
    for index, value in enumerate(call.args):
        yield from _tree(f"args[{index}]", value)
    for field in ("kwargs", "params", "options", "constants"):
        for name, value in getattr(call, field).items():
            yield from _tree(f"{field}[{name!r}]", value)


def _tree(where: str, value: Any, depth: int = 0) -> Iterator[tuple[str, object]]:
    """Innermost values first, so that the path is as long as it can be."""
    if depth < 20:
        if type(value) in (list, tuple):
            for index, member in enumerate(value):
                yield from _tree(f"{where}[{index}]", member, depth + 1)
        elif isinstance(value, Mapping):
            for key, member in value.items():
                yield from _tree(f"{where}[{key!r}]", member, depth + 1)
    yield where, value
