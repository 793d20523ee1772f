"""Queries: what is found before a run, SQLite, DuckDB, MongoDB (in process) and HTTP as sources."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import servers

from procflow import Pipeline, PipelineError, Step
from procflow.compiler import compile_pipeline
from procflow.graph import TaskUnit
from procflow.launch import prepare
from procflow.loader import load_pipeline
from procflow.result import RunResult

TEXT = 'it\'s "quoted"; DROP TABLE sales; -- {day} :name %s'


def query(name: str, source: str, sql: str = "", **keys: Any) -> dict[str, Any]:
    return {"type": "query", "name": name, "source": source, **({"query": sql} if sql else {}), **keys}


def run(folder: Path, sources: Mapping[str, Any], *steps: Any, **keys: Any) -> RunResult:
    options = {k: keys.pop(k) for k in ("executor", "workers") if k in keys}
    return Pipeline("p", steps=steps, sources=sources, **keys).run(state_dir=folder / "state", **options)


def outputs(folder: Path, sources: Mapping[str, Any], *steps: Any, **keys: Any) -> dict[str, Any]:
    result = run(folder, sources, *steps, **keys)
    assert result.status == "succeeded", (result.reason, result.failures)
    return dict(result.outputs)


def failure(folder: Path, sources: Mapping[str, Any], *steps: Any, **keys: Any) -> str:
    result = run(folder, sources, *steps, **keys)
    assert result.status == "failed"
    return str(next(iter(result.failures))).partition(": error: ")[2]


def prepared(file: Path) -> Any:
    loaded = load_pipeline(file)
    return prepare(loaded.pipeline, source=loaded.source)


def refused(text: str, tmp_path: Path) -> list[str]:
    """What is wrong with the pipeline file, as ``line:column: sentence``."""
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(PipelineError) as caught:
        prepared(file)
    return [str(p).removeprefix(f"{file}:").removeprefix(f"{os.path.relpath(file)}:") for p in caught.value.problems]


@pytest.fixture
def sales(tmp_path: Path) -> dict[str, Any]:
    """An SQLite source with three sales."""
    pytest.importorskip("sqlalchemy", reason="needs the extra sql")
    with sqlite3.connect(tmp_path / "sales.db") as db:
        db.execute("CREATE TABLE sales (id INTEGER PRIMARY KEY, day TEXT, price REAL)")
        db.executemany("INSERT INTO sales VALUES (?, ?, ?)", [(1, "a", 1.5), (2, "b", None), (3, "b", 4.0)])
    db.close()
    return {"db": {"url": f"sqlite:///{tmp_path}/sales.db"}}


# -- before a run ----------------------------------------------------------------------------------------------


def test_every_mistake_is_told_with_its_place_before_anything_is_connected(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs the extra sql")
    text = """\
name: p
params: {day: x}
sources:
  warehouse: "postgresql://app@nowhere.invalid/db"
  odd: {url: "foo://x"}
  none: "no url"
  unset: {url: "${env.PF_NOT_SET}"}
  short: {url: "redis://x", password: "${env.PF_SHORT}"}
  value: {url: "sqlite:///${rows}.db"}
  mongo: "mongodb://x"
steps:
  - {type: query, source: warehose, query: "SELECT 1"}
  - {type: query, source: warehouse, query: "SELECT {dya}"}
  - {type: query, source: warehouse, query: "SELECT '{day}'"}
  - {type: query, source: warehouse, query: "SELECT * FROM \\"{day}\\""}
  - {type: query, source: warehouse, query: "SELECT ${step_1}"}
  - {type: query, source: warehouse, query: "SELECT 1", params: {unused: 1}}
  - {type: query, source: warehouse, command: [GET, x]}
  - {type: query, source: odd, query: "SELECT 1"}
  - {type: query, source: unset, query: "SELECT 1"}
  - {type: query, source: mongo, collection: c}
