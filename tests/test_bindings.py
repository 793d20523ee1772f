"""Bindings: where ``{name}`` is a place for a value, and where it is text."""

from __future__ import annotations

import re
import sqlite3
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow.call import Lookup, Text
from procflow.compiling import template
from procflow.compiling.bindings import (
    BindingError,
    Bound,
    Mixed,
    composed,
    in_sql,
    in_text,
    left_open,
    places,
    settled,
)

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,5}(\.[a-z0-9_]{1,3}){0,2}", fullmatch=True)
VALUES = st.one_of(
    st.text(max_size=20), st.integers(-(2**63), 2**63 - 1), st.none(), st.floats(allow_nan=False, allow_infinity=False)
)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a = {a} AND b={ b.0.c }", ["a = ", Bound("a"), " AND b=", Bound("b.0.c")]),
        ("{{a}} {a}", ["{a} ", Bound("a")]),
        ('{"a": 1, "b": {"c": {d}}}', ['{"a": 1, "b": {"c": ', Bound("d"), "}}"]),
        ("{} { } {1} {a b} {a:%Y} {a!} ${", ["{} { } {1} {a b} {a:%Y} {a!} ${"]),
        ("{ä}{a-b}", [Bound("ä"), Bound("a-b")]),
        ("", []),
    ],
)
def test_only_a_name_in_braces_is_a_place(text: str, pieces: list[Any]) -> None:
    assert in_text(text) == pieces


@pytest.mark.parametrize(
    "text",
    [
        "-- it's {a}\n", "/* {a} ' */", "'{1}' '{\"a\":{\"b\":1}}' '{{1,2},{3,4}}'", "E'it\\'s {1}'", "$$ {1} $$", "$x$ '{1}' $x$",
        "\"a{1}\"", "`a{1}`", "'it''s {1}'", "{'a': 1}", "'{a", "-- {a}", "/* {a}",
    ],
)  # fmt: skip
def test_quotes_comments_and_other_braces_of_sql_stay_what_they_are(text: str) -> None:
    assert in_sql(text) == [text]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a = '{a}'", "write {a} without them"), ("a = E'{a}'", "write {a} without them"),
        ("a LIKE '%{a}%'", "join it: '...' || {a}"), ('"{a}"', "write ${params.x} for a name"),
        ("`{a}`", "write ${params.x} for a name"),
        ("$$ {a} $$", "join it"), ("x = '{a}", "without them"),
    ],
)  # fmt: skip
def test_a_name_inside_quotes_of_sql_is_refused(text: str, hint: str) -> None:
    with pytest.raises(BindingError) as caught:
        in_sql(text)
    assert hint in caught.value.hint
    assert "{{a}} is the text {a}" in caught.value.hint
    assert in_sql(text.replace("{a}", "{{a}}")) == [text]


@given(st.lists(st.one_of(NAMES.map(Bound), st.text(alphabet="abc {}'\"-/*$\n", max_size=12)), max_size=8))
def test_no_text_is_lost_and_no_place_is_made_up(parts: list[Any]) -> None:
    text = "".join(map(str, parts))
    pieces = in_text(text)
    # Blanks inside a place do not count.
    name = r"\s*([^\W\d][\w-]*(?:\.[\w-]+)*)\s*"
    assert "".join(map(str, pieces)) == re.sub(rf"\{{\{{{name}\}}\}}|\{{{name}\}}", r"{\1\2}", text)
    assert all(not (isinstance(a, str) and isinstance(b, str)) for a, b in pairwise(pieces))


@given(st.lists(VALUES, min_size=1, max_size=5), st.sampled_from(["'x''{1}'", "-- {c}\n", "/* ' */", '"a"', "12"]))
def test_whatever_is_bound_comes_back_from_a_database_as_it_was(values: list[Any], noise: str) -> None:
    noise = '1 AS "a"' if noise == '"a"' else noise
    sql = f"SELECT {noise if noise[0] not in '-/' else noise + ' 0'}" + "".join(
        f", {{v{i}}}" for i in range(len(values))
    )
    pieces = in_sql(sql)
    bound = [piece.name for piece in pieces if isinstance(piece, Bound)]
    assert bound == [f"v{i}" for i in range(len(values))]
    with sqlite3.connect(":memory:") as db:
        query = "".join(piece if isinstance(piece, str) else "?" for piece in pieces)
        try:
            row = db.execute(query, [values[int(name[1:])] for name in bound]).fetchone()
        except UnicodeEncodeError:
            row = None
    db.close()
    if row is not None:
        assert list(row[1:]) == values


# -- trees -----------------------------------------------------------------------------------------------------

KNOWN: dict[str, Any] = {"a": 1, "b": [1, 2], "evil": "{a} ${x} {{a}}", "later": Lookup("rows", (0,))}


def value(place: Bound, loc: Any) -> Any:
    return KNOWN[place.name]


def fill(tree: Any, **keys: Any) -> Any:
    return composed(template.parse(tree), value, lambda lookup, loc: "{a}" if lookup.name == "x" else lookup, **keys)


def test_a_whole_text_becomes_the_value_and_a_longer_one_text() -> None:
    assert fill({"n": "{b}", "t": "a={a}!", "deep": [{"x": "{later}"}], "plain": 3, "{{a}}": "{{a}}"}) == {
        "n": [1, 2], "t": "a=1!", "deep": [{"x": Lookup("rows", (0,))}], "plain": 3, "{a}": "{a}",
    }  # fmt: skip
    assert fill("got {later}, {a}") == Text(("got ", Lookup("rows", (0,)), ", 1"))


def test_what_a_value_or_a_reference_brings_is_never_read_again() -> None:
    assert fill("{evil} ${x}") == "{a} ${x} {{a}} {a}"
    assert fill(["${x}", "{evil}"]) == ["{a}", "{a} ${x} {{a}}"]


def test_places_may_be_left_open_and_settled_later() -> None:
    tree = composed(
        template.parse({"u": "x{a}y${x}", "w": "{b}", "t": "{{a}}"}),
        lambda place, loc: place,
        lambda lookup, loc: "{a}",
    )
    assert tree == {"u": Mixed(("x", Bound("a"), "y{a}")), "w": Bound("b"), "t": "{a}"}
    assert [place.name for _, place in left_open(tree)] == ["a", "b"]
    assert settled(tree, value) == {"u": "x1y{a}", "w": [1, 2], "t": "{a}"}


def test_keys_and_parts_of_texts_may_not_be_bound_where_only_whole_values_are() -> None:
    with pytest.raises(BindingError, match="can't be a bound value"):
        fill({"{a}": 1})
    with pytest.raises(BindingError) as caught:
        fill({"f": ["x", "is {a}"]}, whole=True)
    assert caught.value.loc == ("f", 1)
    assert fill({"f": "{a}"}, whole=True) == {"f": 1}


def test_places_are_found_with_where_they_are() -> None:
    assert list(places({"a": ["x", "{b} {c.0}"], "d": "{{e}}"})) == [(("a", 1), Bound("b")), (("a", 1), Bound("c.0"))]
