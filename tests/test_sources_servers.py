"""Queries of real servers: PostgreSQL and Valkey."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from procflow import Pipeline
from procflow.result import RunResult
from procflow.sources import kept

sqlalchemy = pytest.importorskip("sqlalchemy", reason="needs the extra sql")


@pytest.fixture
def table(postgres_url: str) -> Iterator[str]:
    """A table of 1,000 sales of the test's own."""
    name = f"sales_{os.getpid()}_{threading.get_ident()}"
    psql(postgres_url, f"DROP TABLE IF EXISTS {name}")
    psql(
        postgres_url,
        f"CREATE TABLE {name} AS SELECT n AS id, n * 1.5 AS price, 'note ' || n AS note, n % 10 AS day "
        "FROM generate_series(1, 1000) AS n",
    )
    yield name
    psql(postgres_url, f"DROP TABLE {name}")


def psql(url: str, sql: str) -> list[Any]:
    engine = sqlalchemy.create_engine(
        url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sqlalchemy.pool.NullPool
    )
    try:
        with engine.begin() as connection:
            result = connection.exec_driver_sql(sql.replace("%", "%%"))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


def query(name: str, sql: str = "", **keys: Any) -> dict[str, Any]:
    return {"type": "query", "name": name, "source": "pg", **({"query": sql} if sql else {}), **keys}


def run(tmp_path: Path, url: str, *steps: Any, source: dict[str, Any] | None = None, **keys: Any) -> RunResult:
    options = {k: keys.pop(k) for k in ("executor", "workers") if k in keys}
    pipeline = Pipeline("p", steps=steps, sources={"pg": {"url": url, **(source or {})}}, **keys)
    return pipeline.run(state_dir=tmp_path, **options)


def outputs(*args: Any, **keys: Any) -> dict[str, Any]:
    result = run(*args, **keys)
    assert result.status == "succeeded", (result.reason, result.failures)
    return dict(result.outputs)


def failure(*args: Any, **keys: Any) -> str:
    result = run(*args, **keys)
    assert result.status == "failed"
    return str(next(iter(result.failures))).partition(": error: ")[2]


# -- PostgreSQL ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["threads", "processes", "inline"])
def test_rows_come_from_postgresql_on_every_executor(
    tmp_path: Path, postgres_url: str, table: str, executor: str
) -> None:
    sql = f"SELECT id, price, note FROM {table} WHERE id <= {{most}} AND note LIKE '%' ORDER BY id"
    found = outputs(tmp_path, postgres_url, query("rows", sql, params={"most": 2}), executor=executor, workers=2)
    assert found["rows"] == [
        {"id": 1, "price": Decimal("1.5"), "note": "note 1"},
        {"id": 2, "price": Decimal("3.0"), "note": "note 2"},
    ]


def test_values_are_bound_whatever_is_in_them(tmp_path: Path, postgres_url: str, table: str) -> None:
    evil = f"'); DROP TABLE {table}; -- \" :name %s {{x}} $${{y}} \\"
    params = {"text": evil, "numbers": [1, 2, 3], "doc": {"a": ["'", 1]}, "none": None}
    found = outputs(
        tmp_path, postgres_url,
        query(
            "rows",
            "SELECT {text}::text AS text, {numbers}::int[] AS numbers, {doc} AS doc, {none}::int AS none, "
            "'10:30' AS time, 5 %% 3 AS rest, '{{text}} {\"a\": 1}' AS literal".replace("%%", "%"),
            params=params,
        ),
    )  # fmt: skip
    (row,) = found["rows"]
    assert row == {**params, "text": evil.replace("$$", "$"), "time": "10:30", "rest": 2, "literal": '{text} {"a": 1}'}
    assert psql(postgres_url, f"SELECT count(*) FROM {table}") == [(1000,)]


