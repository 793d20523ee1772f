"""Asking: the StepCall of ``query``, ``skill`` and ``rest`` steps, with ``{name}`` bound to values. Pure.

A name is looked up among the step's ``params``, then its ``inputs``, then the values there are, then the pipeline's parameters.
What workers get are texts cut at the places of values, and argument trees for these; see ``procflow/steps/``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from procflow.call import StepCall
from procflow.compiling.bindings import Bound, settled
from procflow.compiling.build import Binder, Setting
from procflow.compiling.declared import BoundSkill, BoundSource, Declared, asked_for, produced
from procflow.compiling.names import did_you_mean
from procflow.compiling.naming import Cut, Names, cut_sql, cut_url
from procflow.errors import Loc
from procflow.graph import RetrySpec, TaskUnit
from procflow.model import AnyStep, Query, Rest, UseSkill

if TYPE_CHECKING:
    from procflow.compiling.leaves import Common

__all__ = ["call_of", "equipped", "waits"]

_OWN_KEYS = {
    "sql": ("query",), "duckdb": ("query",), "redis": ("command",), "rest": ("query", "method", "headers", "body", "rows"),
    "mongodb": (
        "collection", "filter", "projection", "sort", "skip", "limit", "aggregate", "insert", "update", "delete",
    ),
}  # fmt: skip
_NEEDED = {"sql": "query", "duckdb": "query", "mongodb": "collection", "redis": "command"}
_ALIAS = {"body": "json", "form": "as"}
BUSY = "ServiceBusy"
"""What a service raises that is busy or broken for now: 429 and 5xx."""
BEHIND_S = 1.0
_BUSY_RETRIES = RetrySpec(retries=4, delay_s=1.0, on=frozenset({BUSY}))


def call_of(step: Query | UseSkill | Rest, common: Common, bind: Binder, declared: Declared) -> StepCall:
    """The call of a step that asks something outside."""
    if isinstance(step, Query):
        return _query(step, common, bind, declared)
    if isinstance(step, Rest):
        return _rest(step, common, bind)
    return _skill(step, common, bind, declared)


# -- query -----------------------------------------------------------------------------------------------------


def _source(step: Query, bind: Binder, declared: Declared) -> BoundSource | None:
    source = declared.sources.get(step.source)
    if source is None and f"source {step.source}" not in declared.broken:
        near = did_you_mean(step.source, declared.sources)
        bind.note(
            f"there is no source {step.source!r}", "source", hint=near or f"declare it: sources: {{{step.source}: URL}}"
        )
    return source


def _query(step: Query, common: Common, bind: Binder, declared: Declared) -> StepCall:
    source = _source(step, bind, declared)
    names = Names.of(step, bind)
    if source is None:
        return StepCall("query", **common)
    if source.kind == "redis" and step.query is not None and step.command is None:
        step = step.model_copy(update={"command": step.query, "query": None})
    _fitting(step, source, bind)
    options: dict[str, Any] = {"source": dict(source.spec), "form": step.form}
    cut = Cut(names)
    if source.kind in ("sql", "duckdb"):
        cut = cut_sql(step.query or "", names)
    elif source.kind == "rest":
        cut = cut_url(step.query or "", names, "query")
        options |= {"method": step.method, "rows": step.rows, "headers": _headers(step.headers, names)}
        options["json"] = names.text(step.body, "json")
    elif source.kind == "redis":
        options["command"] = names.text(_words(step.command, bind), "command")
    else:
        names.plain = True
        for key in (
            "collection",
            "filter",
            "projection",
            "sort",
            "skip",
            "limit",
            "aggregate",
            "insert",
            "update",
            "delete",
        ):
            given = getattr(step, key)
            if given is not None and given is not False:
                options[key] = names.text(given, key, whole=True)
    names.check_used(step)
    options["parts"] = tuple(cut.parts)
    return StepCall("query", args=tuple(cut.values), options=options, params=names.params, **common)


def _fitting(step: Query, source: BoundSource, bind: Binder) -> None:
    """Keys that this kind of source can't honour, and the one that it needs."""
    own = _OWN_KEYS[source.kind]
    for keys in _OWN_KEYS.values():
        for key in keys:
            if key in own or key not in step.model_fields_set or getattr(step, key) in (None, False, {}):
                continue
            homes = " or ".join(kind for kind, theirs in _OWN_KEYS.items() if key in theirs)
            told = f"{_ALIAS.get(key, key)} has no meaning for source {step.source!r}, which is {source.kind}"
            bind.note(told, _ALIAS.get(key, key), hint=f"a key of {homes}")
    needed = _NEEDED.get(source.kind)
    if needed is not None and getattr(step, needed) is None:
        bind.note(f"source {step.source!r} is {source.kind}: this step needs {needed}", hint=f"write {needed}: ...")
    if source.kind == "redis" and step.form != "rows":
        bind.note(f"as: {step.form} has no meaning for redis", "as", hint="what redis answers is the value")
    if source.kind == "mongodb" and step.form != "rows" and (step.insert or step.update or step.delete):
        bind.note(f"as: {step.form} has no meaning for a change", "as", hint="its value is {affected_rows: n}")


def _words(command: Any, bind: Binder) -> list[Any]:
    """The words of a redis command; a line is cut as a shell would, before anything is bound."""
    if not isinstance(command, str):
        return list(command or ())
    import shlex

    try:
        return shlex.split(command)
    except ValueError as error:
        bind.note(f"command: {error}", "command", hint="write a list")
        return []


def _headers(headers: Mapping[str, str], names: Names) -> dict[str, Any]:
    return {key: names.text(text, "headers", key) for key, text in headers.items()}


# -- rest ------------------------------------------------------------------------------------------------------


