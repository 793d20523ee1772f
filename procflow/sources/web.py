"""Web: HTTP requests, for sources and skills of kind rest, for language models and for rest steps.

One client a process, whose connections are kept; it remembers no cookies, so that no step changes another's requests. A request has
a deadline as a whole: a server that sends a byte now and then can't hold a step up for ever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from procflow.compiling.template import fill
from procflow.secrets import masked
from procflow.sources.kept import kept
from procflow.sources.opened import CONNECT_S, Opened, SourceDown, SourceError, SourceSlow, shown_url
from procflow.sources.rows import RowsError, of_mappings

__all__ = ["Refused", "Reply", "ServiceBusy", "accepted", "address", "run", "send"]

READ_S = 60.0
"""Longest silence of a server, where nothing else is said."""
MOST_BYTES = 1 << 30
MOST_QUOTED = 500
BUSY = (429, 500, 502, 503, 504, 529)


class Refused(SourceError):
    """A service has answered with a code that does not count as success."""


class ServiceBusy(SourceError):
    """A service is busy or broken for now: 429 or 5xx. ``retry_after_s`` is the pause that it asks for."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered; ``body`` is whole and decoded."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text, in the encoding that it names, else UTF-8."""
        kind = self.headers.get("content-type", "")
        charset = kind.partition("charset=")[2].partition(";")[0].strip("\"' ") or "utf-8"
        try:
            return self.body.decode(charset)
        except (LookupError, UnicodeDecodeError):
            return self.body.decode("utf-8", "backslashreplace")

    def json(self, what: str) -> Any:
        """The body as JSON; ``Refused`` where it is none."""
        import json

        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise Refused(f"{what}: the answer is not JSON ({error}): {quoted(self)}") from None


def ping(source: Opened) -> None:
    """Ask for nothing but an answer, whatever it is. Raises ``SourceDown`` and ``SourceSlow``."""
    send("HEAD", source.url, what=str(source), timeout_s=source.connect_s)


def quoted(reply: Reply) -> str:
    """The beginning of an answer, for a message."""
    text = masked(reply.text.strip())
    return repr(text if len(text) <= MOST_QUOTED else text[:MOST_QUOTED] + "...") if text else "nothing"


def address(parts: Sequence[Any], values: Sequence[Any], look: Any) -> str:
    """The URL: bound values encoded, so that none can add to its path or query."""
    texts = []
    for part in parts:
        if isinstance(part, int):
            value = values[part]
            if value is None or isinstance(value, (Mapping, list, tuple, set)):
                kind = "null" if value is None else type(value).__name__
                raise Refused(f"a value in the URL is text or a number, not {kind}")
            texts.append(quote(("true" if value else "false") if isinstance(value, bool) else str(value), safe=""))
        else:
            texts.append(str(fill(part, look)))
    return "".join(texts)


def send(
    method: str, url: str, *, what: str, headers: Mapping[str, Any] | None = None, json: Any = None, text: str | None = None,
    timeout_s: float | None = None, auth: tuple[str, str] | None = None,
) -> Reply:  # fmt: skip
    """One request and its whole answer, whatever its code. ``what`` begins every message.

    Raises ``SourceDown``, ``SourceSlow`` and ``Refused``.
    """
    import httpx2

    client = kept(("http",), _client, lambda client: client.close())
    deadline = time.monotonic() + timeout_s if timeout_s is not None else None
    silence = min(READ_S, timeout_s) if timeout_s is not None and timeout_s < READ_S else timeout_s or READ_S
    limits = httpx2.Timeout(silence, connect=min(CONNECT_S, silence))
    try:
        request: dict[str, Any] = {"headers": _headers(what, headers), "timeout": limits}
        if json is not None:
            request["content"] = _json(what, json)
            request["headers"].setdefault("content-type", "application/json")
        elif text is not None:
            request["content"] = text.encode()
        if auth is not None:
            request["auth"] = auth
        # Elsewhere nobody is told the keys that headers may hold.
        request["follow_redirects"] = not headers and auth is None
        with client.stream(method, url, **request) as answer:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if deadline is not None and time.monotonic() > deadline:
                    raise SourceSlow(f"{what} did not send its whole answer within {timeout_s:g} s")
                if len(body) > MOST_BYTES:
                    raise Refused(f"{what}: the answer has more than {MOST_BYTES >> 20} MiB")
            return Reply(answer.status_code, dict(answer.headers), bytes(body))
    except httpx2.ConnectTimeout:
        raise SourceDown(f"{what} can't be reached: no connection within {limits.connect:g} s") from None
    except httpx2.TimeoutException:
        raise SourceSlow(f"{what} gave no answer within {silence:g} s") from None
    except httpx2.ConnectError as error:
        raise SourceDown(f"{what} can't be reached: {masked(str(error))}") from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise Refused(f"{what}: the URL can't be used: {masked(str(error))}") from None
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        raise SourceDown(f"{what}: the connection broke: {masked(str(error)) or type(error).__name__}") from None


def _client() -> Any:
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    import httpx2

    return httpx2.Client(cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])))


def _headers(what: str, headers: Mapping[str, Any] | None) -> dict[str, str]:
    found = {"user-agent": "procflow"}
    for name, value in (headers or {}).items():
        text = str(value)
        if any(char in text for char in "\r\n\0"):
            raise Refused(f"{what}: the header {name} would hold a line end")
        found[name.lower()] = text.strip()
    return found


def _json(what: str, value: Any) -> bytes:
    import json

    def plain(other: Any) -> Any:
        if type(other).__module__.partition(".")[0] == "numpy":
            return other.item() if getattr(other, "shape", None) == () else other.tolist()
        if hasattr(other, "isoformat"):
            return other.isoformat()
        raise TypeError(f"a value of type {type(other).__name__} can't be JSON")

    try:
        return json.dumps(value, default=plain, allow_nan=False).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused(f"{what}: what is to be sent can't be JSON: {masked(str(error))}") from None


def accepted(reply: Reply, what: str, ok_codes: Sequence[int] | None = None) -> Reply:
    """The answer, where its code counts as success; else ``ServiceBusy`` or ``Refused``."""
    good = reply.status in ok_codes if ok_codes else 200 <= reply.status < 300
    if good:
        return reply
    message = f"{what} answered {reply.status}: {quoted(reply)}"
    if "location" in reply.headers:
        message = f"{what} answered {reply.status}: it is now at {shown_url(reply.headers['location'])}"
    if reply.status in BUSY:
        raise ServiceBusy(message, _pause(reply.headers.get("retry-after")))
    raise Refused(message)


def _pause(told: str | None) -> float | None:
    """Seconds that ``Retry-After`` asks for: a number, or the date to wait for."""
    if told is None:
        return None
    try:
        seconds = float(told)
    except ValueError:
        from datetime import datetime, timezone
        from email.utils import parsedate_to_datetime

        try:
            seconds = (parsedate_to_datetime(told) - datetime.now(timezone.utc)).total_seconds()
        except (TypeError, ValueError):
            return None
    return seconds if 0 <= seconds < 86_400 else None


# -- a source of kind rest -------------------------------------------------------------------------------------


def run(source: Opened, options: Mapping[str, Any], values: Sequence[Any], look: Any, form: str) -> Any:
    """The rows of a JSON answer."""
    path = address(options.get("parts") or (), values, look)
    url = source.url.strip()
    if path:
        url = path if path.startswith(("http://", "https://")) else url.rstrip("/") + "/" + path.lstrip("/")
    if urlsplit(url)[:2] != urlsplit(source.url.strip())[:2]:
        raise source.failed(f"{shown_url(url)} lies outside of it, and its headers may hold keys")
    body = fill(options.get("json"), look)
    method = options.get("method") or ("POST" if body is not None else "GET")
    headers = {**source.headers, **(fill(options.get("headers"), look) or {})}
    auth = (source.user, source.password or "") if source.user is not None else None
    what = f"source {source.name!r} ({method} {shown_url(url)})"
    reply = accepted(
        send(method, url, what=what, headers=headers, json=body, timeout_s=source.timeout_s, auth=auth), what
    )
    if not reply.body.strip() and options.get("rows") is None:
        return of_mappings(form, ()).done()
    answer = reply.json(what)
    for key in (options.get("rows") or "").split(".") if options.get("rows") else ():
        if isinstance(answer, Mapping) and key in answer:
            answer = answer[key]
        else:
            has = (
                ", ".join(map(str, list(answer)[:12])) if isinstance(answer, Mapping) else f"a {type(answer).__name__}"
            )
            raise Refused(f"{what}: rows: {options['rows']}: there is no {key!r} in the answer; it has {has}")
    if isinstance(answer, Mapping):
        has = ", ".join(map(str, list(answer)[:12]))
        raise Refused(
            f"{what}: the answer is one mapping, not a list of rows; write rows: KEY for where they are ({has})"
        )
    if not isinstance(answer, list):
        raise Refused(f"{what}: the answer is no list of rows but a {type(answer).__name__}")
    try:
        return of_mappings(form, answer, what).done()
    except RowsError as error:
        raise Refused(f"{what}: {error}") from None
