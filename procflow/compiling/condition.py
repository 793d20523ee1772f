"""Condition: the text of ``when``, parsed once and judged without ever being executed.

Comparisons, ``and``, ``or``, ``not``, ``in``, ``is None``, ``len(x)``, constants, lists of them, and names with paths
(``summary.count > 3``, ``rows.0.price``, ``rows[0]['price']``, ``${fetch-sales.count}``). The text is read by ``ast``
and walked; everything else is refused. Pure: no clock, no files, no environment.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from procflow.call import Lookup
from procflow.compiling.template import TemplateError, follow, parse_reference
from procflow.errors import ProcflowError
from procflow.passive import passive

__all__ = ["Condition", "ConditionError", "parse"]

MAX_LENGTH = 1000
MAX_DEPTH = 40

Values = Callable[[str], Any]
_Judge = Callable[[Values], Any]

_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_WORDS = frozenset({"and", "or", "not", "in", "is", "len", "True", "False", "None", *_CONSTANTS})
_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.In: ("in", lambda a, b: a in b),
    ast.NotIn: ("not in", lambda a, b: a not in b),
}
# A string, a reference, or a dotted name; what is found first wins, so that nothing inside a string is touched.
_TOKEN = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<ref>\$\{[^}]*\}?)|(?P<name>(?<![\w.\])])[^\W\d]\w*(?:\.\w+)*)""",
    re.DOTALL,
)
_SPACE = str.maketrans("\n\r\t\f\v", "     ")


class ConditionError(ProcflowError):
    """A condition can't be read, or can't be judged with the values it got; ``column`` counts from 1, 0 if unknown."""

    def __init__(self, message: str, column: int = 0) -> None:
        super().__init__(message, column)
        self.message = message
        self.column = column

    def __str__(self) -> str:
        return self.message


@passive(frozen=True, slots=True)
class Condition:
    """A condition that was read. ``lookups`` are the values it looks at, in order; ``names`` their first parts."""

    text: str
    lookups: tuple[Lookup, ...]
    spans: tuple[tuple[int, int, Lookup], ...]
    judge: _Judge

    @property
    def names(self) -> frozenset[str]:
        """Names of the values that judging it may ask for."""
        return frozenset(lookup.name for lookup in self.lookups)

    def evaluate(self, values: Values) -> bool:
        """Whether it holds; ``values`` gives the value of a name, and is asked only for what decides.

        Raises ``ConditionError`` where values can't be compared, ``ReferenceFailed`` where a path leads nowhere.
        """
        return _truth(self.judge(values), self.text, 1)

    def replace(self, fn: Callable[[Lookup], Lookup]) -> str:
        """The text with each reference (name and dotted path, not subscripts) replaced by another."""
        text, at = "", 0
        for start, end, lookup in self.spans:
            text += self.text[at:start] + str(fn(lookup))
            at = end
        return text + self.text[at:]


@lru_cache(maxsize=512)
def parse(text: str) -> Condition:
    """Read a condition. Raises ``ConditionError`` with a column."""
    if len(text) > MAX_LENGTH:
        raise ConditionError(f"a condition has at most {MAX_LENGTH} characters, this one {len(text)}", MAX_LENGTH)
    if not text.strip():
        raise ConditionError("the condition is empty", 1)
    indent = len(text) - len(text.lstrip())
    plain, spans = _marked(text)
    try:
        tree = ast.parse(plain.strip(), mode="eval").body
    except SyntaxError as exc:
        column = (exc.offset or 1) + indent
        raise ConditionError(f"{_short(text)} can't be read at column {column}: {exc.msg}", column) from None
    except (ValueError, MemoryError, RecursionError, Warning) as exc:
        raise ConditionError(f"{_short(text)} can't be read: {exc}", 1) from None
    reader = _Reader(text, plain.strip(), indent, {start - indent: lookup for start, _, lookup in spans})
    judge = reader.read(tree, 0)
    return Condition(text, tuple(reader.found), tuple(spans), judge)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _marked(text: str) -> tuple[str, list[tuple[int, int, Lookup]]]:
    """The text with every reference and name replaced by as many underscores, which Python can read; and where they were."""
    spans: list[tuple[int, int, Lookup]] = []

    def mark(found: re.Match[str]) -> str:
        column = found.start() + 1
        if found["string"] is not None:
            if "${" in found["string"]:
                raise ConditionError("a reference stands without quotes around it: write ${name} == 'x'", column)
            return found["string"]
        if found["ref"] is None and found["name"] in _WORDS:
            return found["name"]
        if found["ref"] is not None and not found["ref"].endswith("}"):
            raise ConditionError("${ has no closing }", column)
        inner = found["ref"][2:-1] if found["ref"] is not None else found["name"]
        try:
            lookup = parse_reference(inner)
        except TemplateError as exc:
            raise ConditionError(str(exc), column) from None
        spans.append((found.start(), found.end(), lookup))
        return "_" * len(found[0])

    # Line ends inside parentheses or not: a condition is one expression.
    return _TOKEN.sub(mark, text).translate(_SPACE), spans


