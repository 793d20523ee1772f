"""MongoDB: what a filter finds, what a pipeline of stages makes, and changes to a collection.

A bound value is a value: one that is a mapping with keys such as ``$ne`` would be an operator, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from procflow.call import Lookup
from procflow.compiling.template import fill
from procflow.sources.kept import drop, kept
from procflow.sources.opened import Opened
from procflow.sources.rows import BATCH, RowsError, of_mappings

__all__ = ["run"]

_OWN = ("source", "form", "parts", "limits", "files")


def run(source: Opened, options: Mapping[str, Any], values: Callable[[str], Any], form: str) -> Any:
    """The documents as rows, or ``{"affected_rows": n}``. Raises ``SourceError``."""
    import pymongo
    from pymongo import errors

    asked = {key: _filled(source, tree, values) for key, tree in options.items() if key not in _OWN}
    key = ("mongodb", *source.identity)
    try:
        client = kept(key, lambda: _client(source), lambda opened: opened.close())
        with pymongo.timeout(source.timeout_s):
            return _ask(source, client, asked, form)
    except RowsError as error:
        raise source.failed(error) from None
    except (errors.ServerSelectionTimeoutError, errors.ConfigurationError) as error:
        raise source.down(_brief(error)) from None
    except errors.AutoReconnect as error:
        raise (source.slow() if getattr(error, "timeout", False) else source.lost(_brief(error))) from None
    except errors.PyMongoError as error:
        raise (source.slow() if getattr(error, "timeout", False) else source.failed(_brief(error))) from None
    except (TypeError, ValueError) as error:
        raise source.failed(error) from None
    finally:
        if not source.kept:
            drop(key)


def _brief(error: Exception) -> str:
    # What the driver knows of its topology follows, and helps nobody.
    return str(error).partition(", Topology Description")[0].partition(", full error")[0]


def _filled(source: Opened, tree: Any, values: Callable[[str], Any]) -> Any:
    """The tree with its values, none of which may act as an operator."""
    if isinstance(tree, Lookup):
        value = fill(tree, values)
        _check(source, value, str(tree))
        return value
    if isinstance(tree, dict):
        return {key: _filled(source, member, values) for key, member in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_filled(source, member, values) for member in tree]
    return fill(tree, values)


def _check(source: Opened, value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, member in value.items():
            if isinstance(key, str) and key.startswith("$"):
                raise source.failed(
                    f"the value of {{{name[2:-1]}}} has the key {key!r}, which would act as an operator; write the "
                    "operator in the step, and bind what it compares with"
                )
            _check(source, member, name)
    elif isinstance(value, (list, tuple)):
        for member in value:
            _check(source, member, name)


def ping(source: Opened) -> None:
    """Ask for nothing but an answer. Raises ``SourceDown``."""
    import pymongo

    client = _client(source)
    try:
        client.admin.command("ping")
    except pymongo.errors.PyMongoError as error:
        raise source.down(_brief(error)) from None
    finally:
        client.close()


def _client(source: Opened) -> Any:
    import pymongo

    wait_ms = int(source.connect_s * 1000)
    options: dict[str, Any] = {"serverSelectionTimeoutMS": wait_ms, "connectTimeoutMS": wait_ms, "appname": "procflow"}
    if source.user is not None:
        options["username"] = source.user
    if source.password is not None:
        options["password"] = source.password
    if source.most is not None:
        options["maxPoolSize"] = source.most
    return pymongo.MongoClient(source.url, **options | dict(source.options))


def _ask(source: Opened, client: Any, asked: Mapping[str, Any], form: str) -> Any:
    database = client[source.database] if source.database is not None else client.get_default_database()
    collection = database[asked["collection"]]
    if "insert" in asked:
        documents = asked["insert"]
        documents = [documents] if isinstance(documents, Mapping) else list(documents)
        # The driver writes its ids into what it is given, which belongs to the step before.
        done = collection.insert_many([dict(document) for document in documents]) if documents else None
        return {"affected_rows": len(done.inserted_ids) if done is not None else 0}
    if "update" in asked:
        return {"affected_rows": collection.update_many(asked["filter"], asked["update"]).modified_count}
    if "delete" in asked:
        return {"affected_rows": collection.delete_many(asked["filter"]).deleted_count}
    if "aggregate" in asked:
        return of_mappings(form, _plain(collection.aggregate(list(asked["aggregate"])), form)).done()
    cursor = collection.find(asked.get("filter") or {}, asked.get("projection"))
    if asked.get("sort"):
        cursor = cursor.sort(list(asked["sort"].items()))
    if asked.get("skip"):
        cursor = cursor.skip(asked["skip"])
    if asked.get("limit"):
        cursor = cursor.limit(asked["limit"])
    return of_mappings(form, _plain(cursor.batch_size(BATCH), form)).done()


def _plain(documents: Any, form: str) -> Any:
    """Documents whose values a table can hold: ids as text."""
    if form == "rows":
        return documents
    return ({key: str(v) if type(v).__name__ == "ObjectId" else v for key, v in d.items()} for d in documents)
