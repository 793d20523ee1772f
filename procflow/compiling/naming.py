"""Naming: what ``{name}`` means in one step, and texts cut at the places of values. Pure.

A name is looked up among the step's ``params``, then its ``inputs``, then the values there are, then the pipeline's parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from procflow.call import Lookup, Text
from procflow.compiling import template
from procflow.compiling.bindings import BindingError, Bound, composed, in_sql, in_text
from procflow.compiling.build import Binder
from procflow.compiling.names import NoValue, did_you_mean
from procflow.compiling.surface import ROOTS, input_tree
from procflow.model import AnyStep

__all__ = ["Cut", "Names", "cut_sql", "cut_url"]

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(slots=True)
class Names:
    """What ``{name}`` means in one step; ``used`` are the params and inputs that were asked for."""

    bind: Binder
    params: dict[str, Any]
    inputs: dict[str, Any]
    used: set[str] = field(default_factory=set)
    plain: bool = False
    """A mapping with keys such as ``$ne`` would be an operator where it is bound, and is refused."""

    @classmethod
    def of(cls, step: AnyStep, bind: Binder) -> Names:
        tree = bind(input_tree(step.inputs), "inputs")
        if isinstance(step.inputs, dict):
            return cls(bind, bind(step.params, "params") or {}, tree or {})
        named = zip(step.inputs, tree or (), strict=False)
        return cls(bind, bind(step.params, "params") or {}, {str(name): value for name, value in named})

    def __call__(self, place: Bound, *key: str | int) -> Any:
        """The value's tree; None, and a problem, where there is none."""
        lookup = template.parse_reference(place.name)
        for known in (self.params, self.inputs):
            if lookup.name in known:
                self.used.add(lookup.name)
                return self._checked(place, self._followed(known[lookup.name], lookup, key), key)
        scope, facts = self.bind.scope, self.bind.scope.facts
        if lookup.name not in ROOTS and not scope.has(lookup.name) and lookup.name in {*facts.params, *facts.unset}:
            lookup = Lookup("params", (lookup.name, *lookup.path))
        try:
            return self._checked(place, scope.resolve(lookup), key)
        except NoValue as missing:
            near = did_you_mean(lookup.name, [*self.params, *self.inputs, *facts.params])
            self.bind.note(f"{place}: {missing.message}", *key, hint=near or missing.hint)
            return None

    def _checked(self, place: Bound, value: Any, key: tuple[str | int, ...]) -> Any:
        operator = next(_operators(value), None) if self.plain else None
        if operator is not None:
            hint = "write the operator in the step, and bind what it compares with"
            self.bind.note(
                f"the value of {place} has the key {operator!r}, which would act as an operator", *key, hint=hint
            )
        return value

    def _followed(self, tree: Any, lookup: Lookup, key: tuple[str | int, ...]) -> Any:
        for i, part in enumerate(lookup.path):
            if isinstance(tree, Lookup):
                return Lookup(tree.name, (*tree.path, *lookup.path[i:]))
            try:
                tree = template.follow(tree, (part,), lookup)
            except template.ReferenceFailed as failed:
                self.bind.note(str(failed), *key)
                return None
        return tree

    def check_used(self, step: AnyStep) -> None:
        """A problem for each param and input that nothing reads."""
        for key, given in (("params", self.params), ("inputs", self.inputs)):
            for i, name in enumerate(given):
                if name not in self.used:
                    at = i if key == "inputs" and not isinstance(step.inputs, dict) else name
                    self.bind.note(
                        f"{name!r} is not used", key, at, hint=f"write {{{name}}} where it belongs, or remove it"
                    )

    def text(self, tree: Any, key: str, *at: str | int, whole: bool = False) -> Any:
        """A declared tree with values for places and references."""
        try:
            return composed(
                template.parse(tree),
                lambda place, loc: self(place, key, *at, *loc),
                lambda lookup, loc: self.bind(str(lookup), key, *at, *loc),
                whole,
            )
        except (BindingError, template.TemplateError) as error:
            self.bind.note(error.message, key, *at, *error.loc, hint=getattr(error, "hint", ""))
            return None


def _operators(value: Any) -> Iterator[str]:
    """Keys of MongoDB's operators anywhere in a constant."""
    if isinstance(value, Mapping):
        yield from (key for key in value if isinstance(key, str) and key.startswith("$"))
    for member in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        yield from _operators(member)


@dataclass(slots=True)
class Cut:
    """A text cut at its places: ``parts`` are texts and numbers of ``values``; a place named twice is one value."""

    names: Names
    parts: list[Any] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)

    def add(self, pieces: list[Any], *key: str | int) -> None:
        for piece in pieces:
            if not isinstance(piece, Bound):
                self.parts.append(piece)
                continue
            if piece.name not in self.known:
                self.known[piece.name] = len(self.values)
                self.values.append(self.names(piece, *key))
            self.parts.append(self.known[piece.name])


def cut_sql(text: str, names: Names) -> Cut:
    """SQL: ``${...}`` may only stand for a name that is known before the run; values are bound."""
    cut = Cut(names)

    def identifier(value: Any) -> str:
        if not isinstance(value, str) or _IDENTIFIER.fullmatch(value) is None:
            names.bind.note(
                f"{str(value)[:60]!r} would be pasted into the query, and only the name of a table or column may be",
                "query", hint="write {name} for a bound value",
            )  # fmt: skip
        return str(value)

    bound = names.bind(text, "query", text=identifier)
    if any(template.lookups(bound)):
        found = next(str(lookup) for _, lookup in template.lookups(bound))
        plain = "{" + found[2:-1] + "}"
        names.bind.note(f"{found} would be pasted into the query", "query", hint=f"write {plain} for a bound value")
        return cut
    try:
        cut.add(in_sql(bound if isinstance(bound, str) else ""), "query")
    except BindingError as error:
        names.bind.note(error.message, "query", hint=error.hint)
    return cut


def cut_url(tree: Any, names: Names, *key: str | int) -> Cut:
    """A URL or path: values of ``{name}`` will be encoded, those of ``${name}`` stand as they are."""
    cut = Cut(names)
    try:
        parsed = template.parse(tree)
    except template.TemplateError as error:
        names.bind.note(str(error), *key)
        return cut
    for part in parsed.parts if isinstance(parsed, Text) else (parsed,):
        if isinstance(part, Lookup):
            value = names.bind(str(part), *key)
            cut.parts.append(value if isinstance(value, (Lookup, Text)) else str(value))
        else:
            cut.add(in_text(part), *key)
    return cut
