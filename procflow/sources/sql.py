"""SQL: queries of any database that SQLAlchemy knows.

One transaction a step, committed where the step succeeds. Values are always bound, never pasted; a list behind ``IN``
becomes as many values. Rows are fetched in batches, on the server's side where the driver can. Connections are checked
before they are used.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from procflow.sources.kept import drop, kept
from procflow.sources.opened import Opened, SourceError
from procflow.sources.rows import BATCH, Rows, RowsError
from procflow.sources.stopping import stoppable, was_stopped

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

__all__ = ["TIMED", "plain_value", "reads_only", "run", "unwrapped_lists", "url_of"]

TIMED = ("postgresql", "sqlite", "mysql", "mariadb")
"""Databases whose queries can be given a timeout of their own."""
POOL_MOST = 100
BUSY_S = 30.0
"""How long SQLite waits for another writer."""
_CANCELLED = "57014"
_READS = re.compile(
    r"\s*(?:--[^\n]*\n\s*|/\*.*?\*/\s*)*\(?\s*(SELECT|VALUES|TABLE|WITH|SHOW|EXPLAIN|PRAGMA|DESCRIBE)\b", re.I | re.S
)
_STREAMS = re.compile(r"\s*(SELECT|VALUES|TABLE|WITH)\b", re.I)
_CHANGES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|INTO)\b", re.I)
_CURSOR = re.compile(r'DECLARE "c_\w+" (?:\w+ )*?CURSOR (?:WITH HOLD )?FOR ')
_IN = re.compile(r"\bIN\s*(\(?)\s*$", re.I)


def run(source: Opened, parts: Sequence[Any], values: Sequence[Any], form: str) -> Any:
    """The rows, or ``{"affected_rows": n}``. Raises ``SourceError``."""
    import sqlalchemy.exc

    try:
        url = url_of(source)
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        raise source.failed(f"its URL can't be used: {error}") from None
    sql = "".join(part for part in parts if isinstance(part, str))
    _check_file(source, url, sql)
    key = ("sql", *source.identity)
    engine = kept(key, lambda: _engine(source, url), lambda engine: engine.dispose())
    try:
        with _connected(source, engine) as connection:
            return _ask(source, connection, parts, values, form)
    except RowsError as error:
        raise source.failed(error) from None
    finally:
        if not source.kept:
            drop(key)


def url_of(source: Opened) -> URL:
    """The URL as SQLAlchemy takes it; raises ``ArgumentError``."""
    from sqlalchemy import make_url

    url = make_url(source.url.strip())
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if source.user is not None:
        url = url.set(username=source.user)
    if source.password is not None:
        url = url.set(password=source.password)
    if url.get_backend_name() == "sqlite" and _file_of(url) is not None:
        url = url.set(database=source.path(url.database or ""))
    return url


def _file_of(url: URL) -> str | None:
    """The file of an SQLite URL; None for memory and for URIs of its own."""
    name = url.database
    return None if not name or name == ":memory:" or name.startswith("file:") else name


def _check_file(source: Opened, url: URL, sql: str) -> None:
    """SQLite would make an empty database of a name that is misspelt."""
    file = _file_of(url) if url.get_backend_name() == "sqlite" else None
    if file is None:
        return
    if reads_only(sql) and not os.path.exists(file):
        raise source.down(f"there is no file {file}")
    if not os.path.isdir(os.path.dirname(file)):
        raise source.down(f"there is no folder {os.path.dirname(file)}")


def reads_only(sql: str) -> bool:
    """Whether a statement looks like one that changes nothing."""
    return _READS.match(sql) is not None and _CHANGES.search(sql) is None


def _engine(source: Opened, url: URL) -> Engine:
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    backend = url.get_backend_name()
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if not source.kept or (backend == "sqlite" and _file_of(url) is not None):
        settings = {"poolclass": NullPool}
    elif backend != "sqlite":
        settings |= {
            "pool_size": source.most or 5, "max_overflow": 0 if source.most else POOL_MOST,
            "pool_timeout": source.timeout_s or 60.0,
        }  # fmt: skip
    try:
        return sqlalchemy.create_engine(url, connect_args=_connect_args(source, url), **settings)
    except ImportError as error:
        raise source.failed(f"{error}: install the driver of {url.drivername}") from None
    except (sqlalchemy.exc.SQLAlchemyError, TypeError) as error:
        raise source.failed(f"its URL can't be used: {error}") from None


def _connect_args(source: Opened, url: URL) -> dict[str, Any]:
    driver, backend = url.get_driver_name(), url.get_backend_name()
    args: dict[str, Any] = {}
    if backend == "sqlite":
        args = {"timeout": min(BUSY_S, source.timeout_s or BUSY_S)}
    elif driver in ("psycopg", "psycopg2"):
        args = {"connect_timeout": max(2, round(source.connect_s)), "application_name": "procflow"}
        if source.timeout_s is not None:
            # A network that swallows packets is noticed by the sender alone.
            args["tcp_user_timeout"] = int(source.timeout_s * 1000)
    elif backend in ("mysql", "mariadb"):
        args = {"connect_timeout": max(1, round(source.connect_s))}
        if source.timeout_s is not None:
            args["read_timeout"] = args["write_timeout"] = max(1, round(source.timeout_s))
    return args | dict(source.options)


@contextmanager
def _connected(source: Opened, engine: Engine) -> Iterator[Connection]:
    """A connection with a transaction, committed at the end; errors in words of the source."""
    from sqlalchemy import exc

    try:
        connection = engine.connect()
    except exc.TimeoutError:
        raise source.down("all its connections are in use") from None
    except exc.SQLAlchemyError as error:
        raise source.down(_told(error)) from None
    except TypeError as error:
        raise source.failed(f"options: {error}") from None
    with connection:
        try:
            with connection.begin():
                yield connection
        except exc.DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == _CANCELLED and source.timeout_s is not None:
                raise source.slow() from None
            if error.connection_invalidated:
                raise source.lost(_told(error)) from None
            raise source.failed(_told(error)) from None
        except exc.SQLAlchemyError as error:
            raise source.failed(_told(error)) from None


def _told(error: Exception) -> str:
    """The driver's words, without the statement and its values."""
    told = getattr(error, "orig", None) or error
    lines = str(told).strip().split("\n")
    for i, line in enumerate(lines):
        found = _CURSOR.search(line)
        if found is not None:
            # The words around it are not the user's, and the mark below is under the user's.
            lines[i] = line[: found.start()] + line[found.end() :]
            if i + 1 < len(lines) and lines[i + 1].strip() == "^":
                lines[i + 1] = lines[i + 1][len(found[0]) :]
    return "\n".join(lines) or type(told).__name__


