"""Secrets: values that may be used but never shown or kept, and their masking as ``***``.

A pipeline names them: ``secrets: {token: ${env.API_TOKEN}}``. ``${secrets.token}`` stays a lookup of the *name of the
environment variable* all the way into the worker, so the value stands in no call, no fingerprint, no journal and no
argv; the worker takes it from the environment that it was started with. What a step prints, logs or raises with is
masked before it is written anywhere: the value itself, and its base64, URL, hexadecimal, JSON, repr and shell forms,
also where it is cut by the border of two chunks.

Not masked is what a step makes of it: one that *returns* a secret puts it into a value, and values are kept on disk as
they are. Nor is what commands and C code write with executor ``threads`` or ``inline``, where it goes straight to the
terminal and to no log. The environments of workers and of commands hold the value, as that of procflow does; only
their own user can read them.

This file owns the masking and the list of what is secret in this process. It never writes anything anywhere.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from procflow.attempt import Failed, Failure, Lost, Outcome, Progressed, Succeeded

__all__ = [
    "LEAST_LENGTH",
    "MASK",
    "MaskedWaiter",
    "Masker",
    "Stream",
    "known",
    "masked",
    "masked_outcome",
    "masker",
    "values",
]

MASK = "***"
LEAST_LENGTH = 4
"""Shorter secrets are refused: masking them would mask half of every text, too."""
VARIABLE = "PROCFLOW_SECRETS"
"""Names (never values) of environment variables that hold secrets, for the processes below this one."""
_LINE_LENGTH = 8
_MASK = MASK.encode()


class Masker:
    """Puts ``***`` in place of secrets, in any form that is likely to be printed."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
        self._forms = tuple(forms)
        self._data = tuple(dict.fromkeys(form.encode("utf-8", "surrogateescape") for form in forms))

    def text(self, text: str) -> str:
        """The text without secrets."""
        spans = _spans(text, self._forms)
        if not spans:
            return text
        return str(_without(text, spans, MASK, ""))

    def data(self, data: bytes) -> bytes:
        """The bytes without secrets."""
        spans = _spans(data, self._data)
        return bytes(_without(data, spans, _MASK, b"")) if spans else data

    def cut(self, data: bytes) -> bytes:
        """The same for bytes whose beginning was cut off, perhaps within a secret."""
        spans = _spans(data, self._data)
        for form in self._data:
            for length in range(len(form) - 1, LEAST_LENGTH - 1, -1):
                if data.startswith(form[-length:]):
                    spans = _joined([*spans, (0, length)])
                    break
        return bytes(_without(data, spans, _MASK, b"")) if spans else data

    def tree(self, tree: Any) -> Any:
        """Containers and texts without secrets; what is neither is replaced by its repr where that shows one."""
        if isinstance(tree, str):
            return self.text(tree)
        if tree is None or isinstance(tree, (bool, int, float)):
            return tree
        if isinstance(tree, Mapping):
            return {self.tree(key): self.tree(member) for key, member in tree.items()}
        if isinstance(tree, (list, tuple)):
            return [self.tree(member) for member in tree]
        shown = repr(tree)
        safe = self.text(shown)
        return tree if safe == shown else safe

    def failure(self, failure: Failure) -> Failure:
        """The failure without secrets; its exception is dropped where it holds one."""
        texts = {name: getattr(failure, name) for name in ("type", "message", "traceback", "user_place", "item")}
        safe: dict[str, Any] = {name: self.text(text) for name, text in texts.items()}
        exception = failure.exception
        if exception is not None and _spans(exception, self._data):
            exception = None
        if safe == texts and exception is failure.exception:
            return failure
        return replace(failure, **safe, exception=exception)

    def stream(self) -> Stream:
        """A masker for bytes that come in chunks."""
        return Stream(self._data)


