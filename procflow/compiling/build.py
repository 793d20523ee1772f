"""Build: what a compile shares while it walks the declared tree: settings that go down, findings collected. Pure.

``Setting`` is what a step inherits where it stands, ``Seat`` where its unit stands, ``Binder`` turns its references
into constants and lookups. Problems carry their path in the tree; inside the file of a ``type: pipeline`` step the path
goes on behind that step's ``file`` key, and ``placed`` finds their positions in that file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypedDict

from procflow.call import SECRETS, Lookup, Reducer
from procflow.compiling import condition, template
from procflow.compiling.declared import Declared, Installed
from procflow.compiling.names import NoValue, Scope
from procflow.compiling.surface import ROOTS, Surfaces
from procflow.errors import Loc, Problem
from procflow.graph import Places, RetrySpec, Special, TaskUnit
from procflow.model import Defaults, Pipeline
from procflow.passive import passive
from procflow.units import Rate

__all__ = ["Binder", "Build", "Limits", "Load", "LoadedFile", "Seat", "Setting", "SourceFile", "placed"]


class SourceFile(Places, Protocol):
    """Where the pipeline of a file came from: positions in it, its path, and the folder its own paths start from."""

    @property
    def path(self) -> object: ...

    @property
    def folder(self) -> object: ...


class LoadedFile(Protocol):
    """A pipeline that was read from a file."""

    @property
    def pipeline(self) -> Pipeline: ...

    @property
    def source(self) -> SourceFile: ...


_MAY_HOLD_SECRETS = (
    "params", "inputs", "env", "stdin", "query", "url", "headers", "json", "text",
)  # fmt: skip
"""Keys of a step whose text a worker fills in and passes on to the step alone."""
Load = Callable[[str, "str | None"], LoadedFile]
"""Loads the file of a ``type: pipeline`` step: the path as written, and the folder of the file that names it. Raises
``PipelineError``; problems without a place are told at the step's ``file``."""


class Seat(TypedDict):
    """Where a unit stands; these are fields of ``graph.Unit``."""

    index: int
    name: str
    path: str
    label: str
    loc: Loc
    after: tuple[int, ...]
    strict: frozenset[int]
    priority: int


class Limits(TypedDict):
    """What a step and the defaults of its file say of its attempts; these are fields of ``graph.TaskUnit``."""

    retry: RetrySpec
    timeout_s: float | None
    timeout_share: float | None
    tolerated: bool
    rate: Rate | None
    rates: tuple[str, ...]
    cpus: int
    memory_bytes: int | None
    resources: Mapping[str, float]
    idle_timeout_s: float | None
    kill_grace_s: float
    grace_declared: bool
    inherited: frozenset[str]


@passive(frozen=True, slots=True)
class Setting:
    """What a step inherits: the defaults and folder of its file, executor and priority of its block.

    ``root`` is the path of the file's top in the tree, ``depth`` the number of blocks around, ``files`` those being
    compiled, ``state`` what the steps of the file share, ``rates`` those that starts here are counted against,
    ``combiners`` how types of the user's are combined.
    """

    defaults: Defaults
    folder: str | None
    executor: str
    priority: int = 0
    root: Loc = ()
    depth: int = 0
    files: tuple[str, ...] = ()
    declared: Declared = field(default_factory=Declared)
    asked: bool = False
    """Somebody has named the executor: the file, a block, or who runs it."""
    clocked: bool = False
    """A block around may have to be stopped."""
    state: Mapping[str, Reducer] = field(default_factory=dict)
    rates: tuple[str, ...] = ()
    combiners: Mapping[Any, Any] = field(default_factory=dict)

    def inside(self, executor: str | None, priority: int, clock: float | None = None) -> Setting:
        """What the members of a block inherit; ``clock`` is its timeout."""
        return replace(
            self, executor=executor or self.executor, priority=priority, depth=self.depth + 1,
            asked=self.asked or executor is not None, clocked=self.clocked or clock is not None,
        )  # fmt: skip