def _rest(step: Rest, common: Common, bind: Binder) -> StepCall:
    names = Names.of(step, bind)
    cut = cut_url(step.url, names, "url")
    options = {
        "parts": tuple(cut.parts), "method": step.method, "headers": _headers(step.headers, names), "form": step.form,
        "json": names.text(step.body, "json"), "text": names.text(step.text, "text"), "ok_codes": step.ok_codes,
    }  # fmt: skip
    names.check_used(step)
    return StepCall("rest", args=tuple(cut.values), options=options, params=names.params, **common)


# -- skill -----------------------------------------------------------------------------------------------------


def _skill(step: UseSkill, common: Common, bind: Binder, declared: Declared) -> StepCall:
    bound = declared.skills.get(step.skill)
    names = Names.of(step, bind)
    if bound is None:
        if f"skill {step.skill}" not in declared.broken:
            near = did_you_mean(step.skill, (*declared.skills, *declared.installed))
            bind.note(
                f"there is no skill {step.skill!r}", "skill", hint=near or f"declare it: skills: {{{step.skill}: ...}}"
            )
        return StepCall("skill", **common)
    skill = bound.skill
    given = {name: names(Bound(name), "skill") for name in asked_for(bound)}
    if skill.kind == "python":
        given.update(
            {name: names(Bound(name), "skill") for name in (*names.inputs, *names.params) if name not in given}
        )
    else:
        names.check_used(step)
    for i, name in enumerate(step.outputs if isinstance(step.outputs, tuple) else ()):
        if produced(skill) and name not in produced(skill):
            hint = did_you_mean(name, produced(skill)) or f"it produces {', '.join(produced(skill))}"
            bind.note(f"skill {step.skill!r} produces no {name!r}", "outputs", i, hint=hint)
    options = {
        "skill": bound.name, "kind": skill.kind, "requires": dict(skill.requires), "produces": dict(skill.produces),
        "whole": step.output is not None,
        **_of_kind(bound, names),
    }  # fmt: skip
    function = skill.function if skill.kind == "python" else None
    return StepCall("skill", function=function, kwargs=given, options=options, params=names.params, **common)


def _of_kind(bound: BoundSkill, names: Names) -> dict[str, Any]:
    skill = bound.skill

    def found(place: Bound, loc: Loc) -> Any:
        return names(place, "skill")

    spec = {key: settled(tree, found) for key, tree in bound.spec.items() if key != "url"}
    if skill.kind == "rest":
        url = bound.spec.get("url")
        cut = Cut(names)
        cut.add(list(getattr(url, "parts", (url,))), "skill")
        return {
            **spec,
            "parts": tuple(cut.parts),
            "values": tuple(cut.values),
            "method": skill.method,
            "ok_codes": skill.ok_codes,
        }
    if skill.kind == "llm":
        prices = skill.prices
        spec |= {"response_format": skill.response_format, "prices": (prices.input, prices.output) if prices else None}
    return spec


# -- where it runs ---------------------------------------------------------------------------------------------


def waits(step: AnyStep, setting: Setting) -> bool:
    """Whether the step mostly waits, and nothing asks that it can be stopped: then threads do, unless an executor is named."""
    if isinstance(step, UseSkill):
        bound = setting.declared.skills.get(step.skill)
        if bound is None or bound.skill.kind == "python":
            return False
    elif not isinstance(step, (Query, Rest)):
        return False
    if setting.asked or setting.clocked or step.executor is not None:
        return False
    keys: tuple[Callable[[Any], Any], ...] = (lambda s: s.timeout, lambda s: s.idle_timeout, lambda s: s.memory)
    return all(key(step) is None and key(setting.defaults) is None for key in keys)


def equipped(setting: Setting, step: AnyStep, unit: TaskUnit) -> TaskUnit:
    """The task of a query, skill or request with what follows from where it runs and what it asks."""
    if isinstance(step, Query):
        source = setting.declared.sources.get(step.source)
        if source is None:
            return unit
        limits = {
            "timeout_s": _least(source.timeout_s, _behind(unit)),
            "asked_s": source.timeout_s,
            "most": source.max_connections,
            # An idle connection in one worker would keep another worker's query out.
            "kept": unit.executor != "processes" or source.max_connections is None,
            "cpus": unit.cpus,
            "memory_bytes": unit.memory_bytes,
        }
        resources = {**unit.resources, source.resource: 1.0} if source.resource is not None else unit.resources
        rates = (*unit.rates, source.rate) if source.rate is not None else unit.rates
        return replace(unit, call=_limited(unit.call, limits), resources=resources, rates=rates)
    if isinstance(step, Rest):
        return replace(unit, call=_limited(unit.call, {"timeout_s": _behind(unit)}))
    assert isinstance(step, UseSkill)
    bound = setting.declared.skills.get(step.skill)
    if bound is None or bound.skill.kind == "python":
        return unit
    retry = unit.retry
    if bound.skill.kind == "llm" and retry == RetrySpec() and step.retries is None and step.retry is None:
        retry = _BUSY_RETRIES
    return replace(
        unit, call=_limited(unit.call, {"timeout_s": _least(bound.skill.timeout, _behind(unit))}), retry=retry
    )


def _behind(unit: TaskUnit) -> float | None:
    """The clock of what was asked, a little behind that of the attempt: where its worker is stopped, a server gives up too."""
    return None if unit.timeout_s is None else unit.timeout_s + BEHIND_S


def _least(*clocks: float | None) -> float | None:
    return min((clock for clock in clocks if clock is not None), default=None)


def _limited(call: StepCall, limits: Mapping[str, Any]) -> StepCall:
    return replace(call, options={**call.options, "limits": dict(limits)})
