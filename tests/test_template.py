"""Templates: what is parsed, what is refused, and where references lead."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procflow.call import Lookup, Text
from procflow.compiling.template import (
    MAX_DEPTH,
    ReferenceFailed,
    TemplateError,
    fill,
    follow,
    lookups,
    parse,
    replace,
    shell_word,
)

NAMES = st.from_regex(r"[a-z_][a-z0-9_-]{0,8}", fullmatch=True)
LOOKUPS = st.builds(
    lambda name, path: Lookup(name, tuple(path)), NAMES, st.lists(NAMES | st.integers(-5, 10**6), max_size=4)
)
# Literal text that can't run into a reference beside it.
LITERALS = st.text(st.characters(blacklist_characters="$", blacklist_categories=("Cs",)), min_size=1)


def test_a_whole_string_reference_is_a_lookup_and_keeps_the_type() -> None:
    tree = parse("${a.b.0}")
    assert tree == Lookup("a", ("b", 0))
    assert fill(tree, {"a": {"b": [None]}}.__getitem__) is None


def test_text_around_a_reference_makes_a_text() -> None:
    tree = parse("n=${n}!")
    assert tree == Text(("n=", Lookup("n"), "!"))
    assert fill(tree, {"n": 3}.__getitem__) == "n=3!"


@pytest.mark.parametrize(
    ("text", "value"),
    [("$${a}", "${a}"), ("x $${", "x ${"), ("$", "$"), ("$a", "$a"), ("{a}", "{a}"), ("$$${a}", "$${a}"), ("", "")],
)
def test_what_is_no_reference_stays_text(text: str, value: str) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "${",
        "${}",
        "${ }",
        "${a b}",
        "${a+1}",
        "${a[0]}",
        "${a.}",
        "${.a}",
        "${a..b}",
        "${0}",
        "${a()}",
        "x ${a",
        "${a${b}}",
    ],
)
def test_bad_references_are_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        parse(text)


def test_an_error_carries_its_place_in_the_tree() -> None:
    with pytest.raises(TemplateError) as caught:
        parse({"a": [1, {"b": "${"}]})
    assert caught.value.loc == ("a", 1, "b")
    assert "closing }" in str(caught.value)


def test_a_key_with_a_reference_is_refused_and_an_escaped_one_is_not() -> None:
    assert parse({"$${k}": 1}) == {"${k}": 1}
    with pytest.raises(TemplateError, match="key"):
        parse({"${k}": 1})


def test_too_deep_and_cyclic_trees_are_refused() -> None:
    cyclic: list[object] = []
    cyclic.append(cyclic)
    with pytest.raises(TemplateError, match=f"deeper than {MAX_DEPTH}"):
        parse(cyclic)


def test_other_constants_are_untouched() -> None:
    marker = object()
    assert parse(marker) is marker


def test_only_canonical_numbers_become_indices() -> None:
    assert parse("${a.0.007.-1.1_0}") == Lookup("a", (0, "007", -1, "1_0"))


@given(LOOKUPS)
def test_a_lookup_survives_being_written_and_read(lookup: Lookup) -> None:
    assert parse(str(lookup)) == lookup


@given(st.lists(LOOKUPS | LITERALS, min_size=1, max_size=6))
def test_a_text_survives_being_written_and_read(parts: list[Lookup | str]) -> None:
    text = "".join(map(str, parts))
    values = {part.name: part.name for part in parts if isinstance(part, Lookup)}
    pathless = replace(parse(text), lambda lookup: Lookup(lookup.name))
    expected = "".join(part.name if isinstance(part, Lookup) else part for part in parts)
    assert fill(pathless, values.__getitem__) == expected


@given(
    st.recursive(
        st.none() | st.integers() | LITERALS, lambda s: st.lists(s) | st.dictionaries(LITERALS, s), max_leaves=9
    )
)
def test_trees_without_references_fill_to_themselves(tree: object) -> None:
    assert parse(tree) == tree
    assert list(lookups(parse(tree))) == []
    assert fill(tree, {}.__getitem__) == tree


def test_lookups_are_listed_with_their_places_in_order() -> None:
    tree = parse({"a": ["${x}", "no"], "b": ("${y.z} and ${x}",)})
    assert list(lookups(tree)) == [
        (("a", 0), Lookup("x")),
        (("b", 0), Lookup("y", ("z",))),
        (("b", 0), Lookup("x")),
    ]


def test_replacing_all_lookups_of_a_text_leaves_a_str() -> None:
    tree = parse(["${p}", "a${p}b${p}", "c${q}${p}"])
    replaced = replace(tree, lambda lookup: 7 if lookup.name == "p" else Lookup("r"))
    assert replaced == [7, "a7b7", Text(("c", Lookup("r"), "7"))]


def test_replacing_can_quote_for_a_shell() -> None:
    tree = parse("ls ${p} ${q}")
    replaced = replace(tree, lambda lookup: "a; rm -rf /" if lookup.name == "p" else lookup, shell_word)
    assert replaced == Text(("ls 'a; rm -rf /' ", Lookup("q")))


def test_filled_containers_are_fresh_so_that_a_step_can_change_them() -> None:
    tree = {"a": [1], "s": {1}}
    filled = fill(tree, {}.__getitem__)
    filled["a"].append(2)
    filled["s"].add(2)
    assert tree == {"a": [1], "s": {1}}


Point = namedtuple("Point", "x y")


@dataclass
class Row:
    price: float

    @property
    def secret(self) -> int:
        raise AssertionError("a property must not be read")


class Opaque:
    price = 1


@pytest.mark.parametrize(
    ("value", "path", "found"),
    [
        ({"0": "text"}, (0,), "text"),
        ({0: "int"}, (0,), "int"),
        ([1, 2], (-1,), 2),
        (Point(1, 2), ("y",), 2),
        (Point(1, 2), (0,), 1),
        (Row(1.5), ("price",), 1.5),
        ({"rows": [Row(2.5)]}, ("rows", 0, "price"), 2.5),
    ],
)
def test_paths_lead_into_values(value: object, path: tuple[str | int, ...], found: object) -> None:
    assert follow(value, path, Lookup("v", path)) == found


@pytest.mark.parametrize(
    ("value", "path", "says"),
    [
        ({"price": 1}, ("prise",), "without key 'prise'; it has price; did you mean 'price'?"),
        ({}, ("a",), "it is empty"),
        ([1, 2], (5,), "length 2; there is no index 5"),
        ([1, 2], ("a",), "write an index"),
        ({"a": None}, ("a", "b"), "v.a is null, which has no part 'b'"),
        ("text", (0,), "is a str, which has no part 0"),
        (Row(1), ("secret",), "a Row without field 'secret'; it has price"),
        (Row(1), ("__class__",), "without field"),
        (Point(1, 2), ("_fields",), "without field"),
        (Opaque(), ("price",), "which has no part"),
        ([], ("append",), "write an index"),
    ],
)
def test_paths_that_lead_nowhere_say_where_they_stopped(value: object, path: tuple[str | int, ...], says: str) -> None:
    with pytest.raises(ReferenceFailed) as caught:
        follow(value, path, Lookup("v", path))
    assert says in str(caught.value)
    assert str(Lookup("v", path)) in str(caught.value)
