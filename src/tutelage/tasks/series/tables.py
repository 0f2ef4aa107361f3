"""Series from tables: CSV and Parquet, one row a series or one row a step."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.errors import DataError, MissingExtra
from tutelage.registry import near_matches
from tutelage.tasks.cells import (
    MISSING,
    as_number,
    check_ascending,
    is_text,
    one_line,
)
from tutelage.tasks.parts import Parts
from tutelage.tasks.series.base import (
    Series,
    SeriesOptions,
    make_series,
)
from tutelage.tasks.several import refuse_lists
from tutelage.types import Decides

_LABEL_COLUMNS = ("label", "class", "target", "y")


def read_csv(path: Path, options: SeriesOptions) -> Parts[Series]:
    """Read a CSV: one row a series, or one row a step where `series_column` is given."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV ({one_line(error)})") from None
    if header and not any(map(is_text, header)):
        raise DataError(f"{path}: its first line is all numbers: add a header that names columns")
    for number, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(row)} cells where the header has {len(header)}: "
                "mend the row"
            )
    columns = list(zip(*(row for _, row in rows), strict=True)) or [()] * len(header)
    lines = [f"line {number}" for number, _ in rows]
    return Parts(train=_table(path, header, columns, lines, options))


def read_parquet(path: Path, options: SeriesOptions) -> Parts[Series]:
    """Read a Parquet file; its rows are as those of a CSV. Raises `MissingExtra`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("Reading Parquet", "parquet") from None
    try:
        table = pq.read_table(path)
        table.validate(full=True)
        columns = [column.to_pylist() for column in table.columns]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable Parquet ({one_line(error)})") from None
    rows = [f"row {i}" for i in range(table.num_rows)]
    return Parts(train=_table(path, table.column_names, columns, rows, options))


def _table(
    path: Path,
    header: list[str],
    columns: Sequence[Sequence[Any]],
    rows: list[str],
    options: SeriesOptions,
) -> Series:
    table = dict(zip(header, columns, strict=True))
    if len(table) < len(header) or "" in table:
        raise DataError(f"{path}: two columns have the same name, or one has none: rename them")
    if not rows:
        raise DataError(f"{path} holds no series: check that the path is the right one")
    ids = _wanted(path, table, options.series_column, "series")
    times = _wanted(path, table, options.time_column, "time")
    decides: Decides = "values" if options.target == "values" else "classes"
    label = _label(path, table, options, {ids, times})
    if times is not None and ids is None:
        raise DataError(f"{path}: data.time_column is for the long form: give data.series_column")
    steps = [name for name in header if name not in (ids, times, label)]
    if not steps:
        raise DataError(f"{path} has no columns of values beside '{label}': check the file")
    labels = None if label is None or options.bare else table[label]
    if labels is not None:
        refuse_lists(labels, lambda i: f"{path}, {rows[i]}")
    values = np.stack([_values(path, table[name], name, rows) for name in steps], axis=1)
    if ids is None:
        return make_series(values, labels, decides=decides, source=str(path), names=rows)
    moments = table[times] if times else None
    return _joined(path, values, table[ids], labels, moments, decides)


def _joined(
    path: Path,
    values: np.ndarray,
    ids: Sequence[Any],
    cells: Sequence[Any] | None,
    times: Sequence[Any] | None,
    decides: Decides,
) -> Series:
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(ids):
        if str(key).strip().lower() in MISSING:
            raise DataError(f"{path}: data row {i} does not say which series it is of: fill it in")
        groups.setdefault(key, []).append(i)
    labels = None if cells is None else []
    for key, at in groups.items():
        where = f"{path}, series '{key}'"
        if times is not None:
            check_ascending([times[i] for i in at], where)
        if cells is None or labels is None:
            continue
        known = {cells[i] for i in at}
        if len(known) > 1:
            raise DataError(f"{where} has several labels: give it one")
        labels.append(known.pop())
    items = [values[at].T for at in groups.values()]
    names = [f"series '{key}'" for key in groups]
    return make_series(items, labels, decides=decides, source=str(path), names=names)


def _values(path: Path, cells: Sequence[Any], name: str, rows: list[str]) -> np.ndarray:
    try:
        return np.array(cells, np.float64)
    except (TypeError, ValueError):
        numbers = [
            as_number(cell, f"{path}, {row}, column '{name}'")
            for cell, row in zip(cells, rows, strict=True)
        ]
        return np.array(numbers, np.float64)


def _wanted(path: Path, table: dict[str, Any], name: str | None, kind: str) -> str | None:
    if name is not None and name not in table:
        raise DataError(f"{path} has no {kind} column '{name}'. {near_matches(name, list(table))}")
    return name


def _label(
    path: Path, table: dict[str, Any], options: SeriesOptions, taken: set[str | None]
) -> str | None:
    """Return the column of labels: as named, else by its name or its words.

    None only where labels are not read: of columns that are all numbers, one may be the labels.
    """
    name = options.label_column
    if name is not None and (name in table or not options.bare):
        return _wanted(path, table, name, "label")
    free = [column for column in table if column not in taken]
    by_name = {column.lower(): column for column in reversed(free)}
    if "x" in by_name:  # beside an x, y is an axis
        by_name.pop("y", None)
    found = [by_name[usual] for usual in _LABEL_COLUMNS if usual in by_name]
    if options.target != "values":
        found += [column for column in reversed(free) if any(map(is_text, table[column]))]
    if not found and not options.bare:
        raise DataError(
            f"{path} has no column of labels: name it with data.label_column (none, if there is "
            "none)"
        )
    return found[0] if found else None
