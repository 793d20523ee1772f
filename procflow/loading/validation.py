"""Validation errors of the declared records as problems in plain words.

Owns the sentences. ``Fault`` is one error with its path as the user wrote it (pydantic's union tags dropped, echoes of inner
errors left out); its sentence is made late, because a broken file may have thousands and only the first are shown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from procflow.errors import Loc, Problem, dotted
from procflow.grammar import near
from procflow.loading.source import clip
from procflow.model import STEP_TYPES, Defaults, Items, Limits, Param, Pipeline, Record, Retry
from procflow.passive import passive
from procflow.record_sources import Prices, Skill, Source

__all__ = ["Fault", "faults", "problems"]

_RECORDS: dict[str, type[Record]] = {
    "limits": Limits, "defaults": Defaults, "retry": Retry, "items": Items, "params": Param, "sources": Source,
    "skills": Skill, "prices": Prices,
}  # fmt: skip
_TAGS = {f"<{name}>": record for name, record in STEP_TYPES.items()}
_QUOTED = re.compile(r"'([^']*)'")
_FORMS: dict[str, str] = {
    "int_type": "a whole number", "int_from_float": "a whole number", "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number", "float_type": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "string_type": "text", "dict_type": "a mapping", "mapping_type": "a mapping",
    "model_type": "a mapping", "model_attributes_type": "a mapping", "tuple_type": "a list", "list_type": "a list",
    "none_required": "nothing",
}  # fmt: skip
_BOUNDS = {
    "greater_than": ("more than", "gt"), "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"), "less_than_equal": ("at most", "le"),
}  # fmt: skip
_ECHOES = ("too_short", "too_long")


@passive(frozen=True, slots=True)
class Fault:
    """One error. ``loc`` is the path in the user's tree; ``on_key`` says that the key is wrong rather than its value."""

    loc: Loc
    on_key: bool
    kind: str
    value: Any
    about: Mapping[str, Any]
    record: type[Record]

    def problem(self) -> Problem:
        """The fault in plain words."""
        message, hint = self._sentence()
        return Problem(message, self.loc, hint)

    @property
    def key(self) -> str:
        """The path from the nearest step or pipeline down, as in ``retry.delay``."""
        return dotted(_tail(self.loc))

    def suggestion(self) -> str:
        """For an unknown key, the key that was probably meant."""
        found = near(str(self.loc[-1]), _keys(self.record)) if self.kind == "extra_forbidden" else ""
        return found.removeprefix("did you mean '").removesuffix("'?")

    def _sentence(self) -> tuple[str, str]:
        prefix = f"{self.key}: " if self.key else ""
        kind, shown = self.kind, _shown(self.value)
        if kind == "extra_forbidden":
            return self._unknown_key()
        if kind == "missing":
            return f"missing key {clip(str(self.loc[-1]))}", self._description(str(self.loc[-1]))
        if kind == "union_tag_invalid":
            return self._step_type()
        if kind in ("refused", "conflict"):
            return prefix + str(self.about.get("reason", "")), ""
        if kind == "value_error":
            return prefix + str(self.about.get("error", "not allowed")), ""
        if kind == "literal_error":
            known = _QUOTED.findall(str(self.about.get("expected", "")))
            hint = near(self.value, known) if isinstance(self.value, str) else ""
            return f"{prefix}expected {_either(known)}, got {shown}", hint
        if kind in _BOUNDS:
            words, key = _BOUNDS[kind]
            return f"{prefix}expected {words} {_number(self.about.get(key))}, got {shown}", ""
        if kind == "string_pattern_mismatch":
            return (
                f"{prefix}{shown} is not a name",
                "write letters, digits, _ and -, beginning with a letter, at most 128",
            )
        if kind in _ECHOES:
            few = kind == "too_short"
            bound = self.about.get("min_length" if few else "max_length")
            return f"{prefix}expected at {'least' if few else 'most'} {bound}, got {len(self.value)}", ""
        expected = _FORMS.get(kind)
        if expected is None:
            return f"{prefix}{shown} is not allowed here", ""
        if kind == "bool_type" and str(self.value).lower() in ("yes", "no", "on", "off"):
            return f"{prefix}expected {expected}, got {shown}", "YAML 1.2 reads yes, no, on and off as text"
        quotes = "put quotes around it" if kind == "string_type" and isinstance(self.value, (int, float)) else ""
        return f"{prefix}expected {expected}, got {shown}", quotes

    def _unknown_key(self) -> tuple[str, str]:
        key = str(self.loc[-1])
        meant = self.suggestion()
        hint = f"did you mean {meant!r}?" if meant else ""
        homes = [name for name, record in STEP_TYPES.items() if name != "function" and key in _keys(record)]
        if not meant and homes and self.record in STEP_TYPES.values():
            hint = f"a key of type {_either(homes)}"
        if not meant and self.record is Param:
            hint = "a default that is a mapping is written {default: {...}}"
        return f"unknown key {clip(key)}", hint

    def _step_type(self) -> tuple[str, str]:
        kind = self.value.get("type") if isinstance(self.value, dict) else None
        known = [name for name in STEP_TYPES if name != "function"]
        if kind is None:
            return (
                "this step has no type",
                f"write type: {_either(known)}; or function: module:name for a Python function",
            )
        hint = near(kind, known) if isinstance(kind, str) else ""
        return f"unknown step type {_shown(kind)}", hint or f"expected {_either(known)}"

    def _description(self, key: str) -> str:
        for name, info in self.record.model_fields.items():
            if key in (name, info.alias):
                return info.description or ""
        return ""


