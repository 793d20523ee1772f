"""Rest: one HTTP request.

``options``: ``parts`` (the URL cut at its places: texts, references, and numbers of ``args``), ``method``, ``headers``, ``json`` or
``text``, ``ok_codes``, ``form`` (json, text, bytes, response), ``limits`` (timeout_s).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from procflow.call import StepCall
from procflow.compiling.template import fill
from procflow.sources.opened import shown_url
from procflow.sources.web import accepted, address, send

__all__ = ["run"]


def run(call: StepCall, values: Callable[[str], Any]) -> Any:
    """The answer in the form asked for. Raises ``SourceError``."""
    options = call.options
    url = address(options["parts"], [fill(tree, values) for tree in call.args], values)
    body, text = fill(options.get("json"), values), fill(options.get("text"), values)
    method = options.get("method") or ("GET" if body is None and text is None else "POST")
    what = f"{method} {shown_url(url)}"
    reply = send(
        method, url, what=what, headers=fill(options.get("headers"), values), json=body,
        text=None if text is None else str(text), timeout_s=options["limits"].get("timeout_s"),
    )  # fmt: skip
    form = options.get("form") or "json"
    accepted(reply, what, options.get("ok_codes"))
    if form == "json":
        return reply.json(what) if reply.body.strip() else None
    if form == "text":
        return reply.text
    if form == "bytes":
        return reply.body
    is_json = "json" in reply.headers.get("content-type", "") and reply.body.strip()
    return {"status": reply.status, "headers": dict(reply.headers), "body": reply.json(what) if is_json else reply.text}
