"""The page: one HTML file that tells a run, for a browser without a network and without scripts.

It turns facts and figures into texts, and Jinja2 (imported here, and only for a report) sets them into ``page.html``, escaping
everything that is not a drawing of our own. It reads no journal, and nothing in it can make the page act: there is no
script, no form and no address in it.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from procflow import __version__
from procflow.plaintext import clean, counted, shortened
from procflow.report.chains import give_lanes, mark_critical, queued
from procflow.report.facts import Facts, Session, read_facts
from procflow.report.failures import advice, groups
from procflow.report.figures import StepFigures, cores_used, shares, step_figures
from procflow.report.plots import Curve, curves, ticks, timeline
from procflow.showing.drawing import SHARED, STATUS_MARKS, svg
from procflow.showing.layout import MOST_MEMBERS, MOST_TILES, NARROW_W
from procflow.showing.shape import MOST, Part
from procflow.storing.history import History, RunRow
from procflow.storing.state_folder import locate
from procflow.units import duration_text, size_text

__all__ = ["page", "write_page"]

HERE = Path(__file__).parent
MOST_STEPS = 40
LEAST_SHORT = 200
MOST_PARAMS = 100
STATUS_WORDS = {
    "succeeded": "succeeded", "partial": "finished with tolerated failures", "failed": "failed", "timed_out": "timed out",
    "cancelled": "stopped", "killed": "was killed", "running": "is running",
}  # fmt: skip
_LOOKS = {"succeeded": "ok", "partial": "lost", "failed": "bad", "timed_out": "bad", "killed": "bad", "running": "run"}


def write_page(past: History, run: RunRow, target: Path, now: datetime | None = None) -> None:
    """Write the report of a run. OSError where the file can't be written, StoreError where the run can't be read."""
    target.write_text(page(past, run, now), "utf-8")


def page(past: History, run: RunRow, now: datetime | None = None) -> str:
    """The report of a run as HTML."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    facts = read_facts(past, run, now)
    view = _view(past, facts)
    view["css"] = Markup(SHARED + (HERE / "page.css").read_text("utf-8"))
    for name in ("graph", "narrow"):
        view[name] = Markup(view[name])
    for plot in (view["timeline"], *view["curves"]):
        if plot is not None:
            plot.svg = Markup(plot.svg)
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return str(environment.get_template("page.html").render(view)).replace("\x00", "\ufffd")


def _view(past: History, facts: Facts) -> dict[str, Any]:
    """Everything that the page says, as texts."""
    run = facts.run
    lanes = give_lanes(facts)
    critical = mark_critical(facts)
    found = groups(past, facts)
    shape = facts.graph if facts.graph is not None else _flat(facts)
    where = "" if past.folder.path == locate() else f" --state-dir {shlex.quote(clean(past.folder.path))}"
    steps, rest = step_figures(facts, MOST_STEPS)
    most = max((step.work_s for step in (*steps, *([rest] if rest else []))), default=0.0)
    return {
        "title": shortened(run.pipeline, 120),
        "run_id": clean(run.run_id),
        "status": run.status,
        "look": _LOOKS.get(run.status, "off"),
        "said": STATUS_WORDS.get(run.status, run.status),
        "reason": shortened(run.reason, 500) if run.reason else "",
        "subtitle": _subtitle(facts),
        "tiles": _tiles(facts, lanes),
        "advice": advice(facts, found, where),
        "not_run": _named(facts.not_run, 12),
        "missing": [shortened(text, 400) for text in facts.missing],
        "graph": svg(shape, facts.outcomes, alone=False),
        "narrow": svg(shape, facts.outcomes, alone=False, row_w=NARROW_W, arrow="narrow"),
        "arrows": facts.graph is not None,
        "squares": _squares(facts.graph),
        "timeline": timeline(facts, lanes),
        "ticks": ticks(facts.length),
        "sessions": [
            (session.number, 100 * session.offset / facts.length) for session in facts.sessions[1:] if facts.length
        ],
        "critical": _critical(facts, critical),
        "curves": curves(facts),
        "curve_text": _curve_text,
        "shares": [part for part in shares(facts) if part.seconds > 0],
        "queued": _queued(facts),
        "short": _short(facts),
        "steps": [_step_cells(step, most) for step in steps],
        "rest": _step_cells(rest, most) if rest is not None else None,
        "failures": found,
        "failure_count": facts.bad_count,
        "environment": _environment(facts),
        "packages": _packages(facts.last),
        "params": [
            (shortened(key, 80), shortened(_json(value), 400)) for key, value in list(run.params.items())[:MOST_PARAMS]
        ],
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "version": __version__,
        "duration": duration_text,
        "marks": STATUS_MARKS,
    }


