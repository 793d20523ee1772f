"""Rows: what a source answered in the form that a step asks for: a list of mappings, or an Arrow, pandas or polars table.

Batches are taken over as they arrive; Arrow is built a batch at a time, so that Python objects of all rows never exist at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["BATCH", "Rows", "RowsError", "of_mappings"]

BATCH = 10_000
"""Rows fetched at a time."""


class RowsError(ValueError):
    """Rows can't be had in the form that was asked for."""


class Rows:
    """Rows of one answer, with its columns by name."""

    def __init__(self, form: str, columns: Sequence[str]) -> None:
        twice = [name for name, count in Counter(columns).items() if count > 1]
        if twice:
            raise RowsError(f"two columns are named {', '.join(map(repr, twice[:5]))}: give one an alias (AS ...)")
        self.form = form
        self.columns = list(columns)
        self.count = 0
        self._rows: list[Any] = []
        self._tables: list[Any] = []

    def add(self, batch: Sequence[Sequence[Any]]) -> None:
        """The next rows, each a sequence of values."""
        self.count += len(batch)
        if self.form == "rows":
            columns = self.columns
            self._rows += [dict(zip(columns, row, strict=True)) for row in batch]
        elif self.form == "arrow":
            self._tables.append(_arrow(self.columns, batch))
        else:
            self._rows += [tuple(row) for row in batch]

    def done(self) -> Any:
        """The whole answer."""
        if self.form == "rows":
            return self._rows
        if self.form == "arrow":
            import pyarrow

            if not self._tables:
                return _arrow(self.columns, [])
            try:
                return pyarrow.concat_tables(self._tables, promote_options="permissive").combine_chunks()
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
                raise RowsError(f"a column has several types, which Arrow can't join: {error}; use as: rows") from None
        if self.form == "pandas":
            import pandas

            return pandas.DataFrame.from_records(self._rows, columns=self.columns)
        import polars

        try:
            return polars.DataFrame(self._rows, schema=self.columns, orient="row", infer_schema_length=None)
        except (polars.exceptions.PolarsError, TypeError) as error:
            raise RowsError(f"these rows can't be a polars table: {error}; use as: rows") from None


def _arrow(columns: Sequence[str], batch: Sequence[Sequence[Any]]) -> Any:
    import pyarrow

    arrays = []
    for i, name in enumerate(columns):
        values = [row[i] for row in batch]
        try:
            arrays.append(pyarrow.array(values))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError, OverflowError):
            try:
                arrays.append(pyarrow.array([None if value is None else str(value) for value in values]))
            except pyarrow.ArrowException as error:
                raise RowsError(f"column {name!r} can't be a column of Arrow: {error}") from None
    return pyarrow.table(arrays, names=list(columns))


def of_mappings(form: str, documents: Iterable[Any], what: str = "the answer") -> Rows:
    """Rows of mappings that need not have the same keys; in a table what is absent is null."""
    rows = Rows("rows", ())
    for i, document in enumerate(documents):
        if not isinstance(document, Mapping):
            raise RowsError(f"{what} is no list of rows: item {i} is of type {type(document).__name__}")
        rows._rows.append(dict(document))
    rows.count = len(rows._rows)
    if form == "rows":
        return rows
    columns = list(dict.fromkeys(str(key) for document in rows._rows for key in document))
    table = Rows(form, columns)
    for start in range(0, rows.count, BATCH):
        table.add([[document.get(c) for c in columns] for document in rows._rows[start : start + BATCH]])
    return table