@dataclass(slots=True)
class Build:
    """One compile: what it was given, and what it finds. ``override`` is the executor of steps that name none.

    ``secrets`` are the environment variables that hold secrets.
    """

    load: Load | None = None
    override: str | None = None
    problems: list[Problem] = field(default_factory=list)
    executors: set[str] = field(default_factory=set)
    resources: dict[str, float] = field(default_factory=dict)
    rates: dict[str, Rate] = field(default_factory=dict)
    files: dict[Loc, SourceFile] = field(default_factory=dict)
    surfaces: Surfaces = field(default_factory=Surfaces)
    secrets: set[str] = field(default_factory=set)
    installed: Installed | None = None
    tasks: dict[tuple[int, object], tuple[Setting, Callable[..., TaskUnit]]] = field(default_factory=dict)
    """What makes the tasks of steps with the same limits, by identity of the setting that they inherit and what they declare."""
    has: set[Special] = field(default_factory=set)
    """What there is among the tasks."""
    cached: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The labels of steps whose results the next run uses, with the values that they publish."""
    shared: dict[str, str] = field(default_factory=dict)
    """The URLs of sources whose connections are counted, by the named resource that counts them."""

    def note(self, message: str, loc: Loc, hint: str = "") -> None:
        """One more problem; the compile goes on."""
        self.problems.append(Problem(message, loc, hint))


@passive(frozen=True, slots=True)
class Binder:
    """Binds the references of one step, whose place in the tree is ``loc``, in the scope where they stand."""

    build: Build
    scope: Scope
    loc: Loc

    def note(self, message: str, *key: str | int, hint: str = "") -> None:
        """A problem at a key of the step."""
        self.build.note(message, (*self.loc, *key), hint)

    def __call__(self, tree: Any, *key: str | int, text: Callable[[Any], str] = str) -> Any:
        """The tree with facts as constants and values as lookups; None, and a problem, where a reference means nothing.

        ``text`` turns a constant inside a longer text into its part of it.
        """
        try:
            parsed = template.parse(tree)
        except template.TemplateError as error:
            self.note(str(error), *key, *error.loc)
            return None
        found: dict[Lookup, Any] = {}
        same = True
        for at, lookup in template.lookups(parsed):
            found[lookup] = value = self._resolved(lookup, *key, *at)
            same = same and value is lookup
            if key[0] not in _MAY_HOLD_SECRETS:
                self.refuse_secrets(value, *key)

        def part(value: Any) -> str:
            if any(lookup.name == SECRETS for _, lookup in template.lookups(value)):
                self.note("a list or mapping with a secret in it can't stand inside a text", *key)
            return text(value)

        return parsed if same else template.replace(parsed, found.__getitem__, part)

    def refuse_secrets(self, tree: Any, *key: str | int) -> None:
        """A problem where what is bound holds a secret, at a key that would show or keep it."""
        if any(lookup.name == SECRETS for _, lookup in template.lookups(tree)):
            hint = "pass it through params"
            if key[0] == "command":
                hint = "pass it through env or stdin: others can read the arguments of commands"
            self.note(f"a secret can't stand in {key[0]}", *key, hint=hint)

    def constant(self, tree: Any, what: str, *key: str | int, hint: str = "") -> Any:
        """The same for something that must be known before the run: ``what`` in the message names it.

        Secrets stay lookups.
        """
        bound = self(tree, *key)
        for at, lookup in template.lookups(bound):
            if lookup.name == SECRETS:
                continue
            self.note(f"{what} must be known before the run, and {lookup} is a value", *key, *at, hint=hint)
            return None
        return bound

    def _resolved(self, lookup: Lookup, *key: str | int) -> Any:
        try:
            return self.scope.resolve(lookup)
        except NoValue as missing:
            self.note(missing.message, *key, hint=missing.hint)
            return None

    def condition(self, when: str | bool | None) -> tuple[str | None, dict[str, Any]]:
        """The text of ``when`` as a worker reads it, and the facts it looks at; (None, {}) with nothing to judge."""
        if not isinstance(when, str):
            return None, {}
        known = len(self.build.problems)
        try:
            parsed = condition.parse(when)
            for lookup in parsed.lookups:
                self._resolved(lookup, "when")
            if len(self.build.problems) > known:
                return None, {}
            text = parsed.replace(self._alias)
            parsed = condition.parse(text) if text != when and any(map(self._moves, parsed.lookups)) else parsed
        except condition.ConditionError as error:
            self.note(str(error), "when")
            return None, {}
        constants: dict[str, Any] = {}
        for lookup in parsed.lookups:
            if lookup.name == SECRETS:
                continue
            if lookup.name in ROOTS:
                facts: dict[str, Any] = constants.setdefault(lookup.name, {})
                facts.update(self.scope.facts.value(Lookup("params")) if not lookup.path else self._fact(lookup))
            elif not (self.scope.has(lookup.name) or self.scope.is_open):
                self.note(f"{lookup} is read in two ways here", "when", hint="write ${step.output.key} in one piece")
        return parsed.text, constants

    def _alias(self, lookup: Lookup) -> Lookup:
        """The lookup of the value or the secret that is meant; another fact stays what it is."""
        try:
            found = self.scope.resolve(lookup)
        except NoValue:
            return lookup
        return found if isinstance(found, Lookup) else lookup

    def _moves(self, lookup: Lookup) -> bool:
        return self._alias(lookup) != lookup

    def _fact(self, lookup: Lookup) -> dict[str, Any]:
        key = str(lookup.path[0])
        return {key: self.scope.facts.value(Lookup(lookup.name, lookup.path[:1]))}


def placed(problems: Iterable[Problem], files: Mapping[Loc, Places]) -> list[Problem]:
    """The problems in files of ``type: pipeline`` steps with their positions there, the others as they are."""
    found = []
    for problem in problems:
        for end in range(len(problem.loc), 0, -1) if problem.place is None else ():
            places = files.get(problem.loc[:end])
            if places is not None:
                problem = problem.at(places.place(problem.loc[end:]))
                break
        found.append(problem)
    return found