def test_a_list_behind_in_is_as_many_values(tmp_path: Path, postgres_url: str, table: str) -> None:
    steps = [
        query("bare", f"SELECT id FROM {table} WHERE id IN {{ids}} ORDER BY id", params={"ids": [3, 1]}),
        query("wrapped", f"SELECT id FROM {table} WHERE id in ( {{ids}} ) ORDER BY id", params={"ids": [3, 1]}),
        query("none", f"SELECT id FROM {table} WHERE id IN ({{ids}})", params={"ids": []}),
        query("array", f"SELECT id FROM {table} WHERE id = ANY({{ids}}) ORDER BY id", params={"ids": [3, 1]}),
    ]
    found = outputs(tmp_path, postgres_url, *steps)
    assert found == {
        "bare": [{"id": 1}, {"id": 3}],
        "wrapped": [{"id": 1}, {"id": 3}],
        "none": [],
        "array": found["bare"],
    }


def test_writes_return_the_affected_rows_and_are_undone_where_the_step_fails(
    tmp_path: Path, postgres_url: str, table: str
) -> None:
    found = outputs(
        tmp_path, postgres_url,
        query("update", f"UPDATE {table} SET note = {{note}} WHERE day = 3", params={"note": "x"}),
        query("insert", f"INSERT INTO {table} (id) VALUES (-1) RETURNING id"),
        query("create", f"CREATE TEMP TABLE t_{os.getpid()} (a int)"),
    )  # fmt: skip
    assert found["update"] == {"affected_rows": 100}
    assert found["insert"] == [{"id": -1}]
    assert found["create"] == {"affected_rows": 0}
    message = failure(
        tmp_path, postgres_url,
        query("bad", f"WITH gone AS (DELETE FROM {table} RETURNING id) SELECT 1 / (count(*) - 1001) FROM gone"),
    )  # fmt: skip
    assert "division by zero" in message
    assert psql(postgres_url, f"SELECT count(*) FROM {table}") == [(1001,)]


@pytest.mark.parametrize("form", ["arrow", "pandas", "polars"])
def test_rows_come_as_tables(tmp_path: Path, postgres_url: str, table: str, form: str) -> None:
    pytest.importorskip({"arrow": "pyarrow"}.get(form, form))
    sql = f"SELECT id, CASE WHEN id > 500 THEN note END AS note FROM {table} ORDER BY id"
    rows = outputs(tmp_path, postgres_url, query("rows", sql, **{"as": form}))["rows"]
    assert len(rows) == 1000
    values = rows.to_pylist() if form == "arrow" else rows.to_dicts() if form == "polars" else rows.to_dict("records")
    assert values[999] == {"id": 1000, "note": "note 1000"}
    assert values[0]["id"] == 1


def test_many_rows_are_fetched_in_batches(tmp_path: Path, postgres_url: str) -> None:
    pytest.importorskip("pyarrow")
    sql = "SELECT n, CASE WHEN n > 20000 THEN n / 2.0 END::float8 AS half FROM generate_series(1, 25000) AS n"
    table = outputs(tmp_path, postgres_url, query("rows", sql, **{"as": "arrow"}))["rows"]
    assert table.num_rows == 25000
    assert str(table.schema.field("half").type) == "double"
    assert table["half"][24999].as_py() == 12500.0


def test_at_most_so_many_queries_of_a_source_run_at_once(tmp_path: Path, postgres_url: str) -> None:
    # Each sees how many of the run's connections are open on the server while it sleeps.
    count = "SELECT count(*) AS n FROM pg_stat_activity, pg_sleep(0.05) WHERE application_name = 'procflow-most'"
    source = {"max_connections": 2, "options": {"application_name": "procflow-most"}}
    for executor in ("threads", "processes"):
        steps = [{"type": "parallel", "steps": [query(f"q{i}", count) for i in range(8)]}]
        found = outputs(tmp_path, postgres_url, *steps, source=source, executor=executor, workers=4)
        seen = [found[f"q{i}"][0]["n"] for i in range(8)]
        assert max(seen) <= 2, (executor, seen)


