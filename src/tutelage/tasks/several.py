"""Several labels an example: refused by name, whatever the reader; one-hot rows are classes.

Covers cells that are lists, cells of words such as `a;b` whose parts are labels of other examples,
and arrays of 0 and 1. Does not cover a column in which no label ever stands alone: its cells are
taken for names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from tutelage.errors import DataError

_APART = (";", "|", ",")
_LISTS = (list, tuple, set, dict, np.ndarray)


def several_labels(where: str, label: Any) -> DataError:
    """Return the refusal of an example with several labels, or a list of them."""
    what = "a list of labels" if isinstance(label, _LISTS) else "several labels"
    shown = str(label)
    shown = shown if len(shown) <= 40 else f"{shown[:39]}…"
    return DataError(
        f"{where} has {what} ({shown}), and several labels an example are not supported: give each "
        "example one, or run once a label, with that label against the rest"
    )


def refuse_lists(cells: Iterable[Any], where: Callable[[int], str]) -> None:
    """Raise `DataError` for the first cell that is a list; `where(i)` names example `i`."""
    for i, cell in enumerate(cells):
        if isinstance(cell, _LISTS):
            raise several_labels(where(i), cell)


def refuse_joined(cells: Sequence[Any], where: Callable[[int], str]) -> None:
    """Raise `DataError` for the first cell such as `a;b` whose parts are cells of their own.

    A name with a comma in it is left alone unless each of its parts is a label, too.
    """
    alone = {str(cell).strip() for cell in cells}
    joined = {cell for cell in alone if len(parts_among(cell, alone)) > 1}
    if joined:
        at = next(i for i, cell in enumerate(cells) if str(cell).strip() in joined)
        raise several_labels(where(at), str(cells[at]).strip())


def parts_among(cell: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return the parts of a cell where all of them are among `known`; else nothing."""
    known = known if isinstance(known, (set, frozenset)) else set(known)
    for sign in _APART:
        parts = [part.strip() for part in re.split(re.escape(sign), cell)]
        if len(parts) > 1 and all(part and part in known for part in parts):
            return tuple(parts)
    return ()


def from_one_hot(array: np.ndarray, where: Callable[[int], str]) -> Int[np.ndarray, " n"] | None:
    """Return class numbers of `[n, k]` rows of 0 with one 1; None where it is no such array.

    Raises `DataError` naming the first row of 0 and 1 with several ones, or with none.
    """
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "iufb" or not array.size:
        return None
    if not ((array == 0) | (array == 1)).all():
        return None
    ones = (array == 1).sum(1)
    if (ones > 1).any():
        at = int((ones > 1).argmax())
        raise several_labels(where(at), f"classes {np.flatnonzero(array[at]).tolist()}")
    if (ones == 0).any():
        at = int((ones == 0).argmax())
        raise DataError(f"{where(at)} has no label, a row of zeros: fill it in or drop it")
    return array.argmax(1).astype(np.int64)
