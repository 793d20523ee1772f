"""Queries of Agent Builder pipelines: ``{key}`` as bound values, ``credential_ref`` as a source.

No text of a value ever becomes text of a query. Where the URL of a source comes from is said by ``convert``: the environment.
"""

from __future__ import annotations

import re

from procflow.dialects.agent_builder_values import Known, Pool
from procflow.dialects.foreign import Made, Part, escaped, name_of, near

__all__ = ["Queries"]

_QUOTED_VALUE = re.compile(r"'(\{[^{}']+\})'")


class Queries:
    """The query steps of one document. ``sources`` are those they ask."""

    def __init__(self, action: Part, pool: Pool) -> None:
        self.action = action
        self.pool = pool
        self.sources: dict[str, Made] = {}

    def step(self, part: Part, known: Known, name: str) -> Made:
        """The query of a step, without what it writes."""
        kinds = ("postgres", "postgresql", "mongodb", "redis")
        kind = part["source"] if "source" in part else self.action["source"]
        kind.choice(kinds, required=True)
        for at in (part, self.action):
            if "db_config_file" in at:
                at["db_config_file"].fail(
                    "procflow reads no such file", "put the URL into the environment and take this out"
                )
        credential = part["credential_ref"] if "credential_ref" in part else self.action["credential_ref"]
        step = Made(part, type="query", name=name)
        step.set("source", self._source(credential), credential)
        query, read = part["query"], dict[str, str]()
        if query.value is not None:
            text = query.text()
            self._templates(query, text, known, read)
            step.set("query", _QUOTED_VALUE.sub(r"\1", escaped(text)), query)
        step.put("collection", part["collection"].text(), part["collection"])
        if part["filter"].is_there:
            self._templates(part["filter"], repr(part["filter"].value), known, read)
            step.set("filter", escaped(part["filter"].value), part["filter"])
        if query.value is None and "collection" not in step:
            part.fail("a query needs query, or collection and filter")
        # Inputs only limit what is read there; here a query reads what its text names.
        step.put("inputs", {key: value for key, value in read.items() if value != f"${{{key}}}"}, query)
        return step

    def _source(self, credential: Part) -> str:
        written = credential.text(required=True)
        name = name_of(written, "source")
        variable = re.sub(r"\W", "_", name).upper() + "_URL"
        if name not in self.sources:
            credential.note(f"the URL of source {name!r} is taken from the environment variable {variable}")
        self.sources.setdefault(name, Made(credential, url=f"${{env.{variable}}}"))
        return name

    def _templates(self, part: Part, text: str, known: Known, read: dict[str, str]) -> None:
        """What the ``{key}`` of a text read; a key that nobody makes is an error there, too."""
        for found in re.finditer(r"(?<!\{)\{\s*([A-Za-z_][\w-]*)(?:\.[\w.-]+)?\s*\}", text):
            key = found[1]
            if key in known.values or key in self.pool.required or known.is_open:
                read[key] = self.pool.read(key, known, part)
            elif key not in known.hidden:
                hint = (
                    near(key, [*known.values, *self.pool.required])
                    or f"there are {', '.join([*known.values, *self.pool.required]) or 'none'}"
                )
                part.fail(f"nothing makes {key!r}", hint)
            else:
                self.pool.read(key, known, part)
