"""Trees of source are built in several threads at once without harm."""

from __future__ import annotations

import ast
import threading

import pytest

from procflow.resuming.syntax import parse_module

SOURCE = "\n".join(
    f"def f{i}(a, b=(1, [2, {{3: 4}}])):\n    return [x for x in a if x and (b or not a)]" for i in range(60)
)


def test_threads_build_trees_at_once() -> None:
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                assert len(parse_module(SOURCE).body) == 60
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_what_is_no_python_is_a_syntax_error() -> None:
    with pytest.raises(SyntaxError):
        parse_module("def")


def test_an_interfering_thread_costs_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = ast.parse, []

    def parse(*args: object) -> ast.Module:
        calls.append(args)
        if len(calls) < 3:
            raise SystemError("AST constructor recursion depth mismatch")
        return real("x = 1")

    monkeypatch.setattr("ast.parse", parse)
    assert len(parse_module("x = 1").body) == 1
    assert len(calls) == 3
