"""Wire: attempts and outcomes as plain tuples, and back.

The first element of a message says what it is. To a worker: ``RUN``, ``LARGE`` (a ``RUN`` that follows on the channel) and
``PAYLOAD`` (a pickled function or call, once). From a
worker: ``HELLO``, ``PROGRESS``, ``RECORD`` (one of ``logging``) and the three ends ``SUCCEEDED``, ``SKIPPED``,
``FAILED``. ``Lost`` never travels: only the parent can know. This file never touches a descriptor and imports nothing
heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import islice
from operator import attrgetter
from typing import Any

from procflow.attempt import Attempt, Failed, Failure, Items, Progressed, Skipped, Succeeded, Usage
from procflow.ref import Inline, Ref, from_plain

__all__ = [
    "FAILED",
    "HELLO",
    "KNOWN_CALLS",
    "LARGE",
    "PAYLOAD",
    "PROGRESS",
    "RECORD",
    "RUN",
    "SKIPPED",
    "SUCCEEDED",
    "ends_from",
    "items_from",
    "outcome_from",
    "plain_outcome",
    "plain_run",
    "values_from",
]

KNOWN_CALLS = 256
"""How many calls a worker remembers; the oldest is forgotten first, on both sides of the channel."""

PAYLOAD, RUN, LARGE = 1, 2, 3
HELLO, PROGRESS, RECORD, SUCCEEDED, SKIPPED, FAILED = 11, 12, 13, 14, 15, 16

Message = tuple[Any, ...]
Ended = Succeeded | Skipped | Failed

NONSENSE = (ValueError, KeyError, TypeError, IndexError, AttributeError)
"""What a message that makes no sense raises where it is taken apart."""

_plain_failure: Callable[[Failure], Message] = attrgetter(*(field.name for field in fields(Failure)))


def plain_run(attempt: Attempt, digest: bytes, rest: bytes = b"", behind: bool = False, free: bool = False) -> Message:
    """The message that starts an attempt. What went before under ``digest`` is its function, and ``rest`` the rest of its
    call; without ``rest`` it is the whole call. ``behind``: the parent may not know yet how the attempt before it ended.
    ``free``: there is a core on which the worker may look for its next attempt instead of sleeping.
    """
    items, values = attempt.items, attempt.values
    return (
        RUN,
        attempt.key,
        digest,
        {name: ref.plain() for name, ref in values.items()} if values else {},
        None if items is None else (items.page.plain(), items.first, _plain_indices(items.indices)),
        attempt.number,
        attempt.run_id,
        attempt.report_each,
        attempt.cpus,
        attempt.labels,
        rest,
        attempt.call.outputs,
        attempt.about,
        behind,
        free,
    )


def values_from(plain: dict[str, Any]) -> dict[str, Ref]:
    """The attempt's values by name."""
    return {name: from_plain(ref) for name, ref in plain.items()}


def items_from(plain: tuple[Any, ...] | None) -> Items | None:
    """The attempt's items."""
    return None if plain is None else Items(from_plain(plain[0]), plain[1], _indices(plain[2]))


def plain_outcome(outcome: Succeeded | Skipped | Failed | Progressed) -> Message:
    """An outcome as a message."""
    if type(outcome) is Progressed:
        return (PROGRESS, outcome.key, *_plain_items(outcome), outcome.done, outcome.total)
    usage = outcome.usage  # type: ignore[union-attr]
    used = (usage.wall_s, usage.cpu_s, usage.peak_rss_bytes, None, usage.began)
    if type(outcome) is Succeeded:
        outputs = {name: ref.plain() for name, ref in outcome.outputs.items()}
        chunked = outcome.chunk is not None or outcome.indices or outcome.failures
        if not (chunked or outcome.pages or outcome.metrics or outcome.cost):
            return (SUCCEEDED, outcome.key, outputs, used)
        pages = tuple((ref.plain(), length) for ref, length in outcome.pages)
        more = (*_plain_items(outcome), pages, dict(outcome.metrics), outcome.cost)
        return (SUCCEEDED, outcome.key, outputs, used, more)
    if type(outcome) is Failed:
        return (FAILED, outcome.key, _plain_failure(outcome.failure), used)
    return (SKIPPED, outcome.key, used)


def ends_from(messages: Sequence[Message], first: int) -> list[Ended]:
    """The ends of attempts that the messages from the ``first`` on tell of, up to one that tells of something else."""
    found: list[Ended] = []
    try:
        for message in islice(messages, first, None):
            if message[0] == SUCCEEDED and len(message) == 4:
                _, key, plain, used = message
                outputs: dict[str, Ref] = {}
                for name, ref in plain.items():
                    outputs[name] = Inline(ref[1], ref[2]) if ref[0] == "inline" else from_plain(ref)
                found.append(Succeeded(key, outputs, Usage(*used)))
            elif message[0] in (SUCCEEDED, SKIPPED, FAILED):
                found.append(outcome_from(message))  # type: ignore[arg-type]
            else:
                break
    except NONSENSE:
        # Whoever takes that one by itself hears of it.
        return found
    return found


def outcome_from(message: Message) -> Succeeded | Skipped | Failed | Progressed:
    """The outcome that a message holds; ValueError, KeyError or TypeError where it holds none."""
    kind = message[0]
    if kind == SUCCEEDED:
        outputs = {name: from_plain(ref) for name, ref in message[2].items()}
        if len(message) == 4:
            return Succeeded(message[1], outputs, Usage(*message[3]))
        indices, chunk, failures, pages, metrics, cost = message[4]
        return Succeeded(
            message[1],
            outputs,
            Usage(*message[3]),
            _indices(indices),
            None if chunk is None else from_plain(chunk),
            tuple((index, Failure(*failure)) for index, failure in failures),
            tuple((from_plain(ref), length) for ref, length in pages),
            metrics,
            cost,
        )
    if kind == PROGRESS:
        _, key, indices, chunk, failures, done, total = message
        return Progressed(
            key,
            _indices(indices),
            None if chunk is None else from_plain(chunk),
            tuple((index, Failure(*failure)) for index, failure in failures),
            done,
            total,
        )
    if kind == FAILED:
        return Failed(message[1], Failure(*message[2]), Usage(*message[3]))
    if kind == SKIPPED:
        return Skipped(message[1], Usage(*message[2]))
    raise ValueError(f"unknown kind of message {kind!r}")


def _plain_items(outcome: Succeeded | Progressed) -> Message:
    chunk = outcome.chunk
    return (
        _plain_indices(outcome.indices),
        None if chunk is None else chunk.plain(),
        tuple((index, _plain_failure(failure)) for index, failure in outcome.failures),
    )


def _plain_indices(indices: range | tuple[int, ...]) -> tuple[int, ...]:
    # A range travels as (-1, start, stop): no item index is negative.
    if isinstance(indices, range):
        return (-1, indices.start, indices.stop) if indices.step == 1 else tuple(indices)
    return indices


def _indices(plain: tuple[int, ...]) -> range | tuple[int, ...]:
    return range(plain[1], plain[2]) if plain and plain[0] == -1 else plain