class Stream:
    """Masks bytes that come in chunks, cut anywhere.

    What could be the beginning of a secret is held back until more comes, so never more than the longest form.
    """

    __slots__ = ("_covered", "_forms", "_held", "_starts")

    def __init__(self, forms: tuple[bytes, ...]) -> None:
        self._forms = forms
        self._starts = {form[0] for form in forms}
        self._held = b""
        # So many bytes at the beginning of what is held belong to a secret that was masked already.
        self._covered = 0

    def feed(self, data: bytes) -> bytes:
        """The next bytes that may be written."""
        data = self._held + data
        hold = self._beginning(data)
        spans = self._spans(data)
        # A span that began before what is held now is masked now; its rest, if any, is only counted.
        begun = [(start, stop) for start, stop in spans if start < hold or (start == 0 and self._covered)]
        out = _without(data[:hold], [(start, min(stop, hold)) for start, stop in begun], _MASK, b"", self._covered > 0)
        self._held, self._covered = data[hold:], max((stop - hold for _, stop in begun), default=0)
        self._covered = max(0, self._covered)
        return bytes(out)

    def _spans(self, data: bytes) -> list[tuple[int, int]]:
        found = _spans(data, self._forms)
        return _joined([(0, self._covered), *found]) if self._covered else found

    def _beginning(self, data: bytes) -> int:
        """Where the longest tail begins that is the beginning of a secret, and not all of it."""
        longest = max(map(len, self._forms), default=1)
        for at in range(max(0, len(data) - longest + 1), len(data)):
            if data[at] in self._starts:
                tail = data[at:]
                if any(len(form) > len(tail) and form.startswith(tail) for form in self._forms):
                    return at
        return len(data)

    def end(self) -> bytes:
        """What is still held; half a secret at the end is masked like a whole one."""
        held, covered = self._held, self._covered
        spans = self._spans(held)
        for at in range(len(held)):
            tail = held[at:]
            if any(2 * len(tail) >= len(form) and form.startswith(tail) for form in self._forms):
                spans = _joined([*spans, (at, len(held))])
                break
        self._held, self._covered = b"", 0
        return bytes(_without(held, spans, _MASK, b"", covered > 0))


# -- forms and spans -------------------------------------------------------------------------------------------


def _forms(secret: str) -> Iterator[str]:
    """The texts in which a secret may show up."""
    parts = [secret, secret.strip(), *_passwords(secret)]
    parts += [line.strip() for line in secret.splitlines() if len(line.strip()) >= _LINE_LENGTH]
    for part in dict.fromkeys(parts):
        yield from (form for form in _spellings(part) if len(form) >= LEAST_LENGTH)


def _passwords(url: str) -> Iterator[str]:
    """What stands as the password in a URL, as written and as meant: drivers show the parts of what they were given."""
    if "://" not in url or "@" not in url:
        return
    from urllib.parse import unquote

    authority = url.partition("://")[2]
    for userinfo in {authority.partition("@")[0], authority.partition("/")[0].rpartition("@")[0]}:
        password = userinfo.partition(":")[2]
        if password:
            yield from (password, unquote(password))


