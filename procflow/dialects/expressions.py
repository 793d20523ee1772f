"""Expressions: the small formulas of ``nodes``/``edges`` graphs (``input * 2``, ``item.age >= 18``, ``> 100``), never executed.

The text is read by ``ast``, checked against a list of what may stand in it, and walked. ``&&``, ``||``, ``!``, ``===`` and
``true``, ``false``, ``null`` are understood; a text that begins with a comparison is about ``input``. Workers load this: nothing
heavy is imported, and nothing here knows of steps or files.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from procflow.errors import ProcflowError

__all__ = ["Expression", "ExpressionError", "field", "read"]

MAX_LENGTH = 2000
MAX_DEPTH = 60
MAX_SIZE = 10_000_000
"""Most members or digits of what one operation may make."""

NAMES = frozenset({"input", "inputs", "item", "index", "acc", "accumulator", "variables", "node"})
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None, "undefined": None, "pi": math.pi}
_TOKEN = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<node>(?<![\w.])node\.[\w-]+)|(?P<sign>&&|\|\||!==|===|!(?!=))"""
)
_SIGNS = {"&&": " and ", "||": " or ", "!==": "!=", "===": "==", "!": " not "}
_COMPARISON = re.compile(r"\s*(===?|!==?|<=?|>=?)")


class ExpressionError(ProcflowError):
    """An expression can't be read, or has no value for what it was given."""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        _small(exponent * math.log2(abs(base)))
    return base**exponent


def _product(a: Any, b: Any) -> Any:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int):
            _small(len(one) * other)
    return a * b


def _rest(a: Any, b: Any) -> Any:
    if not isinstance(a, (int, float)):
        raise ExpressionError("% is for numbers")  # of a text it would be a format, of any width
    return a % b


def _sum(a: Any, b: Any) -> Any:
    """Numbers add; a text and something else are joined."""
    return _text(a) + _text(b) if isinstance(a, str) != isinstance(b, str) else a + b


