"""What int8 or float16 costs: a file's metric against float32's, on enough examples to tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tutelage.audit.metrics import class_score
from tutelage.export.artifact import OnnxModel
from tutelage.pipeline.material import Material
from tutelage.pipeline.teaching import Taught
from tutelage.recipe import Recipe
from tutelage.tasks.values import score
from tutelage.teach.signals import SignalCache, Split

_BATCH = 256
_ENOUGH = 1_000  # examples: one of them is a tenth of the default `export.largest_loss`


class PrecisionCheck:
    """What a file loses of the metric (or agreement) against float32.

    Told on validation; where that has fewer than 1,000 examples, on training examples besides, up
    to so many: of ten examples one alone is a tenth, and says nothing. `most` is the recipe's
    `export.largest_loss`, or one example where that is more.
    """

    def __init__(
        self, recipe: Recipe, material: Material, taught: Taught, float_path: Path
    ) -> None:
        labels = material.data.validation.labels
        self.material, self.metric = material, "accuracy" if labels is None else recipe.metric
        self.what = "R2" if material.metric == "r2" else material.metric.replace("_", " ")
        if labels is None:
            labels = material.said(taught.validation_decision.numpy())
        self.parts = [(material.validation, labels)]
        self.where = "validation"
        missing = _ENOUGH - material.validation.count
        more = _some_of_training(material, taught, missing) if missing > 0 else None
        if more is not None:
            self.parts.append(more)
            self.where = f"validation and {more[0].count} training examples"
        self.base = self._score(float_path)
        count = sum(split.count for split, _ in self.parts)
        one = 1 / count if material.decides == "classes" else 0.0
        self.most = max(recipe.export.largest_loss, one) + 1e-9  # sums of shares are rounded

    def loss(self, path: Path) -> float:
        """Return how much lower the metric of the file at `path` is."""
        return self.base - self._score(path)

    def _score(self, path: Path) -> float:
        outputs = self.material.outputs  # the final ones; exits answer with more
        said = [artifact_decisions(path, split)[:, :outputs] for split, _ in self.parts]
        answers = self.material.said(np.concatenate(said))
        wanted = np.concatenate([labels for _, labels in self.parts])
        if self.material.decides == "values":
            return score(answers, wanted, "values")
        return class_score(self.metric, answers, wanted)


def _some_of_training(
    material: Material, taught: Taught, most: int
) -> tuple[Split, np.ndarray] | None:
    """Return up to `most` untouched training examples and what is right about them.

    That is their labels, or the teacher's decisions where validation is judged by those. None where
    the teacher answered about no training example by its number.
    """
    train, labels = material.train, material.data.train.labels
    if not isinstance(taught.train, SignalCache):  # examples that come as they like
        return None
    known = np.arange(train.count)
    if material.data.validation.labels is None:
        labels = material.said(taught.train.read(torch.from_numpy(known), 0).decision.numpy())
    elif material.decides == "classes":
        known = np.flatnonzero(labels >= 0)
    places = np.linspace(0, len(known) - 1, min(most, len(known))).round().astype(np.int64)
    chosen = known[np.unique(places)]
    index = torch.from_numpy(chosen)
    split = Split(
        name="training", count=len(chosen), content="",
        batch=lambda some, _: train.batch(index[some], 0),
    )  # fmt: skip
    return split, labels[chosen]


def artifact_decisions(path: Path, split: Split) -> np.ndarray:
    """Return an artifact's logits for every untouched example of a split, batch by batch."""
    model = OnnxModel(path)
    return np.concatenate(
        [
            model.run(split.batch(torch.arange(i, min(i + _BATCH, split.count)), 0).tensor.numpy())
            for i in range(0, split.count, _BATCH)
        ]
    )
