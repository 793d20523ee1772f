"""Runtime: what steps of converted pipelines call in a worker, where procflow's own constructs mean something else.

Converted files name these functions as ``procflow.dialects.runtime:holds`` and so on. Nothing here knows of steps, files or
positions, and nothing heavy is imported: workers load this.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from procflow.errors import ProcflowError

__all__ = [
    "ConvertedStepError",
    "batches",
    "collected",
    "constant",
    "constants",
    "fails",
    "holds",
    "judged",
    "last",
    "last_item",
    "loop_items",
    "loop_output",
    "merged",
    "negated",
    "nested",
    "nothing",
    "present",
    "required",
]

log = logging.getLogger("procflow.dialects")


class ConvertedStepError(ProcflowError):
    """A converted step can't do what the foreign file says with the values it got."""


def nothing(*_: Any, **__: Any) -> None:
    """None, whatever it is given."""


def constant(value: Any = None) -> Any:
    """The value itself."""
    return value


def constants(**values: Any) -> dict[str, Any]:
    """The values by name."""
    return values


def nested(**values: Any) -> dict[str, Any]:
    """The values by name, as one value."""
    return values


def present(there: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """The values by name without those of steps that were skipped: ``there[name]`` is false for them."""
    return {name: value for name, value in values.items() if there.get(name, True)}


def required(**there: Any) -> None:
    """Nothing, where all steps ran that make what the pipeline promises; raises ``ConvertedStepError`` otherwise."""
    absent = [name for name, ran in there.items() if not ran]
    if absent:
        raise ConvertedStepError(f"the pipeline promises {', '.join(absent)}, and the step that makes it was skipped")


def last(members: Mapping[str, Any]) -> Any:
    """The value of the last member that succeeded; a merge."""
    from procflow.attempt import FailedMember

    found = [value for value in members.values() if not isinstance(value, FailedMember)]
    return found[-1] if found else None


# -- conditions of data pipelines ----------------------------------------------------------------------------------------


def holds(found: Any, operator: str, value: Any = None, path: str = "") -> bool:
    """Whether the condition holds for what ``path`` (``b.0.c``) leads to in ``found``; anything missing is None.

    An unknown operator, and values that the operator can't compare, are False and logged.
    """
    for part in path.split(".") if path else ():
        found = _part(found, part)
    judge = OPERATORS.get(operator)
    if judge is None:
        log.warning("unknown operator %r: the condition does not hold", operator)
        return False
    try:
        return bool(judge(found, value))
    except Exception as error:
        log.warning("%r %s %r can't be told (%s): the condition does not hold", found, operator, value, error)
        return False


def fails(found: Any, operator: str, value: Any = None, path: str = "") -> bool:
    """Whether the condition does not hold."""
    return not holds(found, operator, value, path)


def negated(value: bool) -> bool:
    """The other one of true and false."""
    return not value


def _part(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, (list, tuple)) and part.isdecimal():
        return value[int(part)] if int(part) < len(value) else None
    return None


def _contains(found: Any, value: Any) -> bool:
    """Without regard to case: a text as a part of a text, a whole item of a list; a list asks for any of its members."""
    if isinstance(value, (list, tuple)):
        return any(_contains(found, one) for one in value)
    if found is None:
        return False
    if isinstance(found, (list, tuple, set, frozenset)):
        return _folded(value) in [_folded(item) for item in found]
    return str(_folded(value)) in str(_folded(found))


def _folded(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _is_empty(found: Any, _: Any) -> bool:
    return not found if not hasattr(found, "__len__") else len(found) == 0


def _number(compare: Callable[[float, float], bool]) -> Callable[[Any, Any], bool]:
    return lambda found, value: compare(float(found), float(value))


OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "equals": lambda found, value: found == value,
    "not_equals": lambda found, value: found != value,
    "contains": _contains,
    "not_contains": lambda found, value: not _contains(found, value),
    "in": lambda found, value: isinstance(value, (list, tuple)) and found in value,
    "not_in": lambda found, value: not isinstance(value, (list, tuple)) or found not in value,
    "gt": _number(lambda a, b: a > b),
    "gte": _number(lambda a, b: a >= b),
    "lt": _number(lambda a, b: a < b),
    "lte": _number(lambda a, b: a <= b),
    "is_empty": _is_empty,
    "is_not_empty": lambda found, value: not _is_empty(found, value),
}
"""The operators of ``run_if``, ``skip_if`` and ``conditional``: what was found, the value it is held against."""


# -- workflows of steps by id ------------------------------------------------------------------------------------------


def judged(expression: str, values: Mapping[str, Any]) -> bool:
    """Whether an expression over values holds, by the rules of ``when``; where it can't be told it does not, and that is logged."""
    from procflow.compiling.condition import ConditionError, parse
    from procflow.compiling.template import ReferenceFailed

    try:
        return parse(expression).evaluate(values.__getitem__)
    except (ConditionError, ReferenceFailed) as error:
        log.warning("%s: the condition does not hold", error)
        return False


def loop_items(items: Any, most: int | None = None) -> list[dict[str, Any]]:
    """For each item what the body of a loop reads as ``${loop.item}``, ``${loop.index}``, ``${loop.total}`` and so on.

    Of more than ``most`` items the rest is left out, and that is logged. Raises ``ConvertedStepError`` for what is no list.
    """
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Sequence):
        raise ConvertedStepError(f"a loop goes over a list, not over a value of type {type(items).__name__}")
    listed = list(items)
    if most is not None and len(listed) > most:
        log.warning("max_iterations: %d of %d items are left out", len(listed) - most, len(listed))
        listed = listed[:most]
    total = len(listed)
    return [
        {"item": item, "index": i, "total": total, "is_first": i == 0, "is_last": i == total - 1}
        for i, item in enumerate(listed)
    ]


