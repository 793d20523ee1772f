"""Parallel group: content pipelines whose steps hand on one value, with groups of steps that run at once.

The data's way is implicit: each step takes what the step before it made; members of a group all take the same. A group is
written in four ways, which mean one thing here: ``params: {parallel_steps}``, ``steps`` beside ``merge_strategy`` (in any case),
``steps`` with ``max_workers`` and ``fail_fast``, ``parallel_config`` with ``step_type``. Every other type is a function that
the user binds, by ``type`` or by ``type/model``; it is called with the value, and with ``model``, ``params`` and the folder for
outputs (where the file names one) by keyword. Meanings:

- a group waits for all its members and succeeds if one of them does, whatever its strategy; with ``fail_fast: true`` the first
  failure stops it;
- ``best_quality``, which upstream is the first success, is what a score says: ``score`` beside it, or a binding ``best_quality``;
- ``retry_count`` holds (upstream reads it and does nothing); ``split_input`` before a group gives each member a part of its own;
- what is not written has no effect: upstream's own defaults for ``max_workers`` and ``timeout`` are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from procflow.dialects.foreign import Made, Part, Translation, name_of, near
from procflow.dialects.parallel_group_parts import KINDS, SHAPES, Data, found, in_words, members_after, type_of
from procflow.dialects.parallel_group_settings import Settings
from procflow.dialects.parallel_group_templates import Templates
from procflow.grammar import is_name

__all__ = ["matches", "translate"]

_RUNTIME = "procflow.dialects.runtime"
_STRATEGIES = {
    "collect_all": "collect_all", "first_success": "first_success", "first_only": "first_success",
    "best_quality": "best_quality", "merge_outputs": "combine_outputs", "latest_only": f"{_RUNTIME}:last",
}  # fmt: skip
_STEP_KEYS = (
    "type", "step_type", "name", "description", "model", "params", "config", "enabled", "retry_count", "input_from", "for_each",
    "output_filename", "timeout",
)  # fmt: skip
_OWN_KEYS = ("type", "step_type", "name", "description", "enabled", "input_from", "params")
"""Of steps that call no function of the user's."""
_GROUP_KEYS = ("merge_strategy", "max_workers", "fail_fast", "timeout", "score")
_ROOT_KEYS = (
    "name", "pipeline_name", "description", "version", "prompt", "input_type", "input_video", "input_image", "steps", "output_dir",
    "output_directory", "temp_dir", "cleanup_temp", "save_intermediates", "settings", "config", "global_config",
)  # fmt: skip


def matches(document: Mapping[str, Any]) -> bool:
    """A list of steps of which one has a type of this format."""
    steps = document.get("steps")
    if not isinstance(steps, list):
        return False
    known = {*KINDS, *SHAPES}
    return any(isinstance(step, dict) and ("step_type" in step or step.get("type") in known) for step in steps)


def translate(work: Translation) -> Made | None:
    """The pipeline."""
    return _Content(work).pipeline()


