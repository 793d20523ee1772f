"""Fingerprints: what each task of a pipeline is made from, so that a resume knows which results still hold.

A fingerprint has named parts (code, inputs, params, options, when, kind, members), each a digest,
and says which of them changed. Timeouts, retries, limits, priorities, descriptions and the order of keys do not count,
neither does the id of the run: compile with ``RUN_ID`` in its place where ``mentions_run_id`` says so. This file reads
source files; it imports and runs nothing of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from procflow.call import StepCall
from procflow.canonical import ALGORITHM, Canonical, digest
from procflow.code_print import CodePrints
from procflow.graph import ScopeUnit, TaskUnit
from procflow.needs import Key, Need

__all__ = ["RUN_ID", "Fingerprint", "Fingerprints", "changes", "fingerprints"]

RUN_ID = "\0run.id\0"
"""Stands for the id of the run, which is another one in every run."""
SHORT = 16
"""Digits of a part's digest: enough to tell what changed; the whole has all of them."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """``digest`` names its algorithm; ``parts`` are short digests by name, only those that say something.

    ``opaque`` are types of values that can't be compared: such a task is never the same as before.
    """

    digest: str
    parts: Mapping[str, str] = field(default_factory=dict)
    opaque: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Of all tasks and blocks; ``mentions_run_id`` says whether a constant holds the text of the run's id."""

    by_key: Mapping[Key, Fingerprint]
    mentions_run_id: bool = False


def fingerprints(needs: Mapping[Key, Need], run_id: str = "") -> Fingerprints:
    """The fingerprint of everything in ``needs``."""
    code = CodePrints()
    found: dict[Key, Fingerprint] = {}
    mentions = False
    for key, need in needs.items():
        canonical = Canonical(code.callable, run_id)
        if isinstance(need.unit, TaskUnit):
            told = _task(need, need.unit.call, canonical, code)
        else:
            assert isinstance(need.unit, ScopeUnit)
            told = _block(need, need.unit)
        parts = {name: digest(canonical.of(value)) for name, value in told.items() if value not in (None, (), {})}
        whole = digest("".join(f"{name}={parts[name]};" for name in sorted(parts)).encode())
        found[key] = Fingerprint(
            f"{ALGORITHM}:{whole}", {name: part[:SHORT] for name, part in parts.items()}, tuple(canonical.opaque)
        )
        mentions = mentions or canonical.seen
    return Fingerprints(found, mentions)


def _task(need: Need, call: StepCall, canonical: Canonical, code: CodePrints) -> dict[str, Any]:
    params = dict(call.params)
    options = {name: _unplaced(value, call.folder) for name, value in call.options.items() if value is not None}
    return {
        "kind": (call.kind, call.outputs, call.item_name),
        "code": _code(call, canonical, code),
        "inputs": (
            _unplaced(call.args, call.folder),
            {name: tree for name, tree in call.kwargs.items() if name not in params},
            {name: tuple(makers) for name, makers in need.reads.items() if makers},
        ),
        "params": params,
        "options": options,
        "when": (call.when, dict(call.constants)) if call.when is not None else None,
    }


def _code(call: StepCall, canonical: Canonical, code: CodePrints) -> tuple[bytes, ...]:
    """The prints of the function, and of the score of a merge where that is a function."""
    score = call.options.get("score")
    functions = [call.function, score if isinstance(score, str) and ":" in score else None]
    return tuple(
        code.target(function, call.folder) if isinstance(function, str) else canonical.of(function)
        for function in functions
        if function is not None
    )


def _block(need: Need, unit: ScopeUnit) -> dict[str, Any]:
    """What a block makes of its members without a task of its own; the members have their own fingerprints."""
    return {"members": (need.members, unit.merge.strategy, unit.merge.output, unit.need, unit.kept)}


def _unplaced(value: Any, folder: str | None) -> Any:
    """A pipeline that was moved to another folder is the same."""
    return "\0folder\0" if folder is not None and isinstance(value, str) and value == folder else value


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Names of the parts that differ, the most telling first."""
    order = ("code", "params", "inputs", "options", "when", "kind", "members")
    return [name for name in dict.fromkeys((*order, *old, *new)) if old.get(name) != new.get(name)]