class _Reader:
    """Turns the syntax tree into functions of the values, refusing all that is not listed."""

    def __init__(self, text: str, plain: str, indent: int, names: dict[int, Lookup]) -> None:
        self.text = text
        self.plain = plain.encode()
        self.indent = indent
        self.names = names
        self.found: list[Lookup] = []

    def column(self, node: ast.expr) -> int:
        """Column in the user's text, from 1; ast counts bytes."""
        return len(self.plain[: node.col_offset].decode(errors="replace")) + self.indent + 1

    def refuse(self, node: ast.expr, what: str) -> ConditionError:
        column = self.column(node)
        return ConditionError(f"{_short(self.text)}, column {column}: {what}", column)

    def read(self, node: ast.expr, depth: int) -> _Judge:
        """The function that gives the node's value."""
        if depth > MAX_DEPTH:
            raise self.refuse(node, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, ast.BoolOp):
            return self.bool_op(node, depth)
        if isinstance(node, ast.UnaryOp):
            return self.unary(node, depth)
        if isinstance(node, ast.Compare):
            return self.compare(node, depth)
        if isinstance(node, ast.Call):
            return self.length(node, depth)
        if isinstance(node, (ast.Name, ast.Subscript, ast.Attribute)):
            return self.lookup(node)
        value = self.constant(node, depth)
        return lambda values: value

    def bool_op(self, node: ast.BoolOp, depth: int) -> _Judge:
        members = [(self.read(member, depth + 1), self.column(member)) for member in node.values]
        text = self.text
        if isinstance(node.op, ast.And):
            return lambda values: all(_truth(judge(values), text, column) for judge, column in members)
        return lambda values: any(_truth(judge(values), text, column) for judge, column in members)

    def unary(self, node: ast.UnaryOp, depth: int) -> _Judge:
        if not isinstance(node.op, ast.Not):
            value = self.constant(node, depth)
            return lambda values: value
        judge, text, column = self.read(node.operand, depth + 1), self.text, self.column(node.operand)
        return lambda values: not _truth(judge(values), text, column)

    def compare(self, node: ast.Compare, depth: int) -> _Judge:
        operands = [self.read(member, depth + 1) for member in (node.left, *node.comparators)]
        column = self.column(node)
        steps: list[tuple[str, Callable[[Any, Any], Any]]] = []
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.Is, ast.IsNot)):
                if not self._is_none(right):
                    raise self.refuse(right, "'is' goes with None only; write ==")
                steps.append(("is", operator.is_) if isinstance(op, ast.Is) else ("is not", operator.is_not))
            else:
                steps.append(_COMPARE[type(op)])
        text = self.text

        def judge(values: Values) -> bool:
            left = operands[0](values)
            for (sign, compare), operand in zip(steps, operands[1:], strict=True):
                right = operand(values)
                if not _compared(sign, compare, left, right, text, column):
                    return False
                left = right
            return True

        return judge

    def _is_none(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return _CONSTANTS.get(node.id, 0) is None
        return isinstance(node, ast.Constant) and node.value is None

    def length(self, node: ast.Call, depth: int) -> _Judge:
        if not isinstance(node.func, ast.Name) or node.func.id != "len" or node.keywords or len(node.args) != 1:
            raise self.refuse(node, "only len(x) can be called")
        judge, text, column = self.read(node.args[0], depth + 1), self.text, self.column(node)

        def length(values: Values) -> int:
            value = judge(values)
            try:
                return len(value)
            except TypeError:
                raise ConditionError(f"{_short(text)}: len() of {_a(value)} has no meaning", column) from None

        return length

    def lookup(self, node: ast.Name | ast.Subscript | ast.Attribute) -> _Judge:
        path: list[str | int] = []
        at: ast.expr = node
        while isinstance(at, (ast.Subscript, ast.Attribute)):
            part = at.attr if isinstance(at, ast.Attribute) else self.constant(at.slice, 0)
            if isinstance(part, bool) or not isinstance(part, (str, int)):
                raise self.refuse(at, "a subscript is a whole number or a text")
            path.append(part)
            at = at.value
        if isinstance(at, ast.Name) and at is node and at.id in _CONSTANTS:
            value = _CONSTANTS[at.id]
            return lambda values: value
        named = self.names.get(self.column(at) - 1 - self.indent) if isinstance(at, ast.Name) else None
        if named is None:
            raise self.refuse(at, "a path starts with a name")
        whole = Lookup(named.name, (*named.path, *reversed(path)))
        self.found.append(whole)
        return lambda values: follow(values(whole.name), whole.path, whole) if whole.path else values(whole.name)

    def constant(self, node: ast.expr, depth: int) -> Any:
        """The value of a constant or of a list of them."""
        if depth > MAX_DEPTH:
            raise self.refuse(node, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, ast.Constant) and (node.value is None or type(node.value) in (str, int, float, bool)):
            return node.value
        if isinstance(node, ast.Name) and node.id in _CONSTANTS:
            return _CONSTANTS[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value = self.constant(node.operand, depth + 1)
            if type(value) in (int, float):
                return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, (ast.List, ast.Tuple)):
            members = [self.constant(member, depth + 1) for member in node.elts]
            return members if isinstance(node, ast.List) else tuple(members)
        raise self.refuse(node, _REFUSED.get(type(node), "only comparisons, and, or, not, in, is None and len(x)"))


_REFUSED: dict[type[ast.expr], str] = {
    ast.BinOp: "arithmetic is not done here; a name with a dash is written ${the-name}",
    ast.Call: "only len(x) can be called",
    ast.JoinedStr: "write the text without f",
    ast.Name: "a list here holds constants only",
}


def _a(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _truth(value: Any, text: str, column: int) -> bool:
    if value is True or value is False:
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("false", "true", "no", "yes", "off", "on", "0", "1"):
        # The text 'false' would count as true.
        raise ConditionError(
            f"{_short(text)}: {value!r} is text, not true or false; compare it, as in x == 'true'", column
        )
    try:
        return bool(value)
    except Exception as exc:
        raise ConditionError(f"{_short(text)}: {_a(value)} is neither true nor false ({exc})", column) from None


def _compared(sign: str, compare: Callable[[Any, Any], Any], left: Any, right: Any, text: str, column: int) -> bool:
    unlike = f"{_short(text)}: can't compare {_a(left)} with {_a(right)} by {sign}"
    texts = isinstance(left, str) + isinstance(right, str)
    if sign in ("==", "!=") and texts == 1 and _is_number(left) + _is_number(right) == 1:
        # Python says they differ, and a step is skipped for ever.
        raise ConditionError(f"{unlike}: one is text, the other a number", column)
    try:
        return bool(compare(left, right))
    except TypeError:
        raise ConditionError(unlike, column) from None
    except Exception as exc:
        raise ConditionError(f"{unlike} ({type(exc).__name__}: {exc})", column) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