def faults(error: ValidationError, root: type[Record] = Pipeline) -> list[Fault]:
    """The faults that a user can act on, in pydantic's order."""
    found = []
    for e in error.errors(include_url=False):
        raw, value = e["loc"], e["input"]
        if e["type"] in _ECHOES and e.get("ctx", {}).get("actual_length") != _length(value):
            continue  # an echo of errors inside: the list itself is long enough
        on_key = e["type"] in ("extra_forbidden", "conflict") or raw[-1:] == ("[key]",)
        loc: Loc = tuple(part for part in raw if part not in _TAGS and part != "[key]")
        if e["type"] == "union_tag_invalid" and isinstance(value, dict) and value.get("type") is not None:
            loc = (*loc, "type")
        found.append(Fault(loc, on_key, e["type"], value, e.get("ctx", {}), _record(raw, root)))
    return _without_doubles(found)


def problems(error: ValidationError, root: type[Record] = Pipeline) -> list[Problem]:
    """All faults in plain words, for records that were built in Python; ``root`` is the record that was validated."""
    return [fault.problem() for fault in faults(error, root)]


def _without_doubles(found: list[Fault]) -> list[Fault]:
    """Without complaints about an absent key where a misspelt one beside it was meant."""
    absent = {f.loc for f in found if f.kind == "missing" or (f.kind == "conflict" and f.value is None)}
    if not absent:
        return found
    parents = {loc[:-1] for loc in absent}
    meant = {(*f.loc[:-1], f.suggestion()) for f in found if f.kind == "extra_forbidden" and f.loc[:-1] in parents}
    return [f for f in found if f.loc not in absent or f.loc not in meant]


def _record(raw: Loc, root: type[Record]) -> type[Record]:
    """The record that the last key of ``raw`` belongs to."""
    record, skip = root, False
    for part in raw[:-1]:
        if skip:
            skip = False
        elif isinstance(part, str):
            record = _TAGS.get(part) or _RECORDS.get(part) or record
            skip = part in ("params", "sources", "skills")
    return record


def _keys(record: type[Record]) -> list[str]:
    return [info.alias or name for name, info in record.model_fields.items()]


def _tail(loc: Loc) -> Loc:
    """What follows the innermost step."""
    for i in range(len(loc) - 1, 0, -1):
        if isinstance(loc[i], int) and loc[i - 1] == "steps":
            return loc[i + 1 :]
    return loc


def _length(value: object) -> int | None:
    return len(value) if isinstance(value, (list, tuple, dict)) else None


def _number(bound: object) -> str:
    return f"{bound:,.0f}" if isinstance(bound, (int, float)) and bound == math.trunc(bound) else str(bound)


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


_NAMES_OF_KINDS: tuple[tuple[type | tuple[type, ...], Callable[[Any], str]], ...] = (
    (bool, lambda v: "true" if v else "false"),
    (str, clip),
    (int, lambda v: str(v) if abs(v) < 10**30 else "a number of more than 30 digits"),
    (float, lambda v: f".{v}".replace(".-", "-.") if not math.isfinite(v) else repr(v)),
    (dict, lambda v: "a mapping"),
    ((list, tuple), lambda v: "a list" if v else "an empty list"),
)


def _shown(value: object) -> str:
    """The value as the user may have written it, short."""
    if value is None:
        return "nothing"
    for kind, text in _NAMES_OF_KINDS:
        if isinstance(value, kind):
            return text(value)
    return f"a {type(value).__name__}"
