"""Declared: the sources and skills of a file, with their references bound and their secrets known. Pure.

What ``${env.NAME}`` says in a password, a key, a header, or the part of a URL that holds them is a secret: it stays the name of
the variable, which a worker opens, and is masked everywhere. Elsewhere it is a constant like others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from procflow.call import Lookup, Text
from procflow.compiling import template
from procflow.compiling.bindings import BindingError, composed, left_open
from procflow.compiling.names import Facts, NoValue, Scope, did_you_mean
from procflow.compiling.surface import ROOTS, Surfaces, blocks_among
from procflow.errors import Loc
from procflow.model import AnyStep, Pipeline, UseSkill
from procflow.passive import passive
from procflow.record_sources import Skill, Source

if TYPE_CHECKING:
    from procflow.compiling.build import Build

__all__ = ["BoundSkill", "BoundSource", "Declared", "Installed", "asked_for", "declare", "produced"]

LEAST_SECRET = 4
"""Shorter secrets are refused: masking them would mask half of every text, too."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_KINDS = {
    "duckdb": "duckdb", "mongodb": "mongodb", "redis": "redis", "rediss": "redis", "unix": "redis", "valkey": "redis",
    "valkeys": "redis", "http": "rest", "https": "rest",
}  # fmt: skip

Installed = Callable[[str], "Skill | str | None"]
"""A skill of an installed package by its name: the skill, a sentence on why it can't be used, or None; a name that is
empty is never installed. ``names`` of it, where present, lists what there is."""


@passive(frozen=True, slots=True)
class BoundSource:
    """A source as a worker needs it: ``spec`` is a tree of constants and lookups of secrets."""

    name: str
    kind: str
    spec: Mapping[str, Any]
    resource: str | None = None
    timeout_s: float | None = None
    max_connections: int | None = None
    rate: str | None = None


@passive(frozen=True, slots=True)
class BoundSkill:
    """A skill with its references bound: ``spec`` holds what its kind asks for; ``loc`` is where it is declared."""

    name: str
    skill: Skill
    spec: Mapping[str, Any]
    loc: Loc | None = None


@passive(frozen=True, slots=True)
class Declared:
    """What the steps of one file may name. ``broken`` are names whose problems are told already."""

    sources: Mapping[str, BoundSource] = field(default_factory=dict)
    skills: Mapping[str, BoundSkill] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    installed: tuple[str, ...] = ()


def declare(build: Build, pipeline: Pipeline, facts: Facts, root: Loc) -> tuple[Declared, Facts]:
    """The sources and skills of a file whose top in the tree is ``root``, and the facts with their secrets."""
    if not pipeline.sources and not pipeline.skills and not build.installed:
        return Declared(), facts
    hidden: set[str] = set()
    broken: set[str] = set()
    sources: dict[str, BoundSource] = {}
    for name, source in pipeline.sources.items():
        known = len(build.problems)
        bound = _source(_Reader(build, facts, (*root, "sources", name), hidden), name, source)
        if len(build.problems) == known and bound is not None:
            sources[name] = bound
        else:
            broken.add(f"source {name}")
    skills: dict[str, BoundSkill] = {}
    wanted = {step.skill for step in _skill_steps(pipeline.steps)}
    for name in (*pipeline.skills, *sorted(wanted - pipeline.skills.keys())):
        known = len(build.problems)
        found = pipeline.skills.get(name) or (build.installed(name) if build.installed is not None else None)
        loc = (*root, "skills", name) if name in pipeline.skills else None
        if isinstance(found, Skill):
            skills[name] = _skill(_Reader(build, facts, loc or root, hidden), name, found, loc)
        elif found is not None:
            build.note(f"skill {name!r} of an installed package can't be used: {found}", root)
        if len(build.problems) > known:
            broken.add(f"skill {name}")
    missing = wanted - skills.keys() - pipeline.skills.keys()
    names = tuple(getattr(build.installed, "names", tuple)()) if missing else ()
    build.secrets.update(hidden)
    _tell_faces(build.surfaces, pipeline, skills)
    return Declared(sources, skills, frozenset(broken), names), replace(facts, hidden=facts.hidden | frozenset(hidden))


