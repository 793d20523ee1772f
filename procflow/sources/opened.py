"""Opened: one source as an attempt uses it, with its secrets, and the errors that tell of it.

An ``Opened`` never leaves the attempt. Its errors name the source and its URL without password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from procflow.errors import ProcflowError
from procflow.secrets import MASK, masked

__all__ = ["CONNECT_S", "Opened", "QueryFailed", "SourceDown", "SourceError", "SourceSlow", "shown_url"]

CONNECT_S = 10.0
"""Longest time to connect, unless the source has a shorter timeout or its options say otherwise."""
_USERINFO = re.compile(r"(://[^/?#\s:@]*):[^/?#\s]*@")
_SECRET_KEY = re.compile(r"([?&][^=&#\s]*(?:pass|pwd|token|secret|key|sig)[^=&#\s]*=)[^&#\s]+", re.IGNORECASE)
MOST_SHOWN = 300


class SourceError(ProcflowError):
    """A source could not answer; the message names it and its URL, the password masked."""


class SourceDown(SourceError):
    """A source can't be reached, or the connection to it was lost."""


class SourceSlow(SourceError):
    """A source did not answer in time."""


class QueryFailed(SourceError):
    """A source has refused a query, or its answer does not fit what was asked for."""


@dataclass(frozen=True, slots=True)
class Opened:
    """``timeout_s`` bounds connecting and each answer; ``most`` are the connections that may be open at once; ``kept``
    says that one may stay open between attempts. ``folder`` is where relative paths start.
    """

    name: str
    kind: str
    url: str
    user: str | None = None
    password: str | None = None
    database: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    timeout_s: float | None = None
    most: int | None = None
    kept: bool = True
    cpus: int = 1
    memory_bytes: int | None = None

    def __str__(self) -> str:
        return f"source {self.name!r} ({shown_url(self.url)})"

    def __repr__(self) -> str:
        return f"<{self}>"

    @property
    def connect_s(self) -> float:
        """Longest time to connect."""
        return min(CONNECT_S, self.timeout_s) if self.timeout_s is not None else CONNECT_S

    @property
    def identity(self) -> tuple[Any, ...]:
        """What tells connections apart that can't stand for one another."""
        return (
            self.kind, self.url, self.user, self.password, repr(self.options), self.folder, self.timeout_s, self.most,
            self.cpus, self.memory_bytes,
        )  # fmt: skip

    def path(self, name: str) -> str:
        """The path of a file that the URL names."""
        return os.path.join(self.folder or os.getcwd(), os.path.expanduser(name))

    def down(self, reason: object) -> SourceDown:
        """The error for a source that can't be reached."""
        return SourceDown(f"{self} can't be reached: {_plain(reason)}")

    def lost(self, reason: object) -> SourceDown:
        """The error for a connection that broke."""
        return SourceDown(f"{self}: the connection was lost: {_plain(reason)}")

    def slow(self, seconds: float | None = None) -> SourceSlow:
        """The error for an answer that took too long."""
        seconds = seconds if seconds is not None else self.timeout_s
        return SourceSlow(f"{self} gave no answer{f' within {seconds:g} s' if seconds is not None else ''}")

    def failed(self, reason: object) -> QueryFailed:
        """The error for a query that was refused."""
        return QueryFailed(f"{self}: {_plain(reason)}")


def _plain(reason: object) -> str:
    return masked(str(reason)).strip() or type(reason).__name__


def shown_url(url: str) -> str:
    """A URL that may be shown: no password, no keys in its query."""
    text = _SECRET_KEY.sub(rf"\1{MASK}", _USERINFO.sub(rf"\1:{MASK}@", url.strip()))
    text = masked(text)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."