"""
    os.environ.pop("PF_NOT_SET", None)
    os.environ["PF_SHORT"] = "abc"
    try:
        found = refused(text, tmp_path)
    finally:
        del os.environ["PF_SHORT"]
    told = "\n".join(found)
    for line, words in {
        6: "this is no URL: it has no scheme",
        7: "the environment variable 'PF_NOT_SET' is not set",
        8: "the environment variable PF_SHORT has fewer than 4 characters, so it could not be masked",
        9: "${rows} is no parameter and no environment variable",
        12: "there is no source 'warehose' (did you mean 'warehouse'?)",
        13: "{dya}: no step that runs before this one publishes 'dya' (did you mean 'day'?)",
        14: "{day} stands inside quotes, where nothing is bound",
        15: '{day} stands inside ", as the name of a column or table',
        16: "${step_1} would be pasted into the query",
        17: "'unused' is not used",
        18: "command has no meaning for source 'warehouse', which is sql",
    }.items():
        assert any(problem.startswith(f"{line}:") and words in problem for problem in found), (line, words, told)
    assert not any(problem.startswith("20:") for problem in found), told


def test_what_no_driver_takes_is_told_before_the_run(tmp_path: Path) -> None:
    for library in ("sqlalchemy", "pymongo", "redis", "duckdb", "httpx2"):
        pytest.importorskip(library)
    text = """\
name: p
sources:
  odd: "foo://x"
  driver: "oracle://x"
  timed: {url: "mssql+pyodbc://x/y", timeout: 5s}
  mongo: "mongodb://x"
  broken: "mongodb://:x"
  red: "redis://x:port/"
  web: "https://"
  duck: "duckdb://x"
steps:
  - {type: query, source: odd, query: "SELECT 1"}
  - {type: query, source: driver, query: "SELECT 1"}
  - {type: query, source: mongo, collection: c}
  - {type: query, source: broken, collection: c}
  - {type: query, source: red, command: [PING]}
  - {type: query, source: web, query: /x}
  - {type: query, source: duck, query: "SELECT 1"}
"""
    found = refused(text, tmp_path)
    assert [int(problem.partition(":")[0]) for problem in found] == [12, 13, 14, 15, 16, 17, 18], found
    assert "SQLAlchemy knows no database of this kind" in found[0]
    assert "the driver" in found[1]
    assert "is not installed" in found[1]
    assert "it names no database; write mongodb://host/DATABASE, or database: NAME" in found[2]


def test_a_library_that_is_not_there_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import procflow.sources.needs as needs

    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    text = """\
name: p
sources: {a: "sqlite://", b: "duckdb:", c: "mongodb://h/d", d: "redis://h", e: "http://h"}
skills: {s: {kind: llm, base_url: "http://h", model: m, prompt: hello}}
steps:
  - {type: query, source: a, query: "SELECT 1", as: polars}
  - {type: query, source: b, query: "SELECT 1"}
  - {type: query, source: c, collection: x}
  - {type: query, source: d, command: [PING]}
  - {type: query, source: e, query: /x}
  - {type: skill, skill: s}
  - {type: rest, url: "http://h"}
