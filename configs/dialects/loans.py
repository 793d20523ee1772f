"""Loans of three branches of a library; used by ``loans.yaml``. A step gets a ``StepInput``, as in other workflow systems."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from procflow.compat.workflow import StepInput, StepOutput

FOLDER = Path(__file__).parent / "data"
Loans = list[dict[str, Any]]


def _told(step_input: StepInput, source: str, loans: Loans) -> StepOutput:
    """The loans of a source, which also counts itself in the state that all share."""
    step_input.workflow_session_state.append("sources", source)
    step_input.workflow_session_state.add("loans", len(loans))
    return StepOutput(content=loans)


def centre(step_input: StepInput) -> StepOutput:
    """From a table."""
    with (FOLDER / "loans.csv").open(newline="") as opened:
        rows = [
            {"title": row["title"], "reader": row["reader"], "days": int(row["days"])} for row in csv.DictReader(opened)
        ]
    return _told(step_input, "centre", rows)


def harbour(step_input: StepInput) -> StepOutput:
    """From a line of JSON for each loan."""
    lines = (FOLDER / "loans.jsonl").read_text().splitlines()
    return _told(step_input, "harbour", [json.loads(line) for line in lines])


def hill(step_input: StepInput) -> StepOutput:
    """From XML."""
    root = ElementTree.parse(FOLDER / "loans.xml").getroot()
    rows = [
        {"title": loan.get("title"), "reader": loan.get("reader"), "days": int(loan.get("days", "0"))} for loan in root
    ]
    return _told(step_input, "hill", rows)


def totals(step_input: StepInput) -> StepOutput:
    """How often each title was lent, and who has kept one for too long."""
    loans = [loan for rows in step_input.get_step_content("branches").values() for loan in rows]
    state = step_input.workflow_session_state
    late = sorted(loan["reader"] for loan in loans if loan["days"] > state["days_allowed"])
    titles = dict(Counter(loan["title"] for loan in loans).most_common())
    return StepOutput(
        content={"titles": titles, "late": late, "loans": state["loans"], "sources": list(state["sources"])}
    )


def any_late(step_input: StepInput) -> bool:
    """Whether anybody is to be reminded."""
    return bool(step_input.previous_step_content["late"])


def letter(step_input: StepInput) -> str:
    """A reminder."""
    return "Please bring back your books: " + ", ".join(step_input.previous_step_content["late"])


def thanks(step_input: StepInput) -> str:
    """No reminder."""
    return "All books are back in time."
