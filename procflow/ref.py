"""Ref: a small record that says where a value lies.

A worker packs a result into refs and consumers open them (``objects.py``); the parent moves refs about and
never looks inside. Composite refs let the parent join, list and order values without unpickling them.
``plain`` and ``from_plain`` turn a ref into tuples of bytes, numbers and text for the wire and the journal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from procflow.passive import passive

__all__ = [
    "Element",
    "Inline",
    "ListOf",
    "MappingOf",
    "Ordered",
    "Ref",
    "Stored",
    "WithState",
    "from_plain",
    "stored_in",
]


class Ref:
    """A value by reference; see the subclasses."""

    __slots__ = ()

    def plain(self) -> tuple[Any, ...]:
        """The ref as nested tuples of bytes, int and str; the first element names the kind."""
        raise NotImplementedError

    def parts(self) -> Iterator[Ref]:
        """The refs this one is made of; none for a leaf."""
        return iter(())

    @property
    def size_bytes(self) -> int:
        """Bytes of pickled payload, all parts together."""
        return sum(part.size_bytes for part in self.parts())


@passive(frozen=True, slots=True)
class Inline(Ref):
    """The pickle itself, protocol 5, with its out-of-band buffers beside it."""

    data: bytes
    buffers: tuple[bytes, ...] = ()

    def plain(self) -> tuple[Any, ...]:
        return ("inline", self.data, self.buffers)

    @property
    def size_bytes(self) -> int:
        return len(self.data) + sum(len(b) for b in self.buffers)


@passive(frozen=True, slots=True)
class Stored(Ref):
    """A file of the object folder (``object_files.py``): the pickle, then its out-of-band buffers.

    ``path`` is absolute, ``lengths`` are the bytes of each part, ``digest`` is of all of them.
    """

    path: str
    lengths: tuple[int, ...]
    digest: bytes

    def plain(self) -> tuple[Any, ...]:
        return ("stored", self.path, self.lengths, self.digest)

    @property
    def size_bytes(self) -> int:
        return sum(self.lengths)


@passive(frozen=True, slots=True)
class Element(Ref):
    """One member of a value that is a list: an item of a map's page."""

    of: Ref
    index: int

    def plain(self) -> tuple[Any, ...]:
        return ("element", self.of.plain(), self.index)

    def parts(self) -> Iterator[Ref]:
        yield self.of


@passive(frozen=True, slots=True)
class ListOf(Ref):
    """A list with one value a ref."""

    members: tuple[Ref, ...]

    def plain(self) -> tuple[Any, ...]:
        return ("list", tuple(m.plain() for m in self.members))

    def parts(self) -> Iterator[Ref]:
        return iter(self.members)


@passive(frozen=True, slots=True)
class MappingOf(Ref):
    """A mapping with one value a ref, in the order given."""

    members: tuple[tuple[str, Ref], ...]

    def plain(self) -> tuple[Any, ...]:
        return ("mapping", tuple((name, m.plain()) for name, m in self.members))

    def parts(self) -> Iterator[Ref]:
        return (m for _, m in self.members)


@passive(frozen=True, slots=True)
class Ordered(Ref):
    """The results of a map: each chunk is a pickled list, placed by the item indices it holds.

    ``chunks`` is ``((indices, ref), ...)`` with ``indices`` a range or a sorted tuple of int. Opening gives one
    list in index order; indices that no chunk holds (failed items) are left out.
    """

    chunks: tuple[tuple[range | tuple[int, ...], Ref], ...]

    def plain(self) -> tuple[Any, ...]:
        return ("ordered", tuple((_plain_indices(i), r.plain()) for i, r in self.chunks))

    def parts(self) -> Iterator[Ref]:
        return (r for _, r in self.chunks)


@passive(frozen=True, slots=True)
class WithState(Ref):
    """A chunk of a map's results, with the changes of the pipeline's state that its items made.

    It opens as ``value``. ``state`` is ``((key, indices, ref), ...)``: each ref opens to a list with the changes of each of
    those items.
    """

    value: Ref
    state: tuple[tuple[str, range | tuple[int, ...], Ref], ...]

    def plain(self) -> tuple[Any, ...]:
        changes = tuple((key, _plain_indices(i), ref.plain()) for key, i, ref in self.state)
        return ("with_state", self.value.plain(), changes)

    def parts(self) -> Iterator[Ref]:
        yield self.value
        yield from (ref for _, _, ref in self.state)


def _plain_indices(indices: range | tuple[int, ...]) -> tuple[int, ...]:
    # A range travels as (-1, start, stop): no item index is negative.
    return (-1, indices.start, indices.stop) if isinstance(indices, range) else indices


def _indices(plain: tuple[int, ...]) -> range | tuple[int, ...]:
    return range(plain[1], plain[2]) if plain and plain[0] == -1 else plain


def from_plain(plain: tuple[Any, ...]) -> Ref:
    """The ref that ``plain()`` described; ValueError for an unknown kind."""
    kind = plain[0]
    if kind == "inline":
        return Inline(plain[1], plain[2])
    if kind == "stored":
        return Stored(plain[1], plain[2], plain[3])
    if kind == "element":
        return Element(from_plain(plain[1]), plain[2])
    if kind == "list":
        return ListOf(tuple(from_plain(p) for p in plain[1]))
    if kind == "mapping":
        return MappingOf(tuple((name, from_plain(p)) for name, p in plain[1]))
    if kind == "ordered":
        return Ordered(tuple((_indices(i), from_plain(p)) for i, p in plain[1]))
    if kind == "with_state":
        changes = tuple((key, _indices(i), from_plain(p)) for key, i, p in plain[2])
        return WithState(from_plain(plain[1]), changes)
    raise ValueError(f"unknown kind of ref {kind!r}")


def stored_in(ref: Ref) -> Iterator[Stored]:
    """The files that a value is made of, in order, each as often as it occurs; without recursion."""
    if type(ref) is Inline:
        return
    stack = [ref]
    while stack:
        one = stack.pop()
        if type(one) is Stored:
            yield one
        elif type(one) is not Inline:
            stack.extend(reversed(tuple(one.parts())))
