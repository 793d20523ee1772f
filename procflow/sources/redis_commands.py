"""Redis (and Valkey): one command with its arguments. Each argument is sent by itself, so no value can add to the command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from procflow.sources.kept import drop, kept
from procflow.sources.opened import Opened
from procflow.sources.stopping import stoppable

__all__ = ["run"]


def run(source: Opened, command: Iterable[Any]) -> Any:
    """What the command answers; bytes that are UTF-8 as text. Raises ``SourceError``."""
    import redis

    words = list(_words(source, command))
    key = ("redis", *source.identity)
    try:
        client = kept(key, lambda: _client(source), lambda opened: opened.close())
    except (ValueError, TypeError) as error:
        raise source.failed(f"its URL can't be used: {error}") from None
    try:
        # A connection that was lost meanwhile is found by this, not by a command that may have been carried out.
        client.ping()
    except redis.TimeoutError:
        raise source.down(f"no answer within {source.connect_s:g} s") from None
    except redis.RedisError as error:
        raise source.down(error) from None
    try:
        with stoppable(lambda: client.connection_pool.disconnect(inuse_connections=True)):
            return _decoded(client.execute_command(*words))
    except redis.TimeoutError:
        raise source.slow() from None
    except redis.ConnectionError as error:
        raise source.lost(error) from None
    except redis.RedisError as error:
        raise source.failed(error) from None
    finally:
        if not source.kept:
            drop(key)


def _client(source: Opened) -> Any:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    url = source.url.strip()
    for scheme in ("valkey", "valkeys"):
        if url.startswith(f"{scheme}://"):
            url = url.replace("valkey", "redis", 1)
    options: dict[str, Any] = {
        "socket_connect_timeout": source.connect_s, "socket_timeout": source.timeout_s,
        # One more try, since a connection that was kept may be dead; only the ping is ever sent twice.
        "retry": Retry(NoBackoff(), 0), "health_check_interval": 0,
    }  # fmt: skip
    if source.user is not None:
        options["username"] = source.user
    if source.password is not None:
        options["password"] = source.password
    if source.most is not None:
        options["max_connections"] = source.most
    return redis.Redis.from_url(url, **options | dict(source.options))


def _words(source: Opened, command: Iterable[Any]) -> Iterable[Any]:
    for i, word in enumerate(command):
        if i and isinstance(word, (list, tuple, set, frozenset)):
            yield from (_word(source, member, i) for member in word)
        else:
            yield _word(source, word, i)


def _word(source: Opened, word: Any, i: int) -> Any:
    if getattr(word, "shape", None) == ():
        word = word.item()
    if isinstance(word, bool) or not isinstance(word, (str, bytes, int, float)):
        kind = "null" if word is None else type(word).__name__
        raise source.failed(f"argument {i} of the command is {kind}; an argument is text, bytes or a number")
    return word


def _decoded(answer: Any) -> Any:
    if isinstance(answer, bytes):
        try:
            return answer.decode()
        except UnicodeDecodeError:
            return answer
    if isinstance(answer, Mapping):
        return {_decoded(key): _decoded(value) for key, value in answer.items()}
    if isinstance(answer, (list, tuple)):
        return [_decoded(member) for member in answer]
    if isinstance(answer, (set, frozenset)):
        return {_decoded(member) for member in answer}
    return answer
