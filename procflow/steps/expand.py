"""Expand: turn the items of a map into pages.

The items are ``options["range"]`` ((stop,), (start, stop) or (start, stop, step)), the files that ``options["glob"]``
matches (sorted; ``**`` descends; from ``options["folder"]``, else the pipeline's folder), or what ``args[0]`` gives:
any iterable; a mapping gives (key, value) pairs. ``options["page"]`` is the most items a page, default 1000. The
result is ``((ref, count), ...)``; each ref opens to a list or a range. Pages of large items are made shorter. This
file never runs the step of a map.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from procflow.call import StepCall
from procflow.compiling.template import fill
from procflow.errors import ProcflowError
from procflow.ref import Ref
from procflow.secrets import masked
from procflow.values import objects

__all__ = ["MAX_ITEMS", "ItemsError", "run"]

PAGE = 1000
MAX_PAGE_BYTES = 32 << 20
MAX_ITEMS = 100_000_000
"""An iterator that gives more is taken for one without end."""


class ItemsError(ProcflowError):
    """The items of a map can't be had; the message names the index where it stopped."""


def run(call: StepCall, values: Callable[[str], Any]) -> tuple[tuple[Ref, int], ...]:
    """The pages, in order; all or none, so that no file is left of those before a failure."""
    found: list[tuple[Ref, int]] = []
    try:
        found.extend(_all_pages(call, values))
    except BaseException:
        objects.forget(ref for ref, _ in found)
        raise
    return tuple(found)


def _all_pages(call: StepCall, values: Callable[[str], Any]) -> Iterator[tuple[Ref, int]]:
    options = call.options
    page = fill(options.get("page"), values) or PAGE
    if options.get("range") is not None:
        return _range_pages(fill(options["range"], values), page)
    if options.get("glob") is not None:
        folder = fill(options.get("folder"), values) or call.folder or "."
        return _pages(_files(fill(options["glob"], values), folder), page)
    if not call.args:
        raise ItemsError("the map has no items")
    return _pages(_iterable(fill(call.args[0], values)), page)


def _range_pages(bounds: Any, page: int) -> Iterator[tuple[Ref, int]]:
    if not isinstance(bounds, (list, tuple)) or not 1 <= len(bounds) <= 3:
        raise ItemsError(f"a range is [stop], [start, stop] or [start, stop, step], not {bounds!r}")
    if any(isinstance(bound, bool) or not isinstance(bound, int) for bound in bounds):
        raise ItemsError(f"a range is made of whole numbers, not {bounds!r}")
    if len(bounds) == 3 and bounds[2] == 0:
        raise ItemsError("the step of a range can't be 0")
    yield from _slices(range(*bounds), page)


def _slices(numbers: range, page: int) -> Iterator[tuple[Ref, int]]:
    # A page of a range is itself a range: a few bytes, whatever its length.
    if len(numbers) > MAX_ITEMS:
        raise ItemsError(f"more than {MAX_ITEMS:,} items")
    for start in range(0, len(numbers), page):
        part = numbers[start : start + page]
        yield objects.pack(part), len(part)


def _files(pattern: Any, folder: str) -> list[str]:
    if not isinstance(pattern, str):
        raise ItemsError(f"a glob is a text such as data/*.csv, not {pattern!r}")
    root = os.path.abspath(folder)
    if not os.path.isdir(root):
        raise ItemsError(f"there is no folder {root} to look for {pattern} in")
    found = glob.iglob(os.path.expanduser(pattern), root_dir=root, recursive=True)
    # With ** a file may be found more than once.
    return sorted({path for path in (os.path.join(root, name) for name in found) if os.path.isfile(path)})


def _iterable(value: Any) -> Iterable[Any]:
    if isinstance(value, (str, bytes, bytearray)):
        raise ItemsError(
            f"the items are one {type(value).__name__}, and its characters are hardly meant: "
            "write items: [...] or ${name} of a list, or split the text first"
        )
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (set, frozenset)):
        raise ItemsError("a set has no order that is the same in every run: pass sorted(...) of it")
    if hasattr(value, "iloc") or type(value).__module__.partition(".")[0] in ("polars", "pyarrow"):
        raise ItemsError(f"a {type(value).__name__} is no list of items: pass its rows, or files to read in each item")
    if getattr(value, "shape", None) == ():
        raise ItemsError("an array without dimensions has no items")
    if not isinstance(value, Iterable) and not hasattr(value, "__getitem__"):
        hint = "; write [0, 1, ...] or {range: [n]}" if isinstance(value, int) else ""
        raise ItemsError(f"{'None' if value is None else type(value).__name__} is no list of items{hint}")
    return value if isinstance(value, Iterable) else iter(value)


def _pages(items: Iterable[Any], page: int) -> Iterator[tuple[Ref, int]]:
    if isinstance(items, range):
        yield from _slices(items, page)
        return
    count = 0
    source = _counted(items)
    while members := list(islice(source, page)):
        yield from _packed(members, count)
        count += len(members)
        if count > MAX_ITEMS:
            raise ItemsError(f"the items did not end after {MAX_ITEMS:,}")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items; what they raise names the index."""
    count = -1
    try:
        for count, item in enumerate(items):  # noqa: B007
            yield item
    except GeneratorExit:
        raise
    except Exception as exc:
        text = f"{type(exc).__name__}: {exc}".rstrip(": ")
        raise ItemsError(f"getting item {count + 1} failed: {masked(text)[:2000]}") from exc


def _packed(members: list[Any], first: int) -> Iterator[tuple[Ref, int]]:
    try:
        most_bytes = MAX_PAGE_BYTES if len(members) > 1 else sys.maxsize
        ref = objects.pack_within(members, most_bytes, "items")
    except objects.PackError:
        for i, member in enumerate(members):
            objects.check(member, f"items[{first + i}]")
        raise
    if ref is not None:
        yield ref, len(members)
        return
    half = len(members) // 2
    yield from _packed(members[:half], first)
    yield from _packed(members[half:], first + half)
