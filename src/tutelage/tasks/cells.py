"""Cells of series as text or numbers: what is missing, what is a number, what is a time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from jaxtyping import Float

from tutelage.errors import DataError

MISSING = frozenset({"", "?", "nan", "na", "n/a", "null", "none"})
_STAMPED = re.compile(r"\(([^()]*),([^(),]*)\)")
_STAMPED_LINE = re.compile(r"\s*\([^()]*\)(\s*,\s*\([^()]*\))*\s*")


def as_numbers(cells: Sequence[Any], where: str) -> Float[np.ndarray, " t"]:
    """Return cells as numbers, NaN where they are missing; raises `DataError` for other text."""
    try:
        return np.array(cells, np.float64)
    except (ValueError, TypeError):
        return np.array([as_number(cell, where) for cell in cells], np.float64)


def as_number(cell: Any, where: str) -> float:
    """Return one cell as a number; see `as_numbers`."""
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in MISSING):
        return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: '{str(cell).strip()[:40]}' is not a number: correct it, or write ? where "
            "the value is missing"
        ) from None


def check_ascending(times: Sequence[Any], where: str) -> None:
    """Raise `DataError` unless every time, a number or an ISO date, is later than the last."""
    moments = [_moment(time, where) for time in times]
    for i in range(1, len(moments)):
        if not moments[i] > moments[i - 1]:
            raise DataError(
                f"{where}: timestamp {times[i]} does not come after {times[i - 1]}: "
                "sort the series by time"
            )


def _moment(time: Any, where: str) -> float:
    try:
        return int(time) if isinstance(time, int) else int(str(time).strip())  # nanoseconds fit
    except ValueError:
        pass
    try:
        value = float(time)
    except (TypeError, ValueError):
        value = _date(time)
    if not math.isfinite(value):
        raise DataError(
            f"{where}: timestamp '{time}' is neither a number nor a date like 2024-01-31 12:00:00: "
            "correct it"
        )
    return value


def _date(time: Any) -> float:
    try:
        date = time if isinstance(time, datetime) else datetime.fromisoformat(str(time).strip())
    except ValueError:
        return math.nan
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    since = date - datetime(1970, 1, 1, tzinfo=UTC)
    return since / timedelta(microseconds=1)


def plain(part: str, where: str) -> Float[np.ndarray, " t"]:
    """Return the numbers of `1,2,?`; see `as_numbers`."""
    return as_numbers(part.split(","), where)


def stamped(part: str, where: str) -> Float[np.ndarray, " t"]:
    """Return the numbers of `(time,value),...`; raises `DataError` where time does not ascend."""
    if not _STAMPED_LINE.fullmatch(part):
        raise DataError(f"{where}: '{part.strip()[:30]}' is not of the form (time,value),...")
    pairs = _STAMPED.findall(part)
    if len(pairs) != part.count("("):
        raise DataError(f"{where}: a pair in brackets is not of the form (time,value): correct it")
    check_ascending([time for time, _ in pairs], where)
    return as_numbers([value for _, value in pairs], where)


def is_text(cell: Any) -> bool:
    """Say whether a cell is text that is neither a number nor missing."""
    if not isinstance(cell, str) or cell.strip().lower() in MISSING:
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def one_line(error: BaseException) -> str:
    """Return what a foreign error says, on one line of at most 160 characters."""
    return " ".join(str(error).split())[:160]
