"""Labels that are classes, numbers or names, from any array: as class numbers with names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from tutelage.errors import DataError
from tutelage.tasks.several import from_one_hot, refuse_joined, refuse_lists

_MOST_CLASSES = 65536


def as_labels(
    values: Sequence[Any] | np.ndarray, classes: tuple[str, ...] | None, source: str
) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Return class numbers and class names from numbers or names.

    Numbers are their own names, counted from 0, or from 1 where no label is 0. With `classes`
    given, numbers index it. One-hot rows are classes, too. Raises `DataError` for missing,
    negative, fractional, huge or several labels.
    """
    if not isinstance(values, np.ndarray):
        refuse_lists(values, lambda i: f"{source}: example {i}")
        gaps = [i for i, value in enumerate(values) if value is None or value == ""]
        if gaps:
            raise DataError(f"{source}: example {gaps[0]} has no label: fill it in or drop the row")
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    hot = from_one_hot(array, lambda i: f"{source}: example {i}")
    if hot is not None:
        return _numbered(hot, classes or tuple(map(str, range(array.shape[1]))), source)
    if array.ndim != 1:
        raise DataError(
            f"{source}: labels of shape {list(array.shape)} are not one class an example: "
            "save class numbers (argmax of one-hot labels)"
        )
    if array.dtype.kind in "US":
        if classes is None:
            refuse_joined(array.astype(str).tolist(), lambda i: f"{source}: example {i}")
        return _named(array.astype(str), classes, source)
    if array.dtype.kind not in "iub":
        raise DataError(
            f"{source}: labels of type {array.dtype} are not classes: save whole numbers or names"
        )
    return _numbered(array.astype(np.int64), classes, source)


def _named(
    array: np.ndarray, classes: tuple[str, ...] | None, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    present = sorted(set(array.tolist()))
    names = tuple(present) if classes is None else classes
    unknown = sorted(set(present) - set(names))
    if unknown:
        raise DataError(f"{source}: label '{unknown[0]}' is not one of the {len(names)} classes")
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[name] for name in array.tolist()], np.int64), names


def _numbered(
    array: np.ndarray, classes: tuple[str, ...] | None, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    if len(array) == 0:
        return array, classes or ()
    low, high = int(array.min()), int(array.max())
    limit = _MOST_CLASSES if classes is None else len(classes)
    if low < 0 or high >= limit:
        bad = low if low < 0 else high
        row = int(np.argmax(array == bad))
        raise DataError(
            f"{source}: label {bad} of example {row} is out of range (0 to {limit - 1}): "
            "number the classes from 0, or drop examples without a class"
        )
    if classes is not None:
        return array, classes
    first = 1 if low >= 1 else 0
    return array - first, tuple(str(i) for i in range(first, high + 1))