def test_a_connection_is_kept_between_the_attempts_of_a_worker_and_closed_with_the_run(
    tmp_path: Path, postgres_url: str
) -> None:
    source = {"options": {"application_name": "procflow-kept"}}
    sql = "SELECT pg_backend_pid() AS pid"
    for executor in ("inline", "processes"):
        found = outputs(
            tmp_path, postgres_url, query("a", sql), query("b", sql), source=source, executor=executor, workers=1
        )
        assert found["a"] == found["b"]
    until_gone = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'procflow-kept'"
    for _ in range(200):
        if psql(postgres_url, until_gone) == [(0,)]:
            break
        psql(postgres_url, "SELECT pg_sleep(0.05)")
    else:
        pytest.fail("connections outlive the run")


def test_a_connection_that_was_lost_is_renewed(tmp_path: Path, postgres_url: str) -> None:
    source = {"options": {"application_name": "procflow-lost"}}
    steps = [
        query("a", "SELECT pg_backend_pid() AS pid"),
        {"function": kill_backends, "name": "kill", "params": {"url": postgres_url}},
    ]
    found = outputs(
        tmp_path, postgres_url, *steps, query("b", "SELECT pg_backend_pid() AS pid"), source=source, executor="inline"
    )
    assert found["a"] != found["b"]


def kill_backends(url: str) -> None:
    psql(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'procflow-lost'")


def test_a_connection_lost_in_the_middle_is_told_and_tried_again(tmp_path: Path, postgres_url: str) -> None:
    own = query("end", "SELECT pg_terminate_backend(pg_backend_pid())")
    assert "source 'pg' (postgresql://app:***@/postgres" in failure(tmp_path, postgres_url, own)
    result = run(tmp_path, postgres_url, own | {"retry": {"retries": 1, "delay": 0, "on": ["SourceDown"]}})
    assert result.steps["end"].attempts == 2


def test_a_child_makes_connections_of_its_own(postgres_url: str) -> None:
    opened: list[int] = []
    kept.kept("k", lambda: opened.append(os.getpid()) or object(), lambda _: None)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: os._exit(0 if kept.kept("k", os.getpid, lambda _: None) == os.getpid() else 1)
    )
    child.start()
    child.join(60)
    kept.drop("k")
    assert (child.exitcode, opened) == (0, [os.getpid()])


def test_a_slow_query_is_stopped_by_the_server_and_named(tmp_path: Path, postgres_url: str) -> None:
    message = failure(tmp_path, postgres_url, query("slow", "SELECT pg_sleep(60)"), source={"timeout": 0.2})
    assert message.startswith("SourceSlow: source 'pg' (postgresql://app:***@/postgres")
    assert message.endswith("gave no answer within 0.2 s")


def test_a_step_with_a_timeout_is_stopped_there_and_here(tmp_path: Path, postgres_url: str) -> None:
    pipeline = Pipeline(
        "p", steps=[query("slow", "SELECT pg_sleep(60)", timeout=1)], sources={"pg": {"url": postgres_url}}
    )
    result = pipeline.run(state_dir=tmp_path)
    assert result.status == "failed"
    assert "timeout" in str(next(iter(result.failures)))
    active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%SELECT pg_sleep(60)' AND state = 'active'"
    for _ in range(200):
        if psql(postgres_url, active) == [(0,)]:
            break
        psql(postgres_url, "SELECT pg_sleep(0.05)")
    else:
        pytest.fail("the server works on for nobody")


def test_a_wrong_password_and_a_server_that_is_not_there_are_one_clear_error(tmp_path: Path, postgres_url: str) -> None:
    message = failure(tmp_path, postgres_url, query("q", "SELECT 1"), source={"password": "wrong-password"})
    assert message.startswith("SourceDown: source 'pg' (postgresql://app:***@/postgres")
    assert "password authentication failed" in message
    assert "wrong-password" not in message
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"postgresql://app:pass-word@127.0.0.1:{free.getsockname()[1]}/db"
        message = failure(tmp_path, url, query("q", "SELECT 1"))
    assert message.startswith(f"SourceDown: source 'pg' ({url.replace('pass-word', '***')}) can't be reached: ")