def _subtitle(facts: Facts) -> str:
    run = facts.run
    parts = [f"started {_local(run.started)} on {clean(run.host)}"]
    if run.sessions > 1:
        parts.append(f"session {run.sessions}")
    if run.exit_code is not None:
        parts.append(f"exit code {run.exit_code}")
    if run.earlier:
        parts.append(f"built on run {clean(run.earlier)}")
    return " · ".join(parts)


def _tiles(facts: Facts, lanes: list[str]) -> list[tuple[str, str, str]]:
    """Name, figure and a remark each."""
    run, length = facts.run, facts.length
    work_s = sum(each.wall_s for each in facts.tries if not each.wasted)
    workers = facts.last.workers
    found = [
        (
            "Time",
            duration_text(length) if length else "unknown",
            "so far" if run.live else "all sessions" if len(facts.sessions) > 1 else "",
        )
    ]
    if work_s and length:
        used = sum(each.end - each.start for each in facts.tries)
        whole = sum(session.workers * session.length for session in facts.sessions)
        faster = work_s / length
        found.append(
            ("Work", duration_text(work_s), f"{faster:.1f} times as fast as one by one" if faster >= 1.05 else "")
        )
        found.append(("Workers", str(workers), f"busy {min(1.0, used / whole):.0%} of the time" if whole else ""))
    cores = cores_used(facts)
    if cores is not None:
        cpus = facts.last.sampled.about.get("cpus") if facts.last.sampled is not None else None
        found.append(("Cores in use", f"{cores:.1f}", f"of {cpus}" if isinstance(cpus, int) else ""))
    counts = (run.succeeded, run.failed, run.lost, run.skipped, run.cancelled)
    words = ("succeeded", "failed", "lost", "skipped", "stopped")
    said = ", ".join(f"{n:,} {word}" for n, word in zip(counts, words, strict=True) if n)
    found.append(("Attempts", f"{sum(counts):,}", said))
    if facts.bad_count or run.failures:
        failures = run.failures if run.failures is not None else facts.bad_count
        found.append(("Failures", f"{failures:,}", f"{run.tolerated:,} tolerated" if run.tolerated else ""))
    peak = max((rss for s in facts.sessions if s.sampled for _, rss, _ in s.sampled.samples), default=0)
    if peak:
        budget = next((s.sampled.about.get("budget_bytes") for s in reversed(facts.sessions) if s.sampled), None)
        found.append(("Peak memory", size_text(peak), f"limit {size_text(budget)}" if isinstance(budget, int) else ""))
    if facts.kept:
        found.append(("Kept", counted(facts.kept, "step"), "done before, not run again"))
    return found


def _critical(facts: Facts, labels: list[str]) -> str:
    if not labels:
        return ""
    seconds = sum(each.end - each.start for each in facts.tries if each.critical)
    names = [shortened(label, 80) for label in labels]
    shown = " → ".join(names if len(names) <= 8 else [*names[:4], f"… {len(names) - 7} more …", *names[-3:]])
    length = facts.last.length
    rest = "; the rest of the time they waited for a place or for each other" if seconds < 0.9 * length else ""
    return f"{shown}. These ran for {duration_text(min(seconds, length))} of the {duration_text(length)}{rest}."


