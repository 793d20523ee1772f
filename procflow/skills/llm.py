"""LLM: one chat completion at any OpenAI-compatible service, answered in the names that the skill produces.

It asks for JSON by the skill's schema; a service that does not know ``response_format`` is asked in words, and either way
the answer is checked. 429 and 5xx end the attempt as ``ServiceBusy``; the scheduler tries again, after the pause that the
service asks for, so no worker is held meanwhile. Tokens are metrics, and with ``prices`` a cost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from procflow import step
from procflow.secrets import masked
from procflow.skills.answers import AnswerError, schema_of
from procflow.sources.opened import shown_url
from procflow.sources.web import Refused, Reply, accepted, quoted, send

__all__ = ["run"]

TIMEOUT_S = 600.0
MILLION = 1e6
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL)
_WORDS = "Answer with one JSON object and nothing else. It has to fit this JSON Schema:\n"
_NO_FORMAT = re.compile(r"response_format|json_schema|json_object|structured", re.IGNORECASE)
# Services that were found not to know response_format, by URL and model, for the life of this worker.
_in_words: set[tuple[str, str]] = set()


def run(name: str, options: Mapping[str, Any], timeout_s: float | None) -> Any:
    """The answer as JSON, or ``{"text": ...}`` where the skill declares nothing; not yet checked."""
    url = options["base_url"].strip().rstrip("/")
    url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
    what = f"skill {name!r} ({options['model']} at {shown_url(url)})"
    headers = dict(options.get("headers") or {})
    if options.get("api_key"):
        headers.setdefault("authorization", f"Bearer {options['api_key']}")
    reply = _asked(name, options, url, what, headers, timeout_s)
    answer = reply.json(what)
    _count(answer, options.get("prices"))
    text = _text(answer, reply, what)
    if not options.get("produces"):
        return {"text": text}
    return _parsed(text, what)


def _asked(
    name: str, options: Mapping[str, Any], url: str, what: str, headers: Mapping[str, str], timeout_s: float | None
) -> Reply:
    known = (url, options["model"])
    form = options.get("response_format") or "json_schema"
    if not options.get("produces"):
        form = "none"
    elif known in _in_words:
        form = "text"
    reply = send(
        "POST", url, what=what, headers=headers, json=_payload(name, options, form), timeout_s=timeout_s or TIMEOUT_S
    )
    if (
        form in ("json_schema", "json_object")
        and reply.status in (400, 404, 415, 422, 501)
        and _NO_FORMAT.search(reply.text)
    ):
        step.log.info("%s does not know response_format %s: asked in words", what, form)
        _in_words.add(known)
        payload = _payload(name, options, "text")
        reply = send("POST", url, what=what, headers=headers, json=payload, timeout_s=timeout_s or TIMEOUT_S)
    return accepted(reply, what)


def _payload(name: str, options: Mapping[str, Any], form: str) -> dict[str, Any]:
    system = options.get("system") or ""
    payload: dict[str, Any] = {"model": options["model"]}
    if form != "none":
        schema = schema_of(options["produces"])
        if form == "json_schema":
            strict = all(options["produces"][key] != "any" for key in options["produces"])
            about = {"name": name[:64], "schema": schema, "strict": strict}
            payload["response_format"] = {"type": "json_schema", "json_schema": about}
        else:
            system = f"{system}\n\n{_WORDS}{json.dumps(schema)}".strip()
            if form == "json_object":
                payload["response_format"] = {"type": "json_object"}
    told = [{"role": "system", "content": system}] if system else []
    payload["messages"] = [*told, {"role": "user", "content": str(options["prompt"])}]
    return payload | dict(options.get("options") or {})


def _count(answer: Any, prices: Any) -> None:
    """Tokens and their cost, also of an answer that will be refused."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    if not isinstance(usage, Mapping):
        return
    cost = 0.0
    for key, metric, price in (("prompt_tokens", "input_tokens", 0), ("completion_tokens", "output_tokens", 1)):
        count = usage.get(key)
        if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
            step.metric(metric, step._now().metrics.get(metric, 0) + count)
            cost += count * prices[price] / MILLION if prices else 0.0
    if cost:
        step.cost(cost)


def _text(answer: Any, reply: Reply, what: str) -> str:
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content = message.get("content")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise Refused(f"{what}: this is no chat completion: {quoted(reply)}") from None
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if choice.get("finish_reason") == "length":
        raise AnswerError(f"{what}: the answer was cut off; raise max_tokens under options")
    if message.get("refusal"):
        raise AnswerError(f"{what} refused: {masked(str(message['refusal']))[:500]}")
    if not isinstance(content, str) or not content.strip():
        raise AnswerError(f"{what} answered nothing")
    return content


def _parsed(text: str, what: str) -> Any:
    """The JSON in a text: the text itself, what is fenced in it, or from its first brace to its last."""
    candidates = [text.strip(), *(found.strip() for found in _FENCED.findall(text))]
    if "{" in text and "}" in text:
        candidates.append(text[text.index("{") : text.rindex("}") + 1])
    for candidate in candidates:
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    shown = masked(text.strip())
    raise AnswerError(f"{what} answered no JSON object: {shown[:300]!r}{'...' if len(shown) > 300 else ''}")