class _Content:
    def __init__(self, work: Translation) -> None:
        self.work = work
        self.root = work.root
        self.templates = Templates()
        self.settings = Settings(work.root)
        self._names: dict[str, Part] = {}
        self._made: dict[str, Data] = {}

    def pipeline(self) -> Made | None:
        root = self.root
        root.only(_ROOT_KEYS, tolerant=True)
        title = root["pipeline_name"] if "pipeline_name" in root else root["name"]
        made = Made(root).set("name", name_of(title.text(), "content"), title)
        made.put("description", root["description"].text(), root["description"])
        made["params"] = {}
        limits, folder = self.settings.limits(), self.settings.folder()
        made.put("limits", limits)
        listed = root["steps"].members(1, "a list of steps")
        start = self._start(made["params"], listed)
        if folder is not None:
            made["params"]["output_dir"] = {"default": folder}
        steps, end = self._chain(listed, start)
        made.put("show", [end.reference[2:-1].partition(".")[0]] if not end.reference.startswith("${params.") else [])
        if self.settings.keeps():
            made.put("keep", sorted(self._made))
        return made.set("steps", steps, root["steps"])

    def _start(self, params: dict[str, Any], listed: list[Part]) -> Data:
        """What the first step takes: the prompt, or a file."""
        root = self.root
        kinds = {"prompt": "text", "input_image": "image", "input_video": "video"}
        given = [(root[key], kind) for key, kind in kinds.items() if key in root]
        wanted = root["input_type"].choice(("auto", "text", "image", "video"), "auto")
        if wanted == "auto" and listed:
            wanted = KINDS.get(type_of(listed[0]).text(), ("", ""))[0]
        fitting = [(part, kind) for part, kind in given if kind == wanted] or given
        if not fitting:
            params["input"] = {"required": True, "help": "what the first step takes"}
            return Data("${params.input}")
        part, kind = fitting[0]
        params["input"] = Made(part).set("default", self.templates.value(part, None), part)
        for other, _ in given:
            if other is not part:
                other.note(f"the first step takes {part.path}; left out")
        return Data("${params.input}", kind)

    # -- chains --------------------------------------------------------------------------------------------------------

    def _chain(self, parts: list[Part], data: Data) -> tuple[list[Made], Data]:
        """Steps that hand on a value, and what the last of them gives."""
        made: list[Made] = []
        for i, part in enumerate(parts):
            if not part.mapping(required=True):
                continue
            if not part["enabled"].flag(True):
                part.note("disabled (enabled: false); left out")
                continue
            members = 0
            if type_of(part).value == "split_input":
                members = members_after(parts, i)
            steps, data = self._step(part, data, members)
            made += steps
        return made, data

    def _step(self, part: Part, data: Data, members: int = 0, in_group: bool = False) -> tuple[list[Made], Data]:
        """One step in procflow's language, and what it hands on."""
        written = type_of(part)
        kind = written.text(required=True)
        name = self._name(part, kind)
        if "input_from" in part:
            data = self._from(part["input_from"]) or data
        if kind == "parallel_group":
            made, gives = self._group(part, name, data)
        elif kind == "split_input":
            made, gives = self._split(part, name, data, members)
        elif kind == "merge_results":
            made, gives = self._merge_results(part, name, data)
        elif kind == "batch_process":
            made, gives = self._batch(part, name, data)
        else:
            made, gives = self._leaf(part, name, data, kind, in_group)
        if made and part["description"].text():
            made[0].set("description", part["description"].value, part["description"])
        self._made[name] = replace(gives, parts=0)
        self.templates.known[name] = f"${{{name}}}"
        return made, gives

    def _name(self, part: Part, kind: str) -> str:
        written = part["name"]
        name = name_of(written.text(), "")
        if name:
            if name in self._names:
                written.fail(
                    f"{name!r} names a step already, and both would write its output",
                    f"the other is {self._names[name].path}: rename one",
                )
            self._names[name] = part
            return name
        stem = name_of(kind, "step")
        free, count = stem, 1
        while free in self._names:
            count += 1
            free = f"{stem}_{count}"
        self._names[free] = part
        return free

    def _from(self, part: Part) -> Data | None:
        name = name_of(part.text(required=True).strip("{} ").removeprefix("step_").removesuffix(".output"), "")
        if name not in self._made:
            part.fail(
                f"no step before is named {name!r}", near(name, self._made) or "name a step that runs before this one"
            )
        return self._made.get(name)

    # -- steps that call a function ------------------------------------------------------------------------------------

    def _leaf(self, part: Part, name: str, data: Data, kind: str, in_group: bool) -> tuple[list[Made], Data]:
        part.only(_STEP_KEYS)
        takes, gives = KINDS.get(kind, ("", ""))
        if takes and data.kind and takes != data.kind:
            type_of(part).fail(
                f"{kind} takes {in_words(takes)}, and the step before gives {in_words(data.kind)}",
                "put a step between them, or name another with input_from",
            )
        step = Made(part, type="transform", name=name)
        self._call(step, part, kind, data)
        if "for_each" in part:
            items = self._from(part["for_each"])
            step.set("type", "map", part["for_each"]).put("items", (items or data).reference, part["for_each"])
            del step["inputs"]
            gives = ""
        if kind == "prompt_generation" and not in_group:
            step["output"] = "generated_prompt"
            self.templates.known["generated_prompt"] = "${generated_prompt}"
            part.note("hands on what it took; its own value is {{generated_prompt}}")
            return [step], data
        return [step], Data(f"${{{name}}}", gives)

    def _call(self, step: Made, part: Part, kind: str, data: Data) -> None:
        """The function of a step with what it is called with."""
        model = part["model"]
        settings = part["params"] if part["params"].is_there else part["config"]
        params = Made(settings if settings.is_there else part)
        if model.value is None and part["type"].is_there:
            if "model" not in settings:
                part["model"].fail("is missing", "every step of this format names a model")
        elif model.is_there:
            params.put("model", model.text(), model)
        if settings.mapping():
            for key, each in settings.items():
                if key in params:
                    each.fail("the step names another model beside params", "keep one", on_key=True)
                elif not is_name(key):
                    each.fail("can't be a keyword of a function", "write letters, digits and _", on_key=True)
                params.set(key, self.templates.value(each, data.reference), each)
        if part["output_filename"].text():
            params.set(
                "output_filename",
                self.templates.value(part["output_filename"], data.reference),
                part["output_filename"],
            )
        if self.settings.folder() is not None and "output_dir" not in params:
            params["output_dir"] = "${params.output_dir}"
        names = [f"{kind}/{model.value}"] if isinstance(model.value, str) else []
        step.take(Made(part, **self.work.bound(type_of(part), *names, kind, what="step type")))
        step.origins["function"] = type_of(part)
        step["inputs"] = [data.plain]
        step.put("params", params, settings)
        step.put("timeout", part["timeout"].seconds(), part["timeout"])
        retries = part["retry_count"].whole(0)
        if retries:
            step.set("retries", retries, part["retry_count"])

    # -- groups --------------------------------------------------------------------------------------------------------

    def _group(self, part: Part, name: str, data: Data) -> tuple[list[Made], Data]:
        place = {key: found(part, key) for key in _GROUP_KEYS}
        part.only((*_OWN_KEYS, *_GROUP_KEYS, "model", "retry_count", "steps", "parallel_config"))
        params = part["params"]
        if params.mapping():
            params.only((*_GROUP_KEYS, "parallel_steps", "steps"))
        if part["parallel_config"].mapping():
            part["parallel_config"].only(_GROUP_KEYS)
        if part["model"].text("parallel") != "parallel":
            part["model"].fail("the model of a group is parallel", "take it out")
        listed = next(
            (p for p in (part["steps"], params["parallel_steps"], params["steps"]) if p.is_there), part["steps"]
        )
        members: list[Made] = []
        about: dict[str, Any] = {}
        active = [
            p for p in listed.members(1, "a list of steps") if not p.mapping(required=True) or p["enabled"].flag(True)
        ]
        if data.parts and data.parts != len(active):
            listed.fail(
                f"{len(active)} members share {data.parts} parts",
                "split into as many parts as there are members",
            )
        before = dict(self.templates.known)
        for i, member in enumerate(active):
            if not isinstance(member.value, dict):
                continue
            steps, gives = self._step(member, data.part(i), in_group=True)
            self.templates.known = dict(before)  # members can't see each other's values
            own = gives.reference[2:-1]
            members.append(steps[0] if len(steps) == 1 else _as_one(member, own, steps))
            about[own] = {"step_index": i, "step_type": type_of(member).value, "model": member["model"].value}
        block = Made(part, type="parallel", name=name)
        block.put("max_parallelism", self.settings.at_once(place["max_workers"]), place["max_workers"])
        block.put("timeout", place["timeout"].seconds(), place["timeout"])
        if place["fail_fast"].flag():
            block.set("on_error", "stop", place["fail_fast"])
        else:
            block.update(on_error="continue", tolerate=max(0, len(active) - 1))
        block.put("retries", part["retry_count"].whole(0) or None, part["retry_count"])
        return self._merged(block.put("steps", members, listed), name, place, about), Data(f"${{{name}}}")

    def _merged(self, block: Made, name: str, place: dict[str, Part], about: dict[str, Any]) -> list[Made]:
        """The group with its strategy; ``collect_all`` adds to each result what is known of its step."""
        strategy = self._strategy(place["merge_strategy"], "collect_all")
        if strategy == "collect_all":
            block["output"] = f"{name}_results"
            shaped = Made(block.origin, type="transform", name=f"{name}_collected", function=f"{_RUNTIME}:collected")
            shaped.update(inputs={"results": f"{name}_results"}, params={"about": about}, output=name)
            return [block, shaped]
        block.update(merge=strategy, output=name)
        block.origins["merge"] = place["merge_strategy"]
        if strategy == "best_quality":
            self._score(block, place)
        return [block]

    def _score(self, block: Made, place: dict[str, Part]) -> None:
        score = place["score"].text()
        if score:
            block.set("score", score, place["score"])
        else:
            block.set("score", self.work.bound(place["merge_strategy"], "best_quality", what="score")["function"])

    def _strategy(self, part: Part, default: str) -> str:
        return _STRATEGIES[part.choice(tuple(_STRATEGIES), default, any_case=True) or default]

    # -- splitting and merging -----------------------------------------------------------------------------------------

    def _split(self, part: Part, name: str, data: Data, members: int) -> tuple[list[Made], Data]:
        keys = ("strategy", "into")
        part.only((*_OWN_KEYS, *keys))
        part["params"].only(keys)
        place = {key: found(part, key) for key in keys}
        into = place["into"].whole(least=1) or members
        if not into:
            part.fail("into how many parts?", "write into: N; before a parallel_group it is the number of its members")
        step = Made(part, type="split", name=name, inputs=[data.plain])
        step.put(
            "strategy",
            place["strategy"].choice(("duplicate", "round_robin", "chunks"), "chunks", any_case=True),
            place["strategy"],
        )
        step.set("into", into or 1, place["into"])
        return [step], Data(f"${{{name}}}", parts=into if members else 0)

    def _merge_results(self, part: Part, name: str, data: Data) -> tuple[list[Made], Data]:
        keys = ("merge_strategy", "strategy", "score")
        part.only((*_OWN_KEYS, *keys))
        part["params"].only(keys)
        place = {key: found(part, key) for key in keys}
        written = place["merge_strategy"] if place["merge_strategy"].is_there else place["strategy"]
        strategy = self._strategy(written, "merge_outputs")
        step = Made(part, type="transform", name=name, function=f"{_RUNTIME}:merged", inputs=[data.plain])
        step.set("params", Made(part).set("strategy", strategy.removeprefix(f"{_RUNTIME}:"), written), written)
        if strategy == "best_quality":
            scored = Made(part)
            self._score(scored, {**place, "merge_strategy": written})
            step["params"]["score"] = scored["score"]
        return [step], Data(f"${{{name}}}")

    def _batch(self, part: Part, name: str, data: Data) -> tuple[list[Made], Data]:
        """Batches of the value, a map over them, and a merge of what it gives."""
        keys = ("batch_size", "max_workers", "merge_strategy", "score", "steps", "step")
        part.only((*_OWN_KEYS, *keys))
        part["params"].only(keys)
        place = {key: found(part, key) for key in keys}
        cut = Made(part, type="transform", name=f"{name}_batches", function=f"{_RUNTIME}:batches", inputs=[data.plain])
        cut.set("params", {"size": place["batch_size"].whole(1, least=1, required=True)}, place["batch_size"])
        each = Made(part, type="map", name=name, items=f"${{{name}_batches}}")
        each["as"] = "batch"
        each.put("max_parallelism", self.settings.at_once(place["max_workers"]), place["max_workers"])
        listed = [place["step"]] if place["step"].is_there else place["steps"].members(1, "a list of steps, or step")
        known = dict(self.templates.known)
        steps, _ = self._chain(listed, Data("${batch}"))
        self.templates.known = known
        each.put("steps", steps, place["steps"])
        strategy = self._strategy(place["merge_strategy"], "merge_outputs")
        if strategy != "collect_all":
            each.set("merge", strategy if ":" not in strategy else f"{_RUNTIME}:last_item", place["merge_strategy"])
        if strategy == "best_quality":
            self._score(each, place)
        return [cut, each.set("output", name)], Data(f"${{{name}}}")


def _as_one(part: Part, name: str, steps: list[Made]) -> Made:
    """Several steps as one member that is worth what the last is worth."""
    made = Made(part, type="sequence", name=f"{name}_steps", merge=f"{_RUNTIME}:last", output=name)
    return made.put("steps", steps)