def _ask(source: Opened, connection: Connection, parts: Sequence[Any], values: Sequence[Any], form: str) -> Any:
    statement, bound = _statement(parts, values, connection.dialect.name, connection.dialect.driver)
    sql = str(statement)
    streams = _STREAMS.match(sql) is not None and _CHANGES.search(sql) is None
    with _clocked(source, connection):
        options: Any = {"stream_results": streams, "max_row_buffer": BATCH}
        with connection.execute(statement, bound, execution_options=options) as result:
            if not result.returns_rows:
                return {"affected_rows": max(0, result.rowcount)}
            rows = Rows(form, list(result.keys()))
            for batch in result.partitions(BATCH):
                rows.add(batch)
            return rows.done()


def _statement(parts: Sequence[Any], values: Sequence[Any], dialect: str, driver: str) -> tuple[Any, dict[str, Any]]:
    """The statement with a bound parameter in each place."""
    from sqlalchemy import bindparam, text

    pieces: list[str] = []
    bound: dict[str, Any] = {}
    several = []
    for part, is_list in unwrapped_lists(parts, values):
        if isinstance(part, str):
            # Every colon is one of the text: ours are put in by name.
            pieces.append(part.replace(":", "\\:"))
            continue
        name = f"p{len(bound)}"
        value = plain_value(values[part])
        if is_list:
            several.append(name)
            bound[name] = [plain_value(member) for member in value]
        else:
            bound[name] = _adapted(value, dialect, driver)
        pieces.append(f":{name}")
    statement = text("".join(pieces))
    if several:
        statement = statement.bindparams(*(bindparam(name, expanding=True) for name in several))
    return statement, bound


def unwrapped_lists(parts: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[Any, bool]]:
    """The parts, each with whether it is a list behind ``IN``; parentheses around such a place are taken away."""
    texts = list(parts)
    lists = set()
    for i, part in enumerate(texts):
        before = texts[i - 1] if i else ""
        if isinstance(part, str) or not isinstance(before, str):
            continue
        found = _IN.search(before)
        if found is None or not isinstance(plain_value(values[part]), list):
            continue
        lists.add(i)
        behind = texts[i + 1] if i + 1 < len(texts) else ""
        if found[1] and isinstance(behind, str) and behind.lstrip().startswith(")"):
            texts[i - 1] = before[: found.start(1)]
            texts[i + 1] = behind.lstrip()[1:]
    yield from ((part, i in lists) for i, part in enumerate(texts))


def plain_value(value: Any) -> Any:
    """A value as drivers take it: NumPy's numbers as Python's, sets, tuples and ranges as lists."""
    if type(value).__module__.partition(".")[0] == "numpy":
        return value.item() if getattr(value, "shape", None) == () else value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return list(value) if isinstance(value, (tuple, range)) else value


def _adapted(value: Any, dialect: str, driver: str) -> Any:
    """Mappings as JSON."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(member, dict) for member in value)):
        if driver == "psycopg":
            from psycopg.types.json import Jsonb

            return Jsonb(value)
        import json

        return json.dumps(value, default=str)
    return value


@contextmanager
def _clocked(source: Opened, connection: Connection) -> Iterator[None]:
    """What is asked inside can be stopped, and has the timeout of the source, where the driver can do that."""
    seconds, dialect = source.timeout_s, connection.dialect.name
    if seconds is not None and dialect == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, int(seconds * 1000))}")
    raw = getattr(connection.connection, "dbapi_connection", None)
    end = getattr(raw, "interrupt", None) or getattr(raw, "cancel", None)
    if end is None:
        yield
        return
    try:
        with (
            stoppable(end),
            _interrupted(source, end) if seconds is not None and dialect == "sqlite" else nullcontext(),
        ):
            yield
    finally:
        if was_stopped():
            # A request to give up that comes late must not meet the next query.
            connection.invalidate()


@contextmanager
def _interrupted(source: Opened, end: Callable[[], object]) -> Iterator[None]:
    """SQLite works in this process, so that its clock has to run here."""
    fired = threading.Event()

    def stop() -> None:
        fired.set()
        end()

    timer = threading.Timer(source.timeout_s or 0.0, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        if fired.is_set() and "interrupt" in str(error):
            raise source.slow() from None
        raise
    finally:
        timer.cancel()