"""
    found = refused(text, tmp_path)
    assert "as: polars needs polars, which is not installed (pip install polars)" in found[0] + found[1]
    for extra in ("sql", "duckdb", "mongo", "redis", "http"):
        assert f"pip install 'procflow[{extra}]'" in "\n".join(found)
    assert len(found) == 8


def executor_of(*steps: Any, executor: str | None = None, **keys: Any) -> str:
    graph = compile_pipeline(
        Pipeline("p", steps=steps, sources={"db": {"url": "sqlite://", "max_connections": 3}}, **keys),
        executor=executor,
    )
    (unit,) = graph.root.members
    unit = unit if isinstance(unit, TaskUnit) else unit.members[0]  # type: ignore[attr-defined]
    assert isinstance(unit, TaskUnit)
    assert (unit.resources, graph.resources) == ({"source:db": 1.0}, {"source:db": 3.0})
    return unit.executor


def test_queries_run_on_threads_unless_something_may_have_to_stop_them() -> None:
    plain = query("q", "db", "SELECT 1")
    assert executor_of(plain) == "threads"
    assert executor_of(plain | {"executor": "processes"}) == "processes"
    assert executor_of(plain, executor="inline") == "inline"
    assert executor_of(plain, defaults={"executor": "processes"}) == "processes"
    for keys in ({"timeout": "1m"}, {"idle_timeout": "1m"}, {"memory": "1GB"}):
        assert executor_of(plain | keys) == "processes"
        assert executor_of(plain, defaults=keys) == "processes"
    assert executor_of({"type": "sequence", "timeout": "1m", "steps": [plain]}) == "processes"
    assert executor_of({"type": "sequence", "executor": "inline", "steps": [plain]}) == "inline"
    assert executor_of(plain, limits={"timeout": "1h"}) == "processes"


def test_a_timeout_that_threads_cannot_keep_is_refused(tmp_path: Path) -> None:
    (problem,) = refused(
        "name: p\nsources: {db: 'sqlite://'}\n"
        "steps: [{type: query, source: db, query: 'SELECT 1', executor: threads, timeout: 5s}]\n",
        tmp_path,
    )
    assert "executor threads can't stop a running step" in problem


def test_a_source_may_be_named_by_the_file_of_a_step_alone(tmp_path: Path) -> None:
    (tmp_path / "inner.yaml").write_text(
        "name: inner\nsources: {db: {url: 'sqlite://', max_connections: 2}}\n"
        "steps: [{type: query, name: q, source: db, query: 'SELECT {a} AS a', params: {a: 1}}]\n"
    )
    (tmp_path / "p.yaml").write_text("name: p\nsteps: [{type: pipeline, name: in, file: inner.yaml, outputs: [q]}]\n")
    graph = prepared(tmp_path / "p.yaml").graph
    assert graph.resources == {"source:db": 2.0}
    outer = refused("name: p\nsources: {db: 'sqlite://'}\nsteps: [{type: pipeline, file: other.yaml}]\n", tmp_path)
    assert "other.yaml" in outer[0]


# -- SQLite ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["threads", "inline", "processes"])
def test_sqlite_answers_with_what_was_bound(tmp_path: Path, sales: dict[str, Any], executor: str) -> None:
    found = outputs(
        tmp_path, sales,
        query("put", "db", "INSERT INTO sales (day, price) VALUES ({text}, {params.price})", params={"text": TEXT}),
        query("rows", "db", "SELECT id, day FROM sales WHERE price = {price} -- {nothing} it's"),
        query("days", "db", "SELECT count(*) AS n FROM sales WHERE day IN ({days}) AND id <> {rows.0.id}",
              params={"days": ("b", "a")}),
        params={"price": 2.25}, executor=executor, workers=1,
    )  # fmt: skip
    assert found == {"put": {"affected_rows": 1}, "rows": [{"id": 4, "day": TEXT}], "days": [{"n": 3}]}


def test_names_are_looked_up_from_the_step_outwards(tmp_path: Path, sales: dict[str, Any]) -> None:
    sql = "SELECT {a} AS a, {b} AS b, {c} AS c, {d.0} AS d, {e.f} AS e"
    found = outputs(
        tmp_path, sales,
        Step("c", lambda: "value"), Step("deep", lambda: {"d": [4]}), Step("b", lambda: "unused"),
        query("rows", "db", sql, params={"a": "param", "e": {"f": "${c}"}}, inputs={"b": "c", "d": "${deep.d}"}),
        params={"a": "outer", "b": "outer", "c": "outer"}, executor="inline",
    )  # fmt: skip
    assert found["rows"] == [{"a": "param", "b": "value", "c": "value", "d": 4, "e": "value"}]


def test_the_items_of_a_map_are_bound(tmp_path: Path, sales: dict[str, Any]) -> None:
    inner = query("one", "db", "SELECT price FROM sales WHERE id = {item.id} AND {index} >= 0")
    found = outputs(
        tmp_path,
        sales,
        {"type": "map", "name": "m", "items": [{"id": 1}, {"id": 3}], "steps": [inner]},
        executor="threads",
    )
    assert found["m"] == [[{"price": 1.5}], [{"price": 4.0}]]


def test_a_graph_waits_for_the_values_that_a_query_names(tmp_path: Path, sales: dict[str, Any]) -> None:
    found = outputs(
        tmp_path, sales,
        query("rows", "db", "SELECT {least} AS least"), Step("least", lambda: 7), type="graph", executor="inline",
    )  # fmt: skip
    assert found["rows"] == [{"least": 7}]


def test_only_names_may_be_put_in_from_parameters(tmp_path: Path, sales: dict[str, Any]) -> None:
    step = query("rows", "db", "SELECT count(*) AS n FROM ${params.table}")
    assert outputs(tmp_path, sales, step, params={"table": "sales"}, executor="inline")["rows"] == [{"n": 3}]
    with pytest.raises(PipelineError, match="'sales; DROP TABLE sales' would be pasted into the query"):
        outputs(tmp_path, sales, step, params={"table": "sales; DROP TABLE sales"}, executor="inline")


def test_nothing_in_a_value_is_read_as_a_place_or_a_reference(tmp_path: Path, sales: dict[str, Any]) -> None:
    found = outputs(
        tmp_path,
        sales,
        Step("v", lambda: "{day} ${env.HOME} {{x}}"),
        query("rows", "db", "SELECT {v} AS v"),
        executor="inline",
    )
    assert found["rows"] == [{"v": "{day} ${env.HOME} {{x}}"}]


@pytest.mark.parametrize("form", ["arrow", "pandas", "polars"])
def test_a_table_of_no_rows_has_its_columns(tmp_path: Path, sales: dict[str, Any], form: str) -> None:
    pytest.importorskip({"arrow": "pyarrow"}.get(form, form))
    step = query("rows", "db", "SELECT id, day FROM sales WHERE id < 0", **{"as": form})
    table = outputs(tmp_path, sales, step, executor="inline")["rows"]
    assert list(table.column_names if form == "arrow" else table.columns) == ["id", "day"]
    assert len(table) == 0


def test_numpy_values_are_bound_as_numbers(tmp_path: Path, sales: dict[str, Any]) -> None:
    numpy = pytest.importorskip("numpy")
    found = outputs(
        tmp_path, sales,
        Step("id", lambda: numpy.int64(3)), Step("ids", lambda: numpy.array([1, 3])),
        query("one", "db", "SELECT id FROM sales WHERE id = {id}"),
        query("some", "db", "SELECT id FROM sales WHERE id IN {ids}"), executor="inline",
    )  # fmt: skip
    assert (found["one"], found["some"]) == ([{"id": 3}], [{"id": 1}, {"id": 3}])


def test_a_file_that_is_not_there_is_never_made_by_reading(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="needs the extra sql")
    sources = {"db": f"sqlite:///{tmp_path}/absent.db"}
    message = failure(tmp_path, sources, query("q", "db", "SELECT 1"), executor="inline")
    assert (
        message
        == f"SourceDown: source 'db' (sqlite:///{tmp_path}/absent.db) can't be reached: there is no file {tmp_path}/absent.db"
    )
    assert not (tmp_path / "absent.db").exists()
    made = query("q", "db", "CREATE TABLE a (b)")
    assert outputs(tmp_path, sources, made, executor="inline")["q"] == {"affected_rows": 0}


def test_paths_of_files_start_beside_the_pipeline(
    tmp_path: Path, sales: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.yaml").write_text(
        "name: p\nsources: {db: 'sqlite:///sales.db'}\n"
        "steps: [{type: query, name: q, source: db, query: 'SELECT count(*) AS n FROM sales'}]\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    from procflow import load

    assert load(tmp_path / "p.yaml").run().outputs["q"] == [{"n": 3}]


def test_what_sqlite_refuses_is_told_without_values(tmp_path: Path, sales: dict[str, Any]) -> None:
    message = failure(
        tmp_path,
        sales,
        query("q", "db", "SELECT absent_column FROM sales WHERE day = {a}", params={"a": "private"}),
        executor="inline",
    )
    assert message == f"QueryFailed: source 'db' ({sales['db']['url']}): no such column: absent_column"
    (told,) = run(tmp_path, sales, query("q", "db", "SELECT absent_column"), executor="inline").failures
    assert (told.failure.user_place, told.failure.traceback.partition("\n")[0]) == ("", str(told.failure))
    message = failure(tmp_path, sales, query("q", "db", "SELECT {a}", params={"a": [1]}), executor="inline")
    assert "type 'list' is not supported" in message or "probably unsupported type" in message


def test_a_source_with_a_timeout_ends_a_long_query(tmp_path: Path, sales: dict[str, Any]) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    slow = {"db": {**sales["db"], "timeout": 0.3}}
    message = failure(tmp_path, slow, query("q", "db", endless), executor="threads")
    assert message == f"SourceSlow: source 'db' ({sales['db']['url']}) gave no answer within 0.3 s"


def test_a_transaction_holds_all_of_a_step_or_nothing(tmp_path: Path, sales: dict[str, Any]) -> None:
    bad = query("q", "db", "INSERT INTO sales (id, day) SELECT 10 + id, day FROM sales UNION ALL SELECT 1, 'taken'")
    assert "UNIQUE constraint failed" in failure(tmp_path, sales, bad, executor="inline")
    count = query("n", "db", "SELECT count(*) AS n FROM sales")
    assert outputs(tmp_path, sales, count, executor="inline")["n"] == [{"n": 3}]


def test_resume_keeps_a_query_until_what_it_asks_has_changed(tmp_path: Path, sales: dict[str, Any]) -> None:
    def fails(q: Any) -> None:
        raise ValueError("later")

    first = Pipeline("p", steps=[query("q", "db", "SELECT 1 AS a"), Step("boom", fails, inputs=["q"])], sources=sales)
    state = tmp_path / "state"
    assert first.run(state_dir=state, executor="inline").status == "failed"
    for sql, kept in (("SELECT 1 AS a", True), ("SELECT 2 AS a", False)):
        source = {**sales["db"], "max_connections": 2, "timeout": 30}
        steps = [query("q", "db", sql), Step("boom", fails, inputs=["q"])]
        result = Pipeline("p", steps=steps, sources={"db": source}).resume(state_dir=state, executor="inline")
        assert (result.steps["q"].attempts == 0) is kept


# -- DuckDB ----------------------------------------------------------------------------------------------------


@pytest.fixture
def duck(tmp_path: Path) -> dict[str, Any]:
    pytest.importorskip("duckdb", reason="needs the extra duckdb")
    (tmp_path / "a.csv").write_text('id,name\n1,one\n2,"it\'s two"\n')
    return {"duck": "duckdb:", "file": f"duckdb:{tmp_path}/w.db"}


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_duckdb_reads_files_beside_the_pipeline(tmp_path: Path, duck: dict[str, Any], executor: str) -> None:
    steps = [
        query("csv", "duck", "SELECT * FROM 'a.csv' WHERE id IN ({ids}) AND name = {name}",
              params={"ids": [2, 3], "name": "it's two"}),
        query("write", "duck", f"COPY (SELECT range AS n FROM range(5)) TO '{tmp_path}/b.parquet' (FORMAT parquet)"),
        query("parquet", "duck", "SELECT sum(n)::int AS n FROM read_parquet({file})", params={"file": "b.parquet"}),
        query("literal", "duck", "SELECT {'a': {one}, b: [1]} AS s, '{{one}}' AS t, $$ {x $$ AS u", params={"one": 1}),
    ]  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps({"name": "p", "sources": {"duck": "duckdb:"}, "steps": steps}))
    from procflow import load

    result = load(tmp_path / "p.json").run(executor=executor, workers=1)
    assert result.status == "succeeded", result.failures
    assert result.outputs["csv"] == [{"id": 2, "name": "it's two"}]
    assert result.outputs["write"] == {"affected_rows": 5}
    assert result.outputs["parquet"] == [{"n": 10}]
    assert result.outputs["literal"] == [{"s": {"a": 1, "b": [1]}, "t": "{one}", "u": " {x "}]


@pytest.mark.parametrize("form", ["arrow", "pandas", "polars"])
def test_duckdb_gives_tables_of_its_own(tmp_path: Path, duck: dict[str, Any], form: str) -> None:
    for library in {"arrow": ["pyarrow"], "pandas": ["pandas"], "polars": ["polars", "pyarrow"]}[form]:
        pytest.importorskip(library)
    step = query("rows", "duck", "SELECT range AS n FROM range(20000)", **{"as": form})
    table = outputs(tmp_path, duck, step, executor="inline")["rows"]
    assert len(table) == 20000
    assert table["n"][19999] == 19999 if form != "arrow" else table["n"][19999].as_py() == 19999


def test_a_duckdb_file_is_written_by_one_step_and_read_by_the_next(tmp_path: Path, duck: dict[str, Any]) -> None:
    steps = [
        query("make", "file", "CREATE TABLE t AS SELECT range AS n FROM range(10)"),
        query("change", "file", "UPDATE t SET n = n + {more} WHERE n < 3", params={"more": 100}),
        query("read", "file", "SELECT count(*) AS n FROM t WHERE n >= 100"),
    ]
    found = outputs(tmp_path, duck, *steps, executor="processes", workers=2)
    assert (found["change"], found["read"]) == ({"affected_rows": 3}, [{"n": 3}])


def test_what_duckdb_refuses_is_told(tmp_path: Path, duck: dict[str, Any]) -> None:
    assert "Table with name nothing does not exist" in failure(
        tmp_path, duck, query("q", "duck", "SELECT * FROM nothing"), executor="inline"
    )
    assert "a step asks one thing, and these are 2 statements" in failure(
        tmp_path, duck, query("q", "duck", "SELECT 1; SELECT 2"), executor="inline"
    )
    slow = {"duck": {"url": "duckdb:", "timeout": 0.3}}
    endless = "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE (a.range * b.range) % 7 = 3"
    assert failure(tmp_path, slow, query("q", "duck", endless), executor="inline").endswith(
        "gave no answer within 0.3 s"
    )


# -- MongoDB ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mongo(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """MongoDB itself where ``MONGO_URL`` names one, else a substitute in this process."""
    pymongo = pytest.importorskip("pymongo", reason="needs the extra mongo")
    if os.environ.get("MONGO_URL"):
        client = pymongo.MongoClient(os.environ["MONGO_URL"])
        client.drop_database("procflow_test")
        client.close()
        return {"m": {"url": os.environ["MONGO_URL"], "database": "procflow_test"}}
    mongomock = pytest.importorskip("mongomock", reason="set MONGO_URL, or pip install mongomock")
    client = mongomock.MongoClient()
    monkeypatch.setattr(pymongo, "MongoClient", lambda *args, **options: client)
    return {"m": {"url": "mongodb://app:pass-word@host/db", "database": "procflow_test"}}


def ask(name: str, **keys: Any) -> dict[str, Any]:
    return {"type": "query", "name": name, "source": "m", "collection": "sales", **keys}


def test_mongodb_finds_changes_and_counts(tmp_path: Path, mongo: dict[str, Any]) -> None:
    rows = [{"n": n, "day": "ab"[n % 2], "text": TEXT} for n in range(6)]
    found = outputs(
        tmp_path, mongo,
        Step("rows", lambda: rows),
        ask("put", insert="{rows}"),
        ask("one", insert={"n": 99, "day": "{day}", "deep": [{"text": "{text}"}]}, params={"day": "z", "text": "{{x}}"}),
        ask("some", filter={"day": "{day}", "n": {"$gte": "{least}"}}, projection={"_id": 0, "n": 1}, sort={"n": -1}, limit=2,
            params={"day": "b", "least": 0}),
        ask("skipped", filter={"n": {"$in": "{many}"}}, projection={"_id": 0, "n": 1}, sort="n", skip=1,
            params={"many": [1, 2, 3]}),
        ask("changed", filter={"day": "a"}, update={"$set": {"day": "{new}"}}, params={"new": "c"}),
        ask("gone", filter={"day": "c"}, delete=True),
        ask("grouped", aggregate=[{"$match": {"n": {"$lt": "{most}"}}}, {"$group": {"_id": "$day", "n": {"$sum": 1}}}],
            params={"most": 90}),
        ask("all", filter={"text": "{text}"}, params={"text": TEXT}),
        executor="inline",
    )  # fmt: skip
    assert (found["put"], found["one"]) == ({"affected_rows": 6}, {"affected_rows": 1})
    assert "_id" not in rows[0]
    assert found["some"] == [{"n": 5}, {"n": 3}]
    assert found["skipped"] == [{"n": 2}, {"n": 3}]
    assert (found["changed"], found["gone"]) == ({"affected_rows": 3}, {"affected_rows": 3})
    assert found["grouped"] == [{"_id": "b", "n": 3}]
    assert [row["n"] for row in found["all"]] == [1, 3, 5]


def test_a_bound_value_never_becomes_an_operator(tmp_path: Path, mongo: dict[str, Any]) -> None:
    step = ask("q", filter={"day": "{day}"}, params={"day": [{"$ne": None}]})
    message = failure(
        tmp_path, mongo, Step("evil", lambda: {"$ne": None}), ask("q", filter={"day": "{evil}"}), executor="inline"
    )
    assert "the value of {evil} has the key '$ne', which would act as an operator" in message
    with pytest.raises(PipelineError, match="which would act as an operator"):
        run(tmp_path, mongo, step, executor="inline")


def test_documents_with_different_keys_make_a_table(tmp_path: Path, mongo: dict[str, Any]) -> None:
    pytest.importorskip("pyarrow")
    steps = [ask("put", insert=[{"a": 1}, {"a": 2, "b": "x"}]), ask("table", sort="a", **{"as": "arrow"})]
    table = outputs(tmp_path, mongo, *steps, executor="inline")["table"]
    assert set(table.column_names) == {"_id", "a", "b"}
    assert table["b"].to_pylist() == [None, "x"]


def test_what_mongodb_can_not_be_asked_is_refused(mongo: dict[str, Any]) -> None:
    for keys, words in (
        ({"filter": {"a": "x {b} y"}, "params": {"b": 1}}, "only a whole text is a bound value"),
        ({"delete": True}, "delete needs filter; {} means every document"),
        ({"insert": [{"a": 1}], "update": {"a": 1}, "filter": {}}, "insert and update exclude each other"),
        ({"insert": []}, "there is nothing to insert"),
        ({"filter": {"{key}": 1}}, "the key '{key}' can't be a bound value"),
        ({"sort": {"a": 2}}, "1 (rising) or -1 (falling)"),
    ):
        with pytest.raises(PipelineError) as caught:
            compile_pipeline(Pipeline("p", steps=[ask("q", **keys)], sources=mongo))
        assert words in str(caught.value)


def test_a_mongodb_that_is_not_there_is_one_short_error(tmp_path: Path) -> None:
    pytest.importorskip("pymongo", reason="needs the extra mongo")
    sources = {"m": {"url": "mongodb://app:pass-word@127.0.0.1:9/db", "timeout": 0.3}}
    message = failure(tmp_path, sources, ask("q"), executor="threads")
    assert message.startswith("SourceDown: source 'm' (mongodb://app:***@127.0.0.1:9/db) can't be reached: ")
    assert "Topology" not in message
    assert "pass-word" not in message


# -- HTTP as a source ------------------------------------------------------------------------------------------


def test_rows_come_from_a_service(tmp_path: Path, web: servers.Web, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("httpx2", reason="needs the extra http")
    monkeypatch.setenv("PF_API_KEY", "key-4711-secret")
    web.answer("GET /v1/sales", {"data": {"rows": [{"id": 1}, {"id": 2}]}})
    web.answer("POST /v1/find/a%2Fb%3F", [{"id": 3}])
    sources = {
        "api": {
            "url": f"{web.url}/v1",
            "headers": {"X-Key": "${env.PF_API_KEY}"},
            "user": "me",
            "password": "${env.PF_API_KEY}",
        }
    }
    found = outputs(
        tmp_path, sources,
        query("rows", "api", "/sales?day={day}&n={n}", rows="data.rows", params={"day": "a&b=c d/é", "n": 3}),
        query("posted", "api", "find/{what}", json={"deep": [{"x": "{rows}"}], "text": "day {day}!"},
              params={"what": "a/b?", "day": "x"}, headers={"X-Other": "{rows.0.id}"}),
    )  # fmt: skip
    assert (found["rows"], found["posted"]) == ([{"id": 1}, {"id": 2}], [{"id": 3}])
    first, second = web.asked
    assert first["query"] == "day=a%26b%3Dc%20d%2F%C3%A9&n=3"
    assert first["headers"]["x-key"] == "key-4711-secret"
    assert first["headers"]["authorization"].startswith("Basic ")
    assert second["body"] == {"deep": [{"x": [{"id": 1}, {"id": 2}]}], "text": "day x!"}
    assert second["headers"]["x-other"] == "1"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            {"body": {"rows": []}},
            "the answer is one mapping, not a list of rows; write rows: KEY for where they are (rows)",
        ),
        ({"body": [1, 2]}, "no list of rows: item 0 is of type int"),
        ({"body": "<html>"}, "the answer is not JSON"),
        ({"body": {"error": "no"}, "status": 403}, 'answered 403: \'{"error": "no"}\''),
        ({"body": "broken", "status": 500}, "answered 500: 'broken'"),
        ({"body": "[]", "pause_s": 30}, "gave no answer within 0.3 s"),
        ({"body": "[" + " " * 500 + "]", "drip_s": 0.05}, "did not send its whole answer within 0.3 s"),
    ],
)
def test_a_service_that_misbehaves_is_one_clear_error(
    tmp_path: Path, web: servers.Web, answer: dict[str, Any], words: str
) -> None:
    pytest.importorskip("httpx2", reason="needs the extra http")
    web.answer("GET /x", **answer)
    timeout = 0.3 if "0.3 s" in words else 60
    message = failure(tmp_path, {"api": {"url": web.url, "timeout": timeout}}, query("q", "api", "/x"))
    assert f"source 'api' (GET {web.url}/x)" in message
    assert words in message


def test_the_keys_of_a_source_go_nowhere_else(tmp_path: Path, web: servers.Web) -> None:
    pytest.importorskip("httpx2", reason="needs the extra http")
    web.answer("GET /old", "", status=302, Location=f"{web.url}/new")
    web.answer("GET /new", [{"a": 1}])
    sources = {"api": {"url": web.url, "headers": {"X-Key": "k"}}, "open": web.url}
    assert f"answered 302: it is now at {web.url}/new" in failure(tmp_path, sources, query("q", "api", "/old"))
    assert outputs(tmp_path, sources, query("q", "open", "/old"))["q"] == [{"a": 1}]
    other = query("q", "api", "${there}")
    there = Step("there", lambda: "http://127.0.0.1:9/x")
    assert "lies outside of it, and its headers may hold keys" in failure(
        tmp_path, sources, there, other, executor="threads"
    )


def test_sources_load_nothing_before_they_are_used() -> None:
    import subprocess

    code = (
        "import sys, procflow.launch\nfrom procflow import Pipeline\nfrom procflow.launch import prepare\n"
        "prepare(Pipeline('p', steps=[len]))\n"
        "print({'sqlalchemy', 'duckdb', 'pymongo', 'redis', 'httpx2', 'jsonschema'} & {m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.mark.parametrize("kind", ["sqlite", "duckdb"])
def test_a_query_on_a_thread_is_stopped_with_its_block(tmp_path: Path, kind: str, sales: dict[str, Any]) -> None:
    pytest.importorskip("duckdb", reason="needs the extra duckdb")
    sources = sales if kind == "sqlite" else {"db": "duckdb:"}
    endless = (
        ENDLESS
        if kind == "sqlite"
        else "SELECT count(*) FROM range(1000000000) a, range(1000000000) b WHERE a.range * b.range % 7 = 3"
    )
    started = threading.Event()
    ended = threading.Event()

    def fail() -> None:
        assert started.wait(60)
        raise ValueError("stop")

    def tell() -> None:
        started.set()

    members = [
        {"type": "sequence", "name": "long", "steps": [Step("tell", tell), query("endless", "db", endless)]},
        Step("fail", fail),
    ]
    guard = threading.Timer(120, ended.set)
    guard.start()
    result = run(
        tmp_path, sources, {"type": "parallel", "name": "both", "steps": members}, executor="threads", workers=2
    )
    guard.cancel()
    assert not ended.is_set()
    assert result.status == "failed"
    assert result.steps["both/long/endless"].status in ("cancelled", "skipped", "failed")
