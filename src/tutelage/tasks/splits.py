"""Splits and classes as every task needs them: equal examples together, classes by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Int, UInt64

from tutelage.errors import DataError, RecipeError
from tutelage.tasks.unlabelled import check_enough, some_labels

Part = TypeVar("Part")
_TEST_SHARE = 0.2
_RARE = 0.1  # of the commonest class's examples
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}


def split_name(word: str) -> str | None:
    """Return `train`, `validation` or `test` for the words people use, else None."""
    return _SPLIT_NAMES.get(word.lower())


def renumbered(
    labels: Int[np.ndarray, " n"], classes: Sequence[str], source: str,
    wanted: Sequence[str], wanted_source: str,
) -> Int[np.ndarray, " n"]:  # fmt: skip
    """Return `labels` of `source` in the class numbers of `wanted_source`, matched by name.

    Raises `DataError` for a class that the other does not have.
    """
    number = {name: i for i, name in enumerate(wanted)}
    unknown = [classes[i] for i in np.unique(labels) if classes[i] not in number]
    if unknown:
        raise DataError(
            f"{source} has the class '{unknown[0]}', which is not among the "
            f"{len(number)} classes of {wanted_source}: correct the labels"
        )
    return np.array([number.get(name, -1) for name in classes], np.int64)[labels]


def matched(
    labels: Int[np.ndarray, " n"] | None, classes: Sequence[str], source: str,
    wanted: Sequence[str] | None, wanted_source: str,
) -> Int[np.ndarray, " n"] | None:  # fmt: skip
    """Return `labels` in the class numbers `wanted`, None where both sources have no labels.

    `wanted` is None for a source without labels. Raises `DataError` where one alone has labels.
    """
    if labels is None and wanted is None:
        return None
    if labels is None:
        raise DataError(f"{source} has no labels, which it needs to be tested on: add them")
    if wanted is None:
        raise some_labels(source, wanted_source)
    return renumbered(labels, classes, source, wanted, wanted_source)


def parted(
    train: Part, validation: Part | None, test: Part | None, *, share: float,
    take_out: Callable[..., tuple[Part, Part]], compare: Callable[..., tuple[str, ...]],
) -> tuple[Part, Part, Part, tuple[str, ...]]:  # fmt: skip
    """Return the three splits, what is missing taken out of `train`, and notes on copies.

    `take_out(examples, share, split=)` gives what stays and what is taken, `compare(examples,
    name, others, name of others)` says which examples are copies. Validation is `share` of what is
    left when a fifth is the test split.
    """
    if test is None:
        train, test = take_out(train, _TEST_SHARE, split="test")
    notes = compare(test, "test", train, "training")
    if validation is None:
        train, validation = take_out(train, share, split="validation")
    else:
        notes += compare(validation, "validation", train, "training")
        notes += compare(test, "test", validation, "validation")
    return train, validation, test, notes


def check_share(share: float) -> None:
    """Refuse a validation share that leaves one side empty; raises `RecipeError`."""
    if not 0 < share < 1:
        raise RecipeError(f"validation_share is {share}: it must lie between 0 and 1")


def check_learnable(
    labels: Int[np.ndarray, " n"] | None, classes: Sequence[str], *, count: int, least: int,
    source: str, noun: str, advice: str = "",
) -> None:  # fmt: skip
    """Raise `DataError` unless there are two classes, each with `least` of the `count` examples.

    Without labels, that many must there be in all. `advice` ends what is said of a rare class.
    """
    if labels is None:
        return check_enough(count, least=least, source=source, noun=noun)
    counts = np.bincount(labels, minlength=len(classes))
    if np.count_nonzero(counts) < 2:
        only = classes[int(counts.argmax())]
        raise DataError(f"{source} has one class only ('{only}'): add {noun} of another class")
    rare = int(counts.argmin())
    if counts[rare] >= least:
        return
    if counts[rare] == 0:
        raise DataError(
            f"{source} has no example of class '{classes[rare]}', though its {len(counts)} classes "
            f"reach '{classes[-1]}': add examples of it, or number the classes without gaps"
        )
    raise DataError(
        f"{source} has {counts[rare]} {noun} of class '{classes[rare]}' where {least} are needed: "
        f"add some, drop the class, or give a test path{advice}"
    )


def set_aside(
    ranks: UInt64[np.ndarray, " n"], labels: Int[np.ndarray, " n"], share: float, *,
    part_equal: bool = True,
) -> Bool[np.ndarray, " n"]:  # fmt: skip
    """Choose `share` of each class in the order of `ranks`: at least one, never all.

    Examples of equal rank stay together. Where a class has only one rank it is parted all the same,
    or not touched without `part_equal`. A negative label is never chosen.
    """
    taken = np.zeros(len(labels), np.bool_)
    for number in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == number)
        members = members[np.argsort(ranks[members], kind="stable")]
        own, want = ranks[members], min(max(1, round(share * len(members))), len(members) - 1)
        edges = np.flatnonzero(own[1:] != own[:-1]) + 1
        if len(edges):
            want = int(edges[np.abs(edges - want).argmin()])
        elif not part_equal:
            want = 0
        taken[members[: max(0, want)]] = True
    return taken


def rare_classes(
    labels: Int[np.ndarray, " n"] | None, classes: Sequence[str], metric: str
) -> tuple[str, ...]:
    """Return what to say of classes of unequal size: at most one line.

    It is said where the rarest class has under a tenth of the examples of the commonest.
    """
    if labels is None:
        return ()
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    rare, common = int(counts.argmin()), int(counts.argmax())
    if counts[rare] >= _RARE * counts[common]:
        return ()
    line = (
        f"the class '{classes[rare]}' has {counts[rare]} training examples where "
        f"'{classes[common]}' has {counts[common]}"
    )
    if metric == "accuracy":
        line += (
            f": accuracy misleads, since always saying '{classes[common]}' has "
            f"{counts[common] / counts.sum():.0%} of it; choose by metric: macro_f1"
        )
    return (line,)


def overlap(
    shared: int, total: int, *, most: float, name: str, source: str, other: str,
    other_source: str, noun: str,
) -> tuple[str, ...]:  # fmt: skip
    """Return what to say of `shared` examples that two splits have in common: at most one line.

    Raises `DataError` when they are more than the share `most` of the `total`.
    """
    if shared == 0:
        return ()
    finding = f"{shared} of {total} {name} {noun} of {source} are also {other} {noun}"
    if shared > most * total:
        raise DataError(
            f"{finding} of {other_source}, so the {name} score would be worthless: "
            "remove the duplicates from one of them"
        )
    return (finding,)