def _skill_steps(steps: tuple[AnyStep, ...]) -> list[UseSkill]:
    found: list[UseSkill] = []
    waiting = [steps]
    while waiting:
        members = waiting.pop()
        # The type itself: isinstance asks pydantic, and there may be a hundred thousand steps and no skill.
        found += [step for step in members if type(step) is UseSkill]
        waiting += [below for _, below in blocks_among(members)]
    return found


def _tell_faces(surfaces: Surfaces, pipeline: Pipeline, skills: Mapping[str, BoundSkill]) -> None:
    """What skill steps publish is what their skills produce."""
    if skills:
        for step in _skill_steps(pipeline.steps):
            if step.skill in skills:
                bound = skills[step.skill]
                surfaces.skills[id(step)] = (step, produced(bound.skill), asked_for(bound))


def produced(skill: Skill) -> tuple[str, ...]:
    """The names that a skill returns, none where only the call can tell."""
    return tuple(skill.produces) or (("text",) if skill.kind == "llm" else ())


def asked_for(bound: BoundSkill) -> tuple[str, ...]:
    """The names that a skill needs values for: those it requires, and the places in its texts."""
    roots = (place.name.partition(".")[0] for _, place in left_open(dict(bound.spec)))
    return tuple(dict.fromkeys([*bound.skill.requires, *(root for root in roots if root not in ROOTS)]))


# -- reading ---------------------------------------------------------------------------------------------------


class _Facts(Scope):
    """What sources and skills may refer to: parameters, the environment, the run, secrets; no values."""

    def resolve(self, lookup: Lookup) -> Any:
        if lookup.name in ROOTS:
            return self.facts.value(lookup)
        raise NoValue(
            f"{lookup} is no parameter and no environment variable, and there are no values yet",
            "write ${params.NAME} or ${env.NAME}; a place for a value of the step is written {name}",
        )


@dataclass(slots=True)
class _Reader:
    """Binds the keys of one source or skill, whose place in the tree is ``loc``."""

    build: Build
    facts: Facts
    loc: Loc
    hidden: set[str]

    def __call__(
        self, tree: Any, *key: str | int, secret: Callable[[Text, int], bool] | bool = False, open_places: bool = False
    ) -> Any:
        """The tree with constants, and lookups for secrets; ``open_places`` leaves each ``{name}`` to the steps.

        ``secret`` says whether ``${env.NAME}`` in it is one; for a part of a text it is asked with the text and the part's
        position.
        """
        at = (*self.loc, *key)
        try:
            parsed = template.parse(tree)
        except template.TemplateError as error:
            self.build.note(str(error), (*at, *error.loc))
            return None
        for lookup in _secret_ones(parsed, secret):
            self._hide(lookup, key)
        scope = _Facts(replace(self.facts, hidden=self.facts.hidden | frozenset(self.hidden)))

        def resolved(lookup: Lookup, loc: Loc) -> Any:
            try:
                found = scope.resolve(lookup)
            except NoValue as missing:
                self.build.note(missing.message, (*at, *loc), missing.hint)
                return None
            if not secret and any(True for _ in template.lookups(found)):
                self.build.note(f"a secret can't stand in {key[0]}", at, "it would be shown or kept")
            return found

        if open_places:
            try:
                return composed(parsed, lambda bound, loc: bound, resolved)
            except BindingError as error:
                self.build.note(error.message, (*at, *error.loc), error.hint)
                return None
        return template.replace(parsed, lambda lookup: resolved(lookup, ()))

    def _hide(self, lookup: Lookup, key: tuple[str | int, ...]) -> None:
        variable = str(lookup.path[0]) if lookup.path else ""
        value = self.facts.environ.get(variable)
        if value is None:
            hint = f"set it where procflow is started: export {variable}=..."
            self.build.note(f"the environment variable {variable!r} is not set", (*self.loc, *key), hint)
        elif len(value.strip()) < LEAST_SECRET:
            few = f"has fewer than {LEAST_SECRET} characters" if value else "is empty"
            self.build.note(
                f"the environment variable {variable} {few}, so it could not be masked in logs", (*self.loc, *key),
                f"if it is no secret, write a parameter with default: ${{env.{variable}}}",
            )  # fmt: skip
        self.hidden.add(variable)

    def opened(self, tree: Any) -> Any:
        """The tree with secrets opened, to look at; never kept."""
        return template.fill(tree, lambda name: self.facts.environ)


