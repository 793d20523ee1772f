"""Conditions: what they mean, what they refuse, and that nothing in them is ever run."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow.call import Lookup
from procflow.compiling.condition import MAX_LENGTH, ConditionError, parse
from procflow.compiling.template import ReferenceFailed

VALUES = {
    "summary": {"count": 5, "day": "mon", "none": None},
    "rows": [{"price": 2.5}, {"a b": 1}],
    "params": {"mode": "full", "flag": True},
    "fetch-sales": {"count": 0},
    "text": "false",
    "empty": [],
}


def holds(text: str) -> bool:
    return parse(text).evaluate(VALUES.__getitem__)


@pytest.mark.parametrize(
    "text",
    [
        "summary.count > 3",
        "1 < summary.count <= 5",
        "rows.0.price == 2.5",
        "rows[0]['price'] == 2.5",
        "rows[0].price == 2.5 and rows.0['price'] == 2.5",
        'rows[-1]["a b"] == 1',
        "params.mode == 'full'",
        "params.mode in ['full', 'half']",
        "params.mode not in ('a', 'b')",
        "params.flag",
        "params.flag == true and params.flag is not None",
        "summary.none is null",
        "summary.none is None",
        "not empty",
        "len(rows) == 2 and not len(empty)",
        "${summary.count} > 3",
        "${fetch-sales.count} == 0",
        "${rows}[1]['a b'] == 1",
        "summary.day != 'summary.count'",
        "summary.count == -5 or summary.count == +5",
        "(summary.count > 3\n and\tparams.flag)",
        "  summary.count > 3  ",
        "'mon' == summary.day",
        "'é' != summary.day and summary.count == 5",
        "true",
        "not false",
        "[] == empty",
    ],
)
def test_conditions_that_hold(text: str) -> None:
    assert holds(text) is True


@pytest.mark.parametrize(
    "text",
    ["summary.count > 5", "empty", "summary.none", "not params.flag", "params.mode == 'x' or false", "1 > 2 < 3"],
)
def test_conditions_that_do_not_hold(text: str) -> None:
    assert holds(text) is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "a.b(",
        "f(x)",
        "a.b()",
        "len(a, b)",
        "len(x=1)",
        "len(*a)",
        "__import__('os').system('true')",
        "().__class__",
        "'a'.upper()",
        "(lambda: 1)()",
        "[x for x in y]",
        "[x, 1] == y",
        "{1: 2} == a",
        "{1} == a",
        "a + 1 > 2",
        "fetch-sales.count > 3",
        "a if b else c",
        "f'{a}' == b",
        "(a := 1)",
        "a == b''",
        "a == 1j",
        "a == ...",
        "a[b] == 1",
        "a[1:2] == 1",
        "a[True] == 1",
        "a is 1",
        "a is b",
        "~a",
        "-a > 1",
        "-'a' == a",
        "'${a}' == 'x'",
        "${a == 1",
        "${} == 1",
        "a; b",
        "a = 1",
        "a\0 == 1",
        "len == 1",
        "await a",
        "*a",
        "'a'[0] == 'a'",
        "'a'.b == 1",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ConditionError):
        parse(text)


def test_length_and_depth_are_bounded() -> None:
    with pytest.raises(ConditionError, match=str(MAX_LENGTH)):
        parse("a" * (MAX_LENGTH + 1))
    for deep in (
        "not " * 200 + "a",
        "(" * 400 + "a" + ")" * 400,
        "[" * 300 + "]" * 300 + " == a",
        "-" * 900 + "1 == a",
    ):
        with pytest.raises(ConditionError):
            parse(deep)


def test_the_column_of_an_error_is_where_it_stands() -> None:
    with pytest.raises(ConditionError) as caught:
        parse("  'é' == a and f(x)")
    assert caught.value.column == 16


def test_names_and_lookups_are_what_is_read() -> None:
    condition = parse("summary.count > 3 and rows[0]['price'] < len(names) and ${fetch-sales.a.0} and true")
    assert condition.names == {"summary", "rows", "names", "fetch-sales"}
    assert condition.lookups == (
        Lookup("summary", ("count",)),
        Lookup("rows", (0, "price")),
        Lookup("names"),
        Lookup("fetch-sales", ("a", 0)),
    )


def test_references_can_be_replaced_in_the_text() -> None:
    condition = parse("fetch.output.n > 3 and rows[0]['n'] == 'rows' and ${step.output} is None")

    def rename(lookup: Lookup) -> Lookup:
        return Lookup("sales", lookup.path[1:]) if lookup.path[:1] == ("output",) else lookup

    text = condition.replace(rename)
    assert text == "${sales.n} > 3 and ${rows}[0]['n'] == 'rows' and ${sales} is None"
    assert parse(text).names == {"sales", "rows"}


def test_only_what_decides_is_looked_up() -> None:
    asked: list[str] = []

    def values(name: str) -> object:
        asked.append(name)
        return True

    assert parse("a or b").evaluate(values)
    assert not parse("not c and d").evaluate(values)
    assert asked == ["a", "c"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("summary.count > 'a'", "type int with a value of type str by >"),
        ("summary.count == '5'", "one is text, the other a number"),
        ("params.mode == 3", "one is text, the other a number"),
        ("summary.none < 3", "can't compare None"),
        ("3 in summary.day", "can't compare"),
        ("len(summary.count) > 3", "len() of a value of type int"),
        ("text", "is text, not true or false"),
    ],
)
def test_values_that_do_not_fit_are_an_error_and_not_false(text: str, says: str) -> None:
    with pytest.raises(ConditionError) as caught:
        holds(text)
    assert says in str(caught.value)


def test_an_array_is_neither_true_nor_false() -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ConditionError):
        parse("a > 1").evaluate({"a": numpy.arange(3)}.__getitem__)
    with pytest.raises(ConditionError):
        parse("a").evaluate({"a": numpy.arange(3)}.__getitem__)


def test_a_path_that_leads_nowhere_says_so() -> None:
    with pytest.raises(ReferenceFailed, match="did you mean 'count'"):
        holds("summary.coun > 3")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        condition = parse(text)
    except ConditionError:
        return
    assert isinstance(condition.names, frozenset)


@given(st.text("ab.()[]'\" 01<>=!notandri${},-", max_size=40))
def test_text_that_looks_like_a_condition_is_read_or_refused(text: str) -> None:
    try:
        condition = parse(text)
    except ConditionError:
        return
    with suppress(ConditionError, ReferenceFailed):
        assert condition.evaluate(lambda name: {"a": [1], "b": 2}) in (True, False)


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5), st.sampled_from(["and", "or"]), st.data())
def test_and_or_not_agree_with_python(names: list[str], word: str, data: st.DataObject) -> None:
    values = {name: data.draw(st.booleans()) for name in "abc"}
    flags = data.draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    text = f" {word} ".join(("not " if flag else "") + name for name, flag in zip(names, flags, strict=True))
    judged = [values[name] != flag for name, flag in zip(names, flags, strict=True)]
    assert parse(text).evaluate(values.__getitem__) is (all(judged) if word == "and" else any(judged))


def test_a_value_may_have_the_name_of_a_keyword_of_python() -> None:
    assert parse("class == 3 and yield.lambda").evaluate({"class": 3, "yield": {"lambda": True}}.__getitem__)
