"""The task of a loader given from Python: inputs are passed on as they come.

It has no name in the recipe: nothing is planned, exported or proven for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from tutelage.errors import DataError, RecipeError
from tutelage.passes import shown, tensors
from tutelage.recipe import LossPart
from tutelage.tasks.draws import hash_keys
from tutelage.tasks.given.loaders import Found
from tutelage.tasks.splits import overlap, set_aside
from tutelage.types import Batch, Decides

_MOST_OVERLAP = 0.01
_SALT = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """The examples at `rows` of what a loader holds; classes are the networks' outputs."""

    found: Found
    rows: Int[np.ndarray, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """What the loader is called in messages."""
        return self.found.source.name

    @property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        """Class numbers, or None."""
        return None if self.found.labels is None else self.found.labels[self.rows]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the examples' hashes, the labels and how many classes there are."""
        digest = hashlib.sha256(f"{len(self.classes)}|".encode())
        digest.update(self.found.keys[self.rows].astype("<u8").tobytes())
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenData:
    """Two splits of a loader, or of two; `test` is empty, for nothing is proven."""

    train: Given
    validation: Given
    test: Given
    notes: tuple[str, ...] = ()


def arrange(
    train: Found, validation: Found | None, *, classes: int, validation_share: float, seed: int
) -> GivenData:
    """Check what the loaders hold, and set validation examples aside where none are given.

    The split is stratified by label, and a pure function of the seed and of the inputs: examples
    may be reordered, and equal ones fall on the same side. Raises `DataError` for labels that the
    networks have no output for, for a single class, and for too few examples.
    """
    names = tuple(map(str, range(classes)))
    _check_labels(train, classes)
    everything = np.arange(len(train.keys))
    notes = train.notes
    if validation is not None:
        _check_labels(validation, classes)
        held = Given(found=validation, rows=np.arange(len(validation.keys)), classes=names)
        notes += validation.notes + _overlap_notes(validation, train)
        learned = Given(found=train, rows=everything, classes=names)
    else:
        labels = np.zeros(len(everything), np.int64) if train.labels is None else train.labels
        taken = set_aside(hash_keys(train.keys[:, 0], seed, _SALT), labels, validation_share)
        if not taken.any():
            raise DataError(
                f"{train.source.name} has too few different examples to choose by: add some, or "
                "give validation="
            )
        if train.varies:
            notes += ("the examples set aside for validation vary too: better give validation=",)
        learned = Given(found=train, rows=everything[~taken], classes=names)
        held = replace(learned, rows=everything[taken])
    return GivenData(train=learned, validation=held, test=replace(held, rows=held.rows[:0]),
                     notes=notes)  # fmt: skip


def _check_labels(found: Found, classes: int) -> None:
    if found.labels is None:
        return
    wrong = (found.labels < 0) | (found.labels >= classes)
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(
            f"{found.source.name}: example {at} has the label {found.labels[at]} and the networks "
            f"decide among {classes} classes, 0 to {classes - 1}: correct the labels, or the heads"
        )
    if len(only := np.unique(found.labels)) == 1:
        raise DataError(
            f"{found.source.name} has one class only ({only[0]}): add examples of another class, "
            "or leave the labels out"
        )


def _overlap_notes(validation: Found, train: Found) -> tuple[str, ...]:
    known = set(map(tuple, train.keys.tolist()))
    shared = sum(tuple(key) in known for key in validation.keys.tolist())
    return overlap(
        shared, len(validation.keys), most=_MOST_OVERLAP, name="validation",
        source=validation.source.name, other="training", other_source=train.source.name,
        noun="examples",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AsGiven:
    """No normalisation and no augmentation."""

    def __bool__(self) -> bool:
        return False


class GivenTask:
    """Classification of whatever a loader yields; see `tutelage.tasks.Task`."""

    name = "given"
    families: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    losses: Mapping[str, float | LossPart] = MappingProxyType({"dist": 1.0})
    batch_size: int = 128
    keys: frozenset[str] = frozenset()

    def load(self, train: Found, test: None = None, **options: Any) -> GivenData:
        """Check and split what loaders hold; options as in `arrange`."""
        return arrange(train, options.pop("validation"), **options)

    def decides(self, data: GivenData) -> Decides:
        """Return that a decision is one of the classes."""
        return "classes"

    def input_shape(self, examples: Given) -> tuple[int, ...]:
        """Return the shape of the first tensor of one example."""
        inputs, _ = examples.found.source.read(examples.rows[:1], 0)
        return tuple(next(tensors(inputs)).shape[1:])

    def knobs(self, examples: Given) -> dict[str, Any]:
        """Return nothing: no student is built for a loader."""
        return {}

    def normalisation(self, examples: Given) -> AsGiven:
        """Return nothing to scale by."""
        return AsGiven()

    def augment(self, examples: Given, wanted: Any) -> AsGiven:
        """Return nothing to vary; raises `RecipeError` where the call asks for some."""
        for key, value in wanted.model_dump(exclude_unset=True).items():
            if value and (key, value) != ("views", 1):
                raise RecipeError(
                    f"augment.{key}: a loader's inputs are never changed: vary them in the data set"
                )
        return AsGiven()

    def show(self, examples: Given, index: int) -> str:
        """Return in words what one example is made of."""
        inputs, _ = examples.found.source.read(examples.rows[index : index + 1], 0)
        return shown(inputs)

    def tokens(self, examples: Given) -> None:
        """Return None: what the numbers mean is not known."""

    def decisions_an_hour(self, data: GivenData) -> None:
        """Return None: no stream is known of."""

    def meta(self, data: GivenData, normalisation: AsGiven) -> dict[str, Any]:
        """Return that inputs are read as they are."""
        return {"input": "input", "layout": "", "mean": (), "std": (), "scale": 1.0}

    def beside(self, data: GivenData) -> dict[str, bytes]:
        """Return nothing."""
        return {}

    def batch(
        self,
        examples: Given,
        index: Int[np.ndarray, " batch"],
        *,
        view: int = 0,
        seed: int = 0,
        augment: AsGiven,
        normalisation: AsGiven,
    ) -> Batch:
        """Form one batch of what the loader's examples are; `view` counts where they vary."""
        inputs, _ = examples.found.source.read(examples.rows[index], view)
        labels = None if examples.labels is None else torch.from_numpy(examples.labels[index])
        return Batch(inputs=inputs, labels=labels, index=torch.from_numpy(index), view=view)
