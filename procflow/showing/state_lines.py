"""State lines: the pipeline's state at the end of a run, its cost and its metrics, as ``procflow show`` prints them.

Values are opened by an unpickler that knows plain types only, so that looking at a run never runs code of anybody's; of
others, and of large ones, the size is told. It reads the journal through ``History`` and decides nothing.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from procflow.plaintext import clean, shortened
from procflow.ref import Inline, Ref
from procflow.state import MARK
from procflow.storing.history import History, StepRow
from procflow.units import size_text

__all__ = ["figure_lines", "preview", "state_lines", "state_values"]

MOST_METRICS = 40
"""More are left to ``--format json``."""
MOST_BYTES = 16 << 10
"""Larger values are not opened."""
_PLAIN = {
    ("builtins", "set"), ("builtins", "frozenset"), ("builtins", "complex"), ("builtins", "bytearray"), ("builtins", "range"),
    ("collections", "Counter"), ("collections", "OrderedDict"), ("decimal", "Decimal"), ("fractions", "Fraction"),
    ("datetime", "datetime"), ("datetime", "date"), ("datetime", "timedelta"),
}  # fmt: skip


class _Plain(pickle.Unpickler):
    """Knows no class but those of plain values."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not opened here")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("a value has no persistent ids")


def preview(ref: Ref, width: int = 100) -> str:
    """A value on one line: as Python writes it where it is small and plain, else its size."""
    if type(ref) is Inline and not ref.buffers and len(ref.data) <= MOST_BYTES:
        try:
            return shortened(repr(_Plain(io.BytesIO(ref.data)).load()), width)
        except Exception:
            # A class of the user's, or a damaged value: its size is told all the same.
            pass
    return f"<{size_text(ref.size_bytes)}>"


def state_values(past: History, run_id: str) -> dict[str, Ref]:
    """The state that the run folded in the end, by key; empty where it did not come to that."""
    rows = past.outputs(run_id, path="")
    return {row.name.removeprefix(MARK): row.ref for row in rows if row.name.startswith(MARK)}


def state_lines(past: History, run_id: str) -> Iterator[str]:
    """A line a key: ``state     totals = 4950``."""
    for key, ref in state_values(past, run_id).items():
        yield f"state     {clean(key)} = {preview(ref)}"


def figure_lines(past: History, run_id: str, rows: Sequence[StepRow]) -> Iterator[str]:
    """What the run cost, in all and by step, and the last value of each metric: ``metric    fetch.rows = 17``."""
    costs: dict[str, float] = {}
    for row in rows:
        if row.cost and row.members is None:
            costs[row.label] = costs.get(row.label, 0.0) + row.cost
    if costs:
        parts = ", ".join(f"{clean(label)} {cost:g}" for label, cost in list(costs.items())[:10])
        yield f"cost      {sum(costs.values()):g}  ({parts}{', ...' if len(costs) > 10 else ''})"
    last = {(label, name): value for label, _, _, name, value in past.metrics(run_id)}
    for (label, name), value in list(last.items())[:MOST_METRICS]:
        yield f"metric    {clean(label)}.{clean(name)} = {value:g}"
    if len(last) > MOST_METRICS:
        yield f"metric    and {len(last) - MOST_METRICS} more; see --format json"