def _spellings(text: str) -> Iterator[str]:
    import base64
    import json
    from urllib.parse import quote, quote_plus

    data = text.encode("utf-8", "surrogateescape")
    yield text
    yield text.encode("utf-8", "backslashreplace").decode()
    yield data.decode("utf-8", "backslashreplace")
    yield text.replace("'", "'\"'\"'")
    yield from (repr(text)[1:-1], ascii(text)[1:-1], repr(data)[2:-1], json.dumps(text)[1:-1])
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    for encoded in (quote(data, safe=""), quote(data), quote_plus(data)):
        yield encoded
        yield _lower_percents(encoded)
    yield data.hex()
    yield data.hex().upper()
    yield base64.b64encode(data).decode()
    yield base64.urlsafe_b64encode(data).decode()
    # Inside something longer (user:secret) it may begin at each of three places in a group of four characters.
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + data).decode().rstrip("=")
        # Characters at the borders hold bits of the neighbours, too.
        first, last = -(-offset * 8 // 6), (offset + len(data)) * 8 // 6
        inner = coded[first:last]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


def _lower_percents(text: str) -> str:
    first, *rest = text.split("%")
    return first + "".join(f"%{part[:2].lower()}{part[2:]}" for part in rest)


def _spans(text: Any, forms: tuple[Any, ...]) -> list[tuple[int, int]]:
    """Where any of the forms stands, overlaps joined."""
    found: list[tuple[int, int]] = []
    for form in forms:
        at = text.find(form)
        while at >= 0:
            found.append((at, at + len(form)))
            at = text.find(form, at + 1)
    return _joined(found)


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if len(spans) < 2:
        return spans
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _without(text: Any, spans: list[tuple[int, int]], mask: Any, nothing: Any, continued: bool = False) -> Any:
    """The text with each span masked; ``continued`` says that the mask of a span at 0 was written before."""
    parts, at = [], 0
    for start, stop in spans:
        parts += [text[at:start], nothing if continued and start == 0 else mask]
        at = stop
    parts.append(text[at:])
    return nothing.join(parts)


# -- what is secret here ---------------------------------------------------------------------------------------

_lock = threading.Lock()
_users: list[dict[str, str]] = []
_values: dict[str, str] = {}
_masker: Masker | None = None


def values() -> Mapping[str, str]:
    """The secrets of this process by environment variable."""
    return _values


def masker() -> Masker | None:
    """What masks the secrets of this process; None where it has none."""
    return _masker


def masked(text: str) -> str:
    """The text without the secrets of this process."""
    return text if _masker is None else _masker.text(text)


@contextmanager
def known(secrets: Mapping[str, str]) -> Iterator[Masker | None]:
    """These environment variables hold secrets, in this process and in those it starts, until the end of the block."""
    own = dict(secrets)
    with _lock:
        _users.append(own)
        _renew()
    try:
        yield _masker
    finally:
        with _lock:
            _users.remove(own)
            _renew()


def _renew() -> None:
    global _values, _masker
    _values = {name: value for user in _users for name, value in user.items()}
    _masker = Masker(_values.values()) if _values else None
    if _values:
        os.environ[VARIABLE] = ",".join(_values)
    else:
        os.environ.pop(VARIABLE, None)


def _inherit() -> None:
    """Take over what the parent process says; done at import, before any step can change the environment."""
    names = [name for name in os.environ.get(VARIABLE, "").split(",") if name]
    found = {name: os.environ[name] for name in names if len(os.environ.get(name, "")) >= LEAST_LENGTH}
    if found:
        _users.append(found)
        _renew()


_inherit()


# -- outcomes --------------------------------------------------------------------------------------------------


def masked_outcome(outcome: Outcome, mask: Masker) -> Outcome:
    """The outcome without secrets, so that nothing made of it (events, markers, reasons) holds any."""
    if isinstance(outcome, (Failed, Lost)):
        failure = mask.failure(outcome.failure)
        return outcome if failure is outcome.failure else replace(outcome, failure=failure)
    if isinstance(outcome, Progressed) and outcome.failures:
        return replace(outcome, failures=tuple((index, mask.failure(f)) for index, f in outcome.failures))
    if isinstance(outcome, Succeeded) and (outcome.failures or outcome.metrics):
        failures = tuple((index, mask.failure(f)) for index, f in outcome.failures)
        return replace(outcome, failures=failures, metrics={mask.text(n): v for n, v in outcome.metrics.items()})
    return outcome


class MaskedWaiter:
    """What an engine waits on, with outcomes masked as they arrive."""

    def __init__(self, wait: Callable[[float | None], list[Outcome]], mask: Masker) -> None:
        self._wait = wait
        self._mask = mask

    def wait(self, until: float | None) -> list[Outcome]:
        """Outcomes in order of arrival, without secrets."""
        return [masked_outcome(outcome, self._mask) for outcome in self._wait(until)]
