"""How texts are split: stratified, by their hash, equal texts together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int, UInt64

from tutelage.errors import DataError
from tutelage.tasks.draws import hash_keys
from tutelage.tasks.splits import check_learnable, check_share, matched, overlap, set_aside
from tutelage.tasks.text.files import TextSource
from tutelage.tasks.unlabelled import fresh, no_labels

_TEST_SHARE = 0.2
_MOST_OVERLAP = 0.01
_SALT = {"test": 1, "validation": 2}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadTexts:
    """What the first reading leaves of one source.

    Ids, how many tokens each text has (where they are too many, some number above what is wanted),
    in how many of its characters, hashes and labels. Without labels `classes` is empty and every
    label is 0.
    """

    source: TextSource
    ids: Int[np.ndarray, " tokens"]
    offsets: Int[np.ndarray, " n+1"]
    counts: Int[np.ndarray, " n"]
    characters: Int[np.ndarray, " n"]
    keys: UInt64[np.ndarray, "n 2"]
    labels: Int[np.ndarray, " n"]
    classes: tuple[str, ...]


TextPart = tuple[ReadTexts, Bool[np.ndarray, " n"]]  # a split: what was read, and which rows of it


def split_texts(
    read: dict[str, ReadTexts], share: float, seed: int, notes: list[str]
) -> dict[str, TextPart]:
    """Return the parts that `read` names (train, perhaps others) and those that are taken out.

    An `unlabelled` one loses its copies of validation and test texts. `notes` grows. Raises
    `DataError` for texts that cannot be learned from, `RecipeError` for a bad share.
    """
    check_share(share)
    train, more = read["train"], read.get("unlabelled")
    read = {name: held for name, held in read.items() if held is not more}
    if not train.classes:
        notes.append(no_labels(train.source.name))
    check_learnable(
        train.labels if train.classes else None, train.classes, count=len(train.labels),
        least=max(2, 4 - len(read)), source=train.source.name, noun="texts",
    )  # fmt: skip
    parts = {
        k: (_aligned(held, train), np.ones(len(held.labels), np.bool_)) for k, held in read.items()
    }
    for name, wanted in (("test", _TEST_SHARE), ("validation", share)):
        left = parts["train"][1]
        if name not in parts:
            taken = _set_aside(train, left, wanted, seed, name)
            parts |= {"train": (train, left & ~taken), name: (train, taken)}
        _check_overlap(parts, name, "train", notes)
    if "validation" in read:
        _check_overlap(parts, "test", "validation", notes)
    if more is not None:
        held = np.concatenate([parts[k][0].keys[parts[k][1]] for k in ("validation", "test")])
        kept, said = fresh(more.keys, held, source=more.source.name, noun="texts")
        parts["unlabelled"] = (more, kept)
        notes += said
    if np.bincount(train.labels[parts["train"][1]], minlength=len(train.classes)).min() == 0:
        raise DataError(f"{train.source.name}: equal texts differ in label: give each text one")
    return parts


def _aligned(held: ReadTexts, train: ReadTexts) -> ReadTexts:
    known = held.labels if held.classes else None
    labels = matched(
        known, held.classes, held.source.name, train.classes or None, train.source.name
    )
    return held if labels is None else replace(held, labels=labels, classes=train.classes)


def _set_aside(
    held: ReadTexts, free: Bool[np.ndarray, " n"], share: float, seed: int, split: str
) -> Bool[np.ndarray, " n"]:
    """Choose `share` of the free texts of each class by their hash, equal ones together."""
    ranks = hash_keys(held.keys[:, 0], seed, _SALT[split])
    _, group = np.unique(held.keys[:, 0], return_inverse=True)
    lowest = np.full(int(group.max()) + 1, len(held.classes))
    np.minimum.at(lowest, group, held.labels)  # equal texts with two labels count as the first
    labels = np.where(free, lowest[group], -1)
    taken = set_aside(ranks, labels, share, part_equal=False)
    if not taken.any():
        raise DataError(f"{held.source.name} has too few different texts: add some, or a {split}")
    return taken


def _check_overlap(parts: dict[str, TextPart], one: str, other: str, notes: list[str]) -> None:
    (a, mine), (b, yours) = parts[one], parts[other]
    keys, known = a.keys[mine], b.keys[yours]
    shared = int((np.isin(keys[:, 0], known[:, 0]) & np.isin(keys[:, 1], known[:, 1])).sum())
    notes += overlap(
        shared, len(keys), most=_MOST_OVERLAP, name=one, source=a.source.name,
        other="training" if other == "train" else other, other_source=b.source.name, noun="texts",
    )  # fmt: skip
