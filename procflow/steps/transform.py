"""Transform: call a Python function. ``StepCall.function`` with ``args`` and ``kwargs``; no options.

``async def`` functions run to their end in an event loop of their own. A generator is refused as a result: it can't
be sent anywhere, and running it here would hide where its time goes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from procflow.call import INDEX, Lookup, StepCall, Text
from procflow.compiling.template import fill, lookups
from procflow.errors import ProcflowError
from procflow.working import functions

__all__ = ["ResultError", "body", "call_function", "run"]

_ODD = (GeneratorType, AsyncGeneratorType, CoroutineType)


class ResultError(ProcflowError):
    """What a function returned can't be the value of a step."""


def run(call: StepCall, values: Callable[[str], Any]) -> Any:
    """The function's result for the filled arguments."""
    assert call.function is not None
    function = functions.resolve(call.function, call.folder)
    args = [fill(tree, values) for tree in call.args]
    kwargs = {name: fill(tree, values) for name, tree in call.kwargs.items()}
    value = function(*args, **kwargs)
    return settle(value) if isinstance(value, _ODD) else value


def call_function(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the function returns, awaited where it is async; generators are refused."""
    value = function(*args, **kwargs)
    return settle(value) if isinstance(value, _ODD) else value


def settle(value: Any) -> Any:
    """The result of a coroutine; ``ResultError`` for a generator."""
    if isinstance(value, CoroutineType):
        value = _awaited(value)
    if isinstance(value, (GeneratorType, AsyncGeneratorType)):
        name = getattr(value, "__qualname__", "the function")
        raise ResultError(f"{name} returned a generator, which can't be a value: return list(...) of it instead")
    return value


def _awaited(coroutine: Any) -> Any:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # This thread is inside an event loop (a notebook, say), so the step gets a thread of its own.
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, asyncio.run, coroutine).result()


def body(call: StepCall, values: Any) -> Callable[[Any, int], Any]:
    """The function of item and index that a map runs; what does not depend on the item is filled in once.

    ``values`` is the attempt's ``Values``; shared values are the same objects for all items of the attempt.
    """
    assert call.function is not None
    function = functions.resolve(call.function, call.folder)
    names = {call.item_name, INDEX}
    trees = [*call.args, *call.kwargs.values()]
    fixed = [_fixed(tree, names) for tree in trees]
    if all(fixed[1:]) and call.args and call.args[0] == Lookup(call.item_name or ""):
        rest = [fill(tree, values) for tree in call.args[1:]]
        keywords = {name: fill(tree, values) for name, tree in call.kwargs.items()}

        def simple(item: Any, index: int) -> Any:
            value = function(item, *rest, **keywords)
            return settle(value) if isinstance(value, _ODD) else value

        return simple

    ready = [fill(tree, values) if still else tree for tree, still in zip(trees, fixed, strict=True)]
    count = len(call.args)

    def general(item: Any, index: int) -> Any:
        def look(name: str) -> Any:
            return item if name == call.item_name else index if name == INDEX else values(name)

        given = [tree if still else fill(tree, look) for tree, still in zip(ready, fixed, strict=True)]
        value = function(*given[:count], **dict(zip(call.kwargs, given[count:], strict=True)))
        return settle(value) if isinstance(value, _ODD) else value

    return general


def _fixed(tree: Any, names: set[str | None]) -> bool:
    """Whether the tree gives the same for every item: containers don't, because a step may change the one it got."""
    if isinstance(tree, (Lookup, Text)):
        return all(lookup.name not in names for _, lookup in lookups(tree))
    return not isinstance(tree, (dict, list, tuple, set))
