"""Pages: the opened item pages of maps that a worker keeps for a while.

A page holds many items, and attempts of a few items each may all work on the same one, so it is opened once, not once
an attempt. Every item object is handed out at most once: a step may change its item, and a later attempt of the same
item must find it as it was. This file never runs user code but that of unpickling.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from typing import Any

from procflow.ref import Ref
from procflow.values import objects

__all__ = ["take"]

MAX_PAGES = 4
MAX_BYTES = 64 << 20
"""Pickled bytes of the pages kept besides the newest one."""

_CONSTANT = frozenset({type(None), bool, int, float, complex, str, bytes})
_TAKEN = object()


class _Page:
    """One opened page. ``members`` are items not yet handed out, or ``packed`` holds a pickle of each."""

    __slots__ = ("members", "packed", "ref")

    def __init__(self, ref: Ref, members: Sequence[Any]) -> None:
        self.ref = ref
        self.members = members
        self.packed: list[bytes] | None = None

    def take(self, places: Sequence[int]) -> list[Any]:
        members = self.members
        if isinstance(members, range):
            return [members[i] for i in places]
        if self.packed is not None:
            return [pickle.loads(self.packed[i]) for i in places]
        assert isinstance(members, list)
        taken = []
        for i in places:
            member = members[i]
            if member is _TAKEN:
                return self._repack().take(places)
            if type(member) not in _CONSTANT:
                members[i] = _TAKEN
            taken.append(member)
        return taken

    def _repack(self) -> _Page:
        # Items are asked for again and again (several steps an item, or retries): from now on each comes from a pickle
        # of its own. Buffers are kept in it, so that this stays small and simple; such items are seldom large.
        self.packed = [objects.dumps(member) for member in objects.unpack(self.ref)]
        self.members = ()
        return self


_kept: list[_Page] = []
_lock = threading.Lock()


def take(ref: Ref, places: Sequence[int]) -> list[Any]:
    """The items at ``places`` of a page, each an object that nobody else holds.

    Raises whatever opening the page raises, IndexError where the page is too short.
    """
    with _lock:
        for at, page in enumerate(_kept):
            if page.ref is ref or page.ref == ref:
                _kept.append(_kept.pop(at))
                return page.take(places)
    members = objects.unpack(ref)
    if isinstance(members, list) and len(places) == len(members):
        return [members[i] for i in places]
    page = _Page(ref, members)
    with _lock:
        _kept.append(page)
        while len(_kept) > MAX_PAGES or (len(_kept) > 1 and sum(p.ref.size_bytes for p in _kept[:-1]) > MAX_BYTES):
            _kept.pop(0)
        return page.take(places)
