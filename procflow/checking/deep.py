"""Deep: checks that import the user's functions and connect to the sources, for ``validate --deep``.

    graph ─ calls ─> child process (imports, signatures, pickling) ─ findings ─> problems with places
                 └─> sources: one harmless question each

Imports run in a child with a deadline, because a module may do anything when it is imported: crash, hang, or print. This file
decides nothing of what is allowed; it only tries what a run would do first.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from procflow.compiling.build import placed
from procflow.compiling.template import fill
from procflow.errors import Loc, Problem, ProcflowError
from procflow.graph import TaskGraph, TaskUnit, walk
from procflow.plaintext import shortened
from procflow.preflight import file_root
from procflow.units import duration_text
from procflow.working.perform import Values

__all__ = ["deep_check"]

IMPORT_S = 60.0
"""All imports of a pipeline together may take so long."""
_KEYS = {"merge": "merge", "split": "strategy", "reduce": "reduce"}
_FOLDS: dict[str, Any] = {"args": 2, "kwargs": []}


def deep_check(graph: TaskGraph, timeout_s: float = IMPORT_S) -> list[Problem]:
    """Every problem with functions and sources, in declared order."""
    units = [unit for unit in walk(graph.root, hooks=True) if isinstance(unit, TaskUnit)]
    problems = [*_functions(units, graph, timeout_s), *_sources(units)]
    return placed(dict.fromkeys(problems), graph.files)


# -- functions ---------------------------------------------------------------------------------------------------------


def _functions(units: list[TaskUnit], graph: TaskGraph, timeout_s: float) -> Iterator[Problem]:
    asked, places = [], []
    seen = set()
    for unit in units:
        for question, loc in _questions(unit, graph):
            # All steps of a file know its reducers.
            if (question["target"], loc) not in seen:
                seen.add((question["target"], loc))
                asked.append(question)
                places.append(loc)
    answers, ending = _ask(asked, timeout_s) if asked else ({}, "")
    for index, loc in enumerate(places):
        for message in answers.get(index, ()):
            yield Problem(message, loc)
    if ending:
        # The first without an answer is the one that was being imported.
        index = next(i for i in range(len(places)) if i not in answers)
        yield Problem(f"{asked[index]['target']}: {ending}", places[index])


def _questions(unit: TaskUnit, graph: TaskGraph) -> Iterator[tuple[dict[str, Any], Loc]]:
    call = unit.call
    for key, target in ((_KEYS.get(call.kind, "function"), call.function), ("score", call.options.get("score"))):
        if not isinstance(target, str) or ":" not in target:
            continue
        shape = {"args": len(call.args), "kwargs": list(call.kwargs)} if call.kind == "transform" else None
        shape = _FOLDS if call.kind == "reduce" else shape
        yield {"target": target, "folder": call.folder, "shape": shape}, (*unit.loc, key)
    for name, spec in call.state.items():
        if isinstance(spec.function, str):
            question = {"target": spec.function, "folder": call.folder, "shape": _FOLDS}
            yield question, (*file_root(unit, graph), "state", name)


def _ask(asked: list[dict[str, Any]], timeout_s: float) -> tuple[dict[int, list[str]], str]:
    """What a child found, by index of the question; and how it ended, where it did not get to the end."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "procflow.checking.child", str(writer)]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[writer],
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,
        )
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as answers, child:
        try:
            _, errors = child.communicate(json.dumps(asked).encode(), timeout_s)
            ending = _death(child.returncode, errors)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, 9)
            child.communicate(timeout=timeout_s)
            ending = f"importing it took longer than {duration_text(timeout_s)}, so this was given up"
        found = {}
        for line in answers.read().splitlines():
            with contextlib.suppress(ValueError):
                index, messages = json.loads(line)
                found[index] = messages
    return found, ending if len(found) < len(asked) else ""


def _death(code: int, errors: bytes) -> str:
    last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"importing it ended the whole process ({how})" + (f": {shortened(last)}" if last else "")


# -- sources -----------------------------------------------------------------------------------------------------------


def _sources(units: list[TaskUnit]) -> Iterator[Problem]:
    """Each source is asked once, where the first step names it."""
    seen: set[str] = set()
    for unit in units:
        spec = unit.call.options.get("source") if unit.call.kind == "query" else None
        if spec is None or repr(spec) in seen:
            continue
        seen.add(repr(spec))
        message = _reached(unit, spec)
        if message:
            yield Problem(message, (*unit.loc, "source"))


def _reached(unit: TaskUnit, spec: Any) -> str:
    """Why a source can't be asked; empty where it answers."""
    from procflow.sources.opened import Opened

    try:
        source = Opened(**fill(spec, Values({}, unit.call.constants)), folder=unit.call.folder, kept=False)
    except ProcflowError:
        # Its address comes from a value that only a run makes.
        return ""
    try:
        _greet(source)
    except (ProcflowError, ImportError, OSError) as error:
        return str(error)
    return ""


def _greet(source: Any) -> None:
    if source.kind == "sql":
        from procflow.sources import sql

        sql.run(source, ("SELECT 1",), (), "rows")
    elif source.kind == "duckdb":
        from procflow.sources import duck

        duck.run(source, ("SELECT 1",), (), "rows")
    elif source.kind == "redis":
        from procflow.sources import redis_commands

        redis_commands.run(source, ["PING"])
    elif source.kind == "mongodb":
        from procflow.sources import mongo

        mongo.ping(source)
    elif source.kind == "rest":
        from procflow.sources import web

        web.ping(source)
