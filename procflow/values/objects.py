"""Objects: values to refs and back.

Workers pack what a step returned and open what it reads; the parent passes refs on without opening them. Pickle
protocol 5 with out-of-band buffers: arrays are stored beside the pickle, and come back read-only, because their
memory may be shared (a step that writes into one gets an error, never silent damage). What is larger than
``INLINE_MAX`` goes to a file of the object folder, where there is one (``FOLDER``). Where plain pickle can't
(lambdas, classes of ``__main__``), cloudpickle does. This file never decides how long a value lives.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from importlib import import_module
from itertools import pairwise
from typing import Any

from procflow.errors import ProcflowError
from procflow.ref import Element, Inline, ListOf, MappingOf, Ordered, Ref, Stored, WithState, stored_in

__all__ = [
    "FOLDER",
    "INLINE_MAX",
    "PackError",
    "UnpackError",
    "check",
    "dumps",
    "explain",
    "forget",
    "pack",
    "pack_within",
    "unpack",
]

PROTOCOL = 5
INLINE_MAX = 64 << 10
"""Values of more bytes are stored in files."""
FOLDER: ContextVar[str | None] = ContextVar("FOLDER", default=None)
"""The object folder that values are stored in; without one they all travel inline."""
MAX_TRIALS = 200_000
"""Most members that are tried one by one to find what can't be pickled."""

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})


class PackError(ProcflowError):
    """A value can't be pickled; the message names the path to the culprit and its type."""


class UnpackError(ProcflowError):
    """A stored value can't be opened here; the message names it and the cause."""


def pack(value: Any, root: str = "result") -> Ref:
    """The ref of a value. Raises ``PackError``, which names what can't be pickled as a path from ``root``.

    ``NotStored`` where it is large and its file can't be written.
    """
    if type(value) in _ATOMS:
        data = pickle.dumps(value, PROTOCOL)
        return Inline(data) if len(data) <= INLINE_MAX else _stored(data, [], root)
    data, buffers = _pickled(value, root)
    return _stored(data, buffers, root)


def pack_within(value: Any, most_bytes: int, root: str = "result") -> Ref | None:
    """As ``pack``, but None where the value has more bytes than this."""
    data, buffers = _pickled(value, root)
    if len(data) + sum(b.raw().nbytes for b in buffers) > most_bytes:
        return None
    return _stored(data, buffers, root)


def check(value: Any, root: str = "result") -> None:
    """Raise the ``PackError`` that ``pack`` would raise; nothing is stored."""
    _pickled(value, root)


def forget(refs: Iterable[Ref]) -> None:
    """Remove the files of values that nobody was told of."""
    for ref in refs:
        for stored in stored_in(ref):
            _files().remove(stored)


def _stored(data: bytes, buffers: list[pickle.PickleBuffer], root: str) -> Ref:
    # The one place where payload is laid down: file-backed refs are chosen here by size.
    if not buffers and len(data) <= INLINE_MAX:
        return Inline(data)
    try:
        views = [b.raw() for b in buffers]
    except (BufferError, ValueError) as exc:
        raise PackError(f"{root}: one of its buffers can't be read ({exc})") from None
    if len(data) + sum(view.nbytes for view in views) > INLINE_MAX:
        folder = FOLDER.get()
        if folder is not None:
            stored: Ref = _files().folder(folder).write(data, views)
            return stored
    return Inline(data, tuple(view.tobytes() for view in views))


def _files() -> Any:
    # Loaded by those that store or open a file, not by everyone.
    return import_module("procflow.values.object_files")


def _pickled(value: Any, root: str) -> tuple[bytes, list[pickle.PickleBuffer]]:
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, PROTOCOL, buffer_callback=buffers.append)
        # What lives in __main__ is pickled by name, and another process has another __main__.
        if b"__main__" not in data:
            return data, buffers
    except MemoryError:
        raise
    except BaseException:
        # Whatever it was, cloudpickle is asked next; its answer counts.
        pass
    cloudpickle = import_module("cloudpickle")
    buffers = []
    try:
        return cloudpickle.dumps(value, protocol=PROTOCOL, buffer_callback=buffers.append), buffers
    except MemoryError:
        raise
    except BaseException as exc:
        raise PackError(_reason(value, root, exc)) from None


def dumps(value: Any) -> bytes:
    """One pickle without buffers beside it, by cloudpickle where plain pickle fails or names ``__main__``."""
    try:
        data = pickle.dumps(value, PROTOCOL)
        if b"__main__" not in data:
            return data
    except Exception:
        pass
    cloudpickle = import_module("cloudpickle")
    return bytes(cloudpickle.dumps(value, protocol=PROTOCOL))