def test_the_password_comes_from_the_environment_and_is_never_shown_or_kept(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _, rest = postgres_url.partition("@")
    password = url.rpartition(":")[2]
    monkeypatch.setenv("PF_TEST_PASSWORD", password.replace("%2F", "/"))
    monkeypatch.setenv("PF_TEST_URL", postgres_url)
    plain = f"postgresql://app@{rest}"
    source = {"password": "${env.PF_TEST_PASSWORD}"}
    sql = "SELECT {text} || current_user AS who"
    both = {"url": "${env.PF_TEST_URL}"}
    for executor in ("threads", "processes"):
        for given, extra in ((plain, source), (both["url"], {})):
            step = query("q", sql, params={"text": "I am "})
            assert outputs(tmp_path, given, step, source=extra, executor=executor)["q"] == [{"who": "I am app"}]
            bad = query("q", "SELECT error {text}", params={"text": "x"})
            message = failure(tmp_path, given, bad, source=extra, executor=executor)
            assert "LINE 1: SELECT error $1\n                     ^" in message
            assert "/postgres?host=" in message
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert texts
    for form in (password, password.replace("%2F", "/")):
        assert not any(form.encode() in text for text in texts)


def test_what_the_database_says_is_told_with_its_place(tmp_path: Path, postgres_url: str) -> None:
    message = failure(tmp_path, postgres_url, query("q", "SELECT nothing FORM sales WHERE a = {a}", params={"a": 1}))
    assert message.startswith("QueryFailed: source 'pg'")
    assert 'syntax error at or near "sales"' in message
    assert "LINE 1" in message


def test_two_columns_of_one_name_are_refused(tmp_path: Path, postgres_url: str) -> None:
    assert "two columns are named 'a': give one an alias" in failure(
        tmp_path, postgres_url, query("q", "SELECT 1 AS a, 2 AS a")
    )


# -- Valkey ----------------------------------------------------------------------------------------------------


def command(name: str, *words: Any, **keys: Any) -> dict[str, Any]:
    return {"type": "query", "name": name, "source": "pg", "command": list(words), **keys}


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_commands_go_to_valkey_and_no_value_adds_to_them(tmp_path: Path, valkey_url: str, executor: str) -> None:
    key = f"k-{os.getpid()}-{executor}"
    evil = "x\r\nFLUSHALL\r\n 'quoted' {x}"
    found = outputs(
        tmp_path, valkey_url,
        command("put", "SET", f"{key}:{{id}}", "{text}", params={"id": 7, "text": evil}),
        query("get", f"GET {key}:7"),
        command("many", "RPUSH", f"{key}-list", "{rows}", params={"rows": ["a", "b", 3]}),
        command("list", "LRANGE", f"{key}-list", 0, -1),
        command("hash", "HSET", f"{key}-hash", "field", "{many}"),
        command("fields", "HGETALL", f"{key}-hash"),
        command("absent", "GET", f"{key}-no"),
        executor=executor, workers=1,
    )  # fmt: skip
    assert found == {
        "put": True, "get": evil, "many": 3, "list": ["a", "b", "3"], "hash": 1, "fields": {"field": "3"}, "absent": None,
    }  # fmt: skip


def test_what_valkey_refuses_and_one_that_is_not_there_are_told(tmp_path: Path, valkey_url: str) -> None:
    message = failure(tmp_path, valkey_url, command("q", "LPOP", "k", "no number"))
    assert message.startswith("QueryFailed: source 'pg' (unix://:***@")
    assert "argument 1 of the command is null" in failure(
        tmp_path, valkey_url, command("q", "GET", "{a}", params={"a": None})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://:pass-word@127.0.0.1:{free.getsockname()[1]}/0"
        message = failure(tmp_path, url, command("q", "GET", "k"))
    assert message.startswith(f"SourceDown: source 'pg' ({url.replace('pass-word', '***')}) can't be reached: ")


def test_a_command_that_takes_too_long_is_given_up(tmp_path: Path, valkey_url: str) -> None:
    message = failure(tmp_path, valkey_url, command("q", "BLPOP", f"never-{os.getpid()}", 30), source={"timeout": 0.3})
    assert message.endswith("gave no answer within 0.3 s")