def loop_output(results: Sequence[Any]) -> dict[str, Any]:
    """What a loop is worth: ``iterations`` and ``total_count``; a merge of a map."""
    return {"iterations": list(results), "total_count": len(results)}


# -- content pipelines -------------------------------------------------------------------------------------------------


def collected(results: Mapping[str, Any], about: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results of a group's successful members with what is known of each: step_index, step_type, model."""
    return [{**facts, "result": results[name]} for name, facts in about.items() if name in results]


def merged(results: Any, strategy: str, score: Any = None) -> Any:
    """The results of a group as one value, by a strategy; a list as ``collected`` makes it stands for its results.

    Raises ``ConvertedStepError`` for what is no list of results.
    """
    from procflow.steps import merge
    from procflow.steps.combine import combine

    if not isinstance(results, (list, tuple)):
        raise ConvertedStepError(f"results to merge are a list, not a value of type {type(results).__name__}")
    values = [row["result"] if _is_record(row) else row for row in results]
    members = [(f"item {i}", value) for i, value in enumerate(values)]
    if strategy == "best_quality":
        return merge.best_quality(members, score)
    if not members or strategy == "collect_all":
        return values
    if strategy in ("first_success", "last"):
        return values[0 if strategy == "first_success" else -1]
    return combine(values, [name for name, _ in members])


def _is_record(row: Any) -> bool:
    return isinstance(row, Mapping) and row.keys() == {"step_index", "step_type", "model", "result"}


def last_item(results: Sequence[Any]) -> Any:
    """The last result of a map that succeeded; a merge."""
    return last({str(i): result for i, result in enumerate(results)})


def batches(value: Any, size: int) -> list[Any]:
    """A value in consecutive parts of at most ``size`` members, in its own type; one part of an empty value is none."""
    from procflow.steps.split import split

    count = len(value)
    if count == 0:
        return []
    if not isinstance(value, (list, tuple, str, bytes, range)):
        return split(value, "chunks", -(-count // size))
    return [value[at : at + size] for at in range(0, count, size)]