def _secret_ones(tree: Any, secret: Callable[[Text, int], bool] | bool) -> Iterator[Lookup]:
    """Lookups of the environment that are secrets."""
    if isinstance(tree, Text) and callable(secret):
        yield from (
            part
            for i, part in enumerate(tree.parts)
            if isinstance(part, Lookup) and part.name == "env" and secret(tree, i)
        )
    elif secret is not False:
        yield from (lookup for _, lookup in template.lookups(tree) if lookup.name == "env")


def _in_credentials(text: Text, position: int) -> bool:
    """Whether a part of a URL stands among user, password or query, where secrets are."""
    before = "".join(part for part in text.parts[:position] if isinstance(part, str))
    behind = "".join(part for part in text.parts[position + 1 :] if isinstance(part, str))
    authority = before.partition("://")[2]
    return "?" in before or ("@" in behind and "/" not in authority and "@" not in authority) or "://" not in before


def _source(read: _Reader, name: str, source: Source) -> BoundSource | None:
    spec = {
        "url": read(source.url, "url", secret=_in_credentials),
        "user": read(source.user, "user"),
        "password": read(source.password, "password", secret=True),
        "database": read(source.database, "database"),
        "headers": {key: read(text, "headers", key, secret=True) for key, text in source.headers.items()},
        "options": read(source.options, "options", secret=True),
    }
    try:
        url = str(read.opened(spec["url"]))
    except template.ReferenceFailed:
        return None
    found = _SCHEME.match(url.strip())
    if found is None:
        read.build.note(
            "this is no URL: it has no scheme", (*read.loc, "url"),
            "write sqlite:///file.db, postgresql://user@host/name, duckdb:, mongodb://..., redis://... or https://...",
        )  # fmt: skip
        return None
    kind = source.kind or _KINDS.get(found[1].lower().partition("+")[0], "sql")
    for key, home in (("headers", "rest"), ("database", "mongodb")):
        if getattr(source, key) and kind != home:
            read.build.note(f"{key} works only with kind: {home}, and this is {kind}", (*read.loc, key))
    plain = {key: value for key, value in spec.items() if value is not None and value != {}}
    resource = None
    if source.max_connections is not None:
        resource = _resource(read.build, name, source, read.loc)
    rate = None
    if source.rate_limit is not None:
        rate = f"rate:{name}" if not read.loc[:-2] else f"rate:{name}@{'.'.join(map(str, read.loc[:-2]))}"
        read.build.rates[rate] = source.rate_limit
    return BoundSource(
        name, kind, {"name": name, "kind": kind, **plain}, resource, source.timeout, source.max_connections, rate
    )


def _resource(build: Build, name: str, source: Source, loc: Loc) -> str:
    """The named resource of the run that keeps ``max_connections``; files that name the same URL share it."""
    assert source.max_connections is not None
    resource = f"source:{name}"
    if build.shared.setdefault(resource, source.url) != source.url:
        resource = f"source:{name}@{'.'.join(map(str, loc[:-2]))}"
    most = float(source.max_connections)
    build.resources[resource] = min(most, build.resources.get(resource, most))
    return resource


def _skill(read: _Reader, name: str, skill: Skill, loc: Loc | None) -> BoundSkill:
    texts = {
        "url": read(skill.url, "url", secret=_in_credentials, open_places=True),
        "headers": {k: read(text, "headers", k, secret=True, open_places=True) for k, text in skill.headers.items()},
        "json": read(skill.body, "json", secret=True, open_places=True),
        "base_url": read(skill.base_url, "base_url", secret=_in_credentials),
        "api_key": read(skill.api_key, "api_key", secret=True),
        "model": read(skill.model, "model"),
        "system": read(skill.system, "system", open_places=True),
        "prompt": read(skill.prompt, "prompt", open_places=True),
        "options": read(skill.options, "options"),
    }
    if skill.requires:
        for (key, *at), place in left_open(texts):
            root = place.name.partition(".")[0]
            if root not in skill.requires and root not in ROOTS:
                hint = did_you_mean(root, skill.requires)
                read.build.note(f"{place} is not among requires", (*read.loc, key, *at), hint)
    return BoundSkill(
        name, skill, {key: value for key, value in texts.items() if value is not None and value != {}}, loc
    )
