"""DuckDB: SQL over files (Parquet, CSV, JSON), or over a database of DuckDB's own.

``duckdb:`` works in memory; ``duckdb:sales.db`` opens a file. Relative paths, in queries too, start in the pipeline's folder.
It uses as many threads as the step has ``cpus``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from procflow.sources.kept import drop, kept
from procflow.sources.opened import Opened
from procflow.sources.rows import BATCH, Rows, RowsError
from procflow.sources.sql import plain_value, unwrapped_lists
from procflow.sources.stopping import stoppable

__all__ = ["file_of", "run"]

_SHARE = 0.75
"""Share of a step's memory that DuckDB may use before it writes to disk."""


def run(source: Opened, parts: Sequence[Any], values: Sequence[Any], form: str) -> Any:
    """The rows, or ``{"affected_rows": n}``. Raises ``SourceError``."""
    import duckdb

    file = file_of(source)
    key = ("duckdb", *source.identity)
    try:
        connection = kept(key, lambda: _connect(source, file), lambda opened: opened.close())
    except (duckdb.Error, ValueError, TypeError) as error:
        reason = str(error)
        if "lock" in reason:
            reason += (
                "\\none process at a time may write to this file: give the source options: {read_only: true}, "
                "or max_connections: 1"
            )
        raise source.down(reason) from None
    try:
        cursor = connection.cursor()
        try:
            return _ask(source, cursor, parts, values, form)
        finally:
            cursor.close()
    except duckdb.Error as error:
        raise source.failed(error) from None
    except RowsError as error:
        raise source.failed(error) from None
    finally:
        if not source.kept or file is not None:
            # A file that stays open keeps other processes out.
            drop(key)


def file_of(source: Opened) -> str | None:
    """The path of the database, None for one in memory."""
    name = source.url.strip()[len("duckdb:") :]
    name = name[3:] if name.startswith("///") else name
    return None if name in ("", ":memory:") else source.path(name)


def _connect(source: Opened, file: str | None) -> Any:
    import duckdb

    options = dict(source.options)
    read_only = bool(options.pop("read_only", False))
    if file is not None and not os.path.isdir(os.path.dirname(file)):
        raise ValueError(f"there is no folder {os.path.dirname(file)}")
    if file is not None and read_only and not os.path.exists(file):
        raise ValueError(f"there is no file {file}")
    config: dict[str, Any] = {"threads": source.cpus}
    if source.memory_bytes is not None:
        config["memory_limit"] = f"{max(1, int(source.memory_bytes * _SHARE) >> 20)}MiB"
    connection = duckdb.connect(file or ":memory:", read_only=read_only and file is not None, config=config | options)
    connection.execute("SET GLOBAL file_search_path = ?", [source.folder or os.getcwd()])
    return connection


def _ask(source: Opened, cursor: Any, parts: Sequence[Any], values: Sequence[Any], form: str) -> Any:
    pieces: list[str] = []
    bound: dict[str, Any] = {}
    for part, _ in unwrapped_lists(parts, values):
        if isinstance(part, str):
            pieces.append(part)
        else:
            name = f"procflow_{part}"
            bound[name] = plain_value(values[part])
            pieces.append(f"${name}")
    sql = "".join(pieces)
    statements = cursor.extract_statements(sql)
    if len(statements) != 1:
        raise source.failed(f"a step asks one thing, and these are {len(statements)} statements")
    reads = [str(kind).rpartition(".")[2] for kind in statements[0].expected_result_type] == ["QUERY_RESULT"]
    with stoppable(cursor.interrupt), _clocked(source, cursor):
        cursor.begin()
        try:
            value = (
                _table(cursor, sql, bound, form) if reads and form != "rows" else _rows(cursor, sql, bound, form, reads)
            )
            cursor.commit()
        except BaseException:
            _undo(cursor)
            raise
    return value


def _undo(cursor: Any) -> None:
    import contextlib

    import duckdb

    # A statement that failed may have ended its transaction already.
    with contextlib.suppress(duckdb.Error):
        cursor.rollback()


def _table(cursor: Any, sql: str, bound: dict[str, Any], form: str) -> Any:
    """A table as DuckDB makes it itself."""
    relation = cursor.sql(sql, params=bound)
    Rows(form, relation.columns)
    if form == "pandas":
        return relation.df()
    table = relation.to_arrow_table()
    if form == "arrow":
        return table
    import polars

    return polars.from_arrow(table)


def _rows(cursor: Any, sql: str, bound: dict[str, Any], form: str, reads: bool) -> Any:
    cursor.execute(sql, bound)
    columns = [column[0] for column in cursor.description or ()]
    if not reads and columns in (["Count"], ["Success"], []):
        counted = cursor.fetchone() if columns == ["Count"] else None
        return {"affected_rows": int(counted[0]) if counted else 0}
    rows = Rows(form, columns)
    while batch := cursor.fetchmany(BATCH):
        rows.add(batch)
    return rows.done()


@contextmanager
def _clocked(source: Opened, cursor: Any) -> Iterator[None]:
    """The timeout of the source on what runs inside."""
    if source.timeout_s is None:
        yield
        return
    import duckdb

    timer = threading.Timer(source.timeout_s, cursor.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.InterruptException:
        raise source.slow() from None
    finally:
        timer.cancel()
