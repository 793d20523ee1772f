"""Names: what a reference means where it stands. Pure.

``Scope`` is the compiler's picture of what has a value at one point of the pipeline. ``${params.x}``, ``${env.X}`` and
``${run.id}`` become constants, ``${step.output.key}`` the value that the step publishes, anything else must be a value
that exists by then. A block's scope lies on that of the block around it and is shared by its members, so that a wide
block costs no copies.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from procflow.call import SECRETS, Lookup
from procflow.compiling import template
from procflow.compiling.surface import ROOTS, Face, is_output
from procflow.passive import passive

__all__ = ["Facts", "NoValue", "Scope", "did_you_mean", "with_params"]

MOST_COMPARED = 2000
"""Names that a misspelt one is compared with; a pipeline may have a hundred thousand."""


class NoValue(Exception):
    """A reference means nothing where it stands; ``hint`` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the known word most like this one, empty where none is."""
    near = difflib.get_close_matches(word[:64], list(islice((k for k in known if k != word), MOST_COMPARED)), 1)
    return f"did you mean {near[0]!r}?" if near else ""


@passive(frozen=True, slots=True)
class Facts:
    """What references may name besides values. ``unset`` are parameters without a value, which is told elsewhere.

    ``secrets`` are the declared ones with the environment variable that holds each, ``hidden`` all such variables.
    """

    params: Mapping[str, Any]
    environ: Mapping[str, str]
    run: Mapping[str, Any]
    unset: frozenset[str] = frozenset()
    secrets: Mapping[str, str] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()

    def value(self, lookup: Lookup) -> Any:
        """The constant that ``${params.x}``, ``${env.X}`` or ``${run.id}`` stands for; raises ``NoValue``.

        A secret stays a lookup of its environment variable, however it is named.
        """
        root = lookup.name
        if root == SECRETS or (root == "env" and lookup.path and str(lookup.path[0]) in self.hidden):
            return self._secret(lookup)
        known: Mapping[str, Any] = {"params": self.params, "env": self.environ, "run": self.run}[root]
        if not lookup.path:
            if root == "params":
                return dict(self.params)
            raise NoValue(f"${{{root}}} alone means nothing", f"write ${{{root}.NAME}}")
        key = str(lookup.path[0])
        if key in known:
            try:
                return template.follow(known[key], lookup.path[1:], Lookup(f"{root}.{key}", lookup.path[1:]))
            except template.ReferenceFailed as failed:
                raise NoValue(str(failed)) from None
        if root == "params" and key in self.unset:
            return None
        what = {"params": "parameter", "env": "environment variable", "run": "fact of the run"}[root]
        raise NoValue(f"there is no {what} {key!r}", did_you_mean(key, known if root != "env" else ()))

    def _secret(self, lookup: Lookup) -> Lookup:
        """The lookup that a worker opens: ``${secrets.token}`` is ``Lookup("secrets", ("API_TOKEN",))``."""
        if not lookup.path:
            raise NoValue("${secrets} alone means nothing", "write ${secrets.NAME}")
        name = str(lookup.path[0])
        variable = self.secrets.get(name) if lookup.name == SECRETS else name
        if variable is None:
            near = did_you_mean(name, self.secrets)
            raise NoValue(f"there is no secret {name!r}", near or f"declare it: secrets: {{{name}: ${{env.NAME}}}}")
        if len(lookup.path) > 1:
            raise NoValue(f"{lookup}: a secret is text, which has no parts")
        return Lookup(SECRETS, (variable,))


@passive(frozen=True, slots=True)
class Absent:
    """A value or step of a block that is not there for (some of) its members: who makes it, and why not.

    ``{name!r}`` in ``reason`` is the step: one text serves all members of a block.
    """

    step: str
    reason: str

    @property
    def why(self) -> str:
        """The reason with the step's name."""
        return self.reason.replace("{name!r}", repr(self.step))


Reasons = Callable[[], "Iterable[tuple[str, tuple[str, ...], str]]"]
"""Tells steps, what each makes, and why that has no value."""
_NO_NAMES: dict[str, str] = {}
_NO_STEPS: dict[str, Face] = {}
_NO_OPENERS: set[str] = set()
_NO_ABSENT: dict[str, Absent] = {}
_NO_REASONS: list[Reasons] = []


