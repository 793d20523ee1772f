"""Needs: what a step that asks something outside needs here, looked at before the run without connecting to anything.

Libraries that are not installed, with the extra that brings them; URLs that no driver takes; timeouts that a driver can't hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from procflow.call import SECRETS, StepCall
from procflow.compiling.template import ReferenceFailed, fill
from procflow.secrets import masked
from procflow.sources.opened import Opened

__all__ = ["problems"]

_LIBRARIES = {
    "sql": ("sqlalchemy", "sql"), "duckdb": ("duckdb", "duckdb"), "mongodb": ("pymongo", "mongo"), "redis": ("redis", "redis"),
    "rest": ("httpx2", "http"), "llm": ("httpx2", "http"),
}  # fmt: skip
_FORMS = {"arrow": "pyarrow", "pandas": "pandas", "polars": "polars"}

_known: dict[Any, str] = {}


def problems(call: StepCall) -> Iterator[tuple[str, str, str]]:
    """What is missing or wrong: the key of the step, the sentence, and what to do."""
    options = call.options
    if call.kind == "rest":
        yield from _library("url", "this step", "rest")
    elif call.kind == "skill":
        kind = options.get("kind")
        if kind in _LIBRARIES:
            yield from _library("skill", f"skill {options['skill']!r}", kind)
        shapes = [*options.get("requires", {}).values(), *options.get("produces", {}).values()]
        if any(isinstance(shape, Mapping) for shape in shapes) and find_spec("jsonschema") is None:
            yield (
                "skill",
                f"skill {options['skill']!r} has a JSON Schema, and jsonschema is not installed",
                _pip("http"),
            )
    elif call.kind == "query" and "source" in options:
        yield from _query(call)


def _library(key: str, who: str, kind: str) -> Iterator[tuple[str, str, str]]:
    library, extra = _LIBRARIES[kind]
    if find_spec(library) is None:
        yield key, f"{who} needs {library}, which is not installed", _pip(extra)


def _pip(extra: str) -> str:
    return f"pip install 'procflow[{extra}]'"


def _query(call: StepCall) -> Iterator[tuple[str, str, str]]:
    options = call.options
    form = options.get("form", "rows")
    for library in (
        {_FORMS[form], *(("pyarrow",) if options["source"]["kind"] == "duckdb" and form == "polars" else ())}
        if (form in _FORMS)
        else ()
    ):
        if find_spec(library) is None:
            yield "as", f"as: {form} needs {library}, which is not installed", f"pip install {library}"
    kind, name = options["source"]["kind"], options["source"]["name"]
    missing = list(_library("source", f"source {name!r}", kind))
    if missing:
        yield from missing
        return
    try:
        spec = fill(options["source"], lambda root: os.environ if root == SECRETS else {})
    except ReferenceFailed:
        return
    limits = options.get("limits", {})
    source = Opened(**spec, folder=call.folder)
    key = (source.identity, limits.get("asked_s") is not None)
    if key not in _known:
        _known[key] = masked(_url_fault(source, limits.get("asked_s") is not None))
    if _known[key]:
        yield "source", f"source {name!r}: {_known[key]}", ""


def _url_fault(source: Opened, timed: bool) -> str:
    check = {"sql": _sql, "mongodb": _mongo, "redis": _redis, "rest": _rest, "duckdb": _duckdb}[source.kind]
    return check(source, timed)


def _sql(source: Opened, timed: bool) -> str:
    from sqlalchemy import exc

    from procflow.sources.sql import TIMED, url_of

    try:
        url = url_of(source)
        dialect = url.get_dialect()
    except exc.NoSuchModuleError as error:
        return f"SQLAlchemy knows no database of this kind ({error}); install its dialect, or correct the URL"
    except (exc.SQLAlchemyError, ValueError):
        return "its URL can't be read; write dialect://user@host:port/database"
    try:
        dialect.import_dbapi()
    except ImportError as error:
        extra = f": {_pip('sql')}" if error.name in ("psycopg",) else ""
        return f"the driver {error.name or dialect.driver} is not installed{extra}"
    if timed and url.get_backend_name() not in TIMED:
        return f"a timeout of its own can't be kept with {url.get_backend_name()}: leave it out, and give the steps a timeout"
    return ""


def _mongo(source: Opened, timed: bool) -> str:
    import pymongo.errors
    from pymongo.uri_parser import parse_uri

    if source.url.startswith("mongodb+srv://"):
        return ""
    try:
        found = parse_uri(source.url)
    except (pymongo.errors.PyMongoError, ValueError) as error:
        return f"its URL can't be used: {error}"
    if source.database is None and not found.get("database"):
        return "it names no database; write mongodb://host/DATABASE, or database: NAME"
    return ""


def _redis(source: Opened, timed: bool) -> str:
    import redis.connection

    parse: Any = redis.connection.parse_url
    url = source.url.strip()
    try:
        parse(url.replace("valkey", "redis", 1) if url.startswith("valkey") else url)
    except ValueError as error:
        return f"its URL can't be used: {error}"
    return ""


def _rest(source: Opened, timed: bool) -> str:
    from urllib.parse import urlsplit

    try:
        found = urlsplit(source.url.strip())
        good = found.scheme in ("http", "https") and bool(found.hostname) and (found.port or 1) > 0
    except ValueError:
        good = False
    return "" if good else "its URL can't be used; write https://host/path"


def _duckdb(source: Opened, timed: bool) -> str:
    rest = source.url.strip()[len("duckdb:") :]
    if rest.startswith("//") and not rest.startswith("///"):
        return "its URL can't be used; write duckdb: or duckdb:file.db"
    return ""
