"""Node functions: what the nodes of a ``nodes``/``edges`` graph compute, called in a worker by converted pipelines.

Each takes ``inputs``, the values that arrived in the order of the edges, and the keys of the node's data by name; those that judge
or compute take ``seen``: the values of nodes and variables that the expression names. The shapes of results are those of the
format. Nothing here knows of steps, files or positions, and nothing heavy is imported.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from procflow.dialects.expressions import ExpressionError, field, read
from procflow.dialects.runtime import ConvertedStepError

__all__ = [
    "cache_get", "cache_set", "caught", "choose", "chunk", "compact", "condition", "delay", "expression", "extract", "filtered",
    "find", "first", "flat_map", "gathered", "group_by", "join", "mapped", "number_range", "operation", "partition", "reduced",
    "reverse", "sample", "slice_of", "sort", "text_operation", "transpose", "tried", "unique", "value_of", "won", "zipped",
]  # fmt: skip

Inputs = Sequence[Any]
Seen = Mapping[str, Mapping[str, Any]]


def first(inputs: Inputs = ()) -> Any:
    """The first value that arrived; None where none did."""
    return inputs[0] if inputs else None


def value_of(value: Any, inputs: Inputs = ()) -> Any:
    """A constant, or a value read elsewhere; ``inputs`` only say when."""
    return value


def _one(inputs: Inputs, what: str) -> Any:
    if not inputs:
        raise ConvertedStepError(f"{what} has no input")
    return inputs[0]


def _list(inputs: Inputs, what: str) -> list[Any]:
    value = _one(inputs, what)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ConvertedStepError(f"{what} works on a list, not on a value of type {type(value).__name__}")
    return list(value)


def _names(inputs: Inputs, seen: Seen | None) -> dict[str, Any]:
    names: dict[str, Any] = {"inputs": list(inputs), **(seen or {})}
    if inputs:
        names["input"] = inputs[0]
    return names


def _each(text: str, items: list[Any], seen: Seen | None) -> list[Any]:
    found, names = read(text), _names((items,), seen)
    return [found.value({**names, "item": item, "input": item, "index": i}) for i, item in enumerate(items)]


# -- numbers, texts, decisions -----------------------------------------------------------------------------------------


def operation(op: str, inputs: Inputs = ()) -> Any:
    """Two numbers by ``add``, ``subtract``, ``multiply`` or ``divide``."""
    if len(inputs) != 2:
        raise ConvertedStepError(f"{op} takes two numbers, and {len(inputs)} values arrived")
    for value in inputs:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConvertedStepError(f"{op} takes numbers, not a value of type {type(value).__name__}")
    a, b = inputs
    if op == "divide" and b == 0:
        raise ConvertedStepError(f"{a} can't be divided by 0")
    return a + b if op == "add" else a - b if op == "subtract" else a * b if op == "multiply" else a / b


def text_operation(text_op: str, inputs: Inputs = (), separator: str = "", repeat_n: int = 1) -> str:
    """A text in another case, several joined, or one repeated."""
    texts = [value if isinstance(value, str) else str(value) for value in inputs]
    if text_op == "concat":
        return separator.join(texts)
    text = str(_one(texts, text_op))
    if text_op == "repeat":
        return text * repeat_n
    if text_op == "camelcase":
        words = text.replace("_", " ").replace("-", " ").split()
        return "".join(word.lower() if i == 0 else word.capitalize() for i, word in enumerate(words))
    cases: dict[str, Callable[[], str]] = {
        "uppercase": text.upper, "lowercase": text.lower, "titlecase": text.title, "inversecase": text.swapcase,
    }  # fmt: skip
    return cases[text_op]()


def expression(expression: str, inputs: Inputs = (), seen: Seen | None = None) -> Any:
    """The value of an expression."""
    return read(expression).value(_names(inputs, seen))


def condition(
    condition: str, inputs: Inputs = (), seen: Seen | None = None, true_path: str = "", false_path: str = ""
) -> dict[str, Any]:
    """Whether the condition holds for what arrived, with that and the path to take."""
    met = bool(read(condition).value(_names(inputs, seen)))
    return {
        "value": first(inputs), "condition_met": met, "condition": condition, "path": "true" if met else "false",
        "true_path": true_path, "false_path": false_path,
    }  # fmt: skip


def choose(cases: Sequence[Mapping[str, Any]], inputs: Inputs = (), seen: Seen | None = None) -> dict[str, Any]:
    """The first case that holds (``when`` is an expression, ``equals`` a value), else the default, which has neither."""
    value, names = first(inputs), _names(inputs, seen)
    for index, case in enumerate(cases):
        if "when" in case:
            holds = bool(read(case["when"]).value(names))
        else:
            holds = "equals" not in case or value == case["equals"] or str(value) == str(case["equals"])
        if holds:
            shown = case.get("when", case.get("equals"))
            return {
                "value": value, "matched": "when" in case or "equals" in case, "case": shown,
                "output_path": case["output_path"], "case_index": index,
            }  # fmt: skip
    raise ConvertedStepError(f"no case holds for {value!r:.80}, and there is no default")


# -- lists -------------------------------------------------------------------------------------------------------------


def filtered(condition: str, inputs: Inputs = (), seen: Seen | None = None) -> dict[str, Any]:
    """The items for which the condition holds."""
    items = _list(inputs, "filter")
    kept = [item for item, holds in zip(items, _each(condition, items, seen), strict=True) if holds]
    return {"filtered": kept, "input_count": len(items), "output_count": len(kept)}


def _mapped(items: list[Any], expression: str, path: str, seen: Seen | None) -> list[Any]:
    return _each(expression, items, seen) if expression else [_path(item, path) for item in items]


def mapped(expression: str = "", field: str = "", inputs: Inputs = (), seen: Seen | None = None) -> dict[str, Any]:
    """Each item by an expression, or one field of each."""
    items = _list(inputs, "map")
    results = _mapped(items, expression, field, seen)
    return {"results": results, "input_count": len(items), "output_count": len(results)}


def flat_map(expression: str = "", field: str = "", inputs: Inputs = (), seen: Seen | None = None) -> list[Any]:
    """As ``mapped``, with lists among the results opened."""
    results = _mapped(_list(inputs, "flat_map"), expression, field, seen)
    return [one for result in results for one in (result if isinstance(result, (list, tuple)) else [result])]


def reduced(expression: str, initial_value: Any = 0, inputs: Inputs = (), seen: Seen | None = None) -> Any:
    """One value of all items: ``acc`` (or ``accumulator``) so far and ``item``."""
    items, found = _list(inputs, "reduce"), read(expression)
    names, so_far = _names(inputs, seen), initial_value
    for i, item in enumerate(items):
        so_far = found.value({**names, "item": item, "index": i, "acc": so_far, "accumulator": so_far})
    return so_far


def slice_of(inputs: Inputs = (), start: int = 0, end: int | None = None, length: int | None = None) -> list[Any]:
    """Items from ``start`` to before ``end``, or ``length`` of them; negative numbers count from the end."""
    items = _list(inputs, "slice")
    begin = max(0, start + len(items)) if start < 0 else start
    return items[begin : begin + length if length is not None else end]


def sort(inputs: Inputs = (), field: str = "", order: str = "asc") -> list[Any]:
    """The items in order, by a field or by themselves; items that are equal keep their order."""
    items = _list(inputs, "sort")
    try:
        return sorted(items, key=lambda item: _path(item, field), reverse=order == "desc")
    except TypeError as error:
        raise ConvertedStepError(f"the items can't be put in order: {error}") from None


def find(condition: str, inputs: Inputs = (), seen: Seen | None = None, return_index: bool = False) -> Any:
    """The first item for which the condition holds, or its index; None (-1) where there is none."""
    items, found = _list(inputs, "find"), read(condition)
    names = _names(inputs, seen)
    for i, item in enumerate(items):
        if found.value({**names, "item": item, "input": item, "index": i}):
            return i if return_index else item
    return -1 if return_index else None


_AGGREGATES: dict[str, Callable[[list[Any]], Any]] = {
    "count": len, "sum": sum, "avg": lambda values: sum(values) / len(values), "min": min, "max": max, "values": list,
}  # fmt: skip


def group_by(field: str, inputs: Inputs = (), aggregate: str = "", value_field: str = "") -> dict[str, Any]:
    """The items by a field, in order of first appearance; or an aggregate of ``value_field`` for each."""
    groups: dict[str, list[Any]] = {}
    for item in _list(inputs, "group_by"):
        groups.setdefault(str(_path(item, field)), []).append(item)
    if not aggregate:
        return groups
    made = _AGGREGATES[aggregate]
    return {key: made([_path(item, value_field) for item in items]) for key, items in groups.items()}


def unique(inputs: Inputs = (), field: str = "") -> list[Any]:
    """The first of the items that are equal, or equal in a field."""
    found: list[Any] = []
    seen: list[Any] = []
    known: set[Any] = set()
    for item in _list(inputs, "unique"):
        key = _path(item, field)
        try:
            is_new = key not in known
            known.add(key)
        except TypeError:  # a list or a mapping: compared one by one
            is_new = key not in seen
            seen.append(key)
        if is_new:
            found.append(item)
    return found


def chunk(size: int, inputs: Inputs = ()) -> list[list[Any]]:
    """The items in parts of ``size``; the last one may be shorter."""
    items = _list(inputs, "chunk")
    return [items[at : at + size] for at in range(0, len(items), size)]


def reverse(inputs: Inputs = ()) -> list[Any]:
    """The items from last to first."""
    return _list(inputs, "reverse")[::-1]


def partition(condition: str, inputs: Inputs = (), seen: Seen | None = None) -> dict[str, list[Any]]:
    """The items for which the condition holds, ``passed``, and the others, ``failed``."""
    items = _list(inputs, "partition")
    judged = _each(condition, items, seen)
    pairs = list(zip(items, judged, strict=True))
    return {"passed": [item for item, holds in pairs if holds], "failed": [item for item, holds in pairs if not holds]}


def zipped(
    inputs: Inputs = (),
    arrays: Sequence[Any] = (),
    fill_missing: Any = None,
    remove_empty: bool = False,
    fill: bool = False,
) -> list[list[Any]]:
    """Lists side by side: those that arrived, then ``arrays``; as long as the shortest, or with ``fill`` as the longest."""
    lists = [_list((value,), "zip") for value in (*inputs, *arrays)]
    rows = zip_longest(*lists, fillvalue=fill_missing) if fill else zip(*lists)  # noqa: B905 - the shortest is meant
    made = [list(row) for row in rows]
    return [row for row in made if all(value is not None for value in row)] if remove_empty else made


def sample(count: int, inputs: Inputs = (), method: str = "random", seed: str = "") -> list[Any]:
    """Some of the items: the first, the last, or any, which are the same ones in every run (``seed``)."""
    import random

    items = _list(inputs, "sample")
    if method == "random":
        return random.Random(seed).sample(items, min(count, len(items)))
    return items[:count] if method == "first" else items[max(0, len(items) - count) :]


def number_range(start: float, end: float, step: float = 1, inputs: Inputs = ()) -> dict[str, Any]:
    """Numbers from ``start`` to ``end``, which is one of them."""
    count = int((end - start) / step + 1e-9) + 1 if (end - start) / step >= 0 else 0
    numbers = [start + i * step for i in range(count)]
    return {"range": numbers, "count": count, "start": start, "end": end, "step": step}


def compact(inputs: Inputs = ()) -> list[Any]:
    """The items without those that are None, empty, or false; 0 stays."""
    return [item for item in _list(inputs, "compact") if item not in (None, "", [], {}) and item is not False]


def transpose(inputs: Inputs = ()) -> list[list[Any]]:
    """Rows as columns; raises where rows differ in length."""
    rows = [_list((row,), "transpose") for row in _list(inputs, "transpose")]
    if len({len(row) for row in rows}) > 1:
        raise ConvertedStepError("transpose works on rows of one length")
    return [list(column) for column in zip(*rows, strict=True)]


# -- fields, what arrives, control -------------------------------------------------------------------------------------


def _path(item: Any, path: str) -> Any:
    for key in path.split(".") if path else ():
        try:
            item = field(item, key if isinstance(item, Mapping) or not key.isdecimal() else int(key))
        except ExpressionError as error:
            raise ConvertedStepError(f"field {path!r}: {error}") from None
    return item


def extract(field: str = "", fields: Sequence[str] = (), inputs: Inputs = ()) -> dict[str, Any]:
    """One field of a mapping, or several by name."""
    value = _one(inputs, "extract")
    if field:
        return {"field": field, "value": _path(value, field)}
    return {"fields": list(fields), "value": {name: _path(value, name) for name in fields}}


def join(strategy: str, inputs: Inputs = ()) -> dict[str, Any]:
    """What arrived: all values, or the one that was first."""
    if strategy == "all":
        return {"strategy": strategy, "values": list(inputs), "count": len(inputs)}
    return {"strategy": strategy, "value": first(inputs), "count": 1}


def gathered(concurrency: int, inputs: Inputs = ()) -> dict[str, Any]:
    """The results of nodes that ran beside each other."""
    return {"results": list(inputs), "count": len(inputs), "concurrency": concurrency}


def tried(inputs: Inputs = ()) -> dict[str, Any]:
    """The value of a node that succeeded."""
    return {"value": first(inputs), "caught": False, "path": "success"}


def caught(value: Any, path: str, after: Any = None) -> dict[str, Any]:
    """The value in place of that of a node that failed; ``after`` is what that node read, so that both run or none does."""
    return {"value": value, "caught": True, "path": path}


def won(members: Mapping[str, Any]) -> Any:
    """The value that a branch of a race brings to its end; a merge. Raises ``ConvertedStepError`` where it led nowhere."""
    for name, value in members.items():
        if re.search(r"_branch_\d+_*_end$", name):
            return value
    raise ConvertedStepError("this branch ended before it reached the join")


def delay(seconds: float, inputs: Inputs = ()) -> Any:
    """What arrived, after a pause."""
    from procflow import step

    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        step.heartbeat()
        time.sleep(min(left, 1.0))
    return first(inputs)


def cache_set(inputs: Inputs = ()) -> dict[str, Any]:
    """What is kept under a key of the cache, and since when."""
    return {"value": first(inputs), "stored_at": time.time()}


def cache_get(kept: Mapping[str, Any] | None = None, ttl_s: float | None = None, inputs: Inputs = ()) -> Any:
    """What was kept; None where nothing was, or it is older than ``ttl_s``."""
    if kept is None or (ttl_s is not None and time.time() - float(kept["stored_at"]) > ttl_s):
        return None
    return kept["value"]
