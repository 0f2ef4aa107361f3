"""Examples without labels, as every task needs them: which join the training split, what is said.

An example without a label has the number -1 where others have one; data without any has None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt64

from tutelage.errors import DataError

NO_LABELS = "none"  # as data.label_column: whatever the data has, its labels are not read


def fresh(
    keys: UInt64[np.ndarray, "n 2"], held: UInt64[np.ndarray, "m 2"], *, source: str, noun: str
) -> tuple[Bool[np.ndarray, " n"], tuple[str, ...]]:
    """Say which unlabelled examples are no copies of `held` ones, and what to say of them.

    Both are 128-bit hashes of content; `held` are those of validation and test. Raises `DataError`
    when none is left.
    """
    known = set(map(tuple, held.tolist()))
    kept = np.array([tuple(key) not in known for key in keys.tolist()], np.bool_)
    left, total = int(kept.sum()), len(keys)
    if left == 0:
        raise DataError(
            f"all {total} unlabelled {noun} of {source} are validation or test {noun} too: give "
            "others in data.unlabelled"
        )
    notes = (f"{left} unlabelled {noun} of {source} join the training split",)
    if left < total:
        notes += (
            f"{total - left} of {total} unlabelled {noun} of {source} are also validation or test "
            f"{noun} and are left out",
        )
    return kept, notes


def joined(
    train: Any, unlabelled: Any, held: Sequence[Any], *, keys: Callable[[Any], np.ndarray],
    arrays: Sequence[str], noun: str,
) -> tuple[Any, tuple[str, ...]]:  # fmt: skip
    """Return `train` with the unlabelled examples behind it, and what to say of them.

    Copies of `held` ones, by `keys`, are left out; see `fresh`. `arrays` are the fields that hold
    one row an example.
    """
    known = np.concatenate([keys(part) for part in held])
    kept, notes = fresh(keys(unlabelled), known, source=unlabelled.source, noun=noun)
    more = unlabelled.take(np.flatnonzero(kept))
    both = {a: np.concatenate([getattr(train, a), getattr(more, a)]) for a in arrays}
    return replace(train, **both, labels=with_unlabelled(train.labels, len(more))), notes


def with_unlabelled(
    labels: Int[np.ndarray, " n"] | None, more: int
) -> Int[np.ndarray, " n_and_more"] | None:
    """Return `labels` with -1 for `more` examples behind them; None stays None."""
    return None if labels is None else np.concatenate([labels, np.full(more, -1, labels.dtype)])


def strata(labels: Int[np.ndarray, " n"] | None, count: int) -> Int[np.ndarray, " n"]:
    """Return what a split is stratified by: the labels, or one stratum where there are none."""
    return np.zeros(count, np.int64) if labels is None else labels


def check_enough(count: int, *, least: int, source: str, noun: str) -> None:
    """Raise `DataError` unless data without labels has `least` examples."""
    if count < least:
        raise DataError(f"{source} has {count} {noun} where {least} are needed: add some")


def no_labels(source: str) -> str:
    """Return what must be said of training data without labels."""
    return (
        f"{source} has no labels, so figures say how often the student decides as the teacher does "
        "(agreement), not how often it is right; if it has some, name them (data.label_column, or "
        "data.labels)"
    )


def some_labels(source: str, other: str) -> DataError:
    """Return the error for `source` with labels, beside training data `other` without."""
    return DataError(
        f"{source} has labels and {other} has none: give the labelled examples as data.train and "
        f"the others as data.unlabelled, or write data.label_column: {NO_LABELS}"
    )