def _squares(graph: Part | None) -> str:
    """What small squares stand for, where there are any."""
    most = max((part.size for part in graph.walk()), default=0) if graph is not None else 0
    if most <= MOST_MEMBERS:
        return ""
    each = -(-min(most, MOST) // MOST_TILES)
    of = "a step" if each == 1 else f"up to {each} steps, in the colour of what is to be told first"
    left_out = f"; only the first {MOST:,} steps are drawn" if most > MOST else ""
    return f"Where a block has many steps, a square is {of}{left_out}."


def _queued(facts: Facts) -> str:
    found = queued(facts)
    if found is None or found[0] < 0.01:
        return ""
    total, longest = found
    names = ", ".join(f"{shortened(label, 80)} {duration_text(seconds)}" for label, seconds in longest[:3])
    return f"Steps that were ready waited {duration_text(total)} for a place, together; longest: {names}."


def _short(facts: Facts) -> str:
    """A remark where tasks are so short that handing them out takes longer."""
    parts = {part.key: part.share for part in shares(facts)}
    if len(facts.tries) < LEAST_SHORT or parts["send"] + parts["receive"] < max(0.25, parts["work"]):
        return ""
    return "Handing tasks out took longer than their work: they are very short. A map lets its items travel together (batch:)."


def _curve_text(curve: Curve) -> tuple[str, str]:
    """The peak, and the limit, in words."""

    def text(value: float) -> str:
        return size_text(value) if curve.key == "memory" else f"{value:.1f}" if value < 10 else f"{value:.0f}"

    if curve.limit is None:
        return text(curve.peak), ""
    name = {"memory": "limit", "cpu": "cores", "running": "workers"}[curve.key]
    amount = size_text(curve.limit) if curve.key == "memory" else f"{curve.limit:g}"
    return text(curve.peak), f"{name} {amount}"


def _step_cells(step: StepFigures, most: float) -> dict[str, Any]:
    cpu = step.cpu_s / step.work_s if step.work_s > 0 else 0.0
    several = step.attempts > 1 or step.items > 1
    bad = f"{step.bad:,} bad" if step.bad else ""
    again = f"{step.retries:,} again" if step.retries else ""
    return {
        "name": shortened(step.name, 120),
        "status": step.status,
        "attempts": f"{step.attempts:,}",
        "bad": ", ".join(text for text in (bad, again) if text),
        "count": f"{step.items:,}" if step.items else "",
        "median": duration_text(step.median_s) if step.steps == 1 and step.most_s else "",
        "p95": duration_text(step.p95_s) if several and step.steps == 1 else "",
        "most": duration_text(step.most_s) if several else "",
        "work": duration_text(step.work_s) if step.work_s else "",
        "bar": 100 * step.work_s / most if most > 0 else 0,
        "cpu": f"{cpu:.0%}" if step.cpu_s else "",
        "peak": size_text(step.peak_bytes) if step.peak_bytes else "",
        "critical": step.critical,
    }


def _environment(facts: Facts) -> list[tuple[str, str]]:
    run, last = facts.run, facts.last
    about: Mapping[str, Any] = last.sampled.about if last.sampled is not None else {}
    rows = [
        ("procflow", run.procflow_version),
        ("Python", run.python_version),
        ("Machine", f"{run.host}, {about.get('platform', 'unknown system')}"),
        ("Cores", str(about.get("cpus", ""))),
        ("Memory", _size(about.get("memory_bytes"))),
        ("Memory limit", _size(about.get("budget_bytes"))),
        ("Workers", f"{last.workers} ({run.executor})"),
        ("File", run.file or ""),
        (
            "Asked for",
            ", ".join(
                f"{key}={_json(value)}"
                for key, value in run.options.items()
                if key not in ("given", "lost") and value is not None
            ),
        ),
        ("Process", str(run.pid)),
    ]
    return [(name, shortened(text, 400)) for name, text in rows if text]


def _size(value: object) -> str:
    return size_text(value) if isinstance(value, (int, float)) else ""


def _packages(session: Session) -> list[str]:
    found = session.sampled.about.get("packages") if session.sampled is not None else None
    return [shortened(name, 80) for name in found] if isinstance(found, list) else []


def _named(names: list[str], most: int) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shortened(name, 80) for name in names[:most]) + more


def _flat(facts: Facts) -> Part:
    """What the journal knows of the pipeline's shape where nothing else is there: which step lies in which block."""
    kinds = {block.path: block.kind for block in facts.blocks}
    root = Part("", "", facts.run.pipeline, "graph", "")
    parts = {"": root}
    for path in sorted(facts.labels, key=lambda p: (p.count("."), p)):
        if not path:
            continue
        label = facts.labels[path]
        part = parts[path] = Part(path, label, label.rpartition("/")[2], kinds.get(path, "step"), "")
        outer = parts.get(path.rpartition(".")[0], root)
        outer.members.append(part)
        outer.size += 1
    return root


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _local(utc: str) -> str:
    try:
        return datetime.fromisoformat(utc.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return clean(utc)