def unpack(ref: Ref) -> Any:
    """The value of a ref; arrays that were stored beside the pickle are read-only.

    Raises whatever opening the pickle raises: it is the user's code.
    """
    if type(ref) is Inline:
        return pickle.loads(ref.data, buffers=ref.buffers) if ref.buffers else pickle.loads(ref.data)
    if type(ref) is Stored:
        data, buffers = import_module("procflow.values.object_views").open_stored(ref)
        return pickle.loads(data, buffers=buffers)
    if isinstance(ref, ListOf):
        return [unpack(member) for member in ref.members]
    if isinstance(ref, MappingOf):
        return {name: unpack(member) for name, member in ref.members}
    if isinstance(ref, Ordered):
        return _unpack_ordered(ref)
    if isinstance(ref, WithState):
        return unpack(ref.value)
    if isinstance(ref, Element):
        # Pages stand above this file; most refs never need them.
        return import_module("procflow.working.pages").take(ref.of, (ref.index,))[0]
    raise UnpackError(f"a ref of kind {type(ref).__name__} can't be opened here")


def _unpack_ordered(ref: Ordered) -> list[Any]:
    chunks = [(indices, unpack(chunk)) for indices, chunk in ref.chunks if len(indices)]
    chunks.sort(key=lambda chunk: chunk[0][0])
    if all(a[0][-1] < b[0][0] for a, b in pairwise(chunks)):
        return [value for _, values in chunks for value in values]
    pairs = [pair for indices, values in chunks for pair in zip(indices, values, strict=True)]
    pairs.sort(key=lambda pair: pair[0])
    return [value for _, value in pairs]


def explain(value: Any, root: str = "result") -> str:
    """Why a value can't be pickled: ``result['a'][3].lock: cannot pickle '_thread.lock' object``; empty if it can."""
    problem = _refusal(value)
    return _reason(value, root, problem) if problem is not None else ""


def _reason(value: Any, root: str, problem: BaseException) -> str:
    if _is_too_deep(problem):
        return f"{root}: nested too deeply to be pickled ({type(value).__name__}); return a flatter value"
    trials = MAX_TRIALS
    path = root
    seen = {id(value)}
    searching = True
    while searching:
        searching = False
        for step, member in _members(value):
            trials -= 1
            if trials < 0:
                break
            if id(member) in seen or (refusal := _refusal(member)) is None:
                continue
            seen.add(id(member))
            value, problem, path, searching = member, refusal, path + step, True
            break
    return f"{path}: {_told(value, problem)}"


def _told(value: Any, problem: BaseException) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    try:
        text = str(problem)[:500]
    except Exception:
        text = ""
    if kind in ("generator", "async_generator", "coroutine"):
        return f"cannot pickle {kind!r} object; return a list instead"
    if isinstance(problem, TypeError) and text.startswith("cannot pickle"):
        return text if type(value).__name__ in text else f"{text} (held by {kind})"
    return f"cannot pickle {kind!r} object ({type(problem).__name__}: {text})"


def _is_too_deep(problem: BaseException) -> bool:
    return isinstance(problem, RecursionError) or isinstance(problem.__cause__, RecursionError)


def _refusal(value: Any) -> BaseException | None:
    if type(value) in _ATOMS:
        return None
    try:
        pickle.dumps(value, PROTOCOL, buffer_callback=lambda _: None)
    except BaseException:
        pass
    else:
        return None
    cloudpickle = import_module("cloudpickle")
    try:
        cloudpickle.dumps(value, protocol=PROTOCOL, buffer_callback=lambda _: None)
    except BaseException as exc:
        return exc
    return None


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, each with its step of a path; reads plain storage only, never a property."""
    if isinstance(value, dict):
        for key, member in list(value.items()):
            yield f"[{_shown(key)}]", member
        for key in list(value):
            yield f".<key {_shown(key)}>", key
    elif isinstance(value, (list, tuple)):
        for i, member in enumerate(value):
            yield f"[{i}]", member
    elif isinstance(value, (set, frozenset)):
        for member in value:
            yield ".<member>", member
    function = getattr(value, "__func__", value)
    cells = getattr(function, "__closure__", None) or ()
    code = getattr(function, "__code__", None)
    for name, cell in zip(getattr(code, "co_freevars", ()), cells, strict=False):
        try:
            yield f".<variable {name}>", cell.cell_contents
        except ValueError:
            continue
    for name in getattr(code, "co_names", ()):
        space = getattr(function, "__globals__", {})
        if name in space:
            yield f".<global {name}>", space[name]
    yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = {}
    if isinstance(own, dict) and not isinstance(value, type):
        for name, member in list(own.items()):
            yield f".{name}", member
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            try:
                yield f".{name}", object.__getattribute__(value, name)
            except AttributeError:
                continue


def _shown(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:
        text = f"<{type(key).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."