@dataclass(slots=True)
class Scope:
    """What has a value at one point.

    ``names`` are values with the step that writes each, ``steps`` what may be named as ``${step.output}``, ``openers``
    the steps that may publish more (``outputs: "*"``). ``reasons`` are asked for messages alone. A *view* has no names: it is what
    the member ``viewer`` sees of the block around it, in which its own outputs do not count.
    """

    facts: Facts
    outer: Scope | None = None
    viewer: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    steps: dict[str, Face] = field(default_factory=dict)
    openers: set[str] = field(default_factory=set)
    reasons: list[Reasons] = field(default_factory=list)
    _absent: dict[str, Absent] = field(default_factory=dict)

    def block(self) -> Scope:
        """The scope of a block that stands here."""
        return Scope(self.facts, self)

    def view(self, member: str) -> Scope:
        """What a member of this block sees."""
        # Shared, since nothing is ever published in a view.
        return Scope(self.facts, self, member, _NO_NAMES, _NO_STEPS, _NO_OPENERS, _NO_REASONS, _NO_ABSENT)

    def publish(self, step: str, face: Face) -> None:
        """The step's outputs have values from here on."""
        self.steps[step] = face
        self.names.update(dict.fromkeys(face.writes, step))
        if face.is_open:
            self.openers.add(step)

    def withhold(self, reasons: Reasons) -> None:
        """What is told has no value here; it is asked only once somebody wants to know, and a reason given earlier stays."""
        self.reasons.append(reasons)

    @property
    def absent(self) -> Mapping[str, Absent]:
        """What steps of this block make, and why it is not there."""
        while self.reasons:
            for step, names, why in self.reasons.pop(0)():
                absent = Absent(step, why)
                for name in names:
                    self._absent.setdefault(name, absent)
        return self._absent

    # -- questions ---------------------------------------------------------------------------------------------

    def _layers(self) -> Iterator[tuple[Scope, str | None]]:
        """The scopes from here outwards, each with the member through which it is seen."""
        scope: Scope | None = self
        viewer: str | None = None
        while scope is not None:
            yield scope, viewer
            viewer, scope = scope.viewer, scope.outer

    def has(self, name: str) -> bool:
        """Whether a value of this name is sure to be declared here."""
        scope: Scope | None = self
        viewer: str | None = None
        while scope is not None:
            if scope.names.get(name, viewer) != viewer:
                return True
            viewer, scope = scope.viewer, scope.outer
        return False

    @property
    def is_open(self) -> bool:
        """Whether there may be values whose names only the run can tell."""
        return any(len(layer.openers) > (viewer in layer.openers) for layer, viewer in self._layers())

    def resolve(self, lookup: Lookup) -> Any:
        """A constant for a fact, a ``Lookup`` of a value otherwise; raises ``NoValue``."""
        if lookup.name in ROOTS:
            return self.facts.value(lookup)
        if is_output(lookup):
            for layer, viewer in self._layers():
                face = layer.steps.get(lookup.name)
                if face is not None and lookup.name != viewer:
                    return self._output(layer, face, lookup)
        if self.has(lookup.name) or self.is_open:
            return lookup
        raise self._missing(lookup.name)

    def _output(self, layer: Scope, face: Face, lookup: Lookup) -> Lookup:
        """The value that ``${step.output.key}`` stands for."""
        step, path = lookup.name, lookup.path[1:]
        key = str(path[0]) if path else ""
        if face.keyed and key and (key in face.writes or face.is_open):
            found = Lookup(key, path[1:])
        elif face.main is not None:
            found = Lookup(face.main, path)
        else:
            names = ", ".join(face.writes[:12])
            hint = did_you_mean(key, face.writes) or (f"write ${{{step}.output.{face.writes[0]}}}" if names else "")
            what = f"publishes no {key!r}" if key else "publishes several values"
            raise NoValue(f"step {step!r} {what}{f': it has {names}' if names else ''}", hint)
        writer = layer.names.get(found.name, step)
        if writer != step:
            raise NoValue(
                f"the value {found.name!r} of step {step!r} has been overwritten by {writer!r}",
                "give one of them another output",
            )
        return found

    def _missing(self, name: str) -> NoValue:
        """Why there is no value of this name."""
        for layer, viewer in self._layers():
            absent, face = layer.absent.get(name), layer.steps.get(name)
            if viewer is not None and viewer in (layer.names.get(name), absent.step if absent is not None else None):
                return NoValue(f"{name!r} has no value here: this step itself writes it")
            if face is not None:
                instead = face.main or (face.writes[0] if face.writes else f"{name}.output.NAME")
                return NoValue(f"{name!r} is a step, not a value", f"write ${{{instead}}}")
            if absent is not None:
                return NoValue(f"{name!r} has no value here: {absent.why}")
        known = (n for layer, _ in self._layers() for n in (*layer.names, *layer.absent))
        return NoValue(f"no step that runs before this one publishes {name!r}", did_you_mean(name, known))


def with_params(facts: Facts, params: Mapping[str, Any], unset: Iterable[str], **run: Any) -> Facts:
    """The same facts with the parameters of a file, and other facts of the run."""
    return replace(facts, params=params, unset=frozenset(unset), run={**facts.run, **run})
