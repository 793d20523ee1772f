"""Query: rows from a source, or a change there.

``options``: ``source`` (its spec, a tree), ``parts`` (the text of the query cut at its places: texts, and numbers of
``args``), ``form`` (rows, arrow, pandas, polars), ``limits`` (timeout_s, most, kept, cpus, memory_bytes), and what the kind of
the source asks for. Each kind is one file in ``procflow/sources/``, loaded when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from procflow import step
from procflow.call import StepCall
from procflow.compiling.template import fill
from procflow.sources.opened import Opened, QueryFailed

__all__ = ["run"]


def run(call: StepCall, values: Callable[[str], Any]) -> Any:
    """The rows in the form asked for, or ``{"affected_rows": n}``. Raises ``SourceError``."""
    options = call.options
    source = Opened(**fill(options["source"], values), folder=call.folder, **_limits(options["limits"]))
    args = [fill(tree, values) for tree in call.args]
    try:
        value = _asked(source, call, args, values)
    except ImportError as error:
        raise QueryFailed(f"{source}: {error}; {_extra(source.kind)}") from None
    if isinstance(value, dict) and value.keys() == {"affected_rows"}:
        step.metric("affected_rows", value["affected_rows"])
    elif hasattr(value, "__len__") and source.kind != "redis":
        step.metric("rows", len(value))
    return value


def _limits(limits: Any) -> dict[str, Any]:
    return {key: limits.get(key) for key in ("timeout_s", "most", "memory_bytes")} | {
        "kept": limits.get("kept", True),
        "cpus": limits.get("cpus", 1),
    }


def _extra(kind: str) -> str:
    extra = {"sql": "sql", "duckdb": "duckdb", "mongodb": "mongo", "redis": "redis", "rest": "http"}[kind]
    return f"pip install 'procflow[{extra}]'"


def _asked(source: Opened, call: StepCall, args: list[Any], values: Callable[[str], Any]) -> Any:
    options = call.options
    form = options.get("form") or "rows"
    parts = options.get("parts") or ()
    if source.kind == "sql":
        from procflow.sources import sql

        return sql.run(source, parts, args, form)
    if source.kind == "duckdb":
        from procflow.sources import duck

        return duck.run(source, parts, args, form)
    if source.kind == "mongodb":
        from procflow.sources import mongo

        return mongo.run(source, options, values, form)
    if source.kind == "redis":
        from procflow.sources import redis_commands

        return redis_commands.run(source, fill(options["command"], values))
    from procflow.sources import web

    return web.run(source, options, args, values, form)