def _small(size: float) -> None:
    if size > MAX_SIZE:
        raise ExpressionError(f"the result would have more than {MAX_SIZE:,} members or digits")


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: _sum, ast.Sub: operator.sub, ast.Mult: _product, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: _rest, ast.Pow: _power,
}  # fmt: skip
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": len, "length": len, "abs": abs, "min": min, "max": max, "sum": sum, "round": round, "floor": math.floor,
    "ceil": math.ceil, "sqrt": math.sqrt, "pow": _power, "str": _text, "int": int, "float": float, "bool": bool, "sorted": sorted,
    "upper": lambda text: _text(text).upper(), "lower": lambda text: _text(text).lower(),
    "trim": lambda text: _text(text).strip(), "contains": lambda whole, part: part in whole,
    "startsWith": lambda text, start: _text(text).startswith(start),
    "endsWith": lambda text, end: _text(text).endswith(end), "avg": lambda values: sum(values) / len(values),
    "isNull": lambda value: value is None, "coalesce": lambda *values: next((v for v in values if v is not None), None),
}  # fmt: skip
"""What an expression may call."""
_ALLOWED = (
    ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.IfExp,
    ast.List, ast.Tuple, ast.Dict, ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


class Expression:
    """An expression that was read: ``nodes`` and ``variables`` are the names of those it looks at."""

    def __init__(self, text: str, tree: ast.expr) -> None:
        self.text = text
        self._tree = tree
        self.nodes = tuple(dict.fromkeys(_members(tree, "node")))
        self.variables = tuple(dict.fromkeys(_members(tree, "variables")))

    def value(self, names: Mapping[str, Any]) -> Any:
        """Its value; raises ``ExpressionError`` with the text where there is none."""
        try:
            return _value(self._tree, names)
        except ExpressionError as error:
            raise ExpressionError(f"{self.text!r}: {error}") from None
        except Exception as error:
            raise ExpressionError(f"{self.text!r} has no value: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=512)
def read(text: str) -> Expression:
    """Read an expression; raises ``ExpressionError`` for what can't be read or may not stand in one."""
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    if not text.strip() or len(text) > MAX_LENGTH:
        raise ExpressionError("the expression is empty" if not text.strip() else f"more than {MAX_LENGTH} characters")
    plain = f"input {text}" if _COMPARISON.match(text) else text
    try:
        tree = ast.parse(_TOKEN.sub(_python, plain).strip(), mode="eval").body
        _check(tree, 0)
    except SyntaxError as error:
        raise ExpressionError(f"{shown} can't be read: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError, Warning) as error:
        raise ExpressionError(f"{shown} can't be read: {error}") from None
    except ExpressionError as error:
        raise ExpressionError(f"{shown}: {error}") from None
    return Expression(text, tree)


def _python(found: re.Match[str]) -> str:
    if found["node"] is not None:
        return f"node[{found['node'][5:]!r}]"  # an id may be a number, or have a dash
    return found["string"] if found["string"] is not None else _SIGNS[found["sign"]]


def _check(tree: ast.AST, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ExpressionError(f"nested deeper than {MAX_DEPTH} levels")
    if not isinstance(tree, _ALLOWED):
        raise ExpressionError(f"{type(tree).__name__} may not stand in an expression")
    if isinstance(tree, ast.Call):
        if not isinstance(tree.func, ast.Name) or tree.func.id not in FUNCTIONS or tree.keywords:
            raise ExpressionError(f"only these can be called: {', '.join(FUNCTIONS)}")
        for argument in tree.args:
            _check(argument, depth + 1)
        return
    if isinstance(tree, ast.Name) and tree.id not in NAMES and tree.id.lower() not in _CONSTANTS:
        raise ExpressionError(f"{tree.id!r} is not known here; known are {', '.join(sorted(NAMES))}")
    if isinstance(tree, ast.BinOp) and type(tree.op) not in _BINARY:
        raise ExpressionError(f"{type(tree.op).__name__} may not stand in an expression")
    for below in ast.iter_child_nodes(tree):
        _check(below, depth + 1)


def _members(tree: ast.expr, name: str) -> Iterator[str]:
    for at in ast.walk(tree):
        if isinstance(at, ast.Attribute) and isinstance(at.value, ast.Name) and at.value.id == name:
            yield at.attr
        elif (
            isinstance(at, ast.Subscript)
            and isinstance(at.slice, ast.Constant)
            and isinstance(at.value, ast.Name)
            and at.value.id == name
        ):
            yield str(at.slice.value)


def field(value: Any, key: Any) -> Any:
    """A member of a mapping or a list; ``value`` of something that has no members is that itself.

    Raises ``ExpressionError`` where there is no such member.
    """
    if isinstance(value, Mapping) and key in value:
        return value[key]
    if isinstance(value, (list, tuple, str)) and isinstance(key, int) and -len(value) <= key < len(value):
        return value[key]
    if key == "length" and isinstance(value, (list, tuple, str)):
        return len(value)
    if key == "value" and not isinstance(value, Mapping):
        return value
    there = f"; there are {', '.join(map(str, list(value)[:10]))}" if isinstance(value, Mapping) else ""
    raise ExpressionError(f"a value of type {type(value).__name__} has no {key!r}{there}")


def _value(tree: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(tree, ast.Constant):
        return tree.value
    if isinstance(tree, ast.Name):
        if tree.id in NAMES:
            if tree.id not in names:
                raise ExpressionError(f"there is no {tree.id!r} here")
            return names[tree.id]
        return _CONSTANTS[tree.id.lower()]
    if isinstance(tree, (ast.Attribute, ast.Subscript)):
        key = tree.attr if isinstance(tree, ast.Attribute) else _value(tree.slice, names)
        return field(_value(tree.value, names), key)
    if isinstance(tree, ast.BoolOp):
        stops = isinstance(tree.op, ast.Or)
        found: Any = not stops
        for member in tree.values:
            found = _value(member, names)
            if bool(found) == stops:
                break
        return found
    if isinstance(tree, ast.IfExp):
        return _value(tree.body if _value(tree.test, names) else tree.orelse, names)
    if isinstance(tree, (ast.List, ast.Tuple)):
        return [_value(member, names) for member in tree.elts]
    return _computed(tree, names)


def _computed(tree: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(tree, ast.BinOp):
        return _BINARY[type(tree.op)](_value(tree.left, names), _value(tree.right, names))
    if isinstance(tree, ast.UnaryOp):
        operand = _value(tree.operand, names)
        return not operand if isinstance(tree.op, ast.Not) else -operand if isinstance(tree.op, ast.USub) else +operand
    if isinstance(tree, ast.Compare):
        left = _value(tree.left, names)
        for sign, other in zip(tree.ops, tree.comparators, strict=True):
            right = _value(other, names)
            if not _COMPARE[type(sign)](left, right):
                return False
            left = right
        return True
    if isinstance(tree, ast.Dict):
        keys = [_value(key, names) for key in tree.keys if key is not None]
        return dict(zip(keys, (_value(value, names) for value in tree.values), strict=True))
    assert isinstance(tree, ast.Call)
    assert isinstance(tree.func, ast.Name)
    return FUNCTIONS[tree.func.id](*(_value(argument, names) for argument in tree.args))
